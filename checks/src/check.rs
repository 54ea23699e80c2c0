//! The contract between a check and everything else.
//!
//! A check measures one thing on one node, or says why it could not look. It cannot pass, fail or skip: whether it
//! applies is decided by the plan from the instance type's table, and what its numbers mean by
//! [`dhc_thresholds::judge`]. Whatever the hardware says, however bad, is a measurement; an [`Err`] means that *we*
//! could not look.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dhc_thresholds::{Device, Evidence, Gap, Hardware, Measurement, Metric, Subject, Value};
use serde::{Deserialize, Serialize};

use crate::foresight::Cause;
use crate::group::Group;
use crate::host::{Host, redact, sandbox};
pub use crate::option::{OptionSpec, Values};

/// All that is known of a check without running it.
#[derive(Debug)]
pub struct Spec {
    /// Its name on the command line, in results and as its file.
    pub name: &'static str,
    /// One sentence for `dhc list`.
    pub about: &'static str,
    /// What it looks at, why that matters and what its verdicts mean, for `dhc explain`.
    pub explain: &'static str,
    /// All that it may record.
    pub metrics: &'static [&'static Metric],
    /// The hardware that the instance type must have for the check to apply; `None` applies everywhere.
    pub needs: Option<Hardware>,
    /// Words to select it by: `gpu`, `neuron`, `network`, `host`, `quick`, `long`, `stress`.
    pub tags: &'static [&'static str],
    /// Whether other checks may run beside it.
    pub company: Company,
    /// What the user may set with `--set CHECK.OPTION=VALUE`.
    pub options: &'static [OptionSpec],
}

impl Spec {
    /// The option of this name.
    pub fn option(&self, name: &str) -> Option<&'static OptionSpec> {
        self.options.iter().find(|option| option.name == name)
    }
}

/// Whether a check bears others beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// It only reads; anything may run beside it.
    Welcome,
    /// It loads the machine; it has to be alone, or others would disturb it and it them.
    Alone,
}

/// How long a check may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How long it takes on a sound node; what a progress display promises.
    pub expected: Duration,
    /// When the runner stops it.
    pub deadline: Duration,
}

/// A check of one node.
pub trait InstanceCheck: Sync {
    /// What is known of it without running it.
    fn spec(&self) -> &'static Spec;

    /// How long it may take with these options (of [`Task::options`]).
    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        let _ = options;
        Budget {
            expected: Duration::from_secs(1),
            deadline: Duration::from_secs(30),
        }
    }

    /// The causes of interrupted jobs that it could have foreseen, by which it is preferred to others where time is short.
    fn foresees(&self) -> &'static [Cause];

    /// What the check would need that is not installed on this machine and need not be: for a check that only adds to what
    /// others look at. It is left out then, with this reason, unless the user named it.
    fn not_installed(&self, host: &Host, options: &BTreeMap<String, String>) -> Option<String> {
        let _ = (host, options);
        None
    }

    /// Measures, and records each thing as soon as it is seen, so that what was seen before a crash or deadline is kept.
    ///
    /// # Errors
    /// When the check itself could not look; never because of what it saw.
    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError>;
}

/// A check of several nodes together.
pub trait ClusterCheck: Sync {
    /// What is known of it without running it.
    fn spec(&self) -> &'static Spec;

    /// How long one group may take with these options; `quick` is a group that looks for a culprit.
    fn budget(&self, options: &BTreeMap<String, String>, quick: bool) -> Budget;

    /// The metric that says how fast a group was, by which groups of a run are compared; `None` where nothing is timed.
    fn plateau(&self) -> Option<&'static str>;

    /// The metric that says for how long collectives were under way, in seconds; `None` where it is not told.
    fn collective_time(&self) -> Option<&'static str> {
        None
    }

    /// The metric that says what became of each node of a group.
    fn member(&self) -> Option<&'static str> {
        None
    }

    /// The metric that counts wrong results.
    fn wrong(&self) -> Option<&'static str> {
        None
    }

    /// Whether a group can be confined to some of the network cards of its nodes ([`Group::cards`]).
    fn can_choose_cards(&self) -> bool {
        false
    }

    /// Measures one collective over `group`. Called on the whole cluster and on parts of it, several at once on
    /// different nodes: assume no size and keep no state.
    ///
    /// # Errors
    /// When the collective did not come to its end; what became of each node is recorded before.
    fn measure(
        &self,
        task: &Task,
        group: &Group,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError>;
}

