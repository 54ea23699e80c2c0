//! DCGM's own diagnostic: `dcgmi diag -r LEVEL -j`, of every release from 2.0 to 4.6.

mod names;
mod preflight;
mod told;

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Hardware, Metric, Role, Subject, Unit};

use self::names::Names;
use self::preflight::Serials;
use self::told::{Summary, Told, told};
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values, chain,
};
use crate::foresight::Cause;
use crate::format::dcgmi::{self, DcgmError, DcgmiError, Diagnosis, Exit, Grade, Severity};
use crate::host::{Command, Ended, ExecError, Output};

/// What DCGM says of one test on one device.
const TEST_RESULT: Metric = Metric {
    name: "dcgm.test.result",
    unit: Unit::State,
    about: "what DCGM says of one test on one device, by the severity of each error: pass, monitor, config, triage, \
            unclassified, reset or isolate",
    role: Role::Required,
    fault: "dcgm.triage",
};

/// GPUs that DCGM names.
const GPUS: Metric = Metric {
    name: "dcgm.gpus",
    unit: Unit::Count,
    about: "GPUs that DCGM names in its answer",
    role: Role::Judged,
    fault: "gpu.missing",
};

/// Release of DCGM.
const VERSION: Metric = Metric {
    name: "dcgm.version",
    unit: Unit::State,
    about: "release of DCGM, as it prints it",
    role: Role::Context,
    fault: "dcgm.config",
};

/// Release of the NVIDIA driver.
const DRIVER: Metric = Metric {
    name: "dcgm.driver",
    unit: Unit::State,
    about: "release of the NVIDIA driver, as DCGM prints it",
    role: Role::Context,
    fault: "dcgm.config",
};

const TOOL: &str = "dcgmi";

/// On SIGTERM dcgmi stops the diagnostic and waits up to 25 seconds for it to end (NVIDIA/DCGM, `dcgmi/Diag.cpp` at
/// v4.6.0); killed before, it leaves the diagnostic running in the host engine.
const STOPPING: Duration = Duration::from_secs(30);

/// The check.
pub(super) struct DcgmDiag;

static SPEC: Spec = Spec {
    name: "dcgm-diag",
    about: "DCGM's diagnostic finds no fault on any GPU (levels 1 to 4; level 4 takes 45 to 120 minutes)",
    explain: EXPLAIN,
    metrics: &[&TEST_RESULT, &GPUS, &VERSION, &DRIVER],
    needs: Some(Hardware::NvidiaGpu),
    tags: &["gpu", "long"],
    company: Company::Alone,
    options: &[LEVEL],
};

const LEVEL: OptionSpec = OptionSpec {
    name: "level",
    default: "4",
    values: Values::Number(1..=4),
    about: "1 software and configuration, seconds; 2 memory and PCIe, minutes; 3 stress, up to half an hour; \
                4 all of it with the long memory test, up to two hours",
};

const EXPLAIN: &str = "\
Runs `dcgmi diag -r LEVEL -j` and reads what each of DCGM's tests says of each GPU.

DCGM prints a warning as `Fail`, so this check goes by the number and severity of each error, which are DCGM's own.
ISOLATE asks for a replacement, RESET for a reset of the GPU; TRIAGE says that a test failed without proof against the
hardware; CONFIG and MONITOR are warnings. Errors that name their own remedy (a pending row remap, a GPU that fell off
the bus, a recovery action of the driver) are taken at their word. A test that could not do its work, or was skipped
although the level promises it, makes the result unknown: it is neither a pass nor a fault. Releases before 3.2 print
no numbers; their failures are taken as failures of unknown gravity, unless dcgmi's exit status says ISOLATE.

DCGM numbers GPUs by itself. One whose serial number NVML knows is called as NVML calls it; one that NVML knows under another
serial number is called `dcgm-gpu2` and the like. A GPU that NVML has and DCGM does not name is untested, not missing.

The level is an option: `--set dcgm-diag.level=2`. Nothing else may use the GPUs meanwhile, and MIG has to be off.";

/// How much of DCGM's diagnostic is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Level(u8);

impl Level {
    fn of(number: u64) -> Level {
        Level(u8::try_from(number).unwrap_or(u8::MAX))
    }

    fn number(self) -> u8 {
        self.0
    }

    /// From seen run times: level 1 seconds, 2 two to three minutes, 3 ten to thirty, 4 45 to 120 (45 to 90 on
    /// SageMaker HyperPod, by AWS's documentation). The deadline leaves room for slow memory tests.
    fn budget(self) -> Budget {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let (expected, deadline) = match self.0 {
            1 => (Duration::from_secs(15), minutes(3)),
            2 => (minutes(3), minutes(15)),
            3 => (minutes(20), minutes(60)),
            _ => (minutes(75), minutes(150)),
        };
        Budget { expected, deadline }
    }
}

