//! `dcgm-diag` as the runner calls it: a simulated machine, a `dcgmi` that is a small script, the real check and judge.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests make the machine that the check looks at"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dhc_checks::catalog::{CHECKS, find};
use dhc_checks::check::{Event, Task, run};
use dhc_checks::host::Host;
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Record, Status, Verdict, built_in, judge};
use serde_json::{Value, json};

/// Running a tool takes every descendant of the process for the tool's, so only one test at a time may do so.
static ALONE: Mutex<()> = Mutex::new(());

/// A p5.48xlarge with this script as its `dcgmi`.
struct Bench {
    node: FakeNode,
    options: BTreeMap<String, String>,
    deadline: Duration,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            node: FakeNode::p5_48xlarge(),
            options: BTreeMap::new(),
            deadline: Duration::from_secs(60),
        }
    }

    fn dcgmi(self, script: &str) -> Bench {
        let path = self.node.tools().join("dcgmi");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// A `dcgmi` that prints `text` and ends with `status`, if it is asked for this level.
    fn prints(self, text: &str, status: i32, level: u8) -> Bench {
        let output = self.node.root().join("dcgmi.out");
        std::fs::write(&output, text).unwrap();
        self.level(&level.to_string()).dcgmi(&format!(
            "[ \"$*\" = \"diag -r {level} -j\" ] || exit 255\n/bin/cat {}\nexit {status}",
            output.display()
        ))
    }

    fn level(mut self, level: &str) -> Bench {
        self.options.insert("level".to_owned(), level.to_owned());
        self
    }

    fn deadline(mut self, deadline: Duration) -> Bench {
        self.deadline = deadline;
        self
    }

    /// A process on the machine.
    fn process(self, id: u32, name: &str) -> Bench {
        let folder = self.node.root().join(format!("proc/{id}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
        self
    }

    fn record(&self) -> Record {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut host = Host::of_this_machine(&BTreeMap::new());
        host.root = self.node.root();
        host.tools = vec![self.node.tools()];
        host.nvml = Some(self.node.nvml());
        let task = Task {
            host,
            instance_type: Some("p5.48xlarge".to_owned()),
            options: self.options.clone(),
            state: None,
            deadline: self.deadline,
        };
        let mut lines = Vec::new();
        run(find("dcgm-diag").unwrap(), &task, &mut lines).unwrap();
        let mut record = Record::new("dcgm-diag", Ending::Interrupted);
        for line in serde_json::Deserializer::from_slice(&lines).into_iter() {
            match line.unwrap() {
                Event::Measurement(measurement) => record.measurements.push(measurement),
                Event::Device(device) => record.devices.push(device),
                Event::Gap(gap) => record.gaps.push(gap),
                Event::Note(note) => record.notes.push(note),
                Event::Evidence(evidence) => record.evidence.push(evidence),
                Event::Progress(_) => {}
                Event::Failed(error) => record.ending = Ending::Failed { error },
                Event::TimedOut { after_ms } => record.ending = Ending::TimedOut { after_ms },
                Event::Finished => record.ending = Ending::Finished,
            }
        }
        record
    }

    fn verdict(&self) -> Verdict {
        judged(&self.record())
    }

    /// The error with which the check ended; it must neither pass nor accuse the hardware.
    fn error(&self) -> String {
        let record = self.record();
        let verdict = judged(&record);
        assert_eq!(verdict.status, Status::Error, "{:?}", verdict.findings);
        assert!(verdict.action <= Action::Retry, "{:?}", verdict.action);
        match record.ending {
            Ending::Failed { error } => error,
            Ending::TimedOut { .. } => format!("timed out: {}", record.notes.last().unwrap()),
            other => panic!("it ended with {other:?}"),
        }
    }
}

/// By the table of the p5.48xlarge: eight GPUs are due.
fn judged(record: &Record) -> Verdict {
    let metrics: Vec<_> = CHECKS
        .iter()
        .flat_map(|check| check.spec().metrics.iter().copied())
        .collect();
    let table = built_in::load("p5.48xlarge", &metrics).unwrap().unwrap();
    judge(record, find("dcgm-diag").unwrap().spec().metrics, &table)
}

fn output(file: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/outputs/dcgmi");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

/// A run of level 4 over eight sound GPUs.
fn sound() -> String {
    output("4.5-r4-pass.json")
}

/// The same, but `test` of GPU 3 has failed with this error.
fn with_error(test: &str, id: u32, severity: u32) -> String {
    let mut document: Value = serde_json::from_str(&sound()).unwrap();
    let categories = document["DCGM Diagnostic"]["test_categories"]
        .as_array_mut()
        .unwrap();
    let mut tests = categories
        .iter_mut()
        .flat_map(|category| category["tests"].as_array_mut().unwrap());
    let test = tests.find(|entry| entry["name"] == test).unwrap();
    let error = json!({"warning": "what DCGM says", "error_id": id, "error_severity": severity, "error_category": 15});
    test["results"][3]["status"] = json!("Fail");
    test["results"][3]["warnings"] = json!([error]);
    test["test_summary"] = json!({"status": "Fail", "warnings": [error]});
    document.to_string()
}

#[test]
fn a_sound_node_passes_and_is_summed_up_as_hyperpod_does() {
    let bench = Bench::new().prints(&sound(), 0, 4);
    let record = bench.record();
    let verdict = judged(&record);
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Pass, Action::None)
    );
    assert_eq!(
        record.notes.last().unwrap(),
        "DCGM diagnostic health summary: dcgmCheckLevel: 4 dcgmVersion: 4.5.3 gpuDriverVersion: 580.95.05, \
         gpuDeviceIds: [2330 2330 2330 2330 2330 2330 2330 2330] replacementRequired: false rebootRequired:false"
    );
    assert_eq!(record.evidence[0].argv, ["dcgmi", "diag", "-r", "4", "-j"]);
    assert_eq!(record.devices.len(), 8);
}

#[test]
fn a_banner_before_the_document_changes_nothing() {
    let text = format!(
        "Executing in Pod dcgm on Host a\nSuccessfully ran diagnostic for group.\n{}",
        sound()
    );
    assert_eq!(
        Bench::new().prints(&text, 0, 4).verdict().status,
        Status::Pass
    );
}

#[test]
fn level_4_is_the_default_and_the_level_can_be_set() {
    let mut bench = Bench::new().prints(&sound(), 0, 4);
    bench.options.clear();
    assert_eq!(bench.verdict().status, Status::Pass);
    assert_eq!(
        Bench::new().prints(&sound(), 0, 1).verdict().status,
        Status::Pass
    );
    let error = Bench::new().prints(&sound(), 0, 4).level("5").error();
    assert!(
        error.contains("`level`") && error.contains("1 to 4"),
        "{error}"
    );
}

#[test]
fn each_kind_of_error_is_what_it_asks_for_and_names_its_gpu() {
    use {Action::*, Status::*};
    for (test, id, severity, exit, status, action) in [
        ("memory", 52, 2, 205, Fail, Replace),
        ("eud", 95, 2, 205, Fail, Replace),
        ("software", 120, 2, 205, Fail, Reboot),
        ("software", 126, 2, 205, Fail, Reboot),
        ("software", 125, 6, 226, Fail, Reset),
        ("nccl_tests", 129, 6, 226, Fail, Reset),
        ("software", 85, 6, 226, Fail, Reboot),
        ("pcie", 30, 4, 226, Fail, Investigate),
        ("memory", 999, 2, 205, Fail, Replace),
        ("memory", 999, 3, 226, Fail, Investigate),
        ("software", 29, 5, 226, Warn, Investigate),
        ("pcie", 5, 1, 226, Warn, Action::None),
    ] {
        let verdict = Bench::new()
            .prints(&with_error(test, id, severity), exit, 4)
            .verdict();
        assert_eq!(
            (verdict.status, verdict.action),
            (status, action),
            "{id}: {:?}",
            verdict.findings
        );
        let finding = verdict
            .findings
            .iter()
            .find(|finding| finding.status == status)
            .unwrap();
        assert_eq!(finding.subject.name, format!("gpu3/{test}"), "{id}");
        assert!(
            finding.message.contains(&format!("DCGM error {id}")),
            "{}",
            finding.message
        );
    }
}

#[test]
fn a_test_that_could_not_run_is_neither_a_pass_nor_a_verdict_on_the_hardware() {
    for id in [56, 89, 90, 91, 92, 93, 94, 124, 130] {
        let verdict = Bench::new()
            .prints(&with_error("memory", id, 4), 226, 4)
            .verdict();
        assert_eq!(
            (verdict.status, verdict.action),
            (Status::Unknown, Action::None),
            "{id}"
        );
    }
}

#[test]
fn seven_gpus_are_not_a_sound_node() {
    let mut document: Value = serde_json::from_str(&sound()).unwrap();
    for category in document["DCGM Diagnostic"]["test_categories"]
        .as_array_mut()
        .unwrap()
    {
        for test in category["tests"].as_array_mut().unwrap() {
            test["results"].as_array_mut().unwrap().pop();
        }
    }
    // DCGM still lists the eighth, and says nothing of it.
    let text = document.to_string();
    assert_eq!(
        Bench::new().prints(&text, 0, 4).verdict().status,
        Status::Unknown
    );
    document["entity_groups"][0]["entities"]
        .as_array_mut()
        .unwrap()
        .pop();
    let verdict = Bench::new().prints(&document.to_string(), 0, 4).verdict();
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Fail, Action::Reboot)
    );
}

