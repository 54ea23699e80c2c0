//! What a check that loads the machine needs: to be on one CPU, to know its own time, and to stand back behind others.
//!
//! All of it is about this process, so none of it knows a simulated machine.

use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::CpuSet;

/// The CPUs that the kernel lets this process run on, in order.
///
/// # Errors
/// When the kernel does not say; it has more CPUs than a set of 1,024 holds, for instance.
pub fn allowed_cpus() -> Result<Vec<usize>, Errno> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu))
        .collect())
}

/// Keeps this thread on one CPU.
///
/// # Errors
/// When the CPU has gone offline or may not be used.
pub fn stay_on(cpu: usize) -> Result<(), Errno> {
    let mut only = CpuSet::new();
    only.set(cpu);
    rustix::thread::sched_setaffinity(None, &only)
}

/// The processor time that this thread has had: what others on the CPU took does not count.
pub fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

/// Lets everything else on the machine go first, and makes this process the one to be killed if memory runs out.
/// Threads that are started from now on are the same.
pub fn stand_back() {
    // Both are allowed to everybody; where /proc is not mounted, memory is still taken from what is free alone.
    let _ = rustix::process::setpriority_process(None, 19);
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Keeps all memory that this process has now from being swapped out.
///
/// # Errors
/// When the process may not lock so much (RLIMIT_MEMLOCK).
pub fn lock_memory() -> Result<(), Errno> {
    rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT)
}
