//! What dhc needs of whoever gives nodes to jobs: how a node stands, a mark on it, and the mark taken back.

use dhc_thresholds::Action;
use jiff::Timestamp;

use super::plan::Step;
use super::policy::acts;
use crate::machine::Machine;

/// The most runs that a mark stands for: what a comment or an annotation has room for.
pub(super) const RUNS_MAX: usize = 16;

/// A scheduler, asked about one node at a time.
pub trait Scheduler {
    /// Its name, for the log.
    fn name(&self) -> &'static str;

    /// How the node stands.
    ///
    /// # Errors
    /// When the scheduler does not answer, or does not know the node.
    fn look(&self, node: &str) -> Result<Seen, SchedulerError>;

    /// The words of the mark that this step asks for, if the policy has words for it.
    fn words(&self, step: &Step) -> Option<String>;

    /// Marks the node of this step with these words, if it still stands as it was seen to. The mark tells whoever looks
    /// what it is, without the history.
    ///
    /// # Errors
    /// When the scheduler refuses. What was not refused may have been done: look again.
    fn mark(
        &self,
        step: &Step,
        words: &str,
        mark: &Mark,
        seen: &Seen,
        now: Timestamp,
    ) -> Result<(), SchedulerError>;

    /// Puts the node back into service if it still stands as it was seen to, and says in a few words what that was.
    ///
    /// # Errors
    /// When the scheduler refuses.
    fn give_back(&self, node: &str, seen: &Seen, now: Timestamp) -> Result<String, SchedulerError>;

    /// Takes a node out of the reservations that dhc keeps, and names those; for one that is not marked.
    ///
    /// # Errors
    /// When the scheduler refuses.
    fn let_go(&self, node: &str) -> Result<Vec<String>, SchedulerError> {
        let _ = node;
        Ok(Vec::new())
    }

    /// Whether the node is the machine that dhc runs on.
    ///
    /// # Errors
    /// When the scheduler does not answer, or does not know the node.
    fn is_here(&self, node: &str, here: &Machine) -> Result<bool, SchedulerError>;
}

/// What a scheduler tells of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How it stands.
    pub standing: Standing,
    /// Which machine it is.
    pub bearer: Bearer,
}

/// The machine that bears the name of a node now, as far as the scheduler knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bearer {
    /// The cloud's id of the instance.
    pub instance_id: Option<String>,
    /// The kernel's id of the boot.
    pub boot_id: Option<String>,
    /// When it was started.
    pub booted_at: Option<Timestamp>,
}

/// How a node stands with its scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes jobs, or would if it answered.
    InService,
    /// It takes none.
    Marked {
        /// In the scheduler's word.
        state: String,
        /// As whoever did it wrote.
        words: String,
        /// Whether that was dhc.
        by: By,
    },
}

/// Who took a node out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// dhc, as the mark itself shows.
    Dhc(Mark),
    /// A person, another tool, or the scheduler: not dhc's to change.
    Another,
}

/// A mark of dhc, as it stands on a node. What it says holds whatever any history remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What it asks for.
    pub action: Action,
    /// The runs on whose word, the one that decided first. All that they found has to pass before the node is given back.
    pub runs: Vec<String>,
    /// The boot in which it was made; empty where that is not known.
    pub boot: String,
}

impl Mark {
    /// The mark that a step asks for on a node that bears this one of dhc's, if any: that stays open too.
    pub(super) fn of(step: &Step, before: Option<&Mark>) -> Mark {
        let deciding = std::iter::once(step.run());
        let acting = step.causes.iter().filter(|cause| acts(cause.action));
        let acting = acting.map(|cause| cause.run.as_str());
        let open = before.into_iter().flat_map(|mark| &mark.runs);
        let mut runs: Vec<String> = Vec::new();
        for run in deciding.chain(acting).chain(open.map(String::as_str)) {
            if !runs.iter().any(|known| known == run) {
                runs.push(run.to_owned());
            }
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let boot = Some(step.boot()).filter(|boot| boot.len() <= 64 && boot.chars().all(is_plain));
        Mark {
            action: step.action,
            runs,
            boot: boot.unwrap_or_default().to_owned(),
        }
    }

    /// Whether it stands for all that the other does.
    pub(super) fn covers(&self, other: &Mark) -> bool {
        self.action == other.action && other.runs.iter().all(|run| self.runs.contains(run))
    }

    /// Whether the two were made in different boots, as far as is known.
    pub(super) fn is_of_another_boot(&self, other: &Mark) -> bool {
        !self.boot.is_empty() && !other.boot.is_empty() && self.boot != other.boot
    }
}

impl Standing {
    /// The mark of dhc that the node bears, if it does.
    pub fn mark(&self) -> Option<&Mark> {
        match self {
            Standing::Marked {
                by: By::Dhc(mark), ..
            } => Some(mark),
            _ => None,
        }
    }
}

impl Bearer {
    /// Why this is not the machine, or not the boot, that the results of a step tell of; `None` if it may be.
    pub(super) fn is_not_of(&self, step: &Step) -> Option<String> {
        let differ = |one: &Option<String>, other: &Option<String>| match (one, other) {
            (Some(one), Some(other)) if one != other => Some((one.clone(), other.clone())),
            _ => None,
        };
        if let Some((now, then)) = differ(&self.instance_id, &step.identity.instance_id) {
            return Some(format!(
                "the node is the machine {now} now, and the results are of {then}; run the checks again"
            ));
        }
        if let Some((now, then)) = differ(&self.boot_id, &step.identity.boot_id) {
            return Some(format!(
                "the node is in the boot {now} now, and the results are of {then}; run the checks again"
            ));
        }
        let began = step.began()?;
        let booted = self.booted_at.filter(|booted| *booted > began)?;
        Some(format!(
            "the node was started at {booted}, and run {} began before, at {began}; run the checks again",
            step.run()
        ))
    }
}

/// Why a scheduler did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// It said no.
    #[error("{what}: {said}")]
    Refused {
        /// What was attempted.
        what: String,
        /// What was said.
        said: String,
    },
    /// It does not answer, so there is no sense in asking about further nodes.
    #[error("{what}: {said}")]
    NoAnswer {
        /// What was attempted.
        what: String,
        /// What was seen.
        said: String,
    },
}

/// Refuses what is no host name, so that no tool takes it for a list, a path or an option.
pub(super) fn node_name(node: &str) -> Result<&str, SchedulerError> {
    if dhc_checks::host::valid_host_name(node) {
        return Ok(node);
    }
    Err(SchedulerError::Refused {
        what: format!("`{}` is not touched", node.escape_default()),
        said: "it is not the name of a node".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_of_one_node_is_refused() {
        assert_eq!(node_name("ip-10-1-2-3.local").unwrap(), "ip-10-1-2-3.local");
        for name in [
            "",
            "-a",
            "h[1-8]",
            "h1,h2",
            "ALL state=down",
            "h1\n",
            "h1;x",
            "../secrets",
        ] {
            assert!(node_name(name).is_err(), "{name}");
        }
    }
}
