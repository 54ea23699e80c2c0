//! `nvlink`: is every NVLink of every GPU active, and has every GPU joined its fabric?
//!
//! DCGM's diagnostics pass with all links down (NVIDIA/DCGM issue 198), so nothing else finds a missing link.

use dhc_thresholds::{Hardware, Metric, Role, Subject, Unit};
use nvml_wrapper::enum_wrappers::nv_link::ErrorCounter;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_NVLINK_LINK_COUNT;
use nvml_wrapper::{Device, Nvml};

use super::gpu_count::field;
use crate::check::{CheckError, Company, InstanceCheck, Recorder, Spec, Task, chain};
use crate::host::nvml::{self, Fabric, Reading};

const ACTIVE: Metric = Metric {
    name: "nvlink.active",
    unit: Unit::Count,
    about: "active NVLinks of a GPU",
    role: Role::Required,
    fault: "nvlink.link_down",
};
const STATE: Metric = Metric {
    name: "nvlink.link.state",
    unit: Unit::State,
    about: "state of one NVLink: active or inactive",
    role: Role::Judged,
    fault: "nvlink.link_down",
};
const VERSION: Metric = Metric {
    name: "nvlink.link.version",
    unit: Unit::Count,
    about: "version of one NVLink as NVML numbers it",
    role: Role::Context,
    fault: "nvlink.link_down",
};
const REMOTE: Metric = Metric {
    name: "nvlink.link.remote",
    unit: Unit::State,
    about: "what is at the other end of one NVLink: gpu, switch, npu or unknown",
    role: Role::Context,
    fault: "nvlink.link_down",
};
const ERRORS: Metric = Metric {
    name: "nvlink.link.errors",
    unit: Unit::Count,
    about: "errors that one NVLink has counted, by counter: replay, recovery, crc_flit, crc_data",
    role: Role::Judged,
    fault: "nvlink.errors",
};
const FABRIC_STATE: Metric = Metric {
    name: "nvlink.fabric.state",
    unit: Unit::State,
    about: "whether a GPU has joined its fabric: not_supported, not_started, in_progress, completed",
    role: Role::Judged,
    fault: "nvlink.fabric",
};
const FABRIC_STATUS: Metric = Metric {
    name: "nvlink.fabric.status",
    unit: Unit::Count,
    about: "how joining the fabric ended, as a return code of NVML; 0 is success",
    role: Role::Judged,
    fault: "nvlink.fabric",
};
const FABRIC_HEALTH: Metric = Metric {
    name: "nvlink.fabric.health",
    unit: Unit::State,
    about: "health of a GPU's fabric as the driver sums it up: not_reported, healthy, limited, unhealthy",
    role: Role::Judged,
    fault: "nvlink.fabric",
};

