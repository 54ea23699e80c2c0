//! The cluster level as text: the nodes that are not well, the waves, and what follows.

use std::collections::BTreeMap;

use comfy_table::Cell;
use dhc_checks::catalog::cluster_node;
use dhc_thresholds::{
    ClusterReport, GroupReport, LocatedReport, NodeReport, Report, SearchReport, Status, TestReport,
};

use super::{FINDINGS_MAX, Paper, details, last_words, one_line, status_cell, summary, table};

/// How many nodes a line names before it only counts them.
const NAMES_MAX: usize = 8;

/// Of how many failed nodes every failed check is spelled out.
const DETAILED_MAX: usize = 16;

/// How many groups of a wave get a line.
const GROUPS_MAX: usize = 16;

pub(super) fn text(report: &Report, cluster: &ClusterReport, paper: Paper) -> String {
    let mut text = format!(
        "{} nodes by {}{}, run {}, judged by the table `{}` ({})\n",
        report.nodes.len(),
        cluster.launcher,
        cluster
            .job
            .map_or_else(String::new, |job| format!(" in job {job}")),
        report.run.id,
        report.judged_by.instance_type,
        report.judged_by.origin
    );
    text.push_str(&nodes(report, paper));
    for search in &cluster.searches {
        text.push_str(&waves(search, paper));
    }
    for check in &cluster.checks {
        if check.status > Status::Pass {
            text.push_str(&details(check, None));
        }
    }
    for node in report
        .nodes
        .iter()
        .filter(|node| node.status == Status::Fail)
        .take(DETAILED_MAX)
    {
        let failed = node
            .checks
            .iter()
            .filter(|check| check.status == Status::Fail);
        for check in failed.filter(|check| check.check != cluster_node::SPEC.name) {
            text.push_str(&details(check, Some(&node.name)));
        }
    }
    let unwell = report
        .nodes
        .iter()
        .filter(|node| node.status > Status::Pass);
    for (words, nodes) in alike(unwell, last_words) {
        text.push_str(&format!("\n{}: {words}", names(&nodes)));
    }
    for search in &cluster.searches {
        let sentence = one_line(&search.sentence);
        text.push_str(&format!("\n{}: {sentence}\n", search.check));
        for located in &search.located {
            text.push_str(&self::located(located));
        }
    }
    text.push_str(&format!(
        "\ncluster: {}\n",
        report.status.word().to_uppercase()
    ));
    text
}

/// The nodes of whom the same is said, in the order in which the first of them stands.
fn alike<'a, T: Ord + Clone>(
    nodes: impl Iterator<Item = &'a NodeReport>,
    said: impl Fn(&NodeReport) -> T,
) -> Vec<(T, Vec<String>)> {
    let mut all: Vec<(T, Vec<String>)> = Vec::new();
    let mut places: BTreeMap<T, usize> = BTreeMap::new();
    for node in nodes {
        let words = said(node);
        let place = *places.entry(words.clone()).or_insert(all.len());
        if place == all.len() {
            all.push((words, Vec::new()));
        }
        all[place].1.push(node.name.clone());
    }
    all
}

/// One line for all nodes of whom the same is to be said; those that are well come last.
pub(super) fn nodes(report: &Report, paper: Paper) -> String {
    let mut table = table(paper);
    table.set_header(["node", "status", "what was found"]);
    let (well, unwell): (Vec<&NodeReport>, Vec<&NodeReport>) = report
        .nodes
        .iter()
        .partition(|node| node.status == Status::Pass);
    let nodes = unwell.into_iter().chain(well);
    for ((status, found), nodes) in alike(nodes, |node| (node.status, found(node))) {
        table.add_row([
            Cell::new(names(&nodes)),
            status_cell(status, paper),
            Cell::new(found),
        ]);
    }
    format!("{table}\n")
}

fn found(node: &NodeReport) -> String {
    if node.status == Status::Pass {
        return "nothing is held against them".to_owned();
    }
    let gravest = node.checks.iter().max_by_key(|check| check.status);
    gravest.map(summary).unwrap_or_default()
}

/// A line for each group of each wave.
fn waves(search: &SearchReport, paper: Paper) -> String {
    let mut table = table(paper);
    table.set_header(["wave", "why", "nodes", "rail", "busbw", "bound", "outcome"]);
    for (number, wave) in search.waves.iter().enumerate() {
        for group in wave.groups.iter().take(GROUPS_MAX) {
            table.add_row([
                number.to_string(),
                group.purpose.clone(),
                names(&group.nodes),
                group.rail.as_deref().map(one_line).unwrap_or_default(),
                gigabytes(group.plateau_gb_per_s),
                gigabytes(group.bound_gb_per_s),
                outcome(group),
            ]);
        }
        if wave.groups.len() > GROUPS_MAX {
            let more = wave.groups.len() - GROUPS_MAX;
            table.add_row([number.to_string(), format!("and {more} groups more")]);
        }
    }
    format!("\n{} by waves\n{table}\n", search.check)
}

/// What was located, with the groups that show it.
fn located(located: &LocatedReport) -> String {
    let confidence = located.confidence.map_or_else(String::new, |confidence| {
        format!(" (probability {:.1} %)", confidence * 100.0)
    });
    let mut text = format!(
        "  {}{confidence}: {}\n    {}: see `dhc explain {}`\n",
        one_line(&located.class),
        one_line(&located.sentence),
        one_line(&located.fault),
        one_line(&located.fault)
    );
    for test in &located.tests {
        text.push_str(&format!("    {}\n", one_line(&test_words(test))));
    }
    text
}

/// `rail eth1, with h1 h5 h6: 3 of 3 failed`.
pub(super) fn test_words(test: &TestReport) -> String {
    let rail = test.rail.as_ref();
    let rail = rail.map_or_else(String::new, |rail| format!(" {rail}"));
    let with = match test.with.is_empty() {
        true => String::new(),
        false => format!(", with {}", names(&test.with)),
    };
    format!(
        "{}{rail}{with}: {} of {} failed",
        test.purpose,
        test.failed,
        test.passed + test.failed
    )
}

fn outcome(group: &GroupReport) -> String {
    one_line(&match (&group.error, group.named.is_empty()) {
        (_, false) => format!("named {}", group.named.join(", ")),
        (Some(error), true) => format!("{}: {error}", group.outcome),
        (None, true) => group.outcome.clone(),
    })
}

fn gigabytes(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.3} GB/s"))
}

pub(super) fn names(nodes: &[String]) -> String {
    if nodes.len() <= NAMES_MAX {
        return one_line(&nodes.join(" "));
    }
    let shown = NAMES_MAX.min(FINDINGS_MAX);
    one_line(&format!(
        "{} and {} more",
        nodes[..shown].join(" "),
        nodes.len() - shown
    ))
}
