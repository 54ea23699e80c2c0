//! The threshold table of an instance type: what hardware is due, and which bounds its measurements must keep.
//!
//! A table is pure data in TOML. Whatever cannot be meant is refused with file, line and column: an unknown key or
//! metric, another unit than the metric's, bounds that contradict each other, a limit that nothing could break, a
//! number without a source. A table may extend another one: its entries replace those about the same thing.

pub mod built_in;
mod file;
mod write;

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use file::{TableError, TableErrors, TableFile};
pub use write::Draft;

use crate::hardware::Hardware;
use crate::measurement::{At, Metric};
use crate::unit::{Unit, Value};

/// What `schema` says in a threshold file that this version reads.
pub const TABLE_SCHEMA: &str = "dhc.thresholds/1";

/// The instance type of the table that every other one extends in the end: what holds for every machine.
pub const GENERIC: &str = "generic";

/// How many tables may extend one another; more is a circle.
const EXTENDS_MAX: usize = 8;

/// What is due for one instance type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// The instance type, as the cloud or vendor writes it.
    pub instance_type: String,
    /// Other names by which firmware or people call it.
    pub aliases: Vec<String>,
    /// The table that it extends, unless that is the generic one for want of another.
    pub extends: Option<String>,
    /// What is counted; a kind that is not here is not known of this type.
    pub hardware: BTreeMap<Hardware, Due>,
    /// The bounds.
    pub limits: Vec<Limit>,
}

/// How many of a kind of hardware are due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Due {
    /// How many; 0 says that the type has none.
    pub count: u64,
    /// Where the number comes from.
    pub source: String,
}

/// One bound on one metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// The metric.
    pub metric: String,
    /// Its unit.
    pub unit: Unit,
    /// Under which conditions the limit holds; the limit that names most conditions wins.
    pub at: Conditions,
    /// What breaks it.
    pub bounds: Bounds,
    /// On how many subjects the metric has to be measured.
    pub subjects: Option<Number>,
    /// The fault class of a broken limit, if not the metric's or measurement's.
    pub fault: Option<String>,
    /// From how many values the numbers were learned, if they were.
    pub samples: Option<u64>,
    /// The day on which healthy machines last kept it, if somebody has looked.
    pub validated_on: Option<String>,
    /// Where the numbers come from.
    pub source: String,
    /// Which table the limit stands in.
    pub origin: String,
}

/// Conditions of a limit; what is not named may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Conditions {
    /// Message size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Nodes that take part, from and to, both included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<(u32, u32)>,
    /// Provider or transport.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

impl From<&At> for Conditions {
    /// The conditions that hold for measurements taken just so.
    fn from(at: &At) -> Self {
        Conditions {
            bytes: at.bytes,
            nodes: at.nodes.map(|nodes| (nodes, nodes)),
            provider: at.provider.clone(),
        }
    }
}

impl Conditions {
    /// Whether they hold for a measurement taken at `taken`.
    pub fn hold(&self, taken: &At) -> bool {
        self.bytes.is_none_or(|bytes| taken.bytes == Some(bytes))
            && self.nodes.is_none_or(|(from, to)| {
                taken
                    .nodes
                    .is_some_and(|nodes| (from..=to).contains(&nodes))
            })
            && self
                .provider
                .as_ref()
                .is_none_or(|provider| taken.provider.as_ref() == Some(provider))
    }

    /// How many conditions are named.
    pub fn count(&self) -> usize {
        usize::from(self.bytes.is_some())
            + usize::from(self.nodes.is_some())
            + usize::from(self.provider.is_some())
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(bytes) = self.bytes {
            write!(f, " at {bytes} bytes")?;
        }
        match self.nodes {
            Some((from, to)) if from == to => write!(f, " over {from} nodes")?,
            Some((from, u32::MAX)) => write!(f, " over {from} nodes and more")?,
            Some((from, to)) => write!(f, " over {from} to {to} nodes")?,
            None => {}
        }
        match &self.provider {
            Some(provider) => write!(f, " over {provider}"),
            None => Ok(()),
        }
    }
}

