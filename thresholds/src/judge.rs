//! Judgement: what a record means under a table. Pure, so that a stored record can be judged again.
//!
//! The rules, each with a test below:
//! - a bound that is broken is a *fail* (or *warn*, if the limit says so), even if the check did not end well;
//! - what was not measured, or measured without a limit, is *unknown*: never a pass;
//! - a check that could not look is an *error*, which never accuses the hardware;
//! - a device that is not like its peers is a *warn*, whatever the table says of it.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fault::{Action, Faults};
use crate::hardware::Hardware;
use crate::measurement::{At, Ending, Measurement, Metric, Record, Role, Subject};
use crate::peers::unlike_its_peers;
use crate::table::{Limit, Number, Table};
use crate::unit::{Unit, Value};

/// The fault class of a check that could not do its work.
const COULD_NOT_RUN: &str = "check.could_not_run";

/// What is known of a thing after looking, mildest first: the status of a whole is the greatest of its parts.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not looked at, because the node has no such hardware or the user left it out.
    Skip,
    /// Measured, and within every bound.
    Pass,
    /// Measured, and worth watching.
    Warn,
    /// Measured without a limit to judge it, or not readable.
    Unknown,
    /// dhc or a tool could not look. Says nothing about the hardware.
    Error,
    /// Measured, and out of bounds.
    Fail,
}

impl Status {
    /// Every status, mildest first.
    pub const ALL: &[Status] = &[
        Status::Skip,
        Status::Pass,
        Status::Warn,
        Status::Unknown,
        Status::Error,
        Status::Fail,
    ];

    /// The word used in files.
    pub const fn word(self) -> &'static str {
        match self {
            Status::Skip => "skip",
            Status::Pass => "pass",
            Status::Warn => "warn",
            Status::Unknown => "unknown",
            Status::Error => "error",
            Status::Fail => "fail",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// What one measurement (or its absence) means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// What is known.
    pub status: Status,
    /// The metric.
    pub metric: String,
    /// Of what.
    pub subject: Subject,
    /// What was measured, unless nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// The metric's unit.
    pub unit: Unit,
    /// Under which conditions.
    #[serde(default, skip_serializing_if = "At::is_anywhere")]
    pub at: At,
    /// The bound that decided: the one that is broken, else the one that is nearest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// How far the value is on the good side of the bound, as a share of the bound; negative beyond it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// The fault class, unless the status is a pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What recovery tooling should do about it.
    #[serde(default, skip_serializing_if = "is_none")]
    pub action: Action,
    /// What happened, for people, unless the status is a pass.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The bound that decided a finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bound {
    /// Which: `fail_below`, `fail_above`, `warn_below`, `warn_above`, `expect`, `one_of`, `warn_if`, `peers_below`,
    /// `peers_above`.
    pub rule: String,
    /// Its number, or its words parted by commas.
    pub value: Value,
    /// The table that it stands in; `peers` where it comes from the other devices or nodes of the kind.
    pub origin: String,
    /// Where that table has it from.
    pub source: String,
}

/// What a record means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The greatest status of the findings.
    pub status: Status,
    /// The strongest action that a broken bound asks for.
    pub action: Action,
    /// One for each judged measurement and each thing that is missing.
    pub findings: Vec<Finding>,
}

/// Judges what a check recorded under `table`. `metrics` are those that the check declares.
pub fn judge(record: &Record, metrics: &[&Metric], table: &Table) -> Verdict {
    if let Ending::Skipped { lacks, .. } = record.ending {
        return left_out(record, lacks, table);
    }
    let mut findings: Vec<Finding> = record
        .measurements
        .iter()
        .flat_map(|measurement| judged(measurement, metrics, table))
        .collect();
    findings.extend(gaps(record, metrics, table));
    findings.extend(too_few_subjects(record, metrics, table));
    findings.extend(ending(record));
    findings.extend(missing(record, metrics));
    add_peers(&mut findings, unlike_its_peers(record, metrics));
    if findings.is_empty() {
        let message = "the check measured nothing that could be judged".to_owned();
        findings.push(unjudged(
            Status::Unknown,
            &record.check,
            Subject::node(),
            Unit::State,
            message,
        ));
    }
    Verdict::of(findings)
}

