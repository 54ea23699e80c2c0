//! What is known of each rank of a launch, from what the ranks say and what the launcher tells of them.
//!
//! When a collective stalls every healthy rank waits in it, so the one to look for is the one that fell silent, died, or
//! never came as far as the others. Silence is measured against the other ranks, never against the clock: if all are
//! silent it is the launcher, or this machine, that is stuck.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::format::launcher::{self, Of};
use crate::format::nccl_log::Transport;
use crate::host::{Ended, Listener, Output};
use crate::rank::{Gpu, Hello, LeftOut, Phase, Progress, RankLine, SizeLine, Work};

use super::launch::StepId;
use super::names::Names;
pub use state::NodeState;

mod state;

/// So many beats without a sign, while others give theirs, is silence.
const SILENT_BEATS: u32 = 5;

/// Of a launch's time, the part for which nobody may get any further: where some ranks are behind the others, and where all
/// are at the same place before the first collective. A cold driver takes tens of seconds to open a GPU.
const BEHIND_SHARE: u32 = 4;
const TOGETHER_SHARE: u32 = 2;

/// After so many beats without anybody getting any further every rank has told where it stands.
const STILL_BEATS: u32 = 2;

/// A rank that has not said hello so long after the first one never will.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How often all ranks are looked at for one that is in the way: there may be a hundred thousand.
const LOOK: Duration = Duration::from_millis(100);

/// How much of a complaint is kept, and how many remarks.
const COMPLAINT_MAX: usize = 300;
const NOTES_MAX: usize = 16;

/// A sweep has two parts, of each of which sizes can be left out.
const LEFT_OUT_MAX: usize = 2;

/// Workers are to be of the same.
const THIS_VERSION: &str = env!("CARGO_PKG_VERSION");

/// How a launch ended.
struct End {
    at: Instant,
    ended: Ended,
}

/// One rank that said hello.
struct Rank {
    node: usize,
    heard: Instant,
    progress: Progress,
}

/// What a rank told when it had done its work.
struct Left {
    collective: Duration,
    transports: Vec<String>,
    seen: String,
}

/// The ranks of one launch.
pub struct Roster {
    nodes: Vec<String>,
    names: Names,
    ranks_per_node: u32,
    /// Where ranks have to come to be done.
    goal: Phase,
    silence: Duration,
    still: Duration,
    deadline: Duration,
    ranks: BTreeMap<u32, Rank>,
    boots: BTreeMap<usize, String>,
    /// What each node's host calls itself.
    hosts: BTreeMap<usize, String>,
    /// Hosts that said hello and are none of the nodes, by rank.
    strangers: BTreeMap<u32, String>,
    end: Option<End>,
    first_hello: Option<Instant>,
    last_heard: Option<Instant>,
    /// When a rank last came further than it was.
    last_step: Option<Instant>,
    last_look: Option<Instant>,
    sizes: Vec<SizeLine>,
    left_out: Vec<LeftOut>,
    library: Option<String>,
    left: BTreeMap<u32, Left>,
    gpus: BTreeMap<u32, Gpu>,
    transports: BTreeMap<u32, Transport>,
    notes: Vec<String>,
    complaints: BTreeMap<usize, NodeState>,
    step: Option<StepId>,
    not_understood: usize,
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.states()).finish()
    }
}

impl Roster {
    pub(super) fn new(
        nodes: &[String],
        names: Names,
        ranks_per_node: u32,
        work: &Work,
        beat: Duration,
        deadline: Duration,
    ) -> Self {
        Roster {
            nodes: nodes.to_vec(),
            names,
            ranks_per_node,
            goal: match work {
                Work::RollCall => Phase::Started,
                Work::AllReduce(_) | Work::NcclAllReduce(_) => Phase::Done,
            },
            silence: beat * SILENT_BEATS,
            still: beat * STILL_BEATS,
            deadline,
            ranks: BTreeMap::new(),
            boots: BTreeMap::new(),
            hosts: BTreeMap::new(),
            strangers: BTreeMap::new(),
            end: None,
            first_hello: None,
            last_heard: None,
            last_step: None,
            last_look: None,
            sizes: Vec::new(),
            left_out: Vec::new(),
            library: None,
            left: BTreeMap::new(),
            gpus: BTreeMap::new(),
            transports: BTreeMap::new(),
            notes: Vec::new(),
            complaints: BTreeMap::new(),
            step: None,
            not_understood: 0,
        }
    }

