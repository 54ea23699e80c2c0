//! From results to action, by the built program: `scontrol` is a script here that keeps the state of each node in a file. The same against a real slurmctld stands in `cluster.rs`.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it left"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Dhc, enforced_policy};
use dhc_fixtures::FakeNode;
use serde_json::Value;

/// A place with a Slurm, a history, and results.
struct Site {
    folder: tempfile::TempDir,
    tools: FakeNode,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let nodes = folder.path().join("nodes");
        std::fs::create_dir(&nodes).unwrap();
        let nodes = nodes.display();
        let here = folder.path().display();
        let scontrol = format!(
            "case \"$1 $2\" in\n\
             'show node')\n\
             case $3 in ALL) name=n1;; *) name=$3;; esac\n\
             state=idle\n\
             if [ -e \"{nodes}/$name\" ]; then IFS='|' read -r state reason < \"{nodes}/$name\"; fi\n\
             case $state in drain*) state=IDLE+DRAIN;; fail*) state=IDLE+FAIL;; idle) state=IDLE;; esac\n\
             if [ -e \"{nodes}/$name.flags\" ]; then state=$state$(cat \"{nodes}/$name.flags\"); fi\n\
             echo \"NodeName=$name Arch=x86_64 CoresPerSocket=1 \"\n\
             echo \"   NodeAddr=$name NodeHostName=$name Version=22.05.8\"\n\
             echo \"   State=$state ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A\"\n\
             if [ -s \"{nodes}/$name.comment\" ]; then echo \"   Comment=$(cat \"{nodes}/$name.comment\")\"; fi\n\
             if [ -n \"$reason\" ]; then echo \"   Reason=$reason [root@2026-01-02T03:04:05]\"; fi\n\
             exit;;\n\
             'show reservation') cat \"{here}/reservations\" 2>/dev/null || echo 'No reservations in the system'; exit;;\n\
             'show hostnames') echo \"$3\" | tr , '\\n'; exit;;\n\
             'delete '*) rm \"{here}/reservations\"; exit;;\n\
             esac\n\
             for word in \"$@\"; do case $word in\n\
             nodename=*) node=${{word#*=}};; state=*) state=${{word#*=}};; reason=*) reason=${{word#*=}};;\n\
             comment=*) comment=${{word#*=}};; esac; done\n\
             if [ -e \"{here}/hold-before\" ]; then touch \"{here}/held\"; sleep 60; fi\n\
             echo \"$comment\" > \"{nodes}/$node.comment\"\n\
             case $state in resume) rm -f \"{nodes}/$node\";; *) echo \"$state|$reason\" > \"{nodes}/$node\";; esac\n\
             if [ -e \"{here}/hold-after\" ]; then touch \"{here}/held\"; sleep 60; fi"
        );
        let tools = FakeNode::plain().tool("scontrol").runs(&scontrol);
        Site { folder, tools }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How Slurm has the node: state and reason.
    fn slurm(&self, node: &str) -> String {
        let text = std::fs::read_to_string(self.path("nodes").join(node));
        text.map_or_else(|_| "idle".to_owned(), |text| text.trim().to_owned())
    }

    fn policy(&self, built_in: &str) -> PathBuf {
        let path = self.path(&format!("{built_in}.toml"));
        std::fs::write(&path, enforced_policy(built_in)).unwrap();
        path
    }

    /// What dhc finds on a p5.48xlarge of this name and boot.
    fn result(&self, machine: &str, name: &str, boot: &str) -> PathBuf {
        self.result_of("gpu-count", machine, name, boot)
    }

    fn result_of(&self, check: &str, machine: &str, name: &str, boot: &str) -> PathBuf {
        self.result_with(&["--check", check], machine, name, boot)
    }

    fn result_with(&self, args: &[&str], machine: &str, name: &str, boot: &str) -> PathBuf {
        let outcome = Dhc::on(on(machine, name, boot)).run(args);
        assert_eq!(outcome.report.nodes[0].name, name);
        let path = self.path(&format!("{name}-{boot}.json"));
        std::fs::write(&path, serde_json::to_vec(&outcome.report).unwrap()).unwrap();
        path
    }

    /// The same result as a run of a whole cluster has it, which knows of a node no more than its name and boot.
    fn seen_from_outside(result: &Path) -> PathBuf {
        let mut report: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
        let identity = &report["nodes"][0]["identity"];
        let identity = serde_json::json!({"boot_id": identity["boot_id"]});
        report["nodes"][0]["identity"] = identity;
        let path = result.with_extension("outside.json");
        std::fs::write(&path, report.to_string()).unwrap();
        path
    }

