//! `host`: what every node has, whatever accelerates it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use dhc_thresholds::{Action, Faults, Hardware, Kind, Metric, Role, Subject, Unit};

use crate::check::{CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::foresight::Cause;
use crate::format::kernel_log::{KernelEvent, KernelLog, What, xid_entry};
use crate::format::sysfs;
use crate::host::{Host, PciKind, READ_LIMIT, ReadError, evidence};

const MEMORY: Metric = Metric {
    name: "host.memory.size",
    unit: Unit::Mebibytes,
    about: "memory that the kernel manages (MemTotal)",
    role: Role::Required,
    fault: "host.memory.size",
};
const CPUS: Metric = Metric {
    name: "host.cpu.online",
    unit: Unit::Count,
    about: "logical CPUs that are online",
    role: Role::Required,
    fault: "host.cpu.count",
};
const GOVERNOR: Metric = Metric {
    name: "host.cpu.governor",
    unit: Unit::State,
    about: "cpufreq governor of the CPUs, as the kernel names it; `mixed` if they differ",
    role: Role::Judged,
    fault: "host.cpu.governor",
};
const NUMA_NODES: Metric = Metric {
    name: "host.numa.nodes",
    unit: Unit::Count,
    about: "NUMA nodes that are online",
    role: Role::Context,
    fault: "host.memory.size",
};
const UPTIME: Metric = Metric {
    name: "host.uptime",
    unit: Unit::Seconds,
    about: "time since the boot",
    role: Role::Context,
    fault: "host.clock",
};
const WIDTH: Metric = Metric {
    name: "host.pcie.width",
    unit: Unit::Lanes,
    about: "PCIe lanes in use by an accelerator or network card",
    role: Role::Context,
    fault: "host.pcie.width",
};
const WIDTH_MISSING: Metric = Metric {
    name: "host.pcie.width_missing",
    unit: Unit::Lanes,
    about: "PCIe lanes that an accelerator or network card and its slot have and do not use",
    role: Role::Judged,
    fault: "host.pcie.width",
};
const SPEED: Metric = Metric {
    name: "host.pcie.speed",
    unit: Unit::GigatransfersPerSecond,
    about: "PCIe speed in use; many devices slow their link down when they idle",
    role: Role::Context,
    fault: "host.pcie.speed",
};
const SPEED_MAX: Metric = Metric {
    name: "host.pcie.speed_max",
    unit: Unit::GigatransfersPerSecond,
    about: "PCIe speed that the device can reach",
    role: Role::Context,
    fault: "host.pcie.speed",
};
const AER_FATAL: Metric = Metric {
    name: "host.pcie.aer_fatal",
    unit: Unit::Count,
    about: "fatal PCIe errors since the boot (AER)",
    role: Role::Judged,
    fault: "host.pcie.errors",
};
const AER_NONFATAL: Metric = Metric {
    name: "host.pcie.aer_nonfatal",
    unit: Unit::Count,
    about: "uncorrected PCIe errors that were not fatal since the boot (AER)",
    role: Role::Judged,
    fault: "host.pcie.errors",
};
const AER_CORRECTABLE: Metric = Metric {
    name: "host.pcie.aer_correctable",
    unit: Unit::Count,
    about: "corrected PCIe errors since the boot (AER)",
    role: Role::Context,
    fault: "host.pcie.correctable",
};
const CLOCK: Metric = Metric {
    name: "host.clock.synchronised",
    unit: Unit::State,
    about: "whether something keeps the clock synchronised: yes or no",
    role: Role::Judged,
    fault: "host.clock",
};
const CLOCK_SOURCE: Metric = Metric {
    name: "host.clock.source",
    unit: Unit::State,
    about: "the kernel's clock source",
    role: Role::Context,
    fault: "host.clock",
};
const DISK_FREE: Metric = Metric {
    name: "host.disk.free",
    unit: Unit::Percent,
    about: "free space of the root file system and of the one that holds dhc's results",
    role: Role::Judged,
    fault: "host.disk.space",
};
const KERNEL_FAULTS: Metric = Metric {
    name: "host.kernel.faults",
    unit: Unit::Count,
    about: "lines of the kernel's log since the boot that ask for a reset, reboot or replacement of something",
    role: Role::Required,
    fault: "host.kernel.mce",
};
const KERNEL_WARNINGS: Metric = Metric {
    name: "host.kernel.warnings",
    unit: Unit::Count,
    about: "lines of the kernel's log since the boot that ask for a person to look",
    role: Role::Judged,
    fault: "host.kernel.corrected",
};
const KERNEL_NOTICES: Metric = Metric {
    name: "host.kernel.notices",
    unit: Unit::Count,
    about: "lines of the kernel's log since the boot about applications that failed: out of memory, most Xids",
    role: Role::Context,
    fault: "gpu.application",
};
const KERNEL_REPEATS: Metric = Metric {
    name: "host.kernel.repeats",
    unit: Unit::Count,
    about: "processes that failed on one GPU since the boot with an Xid (13, 31) that is an application's unless it repeats",
    role: Role::Judged,
    fault: "gpu.suspect",
};
const KERNEL_OVERWRITTEN: Metric = Metric {
    name: "host.kernel.overwritten",
    unit: Unit::Count,
    about: "records of the kernel's log of this boot that were gone before dhc could read them",
    role: Role::Context,
    fault: "host.kernel.corrected",
};

static SPEC: Spec = Spec {
    name: "host",
    about: "memory, CPUs, PCIe links and errors, clock, disk space, and the kernel's log of hardware errors",
    explain: "\
Looks at what every node has. Memory and CPUs are compared with the instance type. The PCIe links of accelerators and
network cards must have all their lanes; speed is only recorded, since idle links slow down. Uncorrected PCIe errors
since the boot are a fault. The kernel's log of this boot is searched for Xid and SXid lines of NVIDIA's driver, for
Neuron hardware errors, machine checks, disk errors and processes killed for lack of memory. What an Xid asks for
follows NVIDIA's catalogue; where the driver itself says what is needed (Xid 154), its word counts. Lines that a
process wrote into the kernel's log accuse nothing. An Xid of an application (13, 31) that comes from several processes on
one GPU is a warning. A row remap in the log (63) is a notice, since gpu-memory reads from the driver whether it still
waits. A PCI function whose files block is given up and named; the others are read all the same.",
    metrics: &[
        &MEMORY,
        &CPUS,
        &GOVERNOR,
        &NUMA_NODES,
        &UPTIME,
        &WIDTH,
        &WIDTH_MISSING,
        &SPEED,
        &SPEED_MAX,
        &AER_FATAL,
        &AER_NONFATAL,
        &AER_CORRECTABLE,
        &CLOCK,
        &CLOCK_SOURCE,
        &DISK_FREE,
        &KERNEL_FAULTS,
        &KERNEL_WARNINGS,
        &KERNEL_NOTICES,
        &KERNEL_REPEATS,
        &KERNEL_OVERWRITTEN,
    ],
    needs: None,
    tags: &["host", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// The check.
pub(super) struct HostCheck;

impl InstanceCheck for HostCheck {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn foresees(&self) -> &'static [Cause] {
        // The kernel's log tells what all others look for, if it has happened since the boot.
        &[
            Cause::AcceleratorLost,
            Cause::AcceleratorLink,
            Cause::AcceleratorMemory,
            Cause::AcceleratorSram,
            Cause::SystemProcessor,
            Cause::Nic,
        ]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        // First what says most and blocks least.
        let begun = Instant::now();
        kernel_log(&task.host, record)?;
        memory(&task.host, record)?;
        cpus(&task.host, record)?;
        clock(&task.host, record)?;
        let reserve = RESERVE.min(task.deadline / 2);
        pcie(task, begun + task.deadline - reserve, record)?;
        disks(task, record)
    }
}

fn memory(host: &Host, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    match host
        .text("/proc/meminfo")
        .map(|text| sysfs::mem_total_kib(&text))
    {
        Ok(Some(kib)) => record.measure(&MEMORY, Subject::node(), kib / 1024)?,
        Ok(None) => record.gap(&MEMORY, Subject::node(), "`/proc/meminfo` has no MemTotal")?,
        Err(error) => record.gap(&MEMORY, Subject::node(), error.to_string())?,
    }
    let nodes = host
        .text("/sys/devices/system/node/online")
        .ok()
        .and_then(|list| sysfs::list_length(&list));
    nodes.map_or(Ok(()), |nodes| {
        record.measure(&NUMA_NODES, Subject::node(), nodes)
    })
}

/// The mode in which CPUs are counted where each core runs one thread: a table may ask for fewer then.
const SMT_OFF: &str = "smt-off";

fn cpus(host: &Host, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let all = || Subject::new(Kind::Cpu, "cpus");
    match host
        .text("/sys/devices/system/cpu/online")
        .map(|list| sysfs::list_length(&list))
    {
        Ok(Some(count)) => {
            let online = CPUS.of(all(), count);
            record.add(if has_smt_off(host) {
                online
                    .over(SMT_OFF)
                    .fault("host.cpu.smt")
                    .detail("each core runs one thread, since SMT is off")
            } else {
                online
            })?;
        }
        Ok(None) => record.gap(
            &CPUS,
            all(),
            "`/sys/devices/system/cpu/online` is not a list of CPUs",
        )?,
        Err(error) => record.gap(&CPUS, all(), error.to_string())?,
    }
    // Virtual machines mostly have no cpufreq: nothing is governed there, so nothing is recorded.
    let policies = host
        .list("/sys/devices/system/cpu/cpufreq")
        .unwrap_or_default();
    let mut governors: Vec<String> = policies
        .iter()
        .filter_map(|policy| {
            host.text(format!(
                "/sys/devices/system/cpu/cpufreq/{policy}/scaling_governor"
            ))
            .ok()
        })
        .collect();
    governors.sort();
    governors.dedup();
    match governors.as_slice() {
        [] => Ok(()),
        [one] => record.measure(&GOVERNOR, all(), one.clone()),
        several => record.add(GOVERNOR.of(all(), "mixed").detail(several.join(", "))),
    }
}

/// Whether the cores could run more threads than they do. EC2 (`ThreadsPerCore=1`) and firmware hide the others, and the
/// kernel then calls SMT not supported; on architectures without it, it is not implemented.
fn has_smt_off(host: &Host) -> bool {
    let text = |path: &str| host.text(format!("/sys/devices/system/cpu/{path}"));
    let control = text("smt/control").unwrap_or_default();
    let siblings = text("cpu0/topology/thread_siblings_list")
        .ok()
        .and_then(|list| sysfs::list_length(&list));
    ["off", "forceoff", "notsupported"].contains(&control.as_str()) && siblings == Some(1)
}

fn clock(host: &Host, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    if let Some(synchronised) = host.clock_is_synchronised() {
        record.measure(
            &CLOCK,
            Subject::node(),
            if synchronised { "yes" } else { "no" },
        )?;
    }
    if let Ok(source) =
        host.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    {
        record.measure(&CLOCK_SOURCE, Subject::node(), source)?;
    }
    let uptime = host.text("/proc/uptime").ok();
    let seconds: Option<f64> = uptime.and_then(|text| text.split_whitespace().next()?.parse().ok());
    seconds.map_or(Ok(()), |seconds| {
        record.measure(&UPTIME, Subject::node(), seconds)
    })
}

#[expect(clippy::cast_precision_loss, reason = "a percentage")]
fn disks(task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let root = ("/".to_owned(), task.host.space(Path::new("/")));
    // The directory of results is dhc's own, on the machine that dhc runs on, simulated or not.
    let state = task.state.as_deref().map(|path| {
        let own = Host {
            root: "/".into(),
            ..task.host.clone()
        };
        (path.display().to_string(), own.space(path))
    });
    for (path, space) in std::iter::once(root).chain(state) {
        let subject = Subject::new(Kind::Disk, path);
        match space {
            // An image that is full by its nature.
            Ok(space) if space.is_read_only => {
                record.note(format!("`{}` is read-only", subject.name))?;
            }
            Ok(space) if space.total_bytes > 0 => {
                let free = 100.0 * space.free_bytes as f64 / space.total_bytes as f64;
                record.measure(&DISK_FREE, subject, free)?;
            }
            Ok(_) => {}
            Err(error) => record.gap(&DISK_FREE, subject, error.to_string())?,
        }
    }
    Ok(())
}

/// The files of a PCI function that tell what it is, and those that are read of one whose link matters.
const NAMES: [&str; 3] = ["vendor", "class", "device"];
const STATES: [&str; 8] = [
    "current_link_width",
    "max_link_width",
    "../max_link_width",
    "current_link_speed",
    "max_link_speed",
    "aer_dev_fatal",
    "aer_dev_nonfatal",
    "aer_dev_correctable",
];

/// The files that tell of a function's own end of its link.
const LINK: [&str; 4] = [
    "max_link_width",
    "current_link_width",
    "max_link_speed",
    "current_link_speed",
];

/// How many PCI functions are read at once, so that a few stuck ones cost one limit together.
const AT_ONCE: usize = 64;

/// What a read that blocks costs, and another for the disks that come after: no read begins later than this before the
/// deadline, or, where that is short, in its second half.
const RESERVE: Duration = READ_LIMIT.saturating_mul(3);

/// The files of a PCI function, as far as they were read.
struct Function {
    bdf: String,
    files: BTreeMap<&'static str, Result<String, ReadError>>,
    /// Why it was not read to the end.
    given_up: Option<String>,
}

impl Function {
    fn read(host: &Host, bdf: &str, until: Instant) -> Function {
        let mut function = Function {
            bdf: bdf.to_owned(),
            files: BTreeMap::new(),
            given_up: None,
        };
        for file in NAMES {
            function.file(host, file, until);
        }
        let is_told = NAMES.iter().all(|name| function.word(name).is_some());
        if !is_told || function.kind().is_some() {
            for file in STATES {
                function.file(host, file, until);
            }
        }
        function
    }

    /// Reads one more file, unless an earlier one blocked: a stuck driver would cost the limit for each.
    fn file(&mut self, host: &Host, file: &'static str, until: Instant) {
        if self.given_up.is_some() {
            return;
        }
        if Instant::now() > until {
            self.given_up = Some("no time was left to read it".to_owned());
            return;
        }
        let text = host.text(format!("/sys/bus/pci/devices/{}/{file}", self.bdf));
        if let Err(error @ ReadError::Blocked { .. }) = &text {
            self.given_up = Some(error.to_string());
        }
        self.files.insert(file, text);
    }

    fn word(&self, file: &str) -> Option<&str> {
        self.files.get(file)?.as_deref().ok()
    }

    /// Why a file that is there has no content here.
    fn trouble(&self, file: &str) -> Option<&ReadError> {
        let error = self.files.get(file)?.as_ref().err()?;
        (!error.is_absent()).then_some(error)
    }

    /// Why a file of the link is missed: the kernel shows all of them or none, as on many virtual machines (Linux,
    /// `drivers/pci/pci-sysfs.c`, `pcie_dev_attrs_are_visible`).
    fn lacks(&self, file: &str) -> Option<String> {
        let is_absent = |file: &str| {
            let read = self.files.get(file);
            read.is_some_and(|read| read.as_ref().is_err_and(ReadError::is_absent))
        };
        let other = LINK.into_iter().find(|other| self.word(other).is_some());
        let other = other.filter(|_| is_absent(file))?;
        Some(format!("it has `{other}` and no `{file}`"))
    }

    fn kind(&self) -> Option<Kind> {
        let word = |file| self.word(file).unwrap_or_default();
        let kind = PciKind::of(word("vendor"), word("device"), word("class"))?;
        Some(match kind {
            PciKind::Gpu => Kind::Gpu,
            PciKind::Efa | PciKind::RdmaNic => Kind::Nic,
            PciKind::Neuron => Kind::NeuronDevice,
        })
    }
}

fn pcie(task: &Task, until: Instant, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let host = &task.host;
    let bdfs = match host.list("/sys/bus/pci/devices") {
        Ok(bdfs) => bdfs,
        Err(error) if error.is_absent() => Vec::new(),
        Err(error) => return record.gap(&WIDTH_MISSING, Subject::node(), error.to_string()),
    };
    if bdfs.is_empty() {
        return no_function(task, record);
    }
    let mut functions: Vec<Function> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..AT_ONCE.min(bdfs.len()))
            .map(|first| {
                // Neighbours go to different readers, since what is stuck is often of one kind.
                let mine = bdfs.iter().skip(first).step_by(AT_ONCE);
                scope.spawn(move || -> Vec<Function> {
                    mine.map(|bdf| Function::read(host, bdf, until)).collect()
                })
            })
            .collect();
        let read = |reader: std::thread::ScopedJoinHandle<'_, Vec<Function>>| {
            reader.join().expect("a reader does not panic")
        };
        readers.into_iter().flat_map(read).collect()
    });
    functions.sort_by(|one, other| one.bdf.cmp(&other.bdf));
    for function in &functions {
        pci_function(function, record)?;
    }
    Ok(())
}

