//! Redaction: no panic, and a secret on a line of its own is found whatever stands before it.
#![no_main]

use dhc_checks::host::redact;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let text = String::from_utf8_lossy(text).replace("planted", "");
    for line in [
        "HF_TOKEN=hf_planted",
        "key AKIAPLANTEDplanted00",
        "Authorization: Bearer planted.planted",
    ] {
        let clean = redact::text(&format!("{text}\n{line}plantedplantedplanted\n"));
        assert!(!clean.contains("planted"), "{clean}");
    }
});
