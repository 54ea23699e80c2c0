//! Reading a threshold file: its form, and every mistake with the line and column where it stands.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Bounds, Conditions, Due, GENERIC, Limit, Number, TABLE_SCHEMA, Table};
use crate::fault::Faults;
use crate::hardware::Hardware;
use crate::measurement::Metric;
use crate::unit::Unit;

/// A mistake in a threshold file, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}:{line}:{column}: {what}")]
pub struct TableError {
    /// The file, or the name of the built-in table.
    pub origin: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What is wrong and what to do.
    pub what: String,
}

/// All mistakes of one threshold file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableErrors(pub Vec<TableError>);

impl fmt::Display for TableErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, error) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TableErrors {}

/// The form of a threshold file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "dhc threshold file")]
pub struct TableFile {
    /// Always `dhc.thresholds/1`.
    #[schemars(with = "String")]
    schema: Spanned<String>,
    /// The instance type that the file is about.
    #[schemars(with = "String")]
    instance_type: Spanned<String>,
    /// Other names of the type, as DMI or people give them.
    #[serde(default)]
    aliases: Vec<String>,
    /// The table whose entries hold where this file says nothing; if it is left out, the built-in one of the same instance type,
    /// or `generic` where there is none.
    #[schemars(with = "Option<String>")]
    extends: Option<Spanned<String>>,
    /// What hardware is due.
    #[serde(default)]
    #[schemars(with = "Vec<HardwareEntry>")]
    hardware: Vec<Spanned<HardwareEntry>>,
    /// The bounds.
    #[serde(default)]
    #[schemars(with = "Vec<LimitEntry>")]
    limit: Vec<Spanned<LimitEntry>>,
}

/// One `[[hardware]]` of a threshold file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HardwareEntry {
    /// What.
    kind: Hardware,
    /// How many; 0 says that the type has none.
    count: u64,
    /// Where the number comes from.
    #[schemars(with = "String")]
    source: Spanned<String>,
}

/// One `[[limit]]` of a threshold file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LimitEntry {
    /// The metric, as `dhc list --metrics` shows it.
    #[schemars(with = "String")]
    metric: Spanned<String>,
    /// The metric's unit.
    #[schemars(with = "Unit")]
    unit: Spanned<Unit>,
    /// Under which conditions.
    #[serde(default)]
    at: ConditionsEntry,
    /// Below this: fail.
    fail_below: Option<Number>,
    /// Above this: fail.
    fail_above: Option<Number>,
    /// Below this: warn.
    warn_below: Option<Number>,
    /// Above this: warn.
    warn_above: Option<Number>,
    /// Anything else: fail.
    expect: Option<Number>,
    /// A word that is not among these: fail.
    #[serde(default)]
    one_of: Vec<String>,
    /// A word that is among these: warn.
    #[serde(default)]
    warn_if: Vec<String>,
    /// On how many subjects the metric has to be measured.
    #[schemars(with = "Option<Number>")]
    subjects: Option<Spanned<Number>>,
    /// The fault class of a broken limit.
    #[schemars(with = "Option<String>")]
    fault: Option<Spanned<String>>,
    /// From how many values the numbers were learned.
    samples: Option<u64>,
    /// The day on which healthy machines last kept the limit, such as `2026-11-24`.
    #[schemars(with = "Option<String>")]
    validated_on: Option<Spanned<String>>,
    /// Where the numbers come from.
    #[schemars(with = "String")]
    source: Spanned<String>,
}

/// The `at` of a limit.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ConditionsEntry {
    /// Message size in bytes.
    bytes: Option<u64>,
    /// Number of nodes: `"4"`, or a range such as `"2..8"` (both included) or `"2.."`.
    #[schemars(with = "Option<String>")]
    nodes: Option<Spanned<String>>,
    /// Provider or transport.
    provider: Option<String>,
}

