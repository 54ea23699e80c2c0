//! `dhc-rank`: one rank of a collective, the only program of dhc that links MPI.
//!
//! It says hello before it touches MPI, keeps telling how far it has come from a thread that never waits for anybody, and
//! ends itself at its deadline or when nobody listens any more. So a rank that hangs has a name, and none is left behind.
#![expect(
    clippy::disallowed_methods,
    reason = "a rank speaks for itself, on the host that it was started on"
)]

mod all_reduce;
mod transport;
mod voice;

use std::path::Path;
use std::time::{Duration, Instant};

use dhc_checks::rank::{Phase, RankLine, RankTask, Work};
use mpi::Threading;
use mpi::traits::{Communicator, CommunicatorCollectives};

use crate::voice::Voice;

/// How a rank ends that could not do its work (`EX_USAGE` and `EX_UNAVAILABLE` of sysexits.h).
const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;

fn main() {
    let task: RankTask = match std::env::args()
        .nth(1)
        .map(|text| serde_json::from_str(&text))
    {
        Some(Ok(task)) => task,
        _ => {
            // Nobody but dhc starts this program with a task.
            drop(std::io::Write::write_all(
                &mut std::io::stderr(),
                b"dhc-rank: started by dhc, not by hand; see `dhc run --level cluster`\n",
            ));
            std::process::exit(USAGE);
        }
    };
    let voice = Voice::begin(rank_by_launcher());
    voice.hello();
    let deadline = Duration::from_millis(task.deadline_ms);
    voice.watch(Duration::from_millis(task.beat_ms), deadline);
    let Work::AllReduce(sweep) = task.work else {
        return;
    };
    voice.reach(Phase::Init);
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        voice.say(&RankLine::Failed {
            rank: voice.rank(),
            error: "MPI was initialised before".to_owned(),
        });
        std::process::exit(UNAVAILABLE);
    };
    let world = universe.world();
    voice.is_rank(u32::try_from(world.rank()).unwrap_or(0));
    if voice.rank() == 0 {
        let version = mpi::environment::library_version().unwrap_or_default();
        let version = version
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect();
        voice.say(&RankLine::Library { version });
    }
    voice.reach(Phase::Barrier);
    world.barrier();
    let begun = Instant::now();
    all_reduce::sweep(&world, &sweep, &voice);
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
}

/// The rank that the launcher gave this process: Open MPI's, MPICH's process manager, or Slurm. Slurm comes last, since the
/// other two may themselves have been started by it, one process on each node, and leave its number to all of their ranks.
fn rank_by_launcher() -> u32 {
    ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse().ok())
        .unwrap_or(0)
}
