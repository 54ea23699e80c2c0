//! The results of several runs together: nodes of one type as each other's peers, and who stays an outlier when it is
//! measured again.
//!
//! To stand out once is worth watching; to stand out in two of a device's last three runs of one boot is a fault. Where more
//! than a fifth of the nodes stand out or fail alike, it is configuration or fabric, and nobody is singled out.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fault::Action;
use crate::judge::{Finding, Status, add_peers, finding};
use crate::measurement::{At, Measurement, Metric, Subject};
use crate::peers::{Alike, PEERS, PEERS_MIN, Peers, comparable};
use crate::report::{CheckReport, Identity, NodeReport, Report};
use crate::statistics::{Better, Centre};
use crate::table::GENERIC;
use crate::unit::Unit;

/// How many of the last runs of a boot count as repeats, and in how many of them an outlier is a fault.
const REPEATS: usize = 3;
const REPEATED: usize = 2;

/// Where more than one node in so many is concerned, nobody is singled out.
const WIDESPREAD: usize = 5;

/// What several results say together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetReport {
    /// The runs that were put together, oldest first.
    pub runs: Vec<String>,
    /// The newest of them that tells of each node, by the node's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub newest: BTreeMap<String, String>,
    /// Nodes that were compared with nobody, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<String>,
    /// What was compared across nodes.
    pub comparisons: Vec<ComparisonReport>,
    /// What so many nodes have in common that it is held against none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widespread: Vec<WidespreadReport>,
}

/// Things of equal kind on nodes of equal type, measured alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparisonReport {
    /// The metric.
    pub metric: String,
    /// Its unit.
    pub unit: Unit,
    /// Under which conditions.
    #[serde(default, skip_serializing_if = "At::is_anywhere")]
    pub at: At,
    /// The instance type of the nodes.
    pub instance_type: String,
    /// How many nodes.
    pub nodes: usize,
    /// How many things on them.
    pub things: usize,
    /// The median of their values.
    pub median: f64,
    /// The robust spread of their values.
    pub spread: f64,
    /// Beyond this a thing is an outlier.
    pub bound: f64,
    /// How many were, in some run.
    pub outliers: usize,
}

/// Something that so many nodes have in common that none of them is singled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WidespreadReport {
    /// The metric.
    pub metric: String,
    /// Under which conditions.
    #[serde(default, skip_serializing_if = "At::is_anywhere")]
    pub at: At,
    /// Whose bound is broken: that of `peers` or of the `table`.
    pub bound: String,
    /// The nodes.
    pub nodes: Vec<String>,
    /// Of how many.
    pub of: usize,
}

