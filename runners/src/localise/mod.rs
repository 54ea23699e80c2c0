//! Who is to blame: adaptive group testing in waves, with a closing test. Pure: no clock, no file, no network; chance comes
//! from a seed. The same code runs against a real cluster and against a simulated fleet ([`simulate`]).
//!
//! **Waves cost time, groups do not.** Groups that share no node run side by side, so one wave looks at every node at once.
//! A round robin of pairs takes n − 1 waves; this takes about five whatever n is.
//!
//! **Groups lie.** A group of good nodes fails now and then, and a group with a faulty node passes now and then. So nobody
//! is accused for one failure: a node is [`Verdict::Faulty`] when it is so with a probability of 0.9993, after three failed
//! groups with nodes that are good. Two of them have to be left without any one of the others, since with that one the path
//! may be slow.
//!
//! **The closing test** measures everybody who is not accused once more. It is the only step that sees a second fault that
//! hid behind the first, and it is the proof that an operator wants: fast without X. It runs beside the last confirmation
//! of the suspects, who have failed on an otherwise idle network by then, and so costs no wave of its own.
//!
//! **Where there is no contrast nobody is accused.** If no group ever passes, the cause is something that all nodes share.
//!
//! **What is accused is looked at more closely**, and only then: a slow node alone and by rail ([`closer`]), whether it is a
//! card of it; all nodes by rail, whether they share a slow one ([`survey`]); the leaves as if each were a node
//! ([`leaves`]), whether it is the uplink of one. The leaves and rails are the [`Layout`] that the caller knows of.
//!
//! What it does not know: how much slower a large group has to be before it counts as failed, which its caller decides;
//! and correlated noise, such as one congested switch that makes several groups of the same wave fail, which breaks the
//! independence that Bayes' rule is applied with here. Suspects are therefore first confirmed alone.

mod belief;
mod closer;
mod evidence;
mod leaves;
mod parts;
mod paths;
mod random;
mod search;
pub mod simulate;
mod survey;
mod suspects;

pub use belief::Rates;
pub use random::Random;
pub use search::Search;

/// A node, as an index into the caller's list.
pub type Node = usize;

/// A rail, as an index into the caller's list: the network card of that number on every node, and the switches between
/// them.
pub type Rail = usize;

/// A leaf switch, as an index into the caller's list.
pub type Leaf = usize;

/// What is known of the network before anything is measured.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// The leaf switch of each node, in the order of the nodes; `None` where it is not known.
    pub leaves: Option<Vec<Leaf>>,
    /// How many rails groups can be confined to; none are tried with less than two.
    pub rails: usize,
}

/// How a search goes about it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often groups lie.
    pub rates: Rates,
    /// How many groups one wave may have: launches that the scheduler bears at once (Slurm starts about 150 a second at
    /// best).
    pub groups_max: usize,
    /// How many waves there may be that look for nodes and leaves. Where paths are tried after that, in small groups of nodes
    /// only, every pair gets its turn.
    pub waves_max: usize,
    /// Where chance begins.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            rates: Rates {
                false_alarm: 0.01,
                miss: 0.02,
            },
            groups_max: 128,
            waves_max: 30,
            seed: 1,
        }
    }
}

/// Why a group is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// All nodes together.
    Whole,
    /// A part of the nodes, to see which parts fail.
    Part,
    /// One suspect or several, with a node that is known to be good where there is one.
    Suspect,
    /// Everybody who is not suspected.
    Closing,
    /// Two nodes that are good with others, to see whether the path between them is.
    Path,
    /// Good nodes of different leaves, to see whether it is the way between the leaves.
    Leaf,
    /// A node by itself: whether the cause is inside of it. Good ones are measured beside it, to compare.
    Alone,
    /// Two nodes on one rail.
    Rail,
    /// Two of three, one of which gets wrong results.
    Majority,
}

