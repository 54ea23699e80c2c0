//! `dhc run` on one node: plan, measure under supervision, judge, keep.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dhc_checks::check::{Budget, Company, InstanceCheck, Task};
use dhc_checks::host::Host;
use dhc_thresholds::{CheckReport, Ending, NodeReport, Record, Report, Run};
use rayon::prelude::*;

use crate::journal::Journal;
use crate::machine::Machine;
use crate::plan::{self, LeftOut, Options, Planned, Selection};
use crate::supervise;
use crate::tables::{self, Chosen};

/// How many checks that welcome company run side by side: they wait for drivers far more than they compute.
const SIDE_BY_SIDE: usize = 8;

/// What a run needs to know.
pub struct Orders<'a> {
    /// The program that `measure` is called on: dhc itself.
    pub program: PathBuf,
    /// The machine as checks see it.
    pub host: Host,
    /// The node.
    pub machine: &'a Machine,
    /// By what it is judged.
    pub chosen: &'a Chosen,
    /// What runs and what does not.
    pub plan: Vec<Planned>,
    /// What the user set.
    pub options: Options,
    /// The deadline of each check, if not its own.
    pub deadline: Option<Duration>,
    /// The deadline of the whole run.
    pub run_deadline: Option<Duration>,
    /// Where checks keep readings from run to run.
    pub readings: Option<PathBuf>,
    /// Set when the run is to stop.
    pub stop: &'static AtomicBool,
}

/// Where a node of the cluster level stands, for whoever watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeNow {
    /// Good so far.
    Passed,
    /// Nothing is known yet, or nothing more since the last group.
    Waiting,
    /// Something is measured on it.
    Measuring,
    /// In a group that failed, as one of several.
    InFailed,
    /// More likely faulty than not.
    Suspect,
    /// It takes part no longer, or never did.
    Out,
    /// Something is held against it.
    Accused,
}

/// Hears what a run is doing.
pub trait Watcher: Sync {
    /// A check begins; `expected` is how long it takes on a sound node.
    fn begins(&self, check: &str, expected: Duration);
    /// A long check says what it is doing.
    fn progress(&self, check: &str, what: &str);
    /// A check has ended.
    fn ends(&self, report: &CheckReport) {
        self.has_ended(&report.check);
    }
    /// What was begun under this name has ended.
    fn has_ended(&self, what: &str);
    /// A run over these nodes begins.
    fn nodes(&self, names: &[String]) {
        let _ = names;
    }
    /// A node is checked alone, and this is what it is doing.
    fn alone(&self, node: &str, what: &str) {
        let _ = (node, what);
    }
    /// Nodes have come to another state.
    fn now(&self, names: &mut dyn Iterator<Item = &str>, now: NodeNow) {
        let _ = (names, now);
    }
    /// A stage of the run is over: what it was, and what it came to.
    fn stage(&self, what: &str, outcome: &str) {
        let _ = (what, outcome);
    }
}

