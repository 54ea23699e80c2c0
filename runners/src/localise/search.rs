//! The search: from what is known so far to the next wave.

use std::collections::{BTreeMap, BTreeSet};

use super::belief::Belief;
use super::closer::{self, Closer};
use super::leaves::Leaves;
use super::survey::Survey;
use super::{
    Cause, Conclusion, Finding, Group, Layout, Leaf, Node, NodeFinding, Outcome, PathFinding,
    PathKind, Purpose, Random, Settings, Step, Tally, Verdict,
};

/// Above this probability a node is open: it has to be looked at again.
const OPEN: f64 = 1e-3;

/// Above this one it is a suspect, to be tried alone among good nodes and kept out of the closing test.
const SUSPECT: f64 = 0.05;

/// From this one on, with enough failed groups, it is faulty.
pub(super) const FAULTY: f64 = 0.9993;

/// Failed groups that an accusation needs, and those among them with different nodes that are good.
pub(super) const FAILS_MIN: u32 = 3;
pub(super) const WITNESSES_MIN: usize = 2;

/// Groups that have to pass before a node counts as healthy.
const PASSES_MIN: u32 = 2;

/// How often the nodes are parted anew while no part passes, before all are taken to be alike.
const PARTINGS_MAX: usize = 3;

/// How often closing tests may fail, without a node being found after them, before the paths between nodes are looked at;
/// and where there are too many paths to look at.
const CLOSINGS_MAX: usize = 2;
const CLOSINGS_MAX_LARGE: usize = 4;

/// Up to so many nodes every pair is tried where neither nodes nor parts explain a failure: n − 1 waves at most.
const ALL_PAIRS_MAX: usize = 32;

/// Among so many partings by chance the one that repeats fewest failed groups is taken.
const RESHUFFLES: usize = 8;

/// Where leaves are known: so many parts that failed, with nobody accused, ask for a closing test; and so many closing tests
/// have to pass after the whole has failed.
const UNEXPLAINED_MIN: u32 = 2;
const CLOSINGS_IN_DOUBT: usize = 2;

/// From so many failed groups on, and so many for each that passed, all nodes are taken to be alike where nothing else
/// explains it.
const ALIKE_MIN: usize = 6;
const ALIKE_FOR_ONE_GOOD: usize = 5;

/// How often a wave may tell nothing at all before the search ends.
const BLIND_MAX: usize = 2;

/// What is remembered of a node.
#[derive(Clone, Debug, Default)]
struct Known {
    passed: u32,
    failed: u32,
    corrupted: u32,
    /// Groups that named it, and whether it passed one after that.
    named: u32,
    worked_since: bool,
    /// Whom it was tried with as a suspect.
    partners: BTreeSet<Node>,
}

impl Known {
    fn is_out(&self) -> bool {
        self.named >= 2 && !self.worked_since
    }

    /// Named, and not tried often enough since to say what it is.
    fn is_to_be_tried(&self) -> bool {
        self.named == 1 && !self.worked_since
    }
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    settings: Settings,
    layout: Layout,
    /// The nodes of each leaf.
    under: BTreeMap<Leaf, Vec<Node>>,
    random: Random,
    belief: Belief,
    nodes: Vec<Known>,
    waves: usize,
    asked: Vec<Group>,
    failed_groups: Vec<Vec<Node>>,
    passed_groups: usize,
    partings: usize,
    /// Parts that passed and failed; only where some passed there is contrast.
    parts: Tally,
    whole_passed: bool,
    /// The set that passed a closing test, until something is held against one of it.
    closed: Option<BTreeSet<Node>>,
    closings_failed: usize,
    closings_passed: usize,
    /// A closing test has just failed: somebody is hiding, and everybody is looked at again.
    reopened: bool,
    blind: usize,
    pairs_left: Option<Vec<(Node, Node)>>,
    pairs_to_repeat: Vec<(Node, Node)>,
    paths: Vec<(Node, Node)>,
    /// The way between the leaves, once it is looked at.
    leaves: Option<Leaves>,
    leaves_told: bool,
    /// The rails of all nodes, once they are looked at.
    survey: Option<Survey>,
    /// What is accused, once that is known.
    closer: Option<Closer>,
    /// Whether there is nothing to look at more closely, since what is searched are no nodes.
    is_abstract: bool,
    closer_waves: usize,
    done: Option<Conclusion>,
}