/// Puts results together. Each has been judged already; `metrics` finds those that a check declares.
///
/// Gives one report for each node, of the newest run of each check in its newest boot.
pub fn compare(
    results: &[Report],
    metrics: &dyn Fn(&str) -> Vec<&'static Metric>,
) -> (Vec<NodeReport>, FleetReport) {
    let mut ordered: Vec<&Report> = results.iter().collect();
    ordered.sort_by(|one, other| one.run.id.cmp(&other.run.id));
    ordered.dedup_by(|one, other| one.run.id == other.run.id);
    let machines = machines(&ordered);
    let mut fleet = FleetReport {
        runs: ordered.iter().map(|report| report.run.id.clone()).collect(),
        newest: machines
            .iter()
            .map(|machine| (machine.name.to_owned(), machine.newest.to_owned()))
            .collect(),
        ..FleetReport::default()
    };
    let unknown = machines.iter().filter(|machine| machine.kind.is_none());
    fleet.not_compared = unknown
        .map(|machine| {
            let name = machine.name;
            format!("{name}: its instance type is not known, so its devices are compared with one another alone")
        })
        .collect();

    let mut outliers = Vec::new();
    let mut measured: Nodes<(Option<&str>, Alike)> = Nodes::new();
    for ((_, kind, alike), pool) in pools(&machines, metrics) {
        let nodes = pool.nodes();
        measured
            .entry((kind, alike.clone()))
            .or_default()
            .extend(&nodes);
        let Some(peers) = pool.peers() else {
            continue;
        };
        let found = pool.outliers(&peers, &alike, kind);
        if pool.across {
            let Centre { median, spread } = peers.centre();
            fleet.comparisons.push(ComparisonReport {
                metric: alike.metric.to_owned(),
                unit: pool.metric.unit,
                at: alike.at.clone(),
                instance_type: kind.unwrap_or_default().to_owned(),
                nodes: nodes.len(),
                things: pool.members.len(),
                median,
                spread,
                bound: peers.bound(),
                outliers: found.len(),
            });
        }
        outliers.extend(found);
    }
    let names = |nodes: &BTreeSet<usize>| {
        nodes
            .iter()
            .map(|node| machines[*node].name.to_owned())
            .collect()
    };
    // Failures first: many warnings of devices that stood out once do not excuse the few that did so again and again.
    for least in [Status::Fail, Status::Warn] {
        let mut concerned: Nodes<(Option<&str>, Alike)> = Nodes::new();
        for outlier in outliers
            .iter()
            .filter(|outlier| outlier.finding.status >= least)
        {
            let key = (outlier.kind, outlier.alike.clone());
            concerned.entry(key).or_default().insert(outlier.machine);
        }
        let unlike = widespread(&concerned, &measured);
        for (key, (_, of)) in &unlike {
            let alike = &key.1;
            fleet.widespread.push(WidespreadReport {
                metric: alike.metric.to_owned(),
                at: alike.at.clone(),
                bound: PEERS.to_owned(),
                nodes: names(&concerned[key]),
                of: *of,
            });
        }
        outliers.retain(|outlier| {
            outlier.finding.status != least
                || !unlike.contains_key(&(outlier.kind, outlier.alike.clone()))
        });
    }
    let (failed, judged) = by_table(&machines);
    let failures = widespread(&failed, &judged);
    for (key, (_, of)) in &failures {
        let (_, metric, at) = key;
        fleet.widespread.push(WidespreadReport {
            metric: (*metric).to_owned(),
            at: (*at).clone(),
            bound: "table".to_owned(),
            nodes: names(&failed[key]),
            of: *of,
        });
    }

    let nodes = machines.iter().enumerate().map(|(place, machine)| {
        let checks = machine.checks.iter().map(|(name, runs)| {
            let newest = runs.last().expect("a check is there since a run had it");
            let of_peers =
                |finding: &Finding| finding.bound.as_ref().is_some_and(|bound| bound.origin == PEERS);
            let own = newest.findings.iter().filter(|finding| !of_peers(finding));
            let mut findings: Vec<Finding> = own
                .map(|own| {
                    let mut finding = own.clone();
                    let nodes = failures.get(&judged_as(machine, own));
                    if let Some((concerned, of)) = nodes.filter(|_| own.status == Status::Fail) {
                        finding.action = own.action.min(Action::Investigate);
                        finding.message.push_str(&format!(
                            " (as on {concerned} of {of} nodes: configuration or fabric rather than this node)"
                        ));
                    }
                    finding
                })
                .collect();
            let mine = outliers
                .iter()
                .filter(|outlier| outlier.machine == place && outlier.check == *name);
            let mut mine: Vec<Finding> = mine.map(|outlier| outlier.finding.clone()).collect();
            // Of two comparisons that find the same, the graver one is told.
            mine.sort_by_key(|finding| std::cmp::Reverse(finding.status));
            add_peers(&mut findings, mine);
            newest.with_findings(findings)
        });
        NodeReport::new(machine.name.to_owned(), machine.identity.clone(), checks.collect())
    });
    (nodes.collect(), fleet)
}

/// A machine in its newest boot.
struct Machine<'a> {
    name: &'a str,
    identity: &'a Identity,
    /// The newest run that tells of it.
    newest: &'a str,
    kind: Option<&'a str>,
    /// The last runs of each check that looked, oldest first.
    checks: Vec<(&'a str, Vec<&'a CheckReport>)>,
}

