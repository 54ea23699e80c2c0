//! A fleet that is not there: faults are planted, groups answer with the noise that is asked for, and the search has to
//! find what was planted.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{
    Conclusion, Finding, Group, Layout, Leaf, Node, Outcome, PathKind, Place, Rail, Rails, Random,
    Rates, Search, Settings, Step, Verdict,
};

/// What is wrong with a simulated fleet, and how its groups lie.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Number of nodes.
    pub nodes: usize,
    /// What is known of its network.
    pub layout: Layout,
    /// Nodes that make every group with them slow.
    pub faulty: BTreeSet<Node>,
    /// Those of them that are slow by themselves as well.
    pub inside: BTreeSet<Node>,
    /// Nodes that get wrong results in every group with them.
    pub corrupting: BTreeSet<Node>,
    /// Slow network cards: the node, and the rail that the card is on.
    pub nics: BTreeSet<(Node, Rail)>,
    /// Rails that are slow for everybody.
    pub rails: BTreeSet<Rail>,
    /// Leaves whose uplink is slow.
    pub leaves: BTreeSet<Leaf>,
    /// Pairs of nodes that make a group of the two, or of everybody, slow.
    pub paths: BTreeSet<(Node, Node)>,
    /// How often a slow path is in the way: always, if not set; less often where connections are spread.
    pub path_share: Option<f64>,
    /// Nodes that never come back.
    pub dead: BTreeSet<Node>,
    /// How often groups lie.
    pub rates: Rates,
}

impl Fleet {
    /// `nodes` nodes, `faulty` of which are faulty, chosen by chance.
    pub fn with_faulty(nodes: usize, faulty: usize, rates: Rates, random: &mut Random) -> Fleet {
        let mut all: Vec<Node> = (0..nodes).collect();
        random.shuffle(&mut all);
        Fleet {
            nodes,
            faulty: all.into_iter().take(faulty).collect(),
            rates,
            ..Fleet::default()
        }
    }

    /// What the group turns out to be.
    pub fn measure(&self, group: &Group, random: &mut Random) -> Outcome {
        let dead: Vec<Node> = group
            .nodes
            .iter()
            .copied()
            .filter(|node| self.dead.contains(node))
            .collect();
        if !dead.is_empty() {
            return Outcome::Named(dead);
        }
        let failed = if self.is_bad(group, random) {
            !random.happens(self.rates.miss)
        } else {
            random.happens(self.rates.false_alarm)
        };
        if !failed {
            return Outcome::Passed;
        }
        let has = |node: &Node| group.nodes.contains(node);
        if self.corrupting.iter().any(has) {
            Outcome::Corrupted
        } else {
            Outcome::Failed
        }
    }

    fn is_bad(&self, group: &Group, random: &mut Random) -> bool {
        let has = |node: &Node| group.nodes.binary_search(node).is_ok();
        if let [node] = group.nodes.as_slice() {
            return self.inside.contains(node);
        }
        let over = |rail: Rail| match group.rails {
            Rails::All => true,
            Rails::Only(only) => only == rail,
        };
        let leaf = |node: Node| self.layout.leaves.as_ref().map(|leaves| leaves[node]);
        let spans = || {
            let mut leaves = group.nodes.iter().map(|node| leaf(*node));
            leaves
                .next()
                .is_some_and(|first| leaves.any(|other| other != first))
        };
        let is_under = |node: &Node| leaf(*node).is_some_and(|leaf| self.leaves.contains(&leaf));
        let share = self.path_share.unwrap_or(1.0);
        let on_path = self.paths.iter().any(|(one, other)| has(one) && has(other));
        self.faulty.iter().any(has)
            || self.corrupting.iter().any(has)
            || self
                .nics
                .iter()
                .any(|(node, rail)| has(node) && over(*rail))
            || self.rails.iter().any(|rail| over(*rail))
            || !self.leaves.is_empty() && group.nodes.iter().any(is_under) && spans()
            || on_path && random.happens(share)
    }