impl InstanceCheck for DcgmDiag {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        Level::of(LEVEL.number_in(options)).budget()
    }

    fn foresees(&self) -> &'static [Cause] {
        &[
            Cause::AcceleratorLost,
            Cause::AcceleratorLink,
            Cause::AcceleratorMemory,
            Cause::AcceleratorSram,
            Cause::SystemProcessor,
            Cause::SilentCorruption,
        ]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let level = Level::of(task.number(&SPEC, LEVEL.name)?);
        let nvml_has = preflight::run(&task.host, level, record)?;
        record.progress(format!(
            "DCGM's diagnostic of level {} is running",
            level.number()
        ))?;
        let output = run(task, level)?;
        task.confine(record)?;
        for evidence in output.evidence(TOOL) {
            record.evidence(evidence)?;
        }
        let status = exit_status(&output, level)?;
        let diagnosis = diagnosis(&output, status)?;
        tell(&diagnosis, level, status, nvml_has.as_ref(), record)
    }
}

fn run(task: &Task, level: Level) -> Result<Output, CheckError> {
    // Out of a short deadline only a part goes into stopping, or nothing would be left to run in.
    let grace = STOPPING.min(task.deadline / 4);
    let command = Command::new(TOOL, task.deadline.saturating_sub(grace))
        .args(["diag", "-r", &level.number().to_string(), "-j"])
        .grace(grace);
    task.host.exec(&command).map_err(|error| {
        let what_to_do = match error {
            ExecError::NotInstalled { .. } => "; install NVIDIA's datacenter-gpu-manager",
            ExecError::Unsafe { .. } | ExecError::NotStarted { .. } => "",
        };
        CheckError::Unavailable(format!("{}{what_to_do}", chain(&error)))
    })
}

fn exit_status(output: &Output, level: Level) -> Result<i32, CheckError> {
    match &output.ended {
        Ended::Exited(status) => Ok(*status),
        Ended::Signaled(signal) => Err(CheckError::Unavailable(format!(
            "dcgmi died of signal {signal}; look at nv-hostengine.log and the kernel log"
        ))),
        ended @ (Ended::TimedOut | Ended::Dismissed | Ended::Unkillable { .. }) => {
            Err(CheckError::TimedOut(format!(
                "dcgmi diag of level {} had not ended after {} s: {ended}; a level that was cut off has no result at all, \
             and the diagnostic may go on in nv-hostengine (systemctl restart nvidia-dcgm ends it)",
                level.number(),
                output.duration.as_secs()
            )))
        }
    }
}

/// What dcgmi printed, or why that is none.
fn diagnosis(output: &Output, status: i32) -> Result<Diagnosis, CheckError> {
    if output.stdout.is_truncated() {
        return Err(CheckError::NotUnderstood(format!(
            "dcgmi printed {} bytes, more than any diagnosis has; what is kept of it is evidence",
            output.stdout.total_bytes
        )));
    }
    let complaint = match output.stderr.first_line() {
        line if line.is_empty() => String::new(),
        line => format!("; on standard error it said `{line}`"),
    };
    dcgmi::read(&output.stdout.kept()).map_err(|error| match Exit::of_status(status) {
        Exit::CouldNotRun(meaning) => {
            let said = match &error {
                DcgmiError::NoDocument { said } => format!(" (it said `{said}`)"),
                _ => String::new(),
            };
            let what = format!("dcgmi ended with {status}: {meaning}{said}{complaint}");
            CheckError::Unavailable(what)
        }
        Exit::Clean | Exit::Error | Exit::Isolate | Exit::Unknown => {
            let why = chain(&error);
            CheckError::NotUnderstood(format!("{why} (dcgmi ended with {status}{complaint})"))
        }
    })
}

/// Records all that follows from the diagnosis and the exit status. `nvml_has` are the GPUs that NVML knows, if it told.
fn tell(
    diagnosis: &Diagnosis,
    level: Level,
    status: i32,
    nvml_has: Option<&Serials>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    for (metric, version) in [
        (&VERSION, &diagnosis.dcgm_version),
        (&DRIVER, &diagnosis.driver_version),
    ] {
        if let Some(version) = version {
            record.measure(metric, Subject::node(), version.clone())?;
        }
    }
    let conclusion = conclude(status, diagnosis);
    if diagnosis.results.is_empty() {
        return conclusion.map(|_| ());
    }
    let names = Names::new(diagnosis, nvml_has.map_or(&[], Vec::as_slice));
    count(diagnosis, &names, nvml_has.map(Vec::len), record)?;
    for (&gpu, serial) in &diagnosis.serials {
        record.device(names.gpu(gpu), [("serial", serial.clone())])?;
    }
    for remark in &names.remarks {
        record.note(remark)?;
    }
    let mut told = told(diagnosis, &names, level);
    let failed = match conclusion {
        Ok(more) => {
            told.extend(more);
            None
        }
        Err(error) => Some(error),
    };
    let summary = Summary::new(level, diagnosis, &told).to_string();
    for told in told {
        match told {
            Told::Measured(measurement) => record.add(measurement)?,
            Told::Untested { subject, why } => record.gap(&TEST_RESULT, subject, why)?,
            Told::LeftOut(what) => record.note(what)?,
        }
    }
    for remark in &diagnosis.remarks {
        record.note(format!("DCGM remarks: {remark}"))?;
    }
    match failed {
        Some(error) => Err(error),
        None => record.note(summary),
    }
}