impl Search {
    /// A search among `nodes` nodes of which nothing is known.
    pub fn new(nodes: usize, settings: Settings) -> Search {
        // One node in two clusters, within what fleets report.
        let prior = (0.5 / nodes.max(1) as f64).clamp(5e-4, 0.02);
        Search::with_priors(vec![prior; nodes], settings)
    }

    /// A search among nodes that are faulty with these probabilities, as their history suggests.
    pub fn with_priors(priors: Vec<f64>, settings: Settings) -> Search {
        let nodes = priors.len();
        Search {
            random: Random::new(settings.seed),
            belief: Belief::new(priors, settings.rates),
            settings: Settings {
                // One group for the suspects and one for the closing test beside them.
                groups_max: settings.groups_max.max(2),
                ..settings
            },
            nodes: vec![Known::default(); nodes],
            waves: 0,
            asked: Vec::new(),
            failed_groups: Vec::new(),
            passed_groups: 0,
            partings: 0,
            parts: Tally::default(),
            whole_passed: false,
            closed: None,
            closings_failed: 0,
            closings_passed: 0,
            reopened: false,
            blind: 0,
            pairs_left: None,
            pairs_to_repeat: Vec::new(),
            paths: Vec::new(),
            leaves: None,
            leaves_told: false,
            survey: None,
            closer: None,
            is_abstract: false,
            closer_waves: 0,
            layout: Layout::default(),
            under: BTreeMap::new(),
            done: None,
        }
    }

    /// The same search in a network of which so much is known. Leaves count only if every node has one.
    pub fn within(self, layout: Layout) -> Search {
        let leaves = layout
            .leaves
            .filter(|leaves| leaves.len() == self.nodes.len());
        let mut under: BTreeMap<Leaf, Vec<Node>> = BTreeMap::new();
        for (node, leaf) in leaves.iter().flatten().enumerate() {
            under.entry(*leaf).or_default().push(node);
        }
        Search {
            layout: Layout { leaves, ..layout },
            under,
            ..self
        }
    }

    /// The same search among what stands for several nodes each, and has no cards of its own.
    pub(super) fn of_abstractions(self) -> Search {
        Search {
            is_abstract: true,
            ..self
        }
    }

    /// How many waves were told so far that looked for nodes, paths and leaves.
    pub fn waves(&self) -> usize {
        self.waves
    }

    /// How many waves were told so far that looked more closely at what had been found.
    pub fn closer_waves(&self) -> usize {
        self.closer_waves
    }

    /// What to measure next. Asked again before [`Search::tell`], the answer is the same.
    pub fn step(&mut self) -> Step {
        if self.asked.is_empty() && self.done.is_none() {
            match self.plan() {
                // Nobody is left whom the open nodes could be measured with.
                Ok(groups) if groups.is_empty() => self.done = Some(self.conclude()),
                Ok(groups) => self.asked = groups,
                Err(conclusion) => self.done = Some(self.or_all_alike(conclusion)),
            }
        }
        if self.asked.is_empty()
            && let Some(conclusion) = self.done
        {
            self.asked = self.look_closer(conclusion);
        }
        if self.asked.is_empty() {
            return Step::Done;
        }
        Step::Wave(self.asked.clone())
    }

    /// Takes in what the groups of the last wave turned out to be, in the order in which they were asked for. An outcome
    /// that is missing is unknown.
    pub fn tell(&mut self, outcomes: &[Outcome]) {
        let asked = std::mem::take(&mut self.asked);
        let mut outcomes = outcomes.to_vec();
        outcomes.resize(asked.len(), Outcome::Unknown);
        if let Some(closer) = &mut self.closer {
            closer.tell(&outcomes);
            self.closer_waves += 1;
            return;
        }
        if let Some(survey) = &mut self.survey {
            survey.tell(&outcomes);
            self.closer_waves += 1;
            return;
        }
        self.waves += 1;
        let said_something = outcomes.iter().any(|outcome| *outcome != Outcome::Unknown);
        self.blind = if said_something { 0 } else { self.blind + 1 };
        if let Some(leaves) = self.leaves.as_mut().filter(|_| !self.leaves_told) {
            leaves.tell(&outcomes);
            return;
        }
        for (group, outcome) in asked.iter().zip(&outcomes) {
            self.take(group, outcome);
        }
    }

    /// Where hardly any group was good, the few that were may well have been by chance.
    fn or_all_alike(&self, conclusion: Conclusion) -> Conclusion {
        let alike = is_alike(self.passed_groups, self.failed_groups.len());
        match conclusion {
            Conclusion::NotLocated | Conclusion::NotKnown if alike => Conclusion::AllAlike,
            other => other,
        }
    }

