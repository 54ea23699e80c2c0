//! Whether all nodes are slow on the same rail: pairs of all of them, each pair on one rail.
//!
//! The pairs of one wave are on different rails, so that every wave has its own contrast. A rail is slow if nearly all
//! pairs on it fail, while another one is good.

use super::{Group, Node, Outcome, Purpose, Rail, RailFinding, Rails, Random, Tally};

/// Pairs that have to fail on a slow rail, and how many of them for each that passes. Where fewer fail, some nodes have a
/// slow card, which is no fault of the rail.
const SLOW_MIN: u32 = 4;
const SLOW_FOR_ONE_GOOD: u32 = 5;

/// Pairs that have to pass on a good one, which are more than those that fail.
const GOOD_MIN: u32 = 3;

/// How many waves may be needed beyond one for each rail.
const REPEATS_MAX: usize = 4;

/// The survey under way.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    nodes: Vec<Node>,
    rails: Vec<Tally>,
    groups_max: usize,
    waves: usize,
    asked: Vec<Rail>,
}

impl Survey {
    /// Over `rails` rails, two at least, of these nodes. `None` where a slow rail could not be told from one slow node.
    pub(super) fn of(nodes: Vec<Node>, rails: usize, groups_max: usize) -> Option<Survey> {
        (nodes.len() >= 4 && rails >= 2).then(|| Survey {
            nodes,
            rails: vec![Tally::default(); rails],
            groups_max,
            waves: 0,
            asked: Vec::new(),
        })
    }

    /// The groups to measure next, none when enough is known.
    pub(super) fn wave(&mut self, random: &mut Random) -> Vec<Group> {
        let open: Vec<Rail> = (0..self.rails.len())
            .filter(|rail| !is_slow(self.rails[*rail]) && !is_good(self.rails[*rail]))
            .collect();
        if open.is_empty() || self.waves >= self.rails.len() + REPEATS_MAX {
            return Vec::new();
        }
        let mut nodes = self.nodes.clone();
        random.shuffle(&mut nodes);
        let groups =
            nodes
                .chunks_exact(2)
                .take(self.groups_max)
                .enumerate()
                .map(|(place, pair)| Group {
                    rails: Rails::Only(open[(place + self.waves) % open.len()]),
                    ..Group::new(pair.to_vec(), Purpose::Rail)
                });
        let groups: Vec<Group> = groups.collect();
        self.waves += 1;
        self.asked = groups
            .iter()
            .filter_map(|group| group.rails.only())
            .collect();
        groups
    }

    pub(super) fn tell(&mut self, outcomes: &[Outcome]) {
        for (rail, outcome) in self.asked.iter().zip(outcomes) {
            if let Some(failed) = outcome.failed() {
                self.rails[*rail].add(failed);
            }
        }
    }

    /// The rails that are slow for all.
    pub(super) fn found(&self) -> Vec<RailFinding> {
        if !self.rails.iter().any(|tally| is_good(*tally)) {
            return Vec::new();
        }
        let of_rail = self.rails.iter().enumerate();
        let slow = of_rail.filter(|(_, pairs)| is_slow(**pairs));
        slow.map(|(rail, pairs)| RailFinding {
            rail,
            pairs: *pairs,
        })
        .collect()
    }
}

fn is_slow(pairs: Tally) -> bool {
    pairs.failed >= SLOW_MIN && pairs.failed >= SLOW_FOR_ONE_GOOD * pairs.passed
}

fn is_good(pairs: Tally) -> bool {
    pairs.passed >= GOOD_MIN && pairs.passed >= pairs.failed
}
