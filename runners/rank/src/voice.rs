//! What a rank tells the outside, and the thread that tells it while the rank waits inside a library.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dhc_checks::group::StepId;
use dhc_checks::rank::{Hello, LINE_MAX, Phase, Progress, RankLine};
use rustix::process::{Signal, getpid, kill_process};

const PHASES: [Phase; 9] = [
    Phase::Started,
    Phase::Init,
    Phase::Device,
    Phase::Rendezvous,
    Phase::Communicator,
    Phase::Memory,
    Phase::Barrier,
    Phase::Collective,
    Phase::Done,
];

/// How a rank ends at its deadline (as `timeout` of the GNU core utilities does), and when nobody listens.
const AT_DEADLINE: i32 = 124;
const NOBODY_LISTENS: i32 = 125;

/// How long the end of the process may take: what libraries do at the end hangs where they do.
const LAST_WORK: Duration = Duration::from_secs(2);

/// The longest reason that a rank gives.
const REASON_CHARS: usize = 300;

/// The step of Slurm that this process belongs to.
fn step() -> Option<StepId> {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    Some(StepId {
        job: number("SLURM_JOB_ID")?,
        step: number("SLURM_STEP_ID")?,
    })
}

/// The rank's mouth. Cheap to clone; the thread of [`Voice::watch`] holds one.
#[derive(Clone)]
pub(crate) struct Voice(Arc<Shared>);

struct Shared {
    begun: Instant,
    rank: AtomicU32,
    phase: AtomicU32,
    entered: AtomicU64,
    has_failed: AtomicBool,
}

impl Voice {
    pub(crate) fn begin(rank: u32) -> Voice {
        Voice(Arc::new(Shared {
            begun: Instant::now(),
            rank: AtomicU32::new(rank),
            phase: AtomicU32::new(0),
            entered: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
        }))
    }

    pub(crate) fn rank(&self) -> u32 {
        self.0.rank.load(Ordering::Relaxed)
    }

    pub(crate) fn is_rank(&self, rank: u32) {
        self.0.rank.store(rank, Ordering::Relaxed);
    }

    pub(crate) fn hello(&self) {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        self.say(&RankLine::Hello(Hello {
            rank: self.rank(),
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            node: std::env::var("SLURMD_NODENAME").ok(),
            boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            pid: std::process::id(),
            step: step(),
            dhc: env!("CARGO_PKG_VERSION").to_owned(),
        }));
    }

    /// The rank has come to this phase, and says so before it goes on: what follows may hang.
    pub(crate) fn reach(&self, phase: Phase) {
        let place = PHASES.iter().position(|known| *known == phase);
        let place = place.and_then(|place| u32::try_from(place).ok());
        self.0.phase.store(place.unwrap_or(0), Ordering::Relaxed);
        self.say(&self.here());
    }

    /// The rank enters one more collective. Only the thread of [`Voice::watch`] tells, since telling costs time.
    pub(crate) fn enters(&self) {
        self.0.entered.fetch_add(1, Ordering::Relaxed);
    }

    /// The phase that it has come to.
    pub(crate) fn phase(&self) -> Phase {
        let phase = self.0.phase.load(Ordering::Relaxed) as usize;
        PHASES[phase.min(PHASES.len() - 1)]
    }

    fn here(&self) -> RankLine {
        RankLine::At {
            rank: self.rank(),
            progress: Progress {
                phase: self.phase(),
                entered: self.0.entered.load(Ordering::Relaxed),
            },
        }
    }

    /// Tells where the rank is every `beat` from now on, and ends the process at `deadline` whatever the rank waits for.
    pub(crate) fn watch(&self, beat: Duration, deadline: Duration) {
        let voice = self.clone();
        std::thread::spawn(move || {
            loop {
                let left = deadline.saturating_sub(voice.0.begun.elapsed());
                std::thread::sleep(beat.min(left));
                if voice.0.begun.elapsed() >= deadline {
                    leave(AT_DEADLINE);
                }
                voice.say(&voice.here());
            }
        });
    }

    /// The rank cannot go on, and says why.
    pub(crate) fn fails(&self, why: &str) {
        self.0.has_failed.store(true, Ordering::Relaxed);
        self.say(&RankLine::Failed {
            rank: self.rank(),
            error: reason(why),
        });
    }

    /// The collective that the rank is in has come to an error.
    pub(crate) fn breaks(&self, why: &str) {
        self.0.has_failed.store(true, Ordering::Relaxed);
        self.say(&RankLine::Broke {
            rank: self.rank(),
            error: reason(why),
        });
    }

    /// Whether it has said so.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.has_failed.load(Ordering::Relaxed)
    }

    /// Writes a line in one piece. When nobody reads any more the rank has no reason to stay.
    pub(crate) fn say(&self, line: &RankLine) {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        if text.len() > LINE_MAX {
            return;
        }
        text.push(b'\n');
        if std::io::stdout().lock().write_all(&text).is_err() {
            leave(NOBODY_LISTENS);
        }
    }
}

fn reason(why: &str) -> String {
    let why = why.chars().map(|c| if c.is_control() { ' ' } else { c });
    why.take(REASON_CHARS).collect()
}

/// Ends the process with this status, and without it where a library keeps it from ending.
#[expect(
    clippy::exit,
    reason = "a rank ends itself, from whichever thread sees that it has to"
)]
pub(crate) fn leave(status: i32) -> ! {
    std::thread::spawn(|| {
        std::thread::sleep(LAST_WORK);
        // What does not end of this cannot be ended.
        let _ = kill_process(getpid(), Signal::KILL);
    });
    std::process::exit(status)
}
