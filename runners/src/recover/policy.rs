//! How far the actions that verdicts ask for are followed, as data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dhc_thresholds::{Action, Faults};
use jiff::SignedDuration;
use serde::Deserialize;

use super::plan::Step;

/// What `schema` says in a policy that this version reads.
const SCHEMA: &str = "dhc.policy/1";

/// The policies that are built in, by name.
const PROFILES: &[(&str, &str)] = &[
    ("default", include_str!("../../policies/default.toml")),
    ("hyperpod", include_str!("../../policies/hyperpod.toml")),
];

/// A policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    schema: String,
    /// Which policy this is, and its edition; stands in every plan and in the history.
    pub version: String,
    /// Whether anything is done at all.
    pub mode: Mode,
    /// Who is told of it.
    pub scheduler: Kind,
    pub(super) guards: Guards,
    pub(super) history: Memory,
    /// Actions that differ from those of the fault classes, by class or by `family.*`.
    #[serde(default)]
    actions: BTreeMap<String, Action>,
    /// How each action is asked for on Slurm.
    #[serde(default)]
    pub(super) slurm: BTreeMap<Action, Marking>,
    /// How each action is asked for on Kubernetes.
    #[serde(default)]
    pub(super) kubernetes: Labels,
}

/// Whose nodes they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Slurm's.
    Slurm,
    /// Those of a Kubernetes cluster.
    Kubernetes,
}

/// Whether anything is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It is said what would be done.
    Observe,
    /// It is done.
    Enforce,
}

/// How many nodes may be touched.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Guards {
    nodes_max: usize,
    share_max_percent: f64,
    /// Nodes that were touched so long ago still count.
    pub(super) window_minutes: u32,
}

/// What of the past counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    /// So long after a reboot for it, a fault that is there again asks for a replacement.
    pub(super) same_fault_hours: u32,
    /// So many reboots in [`Memory::reboots_hours`] ask for a replacement.
    pub(super) reboots_max: usize,
    pub(super) reboots_hours: u32,
}

/// How a node is marked on Slurm.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marking {
    /// The state that the node gets: `drain` or `fail`.
    pub(super) state: MarkState,
    /// The reason, with `{class}` and `{run}`.
    pub(super) reason: Reason,
}

/// The longest reason, with class and run in their places.
pub(super) const REASON_MAX: usize = 200;

/// A reason that Slurm gives back letter by letter, so that dhc knows its own mark again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Reason(String);

impl TryFrom<String> for Reason {
    type Error = String;

    fn try_from(text: String) -> Result<Reason, String> {
        // A line break would end up in Slurm's logs as one, and scontrol takes quotes away.
        let is_plain =
            |c: char| c == ' ' || (c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '`'));
        if let Some(c) = text.chars().find(|c| !is_plain(*c)) {
            return Err(format!(
                "a reason is one line of printable ASCII without quotes, backslashes and backticks, and this one has `{}`",
                c.escape_default()
            ));
        }
        if text.trim() != text {
            return Err(
                "a reason neither begins nor ends with a blank, which Slurm does not keep"
                    .to_owned(),
            );
        }
        let classes = Faults::built_in().iter().map(|fault| fault.class.as_str());
        let longest = classes.max_by_key(|class| class.len()).unwrap_or_default();
        let filled = filled(&text, longest, &ulid::Ulid::nil().to_string());
        if filled.is_empty() || filled.len() > REASON_MAX {
            return Err(format!(
                "a reason has 1 to {REASON_MAX} characters, with class and run in their places, and this one has up to {}",
                filled.len()
            ));
        }
        Ok(Reason(text))
    }
}

impl Reason {
    /// The reason with the step's fault class and run in their places.
    pub(super) fn of(&self, step: &Step) -> String {
        filled(&self.0, step.class(), step.run())
    }
}

fn filled(text: &str, class: &str, run: &str) -> String {
    text.replace("{class}", class).replace("{run}", run)
}

/// How a node is marked on Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Labels {
    /// The value of the label `node-health-status` for each action.
    #[serde(default)]
    pub(super) status: BTreeMap<Action, String>,
    /// The fault type of each family of fault classes: the condition's name, and the value of the label `fault-types`.
    #[serde(default)]
    fault_types: BTreeMap<String, String>,
    /// Taints that say what a node is and not that somebody took it out of service. May end with `/*`.
    #[serde(default)]
    taints_allowed: Vec<String>,
}

