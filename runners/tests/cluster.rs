//! The cluster level on a real Slurm and Open MPI cluster of eight hosts (`fixtures/cluster`), with faults of real links,
//! processes and hosts.
//!
//! Eight hosts share the cores of one machine, so no figure here says anything of dhc's accuracy; a slowed host has a tenth
//! of what the others reach, or less. Needs root, or sudo without a password.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, FLOOR, SLOW, SLURM};
use common::gpus::one_gpu;
use dhc_fixtures::GpuLibraries;
use dhc_thresholds::{
    Action, FaultReport, GroupReport, LocatedReport, NodeReport, Report, SearchReport, Status,
};

const HOSTS: usize = 8;

impl Cluster {
    fn up() -> Cluster {
        Cluster::up_as("", 0)
    }

    /// A cluster whose hosts hang on so many leaf switches.
    fn up_under(leaves: usize) -> Cluster {
        Cluster::up_as("", leaves)
    }

    /// A cluster with this line in `slurm.conf`. No leaves stand for one switch that Slurm knows nothing of.
    fn up_as(slurm: &str, leaves: usize) -> Cluster {
        let cluster = Cluster::unbooted();
        std::fs::write(cluster.path("floor.toml"), FLOOR).unwrap();
        cluster.boot(HOSTS, leaves, &format!("{SLURM}\n{slurm}"));
        cluster
    }

    /// A cluster whose hosts have a GPU each: the fake CUDA and NCCL, whose ranks talk over the hosts' real links. Also
    /// returns what makes dhc look at those.
    fn up_with_gpus() -> (Cluster, Vec<String>) {
        let cluster = Cluster::up();
        let floor = one_gpu(0.02, "twice what a link of 100 Mbit/s carries");
        std::fs::write(cluster.path("floor.toml"), floor).unwrap();
        let fakes = GpuLibraries::in_folder(cluster.folder.path(), 1).network("socket");
        let mut args = vec!["--check".to_owned(), "nccl-allreduce".to_owned()];
        for setting in [
            format!("libnccl={}", fakes.nccl().display()),
            format!("libcuda={}", fakes.cuda().display()),
            "max-bytes=1048576".to_owned(),
            "quick-bytes=1048576".to_owned(),
        ] {
            args.extend(["--set".to_owned(), format!("nccl-allreduce.{setting}")]);
        }
        (cluster, args)
    }

    /// `dhc run --level cluster` on all hosts, with these arguments.
    fn dhc(&self, args: &[&str]) -> Command {
        let nodes = HOSTS.to_string();
        self.dhc_through(&[], &[&["--nodes", &nodes], args].concat())
    }

    /// `dhc run --level cluster`, started through another program.
    fn dhc_through(&self, other: &[&str], args: &[&str]) -> Command {
        let dhc = env!("CARGO_BIN_EXE_dhc");
        common::rank();
        let state = self.path("state");
        let floor = self.path("floor.toml");
        let mut all = vec!["exec", "ctl"];
        all.extend(other);
        all.extend([dhc, "run", "--level", "cluster"]);
        all.extend([
            "--format",
            "json",
            "--set",
            "mpi-allreduce.max-bytes=1048576",
        ]);
        all.extend(["--set", "mpi-allreduce.quick-bytes=1048576", "--seed", "1"]);
        all.extend([
            "--state",
            state.to_str().unwrap(),
            "--thresholds",
            floor.to_str().unwrap(),
        ]);
        all.extend(args);
        self.command(&all)
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let begun = Instant::now();
        outcome(self.dhc(args).output().unwrap(), begun)
    }

