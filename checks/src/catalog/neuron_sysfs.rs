//! `neuron-sysfs`: every hardware and status counter of every Neuron device and core.

use std::collections::{BTreeMap, BTreeSet};

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use crate::check::{CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::foresight::Cause;
use crate::format::neuron_sysfs::{CoreCounter, core_counter, device_fault};
use crate::host::{Host, NeuronDevice, ReadError, Readings};

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
const DEVICE_HARDWARE: Metric = Metric {
    name: "neuron.device.hardware_errors",
    unit: Unit::Count,
    about: "uncorrected errors of a device in a counter that this version of dhc does not know",
    role: Role::Judged,
    fault: "neuron.uncorrectable",
};
const DEVICE_OTHER: Metric = Metric {
    name: "neuron.device.other",
    unit: Unit::Count,
    about: "a counter of a device's hardware that this version of dhc does not know",
    role: Role::Context,
    fault: "neuron.hardware",
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
they stand; they start at zero when the driver is loaded. One that this version of dhc does not know is judged if its name
says that it counts errors of the hardware that were not corrected, and recorded otherwise. Failed work is judged by what has come since the last reading of
the same boot and driver, since an application can fail by its own fault. A counter that cannot be read is unknown, never
zero; a device with a file that does not answer is given up, and the others are read. The driver itself shows zero for an SRAM counter that it failed to read, so its complaint in the kernel's log makes
those counters unknown too.",
    metrics: &[
        &SRAM,
        &HBM,
        &REPAIRABLE,
        &DEVICE_HARDWARE,
        &DEVICE_OTHER,
        &HARDWARE,
        &EXECUTION_NEW,
        &EXECUTION,
        &SUCCESS,
        &OTHER,
    ],
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

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::AcceleratorMemory, Cause::AcceleratorSram]
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
        // What cannot be read now keeps its earlier reading, or its next one would look new.
        let mut now = Readings {
            epoch,
            counters: before.clone().unwrap_or_default().counters,
        };
        let sram_not_read = host
            .kernel_log()
            .is_ok_and(|log| String::from_utf8_lossy(&log).contains(SRAM_NOT_READ));
        let told = read(host, &devices);
        let usual = usual_counters(&told);
        let mut not_compared = 0;
        for told in &told {
            device_counters(told, sram_not_read, record)?;
            if let Err(error) = &told.cores {
                let device = Subject::new(Kind::NeuronDevice, told.name.as_str());
                record.gap(&HARDWARE, device, error.to_string())?;
            }
            for (core, status) in told.cores.iter().flatten() {
                let place = format!("{}/core{core}", told.name);
                core_counters(&place, status, &usual, record)?;
                not_compared += failed_work(&place, status, before.as_ref(), &mut now, record)?;
            }
        }
        match (&before, &task.state) {
            (None, Some(_)) => record
                .note("no earlier reading of this boot and driver to compare failed work with")?,
            (None, None) => {
                record.note("no place to keep readings in, so failed work is not compared")?
            }
            (Some(_), _) if not_compared > 0 => record.note(format!(
                "{not_compared} counters of failed work could not be read before and are compared from now on"
            ))?,
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

/// The counters of a folder by name.
#[derive(Default)]
struct Counters {
    counts: BTreeMap<String, Result<u64, ReadError>>,
    /// Why it was not read to the end.
    cut: Option<ReadError>,
}

/// What a device told, as far as it did.
struct Told {
    name: String,
    /// Whether it is an Inferentia 1, which counts nothing for the whole device.
    is_inferentia_1: bool,
    hardware: Counters,
    /// Its cores, if they can be listed.
    cores: Result<Vec<(u32, Counters)>, ReadError>,
}

/// How many devices are read at once; a node has 16.
const AT_ONCE: usize = 64;

/// Reads all devices side by side, so that stuck ones cost one limit together.
fn read(host: &Host, devices: &[NeuronDevice]) -> Vec<Told> {
    let mut told = Vec::new();
    for some in devices.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let readers: Vec<_> = some
                .iter()
                .map(|device| scope.spawn(|| read_device(host, device)))
                .collect();
            told.extend(
                readers
                    .into_iter()
                    .map(|reader| reader.join().expect("a reader does not panic")),
            );
        });
    }
    told
}

fn read_device(host: &Host, device: &NeuronDevice) -> Told {
    let path = &device.path;
    let mut given_up = match &device.cores {
        Err(error @ ReadError::Blocked { .. }) => Some(error.clone()),
        _ => None,
    };
    let hardware = read_counters(host, &format!("{path}/stats/hardware"), &mut given_up);
    let mut core = |core: &u32| {
        let status = format!("{path}/neuron_core{core}/stats/status");
        (*core, read_counters(host, &status, &mut given_up))
    };
    let cores = device.cores.clone();
    let cores = cores.map(|cores| cores.iter().map(&mut core).collect());
    let is_inferentia_1 = given_up.is_none()
        && host
            .text(format!("{path}/info/architecture/arch_type"))
            .is_ok_and(|arch| arch == "NDv1");
    Told {
        name: device.name(),
        is_inferentia_1,
        hardware,
        cores,
    }
}

/// Reads a folder of counters. A device is given up at its first file that does not answer: each further one would cost the
/// limit again.
fn read_counters(host: &Host, folder: &str, given_up: &mut Option<ReadError>) -> Counters {
    let mut counters = Counters::default();
    if given_up.is_none() {
        match host.list(folder) {
            Ok(names) => {
                for name in names {
                    let count = host.neuron_counter(&format!("{folder}/{name}"));
                    if let Err(error @ ReadError::Blocked { .. }) = count {
                        *given_up = Some(error);
                        break;
                    }
                    counters.counts.insert(name, count);
                }
            }
            Err(error @ ReadError::Blocked { .. }) => *given_up = Some(error),
            Err(error) => {
                counters.cut = Some(error);
                return counters;
            }
        }
    }
    counters.cut.clone_from(given_up);
    counters
}

