//! Robust statistics of values that ought to be alike: centre, spread, and how far from the centre is too far.

use statrs::distribution::{ChiSquared, Continuous, ContinuousCDF, Normal};

/// Makes the median absolute deviation of a normal distribution its standard deviation.
const MAD_TO_SIGMA: f64 = 1.4826;

/// The least spread, as a share of the median: equal values must not make any other one an outlier.
const SPREAD_MIN: f64 = 0.005;

/// How sure a tolerance bound is.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// Which way a quantity is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More of it: a bandwidth.
    Higher,
    /// Less of it: a latency.
    Lower,
}

impl Better {
    /// By how much `value` is worse than `than`, in their unit; negative if it is better.
    pub(crate) fn worse_by(self, value: f64, than: f64) -> f64 {
        match self {
            Better::Higher => than - value,
            Better::Lower => value - than,
        }
    }

    /// The value that is worse than `than` by `distance`.
    pub(crate) fn worse(self, than: f64, distance: f64) -> f64 {
        match self {
            Better::Higher => than - distance,
            Better::Lower => than + distance,
        }
    }
}

/// Centre and spread of values, neither moved by a few that are far off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Centre {
    /// The middle one.
    pub median: f64,
    /// What the standard deviation would be if the values were normal, and at least 0.5 % of the median.
    pub spread: f64,
}

impl Centre {
    /// Of these values, in any order; `None` of none.
    pub fn of(values: &[f64]) -> Option<Centre> {
        let median = median(values.to_vec())?;
        let deviations = values.iter().map(|value| (value - median).abs()).collect();
        let deviation = self::median(deviations)?;
        Some(Centre {
            median,
            spread: (MAD_TO_SIGMA * deviation).max(SPREAD_MIN * median.abs()),
        })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 {
        upper
    } else {
        f64::midpoint(values[middle - 1], upper)
    })
}

/// The value of a standard normal distribution that a share of `probability` is not above.
pub(crate) fn normal_quantile(probability: f64) -> f64 {
    Normal::standard().inverse_cdf(probability)
}

/// How many standard deviations below the mean of `count` normal values a bound lies that a share of `coverage` of all
/// further values keeps, with a confidence of 95 %: the quantile of the noncentral t distribution, over √n.
pub(crate) fn tolerance_factor(count: usize, coverage: f64) -> f64 {
    // The share of samples whose bound is sound grows with the factor, so that halving finds it.
    let (mut low, mut high) = (0.0, 100.0);
    for _ in 0..40 {
        let factor = f64::midpoint(low, high);
        if confidence(factor, count, coverage) < CONFIDENCE {
            low = factor;
        } else {
            high = factor;
        }
    }
    high
}

/// How often a bound of `factor` standard deviations below the mean of `count` normal values is kept by a share of
/// `coverage`: P(mean - factor · s <= -z), integrated over the distribution of s.
#[expect(
    clippy::cast_precision_loss,
    reason = "numbers of values are far below 2^53"
)]
fn confidence(factor: f64, count: usize, coverage: f64) -> f64 {
    /// Intervals of Simpson's rule, and how many standard deviations of s they reach to either side.
    const STEPS: usize = 200;
    const REACH: f64 = 9.0;
    let freedom = (count.max(2) - 1) as f64;
    let root = (count as f64).sqrt();
    let z = normal_quantile(coverage);
    let normal = Normal::standard();
    let Ok(chi_squared) = ChiSquared::new(freedom) else {
        return 0.0;
    };
    // The density of s, whose square times the degrees of freedom is chi-squared distributed.
    let density = |s: f64| chi_squared.ln_pdf(freedom * s * s).exp() * 2.0 * freedom * s;
    let integrand = |s: f64| normal.cdf(root * (factor * s - z)) * density(s);
    let width = REACH / (2.0 * freedom).sqrt();
    let from = (1.0 - width).max(1e-9);
    let step = (1.0 + width - from) / STEPS as f64;
    let sum: f64 = (0..=STEPS)
        .map(|place| {
            let weight = match place {
                0 | STEPS => 1.0,
                _ if place % 2 == 1 => 4.0,
                _ => 2.0,
            };
            weight * integrand(from + step * place as f64)
        })
        .sum();
    sum * step / 3.0
}

/// How many values there must be for the least of them to be a bound that a share of `coverage` of all further values
/// keeps, with a confidence of 95 % and whatever their distribution.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few thousand"
)]
pub(crate) fn values_for_minimum(coverage: f64) -> usize {
    ((1.0 - CONFIDENCE).ln() / coverage.ln()).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_spread_are_those_of_the_values_without_the_far_one() {
        let centre = Centre::of(&[10.0, 12.0, 11.0, 900.0, 9.0]).unwrap();
        assert_eq!(centre.median, 11.0);
        assert!((centre.spread - MAD_TO_SIGMA).abs() < 1e-12);
        assert_eq!(Centre::of(&[]), None);
        let even = Centre::of(&[4.0, 4.0]).unwrap();
        assert_eq!((even.median, even.spread), (4.0, 0.02));
    }

    /// The factors that tables of one-sided tolerance limits print, for a confidence of 95 %.
    #[test]
    fn tolerance_factors_are_those_of_the_published_table() {
        let table = [
            (10, 0.99, 3.98),
            (20, 0.99, 3.30),
            (30, 0.99, 3.06),
            (50, 0.99, 2.86),
            (100, 0.99, 2.68),
            (300, 0.99, 2.52),
            (10, 0.999, 5.20),
            (20, 0.999, 4.32),
            (50, 0.999, 3.77),
            (100, 0.999, 3.54),
            (1_000, 0.999, 3.22),
        ];
        for (count, coverage, due) in table {
            let factor = tolerance_factor(count, coverage);
            assert!(
                (factor - due).abs() < 0.006,
                "n = {count}, P = {coverage}: {factor}, not {due}"
            );
        }
        // Beyond any table it nears the quantile of the normal distribution itself, from above.
        let most = tolerance_factor(1_000_000, 0.999) - normal_quantile(0.999);
        assert!(most > 0.0 && most < 0.01, "{most}");
    }

    #[test]
    fn the_least_value_is_a_bound_from_as_many_values_on_as_the_published_table_says() {
        assert_eq!(values_for_minimum(0.95), 59);
        assert_eq!(values_for_minimum(0.99), 299);
        assert_eq!(values_for_minimum(0.999), 2_995);
    }
}
