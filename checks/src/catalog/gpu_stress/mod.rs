//! `gpu-stress`: GPUs compute right and keep what is written into them under full load, how fast, how hot.

mod pattern;
mod product;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dhc_thresholds::{Hardware, Metric, Role, Subject, Unit};
use nvidia_sys::{
    CallError, Context, CublasLibrary, DeviceMemory, Event, HalfPair, PinnedMemory, Stream,
};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};

use self::pattern::{Pattern, Wrong};
use self::product::{PERIOD, Product};
use super::cuda::{Gpu, LIBCUDA, Trouble, Worker, driver, gpus, side_by_side};
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values, chain,
};
use crate::foresight::Cause;
use crate::host::Host;

const PRODUCTS_WRONG: Metric = Metric::new(
    "gpu.stress.wrong",
    Unit::Count,
    Role::Required,
    "elements of matrix products that a GPU computed wrong",
    "gpu.corrupts",
);
const MEMORY_WRONG: Metric = Metric::new(
    "gpu.stress.memory.wrong",
    Unit::Count,
    Role::Required,
    "words of 32 bits in a GPU's memory that were read otherwise than they had been written",
    "gpu.corrupts",
);
const UNCORRECTABLE: Metric = Metric::new(
    "gpu.stress.uncorrectable",
    Unit::Count,
    Role::Judged,
    "whether the driver ended the work on a GPU because memory lost what it held: 1 or 0",
    "gpu.memory.uncorrectable_now",
);
const SPEED: Metric = Metric::new(
    "gpu.stress.products",
    Unit::TeraflopsPerSecond,
    Role::Judged,
    "operations of matrix products in a second, FP16 with sums in FP32, all GPUs at once",
    "gpu.performance",
);
const BANDWIDTH: Metric = Metric::new(
    "gpu.stress.memory.bandwidth",
    Unit::GigabytesPerSecond,
    Role::Judged,
    "bytes that a copy within a GPU's memory reads and writes in a second",
    "gpu.performance",
);
const TO_GPU: Metric = Metric::new(
    "gpu.stress.to_gpu",
    Unit::GigabytesPerSecond,
    Role::Context,
    "copies from pinned memory of the host to a GPU, one GPU at a time",
    "gpu.performance",
);
const TO_HOST: Metric = Metric::new(
    "gpu.stress.to_host",
    Unit::GigabytesPerSecond,
    Role::Context,
    "copies from a GPU to pinned memory of the host, one GPU at a time",
    "gpu.performance",
);
const TESTED: Metric = Metric::new(
    "gpu.stress.memory.tested",
    Unit::Mebibytes,
    Role::Context,
    "memory of a GPU that was written and read",
    "gpu.corrupts",
);
const CLOCK: Metric = Metric::new(
    "gpu.stress.clock",
    Unit::Megahertz,
    Role::Context,
    "the lowest clock of a GPU's multiprocessors that was seen while it multiplied",
    "gpu.performance",
);
const POWER: Metric = Metric::new(
    "gpu.stress.power",
    Unit::Watts,
    Role::Context,
    "the greatest power draw of a GPU that was seen while it multiplied",
    "gpu.power",
);
const TEMPERATURE: Metric = Metric::new(
    "gpu.stress.temperature",
    Unit::Celsius,
    Role::Context,
    "the highest temperature of a GPU that was seen while it multiplied",
    "gpu.thermal",
);
const THROTTLED: Metric = Metric::new(
    "gpu.stress.throttled",
    Unit::State,
    Role::Judged,
    "the gravest reason for which a GPU slowed down while it multiplied: hw_thermal, power_brake, sw_thermal, hw_slowdown, \
     power_cap or none",
    "gpu.thermal",
);

