//! What the groups of a search have shown so far, and what follows from it for each node. Plans nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::belief::Belief;
use super::{Conclusion, Gone, Group, Leaf, Node, Outcome, Purpose, Rates, Tally, Verdict};

/// Above this probability a node is open: it has to be looked at again.
pub(super) const OPEN: f64 = 1e-3;

/// Above this one it is a suspect, to be tried alone among good nodes and kept out of the closing test.
pub(super) const SUSPECT: f64 = 0.05;

/// From this one on, with enough failed groups, it is faulty.
pub(super) const FAULTY: f64 = 0.9993;

/// Failed groups that an accusation needs, and those among them with different nodes that are good; as many of these have to
/// be left without any one other node.
pub(super) const FAILS_MIN: u32 = 3;
pub(super) const WITNESSES_MIN: usize = 2;

/// Groups that have to name a node one after the other before it counts as one that takes part in nothing.
const NAMED_RUNNING: u32 = 2;

/// Groups that have to pass before a node counts as healthy.
const PASSES_MIN: u32 = 2;

/// Where leaves are known, so many parts that failed, with nobody accused, ask for a closing test.
const UNEXPLAINED_MIN: u32 = 2;

/// So many closing tests have to pass after the whole has failed, where nobody is accused.
const CLOSINGS_IN_DOUBT: u32 = 2;

/// From so many failed groups on, and so many for each that passed, all nodes are taken to be alike where nothing else
/// explains it.
const ALIKE_MIN: usize = 6;
const ALIKE_FOR_ONE_GOOD: usize = 5;

/// What is remembered of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) passed: u32,
    pub(super) failed: u32,
    /// Those of the failed ones that got stuck, ended in an error, or came to wrong results; the rest was slow.
    hung: u32,
    broken: u32,
    corrupted: u32,
    /// Groups that named it, and those of them after which it has not worked.
    pub(super) named: u32,
    named_since: u32,
    /// Why it cannot be measured any more, if it cannot.
    pub(super) gone: Option<Gone>,
    /// Whom it was tried with as a suspect.
    pub(super) partners: BTreeSet<Node>,
}

impl Known {
    /// Whether it is left out of all further groups.
    pub(super) fn is_out(&self) -> bool {
        self.gone.is_some() || self.is_absent() || self.is_unsteady()
    }

    /// Whether it takes part in nothing: it stopped all groups that it was in, or is down.
    pub(super) fn is_absent(&self) -> bool {
        self.gone == Some(Gone::Down) || self.named_since >= NAMED_RUNNING
    }

    /// Whether it was named as often as an accusation needs, and worked in between.
    pub(super) fn is_unsteady(&self) -> bool {
        self.named >= FAILS_MIN
    }

    /// Named, and not tried often enough since to say what it is.
    pub(super) fn is_to_be_tried(&self) -> bool {
        self.named_since > 0 && !self.is_out()
    }

    /// Whether what it is accused of is wrong results.
    pub(super) fn is_wrong(&self) -> bool {
        self.accusation() == Verdict::Corrupting
    }

    /// What it is accused of if it is proven to be faulty: what most of its failed groups show.
    pub(super) fn accusation(&self) -> Verdict {
        if self.corrupted * 2 > self.failed {
            return Verdict::Corrupting;
        }
        if (self.hung + self.broken) * 2 <= self.failed {
            return Verdict::Faulty;
        }
        if self.hung >= self.broken {
            Verdict::Hanging
        } else {
            Verdict::Breaking
        }
    }
}

/// Everything that was told.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    /// The leaf of each node, and the nodes of each leaf.
    leaves: Option<Vec<Leaf>>,
    under: BTreeMap<Leaf, Vec<Node>>,
    belief: Belief,
    pub(super) nodes: Vec<Known>,
    failed_groups: Vec<Vec<Node>>,
    /// Of each node the places of its own among the failed groups, so that nobody has to look through all of them.
    failures: Vec<Vec<usize>>,
    passed_groups: usize,
    /// Parts that passed and failed; only where some passed there is contrast.
    parts: Tally,
    whole_passed: bool,
    /// The set that passed a closing test, until something is held against one of it.
    closed: Option<BTreeSet<Node>>,
    closings: Tally,
}

