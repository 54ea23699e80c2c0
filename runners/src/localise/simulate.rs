//! A fleet that is not there: faulty nodes are planted, groups answer with the noise that is asked for, and the search has
//! to find what was planted.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Conclusion, Group, Node, Outcome, Random, Rates, Search, Settings, Step, Verdict};

/// What is wrong with a simulated fleet, and how its groups lie.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Number of nodes.
    pub nodes: usize,
    /// Nodes that make every group with them slow.
    pub faulty: BTreeSet<Node>,
    /// Pairs of nodes that make a group of the two, or of everybody, slow.
    pub paths: BTreeSet<(Node, Node)>,
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
            paths: BTreeSet::new(),
            dead: BTreeSet::new(),
            rates,
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
        let has = |node: &Node| group.nodes.binary_search(node).is_ok();
        let bad = self.faulty.iter().any(has)
            || self.paths.iter().any(|(one, other)| has(one) && has(other));
        let failed = if bad {
            !random.happens(self.rates.miss)
        } else {
            random.happens(self.rates.false_alarm)
        };
        if failed {
            Outcome::Failed
        } else {
            Outcome::Passed
        }
    }

    /// Lets a search find out; returns it with the longest time that planning one wave took.
    pub fn search(&self, settings: Settings, random: &mut Random) -> (Search, Duration) {
        let mut search = Search::new(self.nodes, settings);
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
        let accused: BTreeSet<Node> = (0..nodes)
            .filter(|node| {
                matches!(
                    finding.nodes[*node].verdict,
                    Verdict::Faulty | Verdict::Corrupting
                )
            })
            .collect();
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