/// A check that was not run is left out under this table as well, unless the table asks for what it was left out for want of.
fn left_out(record: &Record, lacks: Option<Hardware>, table: &Table) -> Verdict {
    let due = lacks.and_then(|kind| Some((kind, table.due(kind).filter(|count| *count > 0)?)));
    let Some((kind, count)) = due else {
        return Verdict {
            status: Status::Skip,
            action: Action::None,
            findings: Vec::new(),
        };
    };
    let message = format!(
        "not run, since no {} were expected then, and `{}` has {count}; run it again under this table",
        kind.plural(),
        table.instance_type
    );
    let (status, unit) = (Status::Unknown, Unit::State);
    Verdict::of(vec![unjudged(
        status,
        &record.check,
        Subject::node(),
        unit,
        message,
    )])
}

impl Verdict {
    /// What these findings mean together.
    pub(crate) fn of(findings: Vec<Finding>) -> Verdict {
        let statuses = findings.iter().map(|finding| finding.status);
        let actions = findings.iter().map(|finding| finding.action);
        Verdict {
            status: statuses.max().unwrap_or(Status::Unknown),
            action: actions.max().unwrap_or_default(),
            findings,
        }
    }
}

/// Adds what peers say of things that nothing graver, and no other bound as grave, is held against.
pub(crate) fn add_peers(findings: &mut Vec<Finding>, peers: Vec<Finding>) {
    let told = |finding: &Finding, peer: &Finding| {
        finding.bound.is_some()
            && finding.status >= peer.status
            && finding.metric == peer.metric
            && finding.subject == peer.subject
            && finding.at == peer.at
    };
    for peer in peers {
        if !findings.iter().any(|finding| told(finding, &peer)) {
            findings.push(peer);
        }
    }
}

/// What one measurement means: a finding for each limit that holds, or *unknown* where one is needed and none holds.
fn judged(measurement: &Measurement, metrics: &[&Metric], table: &Table) -> Vec<Finding> {
    let subject = || measurement.subject.clone();
    let Some(metric) = metrics
        .iter()
        .find(|metric| metric.name == measurement.metric)
    else {
        let message = format!(
            "this dhc does not know `{}`; judge it with the one that measured it",
            measurement.metric
        );
        return vec![unjudged(
            Status::Unknown,
            &measurement.metric,
            subject(),
            measurement.unit,
            message,
        )];
    };
    if measurement.unit != metric.unit || !measurement.value.suits(metric.unit) {
        let message = format!(
            "recorded as `{} {}`, but measured in {}",
            measurement.value, measurement.unit, metric.unit
        );
        return vec![unjudged(
            Status::Error,
            metric.name,
            subject(),
            metric.unit,
            message,
        )];
    }
    let limits = table.limits(metric.name, &measurement.at);
    let findings: Vec<Finding> = limits
        .iter()
        .filter_map(|limit| against(measurement, metric, limit, table))
        .collect();
    if !findings.is_empty() || metric.role == Role::Context {
        return findings;
    }
    let mut finding = unjudged(
        Status::Unknown,
        metric.name,
        subject(),
        metric.unit,
        String::new(),
    );
    finding.value = Some(measurement.value.clone());
    finding.at = measurement.at.clone();
    finding.message = format!(
        "measured, not judged: the table `{}` has no limit on `{}`{}; add one with --thresholds FILE",
        table.instance_type,
        metric.name,
        under(&measurement.at)
    );
    vec![finding]
}

/// What one measurement means under one limit, or `None` if the limit asks for a number that the table does not know.
fn against(
    measurement: &Measurement,
    metric: &Metric,
    limit: &Limit,
    table: &Table,
) -> Option<Finding> {
    let (status, rule, bound, margin) = match &measurement.value {
        Value::Word(word) => word_against(word, limit)?,
        Value::Count(_) | Value::Real(_) => {
            number_against(measurement.value.number()?, limit, table)?
        }
    };
    let bound = Bound {
        rule: rule.to_owned(),
        value: bound,
        origin: limit.origin.clone(),
        source: limit.source.clone(),
    };
    let fault = limit.fault.as_deref();
    Some(finding(measurement, metric, status, bound, margin, fault))
}

/// What one measurement means, if this bound decides it. `fault` is the class of the bound, if it has one of its own.
pub(crate) fn finding(
    measurement: &Measurement,
    metric: &Metric,
    status: Status,
    bound: Bound,
    margin: Option<f64>,
    fault: Option<&str>,
) -> Finding {
    let mut finding = Finding {
        status,
        metric: metric.name.to_owned(),
        subject: measurement.subject.clone(),
        value: Some(measurement.value.clone()),
        unit: metric.unit,
        at: measurement.at.clone(),
        bound: None,
        margin,
        fault: None,
        action: Action::None,
        message: String::new(),
    };
    if status != Status::Pass {
        let class = measurement
            .fault
            .as_deref()
            .or(fault)
            .unwrap_or(metric.fault);
        finding.action = match status {
            Status::Fail => Faults::built_in().action(class),
            // Worth watching is never worth a node.
            _ => Faults::built_in().action(class).min(Action::Investigate),
        };
        finding.fault = Some(class.to_owned());
        finding.message = said(measurement, metric, &bound);
    }
    finding.bound = Some(bound);
    finding
}

