//! From results to action, by the built program: `scontrol` is a script here that keeps state and reason of each node in a
//! file, whose time is that of the reason. The same against a real slurmctld stands in `cluster_recovery.rs`.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it left"
)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Dhc, enforced_policy};
use dhc_fixtures::FakeNode;
use dhc_runners::tables;
use dhc_thresholds::{
    CheckReport, Ending, Identity, Kind, NodeReport, Record, Report, Run, Status, Subject,
};
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
             if [ -e \"{nodes}/$name.boot\" ]; then echo \"   BootTime=$(cat \"{nodes}/$name.boot\") SlurmdStartTime=None\"; fi\n\
             if [ -s \"{nodes}/$name.comment\" ]; then echo \"   Comment=$(cat \"{nodes}/$name.comment\")\"; fi\n\
             if [ -e \"{nodes}/$name.instance\" ]; then echo \"   InstanceId=$(cat \"{nodes}/$name.instance\") InstanceType=p5\"; fi\n\
             if [ -n \"$reason\" ]; then at=$(date -r \"{nodes}/$name\" +%Y-%m-%dT%H:%M:%S); echo \"   Reason=$reason [root@$at]\"; fi\n\
             exit;;\n\
             'show reservation')\n\
             if [ -e \"{here}/hook\" ]; then mv \"{here}/hook\" \"{here}/hook.run\"; sh \"{here}/hook.run\"; fi\n\
             cat \"{here}/reservations\" 2>/dev/null || echo 'No reservations in the system'; exit;;\n\
             'show hostnames') echo \"$3\" | tr , '\\n'; exit;;\n\
             'delete '*) rm \"{here}/reservations\"; exit;;\n\
             esac\n\
             state=\n\
             for word in \"$@\"; do case $word in\n\
             nodename=*) node=${{word#*=}};; state=*) state=${{word#*=}};; reason=*) reason=${{word#*=}};;\n\
             comment=*) echo \"${{word#*=}}\" > \"{here}/comment\";; esac; done\n\
             if [ -e \"{here}/hold-before\" ]; then touch \"{here}/held\"; sleep 60; fi\n\
             if [ -e \"{here}/comment\" ]; then mv \"{here}/comment\" \"{nodes}/$node.comment\"; fi\n\
             case $state in '') ;; resume) rm -f \"{nodes}/$node\";; *) echo \"$state|$reason\" > \"{nodes}/$node\";; esac\n\
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
            .arg("--state")
            .arg(self.path("head"))
            .arg("--tools")
            .arg(self.tools.tools())
            .args(results);
        let history = self.path("history.sqlite");
        if what == "apply" || history.exists() {
            command.arg("--history").arg(history);
        }
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
            .filter(|call| call.starts_with("update ") && call.contains("state="))
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
    assert_eq!(outcomes(&site.apply(&policy, &[&lost], 0)), ["n1 held"]);
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
    assert_eq!(outcomes(&site.apply(&policy, &[&lost], 0)), ["n1 held"]);
    assert_eq!(site.acts(), 0);
}

