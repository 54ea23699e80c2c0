//! `dhc thresholds learn`: a threshold file from the results of healthy machines.
//!
//! Who may teach is decided first, machine by machine; then every series of like measurements becomes a bound, or a sentence
//! that says why it does not. The statistics are those of [`dhc_thresholds::learn`].

use std::collections::{BTreeMap, BTreeSet};

use dhc_checks::catalog;
use dhc_checks::check::Check;
use dhc_thresholds::{
    At, Better, CheckReport, Conditions, Draft, Drawn, Due, Ending, GENERIC, Hardware, Learned,
    Metric, NodeReport, NotLearned, Report, Revision, Sample, Status, Table, Unit, Value, learn,
    revise,
};
use jiff::Timestamp;

use crate::tables::{self, Chosen};

/// Where more than this share of the machines has to be left out, the others are no picture of a healthy fleet either.
const UNFIT_MAX: f64 = 0.10;

/// With fewer machines, what is learned says little of how machines differ.
const MACHINES_FEW: usize = 5;

/// What programs the figures depend on: how notes of checks begin that name a version.
const VERSIONS: &[&str] = &["NVIDIA driver ", "libfabric ", "MPI: ", "NCCL: "];

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
        "{} of {of} machines are unfit to be learned from; fix them and run the checks again, or leave them out with \
         --leave-out-unfit:\n{}", unfit.len(), unfit.join("\n")
    )]
    Unfit {
        /// Which, and why.
        unfit: Vec<String>,
        /// Of how many.
        of: usize,
    },
    /// Too many machines are no example.
    #[error(
        "{} of {of} machines are unfit to be learned from, more than a tenth: this is not a healthy fleet:\n{}",
        unfit.len(), unfit.join("\n")
    )]
    UnfitFleet {
        /// Which, and why.
        unfit: Vec<String>,
        /// Of how many.
        of: usize,
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
    if !out.is_empty() {
        let reasons: Vec<String> = unfit.iter().map(|(_, why)| format!("  {why}")).collect();
        let of = machines.len();
        #[expect(clippy::cast_precision_loss, reason = "numbers of machines are small")]
        let too_many = out.len() as f64 > UNFIT_MAX * of as f64;
        if !terms.leave_out_unfit {
            return Err(LearnError::Unfit { unfit: reasons, of });
        }
        if too_many {
            return Err(LearnError::UnfitFleet { unfit: reasons, of });
        }
        said.extend(unfit.iter().map(|(_, why)| format!("left out: {why}")));
    }
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
    let mut limits = Vec::new();
    let (mut unhealthy, mut lowers) = (Vec::new(), Vec::new());
    for ((name, at), series) in &series {
        let metric = series.metric;
        let what = format!("{name}{}", Conditions::from(at));
        let learned = match learn(&series.samples, series.better, terms.bounds) {
            Ok(learned) => learned,
            Err(error @ NotLearned::Unhealthy { .. }) => {
                unhealthy.push(format!("  {what}: {error}"));
                continue;
            }
            Err(error) => {
                said.push(format!("{what}: not learned: {error}"));
                continue;
            }
        };
        let may_lower = terms.allow_lower.contains(&metric.name.to_owned());
        match revise(
            &base.table,
            metric,
            at,
            series.better,
            learned.bound,
            may_lower,
        ) {
            Revision::Limit(mut limit) => {
                limit.source = series.source(&learned, terms.bounds.coverage);
                limit.samples = Some(learned.values as u64);
                limit.validated_on = Some(series.day.clone());
                let before = base.table.limits(metric.name, at);
                let before = before.first().map_or_else(String::new, |own| {
                    format!(", before: {}", own.describe(&base.table))
                });
                said.push(format!(
                    "{what}: {}{before}; {}",
                    limit.describe(&base.table),
                    limit.source
                ));
                said.extend(series.dropped(&learned, &what));
                limits.push(*limit);
            }
            Revision::Stays => said.push(format!(
                "{what}: the table's own limit stays, since the learned bound {} {} is no tighter",
                Value::Real(learned.bound),
                metric.unit
            )),
            Revision::Lowers { own, by } => lowers.push(format!(
                "  {what}: {} {unit} instead of {} {unit}, {:.1} % worse",
                Value::Real(learned.bound),
                Value::Real(own),
                by * 100.0,
                unit = metric.unit
            )),
        }
    }
    if !unhealthy.is_empty() {
        return Err(LearnError::Unhealthy { series: unhealthy });
    }
    if !lowers.is_empty() {
        return Err(LearnError::Lowers {
            table: base.judged_by.origin.clone(),
            series: lowers,
        });
    }
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

/// Each run once, however often its result was named; of results that differ the worst, so that none hides a fault.
fn once(results: Vec<(String, Report)>, said: &mut Vec<String>) -> Vec<(String, Report)> {
    let mut all: Vec<(String, Report)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (name, report) in results {
        let place = *places.entry(report.run.id.clone()).or_insert(all.len());
        let Some(kept) = all.get_mut(place) else {
            all.push((name, report));
            continue;
        };
        let bad = |report: &Report| (report.status, !report.complete);
        let other = if bad(&report) > bad(&kept.1) {
            std::mem::replace(kept, (name, report)).0
        } else {
            name
        };
        said.push(format!(
            "{other}: left out, since it is the same run as {}",
            kept.0
        ));
    }
    all
}

/// Gives a machine the instance id that another result knows it by, so that it counts once. (Of two machines that have had the
/// name, either may be meant; to count one too few teaches nothing wrong.)
fn name_machines(results: &mut [(String, Report)]) {
    let all = || results.iter().flat_map(|(_, report)| &report.nodes);
    let known: BTreeMap<String, String> = all()
        .filter_map(|node| Some((node.name.clone(), node.identity.instance_id.clone()?)))
        .collect();
    for node in results.iter_mut().flat_map(|(_, report)| &mut report.nodes) {
        if node.identity.instance_id.is_none() {
            node.identity.instance_id = known.get(&node.name).cloned();
        }
    }
}

fn nodes<'a>(
    results: &'a [(&'a str, &'a Report)],
) -> impl Iterator<Item = (&'a str, &'a Report, &'a NodeReport)> {
    let nodes = |(name, report): &(&'a str, &'a Report)| {
        let (name, report) = (*name, *report);
        report.nodes.iter().map(move |node| (name, report, node))
    };
    results.iter().flat_map(nodes)
}

