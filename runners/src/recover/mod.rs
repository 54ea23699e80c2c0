//! From verdicts to action: what would be done to which node and why, and doing it.
//!
//! A [`plan`] is made from results, a [`Policy`] and the [`History`] of the nodes, without touching anything. [`apply`] does
//! it through a [`Scheduler`], asks how each node stands before it touches it, and writes down what it is about to do and how
//! it ended before it goes on. Verdicts that are no failures of a node (error, unknown, warning) never lead to an action.

mod apply;
mod history;
mod kubernetes;
mod log;
mod plan;
mod policy;
mod scheduler;
mod slurm;
mod verify;

use std::collections::BTreeMap;

use dhc_checks::host::Host;

pub use apply::{Applied, ApplyError, Done, Outcome, apply, give_back};
pub use history::{Event, History, HistoryError, What};
pub use log::Log;
pub use plan::{Attempts, Cause, PLAN_SCHEMA, Past, Plan, Step, plan};
pub use policy::{Kind, Mode, Policy, PolicyError};
pub use scheduler::{Bearer, By, Mark, Scheduler, SchedulerError, Seen, Standing};
pub use verify::{Again, Verification, verification};

/// The scheduler that a policy names, reached with the tools of this host. `environment` is that of dhc.
pub fn scheduler<'a>(
    policy: &'a Policy,
    host: &'a Host,
    environment: &BTreeMap<String, String>,
) -> Box<dyn Scheduler + 'a> {
    match policy.scheduler {
        Kind::Slurm => Box::new(slurm::Slurm::new(host, &policy.slurm)),
        Kind::Kubernetes => Box::new(kubernetes::Kubernetes::new(
            host,
            &policy.kubernetes,
            environment,
        )),
    }
}
