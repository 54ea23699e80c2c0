//! What hardware an instance type can have, as threshold files name it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A kind of hardware that is counted. Threshold files give the number that is due, checks the number that is there,
/// and the plan leaves out checks whose hardware the instance type does not have.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Hardware {
    /// NVIDIA GPUs.
    NvidiaGpu,
    /// NVLinks of each GPU.
    NvlinkPerGpu,
    /// Elastic Fabric Adapters.
    Efa,
    /// Network cards for collectives that are not EFA: InfiniBand or RoCE.
    RdmaNic,
    /// AWS Neuron devices.
    NeuronDevice,
    /// Physical cores of all Neuron devices together.
    NeuronCore,
    /// Logical CPUs.
    Cpu,
}

impl Hardware {
    /// Every kind, in the order of documents.
    pub const ALL: &[Hardware] = &[
        Hardware::NvidiaGpu,
        Hardware::NvlinkPerGpu,
        Hardware::Efa,
        Hardware::RdmaNic,
        Hardware::NeuronDevice,
        Hardware::NeuronCore,
        Hardware::Cpu,
    ];

    /// What a person calls several of it.
    pub const fn plural(self) -> &'static str {
        match self {
            Hardware::NvidiaGpu => "NVIDIA GPUs",
            Hardware::NvlinkPerGpu => "NVLinks",
            Hardware::Efa => "EFA devices",
            Hardware::RdmaNic => "RDMA network cards",
            Hardware::NeuronDevice => "Neuron devices",
            Hardware::NeuronCore => "Neuron cores",
            Hardware::Cpu => "CPUs",
        }
    }
}