#[test]
fn an_absent_dcgmi_is_an_error_that_says_what_to_install() {
    let error = Bench::new().error();
    assert!(
        error.contains("`dcgmi` is not installed") && error.contains("datacenter-gpu-manager"),
        "{error}"
    );
}

#[test]
fn a_hung_dcgmi_that_ignores_sigterm_is_ended_at_the_deadline() {
    let bench = Bench::new()
        .deadline(Duration::from_secs(1))
        .dcgmi("trap '' TERM; while :; do /bin/sleep 1; done");
    let error = bench.error();
    assert!(
        error.starts_with("timed out") && error.contains("nv-hostengine"),
        "{error}"
    );
}

#[test]
fn a_document_before_a_hang_is_not_believed() {
    let bench = Bench::new()
        .prints(&sound(), 0, 4)
        .deadline(Duration::from_secs(1));
    let script = std::fs::read_to_string(bench.node.tools().join("dcgmi")).unwrap();
    let bench = bench.dcgmi(&script.replace("\nexit 0", "\nexec /bin/sleep 1000"));
    assert!(bench.error().starts_with("timed out"));
}

#[test]
fn a_flood_is_not_read_even_if_it_begins_with_a_pass() {
    let flood = format!("{}{}", sound(), "x".repeat(2 << 20));
    let error = Bench::new().prints(&flood, 0, 4).error();
    assert!(error.contains("more than any diagnosis has"), "{error}");
}