impl Table {
    /// Reads the table in `text`. `origin` names it in messages and in every limit; `metrics` are all that checks
    /// declare; `base` finds the table that this one extends.
    ///
    /// # Errors
    /// All mistakes found, each with line and column.
    pub fn parse(
        text: &str,
        origin: &str,
        metrics: &[&Metric],
        base: &dyn Fn(&str) -> Option<Table>,
    ) -> Result<Table, TableErrors> {
        let mut reading = Reading {
            text,
            origin,
            errors: Vec::new(),
        };
        let file: TableFile = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                reading.refuse(at, error.message().to_owned());
                return Err(TableErrors(reading.errors));
            }
        };
        let table = reading.table(file, metrics, base);
        if reading.errors.is_empty() {
            Ok(table)
        } else {
            Err(TableErrors(reading.errors))
        }
    }
}

/// The reading of one file, collecting its mistakes.
struct Reading<'a> {
    text: &'a str,
    origin: &'a str,
    errors: Vec<TableError>,
}

impl Reading<'_> {
    fn table(
        &mut self,
        file: TableFile,
        metrics: &[&Metric],
        base: &dyn Fn(&str) -> Option<Table>,
    ) -> Table {
        if file.schema.get_ref() != TABLE_SCHEMA {
            let what = format!(
                "schema `{}` is not one that this dhc reads; write `{TABLE_SCHEMA}` or use the dhc that wrote it",
                file.schema.get_ref()
            );
            self.refuse(file.schema.span().start, what);
        }
        let name = file.instance_type.get_ref();
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let what = "`instance_type` has to name the type, on one line".to_owned();
            self.refuse(file.instance_type.span().start, what);
        }
        let instance_type = file.instance_type.into_inner();
        let mut table = self.base(file.extends, &instance_type, base);
        table.instance_type = instance_type;
        table.aliases = file.aliases;
        let mut seen = BTreeMap::new();
        for entry in file.hardware {
            let at = entry.span().start;
            let entry = entry.into_inner();
            if seen.insert(entry.kind, at).is_some() {
                self.refuse(
                    at,
                    "this kind of hardware stands twice; keep one of the two".to_owned(),
                );
            }
            let source = self.source(entry.source);
            table.hardware.insert(
                entry.kind,
                Due {
                    count: entry.count,
                    source,
                },
            );
        }
        let inherited = std::mem::take(&mut table.limits);
        let mut own: Vec<Limit> = Vec::new();
        for entry in file.limit {
            let at = entry.span().start;
            let Some(limit) = self.limit(entry.into_inner(), metrics) else {
                continue;
            };
            if own.iter().any(|other| about_the_same(other, &limit)) {
                let what = format!(
                    "a limit on `{}` under these conditions stands twice; keep one",
                    limit.metric
                );
                self.refuse(at, what);
            }
            own.push(limit);
        }
        table.limits = inherited
            .into_iter()
            .filter(|old| !own.iter().any(|new| about_the_same(old, new)))
            .collect();
        table.limits.extend(own);
        table
    }

    /// The table that this one starts from, with its name as what is extended.
    fn base(
        &mut self,
        extends: Option<Spanned<String>>,
        instance_type: &str,
        base: &dyn Fn(&str) -> Option<Table>,
    ) -> Table {
        let empty = || Table {
            instance_type: String::new(),
            aliases: Vec::new(),
            extends: None,
            hardware: BTreeMap::new(),
            limits: Vec::new(),
        };
        let extending = |name: &str, table: Table| Table {
            extends: Some(name.to_owned()),
            ..table
        };
        let Some(extends) = extends else {
            return if instance_type == GENERIC {
                empty()
            } else if let Some(own) = base(instance_type) {
                extending(instance_type, own)
            } else {
                let generic = base(GENERIC).unwrap_or_else(empty);
                Table {
                    extends: None,
                    ..generic
                }
            };
        };
        let name = extends.get_ref();
        if let Some(table) = base(name) {
            return extending(name, table);
        }
        let what = format!(
            "there is no built-in table `{name}` to extend; `dhc thresholds show` lists them"
        );
        self.refuse(extends.span().start, what);
        empty()
    }

    fn limit(&mut self, entry: LimitEntry, metrics: &[&Metric]) -> Option<Limit> {
        let name = entry.metric.get_ref();
        let Some(metric) = metrics.iter().find(|metric| metric.name == name) else {
            let near = nearest(name, metrics.iter().map(|metric| metric.name))
                .map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
            let what = format!(
                "no check measures `{name}`{near}; `dhc list --metrics` shows what can be limited"
            );
            self.refuse(entry.metric.span().start, what);
            return None;
        };
        let unit = *entry.unit.get_ref();
        if unit != metric.unit {
            let what = format!(
                "the limit is in {unit}, but `{name}` is measured in {}; change `unit` and convert the bounds",
                metric.unit
            );
            self.refuse(entry.unit.span().start, what);
        }
        let bounds = Bounds {
            fail_below: entry.fail_below,
            fail_above: entry.fail_above,
            warn_below: entry.warn_below,
            warn_above: entry.warn_above,
            expect: entry.expect,
            one_of: entry.one_of,
            warn_if: entry.warn_if,
        };
        if let Err(what) = sound(&bounds, metric) {
            self.refuse(entry.metric.span().start, what);
        }
        let nodes = entry.at.nodes.and_then(|nodes| self.nodes(&nodes));
        Some(Limit {
            metric: name.clone(),
            unit,
            at: Conditions {
                bytes: entry.at.bytes,
                nodes,
                provider: entry.at.provider,
            },
            bounds,
            subjects: entry.subjects.map(|subjects| self.subjects(subjects)),
            fault: entry.fault.map(|fault| self.fault(fault)),
            samples: entry.samples,
            validated_on: entry.validated_on.map(|day| self.day(day)),
            source: self.source(entry.source),
            origin: self.origin.to_owned(),
        })
    }

    fn nodes(&mut self, text: &Spanned<String>) -> Option<(u32, u32)> {
        let range = match text.get_ref().split_once("..") {
            Some((from, "")) => from.trim().parse().ok().map(|from| (from, u32::MAX)),
            Some((from, to)) => from.trim().parse().ok().zip(to.trim().parse().ok()),
            None => text
                .get_ref()
                .trim()
                .parse()
                .ok()
                .map(|nodes| (nodes, nodes)),
        };
        if range.is_none_or(|(from, to)| from > to || from == 0) {
            let what = format!(
                "`{}` is not a number of nodes; write \"4\", \"2..8\" or \"2..\"",
                text.get_ref()
            );
            self.refuse(text.span().start, what);
        }
        range
    }

    fn subjects(&mut self, subjects: Spanned<Number>) -> Number {
        if let Number::Fixed(number) = subjects.get_ref()
            && !(*number >= 0.0 && number.fract() == 0.0 && number.is_finite())
        {
            let what = format!(
                "`subjects` is {number}; write on how many things the metric has to be measured, a whole number"
            );
            self.refuse(subjects.span().start, what);
        }
        subjects.into_inner()
    }

    fn fault(&mut self, fault: Spanned<String>) -> String {
        let class = fault.get_ref();
        if Faults::built_in().get(class).is_none() {
            let classes = Faults::built_in().iter().map(|known| known.class.as_str());
            let near = nearest(class, classes)
                .map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
            let what = format!(
                "there is no fault class `{}`{near}, so nobody could say what to do about it",
                class.escape_debug()
            );
            self.refuse(fault.span().start, what);
        }
        fault.into_inner()
    }

    fn day(&mut self, day: Spanned<String>) -> String {
        if !is_a_day(day.get_ref()) {
            let what = format!(
                "`{}` is not a day; write it as in 2026-11-24",
                day.get_ref().escape_debug()
            );
            self.refuse(day.span().start, what);
        }
        day.into_inner()
    }

    fn source(&mut self, source: Spanned<String>) -> String {
        if source.get_ref().trim().is_empty() {
            let what =
                "`source` is empty; say who measured or published the number, where and when"
                    .to_owned();
            self.refuse(source.span().start, what);
        }
        source.into_inner()
    }

    fn refuse(&mut self, offset: usize, what: String) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.errors.push(TableError {
            origin: self.origin.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            what,
        });
    }
}

