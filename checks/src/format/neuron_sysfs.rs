//! The counters that the Neuron driver shows in sysfs: their names in old and new drivers, and what each one means.
//!
//! Names: aws-neuron-driver 2.24.7, `neuron_sysfs_metrics.c`, and the AWS Neuron SDK's "Neuron Sysfs User Guide".

/// What a counter of a core counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreCounter {
    /// Work that ended well.
    Success,
    /// Errors of the hardware, with their fault class.
    Hardware(&'static str),
    /// Work that failed for a reason outside of the hardware: bad input, lack of resources, an application's error.
    Execution,
    /// A counter that this version of dhc does not know.
    Unknown,
}

/// What the counter `name` below `neuron_coreK/stats/status` counts.
pub fn core_counter(name: &str) -> CoreCounter {
    // Older drivers say `infer_` where newer ones say `execute_`.
    let name = name
        .strip_prefix("infer_")
        .or_else(|| name.strip_prefix("execute_"))
        .unwrap_or(name);
    match name {
        "success" => CoreCounter::Success,
        "hw_error" | "hw_nc_ue_error" | "hw_dma_abort_error" => {
            CoreCounter::Hardware("neuron.hardware")
        }
        "hw_collectives_error" => CoreCounter::Hardware("neuron.collective"),
        "hw_hbm_ue_error" => CoreCounter::Hardware("neuron.uncorrectable"),
        "hw_repairable_hbm_ue_error" => CoreCounter::Hardware("neuron.repairable"),
        "failure"
        | "timeout"
        | "exec_bad_input"
        | "completed_with_error"
        | "completed_with_num_error"
        | "generic_error"
        | "resource_error"
        | "resource_nc_error"
        | "failed_to_queue"
        | "invalid_error"
        | "unsupported_neff_version"
        | "oob_error"
        | "sw_nq_overflow"
        | "sw_semaphore_error"
        | "sw_event_error"
        | "sw_psum_collision"
        | "sw_sequencer_fatal" => CoreCounter::Execution,
        // The driver marks errors of the hardware with `hw_`; one that is new is more likely one than not.
        name if name.starts_with("hw_") => CoreCounter::Hardware("neuron.hardware"),
        _ => CoreCounter::Unknown,
    }
}

/// The fault class of a counter `name` below `stats/hardware` of a device, if it counts errors that were not corrected.
pub fn device_fault(name: &str) -> Option<&'static str> {
    match name {
        name if !name.contains("uncorrect") => None,
        name if name.contains("repairable") => Some("neuron.repairable"),
        _ => Some("neuron.uncorrectable"),
    }
}

/// The index in a name such as `neuron12` or `neuron_core1`, given what stands before it.
pub fn index(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// How many logical cores the runtime makes of a device's physical ones: two physical ones are one logical core on
/// Trainium 2 and 3 unless `NEURON_LOGICAL_NC_CONFIG` says otherwise ("Logical NeuronCore Configuration").
pub fn physical_per_logical(device_name: &str, config: Option<&str>) -> u32 {
    if let Some(config) = config
        .and_then(|config| config.parse().ok())
        .filter(|config| (1..=8).contains(config))
    {
        return config;
    }
    if matches!(device_name, "Trainium2" | "Trainium3") {
        2
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_names_mean_the_same() {
        for name in ["completed_with_num_error", "failed_to_queue"] {
            assert_eq!(
                core_counter(&format!("infer_{name}")),
                CoreCounter::Execution
            );
            assert_eq!(
                core_counter(&format!("execute_{name}")),
                CoreCounter::Execution
            );
        }
    }

    #[test]
    fn errors_of_the_hardware_are_told_from_those_of_applications() {
        assert_eq!(
            core_counter("hw_hbm_ue_error"),
            CoreCounter::Hardware("neuron.uncorrectable")
        );
        assert_eq!(
            core_counter("hw_something_new"),
            CoreCounter::Hardware("neuron.hardware")
        );
        assert_eq!(core_counter("exec_bad_input"), CoreCounter::Execution);
        assert_eq!(core_counter("something_new"), CoreCounter::Unknown);
    }

    #[test]
    fn only_a_plain_number_is_an_index() {
        assert_eq!(index("neuron12", "neuron"), Some(12));
        assert_eq!(index("neuron_core1", "neuron_core"), Some(1));
        assert_eq!(index("neuron_core1", "neuron"), None);
        assert_eq!(index("neuron", "neuron"), None);
        assert_eq!(index("neuron99999999999", "neuron"), None);
    }

    #[test]
    fn trainium_2_shows_half_of_its_cores_unless_told_otherwise() {
        assert_eq!(physical_per_logical("Trainium2", None), 2);
        assert_eq!(physical_per_logical("Trainium2", Some("1")), 1);
        assert_eq!(physical_per_logical("Trainium1", None), 1);
        assert_eq!(physical_per_logical("Trainium2", Some("nonsense")), 2);
    }
}
