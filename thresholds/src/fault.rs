//! Fault classes and the action that each one asks for, held as data in `faults.toml`.
//!
//! The action table is advice: which of none, retry, reset, reboot, replace or investigate serves a fault best.
//! It is versioned, and its version stands in every result, so that a reader knows which rules spoke.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What recovery tooling should do, mildest first.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing is to be done to the node.
    #[default]
    None,
    /// Run the check again: the look failed, not the hardware.
    Retry,
    /// A person has to look.
    Investigate,
    /// Drain the node and reset the device.
    Reset,
    /// Drain and reboot.
    Reboot,
    /// Drain and replace.
    Replace,
}

impl Action {
    /// The word used in files.
    pub const fn word(self) -> &'static str {
        match self {
            Action::None => "none",
            Action::Retry => "retry",
            Action::Investigate => "investigate",
            Action::Reset => "reset",
            Action::Reboot => "reboot",
            Action::Replace => "replace",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// One fault class: what it means and what to do about it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The class, `<device>.<what>`.
    pub class: String,
    /// One sentence: what was found.
    pub about: String,
    /// What recovery tooling should do.
    pub action: Action,
    /// The line of the decision table that the action follows from, 1 to 8.
    pub rule: u8,
    /// What a person should do, as an instruction.
    pub advice: String,
}

/// The table of all fault classes.
#[derive(Debug)]
pub struct Faults {
    /// Which edition of the rules this is; stands in every result.
    pub version: String,
    by_class: BTreeMap<String, Fault>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultsFile {
    schema: String,
    version: String,
    fault: Vec<Fault>,
}

impl Faults {
    /// The table that is compiled in.
    pub fn built_in() -> &'static Faults {
        static FAULTS: OnceLock<Faults> = OnceLock::new();
        FAULTS.get_or_init(|| {
            let file: FaultsFile = toml::from_str(include_str!("../faults.toml"))
                .expect("faults.toml is compiled in and tested");
            assert_eq!(
                file.schema, "dhc.faults/1",
                "faults.toml is compiled in and tested"
            );
            let by_class = file
                .fault
                .into_iter()
                .map(|fault| (fault.class.clone(), fault))
                .collect();
            Faults {
                version: file.version,
                by_class,
            }
        })
    }

    /// The fault of this class, if there is one.
    pub fn get(&self, class: &str) -> Option<&Fault> {
        self.by_class.get(class)
    }

    /// What to do about a fault of this class; a class that is not in the table needs a person.
    pub fn action(&self, class: &str) -> Action {
        self.get(class)
            .map_or(Action::Investigate, |fault| fault.action)
    }

    /// All classes in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.by_class.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_explained_and_its_rule_fits_its_action() {
        let faults = Faults::built_in();
        for fault in faults.iter() {
            assert!(
                !fault.about.is_empty() && !fault.advice.is_empty(),
                "{} says too little",
                fault.class
            );
            let fits = match fault.action {
                Action::Retry => fault.rule == 1,
                Action::None => fault.rule == 2,
                Action::Investigate => [1, 2, 6, 8].contains(&fault.rule),
                Action::Reset | Action::Reboot => [3, 4, 6].contains(&fault.rule),
                Action::Replace => [5, 7].contains(&fault.rule),
            };
            assert!(
                fits,
                "{} asks for {} by rule {}",
                fault.class, fault.action, fault.rule
            );
        }
    }

    #[test]
    fn no_class_stands_twice() {
        let written = include_str!("../faults.toml").matches("[[fault]]").count();
        assert_eq!(Faults::built_in().iter().count(), written);
    }

    #[test]
    fn an_unheard_of_class_needs_a_person() {
        assert_eq!(
            Faults::built_in().action("gpu.on_fire"),
            Action::Investigate
        );
    }
}
