//! The rules of judgement, one test each, through the public door.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{SPEED, STATE};
use dhc_thresholds::{
    Action, Ending, Gap, Measurement, Metric, Record, Role, Status, Subject, Table, Unit, Value,
    Verdict, judge,
};
use proptest::prelude::*;

const HEAT: Metric = Metric {
    name: "nic.heat",
    unit: Unit::Celsius,
    about: "how warm the card is",
    role: Role::Context,
    fault: "nic.errors",
};
const METRICS: &[&Metric] = &[&SPEED, &STATE, &HEAT];

const LIMITS: &str = r#"
schema = "dhc.thresholds/1"
instance_type = "test"
[[hardware]]
kind = "efa"
count = 2
source = "this test"
[[limit]]
metric = "nic.speed"
unit = "GB/s"
fail_below = 10.0
warn_below = 12.0
subjects = { hardware = "efa" }
source = "this test"
[[limit]]
metric = "nic.state"
unit = "state"
one_of = ["up", "testing"]
warn_if = ["testing"]
source = "this test"
"#;

fn table(text: &str) -> Table {
    Table::parse(text, "test.toml", METRICS, &|_| None).unwrap()
}

fn nic(index: u32) -> Subject {
    Subject::new(dhc_thresholds::Kind::Nic, format!("rdmap{index}s0"))
}

fn verdict(ending: Ending, measurements: Vec<Measurement>) -> Verdict {
    let mut record = Record::new("nic-test", ending);
    record.measurements = measurements;
    judge(&record, METRICS, &table(LIMITS))
}

fn status(measurements: Vec<Measurement>) -> Status {
    verdict(Ending::Finished, measurements).status
}

fn two(speed: impl Fn(u32) -> f64) -> Vec<Measurement> {
    (0..2)
        .map(|index| SPEED.of(nic(index), speed(index)))
        .collect()
}

#[test]
fn what_is_within_every_bound_passes_and_says_by_what_margin() {
    let verdict = verdict(Ending::Finished, two(|_| 15.0));
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Pass, Action::None)
    );
    let bound = verdict.findings[0].bound.as_ref().unwrap();
    assert_eq!(
        (bound.rule.as_str(), bound.origin.as_str()),
        ("warn_below", "test.toml")
    );
    assert!((verdict.findings[0].margin.unwrap() - 0.25).abs() < 1e-9);
}

#[test]
fn a_value_at_the_bound_keeps_it() {
    assert_eq!(status(two(|_| 12.0)), Status::Pass);
    assert_eq!(status(two(|_| 10.0)), Status::Warn);
}

#[test]
fn a_broken_bound_fails_with_the_fault_class_of_the_metric_and_its_action() {
    let verdict = verdict(
        Ending::Finished,
        two(|index| if index == 1 { 9.9 } else { 15.0 }),
    );
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Fail, Action::Reboot)
    );
    let bad = verdict
        .findings
        .iter()
        .find(|finding| finding.status == Status::Fail)
        .unwrap();
    assert_eq!(bad.fault.as_deref(), Some("nic.performance"));
    assert_eq!(bad.subject, nic(1));
    assert!(bad.margin.unwrap() < 0.0);
    assert!(
        bad.message.contains("rdmap1s0") && bad.message.contains("at least 10 GB/s"),
        "{}",
        bad.message
    );
}

#[test]
fn a_measurement_can_name_a_nearer_fault_class() {
    let mut measurements = two(|_| 15.0);
    measurements.push(STATE.of(nic(0), "down").fault("nic.missing"));
    let verdict = verdict(Ending::Finished, measurements);
    let bad = verdict
        .findings
        .iter()
        .find(|finding| finding.status == Status::Fail)
        .unwrap();
    assert_eq!(bad.fault.as_deref(), Some("nic.missing"));
}

#[test]
fn a_warning_never_asks_for_the_node() {
    let verdict = verdict(Ending::Finished, two(|_| 11.0));
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Warn, Action::Investigate)
    );
}

#[test]
fn a_word_outside_of_the_list_fails_and_one_on_the_other_list_warns() {
    let with = |word: &'static str| {
        let mut measurements = two(|_| 15.0);
        measurements.push(STATE.of(nic(0), word));
        status(measurements)
    };
    assert_eq!(with("up"), Status::Pass);
    assert_eq!(with("testing"), Status::Warn);
    assert_eq!(with("UP"), Status::Fail);
}

