//! Doing what a plan says, one node after the other.

use dhc_thresholds::Action;
use jiff::Timestamp;
use serde::Serialize;

use super::history::{History, HistoryError, What};
use super::plan::{Plan, Step};
use super::policy::{MarkState, Policy};

/// What marks nodes and gives them back.
pub trait Actor {
    /// Whether the node is in service, or by whose mark it is not.
    ///
    /// # Errors
    /// When the scheduler does not answer, or does not know the node.
    fn look(&self, node: &str) -> Result<Standing, ActorError>;

    /// Marks the node.
    ///
    /// # Errors
    /// When the scheduler refuses.
    fn mark(&self, node: &str, mark: &Mark) -> Result<(), ActorError>;

    /// Puts the node back into service.
    ///
    /// # Errors
    /// When the scheduler refuses.
    fn give_back(&self, node: &str) -> Result<(), ActorError>;
}

/// How a node stands with its scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes jobs.
    InService,
    /// It takes none.
    Marked {
        /// In the scheduler's word.
        state: String,
        /// As whoever did it wrote.
        reason: String,
    },
}

/// A mark on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The state that the node gets.
    pub state: MarkState,
    /// What recovery tooling reads, letter by letter.
    pub reason: String,
    /// What people read.
    pub comment: String,
}

/// Why a scheduler could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {said}")]
pub struct ActorError {
    /// What was attempted.
    pub what: String,
    /// What was said.
    pub said: String,
}

/// What became of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// The node.
    pub node: String,
    /// What was to be done.
    pub action: Action,
    /// Whether it was.
    pub done: bool,
    /// What was done, or why it was not.
    pub what: String,
}

/// How the beginning of a reason tells that dhc wrote it.
const OURS: &str = "dhc:";

/// The longest comment.
const COMMENT_MAX: usize = 300;

/// Does what the plan says. A node that cannot be marked is told of and costs no other node.
///
/// # Errors
/// When the history cannot be kept; then no further node is touched.
pub fn apply(
    plan: &Plan,
    policy: &Policy,
    actor: &dyn Actor,
    history: &mut History,
    now: impl Fn() -> Timestamp,
) -> Result<Vec<Done>, HistoryError> {
    let mut all = Vec::new();
    for step in &plan.steps {
        history.add(&step.events(What::Seen, now(), &policy.version))?;
        if !step.acts() {
            continue;
        }
        let (done, what) = match one(step, policy, actor, history)? {
            Ok(what) => {
                history.add(&step.events(What::Done, now(), &policy.version))?;
                (true, what)
            }
            Err(why) => (false, why),
        };
        all.push(Done {
            node: step.node.clone(),
            action: step.action,
            done,
            what,
        });
    }
    Ok(all)
}

/// Marks one node; says what was done, or why nothing was.
fn one(
    step: &Step,
    policy: &Policy,
    actor: &dyn Actor,
    history: &History,
) -> Result<Result<String, String>, HistoryError> {
    let Some(marking) = policy.slurm.get(&step.action) else {
        let action = step.action;
        return Ok(Err(format!(
            "the policy {} does not say how a {action} is asked for; add [slurm.{action}]",
            policy.version
        )));
    };
    let cause = step.cause();
    let class = cause.map_or("unknown", |cause| cause.fault.as_str());
    let run = cause.map_or("unknown", |cause| cause.run.as_str());
    let mark = Mark {
        state: marking.state,
        reason: marking
            .reason
            .replace("{class}", class)
            .replace("{run}", run),
        comment: comment(&format!(
            "dhc run {run}: {} since {}",
            step.action, step.why
        )),
    };
    let standing = match actor.look(&step.node) {
        Ok(standing) => standing,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Standing::Marked { state, reason } = &standing
        && !is_ours(reason, step.machine(), policy, history)?
    {
        return Ok(Err(format!(
            "left alone: it is {state} for the reason `{reason}`, which dhc did not write"
        )));
    }
    let state = mark.state.word();
    Ok(match actor.mark(&step.node, &mark) {
        Ok(()) => Ok(format!("state {state}, reason `{}`", mark.reason)),
        Err(error) => Err(error.to_string()),
    })
}

/// Gives a node back that dhc marked; says what was done, or why nothing was.
///
/// # Errors
/// When the history cannot be kept.
pub fn give_back(
    step: &Step,
    policy: &Policy,
    actor: &dyn Actor,
    history: &mut History,
    now: Timestamp,
) -> Result<Result<String, String>, HistoryError> {
    match actor.look(&step.node) {
        Err(error) => return Ok(Err(error.to_string())),
        Ok(Standing::InService) => return Ok(Ok("it is in service".to_owned())),
        Ok(Standing::Marked { state, reason }) => {
            if !is_ours(&reason, step.machine(), policy, history)? {
                return Ok(Err(format!(
                    "left alone: it is {state} for the reason `{reason}`, which dhc did not write"
                )));
            }
        }
    }
    if let Err(error) = actor.give_back(&step.node) {
        return Ok(Err(error.to_string()));
    }
    history.add(&step.events(What::Returned, now, &policy.version))?;
    Ok(Ok("given back".to_owned()))
}

/// Whether dhc wrote this reason: it says so, or it is what the policy writes for what the history says was done last.
fn is_ours(
    reason: &str,
    machine: &str,
    policy: &Policy,
    history: &History,
) -> Result<bool, HistoryError> {
    if reason.starts_with(OURS) {
        return Ok(true);
    }
    let past = history.of_machine(machine)?;
    let Some(last) = past.iter().rfind(|event| event.what != What::Seen) else {
        return Ok(false);
    };
    let written = policy.slurm.get(&last.action);
    Ok(last.what == What::Done && written.is_some_and(|written| written.reason == reason))
}

/// A text that a scheduler takes: one line of printable ASCII without quotes.
fn comment(text: &str) -> String {
    let plain = |c: char| {
        let is_plain = c == ' ' || (c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '`'));
        if is_plain { c } else { '_' }
    };
    text.chars().take(COMMENT_MAX).map(plain).collect()
}