    /// A run with an `srun` that is Slurm's, and after the first collective does this before dhc hears of its end. `$job` is
    /// the allocation.
    fn run_and_after_the_first_collective(&self, does: &str) -> Outcome {
        let tools = self.path("tools");
        std::fs::create_dir(&tools).unwrap();
        let script = format!(
            r#"#!/bin/sh
            case "$*" in *all_reduce*) mkdir '{0}/first' 2>/dev/null || exec /usr/bin/srun "$@" ;; *) exec /usr/bin/srun "$@" ;; esac
            for word; do case "$word" in --jobid=*) job=${{word#*=}} ;; esac; done
            /usr/bin/srun "$@"
            status=$?
            # A start of MPI that failed is tried again, and is no collective.
            [ $status = 0 ] || {{ rmdir '{0}/first'; exit $status; }}
            cd '{0}' && {{ {does}
            }} >&2
            exit $status"#,
            tools.display()
        );
        std::fs::write(tools.join("srun"), script).unwrap();
        let all = Permissions::from_mode(0o755);
        std::fs::set_permissions(tools.join("srun"), all).unwrap();
        let tools = tools.display().to_string();
        self.run(&["--tools", &tools, "--tools", "/usr/bin", "--tools", "/bin"])
    }

    /// Starts a run and waits until the collective over all hosts is under way.
    fn begin(&self, args: &[&str]) -> (Child, Instant) {
        self.wait_until_under_way(self.dhc(args))
    }

    fn wait_until_under_way(&self, mut dhc: Command) -> (Child, Instant) {
        let begun = Instant::now();
        let child = dhc
            .args(["--set", "mpi-allreduce.size-ms=1500"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let under_way = || {
            self.command(["exec", "h8", "pgrep", "-f", "all_reduce"])
                .output()
                .unwrap()
        };
        while !under_way().status.success() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "no collective began"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        // MPI's start is over, and the first sizes are measured.
        std::thread::sleep(Duration::from_secs(3));
        (child, begun)
    }

    /// Slurm has no step and no job left, and has taken no host out of service.
    #[track_caller]
    fn assert_clean(&self) {
        let limit = Instant::now() + Duration::from_secs(90);
        loop {
            let left = self.tool(&["exec", "ctl", "squeue", "--noheader"]);
            let steps = self.tool(&["exec", "ctl", "squeue", "--noheader", "--steps"]);
            if left.trim().is_empty() && steps.trim().is_empty() {
                break;
            }
            assert!(Instant::now() < limit, "left in Slurm: {left}{steps}");
            std::thread::sleep(Duration::from_millis(200));
        }
        self.assert_nobody_drained();
    }

    #[track_caller]
    fn assert_nobody_drained(&self) {
        let drained = self.tool(&[
            "exec",
            "ctl",
            "sinfo",
            "--noheader",
            "--states=drain",
            "--format=%N %E",
        ]);
        assert_eq!(drained.trim(), "", "hosts taken out of service");
    }

    fn journal(&self) -> PathBuf {
        let runs = std::fs::read_dir(self.path("state").join("runs")).unwrap();
        let newest = runs.map(|run| run.unwrap().path()).max().unwrap();
        newest.join("journal.jsonl")
    }
}

struct Outcome {
    exit: i32,
    report: Report,
    took: Duration,
}

#[track_caller]
fn outcome(output: Output, begun: Instant) -> Outcome {
    let took = begun.elapsed();
    let report =
        Report::parse(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    Outcome {
        exit: output.status.code().unwrap(),
        report,
        took,
    }
}

impl Outcome {
    /// Nodes with this status.
    fn nodes(&self, status: Status) -> Vec<&str> {
        let nodes = self
            .report
            .nodes
            .iter()
            .filter(|node| node.status == status);
        nodes.map(|node| node.name.as_str()).collect()
    }

    fn node(&self, name: &str) -> &NodeReport {
        self.report
            .nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap()
    }

    fn search(&self) -> &SearchReport {
        &self.report.cluster.as_ref().unwrap().searches[0]
    }

    /// What was located, which is one thing of this class.
    #[track_caller]
    fn only_located(&self, class: &str) -> &LocatedReport {
        match self.search().located.as_slice() {
            [located] if located.class == class => located,
            _ => panic!("located is not one {class}: {}", self.story()),
        }
    }

    fn groups(&self) -> impl Iterator<Item = &GroupReport> {
        self.search().waves.iter().flat_map(|wave| &wave.groups)
    }

    /// What a failed assertion shows.
    fn story(&self) -> String {
        let search = self
            .report
            .cluster
            .as_ref()
            .and_then(|cluster| cluster.searches.first());
        let nodes: Vec<_> = self
            .report
            .nodes
            .iter()
            .map(|node| (&node.name, node.status))
            .collect();
        format!(
            "exit {}, {:?}, {nodes:?}, {search:#?}",
            self.exit, self.took
        )
    }

    #[track_caller]
    fn assert_only(&self, bad: &[&str], fault: &str, action: Action) {
        assert_eq!(self.nodes(Status::Fail), bad, "{}", self.story());
        for name in bad {
            let node = self.node(name);
            assert_eq!(node.action, action, "{}", self.story());
            assert_eq!(node.faults[0].class, fault, "{}", self.story());
        }
        assert_eq!(self.exit, 2, "{}", self.story());
    }
}

#[test]
fn ten_healthy_runs_accuse_nobody() {
    let cluster = Cluster::up();
    for _ in 0..10 {
        let outcome = cluster.run(&[]);
        assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
        assert_eq!(
            outcome.nodes(Status::Unknown),
            NOBODY,
            "{}",
            outcome.story()
        );
        assert!(outcome.report.complete);
        assert_eq!(
            outcome.search().conclusion,
            "all_good",
            "{}",
            outcome.story()
        );
    }
    cluster.assert_clean();
}

const NOBODY: [&str; 0] = [];

#[test]
fn a_slowed_host_is_named_and_the_rest_is_shown_to_be_fast_without_it() {
    let cluster = Cluster::up();
    cluster.tool(&["slow", "h3", SLOW]);
    let outcome = cluster.run(&[]);
    outcome.assert_only(&["h3"], "cluster.node.slow", Action::Reboot);
    assert_eq!(outcome.search().conclusion, "nodes");
    let closing = outcome
        .groups()
        .filter(|group| group.purpose == "closing")
        .last()
        .unwrap();
    assert_eq!(closing.outcome, "passed", "{}", outcome.story());
    // By itself it is as fast as the others, so the cause is between it and the network.
    let located = outcome.only_located("node");
    let alone = located.tests.iter().find(|test| test.purpose == "alone");
    let alone = alone.unwrap_or_else(|| panic!("{}", outcome.story()));
    assert!(
        alone.passed >= 2 && alone.failed == 0,
        "{}",
        outcome.story()
    );
    assert!(!closing.nodes.contains(&"h3".to_owned()));
    assert!(
        outcome.nodes(Status::Pass).len() >= 6,
        "{}",
        outcome.story()
    );
    cluster.assert_clean();
}

/// What a link passes that is slow even as one of two.
const VERY_SLOW: &str = "20mbit";

#[test]
fn a_slowed_card_of_one_host_is_named_with_its_host() {
    let cluster = Cluster::up();
    cluster.tool(&["slow", "h3", VERY_SLOW, "eth1"]);
    let outcome = cluster.run(&["--rails", "eth0,eth1"]);
    outcome.assert_only(&["h3"], "cluster.nic.slow", Action::Reboot);
    let card = |fault: &FaultReport| fault.finding.subject.name == "eth1";
    assert!(
        outcome.node("h3").faults.iter().any(card),
        "{}",
        outcome.story()
    );
    let located = outcome.only_located("nic");
    assert_eq!(
        (located.nodes.as_slice(), located.rails.as_slice()),
        (["h3".to_owned()].as_slice(), ["eth1".to_owned()].as_slice())
    );
    let on = |rail: &str| {
        let tests = located.tests.iter();
        tests
            .clone()
            .find(|test| test.rail.as_deref() == Some(rail))
            .unwrap()
    };
    assert!(
        on("eth1").failed >= 3 && on("eth1").passed == 0,
        "{located:?}"
    );
    assert!(
        on("eth0").failed == 0 && on("eth0").passed >= 1,
        "{located:?}"
    );
    cluster.assert_clean();
}

#[test]
fn a_rail_that_is_slow_for_all_accuses_no_host() {
    let cluster = Cluster::up();
    for host in 1..=HOSTS {
        cluster.tool(&["slow", &format!("h{host}"), VERY_SLOW, "eth1"]);
    }
    let outcome = cluster.run(&["--rails", "eth0,eth1"]);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(outcome.search().conclusion, "rails", "{}", outcome.story());
    let located = outcome.only_located("rail");
    assert_eq!(located.rails, ["eth1"], "{located:?}");
    assert_eq!(located.nodes, NOBODY, "{located:?}");
    assert_eq!(outcome.exit, 2, "{}", outcome.story());
    cluster.assert_clean();
}

#[test]
fn a_slow_uplink_of_a_leaf_accuses_no_host() {
    let cluster = Cluster::up_under(4);
    cluster.tool(&["slow-leaf", "leaf2", VERY_SLOW]);
    let outcome = cluster.run(&[]);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(outcome.search().conclusion, "leaves", "{}", outcome.story());
    let located = outcome.only_located("leaf");
    assert_eq!(located.leaves, ["leaf2"], "{located:?}");
    assert_eq!(located.nodes, ["h3", "h4"], "who is under it: {located:?}");
    assert_eq!(outcome.exit, 2, "{}", outcome.story());
    cluster.assert_clean();
}

#[test]
fn two_slowed_hosts_are_both_named() {
    let cluster = Cluster::up();
    cluster.tool(&["slow", "h2", SLOW]);
    cluster.tool(&["slow", "h7", SLOW]);
    cluster
        .run(&[])
        .assert_only(&["h2", "h7"], "cluster.node.slow", Action::Reboot);
    cluster.assert_clean();
}

#[test]
fn a_slow_path_between_good_hosts_accuses_neither() {
    let cluster = Cluster::up();
    // Neighbours in a ring, and partners of a recursive doubling: whatever MPI does, these two talk to one another.
    cluster.tool(&["slow-path", "h3", "h4", "20mbit"]);
    let outcome = cluster.run(&[]);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(outcome.search().conclusion, "paths", "{}", outcome.story());
    let pair = ("h3".to_owned(), "h4".to_owned());
    assert_eq!(outcome.search().paths, [pair], "{}", outcome.story());
    cluster.assert_clean();
}

#[test]
fn nobody_is_accused_where_all_hosts_are_slow_alike() {
    let cluster = Cluster::up();
    for host in 1..=HOSTS {
        cluster.tool(&["slow", &format!("h{host}"), SLOW]);
    }
    let outcome = cluster.run(&[]);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(
        outcome.search().conclusion,
        "all_alike",
        "{}",
        outcome.story()
    );
    assert_eq!(
        outcome.exit,
        2,
        "the cluster as a whole is too slow: {}",
        outcome.story()
    );
    let whole = &outcome.report.cluster.as_ref().unwrap().checks[0];
    let finding = whole
        .findings
        .iter()
        .find(|finding| finding.status == Status::Fail)
        .unwrap();
    assert_eq!(finding.fault.as_deref(), Some("cluster.slow"));
    assert_eq!(finding.action, Action::Investigate);
    cluster.assert_clean();
}

/// The name is told, the run goes on without losing anything, and a host that works again is not accused.
#[track_caller]
fn assert_interrupted(outcome: &Outcome, host: &str, word: &str) {
    let named = outcome.groups().find(|group| !group.named.is_empty());
    let named = named.unwrap_or_else(|| panic!("nobody is named: {}", outcome.story()));
    assert_eq!(named.named, [host], "{}", outcome.story());
    let error = named.error.as_deref().unwrap_or_default();
    assert!(error.contains(&format!("{host} {word}")), "{error}");
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(
        outcome.node(host).status,
        Status::Warn,
        "{}",
        outcome.story()
    );
    assert_eq!(
        outcome.search().conclusion,
        "all_good",
        "{}",
        outcome.story()
    );
    // The whole sweep may take 60 s, a wave after it 20 s.
    assert!(
        outcome.took < Duration::from_secs(120),
        "{}",
        outcome.story()
    );
}

#[test]
fn a_killed_rank_costs_one_group_and_its_host_is_named() {
    let cluster = Cluster::up();
    let (child, begun) = cluster.begin(&[]);
    cluster.tool(&["exec", "h3", "pkill", "-KILL", "-f", "all_reduce"]);
    let outcome = outcome(child.wait_with_output().unwrap(), begun);
    assert_interrupted(&outcome, "h3", "died (Killed)");
    cluster.assert_clean();
}

#[test]
fn a_stopped_rank_is_found_by_its_silence() {
    let cluster = Cluster::up();
    let (child, begun) = cluster.begin(&[]);
    cluster.tool(&["exec", "h6", "pkill", "-STOP", "-f", "all_reduce"]);
    let outcome = outcome(child.wait_with_output().unwrap(), begun);
    assert_interrupted(&outcome, "h6", "silent");
    cluster.assert_clean();
}

#[test]
fn a_host_that_is_cut_off_in_mid_collective_is_named() {
    let cluster = Cluster::up();
    let (child, begun) = cluster.begin(&[]);
    cluster.tool(&["cut", "h5"]);
    let outcome = outcome(child.wait_with_output().unwrap(), begun);
    outcome.assert_only(&["h5"], "cluster.node.unresponsive", Action::Reboot);
    assert_eq!(
        outcome.nodes(Status::Pass).len(),
        HOSTS - 1,
        "{}",
        outcome.story()
    );
    assert!(
        outcome.took < Duration::from_secs(180),
        "{}",
        outcome.story()
    );
    cluster.assert_clean();
}

#[test]
fn a_host_that_slurm_calls_down_before_the_next_wave_is_named_in_slurm_s_words() {
    // A host that answers and that somebody has set down stays down.
    let cluster = Cluster::up_as("ReturnToService=1", 0);
    let outcome = cluster.run_and_after_the_first_collective(
        "scontrol update nodename=h5 state=down reason='power supply'",
    );
    outcome.assert_only(&["h5"], "cluster.node.unresponsive", Action::Reboot);
    assert_eq!(
        outcome.nodes(Status::Pass).len(),
        HOSTS - 1,
        "{}",
        outcome.story()
    );
    let groups: Vec<&GroupReport> = outcome.groups().collect();
    assert_eq!(groups[0].outcome, "passed", "{}", outcome.story());
    let with_it = groups[1..]
        .iter()
        .filter(|group| group.nodes.contains(&"h5".to_owned()));
    let with_it: Vec<&&GroupReport> = with_it.collect();
    // Slurm's word is enough: nobody else has to be tried with it.
    let [refused] = with_it.as_slice() else {
        panic!("{}", outcome.story());
    };
    assert_eq!(refused.named, ["h5"]);
    let closings = groups.iter().filter(|group| group.purpose == "closing");
    assert_eq!(closings.count(), 1, "{}", outcome.story());
    let words = "Slurm calls h5 `down` (power supply)";
    let error = refused.error.as_deref().unwrap();
    assert!(error.contains(words), "{error}");
    let message = &outcome.node("h5").faults[0].finding.message;
    assert!(message.contains(words), "{message}");
    cluster.assert_clean();
}

#[test]
fn a_host_that_somebody_drains_and_takes_away_meanwhile_is_not_known_and_not_accused() {
    let cluster = Cluster::up();
    let outcome = cluster.run_and_after_the_first_collective(
        "scontrol update nodename=h5 state=drain reason=fans
         scontrol update jobid=$job nodelist='h[1-4,6-8]'",
    );
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(
        outcome.nodes(Status::Unknown),
        ["h5"],
        "{}",
        outcome.story()
    );
    assert_eq!(
        outcome.nodes(Status::Pass).len(),
        HOSTS - 1,
        "{}",
        outcome.story()
    );
    assert_eq!(
        outcome.search().conclusion,
        "all_good",
        "{}",
        outcome.story()
    );
    let finding = &outcome.node("h5").checks[1].findings[0].message;
    assert!(
        finding.contains("h5 is no longer in the allocation, and Slurm calls it `drained` (fans)"),
        "{finding}"
    );
    assert_eq!(outcome.exit, 3);
}

#[test]
fn a_host_that_somebody_only_drains_is_measured_like_the_others() {
    let cluster = Cluster::up();
    let outcome = cluster
        .run_and_after_the_first_collective("scontrol update nodename=h5 state=drain reason=fans");
    assert_eq!(
        outcome.nodes(Status::Pass).len(),
        HOSTS,
        "{}",
        outcome.story()
    );
}

#[test]
fn an_allocation_that_is_taken_away_in_mid_collective_accuses_nobody() {
    let cluster = Cluster::up();
    let (child, begun) = cluster.begin(&[]);
    cluster.tool(&["exec", "ctl", "scancel", "--user=root"]);
    let outcome = outcome(child.wait_with_output().unwrap(), begun);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(
        outcome.nodes(Status::Unknown).len(),
        HOSTS,
        "{}",
        outcome.story()
    );
    assert!(
        outcome.groups().all(|group| group.named.is_empty()),
        "{}",
        outcome.story()
    );
    let sentence = &outcome.search().sentence;
    assert!(sentence.contains("has ended (C"), "{sentence}");
    let finding = &outcome.node("h1").checks[1].findings[0].message;
    assert!(
        finding.contains("nothing can be started on its nodes any more"),
        "{finding}"
    );
    assert_eq!(outcome.exit, 4, "{}", outcome.story());
    cluster.assert_clean();
}

#[test]
fn a_host_without_power_never_enters_a_collective() {
    let cluster = Cluster::up();
    cluster.tool(&["kill", "h4"]);
    let outcome = cluster.run(&[]);
    outcome.assert_only(&["h4"], "cluster.node.absent", Action::Reboot);
    assert!(
        outcome
            .groups()
            .all(|group| !group.nodes.contains(&"h4".to_owned()))
    );
    assert_eq!(
        outcome.nodes(Status::Pass).len(),
        HOSTS - 1,
        "{}",
        outcome.story()
    );
    cluster.tool(&["heal", "h4"]);
    cluster.assert_clean();
}

#[test]
fn a_host_without_the_worker_is_not_known_and_not_accused() {
    let cluster = Cluster::up();
    let worker = Path::new(env!("CARGO_BIN_EXE_dhc")).with_file_name("dhc-rank");
    cluster.tool(&["hide", "h2", worker.to_str().unwrap()]);
    let outcome = cluster.run(&[]);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(
        outcome.nodes(Status::Unknown),
        ["h2"],
        "{}",
        outcome.story()
    );
    let findings = &outcome.node("h2").checks[0].findings;
    assert!(
        findings[0].message.contains("No such file or directory"),
        "{findings:?}"
    );
    assert_eq!(outcome.exit, 3);
    cluster.assert_clean();
}

#[test]
fn sigterm_leaves_a_partial_result_and_no_step() {
    let cluster = Cluster::up();
    let (child, begun) = cluster.begin(&[]);
    let told = Instant::now();
    cluster.tool(&["exec", "ctl", "pkill", "-TERM", "-x", "dhc"]);
    let outcome = outcome(child.wait_with_output().unwrap(), begun);
    assert!(
        told.elapsed() < Duration::from_secs(5),
        "{:?}",
        told.elapsed()
    );
    assert!(!outcome.report.complete);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert_eq!(outcome.exit, 3, "{}", outcome.story());
    cluster.assert_clean();
}

#[test]
fn sigkill_leaves_a_journal_and_nothing_in_slurm() {
    let cluster = Cluster::up();
    let (mut child, _) = cluster.begin(&[]);
    cluster.tool(&["exec", "ctl", "pkill", "-KILL", "-x", "dhc"]);
    child.wait().unwrap();
    let judged = cluster
        .command(["exec", "ctl", env!("CARGO_BIN_EXE_dhc"), "judge"])
        .arg(cluster.journal())
        .arg("--thresholds")
        .arg(cluster.path("floor.toml"))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&judged.stdout).contains("INCOMPLETE"),
        "{judged:?}"
    );
    // The time limit of the allocation is an hour.
    cluster.assert_clean();
}

