//! Bus bandwidth against message size, with the floor, and the same figures in a table.

use std::fmt::Write as _;

use dhc_thresholds::CheckReport;

use super::{close_table, open_table, size, text};

/// The chart, in pixels: its size, and the room for its axes.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 48.0;
const TOP: f64 = 36.0;
const RIGHT: f64 = 28.0;

/// How many sizes are written below the axis.
const LABELS_MAX: usize = 9;

/// Whether there is anything to draw.
pub(super) fn has(check: &CheckReport) -> bool {
    !figures(check).is_empty()
}

/// The chart and its figures. `number` tells it from other charts of the page.
pub(super) fn draw(html: &mut String, check: &CheckReport, number: usize) {
    let figures = figures(check);
    let (Some(first), Some(last)) = (figures.first(), figures.last()) else {
        return;
    };
    let floor = floor(check);
    let all = figures.iter().map(|(_, value)| *value).chain(floor);
    let step = step(all.fold(1e-9, f64::max));
    let most = step * 5.0;
    let place = |bytes: u64| (bytes.max(1) as f64).log2();
    let (from, to) = (place(first.0), place(last.0).max(place(first.0) + 1.0));
    let x = |bytes: u64| LEFT + (place(bytes) - from) / (to - from) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP);
    put!(
        html,
        "<svg role=\"img\" aria-labelledby=\"chart-{number} chart-{number}-text\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"100%\">\n\
         <title id=\"chart-{number}\">Bus bandwidth of {} by message size</title>\n\
         <desc id=\"chart-{number}-text\">{}</desc>\n",
        text(&check.check),
        text(&described(&figures, floor))
    );
    for tick in 0..=5 {
        let value = step * f64::from(tick);
        put!(
            html,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\"/><text x=\"{3}\" y=\"{4:.1}\" text-anchor=\"end\">{1}</text>\n",
            WIDTH - RIGHT,
            amount(value),
            y(value),
            LEFT - 8.0,
            y(value) + 4.0
        );
    }
    for (bytes, _) in figures.iter().step_by(figures.len().div_ceil(LABELS_MAX)) {
        put!(
            html,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            x(*bytes),
            HEIGHT - BOTTOM + 18.0,
            size(*bytes)
        );
    }
    put!(
        html,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">message size</text><text x=\"{LEFT}\" y=\"16\" text-anchor=\"end\">GB/s</text>\n",
        (WIDTH + LEFT - RIGHT) / 2.0,
        HEIGHT - 6.0
    );
    let points: Vec<String> = figures
        .iter()
        .map(|(bytes, value)| format!("{:.1},{:.1}", x(*bytes), y(*value)))
        .collect();
    put!(
        html,
        "<polyline class=\"curve\" points=\"{}\"/>\n",
        points.join(" ")
    );
    for (bytes, value) in &figures {
        put!(
            html,
            "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"/>\n",
            x(*bytes),
            y(*value)
        );
    }
    if let Some(floor) = floor {
        put!(
            html,
            "<line class=\"floor\" x1=\"{LEFT}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text class=\"floor\" x=\"{2:.1}\" y=\"{3:.1}\">floor {4} GB/s</text>\n",
            WIDTH - RIGHT,
            y(floor),
            LEFT + 6.0,
            y(floor) - 6.0,
            amount(floor)
        );
    }
    html.push_str("</svg>\n<details><summary>The figures</summary>\n");
    open_table(
        html,
        "Bus bandwidth by message size",
        "",
        &["message size", "busbw, GB/s"],
    );
    for (bytes, value) in &figures {
        put!(
            html,
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{value:.4}</td></tr>\n",
            size(*bytes)
        );
    }
    close_table(html);
    html.push_str("</details>\n");
}

/// Sizes and bandwidths, in the order of sizes.
fn figures(check: &CheckReport) -> Vec<(u64, f64)> {
    let mut figures: Vec<(u64, f64)> = check
        .record
        .measurements
        .iter()
        .filter(|measured| measured.metric.ends_with(".busbw"))
        .filter_map(|measured| Some((measured.at.bytes?, measured.value.number()?)))
        .filter(|(_, value)| value.is_finite())
        .collect();
    figures.sort_by_key(|(bytes, _)| *bytes);
    figures
}

/// The bound that the plateau was held against.
fn floor(check: &CheckReport) -> Option<f64> {
    check.findings.iter().find_map(|finding| {
        let bound = finding.bound.as_ref()?;
        let is_floor = bound.rule == "fail_below" && finding.metric.ends_with(".plateau");
        bound.value.number().filter(|_| is_floor)
    })
}

/// The chart in a sentence.
fn described(figures: &[(u64, f64)], floor: Option<f64>) -> String {
    let best = figures
        .iter()
        .max_by(|(_, one), (_, other)| one.total_cmp(other));
    let best = best.map_or_else(String::new, |(bytes, value)| {
        format!("The best is {} GB/s at {}. ", amount(*value), size(*bytes))
    });
    let floor = floor.map_or_else(
        || "There is no floor.".to_owned(),
        |floor| format!("The plateau has to reach {} GB/s.", amount(floor)),
    );
    format!(
        "{} sizes. {best}{floor} The figures stand in the table below.",
        figures.len()
    )
}

/// A step of 1, 2, 2.5 or 5 by a power of ten, five of which reach `most`.
fn step(most: f64) -> f64 {
    let least = most / 5.0;
    let power = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
    let enough = steps.into_iter().find(|step| *step >= least * 0.999_999);
    enough.unwrap_or(10.0 * power)
}

/// An amount with as many digits as it needs to tell it from others of its size.
fn amount(value: f64) -> String {
    let digits: usize = match value.abs() {
        0.0 => 0,
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}