    /// Looks at what was found more closely: at all nodes by rail where no part of them is good, at the accused and the
    /// paths otherwise.
    fn look_closer(&mut self, conclusion: Conclusion) -> Vec<Group> {
        match conclusion {
            _ if self.is_abstract => Vec::new(),
            Conclusion::AllAlike => {
                if self.survey.is_none() {
                    let (active, groups_max) = (self.active(), self.settings.groups_max);
                    self.survey = Survey::of(active, self.layout.rails, groups_max);
                }
                let survey = self.survey.as_mut();
                survey.map_or_else(Vec::new, |survey| survey.wave(&mut self.random))
            }
            Conclusion::Nodes | Conclusion::Paths | Conclusion::Leaves => {
                if self.closer.is_none() {
                    let known = closer::Known {
                        accused: self
                            .proven()
                            .map(|node| (node, self.is_wrong(node)))
                            .collect(),
                        paths: self.paths.clone(),
                        good: self.good(),
                        leaves: self.layout.leaves.clone(),
                        rails: self.layout.rails,
                    };
                    let Settings {
                        rates, groups_max, ..
                    } = self.settings;
                    self.closer = Some(Closer::at(known, rates, groups_max));
                }
                let closer = self.closer.as_mut();
                closer.map_or_else(Vec::new, |closer| closer.wave(&mut self.random))
            }
            Conclusion::AllGood
            | Conclusion::Rails
            | Conclusion::NotLocated
            | Conclusion::NotKnown => Vec::new(),
        }
    }

    /// Nodes that are faulty, those that do not answer left out.
    fn proven(&self) -> impl Iterator<Item = Node> {
        (0..self.nodes.len()).filter(|node| self.is_proven(*node) && !self.nodes[*node].is_out())
    }

    fn good(&self) -> Vec<Node> {
        let mut good = self.active();
        good.retain(|node| self.is_good(*node));
        good
    }

    /// Whether what a node is accused of is wrong results.
    fn is_wrong(&self, node: Node) -> bool {
        let known = &self.nodes[node];
        known.corrupted * 2 > known.failed
    }

    fn take(&mut self, group: &Group, outcome: &Outcome) {
        match outcome {
            Outcome::Unknown => {}
            Outcome::Named(named) => {
                for node in named.iter().filter(|node| group.nodes.contains(node)) {
                    self.nodes[*node].named += 1;
                    self.nodes[*node].worked_since = false;
                    self.closed = None;
                }
            }
            Outcome::Passed => self.passed(group),
            Outcome::Failed | Outcome::Corrupted => {
                self.failed(group, *outcome == Outcome::Corrupted)
            }
        }
    }

    fn passed(&mut self, group: &Group) {
        self.belief.learn(&group.nodes, false);
        self.passed_groups += 1;
        for node in &group.nodes {
            self.nodes[*node].passed += 1;
            self.nodes[*node].worked_since = true;
        }
        match group.purpose {
            Purpose::Whole => self.whole_passed = true,
            Purpose::Closing => {
                self.closed = Some(group.nodes.iter().copied().collect());
                self.closings_passed += 1;
            }
            // A pair that passes when it is repeated is off the list.
            Purpose::Path => self.pairs_to_repeat.retain(|pair| {
                ![pair.0, pair.1]
                    .iter()
                    .all(|node| group.nodes.contains(node))
            }),
            Purpose::Part
            | Purpose::Suspect
            | Purpose::Leaf
            | Purpose::Alone
            | Purpose::Rail
            | Purpose::Majority => {}
        }
        if group.purpose == Purpose::Part {
            self.parts.passed += 1;
        }
    }

    fn failed(&mut self, group: &Group, corrupted: bool) {
        for node in &group.nodes {
            let known = &mut self.nodes[*node];
            known.failed += 1;
            known.corrupted += u32::from(corrupted);
            known.worked_since = true;
        }
        if let (Purpose::Path, [one, other]) = (group.purpose, group.nodes.as_slice()) {
            // Both are good with others: what is left is the path. It has to fail twice.
            let pair = (*one, *other);
            if let Some(place) = self.pairs_to_repeat.iter().position(|known| *known == pair) {
                self.pairs_to_repeat.remove(place);
                self.paths.push(pair);
            } else {
                self.pairs_to_repeat.push(pair);
            }
            return;
        }
        if group.purpose == Purpose::Part {
            self.parts.failed += 1;
        }
        self.belief.learn(&group.nodes, true);
        self.failed_groups.push(group.nodes.clone());
        if group.purpose == Purpose::Closing {
            self.closings_failed += 1;
            self.reopened = true;
        }
        if group.purpose != Purpose::Suspect {
            self.closed = None;
        }
    }

