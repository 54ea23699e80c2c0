//! Whether it is the path between two good nodes: every pair in turn, and those that failed once more.

use std::collections::BTreeSet;

use super::{Group, Node, Outcome, Purpose};

/// Pairs that are left to try, those that failed once, and those that failed twice.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    left: Vec<(Node, Node)>,
    to_repeat: Vec<(Node, Node)>,
    slow: Vec<(Node, Node)>,
}

impl Paths {
    pub(super) fn between(nodes: &[Node]) -> Paths {
        Paths {
            left: round_robin(nodes),
            to_repeat: Vec::new(),
            slow: Vec::new(),
        }
    }

    /// The groups to measure next, none when a pair has failed twice or all were tried.
    pub(super) fn wave(&mut self, groups_max: usize) -> Vec<Group> {
        if !self.slow.is_empty() && self.to_repeat.is_empty() {
            return Vec::new();
        }
        let mut pairs = self.to_repeat.clone();
        let mut busy: BTreeSet<Node> = pairs.iter().flat_map(|pair| [pair.0, pair.1]).collect();
        self.left.retain(|pair| {
            let free =
                pairs.len() < groups_max && !busy.contains(&pair.0) && !busy.contains(&pair.1);
            if free {
                busy.extend([pair.0, pair.1]);
                pairs.push(*pair);
            }
            !free
        });
        let group = |pair: &(Node, Node)| Group::new(vec![pair.0, pair.1], Purpose::Path);
        pairs.iter().map(group).collect()
    }

    /// Takes in what a pair turned out to be.
    pub(super) fn take(&mut self, group: &Group, outcome: &Outcome) {
        let [one, other] = group.nodes[..] else {
            return;
        };
        let pair = (one, other);
        let repeated = self.to_repeat.iter().position(|known| *known == pair);
        match (outcome.failed(), repeated) {
            // It has to fail twice, and is off the list if it passes.
            (Some(true), Some(place)) => self.slow.push(self.to_repeat.remove(place)),
            (Some(true), None) => self.to_repeat.push(pair),
            (Some(false), Some(place)) => drop(self.to_repeat.remove(place)),
            (Some(false) | None, _) => {}
        }
    }

    /// Pairs that failed twice.
    pub(super) fn slow(&self) -> &[(Node, Node)] {
        &self.slow
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
