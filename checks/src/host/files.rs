//! Small files of the machine: sysfs, procfs, the state of drivers.
//!
//! A sysfs file is a driver's function: it can block for ever, answer EIO, or vanish. So every read happens in a helper
//! thread with [`READ_LIMIT`]; a thread that does not come back is left behind and the next read gets a new one. Only
//! ENOENT means that a thing is absent. (`O_NONBLOCK` would not do: sysfs ignores it, and a pipe without a writer would
//! look like an empty file.)

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::fs::{Access, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Host;

/// How long one read may take. Healthy ones take microseconds; a driver that waits for a dead device takes for ever.
pub const READ_LIMIT: Duration = Duration::from_secs(5);

/// The largest file that is read whole; the largest sysfs file is a page, /proc/cpuinfo of 192 CPUs is 300 KiB.
pub const FILE_MAX: u64 = 4 << 20;

/// How many entries of a directory are read; the largest nodes have a few hundred PCI functions.
pub const ENTRIES_MAX: usize = 16_384;

/// Why something on the machine cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is not there.
    #[error("`{}` does not exist", path.display())]
    Absent {
        /// What.
        path: PathBuf,
    },
    /// It is there and the kernel does not let it be read.
    #[error("`{}` cannot be read: {errno} ({})", path.display(), errno.raw_os_error())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The read did not come back.
    #[error("`{}` did not answer within {} s; its driver may be stuck", path.display(), READ_LIMIT.as_secs())]
    Blocked {
        /// What.
        path: PathBuf,
    },
    /// It is larger than anything expected there.
    #[error("`{}` is larger than {FILE_MAX} bytes", path.display())]
    TooLarge {
        /// What.
        path: PathBuf,
    },
    /// It does not hold what it should.
    #[error("`{}` holds `{found}`, which is not {expected}", path.display())]
    Malformed {
        /// What.
        path: PathBuf,
        /// The beginning of what it holds, made printable.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
}

impl ReadError {
    /// Whether the thing is not there, as opposed to there and unreadable.
    pub fn is_absent(&self) -> bool {
        matches!(self, ReadError::Absent { .. })
    }
}

impl Host {
    /// The whole content of a file; `path` is absolute, as on the machine.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, ReadError> {
        let path = path.as_ref().to_owned();
        let root = self.root.clone();
        let wanted = path.clone();
        match in_time(READ_LIMIT, move || read_file(&root, &wanted)) {
            Some(Ok(content)) if content.len() as u64 > FILE_MAX => {
                Err(ReadError::TooLarge { path })
            }
            Some(Ok(content)) => Ok(content),
            Some(Err(Errno::NOENT)) => Err(ReadError::Absent { path }),
            Some(Err(errno)) => Err(ReadError::Unreadable { path, errno }),
            None => Err(ReadError::Blocked { path }),
        }
    }

    /// The content of a file as text without white space around it.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn text(&self, path: impl AsRef<Path>) -> Result<String, ReadError> {
        let path = path.as_ref();
        let content = self.read(path)?;
        match std::str::from_utf8(&content) {
            Ok(text) => Ok(text
                .trim_matches(|c: char| c.is_whitespace() || c == '\0')
                .to_owned()),
            Err(_) => Err(malformed(path, &content, "text")),
        }
    }

    /// The unsigned decimal number in a file.
    ///
    /// # Errors
    /// See [`ReadError`]; an empty file is malformed, not 0.
    pub fn number(&self, path: impl AsRef<Path>) -> Result<u64, ReadError> {
        let path = path.as_ref();
        let text = self.text(path)?;
        text.parse()
            .map_err(|_| malformed(path, text.as_bytes(), "a number"))
    }

    /// The names in a directory, in alphabetical order.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<String>, ReadError> {
        let path = path.as_ref().to_owned();
        let root = self.root.clone();
        let wanted = path.clone();
        match in_time(READ_LIMIT, move || list_dir(&root, &wanted)) {
            Some(Ok(names)) => Ok(names),
            Some(Err(Errno::NOENT)) => Err(ReadError::Absent { path }),
            Some(Err(errno)) => Err(ReadError::Unreadable { path, errno }),
            None => Err(ReadError::Blocked { path }),
        }
    }

    /// The last name of where a symbolic link points to: a device's driver, the PCI address behind a network card.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn link(&self, path: impl AsRef<Path>) -> Result<String, ReadError> {
        let target = self.target(path)?;
        Ok(target.rsplit('/').next().unwrap_or_default().to_owned())
    }

    /// Where a symbolic link points to, as it says so itself.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn target(&self, path: impl AsRef<Path>) -> Result<String, ReadError> {
        let path = path.as_ref();
        let target = rustix::fs::readlink(below(&self.root, path), Vec::new()).map_err(
            |errno| match errno {
                Errno::NOENT => ReadError::Absent {
                    path: path.to_owned(),
                },
                errno => ReadError::Unreadable {
                    path: path.to_owned(),
                    errno,
                },
            },
        )?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// Whether this process may read and write a device file, by its mode and its device cgroup, without opening it: that would
    /// start the device, which can take for ever.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn may_open(&self, path: impl AsRef<Path>) -> Result<bool, ReadError> {
        let path = path.as_ref().to_owned();
        match rustix::fs::access(below(&self.root, &path), Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => Ok(true),
            Err(Errno::ACCESS | Errno::PERM) => Ok(false),
            Err(Errno::NOENT) => Err(ReadError::Absent { path }),
            Err(errno) => Err(ReadError::Unreadable { path, errno }),
        }
    }
}