#[test]
fn success_without_output_is_not_a_pass() {
    let error = Bench::new().prints("", 0, 4).error();
    assert!(error.contains("printed nothing"), "{error}");
}

#[test]
fn garbage_is_not_a_pass() {
    for garbage in [
        "\u{1b}[31mhello",
        "{",
        "{}",
        "{\"DCGM Diagnostic\": 1}",
        "[1, 2]",
        &sound()[..9000],
    ] {
        let error = Bench::new().prints(garbage, 0, 4).error();
        assert!(error.contains("dcgmi ended with 0"), "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn an_exit_status_that_says_more_than_the_document_is_an_error() {
    let error = Bench::new().prints(&sound(), 226, 4).error();
    assert!(
        error.contains("226") && error.contains("shows none"),
        "{error}"
    );
    let error = Bench::new().prints(&sound(), 205, 4).error();
    assert!(
        error.contains("205") && error.contains("shows none"),
        "{error}"
    );
    let error = Bench::new().prints(&sound(), 77, 4).error();
    assert!(error.contains("77"), "{error}");
}

#[test]
fn exit_status_205_says_which_gravity_an_old_release_does_not_print() {
    let replace = |status| {
        let verdict = Bench::new()
            .prints(&output("3.0-r3-memory-fail.json"), status, 3)
            .verdict();
        // The output is of two GPUs, which is a finding of its own here.
        let findings = verdict
            .findings
            .iter()
            .filter(|finding| finding.metric == "dcgm.test.result");
        findings.map(|finding| finding.action).max().unwrap()
    };
    assert_eq!(replace(226), Action::Investigate);
    assert_eq!(replace(205), Action::Replace);
}

#[test]
fn a_run_that_dcgm_refused_is_an_error_with_dcgms_reason() {
    let error = Bench::new()
        .prints(&output("4.5-runtime-error.json"), 217, 4)
        .error();
    assert!(
        error.contains("already running") && error.contains("217"),
        "{error}"
    );
    let error = Bench::new()
        .prints(&output("4.5-no-hostengine.txt"), 235, 4)
        .error();
    assert!(
        error.contains("CONNECTION_NOT_VALID") && error.contains("unable to establish"),
        "{error}"
    );
    let error = Bench::new()
        .dcgmi("echo 'no such option' >&2; exit 255")
        .error();
    assert!(error.contains("BADPARAM"), "{error}");
    let error = Bench::new()
        .prints(&output("4.5-runtime-error.json"), 0, 4)
        .error();
    assert!(error.contains("already running"), "{error}");
}

#[test]
fn a_dcgmi_that_crashes_is_an_error() {
    let error = Bench::new().dcgmi("kill -SEGV $$").error();
    assert!(error.contains("signal 11"), "{error}");
}

#[test]
fn another_diagnostic_is_in_the_way_and_an_own_engine_is_not() {
    let bench = || Bench::new().prints(&sound(), 0, 4);
    let error = bench().process(77, "nvvs").error();
    assert!(error.contains("process 77"), "{error}");
    let engine = |bench: Bench| {
        bench
            .record()
            .notes
            .iter()
            .any(|note| note.contains("engine of its own"))
    };
    assert!(engine(bench().process(1, "init")));
    assert!(!engine(bench().process(77, "nv-hostengine")));
}

#[test]
fn a_longer_level_has_a_longer_deadline() {
    let check = find("dcgm-diag").unwrap();
    let budget =
        |level: &str| check.budget(&BTreeMap::from([("level".to_owned(), level.to_owned())]));
    for (shorter, longer) in [("1", "2"), ("2", "3"), ("3", "4")] {
        assert!(budget(shorter).deadline < budget(longer).deadline);
        assert!(budget(shorter).expected < budget(longer).expected);
    }
    assert_eq!(check.budget(&BTreeMap::new()), budget("4"));
    assert!(
        budget("4").deadline >= Duration::from_secs(2 * 3600),
        "level 4 has taken two hours"
    );
}
