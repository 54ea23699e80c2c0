//! A report in the formats of other tools, one file each; and where it goes.
//!
//! The formats are pure: a report in, text out. What they cannot say in their own words they leave out or say as a failure;
//! none of them ever turns what was not measured into a pass.

mod cases;
mod ctrf;
mod hyperpod;
mod junit;
mod prometheus;

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use dhc_thresholds::{Report, Run};
use jiff::{SignedDuration, Timestamp};

use crate::render::html;
use crate::store::{self, StoreError};

/// A format that other tools read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Metrics for the textfile collector of Prometheus' node exporter.
    Prometheus,
    /// JUnit XML: a suite for each node, a case for each check.
    Junit,
    /// Common Test Report Format, JSON.
    Ctrf,
    /// The lines of HyperPod's deep health check logs; they are added to a file that is there.
    Hyperpod,
    /// The page for people.
    Html,
}

/// Where a report is to go: `FORMAT=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// In which format.
    pub format: Format,
    /// Into which file.
    pub file: PathBuf,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<String> = Format::value_variants()
            .iter()
            .filter_map(|format| Some(format.to_possible_value()?.get_name().to_owned()))
            .collect();
        let wanted = || format!("write FORMAT=FILE with one of {}", names.join(", "));
        let (format, file) = text.split_once('=').ok_or_else(wanted)?;
        let format = Format::from_str(format, false).map_err(|_| wanted())?;
        if file.is_empty() {
            return Err(wanted());
        }
        Ok(Target {
            format,
            file: file.into(),
        })
    }
}

/// Why a report cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A time in it is none.
    #[error(
        "the result says `{text}` where the {what} of the run should stand; is it a result of dhc?"
    )]
    NotATime {
        /// Which time.
        what: &'static str,
        /// What stands there.
        text: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The report in this format.
///
/// # Errors
/// When it is not a report that dhc could have written.
pub fn text(format: Format, report: &Report) -> Result<String, ExportError> {
    let times = Times::of(&report.run)?;
    Ok(match format {
        Format::Prometheus => prometheus::page(report, times, None, None),
        Format::Junit => junit::document(report),
        Format::Ctrf => ctrf::document(report, times),
        Format::Hyperpod => hyperpod::lines(report, times)
            .into_iter()
            .map(|line| line + "\n")
            .collect(),
        Format::Html => html::page(report),
    })
}

/// Puts the report where it is to go: a log gets more lines, any other file is written whole or not at all.
///
/// # Errors
/// When it is not a report that dhc could have written, or the file cannot be written.
pub fn write(report: &Report, target: &Target) -> Result<(), ExportError> {
    let file = &target.file;
    match target.format {
        Format::Hyperpod => {
            let lines = hyperpod::lines(report, Times::of(&report.run)?);
            store::append_lines(file, lines.iter().map(String::as_str))?;
        }
        Format::Prometheus => {
            // The page before remembers when a node that does not pass now last did.
            let before = store::read_file(file).unwrap_or_default();
            let before = String::from_utf8_lossy(&before);
            let name = file.file_stem().map(|stem| stem.to_string_lossy());
            let times = Times::of(&report.run)?;
            let page = prometheus::page(report, times, name.as_deref(), Some(&before));
            store::write_file(file, page.as_bytes())?;
        }
        Format::Junit | Format::Ctrf | Format::Html => {
            store::write_file(file, text(target.format, report)?.as_bytes())?;
        }
    }
    Ok(())
}

/// The moments of a run.
#[derive(Clone, Copy, Debug)]
struct Times {
    started: Timestamp,
    ended: Timestamp,
    expires: Timestamp,
}

impl Times {
    fn of(run: &Run) -> Result<Times, ExportError> {
        let time = |what, text: &str| {
            text.parse::<Timestamp>()
                .map_err(|_| ExportError::NotATime {
                    what,
                    text: text.chars().take(64).collect(),
                })
        };
        let started = time("begin", &run.started_at)?;
        let duration = i64::try_from(run.duration_ms).unwrap_or(i64::MAX);
        let ended = started
            .checked_add(SignedDuration::from_millis(duration))
            .map_err(|_| ExportError::NotATime {
                what: "duration",
                text: format!("{duration} ms"),
            })?;
        Ok(Times {
            started,
            ended,
            expires: time("end of validity", &run.expires_at)?,
        })
    }
}
