//! Nodes of Slurm: marked with `scontrol update`, looked at with `sinfo`.
//!
//! What recovery tooling reads is the reason, letter by letter, so nothing but the policy's words ever stands there. What
//! people and dhc itself read is the node's comment: it repeats the words, and so shows that the mark is dhc's.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_checks::check::chain;
use dhc_checks::host::{Command, Ended, Host};
use dhc_thresholds::Action;
use jiff::Timestamp;

use super::plan::Step;
use super::policy::{Marking, fill};
use super::scheduler::{By, Scheduler, SchedulerError, Standing, node_name};
use crate::cluster::reservation;

/// How long the controller may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How the reasons and comments begin that are dhc's without doubt.
const OUR_REASON: &str = "dhc:";
const OUR_COMMENT: &str = "dhc run ";

/// The longest comment, and the width in which one is asked for.
const COMMENT_MAX: usize = 300;
const COMMENT_WIDTH: usize = 1000;

/// The reason that slurmctld itself gives for a node that has fallen silent: nobody's mark.
const SILENT: &str = "Not responding";

/// Slurm.
#[derive(Debug)]
pub(super) struct Slurm<'a> {
    host: &'a Host,
    markings: &'a BTreeMap<Action, Marking>,
}

impl<'a> Slurm<'a> {
    /// The Slurm that this host's tools reach, and how the policy asks it for actions.
    pub(super) fn new(host: &'a Host, markings: &'a BTreeMap<Action, Marking>) -> Self {
        Slurm { host, markings }
    }

    fn ask(&self, what: &str, command: &Command) -> Result<String, SchedulerError> {
        let what = what.to_owned();
        let output = match self.host.exec(command) {
            Ok(output) => output,
            Err(error) => {
                let said = chain(&error);
                return Err(SchedulerError::NoAnswer { what, said });
            }
        };
        if output.ended == Ended::Exited(0) {
            return Ok(String::from_utf8_lossy(&output.stdout.kept()).into_owned());
        }
        let said = output.stderr.last_words();
        let said = match said.trim() {
            "" => output.ended.to_string(),
            said => format!("{said} ({})", output.ended),
        };
        let is_exit = matches!(output.ended, Ended::Exited(_));
        Err(
            if !is_exit || said.contains("Unable to contact slurm controller") {
                SchedulerError::NoAnswer { what, said }
            } else {
                SchedulerError::Refused { what, said }
            },
        )
    }

    fn sinfo(&self, name: &str, format: String) -> Result<Option<String>, SchedulerError> {
        let what = format!("Slurm does not tell how {name} stands");
        let command = Command::new("sinfo", ANSWER)
            .args(["--noheader", "--Node", "--nodes", name])
            .arg(format);
        let text = self.ask(&what, &command)?;
        // One line for each partition that the node is in, all alike.
        Ok(text.lines().next().map(|line| line.trim_end().to_owned()))
    }

    fn update(&self, node: &str, settings: Vec<String>) -> Result<(), SchedulerError> {
        let name = node_name(node)?;
        let command = Command::new("scontrol", ANSWER)
            .args(["update", &format!("nodename={name}")])
            .args(settings);
        self.ask(&format!("Slurm did not change {name}"), &command)
            .map(drop)
    }
}

impl Scheduler for Slurm<'_> {
    fn name(&self) -> &'static str {
        "slurm"
    }

    fn look(&self, node: &str) -> Result<Standing, SchedulerError> {
        let name = node_name(node)?;
        let line = self.sinfo(name, "--format=%T|%E".to_owned())?;
        let found = line.as_deref().and_then(|line| line.split_once('|'));
        let (state, reason) = found.ok_or_else(|| SchedulerError::Refused {
            what: format!("Slurm does not tell how {name} stands"),
            said: "sinfo names no such node".to_owned(),
        })?;
        match standing(state, reason) {
            // Whoever has the node to himself for maintenance does not want it touched, unless that is dhc.
            Standing::Marked { state, .. } if state == "maint" => {
                let others = reservation::of_others(self.host, name);
                let others = others.map_err(|error| SchedulerError::Refused {
                    what: format!("Slurm does not tell who has reserved {name}"),
                    said: chain(&error),
                })?;
                Ok(match others {
                    None => Standing::InService,
                    Some(words) => Standing::Marked {
                        state,
                        words,
                        by: By::Another,
                    },
                })
            }
            Standing::Marked {
                state,
                words,
                by: By::Another,
            } => {
                let comment = self.sinfo(name, format!("--Format=Comment:{COMMENT_WIDTH}"))?;
                let by = author(&words, comment.as_deref().unwrap_or_default());
                Ok(Standing::Marked { state, words, by })
            }
            standing => Ok(standing),
        }
    }

    fn words(&self, step: &Step) -> Option<String> {
        let marking = self.markings.get(&step.action)?;
        Some(fill(&marking.reason, step))
    }

    /// Slurm knows no update on condition: between the look and the mark lie some milliseconds.
    fn mark(
        &self,
        step: &Step,
        words: &str,
        _: &Standing,
        _: Timestamp,
    ) -> Result<(), SchedulerError> {
        let state = self
            .markings
            .get(&step.action)
            .map_or("drain", |marking| marking.state.word());
        let run = step.run();
        let comment = comment(&format!("{OUR_COMMENT}{run}: {words} since {}", step.why));
        self.update(
            &step.node,
            vec![
                format!("state={state}"),
                format!("reason={words}"),
                format!("comment={comment}"),
            ],
        )
    }

    fn give_back(&self, node: &str, _: Timestamp) -> Result<String, SchedulerError> {
        // Slurm keeps a comment that is not taken away, and it would vouch for a mark that somebody else makes later.
        self.update(node, vec!["state=resume".to_owned(), "comment=".to_owned()])?;
        Ok(match reservation::let_go(self.host, node) {
            Ok(names) if names.is_empty() => "given back".to_owned(),
            Ok(names) => format!(
                "given back, and out of the reservation {}",
                names.join(", ")
            ),
            Err(error) => format!(
                "given back; whether dhc still has it reserved is not known: {}",
                chain(&error)
            ),
        })
    }
}

