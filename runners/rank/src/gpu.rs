//! The work of a rank with a GPU: its environment, its libraries, its GPU, its communicator, the sweep.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dhc_checks::check::chain;
use dhc_checks::format::nccl_log::{self, Log};
use dhc_checks::rank::{Gpu, NcclSweep, Phase, RankLine, Sweep};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives, Root};
use nvidia_sys::{CallError, Context, Device, Driver, Nccl, Of, UNIQUE_ID_BYTES, UniqueId};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::all_reduce::{Outcome, sweep};
use crate::gpu_memory::{GpuMemory, message_bytes_max};
use crate::voice::Voice;

/// Set once the rank has the environment that NCCL is to see.
const READY: &str = "DHC_RANK_READY";

/// Where NCCL writes its log: a file in memory, so that nothing is left behind whatever becomes of the rank.
const LOG: &str = "NCCL_DEBUG_FILE";

/// How much of the log is read.
const LOG_BYTES_MAX: u64 = 8 << 20;

/// Where AWS installs NCCL's plugin and the libfabric that it needs, which the loader does not find by itself everywhere
/// (aws-ofi-nccl and EFA installer; AWS's own job scripts name the folders in `LD_LIBRARY_PATH`).
const PLUGIN_FOLDERS: &[&str] = &[
    "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu",
    "/opt/amazon/ofi-nccl/lib/aarch64-linux-gnu",
    "/opt/amazon/ofi-nccl/lib64",
    "/opt/amazon/ofi-nccl/lib",
    "/opt/aws-ofi-nccl/lib",
    "/opt/amazon/efa/lib64",
    "/opt/amazon/efa/lib",
];

/// When NCCL says that another rank is gone, the launcher is given so long to say which, and to end this one.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the C library, CUDA and NCCL call a want of memory, of room below `/dev/shm`, of files, of rights, of a network
/// interface, and a driver that is too old for the library.
const OF_THE_HOST: &[&str] = &[
    "out of memory",
    "cannot allocate memory",
    "no space left on device",
    "too many open files",
    "permission denied",
    "operation not permitted",
    "no socket interface found",
    "driver version is insufficient",
];

/// Gives the rank the environment that NCCL is to see, by starting it anew: the loader and NCCL read it when a program
/// starts, and a program cannot change it safely later. Returns where it has it already, or cannot have it.
pub(crate) fn with_environment(task: &NcclSweep) -> Outcome<()> {
    if std::env::var_os(READY).is_some() {
        return Ok(());
    }
    let log = memfd_create("nccl-log", MemfdFlags::empty())?.into_raw_fd();
    let known = PLUGIN_FOLDERS.iter().map(PathBuf::from);
    let folders = task
        .library_path
        .iter()
        .cloned()
        .chain(known.filter(|folder| folder.is_dir()));
    let before = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = folders.chain(std::env::split_paths(&before));
    let folders: Vec<PathBuf> = folders.filter(|folder| folder.is_absolute()).collect();
    let error = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .envs(&task.environment)
        // So that places are those that NVML counts.
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .env("NCCL_DEBUG", "INFO")
        .env("NCCL_DEBUG_SUBSYS", "INIT")
        .env(LOG, format!("/proc/self/fd/{log}"))
        .env("LD_LIBRARY_PATH", std::env::join_paths(folders)?)
        .env(READY, "1")
        .exec();
    Err(format!("the rank cannot be started with NCCL's environment: {error}").into())
}

/// The CUDA driver and NCCL of this node.
pub(crate) struct Libraries {
    driver: Driver,
    nccl: Nccl,
}

impl Libraries {
    pub(crate) fn load(task: &NcclSweep) -> Outcome<Libraries> {
        Ok(Libraries {
            driver: Driver::load(task.cuda.as_deref())?,
            nccl: Nccl::load(task.nccl.as_deref())?,
        })
    }
}

/// Does all the work. What kept the rank from it is told before anything is taken down, since that may hang.
pub(crate) fn run(
    libraries: &Libraries,
    task: &NcclSweep,
    world: &SimpleCommunicator,
    voice: &Voice,
) -> Outcome<()> {
    let (rank, ranks) = (voice.rank(), u32::try_from(world.size()).unwrap_or(0));
    let place = place_on_node(world);
    voice.reach(Phase::Device);
    let (context, gpu) = open(&libraries.driver, place)?;
    voice.say(&RankLine::Gpu { rank, gpu });
    if rank == 0 {
        let (major, minor) = libraries.driver.version()?;
        let nccl = libraries.nccl.version()?;
        voice.say(&RankLine::Library {
            version: format!("NCCL {nccl}, CUDA driver for {major}.{minor}"),
        });
    }
    let mut id = [0; UNIQUE_ID_BYTES];
    if rank == 0 {
        id = libraries.nccl.unique_id()?.0;
    }
    // Who waits here knows of nobody but rank 0; who has gone on to the communicator waits for all.
    voice.reach(Phase::Rendezvous);
    world.process_at_rank(0).broadcast_into(&mut id[..]);
    voice.reach(Phase::Communicator);
    let joined = libraries.nccl.join(&context, UniqueId(id), ranks, rank);
    tell_transport(voice);
    let joined = joined?;
    voice.reach(Phase::Memory);
    let mut memory = GpuMemory::new(&context, joined)?;
    let (free, _) = context.memory()?;
    voice.reach(Phase::Barrier);
    let sizes = that_fit(&task.sweep, free, world, voice);
    let swept = sweep(world, &mut memory, &sizes, voice);
    // Channels are connected when they are first used.
    tell_transport(voice);
    if let Err(error) = &swept {
        fails(voice, error.as_ref());
    }
    swept
}

