//! `dcgm-diag` as the runner calls it: a simulated machine, a `dcgmi` that is a small script, the real check and judge.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests make the machine that the check looks at"
)]

use std::collections::BTreeMap;
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

/// A simulated machine and how the check is asked to look at it.
struct Bench {
    node: FakeNode,
    options: BTreeMap<String, String>,
    deadline: Duration,
}

impl Bench {
    /// A machine of which only `dcgmi` matters: small, since a whole p5.48xlarge takes half a second to build. That it
    /// has no NVML changes nothing, see `without_nvml_dcgm_is_asked_all_the_same`.
    fn with(change: impl FnOnce(FakeNode) -> FakeNode) -> Bench {
        Bench::of(change(FakeNode::plain()))
    }

    fn of(node: FakeNode) -> Bench {
        Bench {
            node,
            options: BTreeMap::new(),
            deadline: Duration::from_secs(60),
        }
    }

    /// With a `dcgmi` that prints `text` and ends with `status`, if it is asked for level 4.
    fn prints(text: &str, status: u8) -> Bench {
        Bench::with(|node| {
            node.tool("dcgmi")
                .answers(&[("diag -r 4 -j", text, status)])
        })
    }

    fn level(mut self, level: &str) -> Bench {
        self.options.insert("level".to_owned(), level.to_owned());
        self
    }

    fn deadline(mut self, deadline: Duration) -> Bench {
        self.deadline = deadline;
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
            due: BTreeMap::new(),
            options: self.options.clone(),
            state: None,
            deadline: self.deadline,
            confined: false,
            group: None,
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
                Event::TimedOut { after_ms, doing } => {
                    record.ending = Ending::TimedOut {
                        after_ms,
                        doing,
                        of_the_run: false,
                    };
                }
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
            Ending::TimedOut { doing, .. } => {
                let said = &verdict.findings[0].message;
                assert!(said.contains(&doing), "people are told as well: {said}");
                format!("timed out: {doing}")
            }
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
    let node = FakeNode::p5_48xlarge();
    let bench = Bench::of(node.tool("dcgmi").prints(sound(), 0));
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
    assert_eq!(Bench::prints(&text, 0).verdict().status, Status::Pass);
}

#[test]
fn level_4_is_the_default_and_the_level_can_be_set() {
    let bench = Bench::prints(&sound(), 0);
    assert_eq!(bench.verdict().status, Status::Pass);
    assert_eq!(bench.node.calls("dcgmi"), ["diag -r 4 -j"]);
    let bench = Bench::with(|node| node.tool("dcgmi").prints(sound(), 0)).level("2");
    assert_eq!(bench.verdict().status, Status::Pass);
    assert_eq!(bench.node.calls("dcgmi"), ["diag -r 2 -j"]);
    for wrong in ["0", "5", "four", ""] {
        let bench = Bench::prints(&sound(), 0).level(wrong);
        assert!(bench.error().contains("1 to 4"));
        assert_eq!(bench.node.calls("dcgmi"), [""; 0]);
    }
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
        // dcgmi goes by the number, whose severity is ISOLATE, and the test has stated MONITOR.
        ("nvbandwidth", 38, 1, 205, Warn, Action::None),
    ] {
        let verdict = Bench::prints(&with_error(test, id, severity), exit).verdict();
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
        let verdict = Bench::prints(&with_error("memory", id, 4), 226).verdict();
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
    assert_eq!(Bench::prints(&text, 0).verdict().status, Status::Unknown);
    document["entity_groups"][0]["entities"]
        .as_array_mut()
        .unwrap()
        .pop();
    let verdict = Bench::prints(&document.to_string(), 0).verdict();
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Fail, Action::Reboot)
    );
}

