//! What a check leaves behind: measurements of subjects, evidence, and how it ended.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hardware::Hardware;
use crate::statistics::Better;
use crate::unit::{Unit, Value};

/// What kind of thing a subject is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The whole node.
    Node,
    /// An NVIDIA GPU.
    Gpu,
    /// One NVLink of one GPU.
    Nvlink,
    /// A network card or one of its ports: EFA, InfiniBand, Ethernet.
    Nic,
    /// An AWS Neuron device (a Trainium or Inferentia chip).
    NeuronDevice,
    /// One core of a Neuron device.
    NeuronCore,
    /// A CPU, or all of them.
    Cpu,
    /// Memory: of a NUMA node, or behind a memory controller.
    Memory,
    /// A file system or disk.
    Disk,
    /// A PCI device that is none of the above.
    Pci,
    /// An NVSwitch.
    Nvswitch,
    /// A libfabric provider without a network card of its own (`tcp`, `shm`).
    Provider,
    /// Several nodes together.
    Group,
}

/// What was measured: a device, a part of one, or the node.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct Subject {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Its name on the node, general part first: `gpu3`, `gpu3/link6`, `rdmap16s27`, `neuron4/core1`.
    pub name: String,
}

impl Subject {
    /// The subject of this kind and name.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Subject {
            kind,
            name: name.into(),
        }
    }

    /// The node itself.
    pub fn node() -> Self {
        Subject::new(Kind::Node, "node")
    }

    /// The GPU with this NVML index.
    pub fn gpu(index: u32) -> Self {
        Subject::new(Kind::Gpu, format!("gpu{index}"))
    }

    /// One NVLink of the GPU with this NVML index.
    pub fn nvlink(gpu: u32, link: u32) -> Self {
        Subject::new(Kind::Nvlink, format!("gpu{gpu}/link{link}"))
    }

    /// The name of the device that holds this subject: `gpu3` for `gpu3/link6`. A disk is called by a path and held by nothing.
    pub fn device(&self) -> &str {
        match self.kind {
            Kind::Disk => &self.name,
            _ => self.name.split('/').next().unwrap_or(&self.name),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A device as the node knows it, once in a result, so that measurements can name it briefly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// What measurements call it.
    pub subject: Subject,
    /// What the outside calls it: `uuid`, `serial`, `bdf`, `model`, `guid`, whatever the device has.
    pub identity: BTreeMap<String, String>,
}

/// Whether a metric has to be there and has to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A check that did not measure it has not done its work: *unknown*. Judged as [`Role::Judged`] is.
    Required,
    /// Where it is measured and no limit judges it, the finding is *unknown*: measured, not judged.
    Judged,
    /// Kept for people and for later; judged only where a table has a limit for it.
    Context,
}

/// A quantity that a check may record: declared once, beside the check that measures it.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// `<tool or device>.<thing>.<quantity>`, general part first.
    pub name: &'static str,
    /// The one unit in which it is recorded.
    pub unit: Unit,
    /// One sentence: what it is, and for a [`Unit::State`] the words it can take.
    pub about: &'static str,
    /// Whether it must be there and must be judged.
    pub role: Role,
    /// The fault class of a broken limit, unless the measurement names a nearer one.
    pub fault: &'static str,
}

/// Under which conditions a measurement was taken, where they decide which limit fits.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct At {
    /// Message size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Nodes that took part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// The libfabric provider or other transport, or the mode that a device was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

impl At {
    /// Whether no condition is named.
    pub fn is_anywhere(&self) -> bool {
        *self == At::default()
    }

    /// Whether every condition that `self` names holds of `taken`.
    pub fn covers(&self, taken: &At) -> bool {
        fn same<T: PartialEq>(wanted: Option<&T>, taken: Option<&T>) -> bool {
            wanted.is_none_or(|wanted| taken == Some(wanted))
        }
        same(self.bytes.as_ref(), taken.bytes.as_ref())
            && same(self.nodes.as_ref(), taken.nodes.as_ref())
            && same(self.provider.as_ref(), taken.provider.as_ref())
    }
}