impl Evidence {
    pub(super) fn new(priors: Vec<f64>, rates: Rates) -> Evidence {
        Evidence {
            leaves: None,
            under: BTreeMap::new(),
            nodes: vec![Known::default(); priors.len()],
            failures: vec![Vec::new(); priors.len()],
            belief: Belief::new(priors, rates),
            failed_groups: Vec::new(),
            passed_groups: 0,
            parts: Tally::default(),
            whole_passed: false,
            closed: None,
            closings: Tally::default(),
        }
    }

    /// The same, of nodes under these leaves. They count only if every node has one.
    pub(super) fn under(self, leaves: Option<Vec<Leaf>>) -> Evidence {
        let leaves = leaves.filter(|leaves| leaves.len() == self.nodes.len());
        let mut under: BTreeMap<Leaf, Vec<Node>> = BTreeMap::new();
        for (node, leaf) in leaves.iter().flatten().enumerate() {
            under.entry(*leaf).or_default().push(node);
        }
        Evidence {
            leaves,
            under,
            ..self
        }
    }

    /// Takes in what a group turned out to be.
    pub(super) fn take(&mut self, group: &Group, outcome: &Outcome) {
        match outcome {
            Outcome::Unknown => {}
            Outcome::Named(named) => {
                for node in named.iter().filter(|node| group.nodes.contains(node)) {
                    self.nodes[*node].named += 1;
                    self.nodes[*node].named_since += 1;
                    self.closed = None;
                }
            }
            Outcome::Passed => self.passed(group),
            Outcome::Failed | Outcome::Hung | Outcome::Broken | Outcome::Corrupted => {
                self.failed(group, outcome);
            }
        }
    }

    /// This node cannot be measured any more. Whether that is new.
    pub(super) fn lose(&mut self, node: Node, gone: Gone) -> bool {
        let is_new = self.nodes[node].gone.is_none();
        if is_new {
            self.nodes[node].gone = Some(gone);
            // Without it everybody else has to be shown to be good.
            self.closed = self.closed.take().filter(|_| gone != Gone::Down);
        }
        is_new
    }

    fn passed(&mut self, group: &Group) {
        self.belief.learn(&group.nodes, false);
        self.passed_groups += 1;
        for node in &group.nodes {
            self.nodes[*node].passed += 1;
            self.nodes[*node].named_since = 0;
        }
        match group.purpose {
            Purpose::Whole => self.whole_passed = true,
            Purpose::Part => self.parts.add(false),
            Purpose::Closing => {
                self.closed = Some(group.nodes.iter().copied().collect());
                self.closings.add(false);
            }
            Purpose::Suspect
            | Purpose::Path
            | Purpose::Leaf
            | Purpose::Alone
            | Purpose::Rail
            | Purpose::Majority => {}
        }
    }

    fn failed(&mut self, group: &Group, outcome: &Outcome) {
        for node in &group.nodes {
            let known = &mut self.nodes[*node];
            known.failed += 1;
            known.hung += u32::from(*outcome == Outcome::Hung);
            known.broken += u32::from(*outcome == Outcome::Broken);
            known.corrupted += u32::from(*outcome == Outcome::Corrupted);
            // A group that got stuck shows of nobody that it works.
            if matches!(outcome, Outcome::Failed | Outcome::Corrupted) {
                known.named_since = 0;
            }
        }
        if group.purpose == Purpose::Path {
            // Both are good with others: what is left is the path.
            return;
        }
        self.belief.learn(&group.nodes, true);
        for node in &group.nodes {
            self.failures[*node].push(self.failed_groups.len());
        }
        self.failed_groups.push(group.nodes.clone());
        match group.purpose {
            Purpose::Part => self.parts.add(true),
            Purpose::Closing => self.closings.add(true),
            Purpose::Whole
            | Purpose::Suspect
            | Purpose::Path
            | Purpose::Leaf
            | Purpose::Alone
            | Purpose::Rail
            | Purpose::Majority => {}
        }
        if group.purpose != Purpose::Suspect {
            self.closed = None;
        }
    }

