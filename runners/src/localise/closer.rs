//! A closer look at what the search has found: where in an accused node the cause is, and whether a slow path stays slow.
//!
//! Each accused node is measured with good partners on each rail, until every rail is known to be slow or not: if all are it
//! is the node, if some are it is their cards. A node with wrong results is measured with two good ones and these with one
//! another: the majority of three is right. And each is measured alone, beside a good one for comparison.
//!
//! By rail two explanations are weighed against each other: the node is slow, and so all its rails are; or some of its
//! cards are, each by itself. Bayes' rule over both needs about one group for each rail and three for a slow one.

use super::evidence::{FAILS_MIN, FAULTY, WITNESSES_MIN};
use super::{
    Cause, Group, Leaf, Majority, Node, Outcome, PathFinding, PathKind, Place, Purpose, Rail,
    Rails, Random, Rates, Tally,
};

/// Groups that agree before it is said whether a node is bad by itself, and when no more are tried.
const ALONE_LEAD: u32 = 2;
const ALONE_MAX: u32 = 6;

/// Below this probability a rail of an accused node counts as good: where another one is known to be slow, and where none
/// is, though one should be.
const GOOD_RAIL: f64 = 0.01;
const GOOD_RAIL_OF_ALL: f64 = 5e-4;

/// How many groups the rails of one node may take: some for each, and some more.
const RAIL_GROUPS_MAX: u32 = 3;
const RAIL_GROUPS_MORE: u32 = 8;

/// How often a node with wrong results is tried with either witness before it is left at that.
const MAJORITY_MAX: u32 = 4;

/// How often a path that failed twice is measured again, and how many of those a steady one fails.
const PATH_REPEATS: u32 = 5;
const PATH_STAYS: u32 = 4;

/// How many waves may tell nothing before the look ends.
const BLIND_MAX: usize = 2;

/// A node under a closer look.
#[derive(Clone, Debug)]
struct Patient {
    node: Node,
    cause: Cause,
    /// How often it was to be measured by itself and that said nothing.
    alone_unanswered: usize,
    /// With whom it failed on each rail.
    partners: Vec<Vec<Node>>,
}

/// What a group was asked for.
#[derive(Clone, Copy, Debug)]
enum Question {
    Alone(usize),
    /// A good node alone, to compare.
    Control,
    Rail(usize, Rail, Node),
    WithWitness(usize),
    Witnesses(usize),
    Path(usize),
}

/// The look under way.
#[derive(Clone, Debug)]
pub(super) struct Closer {
    patients: Vec<Patient>,
    paths: Vec<PathFinding>,
    good: Vec<Node>,
    leaves: Option<Vec<Leaf>>,
    rails: usize,
    rates: Rates,
    groups_max: usize,
    asked: Vec<Question>,
    blind: usize,
}

/// What a closer look needs to know.
pub(super) struct Known {
    /// The accused, and whether it is for wrong results.
    pub(super) accused: Vec<(Node, bool)>,
    /// Pairs that failed twice.
    pub(super) paths: Vec<(Node, Node)>,
    /// Nodes that nothing is held against.
    pub(super) good: Vec<Node>,
    pub(super) leaves: Option<Vec<Leaf>>,
    pub(super) rails: usize,
}

impl Closer {
    pub(super) fn at(known: Known, rates: Rates, groups_max: usize) -> Closer {
        let rails = if known.rails >= 2 { known.rails } else { 0 };
        let patient = |(node, corrupting): (Node, bool)| Patient {
            node,
            cause: Cause {
                rails: vec![Tally::default(); rails],
                majority: corrupting.then(|| witnesses(&known.good)).flatten(),
                ..Cause::default()
            },
            alone_unanswered: 0,
            partners: vec![Vec::new(); rails],
        };
        Closer {
            patients: known.accused.iter().copied().map(patient).collect(),
            paths: known
                .paths
                .into_iter()
                .map(PathFinding::not_repeated)
                .collect(),
            good: known.good,
            leaves: known.leaves,
            rails,
            rates,
            groups_max,
            asked: Vec::new(),
            blind: 0,
        }
    }

    /// The groups to measure next, none when nothing more is to be learned.
    pub(super) fn wave(&mut self, random: &mut Random) -> Vec<Group> {
        self.asked.clear();
        if self.blind >= BLIND_MAX {
            return Vec::new();
        }
        let mut free = self.good.clone();
        random.shuffle(&mut free);
        let mut groups: Vec<Group> = Vec::new();
        for place in 0..self.paths.len() {
            let PathFinding { nodes, repeats, .. } = self.paths[place];
            let is_free = free.contains(&nodes.0) && free.contains(&nodes.1);
            if repeats.groups() < PATH_REPEATS && is_free && groups.len() < self.groups_max {
                free.retain(|node| *node != nodes.0 && *node != nodes.1);
                groups.push(Group::new(vec![nodes.0, nodes.1], Purpose::Path));
                self.asked.push(Question::Path(place));
            }
        }
        for place in 0..self.patients.len() {
            // A node alone takes two groups: its own and the one to compare.
            if groups.len() + 2 <= self.groups_max
                && let Some((question, group)) = self.next(place, &mut free)
            {
                groups.push(group);
                self.asked.push(question);
                if matches!(question, Question::Alone(_))
                    && let Some(control) = free.pop()
                {
                    groups.push(Group::new(vec![control], Purpose::Alone));
                    self.asked.push(Question::Control);
                }
            }
        }
        groups
    }