/// What a machine is known by from run to run.
fn machine(node: &NodeReport) -> &str {
    node.identity.instance_id.as_deref().unwrap_or(&node.name)
}

/// The instance type of a node: its own, or that of the table by which its run was judged, unless that is for any.
pub(crate) fn type_of<'a>(report: &'a Report, node: &'a NodeReport) -> Option<&'a str> {
    let judged_by = report.judged_by.instance_type.as_str();
    let own = node.identity.instance_type.as_deref();
    own.or(Some(judged_by).filter(|name| *name != GENERIC))
}

/// The machines that nothing should be learned from, and why.
fn unfit<'a>(
    results: &'a [(&'a str, &'a Report)],
    instance_type: &str,
    terms: &Terms,
    now: Timestamp,
) -> Vec<(&'a str, String)> {
    let mut most: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for (program, version) in nodes(results).flat_map(|(.., node)| versions(node)) {
        *most.entry(program).or_default().entry(version).or_default() += 1;
    }
    let usual = |program: &str| {
        let counts = most.get(program)?.iter();
        counts
            .max_by_key(|(_, count)| **count)
            .map(|(version, _)| *version)
    };
    let mut unfit = Vec::new();
    for (name, report, node) in nodes(results) {
        let mut why =
            |why: String| unfit.push((machine(node), format!("{} ({name}): {why}", node.name)));
        if matches!(node.status, Status::Fail | Status::Error) {
            why(format!("its status is {}", node.status));
        }
        let broken = |check: &&CheckReport| matches!(check.status, Status::Fail | Status::Error);
        let mut together = report.cluster.iter().flat_map(|cluster| &cluster.checks);
        if let Some(check) = together.find(broken) {
            why(format!("{} over all nodes: {}", check.check, check.status));
        }
        if !report.complete {
            why("the run did not come to its end".to_owned());
        }
        match report.run.expires_at.parse::<Timestamp>() {
            Ok(expires) if expires >= now || terms.expired => {}
            Ok(expires) => why(format!(
                "the result expired at {expires}; --expired learns from it all the same"
            )),
            Err(_) => why(format!("`{}` is no time of expiry", report.run.expires_at)),
        }
        match type_of(report, node) {
            Some(other) if !tables::same_type(other, instance_type) => {
                why(format!("it is a {other}, not a {instance_type}"));
            }
            Some(_) | None => {}
        }
        if !terms.mixed_versions {
            for (program, version) in versions(node) {
                if let Some(usual) = usual(program).filter(|usual| *usual != version) {
                    why(format!(
                        "`{version}` where most have `{usual}`; --mixed-versions learns from both together"
                    ));
                }
            }
        }
    }
    unfit
}