/// The machines of results that are in the order of time.
fn machines<'a>(ordered: &[&'a Report]) -> Vec<Machine<'a>> {
    let mut by_machine: BTreeMap<&str, Vec<(&Report, &NodeReport)>> = BTreeMap::new();
    for report in ordered {
        for node in &report.nodes {
            let id = node.identity.instance_id.as_deref().unwrap_or(&node.name);
            by_machine.entry(id).or_default().push((report, node));
        }
    }
    let machine = |mut runs: Vec<(&'a Report, &'a NodeReport)>| {
        let (report, newest) = *runs.last().expect("a machine is there since a run had it");
        let boot = &newest.identity.boot_id;
        // Runs of a boot that is not known cannot be told from those of another.
        let is_newest = |node: &NodeReport| std::ptr::eq(node, newest);
        runs.retain(|(_, node)| {
            is_newest(node) || (boot.is_some() && node.identity.boot_id == *boot)
        });
        let mut checks: Vec<(&str, Vec<&CheckReport>)> = Vec::new();
        for check in runs.iter().flat_map(|(_, node)| &node.checks) {
            match checks.iter_mut().find(|(name, _)| *name == check.check) {
                None => checks.push((&check.check, vec![check])),
                // A run that left the check out takes nothing away from those that did not.
                Some(_) if check.skipped().is_some() => {}
                Some((_, runs)) if runs.iter().all(|run| run.skipped().is_some()) => {
                    *runs = vec![check];
                }
                Some((_, runs)) => runs.push(check),
            }
        }
        for (_, runs) in &mut checks {
            runs.drain(..runs.len().saturating_sub(REPEATS));
        }
        let judged_by = Some(report.judged_by.instance_type.as_str());
        let kind = newest.identity.instance_type.as_deref();
        Machine {
            name: &newest.name,
            identity: &newest.identity,
            newest: &report.run.id,
            kind: kind.or(judged_by.filter(|name| *name != GENERIC)),
            checks,
        }
    };
    by_machine.into_values().map(machine).collect()
}

/// Things that are compared with one another.
struct Pool<'a> {
    /// Whether they are on several nodes.
    across: bool,
    metric: &'a Metric,
    better: Better,
    members: BTreeMap<(usize, &'a Subject), Member<'a>>,
}

/// One thing, and what was measured of it in each run.
struct Member<'a> {
    check: &'a str,
    runs: Vec<Seen<'a>>,
}

/// What one run measured.
struct Seen<'a> {
    run: usize,
    measurement: &'a Measurement,
    value: f64,
}

/// A pool of one machine, or of all machines of a type.
type Place<'a> = (Option<usize>, Option<&'a str>, Alike);

fn pools<'a>(
    machines: &[Machine<'a>],
    metrics: &dyn Fn(&str) -> Vec<&'static Metric>,
) -> BTreeMap<Place<'a>, Pool<'a>> {
    let mut pools: BTreeMap<Place<'a>, Pool<'a>> = BTreeMap::new();
    for (place, machine) in machines.iter().enumerate() {
        for (name, runs) in &machine.checks {
            let metrics = metrics(name);
            let looked = |(_, run): &(usize, &&CheckReport)| run.skipped().is_none();
            for (number, run) in runs.iter().enumerate().filter(looked) {
                for one in comparable(&run.record, &metrics) {
                    let alone = (Some(place), machine.kind, one.alike.clone());
                    let across = (None, machine.kind, one.alike.clone());
                    // Machines of an unknown type need not be alike.
                    let across = machine.kind.map(|_| across);
                    for key in [Some(alone), across].into_iter().flatten() {
                        let pool = pools.entry(key).or_insert_with_key(|key| Pool {
                            across: key.0.is_none(),
                            metric: one.metric,
                            better: one.better,
                            members: BTreeMap::new(),
                        });
                        let subject = &one.measurement.subject;
                        let member = pool.members.entry((place, subject)).or_insert(Member {
                            check: name,
                            runs: Vec::new(),
                        });
                        let seen = Seen {
                            run: number,
                            measurement: one.measurement,
                            value: one.value,
                        };
                        // What one run measured twice is one look, and the better one, since noise only makes worse.
                        match member.runs.last_mut().filter(|last| last.run == number) {
                            Some(last) if one.better.worse_by(last.value, one.value) > 0.0 => {
                                *last = seen
                            }
                            Some(_) => {}
                            None => member.runs.push(seen),
                        }
                    }
                }
            }
        }
    }
    // Eight devices of a node say less than the hundreds of the fleet, and a spread of so few is often too small; they are
    // compared with one another where there is no fleet.
    pools.retain(|_, pool| {
        !pool.across || (pool.nodes().len() > 1 && pool.members.len() >= PEERS_MIN)
    });
    let across: BTreeSet<(Option<&str>, Alike)> = pools
        .keys()
        .filter(|(machine, ..)| machine.is_none())
        .map(|(_, kind, alike)| (*kind, alike.clone()))
        .collect();
    pools.retain(|(machine, kind, alike), _| {
        machine.is_none() || !across.contains(&(*kind, alike.clone()))
    });
    pools
}