    /// The probability that a node is faulty.
    pub(super) fn belief(&self, node: Node) -> f64 {
        self.belief.of(node)
    }

    pub(super) fn all(&self) -> std::ops::Range<Node> {
        0..self.nodes.len()
    }

    /// Nodes that can still be measured.
    pub(super) fn active(&self) -> Vec<Node> {
        self.all()
            .filter(|node| !self.nodes[*node].is_out())
            .collect()
    }

    /// Known to be good: it worked, and nothing is held against it.
    pub(super) fn is_good(&self, node: Node) -> bool {
        let known = &self.nodes[node];
        self.belief(node) <= SUSPECT
            && known.passed > 0
            && !known.is_out()
            && !known.is_to_be_tried()
    }

    pub(super) fn good(&self) -> Vec<Node> {
        self.all().filter(|node| self.is_good(*node)).collect()
    }

    /// Nodes that have to be looked at again.
    pub(super) fn open(&self) -> Vec<Node> {
        let is_open = |node: &Node| {
            let doubtful = self.belief(*node) > OPEN || self.nodes[*node].is_to_be_tried();
            doubtful && !self.is_proven(*node)
        };
        let mut open = self.active();
        open.retain(is_open);
        open
    }

    /// Whether everything that an accusation needs is there.
    pub(super) fn is_proven(&self, node: Node) -> bool {
        self.belief(node) >= FAULTY
            && self.nodes[node].failed >= FAILS_MIN
            && self.witnesses(node) >= WITNESSES_MIN
            && !self.may_be_a_path(node)
            && self.failed_at_home(node)
    }

    /// Nodes that are faulty, those left out that cannot be measured any more.
    pub(super) fn proven(&self) -> impl Iterator<Item = Node> {
        self.all()
            .filter(|node| self.is_proven(*node) && !self.nodes[*node].is_out())
    }

    pub(super) fn is_accused(&self, node: Node) -> bool {
        let known = &self.nodes[node];
        self.is_proven(node) || known.is_absent() || known.is_unsteady()
    }

    pub(super) fn is_anybody_accused(&self) -> bool {
        self.all().any(|node| self.is_accused(node))
    }

    /// Everybody who can be measured and is not accused.
    pub(super) fn not_accused(&self) -> Vec<Node> {
        let mut rest = self.active();
        rest.retain(|node| !self.is_accused(*node));
        rest
    }

    /// How many different groups failed in which all others are good.
    pub(super) fn witnesses(&self, node: Node) -> usize {
        let failures = self.failures_among_good(node);
        failures.collect::<BTreeSet<&[Node]>>().len()
    }

    /// Whether one and the same other node was in all groups but one that it failed in among good ones: then it may be the
    /// path between the two, and a group that lied.
    fn may_be_a_path(&self, node: Node) -> bool {
        let mut failures: Vec<&[Node]> = self.failures_among_good(node).collect();
        failures.sort_by_key(|group| group.len());
        // Who is in all but one is in one of any two.
        let mut others = failures.iter().take(2).flat_map(|group| group.iter());
        others.any(|other| {
            let without = failures
                .iter()
                .filter(|group| group.binary_search(other).is_err());
            *other != node && without.count() < WITNESSES_MIN
        })
    }

    /// How many groups failed with both of them.
    pub(super) fn failures_together(&self, node: Node, other: Node) -> usize {
        let failures = self.failures_of(node);
        failures
            .filter(|group| group.binary_search(&other).is_ok())
            .count()
    }

    fn failures_among_good(&self, node: Node) -> impl Iterator<Item = &[Node]> {
        let is_good = move |other: &Node| *other == node || self.is_good(*other);
        self.failures_of(node)
            .filter(move |group| group.iter().all(is_good))
    }

