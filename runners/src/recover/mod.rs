//! From verdicts to action: what would be done to which node and why, and doing it.
//!
//! A [`plan`] is made from results, a [`Policy`] and the [`History`] of the nodes, without touching anything. [`apply`] does
//! it through an [`Actor`], asks each node's scheduler before it touches it, and writes down what it did before it goes on.
//! Verdicts that are no failures of a node (error, unknown, warning) never lead to an action.

mod apply;
mod history;
mod plan;
mod policy;
mod slurm;

pub use apply::{Actor, ActorError, Done, Mark, apply, give_back};
pub use history::{Event, History, HistoryError, What};
pub use plan::{Cause, PLAN_SCHEMA, Plan, Step, plan};
pub use policy::{Marking, Mode, Policy, PolicyError};
pub use slurm::Slurm;
