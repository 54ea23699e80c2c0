//! What changed from one table to another: what is due, what is limited, and how tightly.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::table::{Bounds, Limit, Number, Table};

/// One difference between two tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The metric and its conditions, or the hardware.
    pub of: String,
    /// Which bound, or what else: `fail_below`, `count`, `source`.
    pub what: String,
    /// In which direction.
    pub kind: ChangeKind,
    /// What the first table says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the second table says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// How far a bound moved, in percent of the first table's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// In which direction a table changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// The first table does not have it.
    Added,
    /// The second table does not have it.
    Removed,
    /// Less passes.
    Tightened,
    /// More passes.
    Loosened,
    /// Something else passes.
    Changed,
}

impl ChangeKind {
    /// The word used in files.
    pub const fn word(self) -> &'static str {
        match self {
            ChangeKind::Added => "added",
            ChangeKind::Removed => "removed",
            ChangeKind::Tightened => "tightened",
            ChangeKind::Loosened => "loosened",
            ChangeKind::Changed => "changed",
        }
    }
}

/// Every difference from `one` to `other`, in the order of hardware and metrics.
pub fn diff(one: &Table, other: &Table) -> Vec<Change> {
    let mut changes = Vec::new();
    let kinds: BTreeSet<_> = one.hardware.keys().chain(other.hardware.keys()).collect();
    for kind in kinds {
        let (from, to) = (one.hardware.get(kind), other.hardware.get(kind));
        let of = kind.plural();
        let count = |due: &crate::table::Due| due.count.to_string();
        changes.extend(change(of, "count", from.map(count), to.map(count)));
        if let (Some(from), Some(to)) = (from, to) {
            let (from, to) = (Some(from.source.clone()), Some(to.source.clone()));
            changes.extend(change(of, "source", from, to));
        }
    }
    let (from, to) = (by_place(one), by_place(other));
    let places: BTreeSet<_> = from.keys().chain(to.keys()).collect();
    for place in places {
        match (from.get(place), to.get(place)) {
            (Some(from), Some(to)) => changes.extend(of_limit(from, one, to, other)),
            (from, to) => {
                let of = from.or(to).map_or_else(String::new, |limit| name(limit));
                let from = from.map(|limit| limit.describe(one));
                let to = to.map(|limit| limit.describe(other));
                changes.extend(change(&of, "limit", from, to));
            }
        }
    }
    changes
}

fn name(limit: &Limit) -> String {
    format!("{}{}", limit.metric, limit.at)
}

type Place<'a> = (&'a str, Option<u64>, Option<(u32, u32)>, Option<&'a str>);

fn by_place(table: &Table) -> BTreeMap<Place<'_>, &Limit> {
    let placed = table.limits.iter().map(|limit| {
        let at = &limit.at;
        let place = (
            limit.metric.as_str(),
            at.bytes,
            at.nodes,
            at.provider.as_deref(),
        );
        (place, limit)
    });
    placed.collect()
}

/// What changed in a limit that both tables have.
fn of_limit(from: &Limit, one: &Table, to: &Limit, other: &Table) -> Vec<Change> {
    let of = name(from);
    let mut changes = Vec::new();
    for ((what, before), (_, after)) in from.bounds.numbers().into_iter().zip(to.bounds.numbers()) {
        let value =
            |number: Option<Number>, table: &Table| number.and_then(|number| table.number(number));
        let (before, after) = (value(before, one), value(after, other));
        let shown = |value: Option<f64>| value.map(|value| format!("{value} {}", from.unit));
        let Some(mut change) = change(&of, what, shown(before), shown(after)) else {
            continue;
        };
        if let (Some(before), Some(after)) = (before, after) {
            change.percent = (before != 0.0).then(|| (after - before) / before.abs() * 100.0);
            change.kind = match what {
                "fail_below" | "warn_below" if after > before => ChangeKind::Tightened,
                "fail_above" | "warn_above" if after < before => ChangeKind::Tightened,
                "expect" => ChangeKind::Changed,
                _ => ChangeKind::Loosened,
            };
        }
        changes.push(change);
    }
    let words = |words: &[String]| (!words.is_empty()).then(|| words.join(", "));
    let Bounds {
        one_of, warn_if, ..
    } = &from.bounds;
    changes.extend(change(
        &of,
        "one_of",
        words(one_of),
        words(&to.bounds.one_of),
    ));
    changes.extend(change(
        &of,
        "warn_if",
        words(warn_if),
        words(&to.bounds.warn_if),
    ));
    let subjects = |limit: &Limit, table: &Table| {
        let number = limit.subjects.and_then(|number| table.number(number));
        number.map(|number| number.to_string())
    };
    changes.extend(change(
        &of,
        "subjects",
        subjects(from, one),
        subjects(to, other),
    ));
    changes.extend(change(&of, "fault", from.fault.clone(), to.fault.clone()));
    let (before, after) = (Some(from.source.clone()), Some(to.source.clone()));
    changes.extend(change(&of, "source", before, after));
    changes
}

/// The change from `from` to `to`, unless they are the same.
fn change(of: &str, what: &str, from: Option<String>, to: Option<String>) -> Option<Change> {
    if from == to {
        return None;
    }
    let kind = match (&from, &to) {
        (None, _) => ChangeKind::Added,
        (_, None) => ChangeKind::Removed,
        (Some(_), Some(_)) => ChangeKind::Changed,
    };
    Some(Change {
        of: of.to_owned(),
        what: what.to_owned(),
        kind,
        from,
        to,
        percent: None,
    })
}
