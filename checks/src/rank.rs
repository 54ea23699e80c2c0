//! What dhc and the ranks of one launch say to each other.
//!
//! A rank gets its [`RankTask`] as one JSON argument and writes [`RankLine`]s, one JSON object a line, on standard
//! output. The launcher carries them: no port is opened, nothing is written to a shared file system. Lines are short,
//! since launchers cut longer ones (Slurm's stdio messages hold 1,024 bytes).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::format::nccl_log::Transport;
use crate::group::StepId;

/// The longest line that a rank writes, in bytes.
pub const LINE_MAX: usize = 900;

/// What a rank is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankTask {
    /// The work.
    pub work: Work,
    /// When the rank ends itself, in milliseconds from its start: whatever has become of dhc, nothing is left behind.
    pub deadline_ms: u64,
    /// How often it gives a sign of life, in milliseconds.
    pub beat_ms: u64,
}

/// What ranks can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Say [`RankLine::Hello`] and go, without MPI.
    RollCall,
    /// All-reduce buffers of host memory over MPI.
    AllReduce(Sweep),
    /// All-reduce buffers of GPU memory over NCCL, one GPU for each rank; MPI only starts the ranks and gathers figures.
    NcclAllReduce(NcclSweep),
}

/// A sweep over GPUs, and what it is done with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NcclSweep {
    /// The sizes.
    pub sweep: Sweep,
    /// NCCL, if not the one that the node's loader finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nccl: Option<PathBuf>,
    /// The CUDA driver, if not the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<PathBuf>,
    /// Folders in which the node's loader looks first, for NCCL's plugins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub library_path: Vec<PathBuf>,
    /// Variables that every rank sets, since launchers do not carry them all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// Which message sizes, and how long for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// The smallest message, in bytes; a multiple of 4, since the elements are 32-bit floating point numbers.
    pub bytes_min: u64,
    /// The largest message, in bytes; each size is twice the one before.
    pub bytes_max: u64,
    /// The smallest of the large messages, in bytes. They come first, since the plateau is theirs.
    #[serde(default)]
    pub bytes_large: u64,
    /// The bus bandwidth that is asked of the plateau, in bytes a second: what shows beyond doubt that it is not reached is
    /// enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_bytes_per_s: Option<u64>,
    /// How long the iterations of one size may take together, in milliseconds.
    pub size_ms: u64,
    /// When no further size is begun, in milliseconds from the first.
    pub sweep_ms: u64,
}

/// How far a rank has come. In this order, so that the rank that is furthest behind is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The process has started.
    Started,
    /// It is inside `MPI_Init`.
    Init,
    /// MPI works; it opens its GPU.
    Device,
    /// Its GPU works; it waits for the id of NCCL's communicator, which rank 0 has made by then.
    Rendezvous,
    /// It is inside `ncclCommInitRank`, where it meets the others.
    Communicator,
    /// NCCL works; it makes room on its GPU.
    Memory,
    /// All works; it waits for the others at the first barrier.
    Barrier,
    /// It is inside a collective.
    Collective,
    /// It has done all its work and is leaving.
    Done,
}

impl Phase {
    /// Whether a rank passes it by itself: one that stays in it waits for no other.
    pub const fn is_alone(self) -> bool {
        matches!(self, Phase::Started | Phase::Device | Phase::Memory)
    }

    /// Where that is, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Phase::Started => "before MPI_Init",
            Phase::Init => "inside MPI_Init",
            Phase::Device => "opening its GPU",
            Phase::Rendezvous => "waiting for the id of NCCL's communicator",
            Phase::Communicator => "inside ncclCommInitRank",
            Phase::Memory => "making room on its GPU",
            Phase::Barrier => "waiting before the first collective",
            Phase::Collective => "in the collectives",
            Phase::Done => "at its end",
        }
    }
}

/// Where a rank is: what it was last seen doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// How many collectives it has entered.
    pub entered: u64,
}

