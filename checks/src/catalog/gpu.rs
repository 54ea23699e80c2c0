//! What the checks of GPUs have in common: asking NVML in time, GPU by GPU, and what a divided GPU does not tell.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::GpuVirtualizationMode;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::check::{Budget, CheckError, Event, Recorder, Spec, Task, chain};
use crate::host::Host;

/// How long asking NVML may take: without persistence mode, starting it wakes every GPU, which takes seconds for each.
pub(super) const BUDGET: Budget = Budget {
    expected: Duration::from_secs(2),
    deadline: Duration::from_secs(60),
};

/// What a check asks NVML.
pub(super) type Questions = fn(&Host, &Nvml, &mut Recorder<'_>) -> Result<(), CheckError>;

/// Starts NVML and asks it. A call into a stuck driver never returns, so all questions are asked in a thread of their
/// own: what it records is passed on at once, and when time is up, the message says what it was about to hear.
pub(super) fn ask(
    task: &Task,
    spec: &'static Spec,
    record: &mut Recorder<'_>,
    questions: Questions,
) -> Result<(), CheckError> {
    let begun = Instant::now();
    let host = task.host.clone();
    let (events, heard) = channel();
    let asking = thread::spawn(move || {
        let mut sink = Events(events);
        let mut record = Recorder::new(spec, &mut sink);
        record.progress("starting NVML")?;
        let nvml = host
            .nvml()
            .map_err(|error| CheckError::Unavailable(chain(&error)))?;
        questions(&host, &nvml, &mut record)
    });
    let mut doing = String::new();
    loop {
        match heard.recv_timeout(task.deadline.saturating_sub(begun.elapsed())) {
            Ok(event) => {
                if let Event::Progress(what) = &event {
                    doing.clone_from(what);
                }
                record.pass_on(&event)?;
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(CheckError::TimedOut(format!(
                    "NVML did not answer while {doing}; the NVIDIA driver may be stuck, see the kernel's log for Xid 119 \
                     or 120 and for tasks blocked in nvidia"
                )));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return match asking.join() {
                    Ok(outcome) => outcome,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
            }
        }
    }
}

/// How many GPUs NVML counts, those that it gives no handle to any more among them.
pub(super) fn listed(nvml: &Nvml) -> Result<u32, CheckError> {
    nvml.device_count()
        .map_err(|error| CheckError::Unavailable(format!("NVML does not count its GPUs: {error}")))
}

/// Looks at every GPU that NVML counts.
pub(super) fn for_each_gpu(
    nvml: &Nvml,
    record: &mut Recorder<'_>,
    mut look: impl FnMut(
        u32,
        Result<Device<'_>, NvmlError>,
        &mut Recorder<'_>,
    ) -> Result<(), CheckError>,
) -> Result<(), CheckError> {
    for index in 0..listed(nvml)? {
        record.progress(format!("asking gpu{index}"))?;
        look(index, nvml.device_by_index(index), record)?;
    }
    Ok(())
}

/// Why a GPU has nothing to say about its links and rows, if it is shared in a way that hides them.
pub(super) fn divided(gpu: &Device<'_>) -> Option<&'static str> {
    if gpu.mig_mode().is_ok_and(|mode| mode.current != 0) {
        return Some("the GPU is divided by MIG; its driver tells this of whole GPUs alone");
    }
    match gpu.virtualization_mode() {
        Ok(GpuVirtualizationMode::Vgpu) => {
            Some("this is a virtual GPU; ask the host that it comes from")
        }
        _ => None,
    }
}

/// The budget of a check that asks NVML.
pub(super) fn budget(_: &BTreeMap<String, String>) -> Budget {
    BUDGET
}

/// A sink that hands every line to the other thread as the event that it is.
struct Events(Sender<Event>);

impl Write for Events {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let event = serde_json::from_slice(line)?;
        // When nobody listens any more, time was up.
        self.0
            .send(event)
            .map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