/// One observed value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measurement {
    /// The metric's name.
    pub metric: Cow<'static, str>,
    /// What was measured.
    pub subject: Subject,
    /// What was seen.
    pub value: Value,
    /// The metric's unit.
    pub unit: Unit,
    /// Under which conditions.
    #[serde(default, skip_serializing_if = "At::is_anywhere")]
    pub at: At,
    /// The fault class if this value turns out to be out of bounds, where it is nearer than the metric's own
    /// (an Xid or DCGM error code decides it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Cow<'static, str>>,
    /// What the source said in its own words: a kernel line, a tool's warning. Escaped and bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Something kept as proof: a tool's output, a kernel line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// What it is: `dcgmi.stdout`, `kmsg`.
    pub name: String,
    /// The command that printed it, if one did; secrets removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// How that command ended: `exit 226`, `signal 9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Length of the whole in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole, as lower case hexadecimal.
    pub sha256: String,
    /// Whether `text` is less than the whole.
    pub truncated: bool,
    /// The beginning (and end) of it; secrets removed, control characters escaped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Ending {
    /// It looked at everything it wanted to look at.
    Finished,
    /// It could not look; this is never a fault of the hardware.
    Failed {
        /// What happened, where, and what to do.
        error: String,
    },
    /// It was stopped at its deadline.
    TimedOut {
        /// After how many milliseconds.
        after_ms: u64,
        /// What it was doing then, in its own last words, if it had any.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        doing: String,
        /// Whether it was the deadline of the whole run, which came before its own.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        of_the_run: bool,
    },
    /// Its process died of a signal.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// The run was stopped while it was under way.
    Interrupted,
    /// It was not started.
    Skipped {
        /// Why.
        reason: String,
        /// The hardware for want of which it was not, if that is why: under a table that asks for it nothing was looked at.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lacks: Option<Hardware>,
    },
}

/// All that one check of one node left behind; enough to judge it again without the hardware.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// The check.
    pub check: String,
    /// How it ended.
    pub ending: Ending,
    /// How long it ran, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// What it measured, in the order of measuring.
    #[serde(default)]
    pub measurements: Vec<Measurement>,
    /// Devices that it saw.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// What could not be read and why; each makes the verdict at best *unknown*.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// Remarks for people that decide nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Proof.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
}

impl Record {
    /// A record of `check` that ended in this way and holds nothing yet.
    pub fn new(check: impl Into<String>, ending: Ending) -> Self {
        Record {
            check: check.into(),
            ending,
            duration_ms: 0,
            measurements: Vec::new(),
            devices: Vec::new(),
            gaps: Vec::new(),
            notes: Vec::new(),
            evidence: Vec::new(),
        }
    }
}

/// Something that a check should have read and could not: neither zero nor fine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// The metric that is missing.
    pub metric: Cow<'static, str>,
    /// Of what.
    pub subject: Subject,
    /// Why it could not be read.
    pub why: String,
}

impl Metric {
    /// The metric of these fields, written briefly; for checks that declare many.
    pub const fn new(
        name: &'static str,
        unit: Unit,
        role: Role,
        about: &'static str,
        fault: &'static str,
    ) -> Metric {
        Metric {
            name,
            unit,
            about,
            role,
            fault,
        }
    }

    /// Which way the metric is better, where that can be said and matters: its unit is one of speed or of time, and it is
    /// not only kept as context.
    pub fn better(&self) -> Option<Better> {
        self.unit.better().filter(|_| self.role != Role::Context)
    }

    /// What was seen of this metric on `subject`.
    pub fn of(&self, subject: Subject, value: impl Into<Value>) -> Measurement {
        Measurement {
            metric: Cow::Borrowed(self.name),
            subject,
            value: value.into(),
            unit: self.unit,
            at: At::default(),
            fault: None,
            detail: None,
        }
    }
}

impl Measurement {
    /// With messages of this many bytes.
    pub fn at_bytes(mut self, bytes: u64) -> Self {
        self.at.bytes = Some(bytes);
        self
    }

    /// With so many nodes taking part.
    pub fn among(mut self, nodes: u32) -> Self {
        self.at.nodes = Some(nodes);
        self
    }

    /// Over this provider or transport, or in this mode.
    pub fn over(mut self, provider: impl Into<String>) -> Self {
        self.at.provider = Some(provider.into());
        self
    }

    /// Of this fault class, should the value be out of bounds.
    pub fn fault(mut self, class: impl Into<Cow<'static, str>>) -> Self {
        self.fault = Some(class.into());
        self
    }

    /// With the source's own words.
    pub fn detail(mut self, text: impl Into<String>) -> Self {
        self.detail = Some(text.into());
        self
    }
}
