//! A simulated machine with the fake GPU libraries, and dhc on it.

use std::path::PathBuf;

use dhc_fixtures::{FakeNode, GpuLibraries};

use super::Dhc;

/// The machine and a folder with its libraries and a table. Each test file adds what it asks of one.
pub(crate) struct Gpus {
    pub(crate) dhc: Dhc,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) libraries: GpuLibraries,
}

impl Gpus {
    /// A node of which CUDA knows so many GPUs, and the table that judges it.
    pub(crate) fn on(node: FakeNode, count: u32, table: &str) -> Gpus {
        let folder = tempfile::tempdir().unwrap();
        let gpus = Gpus {
            dhc: Dhc::on(node),
            libraries: GpuLibraries::in_folder(folder.path(), count),
            folder,
        };
        std::fs::write(gpus.table(), table).unwrap();
        gpus
    }

    /// The same with other libraries.
    pub(crate) fn with(self, change: impl FnOnce(GpuLibraries) -> GpuLibraries) -> Gpus {
        Gpus {
            libraries: change(self.libraries),
            ..self
        }
    }

    /// Where the table is.
    pub(crate) fn table(&self) -> String {
        self.path("table.toml").display().to_string()
    }

    /// A file of the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A type with one GPU, whose all-reduce over NCCL has to reach so many GB/s.
pub(crate) fn one_gpu(gb_per_s: f64, why: &str) -> String {
    format!(
        r#"schema = "dhc.thresholds/1"
instance_type = "one-gpu"

[[hardware]]
kind = "nvidia_gpu"
count = 1
source = "the fake CUDA driver has one"

[[limit]]
metric = "nccl.allreduce.plateau"
unit = "GB/s"
fail_below = {gb_per_s:?}
source = "{why}"
"#
    )
}