/// A check of either level.
#[derive(Clone, Copy)]
pub enum Check {
    /// Of one node alone.
    Instance(&'static dyn InstanceCheck),
    /// Of several nodes together.
    Cluster(&'static dyn ClusterCheck),
    /// Inferred by the runner from what the others measured.
    Inferred(&'static Spec),
}

impl Check {
    /// What is known of it without running it.
    pub fn spec(self) -> &'static Spec {
        match self {
            Check::Instance(check) => check.spec(),
            Check::Cluster(check) => check.spec(),
            Check::Inferred(spec) => spec,
        }
    }

    /// How long it may take with its default options.
    pub fn budget(self) -> Option<Budget> {
        match self {
            Check::Instance(check) => Some(check.budget(&BTreeMap::new())),
            Check::Cluster(check) => Some(check.budget(&BTreeMap::new(), false)),
            Check::Inferred(_) => None,
        }
    }

    /// The check, if it is one of a node alone.
    pub fn instance(self) -> Option<&'static dyn InstanceCheck> {
        match self {
            Check::Instance(check) => Some(check),
            Check::Cluster(_) | Check::Inferred(_) => None,
        }
    }

    /// The check, if it is one of several nodes.
    pub fn cluster(self) -> Option<&'static dyn ClusterCheck> {
        match self {
            Check::Cluster(check) => Some(check),
            Check::Instance(_) | Check::Inferred(_) => None,
        }
    }
}

/// What a check is given. It travels as JSON to the process that runs the check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The machine.
    pub host: Host,
    /// The instance type, if it is known.
    pub instance_type: Option<String>,
    /// How many of which hardware the type has, as far as its table says, for checks that have to know whether something that
    /// they do not see is due; judging is not theirs.
    #[serde(default)]
    pub due: BTreeMap<Hardware, u64>,
    /// The user's settings for this check; a missing one has its default, see [`Task::option`].
    pub options: BTreeMap<String, String>,
    /// Where a check may keep a reading from one run to the next; `None` where nothing may be kept.
    pub state: Option<PathBuf>,
    /// How long the check has, so that it can stop its tools in time to say so.
    pub deadline: Duration,
    /// Whether the check has a process to itself and gives up its privileges before it reads a tool's output.
    #[serde(default)]
    pub confined: bool,
    /// The nodes to measure together; there for cluster checks alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
}

impl Task {
    /// How many of this hardware the instance type has, if that is known.
    pub fn due(&self, hardware: Hardware) -> Option<u64> {
        self.due.get(&hardware).copied()
    }

    /// Gives up, for good, all that reading a text does not need; to be called when the last tool has ended and before
    /// anything that it printed is looked at.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn confine(&self, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        if !self.confined {
            return Ok(());
        }
        record.note(format!(
            "output was read with privileges given up: {}",
            sandbox::enter()
        ))
    }

    /// The value of an option of `spec`: the user's or the default.
    ///
    /// # Errors
    /// When it cannot be that.
    ///
    /// # Panics
    /// When `spec` declares no such option, which is a mistake in the check.
    pub fn option(&self, spec: &'static Spec, name: &str) -> Result<&str, CheckError> {
        let declared = spec.option(name);
        let option = declared.expect("a check asks only for options that it declares");
        let value = self
            .options
            .get(name)
            .map_or(option.default, String::as_str);
        option.accept(spec.name, value)?;
        Ok(value)
    }

    /// The whole number that an option is set to, if it is.
    ///
    /// # Errors
    /// As [`Task::option`].
    pub fn number_if_set(
        &self,
        spec: &'static Spec,
        name: &str,
    ) -> Result<Option<u64>, CheckError> {
        Ok(self.option(spec, name)?.parse().ok())
    }

    /// The whole number that an option with a default is set to.
    ///
    /// # Errors
    /// As [`Task::option`].
    ///
    /// # Panics
    /// When its default is no number, which is a mistake in the check.
    pub fn number(&self, spec: &'static Spec, name: &str) -> Result<u64, CheckError> {
        let number = self.number_if_set(spec, name)?;
        Ok(number.expect("an option with a number has one by default"))
    }

    /// The path that an option is set to, if it is.
    ///
    /// # Errors
    /// As [`Task::option`].
    pub fn path(&self, spec: &'static Spec, name: &str) -> Result<Option<PathBuf>, CheckError> {
        let text = self.option(spec, name)?;
        Ok((!text.is_empty()).then(|| text.into()))
    }

    /// The directories that an option is set to.
    ///
    /// # Errors
    /// As [`Task::option`].
    pub fn directories(&self, spec: &'static Spec, name: &str) -> Result<Vec<PathBuf>, CheckError> {
        let paths = std::env::split_paths(self.option(spec, name)?);
        Ok(paths.filter(|path| !path.as_os_str().is_empty()).collect())
    }
}

