//! What has to pass again before a node is given back: whatever it was taken out for, and by the same rules.

use std::collections::BTreeSet;

use dhc_thresholds::{Action, JudgedBy, NodeReport, Report};

use super::history::Event;
use super::plan::{Newest, Step, cause};
use super::policy::Policy;

/// What has to pass again.
#[derive(Clone, Debug)]
pub struct Verification<'a> {
    /// The node, with every fault that it was taken out for.
    pub step: Step,
    /// The checks, by the runs that found them failing.
    pub again: Vec<Again<'a>>,
}

/// Checks to be run once more as a run has run them.
#[derive(Clone, Debug)]
pub struct Again<'a> {
    /// The run, with its options.
    pub result: &'a Report,
    /// By what it was judged.
    pub judged_by: &'a JudgedBy,
    /// The checks that failed.
    pub checks: BTreeSet<&'a str>,
}

/// Gathers what has to pass again on this node. `marks` are those of the history that were not taken back, `marked` is the run
/// of the mark that the node bears, `step` is what the results hold against the node.
///
/// # Errors
/// In words, when the results do not tell of everything that the node was taken out for, or hold nothing against it.
pub fn verification<'a>(
    node: &str,
    results: &'a [Report],
    step: Option<Step>,
    marks: &[Event],
    marked: Option<&str>,
    policy: &Policy,
) -> Result<Verification<'a>, String> {
    let mut runs: BTreeSet<&str> = marks.iter().map(|mark| mark.run.as_str()).collect();
    runs.extend(marked);
    let told = step.iter().flat_map(|step| &step.causes);
    let told: BTreeSet<&str> = told.map(|cause| cause.run.as_str()).collect();
    let mut again: Vec<Again<'_>> = Vec::new();
    let mut causes = Vec::new();
    for run in runs.union(&told) {
        let found = |result: &&'a Report| result.run.id == **run;
        let result = results.iter().find(found).ok_or_else(|| {
            let of_run = |mark: &&Event| mark.run == **run;
            let fault = marks.iter().find(of_run).map(|mark| mark.fault.as_str());
            let fault = fault.map_or_else(String::new, |fault| format!(" ({fault})"));
            format!(
                "{node} was taken out on the word of run {run}{fault}, whose result is not among those named; name it as \
                 well, or give the node back by hand"
            )
        })?;
        let of_node = |report: &&NodeReport| report.name == node;
        let Some(report) = result.nodes.iter().find(of_node) else {
            return Err(format!(
                "{node} was taken out on the word of run {run}, whose result does not tell of it; name the right file, or \
                 give the node back by hand"
            ));
        };
        let is_all = runs.contains(*run);
        let mut checks = BTreeSet::new();
        for fault in &report.faults {
            let cause = cause(result, report, fault, policy);
            let is_told = || step.iter().any(|step| step.causes.contains(&cause));
            if cause.action > Action::None && (is_all || is_told()) {
                checks.insert(fault.check.as_str());
                causes.push(cause);
            }
        }
        let judged_by = report.judged_by.as_ref().unwrap_or(&result.judged_by);
        again.push(Again {
            result,
            judged_by,
            checks,
        });
    }
    again.retain(|again| !again.checks.is_empty());
    if again.is_empty() {
        return Err(format!(
            "the results hold nothing against `{node}`; name it with --node"
        ));
    }
    let mut step = step.unwrap_or_else(|| Step::of(node, Newest::of(node, results).identity));
    step.causes = causes;
    Ok(Verification { step, again })
}