impl Labels {
    /// The fault type of a class.
    pub(super) fn fault_type(&self, class: &str) -> Option<&str> {
        nearest(&self.fault_types, class).map(String::as_str)
    }

    /// Whether some class is of this fault type.
    pub(super) fn has_fault_type(&self, fault_type: &str) -> bool {
        self.fault_types.values().any(|known| known == fault_type)
    }

    /// Whether a taint with this key may be on a node in service.
    pub(super) fn allows_taint(&self, key: &str) -> bool {
        self.taints_allowed
            .iter()
            .any(|allowed| match allowed.strip_suffix('*') {
                Some(domain) => key.starts_with(domain),
                None => key == allowed,
            })
    }
}

/// A state of a node that takes no new jobs and lets those that run go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MarkState {
    /// No new jobs.
    Drain,
    /// No new jobs, and running ones may give the node back.
    Fail,
}

impl MarkState {
    /// The word that Slurm knows.
    pub(super) const fn word(self) -> &'static str {
        match self {
            MarkState::Drain => "drain",
            MarkState::Fail => "fail",
        }
    }
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the policy `{}`; the built-in ones are: {}", path.display(), names())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// It is not TOML, or has keys that are none.
    #[error("the policy `{origin}` has a mistake: {error}")]
    Mistake {
        /// The file.
        origin: String,
        /// What is wrong, with line and column.
        error: Box<toml::de::Error>,
    },
    /// It is read well and cannot be meant.
    #[error("the policy `{origin}`: {why}")]
    Senseless {
        /// The file.
        origin: String,
        /// What is wrong and what to write.
        why: String,
    },
}

