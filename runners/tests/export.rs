//! Results in the formats of other tools, of the built program on simulated machines.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::gpu_cluster::EightNodes;
use common::{Dhc, outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Ending, Report, Status};
use serde_json::Value;

const DCGM_PASSES: &str = include_str!("../../fixtures/outputs/dcgmi/3.3.9-r3-pass.json");

/// What would become of a terminal, an XML reader and a line of a log if it were passed on.
const HOSTILE: &str = "a\u{1b}[2Jb\u{0}c\u{ffff}\"<&>\\\nd]]>é";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn holding(&self, name: &str, report: &Report) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, serde_json::to_vec(report).unwrap()).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

/// `dhc export FORMAT` of a stored report.
fn exported(format: &str, report: &Report) -> String {
    let files = Files::new();
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(["export", format])
        .arg(files.holding("result.json", report))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A node with a link down, whose GPUs are counted, whose NVLinks are looked at, and whose DCGM is not installed.
fn link_down() -> Report {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    dhc.run(&["--check", "gpu-count,nvlink,dcgm-diag"]).report
}

/// The same, with everything that people and tools can have a word in turned hostile.
fn hostile() -> Report {
    let mut report = link_down();
    let node = &mut report.nodes[0];
    node.name = HOSTILE.to_owned();
    node.identity.instance_id = Some(HOSTILE.to_owned());
    for check in &mut node.checks {
        for finding in &mut check.findings {
            finding.message = HOSTILE.to_owned();
            finding.subject.name = HOSTILE.to_owned();
        }
        if let Ending::Skipped { reason, .. } = &mut check.record.ending {
            *reason = HOSTILE.to_owned();
        }
    }
    for fault in &mut node.faults {
        fault.finding.message = HOSTILE.to_owned();
        fault.finding.subject.name = HOSTILE.to_owned();
    }
    report
}

/// What a program of the system says of a text on its standard input.
#[track_caller]
fn accepted_by(program: &str, args: &[&str], text: &str) {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; .ci/setup tests installs it"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{program}: {output:?}\n{text}"
    );
}

fn lines_of<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines()
        .filter(|line| line.starts_with(start))
        .collect()
}

// --- Prometheus -----------------------------------------------------------------------------------------------------

#[test]
fn a_failed_check_is_one_state_of_a_set() {
    let page = exported("prometheus", &link_down());
    accepted_by("promtool", &["check", "metrics"], &page);
    let who = "level=\"instance\",node=\"ip-10-0-1-7\",instance_id=\"i-0a1b2c3d4e5f60718\"";
    let state = |check: &str, status: &str| {
        let sample = format!("dhc_check_status{{{who},check=\"{check}\",status=\"{status}\"}} ");
        let line = lines_of(&page, &sample);
        assert_eq!(line.len(), 1, "{sample}: {page}");
        line[0].strip_prefix(&sample).unwrap().to_owned()
    };
    assert_eq!(state("nvlink", "fail"), "1");
    assert_eq!(state("nvlink", "pass"), "0");
    assert_eq!(state("gpu-count", "pass"), "1");
    assert_eq!(state("dcgm-diag", "error"), "1");
    assert_eq!(state("neuron-count", "skip"), "1");
    let action = "device=\"gpu3\",fault_class=\"nvlink.link_down\",action=\"reboot\"";
    let action = format!("dhc_recommended_action_info{{{who},{action}}} 1");
    assert_eq!(lines_of(&page, "dhc_recommended_action_info{").len(), 2);
    assert!(page.contains(&action), "{page}");
    assert_eq!(lines_of(&page, "dhc_last_success").len(), 0);
    // Neither of these knows bounds.
    for unbounded in ["run_id", "message=", "inactive"] {
        assert!(!page.contains(unbounded), "{unbounded}");
    }
}

