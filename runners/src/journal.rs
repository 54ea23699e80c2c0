//! The journal of a run: one line for the plan, then one for each finished check, each durable before the next begins.
//!
//! If the run is killed, everything but the checks under way can be judged from it: see [`read`].

use std::fs::File;
use std::io::{self, Write};

use dhc_thresholds::{Ending, Identity, JudgedBy, NodeReport, Record, Report, Run};
use serde::{Deserialize, Serialize};

use crate::tables::Chosen;

/// What `schema` says in the first line.
const JOURNAL_SCHEMA: &str = "dhc.journal/1";

/// The first line: which run this is and what it meant to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Always `dhc.journal/1`.
    pub schema: String,
    /// The run, as it began.
    pub run: Run,
    /// By what it was to be judged; journals of before this was kept do not say.
    #[serde(default)]
    pub judged_by: Option<JudgedBy>,
    /// The text of the user's table that it was to be judged by; the file may be another by the time that this is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The node's name.
    pub name: String,
    /// What else the node is called.
    pub identity: Identity,
    /// The checks that were to run or to be skipped, in the order of the result.
    pub planned: Vec<String>,
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

impl Journal {
    /// Begins a journal in an empty file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin(
        file: File,
        run: &Run,
        chosen: &Chosen,
        name: &str,
        identity: &Identity,
        planned: Vec<String>,
    ) -> io::Result<Journal> {
        let mut journal = Journal { file };
        journal.line(&Header {
            table: chosen.text.clone(),
            ..Header::new(run, &chosen.judged_by, name, identity, planned)
        })?;
        Ok(journal)
    }

    /// Adds a finished check and makes it durable.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn add(&mut self, record: &Record) -> io::Result<()> {
        self.line(record)
    }

    fn line(&mut self, content: &impl Serialize) -> io::Result<()> {
        self.file.write_all(line(content)?.as_bytes())?;
        self.file.sync_data()
    }
}

impl Header {
    fn new(
        run: &Run,
        judged_by: &JudgedBy,
        name: &str,
        identity: &Identity,
        planned: Vec<String>,
    ) -> Header {
        Header {
            schema: JOURNAL_SCHEMA.to_owned(),
            run: run.clone(),
            judged_by: Some(judged_by.clone()),
            table: None,
            name: name.to_owned(),
            identity: identity.clone(),
            planned,
        }
    }
}

fn line(content: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(content)? + "\n")
}

/// The journal that a finished run of one node would leave, to be carried elsewhere and judged there. What was kept as proof
/// stays with the node: its digests go along, its text does not.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn to_carry(report: &Report, node: &NodeReport) -> io::Result<String> {
    let planned = node.checks.iter().map(|check| check.check.clone());
    let (run, judged_by) = (&report.run, &report.judged_by);
    let header = Header::new(
        run,
        judged_by,
        &node.name,
        &node.identity,
        planned.collect(),
    );
    let mut text = line(&header)?;
    for check in &node.checks {
        let mut record = check.record.clone();
        for proof in &mut record.evidence {
            proof.truncated |= !proof.text.is_empty();
            proof.text.clear();
        }
        text.push_str(&line(&record)?);
    }
    Ok(text)
}

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("this is neither a dhc result nor a dhc journal")]
pub struct NotAJournal;

/// Reads a journal: its header, and a record for every planned check, *interrupted* where none had finished.
///
/// A last line that was cut short is left out; it belongs to a check that had not finished.
///
/// # Errors
/// When the first line is not that of a journal.
pub fn read(text: &[u8]) -> Result<(Header, Vec<Record>), NotAJournal> {
    let mut lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.last() == Some(&b'\n'));
    let header: Header = lines
        .next()
        .and_then(|line| serde_json::from_slice(line).ok())
        .ok_or(NotAJournal)?;
    if header.schema != JOURNAL_SCHEMA {
        return Err(NotAJournal);
    }
    let finished: Vec<Record> = lines
        .map_while(|line| serde_json::from_slice(line).ok())
        .collect();
    let record = |check: &String| {
        let found = finished
            .iter()
            .find(|record| record.check == *check)
            .cloned();
        found.unwrap_or_else(|| Record::new(check, Ending::Interrupted))
    };
    let records = header.planned.iter().map(record).collect();
    Ok((header, records))
}
