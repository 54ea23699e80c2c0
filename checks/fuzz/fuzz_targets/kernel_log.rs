//! The kernel's log: no panic, bounded, printable, and a process's own lines never count.
#![no_main]

use dhc_checks::format::kernel_log::KernelLog;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let log = KernelLog::read(text);
    for event in &log.events {
        assert!(event.quote.chars().all(|c| !c.is_control()) && event.quote.chars().count() <= 300);
    }
    assert!(log.meanings().len() <= log.events.len());
    // The same lines under the facility `user` accuse nothing.
    let lines = text.split(|byte| *byte == b'\n');
    let forged: Vec<u8> = lines
        .flat_map(|line| [b"12,1,1,-;".as_slice(), line, b"\n"].concat())
        .collect();
    assert!(KernelLog::read(&forged).events.is_empty());
});