impl Purpose {
    /// The word used in results.
    pub const fn word(self) -> &'static str {
        match self {
            Purpose::Whole => "whole",
            Purpose::Part => "part",
            Purpose::Suspect => "suspect",
            Purpose::Closing => "closing",
            Purpose::Path => "path",
            Purpose::Leaf => "leaf",
            Purpose::Alone => "alone",
            Purpose::Rail => "rail",
            Purpose::Majority => "majority",
        }
    }
}

/// Which rails a group uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rails {
    /// All that there are, as a job would.
    #[default]
    All,
    /// This one.
    Only(Rail),
}

impl Rails {
    /// The one rail, if it is one.
    pub fn only(self) -> Option<Rail> {
        match self {
            Rails::All => None,
            Rails::Only(rail) => Some(rail),
        }
    }
}

/// Nodes to measure together. The groups of one wave share no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The nodes, in ascending order; two at least, but for [`Purpose::Alone`].
    pub nodes: Vec<Node>,
    /// Why.
    pub purpose: Purpose,
    /// Over which rails.
    pub rails: Rails,
}

impl Group {
    /// A group over all rails.
    fn new(mut nodes: Vec<Node>, purpose: Purpose) -> Group {
        nodes.sort_unstable();
        Group {
            nodes,
            purpose,
            rails: Rails::All,
        }
    }
}

/// What a group turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As fast as it should be, and right.
    Passed,
    /// Too slow.
    Failed,
    /// Stuck, without anybody to name.
    Hung,
    /// Ended by an error of the collective itself, whoever was the reason.
    Broken,
    /// Wrong results.
    Corrupted,
    /// It did not come to its end, and these nodes were seen to be the reason: dead, silent, or never there. Says nothing
    /// about the others.
    Named(Vec<Node>),
    /// It could not be measured. Says nothing.
    Unknown,
}

impl Outcome {
    /// Whether the group was bad, if that can be said of all of it.
    fn failed(&self) -> Option<bool> {
        match self {
            Outcome::Passed => Some(false),
            Outcome::Failed | Outcome::Hung | Outcome::Broken | Outcome::Corrupted => Some(true),
            Outcome::Named(_) | Outcome::Unknown => None,
        }
    }
}

/// Why a node cannot be measured any more, by the word of whoever lends the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It is down.
    Down,
    /// It was taken away, for a reason that need not be its own.
    TakenAway,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Measure these groups side by side, then [`Search::tell`] what they turned out to be, in this order.
    Wave(Vec<Group>),
    /// Nothing more; see [`Search::finding`].
    Done,
}

/// What is known of a node in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It worked in at least two groups, and nothing is held against it.
    Healthy,
    /// It was named once, and worked when it was tried again.
    Interrupted,
    /// More likely faulty than not, without the proof that an accusation needs; or it was named again after it had worked.
    Suspect,
    /// Not enough is known.
    Undecided,
    /// It was named in two groups, and worked in none after the first; or it is down.
    Unresponsive,
    /// Groups with it get stuck, and come to their end without it; or three named it, and it worked in between.
    Hanging,
    /// Groups with it end in errors, and come to their end without it.
    Breaking,
    /// Results are wrong with it and right without it.
    Corrupting,
    /// Groups with it are slow, and fast without it.
    Faulty,
}

impl Verdict {
    /// Whether it accuses the node.
    pub const fn is_against(self) -> bool {
        match self {
            Verdict::Unresponsive
            | Verdict::Hanging
            | Verdict::Breaking
            | Verdict::Corrupting
            | Verdict::Faulty => true,
            Verdict::Healthy | Verdict::Interrupted | Verdict::Suspect | Verdict::Undecided => {
                false
            }
        }
    }
}

/// What the search came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What is known of each node.
    pub nodes: Vec<NodeFinding>,
    /// Pairs of good nodes that are slow with one another alone.
    pub paths: Vec<PathFinding>,
    /// Rails that are slow for all nodes.
    pub rails: Vec<RailFinding>,
    /// Leaves whose nodes are fast with one another and slow with all others.
    pub leaves: Vec<Leaf>,
    /// Pairs of leaves that are slow with one another and fast with others.
    pub leaf_paths: Vec<(Leaf, Leaf)>,
    /// What holds for the whole.
    pub conclusion: Conclusion,
}

