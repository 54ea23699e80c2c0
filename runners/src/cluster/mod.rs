//! `dhc run --level cluster`: roll call, waves of groups, and what they say of each node. With `--level all` every node runs
//! its instance level in between, and those that fail it enter no group.
//!
//! Every group is one process below this one, supervised like any check. What to measure next is decided by
//! [`crate::localise`]; what a group turned out to be by its record, the table and the other groups.

mod gather;
mod instance;
mod located;
mod outcome;
pub mod reservation;
pub mod slurm;
pub mod topology;
pub mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dhc_checks::catalog::{CHECKS, roll_call};
use dhc_checks::check::{Check, ClusterCheck, Task, chain};
use dhc_checks::group::{self, Card, Launch};
use dhc_checks::host::Host;
use dhc_thresholds::{
    CheckReport, ClusterReport, Ending, JudgedBy, NodeReport, Record, SearchReport, WaveReport,
};
use outcome::{Peers, Tried};
use slurm::{Away, Job, SlurmError, Standing};
use topology::Topology;
use verdicts::{Answers, Known, group_report, sentence};

pub use gather::{GatherError, Nodes, gather};
pub use instance::{InstanceOrders, NodeLevel};

use crate::journal::Journal;
use crate::localise::{
    Finding, Gone, Group, Layout, Outcome, Purpose, Rails, Search, Settings, Step, Verdict,
};
use crate::plan::{self, Selection};
use crate::run::{NodeNow, Watcher};
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
    /// The network cards of every node, in the order of the rails; none if they were not named.
    pub cards: Vec<Card>,
    /// The leaf switches, if they are known.
    pub topology: Option<Topology>,
    /// Where the topology comes from, or why there is none.
    pub topology_from: String,
}

impl Cluster {
    /// The names of the network cards, in the order of the rails.
    fn card_names(&self) -> Vec<String> {
        self.cards
            .iter()
            .map(|card| card.name().to_owned())
            .collect()
    }

    /// What a search over these nodes by this check may make use of.
    fn layout(&self, check: &dyn ClusterCheck, nodes: &[String]) -> Layout {
        Layout {
            leaves: self
                .topology
                .as_ref()
                .and_then(|topology| topology.of(nodes)),
            rails: if check.can_choose_cards() {
                self.cards.len()
            } else {
                0
            },
        }
    }
}

/// What a run of the cluster level needs to know.
pub struct Orders<'a> {
    /// The program that `measure` is called on: dhc itself.
    pub program: PathBuf,
    /// The machine that dhc runs on, and starts launchers from.
    pub host: Host,
    /// The nodes.
    pub cluster: &'a Cluster,
    /// By what is judged, unless nodes of one instance type bring their own table.
    pub chosen: &'a Chosen,
    /// What each node does before, alone; nothing if left out.
    pub instance: Option<InstanceOrders>,
    /// Which collectives to measure; none if left out.
    pub selection: Option<Selection>,
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
    /// By what the nodes together were judged.
    pub judged_by: JudgedBy,
    /// Why the journal could not be kept, if it could not.
    pub journal_broken: Option<std::io::Error>,
}