#[test]
fn seven_good_ones_of_eight_are_not_a_good_node() {
    assert_eq!(status(vec![SPEED.of(nic(0), 15.0)]), Status::Unknown);
}

#[test]
fn the_same_card_measured_twice_does_not_stand_for_two_cards() {
    assert_eq!(
        status(vec![SPEED.of(nic(0), 15.0), SPEED.of(nic(0), 15.0)]),
        Status::Unknown
    );
}

#[test]
fn measured_without_a_limit_is_unknown_and_never_a_pass() {
    let mut record = Record::new("nic-test", Ending::Finished);
    record.measurements = two(|_| 15.0);
    let bare = table("schema = \"dhc.thresholds/1\"\ninstance_type = \"bare\"\n");
    let verdict = judge(&record, METRICS, &bare);
    assert_eq!(verdict.status, Status::Unknown);
    assert!(
        verdict.findings[0].message.contains("measured, not judged"),
        "{}",
        verdict.findings[0].message
    );
    assert_eq!(verdict.findings[0].value, Some(Value::Real(15.0)));
}

#[test]
fn context_without_a_limit_decides_nothing() {
    let mut measurements = two(|_| 15.0);
    measurements.push(HEAT.of(nic(0), 90.0));
    assert_eq!(status(measurements), Status::Pass);
}

#[test]
fn a_required_metric_that_is_missing_is_unknown() {
    let mut record = Record::new("nic-test", Ending::Finished);
    record.measurements = vec![STATE.of(nic(0), "up")];
    // Also where the table does not say how many are due.
    let text = LIMITS.replace("subjects = { hardware = \"efa\" }\n", "");
    let found = judge(&record, METRICS, &table(&text)).findings;
    let unknown = found
        .iter()
        .filter(|finding| finding.status == Status::Unknown);
    let unknown: Vec<_> = unknown
        .map(|finding| (finding.metric.as_str(), finding.message.as_str()))
        .collect();
    assert_eq!(
        unknown,
        [("nic.speed", "the check finished without measuring it")]
    );
}

#[test]
fn nothing_measured_is_unknown() {
    assert_eq!(status(Vec::new()), Status::Unknown);
}

#[test]
fn a_gap_is_unknown_even_beside_good_values() {
    let mut record = Record::new("nic-test", Ending::Finished);
    record.measurements = two(|_| 15.0);
    record.gaps.push(Gap {
        metric: STATE.name.into(),
        subject: nic(1),
        why: "EIO".into(),
    });
    let verdict = judge(&record, METRICS, &table(LIMITS));
    assert_eq!(verdict.status, Status::Unknown);
    assert!(
        verdict
            .findings
            .iter()
            .any(|finding| finding.message.contains("EIO"))
    );
}

#[test]
fn a_check_that_could_not_look_is_an_error_and_accuses_nothing() {
    for ending in [
        Ending::Failed {
            error: "dcgmi is not installed".into(),
        },
        timed_out(),
        Ending::Killed { signal: 11 },
    ] {
        let verdict = verdict(ending, two(|_| 15.0));
        assert_eq!(
            (verdict.status, verdict.action),
            (Status::Error, Action::Retry)
        );
    }
}

fn timed_out() -> Ending {
    Ending::TimedOut {
        after_ms: 5000,
        doing: "asking gpu3".to_owned(),
        of_the_run: false,
    }
}

/// What is said of a check with this ending, as it stands in a stored result.
fn said_of(ending: &str) -> String {
    let ending: Ending = serde_json::from_str(ending).unwrap();
    let verdict = verdict(ending, two(|_| 15.0));
    let error = verdict
        .findings
        .into_iter()
        .find(|finding| finding.status == Status::Error);
    error.unwrap().message
}