/// Eight GPUs that are sound are not those of a type with other ones.
#[test]
fn a_node_that_was_judged_as_another_type_than_its_own_is_not_touched() {
    let site = Site::new();
    let policy = site.policy("default");
    let wrong = changed(&site.result(LOST, "n1", "b1"), "wrong.json", |report| {
        report["nodes"][0]["identity"]["contradicting_type"] = "p5en.48xlarge".into();
    });
    let plan = site.plan("default", &[&wrong]);
    let held = plan["steps"][0]["held"].as_str().unwrap();
    assert!(held.contains("`p5en.48xlarge`"), "{plan}");
    assert_eq!(outcomes(&site.apply(&policy, &[&wrong], 0)), ["n1 held"]);
    assert_eq!(site.acts(), 0);
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
    assert_eq!(said, [["n1 done"], ["n1 held"]]);
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
    // Marked on the word of one, it is not marked again on the word of the other as long as it is marked.
    site.apply(&policy, &[&outside], 0);
    let plan = site.plan("default", &[&own]);
    let noted = plan["steps"][0]["noted"].as_str().unwrap();
    assert!(noted.contains("if it still is"), "{plan}");
    let said = site.apply(&policy, &[&own], 0);
    assert_eq!(outcomes(&said), ["n1 held"]);
    assert!(said.contains("for a reboot already"), "{said}");
    assert_eq!(site.acts(), 1);
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
    // As of a machine whose firmware names no type, or it would not be touched.
    let identity = report["nodes"][0]["identity"].as_object_mut().unwrap();
    assert!(identity.remove("contradicting_type").is_some());
    std::fs::write(&failed, report.to_string()).unwrap();
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

/// A result that was stored, changed.
fn changed(result: &Path, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut report: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    change(&mut report);
    let path = result.with_file_name(name);
    std::fs::write(&path, report.to_string()).unwrap();
    path
}

fn run_of(result: &Path) -> String {
    let report: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    report["run"]["id"].as_str().unwrap().to_owned()
}

/// Past the second in which Slurm has noted the last reason.
fn a_second_later() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

const LINK_DOWN: &str = "p5.48xlarge-link-down";

#[test]
fn a_machine_that_was_started_or_exchanged_since_the_result_is_not_marked() {
    for (file, text, why) in [
        ("boot", "2999-01-01T00:00:00", "was started at 2999-01-01"),
        ("instance", "i-0new", "is the machine i-0new now"),
    ] {
        let site = Site::new();
        let policy = site.policy("hyperpod");
        let lost = site.result(LOST, "n1", "b1");
        let told = site.path(&format!("nodes/n1.{file}"));
        std::fs::write(&told, text).unwrap();
        let said = site.apply(&policy, &[&lost], 0);
        assert_eq!(outcomes(&said), ["n1 held"], "{said}");
        assert!(said.contains(why), "{said}");
        assert_eq!(site.acts(), 0);
        // What Slurm tells of the very machine, or does not tell, stops nothing.
        for text in ["2020-01-01T00:00:00", "None"] {
            std::fs::write(&told, if file == "boot" { text } else { "i-0n1" }).unwrap();
            let outcome = outcomes(&site.apply(&policy, &[&lost], 0));
            assert!(
                ["n1 done", "n1 held"].contains(&&*outcome[0]),
                "{outcome:?}"
            );
        }
        assert_eq!(site.acts(), 1);
    }
}

#[test]
fn a_replacement_that_is_asked_for_is_never_made_a_reboot() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let links = site.result_of("nvlink", LINK_DOWN, "n1", "b1");
    site.apply(&policy, &[&links], 0);
    assert_eq!(site.slurm("n1"), "fail|Action:Replace");
    for boot in ["b1", "b2"] {
        for is_lost in [false, true] {
            if is_lost {
                std::fs::rename(site.path("history.sqlite"), site.path("lost")).unwrap();
            }
            let missing = site.result("p5.48xlarge-seven-gpus", "n1", boot);
            let said = site.apply(&policy, &[&missing], 0);
            assert_eq!(outcomes(&said), ["n1 held"], "{said}");
            assert!(said.contains("for a replace already"), "{said}");
            assert_eq!(site.slurm("n1"), "fail|Action:Replace");
            if is_lost {
                std::fs::rename(site.path("lost"), site.path("history.sqlite")).unwrap();
            }
        }
    }
    assert_eq!(site.acts(), 1);
}

#[test]
fn a_mark_that_was_made_while_the_checks_ran_is_not_given_back() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let lost = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&lost], 0);
    let links = site.result_of("nvlink", LINK_DOWN, "n1", "b2");
    // Somebody else applies another result as soon as verify has looked.
    let applies = format!(
        "{} recover apply {} --policy {} --history {} --tools {} --state {} >\"{}\" 2>&1",
        env!("CARGO_BIN_EXE_dhc"),
        links.display(),
        policy.display(),
        site.path("history.sqlite").display(),
        site.tools.tools().display(),
        site.path("head").display(),
        site.path("applied").display(),
    );
    std::fs::write(site.path("hook"), applies).unwrap();
    let sound = site.verify(&on(SOUND, "n1", "b3"), &policy, &[&lost], &[]);
    let applied = std::fs::read_to_string(site.path("applied")).unwrap();
    assert_eq!(site.slurm("n1"), "fail|Action:Replace", "{applied}");
    assert_eq!(sound.status.code(), Some(4), "{sound:?}");
    let said = String::from_utf8_lossy(&sound.stderr);
    assert!(
        said.contains("it was marked meanwhile") && said.contains(&run_of(&links)),
        "{said}"
    );
    let both = site.verify(&on(SOUND, "n1", "b3"), &policy, &[&lost, &links], &[]);
    assert_eq!(both.status.code(), Some(0), "{both:?}");
    assert_eq!(site.slurm("n1"), "idle");
}

