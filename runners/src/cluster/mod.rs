//! `dhc run --level cluster`: roll call, waves of groups, and what they say of each node.
//!
//! Every group is one process below this one, supervised like any check. What to measure next is decided by
//! [`crate::localise`]; what a group turned out to be by its record, the table and the other groups.

mod gather;
mod outcome;
pub mod slurm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dhc_checks::catalog::{cluster_node, roll_call};
use dhc_checks::check::{Check, ClusterCheck, Task};
use dhc_checks::group::{self, Launch};
use dhc_checks::host::Host;
use dhc_thresholds::{
    CheckReport, ClusterReport, Device, Ending, Gap, GroupReport, Identity, Kind, NodeReport,
    Record, SearchReport, Subject, WaveReport,
};
use outcome::{Measured, Peers};

pub use gather::{GatherError, Nodes, gather};

use crate::journal::Journal;
use crate::localise::{
    Conclusion, Finding, Group, NodeFinding, Outcome, Purpose, Search, Settings, Step, Verdict,
};
use crate::run::Watcher;
use crate::supervise;
use crate::tables::{self, Chosen};

/// How often nodes that did not answer are asked, before they count as absent.
const ROLL_CALLS: usize = 2;

/// How often a group is launched before it counts as one that cannot be measured.
const ATTEMPTS: usize = 3;

/// The nodes, and how ranks are started on them.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The nodes that can be used.
    pub nodes: Vec<String>,
    /// Those that the scheduler itself calls down, and in which words.
    pub down: Vec<(String, String)>,
    /// How ranks are started.
    pub launch: Launch,
    /// The worker program, on every node.
    pub worker: PathBuf,
}

/// What a run of the cluster level needs to know.
pub struct Orders<'a> {
    /// The program that `measure` is called on: dhc itself.
    pub program: PathBuf,
    /// The machine that dhc runs on, and starts launchers from.
    pub host: Host,
    /// The nodes.
    pub cluster: &'a Cluster,
    /// By what is judged.
    pub chosen: &'a Chosen,
    /// The collectives to measure, in this order.
    pub checks: Vec<&'static dyn ClusterCheck>,
    /// The user's options: check, option, value.
    pub options: BTreeMap<String, BTreeMap<String, String>>,
    /// The deadline of each group, if not the check's own.
    pub deadline: Option<Duration>,
    /// The deadline of the whole run.
    pub run_deadline: Option<Duration>,
    /// How the search goes about it.
    pub settings: Settings,
    /// Set when the run is to stop.
    pub stop: &'static AtomicBool,
}

/// What the cluster level came to.
#[derive(Debug)]
pub struct Outcomes {
    /// A report for each node.
    pub nodes: Vec<NodeReport>,
    /// The nodes together.
    pub cluster: ClusterReport,
    /// Why the journal could not be kept, if it could not.
    pub journal_broken: Option<std::io::Error>,
}