#[test]
fn a_gpu_that_nvml_has_and_dcgm_does_not_name_is_untested_and_not_missing() {
    let mut document: Value = serde_json::from_str(&sound()).unwrap();
    let all = without_gpu(&mut document, 5);
    let text = document.to_string();
    let dcgm = |node: FakeNode| Bench::of(node.tool("dcgmi").prints(&text, 0)).verdict();
    let told = with_serials(FakeNode::p5_48xlarge(), &all);
    let verdict = dcgm(told);
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Unknown, Action::None),
        "{:?}",
        verdict.findings
    );
    let said = &verdict.findings.last().unwrap().message;
    let why = "DCGM tested 7 of the 8 GPUs that NVML has, and not gpu5";
    assert!(said.contains(why), "{said}");
    // Where NVML misses it too, it is not there.
    let verdict = dcgm(FakeNode::p5_48xlarge().gpu(5).missing());
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Fail, Action::Reboot)
    );
}

/// Leaves out of a document all that is said of a GPU; returns the serial numbers of all GPUs before.
fn without_gpu(document: &mut Value, gpu: usize) -> Vec<String> {
    let categories = document["DCGM Diagnostic"]["test_categories"].as_array_mut();
    for category in categories.unwrap() {
        for test in category["tests"].as_array_mut().unwrap() {
            let results = test["results"].as_array_mut().unwrap();
            results.retain(|result| result["entity_id"] != gpu);
        }
    }
    let entities = document["entity_groups"][0]["entities"].as_array_mut();
    let entities = entities.unwrap();
    let serials = entities
        .iter()
        .map(|gpu| gpu["serial_num"].as_str().unwrap().to_owned());
    let serials = serials.collect();
    entities.retain(|entity| entity["entity_id"] != gpu);
    serials
}

/// The machine, on which NVML tells these serial numbers.
fn with_serials(node: FakeNode, serials: &[String]) -> FakeNode {
    (0..).zip(serials).fold(node, |node, (gpu, serial)| {
        node.gpu(gpu).with(&format!("serial = \"{serial}\""))
    })
}

#[test]
fn a_gpu_that_dcgm_numbers_in_its_own_way_is_called_as_nvml_calls_it() {
    let serials: Vec<String> = (200..208).map(|last| format!("1650023000{last}")).collect();
    let error_of = |serials: &[String]| {
        // DCGM's GPU 3 has serial number 1650023000203.
        let dcgmi = FakeNode::p5_48xlarge().tool("dcgmi");
        let node = with_serials(dcgmi.prints(with_error("memory", 52, 2), 205), serials);
        let record = Bench::of(node).record();
        let verdict = judged(&record);
        let failed = verdict
            .findings
            .iter()
            .find(|finding| finding.status == Status::Fail);
        (failed.unwrap().subject.clone(), record)
    };
    assert_eq!(error_of(&serials).0.name, "gpu3/memory");
    let mut turned = serials.clone();
    turned.rotate_right(1);
    let (subject, record) = error_of(&turned);
    assert_eq!(subject.name, "gpu4/memory");
    let note = "DCGM's GPU 3 is gpu4 by its serial number 1650023000203";
    assert!(
        record.notes.iter().any(|said| said.contains(note)),
        "{record:?}"
    );
    // NVML knows no such GPU: it is none of NVML's.
    let mut other = serials;
    other[3] = "102".to_owned();
    let (subject, record) = error_of(&other);
    assert_eq!(subject.name, "dcgm-gpu3/memory");
    let note = "DCGM's GPU 3 (1650023000203) is not the one that NVML numbers so (102)";
    assert!(
        record.notes.iter().any(|said| said.contains(note)),
        "{record:?}"
    );
}

#[test]
fn an_old_release_that_names_gpus_with_results_alone_does_not_say_that_others_are_missing() {
    // These results name two GPUs.
    let text = output("2.4-r3-pass.json");
    let counts = |node: FakeNode| {
        let record = Bench::of(node.tool("dcgmi").prints(&text, 0))
            .level("3")
            .record();
        let verdict = judged(&record);
        let of_count = verdict.findings.into_iter();
        let of_count = of_count.filter(|finding| finding.metric == "dcgm.gpus");
        let found: Vec<_> = of_count
            .map(|finding| (finding.status, finding.message))
            .collect();
        (found, record.gaps)
    };
    let (found, gaps) = counts(FakeNode::p5_48xlarge());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, Status::Unknown, "{found:?}");
    let why = "its results name 2 of 8 that the driver has";
    assert!(gaps.iter().any(|gap| gap.why.contains(why)), "{gaps:?}");
    let (found, _) = counts(FakeNode::p5_48xlarge().without_nvml());
    assert_eq!(found[0].0, Status::Unknown, "{found:?}");
}

