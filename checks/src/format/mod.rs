//! Readers of what tools and the kernel print: text to values, pure. One file per tool or format.

pub mod dcgmi;
pub mod json;
pub mod kernel_log;
pub mod launcher;
pub mod nccl_log;
pub mod nccl_tests;
pub mod nccom_test;
pub mod neuron_sysfs;
pub mod sysfs;

/// How much of a tool's words stands in a message.
const QUOTED_CHARS: usize = 200;

/// A tool's words for a message: on one line, and not too many.
fn quote(text: &str) -> String {
    text.chars()
        .take(QUOTED_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