#[test]
fn a_check_that_was_stopped_says_what_it_was_doing_and_whose_deadline_it_was() {
    let own = said_of(r#"{"how": "timed_out", "after_ms": 5000, "doing": "asking gpu3"}"#);
    assert_eq!(
        own,
        "the check was stopped at its deadline after 5000 ms: asking gpu3; run `dhc run --check nic-test` alone, with a \
         longer --deadline if the node is merely slow"
    );
    let of_the_run = said_of(
        r#"{"how": "timed_out", "after_ms": 5000, "doing": "asking gpu3", "of_the_run": true}"#,
    );
    assert!(
        of_the_run.contains("asking gpu3; give the run a longer --run-deadline"),
        "{of_the_run}"
    );
    // A result of a dhc that did not keep this.
    let old = said_of(r#"{"how": "timed_out", "after_ms": 5000}"#);
    assert!(old.contains("after 5000 ms; run `dhc run"), "{old}");
}

#[test]
fn a_limit_broken_before_the_deadline_struck_still_fails() {
    let verdict = verdict(timed_out(), two(|_| 1.0));
    assert_eq!(
        (verdict.status, verdict.action),
        (Status::Fail, Action::Reboot)
    );
}

#[test]
fn an_interrupted_check_is_unknown() {
    assert_eq!(
        verdict(Ending::Interrupted, two(|_| 15.0)).status,
        Status::Unknown
    );
}

#[test]
fn a_skipped_check_has_no_findings() {
    let verdict = verdict(
        Ending::Skipped {
            reason: "left out by --skip".into(),
            lacks: None,
        },
        Vec::new(),
    );
    assert_eq!((verdict.status, verdict.findings.len()), (Status::Skip, 0));
}

#[test]
fn a_wrong_unit_or_kind_of_value_is_an_error_never_a_fail() {
    let mut wrong_unit = two(|_| 1.0);
    wrong_unit[0].unit = Unit::GigabitsPerSecond;
    wrong_unit[1].value = Value::Real(15.0);
    assert_eq!(status(wrong_unit), Status::Error);
    let mut word = two(|_| 15.0);
    word[0].value = Value::from("fast");
    assert_eq!(status(word), Status::Error);
    let mut not_a_number = two(|_| 15.0);
    not_a_number[0].value = Value::Real(f64::NAN);
    assert_eq!(status(not_a_number), Status::Error);
}

#[test]
fn a_metric_that_nobody_declares_is_unknown() {
    let mut measurements = two(|_| 15.0);
    measurements[0].metric = "nic.future".into();
    measurements.push(SPEED.of(nic(0), 15.0));
    assert_eq!(status(measurements), Status::Unknown);
}

#[test]
fn the_limit_with_most_conditions_decides() {
    let text = format!(
        "{LIMITS}
[[limit]]
metric = \"nic.speed\"
unit = \"GB/s\"
at = {{ bytes = 1048576, nodes = \"2..\" }}
fail_below = 20.0
source = \"this test\"
"
    );
    let mut record = Record::new("nic-test", Ending::Finished);
    record.measurements = two(|_| 15.0);
    record.measurements[1].at.bytes = Some(1_048_576);
    assert_eq!(judge(&record, METRICS, &table(&text)).status, Status::Pass);
    record.measurements[1].at.nodes = Some(4);
    assert_eq!(judge(&record, METRICS, &table(&text)).status, Status::Fail);
    record.measurements[1].at.nodes = Some(1);
    assert_eq!(judge(&record, METRICS, &table(&text)).status, Status::Pass);
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Finished),
        Just(Ending::Failed { error: "e".into() }),
        Just(timed_out()),
        Just(Ending::Killed { signal: 9 }),
        Just(Ending::Interrupted),
    ]
}

proptest! {
    /// An oracle that is written differently: a pass means that every card was measured and is fast, every state is
    /// up, and the check finished.
    #[test]
    fn a_pass_means_that_everything_was_seen_and_good(
        speeds in prop::collection::btree_map(0_u32..3, 0.0..30.0_f64, 0..3),
        states in prop::collection::vec(prop::sample::select(vec!["up", "down", "testing"]), 0..3),
        ending in ending(),
    ) {
        let mut measurements: Vec<Measurement> =
            speeds.iter().map(|(index, speed)| SPEED.of(nic(*index), *speed)).collect();
        measurements.extend(states.iter().map(|state| STATE.of(nic(0), *state)));
        let good = ending == Ending::Finished
            && speeds.len() >= 2
            && speeds.values().all(|speed| *speed >= 12.0)
            && states.iter().all(|state| *state == "up");
        let bad = speeds.values().any(|speed| *speed < 10.0) || states.contains(&"down");
        let status = verdict(ending, measurements).status;
        prop_assert_eq!(status == Status::Pass, good);
        prop_assert_eq!(status == Status::Fail, bad);
    }

    /// More evidence of harm never makes a verdict milder.
    #[test]
    fn another_bad_measurement_never_improves_a_verdict(speed in 0.0..30.0_f64, more in 0.0..10.0_f64) {
        let before = status(two(|_| speed));
        let mut measurements = two(|_| speed);
        measurements.push(SPEED.of(nic(2), more));
        prop_assert!(status(measurements) >= before);
    }
}
