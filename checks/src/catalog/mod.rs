//! The checks, one file each. To add one: write its file, name it here, and put it into [`CHECKS`].

mod dcgm_diag;
mod host;
mod loopback;
mod nccom_local;
mod neuron_count;
mod neuron_sysfs;

use crate::check::InstanceCheck;

/// Every check, in the order in which `dhc list` shows them and results hold them.
pub const CHECKS: &[&dyn InstanceCheck] = &[
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
