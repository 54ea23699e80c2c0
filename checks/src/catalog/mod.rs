//! The checks, one file each. To add one: write its file, name it here, and put it into [`CHECKS`].

mod dcgm_diag;
mod host;

use crate::check::InstanceCheck;

/// Every check, in the order in which `dhc list` shows them and results hold them.
pub const CHECKS: &[&dyn InstanceCheck] = &[&host::HostCheck, &dcgm_diag::DcgmDiag];

/// The check of this name.
pub fn find(name: &str) -> Option<&'static dyn InstanceCheck> {
    CHECKS
        .iter()
        .copied()
        .find(|check| check.spec().name == name)
}
