//! A report as one page that needs nothing else: no script, no font, no file beside it.
//!
//! Colour never stands alone: every cell says in a word or letter what its colour says, and the chart's figures stand in a
//! table below it.

use std::fmt::Write as _;

use dhc_thresholds::{CheckReport, ClusterReport, NodeReport, Report, SearchReport, Status};

/// How many nodes the picture of the waves shows: all that are not well, then others up to this number.
const NODES_MAX: usize = 256;

/// The chart, in pixels: its size, and the room for its axes.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 44.0;
const TOP: f64 = 30.0;
const RIGHT: f64 = 16.0;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--line:#8c959f;--soft:#eef1f4;--pass:#1a7f37;--warn:#9a6700;\
--fail:#cf222e;--unknown:#8250df}\
@media(prefers-color-scheme:dark){:root{--fg:#e6edf3;--bg:#0d1117;--line:#6e7681;--soft:#21262d;--pass:#3fb950;\
--warn:#d29922;--fail:#f85149;--unknown:#bc8cff}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:64rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;margin:.5rem 0 1.5rem}caption{text-align:left;font-weight:600;padding:.25rem 0}\
th{white-space:nowrap}th,td{text-align:left;padding:.2rem .6rem;border-bottom:1px solid var(--soft);vertical-align:top}\
td.n{text-align:right;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}\
.pass{color:var(--pass)}.warn{color:var(--warn)}.fail,.error{color:var(--fail)}.unknown,.skip{color:var(--unknown)}\
td.passed,td.failed,td.named,td.corrupted,td.unknown{font-weight:600;text-align:center}\
td.passed{color:var(--pass)}td.failed,td.corrupted,td.named{color:var(--fail)}\
svg text{fill:var(--fg);font-size:12px}svg .axis{stroke:var(--line)}svg .curve{stroke:var(--pass);fill:none;stroke-width:2}\
svg .dot{fill:var(--pass)}svg .floor{stroke:var(--fail);stroke-dasharray:6 4;stroke-width:2}";

/// The page.
pub fn page(report: &Report) -> String {
    let mut html = String::new();
    let title = match &report.cluster {
        Some(_) => format!(
            "dhc: {} nodes, {}",
            report.nodes.len(),
            report.status.word()
        ),
        None => format!("dhc: {}, {}", node_names(report), report.status.word()),
    };
    put(
        &mut html,
        format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{0}</title><style>{STYLE}</style></head><body><main>\n<h1>{0}</h1>\n",
            text(&title)
        ),
    );
    put(
        &mut html,
        format_args!(
            "<p>Run {} began {} and took {:.1} s. Judged by the table <code>{}</code> ({}).{}</p>\n",
            text(&report.run.id),
            text(&report.run.started_at),
            report.run.duration_ms as f64 / 1e3,
            text(&report.judged_by.instance_type),
            text(&report.judged_by.origin),
            if report.complete {
                ""
            } else {
                " <strong>Incomplete: the run was stopped early.</strong>"
            }
        ),
    );
    if let Some(cluster) = &report.cluster {
        for search in &cluster.searches {
            put(
                &mut html,
                format_args!(
                    "<p><strong>{}</strong>: {}</p>\n",
                    text(&search.check),
                    text(&search.sentence)
                ),
            );
        }
    }
    nodes(&mut html, report);
    if let Some(cluster) = &report.cluster {
        together(&mut html, report, cluster);
    }
    if report.cluster.is_none() {
        for node in &report.nodes {
            checks(&mut html, node);
        }
    }
    html.push_str("</main></body></html>\n");
    html
}

fn node_names(report: &Report) -> String {
    let names: Vec<&str> = report.nodes.iter().map(|node| node.name.as_str()).collect();
    names.join(", ")
}

/// The verdicts: every node that is not well, and how many are.
fn nodes(html: &mut String, report: &Report) {
    html.push_str("<div class=\"scroll\"><table><caption>Verdicts</caption><thead><tr><th scope=\"col\">node</th><th scope=\"col\">status</th><th scope=\"col\">action</th><th scope=\"col\">why, and what to do</th></tr></thead><tbody>\n");
    let well = report
        .nodes
        .iter()
        .filter(|node| node.status == Status::Pass)
        .count();
    for node in report
        .nodes
        .iter()
        .filter(|node| node.status != Status::Pass)
    {
        let mut why = String::new();
        for fault in &node.faults {
            put(
                &mut why,
                format_args!(
                    "<p>{}: {} <em>{}</em></p>",
                    text(&fault.class),
                    text(&fault.finding.message),
                    text(&fault.advice)
                ),
            );
        }
        if node.faults.is_empty() {
            let messages = node.checks.iter().flat_map(|check| &check.findings);
            for finding in messages.filter(|finding| finding.status > Status::Pass) {
                put(&mut why, format_args!("<p>{}</p>", text(&finding.message)));
            }
        }
        put(
            html,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td class=\"{1}\">{1}</td><td>{2}</td><td>{why}</td></tr>\n",
                text(&node.name),
                node.status.word(),
                text(&node.action.to_string())
            ),
        );
    }
    if well > 0 {
        put(
            html,
            format_args!(
                "<tr><th scope=\"row\">{well} nodes</th><td class=\"pass\">pass</td><td>none</td><td>nothing is held against them</td></tr>\n"
            ),
        );
    }
    html.push_str("</tbody></table></div>\n");
}

