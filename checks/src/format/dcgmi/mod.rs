//! What `dcgmi diag -r LEVEL -j` prints, in every release from 2.0 to 4.6, as one shape.
//!
//! Sources: `dcgmi/Diag.cpp` and `nvvs/include/NvvsJsonStrings.h` of NVIDIA/DCGM at the tags v2.1.4 to v4.6.0. The
//! releases differ in nearly every key: see [`document`]. Three things hold for all of them:
//!
//! - `Warn` is never printed: the writer says `Fail` for it. What an error means is told by its number and severity
//!   ([`DcgmError::grade`]), never by the status word.
//! - A test that says `Pass` can carry an error, and DCGM itself counts errors, not words (NVIDIA/DCGM issue 284).
//! - The exit status is part of the answer: see [`Exit`].

mod document;
mod error;
mod exit;
mod fields;

use std::collections::{BTreeMap, BTreeSet};

pub use document::read;
pub use error::{Category, DcgmError, KnownError, Severity};
pub use exit::Exit;

use super::json::JsonError;

/// The test that holds DCGM's checks of the installation; one test since 4.0, ten rows of `Deployment` before.
pub const SOFTWARE: &str = "software";

/// A displayed name in the letters of names: `Targeted Power` as `targeted_power`.
pub fn plain(printed: &str) -> String {
    let letter = |c: char| match c {
        c if c.is_ascii_alphanumeric() => c.to_ascii_lowercase(),
        _ => '_',
    };
    printed.chars().map(letter).collect()
}

/// One run of DCGM's diagnostic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diagnosis {
    /// Release of DCGM; printed since 3.1.8.
    pub dcgm_version: Option<String>,
    /// Release of the NVIDIA driver; printed since 3.1.8.
    pub driver_version: Option<String>,
    /// Whether the document lists the GPUs by themselves, apart from its results; since 3.1.8.
    pub has_inventory: bool,
    /// PCI device ids of the GPUs in DCGM's order, in hexadecimal without a prefix: `2330`; printed since 3.1.8.
    pub gpu_device_ids: Vec<String>,
    /// Serial numbers by DCGM's GPU id; printed since 3.3.0, and only for GPUs that have one.
    pub serials: BTreeMap<u32, String>,
    /// DCGM's ids of the GPUs that the document names anywhere.
    pub gpus: BTreeSet<u32>,
    /// Why the run gave no full answer. With it, the results are those of an incomplete run, if there are any.
    pub runtime_error: Option<String>,
    /// What each test said about each thing it looked at. Never empty where there is no `runtime_error`.
    pub results: Vec<TestResult>,
    /// Remarks on whole tests that name no entity.
    pub remarks: Vec<String>,
}

/// What one test said about one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct TestResult {
    /// Its name as release 4 writes it: `memory`, `targeted_power`, [`SOFTWARE`].
    pub test: String,
    /// The row of `Deployment` before 4.0: `Persistence Mode`, `Denylist`.
    pub row: Option<String>,
    /// `Deployment`, `Integration`, `Hardware`, `Stress`, `Custom`.
    pub category: String,
    /// What was tested.
    pub entity: Entity,
    /// The word that DCGM printed.
    pub status: Status,
    /// What DCGM found.
    pub errors: Vec<DcgmError>,
    /// What DCGM remarked.
    pub info: Vec<String>,
}

impl TestResult {
    /// The gravest thing that DCGM says here: the errors decide, and only without any the status word does.
    pub fn grade(&self) -> Grade {
        let worst = self.errors.iter().map(DcgmError::grade).max();
        match (self.status, worst) {
            // A skipped test says why it was skipped in an error of severity CONFIG (48, 117) or MONITOR (40): nothing was
            // tested, so nothing is to be watched.
            (Status::Skip, None | Some(Grade::Config | Grade::Monitor)) => Grade::Skip,
            (Status::NotRun, None | Some(Grade::Config | Grade::Monitor)) => Grade::NotRun,
            (_, Some(grade)) => grade,
            (Status::Pass, None) => Grade::Pass,
            (Status::Warn, None) => Grade::Monitor,
            // Failed, and does not say of what.
            (Status::Fail, None) => Grade::Unclassified,
        }
    }
}

