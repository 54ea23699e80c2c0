//! `dhc run --level cluster`: roll call, waves of groups, and what they say of each node.
//!
//! Every group is one process below this one, supervised like any check. What to measure next is decided by
//! [`crate::localise`]; what a group turned out to be by its record, the table and the other groups.

mod gather;
mod outcome;
pub mod reservation;
pub mod slurm;
pub mod verdicts;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dhc_checks::catalog::roll_call;
use dhc_checks::check::{Check, ClusterCheck, Task};
use dhc_checks::group::{self, Launch};
use dhc_checks::host::Host;
use dhc_thresholds::{CheckReport, ClusterReport, NodeReport, Record, SearchReport, WaveReport};
use outcome::Peers;
use verdicts::{Answers, Known, group_report, sentence};

pub use gather::{GatherError, Nodes, gather};

use crate::journal::Journal;
use crate::localise::{Finding, Group, Outcome, Purpose, Search, Settings, Step};
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
    let (roll_calls, answers) = level.roll_calls();
    let up = orders.cluster.nodes.iter();
    let answered: Vec<String> = up.filter(|node| answers.has(node)).cloned().collect();
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
    let known = Known {
        cluster: orders.cluster,
        answers: &answers,
        answered: &answered,
        findings: &findings,
        local,
        over: level.is_over(),
    };
    let nodes = known.nodes(&orders.chosen.table);
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
    fn roll_calls(&self) -> (Vec<Record>, Answers) {
        let Some(check) = Check::cluster(
            dhc_checks::catalog::find(roll_call::SPEC.name).expect("the catalog has the roll call"),
        ) else {
            return (Vec::new(), Answers::default());
        };
        let mut records: Vec<Record> = Vec::new();
        let mut answers = Answers::default();
        for _ in 0..ROLL_CALLS {
            let missing: Vec<String> = self
                .orders
                .cluster
                .nodes
                .iter()
                .filter(|node| !answers.has(node))
                .cloned()
                .collect();
            if missing.is_empty() || self.is_over() {
                break;
            }
            let groups = chunks(missing, self.orders.settings.groups_max);
            let what = |nodes: &[String]| format!("roll call of {}", nodes.join(", "));
            let called = side_by_side(groups, |nodes| {
                let what = what(&nodes);
                self.measure(check, nodes, false, &what)
            });
            called.iter().for_each(|record| answers.add(record));
            records.extend(called);
        }
        (records, answers)
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
