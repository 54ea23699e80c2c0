//! What would be done to which node, and why; nothing is touched.

use std::collections::BTreeSet;

use dhc_thresholds::{
    Action, CheckReport, FaultReport, Faults, Identity, NodeReport, Report, Status, Subject,
};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::history::{Event, What};
use super::policy::{Policy, acts};

/// What `schema` says in a plan.
pub const PLAN_SCHEMA: &str = "dhc.recovery/1";

/// How far a machine's clock may be ahead of this one's: more than clusters bear that authenticate by time.
const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(5);

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
    /// What the history has of this boot; only the scheduler knows whether it still stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noted: Option<String>,
    /// What was tried on the machine before; only where something would be done to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Attempts>,
    /// The faults that the action follows from.
    pub causes: Vec<Cause>,
    /// The machine, where the history knows more of it than the results do.
    #[serde(skip)]
    pub(super) known_as: Option<String>,
}

/// What is known of a machine from before.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// By what the history knows the machine, where its own results do not tell which it is.
    pub machine: Option<String>,
    /// What was seen of it and done to it, oldest first.
    pub events: Vec<Event>,
    /// For what the node of this name was marked, whichever machine it was.
    pub marked: Vec<Event>,
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
    /// The boot in which it was found; empty where it is not known.
    pub boot: String,
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
    /// When the run began, as far as it tells.
    #[serde(skip)]
    began: Option<Timestamp>,
    /// Until when its result may be acted upon, as it says.
    #[serde(skip)]
    expires_at: String,
}

impl Step {
    /// A node that nothing is held against.
    pub(super) fn of(node: &str, identity: Identity) -> Step {
        Step {
            node: node.to_owned(),
            identity,
            status: Status::Pass,
            action: Action::None,
            why: String::new(),
            held: None,
            noted: None,
            attempts: None,
            causes: Vec::new(),
            known_as: None,
        }
    }

    /// Has the step follow from these causes.
    fn follow(&mut self, causes: Vec<Cause>) {
        let action = causes.iter().map(|cause| cause.action).max();
        let action = action.unwrap_or_default();
        // Only a broken bound is held against a node. What could not be looked at, or is a warning, is for a person.
        self.action = match self.status {
            Status::Fail => action,
            _ => action.min(Action::Investigate),
        };
        self.why = match (self.status, gravest(&causes)) {
            (_, Some(cause)) => format!("{}: {}", cause.fault, cause.message),
            (Status::Error | Status::Unknown, None) => {
                "the checks could not look; run them again".to_owned()
            }
            (_, None) => "nothing that was found asks for an action".to_owned(),
        };
        self.causes = causes;
    }

    /// What the machine is known by whatever boots it: its instance id, else its name and serial number. A name alone is
    /// given again to other machines.
    pub fn machine_id(&self) -> Option<String> {
        let serial = self.identity.hardware_serial.as_deref();
        let serial = serial.filter(|serial| is_serial(serial));
        let named = || Some(format!("{}/{}", self.node, serial?));
        self.identity.instance_id.clone().or_else(named)
    }

    /// The machine, as the history names it.
    pub fn machine(&self) -> String {
        let known = self.machine_id().or_else(|| self.known_as.clone());
        known.unwrap_or_else(|| self.node.clone())
    }

