//! `dhc-rank`: one rank of a collective, the only program of dhc that links MPI.
//!
//! A rank with a GPU loads the CUDA driver and NCCL when it runs, so that this program starts on every node with MPI.
//!
//! It says hello before it touches MPI, keeps telling how far it has come from a thread that never waits for anybody, and
//! ends itself at its deadline or when nobody listens any more. So a rank that hangs has a name, and none is left behind.
#![expect(
    clippy::disallowed_methods,
    reason = "a rank speaks for itself, on the host that it was started on"
)]

mod all_reduce;
mod gpu;
mod gpu_memory;
mod host_memory;
mod transport;
mod voice;

use std::path::Path;
use std::time::{Duration, Instant};

use dhc_checks::rank::{NcclSweep, Phase, RankLine, RankTask, Sweep, Work};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::traits::{Communicator, CommunicatorCollectives};

use crate::all_reduce::Outcome;
use crate::host_memory::HostMemory;
use crate::voice::{Voice, leave};

/// How a rank ends that could not do its work (`EX_USAGE` and `EX_UNAVAILABLE` of sysexits.h).
const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;

fn main() {
    let task = std::env::args().nth(1);
    let task: RankTask = match task.map(|text| serde_json::from_str(&text)) {
        Some(Ok(task)) => task,
        given => {
            // Nobody but dhc starts this program with a task.
            let words = match given {
                Some(_) => concat!(
                    "dhc-rank ",
                    env!("CARGO_PKG_VERSION"),
                    ": this task is none of this version; install the same dhc on all nodes\n"
                ),
                None => "dhc-rank: started by dhc, not by hand; see `dhc run --level cluster`\n",
            };
            drop(std::io::Write::write_all(
                &mut std::io::stderr(),
                words.as_bytes(),
            ));
            std::process::exit(USAGE);
        }
    };
    let voice = Voice::begin(rank_by_launcher());
    if let Work::NcclAllReduce(task) = &task.work
        && let Err(error) = gpu::with_environment(task)
    {
        voice.hello();
        voice.fails(&error.to_string());
        leave(UNAVAILABLE);
    }
    voice.hello();
    let deadline = Duration::from_millis(task.deadline_ms);
    voice.watch(Duration::from_millis(task.beat_ms), deadline);
    let done = match &task.work {
        Work::RollCall => return,
        Work::AllReduce(sweep) => over_host_memory(sweep, &voice),
        Work::NcclAllReduce(task) => over_gpus(task, &voice),
    };
    if let Err(error) = done {
        gpu::fails(&voice, error.as_ref());
        leave(UNAVAILABLE);
    }
}

/// The all-reduce of host memory.
fn over_host_memory(sweep: &Sweep, voice: &Voice) -> Outcome<()> {
    let universe = initialise(voice)?;
    let world = universe.world();
    if voice.rank() == 0 {
        voice.say(&RankLine::Library {
            version: format!("MPI: {}", mpi_version()),
        });
    }
    voice.reach(Phase::Barrier);
    world.barrier();
    let begun = Instant::now();
    let mut memory = HostMemory::new(&world, sweep)?;
    all_reduce::sweep(&world, &mut memory, sweep, voice)?;
    let collective = begun.elapsed();
    // While MPI still holds what carried the messages.
    let transport::Transport { words, seen } = transport::look(Path::new("/"));
    voice.say(&RankLine::Left {
        rank: voice.rank(),
        collective_ms: u64::try_from(collective.as_millis()).unwrap_or(u64::MAX),
        transports: words,
        seen,
    });
    voice.reach(Phase::Done);
    Ok(())
}

/// The all-reduce of GPU memory. Libraries come before MPI: without them there is nothing to start it for.
fn over_gpus(task: &NcclSweep, voice: &Voice) -> Outcome<()> {
    let libraries = gpu::Libraries::load(task)?;
    let universe = initialise(voice)?;
    if voice.rank() == 0 {
        voice.say(&RankLine::Note {
            text: format!("ranks were started with MPI: {}", mpi_version()),
        });
    }
    let done = gpu::run(&libraries, task, &universe.world(), voice);
    if done.is_err() {
        // Leaving MPI would wait for the others.
        std::mem::forget(universe);
        return done;
    }
    voice.reach(Phase::Done);
    Ok(())
}

fn initialise(voice: &Voice) -> Outcome<Universe> {
    voice.reach(Phase::Init);
    let (universe, _) =
        mpi::initialize_with_threading(Threading::Funneled).ok_or("MPI was initialised before")?;
    voice.is_rank(u32::try_from(universe.world().rank()).unwrap_or(0));
    Ok(universe)
}

fn mpi_version() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    version
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

/// The rank that the launcher gave this process: Open MPI's, MPICH's process manager, or Slurm. Slurm comes last, since the
/// other two may themselves have been started by it, one process on each node, and leave its number to all of their ranks.
fn rank_by_launcher() -> u32 {
    ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse().ok())
        .unwrap_or(0)
}
