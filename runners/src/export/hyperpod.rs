//! The lines of SageMaker HyperPod's deep health check, for those who read its logs (AWS, SageMaker developer guide, "Deep
//! health checks", section on logs).
//!
//! HyperPod keeps two: a local file of lines `time<TAB>level<TAB>message` on each instance, and JSON objects with `level`,
//! `ts` and `msg` in CloudWatch for what concerns instances together. A node's own result becomes lines of the first kind, a
//! cluster's of the second. The messages are HyperPod's, word for word where it has one for what was found; where it names
//! the remedy, it is the one that dhc suggests.

use dhc_thresholds::{
    Action, CheckReport, Ending, FaultReport, GroupReport, NodeReport, Report, SearchReport,
    Status, Value,
};
use serde::Serialize;

use super::Times;
use crate::render;

/// CloudWatch takes events of 256 KiB, of which 26 bytes are its own ("CloudWatch Logs quotas").
const EVENT_MAX: usize = 256 * 1024 - 26;

/// Room for what stands beside the message of a line: five names, each escaped, and some words.
const BESIDE_MAX: usize = 5 * 6 * NAME_MAX + 512;

/// The longest name beside a message; host names have at most 253 bytes.
const NAME_MAX: usize = 256;

/// What stands where a message was cut.
const CUT: &str = " [cut]";

const GPU_COUNT: &str = "gpu-count";
const DCGM: &str = "dcgm-diag";
const DCGM_SUMMARY: &str = "DCGM diagnostic health summary: ";
const EFA: &str = "efa-loopback";
const EFA_SUMMARY: &str = "device: ";

/// One line; the order of fields is the order in which they are written.
#[derive(Debug, Serialize)]
struct Line<'a> {
    level: &'static str,
    ts: &'a str,
    msg: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Action>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_class: Option<&'a str>,
    run_id: &'a str,
}

/// The lines of a report, without line ends.
pub(super) fn lines(report: &Report, times: Times) -> Vec<String> {
    // HyperPod's clock has whole seconds.
    let ts = times.ended.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let together = report.cluster.is_some();
    let lines = Lines { report, ts: &ts };
    let said = if together {
        lines.cluster()
    } else {
        lines.instances()
    };
    let written = |line: &Line<'_>| {
        if together {
            as_json(line)
        } else {
            as_text(line)
        }
    };
    said.iter().map(written).collect()
}

struct Lines<'a> {
    report: &'a Report,
    ts: &'a str,
}

impl<'a> Lines<'a> {
    fn line(&self, level: &'static str, msg: String) -> Line<'a> {
        Line {
            level,
            ts: self.ts,
            msg,
            node: None,
            instance_id: None,
            check: None,
            status: None,
            action: None,
            fault_class: None,
            run_id: &self.report.run.id,
        }
    }

    fn of_node(&self, node: &'a NodeReport, level: &'static str, msg: String) -> Line<'a> {
        Line {
            node: Some(&node.name),
            instance_id: node.identity.instance_id.as_deref(),
            ..self.line(level, msg)
        }
    }