    /// What is to be asked of a node next, and the group that answers it, of nodes that are free.
    fn next(&self, place: usize, free: &mut Vec<Node>) -> Option<(Question, Group)> {
        let Patient { node, cause, .. } = &self.patients[place];
        if let Some(rail) = self.open_rail(&self.patients[place])
            && let Some(partner) = self.partner(&self.patients[place], rail, free)
        {
            let group = Group {
                rails: Rails::Only(rail),
                ..Group::new(vec![*node, partner], Purpose::Rail)
            };
            return Some((Question::Rail(place, rail, partner), group));
        }
        if let Some(majority) = &cause.majority
            && let Some((question, nodes)) = next_of_three(place, *node, majority)
        {
            let others = || nodes.iter().filter(|other| *other != node);
            if others().all(|other| free.contains(other)) {
                free.retain(|other| !nodes.contains(other));
                return Some((question, Group::new(nodes.to_vec(), Purpose::Majority)));
            }
        }
        let unanswered = self.patients[place].alone_unanswered;
        (is_open_alone(cause.alone) && unanswered < BLIND_MAX && !free.is_empty()).then(|| {
            let group = Group::new(vec![*node], Purpose::Alone);
            (Question::Alone(place), group)
        })
    }

    /// The rail of a node that most is to be learned of.
    fn open_rail(&self, patient: &Patient) -> Option<Rail> {
        let tried: u32 = patient.cause.rails.iter().map(|tally| tally.groups()).sum();
        if tried >= self.rails as u32 * RAIL_GROUPS_MAX + RAIL_GROUPS_MORE {
            return None;
        }
        let probability = self.rail_probability(&patient.cause.rails);
        let all = probability.iter().all(|p| *p >= FAULTY);
        let good_below = if probability.iter().any(|p| *p >= FAULTY) {
            GOOD_RAIL
        } else {
            GOOD_RAIL_OF_ALL
        };
        let open = (0..self.rails).filter(|rail| {
            let p = probability[*rail];
            let proven = p >= FAULTY && (all || is_proven(patient, *rail));
            !proven && p > good_below
        });
        open.min_by_key(|rail| patient.cause.rails[*rail].groups())
    }

    /// A good node that it was not measured with on this rail, under its own leaf if there is one.
    fn partner(&self, patient: &Patient, rail: Rail, free: &mut Vec<Node>) -> Option<Node> {
        let new = |node: &&Node| !patient.partners[rail].contains(node);
        let near = |node: &&Node| match &self.leaves {
            Some(leaves) => leaves[**node] == leaves[patient.node],
            None => true,
        };
        let mut candidates = free.iter();
        let partner = candidates
            .clone()
            .find(|node| new(node) && near(node))
            .or_else(|| candidates.clone().find(new))
            .or_else(|| candidates.next())
            .copied()?;
        free.retain(|node| *node != partner);
        Some(partner)
    }

    pub(super) fn tell(&mut self, outcomes: &[Outcome]) {
        let controls = self.asked.iter().zip(outcomes);
        let mut controls = controls.filter(|(asked, _)| matches!(asked, Question::Control));
        // Where good nodes are slow by themselves too, it is the way of measuring.
        let comparable = controls.all(|(_, outcome)| *outcome == Outcome::Passed);
        let mut said_something = false;
        for (asked, outcome) in std::mem::take(&mut self.asked).iter().zip(outcomes) {
            let failed = match (outcome.failed(), asked) {
                (Some(failed), _) if comparable || !matches!(asked, Question::Alone(_)) => failed,
                (_, Question::Alone(place)) => {
                    self.patients[*place].alone_unanswered += 1;
                    continue;
                }
                _ => continue,
            };
            match *asked {
                Question::Control => continue,
                Question::Alone(place) => self.patients[place].cause.alone.add(failed),
                Question::Rail(place, rail, partner) => {
                    let patient = &mut self.patients[place];
                    patient.cause.rails[rail].add(failed);
                    if failed {
                        patient.partners[rail].push(partner);
                    }
                }
                Question::WithWitness(place) => {
                    if let Some(majority) = &mut self.patients[place].cause.majority {
                        majority.with_it.add(failed);
                    }
                }
                Question::Witnesses(place) => {
                    if let Some(majority) = &mut self.patients[place].cause.majority {
                        majority.without_it.add(failed);
                    }
                }
                Question::Path(place) => self.paths[place].repeats.add(failed),
            }
            said_something = true;
        }
        self.blind = if said_something { 0 } else { self.blind + 1 };
    }

