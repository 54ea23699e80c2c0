//! Nodes of Slurm: marked with `scontrol update`, looked at with `scontrol show node`. `sinfo` has one word for a node, and in a
//! reservation for maintenance that word hides that somebody has failed the node.
//!
//! What recovery tooling reads is the reason, letter by letter, so nothing but the policy's words ever stands there. What
//! people and dhc itself read is the node's comment: it repeats the words and the time at which Slurm noted the reason, and so
//! shows that the mark is dhc's. Slurm keeps a comment when a node is resumed, so the words alone would vouch for whoever
//! gives the same reason later.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_checks::check::chain;
use dhc_checks::host::{Command, Ended, Host};
use dhc_thresholds::Action;
use jiff::{Timestamp, Unit};

use super::plan::Step;
use super::policy::Marking;
use super::scheduler::{Bearer, By, Mark, Scheduler, SchedulerError, Seen, Standing, node_name};
use crate::cluster::reservation;
use crate::machine::Machine;

/// How long the controller may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How the comments begin that are dhc's; runs, action, boot, time and the reason follow.
const OUR_COMMENT: &str = "dhc run ";

/// Has Slurm write times in UTC.
const UTC: (&str, &str) = ("TZ", "UTC0");

/// How far the clock of Slurm may be from dhc's own where dhc did not live to read Slurm's.
const CLOCKS_APART_S: i64 = 60;

/// The longest comment: room for the runs of [`super::scheduler::RUNS_MAX`], the longest reason, and a sentence.
const COMMENT_MAX: usize = 1000;

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
        // scontrol says on standard output that there is no such node.
        let said = [output.stderr.last_words(), output.stdout.last_words()].concat();
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

    fn show(&self, node: &str) -> Result<Shown, SchedulerError> {
        let name = node_name(node)?;
        let what = format!("Slurm does not tell how {name} stands");
        let command = Command::new("scontrol", ANSWER)
            .args(["show", "node", name])
            .env(UTC.0, UTC.1);
        let text = self.ask(&what, &command)?;
        // `ALL` and the names of node sets are host names by their letters.
        Shown::parse(name, &text).ok_or_else(|| SchedulerError::Refused {
            what,
            said: "it knows no node of this very name".to_owned(),
        })
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

    fn look(&self, node: &str) -> Result<Seen, SchedulerError> {
        let shown = self.show(node)?;
        // Whoever has the node to himself for maintenance does not want it touched, unless that is dhc. A busy node does not
        // show it.
        let others = reservation::of_others(self.host, node);
        let others = others.map_err(|error| SchedulerError::Refused {
            what: format!("Slurm does not tell who has reserved {node}"),
            said: chain(&error),
        })?;
        let standing = match others {
            Some(words) => Standing::Marked {
                state: "reserved for maintenance".to_owned(),
                words,
                by: By::Another,
            },
            None => shown.standing(),
        };
        let bearer = shown.bearer;
        Ok(Seen { standing, bearer })
    }

    fn words(&self, step: &Step) -> Option<String> {
        let marking = self.markings.get(&step.action)?;
        Some(marking.reason.of(step))
    }

    /// Slurm knows no update on condition: between the look and the mark lie some milliseconds.
    fn mark(
        &self,
        step: &Step,
        words: &str,
        mark: &Mark,
        _: &Seen,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let state = self
            .markings
            .get(&step.action)
            .map_or("drain", |marking| marking.state.word());
        let comment = |when| comment(mark, when, words, &step.why);
        let about = comment(When::About(now));
        self.update(
            &step.node,
            vec![
                format!("state={state}"),
                format!("reason={words}"),
                format!("comment={about}"),
            ],
        )?;
        // When Slurm has noted the reason is known only now.
        let shown = self.show(&step.node)?;
        let Some(at) = shown
            .noted_at
            .filter(|_| shown.reason == words && shown.comment == about)
        else {
            return Err(SchedulerError::Refused {
                what: format!("the mark on {} is not dhc's any more", step.node),
                said: format!("its reason is `{}`", shown.reason),
            });
        };
        let exactly = comment(When::At(at));
        self.update(&step.node, vec![format!("comment={exactly}")])
    }

    fn give_back(&self, node: &str, _: &Seen, _: Timestamp) -> Result<String, SchedulerError> {
        // Slurm keeps a comment that is not taken away.
        self.update(node, vec!["state=resume".to_owned(), "comment=".to_owned()])?;
        Ok(match self.let_go(node) {
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

    fn let_go(&self, node: &str) -> Result<Vec<String>, SchedulerError> {
        let names = reservation::let_go(self.host, node_name(node)?);
        names.map_err(|error| SchedulerError::Refused {
            what: format!("Slurm does not take {node} out of dhc's reservations"),
            said: chain(&error),
        })
    }

    fn is_here(&self, node: &str, here: &Machine) -> Result<bool, SchedulerError> {
        let host = self.show(node)?.host;
        Ok(host == here.name || here.name.split('.').next() == Some(&host))
    }
}

/// What `scontrol show node` says of a node.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    /// The state and its flags, such as `IDLE+DRAIN`.
    state: String,
    reason: String,
    /// When Slurm has noted the reason.
    noted_at: Option<Timestamp>,
    comment: String,
    host: String,
    bearer: Bearer,
}

impl Shown {
    /// The one node of this name; `None` for any other answer.
    fn parse(name: &str, text: &str) -> Option<Shown> {
        let mut names = text
            .lines()
            .filter_map(|line| line.strip_prefix("NodeName="));
        let is_it = names.next()?.split(' ').next() == Some(name) && names.next().is_none();
        // Reason and comment may hold anything and fill their lines; the state stands before them.
        let line = |key: &str| {
            let value = |line: &str| Some(line.trim().strip_prefix(key)?.to_owned());
            text.lines().find_map(value)
        };
        let word = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        let host = text
            .lines()
            .find_map(|line| line.split_once("NodeHostName="));
        let reason = line("Reason=").unwrap_or_default();
        // ` [user@time]` follows.
        let (reason, noted) = match reason.rsplit_once(" [") {
            Some((reason, who)) if who.ends_with(']') => (reason.to_owned(), who.to_owned()),
            _ => (reason, String::new()),
        };
        let noted = noted.trim_end_matches(']').rsplit_once('@');
        // In a line of its own, where there is one; neither reason nor comment begins a line so.
        let instance_id = line("InstanceId=").map(|rest| word(&rest));
        let booted = line("BootTime=").map(|rest| word(&rest));
        is_it.then_some(Shown {
            state: word(&line("State=")?),
            reason: reason.trim().to_owned(),
            noted_at: noted.and_then(|(_, time)| time_in_utc(time)),
            comment: line("Comment=").unwrap_or_default(),
            host: host.map_or_else(String::new, |(_, rest)| word(rest)),
            bearer: Bearer {
                instance_id: instance_id.filter(|id| id.starts_with("i-")),
                boot_id: None,
                booted_at: booted.as_deref().and_then(time_in_utc),
            },
        })
    }

    fn standing(&self) -> Standing {
        // `IDLE*+DRAIN`: a mark behind the word tells of answers and power.
        let words = self.state.split('+');
        let words = words.map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphabetic()));
        let words: Vec<&str> = words.collect();
        // Whose the reservation is that `MAINTENANCE` tells of is asked elsewhere.
        let out = ["DRAIN", "FAIL", "REBOOT", "INVAL", "ERROR"];
        let is_out = |word: &&str| out.iter().any(|prefix| word.starts_with(prefix));
        let is_down = words.first() == Some(&"DOWN") && self.reason != SILENT;
        if !is_down && !words.iter().any(is_out) {
            return Standing::InService;
        }
        Standing::Marked {
            state: self.state.to_ascii_lowercase(),
            words: self.reason.clone(),
            by: author(&self.reason, self.noted_at, &self.comment),
        }
    }
}

