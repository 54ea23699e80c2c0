//! `dhc thresholds learn`: a threshold file from the results of healthy machines.
//!
//! Who may teach is decided first, machine by machine; then every series of like measurements becomes a bound, or a sentence
//! that says why it does not. The statistics are those of [`dhc_thresholds::learn`].

mod series;
mod teachers;

use std::collections::{BTreeMap, BTreeSet};

use dhc_thresholds::{
    At, Better, Conditions, Draft, Due, GENERIC, Hardware, Limit, NotLearned, Report, Revision,
    Table, Unit, Value, learn, revise,
};
use jiff::Timestamp;

use crate::tables::{self, Chosen};
use series::{Series, Wanted, series};
pub(crate) use teachers::type_of;
use teachers::{allow, machine, name_machines, nodes, once, unfit};

/// With fewer machines, what is learned says little of how machines differ.
const MACHINES_FEW: usize = 5;

/// How to learn.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How bounds are drawn.
    pub bounds: dhc_thresholds::Terms,
    /// Learn these metrics alone, those that are only kept as context as well.
    pub metrics: Vec<String>,
    /// Metrics whose bounds may become worse than the table's own.
    pub allow_lower: Vec<String>,
    /// The instance type, where results do not tell it.
    pub instance_type: Option<String>,
    /// Learn from results that have expired.
    pub expired: bool,
    /// Learn from machines with different versions of drivers and libraries together.
    pub mixed_versions: bool,
    /// Leave out machines that are unfit to be learned from, instead of refusing them all.
    pub leave_out_unfit: bool,
}

/// What was learned.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// The threshold file.
    pub text: String,
    /// How many limits were learned.
    pub limits: usize,
    /// What was learned and what was not, and why, a line each.
    pub said: Vec<String>,
}

/// Why nothing can be learned from these results.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// Some machines are no example.
    #[error(
        "{count} of {of} machines are unfit to be learned from; fix them and run the checks again, or leave them out with \
         --leave-out-unfit:\n{}", unfit.join("\n")
    )]
    Unfit {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
        /// Which, and why; a machine may have several reasons.
        unfit: Vec<String>,
    },
    /// Too many machines are no example.
    #[error(
        "{count} of {of} machines are unfit to be learned from, more than a tenth: this is not a healthy fleet:\n{}",
        unfit.join("\n")
    )]
    UnfitFleet {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
        /// Which, and why; a machine may have several reasons.
        unfit: Vec<String>,
    },
    /// The values of some metric are no picture of healthy machines.
    #[error("nothing is learned from values like these; find out what is wrong with the machines first:\n{}", series.join("\n"))]
    Unhealthy {
        /// Of which, and why.
        series: Vec<String>,
    },
    /// A table's own floor would be lowered.
    #[error(
        "these bounds would be worse than those of the table `{table}` by more than 2 %, so nothing is written; if the machines \
         are sound, agree to each with --allow-lower METRIC:\n{}", series.join("\n")
    )]
    Lowers {
        /// The table.
        table: String,
        /// Of which, and by how much.
        series: Vec<String>,
    },
    /// Nothing names the instance type.
    #[error(
        "no result says which instance type its machine is of; name it with --instance-type TYPE"
    )]
    NoType,
    /// The user named a metric that cannot be learned.
    #[error("`{metric}` cannot be learned: {why}")]
    Metric {
        /// Its name.
        metric: String,
        /// Why not.
        why: String,
    },
    /// A number has no form in TOML.
    #[error("the table cannot be written")]
    Write(#[from] toml::ser::Error),
}

