//! `memory-stress`: memory keeps what is written into it, and how fast it is.

mod edac;
mod pattern;
mod triad;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dhc_thresholds::{Kind, Metric, Role, Subject, Unit};

use self::pattern::{Pattern, Wrong};
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::foresight::Cause;
use crate::format::sysfs;
use crate::host::{Host, load};

const WRONG: Metric = Metric {
    name: "memory.stress.wrong",
    unit: Unit::Count,
    about: "words of 64 bits in the memory of one NUMA node that were read otherwise than they had been written",
    role: Role::Required,
    fault: "memory.corrupts",
};
const TESTED: Metric = Metric {
    name: "memory.stress.tested",
    unit: Unit::Mebibytes,
    about: "memory of one NUMA node that was tested",
    role: Role::Context,
    fault: "memory.corrupts",
};
const BANDWIDTH: Metric = Metric {
    name: "memory.stress.bandwidth",
    unit: Unit::GigabytesPerSecond,
    about: "the best triad (a = b + 3 c, 24 bytes an element as STREAM counts) of a NUMA node's CPUs in its own memory",
    role: Role::Context,
    fault: "memory.slow",
};
const LOCKED: Metric = Metric {
    name: "memory.stress.locked",
    unit: Unit::State,
    about: "whether the memory was kept from being swapped out: yes or no",
    role: Role::Context,
    fault: "memory.corrupts",
};
const CORRECTED: Metric = Metric {
    name: "memory.stress.corrected",
    unit: Unit::Count,
    about: "errors that a memory controller corrected during the test (EDAC)",
    role: Role::Judged,
    fault: "memory.corrected",
};
const UNCORRECTED: Metric = Metric {
    name: "memory.stress.uncorrected",
    unit: Unit::Count,
    about: "errors that a memory controller could not correct during the test (EDAC)",
    role: Role::Judged,
    fault: "memory.uncorrected",
};

static SPEC: Spec = Spec {
    name: "memory-stress",
    about: "memory keeps patterns, addresses and random data; its bandwidth by NUMA node; corrected errors meanwhile",
    explain: "\
Takes a share of the memory that is available, on every NUMA node alike, and lets the CPUs of each node write it and
read it back: zeros, ones, both checkered patterns, each word's own address, and random words that differ from pass to
pass. Every pattern is done once at least, and again until the time is over. A word that is read otherwise than it was
written is silent corruption. With ECC the memory controller corrects errors of one bit, so the kernel's counters
(EDAC) are read before and after: errors during the test name the controller and, where it knows, the DIMM. A machine
without such a driver (most virtual ones) says so in a note.

Then STREAM's triad is run on each node ten times, and the best is recorded. Memory is taken only from what the kernel
and the control groups around dhc have to spare, a tenth of it always stays free, and dhc asks to be killed first
should memory run out all the same. Errors in a part that other programs hold are not found, nor can a test of minutes
prove memory sound.

A process that reads a word that is known to be lost dies of signal 7 (SIGBUS). The check then ends as killed, which
accuses nothing by itself; the check `host` finds the kernel's own line about it.",
    metrics: &[
        &WRONG,
        &TESTED,
        &BANDWIDTH,
        &LOCKED,
        &CORRECTED,
        &UNCORRECTED,
    ],
    needs: None,
    tags: &["stress", "long"],
    company: Company::Alone,
    options: &[SECONDS, PERCENT],
};

const SECONDS: OptionSpec = OptionSpec {
    name: "seconds",
    default: "30",
    values: Values::Number(1..=86_400),
    about: "how long patterns are written and read; every pattern is done once in any case",
};

const PERCENT: OptionSpec = OptionSpec {
    name: "percent",
    default: "10",
    values: Values::Number(1..=90),
    about: "percentage of the available memory to take",
};

/// Less says nothing about memory, since it fits into the caches.
const TAKEN_MIN: u64 = 64 << 20;

/// The check.
pub(super) struct MemoryStress;

impl InstanceCheck for MemoryStress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        // The kernel clears every page first, and all patterns are done once: about a second for each hundredth of a
        // node with 2 TB.
        let percent = PERCENT.number_in(options);
        let expected = SECONDS.seconds_in(options) + Duration::from_secs(5 + percent);
        Budget {
            expected,
            deadline: expected * 2 + Duration::from_secs(60),
        }
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::Memory]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let length = Duration::from_secs(task.number(&SPEC, SECONDS.name)?);
        let percent = task.number(&SPEC, PERCENT.name)?;
        let before = edac::read(&task.host);
        load::stand_back();
        let nodes = numa_nodes(&task.host, record)?;
        let mut memory = take(&task.host, nodes, percent, record)?;
        record.progress("memory is written and read back")?;
        patterns(&mut memory, Instant::now() + length, record)?;
        record.progress("the bandwidth of memory is measured")?;
        bandwidth(&mut memory, record)?;
        counters(before, &task.host, record)
    }
}

