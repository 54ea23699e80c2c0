//! The CUDA driver and NCCL, loaded at run time: the few calls that a collective over GPUs needs, behind types that need no
//! `unsafe`.
//!
//! Nothing of either has to be there when dhc is built or started: one binary for every host. A library or a symbol that is
//! missing is an error that names it, never a panic. Prototypes: NVIDIA, `cuda.h` of CUDA 12 and `nccl.h` of NCCL 2.
//!
//! A CUDA context belongs to the thread that opened it, so none of these objects leaves its thread.

mod cuda;
mod library;
mod nccl;

pub use cuda::{Context, Device, DeviceMemory, Driver, Element, Event, PinnedMemory, Stream};
pub use library::{CallError, LoadError};
pub use nccl::{Communicator, Nccl, UNIQUE_ID_BYTES, UniqueId, Version};