#[test]
fn steps_of_a_dhc_that_was_killed_in_a_users_allocation_end_by_themselves() {
    let cluster = Cluster::up();
    let nodes = HOSTS.to_string();
    cluster.tool(&["exec", "ctl", "salloc", "--no-shell", "--nodes", &nodes]);
    let id = cluster.tool(&["exec", "ctl", "squeue", "--noheader", "--format=%i"]);
    let in_it = format!("SLURM_JOB_ID={}", id.trim());
    let (mut child, _) =
        cluster.wait_until_under_way(cluster.dhc_through(&["env", &in_it], &["--deadline", "12s"]));
    cluster.tool(&["exec", "ctl", "pkill", "-KILL", "-x", "dhc"]);
    child.wait().unwrap();
    // The group's deadline, ten seconds, and Slurm's own leisure.
    let limit = Instant::now() + Duration::from_secs(40);
    let steps = [
        "exec",
        "ctl",
        "squeue",
        "--noheader",
        "--steps",
        "--format=%j",
    ];
    while cluster.tool(&steps).lines().any(|step| step == "dhc-rank") {
        assert!(Instant::now() < limit, "a step is left");
        std::thread::sleep(Duration::from_millis(500));
    }
    let left = cluster.tool(&["exec", "ctl", "squeue", "--noheader", "--format=%i"]);
    assert_eq!(left, id, "the user's allocation is the user's");
}

