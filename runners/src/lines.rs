//! `dhc run --part-of RUN`: a run on one node of many, which tells the run of all of them how it goes and what it measured.
//!
//! The launcher carries the lines. When nobody reads them any more the run is stopped, and its journal stays on the node.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dhc_checks::group::{BEAT, NodeLine, StepId};

use crate::run::Watcher;

/// How much is said about what is under way.
const DOING_MAX: usize = 100;

/// The voice of a run on one node. Cheap to clone; a thread of its own holds one and gives the signs of life.
#[derive(Clone, Debug)]
pub struct Teller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    task: u32,
    under_way: Mutex<Vec<String>>,
    stop: &'static AtomicBool,
}

impl Teller {
    /// Says hello, and gives signs of life from now on. `stop` is set when nobody listens.
    pub fn begin(environment: &BTreeMap<String, String>, stop: &'static AtomicBool) -> Teller {
        let number = |name: &str| environment.get(name)?.parse().ok();
        // As ranks find it: Open MPI's number of the process, that of MPICH's process manager, Slurm's.
        let task = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];
        let task = task.into_iter().find_map(number).unwrap_or(0);
        let step = || {
            Some(StepId {
                job: number("SLURM_JOB_ID")?,
                step: number("SLURM_STEP_ID")?,
            })
        };
        let teller = Teller(Arc::new(Shared {
            task,
            under_way: Mutex::new(Vec::new()),
            stop,
        }));
        teller.say(&NodeLine::Hello {
            task,
            // The names of where it runs, whatever machine is looked at.
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            node: environment.get("SLURMD_NODENAME").cloned(),
            step: step(),
        });
        let beating = teller.clone();
        std::thread::spawn(move || {
            loop {
                beating.here();
                std::thread::sleep(BEAT);
            }
        });
        teller
    }

    /// Hands over the document.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn deliver(&self, document: &str) -> io::Result<()> {
        let lines = NodeLine::of_document(self.0.task, document);
        lines.iter().try_for_each(write)
    }

    /// Says that there will be no document, and why.
    pub fn give_up(&self, why: &str) {
        self.say(&NodeLine::Failed {
            task: self.0.task,
            error: why.chars().take(DOING_MAX * 5).collect(),
        });
    }

    fn here(&self) {
        let under_way = self.0.under_way.lock();
        let doing = under_way.unwrap_or_else(PoisonError::into_inner).join(", ");
        self.say(&NodeLine::At {
            task: self.0.task,
            doing: doing.chars().take(DOING_MAX).collect(),
        });
    }

    fn say(&self, line: &NodeLine) {
        if write(line).is_err() {
            self.0.stop.store(true, Ordering::Relaxed);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<String>)) {
        let under_way = self.0.under_way.lock();
        change(&mut under_way.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Watcher for Teller {
    fn begins(&self, check: &str, _: Duration) {
        self.change(|under_way| under_way.push(check.to_owned()));
    }

    fn progress(&self, _: &str, _: &str) {}

    fn has_ended(&self, what: &str) {
        self.change(|under_way| under_way.retain(|check| check != what));
    }
}

/// Writes a line in one piece.
fn write(line: &NodeLine) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()
}
