//! The only door to the machine.

mod files;
mod kmsg;
mod system;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use files::{ENTRIES_MAX, FILE_MAX, READ_LIMIT, ReadError};
pub use system::Space;

/// The machine, as paths: the real one, or a simulated one in a directory tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Where `/sys`, `/proc` and `/dev` are found.
    pub root: PathBuf,
    /// Where tools are looked for, in this order.
    pub tools: Vec<PathBuf>,
    /// The NVML library, if not the system's.
    pub nvml: Option<PathBuf>,
    /// The libfabric library, if not the system's or AWS's.
    pub libfabric: Option<PathBuf>,
    /// Variables that are passed to tools because they change what is measured.
    pub environment: BTreeMap<String, String>,
}

impl Host {
    /// The machine that dhc runs on; `environment` is that of dhc.
    pub fn of_this_machine(environment: &BTreeMap<String, String>) -> Host {
        let _ = environment;
        Host {
            root: "/".into(),
            tools: Vec::new(),
            nvml: None,
            libfabric: None,
            environment: BTreeMap::new(),
        }
    }
}

/// Whether a host name is one.
pub fn valid_host_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 253
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
}
