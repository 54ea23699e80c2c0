//! Who is to blame: adaptive group testing in waves, with a closing test. Pure: no clock, no file, no network; chance comes
//! from a seed. The same code runs against a real cluster and against a simulated fleet ([`simulate`]).
//!
//! **Waves cost time, groups do not.** Groups that share no node run side by side, so one wave looks at every node at once.
//! A round robin of pairs takes n − 1 waves; this takes about five whatever n is.
//!
//! **Groups lie.** A group of good nodes fails now and then, and a group with a faulty node passes now and then. So nobody
//! is accused for one failure: a node is [`Verdict::Faulty`] when it is so with a probability of 0.995, after three failed
//! groups of which two were with different nodes that are good.
//!
//! **The closing test** measures everybody who is not accused once more. It is the only step that sees a second fault that
//! hid behind the first, and it is the proof that an operator wants: fast without X. It runs beside the last confirmation
//! of the suspects, who have failed on an otherwise idle network by then, and so costs no wave of its own.
//!
//! **Where there is no contrast nobody is accused.** If no group ever passes, the cause is something that all nodes share.
//!
//! What it does not know: how much slower a large group has to be before it counts as failed, which its caller decides;
//! and correlated noise, such as one congested switch that makes several groups of the same wave fail, which breaks the
//! independence that Bayes' rule is applied with here. Suspects are therefore first confirmed alone.

mod belief;
mod random;
mod search;
pub mod simulate;

pub use belief::Rates;
pub use random::Random;
pub use search::Search;

/// A node, as an index into the caller's list.
pub type Node = usize;

/// How a search goes about it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often groups lie.
    pub rates: Rates,
    /// How many groups one wave may have: launches that the scheduler bears at once (Slurm starts about 150 a second at
    /// best).
    pub groups_max: usize,
    /// How many waves there may be at all.
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
        }
    }
}

/// Nodes to measure together. The groups of one wave share no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The nodes, in ascending order.
    pub nodes: Vec<Node>,
    /// Why.
    pub purpose: Purpose,
}

/// What a group turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As fast as it should be, and right.
    Passed,
    /// Too slow, or stuck without anybody to name.
    Failed,
    /// Wrong results.
    Corrupted,
    /// It did not come to its end, and these nodes were seen to be the reason: dead, silent, or never there. Says nothing
    /// about the others.
    Named(Vec<Node>),
    /// It could not be measured. Says nothing.
    Unknown,
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
    /// More likely faulty than not, without the proof that an accusation needs.
    Suspect,
    /// Not enough is known.
    Undecided,
    /// It was named in two groups, and worked in none after the first.
    Unresponsive,
    /// Results are wrong with it and right without it.
    Corrupting,
    /// Groups with it are slow, and fast without it.
    Faulty,
}

/// What the search came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What is known of each node.
    pub nodes: Vec<NodeFinding>,
    /// Pairs of good nodes that are slow with one another alone.
    pub paths: Vec<(Node, Node)>,
    /// What holds for the whole.
    pub conclusion: Conclusion,
}

/// What is known of one node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeFinding {
    /// The verdict.
    pub verdict: Verdict,
    /// The probability that it is faulty.
    pub probability: f64,
    /// Groups that it was measured in and that said something.
    pub groups: u32,
    /// Those that failed.
    pub failed: u32,
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
            Conclusion::AllAlike => "all_alike",
            Conclusion::NotLocated => "not_located",
            Conclusion::NotKnown => "not_known",
        }
    }
}
