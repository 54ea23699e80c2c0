//! The exit status of `dcgmi`.
//!
//! It is the low byte of a negative `dcgmReturn_t` (NVIDIA/DCGM, `dcgmi/main_dcgmi.cpp`, `dcgmlib/dcgm_structs.h` at
//! v4.6.0). Two values are an answer of the diagnostic, not a failure to run it. How they are chosen has changed: 2.x
//! and 3.x look at results whose status is FAIL, 4.x looks at the error entries whatever the status.

/// What an exit status of `dcgmi diag` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: it ran, and DCGM found nothing to report.
    Clean,
    /// 226, `NVVS_ERROR`: it ran, and something reported an error. Also: it broke off with a system error.
    Error,
    /// 205, `NVVS_ISOLATE_ERROR`: it ran, and at least one error has the severity ISOLATE.
    Isolate,
    /// The diagnostic did not do its work; what happened and what to do about it.
    CouldNotRun(&'static str),
    /// A status that no known release gives.
    Unknown,
}

/// The other statuses: `dcgmReturn_t`, DCGM's name for it, and what to do where that can be said.
const COULD_NOT_RUN: &[(i8, &str)] = &[
    (
        -1,
        "BADPARAM: dcgmi did not accept its arguments; this DCGM may not know this level",
    ),
    (
        -2,
        "dcgmi broke off with an exception, told on its standard error",
    ),
    (-3, "GENERIC_ERROR: look at nv-hostengine.log and nvvs.log"),
    (-4, "MEMORY: the host has too little free memory"),
    (-5, "NOT_CONFIGURED: look at nv-hostengine.log"),
    (
        -6,
        "NOT_SUPPORTED: DCGM does not support these GPUs or this driver",
    ),
    (
        -7,
        "INIT_ERROR: DCGM could not be initialised; check that its libraries are installed",
    ),
    (
        -8,
        "NVML_ERROR: the driver's library refused; see what nvidia-smi says",
    ),
    (
        -11,
        "TIMEOUT: the host engine did not answer in time; look at nv-hostengine.log",
    ),
    (
        -12,
        "VER_MISMATCH: dcgmi and nv-hostengine are of different releases; install one release",
    ),
    (
        -14,
        "NO_DATA: the diagnostic gave no test or no result; look at nvvs.log",
    ),
    (-17, "NO_PERMISSION: run dhc as root"),
    (
        -18,
        "GPU_IS_LOST: a GPU does not answer any longer; the GPU checks say which one",
    ),
    (
        -19,
        "RESET_REQUIRED: a GPU has to be reset before it can be tested; the GPU checks say which one",
    ),
    (
        -21,
        "CONNECTION_NOT_VALID: the host engine is gone; restart it (systemctl restart nvidia-dcgm)",
    ),
    (-22, "GPU_NOT_SUPPORTED: DCGM does not support these GPUs"),
    (
        -23,
        "GROUP_INCOMPATIBLE: the GPUs are of different models; DCGM tests only equal ones together",
    ),
    (
        -25,
        "LIBRARY_NOT_FOUND: a library of DCGM is missing; install the whole of DCGM",
    ),
    (-29, "REQUIRES_ROOT: the host engine has to run as root"),
    (
        -33,
        "MODULE_NOT_LOADED: the host engine lacks its diagnostic module; look at nv-hostengine.log",
    ),
    (
        -34,
        "IN_USE: another process uses what the diagnostic needs",
    ),
    (
        -35,
        "GROUP_IS_EMPTY: DCGM knows no GPU; see what nvidia-smi says",
    ),
    (
        -39,
        "DIAG_ALREADY_RUNNING: another diagnostic is running; wait for it to end",
    ),
    (
        -40,
        "BAD_JSON: nvvs gave the host engine an unreadable result; look at nvvs.log",
    ),
    (
        -41,
        "BAD_LAUNCH: the host engine could not start nvvs; look at nv-hostengine.log",
    ),
    (
        -44,
        "INSUFFICIENT_DRIVER_VERSION: this DCGM needs a newer driver",
    ),
    (
        -47,
        "CHILD_NOT_KILLED: an nvvs process is left behind; end it before the next run",
    ),
    (-48, "3RD_PARTY_LIBRARY_ERROR: look at nv-hostengine.log"),
    (-49, "INSUFFICIENT_RESOURCES: look at nv-hostengine.log"),
    (
        -50,
        "PLUGIN_EXCEPTION: a plugin of the diagnostic crashed; look at nvvs.log",
    ),
    (
        -52,
        "NVVS_BINARY_NOT_FOUND: nvvs is not installed; install the whole of DCGM",
    ),
    (-53, "NVVS_KILLED: the diagnostic was killed"),
    (-54, "PAUSED: DCGM is paused; resume it"),
    (
        -56,
        "NVML_NOT_LOADED: the host engine runs without the driver; restart it once the driver is loaded",
    ),
    (
        -57,
        "NVML_DRIVER_TIMEOUT: the driver did not answer; look at the kernel log for Xid messages",
    ),
    (
        -58,
        "NO_AVAILABLE_TEST: there is no test for these GPUs at this level",
    ),
    (
        -62,
        "CHILD_SPAWN_FAILED: the host engine could not start nvvs; look at nv-hostengine.log",
    ),
    (-63, "FILE_IO_ERROR: look at nv-hostengine.log"),
    (
        -64,
        "CHILD_SIGNAL_RECEIVED: nvvs died of a signal; look at nvvs.log",
    ),
    (-66, "DIAG_STOPPED: the diagnostic was stopped"),
    (
        -67,
        "GPUS_DETACHED: the driver is detached from DCGM; attach it again (dcgmi set --attach-driver)",
    ),
];

impl Exit {
    /// The meaning of this exit status.
    pub fn of_status(status: i32) -> Exit {
        match status {
            0 => Exit::Clean,
            226 => Exit::Error,
            205 => Exit::Isolate,
            // dcgmi answers these with 128 + the number of the signal.
            129 | 130 | 131 | 143 => Exit::CouldNotRun("dcgmi was interrupted by a signal"),
            _ => COULD_NOT_RUN
                .iter()
                .find(|(known, _)| i32::from(known.cast_unsigned()) == status)
                .map_or(Exit::Unknown, |(_, why)| Exit::CouldNotRun(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_and_an_isolate_error_are_told_apart() {
        assert_eq!(Exit::of_status(226), Exit::Error);
        assert_eq!(Exit::of_status(205), Exit::Isolate);
    }

    #[test]
    fn only_zero_is_clean() {
        for status in -256..=512 {
            assert_eq!(
                Exit::of_status(status) == Exit::Clean,
                status == 0,
                "{status}"
            );
        }
    }

    #[test]
    fn a_status_is_the_low_byte_of_its_negative_number() {
        let why = |status| match Exit::of_status(status) {
            Exit::CouldNotRun(why) => why,
            other => panic!("{status} is {other:?}"),
        };
        assert!(why(217).starts_with("DIAG_ALREADY_RUNNING"));
        assert!(why(242).starts_with("NO_DATA"));
        assert!(why(189).starts_with("GPUS_DETACHED"));
    }
}