/// What a result is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entity {
    /// No device in particular.
    Node,
    /// The GPU with this DCGM id.
    Gpu(u32),
    /// The CPU socket with this number.
    Cpu(u32),
    /// Another kind of thing: DCGM's entity group and id in it.
    Other {
        /// `dcgm_field_entity_group_t`.
        group: u32,
        /// Its number in the group.
        id: u32,
    },
}

impl Entity {
    /// The GPU's DCGM id, if it is a GPU.
    pub fn gpu(self) -> Option<u32> {
        match self {
            Entity::Gpu(id) => Some(id),
            Entity::Node | Entity::Cpu(_) | Entity::Other { .. } => None,
        }
    }
}

/// The status words of the JSON output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `Pass`.
    Pass,
    /// `Skip`: not applicable, not permitted or not asked for.
    Skip,
    /// `Not Run`, or a test that is named and has no result.
    NotRun,
    /// `WARN`, in the document of nvvs alone; dcgmi prints `Fail` for it.
    Warn,
    /// `Fail`, which is also printed for a warning.
    Fail,
}

/// How grave a result or an error is, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Tested and fine.
    Pass,
    /// Not tested: skipped.
    Skip,
    /// Not tested: not run.
    NotRun,
    /// Works, but is to be watched.
    Monitor,
    /// Configured in a way that DCGM does not accept.
    Config,
    /// The test could not do its work; nothing is said about the hardware.
    CouldNotRun,
    /// Failed, without proof that the hardware is at fault.
    Triage,
    /// Failed, and DCGM does not say how gravely: releases before 3.2, or a severity that no release had so far.
    Unclassified,
    /// The GPU has to be reset.
    Reset,
    /// The GPU cannot do work and has to be taken out.
    Isolate,
}

impl Grade {
    /// The word used in results.
    pub const fn word(self) -> &'static str {
        match self {
            Grade::Pass => "pass",
            Grade::Skip => "skip",
            Grade::NotRun => "not_run",
            Grade::Monitor => "monitor",
            Grade::Config => "config",
            Grade::CouldNotRun => "could_not_run",
            Grade::Triage => "triage",
            Grade::Unclassified => "unclassified",
            Grade::Reset => "reset",
            Grade::Isolate => "isolate",
        }
    }
}

/// Why an output is not a diagnosis. None of these says anything about the hardware.
#[derive(Debug, thiserror::Error)]
pub enum DcgmiError {
    /// Nothing at all.
    #[error(
        "`dcgmi diag` printed nothing; run it by hand and look at nv-hostengine.log to see why"
    )]
    Empty,
    /// Text, but no document.
    #[error(
        "`dcgmi diag` printed no JSON but `{said}`; see whether nv-hostengine runs and answers"
    )]
    NoDocument {
        /// The beginning of it, escaped.
        said: String,
    },
    /// A document that cannot be read as JSON: cut off, or damaged.
    #[error("the JSON of `dcgmi diag` is cut off or damaged; run the check again")]
    Damaged(#[source] JsonError),
    /// JSON of another shape than any known release writes.
    #[error(
        "the JSON of `dcgmi diag` has an unknown shape: {at}: expected {wanted}; this DCGM may be newer than dhc"
    )]
    Shape {
        /// Where in the document.
        at: &'static str,
        /// What every known release has there.
        wanted: &'static str,
    },
    /// A well-formed document without a single result.
    #[error("`dcgmi diag` ran no test at all; see nv-hostengine.log and nvvs.log")]
    NothingRan,
}

#[cfg(test)]
mod tests;
