//! The runner of dhc: what to run, running it under supervision, keeping the result, and showing it.

pub mod cli;
pub mod cluster;
pub mod explain;
pub mod export;
pub mod fleet;
pub mod imds;
pub mod journal;
pub mod learn;
pub mod lines;
pub mod live;
pub mod localise;
pub mod machine;
pub mod plan;
pub mod prune;
pub mod recover;
pub mod render;
pub mod run;
pub mod status;
pub mod store;
pub mod supervise;
pub mod tables;

use dhc_thresholds::{Report, Status};

/// What `dhc` answers to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything that was looked at is within its bounds.
    Pass = 0,
    /// Something is worth watching.
    Warn = 1,
    /// Something is out of bounds.
    Fail = 2,
    /// Something was not judged or not readable, the run was stopped early, or another run holds the node.
    Unknown = 3,
    /// dhc or a tool could not do its work.
    Error = 4,
    /// The command line is wrong (`EX_USAGE` of sysexits.h).
    Usage = 64,
}

impl Exit {
    /// The answer that a process of dhc ended with.
    pub fn of_code(code: i32) -> Exit {
        match code {
            0 => Exit::Pass,
            1 => Exit::Warn,
            2 => Exit::Fail,
            3 => Exit::Unknown,
            64 => Exit::Usage,
            _ => Exit::Error,
        }
    }

    /// The answer for a whole report: an early end never answers better than *unknown*.
    pub fn of(report: &Report) -> Exit {
        let exit = match report.status {
            Status::Pass => Exit::Pass,
            Status::Warn => Exit::Warn,
            Status::Fail => Exit::Fail,
            Status::Skip | Status::Unknown => Exit::Unknown,
            Status::Error => Exit::Error,
        };
        let early = !report.complete && matches!(exit, Exit::Pass | Exit::Warn);
        if early { Exit::Unknown } else { exit }
    }
}
