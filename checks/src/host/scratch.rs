//! A file without a name: it is gone when its process is, however that ends.
//!
//! It is read and written without the page cache (`O_DIRECT`), so that what is read comes from the disk. It lies on the
//! machine that dhc runs on, simulated or not.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

/// What direct I/O is aligned to: the largest block that disks have, and the page of most CPUs.
pub const PAGE_BYTES: usize = 4096;

/// Where a file system keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a disk of this machine, as far as one can tell.
    Disk,
    /// On another machine.
    Network,
    /// In memory.
    Memory,
}

/// Magic numbers of `statfs` (Linux, include/uapi/linux/magic.h; the vendors' own sources for Lustre, GPFS and BeeGFS).
const IN_MEMORY: &[u64] = &[0x0102_1994, 0x8584_58f6];
const ON_NETWORK: &[u64] = &[
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB 2
    0x00c3_6400, // Ceph
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
    0x1983_0326, // BeeGFS
    0x6573_5546, // FUSE: as good as any of these
    0x0102_1997, // 9P
];

/// The place of the file system that holds `folder`.
///
/// # Errors
/// When the kernel does not say.
pub fn place(folder: &Path) -> io::Result<Place> {
    let kind = u64::from_ne_bytes(rustix::fs::statfs(folder)?.f_type.to_ne_bytes());
    Ok(match kind {
        kind if IN_MEMORY.contains(&kind) => Place::Memory,
        kind if ON_NETWORK.contains(&kind) => Place::Network,
        _ => Place::Disk,
    })
}

/// The file.
#[derive(Debug)]
pub struct Scratch(File);

impl Scratch {
    /// Makes one in `folder`, with room for `bytes` where the file system can promise it.
    ///
    /// # Errors
    /// As the kernel answers; `EINVAL` where the file system knows no direct I/O.
    pub fn make(folder: &Path, bytes: u64) -> io::Result<Scratch> {
        let file = match unnamed(folder) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => unlinked(folder)?,
            Err(errno) => return Err(errno.into()),
        };
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(Scratch(File::from(file))),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes all of `pages`, whose memory and place are multiples of [`PAGE_BYTES`].
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn write(&self, pages: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(pages, at)
    }

    /// Fills `pages` from the file, under the same conditions.
    ///
    /// # Errors
    /// As the kernel answers, or when the file ends before.
    pub fn read(&self, pages: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(pages, at)
    }

    /// Waits until the disk has acknowledged all that was written.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

const FLAGS: OFlags = OFlags::RDWR.union(OFlags::DIRECT).union(OFlags::CLOEXEC);

fn unnamed(folder: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(folder, FLAGS | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR)
}

/// For file systems without unnamed files (NFS, older overlays): the name is there for as long as it takes to remove it.
fn unlinked(folder: &Path) -> Result<OwnedFd, Errno> {
    let folder = rustix::fs::openat(
        CWD,
        folder,
        OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let id = std::process::id();
    let name = format!(".dhc-disk-stress-{id}-{}-{}", time.tv_sec, time.tv_nsec);
    let flags = FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(&folder, &name, flags, Mode::RUSR | Mode::WUSR);
    match file {
        Ok(file) => rustix::fs::unlinkat(&folder, &name, AtFlags::empty()).map(|()| file),
        Err(errno) => {
            // A file system without direct I/O has made the file before it refuses to open it.
            if errno == Errno::INVAL {
                let _ = rustix::fs::unlinkat(&folder, &name, AtFlags::empty());
            }
            Err(errno)
        }
    }
}

/// Bytes in memory that direct I/O accepts.
#[derive(Debug)]
pub struct Pages {
    bytes: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Pages {
    /// So many pages of zeros.
    pub fn new(pages: usize) -> Pages {
        let length = pages * PAGE_BYTES;
        let bytes = vec![0; length + PAGE_BYTES];
        let begin = bytes.as_ptr().align_offset(PAGE_BYTES);
        Pages {
            bytes,
            begin,
            length,
        }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_kind_of_file_has_a_name() {
        // Where this test was built is a disk; where temporary files are may be memory.
        let built = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
        assert_ne!(place(folder.path()).unwrap(), Place::Memory);
        for make in [unnamed, unlinked] {
            let file = Scratch(File::from(make(folder.path()).unwrap()));
            assert_eq!(folder.path().read_dir().unwrap().count(), 0);
            let mut pages = Pages::new(2);
            pages.bytes().fill(7);
            file.write(pages.bytes(), PAGE_BYTES as u64).unwrap();
            file.sync().unwrap();
            pages.bytes().fill(0);
            file.read(pages.bytes(), PAGE_BYTES as u64).unwrap();
            assert!(pages.bytes().iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn memory_is_no_disk() {
        assert_eq!(place(Path::new("/dev/shm")).unwrap(), Place::Memory);
    }
}
