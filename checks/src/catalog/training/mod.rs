//! `gpu-training`, `neuron-training`, `cpu-training`: a small training run with a fixed seed on every core of the accelerators.
//!
//! The script `train.py` does the work, in JAX, so that one text serves CUDA, Neuron and the CPU. It runs below the check
//! like any other tool and judges nothing.

mod curves;

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values, chain,
};
use crate::foresight::Cause;
use crate::format::neuron_sysfs::physical_per_logical;
use crate::host::{Command, Ended, ExecError, Host};
use curves::{Core, Why};

const SCRIPT: &str = include_str!("train.py");

/// Looks whether there is a JAX, without loading it, and ends with [`NO_JAX`] if not.
const PROBE: &str =
    "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('jax') else 3)";
const NO_JAX: i32 = 3;
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// A training check of one kind of processor.
pub(super) struct Training {
    spec: &'static Spec,
    metrics: &'static Metrics,
    /// What the script calls it.
    platform: &'static str,
    foresees: &'static [Cause],
}

struct Metrics {
    deviation: Metric,
    disagreeing: Metric,
    time: Metric,
}

const fn metrics(names: [&'static str; 3], fault: &'static str) -> Metrics {
    let [deviation, disagreeing, time] = names;
    Metrics {
        deviation: Metric::new(
            deviation,
            Unit::Percent,
            Role::Required,
            "greatest difference of the losses of a core from those that the CPU computes, over all steps and both types of \
             numbers",
            fault,
        ),
        disagreeing: Metric::new(
            disagreeing,
            Unit::Count,
            Role::Judged,
            "steps whose loss differs in any bit from what more than half of the node's cores computed",
            fault,
        ),
        time: Metric::new(
            time,
            Unit::Seconds,
            Role::Context,
            "how long the run took on all cores at once, float32 and bfloat16 together",
            fault,
        ),
    }
}

const EXPLAIN: &str = "\
Trains a small network with a fixed seed, in float32 and bfloat16, on all cores at once, and the same on the CPU. Every core
has to follow the CPU's loss curve closely and, since all run one program on the same numbers, the other cores' curves in
every bit. One that does not computes wrong values: silent data corruption. Needs Python with JAX and its support of the
accelerator (jax[cuda12], or jax-neuronx with its `neuron` platform); where these are missing on a node with accelerators
that is an error and accuses nothing: the node was not measured, so it does not pass. Install them, or leave the check out
with --skip. The CPU's own run only adds to `cpu-stress`: without JAX it is skipped, unless it is named with --check.";

const PYTHON: OptionSpec = OptionSpec {
    name: "python",
    default: "python3",
    values: Values::Program,
    about: "the Python that has JAX",
};

const OPTIONS: [OptionSpec; 3] = [
    PYTHON,
    OptionSpec {
        name: "steps",
        default: "200",
        values: Values::Number(2..=1_000),
        about: "steps of training",
    },
    OptionSpec {
        name: "width",
        default: "512",
        values: Values::Number(16..=8_192),
        about: "width of the network's layers",
    },
];

static GPU_METRICS: Metrics = metrics(
    [
        "gpu.training.deviation",
        "gpu.training.disagreeing_steps",
        "gpu.training.time",
    ],
    "gpu.corrupts",
);
static NEURON_METRICS: Metrics = metrics(
    [
        "neuron.training.deviation",
        "neuron.training.disagreeing_steps",
        "neuron.training.time",
    ],
    "neuron.corrupts",
);

static CPU_METRICS: Metrics = metrics(
    [
        "cpu.training.deviation",
        "cpu.training.disagreeing_steps",
        "cpu.training.time",
    ],
    "cpu.corrupts",
);

pub(super) static GPU: Training = Training {
    spec: &Spec {
        name: "gpu-training",
        about: "a small training run on every GPU with the loss curve that the CPU computes, the same in every bit on all",
        explain: EXPLAIN,
        metrics: &[
            &GPU_METRICS.deviation,
            &GPU_METRICS.disagreeing,
            &GPU_METRICS.time,
        ],
        needs: Some(Hardware::NvidiaGpu),
        tags: &["gpu", "stress", "long"],
        company: Company::Alone,
        options: &OPTIONS,
    },
    metrics: &GPU_METRICS,
    platform: "gpu",
    foresees: &[
        Cause::AcceleratorLost,
        Cause::AcceleratorLink,
        Cause::SilentCorruption,
    ],
};

pub(super) static NEURON: Training = Training {
    spec: &Spec {
        name: "neuron-training",
        about: "a small training run on every Neuron core with the loss curve that the CPU computes, the same in every bit \
                on all",
        explain: EXPLAIN,
        metrics: &[
            &NEURON_METRICS.deviation,
            &NEURON_METRICS.disagreeing,
            &NEURON_METRICS.time,
        ],
        needs: Some(Hardware::NeuronDevice),
        tags: &["neuron", "stress", "long"],
        company: Company::Alone,
        options: &OPTIONS,
    },
    metrics: &NEURON_METRICS,
    platform: "neuron",
    foresees: &[
        Cause::AcceleratorLost,
        Cause::AcceleratorLink,
        Cause::SilentCorruption,
    ],
};

pub(super) static CPU: Training = Training {
    spec: &Spec {
        name: "cpu-training",
        about: "the training run of the accelerators on the CPU alone, on four of JAX's own cores, the same in every bit",
        explain: EXPLAIN,
        metrics: &[
            &CPU_METRICS.deviation,
            &CPU_METRICS.disagreeing,
            &CPU_METRICS.time,
        ],
        needs: None,
        tags: &["stress", "long"],
        company: Company::Alone,
        options: &OPTIONS,
    },
    metrics: &CPU_METRICS,
    platform: "cpu",
    foresees: &[Cause::SilentCorruption, Cause::Cpu],
};

impl InstanceCheck for Training {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn budget(&self, _: &BTreeMap<String, String>) -> Budget {
        // Compilers take most of it: neuronx-cc several minutes where nothing is cached.
        Budget {
            expected: Duration::from_secs(120),
            deadline: Duration::from_secs(1_200),
        }
    }

    fn foresees(&self) -> &'static [Cause] {
        self.foresees
    }

    /// Accelerators are there to train, so that JAX is missing for them is an error. The CPU's run is an addition to
    /// `cpu-stress`. Only what is surely missing counts; all else shows when the check runs.
    fn not_installed(&self, host: &Host, options: &BTreeMap<String, String>) -> Option<String> {
        if self.platform != "cpu" || options.contains_key(PYTHON.name) {
            return None;
        }
        let probe = Command::new(PYTHON.default, PROBE_LIMIT).args(["-I", "-c", PROBE]);
        let missing = match host.exec(&probe) {
            Err(ExecError::NotInstalled { .. }) => true,
            Ok(output) => output.ended == Ended::Exited(NO_JAX),
            Err(_) => false,
        };
        missing.then(|| {
            format!(
                "{} has no JAX, which this check alone wants; `python3 -m venv /opt/jax && /opt/jax/bin/pip install jax` \
                 installs it, and --set {}.{}=/opt/jax/bin/python3 names it",
                PYTHON.default, self.spec.name, PYTHON.name
            )
        })
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let steps = task.number(self.spec, "steps")?;
        let width = task.number(self.spec, "width")?;
        record.progress(format!("{steps} steps on every core"))?;
        // Isolated: neither the directory that dhc was started in nor the user's own packages are looked at.
        let command = Command::new(task.option(self.spec, PYTHON.name)?, task.deadline)
            .args(["-I", "-c", SCRIPT, self.platform])
            .args([steps.to_string(), width.to_string()]);
        let output = task.host.exec(&command);
        let output = output.map_err(|error| CheckError::Unavailable(chain(&error)))?;
        let neuron = NeuronCores::of(task);
        task.confine(record)?;
        for evidence in output.evidence("training") {
            record.evidence(evidence)?;
        }
        if let Ended::TimedOut | Ended::Dismissed | Ended::Unkillable { .. } = output.ended {
            return Err(CheckError::TimedOut(format!("training {}", output.ended)));
        }
        let text = String::from_utf8_lossy(&output.stdout.kept()).into_owned();
        let told = curves::read(&text).map_err(|why| match why {
            Why::Missing { .. } => CheckError::Unavailable(format!(
                "{why}; install it, or name the Python that has it with --set {}.python=FILE",
                self.spec.name
            )),
            Why::NotUnderstood(why) => CheckError::NotUnderstood(format!(
                "training: {why} ({}); its own words stand in the evidence",
                output.ended
            )),
        })?;
        record.note(format!("JAX {}", told.jax))?;
        for core in &told.cores {
            let subject = match self.platform {
                "gpu" => Subject::gpu(core.id),
                "neuron" => neuron.subject(core.id),
                _ => Subject::new(Kind::Cpu, format!("cpu/jax{}", core.id)),
            };
            self.tell(core, &told, subject, record)?;
        }
        let seconds: f64 = told.runs.values().map(|run| run.seconds).sum();
        record.measure(&self.metrics.time, Subject::node(), seconds)
    }
}

