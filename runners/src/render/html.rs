//! A report as one page that needs nothing else: no script, no font, no file beside it.
//!
//! It is read with eyes, with a keyboard and with a screen reader alike: landmarks and headings, tables whose headers say what
//! they head, nothing told by colour alone, every chart with its figures in a table. What is long stands folded, so that the
//! page of a thousand nodes begins with the few that matter.

/// Writes to a string, which cannot fail.
macro_rules! put {
    ($html:expr, $($what:tt)*) => {{
        let _ = write!($html, $($what)*);
    }};
}

mod chart;
mod waves;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dhc_thresholds::{Action, CheckReport, FaultReport, Finding, NodeReport, Report, Status};

const STYLE: &str = include_str!("html/style.css");

/// How many findings of a fault class, or of a check, are listed; the result holds them all.
const FINDINGS_MAX: usize = 50;

/// The page.
pub fn page(report: &Report) -> String {
    let mut html = String::new();
    let who = match &report.cluster {
        Some(_) => format!("{} nodes", report.nodes.len()),
        None => node_names(report),
    };
    let status = report.status.word();
    put!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{status}: {0}, dhc</title>\n<style>\n{STYLE}</style></head><body>\n\
         <a class=\"skip-link\" href=\"#verdicts\">Skip to the verdicts</a>\n\
         <header>\n<h1>{1} {0}</h1>\n",
        text(&who),
        badge(report.status)
    );
    facts(&mut html, report);
    let sections = sections(report);
    html.push_str("</header>\n<nav aria-label=\"On this page\"><ul>\n");
    for (number, section) in sections.iter().enumerate() {
        put!(
            html,
            "<li><a href=\"#{}\">{}</a></li>\n",
            section.anchor(number),
            text(&section.title())
        );
    }
    html.push_str("</ul></nav>\n<main>\n");
    for (number, section) in sections.iter().enumerate() {
        let anchor = section.anchor(number);
        put!(
            html,
            "<section aria-labelledby=\"{anchor}\">\n<h2 id=\"{anchor}\" tabindex=\"-1\">{}</h2>\n",
            text(&section.title())
        );
        section.body(&mut html, report, number);
        html.push_str("</section>\n");
    }
    html.push_str("</main></body></html>\n");
    html
}

/// A part of the page with a heading of its own.
enum Section<'a> {
    Verdicts,
    Chart(String, &'a CheckReport),
    Waves(&'a dhc_thresholds::SearchReport),
    Checks(&'a NodeReport),
}

fn sections(report: &Report) -> Vec<Section<'_>> {
    let mut sections = vec![Section::Verdicts];
    match &report.cluster {
        Some(cluster) => {
            let charts = cluster.checks.iter().filter(|check| chart::has(check));
            sections.extend(charts.map(|check| Section::Chart(check.check.clone(), check)));
            sections.extend(cluster.searches.iter().map(Section::Waves));
        }
        None => {
            for node in &report.nodes {
                sections.push(Section::Checks(node));
                let charts = node.checks.iter().filter(|check| chart::has(check));
                let named = |check: &'_ CheckReport| format!("{} on {}", check.check, node.name);
                sections.extend(charts.map(|check| Section::Chart(named(check), check)));
            }
        }
    }
    sections
}

impl Section<'_> {
    fn title(&self) -> String {
        match self {
            Section::Verdicts => "Verdicts".to_owned(),
            Section::Chart(what, _) => format!("{what}: bus bandwidth by message size"),
            Section::Waves(search) => format!("{}: the waves", search.check),
            Section::Checks(node) => format!("Checks of {}", node.name),
        }
    }

    fn anchor(&self, number: usize) -> String {
        match self {
            Section::Verdicts => "verdicts".to_owned(),
            _ => format!("part-{number}"),
        }
    }

    fn body(&self, html: &mut String, report: &Report, number: usize) {
        match self {
            Section::Verdicts => verdicts(html, report),
            Section::Chart(_, check) => chart::draw(html, check, number),
            Section::Waves(search) => waves::draw(html, report, search),
            Section::Checks(node) => checks(html, node),
        }
    }
}

