//! `--level all` on a real Slurm and Open MPI cluster of four hosts (`fixtures/cluster`): every host is checked alone, and
//! only those that are sound or merely unknown enter a collective. Needs root, or sudo without a password.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, SLURM};
use common::{Outcome, outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Ending, NodeReport, Report, Status};

const HOSTS: usize = 4;

/// What no sound group of this cluster stays below, on nodes of eight GPUs.
const FLOOR: &str = r#"schema = "dhc.thresholds/1"
instance_type = "namespace-cluster"
extends = "p5.48xlarge"

[[limit]]
metric = "mpi.allreduce.plateau"
unit = "GB/s"
fail_below = 0.002
source = "a tenth of what a link of 100 Mbit/s carries"
"#;

impl Cluster {
    fn up() -> Cluster {
        let cluster = Cluster::unbooted();
        std::fs::write(cluster.path("floor.toml"), FLOOR).unwrap();
        cluster.boot(HOSTS, 0, SLURM);
        cluster
    }

    /// A simulated machine that all hosts can see, below this name.
    fn machine(&self, name: &str, node: &FakeNode) {
        let folder = self.path(name);
        std::fs::create_dir(&folder).unwrap();
        let nvml = node.nvml().parent().unwrap().to_owned();
        for (from, to) in [(node.root(), "root"), (nvml, "nvml")] {
            let mut copy = Command::new("cp");
            let copied = copy.arg("-a").arg(from).arg(folder.join(to)).status();
            assert!(copied.unwrap().success(), "{name}/{to}");
        }
    }

    /// `dhc run --level all` on all hosts, with these arguments.
    fn dhc(&self, args: &[&str]) -> Command {
        let dhc = env!("CARGO_BIN_EXE_dhc");
        let state = self.path("state");
        let nodes = HOSTS.to_string();
        let mut all = vec![
            "exec", "ctl", dhc, "run", "--level", "all", "--nodes", &nodes,
        ];
        all.extend([
            "--format",
            "json",
            "--seed",
            "1",
            "--state",
            state.to_str().unwrap(),
        ]);
        all.extend(["--set", "mpi-allreduce.max-bytes=65536"]);
        all.extend(["--set", "mpi-allreduce.quick-bytes=262144"]);
        all.extend(["--set", "mpi-allreduce.size-ms=50"]);
        all.extend(args);
        self.command(&all)
    }

    fn run(&self, args: &[&str]) -> Outcome {
        outcome(self.dhc(args).output().unwrap())
    }

