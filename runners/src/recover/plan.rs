//! What would be done to which node, and why; nothing is touched.

use std::collections::{BTreeMap, BTreeSet};

use dhc_thresholds::{Action, FaultReport, Faults, Identity, NodeReport, Report, Status, Subject};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::history::{Event, What};
use super::policy::{Policy, acts};

/// What `schema` says in a plan.
pub const PLAN_SCHEMA: &str = "dhc.recovery/1";

/// A plan.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Always `dhc.recovery/1`.
    pub schema: &'static str,
    /// The policy and its edition.
    pub policy: String,
    /// The edition of the fault classes that the policy builds on.
    pub faults: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// How many nodes the results tell of.
    pub nodes: usize,
    /// Why nobody is touched, if the guards say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
    /// The nodes that did not pass, in the order of their names.
    pub steps: Vec<Step>,
}

/// What would be done to a node.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The node's name.
    pub node: String,
    /// Who it is.
    pub identity: Identity,
    /// Its gravest status.
    pub status: Status,
    /// What would be done.
    pub action: Action,
    /// Why, in a sentence.
    pub why: String,
    /// Why nothing is done all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// What was tried on the machine before; only where something would be done to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Attempts>,
    /// The faults that the action follows from.
    pub causes: Vec<Cause>,
}

/// How often a machine was marked, by the boots in which it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Attempts {
    /// For reboots in the last two hours.
    pub reboots_2h: usize,
    /// For reboots in the last day.
    pub reboots_24h: usize,
    /// For replacements in the last day.
    pub replacements_24h: usize,
    /// Whether one of the faults is there again after a reboot or reset for it.
    pub same_fault_after_reboot: bool,
}

impl Attempts {
    /// What these events of one machine come to.
    pub fn of(past: &[Event], now: Timestamp) -> Attempts {
        let count = |action, hours| boots_marked(past, action, now, hours).len();
        Attempts {
            reboots_2h: count(Action::Reboot, 2),
            reboots_24h: count(Action::Reboot, 24),
            replacements_24h: count(Action::Replace, 24),
            same_fault_after_reboot: false,
        }
    }
}

/// A fault that asks for an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The run that found it.
    pub run: String,
    /// The check.
    pub check: String,
    /// The fault class.
    pub fault: String,
    /// The device, by the name it has in this boot.
    pub device: String,
    /// What the device is known by across boots: serial number, UUID or PCI address; its name where it has none.
    pub device_id: String,
    /// What the policy asks for.
    pub action: Action,
    /// What was found.
    pub message: String,
}

impl Step {
    /// The machine, as the history names it.
    pub fn machine(&self) -> &str {
        self.identity.instance_id.as_deref().unwrap_or(&self.node)
    }

    /// Whether something would be done to the node.
    pub fn acts(&self) -> bool {
        acts(self.action) && self.held.is_none()
    }

    /// The fault class of the gravest cause.
    pub fn class(&self) -> &str {
        gravest(&self.causes).map_or("unknown", |cause| &cause.fault)
    }

    /// The run that found it.
    pub fn run(&self) -> &str {
        gravest(&self.causes).map_or("unknown", |cause| &cause.run)
    }

    /// The events of this kind that follow from the step, one for each cause.
    pub fn events(&self, what: What, at: Timestamp, policy: &str) -> Vec<Event> {
        let event = |cause: &Cause| Event {
            at,
            what,
            node: self.node.clone(),
            machine: self.machine().to_owned(),
            boot: self.identity.boot_id.clone().unwrap_or_default(),
            run: cause.run.clone(),
            fault: cause.fault.clone(),
            device: cause.device_id.clone(),
            action: self.action,
            policy: policy.to_owned(),
        };
        self.causes.iter().map(event).collect()
    }
}