/// Runs the cluster level. Each finished group goes to `journal` at once.
pub fn run(orders: &Orders<'_>, journal: &mut Journal, watcher: &dyn Watcher) -> Outcomes {
    let level = Level {
        orders,
        begun: Instant::now(),
        journal: Mutex::new((journal, None)),
        watcher,
    };
    let roll_calls = level.roll_calls();
    let answered: Vec<String> = orders
        .cluster
        .nodes
        .iter()
        .filter(|node| has_answered(&roll_calls, node))
        .cloned()
        .collect();
    let mut checks = Vec::new();
    let mut searches = Vec::new();
    let mut findings: Vec<(&'static str, Finding)> = Vec::new();
    if answered.is_empty() {
        checks.extend(roll_calls.last().map(|record| level.judged(record.clone())));
    }
    let local = orders.cluster.launch == Launch::Local;
    for check in orders.checks.iter().filter(|_| !answered.is_empty()) {
        let (finding, report, whole) = level.search(*check, &answered, local);
        checks.extend(whole.map(|record| level.judged(record)));
        searches.push(report);
        findings.push((check.spec().name, finding));
    }
    let names = orders.cluster.nodes.iter();
    let mut nodes: Vec<NodeReport> = names
        .map(|name| {
            let place = answered.iter().position(|known| known == name);
            let found = place.map(|place| {
                findings
                    .iter()
                    .map(move |(check, finding)| (*check, finding.nodes[place]))
            });
            level.node(
                name,
                &roll_calls,
                found.into_iter().flatten().collect(),
                local,
            )
        })
        .collect();
    nodes.extend(
        orders
            .cluster
            .down
            .iter()
            .map(|(name, state)| level.down(name, state)),
    );
    let cluster = ClusterReport {
        launcher: orders.cluster.launch.name().to_owned(),
        job: match orders.cluster.launch {
            Launch::Srun { job } => Some(job),
            Launch::Mpirun | Launch::Local => None,
        },
        checks,
        searches,
    };
    let journal = level.journal.into_inner();
    Outcomes {
        nodes,
        cluster,
        journal_broken: journal.expect("no holder of this lock panics").1,
    }
}

/// The run under way.
struct Level<'a> {
    orders: &'a Orders<'a>,
    begun: Instant,
    journal: Mutex<(&'a mut Journal, Option<std::io::Error>)>,
    watcher: &'a dyn Watcher,
}

impl Level<'_> {
    /// Asks every node, and once more those that did not answer.
    fn roll_calls(&self) -> Vec<Record> {
        let Some(check) = Check::cluster(
            dhc_checks::catalog::find(roll_call::SPEC.name).expect("the catalog has the roll call"),
        ) else {
            return Vec::new();
        };
        let mut records: Vec<Record> = Vec::new();
        for _ in 0..ROLL_CALLS {
            let missing: Vec<String> = self
                .orders
                .cluster
                .nodes
                .iter()
                .filter(|node| !has_answered(&records, node))
                .cloned()
                .collect();
            if missing.is_empty() || self.is_over() {
                break;
            }
            let groups = chunks(missing, self.orders.settings.groups_max);
            let what = |nodes: &[String]| format!("roll call of {}", nodes.join(", "));
            records.extend(side_by_side(groups, |nodes| {
                let what = what(&nodes);
                self.measure(check, nodes, false, &what)
            }));
        }
        records
    }

    /// Looks for the nodes that one collective accuses. Also returns the record over everybody that nothing is held
    /// against.
    fn search(
        &self,
        check: &'static dyn ClusterCheck,
        names: &[String],
        local: bool,
    ) -> (Finding, SearchReport, Option<Record>) {
        let mut search = Search::new(names.len(), self.orders.settings.clone());
        let mut peers = Peers::default();
        let mut waves: Vec<WaveReport> = Vec::new();
        let mut whole = None;
        let mut step = if local && names.len() == 1 {
            // One machine has nobody to be compared with, and still can be measured.
            Step::Wave(vec![Group {
                nodes: vec![0],
                purpose: Purpose::Whole,
            }])
        } else {
            search.step()
        };
        while let Step::Wave(groups) = step {
            if self.is_over() {
                break;
            }
            let begun = Instant::now();
            let wave = self.wave(check, &groups, names, waves.len());
            let judged = peers.judge(check, &self.orders.chosen.table, &wave, names);
            let outcomes: Vec<Outcome> =
                judged.iter().map(|judged| judged.outcome.clone()).collect();
            waves.push(WaveReport {
                duration_ms: millis(begun.elapsed()),
                groups: wave
                    .iter()
                    .zip(&judged)
                    .map(|((group, _), judged)| group_report(group, judged, names))
                    .collect(),
            });
            let everybody = wave
                .into_iter()
                .find(|(group, _)| matches!(group.purpose, Purpose::Whole | Purpose::Closing));
            whole = everybody.map(|(_, record)| record).or(whole);
            if local && names.len() == 1 {
                break;
            }
            search.tell(&outcomes);
            step = search.step();
        }
        let finding = search.finding();
        let report = SearchReport {
            check: check.spec().name.to_owned(),
            conclusion: finding.conclusion.word().to_owned(),
            sentence: sentence(&finding, &waves, names),
            paths: finding
                .paths
                .iter()
                .map(|(one, other)| (names[*one].clone(), names[*other].clone()))
                .collect(),
            waves,
        };
        (finding, report, whole)
    }

    /// Measures the groups of one wave side by side.
    fn wave(
        &self,
        check: &'static dyn ClusterCheck,
        groups: &[Group],
        names: &[String],
        number: usize,
    ) -> Vec<(Group, Record)> {
        let measure = |group: &Group| {
            let nodes: Vec<String> = group
                .nodes
                .iter()
                .map(|node| names[*node].clone())
                .collect();
            let what = format!(
                "{} wave {number}, {} of {} groups over {} nodes",
                check.spec().name,
                group.purpose.word(),
                groups.len(),
                nodes.len()
            );
            let quick = !matches!(group.purpose, Purpose::Whole) && number > 0;
            (
                group.clone(),
                self.measure_again(check, &nodes, quick, &what),
            )
        };
        side_by_side(groups.to_vec(), |group| measure(&group))
    }

    /// Measures a group, again where it could not be measured: a launch that fails says nothing of the nodes. If the same
    /// node fails it every time, the last record names it.
    fn measure_again(
        &self,
        check: &'static dyn ClusterCheck,
        nodes: &[String],
        quick: bool,
        what: &str,
    ) -> Record {
        let mut record = self.measure(check, nodes.to_vec(), quick, what);
        for _ in 1..ATTEMPTS {
            if !outcome::is_unknown(check, &record) || self.is_over() {
                break;
            }
            let before = record;
            record = self.measure(check, nodes.to_vec(), quick, what);
            record.notes.push(format!(
                "measured again, since the launch before came to nothing: {}",
                outcome::error(&before).unwrap_or_default()
            ));
        }
        record
    }

    fn measure(
        &self,
        check: &'static dyn ClusterCheck,
        nodes: Vec<String>,
        quick: bool,
        what: &str,
    ) -> Record {
        let orders = self.orders;
        let name = check.spec().name;
        let options = orders.options.get(name).cloned().unwrap_or_default();
        let budget = check.budget(&options, quick);
        let left = orders
            .run_deadline
            .map(|limit| limit.saturating_sub(self.begun.elapsed()));
        let deadline = orders.deadline.unwrap_or(budget.deadline);
        let deadline = left.map_or(deadline, |left| deadline.min(left));
        let task = Task {
            host: orders.host.clone(),
            instance_type: (!orders.chosen.table.is_generic())
                .then(|| orders.chosen.table.instance_type.clone()),
            options,
            state: None,
            deadline,
            confined: true,
            group: Some(group::Group {
                nodes,
                launch: orders.cluster.launch.clone(),
                worker: orders.cluster.worker.clone(),
                quick,
            }),
        };
        self.watcher.begins(what, budget.expected);
        let progress = |_: &str| {};
        let record = supervise::measure(&orders.program, name, &task, orders.stop, &progress);
        self.watcher.has_ended(what);
        let (journal, broken) = &mut *self.journal.lock().expect("no holder of this lock panics");
        if broken.is_none() {
            *broken = journal.add(&record).err();
        }
        record
    }

    fn is_over(&self) -> bool {
        let late = self
            .orders
            .run_deadline
            .is_some_and(|limit| self.begun.elapsed() >= limit);
        late || self.orders.stop.load(Ordering::Relaxed)
    }

    fn judged(&self, record: Record) -> CheckReport {
        let metrics = tables::metrics_of(&record.check);
        CheckReport::new(record, &metrics, &self.orders.chosen.table)
    }

    /// What is known of one node.
    fn node(
        &self,
        name: &str,
        roll_calls: &[Record],
        found: Vec<(&'static str, NodeFinding)>,
        local: bool,
    ) -> NodeReport {
        let mut checks = vec![self.judged(answer(name, roll_calls, self.orders))];
        let answered = has_answered(roll_calls, name);
        if answered && !local {
            checks.push(self.judged(part_in_groups(name, &found, self.is_over())));
        }
        let boot = |record: &Record| {
            let device = record
                .devices
                .iter()
                .find(|device| device.subject.name == name)?;
            device.identity.get("boot_id").cloned()
        };
        let identity = Identity {
            boot_id: roll_calls.iter().rev().find_map(boot),
            ..Identity::default()
        };
        NodeReport::new(name.to_owned(), identity, checks)
    }

    /// What is known of a node that the scheduler has given up.
    fn down(&self, name: &str, state: &str) -> NodeReport {
        let mut record = Record::new(roll_call::SPEC.name, Ending::Finished);
        let absent = roll_call::ANSWER.of(Subject::new(Kind::Node, name), "absent");
        record
            .measurements
            .push(absent.detail(format!("Slurm calls it `{state}`")));
        NodeReport::new(
            name.to_owned(),
            Identity::default(),
            vec![self.judged(record)],
        )
    }
}

fn has_answered(roll_calls: &[Record], node: &str) -> bool {
    roll_calls
        .iter()
        .flat_map(|record| &record.measurements)
        .any(|measured| {
            measured.subject.name == node
                && measured.metric == roll_call::ANSWER.name
                && measured.value == "answered".into()
        })
}

/// The last roll call as far as it is about this node.
fn answer(name: &str, roll_calls: &[Record], orders: &Orders<'_>) -> Record {
    let about = |subject: &Subject| subject.name == name;
    let of_node = |record: &Record| Record {
        check: record.check.clone(),
        ending: record.ending.clone(),
        duration_ms: record.duration_ms,
        measurements: record
            .measurements
            .iter()
            .filter(|it| about(&it.subject))
            .cloned()
            .collect(),
        devices: record
            .devices
            .iter()
            .filter(|it: &&Device| about(&it.subject))
            .cloned()
            .collect(),
        gaps: record
            .gaps
            .iter()
            .filter(|it: &&Gap| about(&it.subject))
            .cloned()
            .collect(),
        notes: Vec::new(),
        evidence: Vec::new(),
    };
    let known = |record: &Record| !record.measurements.is_empty() || !record.gaps.is_empty();
    let last = roll_calls.iter().rev().map(of_node).find(known);
    let others = roll_calls
        .iter()
        .any(|record| !record.measurements.is_empty());
    let asked = orders.cluster.nodes.iter().any(|node| node == name);
    if last.is_none() && others && asked && !orders.stop.load(Ordering::Relaxed) {
        // The launcher works, since others answered: it is this node that does not.
        let mut record = Record::new(roll_call::SPEC.name, Ending::Finished);
        let absent = roll_call::ANSWER.of(Subject::new(Kind::Node, name), "absent");
        record
            .measurements
            .push(absent.detail("it did not answer twice, and others did"));
        return record;
    }
    last.unwrap_or_else(|| {
        let stopped = orders.stop.load(Ordering::Relaxed);
        let ending = match roll_calls.last() {
            Some(record) if !stopped && record.ending != Ending::Finished => record.ending.clone(),
            _ => Ending::Interrupted,
        };
        Record::new(roll_call::SPEC.name, ending)
    })
}

/// What the groups that a node was in say of it: the gravest verdict of any collective.
fn part_in_groups(name: &str, found: &[(&'static str, NodeFinding)], over: bool) -> Record {
    let spec = &cluster_node::SPEC;
    let Some((check, gravest)) = found.iter().max_by_key(|(_, finding)| finding.verdict) else {
        return Record::new(spec.name, Ending::Interrupted);
    };
    let mut record = Record::new(spec.name, Ending::Finished);
    let subject = || Subject::new(Kind::Node, name);
    let words = format!(
        "{} of {} groups with it failed ({check}); faulty with a probability of {:.1} %",
        gravest.failed,
        gravest.groups,
        gravest.probability * 100.0
    );
    let state = |word: &'static str, fault: &'static str| {
        cluster_node::STATE
            .of(subject(), word)
            .fault(fault)
            .detail(words.clone())
    };
    match gravest.verdict {
        Verdict::Healthy => record
            .measurements
            .push(cluster_node::STATE.of(subject(), "healthy")),
        Verdict::Interrupted => record
            .measurements
            .push(state("interrupted", "cluster.node.interrupted")),
        Verdict::Suspect => record
            .measurements
            .push(state("suspect", "cluster.node.suspect")),
        Verdict::Unresponsive => record
            .measurements
            .push(state("unresponsive", "cluster.node.unresponsive")),
        Verdict::Corrupting => record
            .measurements
            .push(state("corrupting", "cluster.node.corrupting")),
        Verdict::Faulty => record.measurements.push(state("slow", "cluster.node.slow")),
        Verdict::Undecided => record.gaps.push(Gap {
            metric: cluster_node::STATE.name.into(),
            subject: subject(),
            why: if over {
                format!("the run ended before enough was known: {words}")
            } else {
                format!("the groups do not tell this node from the others: {words}")
            },
        }),
    }
    let percent = cluster_node::PROBABILITY.of(subject(), gravest.probability * 100.0);
    record.measurements.push(percent);
    record
        .measurements
        .push(cluster_node::GROUPS.of(subject(), u64::from(gravest.groups)));
    record
        .measurements
        .push(cluster_node::FAILED_GROUPS.of(subject(), u64::from(gravest.failed)));
    record
}

fn group_report(group: &Group, judged: &Measured, names: &[String]) -> GroupReport {
    let (outcome, named) = match &judged.outcome {
        Outcome::Passed => ("passed", Vec::new()),
        Outcome::Failed => ("failed", Vec::new()),
        Outcome::Corrupted => ("corrupted", Vec::new()),
        Outcome::Unknown => ("unknown", Vec::new()),
        Outcome::Named(nodes) => (
            "named",
            nodes.iter().map(|node| names[*node].clone()).collect(),
        ),
    };
    let (bound, bound_from) = judged.bound.clone().unzip();
    GroupReport {
        nodes: group
            .nodes
            .iter()
            .map(|node| names[*node].clone())
            .collect(),
        purpose: group.purpose.word().to_owned(),
        outcome: outcome.to_owned(),
        named,
        plateau_gb_per_s: judged.plateau,
        bound_gb_per_s: bound,
        bound_from,
        error: judged.error.clone(),
    }
}

/// The conclusion in one sentence, with the figures it rests on.
fn sentence(finding: &Finding, waves: &[WaveReport], names: &[String]) -> String {
    let groups = || waves.iter().flat_map(|wave| &wave.groups);
    let figure = |group: &GroupReport| {
        group.plateau_gb_per_s.map_or_else(
            || group.outcome.clone(),
            |plateau| format!("{plateau:.3} GB/s"),
        )
    };
    let whole = groups()
        .find(|group| group.purpose == "whole")
        .map_or_else(|| "not measured".to_owned(), figure);
    let against = [Verdict::Faulty, Verdict::Corrupting, Verdict::Unresponsive];
    let accused: Vec<&str> = (0..finding.nodes.len())
        .filter(|node| against.contains(&finding.nodes[*node].verdict))
        .map(|node| names[node].as_str())
        .collect();
    let without = groups()
        .rfind(|group| group.purpose == "closing")
        .map(figure);
    match finding.conclusion {
        Conclusion::AllGood => format!(
            "all {} nodes together: {whole}; nothing is held against any of them",
            names.len()
        ),
        Conclusion::Nodes => match without {
            Some(without) => format!(
                "all {} nodes together: {whole}; without {}: {without}",
                names.len(),
                accused.join(", ")
            ),
            None => format!(
                "all {} nodes together: {whole}; held against {}",
                names.len(),
                accused.join(", ")
            ),
        },
        Conclusion::Paths => format!(
            "all {} nodes together: {whole}; every node is good with others, and pairs of them are not",
            names.len()
        ),
        Conclusion::AllAlike => format!(
            "all {} nodes together: {whole}; no part of them is better, so no node is accused",
            names.len()
        ),
        Conclusion::NotLocated => format!(
            "all {} nodes together: {whole}; none of the nodes explains it, and no pair that was tried",
            names.len()
        ),
        Conclusion::NotKnown => format!(
            "all {} nodes together: {whole}; too little could be measured to say more",
            names.len()
        ),
    }
}

/// Parts nodes into no more than `groups_max` groups: one node each where that is enough, so that one that is gone holds
/// up nobody else's answer.
fn chunks(nodes: Vec<String>, groups_max: usize) -> Vec<Vec<String>> {
    let size = nodes.len().div_ceil(groups_max.max(1)).max(1);
    nodes.chunks(size).map(<[String]>::to_vec).collect()
}

/// Does the work on all items at once and returns what came of it, in their order. The threads only wait for processes.
fn side_by_side<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("waiting for a process does not panic"))
            .collect()
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
