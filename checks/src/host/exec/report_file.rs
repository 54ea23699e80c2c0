//! A file that a tool is told to write its findings into.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;

use super::capture::{Captured, KEPT_BYTES};

/// What is in the file until the tool opens it for writing: a file that is then empty was left so by the tool.
const UNTOUCHED: &[u8] = b"not written yet\n";

/// A file for the tool to write. It has no name in any directory: nobody else can put a link in its place, and it goes with
/// this process, however that ends.
pub(super) struct ReportFile {
    flag: String,
    file: File,
}

impl ReportFile {
    /// None where no such file can be made: the tool then runs without, and what it prints has to do.
    pub(super) fn new(flag: &str) -> Option<Self> {
        let mut file = tempfile::tempfile().ok()?;
        file.write_all(UNTOUCHED).ok()?;
        let flag = flag.to_owned();
        Some(ReportFile { flag, file })
    }

    /// The flag, and a path that leads whoever may look into this process to the file.
    pub(super) fn args(&self) -> [String; 2] {
        let (process, file) = (std::process::id(), self.file.as_raw_fd());
        [self.flag.clone(), format!("/proc/{process}/fd/{file}")]
    }

    /// What the tool wrote, its beginning only where it is too long; the digest is of what is kept. None where it wrote
    /// nothing.
    pub(super) fn read(mut self) -> Option<Captured> {
        let whole = self.file.metadata().ok()?.len();
        let mut bytes = Vec::new();
        self.file.rewind().ok()?;
        self.file
            .take(2 * KEPT_BYTES as u64)
            .read_to_end(&mut bytes)
            .ok()?;
        (bytes != UNTOUCHED).then(|| Captured::beginning(bytes, whole))
    }
}
