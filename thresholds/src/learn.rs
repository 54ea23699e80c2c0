//! Bounds learned from what healthy machines measure: beyond them a value is unlike the machines it was learned from.
//!
//! Such a bound says *unusual*, not *broken*, so it becomes a warning beside the floor that a table has; and no floor of a
//! table is lowered unless somebody says so.

use std::collections::BTreeSet;

use crate::measurement::{At, Metric};
use crate::peers::Peers;
use crate::statistics::{Better, Centre, tolerance_factor, values_for_minimum};
use crate::table::{Bounds, Conditions, Limit, Number, Table};

/// From fewer things nothing is learned: the bound would say more of chance than of the machines.
pub const THINGS_MIN: usize = 20;

/// Where more than this share of the values has to be dropped, what is left is no picture of healthy machines.
const DROPPED_MAX: f64 = 0.10;

/// Where a bound is worse than the table's own by this share or less, the table's own stays without a question: it is within what
/// a fleet varies from day to day. It is not taken either, since many small steps down would be a long way.
const LOWER_MAX: f64 = 0.02;

/// Digits of a learned bound that are kept.
const DIGITS: i32 = 4;

/// One value, and whose it is. Several of one thing tell of the thing's own variation, and no more of other things.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The device of a node, or the group of a run.
    pub of: String,
    /// What was measured.
    pub value: f64,
}

/// How a bound is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// The share of healthy values that keep the bound.
    pub coverage: f64,
    /// Take the least healthy value for the bound, which assumes no distribution but needs many values.
    pub minimum: bool,
}

/// A bound, and what it was learned from.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// The last value that is not unusual.
    pub bound: f64,
    /// Centre and spread of the values that were kept.
    pub centre: Centre,
    /// How the bound follows from them.
    pub drawn: Drawn,
    /// How many values were kept.
    pub values: usize,
    /// Of how many things.
    pub things: usize,
    /// Which of the samples were dropped since they are beyond the bound.
    pub dropped: Vec<usize>,
    /// The worst value that was kept, where it is a bound of the same coverage and confidence by itself.
    pub minimum: Option<f64>,
}

/// How a bound was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Drawn {
    /// So many spreads from the median: a one-sided tolerance bound.
    Tolerance {
        /// How many.
        factor: f64,
    },
    /// At the worst value of all that were kept.
    Minimum,
}

/// Why nothing was learned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotLearned {
    /// Too few things were measured.
    #[error("{things} measured, {} more are needed for {needed}", needed - things)]
    TooFew {
        /// How many there are.
        things: usize,
        /// How many there have to be.
        needed: usize,
    },
    /// Too many values are unlike the others.
    #[error(
        "{dropped} of {of} values are unlike the others, which is more than a tenth: this is no picture of healthy machines"
    )]
    Unhealthy {
        /// How many had to be dropped.
        dropped: usize,
        /// Of how many.
        of: usize,
    },
    /// The values differ so much that nothing could be beyond the bound.
    #[error(
        "the values differ too much: with the median {median} and the spread {spread} the bound would be {bound}, which nothing \
         can break"
    )]
    TooWide {
        /// Their median.
        median: f64,
        /// Their spread.
        spread: f64,
        /// The bound.
        bound: f64,
    },
}

/// Learns a bound from `samples`, whose order does not matter.
///
/// # Errors
/// When they are too few, too unlike one another, or too wide.
pub fn learn(samples: &[Sample], better: Better, terms: Terms) -> Result<Learned, NotLearned> {
    let mut kept: Vec<usize> = (0..samples.len())
        .filter(|place| samples[*place].value.is_finite())
        .collect();
    let (centre, bound, drawn, things) = loop {
        let values: Vec<f64> = kept.iter().map(|place| samples[*place].value).collect();
        let of: BTreeSet<&str> = kept
            .iter()
            .map(|place| samples[*place].of.as_str())
            .collect();
        let things = of.len();
        if things < THINGS_MIN {
            return Err(NotLearned::TooFew {
                things,
                needed: THINGS_MIN,
            });
        }
        let centre = Centre::of(&values).expect("there are at least as many values as things");
        // Repeats of one thing make a bound no surer.
        let factor = tolerance_factor(things, terms.coverage);
        let bound = if terms.minimum {
            // What assumes no distribution may only drop what is out of the question.
            Peers::new(&values, better)
                .expect("there are more things than a comparison needs")
                .bound()
        } else {
            better.worse(centre.median, factor * centre.spread)
        };
        let before = kept.len();
        kept.retain(|place| better.worse_by(samples[*place].value, bound) <= 0.0);
        let dropped = samples.len() - kept.len();
        #[expect(
            clippy::cast_precision_loss,
            reason = "numbers of values are far below 2^53"
        )]
        if dropped as f64 > DROPPED_MAX * samples.len() as f64 {
            return Err(NotLearned::Unhealthy {
                dropped,
                of: samples.len(),
            });
        }
        if kept.len() == before {
            break (centre, bound, Drawn::Tolerance { factor }, things);
        }
    };
    let worst = kept
        .iter()
        .map(|place| samples[*place].value)
        .max_by(|one, other| better.worse_by(*one, *other).total_cmp(&0.0));
    let needed = values_for_minimum(terms.coverage);
    let minimum = worst.filter(|_| things >= needed);
    let (bound, drawn) = match (terms.minimum, minimum) {
        (false, _) => (bound, drawn),
        (true, Some(worst)) => (worst, Drawn::Minimum),
        (true, None) => return Err(NotLearned::TooFew { things, needed }),
    };
    if better == Better::Higher && bound <= 0.0 || centre.median <= 0.0 {
        return Err(NotLearned::TooWide {
            median: centre.median,
            spread: centre.spread,
            bound,
        });
    }
    let is_dropped = |place: &usize| kept.binary_search(place).is_err();
    Ok(Learned {
        bound: rounded(bound, better),
        centre,
        drawn,
        values: kept.len(),
        things,
        dropped: (0..samples.len()).filter(is_dropped).collect(),
        minimum,
    })
}

