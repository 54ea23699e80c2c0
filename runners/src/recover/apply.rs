//! Doing what a plan says, one node after the other.
//!
//! What is about to be done is in the history before it is done, and how it ended is there afterwards. A crash in between
//! leaves a beginning without an end; who applies the same results again sees by the mark on the node whether it came to it.

use dhc_checks::check::chain;
use dhc_thresholds::Action;
use serde::Serialize;

use super::history::{History, HistoryError, What};
use super::log::{Level, Log};
use super::plan::{Plan, Step};
use super::policy::Policy;
use super::scheduler::{By, Mark, RUNS_MAX, Scheduler, SchedulerError, Seen, Standing};

/// What `schema` says in the document of what was done.
pub(super) const DONE_SCHEMA: &str = "dhc.recovered/1";

/// What was done on the word of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// Always `dhc.recovered/1`.
    pub schema: &'static str,
    /// The policy and its edition.
    pub policy: String,
    /// The edition of the fault classes.
    pub faults: String,
    /// Whose nodes they are.
    pub scheduler: &'static str,
    /// Why nobody was touched, if the guards said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
    /// The nodes that something was to be done to, those as well that were held back.
    pub nodes: Vec<Done>,
}

/// What became of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// The node.
    pub node: String,
    /// What was to be done.
    pub action: Action,
    /// Whether it was.
    pub outcome: Outcome,
    /// What was done, or why it was not.
    pub what: String,
}

/// Whether something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was.
    Done,
    /// It had been done before, by a dhc that did not live to say so.
    DoneBefore,
    /// It is not to be done now: there is something to be done first, or it has been asked for already.
    Held,
    /// The node is in somebody else's hands.
    LeftAlone,
    /// The scheduler did not do it.
    Failed,
    /// The scheduler was told, and does not say whether it did it.
    NotKnown,
    /// The scheduler had stopped answering before this node's turn.
    NotTried,
}

impl Outcome {
    /// Whether the node is marked as it should be.
    pub fn is_done(self) -> bool {
        matches!(self, Outcome::Done | Outcome::DoneBefore)
    }

    /// Whether nothing was to be done that was not.
    pub fn is_settled(self) -> bool {
        self.is_done() || self == Outcome::Held
    }

    const fn word(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::DoneBefore => "done_before",
            Outcome::Held => "held",
            Outcome::LeftAlone => "left_alone",
            Outcome::Failed => "failed",
            Outcome::NotKnown => "not_known",
            Outcome::NotTried => "not_tried",
        }
    }
}

/// Why recovery stopped on the way; what was done until then is in the history.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nothing is done that cannot be written down.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Nor what cannot be logged.
    #[error("the log cannot be written, so nothing more is done")]
    Log(#[from] std::io::Error),
}

/// Does what the plan says. A node that cannot be marked is told of and costs no other node.
///
/// # Errors
/// When the history or the log cannot be kept; then no further node is touched.
pub fn apply(
    plan: &Plan,
    policy: &Policy,
    scheduler: &dyn Scheduler,
    history: &mut History,
    log: &mut Log<'_>,
) -> Result<Applied, ApplyError> {
    let mut applied = Applied {
        schema: DONE_SCHEMA,
        policy: policy.version.clone(),
        faults: plan.faults.clone(),
        scheduler: scheduler.name(),
        breaker: plan.breaker.clone(),
        nodes: Vec::new(),
    };
    if let Some(why) = &plan.breaker {
        log.of_all(Level::Error, &format!("Nobody is touched: {why}"))?;
    }
    let mut silent = None;
    for step in &plan.steps {
        history.add(&step.events(What::Seen, log.now(), &policy.version))?;
        let (outcome, what) = match (&step.held, &silent) {
            (Some(held), _) => (Outcome::Held, format!("held back: {held}")),
            (None, _) if !step.acts() => continue,
            (None, None) => one(step, policy, scheduler, history, log, &mut silent)?,
            (None, Some(error)) => (Outcome::NotTried, format!("not tried: {error}")),
        };
        let level = match outcome {
            Outcome::Done | Outcome::DoneBefore => Level::Info,
            Outcome::Held | Outcome::LeftAlone => Level::Warn,
            Outcome::Failed | Outcome::NotKnown | Outcome::NotTried => Level::Error,
        };
        log.of(step, level, outcome.word(), &what)?;
        applied.nodes.push(Done {
            node: step.node.clone(),
            action: step.action,
            outcome,
            what,
        });
    }
    Ok(applied)
}

