//! The checks of dhc: what each one measures, the machine as they see it, and readers of the tools they drive.

pub mod catalog;
pub mod check;
pub mod collective;
pub mod foresight;
pub mod format;
pub mod group;
pub mod host;
pub mod loopback;
pub mod option;
pub mod rank;