    /// The groups of the next wave, or what is known if there is none to be had.
    fn plan(&mut self) -> Result<Vec<Group>, Conclusion> {
        let all: Vec<Node> = (0..self.nodes.len()).collect();
        if all.len() < 2 || self.blind >= BLIND_MAX {
            return Err(Conclusion::NotKnown);
        }
        if self.waves >= self.settings.waves_max {
            return Err(self.conclude());
        }
        if self.waves == 0 {
            return Ok(vec![Group::new(all, Purpose::Whole)]);
        }
        if self.active().len() < 2 {
            return Err(self.conclude());
        }
        if self.partings == 0 || self.lacks_contrast() {
            return self.part();
        }
        if self.pairs_left.is_some() {
            return self.try_paths();
        }
        let suspects = self.suspects();
        let strong = suspects.iter().any(|node| self.belief.of(*node) > SUSPECT);
        if self.reopened && !strong {
            if let Some(groups) = self.between_leaves()? {
                return Ok(groups);
            }
            self.reopened = false;
            return Ok(self.part_again());
        }
        if !suspects.is_empty() {
            return Ok(self.confirm(suspects));
        }
        self.close()
    }

    /// Everybody but the accused is good under the own leaf, and yet they are not good together: the groups that tell
    /// whether it is the way between the leaves. `None` when it is not.
    fn between_leaves(&mut self) -> Result<Option<Vec<Group>>, Conclusion> {
        let Some(leaf) = self.layout.leaves.clone().filter(|_| !self.leaves_told) else {
            return Ok(None);
        };
        if self.leaves.is_none() {
            let good = self.good().into_iter().map(|node| (leaf[node], node));
            self.leaves = Leaves::among(good, &self.settings, &mut self.random);
        }
        let groups = self.leaves.as_mut().map_or_else(Vec::new, Leaves::wave);
        if !groups.is_empty() {
            return Ok(Some(groups));
        }
        self.leaves_told = true;
        let found = self.leaves.as_ref().map(Leaves::found);
        match found {
            Some((leaves, paths)) if !leaves.is_empty() || !paths.is_empty() => {
                Err(Conclusion::Leaves)
            }
            _ => Ok(None),
        }
    }

    fn leaf(&self, node: Node) -> Option<Leaf> {
        self.layout.leaves.as_ref().map(|leaves| leaves[node])
    }

    fn are_neighbours(&self, one: Node, other: Node) -> bool {
        self.layout.leaves.is_some() && self.leaf(one) == self.leaf(other)
    }

    /// Nodes that can still be measured.
    fn active(&self) -> Vec<Node> {
        (0..self.nodes.len())
            .filter(|node| !self.nodes[*node].is_out())
            .collect()
    }

    fn is_open(&self, node: Node) -> bool {
        self.belief.of(node) > OPEN && !self.is_proven(node) || self.nodes[node].is_to_be_tried()
    }

    /// Whether everything that an accusation needs is there.
    fn is_proven(&self, node: Node) -> bool {
        self.belief.of(node) >= FAULTY
            && self.nodes[node].failed >= FAILS_MIN
            && self.witnesses(node) >= WITNESSES_MIN
            && self.failed_at_home(node)
    }

    /// Whether it failed under its own leaf with a good neighbour, where it has neighbours: otherwise it may be the uplink.
    fn failed_at_home(&self, node: Node) -> bool {
        let Some(leaves) = &self.layout.leaves else {
            return true;
        };
        let has_neighbour = || {
            let neighbours = self.under.get(&leaves[node]).into_iter().flatten();
            neighbours
                .clone()
                .any(|other| *other != node && !self.nodes[*other].is_out())
        };
        let at_home = |group: &Vec<Node>| {
            let is_good = |other: &Node| leaves[*other] == leaves[node] && self.is_good(*other);
            group.binary_search(&node).is_ok()
                && group.iter().all(|other| *other == node || is_good(other))
        };
        self.failed_groups.iter().any(at_home) || !has_neighbour()
    }

    /// Different good nodes with whom alone it failed.
    fn witnesses(&self, node: Node) -> usize {
        let among_good = self.failed_groups.iter().filter(|group| {
            group.binary_search(&node).is_ok()
                && group
                    .iter()
                    .all(|other| *other == node || self.is_good(*other))
        });
        let others: BTreeSet<&[Node]> = among_good.map(Vec::as_slice).collect();
        others.len()
    }