    fn recover(&self, what: &str, policy: &Path, results: &[&Path]) -> Output {
        self.command(what, policy, results).output().unwrap()
    }

    fn command(&self, what: &str, policy: &Path, results: &[&Path]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command
            .args(["recover", what, "--format", "json", "--policy"])
            .arg(policy)
            .arg("--history")
            .arg(self.path("history.sqlite"))
            .arg("--tools")
            .arg(self.tools.tools())
            .args(results);
        command
    }

    /// Applies, and kills dhc while `scontrol` holds still: before it has marked the node, or after.
    fn kill_in_the_middle(&self, hold: &str, policy: &Path, result: &Path) {
        std::fs::write(self.path(hold), "").unwrap();
        let mut dhc = self.command("apply", policy, &[result]).spawn().unwrap();
        let begun = std::time::Instant::now();
        while !self.path("held").exists() {
            assert!(
                begun.elapsed() < std::time::Duration::from_secs(30),
                "no act began"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        dhc.kill().unwrap();
        dhc.wait().unwrap();
        std::fs::remove_file(self.path(hold)).unwrap();
        std::fs::remove_file(self.path("held")).unwrap();
    }

    /// How often `scontrol` was told to mark a node.
    fn acts(&self) -> usize {
        let calls = self.tools.calls("scontrol");
        calls
            .iter()
            .filter(|call| call.starts_with("update "))
            .count()
    }

    /// `dhc recover verify` on this machine.
    fn verify(&self, here: &FakeNode, policy: &Path, results: &[&Path], args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command
            .args(["recover", "verify"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin");
        command.arg("--state").arg(self.path("state"));
        command.arg("--root").arg(here.root());
        command.arg("--nvml").arg(here.nvml());
        command.arg("--history").arg(self.path("history.sqlite"));
        command.arg("--tools").arg(self.tools.tools());
        command.arg("--policy").arg(policy);
        command.args(args).args(results).output().unwrap()
    }

    /// What was done to a node, oldest first.
    fn deeds(&self, node: &str) -> Vec<String> {
        let events = self.history(node);
        let events = events.as_array().unwrap().iter();
        let kinds = events.map(|event| event["what"].as_str().unwrap().to_owned());
        let mut kinds: Vec<String> = kinds.filter(|what| what != "seen").collect();
        kinds.dedup();
        kinds
    }

    /// The plan, which touches nothing.
    fn plan(&self, policy: &str, results: &[&Path]) -> Value {
        let output = self.recover("plan", Path::new(policy), results);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn apply(&self, policy: &Path, results: &[&Path], exit: i32) -> String {
        let output = self.recover("apply", policy, results);
        assert_eq!(output.status.code(), Some(exit), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn history(&self, node: &str) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
            .args(["history", node, "--format", "json", "--history"])
            .arg(self.path("history.sqlite"))
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// This machine under this name and in this boot.
fn on(machine: &str, name: &str, boot: &str) -> FakeNode {
    FakeNode::of(machine)
        .file("/proc/sys/kernel/hostname", format!("{name}\n"))
        .file("/proc/sys/kernel/random/boot_id", format!("{boot}\n"))
        .file("/sys/class/dmi/id/board_asset_tag", format!("i-0{name}\n"))
}

/// What was done to which node.
fn outcomes(said: &str) -> Vec<String> {
    let applied: Value = serde_json::from_str(said).unwrap();
    assert_eq!(applied["schema"], "dhc.recovered/1");
    let nodes = applied["nodes"].as_array().unwrap().iter();
    let words = nodes.map(|done| (done["node"].as_str(), done["outcome"].as_str()));
    words
        .map(|(node, outcome)| format!("{} {}", node.unwrap(), outcome.unwrap()))
        .collect()
}

const NOTHING: [&str; 0] = [];
const LOST: &str = "p5.48xlarge-gpu-lost";
const SOUND: &str = "p5.48xlarge";

#[test]
fn a_plan_says_what_and_why_and_touches_nothing() {
    let site = Site::new();
    let (lost, sound) = (
        site.result(LOST, "n1", "b1"),
        site.result(SOUND, "n2", "b1"),
    );
    let plan = site.plan("default", &[&lost, &sound]);
    assert_eq!(
        (&plan["nodes"], &plan["policy"]),
        (&2.into(), &"default@2".into())
    );
    let steps = plan["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "{plan}");
    assert_eq!(steps[0]["node"], "n1");
    assert_eq!(steps[0]["action"], "reboot");
    assert!(steps[0]["why"].as_str().unwrap().starts_with("gpu.lost: "));
    assert_eq!(steps[0]["identity"]["instance_id"], "i-0n1");
    assert_eq!(site.slurm("n1"), "idle");
    assert!(!site.path("history.sqlite").exists());
}

#[test]
fn nothing_is_done_without_a_policy_of_one_s_own_that_says_so() {
    let site = Site::new();
    let lost = site.result(LOST, "n1", "b1");
    let refused = site.recover("apply", Path::new("default"), &[&lost]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("dhc recover policy default"));
    let observing = site.policy("default");
    let text = std::fs::read_to_string(&observing).unwrap();
    std::fs::write(&observing, text.replace("enforce", "observe")).unwrap();
    site.apply(&observing, &[&lost], 0);
    assert_eq!(site.slurm("n1"), "idle");
}

#[test]
fn an_action_is_done_once_and_remembered() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    let said = site.apply(&policy, &[&lost], 0);
    assert_eq!(outcomes(&said), ["n1 done"]);
    let marked = site.slurm("n1");
    assert!(
        marked.starts_with("drain|dhc:gpu.lost:") && marked.ends_with(":reboot"),
        "{marked}"
    );
    assert_eq!(outcomes(&site.apply(&policy, &[&lost], 0)), NOTHING);
    assert_eq!(site.acts(), 1, "it was done again");
    let history = site.history("n1");
    let kinds: Vec<&str> = history
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["fault"] == "gpu.lost")
        .filter_map(|event| event["what"].as_str())
        .collect();
    assert_eq!(kinds, ["seen", "begun", "done"]);
    assert_eq!(history[0]["machine"], "i-0n1");
}

#[test]
fn the_same_fault_after_a_reboot_asks_for_a_replacement() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let first = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&first], 0);
    assert_eq!(site.slurm("n1"), "fail|Action:Reboot");
    let again = site.result(LOST, "n1", "b2");
    let plan = site.plan("hyperpod", &[&again]);
    assert_eq!(plan["steps"][0]["action"], "replace", "{plan}");
    assert!(
        plan["steps"][0]["why"]
            .as_str()
            .unwrap()
            .contains("again after the reboot"),
        "{plan}"
    );
    // The mark is dhc's own, as the history knows, so it may be changed.
    site.apply(&policy, &[&again], 0);
    assert_eq!(site.slurm("n1"), "fail|Action:Replace");
    // Another machine under the same name has no such past.
    let other = FakeNode::of(LOST)
        .file("/proc/sys/kernel/hostname", "n1\n")
        .file("/sys/class/dmi/id/board_asset_tag", "i-0other\n");
    let outcome = Dhc::on(other).run(&["--check", "gpu-count"]);
    let path = site.path("other.json");
    std::fs::write(&path, serde_json::to_vec(&outcome.report).unwrap()).unwrap();
    assert_eq!(
        site.plan("hyperpod", &[&path])["steps"][0]["action"],
        "reboot"
    );
}

#[test]
fn a_node_that_somebody_else_took_out_is_left_alone() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    for (node, mark) in [
        ("n1", "drained|new cable, Ann"),
        ("n2", "fail|Action:Reboot"),
    ] {
        std::fs::write(site.path("nodes").join(node), mark).unwrap();
        let lost = site.result(LOST, node, "b1");
        let said = site.apply(&policy, &[&lost], 4);
        assert!(said.contains("left alone"), "{said}");
        assert_eq!(site.slurm(node), mark);
    }
    assert_eq!(site.acts(), 0);
}

#[test]
fn too_many_nodes_at_once_are_nobody_s_fault() {
    let site = Site::new();
    let policy = site.policy("default");
    let results: Vec<PathBuf> = (1..=3)
        .map(|node| site.result(LOST, &format!("n{node}"), "b1"))
        .collect();
    let results: Vec<&Path> = results.iter().map(PathBuf::as_path).collect();
    let plan = site.plan("default", &results);
    let why = plan["breaker"].as_str().unwrap();
    assert!(why.starts_with("3 of 3 nodes would be touched"), "{why}");
    site.apply(&policy, &results, 4);
    assert_eq!(site.acts(), 0);
    assert!(site.plan("default", &results[..2])["breaker"].is_null());
}

#[test]
fn what_could_not_be_looked_at_touches_no_node() {
    let site = Site::new();
    for machine in [
        "p5.48xlarge-driver-mismatch",
        "p5.48xlarge-driver-not-loaded",
    ] {
        let result = site.result(machine, "n1", "b1");
        let plan = site.plan("default", &[&result]);
        let action = plan["steps"][0]["action"].as_str().unwrap();
        assert!(
            ["none", "retry", "investigate"].contains(&action),
            "{machine}: {plan}"
        );
    }
}

#[test]
fn a_result_that_has_expired_touches_no_node() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    let mut report: Value = serde_json::from_slice(&std::fs::read(&lost).unwrap()).unwrap();
    report["run"]["expires_at"] = "2020-01-01T00:00:00Z".into();
    std::fs::write(&lost, report.to_string()).unwrap();
    let plan = site.plan("default", &[&lost]);
    assert!(
        plan["steps"][0]["held"]
            .as_str()
            .unwrap()
            .contains("expired"),
        "{plan}"
    );
    assert_eq!(outcomes(&site.apply(&policy, &[&lost], 0)), NOTHING);
}

#[test]
fn a_node_that_passes_again_is_given_back_and_one_that_does_not_is_kept() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&lost], 0);
    let verify = |machine: &str| site.verify(&on(machine, "n1", "b2"), &policy, &[&lost], &[]);
    let still = verify(LOST);
    assert_eq!(still.status.code(), Some(2), "{still:?}");
    assert!(site.slurm("n1").starts_with("drain"));
    let sound = verify(SOUND);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    assert_eq!(site.slurm("n1"), "idle");
    let history = site.history("n1");
    assert_eq!(
        history.as_array().unwrap().last().unwrap()["what"],
        "returned"
    );
}

