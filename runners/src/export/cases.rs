//! A report as suites of test cases, which JUnit and CTRF have in common: a suite for each node and one for the nodes
//! together, a case for each check.

use dhc_thresholds::{CheckReport, NodeReport, Report, Status};

use crate::render;

/// How many findings of a case are spelled out; the result holds them all.
const FINDINGS_MAX: usize = 100;

/// The cases of one node, or of the nodes together.
pub(super) struct Suite<'a> {
    pub(super) name: &'a str,
    pub(super) node: Option<&'a NodeReport>,
    pub(super) cases: Vec<Case<'a>>,
}

/// One check, or something that no check says.
pub(super) struct Case<'a> {
    pub(super) name: &'a str,
    pub(super) status: Status,
    pub(super) duration_ms: u64,
    /// What was found, in one line.
    pub(super) summary: String,
    /// The check, if it is one.
    pub(super) check: Option<&'a CheckReport>,
}

impl<'a> Case<'a> {
    fn of(check: &'a CheckReport) -> Self {
        Case {
            name: &check.check,
            status: check.status,
            duration_ms: check.record.duration_ms,
            summary: render::summary(check),
            check: Some(check),
        }
    }

    fn unsaid(name: &'a str, status: Status, summary: &str) -> Self {
        Case {
            name,
            status,
            duration_ms: 0,
            summary: summary.to_owned(),
            check: None,
        }
    }

    /// The fault class of the gravest finding.
    pub(super) fn fault(&self) -> Option<&'a str> {
        let findings = &self.check?.findings;
        let gravest = findings.iter().filter(|one| one.status == self.status);
        gravest.filter_map(|one| one.fault.as_deref()).next()
    }

    /// What was found, a line for each finding that is worse than a pass, gravest first.
    pub(super) fn details(&self) -> String {
        let Some(check) = self.check else {
            return self.summary.clone();
        };
        let mut findings: Vec<_> = check
            .findings
            .iter()
            .filter(|finding| finding.status > Status::Pass)
            .collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.status));
        let mut lines: Vec<String> = findings
            .iter()
            .take(FINDINGS_MAX)
            .map(|finding| format!("{}: {}", finding.status, render::line(finding)))
            .collect();
        if findings.len() > FINDINGS_MAX {
            let more = findings.len() - FINDINGS_MAX;
            lines.push(format!("and {more} more, see the JSON result"));
        }
        lines.join("\n")
    }
}

/// The suites of a report. Whoever reads them alone must come to no better a verdict than the report's: what no check says,
/// a case of its own does.
pub(super) fn suites(report: &Report) -> Vec<Suite<'_>> {
    let mut suites: Vec<Suite<'_>> = report.nodes.iter().map(of_node).collect();
    if let Some(cluster) = &report.cluster {
        suites.push(Suite {
            name: "cluster",
            node: None,
            cases: cluster.checks.iter().map(Case::of).collect(),
        });
    }
    let mut cases = suites.iter().flat_map(|suite| &suite.cases);
    let told = cases.any(|case| case.status > Status::Warn);
    if !told && (report.status > Status::Warn || !report.complete) {
        let case = if report.complete {
            Case::unsaid("verdict", report.status, "nothing was looked at")
        } else {
            let why = "the run was stopped before every check had ended";
            Case::unsaid("complete", Status::Unknown, why)
        };
        suites.push(Suite {
            name: "run",
            node: None,
            cases: vec![case],
        });
    }
    suites
}

fn of_node(node: &NodeReport) -> Suite<'_> {
    let mut cases: Vec<Case<'_>> = node.checks.iter().map(Case::of).collect();
    let told = cases.iter().any(|case| case.status > Status::Warn);
    if node.status > Status::Warn && !told {
        let why = "no check looked at the node, so nothing is known of it";
        cases.push(Case::unsaid("verdict", node.status, why));
    }
    Suite {
        name: &node.name,
        node: Some(node),
        cases,
    }
}
