//! What is believed of each node: the probability that it is faulty, updated by Bayes' rule after every group.
//!
//! The update is a mean-field one: the other members of a group count with their own probabilities as if these were
//! independent. That is exact for a suspect among good nodes, which is what every decision rests on.

/// How often a group lies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// The probability that a group of good nodes fails.
    pub false_alarm: f64,
    /// The probability that a group with one faulty node passes.
    pub miss: f64,
}

/// The probability of being faulty, for each node.
#[derive(Clone, Debug)]
pub(super) struct Belief {
    p: Vec<f64>,
    rates: Rates,
}

/// Beliefs are kept off certainty, so that evidence to the contrary can always win.
const SURE: f64 = 1e-9;

impl Belief {
    pub(super) fn new(priors: Vec<f64>, rates: Rates) -> Self {
        Belief { p: priors, rates }
    }

    /// The probability that node `node` is faulty.
    pub(super) fn of(&self, node: usize) -> f64 {
        self.p[node]
    }

    /// Takes in that the group of these nodes failed or passed.
    pub(super) fn learn(&mut self, group: &[usize], failed: bool) {
        let Rates { false_alarm, miss } = self.rates;
        let (if_faulty, if_all_good) = if failed {
            (1.0 - miss, false_alarm)
        } else {
            (miss, 1.0 - false_alarm)
        };
        let all_good: f64 = group.iter().map(|node| 1.0 - self.p[*node]).product();
        for node in group {
            let p = self.p[*node];
            let others_good = all_good / (1.0 - p);
            let if_good = if_all_good * others_good + if_faulty * (1.0 - others_good);
            let updated = p * if_faulty / (p * if_faulty + (1.0 - p) * if_good);
            self.p[*node] = updated.clamp(SURE, 1.0 - SURE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        false_alarm: 0.01,
        miss: 0.02,
    };

    #[test]
    fn a_failure_among_good_nodes_is_put_on_the_suspect() {
        let mut belief = Belief::new(vec![0.1, 1e-6], RATES);
        belief.learn(&[0, 1], true);
        // 0.1 · 0.98 against 0.9 · 0.01.
        assert!((belief.of(0) - 0.098 / (0.098 + 0.009)).abs() < 1e-3);
        assert!(belief.of(1) < 1e-5);
    }

    #[test]
    fn a_pass_clears_every_member() {
        let mut belief = Belief::new(vec![0.1, 0.1], RATES);
        belief.learn(&[0, 1], false);
        assert!(belief.of(0) < 0.01 && belief.of(1) < 0.01);
    }
}
