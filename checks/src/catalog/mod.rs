//! The checks, one file each. To add one: write its file, name it here, and put it into [`CHECKS`].

mod host;
mod loopback;

use crate::check::InstanceCheck;

/// Every check, in the order in which `dhc list` shows them and results hold them.
pub const CHECKS: &[&dyn InstanceCheck] = &[
    &loopback::EFA_LOOPBACK,
    &loopback::FABRIC_LOOPBACK,
    &host::HostCheck,
];

/// The check of this name.
pub fn find(name: &str) -> Option<&'static dyn InstanceCheck> {
    CHECKS
        .iter()
        .copied()
        .find(|check| check.spec().name == name)
}
