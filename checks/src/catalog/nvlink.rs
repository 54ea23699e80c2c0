//! `nvlink`: is every NVLink of every GPU active, and has every GPU joined its fabric?
//!
//! DCGM's diagnostics pass with all links down (NVIDIA/DCGM issue 198), so nothing else finds a missing link.

use std::collections::{BTreeMap, BTreeSet};

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};
use nvml_wrapper::enum_wrappers::nv_link::ErrorCounter;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_NVLINK_COUNT_BUFFER_OVERRUN_ERRORS, NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS,
    NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS,
    NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS,
    NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS, NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS,
    NVML_FI_DEV_NVLINK_GET_SPEED, NVML_FI_DEV_NVLINK_LINK_COUNT,
};
use nvml_wrapper::{Device, Nvml};

use super::gpu::{Usual, ask, budget, divided, for_each_gpu};
use crate::check::{Budget, CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::foresight::Cause;
use crate::host::Host;
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
    about: "errors that one NVLink has counted since the driver was loaded, by counter; of a GPU: 0 on all of its links",
    role: Role::Judged,
    fault: "nvlink.errors",
};
const SPEED: Metric = Metric {
    name: "nvlink.speed",
    unit: Unit::GigabytesPerSecond,
    about: "speed of the slowest active NVLink of a GPU, in one direction",
    role: Role::Context,
    fault: "nvlink.link_down",
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

const FABRIC_CLIQUES: Metric = Metric {
    name: "nvlink.fabric.cliques",
    unit: Unit::Count,
    about: "cliques of the fabric that the GPUs of the node are in; GPUs of different ones cannot reach each other over it",
    role: Role::Context,
    fault: "nvlink.fabric",
};

static SPEC: Spec = Spec {
    name: "nvlink",
    about: "every NVLink of every GPU is active and free of errors, and every GPU has joined its fabric",
    explain: "\
Asks NVML for the state of every link of every GPU, so that one inactive link out of 144 is found and named, and compares
the number of active links with the instance type. What is at the other end, the version and the error counters are
recorded for each link; what one link or GPU does not tell and others of its model do is unknown. On NVSwitch and NVL72
systems the state and health of the fabric are read as well; a fabric that is not complete is a matter of fabric manager and
the rack, not of this node alone. DCGM's diagnostics pass with all links down, so this check does not repeat them.",
    metrics: &[&ACTIVE, &STATE, &VERSION, &REMOTE, &ERRORS, &SPEED, &FABRIC_STATE, &FABRIC_STATUS, &FABRIC_HEALTH, &FABRIC_CLIQUES],
    needs: Some(Hardware::NvlinkPerGpu),
    tags: &["gpu", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// The most links that NVML can number (`NVML_NVLINK_MAX_LINKS` of its newest header).
const LINKS_MAX: u32 = 36;

/// `NVML_GPU_FABRIC_STATE_COMPLETED`
const COMPLETED: u32 = 3;

/// Error counters of a link up to Hopper.
const COUNTERS: [(ErrorCounter, &str); 4] = [
    (ErrorCounter::DlReplay, "replay"),
    (ErrorCounter::DlRecovery, "recovery"),
    (ErrorCounter::DlCrcFlit, "crc_flit"),
    (ErrorCounter::DlCrcData, "crc_data"),
];

/// Error counters of a link from Blackwell on. Symbol errors and recoveries that succeeded are not among them: forward
/// error correction makes them a matter of rate, not of count.
const FIELDS: [(u32, &str); 6] = [
    (NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS, "effective"),
    (
        NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS,
        "recovery_failed",
    ),
    (NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS, "receive"),
    (
        NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS,
        "local_integrity",
    ),
    (
        NVML_FI_DEV_NVLINK_COUNT_BUFFER_OVERRUN_ERRORS,
        "buffer_overrun",
    ),
    (
        NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS,
        "malformed_packet",
    ),
];

/// The check.
pub(super) struct Nvlink;

impl InstanceCheck for Nvlink {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        budget(options)
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::AcceleratorLink]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        ask(task, &SPEC, record, questions)
    }
}

fn questions(_: &Host, nvml: &Nvml, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let mut cliques = BTreeSet::new();
    for_each_gpu(nvml, record, |index, gpu, usual, record| {
        let subject = Subject::gpu(index);
        let gpu = match gpu {
            Ok(gpu) => gpu,
            // gpu-count says what is wrong with the GPU; here only its links are unknown.
            Err(error) => return record.gap(&ACTIVE, subject, error.to_string()),
        };
        links(nvml, &gpu, index, usual, record)?;
        let fabric = nvml::fabric(nvml, &gpu);
        let Some(fabric) = usual.heard(&FABRIC_STATE, &subject, fabric, record)? else {
            return Ok(());
        };
        if fabric.state == COMPLETED {
            cliques.insert((fabric.cluster, fabric.clique));
        }
        of_fabric(&fabric, &subject, usual, record)
    })?;
    if cliques.is_empty() {
        return Ok(());
    }
    record.measure(&FABRIC_CLIQUES, Subject::node(), cliques.len())
}

/// The state of every link of a GPU, and the number of active ones.
fn links(
    nvml: &Nvml,
    gpu: &Device<'_>,
    index: u32,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let subject = Subject::gpu(index);
    if let Some(why) = divided(gpu) {
        return record.gap(&ACTIVE, subject, why);
    }
    let mut active = Vec::new();
    for link in 0..link_count(nvml, gpu) {
        let place = Subject::nvlink(index, link);
        match gpu.link_wrapper_for(link).is_active() {
            Ok(true) => {
                active.push(link);
                record.measure(&STATE, place.clone(), "active")?;
                other_end(nvml, gpu, link, &place, usual, record)?;
            }
            Ok(false) => record.measure(&STATE, place, "inactive")?,
            // Past the last link of the GPU.
            Err(NvmlError::InvalidArg) => break,
            Err(NvmlError::NotSupported) if link == 0 => {
                let measurement = ACTIVE.of(subject, 0_u32);
                return record
                    .add(measurement.detail("the driver says that the GPU has no NVLink"));
            }
            Err(error) => {
                // A lost GPU would say the same for each of its links.
                record.gap(&STATE, place, error.to_string())?;
                return record.gap(&ACTIVE, subject, "not all links could be read");
            }
        }
    }
    record.measure(&ACTIVE, subject.clone(), active.len())?;
    speed(nvml, gpu, &active, &subject, usual, record)?;
    errors(nvml, gpu, &active, &subject, usual, record)
}

/// How many links to ask for; a GPU that does not say is asked until it has no more.
fn link_count(nvml: &Nvml, gpu: &Device<'_>) -> u32 {
    let count = nvml::field(nvml, gpu, NVML_FI_DEV_NVLINK_LINK_COUNT, 0);
    let count = count.ok().and_then(|count| u32::try_from(count).ok());
    count.map_or(LINKS_MAX, |count| count.min(LINKS_MAX))
}

/// Version of an active link and what it leads to.
fn other_end(
    nvml: &Nvml,
    gpu: &Device<'_>,
    link: u32,
    place: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let wrapper = gpu.link_wrapper_for(link);
    if let Some(version) = usual.heard(&VERSION, place, wrapper.version(), record)? {
        record.measure(&VERSION, place.clone(), version)?;
    }
    let kind = nvml::remote_kind(nvml, gpu, link);
    let Some(kind) = usual.heard(&REMOTE, place, kind, record)? else {
        return Ok(());
    };
    let word = match kind {
        0 => "gpu",
        1 => "npu",
        2 => "switch",
        _ => "unknown",
    };
    let remote = wrapper.remote_pci_info().map(|pci| pci.bus_id);
    record.add(
        REMOTE
            .of(place.clone(), word)
            .detail(remote.unwrap_or_default()),
    )
}

/// The speed of the slowest of the active links.
fn speed(
    nvml: &Nvml,
    gpu: &Device<'_>,
    active: &[u32],
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let mut slowest: Option<u32> = None;
    let mut untold = Vec::new();
    for link in active {
        match Reading::of(nvml::field(nvml, gpu, NVML_FI_DEV_NVLINK_GET_SPEED, *link)) {
            Reading::Value(speed) => {
                // In 10⁶ bytes a second; beyond 32 bits it is no link's any more, and nothing is the slower for it.
                let speed = u32::try_from(speed).unwrap_or(u32::MAX);
                slowest = Some(slowest.map_or(speed, |slowest| slowest.min(speed)));
            }
            Reading::Unsupported => untold.push(format!("link{link}")),
            Reading::Failed(why) => {
                record.gap(&SPEED, subject.clone(), format!("link{link}: {why}"))?;
            }
        }
    }
    let Some(megabytes_per_second) = slowest else {
        if !untold.is_empty() {
            usual.tells_not(&SPEED, subject);
        }
        return Ok(());
    };
    usual.tells(&SPEED, subject);
    if !untold.is_empty() {
        let why = format!("not told of {}, though of other links", untold.join(", "));
        record.gap(&SPEED, subject.clone(), why)?;
    }
    let gigabytes_per_second = f64::from(megabytes_per_second) / 1000.0;
    record.measure(&SPEED, subject.clone(), gigabytes_per_second)
}

/// What the active links have counted: each counter that is not 0 by itself, or 0 for the GPU if all that it has are.
fn errors(
    nvml: &Nvml,
    gpu: &Device<'_>,
    active: &[u32],
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let mut zeros = 0;
    let mut others = 0;
    let mut told: BTreeSet<&str> = BTreeSet::new();
    let mut untold: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let place = |link: u32, counter: &str| {
        Subject::new(Kind::Nvlink, format!("{subject}/link{link}/{counter}"))
    };
    for link in active.iter().copied() {
        let wrapper = gpu.link_wrapper_for(link);
        let old = COUNTERS
            .into_iter()
            .map(|(counter, name)| (name, wrapper.error_counter(counter)));
        let new = FIELDS
            .into_iter()
            .map(|(id, name)| (name, nvml::field(nvml, gpu, id, link)));
        for (counter, answer) in old.chain(new) {
            match Reading::of(answer) {
                Reading::Value(count) => {
                    told.insert(counter);
                    if count == 0 {
                        zeros += 1;
                    } else {
                        others += 1;
                        record.measure(&ERRORS, place(link, counter), count)?;
                    }
                }
                Reading::Unsupported => untold.entry(counter).or_default().push(link),
                Reading::Failed(why) => {
                    others += 1;
                    record.gap(&ERRORS, place(link, counter), why)?;
                }
            }
        }
    }
    let on_all_links = |counter: &str| Subject::new(Kind::Nvlink, format!("{subject}/{counter}"));
    for (counter, links) in untold {
        if !told.contains(counter) {
            usual.tells_not(&ERRORS, &on_all_links(counter));
            continue;
        }
        for link in links {
            others += 1;
            let why = "other links of the GPU tell this, and it does not";
            record.gap(&ERRORS, place(link, counter), why)?;
        }
    }
    for counter in told {
        usual.tells(&ERRORS, &on_all_links(counter));
    }
    if zeros > 0 && others == 0 {
        let said = format!("{zeros} counters");
        record.add(ERRORS.of(subject.clone(), 0_u32).detail(said))?;
    }
    Ok(())
}

fn of_fabric(
    fabric: &Fabric,
    subject: &Subject,
    usual: &mut Usual,
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
    if fabric.state != COMPLETED {
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
    if summary == "not_reported" {
        usual.tells_not(&FABRIC_HEALTH, subject);
    } else {
        usual.tells(&FABRIC_HEALTH, subject);
    }
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