/// Makes the plan. `history` tells what is known of a machine, by the name of [`Step::machine`]; `recent` are the machines
/// that were marked within the policy's window.
///
/// # Errors
/// Those of `history`.
pub fn plan<E>(
    results: &[Report],
    policy: &Policy,
    now: Timestamp,
    recent: &BTreeSet<String>,
    history: impl Fn(&str) -> Result<Vec<Event>, E>,
) -> Result<Plan, E> {
    let mut by_machine: BTreeMap<(String, String), Vec<(&Report, &NodeReport)>> = BTreeMap::new();
    for result in results {
        for node in &result.nodes {
            let machine = node.identity.instance_id.clone().unwrap_or_default();
            let key = (node.name.clone(), machine);
            by_machine.entry(key).or_default().push((result, node));
        }
    }
    let nodes = by_machine.len();
    let mut steps = Vec::new();
    for ((name, _), reports) in by_machine {
        let status = reports.iter().map(|(_, node)| node.status).max();
        if let Some(status) = status.filter(|status| *status > Status::Pass) {
            let mut step = step(name, status, &reports, policy);
            if acts(step.action) {
                let past = history(step.machine())?;
                escalate(&mut step, &past, policy, now);
                step.held = held(&step, &reports, &past, now);
            }
            steps.push(step);
        }
    }
    let breaker = breaker(&steps, nodes, recent, policy);
    if breaker.is_some() {
        for step in steps.iter_mut().filter(|step| step.acts()) {
            step.held = Some("too many nodes at once".to_owned());
        }
    }
    Ok(Plan {
        schema: PLAN_SCHEMA,
        policy: policy.version.clone(),
        faults: Faults::built_in().version.clone(),
        made_at: now,
        nodes,
        breaker,
        steps,
    })
}

/// Why nobody may be touched: together with those that were marked lately it would be too many.
fn breaker(
    steps: &[Step],
    nodes: usize,
    recent: &BTreeSet<String>,
    policy: &Policy,
) -> Option<String> {
    let acting: BTreeSet<&str> = steps
        .iter()
        .filter(|step| step.acts())
        .map(Step::machine)
        .collect();
    let before = recent
        .iter()
        .filter(|machine| !acting.contains(machine.as_str()))
        .count();
    let most = policy.most(nodes);
    if acting.is_empty() || acting.len() + before <= most {
        return None;
    }
    let lately = match before {
        0 => String::new(),
        before => format!(
            ", {before} more were in the last {} minutes",
            policy.guards.window_minutes
        ),
    };
    Some(format!(
        "{} of {nodes} nodes would be touched{lately}, and the policy allows {most}: so many at once means configuration, \
         fabric or the check itself; find out why before any node is rebooted",
        acting.len()
    ))
}

/// The node without regard to its past.
fn step(node: String, status: Status, reports: &[(&Report, &NodeReport)], policy: &Policy) -> Step {
    let causes: Vec<Cause> = reports
        .iter()
        .flat_map(|(result, node)| node.faults.iter().map(|fault| cause(result, fault, policy)))
        .filter(|cause| cause.action != Action::None)
        .collect();
    // Only a broken bound is held against a node. What could not be looked at, or is a warning, is for a person.
    let action = if status == Status::Fail {
        causes.iter().map(|cause| cause.action).max()
    } else {
        causes
            .iter()
            .map(|cause| cause.action.min(Action::Investigate))
            .max()
    };
    let identity = reports
        .iter()
        .max_by_key(|(result, _)| &result.run.id)
        .map(|(_, node)| node.identity.clone())
        .unwrap_or_default();
    let action = action.unwrap_or_default();
    let why = match (status, gravest(&causes)) {
        (_, Some(cause)) => format!("{}: {}", cause.fault, cause.message),
        (Status::Error | Status::Unknown, None) => {
            "the checks could not look; run them again".to_owned()
        }
        (_, None) => "nothing that was found asks for an action".to_owned(),
    };
    Step {
        node,
        identity,
        status,
        action,
        why,
        held: None,
        attempts: None,
        causes,
    }
}

/// The cause with the strongest action; one that names a device says more than one that counts them.
fn gravest(causes: &[Cause]) -> Option<&Cause> {
    let names_device = |cause: &Cause| cause.device != Subject::node().name;
    // The last of the greatest is taken, and they stand gravest first.
    let causes = causes.iter().rev();
    causes.max_by_key(|cause| (cause.action, names_device(cause)))
}

fn cause(result: &Report, fault: &FaultReport, policy: &Policy) -> Cause {
    // A finding that is a warning never touches a node, whatever its class asks for where it is a failure.
    let action = if fault.finding.status == Status::Fail {
        policy.action(&fault.class)
    } else {
        fault.action.min(Action::Investigate)
    };
    let device = fault.finding.subject.to_string();
    let id = ["serial", "uuid", "guid", "bdf"]
        .iter()
        .find_map(|key| fault.device.get(*key).filter(|id| !id.is_empty()));
    Cause {
        run: result.run.id.clone(),
        check: fault.check.clone(),
        fault: fault.class.clone(),
        device_id: id.unwrap_or(&device).clone(),
        device,
        action,
        message: fault.finding.message.clone(),
    }
}

