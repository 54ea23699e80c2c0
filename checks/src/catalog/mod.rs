//! The checks, one file each. To add one: write its file, name it here, and put it into [`CHECKS`].

mod dcgm_diag;
mod gpu;
mod gpu_count;
mod gpu_memory;
mod host;
mod loopback;
mod nccom_local;
mod neuron_count;
mod neuron_sysfs;
mod nvlink;

use crate::check::InstanceCheck;

/// Every check, in the order in which `dhc list` shows them and results hold them.
pub const CHECKS: &[&dyn InstanceCheck] = &[
    &gpu_count::GpuCount,
    &nvlink::Nvlink,
    &gpu_memory::GpuMemory,
    &neuron_count::NeuronCount,
    &neuron_sysfs::NeuronSysfs,
    &nccom_local::NccomLocal,
    &loopback::EFA_LOOPBACK,
    &loopback::FABRIC_LOOPBACK,
    &host::HostCheck,
    &dcgm_diag::DcgmDiag,
];

/// The check of this name.
pub fn find(name: &str) -> Option<&'static dyn InstanceCheck> {
    CHECKS
        .iter()
        .copied()
        .find(|check| check.spec().name == name)
}