fn names() -> String {
    let names: Vec<&str> = PROFILES.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

impl Policy {
    /// The policy of this file; a built-in one where the name is one of theirs.
    ///
    /// # Errors
    /// When it cannot be read, or makes no sense.
    pub fn load(name: &Path) -> Result<Policy, PolicyError> {
        if let Some((name, text)) = name
            .to_str()
            .and_then(|name| Some((name, Policy::built_in(name)?)))
        {
            return Policy::parse(text, name);
        }
        let unreadable = |error| PolicyError::Unreadable {
            path: name.to_owned(),
            error,
        };
        let text = crate::store::read_file(name).map_err(unreadable)?;
        let text = String::from_utf8(text)
            .map_err(|error| unreadable(std::io::Error::other(error.utf8_error())))?;
        Policy::parse(&text, &name.display().to_string())
    }

    /// The text of the built-in policy of this name.
    pub fn built_in(name: &str) -> Option<&'static str> {
        let found = PROFILES.iter().find(|(profile, _)| *profile == name);
        found.map(|(_, text)| *text)
    }

    fn parse(text: &str, origin: &str) -> Result<Policy, PolicyError> {
        let policy: Policy = toml::from_str(text).map_err(|error| PolicyError::Mistake {
            origin: origin.to_owned(),
            error: Box::new(error),
        })?;
        let senseless = |why: String| PolicyError::Senseless {
            origin: origin.to_owned(),
            why,
        };
        if policy.schema != SCHEMA {
            let schema = &policy.schema;
            return Err(senseless(format!(
                "its schema is `{schema}`, and this dhc reads `{SCHEMA}`"
            )));
        }
        if !(0.0..=100.0).contains(&policy.guards.share_max_percent) {
            return Err(senseless(
                "`share_max_percent` is a number from 0 to 100".to_owned(),
            ));
        }
        for class in policy.actions.keys() {
            if !names_a_fault(class) {
                return Err(senseless(format!(
                    "`actions` names `{class}`, which is no fault class; `dhc explain CLASS` tells of one"
                )));
            }
        }
        let marks = policy.slurm.keys().map(|action| ("slurm", action));
        let labels = policy.kubernetes.status.keys();
        for (whose, action) in marks.chain(labels.map(|action| ("kubernetes.status", action))) {
            if !acts(*action) {
                return Err(senseless(format!(
                    "`{whose}.{action}` would mark a node for `{action}`; only reset, reboot and replace mark one"
                )));
            }
        }
        let labels = policy.kubernetes.status.values();
        for value in labels.chain(policy.kubernetes.fault_types.values()) {
            // Kubernetes' own rule for the value of a label, less the signs in between.
            let plain = value.chars().all(|c| c.is_ascii_alphanumeric());
            if value.is_empty() || !plain || value.len() > 63 {
                return Err(senseless(format!(
                    "`kubernetes` has `{value}` for a label; write 1 to 63 letters and digits"
                )));
            }
        }
        if let Some(class) = policy
            .kubernetes
            .fault_types
            .keys()
            .find(|class| !names_a_fault(class))
        {
            return Err(senseless(format!(
                "`kubernetes.fault_types` names `{class}`, which is no fault class; `dhc explain CLASS` tells of one"
            )));
        }
        if let Some(taint) = policy
            .kubernetes
            .taints_allowed
            .iter()
            .find(|taint| taint.trim_end_matches("/*").is_empty() || taint.as_str() == "*")
        {
            return Err(senseless(format!(
                "`kubernetes.taints_allowed` has `{taint}`, which would allow every taint; name its domain"
            )));
        }
        Ok(policy)
    }

    /// What is done about a fault of this class.
    pub fn action(&self, class: &str) -> Action {
        let own = nearest(&self.actions, class);
        match own.map_or_else(|| Faults::built_in().action(class), |action| *action) {
            Action::Reset if self.reset_is_reboot() => Action::Reboot,
            action => action,
        }
    }

    /// Whether a reset is asked for in the very words of a reboot, and so is one, to be counted as one. Words that ask for
    /// everything alike ask for nothing in particular.
    fn reset_is_reboot(&self) -> bool {
        use Action::{Reboot, Replace, Reset};
        fn alike<T: PartialEq>(all: &BTreeMap<Action, T>, one: Action, other: Action) -> bool {
            all.contains_key(&one) && all.get(&one) == all.get(&other)
        }
        match self.scheduler {
            Kind::Slurm => alike(&self.slurm, Reset, Reboot) && !alike(&self.slurm, Reset, Replace),
            Kind::Kubernetes => {
                let words = &self.kubernetes.status;
                alike(words, Reset, Reboot) && !alike(words, Reset, Replace)
            }
        }
    }

    /// How long a node that was touched counts as one of those that are.
    pub fn window(&self) -> SignedDuration {
        SignedDuration::from_mins(self.guards.window_minutes.into())
    }

    /// How many of `nodes` may be touched.
    pub fn most(&self, nodes: usize) -> usize {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a number of nodes"
        )]
        let share = (nodes as f64 * self.guards.share_max_percent / 100.0) as usize;
        share.max(self.guards.nodes_max)
    }
}

/// Whether an action is one that touches a node.
pub(super) fn acts(action: Action) -> bool {
    action >= Action::Reset
}

/// What holds for the pattern that says most of a class.
fn nearest<'a, T>(patterns: &'a BTreeMap<String, T>, class: &str) -> Option<&'a T> {
    patterns
        .iter()
        .filter(|(pattern, _)| fits(pattern, class))
        .max_by_key(|(pattern, _)| (!pattern.ends_with(".*"), pattern.len()))
        .map(|(_, found)| found)
}

fn names_a_fault(pattern: &str) -> bool {
    let mut faults = Faults::built_in().iter();
    faults.any(|fault| fits(pattern, &fault.class))
}

