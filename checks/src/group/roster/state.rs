//! What became of each node of a launch, inferred from what is known of its ranks.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::Ended;
use crate::rank::{Phase, SizeLine};

use super::{End, Rank, Roster, START_LIMIT};

/// How many collectives a rank can have entered more than another: the barrier after the one that the other is in, and the
/// next one. Who tells of more does not tell what is.
const LEAD_MAX: u64 = 2;

/// So many nodes are named where they are.
const PLACED_MAX: usize = 3;

/// What became of a node in a launch. The gravest of its ranks decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// All its ranks came to their end.
    Done,
    /// Its ranks were alive and waited for others, or were ended with them.
    Waiting,
    /// Its ranks were alive and at a step that they take alone, while others waited further on.
    Behind,
    /// Nobody got any further, and its ranks had come less far than most. It is the reason, or who it talked to: the two ends
    /// of a path that passes nothing look the same.
    Lagging,
    /// Its ranks still got further, or were still to begin, when the time was up.
    Moving,
    /// It gave no sign of life any more while others did.
    Silent,
    /// A rank of it died first.
    Died(String),
    /// A rank of it said that a library or a driver did not do its part: it accuses nobody.
    Failed(String),
    /// A collective came to an error on a rank of it, which something broke, here or elsewhere.
    BrokeOff(String),
    /// A rank of it died before it came to its first collective: more often the doing of MPI's start than of the node.
    DiedAtStart(String),
    /// The worker could not be started there.
    CouldNotStart(String),
    /// No rank of it ever said anything.
    NeverAnswered,
}

impl NodeState {
    /// The word used in results.
    pub fn word(&self) -> &'static str {
        match self {
            NodeState::Done => "done",
            NodeState::Waiting => "waiting",
            NodeState::Behind => "behind",
            NodeState::Lagging => "lagging",
            NodeState::Moving => "moving",
            NodeState::Silent => "silent",
            NodeState::Died(_) => "died",
            NodeState::Failed(_) => "failed",
            NodeState::BrokeOff(_) => "broke_off",
            NodeState::DiedAtStart(_) => "died_at_start",
            NodeState::CouldNotStart(_) => "could_not_start",
            NodeState::NeverAnswered => "never_answered",
        }
    }

    /// In whose words, if there are any.
    pub fn why(&self) -> Option<&str> {
        match self {
            NodeState::Died(why)
            | NodeState::Failed(why)
            | NodeState::BrokeOff(why)
            | NodeState::DiedAtStart(why)
            | NodeState::CouldNotStart(why) => Some(why),
            NodeState::Done
            | NodeState::Waiting
            | NodeState::Behind
            | NodeState::Lagging
            | NodeState::Moving
            | NodeState::Silent
            | NodeState::NeverAnswered => None,
        }
    }
}

/// What all ranks together look like.
struct Scene {
    /// How far the foremost has come.
    most: Option<Phase>,
    /// How many collectives most ranks have entered that are in one: fewer than half of them have entered fewer.
    usual: u64,
    /// Whether less than half of the nodes stand at a step that they take alone, or just that.
    few_are_behind: bool,
    /// Whether nobody got any further for so long that each has told where it stands.
    is_still: bool,
}

impl Roster {
    /// What became of each node, in the order of the group.
    pub fn states(&self) -> impl Iterator<Item = (&str, NodeState)> {
        let mut ranks: Vec<Vec<(u32, &Rank)>> = vec![Vec::new(); self.nodes.len()];
        for (number, rank) in &self.ranks {
            ranks[rank.node].push((*number, rank));
        }
        let scene = self.scene(&ranks);
        let states = ranks.into_iter().enumerate();
        states.map(move |(node, ranks)| {
            let state = self.state(node, &ranks, &scene);
            (self.nodes[node].as_str(), state)
        })
    }

    fn scene(&self, of_node: &[Vec<(u32, &Rank)>]) -> Scene {
        let most = self.ranks.values().map(|rank| rank.progress.phase).max();
        let in_collective = |rank: &&Rank| rank.progress.phase == Phase::Collective;
        let entered = self.ranks.values().filter(in_collective);
        let mut entered: Vec<u64> = entered.map(|rank| rank.progress.entered).collect();
        let middle = entered.len().saturating_sub(1) / 2;
        let usual = if entered.is_empty() {
            0
        } else {
            *entered.select_nth_unstable(middle).1
        };
        let is_behind = |ranks: &&Vec<(u32, &Rank)>| {
            let mut phases = ranks.iter().map(|(_, rank)| rank.progress.phase);
            phases.any(|phase| phase.is_alone() && Some(phase) < most)
        };
        let behind = of_node.iter().filter(is_behind).count();
        Scene {
            most,
            usual,
            few_are_behind: behind * 2 <= self.nodes.len(),
            is_still: self.is_still(),
        }
    }

    /// Whether nobody got any further for so long that each has told where it stands.
    fn is_still(&self) -> bool {
        let still = self.last_heard.zip(self.last_step);
        still.is_some_and(|(heard, step)| heard.saturating_duration_since(step) >= self.still)
    }