/// A machine need not have a PCI bus, but one that has accelerators or network cards has them there.
fn no_function(task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let on_the_bus = [
        Hardware::NvidiaGpu,
        Hardware::NeuronDevice,
        Hardware::Efa,
        Hardware::RdmaNic,
    ];
    let due = on_the_bus.iter().filter(|one| task.due(**one) > Some(0));
    let due: Vec<&str> = due.map(|one| one.plural()).collect();
    if due.is_empty() {
        return record.note("sysfs shows no PCI function");
    }
    let why = format!(
        "`/sys/bus/pci/devices` shows no function, though the instance type has {}: in a container, mount the machine's /sys",
        due.join(" and ")
    );
    record.gap(&WIDTH_MISSING, Subject::node(), why)
}

fn pci_function(function: &Function, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let bdf = function.bdf.as_str();
    let vendor = function.word("vendor");
    let Some(kind) = function.kind() else {
        // What it is cannot be told from its own files. A function that is gone since the list is none.
        let may_matter = vendor.is_none_or(|vendor| !PciKind::may_be(vendor).is_empty());
        let unread = NAMES.iter().find_map(|name| function.trouble(name));
        let why = unread
            .map(ToString::to_string)
            .or_else(|| function.given_up.clone());
        return match why.filter(|_| may_matter) {
            Some(why) => record.gap(&WIDTH_MISSING, Subject::new(Kind::Pci, bdf), why),
            None => Ok(()),
        };
    };
    let subject = Subject::new(kind, bdf);
    let device = function.word("device").unwrap_or_default().to_owned();
    record.device(
        subject.clone(),
        [("bdf", bdf.to_owned()), ("pci_device", device)],
    )?;
    link_width(function, &subject, record)?;
    for (metric, file) in [
        (&SPEED, "current_link_speed"),
        (&SPEED_MAX, "max_link_speed"),
    ] {
        let speed = function.word(file).and_then(sysfs::pcie_speed);
        let missing = function.trouble(file).map(ToString::to_string);
        match (speed, missing.or_else(|| function.lacks(file))) {
            (Some(speed), _) => record.measure(metric, subject.clone(), speed)?,
            (None, Some(why)) => record.gap(metric, subject.clone(), why)?,
            // `Unknown`, as the link of a virtual function.
            (None, None) => {}
        }
    }
    for (metric, file) in [
        (&AER_FATAL, "aer_dev_fatal"),
        (&AER_NONFATAL, "aer_dev_nonfatal"),
        (&AER_CORRECTABLE, "aer_dev_correctable"),
    ] {
        match (function.files.get(file), &function.given_up) {
            (Some(text), _) => aer(metric, &subject, text.as_deref(), record)?,
            (None, Some(why)) => record.gap(metric, subject.clone(), why.clone())?,
            (None, None) => {}
        }
    }
    Ok(())
}