    /// Known to be good: it worked, and nothing is held against it.
    fn is_good(&self, node: Node) -> bool {
        let known = &self.nodes[node];
        self.belief.of(node) <= SUSPECT
            && known.passed > 0
            && !known.is_out()
            && !known.is_to_be_tried()
    }

    fn suspects(&self) -> Vec<Node> {
        self.active()
            .into_iter()
            .filter(|node| self.is_open(*node))
            .collect()
    }

    fn accused(&self, node: Node) -> bool {
        self.is_proven(node) || self.nodes[node].is_out()
    }

    /// Whether no part is better than others but by chance; a whole that passed was by chance as well then.
    fn lacks_contrast(&self) -> bool {
        let Tally { passed, failed } = self.parts;
        !self.whole_passed && passed == 0 || is_alike(passed as usize, failed as usize)
    }

    /// Parts all active nodes by chance into groups as small as the launches allow. A node that was named gets one partner,
    /// so that it costs nobody else the measurement.
    fn part(&mut self) -> Result<Vec<Group>, Conclusion> {
        if self.partings >= PARTINGS_MAX {
            return Err(Conclusion::AllAlike);
        }
        self.partings += 1;
        let tries = (0..RESHUFFLES)
            .map(|_| self.random_parts())
            .collect::<Vec<_>>();
        let repeated = |groups: &Vec<Group>| {
            let known = |group: &&Group| self.failed_groups.contains(&group.nodes);
            groups.iter().filter(known).count()
        };
        match tries.into_iter().min_by_key(repeated) {
            Some(groups) if !groups.is_empty() => Ok(groups),
            _ => Err(Conclusion::NotKnown),
        }
    }

    fn random_parts(&mut self) -> Vec<Group> {
        let mut nodes = self.active();
        self.random.shuffle(&mut nodes);
        let (named, mut rest): (Vec<Node>, Vec<Node>) = nodes
            .into_iter()
            .partition(|node| self.nodes[*node].is_to_be_tried());
        let mut groups = Vec::new();
        let mut named = named.into_iter();
        while groups.len() + 1 < self.settings.groups_max
            && let Some(one) = named.next()
        {
            let Some(partner) = rest.pop().or_else(|| named.next()) else {
                break;
            };
            groups.push(Group::new(vec![one, partner], Purpose::Part));
        }
        let smallest = self.smallest_part();
        groups.extend(self.split(rest, Purpose::Part, groups.len(), smallest));
        groups
    }

    /// Parts everybody who is not accused anew, into groups that are about equally likely to hold the one who hides: small
    /// ones of those who were suspected before, large ones of the others.
    fn part_again(&mut self) -> Vec<Group> {
        let mut nodes: Vec<Node> = self
            .active()
            .into_iter()
            .filter(|node| !self.accused(*node))
            .collect();
        self.random.shuffle(&mut nodes);
        nodes.sort_by(|a, b| self.belief.of(*b).total_cmp(&self.belief.of(*a)));
        let slots = self.settings.groups_max.min(nodes.len() / 2).max(1);
        let mass: f64 = nodes.iter().map(|node| self.belief.of(*node)).sum();
        let mut groups: Vec<Vec<Node>> = vec![Vec::new()];
        let mut filled = 0.0;
        for (place, node) in nodes.iter().enumerate() {
            let last = groups.last().map_or(0, Vec::len);
            let full = filled * slots as f64 >= mass * groups.len() as f64;
            if last >= 2 && full && groups.len() < slots && nodes.len() - place >= 2 {
                groups.push(Vec::new());
            }
            filled += self.belief.of(*node);
            if let Some(group) = groups.last_mut() {
                group.push(*node);
            }
        }
        groups
            .into_iter()
            .map(|nodes| Group::new(nodes, Purpose::Part))
            .collect()
    }

    /// Where the whole has failed the smallest groups tell most. Where it has passed the parts only confirm that, and each
    /// group more is one more that may fail for nothing: about √n groups of √n nodes.
    fn smallest_part(&self) -> usize {
        if self.whole_passed {
            self.nodes.len().isqrt().max(2)
        } else {
            2
        }
    }