fn fits(pattern: &str, class: &str) -> bool {
    match pattern.strip_suffix(".*") {
        Some(family) => class
            .strip_prefix(family)
            .is_some_and(|rest| rest.starts_with('.')),
        None => pattern == class,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_with(old: &str, new: &str) -> Result<Policy, PolicyError> {
        let text = PROFILES[0].1;
        assert!(text.contains(old), "{old}");
        Policy::parse(&text.replace(old, new), "test")
    }

    #[test]
    fn the_built_in_policies_are_sound_and_do_nothing_by_themselves() {
        for (name, _) in PROFILES {
            let policy = Policy::load(Path::new(name)).unwrap();
            assert_eq!(policy.mode, Mode::Observe, "{name}");
            assert!(policy.version.starts_with(name), "{name}");
            assert_eq!(policy.slurm.len(), 3, "{name}");
            assert_eq!(policy.kubernetes.status.len(), 3, "{name}");
            let types = [
                "gpu.lost",
                "nvlink.link_down",
                "neuron.missing",
                "nic.missing",
            ]
            .map(|class| policy.kubernetes.fault_type(class));
            let (gpu, neuron) = (Some("NvidiaGPUUnhealthy"), Some("NeuronUnhealthy"));
            assert_eq!(
                types,
                [gpu, gpu, neuron, Some("NetworkUnhealthy")],
                "{name}"
            );
        }
    }

    #[test]
    fn hyperpod_s_reasons_are_its_own_letter_by_letter() {
        let policy = Policy::load(Path::new("hyperpod")).unwrap();
        assert_eq!(policy.slurm[&Action::Reboot].reason.0, "Action:Reboot");
        assert_eq!(policy.slurm[&Action::Replace].reason.0, "Action:Replace");
        assert_eq!(policy.action("nvlink.link_down"), Action::Replace);
        assert_eq!(policy.action("nvlink.fabric"), Action::Investigate);
        assert_eq!(
            policy.action("gpu.memory.uncorrectable_now"),
            Action::Replace
        );
        assert_eq!(
            policy.kubernetes.status[&Action::Reboot],
            "UnschedulablePendingReboot"
        );
        assert_eq!(
            policy.kubernetes.status[&Action::Replace],
            "UnschedulablePendingReplacement"
        );
        assert_eq!(policy.action("gpu.missing"), Action::Reboot);
    }

    #[test]
    fn a_taint_that_only_says_what_a_node_is_is_told_from_one_that_keeps_it_out() {
        let labels = Policy::load(Path::new("default")).unwrap().kubernetes;
        assert!(labels.allows_taint("nvidia.com/gpu"));
        for key in ["nvidia.com/gpu-broken", "maintenance", ""] {
            assert!(!labels.allows_taint(key), "{key}");
        }
    }

    #[test]
    fn the_nearest_pattern_decides() {
        let policy =
            default_with("[actions]", "[actions]\n\"gpu.*\" = \"replace\"\n\"gpu.memory.*\" = \"none\"\n\"gpu.memory.worn\" = \"reboot\"")
                .unwrap();
        assert_eq!(policy.action("gpu.lost"), Action::Replace);
        assert_eq!(policy.action("gpu.memory.remap_failed"), Action::None);
        assert_eq!(policy.action("gpu.memory.worn"), Action::Reboot);
        assert_eq!(
            policy.action("nic.missing"),
            Faults::built_in().action("nic.missing")
        );
    }

    #[test]
    fn two_nodes_or_one_in_twenty_may_be_touched() {
        let policy = Policy::load(Path::new("default")).unwrap();
        assert_eq!(
            [1, 8, 64, 100, 1_000].map(|nodes| policy.most(nodes)),
            [2, 2, 3, 5, 50]
        );
    }

    #[test]
    fn mistakes_are_refused_with_what_to_write() {
        for (old, new, word) in [
            ("nodes_max", "nodes_most", "nodes_most"),
            ("mode = \"observe\"", "mode = \"on\"", "enforce"),
            ("dhc.policy/1", "dhc.policy/2", "dhc.policy/1"),
            (
                "[actions]",
                "[actions]\n\"gpu.lots\" = \"reboot\"",
                "gpu.lots",
            ),
            ("percent = 5", "percent = 500", "share_max_percent"),
            ("slurm.reset", "slurm.retry", "slurm.retry"),
            (":reset\"", "\\n\"", "line 36"),
            (":reset\"", "'s reset\"", "quotes"),
            (":reset\"", "\\\\\"", "backslashes"),
            (":reset\"", "`\"", "backticks"),
            (":reset\"", " \"", "blank"),
            (
                ":reset\"",
                "{run}{run}{run}{run}{run}{run}{run}\"",
                "200 characters",
            ),
            ("scheduler = \"slurm\"", "scheduler = \"pbs\"", "kubernetes"),
            (
                "reset = \"Unsch",
                "retry = \"Unsch",
                "kubernetes.status.retry",
            ),
            ("\"NeuronUnhealthy\"", "\"no label\"", "no label"),
            ("\"nvidia.com/gpu\"", "\"*\"", "every taint"),
        ] {
            let error = default_with(old, new).unwrap_err().to_string();
            assert!(error.contains(word), "{new}: {error}");
        }
    }
}