#[test]
fn sigkill_while_waiting_for_nodes_leaves_nothing_in_the_queue() {
    let cluster = Cluster::up();
    cluster.tool(&["exec", "ctl", "salloc", "--no-shell", "--nodes=1"]);
    let queue = || cluster.tool(&["exec", "ctl", "squeue", "--noheader", "--format=%j"]);
    let of_others = queue();
    let mut child = cluster
        .dhc(&["--wait-for-nodes", "100s"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    while queue() == of_others {
        assert!(Instant::now() < limit, "dhc never asked");
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.tool(&["exec", "ctl", "pkill", "-KILL", "-x", "dhc"]);
    child.wait().unwrap();
    let limit = Instant::now() + Duration::from_secs(20);
    while queue() != of_others {
        assert!(Instant::now() < limit, "left: {}", queue());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_controller_that_goes_away_costs_no_host_the_verdict() {
    let cluster = Cluster::up();
    let (child, begun) = cluster.begin(&[]);
    cluster.tool(&["stop-ctld"]);
    let outcome = outcome(child.wait_with_output().unwrap(), begun);
    assert_eq!(outcome.nodes(Status::Fail), NOBODY, "{}", outcome.story());
    assert!(!outcome.search().waves.is_empty(), "{}", outcome.story());
    cluster.tool(&["start-ctld"]);
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn gpus_of_sound_hosts_are_good_together() {
    let (cluster, args) = Cluster::up_with_gpus();
    let outcome = cluster.run(&words(&args));
    assert_eq!(
        outcome.search().conclusion,
        "all_good",
        "{}",
        outcome.story()
    );
    assert_eq!(
        outcome.nodes(Status::Pass).len(),
        HOSTS,
        "{}",
        outcome.story()
    );
    let record = &outcome.report.cluster.as_ref().unwrap().checks[0].record;
    assert_eq!(record.devices.len(), HOSTS, "{record:?}");
    let networks = record.measurements.iter();
    let networks = networks.filter(|one| one.metric == "nccl.allreduce.network");
    assert_eq!(networks.count(), HOSTS);
    cluster.assert_clean();
}

#[test]
fn a_host_whose_gpu_is_reached_over_a_slow_link_is_named() {
    let (cluster, args) = Cluster::up_with_gpus();
    cluster.tool(&["slow", "h3", SLOW]);
    cluster
        .run(&words(&args))
        .assert_only(&["h3"], "cluster.node.slow", Action::Reboot);
    cluster.assert_clean();
}

#[test]
fn a_killed_rank_with_a_gpu_costs_one_group_and_its_host_is_named() {
    let (cluster, mut args) = Cluster::up_with_gpus();
    args.extend(["--set", "nccl-allreduce.size-ms=1500"].map(str::to_owned));
    let (child, begun) = cluster.begin(&words(&args));
    cluster.tool(&["exec", "h5", "pkill", "-KILL", "-f", "all_reduce"]);
    let outcome = outcome(child.wait_with_output().unwrap(), begun);
    assert_interrupted(&outcome, "h5", "died (Killed)");
    cluster.assert_clean();
}