/// The versions that the checks of a node name: which program, and the whole note.
fn versions(node: &NodeReport) -> BTreeMap<&'static str, &str> {
    let notes = node.checks.iter().flat_map(|check| &check.record.notes);
    let version = |note: &'_ String| VERSIONS.iter().find(|program| note.starts_with(**program));
    notes
        .filter_map(|note| Some((*version(note)?, note.as_str())))
        .collect()
}

/// The metrics to learn, and which way each is better.
fn wanted(
    table: &Table,
    names: &[String],
) -> Result<BTreeMap<&'static str, (&'static Metric, Better)>, LearnError> {
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

/// Like measurements of many things.
struct Series {
    metric: &'static Metric,
    better: Better,
    samples: Vec<Sample>,
    machines: BTreeSet<String>,
    runs: BTreeSet<String>,
    /// The day of the last of the runs.
    day: String,
    versions: BTreeSet<String>,
}

type AllSeries = BTreeMap<(&'static str, At), Series>;

/// Every series that the results hold, without the machines that are left out and the groups that they were in.
fn series(
    results: &[(&str, &Report)],
    out: &BTreeSet<&str>,
    wanted: &BTreeMap<&'static str, (&'static Metric, Better)>,
) -> AllSeries {
    let mut all = AllSeries::new();
    let mut add = |report: &Report,
                   metric: &str,
                   unit: Unit,
                   at: &At,
                   of: String,
                   value: f64,
                   machines: &[&str],
                   versions: &BTreeMap<&'static str, &str>| {
        let Some((metric, better)) = wanted.get(metric).filter(|(metric, _)| metric.unit == unit)
        else {
            return;
        };
        let series = all
            .entry((metric.name, at.clone()))
            .or_insert_with(|| Series {
                metric,
                better: *better,
                samples: Vec::new(),
                machines: BTreeSet::new(),
                runs: BTreeSet::new(),
                day: String::new(),
                versions: BTreeSet::new(),
            });
        series.samples.push(Sample { of, value });
        series
            .machines
            .extend(machines.iter().map(|name| (*name).to_owned()));
        series.runs.insert(report.run.id.clone());
        series
            .versions
            .extend(versions.values().map(|version| (*version).to_owned()));
        let day = report.run.started_at.get(..10).unwrap_or_default();
        if day > series.day.as_str() {
            series.day = day.to_owned();
        }
    };
    for (_, report, node) in nodes(results) {
        if out.contains(machine(node)) {
            continue;
        }
        let versions = versions(node);
        for check in node
            .checks
            .iter()
            .filter(|check| check.record.ending == Ending::Finished)
        {
            for seen in &check.record.measurements {
                if let Some(value) = seen.value.number() {
                    let of = format!("{} {}", machine(node), seen.subject);
                    add(
                        report,
                        &seen.metric,
                        seen.unit,
                        &seen.at,
                        of,
                        value,
                        &[machine(node)],
                        &versions,
                    );
                }
            }
        }
    }
    for (_, report) in results {
        let Some(cluster) = &report.cluster else {
            continue;
        };
        let left_out = |name: &str| {
            let mut nodes = report.nodes.iter();
            nodes.any(|node| node.name == name && out.contains(machine(node)))
        };
        let mut timed = BTreeSet::new();
        for search in &cluster.searches {
            let Some(Check::Cluster(check)) = catalog::find(&search.check) else {
                continue;
            };
            let Some(plateau) = check.plateau() else {
                continue;
            };
            timed.insert(plateau);
            let groups = search.waves.iter().flat_map(|wave| &wave.groups);
            // One rail of several, or no network at all, is no sample of what a group over all rails reaches.
            let groups = groups.filter(|group| group.rail.is_none() && group.purpose != "alone");
            for (place, group) in groups.enumerate() {
                let Some(value) = group.plateau_gb_per_s.filter(|_| group.outcome == "passed")
                else {
                    continue;
                };
                if group.nodes.iter().any(|name| left_out(name)) {
                    continue;
                }
                let at = At {
                    nodes: u32::try_from(group.nodes.len()).ok(),
                    ..At::default()
                };
                let of = format!("{} group {place}", report.run.id);
                let machines: Vec<&str> = group.nodes.iter().map(String::as_str).collect();
                add(
                    report,
                    plateau,
                    Unit::GigabytesPerSecond,
                    &at,
                    of,
                    value,
                    &machines,
                    &BTreeMap::new(),
                );
            }
        }
        if !report.nodes.iter().all(|node| left_out(&node.name)) {
            let machines: Vec<&str> = report.nodes.iter().map(machine).collect();
            let whole = cluster
                .checks
                .iter()
                .filter(|check| check.record.ending == Ending::Finished);
            for seen in whole.flat_map(|check| &check.record.measurements) {
                // The plateau of the whole is among those of the groups.
                if let Some(value) = seen
                    .value
                    .number()
                    .filter(|_| !timed.contains(seen.metric.as_ref()))
                {
                    add(
                        report,
                        &seen.metric,
                        seen.unit,
                        &seen.at,
                        report.run.id.clone(),
                        value,
                        &machines,
                        &BTreeMap::new(),
                    );
                }
            }
        }
    }
    all
}