/// Runs the plan and reports on the node. Each finished check goes to `journal` at once.
///
/// Checks that welcome company run side by side first; then those that need the machine alone, one by one.
pub fn node(
    orders: &Orders<'_>,
    run: Run,
    journal: &mut Journal,
    watcher: &dyn Watcher,
) -> (Report, Option<std::io::Error>) {
    let begun = Instant::now();
    let journal = Mutex::new((journal, None));
    let one = |planned: &Planned| {
        let record = record(orders, planned, begun, watcher);
        let (journal, broken) = &mut *journal.lock().expect("no holder of this lock panics");
        if broken.is_none() {
            *broken = journal.add(&record).err();
        }
        let metrics = tables::metrics_of(&record.check);
        let report = CheckReport::new(record, &metrics, &orders.chosen.table);
        watcher.ends(&report);
        report
    };
    let alone = |planned: &&Planned| {
        planned.check.spec().company == Company::Alone && planned.left_out.is_none()
    };
    let together: Vec<&Planned> = orders
        .plan
        .iter()
        .filter(|planned| !alone(planned))
        .collect();
    let side_by_side = rayon::ThreadPoolBuilder::new()
        .num_threads(SIDE_BY_SIDE)
        .build();
    let mut reports: Vec<CheckReport> = match side_by_side {
        Ok(pool) => pool.install(|| together.into_par_iter().map(one).collect()),
        // Without threads there is still an order.
        Err(_) => together.into_iter().map(one).collect(),
    };
    reports.extend(orders.plan.iter().filter(alone).map(one));
    let place = |report: &CheckReport| {
        orders
            .plan
            .iter()
            .position(|planned| planned.check.spec().name == report.check)
    };
    reports.sort_by_key(place);
    let node = NodeReport::new(
        orders.machine.name.clone(),
        orders.machine.identity.clone(),
        reports,
    );
    let run = Run {
        duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..run
    };
    let report = Report::new(run, orders.chosen.judged_by.clone(), vec![node]);
    let broken = journal
        .into_inner()
        .expect("no holder of this lock panics")
        .1;
    (report, broken)
}

/// Leaves out of a plan the checks that only add to others, that the user did not name, and that want what is not installed.
pub fn leave_out_what_is_not_installed(
    plan: &mut [Planned],
    host: &Host,
    selection: &Selection,
    options: &Options,
) {
    let none = BTreeMap::new();
    for planned in plan {
        let name = planned.check.spec().name;
        let is_named = selection.checks.iter().any(|check| check == name);
        if planned.left_out.is_none() && !is_named {
            let options = options.get(name).unwrap_or(&none);
            let absent = planned.check.not_installed(host, options);
            planned.left_out = absent.map(LeftOut::from);
        }
    }
}

/// How long the checks that `selection` leaves take at most, whatever the node turns out to be.
pub fn longest(
    checks: &[&'static dyn InstanceCheck],
    selection: &Selection,
    options: &Options,
    deadline: Option<Duration>,
) -> Duration {
    let wanted = checks
        .iter()
        .filter(|check| plan::unwanted(check.spec(), selection).is_none());
    let each = wanted.map(|check| {
        let options = options.get(check.spec().name).cloned().unwrap_or_default();
        deadline.unwrap_or(check.budget(&options).deadline) + supervise::ENDING_A_TOOL
    });
    each.sum()
}

/// What one planned check leaves behind.
fn record(orders: &Orders<'_>, planned: &Planned, begun: Instant, watcher: &dyn Watcher) -> Record {
    let name = planned.check.spec().name;
    if let Some(LeftOut { reason, lacks }) = planned.left_out.clone() {
        return Record::new(name, Ending::Skipped { reason, lacks });
    }
    let options = planned.options(&orders.options);
    let Budget { expected, deadline } = planned.check.budget(&options);
    let own_deadline = orders.deadline.unwrap_or(deadline);
    let left = orders
        .run_deadline
        .map(|limit| limit.saturating_sub(begun.elapsed()));
    let deadline = left.map_or(own_deadline, |left| own_deadline.min(left));
    if orders.stop.load(Ordering::Relaxed) || deadline.is_zero() {
        return Record::new(name, Ending::Interrupted);
    }
    watcher.begins(name, expected);
    let task = Task {
        host: orders.host.clone(),
        instance_type: (!orders.chosen.table.is_generic())
            .then(|| orders.chosen.table.instance_type.clone()),
        due: orders.chosen.table.all_due(),
        options,
        state: orders.readings.clone(),
        deadline,
        confined: true,
        group: None,
    };
    let progress = |what: &str| watcher.progress(name, what);
    let mut record = supervise::measure(&orders.program, name, &task, orders.stop, &progress);
    if let Ending::TimedOut { of_the_run, .. } = &mut record.ending {
        *of_the_run = deadline < own_deadline;
    }
    record
        .notes
        .extend(planned.shortened.as_ref().map(|less| less.why.clone()));
    record
}
