//! libfabric, loaded at run time.