/// Why a check could not look. One variant per thing that an operator would do differently.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Something is not installed or not running, and the message says what to do about it.
    #[error("{0}")]
    Unavailable(String),
    /// A tool or file said something that is not in its format.
    #[error("{0}")]
    NotUnderstood(String),
    /// A tool did not end in time and was killed; the message says which and where it got stuck.
    #[error("{0}")]
    TimedOut(String),
    /// An option has a value that it cannot have.
    #[error("option `{option}` of `{check}` cannot be `{value}`: {why}")]
    Option {
        /// The check.
        check: &'static str,
        /// The option.
        option: &'static str,
        /// What the user gave.
        value: String,
        /// Why not, and what may be given.
        why: String,
    },
    /// The check recorded something that its [`Spec`] does not declare: a mistake in dhc.
    #[error(
        "dhc has a mistake: check `{check}` recorded `{metric}`, which it does not declare; please report it"
    )]
    Undeclared {
        /// The check.
        check: &'static str,
        /// The metric.
        metric: String,
    },
    /// What was recorded could not be handed to the runner.
    #[error("cannot hand measurements to the runner")]
    Runner(#[source] std::io::Error),
}

/// One line from the process of a check to the runner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "of", rename_all = "snake_case")]
pub enum Event {
    /// Something was measured.
    Measurement(Measurement),
    /// A device was seen.
    Device(Device),
    /// Something could not be read.
    Gap(Gap),
    /// A remark.
    Note(String),
    /// Proof.
    Evidence(Evidence),
    /// A sign of life of a long check: what it is doing now.
    Progress(String),
    /// The check could not look; the last line.
    Failed(String),
    /// A tool of the check did not end in time; the last line.
    TimedOut {
        /// After how many milliseconds.
        after_ms: u64,
        /// What the check was doing.
        doing: String,
    },
    /// The check has finished; the last line. Without one of the two the process died.
    Finished,
}

impl Event {
    /// The same without the secrets in what others said. Evidence has lost its own before, together with its digest.
    fn without_secrets(&self) -> Event {
        let mut event = self.clone();
        match &mut event {
            Event::Measurement(measurement) => {
                measurement.detail = measurement.detail.as_deref().map(redact::text);
            }
            Event::Device(device) => device
                .identity
                .values_mut()
                .for_each(|value| *value = redact::text(value)),
            Event::Gap(gap) => gap.why = redact::text(&gap.why),
            Event::Note(text)
            | Event::Progress(text)
            | Event::Failed(text)
            | Event::TimedOut { doing: text, .. } => {
                *text = redact::text(text);
            }
            Event::Evidence(_) | Event::Finished => {}
        }
        event
    }
}

/// Where a check puts what it sees. Each call writes and flushes one JSON line.
pub struct Recorder<'a> {
    spec: &'static Spec,
    sink: &'a mut dyn Write,
}

impl<'a> Recorder<'a> {
    /// A recorder for the check of `spec`, writing lines of [`Event`] to `sink`.
    pub fn new(spec: &'static Spec, sink: &'a mut dyn Write) -> Self {
        Recorder { spec, sink }
    }

