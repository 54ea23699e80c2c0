//! What changed between two threshold tables, as text and as a document.

use std::fmt::Write as _;

use dhc_thresholds::Change;
use serde::Serialize;

/// What `schema` says in the document.
const DIFF_SCHEMA: &str = "dhc.thresholds.diff/1";

/// The changes, a line each.
pub fn changes(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        let unknown = "nothing".to_owned();
        let from = change.from.as_ref().unwrap_or(&unknown);
        let to = change.to.as_ref().unwrap_or(&unknown);
        let percent = change
            .percent
            .map_or_else(String::new, |percent| format!(" ({percent:+.1} %)"));
        let line = writeln!(
            text,
            "{} {} {}: {from} -> {to}{percent}",
            change.of,
            change.what,
            change.kind.word()
        );
        line.expect("a string takes all");
    }
    text
}

/// The changes as a document.
///
/// # Errors
/// When it cannot be written as JSON, which a number that is not finite would be the reason for.
pub fn changes_json(changes: &[Change]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Document<'a> {
        schema: &'static str,
        same: bool,
        changes: &'a [Change],
    }
    let document = Document {
        schema: DIFF_SCHEMA,
        same: changes.is_empty(),
        changes,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}
