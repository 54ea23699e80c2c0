//! Like measurements of many things, from the results of many runs.

use std::collections::{BTreeMap, BTreeSet};

use dhc_checks::catalog;
use dhc_checks::check::Check;
use dhc_thresholds::{
    At, Better, CheckReport, ClusterReport, Drawn, Ending, GroupReport, Learned, Metric,
    NodeReport, Report, Sample, Unit, Value,
};

use super::teachers::{machine, nodes, versions};

/// The metrics to learn, and which way each is better.
pub(super) type Wanted = BTreeMap<&'static str, (&'static Metric, Better)>;

/// Every series, by metric and conditions.
pub(super) type AllSeries = BTreeMap<(&'static str, At), Series>;

/// Like measurements of many things.
pub(super) struct Series {
    pub(super) metric: &'static Metric,
    pub(super) better: Better,
    pub(super) samples: Vec<Sample>,
    machines: BTreeSet<String>,
    runs: BTreeSet<String>,
    /// The day of the last of the runs.
    pub(super) day: String,
    versions: BTreeSet<String>,
}

/// Every series that the results hold, without the machines that are left out and the groups that they were in.
pub(super) fn series(
    results: &[(&str, &Report)],
    out: &BTreeSet<&str>,
    wanted: &Wanted,
) -> AllSeries {
    let mut collector = Collector {
        wanted,
        all: AllSeries::new(),
    };
    for (_, report, node) in nodes(results) {
        if !out.contains(machine(node)) {
            collector.of_node(report, node);
        }
    }
    for (_, report) in results {
        if let Some(cluster) = &report.cluster {
            let left_out: BTreeSet<&str> = report
                .nodes
                .iter()
                .filter(|node| out.contains(machine(node)))
                .map(|node| node.name.as_str())
                .collect();
            let timed = collector.of_groups(report, cluster, &left_out);
            if left_out.len() < report.nodes.len() {
                collector.of_whole(report, cluster, &timed);
            }
        }
    }
    collector.all
}

/// One value, and whom it is of.
struct Seen<'a> {
    report: &'a Report,
    metric: &'a str,
    unit: Unit,
    at: &'a At,
    of: String,
    value: f64,
    machines: &'a [&'a str],
    versions: &'a BTreeMap<&'static str, &'a str>,
}

struct Collector<'a> {
    wanted: &'a Wanted,
    all: AllSeries,
}

impl Collector<'_> {
    fn add(&mut self, seen: Seen<'_>) {
        let wanted = self.wanted.get(seen.metric);
        let Some((metric, better)) = wanted.filter(|(metric, _)| metric.unit == seen.unit) else {
            return;
        };
        let series = self
            .all
            .entry((metric.name, seen.at.clone()))
            .or_insert_with(|| Series {
                metric,
                better: *better,
                samples: Vec::new(),
                machines: BTreeSet::new(),
                runs: BTreeSet::new(),
                day: String::new(),
                versions: BTreeSet::new(),
            });
        let (of, value) = (seen.of, seen.value);
        series.samples.push(Sample { of, value });
        let owned = |word: &&str| (*word).to_owned();
        series.machines.extend(seen.machines.iter().map(owned));
        series.versions.extend(seen.versions.values().map(owned));
        series.runs.insert(seen.report.run.id.clone());
        let day = seen.report.run.started_at.get(..10).unwrap_or_default();
        if day > series.day.as_str() {
            series.day = day.to_owned();
        }
    }

    /// What a machine has measured by itself.
    fn of_node(&mut self, report: &Report, node: &NodeReport) {
        let machine = machine(node);
        let versions = versions(node);
        let finished = node.checks.iter().filter(has_finished);
        for seen in finished.flat_map(|check| &check.record.measurements) {
            if let Some(value) = seen.value.number() {
                self.add(Seen {
                    report,
                    metric: &seen.metric,
                    unit: seen.unit,
                    at: &seen.at,
                    of: format!("{machine} {}", seen.subject),
                    value,
                    machines: &[machine],
                    versions: &versions,
                });
            }
        }
    }

    /// How fast the groups of a cluster were that passed; returns the metrics that say so.
    fn of_groups(
        &mut self,
        report: &Report,
        cluster: &ClusterReport,
        left_out: &BTreeSet<&str>,
    ) -> BTreeSet<&'static str> {
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
            let is_fit = |group: &GroupReport| {
                let mut nodes = group.nodes.iter();
                group.outcome == "passed" && !nodes.any(|name| left_out.contains(name.as_str()))
            };
            for (place, group) in groups.enumerate().filter(|(_, group)| is_fit(group)) {
                let Some(value) = group.plateau_gb_per_s else {
                    continue;
                };
                let at = At {
                    nodes: u32::try_from(group.nodes.len()).ok(),
                    ..At::default()
                };
                let machines: Vec<&str> = group.nodes.iter().map(String::as_str).collect();
                self.add(Seen {
                    report,
                    metric: plateau,
                    unit: Unit::GigabytesPerSecond,
                    at: &at,
                    of: format!("{} group {place}", report.run.id),
                    value,
                    machines: &machines,
                    versions: &BTreeMap::new(),
                });
            }
        }
        timed
    }

    /// What the whole of a cluster has measured, but for what is `timed`: its plateau is among those of the groups.
    fn of_whole(
        &mut self,
        report: &Report,
        cluster: &ClusterReport,
        timed: &BTreeSet<&'static str>,
    ) {
        let machines: Vec<&str> = report.nodes.iter().map(machine).collect();
        let finished = cluster.checks.iter().filter(has_finished);
        let seen = finished.flat_map(|check| &check.record.measurements);
        for seen in seen.filter(|seen| !timed.contains(seen.metric.as_ref())) {
            if let Some(value) = seen.value.number() {
                self.add(Seen {
                    report,
                    metric: &seen.metric,
                    unit: seen.unit,
                    at: &seen.at,
                    of: report.run.id.clone(),
                    value,
                    machines: &machines,
                    versions: &BTreeMap::new(),
                });
            }
        }
    }
}

fn has_finished(check: &&CheckReport) -> bool {
    check.record.ending == Ending::Finished
}

impl Series {
    /// Where a learned number comes from.
    pub(super) fn source(&self, learned: &Learned, coverage: f64) -> String {
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
    pub(super) fn dropped(&self, learned: &Learned, what: &str) -> Vec<String> {
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