#[test]
fn two_who_apply_the_same_at_once_do_it_once() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let lost = site.result(LOST, "n1", "b1");
    let both = [(); 2].map(|()| {
        let mut command = site.command("apply", &policy, &[&lost]);
        command
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut said = both.map(|dhc| {
        let output = dhc.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        outcomes(&String::from_utf8(output.stdout).unwrap())
    });
    said.sort();
    assert_eq!(said, [vec![], vec!["n1 done".to_owned()]]);
    assert_eq!(site.acts(), 1);
    assert_eq!(site.deeds("n1"), ["begun", "done"]);
}

#[test]
fn what_was_begun_before_a_crash_is_known_and_done_once() {
    for (hold, marked, outcome, acts) in [
        ("hold-before", "idle", "n1 done", 2),
        ("hold-after", "fail|Action:Reboot", "n1 done_before", 1),
    ] {
        let site = Site::new();
        let policy = site.policy("hyperpod");
        let lost = site.result(LOST, "n1", "b1");
        site.kill_in_the_middle(hold, &policy, &lost);
        assert_eq!(site.deeds("n1"), ["begun"], "{hold}");
        assert_eq!(site.slurm("n1"), marked, "{hold}");
        // The fault after the reboot that may have been asked for is not taken for a new one.
        let again = site.result(LOST, "n1", "b2");
        assert_eq!(
            site.plan("hyperpod", &[&again])["steps"][0]["action"],
            "replace"
        );
        assert_eq!(outcomes(&site.apply(&policy, &[&lost], 0)), [outcome]);
        assert_eq!(site.acts(), acts, "{hold}");
        assert_eq!(site.slurm("n1"), "fail|Action:Reboot");
        assert_eq!(site.deeds("n1"), ["begun", "done"], "{hold}");
    }
}

#[test]
fn two_reboots_in_two_hours_are_enough_and_repeat_offenders_show() {
    let site = Site::new();
    let policy = site.policy("default");
    for (check, machine, boot) in [
        ("gpu-count", "p5.48xlarge-seven-gpus", "b1"),
        ("nvlink", "p5.48xlarge-link-down", "b2"),
    ] {
        let result = site.result_of(check, machine, "n1", boot);
        let plan = site.plan("default", &[&result]);
        assert_eq!(plan["steps"][0]["action"], "reboot", "{plan}");
        site.apply(&policy, &[&result], 0);
    }
    let third = site.result_of("gpu-memory", "p5.48xlarge-remap-pending", "n1", "b3");
    let plan = site.plan("default", &[&third]);
    let step = &plan["steps"][0];
    assert_eq!(step["action"], "replace", "{plan}");
    assert!(
        step["why"]
            .as_str()
            .unwrap()
            .contains("2 reboots in 2 h have not helped"),
        "{plan}"
    );
    let attempts = serde_json::json!({
        "reboots_2h": 2, "reboots_24h": 2, "replacements_24h": 0, "same_fault_after_reboot": false,
    });
    assert_eq!(step["attempts"], attempts);
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(["history", "--format", "json", "--history"])
        .arg(site.path("history.sqlite"))
        .output()
        .unwrap();
    let offenders: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&offenders[0]["machine"], &offenders[0]["marked"]),
        (&"i-0n1".into(), &2.into())
    );
    assert_eq!(offenders[0]["attempts"]["reboots_24h"], 2);
}