/// A path between two good nodes that is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathFinding {
    /// The nodes.
    pub nodes: (Node, Node),
    /// How often it was measured after it was found, and how often it failed.
    pub repeats: Tally,
    /// What that says.
    pub kind: PathKind,
}

impl PathFinding {
    /// A path that was found, and not measured again yet.
    fn not_repeated(nodes: (Node, Node)) -> PathFinding {
        PathFinding {
            nodes,
            repeats: Tally::default(),
            kind: PathKind::NotKnown,
        }
    }
}

/// Whether a slow path stays slow when its connections are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// Always: a link that all its connections share.
    Stays,
    /// Not always: its connections are spread over several links by hashing, and one of those is slow or crowded.
    Moves,
    /// It could not be repeated often enough.
    NotKnown,
}

/// A rail that is slow for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RailFinding {
    /// The rail.
    pub rail: Rail,
    /// Pairs measured on it.
    pub pairs: Tally,
}

/// How many groups passed and how many failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those that were fast and right.
    pub passed: u32,
    /// Those that were not.
    pub failed: u32,
}

impl Tally {
    /// How many there were.
    pub fn groups(self) -> u32 {
        self.passed + self.failed
    }

    fn add(&mut self, failed: bool) {
        if failed {
            self.failed += 1;
        } else {
            self.passed += 1;
        }
    }
}

/// Where in a faulty node the cause is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    /// What follows.
    pub place: Place,
    /// The node by itself; the groups of good nodes beside it passed.
    pub alone: Tally,
    /// The node with good partners, on each rail.
    pub rails: Vec<Tally>,
    /// How probable it is, on each rail, that the node is slow there.
    pub rail_probability: Vec<f64>,
    /// Of a node with wrong results: it with two good ones, and those two with one another.
    pub majority: Option<Majority>,
}

/// Three nodes, pair by pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Majority {
    /// The two good ones.
    pub witnesses: (Node, Node),
    /// The node with one or the other of them.
    pub with_it: Tally,
    /// The two without it.
    pub without_it: Tally,
}

/// Where in a faulty node the cause is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// It was not looked for, or not found.
    #[default]
    NotKnown,
    /// Inside the node: it is slow, or wrong, by itself as well.
    Inside,
    /// Between it and the network: by itself it is good.
    Network,
    /// These network cards, each by the rail that it is on; the others are good.
    Nics(Vec<Rail>),
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFinding {
    /// The verdict.
    pub verdict: Verdict,
    /// The probability that it is faulty.
    pub probability: f64,
    /// Groups that it was measured in and that said something.
    pub groups: u32,
    /// Those that failed.
    pub failed: u32,
    /// Of a faulty node, where the cause is.
    pub cause: Cause,
}

/// What holds for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// Everybody is good.
    AllGood,
    /// The nodes with a verdict against them are the cause: without them everything is good.
    Nodes,
    /// Good nodes, and a path between two of them that is not.
    Paths,
    /// Nodes are good with one another under their own leaf, and slow across leaves.
    Leaves,
    /// All nodes are slow on the same rails, and good on the others.
    Rails,
    /// No group was good: the cause is shared by all, and no node is accused.
    AllAlike,
    /// Something is slow, and it is none of the nodes and none of the paths that could be tried.
    NotLocated,
    /// Too few nodes to compare, or nothing could be measured.
    NotKnown,
}

impl Conclusion {
    /// The word used in results.
    pub const fn word(self) -> &'static str {
        match self {
            Conclusion::AllGood => "all_good",
            Conclusion::Nodes => "nodes",
            Conclusion::Paths => "paths",
            Conclusion::Leaves => "leaves",
            Conclusion::Rails => "rails",
            Conclusion::AllAlike => "all_alike",
            Conclusion::NotLocated => "not_located",
            Conclusion::NotKnown => "not_known",
        }
    }
}