#[test]
fn disks_are_whole_and_of_values_that_would_be_one_sample_the_worst_stands() {
    let mut report = link_down();
    let check = report.nodes[0].checks.iter_mut();
    let check = check
        .filter(|check| check.check == "gpu-count")
        .last()
        .unwrap();
    let mut finding = check.findings[0].clone();
    finding.metric = "disk.stress.read".to_owned();
    finding.unit = dhc_thresholds::Unit::GigabytesPerSecond;
    for (disk, speed) in [("/data/a", 1.0), ("/data/b", 2.0), ("/data/b", 3.0)] {
        finding.subject = dhc_thresholds::Subject::new(dhc_thresholds::Kind::Disk, disk);
        finding.value = Some(speed.into());
        check.findings.push(finding.clone());
    }
    finding.metric = "gpu.stress.clock".to_owned();
    finding.unit = dhc_thresholds::Unit::Megahertz;
    finding.value = Some(1980.0.into());
    check.findings.push(finding);
    let page = exported("prometheus", &report);
    accepted_by("promtool", &["check", "metrics"], &page);
    let mut samples = lines_of(&page, "dhc_check_bandwidth_bytes_per_second{");
    samples.retain(|sample| sample.contains("disk.stress.read"));
    let [a, b] = samples.as_slice() else {
        panic!("{page}");
    };
    assert!(
        a.ends_with(r#"device="/data/a",subject="/data/a"} 1000000000"#),
        "{a}"
    );
    assert!(
        b.ends_with(r#"device="/data/b",subject="/data/b"} 2000000000"#),
        "{b}"
    );
    let clock = lines_of(&page, "dhc_check_frequency_hertz{");
    assert!(clock[0].ends_with(" 1980000000"), "{clock:?}");
}

#[test]
fn hostile_words_stay_within_their_label() {
    let page = exported("prometheus", &hostile());
    accepted_by("promtool", &["check", "metrics"], &page);
    assert!(page.contains(r#"node="a�[2Jb�c"#), "{page}");
    assert!(
        page.lines()
            .all(|line| line.starts_with("dhc_") || line.starts_with("# "))
    );
}

#[test]
fn every_family_is_told_once_and_no_sample_twice() {
    for report in [link_down(), EightNodes::up().run(&[]).report] {
        let page = exported("prometheus", &report);
        let mut seen = std::collections::BTreeSet::new();
        for line in page.lines() {
            let key = line.rsplit_once(' ').unwrap().0;
            assert!(seen.insert(key), "{line}");
        }
    }
}

#[test]
fn a_cluster_has_its_bandwidths_its_floor_and_the_probability_of_each_node() {
    let outcome = EightNodes::up().run(&[]);
    let page = exported("prometheus", &outcome.report);
    accepted_by("promtool", &["check", "metrics"], &page);
    let floor = "dhc_check_threshold_bytes_per_second{level=\"cluster\",check=\"nccl-allreduce\",metric=\"nccl.allreduce.plateau\",\
                 message_bytes=\"\",provider=\"\",rule=\"fail_below\"} 440000000000";
    assert!(page.contains(floor), "{page}");
    assert_eq!(
        lines_of(&page, "dhc_allreduce_busbw_bytes_per_second{").len(),
        5
    );
    let probability = |node: &str| {
        let start = format!("dhc_node_fault_probability{{level=\"cluster\",node=\"{node}\"");
        let line = lines_of(&page, &start)[0];
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert!(probability("n5") > 0.99 && probability("n5") <= 1.0);
    assert!(probability("n1") < 0.01);
    let waves = lines_of(&page, "dhc_localise_waves{")[0];
    let cluster = outcome.report.cluster.unwrap();
    assert!(waves.ends_with(&format!(" {}", cluster.searches[0].waves.len())));
}

#[test]
fn the_last_success_outlives_a_run_that_fails() {
    let files = Files::new();
    let page = files.path("dhc.prom");
    let to = format!("prometheus={}", page.display());
    let run = |machine: &str| {
        let dhc = Dhc::on(FakeNode::of(machine));
        dhc.run(&["--check", "nvlink", "--export", &to]).exit
    };
    assert_eq!(run("p5.48xlarge"), 0);
    let first = files.read("dhc.prom");
    let success = lines_of(&first, "dhc_last_success_timestamp_seconds{");
    assert_eq!(success.len(), 1);
    assert_eq!(run("p5.48xlarge-link-down"), 2);
    let second = files.read("dhc.prom");
    assert_eq!(
        lines_of(&second, "dhc_last_success_timestamp_seconds{"),
        success
    );
    let last = "dhc_last_run_timestamp_seconds{";
    assert_ne!(lines_of(&second, last), lines_of(&first, last));
    // The node exporter is another user.
    let mode = std::fs::metadata(&page).unwrap().permissions().mode();
    assert_eq!(mode & 0o044, 0o044, "{mode:o}");
    let left: Vec<_> = std::fs::read_dir(files.0.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

// --- JUnit ----------------------------------------------------------------------------------------------------------

#[test]
fn junit_tells_a_fault_from_a_check_that_could_not_look() {
    let xml = exported("junit", &link_down());
    accepted_by("xmllint", &["--noout", "-"], &xml);
    for said in [
        " failures=\"1\" errors=\"1\" ",
        "<testsuite name=\"ip-10-0-1-7\"",
        "<testcase name=\"gpu-count\" classname=\"dhc.ip-10-0-1-7\"",
        "<failure type=\"nvlink.link_down\" message=\"nvlink.link.state of gpu3/link6 is inactive",
        "<error type=\"check.could_not_run\" message=\"check of node: `dcgmi` is not installed",
        "<skipped message=\"not among the checks asked for with --check\"/>",
        "<property name=\"dhc.instance_id\" value=\"i-0a1b2c3d4e5f60718\"/>",
    ] {
        assert!(xml.contains(said), "{said}\n{xml}");
    }
}

#[test]
fn junit_is_xml_whatever_the_tools_said() {
    let xml = exported("junit", &hostile());
    accepted_by("xmllint", &["--noout", "-"], &xml);
    assert!(
        xml.contains("a\u{fffd}[2Jb\u{fffd}c\u{fffd}&quot;&lt;&amp;&gt;\\\nd]]&gt;é"),
        "{xml}"
    );
}

#[test]
fn a_run_that_looked_at_nothing_is_not_green_in_any_format() {
    let dhc = Dhc::on(FakeNode::plain());
    let mut nothing = dhc.run(&["--check", "nvlink"]).report;
    assert_eq!(nothing.status, Status::Unknown);
    assert!(
        exported("junit", &nothing)
            .contains("<error type=\"unknown\" message=\"no check looked at the node")
    );
    let ctrf: Value = serde_json::from_str(&exported("ctrf", &nothing)).unwrap();
    assert_eq!(ctrf["results"]["summary"]["other"], 1);
    // The same of one that was stopped before it came to anything.
    nothing.nodes.clear();
    nothing.complete = false;
    nothing.status = Status::Pass;
    assert!(
        exported("junit", &nothing)
            .contains("<error type=\"unknown\" message=\"the run was stopped")
    );
    assert!(exported("prometheus", &nothing).contains("dhc_run_complete{level=\"instance\"} 0"));
}

// --- CTRF -----------------------------------------------------------------------------------------------------------

/// The required members of CTRF's JSON schema, with the types that it asks for, and no member that it forbids.
fn assert_ctrf(document: &Value) {
    let only = |object: &Value, allowed: &[&str]| {
        for key in object.as_object().unwrap().keys() {
            assert!(allowed.contains(&key.as_str()), "{key} in {object}");
        }
    };
    assert_eq!(document["reportFormat"], "CTRF");
    let version = document["specVersion"].as_str().unwrap();
    assert_eq!(
        version
            .split('.')
            .filter(|part| part.parse::<u32>().is_ok())
            .count(),
        3
    );
    let results = &document["results"];
    only(&results["tool"], &["name", "version", "extra"]);
    assert!(!results["tool"]["name"].as_str().unwrap().is_empty());
    let summary = &results["summary"];
    let counts = ["passed", "failed", "skipped", "pending", "other"];
    let required = ["tests", "start", "stop"];
    for key in counts.iter().chain(&required) {
        assert!(summary[key].is_u64(), "{key} in {summary}");
    }
    only(
        summary,
        &[
            "tests", "passed", "failed", "skipped", "pending", "other", "start", "stop", "suites",
            "duration",
        ],
    );
    let tests = results["tests"].as_array().unwrap();
    assert_eq!(summary["tests"], tests.len());
    for status in counts {
        let those = tests.iter().filter(|test| test["status"] == status);
        assert_eq!(summary[status], those.count(), "{status}");
    }
    for test in tests {
        only(
            test,
            &[
                "name",
                "status",
                "rawStatus",
                "duration",
                "suite",
                "message",
                "trace",
                "extra",
            ],
        );
        assert!(!test["name"].as_str().unwrap().is_empty());
        assert!(test["duration"].is_u64());
        assert!(!test["suite"].as_array().unwrap().is_empty());
        assert!(counts.iter().any(|status| test["status"] == *status));
        assert!(test["message"].is_string() && test["extra"].is_object());
    }
}

#[test]
fn ctrf_has_what_its_schema_asks_for() {
    for report in [link_down(), hostile(), EightNodes::up().run(&[]).report] {
        let document = serde_json::from_str(&exported("ctrf", &report)).unwrap();
        assert_ctrf(&document);
    }
    let document: Value = serde_json::from_str(&exported("ctrf", &link_down())).unwrap();
    let tests = document["results"]["tests"].as_array().unwrap();
    let status = |check: &str| {
        let test = tests.iter().find(|test| test["name"] == check).unwrap();
        (
            test["status"].as_str().unwrap(),
            test["rawStatus"].as_str().unwrap(),
        )
    };
    assert_eq!(status("nvlink"), ("failed", "fail"));
    assert_eq!(status("dcgm-diag"), ("other", "error"));
    assert_eq!(status("neuron-count"), ("skipped", "skip"));
}

// --- HyperPod -------------------------------------------------------------------------------------------------------

#[test]
fn a_cluster_says_which_instance_is_faulty_in_hyperpods_words() {
    let eight = EightNodes::up();
    let mut command = eight.command(&[]);
    let outcome = outcome(command.env("AWS_REGION", "us-west-2").output().unwrap());
    let text = exported("hyperpod", &outcome.report);
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with("{\"level\":\"error\",\"ts\":\""),
        "{first}"
    );
    let line: Value = serde_json::from_str(first).unwrap();
    assert_eq!(
        line["msg"],
        "Encountered FaultyInstance. Reboot the Instance. Region: us-west-2, InstanceType: BM.GPU.H100.8. \
         ERROR:Bandwidth has less than threshold: Expected minimum threshold :440,NCCL Test output Bw: 41.723"
    );
    assert_eq!(
        (&line["node"], &line["action"]),
        (&"n5".into(), &"reboot".into())
    );
    let ts: jiff::Timestamp = line["ts"].as_str().unwrap().parse().unwrap();
    assert_eq!(ts.subsec_nanosecond(), 0);
    // The nodes that nothing is held against are not accused.
    assert_eq!(text.matches("FaultyInstance").count(), 1);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let summary = last["msg"].as_str().unwrap();
    assert!(
        summary.starts_with("Nccl test successful. Summary: NcclMaxAlgoBw: "),
        "{summary}"
    );
}

#[test]
fn a_node_has_hyperpods_lines_for_the_count_and_for_dcgm() {
    let dhc = Dhc::on(FakeNode::p5_48xlarge().tool("dcgmi").prints(DCGM_PASSES, 0));
    let checks = [
        "--check",
        "gpu-count,dcgm-diag",
        "--set",
        "dcgm-diag.level=3",
    ];
    let text = exported("hyperpod", &dhc.run(&checks).report);
    let messages: Vec<&str> = text
        .lines()
        .map(|line| line.splitn(3, '\t').nth(2).unwrap())
        .collect();
    assert_eq!(
        messages[..2],
        [
            "GpuPci Count check success",
            "DCGM diagnostic health summary: dcgmCheckLevel: 3 dcgmVersion: 3.3.9 gpuDriverVersion: 535.183.01, \
             gpuDeviceIds: [2330 2330] replacementRequired: false rebootRequired:false",
        ]
    );
    // This output of DCGM names two GPUs where the driver has eight, which accuses none of the others.
    let [untested] = &messages[2..] else {
        panic!("{messages:?}")
    };
    let said = "dcgm-diag check could not be judged: dcgm.gpus of node: could not be read: DCGM tested 2 of the 8 GPUs";
    assert!(untested.starts_with(said), "{untested}");
    let level = |line: usize| text.lines().nth(line).unwrap().split('\t').nth(1);
    assert_eq!((level(0), level(1)), (Some("info"), Some("warn")));
    // Where the driver's library is not there, DCGM's list is all that there is, and the type has eight.
    let node = FakeNode::p5_48xlarge().without_nvml();
    let dhc = Dhc::on(node.tool("dcgmi").prints(DCGM_PASSES, 0));
    let alone = ["--check", "dcgm-diag", "--set", "dcgm-diag.level=3"];
    let text = exported("hyperpod", &dhc.run(&alone).report);
    let failed: Vec<&str> = text
        .lines()
        .skip(1)
        .map(|line| line.splitn(3, '\t').nth(2).unwrap())
        .collect();
    assert_eq!(
        failed,
        [
            "dcgm-diag check failure: dcgm.gpus of node is 2, must be 8",
            "Encountered FaultyInstance. Reboot the Instance. Region: unknown, InstanceType: p5.48xlarge. ERROR:dcgm.gpus of \
             node is 2, must be 8",
        ]
    );
}

/// The figures are those of a real exchange over tcp; only the names are an EFA card's.
#[test]
fn a_card_has_hyperpods_summary_of_the_loopback() {
    let state = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(["run", "--check", "fabric-loopback", "--format", "json"])
        .args(["--set", "fabric-loopback.provider=tcp", "--state"])
        .arg(state.path().join("state"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let renamed = text
        .replace("\"efa-loopback\"", "\"other\"")
        .replace("fabric-loopback", "efa-loopback")
        .replace("fabric.loopback", "efa.loopback")
        .replace("tcp;ofi_rxm", "rdmap0s29");
    let mut report = Report::parse(renamed.as_bytes()).unwrap();
    let text = exported("hyperpod", &report);
    let line = text.lines().find(|line| line.contains("EFA")).unwrap();
    let numbers = "0123456789.";
    let shape: String = line
        .split('\t')
        .nth(2)
        .unwrap()
        .replace(|c| numbers.contains(c), "");
    assert!(
        shape.starts_with(
            "EFA Loopback check passed for device: rdmaps  Output summary is MaxBw: , AvgBw: , MaxTypicalLat: , \
             MinTypicalLat: , AvgLat: "
        ),
        "{line}"
    );
    assert_eq!(line.split('\t').nth(1), Some("info"));
    // A card that something is held against does not pass.
    let checks = &mut report.nodes[0].checks;
    let check = checks
        .iter_mut()
        .find(|check| check.check == "efa-loopback")
        .unwrap();
    check.status = Status::Fail;
    check.findings[0].status = Status::Fail;
    let text = exported("hyperpod", &report);
    assert!(
        text.contains("\terror\tEFA Loopback check failed for device: rdmap0s29 "),
        "{text}"
    );
}

#[test]
fn a_line_is_a_line_and_fits_cloudwatch_whatever_the_tools_said() {
    let mut report = hostile();
    let long = HOSTILE.repeat(20_000);
    report.nodes[0].name = long.clone();
    for fault in &mut report.nodes[0].faults {
        fault.finding.message = long.clone();
    }
    for check in &mut report.nodes[0].checks {
        if let Some(finding) = check.findings.last_mut() {
            finding.message = long.clone();
        }
    }
    let text = exported("hyperpod", &report);
    assert!(text.contains("FaultyInstance") && text.contains("[cut]"));
    for line in text.lines() {
        assert!(line.len() <= 256 * 1024 - 26, "{}", line.len());
        assert_eq!(line.split('\t').count(), 3);
        assert!(!line.replace('\t', "").contains(char::is_control));
    }
    report.cluster = EightNodes::up().run(&[]).report.cluster;
    let text = exported("hyperpod", &report);
    for line in text.lines() {
        assert!(line.len() <= 256 * 1024 - 26, "{}", line.len());
        serde_json::from_str::<Value>(line).unwrap();
    }
    assert!(text.lines().count() >= 2);
}

#[test]
fn a_log_grows_and_is_never_written_through_a_link() {
    let files = Files::new();
    let log = files.path("deep-health-check.log");
    std::fs::write(&log, "of somebody else\n").unwrap();
    let to = |path: &Path| format!("hyperpod={}", path.display());
    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    for _ in 0..2 {
        let outcome = dhc.run(&["--check", "gpu-count", "--export", &to(&log)]);
        assert_eq!(outcome.exit, 0, "{}", outcome.stderr);
    }
    let lines = files.read("deep-health-check.log");
    assert!(lines.starts_with("of somebody else\n"));
    assert_eq!(
        lines
            .matches("\tinfo\tGpuPci Count check success\n")
            .count(),
        2
    );
    let link = files.path("link.log");
    symlink(&log, &link).unwrap();
    let outcome = dhc.run(&["--check", "gpu-count", "--export", &to(&link)]);
    assert_eq!((outcome.exit, outcome.report.status), (4, Status::Pass));
    assert!(
        outcome.stderr.contains("it is a symbolic link"),
        "{}",
        outcome.stderr
    );
    assert_eq!(files.read("deep-health-check.log"), lines);
}

// --- Where exports go -----------------------------------------------------------------------------------------------

#[test]
fn one_export_that_fails_neither_hides_a_fault_nor_keeps_the_others_away() {
    let files = Files::new();
    let nowhere = format!("junit={}", files.path("no/such/folder/out.xml").display());
    let page = format!("html={}", files.path("page.html").display());
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    let args = ["--check", "nvlink", "--export", &nowhere, "--export", &page];
    let outcome = dhc.run(&args);
    assert_eq!(outcome.exit, 2);
    assert!(
        outcome
            .stderr
            .contains("1 of 2 exports could not be written"),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains("no/such/folder"),
        "{}",
        outcome.stderr
    );
    assert!(files.read("page.html").contains("nvlink.link_down"));
    let sound = Dhc::on(FakeNode::p5_48xlarge());
    assert_eq!(sound.run(&args).exit, 4);
}

#[test]
fn a_device_is_not_replaced_by_a_result() {
    let files = Files::new();
    let report = files.holding("result.json", &link_down());
    let link = files.path("out.xml");
    symlink("/dev/null", &link).unwrap();
    for to in [
        link.as_path(),
        Path::new("/dev/null"),
        files.0.path(),
        Path::new("/"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
            .args(["export", "junit"])
            .arg(&report)
            .arg("--to")
            .arg(to)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(4), "{to:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("cannot write"), "{said}");
    }
    assert!(link.is_symlink());
}

#[test]
fn a_format_that_there_is_not_is_wrong_usage() {
    let dhc = Dhc::on(FakeNode::plain());
    for wrong in ["tap=out", "junit", "junit=", "=out"] {
        let output = dhc.command("run", &["--export", wrong]).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{wrong}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("prometheus, junit, ctrf, hyperpod, html"),
            "{said}"
        );
    }
    assert!(dhc.runs().is_empty());
}

#[test]
fn a_result_without_times_is_refused_with_the_reason() {
    let files = Files::new();
    let mut report = link_down();
    report.run.started_at = "yesterday".to_owned();
    let path = files.holding("result.json", &report);
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(["export", "prometheus"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`yesterday`"));
}
