//! What `dhc list`, `dhc explain` and `dhc thresholds show` say, all read from the registry and the tables.

use std::fmt::Write as _;

use dhc_checks::catalog::{self, CHECKS};
use dhc_checks::check::Check;
use dhc_thresholds::{Fault, Faults, Role, built_in};

use crate::tables::{self, Chosen};

/// The checks, a line each.
pub fn checks() -> String {
    let wide = CHECKS
        .iter()
        .map(|check| check.spec().name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for check in CHECKS {
        let spec = check.spec();
        push(
            &mut text,
            format_args!(
                "{:wide$}  {} [{}]\n",
                spec.name,
                spec.about,
                spec.tags.join(", ")
            ),
        );
    }
    text
}

/// The checks as a table in Markdown, for the README.
pub fn checks_markdown() -> String {
    let mut text = "| check | what it does | needs |\n| --- | --- | --- |\n".to_owned();
    for check in CHECKS {
        let spec = check.spec();
        let needs = spec.needs.map_or("nothing", |hardware| hardware.plural());
        push(
            &mut text,
            format_args!("| `{}` | {} | {needs} |\n", spec.name, spec.about),
        );
    }
    text
}

/// Every metric with its unit and meaning.
pub fn metrics() -> String {
    let metrics = tables::metrics();
    let wide = metrics
        .iter()
        .map(|metric| metric.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for metric in metrics {
        let role = match metric.role {
            Role::Required => "must be measured and judged",
            Role::Judged => "must be judged where it is measured",
            Role::Context => "kept, judged where a table limits it",
        };
        push(
            &mut text,
            format_args!(
                "{:wide$}  {:7} {} ({role})\n",
                metric.name,
                metric.unit.symbol(),
                metric.about
            ),
        );
    }
    text
}

/// What concerns more than one check. The whole of it stands in `thresholds/LEARNING.md`.
const GENERAL: &[(&str, &str)] = &[
    (
        "learning",
        "\
learning: bounds from what healthy machines measure

`dhc thresholds learn RESULT...` draws a bound for every speed and latency that is judged: the median, less (or more) so many
spreads that 99.9 % of healthy values keep it. Beyond it a value warns, since it is unusual and not yet broken; a floor that
the table has goes on to fail. Fewer than 20 devices or groups teach nothing. Machines that failed, could not be looked at,
expired, are of another type or have other versions of drivers and libraries are refused; more than a tenth of the values
dropped, and the fleet is not healthy. A bound that is worse than the table's own is not taken: the table's own stays, and where
it is more than 2 %, nothing is written until you agree to it with --allow-lower. Look at what changed with `dhc thresholds diff` before you use a new table.
",
    ),
    (
        "peers",
        "\
peers: things of equal kind as each other's judges

Devices of one node, and of all nodes of a type (`dhc compare RESULT...`), are held against each other where at least five
were measured alike. An outlier is worse than the median by so many spreads that a sound comparison has one in a hundred at
most, and by 5 % (bandwidth) or 10 % (latency). To stand out once is a warning; in two of a device's last three runs of one
boot, a failure. What more than a fifth of the nodes have in common is configuration or fabric, and nobody is singled out.
Peers never make a pass of what no table limits.
",
    ),
];

/// What is to be known of a check or fault class, if there is one of this name.
pub fn topic(name: &str) -> Option<String> {
    let general = GENERAL.iter().find(|(topic, _)| *topic == name);
    general
        .map(|(_, text)| (*text).to_owned())
        .or_else(|| catalog::find(name).map(check))
        .or_else(|| Faults::built_in().get(name).map(fault))
}

fn check(check: Check) -> String {
    let spec = check.spec();
    let mut text = format!(
        "{}: {}\n\n{}\n\n",
        spec.name,
        spec.about,
        spec.explain.trim()
    );
    let needs = spec
        .needs
        .map_or("every node", |hardware| hardware.plural());
    push(
        &mut text,
        format_args!("applies to: {needs}\ntags: {}\n", spec.tags.join(", ")),
    );
    if let Some(budget) = check.budget() {
        push(
            &mut text,
            format_args!(
                "usually takes {} s, stopped after {} s\n",
                budget.expected.as_secs().max(1),
                budget.deadline.as_secs()
            ),
        );
    }
    if !spec.options.is_empty() {
        text.push_str("\noptions (--set CHECK.OPTION=VALUE):\n");
        for option in spec.options {
            let default = if option.default.is_empty() {
                "not set"
            } else {
                option.default
            };
            push(
                &mut text,
                format_args!(
                    "  {}.{} ({default}): {}; {}\n",
                    spec.name, option.name, option.about, option.values
                ),
            );
        }
    }
    text.push_str("\nmeasures:\n");
    for metric in spec.metrics {
        push(
            &mut text,
            format_args!("  {} [{}]: {}\n", metric.name, metric.unit, metric.about),
        );
        if metric.role != Role::Context {
            push(
                &mut text,
                format_args!(
                    "      out of bounds it is the fault class {}\n",
                    metric.fault
                ),
            );
        }
    }
    text
}

fn fault(fault: &Fault) -> String {
    format!(
        "{}: {}\n\nsuggested action: {} (rule {} of the table {})\nwhat to do: {}\n",
        fault.class,
        fault.about,
        fault.action,
        fault.rule,
        Faults::built_in().version,
        fault.advice
    )
}

/// The names of the built-in tables.
pub fn tables() -> String {
    let mut text = String::new();
    for name in built_in::names() {
        push(&mut text, format_args!("{name}\n"));
    }
    text
}

/// What holds under a table, with the source of every number.
pub fn table(chosen: &Chosen) -> String {
    let table = &chosen.table;
    let mut text = format!(
        "{} ({}, sha256 {})\n",
        table.instance_type, chosen.judged_by.origin, chosen.judged_by.sha256
    );
    text.push_str("\nhardware:\n");
    for (hardware, due) in &table.hardware {
        push(
            &mut text,
            format_args!("  {} {}  ({})\n", due.count, hardware.plural(), due.source),
        );
    }
    text.push_str("\nlimits:\n");
    for limit in &table.limits {
        push(
            &mut text,
            format_args!("  {} {}{}\n", limit.metric, limit.describe(table), limit.at),
        );
        push(
            &mut text,
            format_args!("      from {}: {}\n", limit.origin, limit.source),
        );
    }
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a string takes all");
}
