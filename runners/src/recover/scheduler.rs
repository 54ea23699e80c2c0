//! What dhc needs of whoever gives nodes to jobs: how a node stands, a mark on it, and the mark taken back.

use jiff::Timestamp;

use super::plan::Step;
use crate::machine::Machine;

/// A scheduler, asked about one node at a time.
pub trait Scheduler {
    /// Its name, for the log.
    fn name(&self) -> &'static str;

    /// How the node stands.
    ///
    /// # Errors
    /// When the scheduler does not answer, or does not know the node.
    fn look(&self, node: &str) -> Result<Standing, SchedulerError>;

    /// The words of the mark that this step asks for, if the policy has words for it.
    fn words(&self, step: &Step) -> Option<String>;

    /// Marks the node of this step with these words, if it still stands as it was seen to.
    ///
    /// # Errors
    /// When the scheduler refuses. What was not refused may have been done: look again.
    fn mark(
        &self,
        step: &Step,
        words: &str,
        seen: &Standing,
        now: Timestamp,
    ) -> Result<(), SchedulerError>;

    /// Puts the node back into service, and says in a few words what that was.
    ///
    /// # Errors
    /// When the scheduler refuses.
    fn give_back(&self, node: &str, now: Timestamp) -> Result<String, SchedulerError>;

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
    Dhc {
        /// On the word of this run.
        run: String,
    },
    /// A person, another tool, or the scheduler: not dhc's to change.
    Another,
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
