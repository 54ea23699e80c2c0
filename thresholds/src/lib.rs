//! The language of measurement and of judgement. Pure: no file, no clock, no device.
//!
//! A check leaves a [`Record`]: [`Measurement`]s of [`Metric`]s it has declared, gaps where it could not look, and how
//! it ended. A [`Table`] holds what is due for an instance type. [`judge`] puts the two together, and nothing else
//! decides: the same record can be judged again later under another table. What was not measured is never a pass.

mod fault;
mod hardware;
mod measurement;
mod unit;

pub use fault::{Action, Fault, Faults};
pub use hardware::Hardware;
pub use measurement::{
    At, Device, Ending, Evidence, Gap, Kind, Measurement, Metric, Record, Role, Subject,
};
pub use unit::{Unit, Value};
