//! `gpu-count`: does every GPU of the instance type answer, and in which mode?

use std::collections::{BTreeMap, BTreeSet};

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};
use nvml_wrapper::enum_wrappers::device::GpuVirtualizationMode;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
use nvml_wrapper::{Device, Nvml};

use super::gpu::{Usual, ask, budget, for_each_gpu, listed};
use crate::check::{Budget, CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::foresight::Cause;
use crate::host::nvml;
use crate::host::{Host, PciKind, ReadError};

const COUNT: Metric = Metric {
    name: "gpu.count",
    unit: Unit::Count,
    about: "GPUs that answer through NVML",
    role: Role::Required,
    fault: "gpu.missing",
};
const LISTED: Metric = Metric {
    name: "gpu.listed",
    unit: Unit::Count,
    about: "GPUs that NVML counts, those that it cannot reach any more among them",
    role: Role::Context,
    fault: "gpu.missing",
};
const STATE: Metric = Metric {
    name: "gpu.state",
    unit: Unit::State,
    about: "whether a GPU answers: ok, lost, needs_reset, no_interrupt, no_power, not_listed (on the PCI bus, unknown to NVML)",
    role: Role::Required,
    fault: "gpu.lost",
};
const RECOVERY: Metric = Metric {
    name: "gpu.recovery_action",
    unit: Unit::State,
    about: "what the driver asks for: none, reset, reboot, drain_p2p, drain_and_reset, recover_imex",
    role: Role::Judged,
    fault: "gpu.needs_reset",
};
const MIG: Metric = Metric {
    name: "gpu.mig",
    unit: Unit::State,
    about: "whether a GPU is divided into instances (MIG): disabled, enabled, pending",
    role: Role::Judged,
    fault: "gpu.mode",
};
const VIRTUALISATION: Metric = Metric {
    name: "gpu.virtualisation",
    unit: Unit::State,
    about: "how the machine has the GPU: none, passthrough, vgpu, host_vgpu, host_vsga",
    role: Role::Judged,
    fault: "gpu.mode",
};
const MEMORY: Metric = Metric {
    name: "gpu.memory.size",
    unit: Unit::Mebibytes,
    about: "memory of a GPU",
    role: Role::Context,
    fault: "gpu.missing",
};
const PROCESSES: Metric = Metric {
    name: "gpu.processes",
    unit: Unit::Count,
    about: "processes that compute on a GPU now",
    role: Role::Context,
    fault: "gpu.mode",
};

static SPEC: Spec = Spec {
    name: "gpu-count",
    about: "all GPUs of the instance type answer; each with its identity, state and mode",
    explain: "\
Asks NVML for every GPU and compares the number of those that answer with the instance type. NVML goes on counting a GPU
that fell off the bus, so each one is asked for its identity, and one that does not answer is named with what is known of
it. A GPU that is on the PCI bus and that NVML does not know is named by its address; where the driver has it and this process
may not open it, as in a container that was given others, nothing is known of it. GPUs divided by MIG or lent as virtual
GPUs are told apart: that is a mode, not a fault of the hardware. Where the driver itself asks for a reset or reboot, its
word is recorded.",
    metrics: &[&COUNT, &LISTED, &STATE, &RECOVERY, &MIG, &VIRTUALISATION, &MEMORY, &PROCESSES],
    needs: Some(Hardware::NvidiaGpu),
    tags: &["gpu", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// The check.
pub(super) struct GpuCount;

impl InstanceCheck for GpuCount {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        budget(options)
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::AcceleratorLost]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        ask(task, &SPEC, record, questions)
    }
}

fn questions(host: &Host, nvml: &Nvml, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    if let Ok(driver) = nvml.sys_driver_version() {
        record.note(format!("NVIDIA driver {driver}"))?;
    }
    record.measure(&LISTED, Subject::node(), listed(nvml)?)?;
    let mut answering = 0_u64;
    let mut unknown = 0_u64;
    let mut silent_ones = Vec::new();
    let mut known = BTreeSet::new();
    for_each_gpu(nvml, record, |index, gpu, usual, record| {
        let subject = Subject::gpu(index);
        match gpu.and_then(|gpu| gpu.uuid().map(|uuid| (gpu, uuid))) {
            Ok((gpu, uuid)) => {
                answering += 1;
                record.measure(&STATE, subject.clone(), "ok")?;
                known.extend(identity(&gpu, &subject, uuid, usual, record)?);
                modes(nvml, &gpu, &subject, usual, record)
            }
            Err(error) => {
                unknown += u64::from(!silent(&subject, &error, record)?);
                silent_ones.push(subject);
                Ok(())
            }
        }
    })?;
    unknown += on_the_bus(host, &known, &silent_ones, record)?;
    if unknown > 0 {
        let why =
            format!("{answering} GPUs answer, and of {unknown} it is not known whether they would");
        return record.gap(&COUNT, Subject::node(), why);
    }
    record.measure(&COUNT, Subject::node(), answering)
}

/// Records who the GPU is and returns its PCI address.
fn identity(
    gpu: &Device<'_>,
    subject: &Subject,
    uuid: String,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<Option<String>, CheckError> {
    let bdf = gpu.pci_info().ok().map(|pci| short_bdf(&pci.bus_id));
    let all = [
        ("uuid", Some(uuid)),
        ("serial", gpu.serial().ok()),
        ("bdf", bdf.clone()),
        ("model", gpu.name().ok()),
        ("board_part_number", gpu.board_part_number().ok()),
    ];
    record.device(
        subject.clone(),
        all.into_iter()
            .filter_map(|(key, value)| Some((key, value?))),
    )?;
    if let Some(memory) = usual.heard(&MEMORY, subject, gpu.memory_info(), record)? {
        record.measure(&MEMORY, subject.clone(), memory.total >> 20)?;
    }
    let processes = gpu.running_compute_processes_count();
    if let Some(processes) = usual.heard(&PROCESSES, subject, processes, record)? {
        record.measure(&PROCESSES, subject.clone(), processes)?;
    }
    Ok(bdf)
}

/// Records in which mode the GPU is, and what the driver asks for.
fn modes(
    nvml: &Nvml,
    gpu: &Device<'_>,
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    if let Some(mig) = usual.heard(&MIG, subject, gpu.mig_mode(), record)? {
        let word = match (mig.current, mig.pending) {
            (0, 0) => "disabled",
            (0, _) => "pending",
            _ => "enabled",
        };
        record.measure(&MIG, subject.clone(), word)?;
    }
    let mode = gpu.virtualization_mode();
    if let Some(mode) = usual.heard(&VIRTUALISATION, subject, mode, record)? {
        let word = match mode {
            GpuVirtualizationMode::Bare => "none",
            GpuVirtualizationMode::PassThrough => "passthrough",
            GpuVirtualizationMode::Vgpu => "vgpu",
            GpuVirtualizationMode::HostVgpu => "host_vgpu",
            GpuVirtualizationMode::HostVsga => "host_vsga",
        };
        record.measure(&VIRTUALISATION, subject.clone(), word)?;
    }
    recovery(nvml, gpu, subject, usual, record)
}

/// What the driver asks for (field 230, drivers since 570).
fn recovery(
    nvml: &Nvml,
    gpu: &Device<'_>,
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let asked = nvml::field(nvml, gpu, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0);
    let Some(asked) = usual.heard(&RECOVERY, subject, asked, record)? else {
        return Ok(());
    };
    let (word, class) = match asked {
        0 => ("none", "gpu.needs_reset"),
        1 => ("reset", "gpu.needs_reset"),
        2 => ("reboot", "gpu.needs_reboot"),
        3 => ("drain_p2p", "gpu.needs_reset"),
        4 => ("drain_and_reset", "gpu.needs_reset"),
        5 => ("recover_imex", "nvlink.fabric"),
        other => {
            return record.gap(
                &RECOVERY,
                subject.clone(),
                format!("the driver asks for {other}, which is not known here"),
            );
        }
    };
    record.add(RECOVERY.of(subject.clone(), word).fault(class))
}

/// A GPU that does not answer: what NVML says of it decides whether it is the GPU's fault; says whether it is.
fn silent(
    subject: &Subject,
    error: &NvmlError,
    record: &mut Recorder<'_>,
) -> Result<bool, CheckError> {
    let (word, class) = match error {
        NvmlError::GpuLost | NvmlError::Unknown => ("lost", "gpu.lost"),
        NvmlError::ResetRequired => ("needs_reset", "gpu.needs_reset"),
        NvmlError::IrqIssue => ("no_interrupt", "gpu.lost"),
        NvmlError::InsufficientPower => ("no_power", "gpu.power"),
        NvmlError::NoPermission => {
            let why = "this process may not open it: a container or a device cgroup hides it; run dhc where all GPUs are \
                       allowed (on Slurm: --exclusive --gres=gpu:8, with as many as the node has)";
            record.gap(&STATE, subject.clone(), why)?;
            return Ok(false);
        }
        // The library is at odds with itself: nothing is known of the GPU.
        error => {
            record.gap(&STATE, subject.clone(), error.to_string())?;
            return Ok(false);
        }
    };
    record.add(
        STATE
            .of(subject.clone(), word)
            .fault(class)
            .detail(error.to_string()),
    )?;
    Ok(true)
}

/// Gives GPUs that do not answer the address that they have on the PCI bus, and names those that NVML does not list.
///
/// A GPU that does not answer cannot be asked for its address. NVML counts GPUs in the order of the bus, so where as many
/// are silent as addresses are left, the one belongs to the other. Returns of how many GPUs nothing is known here, since they
/// are others'.
fn on_the_bus(
    host: &Host,
    known: &BTreeSet<String>,
    silent_ones: &[Subject],
    record: &mut Recorder<'_>,
) -> Result<u64, CheckError> {
    let cards = match host.pci_cards() {
        Ok(cards) => cards,
        // A machine without a bus has no GPU on it.
        Err(error) if error.is_absent() => return Ok(0),
        Err(error) => {
            let why = format!("{error}, so a GPU that NVML does not list would not be seen");
            record.gap(&STATE, Subject::node(), why)?;
            return Ok(0);
        }
    };
    for (bdf, error) in cards.unknown(PciKind::Gpu) {
        let stands_for_others = matches!(error, ReadError::Blocked { .. });
        if stands_for_others || !known.contains(bdf) {
            let why = format!("{error}, so it may be a GPU that NVML does not list");
            record.gap(&STATE, Subject::new(Kind::Pci, bdf), why)?;
        }
    }
    let left = cards.known(PciKind::Gpu);
    let left = left.filter(|bdf| !known.contains(*bdf) && !host.pci_is_virtual(bdf));
    let mut left: Vec<&str> = left.collect();
    let mut others = set_apart(host, &mut left, given_away, record)?;
    if left.len() != silent_ones.len() {
        others += set_apart(host, &mut left, hidden, record)?;
    }
    if left.len() == silent_ones.len() {
        for (subject, bdf) in silent_ones.iter().zip(left) {
            record.device(subject.clone(), [("bdf", bdf.to_owned())])?;
        }
        return Ok(others);
    }
    if silent_ones.is_empty() {
        for bdf in left {
            let subject = Subject::new(Kind::Gpu, bdf);
            record.device(subject.clone(), [("bdf", bdf.to_owned())])?;
            let said = "it is on the PCI bus and NVML does not list it; the driver did not start it, see the kernel's log";
            record.add(STATE.of(subject, "not_listed").detail(said))?;
        }
        return Ok(others);
    }
    record.note(format!(
        "PCI addresses of GPUs that do not answer: {}",
        left.join(", ")
    ))?;
    Ok(others)
}

/// Takes those GPUs away of which nothing is known here, and says why; returns how many.
fn set_apart(
    host: &Host,
    gpus: &mut Vec<&str>,
    why_not_here: fn(&Host, &str) -> Option<String>,
    record: &mut Recorder<'_>,
) -> Result<u64, CheckError> {
    let mut here = Vec::new();
    let mut others = 0;
    for bdf in gpus.drain(..) {
        match why_not_here(host, bdf) {
            Some(why) => {
                record.gap(&STATE, Subject::new(Kind::Gpu, bdf), why)?;
                others += 1;
            }
            None => here.push(bdf),
        }
    }
    *gpus = here;
    Ok(others)
}

/// Why a GPU is not this machine's, if it is a virtual machine's.
fn given_away(host: &Host, bdf: &str) -> Option<String> {
    let driver = host.pci_driver(bdf).ok().flatten();
    let why = "it is bound to vfio-pci, for a virtual machine to use; run dhc in that machine";
    (driver.as_deref() == Some("vfio-pci")).then(|| why.to_owned())
}

/// Why NVML may not list a GPU that is sound: it is hidden from this process, or nobody can tell whether it is.
///
/// The driver makes `/proc/driver/nvidia/gpus/BDF` of every GPU that it has taken, and starts one only when its device file is
/// first opened (open-gpu-kernel-modules 595.45.04, `nv_pci_probe`, `nv_start_device`). So one that it could not start stands
/// there too. It is told from one that is hidden by what containers leave of either:
/// - nvidia-container-cli lays a tmpfs over `/proc/driver/nvidia`, and puts the container's GPUs alone into it and `/dev`
///   (libnvidia-container, `nvc_mount.c`);
/// - CDI leaves `/proc` as it is, and puts the container's GPUs alone into `/dev`. Where NVML makes the other device files, as
///   it does under older toolkits, the device cgroup does not let them be opened (nvidia-container-toolkit, pull request 927);
/// - a device cgroup alone, as Slurm's ConstrainDevices, leaves all files and does not let them be opened.
fn hidden(host: &Host, bdf: &str) -> Option<String> {
    const ELSEWHERE: &str = "it is given to others; run dhc outside of the container, or where all GPUs are allowed (on Slurm: \
                             --gres=gpu:ALL or --exclusive)";
    let untold = |error: &ReadError| format!("whether the driver started it is not known: {error}");
    match host.pci_driver(bdf) {
        Ok(Some(driver)) if driver == "nvidia" => {}
        Ok(_) => return None,
        Err(error) => return Some(untold(&error)),
    }
    let taken = match host.list(GPUS) {
        Ok(taken) => taken,
        Err(error) => return Some(untold(&error)),
    };
    let Some(name) = taken.iter().find(|name| short_bdf(name) == bdf) else {
        return Some(format!(
            "the driver has it, and `{GPUS}` does not show it here: {ELSEWHERE}"
        ));
    };
    let path = format!("{GPUS}/{name}/information");
    let information = match host.text(&path) {
        Ok(information) => information,
        Err(error) => return Some(untold(&error)),
    };
    let line = |key: &str| information.lines().find_map(|line| line.strip_prefix(key));
    if line("GPU Excluded:").is_some_and(|word| word.trim() == "Yes") {
        let why = "the driver is told to leave it out (its option NVreg_ExcludedGpus)";
        return Some(why.to_owned());
    }
    let minor = line("Device Minor:").and_then(|minor| minor.trim().parse::<u32>().ok());
    let Some(minor) = minor else {
        return Some(format!("`{path}` does not tell its device file"));
    };
    let device = format!("/dev/nvidia{minor}");
    match host.may_open(&device) {
        Ok(true) => None,
        Ok(false) => Some(format!("this process may not open `{device}`: {ELSEWHERE}")),
        Err(error) if error.is_absent() => Some(format!("{error} here: {ELSEWHERE}")),
        Err(error) => Some(untold(&error)),
    }
}

/// Where the driver shows the GPUs that it has taken.
const GPUS: &str = "/proc/driver/nvidia/gpus";

/// NVML's `00000000:53:00.0` as the kernel writes it: the domain has four digits, or more if it needs them.
pub(super) fn short_bdf(bus_id: &str) -> String {
    let lower = bus_id.to_ascii_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) => match u32::from_str_radix(domain, 16) {
            Ok(domain) => format!("{domain:04x}:{rest}"),
            Err(_) => lower,
        },
        None => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::short_bdf;

    #[test]
    fn nvml_s_addresses_are_written_as_the_kernel_does() {
        assert_eq!(short_bdf("00000000:B9:00.0"), "0000:b9:00.0");
        assert_eq!(short_bdf("00010000:B9:00.0"), "10000:b9:00.0");
        assert_eq!(short_bdf("0000:B9:00.0"), "0000:b9:00.0");
    }
}
