//! Writing a threshold file, in the form in which [`super::file`] reads it.

use serde::Serialize;

use super::{Bounds, Conditions, Due, Limit, Number, TABLE_SCHEMA};
use crate::hardware::Hardware;
use crate::unit::Unit;

/// A threshold file to be written. What it holds is of its own; what it extends, holds besides.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The instance type.
    pub instance_type: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// The built-in table that it extends.
    pub extends: Option<String>,
    /// What is due.
    pub hardware: Vec<(Hardware, Due)>,
    /// The limits.
    pub limits: Vec<Limit>,
}

#[derive(Serialize)]
struct File<'a> {
    schema: &'static str,
    instance_type: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    aliases: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    extends: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hardware: Vec<HardwareEntry<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limit: Vec<LimitEntry<'a>>,
}

#[derive(Serialize)]
struct HardwareEntry<'a> {
    kind: Hardware,
    count: u64,
    source: &'a str,
}

#[derive(Serialize)]
struct LimitEntry<'a> {
    metric: &'a str,
    unit: Unit,
    #[serde(flatten)]
    bounds: &'a Bounds,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    validated_on: Option<&'a str>,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subjects: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<ConditionsEntry<'a>>,
}

#[derive(Serialize)]
struct ConditionsEntry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
}

impl Draft {
    /// The text of the file.
    ///
    /// # Errors
    /// When a number in it has no form in TOML (a count beyond 2^63).
    pub fn text(&self) -> Result<String, toml::ser::Error> {
        let hardware = self.hardware.iter().map(|(kind, due)| HardwareEntry {
            kind: *kind,
            count: due.count,
            source: &due.source,
        });
        toml::to_string(&File {
            schema: TABLE_SCHEMA,
            instance_type: &self.instance_type,
            aliases: &self.aliases,
            extends: self.extends.as_deref(),
            hardware: hardware.collect(),
            limit: self.limits.iter().map(entry).collect(),
        })
    }
}

fn entry(limit: &Limit) -> LimitEntry<'_> {
    LimitEntry {
        metric: &limit.metric,
        unit: limit.unit,
        bounds: &limit.bounds,
        fault: limit.fault.as_deref(),
        samples: limit.samples,
        validated_on: limit.validated_on.as_deref(),
        source: &limit.source,
        subjects: limit.subjects,
        at: (limit.at != Conditions::default()).then(|| ConditionsEntry {
            bytes: limit.at.bytes,
            nodes: limit.at.nodes.map(|(from, to)| match to {
                to if to == from => from.to_string(),
                u32::MAX => format!("{from}.."),
                to => format!("{from}..{to}"),
            }),
            provider: limit.at.provider.as_deref(),
        }),
    }
}
