//! Which threshold table holds: the user's file, else the instance type's own, else what holds for every machine.

use std::path::{Path, PathBuf};

use dhc_checks::catalog;
use dhc_thresholds::{Faults, JudgedBy, Metric, Table, TableErrors, built_in};
use sha2::{Digest, Sha256};

use crate::store;

/// A table and where it came from.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The table.
    pub table: Table,
    /// By what a report says it was judged.
    pub judged_by: JudgedBy,
    /// The text of the user's file; none of a built-in table.
    pub text: Option<String>,
}

/// Why no table could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The user's file cannot be read.
    #[error("cannot read the threshold file `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The user's file, or a built-in table, has mistakes.
    #[error("the threshold file has mistakes:\n{0}")]
    Mistakes(TableErrors),
    /// There is no table for the instance type that the user named.
    #[error(
        "there is no table for the instance type `{0}`; `dhc thresholds show` lists those there are, \
         --thresholds FILE reads your own"
    )]
    NoSuchType(String),
}

/// Every metric that some check declares.
pub fn metrics() -> Vec<&'static Metric> {
    let mut metrics: Vec<&'static Metric> = Vec::new();
    for metric in catalog::CHECKS
        .iter()
        .flat_map(|check| check.spec().metrics)
    {
        if !metrics.iter().any(|known| known.name == metric.name) {
            metrics.push(metric);
        }
    }
    metrics
}

/// The metrics that the check of this name declares; none if this dhc has no such check.
pub fn metrics_of(check: &str) -> Vec<&'static Metric> {
    catalog::find(check).map_or_else(Vec::new, |check| check.spec().metrics.to_vec())
}

/// What [`JudgedBy::origin`] says of a built-in table.
pub const BUILT_IN: &str = "built-in";

/// What SageMaker writes before the name of an instance type of EC2.
const SAGEMAKER: &str = "ml.";

/// The built-in table of this file name, or of this instance type with or without SageMaker's `ml.` before it.
///
/// # Errors
/// When there is none, or it has mistakes.
pub fn built_in_table(name: &str) -> Result<Chosen, TablesError> {
    let metrics = metrics();
    let file = built_in::file_of(name.strip_prefix(SAGEMAKER).unwrap_or(name), &metrics)
        .ok_or_else(|| TablesError::NoSuchType(name.to_owned()))?;
    let table = built_in::load(file, &metrics).expect("`file_of` names a built-in table");
    Ok(chosen(
        table.map_err(TablesError::Mistakes)?,
        BUILT_IN,
        &whole_text(file),
    ))
}

/// Whether two names are of one instance type.
pub fn same_type(one: &str, other: &str) -> bool {
    let canonical = |name: &str| {
        let table = built_in_table(name);
        table.map_or_else(|_| name.to_owned(), |chosen| chosen.table.instance_type)
    };
    one == other || canonical(one) == canonical(other)
}

/// The table of the user's file.
///
/// # Errors
/// When it cannot be read or has mistakes.
pub fn file(path: &Path) -> Result<Chosen, TablesError> {
    let unreadable = |error| TablesError::Unreadable {
        path: path.to_owned(),
        error,
    };
    self::text(path, &store::read_users_text(path).map_err(unreadable)?)
}

/// The table that the text of the user's file at `path` holds.
///
/// # Errors
/// When it has mistakes.
pub fn text(path: &Path, text: &str) -> Result<Chosen, TablesError> {
    let metrics = metrics();
    let origin = path.display().to_string();
    let base = |name: &str| built_in::find(name, &metrics);
    let table = Table::parse(text, &origin, &metrics, &base).map_err(TablesError::Mistakes)?;
    Ok(Chosen {
        text: Some(text.to_owned()),
        ..chosen(table, &origin, text)
    })
}

/// The table that a user names: a file if there is one of this name, else a built-in table.
///
/// # Errors
/// As [`file`] and [`built_in_table`].
pub fn named(name: &str) -> Result<Chosen, TablesError> {
    let path = Path::new(name);
    if path.is_file() {
        file(path)
    } else {
        built_in_table(name)
    }
}

/// The table for a run: the user's file if there is one, else that of the type, else the generic one.
///
/// # Errors
/// As [`file`] and [`built_in_table`]; a type that was only detected and has no table is not an error.
pub fn choose(
    thresholds: Option<&Path>,
    named_type: Option<&str>,
    detected_type: Option<&str>,
) -> Result<Chosen, TablesError> {
    if let Some(path) = thresholds {
        return file(path);
    }
    if let Some(name) = named_type {
        return built_in_table(name);
    }
    match detected_type.map(built_in_table) {
        Some(Ok(chosen)) => Ok(chosen),
        Some(Err(TablesError::NoSuchType(_))) | None => built_in_table(dhc_thresholds::GENERIC),
        Some(Err(error)) => Err(error),
    }
}

fn chosen(table: Table, origin: &str, text: &str) -> Chosen {
    let judged_by = JudgedBy {
        dhc: env!("CARGO_PKG_VERSION").to_owned(),
        instance_type: table.instance_type.clone(),
        origin: origin.to_owned(),
        sha256: hex(&Sha256::digest(text.as_bytes())),
        faults: Faults::built_in().version.clone(),
    };
    Chosen {
        table,
        judged_by,
        text: None,
    }
}

/// The text of a built-in table together with the generic one that it extends, so that their digest names both.
fn whole_text(name: &str) -> String {
    let own = built_in::text(name).unwrap_or_default();
    let generic = built_in::text(dhc_thresholds::GENERIC).unwrap_or_default();
    format!("{generic}{own}")
}

/// Bytes as lower case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