    /// Starts a run, and waits until a host is checked alone.
    fn begin(&self, args: &[&str]) -> Child {
        let mut command = self.dhc(args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        let under_way = || {
            self.command(["exec", "h3", "pgrep", "-f", "part-of"])
                .output()
        };
        while !under_way().unwrap().status.success() {
            assert!(Instant::now() < limit, "no instance level began");
            std::thread::sleep(Duration::from_millis(50));
        }
        child
    }

    /// Slurm has no step and no job left, and nothing of dhc runs on any host.
    #[track_caller]
    fn assert_clean(&self) {
        let limit = Instant::now() + Duration::from_secs(30);
        let left = || {
            let jobs = self.tool(&["exec", "ctl", "squeue", "--noheader"]);
            let steps = self.tool(&["exec", "ctl", "squeue", "--noheader", "--steps"]);
            let processes = (1..=HOSTS).map(|host| {
                let host = format!("h{host}");
                let found = self
                    .command(["exec", &host, "pgrep", "-af", "part-of"])
                    .output();
                String::from_utf8_lossy(&found.unwrap().stdout).into_owned()
            });
            jobs + &steps + &processes.collect::<String>()
        };
        while !left().trim().is_empty() {
            assert!(Instant::now() < limit, "left behind: {}", left());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Outcome {
    fn node(&self, name: &str) -> &NodeReport {
        let mut nodes = self.report.nodes.iter();
        nodes.find(|node| node.name == name).unwrap()
    }

    /// Check and status of all checks of a node.
    fn checks(&self, name: &str) -> Vec<(&str, Status)> {
        let checks = self.node(name).checks.iter();
        let run = checks.filter(|check| {
            let cluster_node = check.check == "cluster-node";
            cluster_node || check.status != Status::Skip
        });
        run.map(|check| (check.check.as_str(), check.status))
            .collect()
    }

    #[track_caller]
    fn assert_never_entered(&self, name: &str) {
        let searches = &self.report.cluster.as_ref().unwrap().searches;
        let groups = searches.iter().flat_map(|search| &search.waves);
        let groups = groups.flat_map(|wave| &wave.groups);
        let nodes: Vec<&String> = groups.flat_map(|group| &group.nodes).collect();
        assert!(!nodes.is_empty(), "nothing was measured: {}", self.story());
        assert!(!nodes.iter().any(|node| *node == name), "{}", self.story());
    }

    /// What a failed assertion shows.
    fn story(&self) -> String {
        let nodes: Vec<_> = self
            .report
            .nodes
            .iter()
            .map(|node| (&node.name, self.checks(&node.name)))
            .collect();
        let searches = self
            .report
            .cluster
            .as_ref()
            .map(|cluster| &cluster.searches);
        format!("exit {}, {nodes:#?}, {searches:#?}", self.exit)
    }
}

/// The three hosts besides h3 were checked and measured, and nothing is held against them.
#[track_caller]
fn assert_the_others_are_well(outcome: &Outcome, check: &str) {
    for name in ["h1", "h2", "h4"] {
        assert!(
            outcome.node(name).status < Status::Error,
            "{}",
            outcome.story()
        );
        let checks = outcome.checks(name);
        assert_eq!(checks.first(), Some(&("roll-call", Status::Pass)));
        assert_eq!(checks[1].0, check, "{}", outcome.story());
        assert_eq!(
            checks.last(),
            Some(&("cluster-node", Status::Pass)),
            "{}",
            outcome.story()
        );
    }
}

#[test]
fn every_host_is_checked_alone_and_then_all_are_measured_together() {
    let cluster = Cluster::up();
    let outcome = cluster.run(&[
        "--skip",
        "long,cpu-training",
        "--set",
        "fabric-loopback.provider=tcp",
    ]);
    assert_eq!(outcome.report.run.level, "all");
    assert!(outcome.report.complete, "{}", outcome.story());
    for host in ["h1", "h2", "h3", "h4"] {
        let checks: Vec<&str> = outcome.checks(host).iter().map(|(name, _)| *name).collect();
        for check in ["roll-call", "fabric-loopback", "host", "cluster-node"] {
            assert!(checks.contains(&check), "{check}: {}", outcome.story());
        }
        // The type of this machine has no table, and that alone keeps no host out.
        assert!(
            outcome.node(host).status < Status::Error,
            "{}",
            outcome.story()
        );
        assert!(outcome.node(host).identity.kernel.is_some());
    }
    let search = &outcome.report.cluster.as_ref().unwrap().searches[0];
    assert_eq!(search.waves[0].groups[0].nodes.len(), HOSTS);
    let wave = &search.waves[0];
    assert!(
        wave.collective_ms
            .is_some_and(|time| time <= wave.duration_ms)
    );
    // Each host keeps its own result; here all of them in one folder.
    let results = std::fs::read_dir(cluster.path("state").join("runs")).unwrap();
    let levels = results.map(|run| {
        let text = std::fs::read(run.unwrap().path().join("result.json")).unwrap();
        Report::parse(&text).unwrap().run.level
    });
    let levels: Vec<String> = levels.collect();
    let alone = levels.iter().filter(|level| *level == "instance").count();
    assert_eq!((levels.len(), alone), (HOSTS + 1, HOSTS));
    cluster.assert_clean();
}

#[test]
fn a_host_that_fails_alone_is_named_with_its_fault_and_never_enters_a_collective() {
    let cluster = Cluster::up();
    cluster.machine("machine", &FakeNode::p5_48xlarge());
    cluster.machine("faulty", &FakeNode::of("p5.48xlarge-link-down"));
    let path = |name: &str| cluster.path(name).to_str().unwrap().to_owned();
    let (machine, faulty) = (path("machine"), path("faulty"));
    cluster.tool(&["exec", "h3", "mount", "--bind", &faulty, &machine]);
    let outcome = cluster.run(&[
        "--check",
        "nvlink,mpi-allreduce",
        "--root",
        &path("machine/root"),
        "--nvml",
        &path("machine/nvml/libnvidia-ml.so.1"),
        "--thresholds",
        &path("floor.toml"),
    ]);
    assert_eq!(outcome.exit, 2, "{}", outcome.story());
    let node = outcome.node("h3");
    assert_eq!(node.status, Status::Fail);
    assert_eq!(node.faults[0].class, "nvlink.link_down");
    assert_eq!(node.faults[0].check, "nvlink");
    let checks = outcome.checks("h3");
    assert_eq!(checks.last(), Some(&("cluster-node", Status::Skip)));
    outcome.assert_never_entered("h3");
    assert_the_others_are_well(&outcome, "nvlink");
    cluster.assert_clean();
}

#[test]
fn a_host_without_dhc_is_an_error_and_no_accusation() {
    let cluster = Cluster::up();
    cluster.tool(&["hide", "h3", env!("CARGO_BIN_EXE_dhc")]);
    let outcome = cluster.run(&["--check", "host,mpi-allreduce"]);
    assert_eq!(outcome.exit, 4, "{}", outcome.story());
    assert_eq!(outcome.node("h3").status, Status::Error);
    let why = &outcome.node("h3").checks[1].findings[0].message;
    assert!(why.contains("No such file or directory"), "{why}");
    outcome.assert_never_entered("h3");
    assert_the_others_are_well(&outcome, "host");
    cluster.assert_clean();
}

#[test]
fn a_host_whose_checks_hang_does_not_hold_up_the_others() {
    let cluster = Cluster::up();
    let child = cluster.begin(&[
        "--check",
        "fabric-loopback,mpi-allreduce",
        "--set",
        "fabric-loopback.provider=tcp",
    ]);
    cluster.tool(&["exec", "h3", "pkill", "-STOP", "-f", "part-of"]);
    let outcome = outcome(child.wait_with_output().unwrap());
    assert_eq!(outcome.exit, 4, "{}", outcome.story());
    assert_eq!(outcome.node("h3").status, Status::Error);
    let why = &outcome.node("h3").checks[1].findings[0].message;
    assert!(why.contains("no sign of life"), "{why}");
    outcome.assert_never_entered("h3");
    assert_the_others_are_well(&outcome, "fabric-loopback");
    cluster.assert_clean();
}

#[test]
fn sigterm_while_hosts_are_checked_alone_leaves_a_partial_result_and_no_step() {
    let cluster = Cluster::up();
    let child = cluster.begin(&["--check", "fabric-loopback,mpi-allreduce"]);
    let told = Instant::now();
    cluster.tool(&["exec", "ctl", "pkill", "-TERM", "-x", "dhc"]);
    let outcome = outcome(child.wait_with_output().unwrap());
    assert!(
        told.elapsed() < Duration::from_secs(5),
        "{:?}",
        told.elapsed()
    );
    assert!(!outcome.report.complete);
    assert_eq!(outcome.exit, 3, "{}", outcome.story());
    let endings = outcome
        .report
        .nodes
        .iter()
        .map(|node| &node.checks[1].record.ending);
    assert!(
        endings
            .into_iter()
            .all(|ending| *ending == Ending::Interrupted)
    );
    cluster.assert_clean();
}