    /// Lets a search find out; returns it with the longest time that planning one wave took.
    pub fn search(&self, settings: Settings, random: &mut Random) -> (Search, Duration) {
        let mut search = Search::new(self.nodes, settings).within(self.layout.clone());
        let mut longest = Duration::ZERO;
        loop {
            let begun = Instant::now();
            let step = search.step();
            longest = longest.max(begun.elapsed());
            let Step::Wave(groups) = step else {
                return (search, longest);
            };
            let outcomes: Vec<Outcome> = groups
                .iter()
                .map(|group| self.measure(group, random))
                .collect();
            let begun = Instant::now();
            search.tell(&outcomes);
            longest = longest.max(begun.elapsed());
        }
    }
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Runs.
    pub runs: usize,
    /// Runs in which exactly the planted nodes were accused.
    pub exact: usize,
    /// Innocent nodes accused, in all runs together.
    pub innocent: usize,
    /// Planted nodes not accused, in all runs together.
    pub missed: usize,
    /// Waves of each run, in ascending order.
    pub waves: Vec<usize>,
    /// The longest time that planning one wave took.
    pub planning: Duration,
}

impl Tally {
    /// Mean number of waves.
    pub fn mean_waves(&self) -> f64 {
        self.waves.iter().sum::<usize>() as f64 / self.runs.max(1) as f64
    }

    /// The number of waves that 95 of 100 runs do not exceed.
    pub fn p95_waves(&self) -> usize {
        let place = (self.waves.len() * 95).div_ceil(100).saturating_sub(1);
        self.waves.get(place).copied().unwrap_or(0)
    }

    /// Share of the runs that found the exact set.
    pub fn exactness(&self) -> f64 {
        self.exact as f64 / self.runs.max(1) as f64
    }
}

/// `runs` searches in fleets of `nodes` nodes of which `faulty` are faulty.
pub fn tally(nodes: usize, faulty: usize, rates: Rates, runs: usize, seed: u64) -> Tally {
    let mut random = Random::new(seed);
    let mut tally = Tally {
        runs,
        ..Tally::default()
    };
    for _ in 0..runs {
        let fleet = Fleet::with_faulty(nodes, faulty, rates, &mut random);
        let settings = Settings {
            rates,
            seed: random.bits(),
            ..Settings::default()
        };
        let (search, planning) = fleet.search(settings, &mut random);
        let finding = search.finding();
        let accused: BTreeSet<Node> = accused(&finding).collect();
        let sound = faulty > 0 || finding.conclusion == Conclusion::AllGood;
        tally.exact += usize::from(accused == fleet.faulty && sound);
        tally.innocent += accused.difference(&fleet.faulty).count();
        tally.missed += fleet.faulty.difference(&accused).count();
        tally.waves.push(search.waves());
        tally.planning = tally.planning.max(planning);
    }
    tally.waves.sort_unstable();
    tally
}

