//! `dhc judge` and `dhc compare`: stored results judged again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dhc_runners::cli::{Format, MachineArgs};
use dhc_runners::machine::Machine;
use dhc_runners::{Exit, fleet, status, tables};
use dhc_thresholds::Report;

use super::{Failure, environment, host, measured, show};

pub(crate) fn judge(
    stored: &Report,
    thresholds: Option<&Path>,
    format: Format,
) -> Result<Exit, Failure> {
    let report = judged(stored, thresholds)?;
    show(&report, format)?;
    Ok(Exit::of(&report))
}

/// A stored report judged again, by the user's file or by the table of its own instance type.
fn judged(stored: &Report, thresholds: Option<&Path>) -> Result<Report, Failure> {
    let judged_by = &stored.judged_by;
    let own_type = if judged_by.origin == tables::BUILT_IN {
        Some(judged_by.instance_type.as_str())
    } else {
        instance_type(stored)
    };
    let chosen = tables::choose(thresholds, None, own_type)?;
    let report = stored.judged_again(chosen.judged_by.clone(), &tables::metrics_of, &chosen.table);
    match thresholds {
        Some(_) => Ok(report),
        None => nodes_of_other_types(stored, report),
    }
}

/// Puts results together, with nodes of a type as each other's peers.
pub(crate) fn compare(
    paths: &[PathBuf],
    thresholds: Option<&Path>,
    built_in: bool,
    format: Format,
) -> Result<Exit, Failure> {
    let mut results = Vec::new();
    for path in paths {
        let (stored, _) = measured(path)?;
        if stored.cluster.is_some() {
            return Err(format!(
                "`{}` is of the cluster level, whose groups were compared when they were measured; compare results of the \
                 instance level",
                path.display()
            )
            .into());
        }
        if thresholds.is_none() && !built_in {
            refuse_another_table(&stored)?;
        }
        results.push(judged(&stored, thresholds)?);
    }
    let report = fleet::together(&results, ulid::Ulid::new().to_string())?;
    show(&report, format)?;
    Ok(Exit::of(&report))
}

/// The report with nodes of other instance types than the run's judged by the tables of theirs.
fn nodes_of_other_types(stored: &Report, mut report: Report) -> Result<Report, Failure> {
    for (node, was) in report.nodes.iter_mut().zip(&stored.nodes) {
        let own = was.judged_by.as_ref();
        if let Some(own) = own.filter(|own| own.origin == tables::BUILT_IN) {
            let own = tables::choose(None, None, Some(&own.instance_type))?;
            *node = was.judged_again(&tables::metrics_of, &own.table);
            node.judged_by = Some(own.judged_by);
        }
    }
    let cluster = report.cluster.take();
    let report = Report::new(report.run, report.judged_by, report.nodes);
    Ok(match cluster {
        Some(cluster) => report.with_cluster(cluster),
        None => report,
    })
}

/// What a user's file allowed or forbade must not change for want of a word on the command line.
pub(crate) fn refuse_another_table(stored: &Report) -> Result<(), Failure> {
    let judged_by = &stored.judged_by;
    if judged_by.origin == tables::BUILT_IN {
        return Ok(());
    }
    Err(format!(
        "this run was judged by the file `{}` (SHA-256 {}); name it, or another, with --thresholds, or say --built-in to judge \
         by dhc's own table of {}",
        judged_by.origin,
        judged_by.sha256,
        instance_type(stored).unwrap_or(dhc_thresholds::GENERIC)
    )
    .into())
}

/// The instance type that the nodes said they are of; a user's file may give it another name.
fn instance_type(stored: &Report) -> Option<&str> {
    let first = stored.nodes.first()?;
    first.identity.instance_type.as_deref()
}

/// Refuses a result on which nobody should act any more.
pub(crate) fn refuse_stale(report: &Report, machine: &MachineArgs) -> Result<(), Failure> {
    if let Some(why) = status::out_of_time(report, jiff::Timestamp::now()) {
        return Err(format!("{why}; run the checks again before acting on it").into());
    }
    let here = Machine::look(&host(machine, &BTreeMap::new()), &environment());
    for node in report.nodes.iter().filter(|node| node.name == here.name) {
        if node.identity.boot_id != here.identity.boot_id {
            return Err(format!(
                "the result is from another boot of {}; run the checks again before acting on it",
                node.name
            )
            .into());
        }
    }
    Ok(())
}