fn node_names(report: &Report) -> String {
    let names: Vec<&str> = report.nodes.iter().map(|node| node.name.as_str()).collect();
    names.join(", ")
}

/// What was run, when, and by what it was judged.
fn facts(html: &mut String, report: &Report) {
    let run = &report.run;
    let mut facts = vec![
        ("run", format!("{} by dhc {}", run.id, run.dhc)),
        (
            "began",
            format!(
                "{}, took {:.1} s",
                moment(&run.started_at),
                run.duration_ms as f64 / 1e3
            ),
        ),
        ("holds until", moment(&run.expires_at)),
        (
            "judged by",
            format!(
                "the table {} ({})",
                report.judged_by.instance_type, report.judged_by.origin
            ),
        ),
    ];
    if let (None, [node]) = (&report.cluster, report.nodes.as_slice()) {
        let identity = [&node.identity.instance_type, &node.identity.instance_id];
        let known: Vec<&str> = identity
            .into_iter()
            .filter_map(|one| one.as_deref())
            .collect();
        if !known.is_empty() {
            facts.push(("node", known.join(", ")));
        }
    }
    html.push_str("<dl class=\"facts\">\n");
    for (term, fact) in facts {
        put!(html, "<dt>{term}</dt><dd>{}</dd>\n", text(&fact));
    }
    html.push_str("</dl>\n");
    if !report.complete {
        html.push_str(
            "<p class=\"sentence\"><strong>Incomplete: the run was stopped before every check had ended.</strong></p>\n",
        );
    }
    for search in report.cluster.iter().flat_map(|cluster| &cluster.searches) {
        put!(
            html,
            "<p class=\"sentence\"><strong>{}</strong>: {}</p>\n",
            text(&search.check),
            text(&search.sentence)
        );
        for (one, other) in &search.paths {
            put!(
                html,
                "<p class=\"sentence\">The path between {} and {} is slow, and both are good with others.</p>\n",
                text(one),
                text(other)
            );
        }
    }
}

