//! What `all_reduce_perf` prints: never a panic, and no figure that is none.
#![no_main]

use dhc_checks::format::nccl_tests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(table) = nccl_tests::read(text) {
        let sound = |row: &nccl_tests::Row| row.bytes == 0 || row.algbw_gb_per_s() >= 0.0;
        assert!(table.rows.iter().all(sound));
    }
});
