//! Redaction: no panic, and what is clean stays as it is.
#![no_main]

use dhc_checks::host::redact;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let once = redact::text(&String::from_utf8_lossy(text));
    assert_eq!(redact::text(&once), once);
});