/// The counters of a device that have a metric of their own.
const KNOWN: [(&Metric, &str); 3] = [
    (&SRAM, "sram_ecc_uncorrected"),
    (&HBM, "mem_ecc_uncorrected"),
    (&REPAIRABLE, "mem_ecc_repairable_uncorrected"),
];

fn device_counters(
    told: &Told,
    sram_not_read: bool,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let subject = Subject::new(Kind::NeuronDevice, told.name.as_str());
    let Counters { counts, cut } = &told.hardware;
    for (metric, file) in KNOWN {
        match (counts.get(file), cut) {
            (Some(Ok(0)), _) if sram_not_read && metric.name == SRAM.name => {
                let why =
                    "the driver logged that it failed to read SRAM counters, for which it shows 0";
                record.gap(metric, subject.clone(), why)?;
            }
            (Some(Ok(count)), _) => record.measure(metric, subject.clone(), *count)?,
            (Some(Err(error)), _) => record.gap(metric, subject.clone(), error.to_string())?,
            (None, Some(error)) if !error.is_absent() => {
                record.gap(metric, subject.clone(), error.to_string())?;
            }
            // Older devices repair nothing.
            (None, _) if told.is_inferentia_1 || metric.name == REPAIRABLE.name => {}
            (None, _) => {
                let why = format!("the driver does not show the counter `{file}`");
                record.gap(metric, subject.clone(), why)?;
            }
        }
    }
    let is_known = |name: &str| KNOWN.iter().any(|(_, file)| *file == name);
    for (name, count) in counts.iter().filter(|(name, _)| !is_known(name)) {
        let place = Subject::new(Kind::NeuronDevice, format!("{subject}/{name}"));
        match (device_fault(name), count) {
            (Some(class), Ok(count)) => {
                record.add(DEVICE_HARDWARE.of(place, *count).fault(class))?;
            }
            (Some(_), Err(error)) => record.gap(&DEVICE_HARDWARE, place, error.to_string())?,
            (None, Ok(count)) => record.measure(&DEVICE_OTHER, place, *count)?,
            (None, Err(error)) => record.gap(&DEVICE_OTHER, place, error.to_string())?,
        }
    }
    Ok(())
}

/// The hardware counters that any core shows.
fn usual_counters(told: &[Told]) -> BTreeSet<&str> {
    let cores = told.iter().flat_map(|told| &told.cores).flatten();
    cores
        .flat_map(|(_, status)| status.counts.keys())
        .map(String::as_str)
        .filter(|name| matches!(core_counter(name), CoreCounter::Hardware(_)))
        .collect()
}

fn of_core(place: &str, counter: &str) -> Subject {
    Subject::new(Kind::NeuronCore, format!("{place}/{counter}"))
}

/// All that a core has counted since the driver was loaded.
fn core_counters(
    place: &str,
    status: &Counters,
    usual: &BTreeSet<&str>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    for (name, count) in &status.counts {
        let subject = of_core(place, name);
        match (core_counter(name), count) {
            (CoreCounter::Hardware(class), Ok(count)) => {
                record.add(HARDWARE.of(subject, *count).fault(class))?;
            }
            (CoreCounter::Hardware(_), Err(error)) => {
                record.gap(&HARDWARE, subject, error.to_string())?;
            }
            // A core has two dozen counters of other kinds; those that never moved say nothing.
            (CoreCounter::Execution | CoreCounter::Unknown, Ok(0)) => {}
            (CoreCounter::Execution, Ok(count)) => record.measure(&EXECUTION, subject, *count)?,
            // Whether work has failed lately is what is judged.
            (CoreCounter::Execution, Err(error)) => {
                record.gap(&EXECUTION_NEW, subject, error.to_string())?;
            }
            (CoreCounter::Success, Ok(count)) => record.measure(&SUCCESS, subject, *count)?,
            (CoreCounter::Success, Err(error)) => {
                record.gap(&SUCCESS, subject, error.to_string())?;
            }
            (CoreCounter::Unknown, Ok(count)) => record.measure(&OTHER, subject, *count)?,
            (CoreCounter::Unknown, Err(error)) => {
                record.gap(&OTHER, subject, error.to_string())?;
            }
        }
    }
    if let Some(error) = &status.cut {
        return record.gap(&HARDWARE, of_core(place, "status"), error.to_string());
    }
    // A counter of the hardware that other cores show and this one does not is not zero.
    for name in usual
        .iter()
        .filter(|name| !status.counts.contains_key(**name))
    {
        let why = "the driver shows this counter for other cores and not for this one";
        record.gap(&HARDWARE, of_core(place, name), why)?;
    }
    Ok(())
}

/// The work of a core that has failed since the last reading; returns how many counters had none.
fn failed_work(
    place: &str,
    status: &Counters,
    before: Option<&Readings>,
    now: &mut Readings,
    record: &mut Recorder<'_>,
) -> Result<usize, CheckError> {
    let mut not_compared = 0;
    for (name, count) in &status.counts {
        let (CoreCounter::Execution, Ok(count)) = (core_counter(name), count) else {
            continue;
        };
        let subject = of_core(place, name);
        now.counters.insert(subject.name.clone(), *count);
        let Some(last) = before.and_then(|readings| readings.counters.get(&subject.name)) else {
            not_compared += 1;
            continue;
        };
        // A counter that went back was cleared by hand; what it shows has come since.
        let new = count.checked_sub(*last).unwrap_or(*count);
        if new > 0 {
            record.measure(&EXECUTION_NEW, subject, new)?;
        }
    }
    Ok(not_compared)
}