/// A kind of fault to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A node that is slow on all rails, and fast by itself.
    Node,
    /// A node that is slow by itself too.
    Inside,
    /// One network card of one node.
    Nic,
    /// One rail of everybody.
    Rail,
    /// The uplink of one leaf.
    Leaf,
    /// The link between two nodes.
    Path,
    /// A node that gets wrong results.
    Corrupting,
    /// All nodes.
    Everything,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 8] = [
        Class::Node,
        Class::Inside,
        Class::Nic,
        Class::Rail,
        Class::Leaf,
        Class::Path,
        Class::Corrupting,
        Class::Everything,
    ];

    /// A fleet with one fault of this class, planted by chance: `rails` rails, and leaves of so many nodes.
    pub fn plant(
        self,
        nodes: usize,
        rails: usize,
        under_leaf: usize,
        rates: Rates,
        random: &mut Random,
    ) -> Fleet {
        let mut fleet = Fleet {
            nodes,
            layout: Layout {
                leaves: Some((0..nodes).map(|node| node / under_leaf).collect()),
                rails,
            },
            rates,
            ..Fleet::default()
        };
        let node = random.below(nodes);
        match self {
            Class::Node => fleet.faulty = [node].into(),
            Class::Inside => {
                fleet.faulty = [node].into();
                fleet.inside = [node].into();
            }
            Class::Nic => fleet.nics = [(node, random.below(rails))].into(),
            Class::Rail => fleet.rails = [random.below(rails)].into(),
            Class::Leaf => fleet.leaves = [node / under_leaf].into(),
            Class::Path => {
                let other = (node + 1 + random.below(nodes - 1)) % nodes;
                fleet.paths = [(node.min(other), node.max(other))].into();
            }
            Class::Corrupting => fleet.corrupting = [node].into(),
            Class::Everything => fleet.faulty = (0..nodes).collect(),
        }
        fleet
    }

    /// Whether exactly what was planted was found, and nothing else.
    pub fn is_found(self, fleet: &Fleet, finding: &Finding) -> bool {
        let accused: BTreeSet<Node> = accused(finding).collect();
        let place = |node: Node| &finding.nodes[node].cause.place;
        let nothing_else = |conclusion: Conclusion| finding.conclusion == conclusion;
        let node_is = |planted: &BTreeSet<Node>, wanted: &dyn Fn(&Place) -> bool| {
            nothing_else(Conclusion::Nodes)
                && accused == *planted
                && planted.iter().all(|node| wanted(place(*node)))
        };
        match self {
            Class::Node => node_is(&fleet.faulty, &|place| *place == Place::Network),
            Class::Inside => node_is(&fleet.faulty, &|place| *place == Place::Inside),
            Class::Nic => {
                let planted = fleet.nics.iter().map(|(node, _)| *node).collect();
                let rails: Vec<Rail> = fleet.nics.iter().map(|(_, rail)| *rail).collect();
                node_is(&planted, &|place| *place == Place::Nics(rails.clone()))
            }
            Class::Corrupting => {
                node_is(&fleet.corrupting, &|_| true)
                    && accused
                        .iter()
                        .all(|node| finding.nodes[*node].verdict == Verdict::Corrupting)
            }
            Class::Rail => {
                let rails = finding.rails.iter().map(|found| found.rail);
                nothing_else(Conclusion::Rails)
                    && accused.is_empty()
                    && rails.collect::<BTreeSet<Rail>>() == fleet.rails
            }
            Class::Leaf => {
                // Of two leaves nobody can say which one it is.
                let all: BTreeSet<Leaf> = fleet.layout.leaves.iter().flatten().copied().collect();
                let planted = if all.len() == 2 { &all } else { &fleet.leaves };
                let found: BTreeSet<Leaf> = finding.leaves.iter().copied().collect();
                nothing_else(Conclusion::Leaves) && accused.is_empty() && found == *planted
            }
            Class::Path => {
                let found: BTreeSet<(Node, Node)> =
                    finding.paths.iter().map(|path| path.nodes).collect();
                let stays = finding
                    .paths
                    .iter()
                    .all(|path| path.kind == PathKind::Stays);
                nothing_else(Conclusion::Paths)
                    && accused.is_empty()
                    && found == fleet.paths
                    && stays
            }
            Class::Everything => nothing_else(Conclusion::AllAlike) && accused.is_empty(),
        }
    }
}

/// Nodes that are accused of being slow or wrong.
fn accused(finding: &Finding) -> impl Iterator<Item = Node> {
    let nodes = finding.nodes.iter().enumerate();
    nodes
        .filter(|(_, node)| matches!(node.verdict, Verdict::Faulty | Verdict::Corrupting))
        .map(|(node, _)| node)
}

/// What many runs with one planted fault came to.
#[derive(Clone, Debug, Default)]
pub struct ClassTally {
    /// Runs.
    pub runs: usize,
    /// Runs in which the class and the place were named, and nobody else.
    pub exact: usize,
    /// Innocent nodes accused, in all runs together.
    pub innocent: usize,
    /// Waves of the search, in all runs together.
    pub waves: usize,
    /// Waves of the closer look, in all runs together.
    pub closer_waves: usize,
    /// The longest time that planning one wave took.
    pub planning: Duration,
}

/// `runs` searches in fleets with one fault of this class.
pub fn classes(
    class: Class,
    (nodes, rails, under_leaf): (usize, usize, usize),
    rates: Rates,
    runs: usize,
    seed: u64,
) -> ClassTally {
    let mut random = Random::new(seed);
    let mut tally = ClassTally {
        runs,
        ..ClassTally::default()
    };
    for _ in 0..runs {
        let fleet = class.plant(nodes, rails, under_leaf, rates, &mut random);
        let settings = Settings {
            rates,
            seed: random.bits(),
            ..Settings::default()
        };
        let (search, planning) = fleet.search(settings, &mut random);
        let finding = search.finding();
        let guilty = |node: &Node| {
            fleet.faulty.contains(node)
                || fleet.corrupting.contains(node)
                || fleet.nics.iter().any(|(owner, _)| owner == node)
        };
        tally.exact += usize::from(class.is_found(&fleet, &finding));
        tally.innocent += accused(&finding).filter(|node| !guilty(node)).count();
        tally.waves += search.waves();
        tally.closer_waves += search.closer_waves();
        tally.planning = tally.planning.max(planning);
    }
    tally
}
