//! The CUDA driver, cuBLAS and NCCL, loaded at run time: the few calls that collectives over GPUs and stress of GPUs need,
//! behind types that need no `unsafe`.
//!
//! Nothing of them has to be there when dhc is built or started: one binary for every host. A library or a symbol that is
//! missing is an error that names it, never a panic. Prototypes: NVIDIA, `cuda.h` and `cublas_api.h` of CUDA 12, `nccl.h` of NCCL 2.
//!
//! A CUDA context is current on a thread, so none of these objects leaves its thread.

mod cublas;
mod cuda;
mod library;
mod nccl;

pub use cublas::{Cublas, CublasLibrary, HalfPair};
pub use cuda::{Context, Device, DeviceMemory, Driver, Element, Event, PinnedMemory, Stream, Way};
pub use library::{CallError, LoadError, Of};
pub use nccl::{Communicator, Nccl, UNIQUE_ID_BYTES, UniqueId, Version};
