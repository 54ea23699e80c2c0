//! What has to pass again before a node is given back: whatever it was taken out for, and by the same rules.

use std::collections::BTreeSet;

use dhc_thresholds::{Action, FaultReport, Identity, JudgedBy, NodeReport, PEERS, Report, Status};

use super::plan::{Newest, Step, cause, step, word_of};
use super::policy::Policy;
use super::scheduler::Mark;

/// What has to pass again.
#[derive(Clone, Debug)]
pub struct Verification<'a> {
    /// The node, with every fault that it was taken out for.
    pub step: Step,
    /// The checks, by the runs that found them failing.
    pub again: Vec<Again<'a>>,
    /// Those that `dhc compare` found, by holding the node against others.
    pub compared: BTreeSet<&'a str>,
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

/// Gathers what has to pass again on this node. `mark` is the mark of dhc that it bears, which tells all that it is out for;
/// `fault_of` is what the history knows of a run.
///
/// # Errors
/// In words, when the results do not tell of everything that the node was taken out for, or hold nothing against it.
pub fn verification<'a>(
    node: &str,
    results: &'a [Report],
    mark: Option<&'a Mark>,
    fault_of: impl Fn(&str) -> Option<String>,
    policy: &Policy,
) -> Result<Verification<'a>, String> {
    let all: Vec<&Report> = results.iter().collect();
    let newest = Newest::of(node, &all);
    let told = newest
        .as_ref()
        .and_then(|newest| step(node, newest, policy));
    let causes = told.iter().flat_map(|step| &step.causes);
    let told_by: BTreeSet<&str> = causes.map(|cause| cause.run.as_str()).collect();
    let marked: BTreeSet<&str> = mark
        .iter()
        .flat_map(|mark| &mark.runs)
        .map(String::as_str)
        .collect();
    let mut again: Vec<Again<'_>> = Vec::new();
    let mut compared = BTreeSet::new();
    let mut causes = Vec::new();
    for run in marked.union(&told_by) {
        // One measured it, and others may have put it together with more.
        let of_run = results
            .iter()
            .filter(|result| word_of(result, node) == *run);
        let of_run: Vec<&Report> = of_run.collect();
        if of_run.is_empty() {
            let fault = fault_of(run).map_or_else(String::new, |fault| format!(" ({fault})"));
            return Err(format!(
                "{node} was taken out on the word of run {run}{fault}, whose result is not among those named; name it as \
                 well, or give the node back by hand"
            ));
        }
        let of_node = of_run.iter().filter_map(|result| {
            let report = result.nodes.iter().find(|report| report.name == node)?;
            Some((*result, report))
        });
        let of_node: Vec<(&Report, &NodeReport)> = of_node.collect();
        if of_node.is_empty() {
            return Err(format!(
                "{node} was taken out on the word of run {run}, whose result does not tell of it; name the right file, or \
                 give the node back by hand"
            ));
        }
        let is_all = marked.contains(*run);
        for (result, report) in of_node {
            let mut checks = BTreeSet::new();
            for fault in &report.faults {
                let cause = cause(result, report, fault, policy);
                let is_told = || told.iter().any(|step| step.causes.contains(&cause));
                if cause.action > Action::None && (is_all || is_told()) {
                    checks.insert(fault.check.as_str());
                    if result.fleet.is_some() && is_of_peers(fault) {
                        compared.insert(fault.check.as_str());
                    }
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
    }
    again.retain(|again| !again.checks.is_empty());
    if again.is_empty() {
        return Err(format!(
            "the results hold nothing against `{node}`; name it with --node"
        ));
    }
    let identity = newest.map_or_else(Identity::default, |newest| newest.identity);
    let mut step = told.unwrap_or_else(|| Step::of(node, identity));
    step.causes = causes;
    Ok(Verification {
        step,
        again,
        compared,
    })
}

/// Whether a thing failed because others of its kind are unlike it.
fn is_of_peers(fault: &FaultReport) -> bool {
    let bound = fault.finding.bound.as_ref();
    fault.finding.status == Status::Fail && bound.is_some_and(|bound| bound.origin == PEERS)
}