    /// Whether the time was up while ranks still got further.
    pub fn is_moving(&self) -> bool {
        self.ran_out() && !self.is_still()
    }

    fn ran_out(&self) -> bool {
        let ran_out = |end: &End| matches!(end.ended, Ended::TimedOut | Ended::Unkillable { .. });
        self.end.as_ref().is_some_and(ran_out)
    }

    fn state(&self, node: usize, ranks: &[(u32, &Rank)], scene: &Scene) -> NodeState {
        if let Some(complaint) = self.complaints.get(&node) {
            return complaint.clone();
        }
        if ranks.len() < self.ranks_per_node as usize {
            return self.state_of_missing();
        }
        if ranks.iter().any(|(_, rank)| self.is_silent(rank)) {
            return NodeState::Silent;
        }
        let least = ranks.iter().map(|(_, rank)| rank.progress).min();
        let Some(least) = least.filter(|least| least.phase < self.goal) else {
            return NodeState::Done;
        };
        if self.is_moving() {
            return NodeState::Moving;
        }
        if !scene.is_still {
            return NodeState::Waiting;
        }
        let in_collective = |rank: &&(u32, &Rank)| rank.1.progress.phase == Phase::Collective;
        let cannot_be = |rank: &&(u32, &Rank)| {
            in_collective(rank) && rank.1.progress.entered.abs_diff(scene.usual) > LEAD_MAX
        };
        if let Some((number, rank)) = ranks.iter().find(cannot_be) {
            return NodeState::Failed(format!(
                "rank {number} says that it has entered {} collectives, and most say {}, which cannot be",
                rank.progress.entered, scene.usual
            ));
        }
        match least.phase {
            phase if Some(phase) < scene.most && !phase.is_alone() => NodeState::Lagging,
            phase if Some(phase) < scene.most && scene.few_are_behind => NodeState::Behind,
            Phase::Collective if least.entered < scene.usual => NodeState::Lagging,
            _ => NodeState::Waiting,
        }
    }

    /// What became of a node of which ranks are missing.
    fn state_of_missing(&self) -> NodeState {
        let expected = self.expected();
        let all_took_part = |size: &SizeLine| size.ranks as usize == expected;
        let end = self.end.as_ref();
        let ended_well = end.is_some_and(|end| end.ended == Ended::Exited(0));
        if ended_well && self.sizes.last().is_some_and(all_took_part) {
            return NodeState::Done;
        }
        // Where nobody answered it is the launcher's silence, not the nodes'. Who calls itself otherwise may be this one.
        let is_known = !self.ranks.is_empty() && self.strangers.is_empty();
        match (self.had_time_to_answer(), self.ran_out()) {
            (true, _) if is_known => NodeState::NeverAnswered,
            (false, true) => NodeState::Moving,
            _ => NodeState::Waiting,
        }
    }

    /// Whether a rank that has not said hello by now had the time to.
    fn had_time_to_answer(&self) -> bool {
        let end = self.end.as_ref();
        let by_itself = end.is_some_and(|end| matches!(end.ended, Ended::Exited(_)));
        // The launcher ends all others after the first one that fails, whether they have begun or not.
        let ended_early = self.goal > Phase::Started && !self.complaints.is_empty();
        let last = self.last_heard.max(end.map(|end| end.at));
        let waited = last.zip(self.first_hello);
        let waited = waited.map(|(last, first)| last.saturating_duration_since(first));
        by_itself && !ended_early || waited.is_some_and(|waited| waited > START_LIMIT)
    }

    /// How many ranks were last seen where, for people; nodes are named where they are few.
    pub fn whereabouts(&self) -> String {
        let mut places: BTreeMap<Phase, Vec<&Rank>> = BTreeMap::new();
        for rank in self.ranks.values() {
            places.entry(rank.progress.phase).or_default().push(rank);
        }
        let all = self.ranks.len();
        let place = |(phase, ranks): (Phase, Vec<&Rank>)| {
            let nodes: BTreeSet<usize> = ranks.iter().map(|rank| rank.node).collect();
            let nodes = match nodes.len() {
                1..=PLACED_MAX => {
                    let names = nodes.iter().map(|node| self.nodes[*node].as_str());
                    names.collect::<Vec<&str>>().join(", ")
                }
                many => format!("{many} nodes"),
            };
            format!("{} of {all} ranks ({nodes}) {}", ranks.len(), phase.words())
        };
        let places: Vec<String> = places.into_iter().map(place).collect();
        let strangers = self.strangers();
        let strangers = strangers.iter().take(PLACED_MAX).copied();
        let strangers = strangers.collect::<Vec<&str>>().join(", ");
        match (places.is_empty(), strangers.is_empty()) {
            (true, true) => "no rank said anything".to_owned(),
            (false, true) => places.join(", "),
            (_, false) => format!(
                "{}; {} more ranks are on hosts that call themselves {strangers}, which none of the nodes is called",
                places.join(", "),
                self.strangers.len()
            ),
        }
    }
}
