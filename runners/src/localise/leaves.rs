//! Whether it is the way between the leaves: the search over again, in which each leaf counts as one node.
//!
//! A leaf is represented by a good node of it, by another one each time, so that what fails whoever stands for the leaf is
//! its uplink. All that the search over nodes sees to holds here as well: nothing is said for one failure, and nothing
//! without contrast. Two leaves are compared pair by pair of their nodes, and cannot tell which of them it is: both are named.

use std::collections::BTreeMap;

use super::{
    Conclusion, Group, Leaf, Node, Outcome, Purpose, Random, Search, Settings, Step, Tally,
};

/// Good nodes that a leaf needs: of one alone nobody could tell whether it is the node or its leaf.
const NODES_MIN: usize = 2;

/// Two leaves have nobody to be compared with but themselves: so many pairs more have to fail than pass, or the reverse,
/// and more are not tried.
const PAIRS_LEAD: u32 = 3;
const PAIRS_MAX: u32 = 9;

/// The search under way.
#[derive(Clone, Debug)]
pub(super) struct Leaves {
    leaves: Vec<Leaf>,
    nodes: Vec<Vec<Node>>,
    /// Who of its nodes stands for a leaf next.
    turn: usize,
    search: Box<Search>,
    /// Of two leaves, pairs of nodes over both.
    pairs: Tally,
}

impl Leaves {
    /// A search among the leaves of these good nodes; `None` if there are not two leaves to compare.
    pub(super) fn among(
        good: impl Iterator<Item = (Leaf, Node)>,
        settings: &Settings,
        random: &mut Random,
    ) -> Option<Leaves> {
        let mut under: BTreeMap<Leaf, Vec<Node>> = BTreeMap::new();
        for (leaf, node) in good {
            under.entry(leaf).or_default().push(node);
        }
        under.retain(|_, nodes| nodes.len() >= NODES_MIN);
        if under.len() < 2 {
            return None;
        }
        under.values_mut().for_each(|nodes| random.shuffle(nodes));
        let settings = Settings {
            seed: random.bits(),
            ..settings.clone()
        };
        let (leaves, nodes): (Vec<Leaf>, Vec<Vec<Node>>) = under.into_iter().unzip();
        Some(Leaves {
            search: Box::new(Search::new(leaves.len(), settings).of_abstractions()),
            leaves,
            nodes,
            turn: 0,
            pairs: Tally::default(),
        })
    }

    /// The groups to measure next, none when the search is over.
    pub(super) fn wave(&mut self) -> Vec<Group> {
        self.turn += 1;
        if self.leaves.len() == 2 {
            let decided = self.pairs.failed.abs_diff(self.pairs.passed) >= PAIRS_LEAD;
            if decided || self.turn > PAIRS_MAX as usize {
                return Vec::new();
            }
            let pair = self
                .nodes
                .iter()
                .map(|nodes| nodes[self.turn % nodes.len()]);
            return vec![Group::new(pair.collect(), Purpose::Leaf)];
        }
        let Step::Wave(groups) = self.search.step() else {
            return Vec::new();
        };
        let stands_for = |leaf: &usize| {
            let nodes = &self.nodes[*leaf];
            nodes[self.turn % nodes.len()]
        };
        let groups = groups.iter().map(|group| {
            let nodes = group.nodes.iter().map(stands_for).collect();
            Group::new(nodes, Purpose::Leaf)
        });
        groups.collect()
    }

    pub(super) fn tell(&mut self, outcomes: &[Outcome]) {
        // A node that dies meanwhile says nothing of its leaf.
        let of_leaf = |outcome: &Outcome| match outcome {
            Outcome::Named(_) => Outcome::Unknown,
            other => other.clone(),
        };
        let outcomes: Vec<Outcome> = outcomes.iter().map(of_leaf).collect();
        for failed in outcomes.iter().filter_map(Outcome::failed) {
            self.pairs.add(failed);
        }
        self.search.tell(&outcomes);
    }

    /// The leaves, and pairs of leaves, that are slow to others; neither if it is not the way between leaves.
    pub(super) fn found(&self) -> (Vec<Leaf>, Vec<(Leaf, Leaf)>) {
        if self.leaves.len() == 2 {
            let slow = self.pairs.failed >= self.pairs.passed + PAIRS_LEAD;
            return (
                if slow {
                    self.leaves.clone()
                } else {
                    Vec::new()
                },
                Vec::new(),
            );
        }
        let finding = self.search.finding();
        let leaves =
            |places: Vec<usize>| places.into_iter().map(|leaf| self.leaves[leaf]).collect();
        match finding.conclusion {
            Conclusion::Nodes => {
                let faulty = |leaf: &usize| finding.nodes[*leaf].verdict.is_against();
                (
                    leaves((0..self.leaves.len()).filter(faulty).collect()),
                    Vec::new(),
                )
            }
            Conclusion::AllAlike => (leaves((0..self.leaves.len()).collect()), Vec::new()),
            Conclusion::Paths => {
                let pair = |(one, other): (usize, usize)| (self.leaves[one], self.leaves[other]);
                let pairs = finding.paths.iter().map(|path| pair(path.nodes));
                (Vec::new(), pairs.collect())
            }
            Conclusion::AllGood
            | Conclusion::Leaves
            | Conclusion::Rails
            | Conclusion::NotLocated
            | Conclusion::NotKnown => (Vec::new(), Vec::new()),
        }
    }
}
