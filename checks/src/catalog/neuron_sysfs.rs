//! `neuron-sysfs`: every hardware and status counter of every Neuron device and core.

use std::collections::BTreeSet;

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use crate::check::{CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::format::neuron_sysfs::{CoreCounter, core_counter};
use crate::host::{Host, NeuronDevice, Readings};

const SRAM: Metric = Metric {
    name: "neuron.sram.uncorrected",
    unit: Unit::Count,
    about: "uncorrected errors of a device's SRAM since the driver was loaded",
    role: Role::Required,
    fault: "neuron.uncorrectable",
};
const HBM: Metric = Metric {
    name: "neuron.hbm.uncorrected",
    unit: Unit::Count,
    about: "uncorrected errors of a device's memory (HBM) since the driver was loaded",
    role: Role::Required,
    fault: "neuron.uncorrectable",
};
const REPAIRABLE: Metric = Metric {
    name: "neuron.hbm.repairable",
    unit: Unit::Count,
    about: "uncorrected errors of a device's memory that a reload of the driver repairs",
    role: Role::Judged,
    fault: "neuron.repairable",
};
const HARDWARE: Metric = Metric {
    name: "neuron.core.hardware_errors",
    unit: Unit::Count,
    about: "errors of the hardware that a core has met since the driver was loaded, by counter",
    role: Role::Required,
    fault: "neuron.hardware",
};
const EXECUTION_NEW: Metric = Metric {
    name: "neuron.core.execution_errors_new",
    unit: Unit::Count,
    about: "work on a core that has failed for other reasons since the last reading, by counter",
    role: Role::Judged,
    fault: "neuron.execution",
};
const EXECUTION: Metric = Metric {
    name: "neuron.core.execution_errors",
    unit: Unit::Count,
    about: "work on a core that has failed for other reasons since the driver was loaded, by counter",
    role: Role::Context,
    fault: "neuron.execution",
};
const SUCCESS: Metric = Metric {
    name: "neuron.core.success",
    unit: Unit::Count,
    about: "work on a core that has ended well since the driver was loaded",
    role: Role::Context,
    fault: "neuron.execution",
};
const OTHER: Metric = Metric {
    name: "neuron.core.other",
    unit: Unit::Count,
    about: "a counter of a core that this version of dhc does not know",
    role: Role::Context,
    fault: "neuron.execution",
};

static SPEC: Spec = Spec {
    name: "neuron-sysfs",
    about: "every hardware and status counter of every Neuron device and core",
    explain: "\
Reads the counters that the Neuron driver keeps for each device (uncorrected errors of SRAM and memory) and for each core
(errors of hardware, failed and successful work), in the layouts of old and new drivers. Counters of hardware are judged as
they stand; they start at zero when the driver is loaded. Failed work is judged by what has come since the last reading of
the same boot and driver, since an application can fail by its own fault. A counter that cannot be read is unknown, never
zero; the driver itself shows zero for an SRAM counter that it failed to read, so its complaint in the kernel's log makes
those counters unknown too.",
    metrics: &[&SRAM, &HBM, &REPAIRABLE, &HARDWARE, &EXECUTION_NEW, &EXECUTION, &SUCCESS, &OTHER],
    needs: Some(Hardware::NeuronDevice),
    tags: &["neuron", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// What the driver logs when it shows zero without having read (aws-neuron-driver, `neuron_sysfs_metrics.c`).
const SRAM_NOT_READ: &str = "failed to read ECC SRAM error";

/// Name of the stored readings.
const READINGS: &str = "neuron-sysfs";

/// The check.
pub(super) struct NeuronSysfs;

impl InstanceCheck for NeuronSysfs {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let host = &task.host;
        let devices = host
            .neuron_devices()
            .map_err(|error| CheckError::Unavailable(error.to_string()))?;
        if devices.is_empty() {
            let why = "the Neuron driver shows no device; install and load it (modprobe neuron)";
            return Err(CheckError::Unavailable(why.to_owned()));
        }
        let epoch = epoch(host);
        let before = task
            .state
            .as_deref()
            .and_then(|folder| Readings::load(folder, READINGS, &epoch));
        let mut now = Readings {
            epoch,
            ..Readings::default()
        };
        let sram_not_read = host
            .kernel_log()
            .is_ok_and(|log| String::from_utf8_lossy(&log).contains(SRAM_NOT_READ));
        let usual = usual_counters(host, &devices);
        for device in &devices {
            device_counters(host, device, sram_not_read, record)?;
            for core in &device.cores {
                core_counters(host, device, *core, before.as_ref(), &mut now, record)?;
                missing_counters(host, device, *core, &usual, record)?;
            }
        }
        match (&before, &task.state) {
            (None, Some(_)) => record
                .note("no earlier reading of this boot and driver to compare failed work with")?,
            (None, None) => {
                record.note("no place to keep readings in, so failed work is not compared")?
            }
            (Some(_), _) => {}
        }
        let stored = task
            .state
            .as_deref()
            .map_or(Ok(()), |folder| now.store(folder, READINGS));
        stored.or_else(|error| record.note(format!("the readings could not be kept: {error}")))
    }
}

/// What the counters start again with: the boot and the driver that was loaded.
fn epoch(host: &Host) -> String {
    let boot = host
        .text("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default();
    let driver = host.text("/sys/module/neuron/version").unwrap_or_default();
    format!("boot {boot}, driver {driver}")
}

fn device_counters(
    host: &Host,
    device: &NeuronDevice,
    sram_not_read: bool,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let subject = Subject::new(Kind::NeuronDevice, device.name());
    let hardware = format!("{}/stats/hardware", device.path);
    // Inferentia 1 has none of these counters.
    let has_none = host
        .text(format!("{}/info/architecture/arch_type", device.path))
        .is_ok_and(|arch| arch == "NDv1");
    for (metric, file) in [
        (&SRAM, "sram_ecc_uncorrected"),
        (&HBM, "mem_ecc_uncorrected"),
        (&REPAIRABLE, "mem_ecc_repairable_uncorrected"),
    ] {
        match host.neuron_counter(&format!("{hardware}/{file}")) {
            Ok(0) if sram_not_read && metric.name == SRAM.name => {
                let why =
                    "the driver logged that it failed to read SRAM counters, for which it shows 0";
                record.gap(metric, subject.clone(), why)?;
            }
            Ok(count) => record.measure(metric, subject.clone(), count)?,
            Err(error) if error.is_absent() && (has_none || metric.name == REPAIRABLE.name) => {}
            Err(error) => record.gap(metric, subject.clone(), error.to_string())?,
        }
    }
    Ok(())
}

/// The hardware counters that any core shows.
fn usual_counters(host: &Host, devices: &[NeuronDevice]) -> BTreeSet<String> {
    let cores = devices
        .iter()
        .flat_map(|device| device.cores.iter().map(move |core| (device, *core)));
    let names =
        cores.flat_map(|(device, core)| host.list(status(device, core)).unwrap_or_default());
    names
        .filter(|name| matches!(core_counter(name), CoreCounter::Hardware(_)))
        .collect()
}

/// A counter of the hardware that other cores show and this one does not is not zero.
fn missing_counters(
    host: &Host,
    device: &NeuronDevice,
    core: u32,
    usual: &BTreeSet<String>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let Ok(names) = host.list(status(device, core)) else {
        return Ok(());
    };
    for name in usual.iter().filter(|name| !names.contains(*name)) {
        let subject = Subject::new(
            Kind::NeuronCore,
            format!("{}/core{core}/{name}", device.name()),
        );
        let why = "the driver shows this counter for other cores and not for this one";
        record.gap(&HARDWARE, subject, why)?;
    }
    Ok(())
}

/// Where a core has its counters.
fn status(device: &NeuronDevice, core: u32) -> String {
    format!("{}/neuron_core{core}/stats/status", device.path)
}

fn core_counters(
    host: &Host,
    device: &NeuronDevice,
    core: u32,
    before: Option<&Readings>,
    now: &mut Readings,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let status = status(device, core);
    let subject = |counter: &str| {
        Subject::new(
            Kind::NeuronCore,
            format!("{}/core{core}/{counter}", device.name()),
        )
    };
    let names = match host.list(&status) {
        Ok(names) => names,
        Err(error) => return record.gap(&HARDWARE, subject("status"), error.to_string()),
    };
    for name in names {
        let kind = core_counter(&name);
        let metric = match kind {
            CoreCounter::Hardware(_) => &HARDWARE,
            CoreCounter::Execution => &EXECUTION,
            CoreCounter::Success => &SUCCESS,
            CoreCounter::Unknown => &OTHER,
        };
        let count = match host.neuron_counter(&format!("{status}/{name}")) {
            Ok(count) => count,
            Err(error) => {
                record.gap(metric, subject(&name), error.to_string())?;
                continue;
            }
        };
        match kind {
            CoreCounter::Hardware(class) => {
                record.add(metric.of(subject(&name), count).fault(class))?
            }
            // A core has two dozen counters of other kinds; those that never moved say nothing.
            CoreCounter::Execution | CoreCounter::Unknown if count == 0 => {}
            CoreCounter::Execution | CoreCounter::Unknown | CoreCounter::Success => {
                record.measure(metric, subject(&name), count)?;
            }
        }
        if kind == CoreCounter::Execution {
            let key = subject(&name).name;
            let last = before.map(|readings| readings.counters.get(&key).copied().unwrap_or(0));
            // A counter that went back was cleared by hand; what it shows has come since.
            let new = last.map(|last| count.checked_sub(last).unwrap_or(count));
            if let Some(new) = new.filter(|new| *new > 0) {
                record.measure(&EXECUTION_NEW, subject(&name), new)?;
            }
            now.counters.insert(key, count);
        }
    }
    Ok(())
}