type Decision = (Status, &'static str, Value, Option<f64>);

fn word_against(word: &str, limit: &Limit) -> Option<Decision> {
    let bounds = &limit.bounds;
    let listed = |words: &[String]| words.iter().any(|known| known == word);
    if !bounds.one_of.is_empty() && !listed(&bounds.one_of) {
        return Some((
            Status::Fail,
            "one_of",
            bounds.one_of.join(", ").into(),
            None,
        ));
    }
    if listed(&bounds.warn_if) {
        return Some((
            Status::Warn,
            "warn_if",
            bounds.warn_if.join(", ").into(),
            None,
        ));
    }
    let (rule, words) = if bounds.one_of.is_empty() {
        ("warn_if", &bounds.warn_if)
    } else {
        ("one_of", &bounds.one_of)
    };
    (!words.is_empty()).then(|| (Status::Pass, rule, words.join(", ").into(), None))
}

/// The first bound that is broken, gravest first; else the bound with the least margin.
fn number_against(value: f64, limit: &Limit, table: &Table) -> Option<Decision> {
    let bounds = &limit.bounds;
    let known = |number: Option<Number>| number.and_then(|number| table.number(number));
    let share = |distance: f64, bound: f64| {
        if bound == 0.0 {
            distance
        } else {
            distance / bound.abs()
        }
    };
    let above = |bound: f64| share(value - bound, bound);
    let below = |bound: f64| share(bound - value, bound);
    let checks = [
        (
            "expect",
            Status::Fail,
            known(bounds.expect).map(|bound| (bound, -above(bound).abs())),
        ),
        (
            "fail_below",
            Status::Fail,
            known(bounds.fail_below).map(|bound| (bound, above(bound))),
        ),
        (
            "fail_above",
            Status::Fail,
            known(bounds.fail_above).map(|bound| (bound, below(bound))),
        ),
        (
            "warn_below",
            Status::Warn,
            known(bounds.warn_below).map(|bound| (bound, above(bound))),
        ),
        (
            "warn_above",
            Status::Warn,
            known(bounds.warn_above).map(|bound| (bound, below(bound))),
        ),
    ];
    let mut nearest: Option<(f64, Decision)> = None;
    for (rule, status, check) in checks {
        let Some((bound, margin)) = check else {
            continue;
        };
        if margin < 0.0 {
            return Some((status, rule, Value::Real(bound), Some(margin)));
        }
        if nearest.as_ref().is_none_or(|(least, _)| margin < *least) {
            nearest = Some((
                margin,
                (Status::Pass, rule, Value::Real(bound), Some(margin)),
            ));
        }
    }
    nearest.map(|(_, decision)| decision)
}

/// A gap in a metric that matters is *unknown*. One that is only kept for people matters where the table has a limit for it.
fn gaps(record: &Record, metrics: &[&Metric], table: &Table) -> Vec<Finding> {
    let is_limited = |name: &str| table.limits.iter().any(|limit| limit.metric == name);
    let matters = |name: &str| {
        metrics.iter().find(|metric| {
            metric.name == name && (metric.role != Role::Context || is_limited(name))
        })
    };
    let mut findings = Vec::new();
    for gap in &record.gaps {
        if let Some(metric) = matters(&gap.metric) {
            let message = format!("could not be read: {}", gap.why);
            findings.push(unjudged(
                Status::Unknown,
                metric.name,
                gap.subject.clone(),
                metric.unit,
                message,
            ));
        }
    }
    findings
}

/// Where a limit says on how many subjects a metric is due, fewer is *unknown*: seven good GPUs are not a good node.
#[expect(clippy::cast_precision_loss, reason = "counts of devices are small")]
fn too_few_subjects(record: &Record, metrics: &[&Metric], table: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    for metric in metrics {
        let due = table
            .limits
            .iter()
            .filter(|limit| limit.metric == metric.name);
        let Some(due) = due
            .filter_map(|limit| table.number(limit.subjects?))
            .reduce(f64::max)
        else {
            continue;
        };
        let seen: BTreeSet<&Subject> = record
            .measurements
            .iter()
            .filter(|measurement| measurement.metric == metric.name)
            .map(|measurement| &measurement.subject)
            .collect();
        if (seen.len() as f64) < due {
            let message = format!(
                "measured on {} of the {due} that the table asks for",
                seen.len()
            );
            findings.push(unjudged(
                Status::Unknown,
                metric.name,
                Subject::node(),
                metric.unit,
                message,
            ));
        }
    }
    findings
}

/// A check that did not end well is an *error*; one that was interrupted is *unknown*.
fn ending(record: &Record) -> Option<Finding> {
    let (status, message) = match &record.ending {
        Ending::Finished | Ending::Skipped { .. } => return None,
        Ending::Failed { error } => (Status::Error, error.clone()),
        Ending::TimedOut {
            after_ms,
            doing,
            of_the_run,
        } => {
            let doing = if doing.is_empty() {
                String::new()
            } else {
                format!(": {doing}")
            };
            let message = if *of_the_run {
                format!(
                    "the run's own deadline stopped the check after {after_ms} ms{doing}; give the run a longer \
                     --run-deadline, or fewer checks"
                )
            } else {
                format!(
                    "the check was stopped at its deadline after {after_ms} ms{doing}; run `dhc run --check {}` alone, \
                     with a longer --deadline if the node is merely slow",
                    record.check
                )
            };
            (Status::Error, message)
        }
        Ending::Killed { signal } => (
            Status::Error,
            format!(
                "the process of the check died of signal {signal}; a driver library may have crashed, see the kernel log"
            ),
        ),
        Ending::Interrupted => (
            Status::Unknown,
            "the run was stopped before the check had finished".to_owned(),
        ),
    };
    let mut finding = unjudged(status, "check", Subject::node(), Unit::State, message);
    if status == Status::Error {
        finding.fault = Some(COULD_NOT_RUN.to_owned());
        finding.action = Faults::built_in().action(COULD_NOT_RUN);
    }
    Some(finding)
}

/// A required metric of which there is neither a value nor a gap, though the check says that it has finished.
fn missing(record: &Record, metrics: &[&Metric]) -> Vec<Finding> {
    if record.ending != Ending::Finished {
        return Vec::new();
    }
    let there = |name: &str| {
        record
            .measurements
            .iter()
            .any(|measurement| measurement.metric == name)
            || record.gaps.iter().any(|gap| gap.metric == name)
    };
    let due = metrics
        .iter()
        .filter(|metric| metric.role == Role::Required && !there(metric.name));
    due.map(|metric| {
        let message = "the check finished without measuring it".to_owned();
        unjudged(
            Status::Unknown,
            metric.name,
            Subject::node(),
            metric.unit,
            message,
        )
    })
    .collect()
}

fn unjudged(
    status: Status,
    metric: &str,
    subject: Subject,
    unit: Unit,
    message: String,
) -> Finding {
    Finding {
        status,
        metric: metric.to_owned(),
        subject,
        value: None,
        unit,
        at: At::default(),
        bound: None,
        margin: None,
        fault: None,
        action: Action::None,
        message,
    }
}

/// What a broken bound says to people: `nvlink.link.state is inactive, must be active`, and the source's own words.
fn said(measurement: &Measurement, metric: &Metric, bound: &Bound) -> String {
    let unit = if metric.unit.is_word() || metric.unit == Unit::Count {
        String::new()
    } else {
        format!(" {}", metric.unit)
    };
    let must = match bound.rule.as_str() {
        "expect" => "must be",
        "fail_below" => "must be at least",
        "fail_above" => "must be at most",
        "warn_below" => "should be at least",
        "warn_above" => "should be at most",
        "warn_if" => "one of those worth watching:",
        "peers_below" => "its peers have at least",
        "peers_above" => "its peers have at most",
        _ => "must be one of",
    };
    let detail = measurement
        .detail
        .as_ref()
        .map_or_else(String::new, |detail| format!(": {detail}"));
    format!(
        "{} of {} is {}{unit}, {must} {}{unit}{}{detail}",
        metric.name,
        measurement.subject,
        measurement.value,
        bound.value,
        under(&measurement.at)
    )
}

/// The conditions of a measurement, for people.
fn under(at: &At) -> String {
    let mut text = String::new();
    if let Some(bytes) = at.bytes {
        text.push_str(&format!(" at {bytes} bytes"));
    }
    if let Some(nodes) = at.nodes {
        text.push_str(&format!(" over {nodes} nodes"));
    }
    if let Some(provider) = &at.provider {
        text.push_str(&format!(" over {provider}"));
    }
    text
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it this way")]
fn is_none(action: &Action) -> bool {
    *action == Action::None
}