/// Marks one node; says what was done, or why nothing was.
fn one(
    step: &Step,
    policy: &Policy,
    scheduler: &dyn Scheduler,
    history: &mut History,
    log: &mut Log<'_>,
    silent: &mut Option<String>,
) -> Result<(Outcome, String), ApplyError> {
    let action = step.action;
    let Some(words) = scheduler.words(step) else {
        let why = format!(
            "the policy {} does not say how a {action} is asked for on {}; add it",
            policy.version,
            scheduler.name()
        );
        return Ok((Outcome::Failed, why));
    };
    let seen = match scheduler.look(&step.node) {
        Ok(seen) => seen,
        Err(error) => return Ok((Outcome::Failed, said(&error, silent))),
    };
    if let Some(why) = seen.bearer.is_not_of(step) {
        return Ok((Outcome::Held, format!("held back: {why}")));
    }
    // What stands on the node decides, not what the history remembers of it.
    let mark = match &seen.standing {
        Standing::InService => Mark::of(step, None),
        Standing::Marked {
            state,
            words: found,
            by: By::Another,
        } => return Ok((Outcome::LeftAlone, left_alone(state, found))),
        Standing::Marked {
            state,
            words: found,
            by: By::Dhc(before),
        } => {
            let asked = Mark::of(step, None);
            if before.covers(&asked) {
                history.add(&step.events(What::Done, log.now(), &policy.version))?;
                let what = format!("it is {state} already, `{found}`");
                return Ok((Outcome::DoneBefore, what));
            }
            // What was asked for before this boot may have happened; what is more than this is asked for until it is taken back.
            let is_past = before.is_of_another_boot(&asked) && before.action == action;
            if before.action >= action && !is_past {
                let what = format!(
                    "held back: it is {state} for a {} already (`{found}`, on the word of run {}), which comes first",
                    before.action,
                    before.runs.join(", ")
                );
                return Ok((Outcome::Held, what));
            }
            Mark::of(step, Some(before))
        }
    };
    if mark.runs.len() > RUNS_MAX {
        let what = format!(
            "its mark would have to stand for {} runs, and has room for {RUNS_MAX}; find out why none of what was done \
             helps, and give it back by hand",
            mark.runs.len()
        );
        return Ok((Outcome::Failed, what));
    }
    history.add(&step.events(What::Begun, log.now(), &policy.version))?;
    log.of(step, Level::Error, "begun", &faulty_instance(step))?;
    let refused = match scheduler.mark(step, &words, &mark, &seen, log.now()) {
        Ok(()) => {
            history.add(&step.events(What::Done, log.now(), &policy.version))?;
            return Ok((Outcome::Done, format!("marked with `{words}`")));
        }
        Err(error) => error,
    };
    let refused = said(&refused, silent);
    // A tool that was killed at its deadline, or lost its connection, may have been heard all the same.
    match scheduler.look(&step.node) {
        Ok(Seen {
            standing:
                Standing::Marked {
                    words: found,
                    by: By::Dhc(found_mark),
                    ..
                },
            ..
        }) if found == words && found_mark == mark => {
            history.add(&step.events(What::Done, log.now(), &policy.version))?;
            Ok((
                Outcome::Done,
                format!("marked with `{words}`, although {refused}"),
            ))
        }
        Ok(_) => {
            history.add(&step.events(What::Failed, log.now(), &policy.version))?;
            Ok((Outcome::Failed, refused))
        }
        Err(error) => {
            said(&error, silent);
            Ok((
                Outcome::NotKnown,
                format!(
                    "{refused}; whether it was done is not known: apply the same results again"
                ),
            ))
        }
    }
}

/// Gives a node back that dhc marked, if it bears the mark still that it bore when it was `verified`; says what was done, or
/// why nothing was.
///
/// # Errors
/// When the history or the log cannot be kept.
pub fn give_back(
    step: &Step,
    verified: &Seen,
    policy: &Policy,
    scheduler: &dyn Scheduler,
    history: &mut History,
    log: &mut Log<'_>,
) -> Result<Result<String, String>, ApplyError> {
    let done = match scheduler.look(&step.node) {
        Err(error) => Err(chain(&error)),
        Ok(seen) => match &seen.standing {
            // By a person, by HyperPod, or by a dhc that did not live to say so.
            Standing::InService => {
                let was_marked = !history.not_returned(&step.node)?.is_empty();
                let said = "it is in service".to_owned();
                // A run that keeps its nodes reserved marks none.
                match scheduler.let_go(&step.node) {
                    Ok(names) if names.is_empty() && !was_marked => return Ok(Ok(said)),
                    Ok(names) if names.is_empty() => Ok(said),
                    Ok(names) => {
                        let names = names.join(", ");
                        Ok(format!("{said}, and out of the reservation {names}"))
                    }
                    Err(error) => Err(chain(&error)),
                }
            }
            Standing::Marked {
                state,
                words,
                by: By::Another,
            } => Err(left_alone(state, words)),
            Standing::Marked {
                state,
                words,
                by: By::Dhc(mark),
            } if verified.standing.mark() != Some(mark) => Err(format!(
                "it was marked meanwhile: it is {state} for the reason `{words}`, on the word of run {}; verify again, with \
                 the results of these runs",
                mark.runs.join(", ")
            )),
            Standing::Marked { .. } => scheduler
                .give_back(&step.node, &seen, log.now())
                .map_err(|error| chain(&error)),
        },
    };
    match &done {
        Ok(what) => {
            history.add(&step.events(What::Returned, log.now(), &policy.version))?;
            log.of(step, Level::Info, "returned", what)?;
        }
        Err(why) => log.of(step, Level::Error, "kept", why)?,
    }
    Ok(done)
}

fn left_alone(state: &str, words: &str) -> String {
    format!("left alone: it is {state} for the reason `{words}`, and nothing shows that dhc did it")
}

/// What a scheduler said, and a note where it says nothing any more.
fn said(error: &SchedulerError, silent: &mut Option<String>) -> String {
    let said = chain(error);
    if matches!(error, SchedulerError::NoAnswer { .. }) {
        *silent = Some(said.clone());
    }
    said
}

/// The words that readers of HyperPod's log look for.
fn faulty_instance(step: &Step) -> String {
    let what = match step.action {
        Action::Replace => "Replace",
        Action::Reset => "Reset a device of",
        Action::None | Action::Retry | Action::Investigate | Action::Reboot => "Reboot",
    };
    let region = step.identity.region.as_ref();
    let region = region.map_or_else(String::new, |region| format!("Region: {region}, "));
    let instance_type = step.identity.instance_type.as_deref().unwrap_or("unknown");
    format!(
        "Encountered FaultyInstance. {what} the Instance. {region}InstanceType: {instance_type}. ERROR:{}",
        step.why
    )
}