static SPEC: Spec = Spec {
    name: "gpu-stress",
    about: "all GPUs at once compute products and keep patterns in memory without an error; TFLOP/s, GB/s, clocks, heat",
    explain: "\
Lets every GPU work at the same time, without DCGM: only the CUDA driver and cuBLAS are needed, which are loaded when the
check runs. Each GPU first writes patterns (zeros, ones, both checkered ones, and words that differ from place to place,
which it copies from one half to the other) into a share of its free memory, and all of it is read back. Then copies are
timed: within the GPU's memory, from the host and to it.

Then it multiplies matrices for most of the time, in FP16 on the tensor cores with sums in FP32. The matrices hold small
whole numbers whose product is known and exact, so that every element of every product is verified; one that is wrong is
silent corruption. Meanwhile NVML is asked for clock, power, temperature and why a GPU slows down. A power cap is what a
sound GPU runs into under such a load; thermal slowdown and a power brake are not.

Without cuBLAS memory is tested all the same, and products are unknown. The speed is judged where the instance type's
table has a floor, and a GPU that is slower than the node's others warns. A node on which jobs run gives worthless speeds.",
    metrics: &[
        &PRODUCTS_WRONG,
        &MEMORY_WRONG,
        &UNCORRECTABLE,
        &SPEED,
        &BANDWIDTH,
        &TO_GPU,
        &TO_HOST,
        &TESTED,
        &CLOCK,
        &POWER,
        &TEMPERATURE,
        &THROTTLED,
    ],
    needs: Some(Hardware::NvidiaGpu),
    tags: &["gpu", "stress", "long"],
    company: Company::Alone,
    options: &[SECONDS, PERCENT, SIZE, LIBCUDA, LIBCUBLAS],
};

const SECONDS: OptionSpec = OptionSpec {
    name: "seconds",
    default: "60",
    values: Values::Number(1..=86_400),
    about: "how long matrices are multiplied",
};
const PERCENT: OptionSpec = OptionSpec {
    name: "percent",
    default: "10",
    values: Values::Number(1..=90),
    about: "percentage of each GPU's free memory to write and read",
};
const SIZE: OptionSpec = OptionSpec {
    name: "size",
    default: "8192",
    values: Values::Multiple {
        of: PERIOD as u64,
        to: 32_768,
    },
    about: "rows and columns of the matrices",
};
const LIBCUBLAS: OptionSpec = OptionSpec {
    name: "libcublas",
    default: "",
    values: Values::Path,
    about: "cuBLAS, such as that of your jobs' Python environment; empty for the system's",
};

/// Words that are read back at once.
const CHUNK: usize = 4 << 20;

/// How often a copy is timed.
const COPIES: u32 = 10;

/// About how long products are added up before they are verified, how often NVML is asked meanwhile, and how often the
/// device whether it is done.
const BATCH: Duration = Duration::from_millis(500);
const SAMPLE: Duration = Duration::from_millis(250);
const NAP: Duration = Duration::from_millis(2);

/// The check.
pub(super) struct GpuStress;

impl InstanceCheck for GpuStress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        // Every hundredth of a GPU's memory is read five times by way of the host, which takes up to a second.
        let percent = PERCENT.number_in(options);
        let expected = SECONDS.seconds_in(options) + Duration::from_secs(10 + percent);
        Budget {
            expected,
            deadline: expected * 2 + Duration::from_secs(60),
        }
    }

    fn foresees(&self) -> &'static [Cause] {
        &[
            Cause::AcceleratorLost,
            Cause::AcceleratorLink,
            Cause::AcceleratorMemory,
            Cause::SilentCorruption,
            Cause::Heat,
        ]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let end = Instant::now() + task.deadline;
        let options = Arc::new(Options::of(task)?);
        let (host, libcuda) = (task.host.clone(), options.libcuda.clone());
        let find = Worker::new("all GPUs", move |record| {
            gpus(&host, libcuda.as_ref(), &PRODUCTS_WRONG, record)
        });
        let found = side_by_side(end, &SPEC, record, vec![find])?;
        let turn = Arc::new(Mutex::new(()));
        let workers = found.into_iter().flatten().map(|gpu| {
            let (host, options) = (task.host.clone(), Arc::clone(&options));
            let turn = Arc::clone(&turn);
            Worker::new(gpu.subject.name.clone(), move |record| {
                work(&gpu, &host, &options, &turn, record)
            })
        });
        side_by_side(end, &SPEC, record, workers.collect()).map(drop)
    }
}

struct Options {
    length: Duration,
    percent: u64,
    size: usize,
    libcuda: Option<PathBuf>,
    libcublas: Option<PathBuf>,
}