#[test]
fn a_comment_that_dhc_has_left_vouches_for_nobody_s_later_mark() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let lost = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&lost], 0);
    // HyperPod reboots the node and resumes it, and Slurm keeps the comment. Then Ann asks for a reboot, in the same words.
    std::fs::remove_file(site.path("nodes/n1")).unwrap();
    a_second_later();
    std::fs::write(site.path("nodes/n1"), "fail|Action:Reboot").unwrap();
    assert!(site.path("nodes/n1.comment").exists());
    let links = site.result_of("nvlink", LINK_DOWN, "n1", "b2");
    let said = site.apply(&policy, &[&links], 4);
    assert_eq!(outcomes(&said), ["n1 left_alone"], "{said}");
    let sound = site.verify(&on(SOUND, "n1", "b3"), &policy, &[&lost], &[]);
    assert_eq!(sound.status.code(), Some(4), "{sound:?}");
    assert_eq!(site.slurm("n1"), "fail|Action:Reboot");
}

#[test]
fn a_node_that_was_given_back_elsewhere_can_be_marked_again_in_the_same_boot() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    site.apply(&policy, &[&lost], 0);
    // On the node itself, which has no history of its own.
    let (head, history) = (site.path("head.sqlite"), site.path("history.sqlite"));
    std::fs::rename(&history, &head).unwrap();
    let sound = site.verify(&on(SOUND, "n1", "b1"), &policy, &[&lost], &[]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    assert_eq!(site.slurm("n1"), "idle");
    std::fs::rename(&head, &history).unwrap();
    let again = site.result(LOST, "n1", "b1");
    let plan = site.plan("default", &[&again]);
    assert!(plan["steps"][0]["held"].is_null(), "{plan}");
    assert_eq!(outcomes(&site.apply(&policy, &[&again], 0)), ["n1 done"]);
    assert!(site.slurm("n1").starts_with("drain"));
}

#[test]
fn a_mark_tells_of_every_run_that_is_open_whatever_history_is_there() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let memory = site.result_of("gpu-memory", "p5.48xlarge-remap-failed", "n1", "b1");
    let links = site.result_of("nvlink", LINK_DOWN, "n1", "b2");
    for result in [&memory, &links] {
        assert_eq!(outcomes(&site.apply(&policy, &[result], 0)), ["n1 done"]);
        assert_eq!(site.slurm("n1"), "fail|Action:Replace");
    }
    std::fs::remove_file(site.path("history.sqlite")).unwrap();
    let here = on(SOUND, "n1", "b3");
    let one = site.verify(&here, &policy, &[&links], &[]);
    assert_eq!(one.status.code(), Some(4), "{one:?}");
    let said = String::from_utf8_lossy(&one.stderr);
    assert!(said.contains(&run_of(&memory)), "{said}");
    assert_eq!(site.slurm("n1"), "fail|Action:Replace");
    let both = site.verify(&here, &policy, &[&links, &memory], &[]);
    assert_eq!(both.status.code(), Some(0), "{both:?}");
    assert_eq!(site.slurm("n1"), "idle");
}