/// A reboot that has not helped becomes a replacement.
fn escalate(step: &mut Step, past: &[Event], policy: &Policy, now: Timestamp) {
    let memory = &policy.history;
    let came_back = came_back(step, past, now, memory.same_fault_hours);
    step.attempts = Some(Attempts {
        same_fault_after_reboot: came_back.is_some(),
        ..Attempts::of(past, now)
    });
    if step.action == Action::Replace {
        return;
    }
    if let Some(event) = came_back {
        step.action = Action::Replace;
        step.why = format!(
            "{} of {} is there again after the {} of {}; {}",
            event.fault, event.device, event.action, event.at, step.why
        );
        return;
    }
    let boots = boots_marked(past, Action::Reboot, now, memory.reboots_hours);
    let boot = step.identity.boot_id.as_deref().unwrap_or_default();
    if memory.reboots_max > 0 && boots.len() >= memory.reboots_max && !boots.contains(boot) {
        step.action = Action::Replace;
        step.why = format!(
            "{} reboots in {} h have not helped; {}",
            boots.len(),
            memory.reboots_hours,
            step.why
        );
    }
}

/// The mark for a reboot or reset after which one of the step's faults is there again.
fn came_back<'a>(step: &Step, past: &'a [Event], now: Timestamp, hours: u32) -> Option<&'a Event> {
    let boot = step.identity.boot_id.as_deref().unwrap_or_default();
    marks(past).find(|event| {
        let is_it = |cause: &Cause| {
            cause.fault == event.fault && cause.device_id == event.device && acts(cause.action)
        };
        matches!(event.action, Action::Reboot | Action::Reset)
            && within(event, now, hours)
            // A boot that is not known is no proof of a reboot.
            && !boot.is_empty()
            && !event.boot.is_empty()
            && event.boot != boot
            && step.causes.iter().any(is_it)
    })
}

/// The boots in which a machine was marked for this action in the last hours.
fn boots_marked(past: &[Event], action: Action, now: Timestamp, hours: u32) -> BTreeSet<&str> {
    marks(past)
        .filter(|event| event.action == action && within(event, now, hours))
        .map(|event| event.boot.as_str())
        .collect()
}

/// The marks that a machine got, as far as is known: an attempt of which no end is known may have come to one.
fn marks(past: &[Event]) -> impl Iterator<Item = &Event> {
    past.iter().enumerate().filter_map(|(index, event)| {
        let failed = || {
            past[index..].iter().any(|later| {
                later.what == What::Failed && (&later.run, &later.boot) == (&event.run, &event.boot)
            })
        };
        let is_mark = event.what == What::Done || (event.what == What::Begun && !failed());
        is_mark.then_some(event)
    })
}

fn within(event: &Event, now: Timestamp, hours: u32) -> bool {
    now.duration_since(event.at) <= SignedDuration::from_hours(hours.into())
}

/// Why nothing is done to the node now.
fn held(
    step: &Step,
    reports: &[(&Report, &NodeReport)],
    past: &[Event],
    now: Timestamp,
) -> Option<String> {
    for (result, _) in reports {
        let expires: Result<Timestamp, _> = result.run.expires_at.parse();
        match expires {
            Ok(expires) if now <= expires => {}
            _ => {
                return Some(format!(
                    "the result of run {} expired at {}; run the checks again",
                    result.run.id, result.run.expires_at
                ));
            }
        }
    }
    let boot = step.identity.boot_id.as_deref().unwrap_or_default();
    let of_this_boot = || past.iter().rev().filter(|event| event.boot == boot);
    // The same fault of the same run is acted on once, whatever has become of the node since.
    let once = of_this_boot().find(|event| {
        event.what == What::Done && event.run == step.run() && event.fault == step.class()
    });
    if let Some(done) = once {
        return Some(format!(
            "it was marked for {} at {} on the word of this very run ({}); run the checks again",
            done.action, done.at, done.run
        ));
    }
    // What has been asked for in this boot, and not taken back, has not happened yet.
    let last = of_this_boot().find(|event| event.what != What::Seen)?;
    (last.what == What::Done && last.action >= step.action).then(|| {
        format!(
            "it was marked for {} at {} (run {}) and has not come back since",
            last.action, last.at, last.run
        )
    })
}
