//! Stress of the machine that the tests run on, by the built program, with faults put in from outside while it works: into
//! the memory of its process, into the file that it has open, and into the counters of a simulated machine.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and change the world around it"
)]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Dhc, Outcome, outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Status};

const CPU: &[&str] = &["--check", "cpu-stress", "--set", "cpu-stress.seconds=1"];

const MEMORY: &[&str] = &[
    "--check",
    "memory-stress",
    "--set",
    "memory-stress.seconds=1",
    "--set",
    "memory-stress.percent=1",
];

/// The CPUs that this process may use, as a list of the kernel's.
fn cpus() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap().trim().to_owned()
}

/// A node that has the CPUs of this machine in one NUMA node, memory controllers, and 7 GiB of available memory, so that
/// tests need not take more than a hundredth of it.
fn node() -> FakeNode {
    FakeNode::of("dgx-h100")
        .file("/sys/devices/system/cpu/online", cpus())
        .without("/sys/devices/system/node/node1")
        .file("/sys/devices/system/node/node0/cpulist", cpus())
        .file(
            "/proc/meminfo",
            "MemTotal: 8388608 kB\nMemAvailable: 7340032 kB\n",
        )
}

/// A directory on a disk; the machine's own one for temporary files may be in memory.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn disk(directories: &str) -> Vec<String> {
    let set = ["seconds=1", "mib=8"].map(|option| format!("disk-stress.{option}"));
    let directories = format!("disk-stress.directories={directories}");
    let mut args = vec!["--check".to_owned(), "disk-stress".to_owned()];
    for option in set.into_iter().chain([directories]) {
        args.extend(["--set".to_owned(), option]);
    }
    args
}

fn run(dhc: &Dhc, args: &[impl AsRef<str>]) -> Outcome {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    dhc.run(&args)
}

/// The faults that fail: class and subject.
fn faults(outcome: &Outcome, check: &str) -> Vec<(String, String)> {
    let failing = outcome.findings(check, Status::Fail);
    let mut faults: Vec<(String, String)> = failing
        .into_iter()
        .map(|finding| {
            let fault = finding.fault.clone().unwrap_or_default();
            (fault, finding.subject.name.clone())
        })
        .collect();
    faults.sort();
    faults.dedup();
    faults
}

#[track_caller]
fn assert_gap(outcome: &Outcome, check: &str, words: &str) {
    let gaps = &outcome.check(check).record.gaps;
    assert!(gaps.iter().any(|gap| gap.why.contains(words)), "{gaps:?}");
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None))
    );
}

/// A run that is under way.
struct Running(Child);