    /// Records a measurement, made with [`Metric::of`]. A number that is not finite becomes a gap.
    ///
    /// # Errors
    /// When the metric is not declared, or the runner is gone.
    pub fn add(&mut self, measurement: Measurement) -> Result<(), CheckError> {
        let Some(metric) = self
            .spec
            .metrics
            .iter()
            .find(|metric| metric.name == measurement.metric)
        else {
            return Err(CheckError::Undeclared {
                check: self.spec.name,
                metric: measurement.metric.into_owned(),
            });
        };
        if !measurement.value.suits(metric.unit) {
            let why = format!("`{}` is not a value in {}", measurement.value, metric.unit);
            return self.gap(metric, measurement.subject, why);
        }
        self.send(&Event::Measurement(measurement))
    }

    /// Records the value of a metric on a subject.
    ///
    /// # Errors
    /// As [`Recorder::add`].
    pub fn measure(
        &mut self,
        metric: &Metric,
        subject: Subject,
        value: impl Into<Value>,
    ) -> Result<(), CheckError> {
        self.add(metric.of(subject, value))
    }

    /// Records that a metric could not be read on a subject, and why: neither zero nor fine.
    ///
    /// # Errors
    /// As [`Recorder::add`].
    pub fn gap(
        &mut self,
        metric: &Metric,
        subject: Subject,
        why: impl Into<String>,
    ) -> Result<(), CheckError> {
        self.send(&Event::Gap(Gap {
            metric: metric.name.into(),
            subject,
            why: why.into(),
        }))
    }

    /// Records a device and what the outside calls it; once per device.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn device<K: Into<String>>(
        &mut self,
        subject: Subject,
        identity: impl IntoIterator<Item = (K, String)>,
    ) -> Result<(), CheckError> {
        let identity = identity
            .into_iter()
            .map(|(key, value)| (key.into(), value))
            .collect();
        self.send(&Event::Device(Device { subject, identity }))
    }

    /// Records a remark for people that decides nothing.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn note(&mut self, text: impl Into<String>) -> Result<(), CheckError> {
        self.send(&Event::Note(text.into()))
    }

    /// Keeps proof.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn evidence(&mut self, evidence: Evidence) -> Result<(), CheckError> {
        self.send(&Event::Evidence(evidence))
    }

    /// Says what a long check is doing now.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn progress(&mut self, what: impl Into<String>) -> Result<(), CheckError> {
        self.send(&Event::Progress(what.into()))
    }

    /// Passes on what another recorder of the same check has written.
    pub(crate) fn pass_on(&mut self, event: &Event) -> Result<(), CheckError> {
        self.send(event)
    }

    fn send(&mut self, event: &Event) -> Result<(), CheckError> {
        write_event(self.sink, event).map_err(CheckError::Runner)
    }
}

/// Runs a check and writes all that it sees to `sink`, the last line saying how it ended.
///
/// # Errors
/// When `sink` cannot be written to; all else is told in the last line.
pub fn run(check: Check, task: &Task, sink: &mut dyn Write) -> std::io::Result<()> {
    let begun = Instant::now();
    let mut record = Recorder::new(check.spec(), sink);
    let measured = match (check, &task.group) {
        (Check::Instance(check), None) => check.measure(task, &mut record),
        (Check::Cluster(check), Some(group)) => check.measure(task, group, &mut record),
        _ => Err(CheckError::Unavailable(
            "the check was not given the nodes that it needs, or some that it does not".to_owned(),
        )),
    };
    let last = match measured {
        Ok(()) => Event::Finished,
        Err(CheckError::Runner(error)) => return Err(error),
        Err(CheckError::TimedOut(doing)) => {
            let after = begun.elapsed().as_millis();
            Event::TimedOut {
                after_ms: u64::try_from(after).unwrap_or(u64::MAX),
                doing,
            }
        }
        Err(error) => Event::Failed(chain(&error)),
    };
    write_event(sink, &last)
}

/// An error and its causes on one line, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Writes one line. Everything that a check says passes here, so here is where secrets end: tools quote their environment
/// and their command lines in messages.
fn write_event(sink: &mut dyn Write, event: &Event) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(&event.without_secrets())?;
    line.push(b'\n');
    sink.write_all(&line)?;
    sink.flush()
}
