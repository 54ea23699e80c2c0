//! The kernel's log of this boot, from `/dev/kmsg`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::files::{READ_LIMIT, in_time, malformed, open};
use super::{Host, ReadError};

/// How much of the log is read. The kernel's ring has 16 MiB at most where nobody has built it larger.
const LOG_MAX: usize = 64 << 20;

/// The longest record of `/dev/kmsg` (`PRINTK_MESSAGE_MAX` of Linux 6 is 2 KiB with its prefix); a smaller buffer gets
/// EINVAL.
const RECORD_MAX: usize = 8 << 10;

const KMSG: &str = "/dev/kmsg";

impl Host {
    /// All records that the kernel still has, oldest first, one a line.
    ///
    /// # Errors
    /// See [`ReadError`]; EPERM means that the log is for root alone. A log without a record is malformed, since every boot
    /// writes some: containers are given `/dev/null` or a pipe in its place.
    pub fn kernel_log(&self) -> Result<Vec<u8>, ReadError> {
        let root = self.root.clone();
        match in_time(READ_LIMIT, move || records(&root)) {
            Some(Ok(log)) if log.is_empty() => Err(malformed(
                KMSG.as_ref(),
                b"",
                "the kernel's log (a container has to be given the host's)",
            )),
            Some(Ok(log)) => Ok(log),
            Some(Err(Errno::NOENT)) => Err(ReadError::Absent { path: KMSG.into() }),
            Some(Err(errno)) => Err(ReadError::Unreadable {
                path: KMSG.into(),
                errno,
            }),
            None => Err(ReadError::Blocked { path: KMSG.into() }),
        }
    }
}

fn records(root: &Path) -> Result<Vec<u8>, Errno> {
    let mut file = File::from(open(root, Path::new(KMSG), OFlags::NONBLOCK)?);
    let mut log = Vec::new();
    let mut record = vec![0; RECORD_MAX];
    while log.len() < LOG_MAX {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => log.extend_from_slice(&record[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The record was overwritten while we read; the next read goes on with the oldest that is left.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
    Ok(log)
}