    /// Splits nodes into groups of at least two, no more than launches are left; one that is left over joins the last.
    fn split(
        &self,
        nodes: Vec<Node>,
        purpose: Purpose,
        taken: usize,
        smallest: usize,
    ) -> Vec<Group> {
        let slots = self.settings.groups_max.saturating_sub(taken).max(1);
        let count = (nodes.len() / smallest).clamp(1, slots);
        if nodes.len() < 2 {
            return Vec::new();
        }
        if let Some(groups) = self.split_by_leaf(&nodes, purpose, count) {
            return groups;
        }
        let (size, larger) = (nodes.len() / count, nodes.len() % count);
        let mut rest = nodes.as_slice();
        let mut groups = Vec::with_capacity(count);
        for place in 0..count {
            let (part, after) = rest.split_at(size + usize::from(place < larger));
            rest = after;
            // Three nodes that fail say less than two: where there are but three, one rests and is looked at next time.
            let part = if nodes.len() == 3 { &part[..2] } else { part };
            groups.push(Group::new(part.to_vec(), purpose));
        }
        groups
    }

    /// The same with no group over two leaves, as far as there are launches enough: so the way between leaves makes no node
    /// a suspect. Where the whole has passed that way is good, and parts may as well try it again.
    fn split_by_leaf(&self, nodes: &[Node], purpose: Purpose, count: usize) -> Option<Vec<Group>> {
        let leaves = self.layout.leaves.as_ref().filter(|_| !self.whole_passed)?;
        let mut under: BTreeMap<Leaf, Vec<Node>> = BTreeMap::new();
        for node in nodes {
            under.entry(leaves[*node]).or_default().push(*node);
        }
        // Single nodes have to be measured with those of other leaves.
        let (single, under): (Vec<_>, Vec<_>) =
            under.into_values().partition(|nodes| nodes.len() < 2);
        let mut parts = under;
        let single: Vec<Node> = single.into_iter().flatten().collect();
        if single.len() >= 2 {
            parts.push(single);
        } else if let Some(last) = parts.last_mut() {
            last.extend(single);
        }
        if parts.len() > count || nodes.len() <= 3 {
            return None;
        }
        let more = count - parts.len();
        let groups = parts.iter().flat_map(|part| {
            let shares = (1 + part.len() * more / nodes.len()).min(part.len() / 2);
            let (size, larger) = (part.len() / shares, part.len() % shares);
            let mut rest = part.as_slice();
            (0..shares).map(move |place| {
                let (group, after) = rest.split_at(size + usize::from(place < larger));
                rest = after;
                Group::new(group.to_vec(), purpose)
            })
        });
        Some(groups.collect())
    }

    /// Tries suspects with good partners: each alone if there are launches and partners enough, packed otherwise. Once
    /// every one of them has failed alone among good nodes, all the others are measured beside them.
    fn confirm(&mut self, open: Vec<Node>) -> Vec<Group> {
        let mut good: Vec<Node> = self.active();
        good.retain(|node| self.is_good(*node) && !open.contains(node));
        if good.is_empty() && open.len() == 1 {
            // The least suspected has to do as a partner.
            let others = self
                .active()
                .into_iter()
                .filter(|node| !open.contains(node) && !self.accused(*node));
            good.extend(others.min_by(|a, b| self.belief.of(*a).total_cmp(&self.belief.of(*b))));
        }
        self.random.shuffle(&mut good);
        good.sort_by(|a, b| self.belief.of(*b).total_cmp(&self.belief.of(*a)));
        let (strong, weak): (Vec<Node>, Vec<Node>) = open.iter().partition(|node| {
            self.belief.of(**node) > SUSPECT || self.nodes[**node].is_to_be_tried()
        });
        // Those that passed alone before are looked at once more among all the others.
        let closing_beside = !strong.is_empty()
            && strong.iter().all(|node| self.witnesses(*node) > 0)
            && weak
                .iter()
                .all(|node| !self.nodes[*node].partners.is_empty());
        let mut tried = if closing_beside
            || (!strong.is_empty() && weak.len() > strong.len() + self.settings.groups_max / 2)
        {
            strong
        } else {
            open.clone()
        };
        if self.layout.leaves.is_some() {
            // Neighbours that are good, though not beyond doubt, are better partners than strangers.
            good.extend(weak.iter().filter(|node| !tried.contains(node)));
        }
        self.random.shuffle(&mut tried);
        let slots = self.settings.groups_max - usize::from(closing_beside);
        let mut groups = Vec::new();
        if tried.len() <= slots && tried.len() <= good.len() {
            let mut waiting: Vec<Node> = tried.iter().rev().copied().collect();
            while let Some(suspect) = waiting.pop() {
                let partner = self.partner(suspect, &mut good, &mut waiting);
                self.nodes[suspect].partners.insert(partner);
                groups.push(Group::new(vec![suspect, partner], Purpose::Suspect));
            }
        } else {
            groups = self.split(
                tried.clone(),
                Purpose::Suspect,
                usize::from(closing_beside),
                2,
            );
            for group in &mut groups {
                if let Some(partner) = self.partner_of_several(&group.nodes, &mut good) {
                    group.nodes.push(partner);
                    group.nodes.sort_unstable();
                }
                if group.nodes.len() <= 2 {
                    let both = group.nodes.clone();
                    for node in &both {
                        self.nodes[*node]
                            .partners
                            .extend(both.iter().filter(|other| *other != node));
                    }
                }
            }
        }
        if closing_beside {
            let busy: BTreeSet<Node> = groups
                .iter()
                .flat_map(|group| group.nodes.iter().copied())
                .collect();
            let rest = self
                .active()
                .into_iter()
                .filter(|node| !busy.contains(node) && !self.accused(*node));
            let rest: Vec<Node> = rest.collect();
            if rest.len() >= 2 {
                groups.push(Group::new(rest, Purpose::Closing));
            }
        }
        groups
    }