/// Learns from `results`, each with the name by which the user knows it, a table that extends `base`.
///
/// # Errors
/// When the results are no picture of healthy machines, or would lower what the table demands.
pub fn from_results(
    results: Vec<(String, Report)>,
    base: Option<Chosen>,
    terms: &Terms,
    now: Timestamp,
) -> Result<Lesson, LearnError> {
    let mut said = Vec::new();
    let mut results = once(results, &mut said);
    name_machines(&mut results);
    let results: Vec<(&str, &Report)> = results
        .iter()
        .map(|(name, report)| (name.as_str(), report))
        .collect();
    let instance_type = terms
        .instance_type
        .clone()
        .or_else(|| {
            let mut nodes = nodes(&results);
            nodes.find_map(|(_, report, node)| type_of(report, node).map(str::to_owned))
        })
        .ok_or(LearnError::NoType)?;
    let unfit = unfit(&results, &instance_type, terms, now);
    let machines: BTreeSet<&str> = nodes(&results).map(|(.., node)| machine(node)).collect();
    let out: BTreeSet<&str> = unfit.iter().map(|(machine, _)| *machine).collect();
    allow(&unfit, out.len(), machines.len(), terms)?;
    said.extend(unfit.iter().map(|(_, why)| format!("left out: {why}")));
    let base = match base {
        Some(base) => base,
        None => tables::built_in_table(&instance_type)
            .or_else(|_| tables::built_in_table(GENERIC))
            .expect("there is a generic table, and a test reads all of them"),
    };
    let chosen = wanted(&base.table, &terms.metrics)?;
    let series = series(&results, &out, &chosen);
    if series.is_empty() {
        said.push("the results hold no measurement of a speed or latency".to_owned());
    }
    let mut bounds = Bounds {
        base: &base,
        terms,
        limits: Vec::new(),
        said,
        unhealthy: Vec::new(),
        lowers: Vec::new(),
    };
    for ((_, at), series) in &series {
        bounds.draw(at, series);
    }
    let (limits, mut said) = bounds.sound()?;
    let taught = machines.len() - out.len();
    if taught < MACHINES_FEW {
        said.push(format!(
            "all of this comes from {taught} machines, so how machines differ is hardly in it; learn from more"
        ));
    }
    let learned = limits.len();
    let text = draft(&base, instance_type, limits).text()?;
    Ok(Lesson {
        text,
        limits: learned,
        said,
    })
}

/// What becomes of the series, one after the other.
struct Bounds<'a> {
    base: &'a Chosen,
    terms: &'a Terms,
    limits: Vec<Limit>,
    said: Vec<String>,
    /// Series that are no picture of healthy machines.
    unhealthy: Vec<String>,
    /// Series whose bound is worse than the table's own.
    lowers: Vec<String>,
}

impl Bounds<'_> {
    fn draw(&mut self, at: &At, series: &Series) {
        let (metric, table) = (series.metric, &self.base.table);
        let what = format!("{}{}", metric.name, Conditions::from(at));
        let learned = match learn(&series.samples, series.better, self.terms.bounds) {
            Ok(learned) => learned,
            Err(error @ NotLearned::Unhealthy { .. }) => {
                return self.unhealthy.push(format!("  {what}: {error}"));
            }
            Err(error) => return self.said.push(format!("{what}: not learned: {error}")),
        };
        let (bound, unit) = (learned.bound, metric.unit);
        let may_lower = self
            .terms
            .allow_lower
            .iter()
            .any(|name| name == metric.name);
        match revise(table, metric, at, series.better, bound, may_lower) {
            Revision::Limit(mut limit) => {
                limit.source = series.source(&learned, self.terms.bounds.coverage);
                limit.samples = Some(learned.values as u64);
                limit.validated_on = Some(series.day.clone());
                let before = table.limits(metric.name, at);
                let before = before.first().map_or_else(String::new, |own| {
                    format!(", before: {}", own.describe(table))
                });
                let now = limit.describe(table);
                self.said
                    .push(format!("{what}: {now}{before}; {}", limit.source));
                self.said.extend(series.dropped(&learned, &what));
                self.limits.push(*limit);
            }
            Revision::Stays => self.said.push(format!(
                "{what}: the table's own limit stays, since the learned bound {} {unit} is no tighter",
                Value::Real(bound)
            )),
            Revision::Lowers { own, by } => self.lowers.push(format!(
                "  {what}: {} {unit} instead of {} {unit}, {:.1} % worse",
                Value::Real(bound),
                Value::Real(own),
                by * 100.0
            )),
        }
    }

    /// The limits and what is said of them.
    fn sound(self) -> Result<(Vec<Limit>, Vec<String>), LearnError> {
        if !self.unhealthy.is_empty() {
            return Err(LearnError::Unhealthy {
                series: self.unhealthy,
            });
        }
        if !self.lowers.is_empty() {
            return Err(LearnError::Lowers {
                table: self.base.judged_by.origin.clone(),
                series: self.lowers,
            });
        }
        Ok((self.limits, self.said))
    }
}

