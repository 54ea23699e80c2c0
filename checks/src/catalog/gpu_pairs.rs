//! `gpu-pairs`: how fast each GPU of a node copies to each other one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};
use nvidia_sys::{CallError, Context, DeviceMemory, PinnedMemory, Stream, Way};

use super::cuda::{Gpu, LIBCUDA, Trouble, Worker, driver, gpus, side_by_side};
use super::gpu_stress::timed;
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::foresight::Cause;

const GPUS: Metric = Metric {
    name: "gpu.pairs.gpus",
    unit: Unit::Count,
    about: "GPUs that took part",
    role: Role::Required,
    fault: "gpu.missing",
};
const BANDWIDTH: Metric = Metric {
    name: "gpu.pairs.bandwidth",
    unit: Unit::GigabytesPerSecond,
    about: "copies from one GPU's memory to another's, in one direction, by the way between them",
    role: Role::Judged,
    fault: "gpu.performance",
};
const WRONG: Metric = Metric {
    name: "gpu.pairs.wrong",
    unit: Unit::Count,
    about: "words of 32 bits that arrived otherwise than they were sent from one GPU to another",
    role: Role::Judged,
    fault: "gpu.corrupts",
};

static SPEC: Spec = Spec {
    name: "gpu-pairs",
    about: "bandwidth from every GPU to every other one, over NVLink or PCIe, naming the slow pair",
    explain: "\
Copies from each GPU to each other one, one pair after the other and in both directions, and verifies what arrived. The
subject `gpu1/to-gpu5` is the copy from gpu1 to gpu5. Where the GPUs reach each other directly, that is over NVLink if they
have it and over PCIe if not; else the driver copies by way of the host. Pairs with ways that the driver ranks alike are each
other's peers, so a pair that is slower than the others warns even where the table has no floor. When all pairs of one GPU
are slow, it is the GPU; when one is, it is the way. Needs the CUDA driver alone.",
    metrics: &[&GPUS, &BANDWIDTH, &WRONG],
    needs: Some(Hardware::NvidiaGpu),
    tags: &["gpu", "stress"],
    company: Company::Alone,
    options: &[MEBIBYTES, LIBCUDA],
};

const MEBIBYTES: OptionSpec = OptionSpec {
    name: "mib",
    default: "256",
    values: Values::Number(1..=4_096),
    about: "size of a copy in MiB",
};

const COPIES: u32 = 10;

/// The check.
pub(super) struct GpuPairs;

impl InstanceCheck for GpuPairs {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        // Eight GPUs have 56 pairs, each of which takes a few hundredths of a second for 256 MiB over NVLink, and ten times
        // as long over PCIe.
        let mib = MEBIBYTES.number_in(options);
        let expected = Duration::from_secs(10 + mib / 16);
        Budget {
            expected,
            deadline: expected * 2 + Duration::from_secs(60),
        }
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::AcceleratorLink]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let end = Instant::now() + task.deadline;
        let mib = task.number(&SPEC, MEBIBYTES.name)?;
        let words = usize::try_from(mib << 18).unwrap_or(usize::MAX);
        let libcuda = task.path(&SPEC, LIBCUDA.name)?;
        let host = task.host.clone();
        let all = Worker::new("all GPUs", move |record| {
            let found = gpus(&host, libcuda.as_ref(), &BANDWIDTH, record)?;
            record.measure(&GPUS, Subject::node(), found.len())?;
            pairs(&found, libcuda.as_ref(), words, record)
        });
        side_by_side(end, &SPEC, record, vec![all]).map(drop)
    }
}

/// A GPU, ready to send and to receive.
struct End<'a> {
    gpu: &'a Gpu,
    context: Context,
    stream: Stream,
    sent: DeviceMemory<u32>,
    received: DeviceMemory<u32>,
}

fn pairs(
    gpus: &[Gpu],
    libcuda: Option<&PathBuf>,
    words: usize,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let mut ends = Vec::new();
    for gpu in gpus {
        record.progress(format!("starting {}", gpu.subject))?;
        match End::open(gpu, libcuda, words) {
            Ok(end) => ends.push(end),
            Err(trouble) => record.gap(&BANDWIDTH, gpu.subject.clone(), told(trouble)?)?,
        }
    }
    let [end, ..] = ends.as_slice() else {
        return Ok(());
    };
    let mut room = match PinnedMemory::allocate(&end.context, words.min(4 << 20), 0) {
        Ok(room) => room,
        Err(error) => return Err(CheckError::Unavailable(error.to_string())),
    };
    for from in 0..ends.len() {
        for to in (0..ends.len()).filter(|to| *to != from) {
            let [source, sink] = ends
                .get_disjoint_mut([from, to])
                .expect("two different places of the list");
            let subject = Subject::new(
                Kind::Gpu,
                format!("{}/to-{}", source.gpu.subject, sink.gpu.subject),
            );
            record.progress(format!(
                "copying from {} to {}",
                source.gpu.subject, sink.gpu.subject
            ))?;
            // Another word for each pair, so that what an earlier one left does not pass for what was sent.
            let word = u32::try_from(from << 16 | to).unwrap_or_default() ^ 0xa5a5_5a5a;
            match pair(source, sink, word, &mut room) {
                Ok(told) => {
                    let measured = BANDWIDTH.of(subject.clone(), told.speed);
                    record.add(measured.over(told.way))?;
                    record.measure(&WRONG, subject, told.wrong)?;
                }
                Err(error) => record.gap(&BANDWIDTH, subject, error.to_string())?,
            }
        }
    }
    Ok(())
}

fn told(trouble: Trouble) -> Result<String, CheckError> {
    match trouble {
        Trouble::Check(error) => Err(error),
        Trouble::Call(error) => Ok(error.to_string()),
        Trouble::Library(error) => Ok(error.to_string()),
    }
}

impl<'a> End<'a> {
    fn open(gpu: &'a Gpu, libcuda: Option<&PathBuf>, words: usize) -> Result<End<'a>, Trouble> {
        let driver = driver(libcuda)?;
        let context = Context::open(&driver, &driver.device(gpu.ordinal)?)?;
        Ok(End {
            gpu,
            stream: Stream::new(&context)?,
            sent: DeviceMemory::allocate(&context, words)?,
            received: DeviceMemory::allocate(&context, words)?,
            context,
        })
    }
}

/// What is known of a pair.
struct Told {
    speed: f64,
    way: String,
    wrong: u64,
}

fn pair(
    source: &mut End<'_>,
    sink: &mut End<'_>,
    word: u32,
    room: &mut PinnedMemory<u32>,
) -> Result<Told, CallError> {
    let way = match source.context.way_to(&sink.context)? {
        Way::Direct { rank } => {
            source.context.enable_access(&sink.context)?;
            format!("direct-rank-{rank}")
        }
        Way::ThroughHost => "host".to_owned(),
    };
    source.sent.fill(word)?;
    let us = timed(&source.context, &source.stream, COPIES, || {
        sink.received.copy_from(&source.sent, &source.stream)
    })?;
    let words = sink.received.len();
    let mut wrong = 0;
    for first in (0..words).step_by(room.elements().len()) {
        let room = room.elements_mut();
        let length = room.len().min(words - first);
        sink.received.read(first, &mut room[..length])?;
        let strange = room[..length].iter().filter(|found| **found != word);
        wrong += strange.count() as u64;
    }
    let bytes = 4.0 * words as f64 * f64::from(COPIES);
    Ok(Told {
        speed: bytes / us / 1e3,
        way,
        wrong,
    })
}