    /// Whom a suspect is tried with: a good node that is new to it, a neighbour first. Before it has failed with a good one of
    /// these, no stranger: a slow uplink would make faulty nodes of all who are under it.
    fn partner(&self, suspect: Node, good: &mut Vec<Node>, waiting: &mut Vec<Node>) -> Node {
        let new = |partner: &Node| !self.nodes[suspect].partners.contains(partner);
        let near = |partner: &Node| self.are_neighbours(suspect, *partner);
        if let Some(place) = good.iter().rposition(|node| near(node) && new(node)) {
            return good.remove(place);
        }
        if !self.failed_at_home(suspect) {
            let suits = |place: &usize| near(&waiting[*place]) && new(&waiting[*place]);
            let neighbours = (0..waiting.len()).filter(suits);
            let belief = |place: &usize| self.belief.of(waiting[*place]);
            if let Some(place) = neighbours.min_by(|a, b| belief(a).total_cmp(&belief(b))) {
                return waiting.remove(place);
            }
            if let Some(place) = good.iter().rposition(near) {
                return good.remove(place);
            }
        }
        let place = good.iter().rposition(new).unwrap_or(good.len() - 1);
        good.remove(place)
    }

    /// A good node to go with several suspects; if they are all of one leaf, one of theirs or none.
    fn partner_of_several(&self, suspects: &[Node], good: &mut Vec<Node>) -> Option<Node> {
        let first = suspects.first()?;
        if suspects.len() < 2
            || !suspects
                .iter()
                .all(|node| self.are_neighbours(*first, *node))
        {
            return good.pop();
        }
        let place = good
            .iter()
            .rposition(|node| self.are_neighbours(*first, *node))?;
        Some(good.remove(place))
    }

    /// Nothing is open: the closing test, if it has not passed yet.
    fn close(&mut self) -> Result<Vec<Group>, Conclusion> {
        let rest: Vec<Node> = self
            .active()
            .into_iter()
            .filter(|node| !self.accused(*node))
            .collect();
        if self.is_closed(&rest) {
            return Err(self.conclude());
        }
        if rest.len() < 2 {
            return Err(self.conclude());
        }
        let few = rest.len() <= ALL_PAIRS_MAX;
        if self.closings_failed >= CLOSINGS_MAX && few {
            self.pairs_left = Some(round_robin(&rest));
            return self.try_paths();
        }
        if self.closings_failed >= CLOSINGS_MAX_LARGE {
            return Err(Conclusion::NotLocated);
        }
        Ok(vec![Group::new(rest, Purpose::Closing)])
    }

    /// Whether a passed group shows that nobody among `rest` is in the way: one of all of them, but for partners of the last
    /// suspects, who are good.
    fn is_closed(&self, rest: &[Node]) -> bool {
        let enough = |node: &Node| self.nodes[*node].passed >= PASSES_MIN;
        let by_leaf = self.layout.leaves.is_some();
        if self.whole_passed
            && self.closings_failed == 0
            && rest.len() == self.nodes.len()
            && !(by_leaf && self.parts.failed >= UNEXPLAINED_MIN)
        {
            return rest.iter().all(enough);
        }
        // Groups of one leaf say nothing of its uplink. Where the whole was slow and nobody is accused, one group of all that
        // passes is not enough to forget it.
        let in_doubt =
            by_leaf && !self.whole_passed && !(0..self.nodes.len()).any(|node| self.accused(node));
        if in_doubt && self.closings_passed < CLOSINGS_IN_DOUBT {
            return false;
        }
        let Some(closed) = &self.closed else {
            return false;
        };
        let outside = rest.iter().filter(|node| !closed.contains(node));
        outside
            .clone()
            .all(|node| enough(node) && self.is_good(*node))
            && outside.count() * 2 <= rest.len()
    }

