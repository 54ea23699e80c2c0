//! The checks, one file each. To add one: write its file, name it here, and put it into [`CHECKS`].

mod all_reduce;
pub mod cluster_node;
mod cpu_stress;
mod cuda;
mod dcgm_diag;
mod disk_stress;
mod gpu;
mod gpu_count;
mod gpu_memory;
mod gpu_pairs;
mod gpu_stress;
mod host;
pub mod instance_level;
mod loopback;
mod memory_stress;
mod mpi_allreduce;
mod nccl_allreduce;
mod nccom;
mod nccom_allreduce;
mod nccom_local;
mod neuron_count;
mod neuron_sysfs;
mod nvlink;
mod rdma_nic;
pub mod roll_call;
mod training;
mod undriven;

use crate::check::Check;

/// Every check, in the order in which `dhc list` shows them and results hold them.
pub const CHECKS: &[Check] = &[
    Check::Instance(&gpu_count::GpuCount),
    Check::Instance(&nvlink::Nvlink),
    Check::Instance(&gpu_memory::GpuMemory),
    Check::Instance(&neuron_count::NeuronCount),
    Check::Instance(&neuron_sysfs::NeuronSysfs),
    Check::Instance(&nccom_local::NccomLocal),
    Check::Instance(&rdma_nic::RdmaNic),
    Check::Instance(&loopback::EFA_LOOPBACK),
    Check::Instance(&loopback::FABRIC_LOOPBACK),
    Check::Instance(&host::HostCheck),
    Check::Instance(&dcgm_diag::DcgmDiag),
    Check::Instance(&training::GPU),
    Check::Instance(&training::NEURON),
    Check::Instance(&training::CPU),
    Check::Instance(&cpu_stress::CpuStress),
    Check::Instance(&memory_stress::MemoryStress),
    Check::Instance(&disk_stress::DiskStress),
    Check::Instance(&gpu_stress::GpuStress),
    Check::Instance(&gpu_pairs::GpuPairs),
    Check::Cluster(&roll_call::RollCall),
    Check::Cluster(&mpi_allreduce::MpiAllReduce),
    Check::Cluster(&nccl_allreduce::NcclAllReduce),
    Check::Cluster(&nccom_allreduce::NccomAllReduce),
    Check::Inferred(&instance_level::SPEC),
    Check::Inferred(&cluster_node::SPEC),
];

/// The check of this name.
pub fn find(name: &str) -> Option<Check> {
    CHECKS
        .iter()
        .copied()
        .find(|check| check.spec().name == name)
}
