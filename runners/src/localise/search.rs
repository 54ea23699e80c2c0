//! The search: from what is known so far to the next wave.

use std::collections::BTreeSet;

use super::belief::Belief;
use super::{
    Conclusion, Finding, Group, Node, NodeFinding, Outcome, Purpose, Random, Settings, Step,
    Verdict,
};

/// Above this probability a node is open: it has to be looked at again.
const OPEN: f64 = 1e-3;

/// Above this one it is a suspect, to be tried alone among good nodes and kept out of the closing test.
const SUSPECT: f64 = 0.05;

/// From this one on, with enough failed groups, it is faulty.
const FAULTY: f64 = 0.998;

/// Failed groups that an accusation needs, and those among them with different nodes that are good.
const FAILS_MIN: u32 = 3;
const WITNESSES_MIN: usize = 2;

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
    random: Random,
    belief: Belief,
    nodes: Vec<Known>,
    waves: usize,
    asked: Vec<Group>,
    failed_groups: Vec<Vec<Node>>,
    partings: usize,
    /// Whether any group smaller than the whole has passed; only then there is contrast.
    part_passed: bool,
    whole_passed: bool,
    /// The set that passed a closing test, until something is held against one of it.
    closed: Option<BTreeSet<Node>>,
    closings_failed: usize,
    /// A closing test has just failed: somebody is hiding, and everybody is looked at again.
    reopened: bool,
    blind: usize,
    pairs_left: Option<Vec<(Node, Node)>>,
    pairs_to_repeat: Vec<(Node, Node)>,
    paths: Vec<(Node, Node)>,
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
            partings: 0,
            part_passed: false,
            whole_passed: false,
            closed: None,
            closings_failed: 0,
            reopened: false,
            blind: 0,
            pairs_left: None,
            pairs_to_repeat: Vec::new(),
            paths: Vec::new(),
            done: None,
        }
    }

    /// How many waves were told so far.
    pub fn waves(&self) -> usize {
        self.waves
    }

    /// What to measure next. Asked again before [`Search::tell`], the answer is the same.
    pub fn step(&mut self) -> Step {
        if self.asked.is_empty() && self.done.is_none() {
            match self.plan() {
                // Nobody is left whom the open nodes could be measured with.
                Ok(groups) if groups.is_empty() => self.done = Some(self.conclude()),
                Ok(groups) => self.asked = groups,
                Err(conclusion) => self.done = Some(conclusion),
            }
        }
        if self.done.is_some() {
            return Step::Done;
        }
        Step::Wave(self.asked.clone())
    }

    /// Takes in what the groups of the last wave turned out to be, in the order in which they were asked for. An outcome
    /// that is missing is unknown.
    pub fn tell(&mut self, outcomes: &[Outcome]) {
        let asked = std::mem::take(&mut self.asked);
        self.waves += 1;
        let mut said_something = false;
        for (place, group) in asked.iter().enumerate() {
            let outcome = outcomes.get(place).unwrap_or(&Outcome::Unknown);
            said_something |= *outcome != Outcome::Unknown;
            self.take(group, outcome);
        }
        self.blind = if said_something { 0 } else { self.blind + 1 };
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
        for node in &group.nodes {
            self.nodes[*node].passed += 1;
            self.nodes[*node].worked_since = true;
        }
        match group.purpose {
            Purpose::Whole => self.whole_passed = true,
            Purpose::Closing => self.closed = Some(group.nodes.iter().copied().collect()),
            Purpose::Part | Purpose::Suspect | Purpose::Path => {}
        }
        self.part_passed |= group.purpose != Purpose::Whole;
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
            return Ok(vec![group(all, Purpose::Whole)]);
        }
        if self.active().len() < 2 {
            return Err(self.conclude());
        }
        if self.partings == 0 || !self.part_passed && self.needs_contrast() {
            return self.part();
        }
        if self.pairs_left.is_some() {
            return self.try_paths();
        }
        let suspects = self.suspects();
        let strong = suspects.iter().any(|node| self.belief.of(*node) > SUSPECT);
        if self.reopened && !strong {
            self.reopened = false;
            return Ok(self.part_again());
        }
        if !suspects.is_empty() {
            return Ok(self.confirm(suspects));
        }
        self.close()
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
    }

    /// Different good nodes with whom alone it failed.
    fn witnesses(&self, node: Node) -> usize {
        let among_good = self.failed_groups.iter().filter(|group| {
            group.contains(&node)
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

    fn needs_contrast(&self) -> bool {
        !self.whole_passed
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
            groups.push(group(vec![one, partner], Purpose::Part));
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
            .map(|nodes| group(nodes, Purpose::Part))
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
        let (size, larger) = (nodes.len() / count, nodes.len() % count);
        let mut rest = nodes.as_slice();
        let mut groups = Vec::with_capacity(count);
        for place in 0..count {
            let (part, after) = rest.split_at(size + usize::from(place < larger));
            rest = after;
            // Three nodes that fail say less than two: where there are but three, one rests and is looked at next time.
            let part = if nodes.len() == 3 { &part[..2] } else { part };
            groups.push(group(part.to_vec(), purpose));
        }
        groups
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
        self.random.shuffle(&mut tried);
        let slots = self.settings.groups_max - usize::from(closing_beside);
        let mut groups = Vec::new();
        if tried.len() <= slots && tried.len() <= good.len() {
            for suspect in tried.iter().copied() {
                let new = |partner: &Node| !self.nodes[suspect].partners.contains(partner);
                let place = good.iter().rposition(new).unwrap_or(good.len() - 1);
                let partner = good.remove(place);
                self.nodes[suspect].partners.insert(partner);
                groups.push(group(vec![suspect, partner], Purpose::Suspect));
            }
        } else {
            groups = self.split(
                tried.clone(),
                Purpose::Suspect,
                usize::from(closing_beside),
                2,
            );
            for group in &mut groups {
                if let Some(partner) = good.pop() {
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
                groups.push(group(rest, Purpose::Closing));
            }
        }
        groups
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
        Ok(vec![group(rest, Purpose::Closing)])
    }

    /// Whether a passed group shows that nobody among `rest` is in the way: one of all of them, but for partners of the last
    /// suspects, who are good.
    fn is_closed(&self, rest: &[Node]) -> bool {
        let enough = |node: &Node| self.nodes[*node].passed >= PASSES_MIN;
        if self.whole_passed && self.closings_failed == 0 && rest.len() == self.nodes.len() {
            return rest.iter().all(enough);
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
        // A repeated pair that passes this time is off the list.
        let repeated = std::mem::take(&mut self.pairs_to_repeat);
        let groups = pairs
            .iter()
            .map(|(one, other)| group(vec![*one, *other], Purpose::Path));
        let groups = groups.collect();
        self.pairs_to_repeat = repeated;
        Ok(groups)
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
        let nodes = (0..self.nodes.len()).map(|node| self.node_finding(node, conclusion));
        Finding {
            nodes: nodes.collect(),
            paths: self.paths.clone(),
            conclusion,
        }
    }

    fn node_finding(&self, node: Node, conclusion: Conclusion) -> NodeFinding {
        let known = &self.nodes[node];
        let probability = self.belief.of(node);
        let verdict = if known.is_out() {
            Verdict::Unresponsive
        } else if matches!(conclusion, Conclusion::AllAlike | Conclusion::NotKnown)
            && !self.is_proven(node)
        {
            Verdict::Undecided
        } else if self.is_proven(node) && known.corrupted * 2 > known.failed {
            Verdict::Corrupting
        } else if self.is_proven(node) {
            Verdict::Faulty
        } else if known.is_to_be_tried() {
            Verdict::Undecided
        } else if probability > 0.5 {
            Verdict::Suspect
        } else if known.named > 0 {
            Verdict::Interrupted
        } else if probability <= OPEN && known.passed >= 1 {
            Verdict::Healthy
        } else {
            Verdict::Undecided
        };
        NodeFinding {
            verdict,
            probability,
            groups: known.passed + known.failed + known.named,
            failed: known.failed + known.named,
        }
    }
}

fn group(mut nodes: Vec<Node>, purpose: Purpose) -> Group {
    nodes.sort_unstable();
    Group { nodes, purpose }
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
