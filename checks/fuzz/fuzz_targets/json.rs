//! Strict JSON: no panic, and nothing that serde_json would read otherwise.
#![no_main]

use dhc_checks::format::json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(value) = json::document(text) {
        assert_eq!(serde_json_value(text), Some(value));
    }
    let _ = json::document_after_banner(text);
});

fn serde_json_value(text: &[u8]) -> Option<serde_json::Value> {
    serde_json::from_slice(text).ok()
}
