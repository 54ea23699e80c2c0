//! What the checks that let GPUs work have in common: which device of CUDA is which GPU of NVML, and work on several GPUs
//! at once that may hang.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

use dhc_thresholds::{Metric, Subject};
use nvidia_sys::{CallError, Driver, LoadError};

use super::gpu::{divided, listed};
use super::gpu_count::short_bdf;
use crate::check::{CheckError, Event, OptionSpec, Recorder, Spec, Values, chain};
use crate::host::Host;

pub(super) const LIBCUDA: OptionSpec = OptionSpec {
    name: "libcuda",
    default: "",
    values: Values::Path,
    about: "the CUDA driver; empty for the system's",
};

/// A GPU that both NVML and CUDA know.
#[derive(Clone)]
pub(super) struct Gpu {
    pub(super) subject: Subject,
    /// Its number in NVML.
    pub(super) index: u32,
    /// Its place among the devices of CUDA.
    pub(super) ordinal: u32,
}

/// Why work on a GPU ended early.
pub(super) enum Trouble {
    /// The check itself cannot go on.
    Check(CheckError),
    /// A library answered so.
    Call(CallError),
    /// A library is not there.
    Library(LoadError),
}

impl From<CheckError> for Trouble {
    fn from(error: CheckError) -> Self {
        Trouble::Check(error)
    }
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Self {
        Trouble::Call(error)
    }
}

impl From<LoadError> for Trouble {
    fn from(error: LoadError) -> Self {
        Trouble::Library(error)
    }
}

/// The driver, ready for this thread.
pub(super) fn driver(libcuda: Option<&PathBuf>) -> Result<Driver, Trouble> {
    let driver = Driver::load(libcuda.map(PathBuf::as_path))?;
    driver.initialise()?;
    Ok(driver)
}

/// The GPUs that can be given work. Each of the others that NVML counts is a gap of `metric`.
pub(super) fn gpus(
    host: &Host,
    libcuda: Option<&PathBuf>,
    metric: &Metric,
    record: &mut Recorder<'_>,
) -> Result<Vec<Gpu>, CheckError> {
    record.progress("starting NVML")?;
    let nvml = host
        .nvml()
        .map_err(|error| CheckError::Unavailable(chain(&error)))?;
    record.progress("starting the CUDA driver")?;
    let ordinals = ordinals(libcuda).map_err(|trouble| match trouble {
        Trouble::Check(error) => error,
        Trouble::Call(error) => CheckError::Unavailable(error.to_string()),
        Trouble::Library(error) => CheckError::Unavailable(error.to_string()),
    })?;
    let mut gpus = Vec::new();
    for index in 0..listed(&nvml)? {
        record.progress(format!("asking NVML about gpu{index}"))?;
        let subject = Subject::gpu(index);
        let gpu = nvml.device_by_index(index);
        let known =
            gpu.and_then(|gpu| Ok((divided(&gpu), gpu.name()?, gpu.uuid()?, gpu.pci_info()?)));
        let (divided, name, uuid, pci) = match known {
            Ok(known) => known,
            // gpu-count says what is wrong with the GPU.
            Err(error) => {
                record.gap(metric, subject, error.to_string())?;
                continue;
            }
        };
        let bdf = short_bdf(&pci.bus_id);
        let Some(ordinal) = ordinals.get(&bdf).copied() else {
            let why = format!(
                "the CUDA driver has no device at {bdf}; look at CUDA_VISIBLE_DEVICES and at nvidia-smi"
            );
            record.gap(metric, subject, why)?;
            continue;
        };
        record.device(
            subject.clone(),
            [("model", name), ("uuid", uuid), ("bdf", bdf)],
        )?;
        match divided {
            Some(why) => record.gap(metric, subject, why)?,
            None => gpus.push(Gpu {
                subject,
                index,
                ordinal,
            }),
        }
    }
    Ok(gpus)
}

/// The places of the devices of CUDA, by PCI address: NVML numbers GPUs by address, CUDA by speed, and UUIDs of parts of a
/// GPU differ in the two.
fn ordinals(libcuda: Option<&PathBuf>) -> Result<BTreeMap<String, u32>, Trouble> {
    let driver = driver(libcuda)?;
    let mut ordinals = BTreeMap::new();
    for ordinal in 0..driver.count()? {
        ordinals.insert(short_bdf(&driver.device(ordinal)?.bdf), ordinal);
    }
    Ok(ordinals)
}

type Work<T> = dyn FnOnce(&mut Recorder<'_>) -> Result<T, CheckError> + Send;

/// Something to do in a thread of its own.
pub(super) struct Worker<T> {
    name: String,
    work: Box<Work<T>>,
}

impl<T> Worker<T> {
    pub(super) fn new(
        name: impl Into<String>,
        work: impl FnOnce(&mut Recorder<'_>) -> Result<T, CheckError> + Send + 'static,
    ) -> Worker<T> {
        Worker {
            name: name.into(),
            work: Box::new(work),
        }
    }
}

/// Lets all work at once. A call into a stuck driver never returns, so what they record is passed on at once, and when time
/// is up, the message says who was doing what.
pub(super) fn side_by_side<T: Send + 'static>(
    end: Instant,
    spec: &'static Spec,
    record: &mut Recorder<'_>,
    workers: Vec<Worker<T>>,
) -> Result<Vec<T>, CheckError> {
    let (sender, heard) = channel();
    let mut at_work: Vec<Option<String>> = Vec::new();
    let mut threads = Vec::new();
    for (place, Worker { name, work }) in workers.into_iter().enumerate() {
        at_work.push(Some(format!("{name} began")));
        let sender = sender.clone();
        threads.push(thread::spawn(move || {
            let mut sink = Sink(place, sender.clone());
            let outcome = work(&mut Recorder::new(spec, &mut sink));
            // When nobody listens any more, time was up.
            let _ = sender.send((place, Heard::Ended));
            outcome
        }));
    }
    drop(sender);
    loop {
        match heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((place, Heard::Event(event))) => {
                if let (Event::Progress(what), Some(doing)) = (&event, &mut at_work[place]) {
                    doing.clone_from(what);
                }
                record.pass_on(&event)?;
            }
            Ok((place, Heard::Ended)) => at_work[place] = None,
            Err(RecvTimeoutError::Timeout) => {
                let stuck: Vec<String> = at_work.into_iter().flatten().collect();
                return Err(CheckError::TimedOut(format!(
                    "time was up while: {}; a driver that does not come back is stuck, see the kernel's log for Xid 119 or \
                     120 and for tasks blocked in nvidia",
                    stuck.join(", ")
                )));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let joined = threads.into_iter().map(|thread| match thread.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    });
    joined.collect()
}

/// What a worker is heard to say.
enum Heard {
    Event(Event),
    Ended,
}

/// A sink that hands every line to the other thread as the event that it is.
struct Sink(usize, Sender<(usize, Heard)>);

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let event = serde_json::from_slice(line)?;
        self.1
            .send((self.0, Heard::Event(event)))
            .map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
