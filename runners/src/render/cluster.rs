//! The cluster level as text: the nodes that are not well, the waves, and what follows.

use comfy_table::Cell;
use dhc_thresholds::{ClusterReport, GroupReport, NodeReport, Report, SearchReport, Status};

use super::{FINDINGS_MAX, Paper, details, one_line, status_cell, summary, table, verdict};

/// How many nodes a line names before it only counts them.
const NAMES_MAX: usize = 8;

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
            text.push_str(&details(check));
        }
    }
    for node in report
        .nodes
        .iter()
        .filter(|node| node.status > Status::Pass)
    {
        text.push_str(&verdict(node));
    }
    for search in &cluster.searches {
        let sentence = one_line(&search.sentence);
        text.push_str(&format!("\n{}: {sentence}\n", search.check));
        for (one, other) in &search.paths {
            let path = format!("the path between {one} and {other} is slow");
            text.push_str(&format!(
                "  {}, and both are good with others\n",
                one_line(&path)
            ));
        }
    }
    text.push_str(&format!(
        "\ncluster: {}\n",
        report.status.word().to_uppercase()
    ));
    text
}

/// One line for each node that is not well, one for all the others.
pub(super) fn nodes(report: &Report, paper: Paper) -> String {
    let mut table = table(paper);
    table.set_header(["node", "status", "what was found"]);
    let mut well = Vec::new();
    for node in &report.nodes {
        if node.status == Status::Pass {
            well.push(node.name.clone());
        } else {
            table.add_row([
                Cell::new(one_line(&node.name)),
                status_cell(node.status, paper),
                Cell::new(found(node)),
            ]);
        }
    }
    if !well.is_empty() {
        let nothing = Cell::new("nothing is held against them");
        table.add_row([
            Cell::new(names(&well)),
            status_cell(Status::Pass, paper),
            nothing,
        ]);
    }
    format!("{table}\n")
}

fn found(node: &NodeReport) -> String {
    let gravest = node.checks.iter().max_by_key(|check| check.status);
    gravest.map(summary).unwrap_or_default()
}

/// A line for each group of each wave.
fn waves(search: &SearchReport, paper: Paper) -> String {
    let mut table = table(paper);
    table.set_header(["wave", "why", "nodes", "busbw", "bound", "outcome"]);
    for (number, wave) in search.waves.iter().enumerate() {
        for group in wave.groups.iter().take(GROUPS_MAX) {
            table.add_row([
                number.to_string(),
                group.purpose.clone(),
                names(&group.nodes),
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