/// What `sinfo` says of state and reason.
fn standing(state: &str, reason: &str) -> Standing {
    let word = state.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
    let out = ["drain", "fail", "down", "maint", "error", "inval"];
    let words = reason.trim().to_owned();
    // `drained*`: a mark behind the word tells of power and answers; these two of a reboot that somebody asked for.
    let is_rebooting = state.ends_with(['@', '^']);
    let is_silent = word == "down" && words == SILENT;
    if (out.iter().any(|prefix| word.starts_with(prefix)) || is_rebooting) && !is_silent {
        let by = if words.starts_with(OUR_REASON) {
            By::Dhc
        } else {
            By::Another
        };
        return Standing::Marked {
            state: if is_rebooting { state } else { word }.to_owned(),
            words,
            by,
        };
    }
    Standing::InService
}

/// Who wrote a reason that says nothing of it, as far as the comment tells.
fn author(words: &str, comment: &str) -> By {
    let said = comment
        .strip_prefix(OUR_COMMENT)
        .and_then(|rest| rest.split_once(": "))
        .and_then(|(_, rest)| rest.strip_prefix(words));
    match said {
        Some(rest) if !words.is_empty() && rest.starts_with(" since ") => By::Dhc,
        _ => By::Another,
    }
}

/// A text that Slurm takes: one line of printable ASCII without quotes.
fn comment(text: &str) -> String {
    let plain = |c: char| {
        let is_plain = c == ' ' || (c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '`'));
        if is_plain { c } else { '_' }
    };
    text.chars().take(COMMENT_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_with_their_marks() {
        for (state, reason) in [
            ("idle", "none"),
            ("mixed", "none"),
            ("idle*", "none"),
            ("reserved", "none"),
            ("down*", SILENT),
        ] {
            assert_eq!(standing(state, reason), Standing::InService, "{state}");
        }
        for (state, reason, word, by) in [
            ("drained*", "dhc:gpu.lost:01:reboot", "drained", By::Dhc),
            ("draining", "bad disk", "draining", By::Another),
            ("drained", SILENT, "drained", By::Another),
            ("fail", "Action:Reboot", "fail", By::Another),
            ("down~", "Kill task failed", "down", By::Another),
            ("idle@", "kernel", "idle@", By::Another),
            ("maint", "none", "maint", By::Another),
        ] {
            let expected = Standing::Marked {
                state: word.to_owned(),
                words: reason.to_owned(),
                by,
            };
            assert_eq!(standing(state, reason), expected, "{state}");
        }
    }

    #[test]
    fn a_comment_vouches_for_the_words_that_it_repeats_and_for_no_others() {
        let comment = "dhc run 01M85: Action:Reboot since gpu.lost: gpu3 is lost";
        assert_eq!(author("Action:Reboot", comment), By::Dhc);
        for (words, comment) in [
            ("Action:Replace", comment),
            ("new cable", comment),
            ("Action", comment),
            ("", comment),
            ("Action:Reboot", "(null)"),
            ("Action:Reboot", "Action:Reboot since Ann said so"),
        ] {
            assert_eq!(author(words, comment), By::Another, "{words}, {comment}");
        }
    }

    #[test]
    fn a_comment_is_one_plain_line() {
        assert_eq!(comment("a \"b\"\nc\u{e4}"), "a _b__c_");
        assert_eq!(comment(&"x".repeat(1000)).len(), COMMENT_MAX);
    }
}
