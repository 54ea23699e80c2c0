//! What checks are for, counted: the causes that have interrupted training jobs, and how often.

/// A cause of unexpected interruptions that a check of one node could foresee. A Neuron device is taken to fail as a GPU
/// does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An accelerator that is gone or does not answer.
    AcceleratorLost,
    /// A link between accelerators.
    AcceleratorLink,
    /// An accelerator's memory.
    AcceleratorMemory,
    /// An accelerator's caches and registers.
    AcceleratorSram,
    /// The processor on the accelerator that its driver talks to.
    SystemProcessor,
    /// Heat of an accelerator.
    Heat,
    /// Wrong results that nothing reports.
    SilentCorruption,
    /// A network card.
    Nic,
    /// A disk.
    Disk,
    /// A CPU of the host.
    Cpu,
    /// The host's memory.
    Memory,
}

impl Cause {
    /// How many of the 419 unexpected interruptions of Llama 3's training it was the cause of (The Llama 3 Herd of Models,
    /// 2024, table 5).
    pub fn interruptions(self) -> u32 {
        match self {
            // 148 faulty GPUs, shared out between what counts them and what looks at their links.
            Cause::AcceleratorLost => 100,
            Cause::AcceleratorLink => 48,
            Cause::AcceleratorMemory => 72,
            Cause::AcceleratorSram => 19,
            Cause::SystemProcessor => 17,
            Cause::Nic => 7,
            Cause::SilentCorruption | Cause::Heat => 6,
            Cause::Disk => 3,
            Cause::Cpu | Cause::Memory => 2,
        }
    }
}