    /// The groups with this node that failed.
    fn failures_of(&self, node: Node) -> impl Iterator<Item = &[Node]> {
        let places = self.failures[node].iter();
        places.map(|place| self.failed_groups[*place].as_slice())
    }

    /// Whether it failed under its own leaf with a good neighbour, where it has neighbours: otherwise it may be the uplink.
    pub(super) fn failed_at_home(&self, node: Node) -> bool {
        let Some(leaves) = &self.leaves else {
            return true;
        };
        let has_neighbour = || {
            let neighbours = self.under.get(&leaves[node]).into_iter().flatten();
            neighbours
                .clone()
                .any(|other| *other != node && !self.nodes[*other].is_out())
        };
        let is_good = |other: &Node| leaves[*other] == leaves[node] && self.is_good(*other);
        let at_home = |group: &[Node]| group.iter().all(|other| *other == node || is_good(other));
        self.failures_of(node).any(at_home) || !has_neighbour()
    }

    /// The leaf of each node, where it is known.
    pub(super) fn leaves(&self) -> Option<&Vec<Leaf>> {
        self.leaves.as_ref()
    }

    pub(super) fn are_neighbours(&self, one: Node, other: Node) -> bool {
        let leaves = self.leaves.as_ref();
        leaves.is_some_and(|leaves| leaves[one] == leaves[other])
    }

    pub(super) fn whole_passed(&self) -> bool {
        self.whole_passed
    }

    pub(super) fn closings_failed(&self) -> u32 {
        self.closings.failed
    }

    /// Whether just these nodes together failed before.
    pub(super) fn has_failed(&self, nodes: &[Node]) -> bool {
        let first = nodes.first();
        first.is_some_and(|first| self.failures_of(*first).any(|group| group == nodes))
    }

    /// Whether no part is better than others but by chance; a whole that passed was by chance as well then.
    pub(super) fn lacks_contrast(&self) -> bool {
        let Tally { passed, failed } = self.parts;
        !self.whole_passed && passed == 0 || is_alike(passed as usize, failed as usize)
    }

    /// Whether hardly any group was good, so that the few that were may well have been by chance.
    pub(super) fn is_alike(&self) -> bool {
        is_alike(self.passed_groups, self.failed_groups.len())
    }

    /// Whether a passed group shows that nobody among `rest` is in the way: one of all of them, but for partners of the last
    /// suspects, who are good.
    pub(super) fn is_closed(&self, rest: &[Node]) -> bool {
        let enough = |node: &Node| self.nodes[*node].passed >= PASSES_MIN;
        let by_leaf = self.leaves.is_some();
        if self.whole_passed
            && self.closings.failed == 0
            && !self.is_anybody_accused()
            && !(by_leaf && self.parts.failed >= UNEXPLAINED_MIN)
        {
            return rest.iter().all(enough);
        }
        // Groups of one leaf say nothing of its uplink, and those that leave out one of two nodes nothing of the path between
        // them. Where the whole was slow and nobody is accused, all have to be good together, and more than once to forget it.
        let in_doubt = !self.whole_passed && !self.is_anybody_accused();
        if in_doubt && self.closings.passed < CLOSINGS_IN_DOUBT {
            return false;
        }
        let Some(closed) = &self.closed else {
            return false;
        };
        if in_doubt && closed.len() < rest.len() {
            return false;
        }
        let outside = rest.iter().filter(|node| !closed.contains(node));
        outside
            .clone()
            .all(|node| enough(node) && self.is_good(*node))
            && outside.count() * 2 <= rest.len()
    }

    /// What holds for the whole, as far as nodes can explain it.
    pub(super) fn conclusion(&self) -> Conclusion {
        if self.is_anybody_accused() {
            return Conclusion::Nodes;
        }
        if self.is_closed(&self.not_accused()) {
            return Conclusion::AllGood;
        }
        Conclusion::NotKnown
    }
}

/// Whether hardly any group is good.
fn is_alike(passed: usize, failed: usize) -> bool {
    failed >= ALIKE_MIN && failed >= ALIKE_FOR_ONE_GOOD * passed
}
