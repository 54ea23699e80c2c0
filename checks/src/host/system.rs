//! What the kernel answers without a file: the state of the clock, the space on a disk.

use std::path::Path;

use rustix::io::Errno;

use super::files::{READ_LIMIT, in_time};
use super::{Host, ReadError};

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that users may still fill.
    pub free_bytes: u64,
    /// Whether nobody may write to it.
    pub is_read_only: bool,
}

impl Host {
    /// The space of the file system that holds `path`.
    ///
    /// # Errors
    /// When the path is missing, or the kernel refuses or does not answer.
    pub fn space(&self, path: &Path) -> Result<Space, ReadError> {
        let below = self.root.join(path.strip_prefix("/").unwrap_or(path));
        let path = path.to_owned();
        // A network file system whose server is gone never answers.
        let stat = match in_time(READ_LIMIT, move || rustix::fs::statvfs(&below)) {
            Some(Ok(stat)) => stat,
            Some(Err(Errno::NOENT)) => return Err(ReadError::Absent { path }),
            Some(Err(errno)) => return Err(ReadError::Unreadable { path, errno }),
            None => return Err(ReadError::Blocked { path }),
        };
        Ok(Space {
            total_bytes: stat.f_blocks * stat.f_frsize,
            free_bytes: stat.f_bavail * stat.f_frsize,
            is_read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }

    /// Whether something keeps the kernel's clock synchronised; `None` for a simulated machine, which has no clock.
    #[expect(
        unsafe_code,
        reason = "no library offers adjtimex without changing the clock"
    )]
    pub fn clock_is_synchronised(&self) -> Option<bool> {
        if self.root != Path::new("/") {
            return None;
        }
        // SAFETY: all fields of `timex` are integers, for which zero is a value; with `modes` 0 the call only reads the
        // clock's state and writes it into the structure that it is given.
        let (state, status) = unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            (libc::adjtimex(&raw mut timex), timex.status)
        };
        Some(state >= 0 && state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0)
    }
}
