//! The processes below this one: what was started and is waited for, and what that left behind.
//!
//! A tool may leave grandchildren behind that hold its pipe or made a session of their own. A process that adopts its
//! orphans (`PR_SET_CHILD_SUBREAPER`) becomes the parent of whatever its children leave, so that it can be found and
//! killed. The process of a check does so for its tool, and the runner for the processes of the checks.

use std::collections::BTreeSet;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// The children that are waited for, by their ids. What else descends from this process was left behind.
static AWAITED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// How long a process may take to go after SIGKILL; one in uninterruptible sleep may never go.
const GONE: Duration = Duration::from_millis(300);

const TICK: Duration = Duration::from_millis(2);

/// Starts a child whose end the caller will see to, and adopts what it leaves behind. [`forget`] it when it has ended.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    // Kernels since 3.4 can; without it orphans go to init and are only killed with their process group.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    // Held over the start, so that nobody takes the new child for something that was left behind.
    let mut awaited = awaited();
    let child = command.spawn()?;
    awaited.insert(child.id());
    Ok(child)
}

/// The child is no longer waited for.
pub fn forget(child: &Child) {
    awaited().remove(&child.id());
}

/// Kills what descends from this process and from no child that is waited for, again until nothing is left or 300 ms have
/// passed. Says whether there was anything.
pub fn kill_leftovers() -> bool {
    let begun = Instant::now();
    let mut found = false;
    loop {
        let left = {
            let awaited = awaited();
            below(std::process::id(), |id| !awaited.contains(&id))
        };
        if left.is_empty() || begun.elapsed() > GONE {
            return found;
        }
        found = true;
        signal(&left, Signal::KILL);
        std::thread::sleep(TICK);
    }
}

/// Ends everything below this process, also what is waited for: asks it to, and kills what is left after `grace`.
pub fn end_all(grace: Duration) {
    let begun = Instant::now();
    signal(&below(std::process::id(), |_| true), Signal::TERM);
    loop {
        let left = below(std::process::id(), |_| true);
        if left.is_empty() || begun.elapsed() > grace + GONE {
            return;
        }
        reap(&left);
        if begun.elapsed() > grace {
            signal(&left, Signal::KILL);
        }
        std::thread::sleep(TICK);
    }
}

/// Whether a process has children.
pub fn has_children(id: u32) -> bool {
    !children(id).is_empty()
}

fn awaited() -> MutexGuard<'static, BTreeSet<u32>> {
    // A set of numbers is whole whenever the lock is free.
    AWAITED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(ids: &[u32], signal: Signal) {
    for pid in ids.iter().copied().filter_map(pid) {
        // One that has gone already is as good.
        let _ = kill_process(pid, signal);
    }
    reap(ids);
}

/// Takes notice of the end of those that are our own children, which would stay in the list of processes else.
fn reap(ids: &[u32]) {
    for pid in ids.iter().copied().filter_map(pid) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

pub(super) fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// All processes below `id`, without the children that do not `count` and what is below those.
fn below(id: u32, count: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut all: Vec<u32> = children(id).into_iter().filter(|id| count(*id)).collect();
    let mut next = 0;
    while next < all.len() {
        all.extend(children(all[next]));
        next += 1;
    }
    all
}

/// The children of a process, as the kernel lists them for each of its threads.
#[expect(
    clippy::disallowed_methods,
    reason = "our own descendants, not the host that is checked"
)]
fn children(id: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}
