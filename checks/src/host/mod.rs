//! The only door to the machine.

mod exec;
mod files;
mod kmsg;
pub mod load;
mod memory;
mod neuron;
pub mod nvml;
mod pci;
pub mod processes;
mod rdma;
mod readings;
pub mod redact;
pub mod sandbox;
pub mod scratch;
mod system;
pub mod vector;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use exec::{Captured, Command, Ended, ExecError, GRACE, Listener, Output, escape, evidence};
pub use files::{ENTRIES_MAX, FILE_MAX, READ_LIMIT, ReadError};
pub use neuron::NeuronDevice;
pub use pci::{PciCards, PciKind};
pub use rdma::{RdmaDevice, RdmaDevices, RdmaPort};
pub use readings::Readings;
pub use system::Space;

/// Where tools are, beside PATH: the vendors install outside of it.
const TOOL_PLACES: &[&str] = &[
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/opt/aws/neuron/bin",
    "/opt/amazon/efa/bin",
    "/opt/amazon/openmpi/bin",
];

/// Beginnings of the variables that tools get from dhc's own environment, because they change what is measured. They are
/// recorded in the result. All others, and `LD_PRELOAD` above all, stay outside.
const PASSED: &[&str] = &[
    "NCCL_",
    "OMPI_MCA_",
    "UCX_",
    "SLURM_CONF",
    "FI_",
    "NEURON_",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
];

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
        let path = environment
            .get("PATH")
            .map(String::as_str)
            .unwrap_or_default();
        let mut tools: Vec<PathBuf> = Vec::new();
        for place in std::env::split_paths(path).chain(TOOL_PLACES.iter().map(PathBuf::from)) {
            // A relative entry would run whatever lies in the directory that dhc was started in.
            if place.is_absolute() && !tools.contains(&place) {
                tools.push(place);
            }
        }
        let passed = |name: &String| PASSED.iter().any(|prefix| name.starts_with(prefix));
        let environment = environment.iter().filter(|(name, _)| passed(name));
        let environment = environment
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Host {
            root: "/".into(),
            tools,
            nvml: None,
            libfabric: None,
            environment,
        }
    }
}

/// Whether a text can be a host name: letters, digits, dots and hyphens, a letter or digit first, 253 at most (RFC 1123).
pub fn valid_host_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 253
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
}
