//! The built-in tables: those of `instances/`, compiled in.

use super::{EXTENDS_MAX, Metric, Table, TableErrors};

include!(concat!(env!("OUT_DIR"), "/instances.rs"));

/// The file names of all built-in tables without their ending, `generic` among them, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    INSTANCES.iter().map(|(name, _)| *name)
}

/// The text of a built-in table.
pub fn text(name: &str) -> Option<&'static str> {
    INSTANCES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
}

/// The built-in table whose file has this name.
///
/// # Errors
/// When the built-in text has a mistake, which a test rules out for the metrics of this version.
pub fn load(name: &str, metrics: &[&Metric]) -> Option<Result<Table, TableErrors>> {
    load_below(name, metrics, EXTENDS_MAX)
}

/// The file name of the built-in table of the type that anyone calls `name`.
pub fn file_of(name: &str, metrics: &[&Metric]) -> Option<&'static str> {
    let is_called = |file: &str| {
        load(file, metrics).is_some_and(|table| table.is_ok_and(|table| table.is_called(name)))
    };
    // Reading 60 tables takes long; only one that holds the name at all can be called so.
    let mut mentioning = names().filter(|file| text(file).is_some_and(|text| text.contains(name)));
    mentioning.find(|file| *file == name || is_called(file))
}

/// The built-in table of the type that anyone calls `name`.
pub fn find(name: &str, metrics: &[&Metric]) -> Option<Table> {
    load(file_of(name, metrics)?, metrics)?.ok()
}

fn load_below(name: &str, metrics: &[&Metric], depth: usize) -> Option<Result<Table, TableErrors>> {
    // Its own name is no other table that it could extend.
    let base = |base: &str| {
        (base != name)
            .then(|| load_below(base, metrics, depth.checked_sub(1)?)?.ok())
            .flatten()
    };
    Some(Table::parse(text(name)?, name, metrics, &base))
}
