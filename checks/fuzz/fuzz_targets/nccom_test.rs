//! nccom-test's table: no panic, and only finite, positive figures.
#![no_main]

use dhc_checks::format::nccom_test;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(table) = nccom_test::read(&String::from_utf8_lossy(text)) {
        assert!(
            table
                .rows
                .iter()
                .all(|row| row.time_us.is_finite() && row.algbw_gb_per_s() >= 0.0)
        );
    }
});