/// The time without fractions of a second, as far as it is one.
fn moment(time: &str) -> String {
    let parsed = time.parse::<jiff::Timestamp>();
    parsed.map_or_else(
        |_| time.to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

/// Every node that is not well, gravest first, and the names of the others.
fn verdicts(html: &mut String, report: &Report) {
    let mut ill: Vec<&NodeReport> = Vec::new();
    let mut well: Vec<&str> = Vec::new();
    for node in &report.nodes {
        match node.status {
            Status::Pass => well.push(&node.name),
            _ => ill.push(node),
        }
    }
    ill.sort_by_key(|node| std::cmp::Reverse((node.status, node.action)));
    if !ill.is_empty() {
        open_table(
            html,
            "Nodes that are not well",
            "wide",
            &["node", "status", "action", "why, and what to do"],
        );
        for node in ill {
            put!(
                html,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                text(&node.name),
                badge(node.status),
                action(node.action),
                why(node)
            );
        }
        close_table(html);
    }
    match well.as_slice() {
        [] => {}
        [one] => put!(
            html,
            "<p>{} {}: nothing is held against it.</p>\n",
            badge(Status::Pass),
            text(one)
        ),
        many => put!(
            html,
            "<details><summary>{} {} nodes: nothing is held against them</summary><p class=\"names\">{}</p></details>\n",
            badge(Status::Pass),
            many.len(),
            text(&many.join(" "))
        ),
    }
}

/// Why a node is not well: each fault class once, with what to do about it.
fn why(node: &NodeReport) -> String {
    let mut html = String::new();
    let mut classes: Vec<(&str, Vec<&FaultReport>)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for fault in &node.faults {
        let place = *places.entry(&fault.class).or_insert(classes.len());
        if place == classes.len() {
            classes.push((&fault.class, Vec::new()));
        }
        classes[place].1.push(fault);
    }
    for (class, faults) in classes {
        put!(
            html,
            "<p><strong>{}</strong>: {}</p>",
            text(class),
            text(&faults[0].finding.message)
        );
        if faults.len() > 1 {
            let others = faults[1..].iter().map(|fault| &fault.finding);
            list(
                &mut html,
                &format!("and {} more of it", faults.len() - 1),
                others,
            );
        }
        if !faults[0].advice.is_empty() {
            put!(html, "<p class=\"advice\">{}</p>", text(&faults[0].advice));
        }
    }
    if node.faults.is_empty() {
        let bad = node
            .checks
            .iter()
            .filter(|check| check.status > Status::Pass);
        for check in bad {
            let summary = super::summary(check);
            put!(
                html,
                "<p><strong>{}</strong>: {}</p>",
                text(&check.check),
                text(&summary)
            );
        }
    }
    if html.is_empty() {
        html.push_str("<p>no check looked at it</p>");
    }
    html
}

/// The checks of one node, each with its findings folded below it.
fn checks(html: &mut String, node: &NodeReport) {
    open_table(
        html,
        "Checks",
        "wide",
        &["check", "status", "time", "what was found"],
    );
    for check in &node.checks {
        put!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"number\">{}</td><td><p>{}</p>",
            text(&check.check),
            badge(check.status),
            super::time(check),
            text(&super::summary(check))
        );
        let bad: Vec<&Finding> = check
            .findings
            .iter()
            .filter(|finding| finding.status > Status::Pass)
            .collect();
        if !bad.is_empty() {
            list(
                html,
                &format!("all {} findings", bad.len()),
                bad.into_iter(),
            );
        }
        html.push_str("</td></tr>\n");
    }
    close_table(html);
}

/// Findings, folded.
fn list<'a>(
    html: &mut String,
    summary: &str,
    findings: impl ExactSizeIterator<Item = &'a Finding>,
) {
    put!(html, "<details><summary>{summary}</summary><ul>");
    let more = findings.len().saturating_sub(FINDINGS_MAX);
    for finding in findings.take(FINDINGS_MAX) {
        let bound = finding.bound.as_ref();
        let source = bound.map_or_else(String::new, |bound| {
            format!(" ({} of {}: {})", bound.rule, bound.origin, bound.source)
        });
        put!(
            html,
            "<li>{}: {}<span class=\"advice\">{}</span></li>",
            finding.status.word(),
            text(&super::line(finding)),
            text(&source)
        );
    }
    if more > 0 {
        put!(html, "<li>and {more} more, in the JSON result</li>");
    }
    html.push_str("</ul></details>");
}

/// A table that scrolls by itself where the page is too narrow for it, with the keyboard as well.
fn open_table(html: &mut String, caption: &str, class: &str, columns: &[&str]) {
    put!(
        html,
        "<div class=\"scroll\" role=\"region\" aria-label=\"{0}\" tabindex=\"0\"><table class=\"{class}\"><caption>{0}</caption>\n<thead><tr>",
        text(caption)
    );
    for column in columns {
        put!(html, "<th scope=\"col\">{column}</th>");
    }
    html.push_str("</tr></thead><tbody>\n");
}

fn close_table(html: &mut String) {
    html.push_str("</tbody></table></div>\n");
}

/// A status in a word, a sign and a colour.
fn badge(status: Status) -> String {
    let sign = match status {
        Status::Skip => '–',
        Status::Pass => '✓',
        Status::Warn => '!',
        Status::Unknown | Status::Error => '?',
        Status::Fail => '✗',
    };
    let word = status.word();
    format!("<span class=\"badge {word}\"><span aria-hidden=\"true\">{sign}</span> {word}</span>")
}

fn action(action: Action) -> String {
    match action {
        Action::None => "none".to_owned(),
        _ => format!("<strong>{}</strong>", action.word()),
    }
}

/// A message size as people write it.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// Text that HTML takes for nothing else.
fn text(plain: &str) -> String {
    let mut safe = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}