#[test]
fn a_fault_that_a_later_boot_or_a_later_run_does_not_show_is_past() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let lost = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&lost], 0);
    let well = site.result(SOUND, "n1", "b2");
    for results in [[&*lost, &*well], [&*well, &*lost]] {
        let plan = site.plan("hyperpod", &results);
        assert_eq!(plan["steps"], serde_json::json!([]), "{plan}");
        assert_eq!(plan["nodes"], 1);
    }
    // Another check of the same boot says nothing of this one.
    let other = site.result_of("nvlink", SOUND, "n1", "b1");
    let again = site.result(LOST, "n1", "b1");
    let plan = site.plan("hyperpod", &[&again, &other]);
    assert_eq!(plan["steps"][0]["causes"][0]["boot"], "b1", "{plan}");
    let mended = site.path("mended.json");
    std::fs::rename(site.result(SOUND, "n1", "b1"), &mended).unwrap();
    let again = site.result(LOST, "n2", "b1");
    let plan = site.plan("hyperpod", &[&again, &mended]);
    assert_eq!(plan["steps"].as_array().unwrap().len(), 1, "{plan}");
    assert_eq!(plan["steps"][0]["node"], "n2", "{plan}");
}

#[test]
fn a_name_and_another_boot_are_no_proof_that_a_reboot_has_not_helped() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let outside = Site::seen_from_outside(&site.result(LOST, "n1", "b1"));
    site.apply(&policy, &[&outside], 0);
    assert_eq!(site.slurm("n1"), "fail|Action:Reboot");
    let new_machine = Site::seen_from_outside(&site.result(LOST, "n1", "b2"));
    let plan = site.plan("hyperpod", &[&new_machine]);
    assert_eq!(plan["steps"][0]["action"], "reboot", "{plan}");
    // The node's own result tells in which machine the first boot was, and so that the second is the same.
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let own = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&Site::seen_from_outside(&own), &own], 0);
    let again = site.result(LOST, "n1", "b2");
    let plan = site.plan("hyperpod", &[&again]);
    assert_eq!(plan["steps"][0]["action"], "replace", "{plan}");
}