#[test]
fn an_absent_dcgmi_is_an_error_that_says_what_to_install() {
    let error = Bench::with(|node| node.tool("dcgmi").missing()).error();
    assert!(error.contains("`dcgmi` is not installed"), "{error}");
    assert!(error.contains("datacenter-gpu-manager"), "{error}");
}

#[test]
fn a_hung_dcgmi_that_ignores_sigterm_is_ended_at_the_deadline() {
    let bench = Bench::with(|node| node.tool("dcgmi").hangs()).deadline(Duration::from_secs(1));
    let error = bench.error();
    assert!(error.starts_with("timed out"), "{error}");
    assert!(error.contains("nv-hostengine"), "{error}");
}

#[test]
fn a_document_before_a_hang_is_not_believed() {
    let bench = Bench::with(|node| {
        let node = node.file("/document", sound());
        let document = node.root().join("document");
        let script = format!("cat {}; exec sleep 1000", document.display());
        node.tool("dcgmi").runs(&script)
    });
    let error = bench.deadline(Duration::from_secs(1)).error();
    assert!(error.starts_with("timed out"), "{error}");
}

#[test]
fn a_flood_is_not_read_even_if_it_begins_with_a_pass() {
    let flood = format!("{}{}", sound(), "x".repeat(2 << 20));
    let error = Bench::prints(&flood, 0).error();
    assert!(error.contains("more than any diagnosis has"), "{error}");
    let error = Bench::with(|node| node.tool("dcgmi").floods(64 << 20)).error();
    assert!(error.contains("more than any diagnosis has"), "{error}");
}

#[test]
fn success_without_output_is_not_a_pass() {
    let error = Bench::prints("", 0).error();
    assert!(error.contains("printed nothing"), "{error}");
}