impl Series {
    /// Where a learned number comes from.
    fn source(&self, learned: &Learned, coverage: f64) -> String {
        let unit = self.metric.unit;
        let runs: Vec<&str> = self.runs.iter().map(String::as_str).collect();
        let runs = match runs.as_slice() {
            [one] => format!("run {one}"),
            [first, .., last] => format!("{} runs from {first} to {last}", runs.len()),
            [] => unreachable!("a series has a value, and a value a run"),
        };
        let percent = (coverage * 1e5).round() / 1e3;
        let drawn = match learned.drawn {
            Drawn::Tolerance { factor } => format!(
                "{factor:.2} spreads beyond the median, as for the {percent} % tolerance bound at 95 % confidence of {} normal values",
                learned.things
            ),
            Drawn::Minimum => format!(
                "the worst of these values, a {percent} % bound at 95 % confidence whatever their distribution"
            ),
        };
        let minimum = match (learned.drawn, learned.minimum) {
            (Drawn::Tolerance { .. }, Some(worst)) => format!(
                " (the worst healthy value, {} {unit}, is such a bound whatever the distribution)",
                Value::Real(worst)
            ),
            _ => String::new(),
        };
        let dropped = match learned.dropped.len() {
            0 => String::new(),
            count => format!("; {count} values were dropped"),
        };
        let versions: Vec<&str> = self.versions.iter().map(String::as_str).collect();
        let versions = if versions.is_empty() {
            String::new()
        } else {
            format!("; with {}", versions.join(", "))
        };
        format!(
            "learned from {} nodes, {} values of {} things, {runs}; median {} {unit}, spread {} {unit}; {drawn}{minimum}{dropped}{versions}",
            self.machines.len(),
            learned.values,
            learned.things,
            Value::Real(learned.centre.median),
            Value::Real(learned.centre.spread),
        )
    }

    /// A line for each value that was dropped: a healthy run holds it, so somebody should look at it.
    fn dropped(&self, learned: &Learned, what: &str) -> Vec<String> {
        let line = |place: &usize| {
            let Sample { of, value } = &self.samples[*place];
            let value = Value::Real(*value);
            format!(
                "{what}: dropped {value} {} of {of}; look at it",
                self.metric.unit
            )
        };
        learned.dropped.iter().map(line).collect()
    }
}

/// The file: what was learned, and what `base` holds of its own if it is not built in.
fn draft(base: &Chosen, instance_type: String, learned: Vec<dhc_thresholds::Limit>) -> Draft {
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
    let replaced = |limit: &&dhc_thresholds::Limit| {
        let same = |new: &dhc_thresholds::Limit| new.metric == limit.metric && new.at == limit.at;
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