/// The metrics to learn, and which way each is better.
fn wanted(table: &Table, names: &[String]) -> Result<Wanted, LearnError> {
    let metrics = tables::metrics();
    if names.is_empty() {
        let speeds = metrics
            .into_iter()
            .filter_map(|metric| Some((metric.name, (metric, metric.better()?))));
        return Ok(speeds.collect());
    }
    let mut wanted = BTreeMap::new();
    for name in names {
        let refuse = |why: &str| LearnError::Metric {
            metric: name.clone(),
            why: why.to_owned(),
        };
        let metric = *metrics
            .iter()
            .find(|metric| metric.name == name)
            .ok_or_else(|| {
                refuse("no check measures it; `dhc list --metrics` shows what is measured")
            })?;
        let better = metric
            .unit
            .better()
            .or_else(|| by_limits(table, name))
            .filter(|_| metric.unit != Unit::State)
            .ok_or_else(|| {
                refuse("nothing says whether more of it is better or less: its unit is not one of speed or time, and the table limits it on neither side or on both")
            })?;
        wanted.insert(metric.name, (metric, better));
    }
    Ok(wanted)
}

/// Which way a metric is better, as far as the limits of a table say so.
fn by_limits(table: &Table, name: &str) -> Option<Better> {
    let limits = || table.limits.iter().filter(|limit| limit.metric == name);
    let below = limits().any(|limit| {
        limit
            .bounds
            .fail_below
            .or(limit.bounds.warn_below)
            .is_some()
    });
    let above = limits().any(|limit| {
        limit
            .bounds
            .fail_above
            .or(limit.bounds.warn_above)
            .is_some()
    });
    match (below, above) {
        (true, false) => Some(Better::Higher),
        (false, true) => Some(Better::Lower),
        (true, true) | (false, false) => None,
    }
}

/// The file: what was learned, and what `base` holds of its own if it is not built in.
fn draft(base: &Chosen, instance_type: String, learned: Vec<Limit>) -> Draft {
    let table = &base.table;
    if base.judged_by.origin == tables::BUILT_IN {
        return Draft {
            instance_type,
            extends: Some(table.instance_type.clone()),
            limits: learned,
            ..Draft::default()
        };
    }
    let below = tables::built_in_table(table.extends.as_deref().unwrap_or(GENERIC));
    let below = below
        .map(|chosen| chosen.table.hardware)
        .unwrap_or_default();
    let own: Vec<(Hardware, Due)> = table
        .hardware
        .iter()
        .filter(|(kind, due)| below.get(kind) != Some(due))
        .map(|(kind, due)| (*kind, due.clone()))
        .collect();
    let replaced = |limit: &&Limit| {
        let same = |new: &Limit| new.metric == limit.metric && new.at == limit.at;
        limit.origin == base.judged_by.origin && !learned.iter().any(same)
    };
    let mut limits: Vec<_> = table.limits.iter().filter(replaced).cloned().collect();
    limits.extend(learned);
    Draft {
        instance_type,
        aliases: table.aliases.clone(),
        extends: table.extends.clone(),
        hardware: own,
        limits,
    }
}
