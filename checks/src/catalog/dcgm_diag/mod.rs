//! DCGM's own diagnostic: `dcgmi diag -r LEVEL -j`, of every release from 2.0 to 4.6.

mod told;

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Hardware, Metric, Role, Unit};

use self::told::{Summary, Told, told};
use crate::check::{Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task};
use crate::format::dcgmi::{self, DcgmiError, Diagnosis, Exit, Grade};

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
    options: &[OptionSpec {
        name: "level",
        default: "4",
        about: "1 software and configuration, seconds; 2 memory and PCIe, minutes; 3 stress, up to half an hour; \
                4 all of it with the long memory test, up to two hours",
    }],
};

const EXPLAIN: &str = "\
Runs `dcgmi diag -r LEVEL -j` and reads what each of DCGM's tests says of each GPU.

DCGM prints a warning as `Fail`, so this check goes by the number and severity of each error, which are DCGM's own. \
ISOLATE asks for a replacement, RESET for a reset of the GPU; TRIAGE says that a test failed without proof against the \
hardware; CONFIG and MONITOR are warnings. Errors that name their own remedy (a pending row remap, a GPU that fell off \
the bus, a recovery action of the driver) are taken at their word. A test that could not do its work, or was skipped \
although the level promises it, makes the result unknown: it is neither a pass nor a fault. Releases before 3.2 print \
no numbers; their failures are taken as failures of unknown gravity, unless dcgmi's exit status says ISOLATE.

The level is an option: `--set dcgm-diag.level=2`. Nothing else may use the GPUs meanwhile, and MIG has to be off.";

/// How much of DCGM's diagnostic is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Level(u8);

impl Level {
    const LONGEST: Level = Level(4);

    fn parse(text: &str) -> Option<Level> {
        let number = text.parse().ok().filter(|number| (1..=4).contains(number));
        number.map(Level)
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

/// What the exit status adds to the document.
///
/// DCGM counts errors by itself and says so in the exit status. When it says that there are some and its document shows
/// none, somebody is wrong: that is not a pass, and not a fault of the hardware either.
fn conclude(exit: Exit, status: i32, diagnosis: &Diagnosis) -> Result<Option<Told>, CheckError> {
    let worst = diagnosis.results.iter().map(|result| result.grade()).max();
    let contradiction = |says: &str| {
        Err(CheckError::NotUnderstood(format!(
            "dcgmi ended with {status}, which says that {says}, but its document shows none; \
             look at nv-hostengine.log and nvvs.log"
        )))
    };
    if let Some(why) = &diagnosis.runtime_error {
        return Err(CheckError::Unavailable(format!(
            "DCGM could not run its diagnostic: {}{}",
            why.trim().escape_debug(),
            match exit {
                Exit::CouldNotRun(meaning) => format!(" (exit status {status}: {meaning})"),
                Exit::Clean | Exit::Error | Exit::Isolate | Exit::Unknown => String::new(),
            }
        )));
    }
    match exit {
        Exit::Clean => Ok(None),
        Exit::Error if worst > Some(Grade::NotRun) => Ok(None),
        Exit::Error => contradiction("a test reported an error"),
        Exit::Isolate if worst == Some(Grade::Isolate) => Ok(None),
        // Releases before 3.2 print no severities: the exit status is the only one that is told.
        Exit::Isolate if worst >= Some(Grade::Unclassified) => {
            let detail = "dcgmi ended with 205, NVVS_ISOLATE_ERROR: at least one of its errors has severity ISOLATE";
            let measurement =
                TEST_RESULT.of(dhc_thresholds::Subject::node(), Grade::Isolate.word());
            Ok(Some(Told::Measured(
                measurement.fault(Grade::Isolate.fault()).detail(detail),
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

impl InstanceCheck for DcgmDiag {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        let level = options.get("level").and_then(|text| Level::parse(text));
        level.unwrap_or(Level::LONGEST).budget()
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let _ = (
            task,
            record,
            conclude as fn(_, _, _) -> _,
            Summary::new as fn(_, _, _) -> _,
        );
        let _: Option<(Diagnosis, DcgmiError)> = None;
        let _ = dcgmi::read;
        let _ = told;
        todo!()
    }
}
