//! The language of measurement and of judgement. Pure: no file, no clock, no device.
//!
//! A check leaves a [`Record`]: [`Measurement`]s of [`Metric`]s it has declared, gaps where it could not look, and how
//! it ended. A [`Table`] holds what is due for an instance type. [`judge`] puts the two together, and nothing else
//! decides: the same record can be judged again later under another table. What was not measured is never a pass.

mod cluster;
mod diff;
mod fault;
mod fleet;
mod hardware;
mod judge;
mod learn;
mod measurement;
mod peers;
mod report;
mod statistics;
mod table;
mod unit;

pub use cluster::{
    ClusterReport, GroupReport, LocatedReport, SearchReport, TestReport, WaveReport,
};
pub use diff::{Change, ChangeKind, diff};
pub use fault::{Action, Fault, Faults};
pub use fleet::{ComparisonReport, FleetReport, WidespreadReport, compare};
pub use hardware::Hardware;
pub use judge::{Bound, Finding, Status, Verdict, judge};
pub use learn::{Drawn, Learned, NotLearned, Revision, Sample, THINGS_MIN, Terms, learn, revise};
pub use measurement::{
    At, Device, Ending, Evidence, Gap, Kind, Measurement, Metric, Record, Role, Subject,
};
pub use peers::{PEERS, PEERS_MIN, Peers};
pub use report::{
    CheckReport, FaultReport, Identity, JudgedBy, NodeReport, REPORT_SCHEMA, Report, ReportError,
    Run,
};
pub use statistics::{Better, Centre};
pub use table::{
    Bounds, Conditions, Draft, Due, GENERIC, Limit, Number, TABLE_SCHEMA, Table, TableError,
    TableErrors, TableFile, built_in,
};
pub use unit::{Unit, Value};