/// Says why the rank cannot go on, in NCCL's words as well. Where another rank is the reason it waits before: the first that
/// ends is taken for the culprit. Says it once.
pub(crate) fn fails(voice: &Voice, error: &(dyn std::error::Error + 'static)) {
    if voice.has_failed() {
        return;
    }
    let of = error
        .downcast_ref::<CallError>()
        .map_or(Of::TheCall, |error| error.of);
    if of == Of::AnotherRank {
        std::thread::sleep(PATIENCE);
    }
    let mut why = chain(error);
    for warning in log().warnings {
        why.push_str("; NCCL: ");
        why.push_str(&warning);
    }
    let in_collective = voice.phase() >= Phase::Communicator;
    if in_collective && of != Of::TheCall && !is_of_the_host(&why) {
        voice.breaks(&why);
    } else {
        voice.fails(&why);
    }
}

/// Whether NCCL's words say that the host has too little of something, or does not allow it, which it reports as any other
/// error of CUDA or of the system.
fn is_of_the_host(why: &str) -> bool {
    let why = why.to_lowercase();
    OF_THE_HOST.iter().any(|words| why.contains(words))
}

/// How many ranks before this one are on the same node.
fn place_on_node(world: &SimpleCommunicator) -> u32 {
    let mut hasher = DefaultHasher::new();
    rustix::system::uname().nodename().hash(&mut hasher);
    let mine = hasher.finish();
    let mut all = vec![0_u64; usize::try_from(world.size()).unwrap_or(0)];
    world.all_gather_into(&mine, &mut all[..]);
    let before = all.iter().take(usize::try_from(world.rank()).unwrap_or(0));
    u32::try_from(before.filter(|other| **other == mine).count()).unwrap_or(u32::MAX)
}

/// Opens the GPU at this place of the node.
fn open(driver: &Driver, place: u32) -> Outcome<(Context, Gpu)> {
    driver.initialise()?;
    let count = driver.count()?;
    let ordinal = match count {
        _ if place < count => place,
        // Where the scheduler gives each rank a GPU of its own, it is the only one that the rank can see.
        1 => 0,
        _ => {
            return Err(format!(
                "this rank is number {} of its node, which has {count} GPUs to use; set nccl-allreduce.gpus-per-node",
                place + 1
            )
            .into());
        }
    };
    let device = driver.device(ordinal)?;
    let context = Context::open(driver, &device)?;
    let Device {
        name, bdf, uuid, ..
    } = device;
    let gpu = Gpu {
        model: name,
        bdf,
        uuid,
    };
    Ok((context, gpu))
}

/// The sizes for which every GPU has room, this rank's with so much free memory; all ranks meet here.
fn that_fit(sweep: &Sweep, free_bytes: u64, world: &SimpleCommunicator, voice: &Voice) -> Sweep {
    let mut room = 0;
    let mine = message_bytes_max(free_bytes);
    world.all_reduce_into(&mine, &mut room, SystemOperation::min());
    if voice.rank() == 0 && room < sweep.bytes_max {
        voice.say(&RankLine::Note {
            text: format!(
                "messages of no more than {room} bytes, since the GPU with the least free memory has no room for more"
            ),
        });
    }
    Sweep {
        bytes_max: sweep.bytes_max.min(room),
        bytes_large: sweep.bytes_large.min(room / 4),
        ..*sweep
    }
}

fn tell_transport(voice: &Voice) {
    voice.say(&RankLine::Transport {
        rank: voice.rank(),
        transport: log().transport,
    });
}

/// What NCCL has written so far.
fn log() -> Log {
    let path = std::env::var_os(LOG).unwrap_or_default();
    let mut text = Vec::new();
    // A log that cannot be read tells nothing, which the result says.
    if let Ok(file) = std::fs::File::open(Path::new(&path)) {
        drop(file.take(LOG_BYTES_MAX).read_to_end(&mut text));
    }
    nccl_log::read(&String::from_utf8_lossy(&text))
}
