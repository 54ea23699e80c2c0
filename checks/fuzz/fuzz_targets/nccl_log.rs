//! What NCCL says of itself: never a panic, and never more than fits into one line of a rank.
#![no_main]

use dhc_checks::format::nccl_log;
use dhc_checks::rank::{LINE_MAX, RankLine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let transport = nccl_log::read(text).transport;
    let word = transport.network_word();
    assert!(word.is_none_or(|word| !word.is_empty()));
    let line = RankLine::Transport { rank: u32::MAX, transport };
    let bytes = serde_json::to_vec(&line).expect("a transport is words and numbers");
    assert!(bytes.len() <= LINE_MAX, "{} bytes", bytes.len());
});