/// The lanes in use, and those that both ends of the link have beside them. A card in a narrow slot lacks none.
fn link_width(
    function: &Function,
    subject: &Subject,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    // The device above in sysfs is the other end of the link. A virtual machine often shows none.
    let files = ["current_link_width", "max_link_width", "../max_link_width"];
    if let Some(error) = files.iter().find_map(|file| function.trouble(file)) {
        return record.gap(&WIDTH_MISSING, subject.clone(), error.to_string());
    }
    let lacked = ["current_link_width", "max_link_width"];
    if let Some(why) = lacked.iter().find_map(|file| function.lacks(file)) {
        return record.gap(&WIDTH_MISSING, subject.clone(), why);
    }
    let is_cut = files.iter().any(|file| !function.files.contains_key(file));
    if let Some(why) = function.given_up.clone().filter(|_| is_cut) {
        return record.gap(&WIDTH_MISSING, subject.clone(), why);
    }
    let is_number = |file: &&str| {
        function
            .word(file)
            .is_none_or(|text| text.parse::<u64>().is_ok())
    };
    if let Some(file) = files.iter().find(|file| !is_number(file)) {
        let found = function.word(file).unwrap_or_default().escape_default();
        let why = format!("`{file}` holds `{found}`, which is not a number of lanes");
        return record.gap(&WIDTH_MISSING, subject.clone(), why);
    }
    let lanes = |file: &str| sysfs::pcie_width(function.word(file)?);
    let current = function.word("current_link_width").unwrap_or_default();
    let Some(max) = lanes("max_link_width") else {
        return Ok(());
    };
    if sysfs::is_off_the_bus(current) {
        let gone = WIDTH_MISSING
            .of(subject.clone(), max)
            .fault("host.pcie.gone");
        return record
            .add(gone.detail("its registers read as ones alone: it has fallen off the bus"));
    }
    let Some(width) = sysfs::pcie_width(current) else {
        // The link of a virtual function, which many network cards are, always has 0 lanes (PCI Express Base
        // Specification, SR-IOV, Link Status Register).
        let says_nothing = current.is_empty() || subject.kind == Kind::Nic && current == "0";
        if says_nothing {
            return Ok(());
        }
        let why = format!("{current} lanes are in use, it says, and it has {max}");
        return record.gap(&WIDTH_MISSING, subject.clone(), why);
    };
    let max = lanes("../max_link_width").map_or(max, |above| above.min(max));
    record.measure(&WIDTH, subject.clone(), width)?;
    record.measure(&WIDTH_MISSING, subject.clone(), max.saturating_sub(width))
}

