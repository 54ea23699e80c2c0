//! What the checks of GPUs have in common: asking NVML in time, GPU by GPU, what a GPU does not tell though others of its
//! model do, and what a divided GPU does not tell.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use dhc_thresholds::{Metric, Subject};
use nvml_wrapper::enum_wrappers::device::GpuVirtualizationMode;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::check::{Budget, CheckError, Event, Recorder, Spec, Task, chain};
use crate::host::Host;
use crate::host::nvml::Reading;

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

/// Looks at every GPU that NVML counts. What one of them does not tell though others of its model do is a gap.
pub(super) fn for_each_gpu(
    nvml: &Nvml,
    record: &mut Recorder<'_>,
    mut look: impl FnMut(
        u32,
        Result<Device<'_>, NvmlError>,
        &mut Usual,
        &mut Recorder<'_>,
    ) -> Result<(), CheckError>,
) -> Result<(), CheckError> {
    let mut usual = Usual::default();
    for index in 0..listed(nvml)? {
        record.progress(format!("asking gpu{index}"))?;
        let gpu = nvml.device_by_index(index);
        let model = gpu.as_ref().ok().and_then(|gpu| gpu.name().ok());
        usual.model = model.unwrap_or_default();
        look(index, gpu, &mut usual, record)?;
    }
    for (model, metric, subject) in &usual.untold {
        if usual.is_told(model, metric, subject) {
            let why = "other GPUs of its model tell this, and it does not";
            record.gap(metric, subject.clone(), why)?;
        }
    }
    Ok(())
}

/// What the GPUs of a model tell. What none of them tells, the model or its driver does not have, which is no fault; what
/// one of them alone does not tell is neither zero nor fine.
#[derive(Default)]
pub(super) struct Usual {
    /// The model of the GPU that is asked now; empty if it does not tell that either.
    model: String,
    /// Model, metric, and the place on the GPU.
    told: BTreeSet<(String, &'static str, String)>,
    untold: Vec<(String, Metric, Subject)>,
}

impl Usual {
    /// The answer to a question about `metric` of `subject`, if it is a value. An error is a gap at once.
    pub(super) fn heard<T>(
        &mut self,
        metric: &Metric,
        subject: &Subject,
        answer: Result<T, NvmlError>,
        record: &mut Recorder<'_>,
    ) -> Result<Option<T>, CheckError> {
        match Reading::of(answer) {
            Reading::Value(value) => {
                self.tells(metric, subject);
                return Ok(Some(value));
            }
            Reading::Unsupported => self.tells_not(metric, subject),
            Reading::Failed(why) => record.gap(metric, subject.clone(), why)?,
        }
        Ok(None)
    }

    /// The GPU that is asked now tells `metric` of `subject`.
    pub(super) fn tells(&mut self, metric: &Metric, subject: &Subject) {
        let place = place(subject).to_owned();
        self.told.insert((self.model.clone(), metric.name, place));
    }

    /// It does not tell it.
    pub(super) fn tells_not(&mut self, metric: &Metric, subject: &Subject) {
        self.untold
            .push((self.model.clone(), *metric, subject.clone()));
    }

    /// Whether any GPU of the model tells the metric of the same place; one of no known model is held against all.
    fn is_told(&self, model: &str, metric: &Metric, subject: &Subject) -> bool {
        self.told.iter().any(|(of, name, at)| {
            *name == metric.name && at == place(subject) && (model.is_empty() || of == model)
        })
    }
}

/// Where on its GPU a subject is: `/link6` of `gpu3/link6`, nothing of the GPU itself.
fn place(subject: &Subject) -> &str {
    &subject.name[subject.device().len()..]
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