    /// The newest boot that the results tell of; empty where it is not known.
    pub fn boot(&self) -> &str {
        self.identity.boot_id.as_deref().unwrap_or_default()
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

    /// When the first of the runs began that ask for an action.
    pub(super) fn began(&self) -> Option<Timestamp> {
        let acting = self.causes.iter().filter(|cause| acts(cause.action));
        acting.filter_map(|cause| cause.began).min()
    }

    /// The step with the machine by which the history knows it.
    #[must_use]
    pub fn known_as(self, machine: Option<String>) -> Step {
        Step {
            known_as: machine,
            ..self
        }
    }

    /// The events of this kind that follow from the step, one for each cause.
    pub fn events(&self, what: What, at: Timestamp, policy: &str) -> Vec<Event> {
        let event = |cause: &Cause| Event {
            at,
            what,
            node: self.node.clone(),
            machine: self.machine(),
            boot: cause.boot.clone(),
            run: cause.run.clone(),
            fault: cause.fault.clone(),
            device: cause.device_id.clone(),
            action: self.action,
            policy: policy.to_owned(),
        };
        self.causes.iter().map(event).collect()
    }
}

/// Makes the plan. `history` tells what is known of the machine of a step; `recent` are the nodes that were marked within the
/// policy's window.
///
/// # Errors
/// Those of `history`.
pub fn plan<E>(
    results: &[Report],
    policy: &Policy,
    now: Timestamp,
    recent: &BTreeSet<String>,
    history: impl Fn(&Step) -> Result<Past, E>,
) -> Result<Plan, E> {
    let names: BTreeSet<&str> = results
        .iter()
        .flat_map(|result| &result.nodes)
        .map(|node| node.name.as_str())
        .collect();
    let nodes = names.len();
    let mut steps = Vec::new();
    for name in names {
        // What a clock that is ahead has dated would count as newest for as long as it is ahead.
        let (ahead, timely): (Vec<&Report>, Vec<&Report>) = results.iter().partition(|result| {
            began(result, name).is_some_and(|began| began > now + CLOCKS_APART)
        });
        let step = |results: &[&Report]| step(name, &Newest::of(name, results)?, policy);
        let (timely, ahead) = (step(&timely), step(&ahead));
        // That is told where it would lead to something.
        let is_ahead = |step: &Step| acts(step.action) || timely.is_none();
        if let Some(mut step) = ahead.filter(is_ahead) {
            let began = step.began().unwrap_or(now);
            step.held = Some(format!(
                "run {} began at {began}, and it is only {now} now: a clock is wrong, that of the node or this one; set it and \
                 run the checks again",
                step.run()
            ));
            if !timely.as_ref().is_some_and(|step| acts(step.action)) {
                steps.push(step);
                continue;
            }
        }
        if let Some(mut step) = timely {
            if acts(step.action) {
                let past = history(&step)?;
                set_aside(&mut step, &past.marked, now);
                step.known_as = past.machine;
                escalate(&mut step, &past.events, policy, now);
                step.noted = noted(&step, &past.events);
                step.held = judged_as_another_type(&step).or(step.held);
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

/// Why what was found may be none: it was held against what is due of another type of machine.
fn judged_as_another_type(step: &Step) -> Option<String> {
    let firmware = step.identity.contradicting_type.as_ref()?;
    Some(format!(
        "it was judged as another type of machine than its firmware names (`{firmware}`); run the checks again with the table of \
         the type that it is"
    ))
}

/// Why nobody may be touched: together with those that were marked lately it would be too many. Nodes are counted by their
/// names, which results cannot claim for each other as they can an instance.
fn breaker(
    steps: &[Step],
    nodes: usize,
    recent: &BTreeSet<String>,
    policy: &Policy,
) -> Option<String> {
    let acting = steps.iter().filter(|step| step.acts());
    let acting: BTreeSet<&str> = acting.map(|step| step.node.as_str()).collect();
    let before = recent
        .iter()
        .filter(|node| !acting.contains(node.as_str()))
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

/// The run on whose word a result speaks of a node. What puts results together has measured nothing of its own, and is as new
/// as the newest of them that tells of the node.
pub(super) fn word_of<'a>(result: &'a Report, node: &str) -> &'a str {
    let together = result.fleet.as_ref();
    let newest = together.and_then(|fleet| fleet.newest.get(node).or_else(|| fleet.runs.last()));
    newest.unwrap_or(&result.run.id)
}

/// When that run began: the later of what its id and its result say.
fn began(result: &Report, node: &str) -> Option<Timestamp> {
    let id = ulid::Ulid::from_string(word_of(result, node)).ok()?;
    let by_id = Timestamp::from_millisecond(id.timestamp_ms().try_into().ok()?).ok()?;
    let said: Option<Timestamp> = result.run.started_at.parse().ok();
    Some(by_id.max(said.unwrap_or(by_id)))
}

/// The machine that had a name last, in its newest boot: what an older boot or another machine has shown is past.
pub(super) struct Newest<'a> {
    pub(super) identity: Identity,
    /// The newest run of each check.
    checks: Vec<(&'a Report, &'a NodeReport, &'a CheckReport)>,
}

impl<'a> Newest<'a> {
    /// `None` where no result tells of the name.
    pub(super) fn of(name: &str, results: &[&'a Report]) -> Option<Newest<'a>> {
        let nodes = |result: &&'a Report| {
            let result = *result;
            result.nodes.iter().map(move |node| (result, node))
        };
        let mut all: Vec<(&Report, &NodeReport)> = results
            .iter()
            .flat_map(nodes)
            .filter(|(_, node)| node.name == name)
            .collect();
        if all.is_empty() {
            return None;
        }
        // What puts a run together with others knows more than the run alone.
        let age = |result: &'a Report| (word_of(result, name), result.fleet.is_some());
        all.sort_by(|(one, _), (other, _)| age(other).cmp(&age(one)));
        let mut identity = Identity::default();
        let mut checks: Vec<(&Report, &NodeReport, &CheckReport)> = Vec::new();
        for (result, node) in all {
            if !may_be(&identity, &node.identity) {
                continue;
            }
            // A run of many nodes knows less of each than the node's own.
            let known = std::mem::take(&mut identity);
            let own = node.identity.clone();
            identity = Identity {
                instance_id: known.instance_id.or(own.instance_id),
                instance_type: known.instance_type.or(own.instance_type),
                instance_type_from: known.instance_type_from.or(own.instance_type_from),
                region: known.region.or(own.region),
                boot_id: known.boot_id.or(own.boot_id),
                hardware_serial: known.hardware_serial.or(own.hardware_serial),
                kernel: known.kernel.or(own.kernel),
                contradicting_type: known.contradicting_type.or(own.contradicting_type),
            };
            for check in node.checks.iter().filter(|check| check.skipped().is_none()) {
                if !checks
                    .iter()
                    .any(|(_, _, newer)| newer.check == check.check)
                {
                    checks.push((result, node, check));
                }
            }
        }
        Some(Newest { identity, checks })
    }

    fn status(&self) -> Status {
        let all = self.checks.iter().map(|(_, _, check)| check.status);
        all.max().unwrap_or(Status::Unknown)
    }

    fn causes(&self, policy: &Policy) -> Vec<Cause> {
        let mut causes: Vec<Cause> = Vec::new();
        for (result, node, check) in &self.checks {
            let of_check = node
                .faults
                .iter()
                .filter(|fault| fault.check == check.check);
            causes.extend(of_check.map(|fault| cause(result, node, fault, policy)));
        }
        causes.retain(|cause| cause.action != Action::None);
        causes
    }
}

/// Whether two results of one name can be of one machine in one boot.
fn may_be(one: &Identity, other: &Identity) -> bool {
    let agree = |one: &Option<String>, other: &Option<String>| match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    agree(&one.instance_id, &other.instance_id) && agree(&one.boot_id, &other.boot_id)
}

/// Whether this tells machines apart, and is not one of the texts that firmware has where nobody wrote a number.
fn is_serial(text: &str) -> bool {
    let digits = text.chars().filter(char::is_ascii_digit);
    let distinct: BTreeSet<char> = digits.collect();
    distinct.len() > 1 && !"01234567890".contains(text) && !"1234567890".contains(text)
}

/// The node without regard to its past; `None` where it passed.
pub(super) fn step(node: &str, machine: &Newest<'_>, policy: &Policy) -> Option<Step> {
    let status = machine.status();
    if status <= Status::Pass {
        return None;
    }
    let mut step = Step {
        status,
        ..Step::of(node, machine.identity.clone())
    };
    step.follow(machine.causes(policy));
    Some(step)
}

/// The cause with the strongest action; one that names a device says more than one that counts them.
fn gravest(causes: &[Cause]) -> Option<&Cause> {
    let names_device = |cause: &Cause| cause.device != Subject::node().name;
    // The last of the greatest is taken, and they stand gravest first.
    let causes = causes.iter().rev();
    causes.max_by_key(|cause| (cause.action, names_device(cause)))
}

pub(super) fn cause(
    result: &Report,
    node: &NodeReport,
    fault: &FaultReport,
    policy: &Policy,
) -> Cause {
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
        run: word_of(result, &node.name).to_owned(),
        boot: node.identity.boot_id.clone().unwrap_or_default(),
        check: fault.check.clone(),
        fault: fault.class.clone(),
        device_id: id.unwrap_or(&device).clone(),
        device,
        action,
        message: fault.finding.message.clone(),
        began: began(result, &node.name),
        expires_at: result.run.expires_at.clone(),
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
    let mut boots = boots_marked(past, Action::Reboot, now, memory.reboots_hours);
    // What is not known to have been another boot, or to be one, is no proof of a reboot.
    boots.remove("");
    let Some(boot) = step.causes.iter().map(|cause| cause.boot.as_str()).max() else {
        return;
    };
    if !boot.is_empty()
        && memory.reboots_max > 0
        && boots.len() >= memory.reboots_max
        && !boots.contains(boot)
    {
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
    marks(past).find(|event| {
        let is_it = |cause: &Cause| {
            cause.fault == event.fault
                && cause.device_id == event.device
                && acts(cause.action)
                // Found after the mark, and in another boot; one that is not known is no proof of a reboot.
                && cause.run > event.run
                && !cause.boot.is_empty()
                && cause.boot != event.boot
        };
        matches!(event.action, Action::Reboot | Action::Reset)
            && within(event, now, hours)
            && !event.boot.is_empty()
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
pub(super) fn marks(past: &[Event]) -> impl Iterator<Item = &Event> {
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

/// Sets aside what may not be acted upon, so that it hides nothing that may. Where nothing else asks for an action the step is
/// held.
fn set_aside(step: &mut Step, marked: &[Event], now: Timestamp) {
    let aside = |cause: &Cause| not_acted_upon(cause, marked, now);
    let acting = |cause: &&Cause| acts(cause.action);
    let kept = step.causes.iter().filter(|cause| aside(cause).is_none());
    let kept: Vec<Cause> = kept.cloned().collect();
    if kept.iter().any(|cause| acts(cause.action)) {
        step.follow(kept);
    } else {
        let held = gravest(&step.causes).filter(acting).and_then(aside);
        step.held = held.or_else(|| step.causes.iter().filter(acting).find_map(aside));
    }
}

/// Why nothing is done on the word of what was found, if so. `marked` is for what the node was marked before.
fn not_acted_upon(cause: &Cause, marked: &[Event], now: Timestamp) -> Option<String> {
    let run = &cause.run;
    if cause.began.is_none() {
        return Some(format!(
            "`{}` is no id of a run of dhc; run the checks again",
            run.escape_default()
        ));
    }
    match cause.expires_at.parse::<Timestamp>() {
        Ok(expires) if now <= expires => {}
        Ok(expires) => {
            return Some(format!(
                "the result of run {run} expired at {expires}; run the checks again"
            ));
        }
        Err(_) => {
            return Some(format!(
                "until when the result of run {run} may be acted upon cannot be read (`{}`); run the checks again",
                cause.expires_at.escape_default()
            ));
        }
    }
    // Whatever the run is taken to say, and whatever has become of the node since.
    let done = marked.iter().rev().find(|event| event.run == *run)?;
    Some(format!(
        "it was marked for {} at {} on the word of this very run ({run}); run the checks again",
        done.action, done.at
    ))
}

/// What the history has of this boot, if that is as much as the step asks for.
fn noted(step: &Step, past: &[Event]) -> Option<String> {
    let is_this_boot = |event: &&Event| step.causes.iter().any(|cause| cause.boot == event.boot);
    let mut of_this_boot = past.iter().rev().filter(is_this_boot);
    let last = of_this_boot.find(|event| event.what != What::Seen)?;
    let is_as_much = last.what == What::Done && last.action >= step.action;
    is_as_much.then(|| {
        format!(
            "it was marked for {} at {} (run {}); if it still is, that is not done again",
            last.action, last.at, last.run
        )
    })
}
