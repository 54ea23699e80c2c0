//! What recovery does as it does it: one JSON object a line, in the shape of HyperPod's own logs.

use std::io::Write;

use jiff::{Timestamp, Unit};
use serde::Serialize;

use super::plan::Step;

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// Something was done as it should be.
    Info,
    /// Something was not done, for a reason.
    Warn,
    /// A node is at fault, or something could not be done.
    Error,
}

/// Where lines go. The time is asked of it as well, so that a line and the history agree.
pub struct Log<'a> {
    to: &'a mut dyn Write,
    now: &'a dyn Fn() -> Timestamp,
    policy: &'a str,
    scheduler: &'a str,
}

impl std::fmt::Debug for Log<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// A line. `level`, `ts` and `msg` come first, as readers of HyperPod's logs expect.
#[derive(Serialize)]
struct Line<'a> {
    level: Level,
    ts: Timestamp,
    msg: &'a str,
    policy: &'a str,
    scheduler: &'a str,
    #[serde(flatten)]
    node: Option<NodeLine<'a>>,
}

#[derive(Serialize)]
struct NodeLine<'a> {
    event: &'a str,
    action: dhc_thresholds::Action,
    node: &'a str,
    instance_id: Option<&'a str>,
    boot_id: Option<&'a str>,
    run_id: &'a str,
    fault_class: &'a str,
}

impl<'a> Log<'a> {
    /// A log of what is done under this policy with the nodes of this scheduler.
    pub fn new(
        to: &'a mut dyn Write,
        now: &'a dyn Fn() -> Timestamp,
        policy: &'a str,
        scheduler: &'a str,
    ) -> Self {
        Log {
            to,
            now,
            policy,
            scheduler,
        }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    pub(super) fn of(
        &mut self,
        step: &Step,
        level: Level,
        event: &str,
        msg: &str,
    ) -> std::io::Result<()> {
        let node = NodeLine {
            event,
            action: step.action,
            node: &step.node,
            instance_id: step.identity.instance_id.as_deref(),
            boot_id: step.identity.boot_id.as_deref(),
            run_id: step.run(),
            fault_class: step.class(),
        };
        self.line(level, msg, Some(node))
    }

    pub(super) fn of_all(&mut self, level: Level, msg: &str) -> std::io::Result<()> {
        self.line(level, msg, None)
    }

    fn line(&mut self, level: Level, msg: &str, node: Option<NodeLine<'_>>) -> std::io::Result<()> {
        let ts = self.now();
        let line = Line {
            level,
            ts: ts.round(Unit::Second).unwrap_or(ts),
            msg,
            policy: self.policy,
            scheduler: self.scheduler,
            node,
        };
        // In one write, so that two writers do not mix their lines.
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.to.write_all(&text)?;
        self.to.flush()
    }
}