#[test]
fn what_the_cluster_and_the_node_itself_say_is_of_one_node() {
    let site = Site::new();
    let policy = site.policy("default");
    let links = site.result_of("nvlink", "p5.48xlarge-link-down", "n1", "b1");
    let outside = Site::seen_from_outside(&links);
    let own = site.result(LOST, "n1", "b1");
    for results in [[&*own, &*outside], [&*outside, &*own]] {
        let plan = site.plan("default", &results);
        assert_eq!(plan["nodes"], 1, "{plan}");
        assert_eq!(plan["steps"].as_array().unwrap().len(), 1, "{plan}");
        assert_eq!(plan["steps"][0]["identity"]["instance_id"], "i-0n1");
    }
    // Marked on the word of one, it is not marked again on the word of the other.
    site.apply(&policy, &[&outside], 0);
    let plan = site.plan("default", &[&own]);
    let held = plan["steps"][0]["held"].as_str().unwrap();
    assert!(held.contains("has not come back since"), "{plan}");
}

/// A table by which a p5.48xlarge lacks a GPU.
const STRICT: &str = r#"
schema = "dhc.thresholds/1"
instance_type = "p5.48xlarge"
extends = "p5.48xlarge"

[[hardware]]
kind = "nvidia_gpu"
count = 9
source = "a test"
"#;

const OURS: &str = "dhc-01M85J2Q7TZ3N4V5W6X7Y8Z9A0";