    /// Tries pairs of good nodes until one fails twice.
    fn try_paths(&mut self) -> Result<Vec<Group>, Conclusion> {
        if !self.paths.is_empty() && self.pairs_to_repeat.is_empty() {
            return Err(Conclusion::Paths);
        }
        let mut busy = BTreeSet::new();
        let mut pairs = self.pairs_to_repeat.clone();
        for (one, other) in &pairs {
            busy.extend([*one, *other]);
        }
        let left = self.pairs_left.get_or_insert_default();
        left.retain(|pair| {
            let free = pairs.len() < self.settings.groups_max
                && !busy.contains(&pair.0)
                && !busy.contains(&pair.1);
            if free {
                busy.extend([pair.0, pair.1]);
                pairs.push(*pair);
            }
            !free
        });
        if pairs.is_empty() {
            return Err(Conclusion::NotLocated);
        }
        let groups = pairs
            .iter()
            .map(|(one, other)| Group::new(vec![*one, *other], Purpose::Path));
        Ok(groups.collect())
    }

    fn conclude(&self) -> Conclusion {
        let accused = (0..self.nodes.len()).any(|node| self.accused(node));
        let rest: Vec<Node> = self
            .active()
            .into_iter()
            .filter(|node| !self.accused(*node))
            .collect();
        if accused {
            return Conclusion::Nodes;
        }
        if self.is_closed(&rest) {
            return Conclusion::AllGood;
        }
        Conclusion::NotKnown
    }

    /// What is known now.
    pub fn finding(&self) -> Finding {
        let conclusion = self.done.unwrap_or_else(|| self.conclude());
        let rails = self.survey.as_ref().map_or_else(Vec::new, Survey::found);
        let conclusion = match conclusion {
            Conclusion::AllAlike if !rails.is_empty() => Conclusion::Rails,
            other => other,
        };
        let mut nodes: Vec<NodeFinding> = (0..self.nodes.len())
            .map(|node| self.node_finding(node, conclusion))
            .collect();
        for (node, cause) in self.closer.iter().flat_map(Closer::causes) {
            nodes[node].cause = cause;
        }
        let found = self.leaves.as_ref().filter(|_| self.leaves_told);
        let (leaves, leaf_paths) = found.map(Leaves::found).unwrap_or_default();
        Finding {
            nodes,
            paths: match &self.closer {
                Some(closer) => closer.paths().collect(),
                None => self.paths.iter().map(|nodes| once(*nodes)).collect(),
            },
            rails,
            leaves,
            leaf_paths,
            conclusion,
        }
    }

    fn node_finding(&self, node: Node, conclusion: Conclusion) -> NodeFinding {
        let known = &self.nodes[node];
        let probability = self.belief.of(node);
        let verdict = if known.is_out() {
            Verdict::Unresponsive
        } else if matches!(conclusion, Conclusion::AllAlike | Conclusion::Rails)
            || conclusion == Conclusion::NotKnown && !self.is_proven(node)
        {
            Verdict::Undecided
        } else if self.is_proven(node) && self.is_wrong(node) {
            Verdict::Corrupting
        } else if self.is_proven(node) {
            Verdict::Faulty
        } else if known.is_to_be_tried() {
            Verdict::Undecided
        } else if probability > 0.5 {
            Verdict::Suspect
        } else if known.named > 0 {
            Verdict::Interrupted
        } else if (probability <= OPEN && known.passed >= 1)
            // What failed with it failed for the way between the leaves.
            || (conclusion == Conclusion::Leaves && self.is_good(node))
        {
            Verdict::Healthy
        } else {
            Verdict::Undecided
        };
        NodeFinding {
            verdict,
            probability,
            groups: known.passed + known.failed + known.named,
            failed: known.failed + known.named,
            cause: Cause::default(),
        }
    }
}

/// Whether hardly any group is good.
fn is_alike(passed: usize, failed: usize) -> bool {
    failed >= ALIKE_MIN && failed >= ALIKE_FOR_ONE_GOOD * passed
}

/// A path that was not repeated.
fn once(nodes: (Node, Node)) -> PathFinding {
    PathFinding {
        nodes,
        repeats: Tally::default(),
        kind: PathKind::NotKnown,
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