#[test]
fn nodes_that_claim_to_be_one_machine_are_as_many_as_their_names() {
    let site = Site::new();
    let policy = site.policy("default");
    let results = [1, 2, 3].map(|node| {
        let result = site.result(LOST, &format!("n{node}"), "b1");
        changed(&result, &format!("same{node}.json"), |report| {
            report["nodes"][0]["identity"]["instance_id"] = "i-0same".into();
        })
    });
    let results = results.each_ref().map(PathBuf::as_path);
    let said = site.apply(&policy, &results, 4);
    assert_eq!(outcomes(&said), ["n1 held", "n2 held", "n3 held"]);
    // Nor do they pass one after the other.
    for (result, exit) in results.iter().zip([0, 0, 4]) {
        site.apply(&policy, &[result], exit);
    }
    assert_eq!(site.acts(), 2);
}

#[test]
fn a_result_that_has_expired_hides_no_fault_that_another_has_found() {
    let site = Site::new();
    let policy = site.policy("default");
    let links = site.path("links.json");
    std::fs::rename(site.result_of("nvlink", LINK_DOWN, "n1", "b1"), &links).unwrap();
    let old = changed(&site.result(LOST, "n1", "b1"), "old.json", |report| {
        report["run"]["expires_at"] = "2020-01-01T00:00:00Z".into();
    });
    for results in [[&*old, &*links], [&*links, &*old]] {
        let plan = site.plan("default", &results);
        let step = &plan["steps"][0];
        assert!(step["held"].is_null(), "{plan}");
        let causes: Vec<&Value> = step["causes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cause| &cause["check"])
            .collect();
        assert!(causes.iter().all(|check| **check == "nvlink"), "{plan}");
    }
    assert_eq!(
        outcomes(&site.apply(&policy, &[&old, &links], 0)),
        ["n1 done"]
    );
    assert!(site.slurm("n1").starts_with("drain|dhc:nvlink."));
    let unreadable = changed(&old, "unreadable.json", |report| {
        report["run"]["expires_at"] = "soon".into()
    });
    let plan = site.plan("default", &[&unreadable]);
    let held = plan["steps"][0]["held"].as_str().unwrap();
    assert!(held.contains("cannot be read (`soon`)"), "{held}");
}

#[test]
fn a_result_of_a_clock_that_is_ahead_is_held_and_hides_none_of_today() {
    let site = Site::new();
    let policy = site.policy("default");
    let ahead = |result: &Path, name: &str| {
        changed(result, name, |report| {
            report["run"]["id"] = "03ZZZZZZZZ0000000000000000".into();
            report["run"]["expires_at"] = "9999-01-01T00:00:00Z".into();
        })
    };
    let lost = site.path("lost.json");
    std::fs::rename(site.result(LOST, "n1", "b1"), &lost).unwrap();
    let sound = site.result(SOUND, "n1", "b1");
    let (lost_ahead, sound_ahead) = (ahead(&lost, "la.json"), ahead(&sound, "sa.json"));
    let said_later = changed(&lost, "later.json", |report| {
        report["run"]["started_at"] = "2999-01-01T00:00:00Z".into();
    });
    for results in [
        &[&*lost_ahead] as &[&Path],
        &[&*lost_ahead, &*sound],
        &[&*said_later],
    ] {
        let said = site.apply(&policy, results, 0);
        assert_eq!(outcomes(&said), ["n1 held"], "{said}");
        assert!(said.contains("a clock is wrong"), "{said}");
        assert_eq!(site.acts(), 0);
    }
    let said = site.apply(&policy, &[&sound_ahead, &lost], 0);
    assert_eq!(outcomes(&said), ["n1 done"], "{said}");
}

#[test]
fn a_run_is_acted_upon_once_however_it_is_judged() {
    let site = Site::new();
    let policy = site.policy("hyperpod");
    let links = site.result_of("nvlink", LINK_DOWN, "n1", "b1");
    site.apply(&policy, &[&links], 0);
    std::fs::remove_file(site.path("nodes/n1")).unwrap();
    let otherwise = changed(&links, "otherwise.json", |report| {
        for fault in report["nodes"][0]["faults"].as_array_mut().unwrap() {
            fault["class"] = "gpu.memory.remap_failed".into();
        }
    });
    let said = site.apply(&policy, &[&otherwise], 0);
    assert_eq!(outcomes(&said), ["n1 held"], "{said}");
    assert!(said.contains("on the word of this very run"), "{said}");
    assert_eq!(site.slurm("n1"), "idle");
}

#[test]
fn a_check_that_is_left_out_has_not_passed() {
    let site = Site::new();
    let policy = site.policy("default");
    // A fault of a kind of device besides, which this machine turns out not to have.
    let lost = changed(&site.result(LOST, "n1", "b1"), "lost.json", |report| {
        let faults = report["nodes"][0]["faults"].as_array_mut().unwrap();
        let mut device = faults[0].clone();
        device["class"] = "neuron.missing".into();
        device["check"] = "neuron-count".into();
        faults.push(device);
    });
    let here = || on(SOUND, "n1", "b2");
    let again = Dhc::on(here()).run(&["--check", "gpu-count,neuron-count"]);
    let skipped = again.check("neuron-count").status;
    assert_eq!((again.exit, skipped), (0, Status::Skip));
    site.apply(&policy, &[&lost], 0);
    let output = site.verify(&here(), &policy, &[&lost], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(said.contains("neuron-count did not pass again"), "{said}");
    assert!(site.slurm("n1").starts_with("drain"));
}

/// What a run of today finds of the bandwidth of the network cards of a node; its card 3 has this one.
fn loopback(node: usize, number: u64, bandwidth: f64) -> Report {
    let metric = |name: &str| {
        *tables::metrics_of("efa-loopback")
            .iter()
            .find(|metric| metric.name == name)
            .unwrap()
    };
    let mut record = Record::new("efa-loopback", Ending::Finished);
    for card in 0..32 {
        let subject = Subject::new(Kind::Nic, format!("rdmap{card}s0"));
        let sound = 11.8 + ((node * 7 + card * 5) % 11) as f64 * 0.02;
        let value = if card == 3 { bandwidth } else { sound };
        let metric = metric("efa.loopback.bandwidth");
        record
            .measurements
            .push(metric.of(subject, value).over("efa").at_bytes(1 << 20));
    }
    let chosen = tables::built_in_table("p5.48xlarge").unwrap();
    let check = CheckReport::new(record, &tables::metrics_of("efa-loopback"), &chosen.table);
    let identity = Identity {
        instance_id: Some(format!("i-{node:08}")),
        instance_type: Some("p5.48xlarge".to_owned()),
        boot_id: Some(format!("boot-{node}")),
        ..Identity::default()
    };
    let node = NodeReport::new(format!("node{node}"), identity, vec![check]);
    let now = std::time::SystemTime::now();
    let id = ulid::Ulid::from_datetime(now - std::time::Duration::from_secs(1000 - number));
    let run = Run {
        id: id.to_string(),
        dhc: "0.1.0".to_owned(),
        level: "instance".to_owned(),
        started_at: "2026-01-02T03:04:05Z".to_owned(),
        duration_ms: 1,
        expires_at: "9000-01-02T03:04:05Z".to_owned(),
        environment: BTreeMap::new(),
        options: None,
    };
    Report::new(run, chosen.judged_by, vec![node])
}

#[test]
fn what_others_were_needed_to_see_is_acted_upon_once_and_not_verified_alone() {
    let site = Site::new();
    let policy = site.policy("default");
    let keep = |name: &str, report: &Report| {
        let path = site.path(name);
        std::fs::write(&path, serde_json::to_vec(report).unwrap()).unwrap();
        path
    };
    let all = (0..3).flat_map(|number| (0..7).map(move |node| (number, node)));
    let all: Vec<PathBuf> = all
        .map(|(number, node)| {
            let speed = if node == 4 { 11.0 } else { 11.9 };
            keep(
                &format!("{node}-{number}.json"),
                &loopback(node, number, speed),
            )
        })
        .collect();
    let compared = |name: &str, results: &[PathBuf]| {
        let mut compare = Command::new(env!("CARGO_BIN_EXE_dhc"));
        let output = compare
            .args(["compare", "--format", "json"])
            .args(results)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        std::fs::write(site.path(name), output.stdout).unwrap();
        site.path(name)
    };
    let first = compared("first.json", &all);
    assert_eq!(outcomes(&site.apply(&policy, &[&first], 0)), ["node4 done"]);
    let sound = site.verify(&on(SOUND, "node4", "boot-4"), &policy, &[&first], &[]);
    assert_eq!(sound.status.code(), Some(4), "{sound:?}");
    let said = String::from_utf8_lossy(&sound.stderr);
    assert!(said.contains("`dhc compare` with efa-loopback"), "{said}");
    assert!(site.slurm("node4").starts_with("drain"));
    // Given back by hand; the same once more, also with newer runs of others, has nothing new to say of it.
    std::fs::remove_file(site.path("nodes/node4")).unwrap();
    let newer = keep("newer.json", &loopback(0, 500, 11.9));
    let again = compared("again.json", &[all.clone(), vec![newer]].concat());
    let said = site.apply(&policy, &[&again], 0);
    assert_eq!(outcomes(&said), ["node4 held"], "{said}");
    // A newer run of its own says more than a comparison of what was before.
    let passes = keep("passes.json", &loopback(4, 400, 11.9));
    for results in [[&*again, &*passes], [&*passes, &*again]] {
        let plan = site.plan("default", &results);
        let mut steps = plan["steps"].as_array().unwrap().iter();
        let step = steps.find(|step| step["node"] == "node4").unwrap();
        // The rest of the check is not in these results.
        assert_eq!(step["action"], "none", "{plan}");
    }
    assert_eq!(site.acts(), 1);
}

#[test]
fn a_reason_that_slurm_would_not_give_back_as_it_is_is_refused_with_its_line() {
    let site = Site::new();
    let lost = site.result(LOST, "n1", "b1");
    let text = std::fs::read_to_string(site.policy("default")).unwrap();
    let long = "{run}".repeat(8);
    for (reason, why) in [
        ("the node's fault", "quotes"),
        ("a `fault`", "backticks"),
        (r"a \\ fault", "backslashes"),
        ("a fault ", "blank"),
        (&*long, "up to 208"),
    ] {
        let policy = site.path("bad.toml");
        std::fs::write(&policy, text.replace("dhc:{class}:{run}:reboot", reason)).unwrap();
        let output = site.recover("apply", &policy, &[&lost]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(
            said.contains(why) && said.contains("line 40"),
            "{reason}: {said}"
        );
    }
    assert_eq!(site.acts(), 0);
}

#[test]
fn a_history_that_is_named_has_to_be_there_unless_it_is_to_be_made() {
    let site = Site::new();
    let policy = site.policy("default");
    let lost = site.result(LOST, "n1", "b1");
    let mistyped = site.path("histroy.sqlite");
    for command in [
        vec!["recover".as_ref(), "plan".as_ref(), lost.as_os_str()],
        vec!["history".as_ref(), "n1".as_ref()],
        vec!["history".as_ref()],
    ] {
        let mut dhc = Command::new(env!("CARGO_BIN_EXE_dhc"));
        let output = dhc
            .args(command)
            .arg("--history")
            .arg(&mistyped)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("there is no history") && said.contains("histroy"),
            "{said}"
        );
        assert!(!mistyped.exists());
    }
    let said = |output: Output| String::from_utf8(output.stderr).unwrap();
    let made = said(site.recover("apply", &policy, &[&lost]));
    assert!(
        made.contains("made the history") && made.contains("history.sqlite"),
        "{made}"
    );
    assert!(!said(site.recover("apply", &policy, &[&lost])).contains("made the history"));
}

#[test]
fn a_result_of_a_newer_dhc_is_told_from_one_that_was_cut_short() {
    let site = Site::new();
    let lost = site.result(LOST, "n1", "b1");
    let newer = changed(&lost, "newer.json", |report| {
        report["status"] = "limping".into()
    });
    let text = std::fs::read(&lost).unwrap();
    let cut = site.path("cut.json");
    std::fs::write(&cut, &text[..text.len() / 2]).unwrap();
    for (result, words) in [(newer, "use the dhc that wrote it"), (cut, "cut short")] {
        let output = site.recover("plan", Path::new("default"), &[&result]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words), "{said}");
    }
}