    /// How probable it is, for each rail, that the node is slow on it: because it is on all, or by this card.
    fn rail_probability(&self, rails: &[Tally]) -> Vec<f64> {
        let Rates { false_alarm, miss } = self.rates;
        let of = |passed: f64, failed: f64, tally: &Tally| {
            passed.ln() * f64::from(tally.passed) + failed.ln() * f64::from(tally.failed)
        };
        // Relative to the larger of the two, so that neither vanishes; rates of nought are near enough to it.
        let (false_alarm, miss) = (false_alarm.max(1e-6), miss.max(1e-6));
        let weights: Vec<(f64, f64)> = rails
            .iter()
            .map(|tally| {
                let slow = of(miss, 1.0 - miss, tally);
                let good = of(1.0 - false_alarm, false_alarm, tally);
                let most = slow.max(good);
                ((slow - most).exp(), (good - most).exp())
            })
            .collect();
        // One card of a node as likely as not, and both explanations alike before anything is measured.
        let one = 1.0 / rails.len().max(2) as f64;
        let by_itself = |(slow, good): &(f64, f64)| one * slow + (1.0 - one) * good;
        let node: f64 = weights.iter().map(|(slow, _)| slow).product();
        let cards: f64 = weights.iter().map(by_itself).product();
        let of_rail = |weight: &(f64, f64)| {
            let by_card = one * weight.0 / by_itself(weight);
            (node + cards * by_card) / (node + cards)
        };
        weights.iter().map(of_rail).collect()
    }

    /// What is known of the cause in each accused node.
    pub(super) fn causes(&self) -> impl Iterator<Item = (Node, Cause)> {
        self.patients.iter().map(|patient| {
            let cause = Cause {
                place: self.place(patient),
                rail_probability: self.rail_probability(&patient.cause.rails),
                ..patient.cause.clone()
            };
            (patient.node, cause)
        })
    }

    fn place(&self, patient: &Patient) -> Place {
        let alone = patient.cause.alone;
        if alone.failed >= alone.passed + ALONE_LEAD {
            return Place::Inside;
        }
        let probability = self.rail_probability(&patient.cause.rails);
        let slow: Vec<Rail> = (0..self.rails)
            .filter(|rail| probability[*rail] >= FAULTY && is_proven(patient, *rail))
            .collect();
        let others_good = (0..self.rails)
            .filter(|rail| !slow.contains(rail))
            .all(|rail| probability[rail] <= GOOD_RAIL);
        if !slow.is_empty() && slow.len() < self.rails && others_good {
            return Place::Nics(slow);
        }
        if alone.passed >= alone.failed + ALONE_LEAD {
            return Place::Network;
        }
        Place::NotKnown
    }

    /// The paths, with what repeating them showed.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathFinding> {
        self.paths.iter().map(|path| PathFinding {
            kind: match path.repeats {
                repeats if repeats.groups() < PATH_REPEATS => PathKind::NotKnown,
                Tally { failed, .. } if failed >= PATH_STAYS => PathKind::Stays,
                Tally { .. } => PathKind::Moves,
            },
            ..*path
        })
    }
}

fn is_open_alone(alone: Tally) -> bool {
    alone.passed.abs_diff(alone.failed) < ALONE_LEAD && alone.groups() < ALONE_MAX
}

/// Whether a node failed often enough on a rail, with different partners.
fn is_proven(patient: &Patient, rail: Rail) -> bool {
    let mut partners = patient.partners[rail].clone();
    partners.sort_unstable();
    partners.dedup();
    patient.cause.rails[rail].failed >= FAILS_MIN && partners.len() >= WITNESSES_MIN
}

fn witnesses(good: &[Node]) -> Option<Majority> {
    let [one, other, ..] = good else {
        return None;
    };
    Some(Majority {
        witnesses: (*one, *other),
        with_it: Tally::default(),
        without_it: Tally::default(),
    })
}

/// The pair of three that comes next: the node with either witness in turn, and the witnesses with one another, until two
/// with it agree and the two without it are known to be right.
fn next_of_three(place: usize, node: Node, majority: &Majority) -> Option<(Question, [Node; 2])> {
    let Majority {
        witnesses: (one, other),
        with_it,
        without_it,
    } = *majority;
    let agree = with_it.failed.max(with_it.passed) >= 2;
    if !agree && with_it.groups() < MAJORITY_MAX {
        let witness = if with_it.groups() % 2 == 0 {
            one
        } else {
            other
        };
        return Some((Question::WithWitness(place), [node, witness]));
    }
    if without_it.passed == 0 && without_it.groups() < MAJORITY_MAX {
        return Some((Question::Witnesses(place), [one, other]));
    }
    None
}
