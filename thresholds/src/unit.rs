//! Units and values: what a number is, so that bits never pass for bytes.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::statistics::Better;

/// The unit of a measurement, written in files exactly as [`Unit::symbol`] gives it.
///
/// Prefixes are decimal (`GB/s` is 10⁹ bytes a second) unless they say otherwise (`MiB`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Unit {
    /// A number of things.
    #[serde(rename = "count")]
    Count,
    /// 10⁹ bytes a second.
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    /// 10⁹ bits a second: the unit of link rates.
    #[serde(rename = "Gbit/s")]
    GigabitsPerSecond,
    /// 10⁹ transfers a second and lane: the unit of PCIe speeds.
    #[serde(rename = "GT/s")]
    GigatransfersPerSecond,
    /// 10¹² operations on floating-point numbers a second.
    #[serde(rename = "TFLOP/s")]
    TeraflopsPerSecond,
    /// PCIe lanes.
    #[serde(rename = "lanes")]
    Lanes,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Bytes.
    #[serde(rename = "bytes")]
    Bytes,
    /// 2²⁰ bytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Hundredths.
    #[serde(rename = "percent")]
    Percent,
    /// Degrees Celsius.
    #[serde(rename = "celsius")]
    Celsius,
    /// Watts.
    #[serde(rename = "W")]
    Watts,
    /// 10⁶ cycles a second.
    #[serde(rename = "MHz")]
    Megahertz,
    /// A word out of a closed set that the metric's description names.
    #[serde(rename = "state")]
    State,
}

impl Unit {
    /// Every unit, in the order in which documents list them.
    pub const ALL: &[Unit] = &[
        Unit::Count,
        Unit::GigabytesPerSecond,
        Unit::GigabitsPerSecond,
        Unit::GigatransfersPerSecond,
        Unit::TeraflopsPerSecond,
        Unit::Lanes,
        Unit::Microseconds,
        Unit::Seconds,
        Unit::Bytes,
        Unit::Mebibytes,
        Unit::Percent,
        Unit::Celsius,
        Unit::Watts,
        Unit::Megahertz,
        Unit::State,
    ];

    /// The unit as it stands in threshold files and results.
    pub const fn symbol(self) -> &'static str {
        match self {
            Unit::Count => "count",
            Unit::GigabytesPerSecond => "GB/s",
            Unit::GigabitsPerSecond => "Gbit/s",
            Unit::GigatransfersPerSecond => "GT/s",
            Unit::TeraflopsPerSecond => "TFLOP/s",
            Unit::Lanes => "lanes",
            Unit::Microseconds => "us",
            Unit::Seconds => "s",
            Unit::Bytes => "bytes",
            Unit::Mebibytes => "MiB",
            Unit::Percent => "percent",
            Unit::Celsius => "celsius",
            Unit::Watts => "W",
            Unit::Megahertz => "MHz",
            Unit::State => "state",
        }
    }

    /// Which way a quantity in this unit is better, if its unit alone says so.
    pub const fn better(self) -> Option<Better> {
        match self {
            Unit::GigabytesPerSecond
            | Unit::GigabitsPerSecond
            | Unit::GigatransfersPerSecond
            | Unit::TeraflopsPerSecond => Some(Better::Higher),
            Unit::Microseconds => Some(Better::Lower),
            Unit::Count
            | Unit::Lanes
            | Unit::Seconds
            | Unit::Bytes
            | Unit::Mebibytes
            | Unit::Percent
            | Unit::Celsius
            | Unit::Watts
            | Unit::Megahertz
            | Unit::State => None,
        }
    }

    /// Whether a value of this unit is a word rather than a number.
    pub const fn is_word(self) -> bool {
        matches!(self, Unit::State)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.symbol())
    }
}

/// What was observed: an exact count, a real number or a word.
///
/// Counts are kept apart from reals because a 64-bit counter does not fit into a `f64`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Value {
    /// An exact, non-negative number.
    Count(u64),
    /// A real number; always finite in a measurement.
    Real(f64),
    /// A word.
    Word(Cow<'static, str>),
}

impl Value {
    /// The value as a number to compare with a bound, or `None` for a word.
    #[expect(
        clippy::cast_precision_loss,
        reason = "bounds are far below 2^53; the exact count stays in the result"
    )]
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Count(count) => Some(*count as f64),
            Value::Real(real) => Some(*real),
            Value::Word(_) => None,
        }
    }

    /// Whether the value can be recorded under `unit`: words under [`Unit::State`] alone, and only finite numbers.
    pub fn suits(&self, unit: Unit) -> bool {
        match self {
            Value::Count(_) => !unit.is_word(),
            Value::Real(real) => !unit.is_word() && real.is_finite(),
            Value::Word(_) => unit.is_word(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Count(count) => write!(f, "{count}"),
            Value::Real(real) if real.fract() == 0.0 && real.abs() < 1e15 => write!(f, "{real:.0}"),
            Value::Real(real) if real.abs() >= 100.0 => write!(f, "{real:.1}"),
            Value::Real(real) => write!(f, "{real:.3}"),
            Value::Word(word) => f.write_str(word),
        }
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Value::Count(count)
    }
}

impl From<u32> for Value {
    fn from(count: u32) -> Self {
        Value::Count(u64::from(count))
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Value::Count(count as u64)
    }
}

impl From<f64> for Value {
    fn from(real: f64) -> Self {
        Value::Real(real)
    }
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Value::Word(Cow::Borrowed(word))
    }
}

impl From<String> for Value {
    fn from(word: String) -> Self {
        Value::Word(Cow::Owned(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_written_as_its_symbol() {
        for unit in Unit::ALL {
            assert_eq!(serde_json::to_value(unit).unwrap(), unit.symbol());
        }
    }

    #[test]
    fn a_word_suits_a_state_alone_and_a_number_never_does() {
        assert!(Value::from("up").suits(Unit::State));
        assert!(!Value::from("up").suits(Unit::Count));
        assert!(!Value::from(1_u64).suits(Unit::State));
        assert!(!Value::from(f64::NAN).suits(Unit::Percent));
    }

    #[test]
    fn a_counter_survives_json_to_the_last_bit() {
        let text = serde_json::to_string(&Value::Count(u64::MAX)).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            Value::Count(u64::MAX)
        );
    }
}