/// Runs the cluster level. Each finished group goes to `journal` at once.
pub fn run(orders: &Orders<'_>, journal: &mut Journal, watcher: &dyn Watcher) -> Outcomes {
    let mut level = Level {
        orders,
        chosen: orders.chosen.clone(),
        begun: Instant::now(),
        own_names: BTreeMap::new(),
        away: BTreeMap::new(),
        ended: None,
        journal: Mutex::new((journal, None)),
        watcher,
    };
    watcher.nodes(&orders.cluster.nodes);
    let (roll_calls, answers) = level.roll_calls();
    level.own_names = answers.own_names();
    let up = orders.cluster.nodes.iter();
    let (answered, absent): (Vec<String>, Vec<String>) =
        up.cloned().partition(|node| answers.has(node));
    watcher.now(&mut absent.iter().map(String::as_str), NodeNow::Out);
    let outcome = format!("{} answered, {} did not", answered.len(), absent.len());
    watcher.stage("roll call", &outcome);
    let instance = match &orders.instance {
        Some(instance) => level.instance(instance, &answered),
        None => BTreeMap::new(),
    };
    let answered = level.who_enters(answered, &instance);
    let mut checks = Vec::new();
    let mut searches = Vec::new();
    let mut findings: Vec<(&'static str, Finding)> = Vec::new();
    if !orders.cluster.nodes.iter().any(|node| answers.has(node)) {
        checks.extend(roll_calls.last().map(|record| level.judged(record.clone())));
    }
    let local = orders.cluster.launch == Launch::Local;
    for check in level.collectives() {
        if answered.is_empty() {
            break;
        }
        let (finding, report, whole) = level.search(check, &answered, local);
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
        away: &level.away,
        ended: level.ended.as_deref(),
        over: level.is_over(),
    };
    let nodes = known.nodes(instance, &level.chosen);
    let cluster = ClusterReport {
        launcher: orders.cluster.launch.name().to_owned(),
        job: match orders.cluster.launch {
            Launch::Srun { job } => Some(job),
            Launch::Mpirun | Launch::Local => None,
        },
        rails: orders.cluster.card_names(),
        topology: orders.cluster.topology_from.clone(),
        checks,
        searches,
    };
    let journal = level.journal.into_inner();
    Outcomes {
        nodes,
        cluster,
        judged_by: level.chosen.judged_by,
        journal_broken: journal.expect("no holder of this lock panics").1,
    }
}

/// What one launch is to measure.
struct Wanted {
    nodes: Vec<String>,
    quick: bool,
    /// The plateau in GB/s that its table asks of it.
    asked: Option<f64>,
    cards: Vec<Card>,
}

/// The run under way.
struct Level<'a> {
    orders: &'a Orders<'a>,
    chosen: Chosen,
    begun: Instant,
    /// What the hosts of nodes call themselves, where that is another name.
    own_names: BTreeMap<String, String>,
    /// The nodes that no step can be started on any more, by Slurm's word.
    away: BTreeMap<String, Away>,
    /// In which words the allocation has ended, if it has.
    ended: Option<String>,
    journal: Mutex<(&'a mut Journal, Option<std::io::Error>)>,
    watcher: &'a dyn Watcher,
}

impl Level<'_> {
    /// Asks every node, and once more those that did not answer.
    fn roll_calls(&mut self) -> (Vec<Record>, Answers) {
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
            let what = |nodes: &[String]| match nodes {
                [one] => format!("roll call of {one}"),
                several => format!("roll call of {} nodes", several.len()),
            };
            let called = side_by_side(groups, |nodes| {
                let what = what(&nodes);
                let wanted = Wanted {
                    nodes,
                    quick: false,
                    asked: None,
                    cards: Vec::new(),
                };
                let record = self.measure(check, &wanted, &what);
                self.keep(&record);
                record
            });
            called.iter().for_each(|record| answers.add(record));
            records.extend(called);
        }
        let nodes = self.orders.cluster.nodes.iter();
        let silent: Vec<String> = nodes.filter(|node| !answers.has(node)).cloned().collect();
        if !silent.is_empty() && !self.is_over() {
            // No answer leaves the roll call as it is.
            self.heed(self.standing(&silent).unwrap_or_default());
        }
        if self.is_over() {
            answers.cut_short();
        }
        (records, answers)
    }

    /// The nodes that go on into collectives. Where nodes are of one instance type, and nobody said by what to judge, the
    /// type's own table holds for the collectives as well.
    fn who_enters(
        &mut self,
        answered: Vec<String>,
        instance: &BTreeMap<String, NodeLevel>,
    ) -> Vec<String> {
        let Some(orders) = &self.orders.instance else {
            return answered;
        };
        let mut tables = instance.values().filter_map(|level| level.chosen.as_ref());
        if let (None, Some(first)) = (&orders.chosen, tables.next())
            && tables.all(|other| other.judged_by == first.judged_by)
        {
            self.chosen = Chosen::clone(first);
        }
        let enters = |node: &String| {
            let level = instance.get(node);
            level.is_some_and(|level| level.keeps_out().is_none())
        };
        let all = answered.len();
        let entering: Vec<String> = answered.into_iter().filter(enters).collect();
        let outcome = format!(
            "{} go on, {} stay out",
            entering.len(),
            all - entering.len()
        );
        self.watcher.stage("instance level", &outcome);
        entering
    }

    /// The collectives to measure, in their order.
    fn collectives(&self) -> Vec<&'static dyn ClusterCheck> {
        let Some(selection) = &self.orders.selection else {
            return Vec::new();
        };
        plan::cluster_level(CHECKS, &self.chosen.table, selection)
            .expect("the words of the selection were looked at before the run began")
    }

    /// Looks for the nodes that one collective accuses. Also returns the record over everybody that nothing is held
    /// against.
    fn search(
        &mut self,
        check: &'static dyn ClusterCheck,
        names: &[String],
        local: bool,
    ) -> (Finding, SearchReport, Option<Record>) {
        let layout = self.orders.cluster.layout(check, names);
        let mut peers = Peers::over(layout.rails);
        let mut search = Search::new(names.len(), self.orders.settings.clone()).within(layout);
        for (place, gone) in self.gone(names) {
            search.lose(place, gone);
        }
        let mut waves: Vec<WaveReport> = Vec::new();
        let mut whole = None;
        let mut cut_short = false;
        let mut step = if local && names.len() == 1 {
            // One machine has nobody to be compared with, and still can be measured.
            Step::Wave(vec![Group {
                nodes: vec![0],
                purpose: Purpose::Whole,
                rails: Rails::All,
            }])
        } else {
            search.step()
        };
        while let Step::Wave(groups) = step {
            if self.is_over() {
                cut_short = true;
                break;
            }
            let begun = Instant::now();
            let members = groups.iter().flat_map(|group| &group.nodes);
            let mut members = members.map(|node| names[*node].as_str());
            self.watcher.now(&mut members, NodeNow::Measuring);
            let asked = |group: &Group| peers.asked(check, &self.chosen.table, group);
            let wave = self.wave(check, &groups, names, waves.len(), &asked);
            let judged = peers.judge(check, &self.chosen.table, &wave, names);
            let outcomes: Vec<Outcome> =
                judged.iter().map(|judged| judged.outcome.clone()).collect();
            let report = WaveReport {
                duration_ms: millis(begun.elapsed()),
                collective_ms: outcome::collective_ms(
                    check,
                    wave.iter().map(|tried| &tried.record),
                ),
                groups: wave
                    .iter()
                    .zip(&judged)
                    .map(|(tried, judged)| {
                        group_report(&tried.group, judged, names, &self.orders.cluster.cards)
                    })
                    .collect(),
            };
            self.show_wave(check, &report, waves.len());
            let mut everybody = None;
            for tried in wave {
                self.heed(tried.standing);
                if matches!(tried.group.purpose, Purpose::Whole | Purpose::Closing) {
                    everybody.get_or_insert(tried.record);
                }
            }
            whole = everybody.or(whole);
            if local && names.len() == 1 {
                waves.push(report);
                break;
            }
            search.tell(&outcomes);
            for (place, gone) in self.gone(names) {
                search.lose(place, gone);
            }
            self.show_nodes(&search, &report, names);
            waves.push(report);
            step = search.step();
        }
        let finding = search.finding();
        let report = SearchReport {
            check: check.spec().name.to_owned(),
            conclusion: finding.conclusion.word().to_owned(),
            sentence: match &self.ended {
                Some(ended) => format!("{}; {ended}", sentence(&finding, &waves, names)),
                None => sentence(&finding, &waves, names),
            },
            paths: finding
                .paths
                .iter()
                .map(|path| (names[path.nodes.0].clone(), names[path.nodes.1].clone()))
                .collect(),
            located: located::located(&finding, &waves, names, self.orders.cluster),
            waves,
            cut_short,
        };
        (finding, report, whole)
    }

    /// Shows what a wave came to.
    fn show_wave(&self, check: &'static dyn ClusterCheck, wave: &WaveReport, number: usize) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for group in &wave.groups {
            *counts.entry(&group.outcome).or_default() += 1;
        }
        let counts = counts.into_iter();
        let counts = counts.map(|(outcome, count)| format!("{count} {outcome}"));
        let counts: Vec<String> = counts.collect();
        let groups = match wave.groups.len() {
            1 => "1 group".to_owned(),
            groups => format!("{groups} groups"),
        };
        let what = format!("{} wave {number}", check.spec().name);
        self.watcher
            .stage(&what, &format!("{groups}: {}", counts.join(", ")));
    }

    /// Shows what is known of each node after a wave.
    fn show_nodes(&self, search: &Search, wave: &WaveReport, names: &[String]) {
        let failed = wave.groups.iter();
        let failed =
            failed.filter(|group| matches!(group.outcome.as_str(), "failed" | "corrupted"));
        let in_failed: BTreeSet<&String> = failed.flat_map(|group| &group.nodes).collect();
        for (name, finding) in names.iter().zip(search.finding().nodes) {
            let now = match finding.verdict {
                Verdict::Faulty
                | Verdict::Corrupting
                | Verdict::Breaking
                | Verdict::Hanging
                | Verdict::Unresponsive => NodeNow::Accused,
                Verdict::Suspect => NodeNow::Suspect,
                _ if in_failed.contains(name) => NodeNow::InFailed,
                _ if finding.groups > finding.failed => NodeNow::Passed,
                Verdict::Healthy | Verdict::Interrupted | Verdict::Undecided => NodeNow::Waiting,
            };
            self.watcher.now(&mut std::iter::once(name.as_str()), now);
        }
    }

    /// Measures the groups of one wave side by side.
    fn wave(
        &self,
        check: &'static dyn ClusterCheck,
        groups: &[Group],
        names: &[String],
        number: usize,
        asked: &(dyn Fn(&Group) -> Option<f64> + Sync),
    ) -> Vec<Tried> {
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
            let wanted = Wanted {
                nodes,
                quick,
                asked: asked(group),
                cards: match group.rails {
                    Rails::All => self.orders.cluster.cards.clone(),
                    Rails::Only(rail) => vec![self.orders.cluster.cards[rail].clone()],
                },
            };
            let (record, standing) = self.measure_again(check, &wanted, &what);
            let mut members = wanted.nodes.iter().map(String::as_str);
            self.watcher.now(&mut members, NodeNow::Waiting);
            Tried {
                group: group.clone(),
                record,
                standing,
            }
        };
        side_by_side(groups.to_vec(), |group| measure(&group))
    }

    /// Measures a group, again where it could not be measured: a launch that fails says nothing of the nodes, unless Slurm
    /// says why. If the same node fails it every time, the last record names it.
    fn measure_again(
        &self,
        check: &'static dyn ClusterCheck,
        wanted: &Wanted,
        what: &str,
    ) -> (Record, Standing) {
        let mut before: Option<String> = None;
        let mut left = ATTEMPTS;
        loop {
            let mut record = self.measure(check, wanted, what);
            left -= 1;
            if let Some(before) = before {
                let why = "measured again, since the launch before came to nothing";
                record.notes.insert(0, format!("{why}: {before}"));
            }
            let standing = self.standing_behind(&mut record, &wanted.nodes);
            self.keep(&record);
            let again = outcome::is_unknown(check, &record) && standing.words().next().is_none();
            if !again || left == 0 || self.is_over() {
                return (record, standing);
            }
            before = Some(outcome::error(&record).unwrap_or_default());
        }
    }

    /// How the nodes of a group stand that did not come to its end; the record tells of it as well.
    fn standing_behind(&self, record: &mut Record, nodes: &[String]) -> Standing {
        if !outcome::is_unfinished(record) || self.is_over() {
            return Standing::default();
        }
        match self.standing(nodes) {
            Ok(standing) => {
                for words in standing.words() {
                    outcome::add_to_error(record, &words);
                }
                standing
            }
            Err(error) => {
                let words = format!("how its nodes stand is not known: {}", chain(&error));
                outcome::add_to_error(record, &words);
                Standing::default()
            }
        }
    }

    /// How these nodes stand in Slurm; without Slurm there is nobody to ask.
    fn standing(&self, nodes: &[String]) -> Result<Standing, SlurmError> {
        match self.orders.cluster.launch {
            Launch::Srun { job } => slurm::standing(&self.orders.host, Job(job), nodes),
            Launch::Mpirun | Launch::Local => Ok(Standing::default()),
        }
    }

    /// Keeps in mind what can no longer be measured.
    fn heed(&mut self, standing: Standing) {
        let left = standing.away.into_iter().filter(|away| away.has_left);
        self.away.extend(left.map(|away| (away.node.clone(), away)));
        self.ended = self.ended.take().or(standing.ended);
    }

    /// The places of the nodes that can no longer be measured, and why.
    fn gone(&self, names: &[String]) -> Vec<(usize, Gone)> {
        let gone = |(place, name): (usize, &String)| {
            let away = self.away.get(name)?;
            Some((
                place,
                match away.is_down {
                    true => Gone::Down,
                    false => Gone::TakenAway,
                },
            ))
        };
        names.iter().enumerate().filter_map(gone).collect()
    }

    fn measure(&self, check: &'static dyn ClusterCheck, wanted: &Wanted, what: &str) -> Record {
        let orders = self.orders;
        let name = check.spec().name;
        let options = orders.options.get(name).cloned().unwrap_or_default();
        let budget = check.budget(&options, wanted.quick);
        let left = self.left();
        let deadline = orders.deadline.unwrap_or(budget.deadline);
        // Who answers late is not absent: --deadline is about collectives.
        let deadline = if name == roll_call::SPEC.name {
            deadline.max(budget.deadline)
        } else {
            deadline
        };
        let own_deadline = deadline;
        let deadline = left.map_or(deadline, |left| deadline.min(left));
        let task = Task {
            host: orders.host.clone(),
            instance_type: (!self.chosen.table.is_generic())
                .then(|| self.chosen.table.instance_type.clone()),
            due: self.chosen.table.all_due(),
            options,
            state: None,
            deadline,
            confined: true,
            group: Some(group::Group {
                nodes: wanted.nodes.clone(),
                own_names: self.own_names.clone(),
                launch: orders.cluster.launch.clone(),
                worker: orders.cluster.worker.clone(),
                quick: wanted.quick,
                asked_gb_per_s: wanted.asked,
                cards: if check.can_choose_cards() {
                    wanted.cards.clone()
                } else {
                    Vec::new()
                },
            }),
        };
        self.watcher.begins(what, budget.expected);
        let progress = |_: &str| {};
        let mut record = supervise::measure(&orders.program, name, &task, orders.stop, &progress);
        if let Ending::TimedOut { of_the_run, .. } = &mut record.ending {
            *of_the_run = deadline < own_deadline;
        }
        self.watcher.has_ended(what);
        record
    }

    /// Adds a record to the journal.
    fn keep(&self, record: &Record) {
        let (journal, broken) = &mut *self.journal.lock().expect("no holder of this lock panics");
        if broken.is_none() {
            *broken = journal.add(record).err();
        }
    }

    /// What is left of the time of the whole run, if that has a limit.
    fn left(&self) -> Option<Duration> {
        let limit = self.orders.run_deadline?;
        Some(limit.saturating_sub(self.begun.elapsed()))
    }

    fn is_over(&self) -> bool {
        let late = self
            .orders
            .run_deadline
            .is_some_and(|limit| self.begun.elapsed() >= limit);
        late || self.ended.is_some() || self.orders.stop.load(Ordering::Relaxed)
    }

    fn judged(&self, record: Record) -> CheckReport {
        let metrics = tables::metrics_of(&record.check);
        CheckReport::new(record, &metrics, &self.chosen.table)
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