fn together(html: &mut String, report: &Report, cluster: &ClusterReport) {
    for check in &cluster.checks {
        chart(html, check);
    }
    for search in &cluster.searches {
        waves(html, report, search);
    }
}

/// Bus bandwidth against message size, with the floor.
fn chart(html: &mut String, check: &CheckReport) {
    let figures: Vec<(u64, f64)> = check
        .record
        .measurements
        .iter()
        .filter(|measured| measured.metric.ends_with(".busbw"))
        .filter_map(|measured| Some((measured.at.bytes?, measured.value.number()?)))
        .collect();
    let (Some(first), Some(last)) = (figures.first(), figures.last()) else {
        return;
    };
    let floor = check.findings.iter().find_map(|finding| {
        let bound = finding
            .bound
            .as_ref()
            .filter(|bound| bound.rule == "fail_below")?;
        finding
            .metric
            .ends_with(".plateau")
            .then(|| bound.value.number())?
    });
    let most = figures
        .iter()
        .map(|(_, value)| *value)
        .chain(floor)
        .fold(1e-9, f64::max)
        * 1.1;
    let (from, to) = (
        (first.0 as f64).log2(),
        (last.0 as f64).log2().max((first.0 as f64).log2() + 1.0),
    );
    let x =
        |bytes: u64| LEFT + ((bytes as f64).log2() - from) / (to - from) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP);
    put(
        html,
        format_args!(
            "<h2>{}: bus bandwidth by message size</h2>\n<svg role=\"img\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"100%\" \
             aria-label=\"Bus bandwidth against message size; the figures are in the table below\">\n",
            text(&check.check)
        ),
    );
    for step in 0..=4 {
        let value = most * f64::from(step) / 4.0;
        put(
            html,
            format_args!(
                "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke-width=\".5\"/><text x=\"4\" y=\"{2:.1}\">{1:.3}</text>\n",
                WIDTH - RIGHT,
                value,
                y(value)
            ),
        );
    }
    let every = figures.len().div_ceil(9).max(1);
    for (bytes, _) in figures.iter().step_by(every) {
        put(
            html,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                x(*bytes),
                HEIGHT - BOTTOM + 18.0,
                size(*bytes)
            ),
        );
    }
    put(
        html,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">message size</text><text x=\"4\" y=\"12\">GB/s</text>\n",
            (WIDTH + LEFT) / 2.0,
            HEIGHT - 6.0
        ),
    );
    if let Some(floor) = floor {
        put(
            html,
            format_args!(
                "<line class=\"floor\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\">floor {floor} GB/s</text>\n",
                WIDTH - RIGHT,
                y(floor),
                WIDTH - RIGHT,
                y(floor) - 5.0
            ),
        );
    }
    let points: Vec<String> = figures
        .iter()
        .map(|(bytes, value)| format!("{:.1},{:.1}", x(*bytes), y(*value)))
        .collect();
    put(
        html,
        format_args!(
            "<polyline class=\"curve\" points=\"{}\"/>\n",
            points.join(" ")
        ),
    );
    for (bytes, value) in &figures {
        put(
            html,
            format_args!(
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>\n",
                x(*bytes),
                y(*value)
            ),
        );
    }
    html.push_str("</svg>\n<div class=\"scroll\"><table><caption>The figures</caption><thead><tr><th scope=\"col\">message size</th><th scope=\"col\">busbw, GB/s</th></tr></thead><tbody>\n");
    for (bytes, value) in &figures {
        put(
            html,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td class=\"n\">{value:.4}</td></tr>\n",
                size(*bytes)
            ),
        );
    }
    html.push_str("</tbody></table></div>\n");
}