static SPEC: Spec = Spec {
    name: "nvlink",
    about: "every NVLink of every GPU is active and free of errors, and every GPU has joined its fabric",
    explain: "\
Asks NVML for the state of every link of every GPU, so that one inactive link out of 144 is found and named, and compares
the number of active links with the instance type. What is at the other end, the version and the error counters are
recorded for each link. On NVSwitch and NVL72 systems the state and health of the fabric are read as well; a fabric that is
not complete is a matter of fabric manager and the rack, not of this node alone. DCGM's diagnostics pass with all links
down, so this check does not repeat them.",
    metrics: &[&ACTIVE, &STATE, &VERSION, &REMOTE, &ERRORS, &FABRIC_STATE, &FABRIC_STATUS, &FABRIC_HEALTH],
    needs: Some(Hardware::NvlinkPerGpu),
    tags: &["gpu", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// The most links that NVML can number (`NVML_NVLINK_MAX_LINKS` of its newest header).
const LINKS_MAX: u32 = 36;

/// The check.
pub(super) struct Nvlink;

impl InstanceCheck for Nvlink {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let nvml = task
            .host
            .nvml()
            .map_err(|error| CheckError::Unavailable(chain(&error)))?;
        let failed = |error: NvmlError| {
            CheckError::Unavailable(format!("NVML does not count its GPUs: {error}"))
        };
        for index in 0..nvml.device_count().map_err(failed)? {
            match nvml.device_by_index(index) {
                Ok(gpu) => of_gpu(&nvml, &gpu, index, record)?,
                // gpu-count says what is wrong with the GPU; here only its links are unknown.
                Err(error) => record.gap(&ACTIVE, Subject::gpu(index), error.to_string())?,
            }
        }
        Ok(())
    }
}

fn of_gpu(
    nvml: &Nvml,
    gpu: &Device<'_>,
    index: u32,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let subject = Subject::gpu(index);
    let links = field(gpu, NVML_FI_DEV_NVLINK_LINK_COUNT).map_or(LINKS_MAX, |links| {
        u32::try_from(links).unwrap_or(LINKS_MAX).min(LINKS_MAX)
    });
    let mut active = 0_u32;
    let mut readable = true;
    for link in 0..links {
        match gpu.link_wrapper_for(link).is_active() {
            Ok(is_active) => {
                active += u32::from(is_active);
                record.measure(
                    &STATE,
                    Subject::nvlink(index, link),
                    if is_active { "active" } else { "inactive" },
                )?;
                if is_active {
                    of_link(nvml, gpu, index, link, record)?;
                }
            }
            // Past the last link of the GPU.
            Err(NvmlError::InvalidArg) => break,
            Err(NvmlError::NotSupported) if link == 0 => {
                record.note(format!("{subject} has no NVLink, or is divided by MIG"))?;
                break;
            }
            Err(error) => {
                readable = false;
                record.gap(&STATE, Subject::nvlink(index, link), error.to_string())?;
                // A lost GPU would say the same for each of its links.
                break;
            }
        }
    }
    if readable {
        record.measure(&ACTIVE, subject.clone(), active)?;
    } else {
        record.gap(&ACTIVE, subject.clone(), "not all links could be read")?;
    }
    match Reading::of(nvml::fabric(nvml, gpu)) {
        Reading::Value(fabric) => of_fabric(&fabric, &subject, record),
        Reading::Unsupported => Ok(()),
        Reading::Failed(why) => record.gap(&FABRIC_STATE, subject, why),
    }
}

/// Version, other end and counters of an active link.
fn of_link(
    nvml: &Nvml,
    gpu: &Device<'_>,
    index: u32,
    link: u32,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let wrapper = gpu.link_wrapper_for(link);
    let subject = Subject::nvlink(index, link);
    if let Ok(version) = wrapper.version() {
        record.measure(&VERSION, subject.clone(), version)?;
    }
    if let Ok(kind) = nvml::remote_kind(nvml, gpu, link) {
        let word = match kind {
            0 => "gpu",
            1 => "npu",
            2 => "switch",
            _ => "unknown",
        };
        let remote = wrapper
            .remote_pci_info()
            .map(|pci| pci.bus_id)
            .unwrap_or_default();
        record.add(REMOTE.of(subject, word).detail(remote))?;
    }
    for (counter, name) in [
        (ErrorCounter::DlReplay, "replay"),
        (ErrorCounter::DlRecovery, "recovery"),
        (ErrorCounter::DlCrcFlit, "crc_flit"),
        (ErrorCounter::DlCrcData, "crc_data"),
    ] {
        let place = Subject::new(
            dhc_thresholds::Kind::Nvlink,
            format!("gpu{index}/link{link}/{name}"),
        );
        match Reading::of(wrapper.error_counter(counter)) {
            // Four zeros for each of 144 links say nothing.
            Reading::Value(0) | Reading::Unsupported => {}
            Reading::Value(count) => record.measure(&ERRORS, place, count)?,
            Reading::Failed(why) => record.gap(&ERRORS, place, why)?,
        }
    }
    Ok(())
}

fn of_fabric(
    fabric: &Fabric,
    subject: &Subject,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let state = match fabric.state {
        0 => "not_supported",
        1 => "not_started",
        2 => "in_progress",
        3 => "completed",
        other => {
            return record.gap(
                &FABRIC_STATE,
                subject.clone(),
                format!("state {other} is not known here"),
            );
        }
    };
    record.measure(&FABRIC_STATE, subject.clone(), state)?;
    if fabric.state != 3 {
        return Ok(());
    }
    record.measure(&FABRIC_STATUS, subject.clone(), fabric.status)?;
    if fabric.cluster != [0; 16] {
        let cluster: String = fabric
            .cluster
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let identity = [
            ("nvlink_cluster", cluster),
            ("nvlink_clique", fabric.clique.to_string()),
        ];
        record.device(subject.clone(), identity)?;
    }
    let complaints = complaints(fabric.health_mask);
    // Drivers that give the mask alone leave the summary to us.
    let summary = match (fabric.health_summary, complaints.is_empty()) {
        (0, true) => "not_reported",
        (1, _) => "healthy",
        (3, _) => "limited",
        (0 | 2, _) => "unhealthy",
        (other, _) => {
            return record.gap(
                &FABRIC_HEALTH,
                subject.clone(),
                format!("health {other} is not known here"),
            );
        }
    };
    record.add(
        FABRIC_HEALTH
            .of(subject.clone(), summary)
            .detail(complaints.join(", ")),
    )
}

/// What the health mask complains of (nvml.h, `NVML_GPU_FABRIC_HEALTH_MASK_*`).
fn complaints(mask: u32) -> Vec<&'static str> {
    // Two bits each: 0 not supported, 1 true, 2 false.
    let flags = [
        (0, "degraded bandwidth"),
        (2, "route recovery in progress"),
        (4, "route unhealthy"),
        (6, "access timeout recovery"),
    ];
    let mut complaints: Vec<&str> = flags
        .into_iter()
        .filter(|(shift, _)| mask >> shift & 3 == 1)
        .map(|(_, complaint)| complaint)
        .collect();
    let configuration = match mask >> 8 & 15 {
        2 => Some("incorrect configuration: system GUID"),
        3 => Some("incorrect configuration: chassis serial number"),
        4 => Some("incorrect configuration: no partition"),
        5 => Some("incorrect configuration: insufficient NVLinks"),
        6 => Some("incorrect configuration: incompatible GPU firmware"),
        7 => Some("incorrect configuration: invalid location"),
        8 => Some("incorrect configuration: GPU state"),
        _ => None,
    };
    complaints.extend(configuration);
    complaints
}

#[cfg(test)]
mod tests {
    use super::complaints;

    #[test]
    fn a_health_mask_without_complaint_has_none() {
        assert_eq!(complaints(0), [] as [&str; 0]);
        assert_eq!(complaints(0b0001_1010_1010), [] as [&str; 0]);
    }

    #[test]
    fn each_complaint_is_named() {
        assert_eq!(complaints(0b01), ["degraded bandwidth"]);
        assert_eq!(
            complaints(5 << 8 | 1 << 4),
            [
                "route unhealthy",
                "incorrect configuration: insufficient NVLinks"
            ]
        );
    }
}