fn reservation(name: &str, flags: &str, nodes: &str) -> String {
    format!(
        "ReservationName={name} StartTime=2026-01-02T03:04:05 Nodes={nodes} Flags={flags} State=ACTIVE\n"
    )
}

#[test]
fn a_mark_stays_a_mark_in_a_reservation_for_maintenance() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    std::fs::write(
        site.path("reservations"),
        reservation(OURS, "MAINT,FLEX", "n1,n2"),
    )
    .unwrap();
    let flags =
        |node: &str| std::fs::write(site.path(&format!("nodes/{node}.flags")), "+MAINTENANCE");
    flags("n1").unwrap();
    flags("n2").unwrap();
    // A person's.
    std::fs::write(site.path("nodes/n1"), "fail|Ann: new cable").unwrap();
    let lost = site.result(LOST, "n1", "b1");
    assert!(site.apply(&policy, &[&lost], 4).contains("left alone"));
    assert_eq!(site.slurm("n1"), "fail|Ann: new cable");
    // dhc's own, which has to be taken away when the node passes.
    let lost = site.result(LOST, "n2", "b1");
    site.apply(&policy, &[&lost], 0);
    assert_eq!(site.slurm("n2"), "fail|Action:Reboot");
    let sound = site.verify(&on(SOUND, "n2", "b2"), &policy, &[&lost], &[]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    assert_eq!(site.slurm("n2"), "idle", "{sound:?}");
    let calls = site.tools.calls("scontrol");
    let last = calls.last().unwrap();
    assert_eq!(*last, format!("update ReservationName={OURS} Nodes=n1"));
}

#[test]
fn a_node_that_is_reserved_and_not_marked_is_let_go_of_when_it_passes() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    std::fs::write(site.path("reservations"), reservation(OURS, "MAINT", "n1")).unwrap();
    let sound = site.verify(&on(SOUND, "n1", "b1"), &policy, &[&lost], &[]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    let said = String::from_utf8_lossy(&sound.stderr);
    assert!(
        said.contains(&format!("out of the reservation {OURS}")),
        "{said}"
    );
    assert!(!site.path("reservations").exists());
}

#[test]
fn what_somebody_else_has_reserved_for_maintenance_is_left_alone_idle_or_busy() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    for name in ["weekly", "dhc-firmware"] {
        // The node shows no sign of it while a job runs there.
        std::fs::write(site.path("reservations"), reservation(name, "MAINT", "n1")).unwrap();
        assert!(site.apply(&policy, &[&lost], 4).contains(name));
        assert_eq!(site.acts(), 0);
        let sound = site.verify(&on(SOUND, "n1", "b1"), &policy, &[&lost], &[]);
        assert_eq!(sound.status.code(), Some(4), "{sound:?}");
        assert!(site.path("reservations").exists(), "{name} was deleted");
    }
    // A project's own nodes are looked after like any others.
    std::fs::write(
        site.path("reservations"),
        reservation("project", "FLEX", "n1"),
    )
    .unwrap();
    assert_eq!(outcomes(&site.apply(&policy, &[&lost], 0)), ["n1 done"]);
}

#[test]
fn a_reason_that_begins_like_dhc_s_is_not_dhc_s() {
    let site = Site::new();
    let policy = site.policy("default");
    let mark = "drain|dhc: bad fan, ticket 4711 (Ann)";
    std::fs::write(site.path("nodes/n1"), mark).unwrap();
    let lost = site.result(LOST, "n1", "b1");
    assert!(site.apply(&policy, &[&lost], 4).contains("left alone"));
    let sound = site.verify(&on(SOUND, "n1", "b1"), &policy, &[&lost], &[]);
    assert_eq!(sound.status.code(), Some(4), "{sound:?}");
    assert_eq!(site.slurm("n1"), mark);
}

#[test]
fn a_name_that_means_many_nodes_is_touched_by_nothing() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "ALL", "b1");
    let said = site.apply(&policy, &[&lost], 4);
    assert!(said.contains("no node of this very name"), "{said}");
    assert_eq!(site.acts(), 0);
}

