//! Recovery and reservations on a real slurmctld (`fixtures/cluster`): four hosts, whose results are those of simulated
//! machines of the same names, and runs of the cluster level over two or four of them.
//!
//! Needs root, or sudo without a password.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, FLOOR, SLOW, SLURM};
use common::{Dhc, enforced_policy};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Report, Status};
use serde_json::Value;

const DHC: &str = env!("CARGO_BIN_EXE_dhc");

impl Cluster {
    fn up() -> Cluster {
        let cluster = Cluster::unbooted();
        cluster.boot(4, 0, SLURM);
        cluster
    }

    /// What `scontrol show node` has for a key, to the end of its line.
    #[track_caller]
    fn node(&self, node: &str, key: &str) -> Option<String> {
        let text = self.slurm(&["scontrol", "show", "node", node]);
        let value = |line: &str| Some(line.trim().strip_prefix(key)?.strip_prefix('=')?.to_owned());
        text.lines().find_map(value)
    }

    /// State, reason with its author and time, and comment, as the controller has them.
    #[track_caller]
    fn mark(&self, node: &str) -> (String, Option<String>, Option<String>) {
        let state = self.node(node, "State").unwrap();
        let state = state.split(' ').next().unwrap().to_owned();
        (state, self.node(node, "Reason"), self.node(node, "Comment"))
    }

    /// Name and nodes of the reservations.
    fn reservations(&self) -> Vec<(String, String)> {
        let text = self.slurm(&["scontrol", "show", "reservation", "--oneliner"]);
        let word = |line: &str, key: &str| {
            let found = line.split(' ').find_map(|word| word.strip_prefix(key));
            found.map(str::to_owned)
        };
        text.lines()
            .filter_map(|line| Some((word(line, "ReservationName=")?, word(line, "Nodes=")?)))
            .collect()
    }

