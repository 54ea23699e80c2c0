//! Generated files are what the program generates now. `DHC_GOLDEN=write` (or `just golden`) writes them again.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it left"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::Dhc;
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Report, Status};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn dhc(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_golden(path: &Path, generated: &str) {
    if std::env::var_os("DHC_GOLDEN").is_some_and(|mode| mode == "write") {
        std::fs::write(path, generated).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == generated,
        "`{}` is not what dhc generates now; run `just golden` and read the difference",
        path.display()
    );
}

#[test]
fn the_schemas_are_those_of_the_types() {
    assert_golden(
        &top().join("thresholds/schema/report.v1.json"),
        &dhc(&["schema", "report"]),
    );
    assert_golden(
        &top().join("thresholds/schema/thresholds.v1.json"),
        &dhc(&["schema", "thresholds"]),
    );
}

#[test]
fn the_readme_shows_what_the_program_prints() {
    let path = top().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let with = |text: &str, part: &str, generated: &str| {
        let (begin, end) = (
            format!("<!-- {part}: written by `just golden` -->\n"),
            format!("<!-- end of {part} -->"),
        );
        let (before, rest) = text.split_once(&begin).unwrap();
        let (_, after) = rest.split_once(&end).unwrap();
        format!("{before}{begin}{generated}{end}{after}")
    };
    let generated = with(&readme, "checks", &dhc(&["list", "--markdown"]));
    let generated = with(&generated, "verdict", &a_verdict());
    assert_golden(&path, &generated);
}

/// What a run prints on a simulated machine, but for what is another in every run: its id, and how long its checks took.
fn a_verdict() -> String {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    let args = ["--tag", "gpu", "--skip", "long"];
    let output = dhc.command("run", &args).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let mut text = format!("```\n$ dhc run {}\n", args.join(" "));
    for line in printed.lines() {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        for place in 1..words.len() {
            let is_time = words[place] == "s" && words[place - 1].parse::<f64>().is_ok();
            if is_time {
                words[place - 1] = "0.0".to_owned();
            }
            if words[place - 1] == "run" && words[place].starts_with("01") {
                words[place] = "01M85J2Q7T...,".to_owned();
            }
        }
        text.push_str(words.join(" ").trim_end());
        text.push('\n');
    }
    text + "```\n"
}

#[test]
fn every_metric_is_declared_once_with_a_known_fault_class() {
    let metrics = dhc_runners::tables::metrics();
    let all: usize = dhc_checks::catalog::CHECKS
        .iter()
        .map(|check| check.spec().metrics.len())
        .sum();
    assert_eq!(metrics.len(), all, "two checks declare the same metric");
    for metric in metrics {
        assert!(
            dhc_thresholds::Faults::built_in()
                .get(metric.fault)
                .is_some(),
            "{} names {}",
            metric.name,
            metric.fault
        );
    }
}

#[test]
fn every_built_in_table_is_sound_and_found_by_its_name() {
    let metrics = dhc_runners::tables::metrics();
    let mut count = 0;
    for name in dhc_thresholds::built_in::names() {
        let table = dhc_thresholds::built_in::load(name, &metrics)
            .unwrap()
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert!(
            dhc_thresholds::built_in::find(&table.instance_type, &metrics).is_some(),
            "{name}"
        );
        count += 1;
    }
    assert!(count > 60, "{count} tables");
}

/// One result of each major version of the schema is kept as it was written, for ever.
#[test]
fn a_result_of_the_first_schema_is_still_read_and_judged_alike() {
    let path = top().join("thresholds/tests/reports/v1/one-link-down.json");
    let kept = Report::parse(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(kept.status, Status::Fail);
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(["judge", "--format", "json"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let judged = Report::parse(&output.stdout).unwrap();
    let faults = |report: &Report| {
        let faults = report.nodes[0].faults.iter();
        faults
            .map(|fault| (fault.class.clone(), fault.finding.subject.name.clone()))
            .collect::<Vec<_>>()
    };
    let link = ("nvlink.link_down".to_owned(), "gpu3/link6".to_owned());
    assert!(faults(&kept).contains(&link));
    assert_eq!(faults(&judged), faults(&kept));
}
