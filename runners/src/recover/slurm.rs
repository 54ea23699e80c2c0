//! Nodes of Slurm: marked with `scontrol update`, looked at with `sinfo`.

use std::time::Duration;

use dhc_checks::check::chain;
use dhc_checks::host::{Command, Ended, Host};

use super::apply::{Actor, ActorError, Mark, Standing};

/// How long the controller may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Slurm.
#[derive(Debug)]
pub struct Slurm<'a> {
    host: &'a Host,
}

impl<'a> Slurm<'a> {
    /// The Slurm that this host's tools reach.
    pub fn new(host: &'a Host) -> Self {
        Slurm { host }
    }

    fn ask(&self, what: &str, command: &Command) -> Result<String, ActorError> {
        let refused = |said: String| ActorError {
            what: what.to_owned(),
            said,
        };
        let output = self
            .host
            .exec(command)
            .map_err(|error| refused(chain(&error)))?;
        if output.ended == Ended::Exited(0) {
            return Ok(String::from_utf8_lossy(&output.stdout.kept()).into_owned());
        }
        let said = output.stderr.quotation();
        let said = said.trim();
        Err(refused(if said.is_empty() {
            output.ended.to_string()
        } else {
            format!("{said} ({})", output.ended)
        }))
    }

    fn update(&self, node: &str, settings: Vec<String>) -> Result<(), ActorError> {
        let name = node_name(node)?;
        let command = Command::new("scontrol", ANSWER)
            .args(["update", &format!("nodename={name}")])
            .args(settings);
        self.ask(&format!("Slurm did not change {name}"), &command)
            .map(drop)
    }
}

impl Actor for Slurm<'_> {
    fn look(&self, node: &str) -> Result<Standing, ActorError> {
        let name = node_name(node)?;
        let what = format!("Slurm does not tell how {name} stands");
        let command = Command::new("sinfo", ANSWER).args([
            "--noheader",
            "--Node",
            "--nodes",
            name,
            "--format=%T|%E",
        ]);
        let text = self.ask(&what, &command)?;
        standing(&text).ok_or(ActorError {
            what,
            said: "sinfo names no such node".to_owned(),
        })
    }

    fn mark(&self, node: &str, mark: &Mark) -> Result<(), ActorError> {
        self.update(
            node,
            vec![
                format!("state={}", mark.state.word()),
                format!("reason={}", mark.reason),
                format!("comment={}", mark.comment),
            ],
        )
    }

    fn give_back(&self, node: &str) -> Result<(), ActorError> {
        self.update(node, vec!["state=resume".to_owned()])
    }
}

/// What `sinfo` says; one line for each partition that the node is in.
fn standing(text: &str) -> Option<Standing> {
    let (state, reason) = text.lines().next()?.split_once('|')?;
    // `drained*`: a mark behind the word tells of power and answers.
    let word = state.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
    let out = ["drain", "fail", "down", "maint", "error", "inval"];
    Some(if out.iter().any(|prefix| word.starts_with(prefix)) {
        Standing::Marked {
            state: word.to_owned(),
            reason: reason.trim().to_owned(),
        }
    } else {
        Standing::InService
    })
}

/// The name, if it is the name of one node and nothing else to Slurm: no list, no option, no pattern.
fn node_name(node: &str) -> Result<&str, ActorError> {
    let plain = node
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if plain && !node.is_empty() && !node.starts_with('-') && node.len() <= 255 {
        return Ok(node);
    }
    Err(ActorError {
        what: format!("`{}` is not touched", node.escape_default()),
        said: "it is not the name of a node".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_with_their_marks() {
        assert_eq!(standing("idle|none\n"), Some(Standing::InService));
        assert_eq!(
            standing("mixed|none\nmixed|none\n"),
            Some(Standing::InService)
        );
        for (text, state) in [
            ("drained*|dhc:gpu.lost:01:reboot\n", "drained"),
            ("draining|bad disk\n", "draining"),
            ("fail|Action:Reboot\n", "fail"),
            ("down~|Not responding\n", "down"),
        ] {
            let found = standing(text);
            assert!(
                matches!(&found, Some(Standing::Marked { state: word, .. }) if word == state),
                "{text}: {found:?}"
            );
        }
        assert_eq!(standing(""), None);
    }

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
        ] {
            assert!(node_name(name).is_err(), "{name}");
        }
    }
}