    /// Waits until this holds.
    #[track_caller]
    fn wait_for(&self, what: &str, limit: Duration, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// A policy that is meant.
    fn policy(&self, built_in: &str) -> PathBuf {
        let path = self.path(&format!("{built_in}.toml"));
        std::fs::write(&path, enforced_policy(built_in)).unwrap();
        path
    }

    /// What dhc finds on a machine of this name and boot.
    fn result(&self, machine: &str, name: &str, boot: &str) -> PathBuf {
        let outcome = Dhc::on(named(machine, name, boot)).run(&["--check", "gpu-count,nvlink"]);
        let path = self.path(&format!("{name}-{boot}.json"));
        std::fs::write(&path, serde_json::to_vec(&outcome.report).unwrap()).unwrap();
        path
    }

    /// `dhc recover` on the head node.
    fn recover(&self, what: &str, policy: &Path, results: &[&Path]) -> Output {
        let mut command = self.command(["exec", "ctl", DHC, "recover", what, "--format", "json"]);
        command.arg("--policy").arg(policy);
        command.arg("--history").arg(self.path("history.sqlite"));
        command.arg("--log").arg(self.path("recover.log"));
        command.args(results).output().unwrap()
    }

    /// What became of each node.
    #[track_caller]
    fn apply(&self, policy: &Path, results: &[&Path]) -> (i32, Vec<String>) {
        let output = self.recover("apply", policy, results);
        let applied: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let nodes = applied["nodes"].as_array().unwrap().iter();
        let word = |done: &Value, key: &str| done[key].as_str().unwrap().to_owned();
        let outcomes =
            nodes.map(|done| format!("{} {}", word(done, "node"), word(done, "outcome")));
        (output.status.code().unwrap(), outcomes.collect())
    }

    /// `dhc recover verify` on a host that is this machine after its reboot.
    fn verify(&self, host: &str, machine: &FakeNode, policy: &Path, result: &Path) -> Output {
        // The tree lies in /dev/shm, which is each host's own.
        let root = self.path(&format!(
            "root-{}",
            machine.root().file_name().unwrap().display()
        ));
        let mut copy = Command::new("cp");
        copy.arg("--archive").arg(machine.root()).arg(&root);
        assert!(copy.status().unwrap().success());
        let mut command = self.command(["exec", host, DHC, "recover", "verify"]);
        command.arg("--policy").arg(policy);
        command.arg("--history").arg(self.path("history.sqlite"));
        command.arg("--state").arg(self.path("state"));
        command.arg("--root").arg(&root);
        command.arg("--nvml").arg(machine.nvml());
        command.arg("--tools").arg(machine.tools());
        command.args(["--tools", "/usr/bin"]);
        command.arg(result).output().unwrap()
    }

    /// What was done to a node, oldest first.
    fn history(&self, node: &str) -> Vec<String> {
        let mut command = Command::new(DHC);
        command.args(["history", node, "--format", "json", "--history"]);
        let output = command.arg(self.path("history.sqlite")).output().unwrap();
        let events: Value = serde_json::from_slice(&output.stdout).unwrap();
        let events = events.as_array().unwrap().iter();
        let mut kinds: Vec<String> = events
            .filter(|event| event["what"] != "seen")
            .map(|event| {
                format!(
                    "{} {}",
                    event["what"].as_str().unwrap(),
                    event["action"].as_str().unwrap()
                )
            })
            .collect();
        kinds.dedup();
        kinds
    }

    /// `dhc run --level cluster` on the head node with these arguments.
    fn dhc_run(&self, args: &[&str]) -> Command {
        self.dhc_run_at("cluster", FLOOR, args)
    }

    fn dhc_run_at(&self, level: &str, table: &str, args: &[&str]) -> Command {
        common::rank();
        let floor = self.path("floor.toml");
        std::fs::write(&floor, table).unwrap();
        let mut command = self.command(["exec", "ctl", DHC, "run", "--level", level]);
        command
            .args(["--format", "json", "--seed", "1", "--state"])
            .arg(self.path("state"));
        command.arg("--thresholds").arg(floor);
        command.args(["--set", "mpi-allreduce.max-bytes=1048576"]);
        command.args(["--set", "mpi-allreduce.quick-bytes=1048576"]);
        command.args(args);
        command
    }

    /// Starts a run with its nodes reserved, waits until they are, and tells the reservation's name and nodes.
    #[track_caller]
    fn begin_reserved(&self, args: &[&str]) -> (Child, String, String) {
        let child = self
            .dhc_run(&["--reserve"])
            // Long enough to have something happen meanwhile.
            .args(["--set", "mpi-allreduce.size-ms=3000"])
            .args(["--set", "mpi-allreduce.max-bytes=67108864"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let limit = Duration::from_secs(30);
        self.wait_for("a reservation", limit, || !self.reservations().is_empty());
        let (name, nodes) = self.reservations().remove(0);
        assert!(name.starts_with("dhc-"), "{name}");
        (child, name, nodes)
    }

    /// Slurm may have to hear of the host first.
    #[track_caller]
    fn assert_takes_jobs(&self, host: &str) {
        self.wait_for("a job", Duration::from_secs(20), || self.takes_jobs(host));
    }

    /// Whether Slurm starts a job of somebody's on this host now.
    fn takes_jobs(&self, host: &str) -> bool {
        let job = [
            "exec",
            "ctl",
            "srun",
            "--immediate=2",
            "--nodelist",
            host,
            "true",
        ];
        self.command(job).output().unwrap().status.success()
    }
}

/// A simulated machine under this name.
fn named(machine: &str, name: &str, boot: &str) -> FakeNode {
    FakeNode::of(machine)
        .file("/proc/sys/kernel/hostname", format!("{name}\n"))
        .file("/proc/sys/kernel/random/boot_id", format!("{boot}\n"))
        .file("/sys/class/dmi/id/board_asset_tag", format!("i-0{name}\n"))
}

#[track_caller]
fn report(output: &Output) -> Report {
    Report::parse(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

const LOST: &str = "p5.48xlarge-gpu-lost";
const LINK_DOWN: &str = "p5.48xlarge-link-down";
const SOUND: &str = "p5.48xlarge";

#[test]
fn a_reboot_and_a_replacement_are_asked_for_letter_by_letter_and_once() {
    let cluster = Cluster::up();
    let policy = cluster.policy("hyperpod");
    let results = [
        cluster.result(LOST, "h1", "b1"),
        cluster.result(LINK_DOWN, "h2", "b1"),
        cluster.result(SOUND, "h3", "b1"),
    ];
    let results = results.each_ref().map(PathBuf::as_path);
    let done = cluster.apply(&policy, &results);
    assert_eq!(done, (0, vec!["h1 done".to_owned(), "h2 done".to_owned()]));
    let (reboot, replace) = (cluster.mark("h1"), cluster.mark("h2"));
    for ((state, reason, comment), words) in
        [(&reboot, "Action:Reboot"), (&replace, "Action:Replace")]
    {
        assert_eq!(state, "IDLE+FAIL");
        // `Reason=Action:Reboot [root@2026-11-24T20:47:43]`: who and when is Slurm's, the rest is the reason.
        let reason = reason.as_deref().unwrap();
        assert_eq!(reason.split(" [root@").next(), Some(words), "{reason}");
        let comment = comment.as_deref().unwrap();
        let begins =
            comment.starts_with("dhc run ") && comment.contains(&format!(": {words} since "));
        assert!(begins, "{comment}");
    }
    assert!(
        replace
            .2
            .as_deref()
            .unwrap()
            .contains("since nvlink.link_down: "),
        "{replace:?}"
    );
    let listed = cluster.slurm(&["sinfo", "--noheader", "--list-reasons", "--format=%E|%N"]);
    assert_eq!(listed, "Action:Reboot|h1\nAction:Replace|h2\n");
    let untouched = ("IDLE".to_owned(), None, None);
    assert_eq!(cluster.mark("h3"), untouched);
    // Once more: nothing is done, not even the same again, which would move the time in Slurm's reason.
    std::thread::sleep(Duration::from_millis(1100));
    let again = vec!["h1 held".to_owned(), "h2 held".to_owned()];
    assert_eq!(cluster.apply(&policy, &results), (0, again));
    assert_eq!((cluster.mark("h1"), cluster.mark("h2")), (reboot, replace));
    assert_eq!(cluster.history("h1"), ["begun reboot", "done reboot"]);
    assert_eq!(cluster.history("h2"), ["begun replace", "done replace"]);
}

#[test]
fn a_drained_node_finishes_its_job_and_comes_back_when_it_passes_again() {
    let cluster = Cluster::up();
    let policy = cluster.policy("default");
    let lost = cluster.result(LOST, "h1", "b1");
    let mut job = cluster
        .command(["exec", "ctl", "srun", "--nodelist=h1", "sleep", "4"])
        .spawn()
        .unwrap();
    cluster.wait_for("the job", Duration::from_secs(10), || {
        cluster.node("h1", "State").unwrap().starts_with("MIXED")
    });
    assert_eq!(
        cluster.apply(&policy, &[&lost]),
        (0, vec!["h1 done".to_owned()])
    );
    let (state, reason, comment) = cluster.mark("h1");
    assert_eq!(state, "MIXED+DRAIN");
    let reason = reason.unwrap();
    let words = reason.split(" [").next().unwrap();
    assert!(
        words.starts_with("dhc:gpu.lost:") && words.ends_with(":reboot"),
        "{reason}"
    );
    assert!(comment.unwrap().contains(words));
    assert!(job.wait().unwrap().success(), "the drain ended the job");
    // It is still at fault, so it stays.
    let still = cluster.verify("h1", &named(LOST, "h1", "b2"), &policy, &lost);
    assert_eq!(still.status.code(), Some(2), "{still:?}");
    assert_eq!(cluster.mark("h1").0, "IDLE+DRAIN");
    // It is kept reserved together with another, as after a run that found both at fault.
    cluster.slurm(&[
        "scontrol",
        "create",
        "reservation",
        "ReservationName=dhc-01M85J2Q7TZ3N4V5W6X7Y8Z9A0",
        "Nodes=h[1-2]",
        "StartTime=now",
        "Duration=60",
        "Users=root",
        "Flags=MAINT,IGNORE_JOBS,FLEX",
    ]);
    let well = cluster.verify("h1", &named(SOUND, "h1", "b2"), &policy, &lost);
    assert_eq!(well.status.code(), Some(0), "{well:?}");
    assert_eq!(cluster.mark("h1").1, None);
    assert_eq!(
        cluster.mark("h1").2,
        None,
        "a comment that stays would vouch for another's mark"
    );
    assert_eq!(
        cluster.reservations(),
        [("dhc-01M85J2Q7TZ3N4V5W6X7Y8Z9A0".to_owned(), "h2".to_owned())]
    );
    cluster.assert_takes_jobs("h1");
    assert_eq!(
        cluster.history("h1"),
        ["begun reboot", "done reboot", "returned reboot"]
    );
    // The old result asks for nothing any more.
    assert_eq!(
        cluster.apply(&policy, &[&lost]),
        (0, vec!["h1 held".to_owned()])
    );
    assert_eq!(cluster.mark("h1").1, None);
}

#[test]
fn what_others_have_taken_out_of_service_is_left_as_it_is() {
    let cluster = Cluster::up();
    let policy = cluster.policy("hyperpod");
    cluster.slurm(&[
        "scontrol",
        "update",
        "nodename=h1",
        "state=drain",
        "reason=new cable | Ann",
    ]);
    // The very words that dhc would write, and not by dhc.
    cluster.slurm(&[
        "scontrol",
        "update",
        "nodename=h2",
        "state=fail",
        "reason=Action:Reboot",
    ]);
    cluster.slurm(&[
        "scontrol",
        "create",
        "reservation",
        "ReservationName=firmware",
        "Nodes=h3",
        "StartTime=now",
        "Duration=60",
        "Users=root",
        "Flags=MAINT,IGNORE_JOBS",
    ]);
    cluster.wait_for("maintenance", Duration::from_secs(60), || {
        cluster
            .slurm(&["sinfo", "--noheader", "--nodes=h3", "--format=%T"])
            .starts_with("maint")
    });
    let before = ["h1", "h2", "h3"].map(|host| cluster.mark(host));
    for (host, words) in [
        ("h1", "new cable | Ann"),
        ("h2", "Action:Reboot"),
        ("h3", "firmware"),
    ] {
        let lost = cluster.result(LOST, host, "b1");
        let output = cluster.recover("apply", &policy, &[&lost]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let applied: Value = serde_json::from_slice(&output.stdout).unwrap();
        let done = &applied["nodes"][0];
        assert_eq!(done["outcome"], "left_alone", "{applied}");
        assert!(
            done["what"]
                .as_str()
                .unwrap()
                .contains(&format!("`{words}`")),
            "{applied}"
        );
    }
    assert_eq!(["h1", "h2", "h3"].map(|host| cluster.mark(host)), before);
    let nothing: [&str; 0] = [];
    assert_eq!(cluster.history("h1"), nothing);
}

#[test]
fn only_the_very_mark_that_dhc_made_is_its_own() {
    let cluster = Cluster::up();
    let policy = cluster.policy("hyperpod");
    let lost = cluster.result(LOST, "h1", "b1");
    assert_eq!(
        cluster.apply(&policy, &[&lost]),
        (0, vec!["h1 done".to_owned()])
    );
    // The comment tells when Slurm has noted the reason.
    let (_, reason, comment) = cluster.mark("h1");
    let comment = comment.unwrap();
    let tells =
        |comment: &str| comment.contains(" reboot boot b1 at 20") && comment.contains("Z: ");
    assert!(tells(&comment), "{comment}, {reason:?}");
    // A stronger mark in place of it is dhc's too, and stands for both runs; a milder one never takes its place.
    let links = cluster.result(LINK_DOWN, "h1", "b1");
    let report: Value = serde_json::from_slice(&std::fs::read(&links).unwrap()).unwrap();
    let run = report["run"]["id"].as_str().unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(
        cluster.apply(&policy, &[&links]),
        (0, vec!["h1 done".to_owned()])
    );
    let pending = cluster.mark("h1");
    assert!(
        pending
            .1
            .as_deref()
            .unwrap()
            .starts_with("Action:Replace [")
    );
    assert!(
        pending
            .2
            .as_deref()
            .unwrap()
            .starts_with(&format!("dhc run {run},"))
    );
    std::fs::remove_file(cluster.path("history.sqlite")).unwrap();
    let missing = cluster.result("p5.48xlarge-seven-gpus", "h1", "b2");
    assert_eq!(
        cluster.apply(&policy, &[&missing]),
        (0, vec!["h1 held".to_owned()])
    );
    assert_eq!(cluster.mark("h1"), pending);
    let one = cluster.verify("h1", &named(SOUND, "h1", "b2"), &policy, &links);
    assert_eq!(one.status.code(), Some(4), "{one:?}");
    assert_eq!(cluster.mark("h1"), pending);
    // Somebody resumes the node, and somebody else fails it in the same words; the comment is there still.
    cluster.slurm(&["scontrol", "update", "nodename=h1", "state=resume"]);
    std::thread::sleep(Duration::from_millis(1100));
    cluster.slurm(&[
        "scontrol",
        "update",
        "nodename=h1",
        "state=fail",
        "reason=Action:Replace",
    ]);
    let hers = cluster.mark("h1");
    assert_eq!(hers.2, pending.2);
    assert_ne!(hers.1, pending.1);
    let again = cluster.result(LINK_DOWN, "h1", "b3");
    assert_eq!(
        cluster.apply(&policy, &[&again]),
        (4, vec!["h1 left_alone".to_owned()])
    );
    let sound = cluster.verify("h1", &named(SOUND, "h1", "b3"), &policy, &again);
    assert_eq!(sound.status.code(), Some(4), "{sound:?}");
    assert_eq!(cluster.mark("h1"), hers);
}

#[test]
fn what_was_found_before_slurm_saw_the_node_start_is_not_acted_upon() {
    let cluster = Cluster::up();
    let policy = cluster.policy("hyperpod");
    let lost = cluster.result(LOST, "h1", "b1");
    // A run of long before this machine was started.
    let mut report: Value = serde_json::from_slice(&std::fs::read(&lost).unwrap()).unwrap();
    report["run"]["id"] = "01JF0000000000000000000000".into();
    report["run"]["started_at"] = "2024-12-13T00:00:00Z".into();
    let old = cluster.path("old.json");
    std::fs::write(&old, report.to_string()).unwrap();
    let output = cluster.recover("apply", &policy, &[&old]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("the node was started at 2"), "{said}");
    assert_eq!(cluster.mark("h1").1, None);
    // Where a mark is gone, the scheduler's word counts and not the history's: it is made again for a new run.
    let mark = |result: &Path| cluster.apply(&policy, &[result]);
    let done = (0, vec!["h1 done".to_owned()]);
    assert_eq!(mark(&lost), done);
    cluster.slurm(&["scontrol", "update", "nodename=h1", "state=resume"]);
    assert_eq!(mark(&cluster.result(LOST, "h1", "b1")), done);
    assert_eq!(cluster.mark("h1").0, "IDLE+FAIL");
}

#[test]
fn a_node_that_has_fallen_silent_is_nobody_s_and_can_be_marked() {
    let cluster = Cluster::up();
    cluster.tool(&["kill", "h4"]);
    cluster.wait_for("Slurm's own notice", Duration::from_secs(60), || {
        cluster
            .mark("h4")
            .1
            .is_some_and(|reason| reason.starts_with("Not responding "))
    });
    let absent = cluster.result(LOST, "h4", "b1");
    let done = cluster.apply(&cluster.policy("hyperpod"), &[&absent]);
    assert_eq!(done, (0, vec!["h4 done".to_owned()]));
    let (state, reason, _) = cluster.mark("h4");
    assert!(state.starts_with("DOWN+FAIL"), "{state}");
    assert!(reason.unwrap().starts_with("Action:Reboot ["));
}

#[test]
fn without_a_controller_nothing_is_half_done_and_it_can_be_done_later() {
    let cluster = Cluster::up();
    let policy = cluster.policy("hyperpod");
    let results = [
        cluster.result(LOST, "h1", "b1"),
        cluster.result(LOST, "h2", "b1"),
    ];
    let results = results.each_ref().map(PathBuf::as_path);
    cluster.tool(&["stop-ctld"]);
    let output = cluster.recover("apply", &policy, &results);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let applied: Value = serde_json::from_slice(&output.stdout).unwrap();
    let outcomes = ["failed", "not_tried"];
    for (done, outcome) in applied["nodes"].as_array().unwrap().iter().zip(outcomes) {
        assert_eq!(done["outcome"], outcome, "{applied}");
        let what = done["what"].as_str().unwrap();
        assert!(
            what.contains("Unable to contact slurm controller"),
            "{what}"
        );
    }
    let nothing: [&str; 0] = [];
    assert_eq!(cluster.history("h1"), nothing);
    cluster.tool(&["start-ctld"]);
    let done = cluster.apply(&policy, &results);
    assert_eq!(done, (0, vec!["h1 done".to_owned(), "h2 done".to_owned()]));
    assert_eq!(cluster.history("h1"), ["begun reboot", "done reboot"]);
}

#[test]
fn a_third_node_within_the_hour_is_too_many() {
    let cluster = Cluster::up();
    let policy = cluster.policy("hyperpod");
    let results = ["h1", "h2", "h3"].map(|host| cluster.result(LOST, host, "b1"));
    let all = results.each_ref().map(PathBuf::as_path);
    // All at once touches none of them, and one after the other not the third.
    let held = ["h1", "h2", "h3"].map(|host| format!("{host} held"));
    assert_eq!(cluster.apply(&policy, &all), (4, held.to_vec()));
    assert_eq!(
        ["h1", "h2", "h3"].map(|host| cluster.mark(host).1),
        [None, None, None]
    );
    for (host, result) in [("h1", all[0]), ("h2", all[1])] {
        assert_eq!(
            cluster.apply(&policy, &[result]),
            (0, vec![format!("{host} done")])
        );
    }
    let output = cluster.recover("apply", &policy, &[all[2]]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("2 more were in the last 60 minutes"),
        "{said}"
    );
    assert_eq!(cluster.mark("h3").1, None);
    let log = std::fs::read_to_string(cluster.path("recover.log")).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "held", "{last}");
}

#[test]
fn the_nodes_of_a_run_are_reserved_until_all_have_passed() {
    let cluster = Cluster::up();
    let (child, name, nodes) = cluster.begin_reserved(&["--nodelist", "h[1-2]"]);
    assert_eq!(nodes, "h[1-2]");
    assert!(!cluster.takes_jobs("h1"), "a job got in");
    let output = child.wait_with_output().unwrap();
    let report = report(&output);
    assert_eq!(name, format!("dhc-{}", report.run.id));
    let statuses: Vec<Status> = report.nodes.iter().map(|node| node.status).collect();
    assert_eq!(statuses, [Status::Pass, Status::Pass], "{output:?}");
    assert_eq!(cluster.reservations(), []);
    cluster.assert_takes_jobs("h1");
}

#[test]
fn only_the_node_that_failed_stays_reserved_and_is_let_in_again_for_a_second_look() {
    let cluster = Cluster::up();
    cluster.tool(&["slow", "h3", SLOW]);
    let output = cluster
        .dhc_run(&["--reserve", "--nodes", "4"])
        .output()
        .unwrap();
    let found = report(&output);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let kept = format!("dhc-{}", found.run.id);
    assert_eq!(cluster.reservations(), [(kept.clone(), "h3".to_owned())]);
    cluster.assert_takes_jobs("h2");
    assert!(!cluster.takes_jobs("h3"), "a job got in");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(&format!("h3 kept in the reservation {kept}")),
        "{said}"
    );
    cluster.tool(&["heal", "h3"]);
    let again = cluster
        .dhc_run(&["--nodes", "4", "--reservation", &kept])
        .output()
        .unwrap();
    let statuses = report(&again).nodes;
    assert_eq!(statuses.len(), 4);
    assert!(
        statuses.iter().all(|node| node.status == Status::Pass),
        "{again:?}"
    );
}

#[test]
fn a_mistaken_limit_that_fails_every_node_keeps_none_reserved() {
    let cluster = Cluster::up();
    let log = cluster.path("hyperpod.log");
    let export = format!("hyperpod={}", log.display());
    for (limit, action, said) in [
        (
            "metric = \"host.memory.size\"\nunit = \"MiB\"\nfail_below = 1e9",
            Action::Reboot,
            "4 of 4 nodes failed, and at most 2 are kept reserved",
        ),
        (
            "metric = \"host.disk.free\"\nunit = \"percent\"\nfail_below = 100.5",
            Action::Investigate,
            "",
        ),
    ] {
        let table = format!("{FLOOR}\n[[limit]]\n{limit}\nsource = \"a mistake\"\n");
        let output = cluster
            .dhc_run_at("all", &table, &["--reserve", "--nodes", "4"])
            .args(["--check", "host", "--export", &export])
            .output()
            .unwrap();
        let found = report(&output);
        let actions: Vec<(Status, Action)> = found
            .nodes
            .iter()
            .map(|node| (node.status, node.action))
            .collect();
        assert_eq!(actions, [(Status::Fail, action); 4], "{output:?}");
        assert_eq!(cluster.reservations(), [], "{action:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(said), "{stderr}");
        // Each node is told of, whatever is to be done to it.
        let lines = std::fs::read_to_string(&log).unwrap();
        for host in ["h1", "h2", "h3", "h4"] {
            let of_host = format!("\"node\":\"{host}\"");
            assert!(lines.contains(&of_host), "{host}: {lines}");
        }
    }
}

#[test]
fn no_reservation_outlives_a_run_that_is_told_to_stop() {
    let cluster = Cluster::up();
    let (child, _, _) = cluster.begin_reserved(&["--nodes", "2"]);
    cluster.slurm(&["pkill", "-TERM", "-x", "dhc"]);
    let output = child.wait_with_output().unwrap();
    assert!(!report(&output).complete);
    assert_eq!(cluster.reservations(), []);
}

#[test]
fn a_reservation_outlives_a_killed_run_by_its_lease_at_most() {
    let cluster = Cluster::up();
    let (mut child, name, nodes) =
        cluster.begin_reserved(&["--nodelist", "h[1-2]", "--reservation-lease", "20s"]);
    // It has been renewed by then: it would have ended else.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(cluster.reservations(), [(name, nodes)]);
    cluster.slurm(&["pkill", "-KILL", "-x", "dhc"]);
    child.wait().unwrap();
    // The lease, and the time that slurmctld takes to look.
    cluster.wait_for(
        "the end of the reservation",
        Duration::from_secs(20 + 40),
        || cluster.reservations().is_empty(),
    );
}

#[test]
fn a_reservation_outlives_a_restart_of_the_controller_and_is_renewed() {
    let cluster = Cluster::up();
    let (child, name, nodes) = cluster.begin_reserved(&SHORT_LEASE);
    cluster.tool(&["stop-ctld"]);
    cluster.tool(&["start-ctld"]);
    let end = || cluster.slurm(&["sinfo", "--noheader", "--reservation"]);
    assert_eq!(cluster.reservations(), [(name, nodes)]);
    let first = end();
    cluster.wait_for("a renewal", Duration::from_secs(15), || end() != first);
    assert_eq!(report(&child.wait_with_output().unwrap()).nodes.len(), 2);
    assert_eq!(cluster.reservations(), []);
}

#[test]
fn a_reservation_that_a_crash_of_the_controller_has_lost_is_made_again() {
    let cluster = Cluster::up();
    let (child, name, nodes) = cluster.begin_reserved(&SHORT_LEASE);
    // slurmctld saves its state only every few seconds, so this one is lost.
    cluster.tool(&["stop-ctld", "--crash"]);
    cluster.tool(&["start-ctld"]);
    cluster.wait_for("the reservation", Duration::from_secs(15), || {
        cluster.reservations() == [(name.clone(), nodes.clone())]
    });
    drop(child.wait_with_output().unwrap());
    assert_eq!(cluster.reservations(), []);
}

const SHORT_LEASE: [&str; 4] = ["--nodelist", "h[1-2]", "--reservation-lease", "15s"];

#[test]
fn a_run_that_may_not_reserve_leaves_no_allocation_behind() {
    let cluster = Cluster::up();
    let tools = cluster.path("tools");
    std::fs::create_dir(&tools).unwrap();
    let scontrol = tools.join("scontrol");
    std::fs::write(
        &scontrol,
        "#!/bin/sh\necho 'Access/permission denied' >&2\nexit 1\n",
    )
    .unwrap();
    std::fs::set_permissions(
        &scontrol,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let output = cluster
        .dhc_run(&[
            "--reserve",
            "--nodes",
            "2",
            "--tools",
            tools.to_str().unwrap(),
            "--tools",
            "/usr/bin",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("takes an operator") && said.contains("permission denied"),
        "{said}"
    );
    cluster.wait_for("no job", Duration::from_secs(10), || {
        cluster.slurm(&["squeue", "--noheader"]).trim().is_empty()
    });
}