/// When a mark was made.
#[derive(Clone, Copy)]
enum When {
    /// By the clock of dhc, which is about that of Slurm.
    About(Timestamp),
    /// By the clock of Slurm.
    At(Timestamp),
}

/// Who wrote a reason that Slurm has noted at that time, as far as the comment tells: dhc repeats there what it has written
/// and when, and on the word of which runs.
fn author(words: &str, noted_at: Option<Timestamp>, comment: &str) -> By {
    let ours = || {
        let (head, rest) = comment.strip_prefix(OUR_COMMENT)?.split_once(": ")?;
        let is_it = !words.is_empty() && rest.strip_prefix(words)?.starts_with(" since ");
        let [runs, action, "boot", boot, when, at] = head.split(' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        let apart = noted_at?.duration_since(at.parse().ok()?).as_secs().abs();
        let is_then = match when {
            "at" => apart == 0,
            "about" => apart <= CLOCKS_APART_S,
            _ => false,
        };
        let runs: Vec<String> = runs.split(',').map(str::to_owned).collect();
        let are_runs = runs.iter().all(|run| ulid::Ulid::from_string(run).is_ok());
        let mark = Mark {
            action: serde_json::from_value(action.into()).ok()?,
            runs,
            boot: if boot == "-" { "" } else { boot }.to_owned(),
        };
        (is_it && is_then && are_runs).then_some(mark)
    };
    ours().map_or(By::Another, By::Dhc)
}

/// What dhc writes beside a reason: one line of printable ASCII without quotes.
fn comment(mark: &Mark, when: When, words: &str, why: &str) -> String {
    let (runs, action) = (mark.runs.join(","), mark.action);
    let boot = Some(&*mark.boot).filter(|boot| !boot.is_empty());
    let boot = boot.unwrap_or("-");
    let (when, at) = match when {
        When::About(at) => ("about", at),
        When::At(at) => ("at", at),
    };
    let at = at.round(Unit::Second).unwrap_or(at);
    plain(&format!(
        "{OUR_COMMENT}{runs} {action} boot {boot} {when} {at}: {words} since {why}"
    ))
}

/// A time as Slurm writes it in UTC.
fn time_in_utc(text: &str) -> Option<Timestamp> {
    format!("{text}Z").parse().ok()
}

/// A text that Slurm takes and gives back as it is.
fn plain(text: &str) -> String {
    let plain = |c: char| {
        let is_plain = c == ' ' || (c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '`'));
        if is_plain { c } else { '_' }
    };
    let text: String = text.chars().take(COMMENT_MAX).map(plain).collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "01M85J2Q7TZ3N4V5W6X7Y8Z9A0";

    fn shown(state: &str, reason: &str) -> Shown {
        let text = format!(
            "NodeName=h1 Arch=x86_64 CoresPerSocket=1 \n   NodeAddr=h1 NodeHostName=h1 Version=22.05.8\n   OS=Linux 6.1\n   \
             State={state} ThreadsPerCore=1 TmpDisk=0\n   Comment=State=IDLE\n   Reason={reason} [root@2026-01-02T03:04:05]\n"
        );
        Shown::parse("h1", &text).unwrap()
    }

    #[test]
    fn states_are_read_with_their_flags() {
        for (state, reason) in [
            ("IDLE", ""),
            ("MIXED", ""),
            ("IDLE*", ""),
            ("ALLOCATED+RESERVED", ""),
            ("IDLE+MAINTENANCE", ""),
            ("DOWN*", SILENT),
            ("DOWN+NOT_RESPONDING", SILENT),
        ] {
            assert_eq!(shown(state, reason).standing(), Standing::InService);
        }
        for (state, reason) in [
            ("IDLE*+DRAIN", "bad [disk]"),
            ("DOWN+DRAIN+NOT_RESPONDING", SILENT),
            ("IDLE+FAIL+MAINTENANCE", "Action:Reboot"),
            ("DOWN~", "Kill task failed"),
            ("IDLE+REBOOT_ISSUED", "kernel"),
            ("ALLOCATED+REBOOT_REQUESTED", ""),
        ] {
            let expected = Standing::Marked {
                state: state.to_ascii_lowercase(),
                words: reason.to_owned(),
                by: By::Another,
            };
            assert_eq!(shown(state, reason).standing(), expected, "{state}");
        }
    }

    #[test]
    fn what_is_told_of_another_node_or_of_several_is_no_answer() {
        let two =
            "NodeName=h1 Arch=x86_64\n   State=IDLE\n\nNodeName=h2 Arch=x86_64\n   State=IDLE\n";
        for (name, text) in [("ALL", two), ("h1", two), ("h2", two), ("h1", "")] {
            assert_eq!(Shown::parse(name, text), None, "{name}");
        }
    }

    #[test]
    fn a_comment_vouches_for_the_words_and_the_time_that_it_repeats_and_for_no_others() {
        let time = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let at = time("2026-01-02T03:04:05Z");
        let mark = Mark {
            action: Action::Reboot,
            runs: vec![RUN.to_owned(), RUN.replace('A', "B")],
            boot: "0f-3b".to_owned(),
        };
        let comment = |when| comment(&mark, when, "Action:Reboot", "gpu.lost: gpu3 is lost");
        let exactly = &comment(When::At(at.unwrap()));
        let about = &comment(When::About(at.unwrap()));
        let ours = By::Dhc(mark.clone());
        assert_eq!(author("Action:Reboot", at, exactly), ours);
        let later = time("2026-01-02T03:04:06Z");
        assert_eq!(author("Action:Reboot", later, about), ours);
        let old = &format!("dhc run {RUN}: Action:Reboot since gpu.lost: gpu3 is lost");
        for (words, at, comment) in [
            ("Action:Replace", at, &**exactly),
            ("dhc: bad fan, ticket 4711 (Ann)", at, exactly),
            ("new cable", at, exactly),
            ("Action", at, exactly),
            ("", at, exactly),
            ("Action:Reboot", at, ""),
            ("Action:Reboot", later, exactly),
            ("Action:Reboot", None, exactly),
            ("Action:Reboot", time("2026-01-02T03:05:06Z"), about),
            ("Action:Reboot", at, old),
            ("Action:Reboot", at, &exactly.replace(RUN, "Ann")),
            ("Action:Reboot", at, &exactly.replace(" reboot ", " dance ")),
        ] {
            assert_eq!(
                author(words, at, comment),
                By::Another,
                "{words}, {comment}"
            );
        }
    }

    #[test]
    fn a_comment_is_one_plain_line() {
        assert_eq!(plain("a \"b\"\nc\u{e4}"), "a _b__c_");
        assert_eq!(plain(&"x".repeat(2000)).len(), COMMENT_MAX);
    }

    #[test]
    fn the_longest_mark_fits_into_a_comment() {
        let mark = Mark {
            action: Action::Investigate,
            runs: vec![RUN.to_owned(); super::super::scheduler::RUNS_MAX],
            boot: "b".repeat(64),
        };
        let words = "w".repeat(super::super::policy::REASON_MAX);
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        let comment = comment(&mark, When::About(at), &words, &"why ".repeat(1000));
        assert!(comment.contains(&format!("{words} since why")), "{comment}");
    }
}