impl Options {
    fn of(task: &Task) -> Result<Options, CheckError> {
        Ok(Options {
            length: Duration::from_secs(task.number(&SPEC, SECONDS.name)?),
            percent: task.number(&SPEC, PERCENT.name)?,
            size: usize::try_from(task.number(&SPEC, SIZE.name)?).unwrap_or(PERIOD),
            libcuda: task.path(&SPEC, LIBCUDA.name)?,
            libcublas: task.path(&SPEC, LIBCUBLAS.name)?,
        })
    }
}

/// All that is done on one GPU. What a library refuses is a gap, and says nothing of the other GPUs.
fn work(
    gpu: &Gpu,
    host: &Host,
    options: &Options,
    turn: &Mutex<()>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let mut lost = 0_u32;
    let mut gaps =
        |metrics: &[&Metric], outcome: Result<(), Trouble>, record: &mut Recorder<'_>| {
            let why = match outcome {
                Ok(()) => return Ok(()),
                Err(Trouble::Check(error)) => return Err(error),
                Err(Trouble::Call(error)) => {
                    lost |= u32::from(error.is_uncorrectable());
                    error.to_string()
                }
                Err(Trouble::Library(error)) => error.to_string(),
            };
            let mut metrics = metrics.iter();
            metrics.try_for_each(|metric| record.gap(metric, gpu.subject.clone(), why.clone()))
        };
    match open(gpu, options) {
        Err(trouble) => gaps(&[&MEMORY_WRONG, &PRODUCTS_WRONG], Err(trouble), record)?,
        Ok(context) => {
            let outcome = memory(gpu, &context, options, turn, record);
            gaps(&[&MEMORY_WRONG, &BANDWIDTH], outcome, record)?;
            let outcome = products(gpu, &context, host, options, record);
            gaps(&[&PRODUCTS_WRONG, &SPEED], outcome, record)?;
        }
    }
    record.measure(&UNCORRECTABLE, gpu.subject.clone(), lost)
}

fn open(gpu: &Gpu, options: &Options) -> Result<Context, Trouble> {
    let driver = driver(options.libcuda.as_ref())?;
    Ok(Context::open(&driver, &driver.device(gpu.ordinal)?)?)
}

/// Patterns in a share of the free memory, and copies of it.
fn memory(
    gpu: &Gpu,
    context: &Context,
    options: &Options,
    turn: &Mutex<()>,
    record: &mut Recorder<'_>,
) -> Result<(), Trouble> {
    let (free, _) = context.memory()?;
    let words = usize::try_from(free / 100 * options.percent / 8 * 2).unwrap_or(usize::MAX);
    let mut memory = DeviceMemory::<u32>::allocate(context, words)?;
    let mut chunk = PinnedMemory::allocate(context, CHUNK.min(words), 0)?;
    let stream = Stream::new(context)?;
    let mut wrong = Wrong::default();
    for pattern in Pattern::ALL {
        record.progress(format!("{} writes and reads its memory", gpu.subject))?;
        put(pattern, &mut memory, &mut chunk, &stream)?;
        let half = words / 2;
        for first in (0..words).step_by(chunk.elements().len()) {
            let room = chunk.elements_mut();
            let length = room.len().min(words - first);
            memory.read(first, &mut room[..length])?;
            wrong.look(pattern, half, first, &room[..length]);
        }
    }
    record.measure(&TESTED, gpu.subject.clone(), (words as u64) >> 18)?;
    let mut measured = MEMORY_WRONG.of(gpu.subject.clone(), wrong.words);
    if let Some((begin, end)) = wrong.places {
        let address = |place: usize| memory.address() + 4 * place as u64;
        measured = measured.detail(format!(
            "bits {:#010x} differed, from address {:#x} to {:#x} ({} and {} MiB into the memory under test)",
            wrong.bits,
            address(begin),
            address(end) + 3,
            begin >> 18,
            end >> 18
        ));
    }
    record.add(measured)?;
    record.progress(format!("{} copies within its memory", gpu.subject))?;
    let half = words / 2;
    let us = timed(context, &stream, COPIES, || {
        memory.copy_within(0, half, half, &stream)
    })?;
    // A copy reads each byte and writes it.
    let bytes = 8.0 * half as f64 * f64::from(COPIES);
    record.measure(&BANDWIDTH, gpu.subject.clone(), bytes / us / 1e3)?;
    // GPUs share their way to the host, so they take turns.
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    record.progress(format!("{} copies from the host and to it", gpu.subject))?;
    let bytes = 4.0 * chunk.elements().len() as f64 * f64::from(COPIES);
    let speed = |begun: Instant| bytes / begun.elapsed().as_secs_f64() / 1e9;
    let begun = Instant::now();
    (0..COPIES).try_for_each(|_| memory.write(0, chunk.elements()))?;
    record.measure(&TO_GPU, gpu.subject.clone(), speed(begun))?;
    let begun = Instant::now();
    (0..COPIES).try_for_each(|_| memory.read(0, chunk.elements_mut()))?;
    record.measure(&TO_HOST, gpu.subject.clone(), speed(begun))?;
    Ok(())
}