    /// What each check of each node found, and what follows for the node.
    fn instances(&self) -> Vec<Line<'a>> {
        let mut lines = Vec::new();
        for node in &self.report.nodes {
            for check in &node.checks {
                for (level, msg) in messages(check) {
                    lines.push(Line {
                        check: Some(&check.check),
                        status: Some(check.status),
                        ..self.of_node(node, level, msg)
                    });
                }
            }
            lines.extend(self.verdict(node, |fault| fault.finding.message.clone()));
        }
        lines
    }

    /// What each search found, and what follows for the nodes that it accuses.
    fn cluster(&self) -> Vec<Line<'a>> {
        let cluster = self.report.cluster.iter();
        let searches: Vec<&SearchReport> = cluster.flat_map(|cluster| &cluster.searches).collect();
        let mut lines = Vec::new();
        for node in &self.report.nodes {
            let error = |fault: &FaultReport| {
                let slow = searches
                    .iter()
                    .find_map(|search| too_slow(search, Some(&node.name)));
                let slow = slow.filter(|_| fault.class == "cluster.node.slow");
                slow.unwrap_or_else(|| fault.finding.message.clone())
            };
            let verdict = self.verdict(node, error);
            // A node that failed is told of even where nothing is to be done to it.
            let failed = node
                .checks
                .iter()
                .filter(|check| check.status == Status::Fail);
            let failed = failed.filter(|_| verdict.is_none());
            let said =
                failed.flat_map(|check| messages(check).into_iter().map(move |it| (check, it)));
            lines.extend(said.map(|(check, (level, msg))| Line {
                check: Some(&check.check),
                status: Some(check.status),
                action: Some(check.action),
                ..self.of_node(node, level, msg)
            }));
            lines.extend(verdict);
        }
        for check in self
            .report
            .cluster
            .iter()
            .flat_map(|cluster| &cluster.checks)
        {
            let search = searches.iter().find(|search| search.check == check.check);
            let (level, msg) = together(check, search.copied());
            lines.push(Line {
                check: Some(&check.check),
                status: Some(check.status),
                ..self.line(level, msg)
            });
        }
        lines
    }

    /// The line that HyperPod's readers look for: a node that has to go, or to be rebooted.
    fn verdict(
        &self,
        node: &'a NodeReport,
        error: impl Fn(&FaultReport) -> String,
    ) -> Option<Line<'a>> {
        let remedy = match node.action {
            Action::Replace => "Replace",
            // HyperPod knows no reset of a device; a reboot resets it.
            Action::Reboot | Action::Reset => "Reboot",
            Action::None | Action::Retry | Action::Investigate => return None,
        };
        let gravest = node
            .faults
            .iter()
            .find(|fault| fault.action == node.action)?;
        let table = self.report.judged_by.instance_type.as_str();
        let msg = format!(
            "Encountered FaultyInstance. {remedy} the Instance. Region: {}, InstanceType: {}. ERROR:{}",
            node.identity.region.as_deref().unwrap_or("unknown"),
            node.identity.instance_type.as_deref().unwrap_or(table),
            error(gravest)
        );
        Some(Line {
            check: Some(&gravest.check),
            status: Some(node.status),
            action: Some(node.action),
            fault_class: Some(&gravest.class),
            ..self.of_node(node, "error", msg)
        })
    }
}

fn level(status: Status) -> &'static str {
    match status {
        Status::Skip | Status::Pass => "info",
        Status::Warn | Status::Unknown => "warn",
        Status::Error | Status::Fail => "error",
    }
}

/// What HyperPod's log would say of a check; of one that was left out, nothing.
fn messages(check: &CheckReport) -> Vec<(&'static str, String)> {
    if let Ending::Skipped { .. } = check.record.ending {
        return Vec::new();
    }
    let level = level(check.status);
    let mut notes = check.record.notes.iter();
    match check.check.as_str() {
        GPU_COUNT if check.status == Status::Pass => {
            vec![(level, "GpuPci Count check success".to_owned())]
        }
        DCGM => {
            // The check leaves HyperPod's summary as a note.
            let summary = notes.rfind(|note| note.starts_with(DCGM_SUMMARY)).cloned();
            let mut said: Vec<_> = summary
                .map(|summary| (level, summary))
                .into_iter()
                .collect();
            if said.is_empty() || check.status > Status::Pass {
                said.push((level, generic(check)));
            }
            said
        }
        EFA => {
            let cards = notes.filter(|note| note.starts_with(EFA_SUMMARY));
            let mut said: Vec<_> = cards.map(|note| card(check, note)).collect();
            if said.is_empty() || check.status > Status::Pass {
                said.push((level, generic(check)));
            }
            said
        }
        _ => vec![(level, generic(check))],
    }
}

/// The summary of one EFA card, and whether anything is held against the card.
fn card(check: &CheckReport, note: &str) -> (&'static str, String) {
    let name = note.trim_start_matches(EFA_SUMMARY);
    let name = name.split_whitespace().next().unwrap_or_default();
    let worst = check
        .findings
        .iter()
        .filter(|finding| finding.subject.device() == name)
        .map(|finding| finding.status)
        .max();
    match worst {
        Some(Status::Pass) => ("info", format!("EFA Loopback check passed for {note}")),
        Some(Status::Fail) => ("error", format!("EFA Loopback check failed for {note}")),
        _ => ("warn", format!("EFA Loopback check not judged for {note}")),
    }
}

