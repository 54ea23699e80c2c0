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
use crate::host::Host;
use crate::host::nvml;

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
it. A GPU that is on the PCI bus and that NVML does not know is named by its address. GPUs divided by MIG or lent as virtual
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
/// are silent as addresses are left, the one belongs to the other. Returns how many GPUs are given to virtual machines, so
/// that nothing is known of them here.
fn on_the_bus(
    host: &Host,
    known: &BTreeSet<String>,
    silent_ones: &[Subject],
    record: &mut Recorder<'_>,
) -> Result<u64, CheckError> {
    let gpus = match host.pci_gpus() {
        Ok(gpus) => gpus,
        Err(error) => {
            let why = format!("{error}, so a GPU that NVML does not list would not be seen");
            record.gap(&STATE, Subject::node(), why)?;
            return Ok(0);
        }
    };
    for (bdf, error) in gpus.unknown {
        if !known.contains(&bdf) {
            let why = format!("{error}, so it may be a GPU that NVML does not list");
            record.gap(&STATE, Subject::new(Kind::Pci, bdf), why)?;
        }
    }
    let file = |bdf: &str, file: &str| format!("/sys/bus/pci/devices/{bdf}/{file}");
    // A virtual function (SR-IOV) is a part of a GPU that is on the bus by itself.
    let is_virtual = |bdf: &str| host.link(file(bdf, "physfn")).is_ok();
    let given_away = |bdf: &String| {
        let driver = host.link(file(bdf, "driver")).unwrap_or_default();
        driver.rsplit('/').next() == Some("vfio-pci")
    };
    let left = gpus
        .known
        .into_iter()
        .filter(|bdf| !known.contains(bdf) && !is_virtual(bdf));
    let (away, left): (Vec<String>, Vec<String>) = left.partition(given_away);
    for bdf in &away {
        let why = "it is bound to vfio-pci, for a virtual machine to use; run dhc in that machine";
        record.gap(&STATE, Subject::new(Kind::Gpu, bdf.as_str()), why)?;
    }
    let away = away.len() as u64;
    if left.len() == silent_ones.len() {
        for (subject, bdf) in silent_ones.iter().zip(left) {
            record.device(subject.clone(), [("bdf", bdf)])?;
        }
        return Ok(away);
    }
    if silent_ones.is_empty() {
        for bdf in left {
            let subject = Subject::new(Kind::Gpu, bdf.as_str());
            record.device(subject.clone(), [("bdf", bdf)])?;
            let said = "it is on the PCI bus and NVML does not list it; the driver did not start it, see the kernel's log";
            record.add(STATE.of(subject, "not_listed").detail(said))?;
        }
        return Ok(away);
    }
    record.note(format!(
        "PCI addresses of GPUs that do not answer: {}",
        left.join(", ")
    ))?;
    Ok(away)
}

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
