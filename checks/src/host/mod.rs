//! The only door to the machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
}
