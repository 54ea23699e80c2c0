//! A report as text for people: a table, then what is wrong and what to do, gravest first.

mod cluster;
mod fleet;
pub mod html;
mod printable;
pub mod recovery;
pub mod tables;

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use dhc_thresholds::{Action, CheckReport, Ending, Finding, NodeReport, Report, Status};

use printable::{one_line, printable_report};
pub use printable::{printable, printable_json};

/// How many findings of one check are spelled out; the result holds them all.
const FINDINGS_MAX: usize = 8;

/// Columns of a table that no terminal limits, and the fewest that a table is squeezed into.
const PLAIN_WIDTH: u16 = 160;
const NARROWEST: u16 = 40;

/// Whether the text goes to a terminal, which decides on colour and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paper {
    /// A terminal: colours, and as wide as it is.
    Terminal,
    /// A file or pipe: plain text.
    Plain,
}

/// The whole report. What tools and hosts said is made printable first, so that the colours are dhc's alone.
pub fn report(report: &Report, paper: Paper) -> String {
    let report = &printable_report(report);
    let mut text = String::new();
    if let Some(cluster) = &report.cluster {
        text.push_str(&cluster::text(report, cluster, paper));
    } else if let Some(fleet) = &report.fleet {
        text.push_str(&fleet::text(report, fleet, paper));
    } else {
        for node in &report.nodes {
            text.push_str(&node_text(node, report, paper));
        }
    }
    if !report.complete {
        text.push_str("INCOMPLETE: the run was stopped before every check had ended.\n");
    }
    text
}

fn node_text(node: &NodeReport, report: &Report, paper: Paper) -> String {
    let mut table = table(paper);
    table.set_header(["check", "status", "time", "what was found"]);
    for check in &node.checks {
        table.add_row([
            Cell::new(&check.check),
            status_cell(check.status, paper),
            Cell::new(time(check)),
            Cell::new(summary(check)),
        ]);
    }
    let mut text = format!("{}\n{table}\n", headline(node, report));
    for check in node
        .checks
        .iter()
        .filter(|check| check.status > Status::Pass)
    {
        text.push_str(&details(check, None));
    }
    text.push_str(&verdict(node));
    text
}

/// An empty table for this paper.
fn table(paper: Paper) -> Table {
    let mut table = Table::new();
    table.load_preset(if paper == Paper::Terminal {
        presets::UTF8_HORIZONTAL_ONLY
    } else {
        presets::NOTHING
    });
    table.set_content_arrangement(ContentArrangement::Dynamic);
    match paper {
        Paper::Plain => {
            table.set_width(PLAIN_WIDTH).force_no_tty();
        }
        // Some terminals say that they have no columns at all.
        Paper::Terminal => {
            let width = table.width().filter(|width| *width >= NARROWEST);
            table.set_width(width.unwrap_or(PLAIN_WIDTH));
        }
    }
    table
}

fn headline(node: &NodeReport, report: &Report) -> String {
    let identity = &node.identity;
    let kind = identity
        .instance_type
        .as_deref()
        .unwrap_or("instance type not known");
    let contradicting = identity.contradicting_type.as_ref();
    // Where it is the table that firmware contradicts, the table's name stands behind.
    let contradicting = contradicting.filter(|other| *other != kind);
    let but = contradicting.map_or_else(String::new, |other| {
        format!(", though firmware says {other}")
    });
    let id = identity
        .instance_id
        .as_ref()
        .map_or_else(String::new, |id| format!(", {id}"));
    one_line(&format!(
        "{} ({kind}{but}{id}), run {}, judged by the table `{}` ({})",
        node.name, report.run.id, report.judged_by.instance_type, report.judged_by.origin
    ))
}

fn status_cell(status: Status, paper: Paper) -> Cell {
    let cell = Cell::new(status.word().to_uppercase());
    if paper == Paper::Plain {
        return cell;
    }
    cell.fg(match status {
        Status::Pass => Color::Green,
        Status::Warn => Color::Yellow,
        Status::Fail => Color::Red,
        Status::Error | Status::Unknown => Color::Magenta,
        Status::Skip => Color::DarkGrey,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
pub(crate) fn time(check: &CheckReport) -> String {
    match check.record.ending {
        Ending::Skipped { .. } => String::new(),
        _ => format!("{:.1} s", check.record.duration_ms as f64 / 1000.0),
    }
}

/// One line on a check: why it was left out, the gravest finding, or how much was judged.
pub(crate) fn summary(check: &CheckReport) -> String {
    one_line(&found(check))
}

fn found(check: &CheckReport) -> String {
    if let (Status::Skip, Some(reason)) = (check.status, check.skipped()) {
        return reason.to_owned();
    }
    let judged = check
        .findings
        .iter()
        .filter(|finding| finding.status == check.status);
    let count = judged.clone().count();
    match check.status {
        Status::Pass => {
            let notes = check
                .record
                .notes
                .first()
                .map_or_else(String::new, |note| format!("; {note}"));
            format!("{count} measurements within their bounds{notes}")
        }
        _ => {
            let first = judged.clone().next().map(line).unwrap_or_default();
            let more = if count > 1 {
                format!(" (and {} more)", count - 1)
            } else {
                String::new()
            };
            format!("{first}{more}")
        }
    }
}

/// One line on a finding.
pub(crate) fn line(finding: &Finding) -> String {
    let text = match &finding.value {
        Some(value) if finding.bound.is_none() => {
            format!(
                "{} of {} = {value} {}: {}",
                finding.metric, finding.subject, finding.unit, finding.message
            )
        }
        Some(_) => finding.message.clone(),
        None => format!(
            "{} of {}: {}",
            finding.metric, finding.subject, finding.message
        ),
    };
    one_line(&text)
}

/// The findings of a check that is not well, and how each was bounded.
fn details(check: &CheckReport, on: Option<&str>) -> String {
    let mut findings: Vec<&Finding> = check
        .findings
        .iter()
        .filter(|finding| finding.status > Status::Pass)
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.status));
    let on = on.map_or_else(String::new, |node| format!(" on {}", one_line(node)));
    let word = check.status.word().to_uppercase();
    let mut text = format!("\n{word} {}{on}\n", check.check);
    for finding in findings.iter().take(FINDINGS_MAX) {
        text.push_str(&format!("  {} {}\n", finding.status.word(), line(finding)));
        if let Some(bound) = &finding.bound {
            let bound = format!(
                "bound {} from {} ({})",
                bound.rule, bound.origin, bound.source
            );
            text.push_str(&format!("      {}\n", one_line(&bound)));
        }
    }
    if findings.len() > FINDINGS_MAX {
        text.push_str(&format!(
            "  ... and {} more, see the JSON result\n",
            findings.len() - FINDINGS_MAX
        ));
    }
    text
}

fn verdict(node: &NodeReport) -> String {
    format!("\n{}: {}", one_line(&node.name), last_words(node))
}

/// The last words: the node's status, the action, and what a person should do.
fn last_words(node: &NodeReport) -> String {
    let mut text = node.status.word().to_uppercase();
    if node.action != Action::None {
        text.push_str(&format!(", suggested action: {}", node.action));
    }
    text.push('\n');
    let mut told = std::collections::BTreeSet::new();
    for fault in &node.faults {
        if told.insert(&fault.class) {
            let advice = format!("{}: {}", fault.class, fault.advice);
            text.push_str(&format!("  {}\n", one_line(&advice)));
        }
    }
    text
}