/// Whether two limits are about the same metric under the same conditions, so that one replaces the other.
fn about_the_same(one: &Limit, other: &Limit) -> bool {
    one.metric == other.metric && one.at == other.at
}

/// Whether bounds can be meant: something can break them, they fit the metric, and none contradicts another.
fn sound(bounds: &Bounds, metric: &Metric) -> Result<(), String> {
    let name = metric.name;
    let numbers: Vec<_> = bounds
        .numbers()
        .into_iter()
        .filter_map(|(key, number)| Some((key, number?)))
        .collect();
    let words = !bounds.one_of.is_empty() || !bounds.warn_if.is_empty();
    if numbers.is_empty() && !words {
        return Err(format!(
            "nothing could break this limit on `{name}`; give it a bound or remove it"
        ));
    }
    if metric.unit.is_word() && !numbers.is_empty() {
        return Err(format!(
            "`{name}` is a word; limit it with `one_of` or `warn_if`, not with a number"
        ));
    }
    if !metric.unit.is_word() && words {
        return Err(format!(
            "`{name}` is a number; limit it with `expect`, `fail_below` and the like, not with words"
        ));
    }
    if let Some((key, _)) = numbers
        .iter()
        .find(|(_, number)| matches!(number, Number::Fixed(n) if !n.is_finite()))
    {
        return Err(format!("`{key}` is not a finite number"));
    }
    let fixed = |number: Option<Number>| match number {
        Some(Number::Fixed(number)) => Some(number),
        Some(Number::Due { .. }) | None => None,
    };
    let ordered = |low: Option<Number>, high: Option<Number>| {
        fixed(low)
            .zip(fixed(high))
            .is_none_or(|(low, high)| low <= high)
    };
    let pairs = [
        (
            "fail_below",
            bounds.fail_below,
            "fail_above",
            bounds.fail_above,
        ),
        (
            "fail_below",
            bounds.fail_below,
            "warn_below",
            bounds.warn_below,
        ),
        (
            "warn_above",
            bounds.warn_above,
            "fail_above",
            bounds.fail_above,
        ),
        (
            "warn_below",
            bounds.warn_below,
            "warn_above",
            bounds.warn_above,
        ),
        (
            "warn_below",
            bounds.warn_below,
            "fail_above",
            bounds.fail_above,
        ),
        (
            "fail_below",
            bounds.fail_below,
            "warn_above",
            bounds.warn_above,
        ),
    ];
    for (low_key, low, high_key, high) in pairs {
        if !ordered(low, high) {
            return Err(format!(
                "`{low_key}` is above `{high_key}`, which contradict each other; swap or correct them"
            ));
        }
    }
    if bounds.expect.is_some() && numbers.len() > 1 {
        return Err(
            "`expect` allows one value alone, so other bounds beside it contradict it; keep one"
                .to_owned(),
        );
    }
    if let Some(both) = bounds
        .warn_if
        .iter()
        .find(|word| !bounds.one_of.is_empty() && !bounds.one_of.contains(word))
    {
        return Err(format!(
            "`{both}` is in `warn_if` but not in `one_of`, so it fails before it could warn"
        ));
    }
    Ok(())
}

/// Whether a text is a day of the calendar, as in RFC 3339.
fn is_a_day(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else {
        return false;
    };
    let digits = |text: &str, count: usize| {
        let all = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (Some(year), Some(month), Some(day)) = (digits(year, 4), digits(month, 2), digits(day, 2))
    else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// The known name that is spelled most like `name`, if any is near.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let candidates = known.map(|known| (distance(name, known), known));
    candidates
        .filter(|(distance, _)| *distance <= 3)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance of two short texts.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}