#[test]
fn a_node_is_given_back_for_what_it_was_taken_out_for_and_for_nothing_else() {
    const LINK_DOWN: &str = "p5.48xlarge-link-down";
    let site = Site::new();
    let policy = site.policy("default");
    let links = site.path("links.json");
    std::fs::rename(site.result_of("nvlink", LINK_DOWN, "n1", "b1"), &links).unwrap();
    site.apply(&policy, &[&links], 0);
    let memory = site.result_of("gpu-memory", "p5.48xlarge-remap-pending", "n1", "b1");
    let refused = |why: &str| {
        // The memory of this machine is well, and the link is down as before.
        let output = site.verify(&on(LINK_DOWN, "n1", "b2"), &policy, &[&memory], &[]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("taken out on the word of run") && said.contains(why),
            "{said}"
        );
        assert!(site.slurm("n1").starts_with("drain"));
    };
    refused("nvlink.link_down");
    // The mark itself tells as well.
    let history = site.path("history.sqlite");
    std::fs::rename(&history, site.path("lost")).unwrap();
    refused("not among those named");
    std::fs::rename(site.path("lost"), &history).unwrap();
    for results in [&[&*links] as &[&Path], &[&*links, &*memory]] {
        let down = site.verify(&on(LINK_DOWN, "n1", "b2"), &policy, results, &[]);
        assert_eq!(down.status.code(), Some(2), "{down:?}");
        assert!(site.slurm("n1").starts_with("drain"));
    }
    // That a later run did not see it is no proof either.
    let later = site.result_of("nvlink", SOUND, "n1", "b2");
    let down = site.verify(&on(LINK_DOWN, "n1", "b3"), &policy, &[&links, &later], &[]);
    assert_eq!(down.status.code(), Some(2), "{down:?}");
    let sound = site.verify(&on(SOUND, "n1", "b3"), &policy, &[&links, &later], &[]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    assert_eq!(site.slurm("n1"), "idle");
}

#[test]
fn a_node_is_given_back_by_the_rules_by_which_it_was_taken_out() {
    let site = Site::new();
    let policy = site.policy("default");
    let strict = site.path("strict.toml");
    std::fs::write(&strict, STRICT).unwrap();
    let file = strict.to_str().unwrap();
    let args = ["--check", "gpu-count", "--thresholds", file];
    let failed = site.result_with(&args, SOUND, "n1", "b1");
    site.apply(&policy, &[&failed], 0);
    assert!(site.slurm("n1").starts_with("drain"));
    let here = on(SOUND, "n1", "b2");
    let still = site.verify(&here, &policy, &[&failed], &[]);
    assert_eq!(still.status.code(), Some(2), "{still:?}");
    let moved = site.path("moved.toml");
    std::fs::rename(&strict, &moved).unwrap();
    let gone = site.verify(&here, &policy, &[&failed], &[]);
    assert_eq!(gone.status.code(), Some(4), "{gone:?}");
    let said = String::from_utf8_lossy(&gone.stderr);
    assert!(
        said.contains("strict.toml") && said.contains("--thresholds"),
        "{said}"
    );
    let named = ["--thresholds", moved.to_str().unwrap()];
    let still = site.verify(&here, &policy, &[&failed], &named);
    assert_eq!(still.status.code(), Some(2), "{still:?}");
    std::fs::write(&strict, STRICT.replace("= 9", "= 8")).unwrap();
    let changed = site.verify(&here, &policy, &[&failed], &[]);
    assert_eq!(changed.status.code(), Some(4), "{changed:?}");
    assert!(String::from_utf8_lossy(&changed.stderr).contains("has changed since"));
    assert!(site.slurm("n1").starts_with("drain"));
}

#[test]
fn a_node_is_checked_again_with_the_type_and_the_options_of_its_run() {
    let site = Site::new();
    let policy = site.policy("default");
    // Judged as what it is not: a p5.4xlarge has one GPU.
    let args = [
        "--check",
        "gpu-count",
        "--instance-type",
        "p5.4xlarge",
        "--set",
        "dcgm-diag.level=2",
    ];
    let failed = site.result_with(&args, SOUND, "n1", "b1");
    let mut report: Value = serde_json::from_slice(&std::fs::read(&failed).unwrap()).unwrap();
    let options = serde_json::json!({"dcgm-diag": {"level": "2"}});
    assert_eq!(report["run"]["options"], options);
    site.apply(&policy, &[&failed], 0);
    assert!(site.slurm("n1").starts_with("drain"), "{report}");
    let here = on(SOUND, "n1", "b2");
    let still = site.verify(&here, &policy, &[&failed], &[]);
    assert_eq!(still.status.code(), Some(2), "{still:?}");
    report["run"]["options"] = serde_json::json!({"gpu-count": {"depth": "3"}});
    std::fs::write(&failed, report.to_string()).unwrap();
    let unknown = site.verify(&here, &policy, &[&failed], &[]);
    assert_eq!(unknown.status.code(), Some(4), "{unknown:?}");
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("depth"),
        "{unknown:?}"
    );
    // The table of another edition judges otherwise.
    report["run"]["options"] = serde_json::json!({});
    report["judged_by"]["sha256"] = "0".repeat(64).into();
    std::fs::write(&failed, report.to_string()).unwrap();
    let other = site.verify(&here, &policy, &[&failed], &[]);
    assert_eq!(other.status.code(), Some(4), "{other:?}");
    assert!(String::from_utf8_lossy(&other.stderr).contains("built-in table of p5.4xlarge"));
    assert!(site.slurm("n1").starts_with("drain"));
}