/// A bound of a few digits that is no tighter than `bound`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the magnitude of a finite number fits easily"
)]
fn rounded(bound: f64, better: Better) -> f64 {
    let magnitude = bound.abs().log10().floor() as i32;
    // Powers of ten with a negative exponent are not exact, so that a small number is divided instead.
    let shift = 10_f64.powi((DIGITS - 1 - magnitude).abs());
    let up = DIGITS > magnitude;
    let scaled = if up { bound * shift } else { bound / shift };
    let whole = match better {
        Better::Higher => scaled.floor(),
        Better::Lower => scaled.ceil(),
    };
    if up { whole / shift } else { whole * shift }
}

/// What becomes of a table's limit when a bound was learned.
#[derive(Clone, Debug, PartialEq)]
pub enum Revision {
    /// The limit that takes the place of the table's own.
    Limit(Box<Limit>),
    /// The table's own is as tight, or a little tighter, or demands an exact number; it stays.
    Stays,
    /// The learned bound is worse than the table's own by more than 2 %, and nobody has agreed to that.
    Lowers {
        /// The table's own bound.
        own: f64,
        /// By what share of it the learned one is worse.
        by: f64,
    },
}

/// The limit on `metric` measured at `at` that warns beyond a learned bound, and fails where `table` does.
pub fn revise(
    table: &Table,
    metric: &Metric,
    at: &At,
    better: Better,
    bound: f64,
    may_lower: bool,
) -> Revision {
    let holding = table.limits(metric.name, at);
    let number = |number: fn(&Bounds) -> Option<Number>| {
        let numbers = holding
            .iter()
            .filter_map(|limit| table.number(number(&limit.bounds)?));
        numbers.reduce(|one, other| match better {
            Better::Higher => one.max(other),
            Better::Lower => one.min(other),
        })
    };
    let (fail, warn) = match better {
        Better::Higher => (number(|b| b.fail_below), number(|b| b.warn_below)),
        Better::Lower => (number(|b| b.fail_above), number(|b| b.warn_above)),
    };
    if holding.iter().any(|limit| limit.bounds.expect.is_some()) {
        return Revision::Stays;
    }
    if let Some(own) = warn.or(fail)
        && !may_lower
    {
        let lower = better.worse_by(bound, own);
        if lower > LOWER_MAX * own.abs() {
            let by = lower / own.abs();
            return Revision::Lowers { own, by };
        }
        if warn.is_some() && lower > 0.0 {
            return Revision::Stays;
        }
    }
    let beyond_the_floor = fail.is_some_and(|fail| better.worse_by(bound, fail) >= 0.0);
    if beyond_the_floor && !may_lower {
        return Revision::Stays;
    }
    // A floor that healthy machines do not keep is lowered to what they keep, if somebody has agreed to that.
    let (fail, warn) = if beyond_the_floor {
        (Some(bound), None)
    } else {
        (fail, Some(bound))
    };
    let first = holding.first();
    let mut bounds = first.map(|limit| limit.bounds.clone()).unwrap_or_default();
    let (fail, warn) = (fail.map(Number::Fixed), warn.map(Number::Fixed));
    match better {
        Better::Higher => (bounds.fail_below, bounds.warn_below) = (fail, warn),
        Better::Lower => (bounds.fail_above, bounds.warn_above) = (fail, warn),
    }
    Revision::Limit(Box::new(Limit {
        metric: metric.name.to_owned(),
        unit: metric.unit,
        at: Conditions::from(at),
        bounds,
        subjects: first.and_then(|limit| limit.subjects),
        fault: first.and_then(|limit| limit.fault.clone()),
        samples: None,
        validated_on: None,
        source: String::new(),
        origin: String::new(),
    }))
}