    /// The sizes that were measured, in ascending order.
    pub fn sizes(&self) -> &[SizeLine] {
        &self.sizes
    }

    /// Those that were left out.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// What MPI said of itself.
    pub fn library(&self) -> Option<&str> {
        self.library.as_deref()
    }

    /// How long the collectives took on the rank where they took longest.
    pub fn collective(&self) -> Option<Duration> {
        self.left.values().map(|left| left.collective).max()
    }

    /// What the ranks of each node that came to their end held open to carry messages, and in which words.
    pub fn carriers(&self) -> impl Iterator<Item = (&str, BTreeSet<&str>, String)> {
        let mut of_node: BTreeMap<usize, (BTreeSet<&str>, &str)> = BTreeMap::new();
        for (rank, left) in &self.left {
            if let Some(known) = self.ranks.get(rank) {
                let (transports, _) = of_node
                    .entry(known.node)
                    .or_insert_with(|| (BTreeSet::new(), left.seen.as_str()));
                transports.extend(left.transports.iter().map(String::as_str));
            }
        }
        of_node.into_iter().map(|(node, (transports, seen))| {
            (self.nodes[node].as_str(), transports, seen.to_owned())
        })
    }

    /// The node that a rank ran on.
    pub fn node_of(&self, rank: u32) -> Option<&str> {
        let node = self.ranks.get(&rank)?.node;
        self.nodes.get(node).map(String::as_str)
    }

    /// A rank, the node that it ran on and the GPU that it drove, for people.
    pub fn describe(&self, rank: u32) -> String {
        let node = self.node_of(rank).unwrap_or("an unknown node");
        match self.gpus.get(&rank) {
            Some(gpu) => format!("rank {rank} on {node} ({gpu})"),
            None => format!("rank {rank} on {node}"),
        }
    }

    /// The GPU of each rank that told, with the node.
    pub fn gpus(&self) -> impl Iterator<Item = (u32, &str, &Gpu)> {
        let placed = |(rank, gpu): (&u32, _)| Some((*rank, self.node_of(*rank)?, gpu));
        self.gpus.iter().filter_map(placed)
    }

    /// How each rank that told reaches the others, with the node.
    pub fn transports(&self) -> impl Iterator<Item = (&str, &Transport)> {
        let placed = |(rank, transport): (&u32, _)| Some((self.node_of(*rank)?, transport));
        self.transports.iter().filter_map(placed)
    }

    /// Remarks of the ranks.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The boot of each node that said hello.
    pub fn boots(&self) -> impl Iterator<Item = (&str, &str)> {
        let name = |node: usize| self.nodes[node].as_str();
        self.boots
            .iter()
            .map(move |(node, boot)| (name(*node), boot.as_str()))
    }