/// Records how many GPUs DCGM names. That it names fewer than NVML has says nothing of the others but that they are untested.
fn count(
    diagnosis: &Diagnosis,
    names: &Names,
    nvml_has: Option<usize>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let gpus = diagnosis.gpus.len().max(diagnosis.gpu_device_ids.len());
    let why = match nvml_has {
        _ if gpus == 0 => "this release of DCGM names no GPU at this level".to_owned(),
        // Without a list, a GPU that no result names may be there all the same.
        _ if !diagnosis.has_inventory && nvml_has != Some(gpus) => {
            let all = nvml_has.map_or("an unknown number".to_owned(), |count| count.to_string());
            format!(
                "this release of DCGM lists no GPUs, and its results name {gpus} of {all} that the driver has"
            )
        }
        Some(all) if gpus < all => {
            let unnamed = names.unnamed.iter().copied();
            let unnamed: Vec<String> = unnamed.map(|index| Subject::gpu(index).name).collect();
            // Where serial numbers contradict each other, it is not known which ones are left.
            let which = if gpus + unnamed.len() == all {
                format!(", and not {}", unnamed.join(", "))
            } else {
                String::new()
            };
            format!(
                "DCGM tested {gpus} of the {all} GPUs that NVML has{which}; see `dcgmi discovery -l`, and restart the host \
                 engine if it was started before the GPU was there (systemctl restart nvidia-dcgm)"
            )
        }
        _ => return record.measure(&GPUS, Subject::node(), gpus),
    };
    record.gap(&GPUS, Subject::node(), why)
}

/// What the exit status adds to the document.
///
/// DCGM counts errors by itself and says so in the exit status. When it says that there are some and its document shows
/// none, somebody is wrong: that is not a pass, and not a fault of the hardware either.
fn conclude(status: i32, diagnosis: &Diagnosis) -> Result<Option<Told>, CheckError> {
    let exit = Exit::of_status(status);
    if let Some(why) = &diagnosis.runtime_error {
        let why = why.trim().escape_debug();
        let meaning = match exit {
            Exit::CouldNotRun(meaning) => format!(" (exit status {status}: {meaning})"),
            Exit::Clean | Exit::Error | Exit::Isolate | Exit::Unknown => String::new(),
        };
        return Err(CheckError::Unavailable(format!(
            "DCGM could not run its diagnostic: {why}{meaning}"
        )));
    }
    let contradiction = |says: &str| {
        Err(CheckError::NotUnderstood(format!(
            "dcgmi ended with {status}, which says that {says}, but its document shows none; \
             look at nv-hostengine.log and nvvs.log"
        )))
    };
    let worst = diagnosis.results.iter().map(|result| result.grade()).max();
    let mut errors = diagnosis.results.iter().flat_map(|result| &result.errors);
    match exit {
        Exit::Clean => Ok(None),
        // Skipped tests do not count as errors here, but they do for dcgmi if they tell why in one.
        Exit::Error if worst > Some(Grade::NotRun) || errors.next().is_some() => Ok(None),
        Exit::Error => contradiction("a test reported an error"),
        Exit::Isolate if worst == Some(Grade::Isolate) || errors.any(counts_as_isolate) => Ok(None),
        // Releases before 3.2 print no severity, and some errors have changed theirs since: DCGM itself is believed.
        Exit::Isolate if worst >= Some(Grade::Triage) => {
            let detail =
                "dcgmi ended with 205, NVVS_ISOLATE_ERROR: one of its errors has severity ISOLATE";
            let measurement = TEST_RESULT.of(Subject::node(), Grade::Isolate.word());
            let fault = Grade::Isolate.fault();
            Ok(Some(Told::Measured(
                measurement.fault(fault).detail(detail),
            )))
        }
        Exit::Isolate => contradiction("a test reported an error of severity ISOLATE"),
        Exit::CouldNotRun(meaning) => Err(CheckError::Unavailable(format!(
            "dcgmi ended with {status}: {meaning}"
        ))),
        Exit::Unknown => Err(CheckError::NotUnderstood(format!(
            "dcgmi ended with {status}, which no known release does; what it printed is kept as evidence"
        ))),
    }
}

/// Whether dcgmi ends with 205 for this error. It goes by the number alone, and some tests state a milder severity than
/// their error's number has (nvbandwidth states MONITOR for 38, NVIDIA/DCGM v4.5.3); the stated one is believed.
fn counts_as_isolate(error: &DcgmError) -> bool {
    error
        .known()
        .is_some_and(|known| known.severity == Severity::Isolate)
}
