//! Several results together as text: what was compared, which nodes are unlike the others, and what too many have in common.

use comfy_table::Cell;
use dhc_thresholds::{Conditions, FleetReport, Report, Status, Value};

use super::cluster::{names, nodes};
use super::{Paper, details, table, verdict};

pub(super) fn text(report: &Report, fleet: &FleetReport, paper: Paper) -> String {
    let mut text = format!(
        "{} nodes in {} runs, judged by the table `{}` ({}) and held against each other\n",
        report.nodes.len(),
        fleet.runs.len(),
        report.judged_by.instance_type,
        report.judged_by.origin
    );
    text.push_str(&comparisons(fleet, paper));
    text.push_str(&nodes(report, paper));
    let unwell = || {
        let nodes = report.nodes.iter();
        nodes.filter(|node| node.status > Status::Pass)
    };
    for node in unwell() {
        for check in node
            .checks
            .iter()
            .filter(|check| check.status > Status::Pass)
        {
            text.push_str(&format!("\n{}", node.name));
            text.push_str(&details(check, None));
        }
    }
    for node in unwell() {
        text.push_str(&verdict(node));
    }
    for common in &fleet.widespread {
        let at = Conditions::from(&common.at);
        let what = if common.bound == dhc_thresholds::PEERS {
            "are unlike their peers"
        } else {
            "break the table's bound"
        };
        text.push_str(&format!(
            "\n{} of {} nodes {what} in {}{at} ({}): configuration or fabric, so none of them is singled out\n",
            common.nodes.len(),
            common.of,
            common.metric,
            names(&common.nodes)
        ));
    }
    for line in &fleet.not_compared {
        text.push_str(&format!("\n{line}\n"));
    }
    text.push_str(&format!(
        "\ntogether: {}\n",
        report.status.word().to_uppercase()
    ));
    text
}

fn comparisons(fleet: &FleetReport, paper: Paper) -> String {
    if fleet.comparisons.is_empty() {
        return "nothing was measured on enough nodes of one type to compare them\n".to_owned();
    }
    let mut table = table(paper);
    table.set_header([
        "compared",
        "nodes",
        "things",
        "median",
        "spread",
        "outlier beyond",
        "outliers",
    ]);
    for one in &fleet.comparisons {
        let value = |value: f64| Cell::new(format!("{} {}", Value::Real(value), one.unit));
        table.add_row([
            Cell::new(format!("{}{}", one.metric, Conditions::from(&one.at))),
            Cell::new(one.nodes),
            Cell::new(one.things),
            value(one.median),
            value(one.spread),
            value(one.bound),
            Cell::new(one.outliers),
        ]);
    }
    format!("{table}\n")
}
