//! `dhc compare`: the results of several runs as one, nodes of a type held against each other.

use dhc_thresholds::{Report, Run, compare};

use crate::tables;

/// Why results cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// There are none.
    #[error("there are no results to compare")]
    None,
    /// One result names one table.
    #[error(
        "the results are judged by different tables (`{one}`, {one_origin}, and `{other}`, {other_origin}); compare those of one \
         instance type at a time, or judge all of them by one file with --thresholds"
    )]
    Tables {
        /// The instance type of a table.
        one: String,
        /// Where it comes from.
        one_origin: String,
        /// The instance type of another.
        other: String,
        /// Where it comes from.
        other_origin: String,
    },
}

/// One result of all these, named `id`. It expires with the first of them.
///
/// # Errors
/// When there are none, or they were judged by different tables.
pub fn together(results: &[Report], id: String) -> Result<Report, FleetError> {
    let first = results.first().ok_or(FleetError::None)?;
    let judged_by = &first.judged_by;
    if let Some(other) = results.iter().find(|other| other.judged_by != *judged_by) {
        return Err(FleetError::Tables {
            one: judged_by.instance_type.clone(),
            one_origin: judged_by.origin.clone(),
            other: other.judged_by.instance_type.clone(),
            other_origin: other.judged_by.origin.clone(),
        });
    }
    let earliest = |time: fn(&Run) -> &String| {
        let times = results.iter().map(|result| time(&result.run));
        // A time that cannot be read is none that anybody may act on.
        let read = |time: &&String| time.parse::<jiff::Timestamp>().ok();
        times.min_by_key(read).cloned().unwrap_or_default()
    };
    let run = Run {
        id,
        dhc: env!("CARGO_PKG_VERSION").to_owned(),
        level: "fleet".to_owned(),
        started_at: earliest(|run| &run.started_at),
        duration_ms: 0,
        expires_at: earliest(|run| &run.expires_at),
        environment: first.run.environment.clone(),
        options: first.run.options.clone(),
    };
    let (nodes, fleet) = compare(results, &tables::metrics_of);
    Ok(Report::new(run, judged_by.clone(), nodes).with_fleet(fleet))
}