impl Running {
    fn start(dhc: &Dhc, args: &[impl AsRef<str>]) -> Running {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let mut command = dhc.command("run", &args);
        let command = command.args(["--format", "json"]);
        Running(
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    /// The process of the check, as soon as `is_ready` finds in its folder of `/proc` what it looks for.
    fn process<T>(&mut self, is_ready: impl Fn(&Path) -> Option<T>) -> (PathBuf, T) {
        let parent = format!("PPid:\t{}", self.0.id());
        while self.0.try_wait().unwrap().is_none() {
            for process in std::fs::read_dir("/proc").unwrap() {
                let process = process.unwrap().path();
                let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
                if !status.lines().any(|line| line == parent) {
                    continue;
                }
                if let Some(found) = is_ready(&process) {
                    return (process, found);
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the run ended before the check was ready");
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    fn outcome(self) -> Outcome {
        outcome(self.0.wait_with_output().unwrap())
    }
}

/// How many KiB a line of `/proc/PID/status` says.
fn kib(process: &Path, line: &str) -> u64 {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let number = status.lines().find_map(|found| found.strip_prefix(line));
    let number = number.and_then(|number| number.trim().strip_suffix(" kB")?.parse().ok());
    number.unwrap_or(0)
}

/// The check has taken its memory, all of it.
fn has_memory(process: &Path) -> Option<()> {
    (kib(process, "VmRSS:") > 60 << 10).then_some(())
}

/// The file that the check works on.
fn open_file(process: &Path) -> Option<PathBuf> {
    let open = std::fs::read_dir(process.join("fd")).ok()?;
    let mut open = open.filter_map(|file| Some(file.ok()?.path()));
    open.find(|file| {
        let target = std::fs::read_link(file).unwrap_or_default();
        let target = target.to_string_lossy();
        target.starts_with(env!("CARGO_TARGET_TMPDIR")) && target.ends_with(" (deleted)")
    })
}

/// Where the largest piece of memory of a process begins and ends.
fn largest_memory(process: &Path) -> (u64, u64) {
    let maps = std::fs::read_to_string(process.join("maps")).unwrap();
    let pieces = maps
        .lines()
        .filter(|line| line.contains(" rw-p "))
        .map(|line| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(from), number(to))
        });
    pieces.max_by_key(|(from, to)| to - from).unwrap()
}

#[test]
fn sound_hardware_is_not_accused() {
    let folder = on_disk();
    let dhc = Dhc::on(node());
    let all = [CPU, MEMORY].concat();
    let all = all.into_iter().map(str::to_owned);
    let all: Vec<String> = all.chain(disk(folder.path().to_str().unwrap())).collect();
    let outcome = run(&dhc, &all);
    // How fast the machine is while it runs other tests is not for this one to say.
    let mut complaints = outcome.complaints();
    complaints.retain(|(_, _, fault, _)| !["cpu.slow", "disk.slow"].contains(&fault.as_str()));
    assert_eq!(complaints, []);
    for (check, metric) in [
        ("cpu-stress", "cpu.stress.wrong"),
        ("memory-stress", "memory.stress.wrong"),
        ("memory-stress", "memory.stress.corrected"),
        ("disk-stress", "disk.stress.wrong"),
        ("disk-stress", "disk.stress.errors"),
    ] {
        let passed = outcome.findings(check, Status::Pass);
        assert!(
            passed.iter().any(|finding| finding.metric == metric),
            "{metric}"
        );
    }
    let record = |check| &outcome.check(check).record;
    let exercised = &record("cpu-stress").notes[0];
    assert!(
        exercised.starts_with("exercised: integer, divider, floating point, AES"),
        "{exercised}"
    );
    for metric in ["memory.stress.bandwidth", "memory.stress.tested"] {
        let measured = &record("memory-stress").measurements;
        assert!(
            measured.iter().any(|found| found.metric == metric),
            "{metric}"
        );
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_plain_run_leaves_stress_out_and_says_how_to_ask_for_it() {
    let dhc = Dhc::on(FakeNode::plain());
    let outcome = dhc.run(&["--skip", "network"]);
    let stress = ["cpu-stress", "memory-stress", "disk-stress"];
    for check in stress {
        match &outcome.check(check).record.ending {
            Ending::Skipped { reason, .. } => assert!(reason.contains("--tag stress"), "{reason}"),
            other => panic!("{check}: {other:?}"),
        }
    }
    assert_ne!(outcome.check("host").status, Status::Skip);
    // They are `long` as well, and who asks for that has not asked for stress.
    let outcome = dhc.run(&["--tag", "long"]);
    for check in stress {
        assert_eq!(outcome.check(check).status, Status::Skip, "{check}");
    }
}

#[test]
fn memory_that_changes_under_the_test_is_corrupt() {
    let dhc = Dhc::on(node());
    let mut running = Running::start(&dhc, MEMORY);
    let (process, ()) = running.process(has_memory);
    let (from, to) = largest_memory(&process);
    let memory = OpenOptions::new()
        .write(true)
        .open(process.join("mem"))
        .unwrap();
    // One bit pattern that is none of the test's, over and over, so that it is there when the test reads.
    while !running.is_over() {
        let _ = memory.write_all_at(&0x1234_5678_u64.to_le_bytes(), (from + to) / 2 / 8 * 8);
    }
    let outcome = running.outcome();
    assert_eq!(
        faults(&outcome, "memory-stress"),
        [("memory.corrupts".into(), "numa0".into())]
    );
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (2, (Status::Fail, Action::Replace))
    );
}

#[test]
fn errors_that_a_controller_counts_meanwhile_name_it_and_its_dimm() {
    let node = node();
    // What was counted before the test is nobody's business now.
    node.memory_errors(0, 0, 90, 2);
    node.memory_errors(3, 1, 5, 0);
    let dhc = Dhc::on(node);
    let mut running = Running::start(&dhc, MEMORY);
    running.process(has_memory);
    dhc.node.memory_errors(1, 0, 0, 1);
    dhc.node.memory_errors(3, 1, 7, 0);
    let outcome = running.outcome();
    assert_eq!(
        faults(&outcome, "memory-stress"),
        [("memory.uncorrected".into(), "mc1".into())]
    );
    let watched = outcome.findings("memory-stress", Status::Warn);
    let watched: Vec<_> = watched
        .iter()
        .map(|finding| (finding.subject.name.as_str(), finding.value.clone()))
        .collect();
    assert_eq!(watched, [("mc3", Some(2_u64.into()))]);
    let measured = &outcome.check("memory-stress").record.measurements;
    let corrected = measured
        .iter()
        .find(|found| found.metric == "memory.stress.corrected" && found.subject.name == "mc3");
    let dimm = corrected.unwrap().detail.clone().unwrap();
    assert!(
        dimm.contains("dimm1 (CPU_SrcID#0_MC#3_Chan#1_DIMM#0): 2"),
        "{dimm}"
    );
}

#[test]
fn counters_that_cannot_be_read_or_were_reset_are_unknown() {
    let unreadable = node().unreadable("/sys/devices/system/edac/mc/mc2/ce_count");
    let outcome = run(&Dhc::on(unreadable), MEMORY);
    assert_gap(&outcome, "memory-stress", "mc2/ce_count");
    let node = node();
    node.memory_errors(0, 0, 90, 2);
    let dhc = Dhc::on(node);
    let mut running = Running::start(&dhc, MEMORY);
    running.process(has_memory);
    dhc.node.memory_errors(0, 0, 1, 0);
    assert_gap(&running.outcome(), "memory-stress", "reset them");
}

#[test]
fn a_machine_without_counters_says_so_and_is_not_blamed() {
    let node = node().without("/sys/devices/system/edac");
    let outcome = run(&Dhc::on(node), MEMORY);
    assert_eq!(outcome.verdict(), (Status::Pass, Action::None));
    let notes = &outcome.check("memory-stress").record.notes;
    assert!(notes.iter().any(|note| note.contains("EDAC")), "{notes:?}");
}

#[test]
fn every_numa_node_is_measured_and_one_whose_cpus_may_not_be_used_is_unknown() {
    const NODES: &str = "/sys/devices/system/node";
    let far = node().file(&format!("{NODES}/node1/cpulist"), "4000-4095\n");
    // Memory of GPUs shows as a node without CPUs.
    let far = far.file(&format!("{NODES}/node2/cpulist"), "\n");
    let outcome = run(&Dhc::on(far), MEMORY);
    assert_gap(&outcome, "memory-stress", "none of its CPUs may be used");
    let record = &outcome.check("memory-stress").record;
    assert_eq!(record.gaps[0].subject.name, "numa1");
    assert!(
        record
            .notes
            .iter()
            .any(|note| note.contains("numa2 has no CPUs")),
        "{record:?}"
    );
    let two = node().file(&format!("{NODES}/node1/cpulist"), cpus());
    let outcome = run(&Dhc::on(two), MEMORY);
    let measured = &outcome.check("memory-stress").record.measurements;
    for metric in ["memory.stress.wrong", "memory.stress.bandwidth"] {
        let nodes = measured.iter().filter(|found| found.metric == metric);
        let nodes: Vec<&str> = nodes.map(|found| found.subject.name.as_str()).collect();
        assert_eq!(nodes, ["numa0", "numa1"], "{metric}");
    }
}

#[test]
fn where_memory_is_short_none_is_taken() {
    let short = node().file(
        "/proc/meminfo",
        "MemTotal: 99999999 kB\nMemAvailable: 1000000 kB\n",
    );
    let outcome = run(&Dhc::on(short), MEMORY);
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (4, (Status::Error, Action::Retry))
    );
    let error = format!("{:?}", outcome.check("memory-stress").record.ending);
    assert!(
        error.contains("1 % of the 976 MiB that are available"),
        "{error}"
    );
    let garbage = node().file("/proc/meminfo", "MemTotal: lots\n");
    assert_eq!(run(&Dhc::on(garbage), MEMORY).verdict().0, Status::Error);
}

#[test]
fn cpus_that_may_not_be_used_are_unknown_and_the_others_measured() {
    let outcome = run(
        &Dhc::on(node().file("/sys/devices/system/cpu/online", "0-4095\n")),
        CPU,
    );
    assert_gap(&outcome, "cpu-stress", "may not be used by this process");
    let measured = &outcome.check("cpu-stress").record.measurements;
    assert!(
        measured
            .iter()
            .any(|found| found.metric == "cpu.stress.wrong")
    );
}

#[test]
fn a_file_that_changes_under_the_test_is_corrupt() {
    let folder = on_disk();
    let dhc = Dhc::on(FakeNode::plain());
    let path = folder.path().to_str().unwrap();
    let mut args = disk(path);
    args.extend(["--set".to_owned(), "disk-stress.seconds=3".to_owned()]);
    let mut running = Running::start(&dhc, &args);
    let (_, file) = running.process(open_file);
    let file = OpenOptions::new().write(true).open(file).unwrap();
    // The first page, which is written and read in every pass, however slow the machine is.
    while !running.is_over() {
        let _ = file.write_all_at(&[0xEE; 4096], 0);
    }
    let outcome = running.outcome();
    assert_eq!(
        faults(&outcome, "disk-stress"),
        [("disk.corrupts".into(), path.into())]
    );
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (2, (Status::Fail, Action::Replace))
    );
}

#[test]
fn directories_without_a_disk_or_room_are_unknown_and_nothing_is_left_in_them() {
    let dhc = Dhc::on(FakeNode::plain());
    assert_gap(&run(&dhc, &disk("/dev/shm")), "disk-stress", "is in memory");
    assert_gap(
        &run(&dhc, &disk("/no/such/folder")),
        "disk-stress",
        "does not exist",
    );
    let folder = on_disk();
    let mut full = disk(folder.path().to_str().unwrap());
    full.extend(["--set".to_owned(), "disk-stress.mib=1048576".to_owned()]);
    assert_gap(&run(&dhc, &full), "disk-stress", "of its file system free");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // One that cannot be tested does not keep another one from it.
    let both = format!("/dev/shm:{}", folder.path().display());
    let outcome = run(&dhc, &disk(&both));
    assert_gap(&outcome, "disk-stress", "is in memory");
    let read = &outcome.check("disk-stress").record.measurements;
    assert!(
        read.iter()
            .any(|found| found.metric == "disk.stress.read_bandwidth")
    );
}

/// How to tell from a process's folder of `/proc` that its check is under way.
type IsReady = fn(&Path) -> Option<()>;

/// Stress for an hour, by each check, in this directory.
fn for_an_hour(folder: &Path) -> [(Vec<String>, IsReady); 3] {
    let hour = |args: &[&str], check: &str| -> Vec<String> {
        let hour = format!("{check}.seconds=3600");
        let args = args.iter().copied().chain(["--set", &hour]);
        args.map(str::to_owned).collect()
    };
    let mut disk = disk(folder.to_str().unwrap());
    disk.extend(hour(&[], "disk-stress"));
    [
        (hour(CPU, "cpu-stress"), |process| {
            let threads = std::fs::read_dir(process.join("task")).ok()?.count();
            (threads > 1).then_some(())
        }),
        (hour(MEMORY, "memory-stress"), has_memory),
        (disk, |process| open_file(process).map(drop)),
    ]
}

#[track_caller]
fn assert_gone(process: &Path) {
    // A process that was killed and not yet waited for has no memory and no files either.
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    assert!(
        status.is_empty() || status.contains("State:\tZ"),
        "{status}"
    );
}

#[test]
fn sigterm_in_the_middle_leaves_no_process_and_no_file() {
    let folder = on_disk();
    for (args, is_ready) in for_an_hour(folder.path()) {
        let dhc = Dhc::on(node());
        let mut running = Running::start(&dhc, &args);
        let (process, ()) = running.process(is_ready);
        let run = running.0.id().to_string();
        assert!(Command::new("kill").arg(&run).status().unwrap().success());
        let outcome = running.outcome();
        assert_eq!(outcome.report.nodes[0].status, Status::Unknown, "{args:?}");
        assert!(!outcome.report.complete);
        assert_gone(&process);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_deadline_in_the_middle_leaves_no_process_and_no_file() {
    let folder = on_disk();
    std::thread::scope(|scope| {
        for (mut args, is_ready) in for_an_hour(folder.path()) {
            scope.spawn(move || {
                args.extend(["--deadline".to_owned(), "5s".to_owned()]);
                let dhc = Dhc::on(node());
                let mut running = Running::start(&dhc, &args);
                let (process, ()) = running.process(is_ready);
                let outcome = running.outcome();
                let error = (4, (Status::Error, Action::Retry));
                assert_eq!((outcome.exit, outcome.verdict()), error, "{args:?}");
                assert_gone(&process);
            });
        }
    });
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_check_that_is_killed_leaves_no_file() {
    let folder = on_disk();
    let [.., (args, _)] = for_an_hour(folder.path());
    let dhc = Dhc::on(FakeNode::plain());
    let mut running = Running::start(&dhc, &args);
    let (process, _file) = running.process(open_file);
    let check = process.file_name().unwrap();
    assert!(
        Command::new("kill")
            .arg("-9")
            .arg(check)
            .status()
            .unwrap()
            .success()
    );
    let outcome = running.outcome();
    assert_eq!(
        outcome.check("disk-stress").record.ending,
        Ending::Killed { signal: 9 }
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_check_that_loads_the_machine_stands_back_behind_everything_else() {
    let dhc = Dhc::on(node());
    let mut running = Running::start(&dhc, MEMORY);
    let (process, ()) = running.process(has_memory);
    let killed_first = std::fs::read_to_string(process.join("oom_score_adj")).unwrap();
    assert_eq!(killed_first, "1000\n");
    let threads = std::fs::read_dir(process.join("task")).unwrap();
    let nice: Vec<String> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok())
        .filter_map(|stat| {
            Some(
                stat.rsplit(')')
                    .next()?
                    .split_whitespace()
                    .nth(16)?
                    .to_owned(),
            )
        })
        .collect();
    assert!(
        nice.iter().filter(|nice| *nice == "19").count() >= 1,
        "{nice:?}"
    );
    drop(running.outcome());
}

#[test]
fn a_budget_is_kept_and_what_is_left_out_for_it_is_named() {
    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    let outcome = dhc.run(&["--budget", "8s"]);
    let checks = &outcome.report.nodes[0].checks;
    let left_out = |name: &str| match &outcome.check(name).record.ending {
        Ending::Skipped { reason, .. } => reason.clone(),
        other => format!("{other:?}"),
    };
    for check in ["gpu-count", "nvlink", "gpu-memory", "host"] {
        assert_ne!(
            outcome.check(check).status,
            Status::Skip,
            "{check}: {}",
            left_out(check)
        );
    }
    for check in ["dcgm-diag", "cpu-stress", "memory-stress", "efa-loopback"] {
        let reason = left_out(check);
        assert!(
            reason.starts_with("left out to keep within the budget of 8s: it takes about "),
            "{reason}"
        );
    }
    let order: Vec<&str> = checks.iter().map(|check| check.check.as_str()).collect();
    let (host, dcgm) = (
        order.iter().position(|c| *c == "host"),
        order.iter().position(|c| *c == "dcgm-diag"),
    );
    assert!(host < dcgm, "{order:?}");
}

#[test]
fn a_budget_shortens_what_has_no_room_and_says_so() {
    let dhc = Dhc::on(FakeNode::plain());
    let outcome = dhc.run(&["--check", "disk-stress", "--budget", "4s"]);
    let disk = &outcome.check("disk-stress").record;
    assert_eq!(disk.ending, Ending::Finished);
    let told = "shortened to keep within the budget of 4s: disk-stress.seconds is 2 in place of 10";
    assert!(disk.notes.iter().any(|note| note == told), "{disk:?}");
    assert!(!disk.measurements.is_empty());
}

#[test]
fn a_budget_without_room_for_anything_is_never_a_pass() {
    let outcome = Dhc::on(FakeNode::plain()).run(&["--budget", "1ms"]);
    assert_ne!(outcome.exit, 0);
    assert_ne!(outcome.verdict().0, Status::Pass);
}

#[test]
fn a_budget_of_the_cluster_level_is_wrong_usage() {
    let dhc = Dhc::on(FakeNode::plain());
    let mut command = dhc.command("run", &["--level", "cluster", "--budget", "10m"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("--budget") && said.contains("--run-deadline"),
        "{said}"
    );
    assert!(File::open(dhc.state()).is_err(), "nothing was begun");
}