/// Writes a pattern into all of the memory.
fn put(
    pattern: Pattern,
    memory: &mut DeviceMemory<u32>,
    chunk: &mut PinnedMemory<u32>,
    stream: &Stream,
) -> Result<(), CallError> {
    let half = memory.len() / 2;
    let Pattern::Same(word) = pattern else {
        for first in (0..half).step_by(chunk.elements().len()) {
            let room = chunk.elements_mut();
            let length = room.len().min(half - first);
            for (place, word) in (first..).zip(&mut room[..length]) {
                *word = pattern.word(place, half);
            }
            memory.write(first, &room[..length])?;
        }
        return memory.copy_within(0, half, half, stream);
    };
    memory.fill(word)
}

/// How long so many pieces of work take on the device after one that is not counted, in microseconds.
pub(super) fn timed(
    context: &Context,
    stream: &Stream,
    times: u32,
    mut work: impl FnMut() -> Result<(), CallError>,
) -> Result<f64, CallError> {
    let (begun, ended) = (Event::new(context)?, Event::new(context)?);
    work()?;
    begun.record(stream)?;
    (0..times).try_for_each(|_| work())?;
    ended.record(stream)?;
    while !ended.is_reached()? {
        std::thread::sleep(NAP / 10);
    }
    ended.since_us(&begun)
}

/// Products for as long as it was asked for, each verified.
fn products(
    gpu: &Gpu,
    context: &Context,
    host: &Host,
    options: &Options,
    record: &mut Recorder<'_>,
) -> Result<(), Trouble> {
    let size = options.size;
    let stream = Stream::new(context)?;
    let mut cublas = CublasLibrary::load(options.libcublas.as_deref())?.on(context, &stream)?;
    record.progress(format!("{} multiplies matrices", gpu.subject))?;
    let product = Product::new(size);
    let [a, b] = product.factors();
    let on_gpu = |words: &[HalfPair]| {
        let mut memory = DeviceMemory::allocate(context, words.len())?;
        memory.write(0, words)?;
        Ok::<_, CallError>(memory)
    };
    let (a, b) = (on_gpu(&a)?, on_gpu(&b)?);
    let mut c = DeviceMemory::<f32>::allocate(context, size * size)?;
    let columns = (CHUNK / size).clamp(1, size);
    let mut room = PinnedMemory::<f32>::allocate(context, columns * size, 0.0)?;
    let nvml = host
        .nvml()
        .map_err(|error| CheckError::Unavailable(chain(&error)))?;
    let mut sensors = Sensors::new(&nvml, gpu.index);

    // What the first product costs more is not its speed; the time of the second says how many make a batch.
    let us = timed(context, &stream, 1, || {
        cublas.multiply(size, &a, &b, &mut c, false)
    })?;
    let fitting = BATCH.as_secs_f64() * 1e6 / us.max(1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most half a million"
    )]
    let batch = (fitting as u32).clamp(1, product.sums_max());
    let (begun, ended) = (Event::new(context)?, Event::new(context)?);
    let (mut wrong, mut first, mut done, mut busy_us) = (0, None, 0_u64, 0.0);
    let end = Instant::now() + options.length;
    while done == 0 || Instant::now() < end {
        begun.record(&stream)?;
        for number in 0..batch {
            cublas.multiply(size, &a, &b, &mut c, number > 0)?;
        }
        ended.record(&stream)?;
        sensors.watch(&ended)?;
        busy_us += ended.since_us(&begun)?;
        done += u64::from(batch);
        for column in (0..size).step_by(columns) {
            let room = &mut room.elements_mut()[..columns.min(size - column) * size];
            c.read(column * size, room)?;
            let found = product.check(column, room, batch);
            wrong += found.elements;
            first = first.or(found.first);
        }
    }
    let mut measured = PRODUCTS_WRONG.of(gpu.subject.clone(), wrong);
    if let Some((row, column, found, due)) = first {
        measured = measured.detail(format!(
            "first at row {row}, column {column} of {size}: {found} instead of {due}, in the sum of {batch} products of {done}"
        ));
    }
    record.add(measured)?;
    let operations = 2.0 * (size as f64).powi(3) * done as f64;
    record.measure(&SPEED, gpu.subject.clone(), operations / busy_us / 1e6)?;
    sensors.tell(&gpu.subject, record)?;
    Ok(())
}