    /// What the host of each node that said hello calls itself.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, &str)> {
        let name = |node: usize| self.nodes[node].as_str();
        self.hosts
            .iter()
            .map(move |(node, host)| (name(*node), host.as_str()))
    }

    /// What hosts call themselves that said hello and are none of the nodes.
    pub fn strangers(&self) -> BTreeSet<&str> {
        self.strangers.values().map(String::as_str).collect()
    }

    /// Whether every rank came to its end.
    pub fn is_done(&self) -> bool {
        self.states().all(|(_, state)| state == NodeState::Done)
    }

    /// The step that Slurm made for the launch, if a rank told.
    pub(super) fn step(&self) -> Option<StepId> {
        self.step
    }

    /// How many lines were not those of a rank.
    pub fn not_understood(&self) -> usize {
        self.not_understood
    }

    /// Whether any rank came to a collective: then all of them had left MPI's start.
    fn has_begun(&self) -> bool {
        let begun = |rank: &Rank| rank.progress.phase >= Phase::Collective;
        self.ranks.values().any(begun)
    }

    fn is_silent(&self, rank: &Rank) -> bool {
        rank.progress.phase < self.goal
            && self
                .last_heard
                .is_some_and(|last| last.saturating_duration_since(rank.heard) > self.silence)
    }

    fn hear(&mut self, line: &[u8], now: Instant) {
        let Ok(line) = serde_json::from_slice::<RankLine>(line) else {
            self.not_understood += 1;
            return;
        };
        match line {
            RankLine::Hello(hello) => {
                if !self.welcome(hello, now) {
                    return;
                }
            }
            RankLine::At { rank, progress } => {
                if let Some(known) = self.ranks.get_mut(&rank) {
                    known.heard = now;
                    if progress > known.progress {
                        known.progress = progress;
                        self.last_step = Some(now);
                    }
                }
            }
            RankLine::Library { version } => self.library = Some(version),
            RankLine::Gpu { rank, gpu } => {
                if self.ranks.contains_key(&rank) {
                    self.gpus.insert(rank, gpu);
                }
            }
            RankLine::Transport { rank, transport } => {
                if self.ranks.contains_key(&rank) {
                    self.transports.insert(rank, transport);
                }
            }
            RankLine::Note { text } => self.note(text),
            RankLine::Size(size) => {
                // The large ones come first.
                let smaller = |known: &SizeLine| known.bytes <= size.bytes;
                let place = self.sizes.partition_point(smaller);
                self.sizes.insert(place, size);
            }
            RankLine::LeftOut(sizes) => {
                if self.left_out.len() < LEFT_OUT_MAX {
                    self.left_out.push(sizes);
                }
            }
            RankLine::Left {
                rank,
                collective_ms,
                transports,
                seen,
            } => {
                let left = Left {
                    collective: Duration::from_millis(collective_ms),
                    transports,
                    seen,
                };
                self.left.insert(rank, left);
            }
            RankLine::Failed { rank, error } => self.hear_why(rank, &error, NodeState::Failed),
            RankLine::Broke { rank, error } => self.hear_why(rank, &error, NodeState::BrokeOff),
        }
        self.last_heard = Some(now);
    }

    /// Takes in a rank that says hello; not one that runs on none of the nodes.
    fn welcome(&mut self, hello: Hello, now: Instant) -> bool {
        let Some(node) = self.names.place_either(hello.node.as_deref(), &hello.host) else {
            self.not_understood += 1;
            if self.strangers.len() < self.expected() {
                self.strangers.insert(hello.rank, hello.host);
            }
            return false;
        };
        let version = hello.dhc;
        if !version.is_empty() && version != THIS_VERSION {
            self.note(format!(
                "dhc-rank on {} is of version {version}, this is dhc {THIS_VERSION}: install the same",
                hello.host
            ));
        }
        self.hosts.entry(node).or_insert(hello.host);
        self.first_hello.get_or_insert(now);
        self.last_step = Some(now);
        self.step = self.step.or(hello.step);
        self.boots.entry(node).or_insert(hello.boot);
        let progress = Progress {
            phase: Phase::Started,
            entered: 0,
        };
        self.ranks.entry(hello.rank).or_insert(Rank {
            node,
            heard: now,
            progress,
        });
        true
    }

    fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        }
    }

    fn hear_why(&mut self, rank: u32, error: &str, state: fn(String) -> NodeState) {
        if let Some(node) = self.ranks.get(&rank).map(|rank| rank.node) {
            self.complain(node, state(error.chars().take(COMPLAINT_MAX).collect()));
        }
    }

    /// Only the first complaint about a node counts, since the launcher ends all other ranks after the first that fails.
    fn complain(&mut self, node: usize, state: NodeState) {
        self.complaints.entry(node).or_insert(state);
    }

    /// Takes what the launcher said of ranks that died.
    pub(super) fn read_launcher(&mut self, output: &Output) {
        self.end = Some(End {
            at: Instant::now(),
            ended: output.ended.clone(),
        });
        let text = String::from_utf8_lossy(&output.stderr.kept()).into_owned();
        // Whoever dies after dhc has ended the launch dies of that.
        let by_us = matches!(output.ended, Ended::TimedOut | Ended::Dismissed);
        let complaints = launcher::complaints(&text).into_iter();
        for complaint in complaints.filter(|complaint| !by_us || complaint.of == Of::Node) {
            let Some(node) = self.names.place(complaint.host) else {
                continue;
            };
            let silent_so_far = !self.boots.contains_key(&node);
            let why: String = complaint.why.chars().take(COMPLAINT_MAX).collect();
            let state = match complaint.of {
                Of::Task if silent_so_far => NodeState::CouldNotStart(why),
                Of::Task if !self.has_begun() => NodeState::DiedAtStart(why),
                Of::Task => NodeState::Died(why),
                Of::Node => NodeState::Silent,
            };
            self.complain(node, state);
        }
    }

    /// How many ranks were started.
    fn expected(&self) -> usize {
        self.nodes.len() * self.ranks_per_node as usize
    }

    fn enough(&self, now: Instant) -> bool {
        let (Some(first), Some(last)) = (self.first_hello, self.last_heard) else {
            return false;
        };
        let came = self.ranks.len() + self.strangers.len();
        let some_never_came =
            came < self.expected() && now.saturating_duration_since(first) > START_LIMIT;
        if self.goal == Phase::Started {
            return some_never_came;
        }
        let others_speak = now.saturating_duration_since(last) < self.silence;
        let one_is_silent = self.ranks.values().any(|rank| self.is_silent(rank));
        others_speak && (one_is_silent || some_never_came || self.is_stuck(now))
    }

    /// Whether all ranks are alive and none will come any further. In the collectives nobody can tell: one of them may take
    /// as long as it likes.
    fn is_stuck(&self, now: Instant) -> bool {
        let Some(step) = self.last_step else {
            return false;
        };
        let still = now.saturating_duration_since(step);
        let phases = || self.ranks.values().map(|rank| rank.progress.phase);
        if phases().min() < phases().max() {
            return still > self.deadline / BEHIND_SHARE;
        }
        !self.has_begun() && still > self.deadline / TOGETHER_SHARE
    }
}

