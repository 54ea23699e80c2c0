//! Whether it is the path between two good nodes: every pair in turn, and those that fail again until it is clear.

use std::collections::BTreeSet;

use super::{Group, Node, Outcome, Purpose, Tally};

/// A pair is slow when it has failed so many times more often than it has passed: one that lies has to do so each time.
const SLOW_LEAD: u32 = 3;

/// How often all pairs are gone through: in the first round one that passes is good, in the next it has to pass once more,
/// since the slow one may have passed by chance.
const ROUNDS: u32 = 2;

/// How many waves those that fail again may take in a round, beside the n − 1 of all pairs.
const WAVES_IN_DOUBT: usize = 10;

/// The pairs, and what became of each.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pairs: Vec<((Node, Node), Tally)>,
    round: u32,
    waves_left: usize,
}

impl Paths {
    pub(super) fn between(nodes: &[Node]) -> Paths {
        let pairs = round_robin(nodes).into_iter();
        let waves_of_round = nodes.len() + WAVES_IN_DOUBT;
        Paths {
            pairs: pairs.map(|pair| (pair, Tally::default())).collect(),
            round: 1,
            waves_left: waves_of_round * ROUNDS as usize,
        }
    }

    /// The groups to measure next, none when some pair is known to be slow and no other one in doubt, or all are good.
    pub(super) fn wave(&mut self, groups_max: usize) -> Vec<Group> {
        if self.waves_left == 0 {
            return Vec::new();
        }
        self.waves_left -= 1;
        let is_found = self.slow().next().is_some();
        loop {
            let groups = self.of_this_round(groups_max, is_found);
            if !groups.is_empty() || is_found || self.round == ROUNDS {
                return groups;
            }
            self.round += 1;
        }
    }

    /// First those in doubt, then those that have not passed in this round, while there are nodes that are free.
    fn of_this_round(&self, groups_max: usize, only_in_doubt: bool) -> Vec<Group> {
        let in_doubt = |tally: &Tally| tally.failed > 0 && tally.failed + 1 > tally.passed;
        let is_open = |(_, tally): &&((Node, Node), Tally)| {
            let undecided = tally.failed < tally.passed + SLOW_LEAD;
            let passed = tally.passed >= tally.failed + self.round;
            undecided && !passed && (!only_in_doubt || in_doubt(tally))
        };
        let (doubtful, others): (Vec<_>, Vec<_>) = self
            .pairs
            .iter()
            .filter(is_open)
            .partition(|(_, tally)| in_doubt(tally));
        let mut busy = BTreeSet::new();
        let mut groups = Vec::new();
        for &((one, other), _) in doubtful.into_iter().chain(others) {
            if groups.len() < groups_max && !busy.contains(&one) && !busy.contains(&other) {
                busy.extend([one, other]);
                groups.push(Group::new(vec![one, other], Purpose::Path));
            }
        }
        groups
    }

    /// Takes in what a pair turned out to be.
    pub(super) fn take(&mut self, group: &Group, outcome: &Outcome) {
        let of_group = |(pair, _): &&mut ((Node, Node), Tally)| group.nodes == [pair.0, pair.1];
        if let Some(failed) = outcome.failed()
            && let Some((_, tally)) = self.pairs.iter_mut().find(of_group)
        {
            tally.add(failed);
        }
    }

    /// Pairs that are known to be slow.
    pub(super) fn slow(&self) -> impl Iterator<Item = (Node, Node)> {
        let is_slow = |tally: &Tally| tally.failed >= tally.passed + SLOW_LEAD;
        let slow = self.pairs.iter().filter(move |(_, tally)| is_slow(tally));
        slow.map(|(pair, _)| *pair)
    }
}

/// All pairs, ordered so that pairs that follow one another share no node where possible (the circle method).
fn round_robin(nodes: &[Node]) -> Vec<(Node, Node)> {
    let mut circle: Vec<Option<Node>> = nodes.iter().copied().map(Some).collect();
    if circle.len() % 2 == 1 {
        circle.push(None);
    }
    let count = circle.len();
    let mut pairs = Vec::new();
    for _ in 1..count {
        for place in 0..count / 2 {
            if let (Some(one), Some(other)) = (circle[place], circle[count - 1 - place]) {
                pairs.push((one.min(other), one.max(other)));
            }
        }
        circle[1..].rotate_right(1);
    }
    pairs
}
