//! The waves of a search: what each came to, and the picture of who was measured with whom.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dhc_thresholds::{GroupReport, NodeReport, Report, SearchReport, Status, WaveReport};

use super::super::cluster::test_words;
use super::{close_table, open_table, text};

/// How many nodes that are well the picture shows, and how many in all.
const WELL_MAX: usize = 64;
const NODES_MAX: usize = 512;

/// What a group can turn out to be, with its sign.
const OUTCOMES: [(&str, char); 5] = [
    ("passed", '✓'),
    ("failed", '✗'),
    ("named", '!'),
    ("corrupted", '≠'),
    ("unknown", '?'),
];

/// The part of the page on one search.
pub(super) fn draw(html: &mut String, report: &Report, search: &SearchReport) {
    located(html, search);
    open_table(
        html,
        "What each wave came to",
        "",
        &[
            "wave",
            "why",
            "groups",
            "passed",
            "not passed",
            "busbw, GB/s",
            "time",
        ],
    );
    for (number, wave) in search.waves.iter().enumerate() {
        summary(html, number, wave);
    }
    close_table(html);
    picture(html, report, search);
}

/// What was located, and the groups that show it.
fn located(html: &mut String, search: &SearchReport) {
    if search.located.is_empty() {
        return;
    }
    let columns = [
        "class",
        "what and why",
        "probability",
        "groups that show it",
    ];
    open_table(html, "What was located", "", &columns);
    for located in &search.located {
        let confidence = located.confidence.map_or_else(String::new, |confidence| {
            format!("{:.1} %", confidence * 100.0)
        });
        let tests = located.tests.iter().map(|test| text(&test_words(test)));
        put!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{} ({})</td><td class=\"number\">{confidence}</td><td>{}</td></tr>\n",
            text(&located.class),
            text(&located.sentence),
            text(&located.fault),
            tests.collect::<Vec<String>>().join("<br>")
        );
    }
    close_table(html);
}

fn summary(html: &mut String, number: usize, wave: &WaveReport) {
    let mut purposes: Vec<&str> = wave
        .groups
        .iter()
        .map(|group| group.purpose.as_str())
        .collect();
    purposes.dedup();
    let passed = wave
        .groups
        .iter()
        .filter(|group| group.outcome == "passed")
        .count();
    let mut speeds: Vec<f64> = wave
        .groups
        .iter()
        .filter_map(|group| group.plateau_gb_per_s)
        .collect();
    speeds.sort_by(f64::total_cmp);
    let speeds = match (speeds.first(), speeds.last()) {
        (Some(least), Some(most)) if speeds.len() > 1 => format!("{least:.3} to {most:.3}"),
        (Some(only), _) => format!("{only:.3}"),
        _ => String::new(),
    };
    put!(
        html,
        "<tr><th scope=\"row\">{number}</th><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{passed}</td>\
         <td class=\"number\">{}</td><td class=\"number\">{speeds}</td><td class=\"number\">{:.1} s</td></tr>\n",
        text(&purposes.join(", ")),
        wave.groups.len(),
        wave.groups.len() - passed,
        wave.duration_ms as f64 / 1e3
    );
}

/// Node by node: the nodes that are not well, and some of those that are.
fn picture(html: &mut String, report: &Report, search: &SearchReport) {
    html.push_str(
        "<p>A cell is the group that a node was measured in, by its number in the wave, and what became of the group.</p>\n\
         <ul class=\"legend\">",
    );
    for (outcome, sign) in OUTCOMES {
        put!(
            html,
            "<li class=\"{outcome}\"><span aria-hidden=\"true\">{sign}</span> {outcome}</li>"
        );
    }
    html.push_str("<li><span aria-hidden=\"true\">·</span> rested</li></ul>\n");
    let places: Vec<BTreeMap<&str, usize>> = search.waves.iter().map(places).collect();
    let mut waves: Vec<String> = vec!["node".to_owned()];
    waves.extend((0..search.waves.len()).map(|number| format!("wave {number}")));
    let columns: Vec<&str> = waves.iter().map(String::as_str).collect();
    let is_well = |node: &&NodeReport| node.status == Status::Pass;
    let (well, ill): (Vec<&NodeReport>, Vec<&NodeReport>) = report.nodes.iter().partition(is_well);
    let shown = ill.iter().take(NODES_MAX).chain(well.iter().take(WELL_MAX));
    let left_out = report.nodes.len() - shown.clone().count();
    open_table(html, "Node by node", "waves", &columns);
    for node in shown {
        put!(html, "<tr><th scope=\"row\">{}</th>", text(&node.name));
        for (wave, places) in search.waves.iter().zip(&places) {
            match places.get(node.name.as_str()) {
                Some(place) => cell(html, *place, &wave.groups[*place]),
                None => html.push_str(
                    "<td class=\"rested\"><span aria-hidden=\"true\">·</span><span class=\"hidden\">rested</span></td>",
                ),
            }
        }
        html.push_str("</tr>\n");
    }
    close_table(html);
    if left_out > 0 {
        put!(
            html,
            "<p>{left_out} nodes more stand in the JSON result.</p>\n"
        );
    }
}

/// In which group of a wave each node was.
fn places(wave: &WaveReport) -> BTreeMap<&str, usize> {
    let groups = wave.groups.iter().enumerate();
    groups
        .flat_map(|(place, group)| group.nodes.iter().map(move |node| (node.as_str(), place)))
        .collect()
}

fn cell(html: &mut String, place: usize, group: &GroupReport) {
    let known = OUTCOMES
        .iter()
        .find(|(outcome, _)| *outcome == group.outcome);
    let (outcome, sign) = known.copied().unwrap_or(("unknown", '?'));
    let speed = group
        .plateau_gb_per_s
        .map_or_else(String::new, |value| format!(", {value:.3} GB/s"));
    let rail = group.rail.as_ref();
    let rail = rail.map_or_else(String::new, |rail| format!(", on {}", text(rail)));
    put!(
        html,
        "<td class=\"{outcome}\" title=\"{} of {} nodes{rail}{speed}\"><span aria-hidden=\"true\">{sign}</span> {}<span class=\"hidden\"> {outcome}</span></td>",
        text(&group.purpose),
        group.nodes.len(),
        place + 1
    );
}