/// A NUMA node and the CPUs of it that may be used.
struct Node {
    subject: Subject,
    cpus: Vec<usize>,
}

/// The memory of one node that is under test.
struct Memory {
    node: Node,
    words: Vec<u64>,
    /// The place of the first word in the whole memory under test.
    place: u64,
}

/// The NUMA nodes that have CPUs for us; the whole machine is one where the kernel knows none.
fn numa_nodes(host: &Host, record: &mut Recorder<'_>) -> Result<Vec<Node>, CheckError> {
    const NODES: &str = "/sys/devices/system/node";
    let allowed = load::allowed_cpus().map_err(|errno| {
        CheckError::Unavailable(format!(
            "the kernel does not say which CPUs dhc may use: {errno}"
        ))
    })?;
    let names = match host.list(NODES) {
        Err(error) if error.is_absent() => Vec::new(),
        names => names.map_err(|error| CheckError::Unavailable(error.to_string()))?,
    };
    let mut nodes = Vec::new();
    for name in names {
        let Some(number) = name
            .strip_prefix("node")
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let subject = Subject::new(Kind::Memory, format!("numa{number}"));
        let list = host.text(format!("{NODES}/{name}/cpulist"));
        let Some(cpus) = list.ok().and_then(|list| sysfs::list(&list)) else {
            let why = format!("`{NODES}/{name}/cpulist` does not say which CPUs are near it");
            record.gap(&WRONG, subject, why)?;
            continue;
        };
        let usable: Vec<usize> = allowed
            .iter()
            .copied()
            .filter(|cpu| cpus.contains(&(*cpu as u64)))
            .collect();
        match (cpus.is_empty(), usable.is_empty()) {
            // Memory of GPUs and expanders shows as such a node.
            (true, _) => record.note(format!("{subject} has no CPUs, so it was not tested"))?,
            (false, true) => {
                let why = "none of its CPUs may be used by this process (affinity or cpuset); run dhc outside of a job";
                record.gap(&WRONG, subject, why)?;
            }
            (false, false) => nodes.push(Node {
                subject,
                cpus: usable,
            }),
        }
    }
    if nodes.is_empty() {
        nodes.push(Node {
            subject: Subject::new(Kind::Memory, "memory"),
            cpus: allowed,
        });
    }
    Ok(nodes)
}

/// Takes `percent` of what is available, on all nodes alike, and keeps it from being swapped out.
fn take(
    host: &Host,
    nodes: Vec<Node>,
    percent: u64,
    record: &mut Recorder<'_>,
) -> Result<Vec<Memory>, CheckError> {
    let available = host.memory_available().map_err(|error| {
        CheckError::Unavailable(format!("cannot tell how much memory may be taken: {error}"))
    })?;
    let bytes = available / 100 * percent;
    if bytes < TAKEN_MIN {
        return Err(CheckError::Unavailable(format!(
            "{percent} % of the {} MiB that are available are less than {} MiB, which say nothing about memory; end what \
             uses it, or raise --set memory-stress.percent",
            available >> 20,
            TAKEN_MIN >> 20
        )));
    }
    let words = usize::try_from(bytes / 8).unwrap_or(usize::MAX) / nodes.len();
    let mut memory = Vec::new();
    for (number, node) in nodes.into_iter().enumerate() {
        let mut room: Vec<u64> = Vec::new();
        // Only asks whether there is room: pages are given when they are first written to, and near the CPU that does.
        room.try_reserve_exact(words).map_err(|_| {
            CheckError::Unavailable(format!(
                "cannot get {} MiB although {} MiB are available; look at `ulimit -v`",
                bytes >> 20,
                available >> 20
            ))
        })?;
        drop(room);
        record.measure(&TESTED, node.subject.clone(), (words as u64) >> 17)?;
        memory.push(Memory {
            node,
            words: vec![0; words],
            place: (number * words) as u64,
        });
    }
    each_cpu(&mut memory, |_, words, place| {
        Pattern::Address.write(words, place, 0)
    });
    let locked = load::lock_memory();
    record.measure(
        &LOCKED,
        Subject::node(),
        if locked.is_ok() { "yes" } else { "no" },
    )?;
    if let Err(errno) = locked {
        record.note(format!(
            "memory could not be locked ({errno}), so where the node swaps, some of it may have been tested on disk; run \
             dhc as root or raise `ulimit -l`"
        ))?;
    }
    Ok(memory)
}

