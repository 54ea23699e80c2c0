//! Whatever `dcgmi diag` prints, it is read without a panic, and nothing is never a diagnosis.

#![no_main]

use dhc_checks::format::dcgmi::read;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|output: &[u8]| {
    let Ok(diagnosis) = read(output) else {
        return;
    };
    assert!(!diagnosis.results.is_empty() || diagnosis.runtime_error.is_some());
    for result in &diagnosis.results {
        let _ = result.grade();
        for error in &result.errors {
            assert!(!error.fault().is_empty() && !error.line().is_empty());
        }
    }
    // A banner changes nothing.
    let banner = [b"Successfully ran diagnostic for group.\n", output].concat();
    assert_eq!(read(&banner).ok(), Some(diagnosis));
});