fn generic(check: &CheckReport) -> String {
    let outcome = match check.status {
        Status::Pass => "success",
        Status::Warn => "success with a warning",
        Status::Fail => "failure",
        Status::Skip | Status::Unknown | Status::Error => "could not be judged",
    };
    format!(
        "{} check {outcome}: {}",
        check.check,
        render::summary(check)
    )
}

/// What HyperPod calls the test behind a check.
fn test(check: &str) -> &'static str {
    match check.split('-').next() {
        Some("nccl") => "NCCL",
        Some("nccom") => "NCCOM",
        _ => "MPI",
    }
}

/// HyperPod's words for the slowest group (with `node`, if one is named) that did not reach its bound.
fn too_slow(search: &SearchReport, node: Option<&str>) -> Option<String> {
    let groups = search.waves.iter().flat_map(|wave| &wave.groups);
    let with_node =
        |group: &&GroupReport| node.is_none_or(|node| group.nodes.iter().any(|name| name == node));
    let (plateau, bound) = groups
        .filter(with_node)
        .filter_map(|group| Some((group.plateau_gb_per_s?, group.bound_gb_per_s?)))
        .filter(|(plateau, bound)| plateau < bound)
        .min_by(|(one, _), (other, _)| one.total_cmp(other))?;
    Some(format!(
        "Bandwidth has less than threshold: Expected minimum threshold :{},{} Test output Bw: {}",
        Value::Real(bound),
        test(&search.check),
        Value::Real(plateau)
    ))
}

/// What HyperPod's log would say of a collective over all nodes.
fn together(check: &CheckReport, search: Option<&SearchReport>) -> (&'static str, String) {
    let sentence = search.map_or_else(|| render::summary(check), |search| search.sentence.clone());
    let test = test(&check.check);
    let msg = match check.status {
        Status::Pass if test == "NCCL" => nccl_summary(check, &sentence),
        Status::Pass => format!("{test} test successful. Summary: {sentence}"),
        _ => {
            let slow = search.and_then(|search| too_slow(search, None));
            let slow = slow.map_or_else(String::new, |slow| format!("{slow}. "));
            format!("{slow}{}: {sentence}", generic(check))
        }
    };
    (level(check.status), msg)
}

/// HyperPod's summary of nccl-tests, as far as dhc measures what stands in it.
fn nccl_summary(check: &CheckReport, sentence: &str) -> String {
    let measured = check.record.measurements.iter();
    let algbw: Vec<f64> = measured
        .filter(|measured| measured.metric.ends_with(".algbw"))
        .filter_map(|measured| measured.value.number())
        .collect();
    let most = algbw.iter().copied().fold(0.0, f64::max);
    let mean = algbw.iter().sum::<f64>() / algbw.len().max(1) as f64;
    format!(
        "Nccl test successful. Summary: NcclMaxAlgoBw: {most:.6}, NcclAvgAlgoBw: {mean:.6}, NcclOutOfBoundError: OK, \
         NcclOperations: all_reduce_perf, NcclClusterMessage: {sentence}"
    )
}

fn as_json(line: &Line<'_>) -> String {
    let written = |line: &Line<'_>| serde_json::to_string(line).expect("a line is JSON");
    let whole = written(line);
    if whole.len() <= EVENT_MAX {
        return whole;
    }
    // A character takes six bytes at most when it is escaped.
    written(&Line {
        level: line.level,
        ts: line.ts,
        msg: cut(&line.msg, (EVENT_MAX - BESIDE_MAX) / 6),
        node: line.node.map(name),
        instance_id: line.instance_id.map(name),
        check: line.check.map(name),
        status: line.status,
        action: line.action,
        fault_class: line.fault_class.map(name),
        run_id: name(line.run_id),
    })
}

/// Words parted by tabs; what would break the line is spelled out.
fn as_text(line: &Line<'_>) -> String {
    let mut msg = String::with_capacity(line.msg.len());
    for c in line.msg.chars() {
        if c.is_control() {
            msg.extend(c.escape_default());
        } else {
            msg.push(c);
        }
    }
    format!(
        "{}\t{}\t{}",
        line.ts,
        line.level,
        cut(&msg, EVENT_MAX - BESIDE_MAX)
    )
}

fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}{CUT}", first(text, bytes_max - CUT.len()))
}

/// As much of a name as a line has room for.
fn name(text: &str) -> &str {
    first(text, NAME_MAX)
}

fn first(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
