//! A file that a tool is told to write its findings into.

use std::io::Read;
use std::path::PathBuf;

use super::capture::{Captured, KEPT_BYTES};

/// A file for the tool to write, in a directory that nobody else can enter and that goes with this value.
pub(super) struct ReportFile {
    flag: String,
    folder: tempfile::TempDir,
}

impl ReportFile {
    /// None where no such directory can be made: the tool then runs without, and what it prints has to do.
    pub(super) fn new(flag: &str) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("dhc-").tempdir().ok()?;
        Some(ReportFile {
            flag: flag.to_owned(),
            folder,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("report")
    }

    pub(super) fn args(&self) -> [String; 2] {
        [self.flag.clone(), self.path().display().to_string()]
    }

    /// What the tool wrote, its beginning only where it is too long; the digest is of what is kept.
    pub(super) fn read(self) -> Option<Captured> {
        use rustix::fs::{Mode, OFlags};
        // The tool may have put a link or a pipe there instead.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.path(), flags, Mode::empty()).ok()?;
        let file = std::fs::File::from(file);
        let whole = file.metadata().ok()?;
        if !whole.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(2 * KEPT_BYTES as u64)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(Captured::beginning(bytes, whole.len()))
    }
}