/// What breaks a limit. A value *at* a bound keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bounds {
    /// Below this: fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_below: Option<Number>,
    /// Above this: fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_above: Option<Number>,
    /// Below this: warn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn_below: Option<Number>,
    /// Above this: warn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn_above: Option<Number>,
    /// Anything else: fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Number>,
    /// A word that is not among these: fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub one_of: Vec<String>,
    /// A word that is among these: warn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warn_if: Vec<String>,
}

impl Bounds {
    pub(crate) fn numbers(&self) -> [(&'static str, Option<Number>); 5] {
        [
            ("fail_below", self.fail_below),
            ("fail_above", self.fail_above),
            ("warn_below", self.warn_below),
            ("warn_above", self.warn_above),
            ("expect", self.expect),
        ]
    }
}

/// A number, or the number of some hardware that is due.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a number, or the count of some hardware, such as { hardware = \"nvidia_gpu\" }"
)]
pub enum Number {
    /// This number.
    Fixed(f64),
    /// As many as the table has of this hardware.
    Due {
        /// Which.
        hardware: Hardware,
    },
}

impl Table {
    /// Whether `name` is this type's name or one of its aliases.
    pub fn is_called(&self, name: &str) -> bool {
        self.instance_type == name || self.aliases.iter().any(|alias| alias == name)
    }

    /// Whether the table is about machines in general and says nothing about a type.
    pub fn is_generic(&self) -> bool {
        self.instance_type == GENERIC
    }

    /// How many of this hardware are due, if the table says.
    pub fn due(&self, hardware: Hardware) -> Option<u64> {
        self.hardware.get(&hardware).map(|due| due.count)
    }

    /// How many are due of all hardware that the table speaks of.
    pub fn all_due(&self) -> BTreeMap<Hardware, u64> {
        let due = self.hardware.iter();
        due.map(|(hardware, due)| (*hardware, due.count)).collect()
    }

    /// The number that is meant, if the table knows it.
    #[expect(clippy::cast_precision_loss, reason = "counts of devices are small")]
    pub fn number(&self, number: Number) -> Option<f64> {
        match number {
            Number::Fixed(number) => Some(number),
            Number::Due { hardware } => self.due(hardware).map(|count| count as f64),
        }
    }

    /// The limits that hold for `metric` measured at `taken`: those that name most conditions.
    pub fn limits(&self, metric: &str, taken: &At) -> Vec<&Limit> {
        let mut holding: Vec<&Limit> = self
            .limits
            .iter()
            .filter(|limit| limit.metric == metric && limit.at.hold(taken))
            .collect();
        let most = holding
            .iter()
            .map(|limit| limit.at.count())
            .max()
            .unwrap_or(0);
        holding.retain(|limit| limit.at.count() == most);
        holding
    }
}

impl Limit {
    /// The bounds as a person reads them: `>= 430 GB/s`.
    pub fn describe(&self, table: &Table) -> String {
        let number = |number: Number| {
            table
                .number(number)
                .map_or_else(|| "?".to_owned(), |n| Value::Real(n).to_string())
        };
        let bounds = &self.bounds;
        let mut parts = Vec::new();
        let unit = self.unit;
        parts.extend(bounds.expect.map(|n| format!("= {} {unit}", number(n))));
        parts.extend(
            bounds
                .fail_below
                .map(|n| format!(">= {} {unit}", number(n))),
        );
        parts.extend(
            bounds
                .fail_above
                .map(|n| format!("<= {} {unit}", number(n))),
        );
        parts.extend(
            bounds
                .warn_below
                .map(|n| format!("warns below {} {unit}", number(n))),
        );
        parts.extend(
            bounds
                .warn_above
                .map(|n| format!("warns above {} {unit}", number(n))),
        );
        if !bounds.one_of.is_empty() {
            parts.push(format!("one of {}", bounds.one_of.join(", ")));
        }
        if !bounds.warn_if.is_empty() {
            parts.push(format!("warns if {}", bounds.warn_if.join(", ")));
        }
        parts.join(", ")
    }
}
