//! Readers of what tools and the kernel print: text to values, pure. One file per tool or format.

pub mod dcgmi;
pub mod json;
pub mod kernel_log;
pub mod nccl_tests;
pub mod nccom_test;
pub mod neuron_sysfs;
pub mod sysfs;