#[test]
fn options_that_a_result_does_not_record_are_said_to_be_the_defaults() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&lost], 0);
    let here = || on(LOST, "n1", "b2");
    let said = |output: std::process::Output| {
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // None were set, and the result says so.
    let recorded = said(site.verify(&here(), &policy, &[&lost], &[]));
    assert!(!recorded.contains("did not record"), "{recorded}");
    let mut report: Value = serde_json::from_slice(&std::fs::read(&lost).unwrap()).unwrap();
    report["run"].as_object_mut().unwrap().remove("options");
    std::fs::write(&lost, report.to_string()).unwrap();
    let old = said(site.verify(&here(), &policy, &[&lost], &[]));
    assert!(
        old.contains("did not record") && old.contains("gpu-count"),
        "{old}"
    );
}

#[test]
fn a_node_is_given_back_from_itself_and_from_no_other() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&lost], 0);
    let elsewhere = site.verify(&on(SOUND, "n2", "b2"), &policy, &[&lost], &["--node", "n1"]);
    assert_eq!(elsewhere.status.code(), Some(4), "{elsewhere:?}");
    let said = String::from_utf8_lossy(&elsewhere.stderr);
    assert!(said.contains("this machine is n2"), "{said}");
    assert!(site.slurm("n1").starts_with("drain"));
    // The same machine by another name.
    let renamed = on(SOUND, "n1", "b2").file("/proc/sys/kernel/hostname", "box\n");
    let renamed = site.verify(&renamed, &policy, &[&lost], &["--node", "n1"]);
    assert_eq!(renamed.status.code(), Some(0), "{renamed:?}");
    assert_eq!(site.slurm("n1"), "idle");
}

#[test]
fn a_reset_that_is_asked_for_as_a_reboot_counts_as_one() {
    let site = Site::new();
    let resets = |policy: PathBuf| {
        let text = std::fs::read_to_string(&policy).unwrap();
        let own = ["gpu.missing", "nvlink.link_down"].map(|class| format!("\"{class}\""));
        let kept = text
            .lines()
            .filter(|line| !own.iter().any(|class| line.starts_with(class)));
        let text: Vec<&str> = kept.collect();
        let [missing, down] = own.map(|class| format!("{class} = \"reset\"\n"));
        let text = text
            .join("\n")
            .replace("[actions]", &format!("[actions]\n{missing}{down}"));
        std::fs::write(&policy, text).unwrap();
        policy
    };
    let policy = resets(site.policy("hyperpod"));
    for (check, machine, boot) in [
        ("gpu-count", "p5.48xlarge-seven-gpus", "b1"),
        ("nvlink", "p5.48xlarge-link-down", "b2"),
    ] {
        let result = site.result_of(check, machine, "n1", boot);
        // The node still bears the mark of the reboot before, word for word, and needs another.
        assert_eq!(outcomes(&site.apply(&policy, &[&result], 0)), ["n1 done"]);
        assert_eq!(site.slurm("n1"), "fail|Action:Reboot");
    }
    assert_eq!(site.acts(), 2);
    let third = site.result_of("gpu-memory", "p5.48xlarge-remap-pending", "n1", "b3");
    let plan = site.plan(policy.to_str().unwrap(), &[&third]);
    assert_eq!(plan["steps"][0]["action"], "replace", "{plan}");
    // Under a policy that can ask for a reset it is none.
    let seven = site.result("p5.48xlarge-seven-gpus", "n2", "b1");
    let actions = [resets(site.policy("default")), policy].map(|policy| {
        let plan = site.plan(policy.to_str().unwrap(), &[&seven]);
        plan["steps"][0]["action"].as_str().unwrap().to_owned()
    });
    assert_eq!(actions, ["reset", "reboot"]);
}