#[test]
fn what_dcgmi_says_on_standard_error_is_told() {
    let says = "\ndcgmi: error while loading shared libraries: libdcgm.so.4: cannot open shared object file\nmore\n";
    let bench = |status| Bench::with(|node| node.tool("dcgmi").says("", says, status));
    for status in [127, 254] {
        let error = bench(status).error();
        assert!(
            error.contains("`dcgmi: error while loading shared libraries: libdcgm.so.4: cannot open shared object file`"),
            "{error}"
        );
        assert!(!error.contains("more"), "{error}");
    }
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
        let error = Bench::prints(garbage, 0).error();
        assert!(error.contains("dcgmi ended with 0"), "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn an_exit_status_that_says_more_than_the_document_is_an_error() {
    let error = Bench::prints(&sound(), 226).error();
    assert!(
        error.contains("226") && error.contains("shows none"),
        "{error}"
    );
    let error = Bench::prints(&sound(), 205).error();
    assert!(
        error.contains("205") && error.contains("shows none"),
        "{error}"
    );
}

#[test]
fn a_test_left_out_that_tells_why_in_an_error_is_no_contradiction() {
    // dcgmi counts the error and ends with 226, although nothing has failed.
    let text = with_error("eud", 117, 5).replace("\"Fail\"", "\"Skip\"");
    assert_eq!(Bench::prints(&text, 226).verdict().status, Status::Pass);
}

#[test]
fn exit_status_205_says_which_gravity_an_old_release_does_not_print() {
    let replace = |status| {
        let verdict = Bench::prints(&output("3.0-r3-memory-fail.json"), status).verdict();
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
    let refused = |text: &str, status, reasons: &[&str]| {
        let error = Bench::prints(text, status).error();
        for reason in reasons {
            assert!(error.contains(reason), "{error}");
        }
    };
    refused(
        &output("4.5-runtime-error.json"),
        217,
        &["already running", "217"],
    );
    refused(&output("4.5-runtime-error.json"), 0, &["already running"]);
    refused(
        &output("4.5-no-hostengine.txt"),
        235,
        &["CONNECTION_NOT_VALID", "unable to establish"],
    );
    refused("", 255, &["BADPARAM"]);
    refused(&sound(), 77, &["77", "no known release"]);
}

#[test]
fn a_dcgmi_that_crashes_is_an_error_whatever_it_printed() {
    let error = Bench::with(|node| node.tool("dcgmi").crashes(sound())).error();
    assert!(error.contains("signal 11"), "{error}");
}

#[test]
fn another_diagnostic_is_in_the_way_and_an_own_engine_is_not() {
    let bench = |process: &str| {
        Bench::with(|node| {
            let node = node.file("/proc/77/comm", format!("{process}\n"));
            node.tool("dcgmi").prints(sound(), 0)
        })
    };
    let error = bench("nvvs").error();
    assert!(error.contains("process 77"), "{error}");
    let own_engine = |record: &Record| {
        record
            .notes
            .iter()
            .any(|note| note.contains("engine of its own"))
    };
    assert!(own_engine(&bench("init").record()));
    assert!(!own_engine(&bench("nv-hostengine").record()));
}

#[test]
fn a_gpu_that_is_divided_or_in_use_is_named_before_anything_is_started() {
    let divided = |node: FakeNode| node.gpu(5).with("mig.enabled = true");
    let in_use = |node: FakeNode| {
        let node = node.file("/proc/4711/comm", "python3\n");
        node.gpu(2)
            .with("processes = [{ pid = 4711, memory_mib = 1024 }]")
    };
    let sound = |node: FakeNode| node.tool("dcgmi").prints(sound(), 0);
    let bench = Bench::of(divided(sound(FakeNode::p5_48xlarge())));
    let error = bench.error();
    assert!(error.contains("gpu5") && error.contains("MIG"), "{error}");
    assert_eq!(bench.node.calls("dcgmi"), [""; 0]);
    let bench = Bench::of(in_use(sound(FakeNode::p5_48xlarge())));
    let error = bench.error();
    assert!(
        error.contains("process 4711 (python3) computes on gpu2"),
        "{error}"
    );
    assert_eq!(bench.node.calls("dcgmi"), [""; 0]);
    assert_eq!(
        bench.level("1").verdict().status,
        Status::Pass,
        "level 1 only looks"
    );
}

#[test]
fn without_nvml_dcgm_is_asked_all_the_same() {
    let node = FakeNode::p5_48xlarge().without_nvml();
    let record = Bench::of(node.tool("dcgmi").prints(sound(), 0)).record();
    assert_eq!(judged(&record).status, Status::Pass);
    let note = "could not ask beforehand";
    assert!(record.notes.iter().any(|said| said.contains(note)));
}

#[test]
fn a_lost_gpu_does_not_keep_dcgm_from_saying_so() {
    let text = with_error("software", 120, 2);
    let node = FakeNode::p5_48xlarge().gpu(3).falls_off_the_bus();
    let verdict = Bench::of(node.tool("dcgmi").prints(text, 205)).verdict();
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Fail, Action::Reboot)
    );
}

#[test]
fn a_longer_level_has_a_longer_deadline() {
    let check = find("dcgm-diag").unwrap().instance().unwrap();
    let budget =
        |level: &str| check.budget(&BTreeMap::from([("level".to_owned(), level.to_owned())]));
    for (shorter, longer) in [("1", "2"), ("2", "3"), ("3", "4")] {
        assert!(budget(shorter).deadline < budget(longer).deadline);
        assert!(budget(shorter).expected < budget(longer).expected);
    }
    assert_eq!(check.budget(&BTreeMap::new()), budget("4"));
    let seen = Duration::from_secs(2 * 3600);
    assert!(budget("4").deadline >= seen, "level 4 has taken two hours");
}
