//! Threshold files, results and journals: no panic; what is read can be judged and shown.
#![no_main]

use dhc_runners::{journal, render, tables};
use dhc_thresholds::{Report, Table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let metrics = tables::metrics();
    let table = Table::parse(
        &String::from_utf8_lossy(text),
        "fuzz.toml",
        &metrics,
        &|_| None,
    );
    if let (Ok(report), Ok(generic)) = (Report::parse(text), tables::built_in_table("generic")) {
        for node in &report.nodes {
            node.judged_again(&tables::metrics_of, &generic.table);
        }
        render::report(&report, render::Paper::Plain);
    }
    let _ = (table, journal::read(text));
});