/// Who was measured with whom, wave by wave, and with what outcome.
fn waves(html: &mut String, report: &Report, search: &SearchReport) {
    let mut shown: Vec<&NodeReport> = report
        .nodes
        .iter()
        .filter(|node| node.status != Status::Pass)
        .collect();
    shown.extend(
        report
            .nodes
            .iter()
            .filter(|node| node.status == Status::Pass),
    );
    let left_out = shown.len().saturating_sub(NODES_MAX);
    shown.truncate(NODES_MAX);
    put(
        html,
        format_args!(
            "<h2>{}: the waves</h2>\n<p>Groups of a wave are numbered; a node without a cell rested.</p>\n<div class=\"scroll\"><table><caption>Node by node</caption><thead><tr><th scope=\"col\">node</th>",
            text(&search.check)
        ),
    );
    for number in 0..search.waves.len() {
        put(html, format_args!("<th scope=\"col\">wave {number}</th>"));
    }
    html.push_str("</tr></thead><tbody>\n");
    for node in shown {
        put(
            html,
            format_args!(
                "<tr><th scope=\"row\" class=\"{}\">{}</th>",
                node.status.word(),
                text(&node.name)
            ),
        );
        for wave in &search.waves {
            let place = wave
                .groups
                .iter()
                .position(|group| group.nodes.contains(&node.name));
            match place.map(|place| (place, &wave.groups[place])) {
                None => html.push_str("<td></td>"),
                Some((place, group)) => {
                    let speed = group
                        .plateau_gb_per_s
                        .map_or_else(String::new, |value| format!(", {value:.3} GB/s"));
                    put(
                        html,
                        format_args!(
                            "<td class=\"{0}\" title=\"{1} of {2} nodes{speed}\">{3} {0}</td>",
                            text(&group.outcome),
                            text(&group.purpose),
                            group.nodes.len(),
                            place + 1
                        ),
                    );
                }
            }
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    if left_out > 0 {
        put(
            html,
            format_args!(
                "<p>{left_out} nodes more, all of them well, stand in the JSON result.</p>\n"
            ),
        );
    }
}

/// The checks of one node.
fn checks(html: &mut String, node: &NodeReport) {
    put(
        html,
        format_args!(
            "<h2>{}</h2>\n<div class=\"scroll\"><table><caption>Checks</caption><thead><tr><th scope=\"col\">check</th><th scope=\"col\">status</th><th scope=\"col\">what was found</th></tr></thead><tbody>\n",
            text(&node.name)
        ),
    );
    for check in &node.checks {
        put(
            html,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td class=\"{1}\">{1}</td><td>{2}</td></tr>\n",
                text(&check.check),
                check.status.word(),
                text(&super::summary(check))
            ),
        );
    }
    html.push_str("</tbody></table></div>\n");
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

fn put(html: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(what);
}
