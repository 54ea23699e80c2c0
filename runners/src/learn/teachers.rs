//! Who may teach: which results are of one run or machine, and which machines are no example.

use std::collections::BTreeMap;

use dhc_thresholds::{CheckReport, GENERIC, NodeReport, Report, Status};
use jiff::Timestamp;

use super::{LearnError, Terms};
use crate::tables;

/// Where more than this share of the machines has to be left out, the others are no picture of a healthy fleet either.
const UNFIT_MAX: f64 = 0.10;

/// What programs the figures depend on: how notes of checks begin that name a version.
const VERSIONS: &[&str] = &["NVIDIA driver ", "libfabric ", "MPI: ", "NCCL: "];

/// Each run once, however often its result was named; of results that differ the worst, so that none hides a fault.
pub(super) fn once(
    results: Vec<(String, Report)>,
    said: &mut Vec<String>,
) -> Vec<(String, Report)> {
    let mut all: Vec<(String, Report)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (name, report) in results {
        let place = *places.entry(report.run.id.clone()).or_insert(all.len());
        let Some(kept) = all.get_mut(place) else {
            all.push((name, report));
            continue;
        };
        let bad = |report: &Report| (report.status, !report.complete);
        let other = if bad(&report) > bad(&kept.1) {
            std::mem::replace(kept, (name, report)).0
        } else {
            name
        };
        said.push(format!(
            "{other}: left out, since it is the same run as {}",
            kept.0
        ));
    }
    all
}

/// Gives a machine the instance id that another result knows it by, so that it counts once. (Of two machines that have had the
/// name, either may be meant; to count one too few teaches nothing wrong.)
pub(super) fn name_machines(results: &mut [(String, Report)]) {
    let all = || results.iter().flat_map(|(_, report)| &report.nodes);
    let known: BTreeMap<String, String> = all()
        .filter_map(|node| Some((node.name.clone(), node.identity.instance_id.clone()?)))
        .collect();
    for node in results.iter_mut().flat_map(|(_, report)| &mut report.nodes) {
        if node.identity.instance_id.is_none() {
            node.identity.instance_id = known.get(&node.name).cloned();
        }
    }
}

pub(super) fn nodes<'a>(
    results: &'a [(&'a str, &'a Report)],
) -> impl Iterator<Item = (&'a str, &'a Report, &'a NodeReport)> {
    let nodes = |(name, report): &(&'a str, &'a Report)| {
        let (name, report) = (*name, *report);
        report.nodes.iter().map(move |node| (name, report, node))
    };
    results.iter().flat_map(nodes)
}

/// What a machine is known by from run to run.
pub(super) fn machine(node: &NodeReport) -> &str {
    node.identity.instance_id.as_deref().unwrap_or(&node.name)
}

/// The instance type of a node: its own, or that of the table by which its run was judged, unless that is for any.
pub(crate) fn type_of<'a>(report: &'a Report, node: &'a NodeReport) -> Option<&'a str> {
    let judged_by = report.judged_by.instance_type.as_str();
    let own = node.identity.instance_type.as_deref();
    own.or(Some(judged_by).filter(|name| *name != GENERIC))
}

/// The machines that nothing should be learned from, and why.
pub(super) fn unfit<'a>(
    results: &'a [(&'a str, &'a Report)],
    instance_type: &str,
    terms: &Terms,
    now: Timestamp,
) -> Vec<(&'a str, String)> {
    let mut most: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for (program, version) in nodes(results).flat_map(|(.., node)| versions(node)) {
        *most.entry(program).or_default().entry(version).or_default() += 1;
    }
    let usual = |program: &str| {
        let counts = most.get(program)?.iter();
        counts
            .max_by_key(|(_, count)| **count)
            .map(|(version, _)| *version)
    };
    let mut unfit = Vec::new();
    for (name, report, node) in nodes(results) {
        let mut why =
            |why: String| unfit.push((machine(node), format!("{} ({name}): {why}", node.name)));
        if matches!(node.status, Status::Fail | Status::Error) {
            why(format!("its status is {}", node.status));
        }
        let broken = |check: &&CheckReport| matches!(check.status, Status::Fail | Status::Error);
        let mut together = report.cluster.iter().flat_map(|cluster| &cluster.checks);
        if let Some(check) = together.find(broken) {
            why(format!("{} over all nodes: {}", check.check, check.status));
        }
        if !report.complete {
            why("the run did not come to its end".to_owned());
        }
        match report.run.expires_at.parse::<Timestamp>() {
            Ok(expires) if expires >= now || terms.expired => {}
            Ok(expires) => why(format!(
                "the result expired at {expires}; --expired learns from it all the same"
            )),
            Err(_) => why(format!("`{}` is no time of expiry", report.run.expires_at)),
        }
        match type_of(report, node) {
            Some(other) if !tables::same_type(other, instance_type) => {
                why(format!("it is a {other}, not a {instance_type}"));
            }
            Some(_) | None => {}
        }
        if !terms.mixed_versions {
            for (program, version) in versions(node) {
                if let Some(usual) = usual(program).filter(|usual| *usual != version) {
                    why(format!(
                        "`{version}` where most have `{usual}`; --mixed-versions learns from both together"
                    ));
                }
            }
        }
    }
    unfit
}

/// The versions that the checks of a node name: which program, and the whole note.
pub(super) fn versions(node: &NodeReport) -> BTreeMap<&'static str, &str> {
    let notes = node.checks.iter().flat_map(|check| &check.record.notes);
    let version = |note: &'_ String| VERSIONS.iter().find(|program| note.starts_with(**program));
    notes
        .filter_map(|note| Some((*version(note)?, note.as_str())))
        .collect()
}

/// Whether the machines may teach without so many of them that are unfit.
///
/// # Errors
/// When not: the user has not said so, or too many are out.
pub(super) fn allow(
    unfit: &[(&str, String)],
    count: usize,
    of: usize,
    terms: &Terms,
) -> Result<(), LearnError> {
    if count == 0 {
        return Ok(());
    }
    let unfit: Vec<String> = unfit.iter().map(|(_, why)| format!("  {why}")).collect();
    #[expect(clippy::cast_precision_loss, reason = "numbers of machines are small")]
    let too_many = count as f64 > UNFIT_MAX * of as f64;
    match (terms.leave_out_unfit, too_many) {
        (false, _) => Err(LearnError::Unfit { count, of, unfit }),
        (true, true) => Err(LearnError::UnfitFleet { count, of, unfit }),
        (true, false) => Ok(()),
    }
}