/// Opens a path of the machine. Below another root, no link leads out of that root.
pub(super) fn open(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    if root == Path::new("/") {
        return rustix::fs::open(path, flags, Mode::empty());
    }
    let root = rustix::fs::openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::fs::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

fn read_file(root: &Path, path: &Path) -> Result<Vec<u8>, Errno> {
    let mut content = Vec::new();
    let file = File::from(open(root, path, OFlags::empty())?);
    match file.take(FILE_MAX + 1).read_to_end(&mut content) {
        Ok(_) => Ok(content),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

fn list_dir(root: &Path, path: &Path) -> Result<Vec<String>, Errno> {
    let folder = open(root, path, OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)?.take(ENTRIES_MAX) {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

pub(super) fn malformed(path: &Path, content: &[u8], expected: &'static str) -> ReadError {
    let found = String::from_utf8_lossy(&content[..content.len().min(64)])
        .escape_default()
        .to_string();
    ReadError::Malformed {
        path: path.to_owned(),
        found,
        expected,
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The helper thread, if it is idle; a thread that is busy or stuck is not here.
static HELPER: Mutex<Option<Sender<Job>>> = Mutex::new(None);

/// Does `work` in the helper thread; `None` if it does not end within `limit`, and the thread is then left behind.
pub(super) fn in_time<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (answer, heard): (Sender<T>, Receiver<T>) = channel();
    let job: Job = Box::new(move || drop(answer.send(work())));
    let helper = HELPER.lock().expect("no holder of this lock panics").take();
    let helper = helper.unwrap_or_else(start_helper);
    if helper.send(job).is_err() {
        return None;
    }
    match heard.recv_timeout(limit) {
        Ok(answer) => {
            *HELPER.lock().expect("no holder of this lock panics") = Some(helper);
            Some(answer)
        }
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
    }
}

fn start_helper() -> Sender<Job> {
    let (jobs, todo) = channel::<Job>();
    std::thread::spawn(move || {
        for job in todo {
            job();
        }
    });
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(root: &Path) -> Host {
        Host {
            root: root.to_owned(),
            ..Host::of_this_machine(&std::collections::BTreeMap::new())
        }
    }

    #[test]
    fn a_file_that_is_missing_is_absent_and_one_that_answers_eio_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            host(folder.path())
                .read("/sys/none")
                .unwrap_err()
                .is_absent()
        );
        // Page 0 of a process is never mapped, so reading its memory there answers EIO.
        let error = host(Path::new("/")).read("/proc/self/mem").unwrap_err();
        assert_eq!(
            error,
            ReadError::Unreadable {
                path: "/proc/self/mem".into(),
                errno: Errno::IO
            }
        );
    }

    #[test]
    fn a_file_that_blocks_costs_its_limit_and_not_the_next_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert_eq!(
            in_time(Duration::from_millis(50), move || File::open(pipe).is_ok()),
            None
        );
        std::fs::write(folder.path().join("word"), "fine\n").unwrap();
        assert_eq!(host(folder.path()).text("/word").unwrap(), "fine");
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink(
            "../../../../../../etc/passwd",
            folder.path().join("relative"),
        )
        .unwrap();
        let host = host(folder.path());
        assert!(host.read("/absolute").unwrap_err().is_absent());
        assert!(host.read("/relative").unwrap_err().is_absent());
        assert!(
            host.read("/../../../../../../etc/passwd")
                .unwrap_err()
                .is_absent()
        );
    }

    #[test]
    fn an_empty_file_is_not_the_number_zero() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("empty"), "").unwrap();
        std::fs::write(folder.path().join("zero"), "0").unwrap();
        let host = host(folder.path());
        assert!(matches!(
            host.number("/empty"),
            Err(ReadError::Malformed { .. })
        ));
        assert_eq!(host.number("/zero"), Ok(0));
    }

    #[test]
    fn a_file_that_is_not_text_is_malformed_and_shown_printable() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bytes"), b"\xff\x1b[31m").unwrap();
        let error = host(folder.path()).text("/bytes").unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
}