impl Training {
    fn tell(
        &self,
        core: &Core,
        told: &curves::Told,
        subject: Subject,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        let deviation = told.runs.values().map(|run| run.deviation_percent(core.id));
        // What is no number at all is as far off as can be told.
        let deviation = deviation.fold(0.0, f64::max).min(f64::MAX);
        let kind = format!("{}, core {} of JAX", core.kind.escape_debug(), core.id);
        record.add(
            self.metrics
                .deviation
                .of(subject.clone(), deviation)
                .detail(kind),
        )?;
        let disagreeing: Option<usize> = told
            .runs
            .values()
            .map(|run| run.disagreeing_steps(core.id))
            .sum();
        match disagreeing {
            _ if told.cores.len() == 1 => Ok(()),
            Some(steps) => record.measure(&self.metrics.disagreeing, subject, steps),
            None => record.gap(
                &self.metrics.disagreeing,
                subject,
                "no curve is that of more than half of the cores, so nobody can tell which are right",
            ),
        }
    }
}

/// How many logical cores each Neuron device has, where the driver tells.
struct NeuronCores(Option<u32>);

impl NeuronCores {
    fn of(task: &Task) -> NeuronCores {
        let devices = task.host.neuron_devices().unwrap_or_default();
        let config = task.host.environment.get("NEURON_LOGICAL_NC_CONFIG");
        // They are all alike.
        let per_device = devices.iter().find_map(|device| {
            let name = format!("{}/info/architecture/device_name", device.path);
            let name = task.host.text(name).unwrap_or_default();
            let physical = u32::try_from(device.cores.as_ref().ok()?.len()).unwrap_or(0);
            Some(physical / physical_per_logical(&name, config.map(String::as_str)))
        });
        NeuronCores(per_device.filter(|cores| *cores > 0))
    }

    /// JAX numbers the logical cores of all devices through.
    fn subject(&self, core: u32) -> Subject {
        let name = match self.0 {
            Some(cores) => format!("neuron{}/core{}", core / cores, core % cores),
            None => format!("core{core}"),
        };
        Subject::new(Kind::NeuronCore, name)
    }
}