/// An AER counter. Virtual functions and most virtual machines have none.
fn aer(
    metric: &Metric,
    subject: &Subject,
    text: Result<&str, &ReadError>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    match text.map(sysfs::aer_total) {
        Ok(Some(count)) => record.measure(metric, subject.clone(), count),
        Ok(None) => record.gap(metric, subject.clone(), "the counter has no total"),
        Err(error) if error.is_absent() => Ok(()),
        Err(error) => record.gap(metric, subject.clone(), error.to_string()),
    }
}

fn kernel_log(host: &Host, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let log = match host.kernel_log() {
        Ok(text) => KernelLog::read(&text),
        Err(error) => {
            let why = match &error {
                ReadError::Unreadable { .. } => {
                    format!("{error}; run dhc as root, or set kernel.dmesg_restrict=0")
                }
                _ => error.to_string(),
            };
            return record.gap(&KERNEL_FAULTS, Subject::node(), why);
        }
    };
    // Each code of a device stands for itself, or a later one of the same class would hide an earlier one.
    let mut seen: BTreeMap<(Subject, &'static str, Option<u32>), Seen> = BTreeMap::new();
    let mut lines = String::new();
    for (event, class) in log.meanings() {
        let key = (subject(event), class, code(event));
        seen.entry(key).or_default().again(event);
        lines.push_str(&line(event));
    }
    let mut faults = 0;
    let mut notices = 0;
    for ((subject, class, code), seen) in seen {
        let metric = match Faults::built_in().action(class) {
            Action::Reset | Action::Reboot | Action::Replace => &KERNEL_FAULTS,
            Action::Investigate | Action::Retry => &KERNEL_WARNINGS,
            Action::None => &KERNEL_NOTICES,
        };
        faults += u64::from(metric.name == KERNEL_FAULTS.name);
        let detail = seen.detail();
        // Nothing judges a notice, so that it would be seen nowhere else.
        if metric.name == KERNEL_NOTICES.name && notices < NOTICES_TOLD {
            notices += 1;
            record.note(format!("{subject}: {detail}"))?;
        }
        let entry = code
            .filter(|_| class == "gpu.application")
            .and_then(xid_entry);
        if entry.is_some_and(|entry| entry.investigation.starts_with("WORKFLOW_XID_")) {
            let repeats = KERNEL_REPEATS.of(subject.clone(), seen.processes.len());
            record.add(repeats.detail(detail.clone()))?;
        }
        record.add(metric.of(subject, seen.count).fault(class).detail(detail))?;
    }
    if !lines.is_empty() {
        record.evidence(evidence("kmsg", &lines))?;
    }
    if faults == 0 {
        record.measure(&KERNEL_FAULTS, Subject::node(), 0_u64)?;
    }
    record.measure(&KERNEL_OVERWRITTEN, Subject::node(), log.overwritten)?;
    if log.overwritten > 0 {
        record.note(format!(
            "the kernel's log no longer holds its first {} records of this boot: what they said is not known (a larger ring, \
             log_buf_len=16M on the kernel's command line, keeps more)",
            log.overwritten
        ))?;
    }
    if log.kinds_lost {
        let why = "the kernel logged more kinds of hardware events than are kept";
        record.gap(&KERNEL_FAULTS, Subject::node(), why)?;
    }
    if log.not_kept > 0 {
        record.note(format!(
            "{} more lines about hardware are in the kernel's log",
            log.not_kept
        ))?;
    }
    record.note(format!(
        "{} lines of the kernel's log were searched",
        log.lines
    ))
}

/// How many notices of the kernel's log are told in words.
const NOTICES_TOLD: usize = 20;

/// How often something stands in the log, and when.
#[derive(Default)]
struct Seen {
    count: u64,
    first_us: Option<u64>,
    last_us: Option<u64>,
    /// The last line, which says the latest state.
    words: String,
    /// The processes that it names. One that fails writes many lines; lines without a name count as one.
    processes: BTreeSet<String>,
}

impl Seen {
    fn again(&mut self, event: &KernelEvent) {
        self.count += 1;
        self.first_us = self.first_us.or(event.at_us);
        self.last_us = event.at_us.or(self.last_us);
        self.words = quotation(event);
        let process = event.quote.split_once("pid=").map(|(_, rest)| rest);
        let process = process.and_then(|rest| rest.split(',').next());
        self.processes
            .insert(process.unwrap_or_default().to_owned());
    }

    fn detail(&self) -> String {
        let seconds = |us: Option<u64>| us.map(|us| us / 1_000_000);
        match (seconds(self.first_us), seconds(self.last_us)) {
            (Some(_), Some(last)) if self.count == 1 => {
                format!("{} ({last} s after the boot)", self.words)
            }
            (Some(first), Some(last)) => {
                format!("{} ({first} to {last} s after the boot)", self.words)
            }
            _ => self.words.clone(),
        }
    }
}

/// An event as `dmesg` prints it.
fn line(event: &KernelEvent) -> String {
    match event.at_us {
        Some(us) => format!(
            "[{:5}.{:06}] {}\n",
            us / 1_000_000,
            us % 1_000_000,
            event.quote
        ),
        None => format!("{}\n", event.quote),
    }
}

/// The driver's number of an event, if it has one.
fn code(event: &KernelEvent) -> Option<u32> {
    match event.what {
        What::Xid { code, .. } | What::Sxid { code, .. } => Some(code),
        _ => None,
    }
}

/// Which device an event is about.
fn subject(event: &KernelEvent) -> Subject {
    match &event.what {
        What::Xid { bdf, .. } | What::OffTheBus { bdf } => Subject::new(Kind::Gpu, bdf.as_str()),
        What::Sxid { bdf, .. } => Subject::new(Kind::Nvswitch, bdf.as_str()),
        What::Neuron { device, core, .. } => match (device, core) {
            (Some(device), Some(core)) => {
                Subject::new(Kind::NeuronCore, format!("neuron{device}/core{core}"))
            }
            (Some(device), None) => Subject::new(Kind::NeuronDevice, format!("neuron{device}")),
            (None, _) => Subject::node(),
        },
        What::Pcie { bdf } => Subject::new(Kind::Pci, bdf.as_str()),
        What::Disk { device } => Subject::new(Kind::Disk, device.as_str()),
        What::HardwareError | What::Corrected | What::BootBefore | What::OutOfMemory => {
            Subject::node()
        }
    }
}

/// The line itself, with NVIDIA's name of an Xid before it.
fn quotation(event: &KernelEvent) -> String {
    match &event.what {
        What::Xid { code, .. } => match xid_entry(*code) {
            Some(entry) => format!(
                "Xid {code} {} ({}): {}",
                entry.mnemonic, entry.about, event.quote
            ),
            None => format!("Xid {code}, not in NVIDIA's catalogue: {}", event.quote),
        },
        _ => event.quote.clone(),
    }
}