/// What NVML says of a GPU at work.
struct Sensors<'a> {
    gpu: Result<Device<'a>, String>,
    clock_mhz: Option<u32>,
    power_mw: Option<u32>,
    celsius: Option<u32>,
    reasons: Option<ThrottleReasons>,
}

impl<'a> Sensors<'a> {
    fn new(nvml: &'a Nvml, index: u32) -> Sensors<'a> {
        let gpu = nvml.device_by_index(index);
        Sensors {
            gpu: gpu.map_err(|error| error.to_string()),
            clock_mhz: None,
            power_mw: None,
            celsius: None,
            reasons: None,
        }
    }

    /// Looks now and then until the device comes to the mark, once at least.
    fn watch(&mut self, mark: &Event) -> Result<(), CallError> {
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|looked| looked.elapsed() >= SAMPLE) {
                self.look();
                looked = Some(Instant::now());
            }
            if mark.is_reached()? {
                return Ok(());
            }
            std::thread::sleep(NAP);
        }
    }

    fn look(&mut self) {
        let Ok(gpu) = &self.gpu else {
            return;
        };
        let keep = |kept: &mut Option<u32>, seen: Option<u32>, better: fn(u32, u32) -> u32| {
            if let Some(seen) = seen {
                *kept = Some(kept.map_or(seen, |kept| better(kept, seen)));
            }
        };
        keep(
            &mut self.clock_mhz,
            gpu.clock_info(Clock::SM).ok(),
            u32::min,
        );
        keep(&mut self.power_mw, gpu.power_usage().ok(), u32::max);
        let celsius = gpu.temperature(TemperatureSensor::Gpu);
        keep(&mut self.celsius, celsius.ok(), u32::max);
        if let Ok(reasons) = gpu.current_throttle_reasons() {
            self.reasons = Some(self.reasons.unwrap_or(ThrottleReasons::empty()) | reasons);
        }
    }

    fn tell(self, subject: &Subject, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let Some(reasons) = self.reasons else {
            let why = self
                .gpu
                .err()
                .unwrap_or_else(|| "NVML does not say".to_owned());
            return record.gap(&THROTTLED, subject.clone(), why);
        };
        if let Some(clock) = self.clock_mhz {
            record.measure(&CLOCK, subject.clone(), clock)?;
        }
        if let Some(power) = self.power_mw {
            record.measure(&POWER, subject.clone(), f64::from(power) / 1e3)?;
        }
        if let Some(celsius) = self.celsius {
            record.measure(&TEMPERATURE, subject.clone(), celsius)?;
        }
        let words = [
            (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal"),
            (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power_brake"),
            (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal"),
            (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
            (ThrottleReasons::SW_POWER_CAP, "power_cap"),
        ];
        let seen: Vec<&str> = words
            .into_iter()
            .filter(|(reason, _)| reasons.contains(*reason))
            .map(|(_, word)| word)
            .collect();
        let gravest = seen.first().copied().unwrap_or("none");
        let mut measured = THROTTLED.of(subject.clone(), gravest);
        if gravest == "power_brake" {
            measured = measured.fault(POWER.fault);
        }
        record.add(measured.detail(seen.join(", ")))
    }
}