/// Lets every CPU do `work` on its part of its node's memory: the node's number, the part, and the place of the part.
fn each_cpu(memory: &mut [Memory], work: impl Fn(usize, &mut [u64], u64) + Sync) {
    std::thread::scope(|scope| {
        for (number, memory) in memory.iter_mut().enumerate() {
            let part = memory.words.len().div_ceil(memory.node.cpus.len());
            let places = (memory.place..).step_by(part);
            let parts = memory.words.chunks_mut(part).zip(places);
            for ((words, place), cpu) in parts.zip(&memory.node.cpus) {
                let work = &work;
                scope.spawn(move || {
                    // On another CPU the memory is as good a subject, only farther away.
                    let _ = load::stay_on(*cpu);
                    work(number, words, place);
                });
            }
        }
    });
}

/// Writes and reads all patterns until `end`, and records what is wrong as soon as a CPU finds it.
fn patterns(
    memory: &mut [Memory],
    end: Instant,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let subjects: Vec<Subject> = memory.iter().map(|m| m.node.subject.clone()).collect();
    let (sender, found) = mpsc::channel();
    let wrong_nodes = std::thread::scope(|scope| {
        scope.spawn(move || {
            each_cpu(memory, |node, words, place| {
                let wrong = until(end, words, place);
                // The receiver is gone only where the runner is, and then nobody listens.
                let _ = sender.send((node, wrong));
            });
        });
        let mut wrong_nodes = Vec::new();
        for (node, wrong) in found {
            let Some(first) = wrong.first else {
                continue;
            };
            wrong_nodes.push(node);
            let detail = format!(
                "bits {:#018x} differed, first at word {first} of the memory under test",
                wrong.bits
            );
            record.add(WRONG.of(subjects[node].clone(), wrong.words).detail(detail))?;
        }
        Ok::<_, CheckError>(wrong_nodes)
    })?;
    for (node, subject) in subjects.into_iter().enumerate() {
        if !wrong_nodes.contains(&node) {
            record.measure(&WRONG, subject, 0_u64)?;
        }
    }
    Ok(())
}

/// Writes and reads one part until `end`: every pattern at least once, and no longer than until it is known to be wrong.
fn until(end: Instant, words: &mut [u64], place: u64) -> Wrong {
    let mut wrong = Wrong::default();
    for (pass, pattern) in (0..).zip(Pattern::ALL.into_iter().cycle()) {
        let all_done = pass >= Pattern::ALL.len() as u64;
        if all_done && (Instant::now() >= end || wrong.words > 0) {
            break;
        }
        pattern.write(words, place, pass);
        wrong = wrong.and(pattern.check(std::hint::black_box(words), place, pass));
    }
    wrong
}

fn bandwidth(memory: &mut [Memory], record: &mut Recorder<'_>) -> Result<(), CheckError> {
    for memory in memory {
        let subject = memory.node.subject.clone();
        let triad = triad::best(&mut memory.words, &memory.node.cpus);
        match triad {
            Some(triad) if triad.wrong == 0 => {
                record.measure(&BANDWIDTH, subject, triad.speed.0)?
            }
            Some(triad) => {
                let wrong = WRONG.of(subject, triad.wrong);
                record.add(wrong.detail("elements of STREAM's triad have the wrong value"))?;
            }
            None => record.gap(
                &BANDWIDTH,
                subject,
                "its CPUs could not be started together",
            )?,
        }
    }
    Ok(())
}

/// What the memory controllers have counted meanwhile.
fn counters(
    before: Result<edac::Counts, crate::host::ReadError>,
    host: &Host,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let (before, after) = match (before, edac::read(host)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => {
            return record.gap(&CORRECTED, Subject::node(), error.to_string());
        }
    };
    if after.is_empty() && before.is_empty() {
        return record.note(
            "the kernel has no driver here that counts memory errors (EDAC), as on most virtual machines, so errors that \
             ECC corrected are not known",
        );
    }
    for (name, before) in before {
        let subject = Subject::new(Kind::Memory, name.as_str());
        let grown = match (before, after.get(&name)) {
            (Ok(before), Some(Ok(after))) => after.since(&before).ok_or_else(|| {
                "its counters went back during the test; somebody reset them".to_owned()
            }),
            (Err(error), _) => Err(error.to_string()),
            (_, Some(Err(error))) => Err(error.to_string()),
            (_, None) => Err("its counters were gone after the test".to_owned()),
        };
        match grown {
            Ok(grown) => {
                for (metric, count) in [
                    (&CORRECTED, grown.corrected),
                    (&UNCORRECTED, grown.uncorrected),
                ] {
                    let counted = metric.of(subject.clone(), count);
                    record.add(match grown.dimms().as_str() {
                        "" => counted,
                        dimms if count > 0 => counted.detail(dimms),
                        _ => counted,
                    })?;
                }
            }
            Err(why) => record.gap(&CORRECTED, subject, why)?,
        }
    }
    Ok(())
}
