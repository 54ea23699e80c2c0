//! libfabric, loaded at run time: the few calls that a tagged loopback needs, behind types that need no `unsafe`.
//!
//! libfabric exports a handful of functions; all others are inline functions of its headers that call through the
//! tables of operations which its objects carry. This crate reads the headers with bindgen, loads the library when the
//! program runs (so that one binary starts on every host), and writes those inline calls over the tables.
//!
//! A program that was built with older headers than the library's works: structures only ever grow at their end, and
//! those that the program fills are allocated by the library (`fi_dupinfo(NULL)`).
//!
//! Every object is used by one thread at a time ([`Endpoint`] is `Send` and not `Sync`), as `FI_THREAD_DOMAIN` asks.

mod endpoint;
mod library;

/// libfabric's own declarations.
#[expect(
    clippy::allow_attributes,
    reason = "which lints generated code breaks depends on the headers"
)]
#[allow(
    warnings,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    reason = "generated from libfabric's headers"
)]
mod sys {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use endpoint::{Address, Completion, Endpoint};
pub use library::{Device, FabricError, Library, Link, LoadError};