impl Listener for Roster {
    fn line(&mut self, line: &[u8]) {
        self.hear(line, Instant::now());
    }

    fn is_enough(&mut self) -> bool {
        let now = Instant::now();
        let recently = |last: Instant| now.saturating_duration_since(last) < LOOK;
        if self.last_look.is_some_and(recently) {
            return false;
        }
        self.last_look = Some(now);
        self.enough(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWEEP: Work = Work::AllReduce(crate::rank::Sweep {
        bytes_min: 8,
        bytes_max: 8,
        bytes_large: 8,
        asked_bytes_per_s: None,
        size_ms: 1,
        sweep_ms: 1,
    });

    const BEAT: Duration = Duration::from_secs(1);
    const DEADLINE: Duration = Duration::from_secs(120);

    /// A launch over three nodes of one rank, and the moment that it began.
    fn three() -> (Roster, Instant) {
        let nodes = ["h1", "h2", "h3"].map(str::to_owned);
        let mut roster = Roster::new(&nodes, Names::of(&nodes), 1, &SWEEP, BEAT, DEADLINE);
        let now = Instant::now();
        for rank in 0..3 {
            let host = format!("h{}.cluster.example", rank + 1);
            let line =
                format!(r#"{{"hello":{{"rank":{rank},"host":"{host}","boot":"b","pid":1}}}}"#);
            roster.hear(line.as_bytes(), now);
        }
        (roster, now)
    }

    fn at(roster: &mut Roster, rank: u32, phase: &str, entered: u64, now: Instant) {
        let line = format!(
            r#"{{"at":{{"rank":{rank},"progress":{{"phase":"{phase}","entered":{entered}}}}}}}"#
        );
        roster.hear(line.as_bytes(), now);
    }

    fn states(roster: &Roster) -> Vec<&'static str> {
        roster.states().map(|(_, state)| state.word()).collect()
    }

    #[test]
    fn ranks_that_come_to_their_end_are_done() {
        let (mut roster, now) = three();
        for rank in 0..3 {
            at(&mut roster, rank, "done", 10, now);
        }
        assert_eq!(states(&roster), ["done", "done", "done"]);
        assert!(roster.is_done());
    }

    #[test]
    fn a_rank_that_falls_silent_among_others_is_enough_to_know() {
        let (mut roster, begun) = three();
        let mut now = begun;
        for second in 0..7 {
            now = begun + Duration::from_secs(second);
            for rank in [0, 1] {
                at(&mut roster, rank, "collective", 5, now);
            }
            assert_eq!(roster.enough(now), second > 5, "after {second} s");
        }
        assert_eq!(states(&roster), ["waiting", "waiting", "silent"]);
        // All silent together: nobody can tell.
        assert!(!roster.enough(now + Duration::from_secs(60)));
    }

    /// All ranks tell where they are once a second: of as many collectives each.
    fn stand_at(roster: &mut Roster, entered: [u64; 3], seconds: u64, begun: Instant) {
        for second in 0..=seconds {
            for (rank, entered) in (0..).zip(entered) {
                let now = begun + Duration::from_secs(second);
                at(roster, rank, "collective", entered, now);
            }
        }
    }

    #[test]
    fn a_rank_that_entered_fewer_collectives_lags_once_all_have_told_where_they_stand() {
        for (seconds, state) in [(1, "waiting"), (2, "lagging")] {
            let (mut roster, now) = three();
            stand_at(&mut roster, [7, 6, 7], seconds, now);
            assert_eq!(states(&roster), ["waiting", state, "waiting"]);
        }
        // One that is ahead makes no laggards of the others.
        let (mut roster, now) = three();
        stand_at(&mut roster, [6, 7, 6], 9, now);
        assert_eq!(states(&roster), ["waiting", "waiting", "waiting"]);
    }

    #[test]
    fn a_rank_that_says_what_cannot_be_is_not_believed() {
        let (mut roster, now) = three();
        stand_at(&mut roster, [5, 1 << 63, 5], 9, now);
        assert_eq!(states(&roster), ["waiting", "failed", "waiting"]);
    }

    #[test]
    fn a_host_that_calls_itself_otherwise_is_placed_by_slurm_s_name_and_no_node_is_gone_for_it() {
        let hello = |host: &str, node: &str| {
            format!(r#"{{"hello":{{"rank":1,"host":"{host}","boot":"b","pid":1{node}}}}}"#)
        };
        for (node, state) in [
            ("", "waiting"),
            (r#","node":"h2""#, "waiting"),
            (r#","node":"h9""#, "waiting"),
        ] {
            let nodes = ["h1", "h2"].map(str::to_owned);
            let mut roster = Roster::new(&nodes, Names::of(&nodes), 1, &SWEEP, BEAT, DEADLINE);
            let begun = Instant::now();
            roster.hear(
                br#"{"hello":{"rank":0,"host":"h1","boot":"b","pid":1}}"#,
                begun,
            );
            roster.hear(hello("ip-10-0-0-2", node).as_bytes(), begun);
            at(&mut roster, 0, "collective", 1, begun + START_LIMIT * 2);
            let placed = node.contains("h2");
            assert_eq!(roster.node_of(1).is_some(), placed);
            if !placed {
                assert_eq!(states(&roster), ["waiting", state], "{node}");
                assert!(roster.whereabouts().contains("call themselves ip-10-0-0-2"));
            }
        }
    }

    #[test]
    fn a_rank_that_never_comes_to_where_the_others_wait_is_not_waited_for_to_the_deadline() {
        let (mut roster, begun) = three();
        let mut told = None;
        for second in 0..120 {
            let now = begun + Duration::from_secs(second);
            for rank in [0, 2] {
                at(&mut roster, rank, "rendezvous", 0, now);
            }
            at(&mut roster, 1, "device", 0, now);
            told = told.or(roster.enough(now).then_some(second));
        }
        assert_eq!(told, Some(31), "a quarter of the time");
        assert_eq!(states(&roster), ["waiting", "behind", "waiting"]);
        assert_eq!(
            roster.whereabouts(),
            "1 of 3 ranks (h2) opening its GPU, 2 of 3 ranks (h1, h3) waiting for the id of NCCL's communicator"
        );
    }

    #[test]
    fn ranks_that_all_wait_in_one_place_before_the_first_collective_name_nobody() {
        for (phase, stuck) in [("communicator", Some(61)), ("collective", None)] {
            let (mut roster, begun) = three();
            let mut told = None;
            for second in 0..120 {
                let now = begun + Duration::from_secs(second);
                for rank in 0..3 {
                    at(&mut roster, rank, phase, 0, now);
                }
                told = told.or(roster.enough(now).then_some(second));
            }
            assert_eq!(told, stuck, "{phase}");
            assert_eq!(states(&roster), ["waiting", "waiting", "waiting"]);
        }
    }

    #[test]
    fn a_node_that_never_says_hello_is_not_waited_for() {
        let nodes = ["h1", "h2"].map(str::to_owned);
        let mut roster = Roster::new(&nodes, Names::of(&nodes), 1, &SWEEP, BEAT, DEADLINE);
        let begun = Instant::now();
        roster.hear(
            br#"{"hello":{"rank":0,"host":"h1","boot":"b","pid":1}}"#,
            begun,
        );
        let later = begun + START_LIMIT + Duration::from_secs(1);
        at(&mut roster, 0, "init", 0, later);
        assert!(roster.enough(later));
        assert_eq!(states(&roster), ["waiting", "never_answered"]);
    }

    #[test]
    fn what_is_no_line_of_a_rank_is_counted_and_harms_nothing() {
        let (mut roster, now) = three();
        for noise in [
            "",
            "hello",
            "{\"at\":{\"rank\":99",
            r#"{"hello":{"rank":7,"host":"evil","boot":"","pid":1}}"#,
        ] {
            roster.hear(noise.as_bytes(), now);
        }
        assert_eq!(roster.not_understood(), 4);
        assert_eq!(states(&roster), ["waiting", "waiting", "waiting"]);
    }
}