/// One message size, measured on all ranks. Times are those of one all-reduce in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizeLine {
    /// Message size in bytes.
    pub bytes: u64,
    /// Ranks that took part.
    pub ranks: u32,
    /// Iterations that were timed.
    pub iterations: u64,
    /// Iterations whose result was compared with what it has to be, on every rank.
    pub verified: u64,
    /// Elements of these results that were wrong, on all ranks together.
    pub wrong: u64,
    /// The rank that saw most wrong elements, if any.
    pub wrong_rank: Option<u32>,
    /// How many ranks saw any.
    #[serde(default)]
    pub wrong_ranks: u32,
    /// Mean over the ranks of each rank's mean: the latency that OSU's benchmarks print.
    pub mean_us: f64,
    /// Median over all ranks' medians.
    pub p50_us: f64,
    /// The greatest of the ranks' 99th percentiles.
    pub p99_us: f64,
    /// The shortest and the longest iteration on any rank.
    pub min_us: f64,
    /// See `min_us`.
    pub max_us: f64,
    /// The rank with the greatest mean, and that mean.
    pub slowest: (u32, f64),
    /// The rank with the least mean, and that mean.
    pub fastest: (u32, f64),
}

/// Sizes of a sweep that are not measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The smallest of them, in bytes.
    pub bytes_min: u64,
    /// The largest of them.
    pub bytes_max: u64,
    /// Why.
    pub why: Enough,
}

/// Why a sweep measures no further sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enough {
    /// The time of the sweep is up.
    TimeIsUp,
    /// The last sizes were equally fast, and of larger ones hardly any iterations fit.
    Level,
    /// What is asked for is out of reach.
    TooSlow,
}

/// A GPU as the outside knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its name.
    pub model: String,
    /// Its PCI address.
    pub bdf: String,
    /// Its UUID.
    pub uuid: String,
}

impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.bdf, self.uuid)
    }
}

/// Who a rank is and where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its rank, as the launcher told it; before MPI works nobody else knows.
    pub rank: u32,
    /// What the host calls itself.
    pub host: String,
    /// What Slurm calls it, which may be something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The boot of that host.
    pub boot: String,
    /// Its process id there.
    pub pid: u32,
    /// The step of Slurm that it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// The version of the worker.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dhc: String,
}

/// One line of a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankLine {
    /// The process has started.
    Hello(Hello),
    /// A sign of life, or a step forward.
    At {
        /// The rank.
        rank: u32,
        /// Where it is.
        progress: Progress,
    },
    /// What MPI or NCCL is and says of itself (from rank 0).
    Library {
        /// Its version line, cut.
        version: String,
    },
    /// The GPU that the rank drives.
    Gpu {
        /// The rank.
        rank: u32,
        /// The GPU.
        gpu: Gpu,
    },
    /// How the rank reaches the others, as NCCL's log tells it; the last of a rank counts.
    Transport {
        /// The rank.
        rank: u32,
        /// The way.
        transport: Transport,
    },
    /// A remark for people (from rank 0).
    Note {
        /// It.
        text: String,
    },
    /// One size was measured (from rank 0).
    Size(SizeLine),
    /// Some are left out (from rank 0).
    LeftOut(LeftOut),
    /// The rank has come out of its last collective.
    Left {
        /// The rank.
        rank: u32,
        /// Time since the barrier before the first collective, in milliseconds.
        collective_ms: u64,
        /// What it holds open that can have carried messages: `tcp`, `efa`, `verbs`, `opa`, `cxi`, `shm`.
        transports: Vec<String>,
        /// In which words: sockets, devices, components of MPI.
        seen: String,
    },
    /// The rank could not go on: a library or the driver did not do its part, which accuses no hardware.
    Failed {
        /// The rank.
        rank: u32,
        /// Why.
        error: String,
    },
    /// A collective that the rank was in came to an error: something broke, here or elsewhere.
    Broke {
        /// The rank.
        rank: u32,
        /// In whose words.
        error: String,
    },
}