/// A thing that is not like its peers.
struct Outlier<'a> {
    machine: usize,
    check: &'a str,
    kind: Option<&'a str>,
    alike: Alike,
    finding: Finding,
}

impl<'a> Pool<'a> {
    fn nodes(&self) -> BTreeSet<usize> {
        self.members.keys().map(|(machine, _)| *machine).collect()
    }

    /// The peers, each with the median of its runs.
    fn peers(&self) -> Option<Peers> {
        let median = |member: &Member<'_>| {
            let values: Vec<f64> = member.runs.iter().map(|seen| seen.value).collect();
            Some(Centre::of(&values)?.median)
        };
        let values: Vec<f64> = self.members.values().filter_map(median).collect();
        Peers::new(&values, self.better)
    }

    fn outliers(&self, peers: &Peers, alike: &Alike, kind: Option<&'a str>) -> Vec<Outlier<'a>> {
        let whose = if self.across {
            format!("of its kind on {} nodes", self.nodes().len())
        } else {
            "of its kind on this node".to_owned()
        };
        let mut outliers = Vec::new();
        for ((machine, _), member) in &self.members {
            let mut out = member
                .runs
                .iter()
                .filter(|seen| peers.stands_out(seen.value));
            let times = out.clone().count();
            let Some(Seen {
                measurement, value, ..
            }) = out.next_back()
            else {
                continue;
            };
            let status = if times >= REPEATED {
                Status::Fail
            } else {
                Status::Warn
            };
            let bound = peers.named(&whose, self.metric.unit);
            let margin = Some(peers.margin(*value));
            let mut finding = finding(measurement, self.metric, status, bound, margin, None);
            let runs = match member.runs.len() {
                1 => "in its only run".to_owned(),
                runs => format!("in {times} of its last {runs} runs"),
            };
            finding.message.push_str(&format!(", {runs}"));
            outliers.push(Outlier {
                machine: *machine,
                check: member.check,
                kind,
                alike: alike.clone(),
                finding,
            });
        }
        outliers
    }
}

/// Which nodes, of the type and by their places, have something in common.
type Nodes<K> = BTreeMap<K, BTreeSet<usize>>;

/// What too many of those who measured it have in common, with how many they are and of how many.
fn widespread<K: Ord + Clone>(
    concerned: &Nodes<K>,
    measured: &Nodes<K>,
) -> BTreeMap<K, (usize, usize)> {
    let counted = concerned.iter().map(|(key, nodes)| {
        let of = measured.get(key).map_or(0, BTreeSet::len);
        (key.clone(), (nodes.len(), of))
    });
    let too_many = |(concerned, of): (usize, usize)| of >= PEERS_MIN && concerned * WIDESPREAD > of;
    counted.filter(|(_, counts)| too_many(*counts)).collect()
}

/// What a table failed or passed on a machine: its type, the metric and the conditions.
type Judged<'a> = (Option<&'a str>, &'a str, &'a At);

fn judged_as<'a>(machine: &Machine<'a>, finding: &'a Finding) -> Judged<'a> {
    (machine.kind, &finding.metric, &finding.at)
}

/// The machines that broke each bound of a table, and those that were held against one at all.
fn by_table<'a>(machines: &[Machine<'a>]) -> (Nodes<Judged<'a>>, Nodes<Judged<'a>>) {
    let (mut failed, mut judged) = (Nodes::new(), Nodes::new());
    for (place, machine) in machines.iter().enumerate() {
        let newest = machine.checks.iter().filter_map(|(_, runs)| runs.last());
        for finding in newest
            .flat_map(|check| &check.findings)
            .filter(|finding| finding.bound.is_some())
        {
            let key = judged_as(machine, finding);
            judged
                .entry(key)
                .or_insert_with(BTreeSet::new)
                .insert(place);
            if finding.status == Status::Fail {
                failed
                    .entry(key)
                    .or_insert_with(BTreeSet::new)
                    .insert(place);
            }
        }
    }
    (failed, judged)
}
