//! What a run says of the nodes together: the waves of groups, and what follows from them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::measurement::Metric;
use crate::report::CheckReport;
use crate::table::Table;

/// The nodes together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterReport {
    /// How ranks were started: `srun`, `mpirun` or `local`.
    pub launcher: String,
    /// The allocation of Slurm, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u32>,
    /// The network cards that rails were tried by, the first of each node on the first rail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rails: Vec<String>,
    /// What is known of the leaf switches, and where that comes from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub topology: String,
    /// The collective over all nodes that nothing is held against: the first over everybody, or the last over those who are
    /// left.
    pub checks: Vec<CheckReport>,
    /// The searches, one for each collective.
    pub searches: Vec<SearchReport>,
}

impl ClusterReport {
    /// The checks judged again under `table`; the waves stay as they were, since they decided what was measured.
    pub fn judged_again(
        &self,
        metrics: &dyn Fn(&str) -> Vec<&'static Metric>,
        table: &Table,
    ) -> Self {
        let checks = self
            .checks
            .iter()
            .map(|check| CheckReport::new(check.record.clone(), &metrics(&check.check), table));
        ClusterReport {
            checks: checks.collect(),
            ..self.clone()
        }
    }
}

/// How the nodes to blame were looked for with one collective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchReport {
    /// The check whose groups these are.
    pub check: String,
    /// What holds for the whole: `all_good`, `nodes`, `paths`, `leaves`, `rails`, `all_alike`, `not_located` or
    /// `not_known`.
    pub conclusion: String,
    /// The conclusion in one sentence, with the figures it rests on.
    pub sentence: String,
    /// Pairs of good nodes that are slow with one another alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<(String, String)>,
    /// What was located, and by which groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub located: Vec<LocatedReport>,
    /// The waves, in order.
    pub waves: Vec<WaveReport>,
    /// Whether the run was stopped or out of time before the search had come to its end.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cut_short: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it this way")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A fault, where it is, and the groups that show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LocatedReport {
    /// What is at fault: `node`, `nic`, `corruption`, `path`, `rail`, `leaf` or `config_or_fabric`.
    pub class: String,
    /// The fault class, for `dhc explain`.
    pub fault: String,
    /// The nodes concerned: accused for `node`, `nic` and `corruption`, and for no other class.
    pub nodes: Vec<String>,
    /// The network cards or rails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rails: Vec<String>,
    /// The leaf switches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaves: Vec<String>,
    /// How probable it is, from 0 to 1, where groups were repeated often enough to say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// What is at fault and why, in one sentence.
    pub sentence: String,
    /// The groups that show it.
    pub tests: Vec<TestReport>,
}

/// Groups of one kind, taken together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TestReport {
    /// Why they were measured, as in [`GroupReport::purpose`].
    pub purpose: String,
    /// The rail that they were confined to, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rail: Option<String>,
    /// The other nodes of the groups; where they are many, the first of them.
    pub with: Vec<String>,
    /// How many passed.
    pub passed: u32,
    /// How many did not.
    pub failed: u32,
}

/// Groups that were measured side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WaveReport {
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// For how long collectives were under way in the group where that took longest, in milliseconds; the rest is launching,
    /// waiting and ending. Left out where the collective does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collective_ms: Option<u64>,
    /// The groups.
    pub groups: Vec<GroupReport>,
}

/// One group of a wave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GroupReport {
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Why it was measured: `whole`, `part`, `suspect`, `closing`, `path`, `leaf`, `alone`, `rail` or `majority`.
    pub purpose: String,
    /// The rail that it was confined to, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rail: Option<String>,
    /// What it turned out to be: `passed`, `failed`, `corrupted`, `named` or `unknown`.
    pub outcome: String,
    /// The nodes that did not let it come to its end, as far as they could be seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<String>,
    /// Its greatest bus bandwidth, in GB/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau_gb_per_s: Option<f64>,
    /// The bound that it was held against, in GB/s, and where that comes from: a table or the other groups of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_gb_per_s: Option<f64>,
    /// See `bound_gb_per_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_from: Option<String>,
    /// What happened, if it did not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Which large messages were left out, if any were since it was too slow for them to matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}
