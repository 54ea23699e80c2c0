//! Where results are kept: a private directory of the node, one folder a run, everything written whole or not at all.
//!
//! The local directory comes first and is on a disk of the node, so that a run never waits for a network file system.
//! Where the user asks for a copy with `--out`, another process makes it and has [`COPY_LIMIT`] to do so.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use sha2::{Digest, Sha256};

use crate::tables::hex;

/// How long the copy to `--out` may take. Network file systems hang; a run must not.
pub const COPY_LIMIT: Duration = Duration::from_secs(10);

/// Name of the result in a run's folder.
pub const RESULT: &str = "result.json";

/// Name of the journal in a run's folder.
pub const JOURNAL: &str = "journal.jsonl";

/// Name of the list of digests in a run's folder, as `sha256sum --check` reads it.
pub const MANIFEST: &str = "SHA256SUMS";

/// Space held from the start of a run, so that the result can be written on a disk that fills up meanwhile.
const RESERVED_BYTES: u64 = 4 << 20;
const RESERVE: &str = ".reserve";

/// Who may read what is written: the store is for its owner alone; what the user asked for elsewhere (a textfile that another
/// user's exporter reads, a log) is for all, less the umask.
const FOR_OWNER: u32 = 0o600;
const FOR_ALL: u32 = 0o644;

/// The largest file of a run that is read back.
const READ_MAX: u64 = 256 << 20;

/// The largest file of the user's own (a threshold table, a topology) that is read, and how long it may take to answer: it may
/// lie on a network file system that is dead.
const USERS_MAX: u64 = 4 << 20;
const USERS_LIMIT: Duration = Duration::from_secs(10);

/// Why a result cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory could not be made or written.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Somebody else could change what is kept there.
    #[error(
        "`{}` {why}, so others could change results; make it yours alone (chown, chmod 700) or name another with --state",
        path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another run holds the node.
    #[error("another run is under way on this node ({holder}); wait for it or stop it")]
    Busy {
        /// Who: process id and run id as the holder wrote them.
        holder: String,
    },
    /// A file of a run is not what the manifest says.
    #[error("`{}` {why}", path.display())]
    Tampered {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io { what, path, error }
}

/// The local directory of results, locked for one run.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Holds the lock; the kernel gives it back when the process ends in whatever way.
    _lock: File,
}

impl Store {
    /// Opens (and if need be makes) the directory and takes its lock for the run `run_id`.
    ///
    /// Where the run is a `part_of` another one, that one and its other parts may hold the lock: the run of the whole
    /// cluster stands on one of its nodes, and nodes may share the directory. Other runs may not.
    ///
    /// # Errors
    /// When the directory cannot be used or is not private, or another run holds the lock.
    pub fn open(root: &Path, run_id: &str, part_of: Option<&str>) -> Result<Store, StoreError> {
        private_dir(root)?;
        let path = root.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(io_error("open the lock", &path))?;
        if flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = holder(&path);
            let is_ours = |whole: &str| holder.split([' ', ',']).any(|word| word == whole);
            if part_of.is_some_and(is_ours) {
                return Ok(Store {
                    root: root.to_owned(),
                    _lock: lock,
                });
            }
            return Err(StoreError::Busy { holder });
        }
        lock.set_len(0).map_err(io_error("write the lock", &path))?;
        let part = part_of.map_or_else(String::new, |whole| format!(", part of {whole}"));
        let holder = format!("process {}, run {run_id}{part}\n", std::process::id());
        lock.write_all(holder.as_bytes())
            .map_err(io_error("write the lock", &path))?;
        Ok(Store {
            root: root.to_owned(),
            _lock: lock,
        })
    }

    /// Makes the folder of a run, with space held for its result.
    ///
    /// # Errors
    /// When it cannot be made or the disk is full.
    pub fn run(&self, run_id: &str) -> Result<RunFolder, StoreError> {
        let runs = self.root.join("runs");
        private_dir(&runs)?;
        let path = runs.join(run_id);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(io_error("make the folder of the run", &path))?;
        let folder = RunFolder { path };
        folder.reserve()?;
        Ok(folder)
    }

    /// The results that are kept in a directory, newest first: the names of runs are in the order of time. Takes no lock, so
    /// that a run may be under way.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    #[expect(
        clippy::disallowed_methods,
        reason = "the store is dhc's own, and below nobody's root"
    )]
    pub fn results(root: &Path) -> Result<Vec<PathBuf>, StoreError> {
        let runs = root.join("runs");
        let entries = match std::fs::read_dir(&runs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &runs)(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            all.push(entry.map_err(io_error("read", &runs))?.path().join(RESULT));
        }
        all.sort_unstable();
        all.reverse();
        Ok(all)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where checks keep readings from one run to the next.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn readings(&self) -> Result<PathBuf, StoreError> {
        let path = self.root.join("readings");
        private_dir(&path)?;
        Ok(path)
    }
}

/// Whether a file in a run's folder has a name that dhc gives: those of a run, and what a run that was killed left of them.
pub(crate) fn is_of_a_run(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let written = |name: &str| [RESULT, JOURNAL, MANIFEST].contains(&name);
    let hidden = name
        .strip_prefix('.')
        .and_then(|name| name.rsplit_once('.'));
    let is_part =
        hidden.is_some_and(|(name, process)| written(name) && process.parse::<u32>().is_ok());
    written(name) || name == RESERVE || is_part
}

/// Who holds a lock. Whoever has just taken it writes its name in the next moment.
fn holder(path: &Path) -> String {
    const PATIENCE: u32 = 100;
    for _ in 0..PATIENCE {
        let text = read_file(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        if !text.is_empty() {
            return text.chars().take(200).collect();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    "holder unknown".to_owned()
}

/// The folder of one run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it that nobody else can have put there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self, name: &str) -> Result<File, StoreError> {
        create_new(&self.path.join(name))
    }

    /// Writes the result and the manifest, whole or not at all, and gives the held space back.
    ///
    /// # Errors
    /// When the disk refuses; what was there before is untouched.
    pub fn finish(&self, result: &[u8]) -> Result<(), StoreError> {
        drop(std::fs::remove_file(self.path.join(RESERVE)));
        write_whole(&self.path, RESULT, result)?;
        let mut manifest = format!("{}  {RESULT}\n", hex(&Sha256::digest(result)));
        if let Ok(journal) = read_file(&self.path.join(JOURNAL)) {
            manifest.push_str(&format!("{}  {JOURNAL}\n", hex(&Sha256::digest(&journal))));
        }
        write_whole(&self.path, MANIFEST, manifest.as_bytes())
    }

    fn reserve(&self) -> Result<(), StoreError> {
        let path = self.path.join(RESERVE);
        let file = create_new(&path)?;
        let held = rustix::fs::fallocate(
            file.as_fd(),
            rustix::fs::FallocateFlags::empty(),
            0,
            RESERVED_BYTES,
        );
        match held {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => {
                drop(std::fs::remove_file(&path));
                Err(io_error("hold space for the result in", &self.path)(
                    error.into(),
                ))
            }
        }
    }
}

/// Checks every file of a run's folder against its manifest and says which files were checked.
///
/// # Errors
/// When a file differs, is missing or cannot be read.
pub fn verify(folder: &Path) -> Result<Vec<String>, StoreError> {
    let path = folder.join(MANIFEST);
    let manifest = read_file(&path).map_err(io_error("read", &path))?;
    let tampered = |path: &Path, why: &str| StoreError::Tampered {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let text = std::str::from_utf8(&manifest).map_err(|_| tampered(&path, "is not text"))?;
    let mut checked = Vec::new();
    for line in text.lines() {
        let (digest, name) = line
            .split_once("  ")
            .ok_or_else(|| tampered(&path, "is not a list of digests"))?;
        if name.contains('/') {
            return Err(tampered(&path, "names a file outside of the folder"));
        }
        let file = folder.join(name);
        let content = read_file(&file).map_err(io_error("read", &file))?;
        if hex(&Sha256::digest(&content)) != digest {
            return Err(tampered(
                &file,
                "is not what was written: its SHA-256 differs from the manifest's",
            ));
        }
        checked.push(name.to_owned());
    }
    if checked.is_empty() {
        return Err(tampered(&path, "names no file"));
    }
    Ok(checked)
}

/// Copies a run's folder to `out`, result last, so that a reader who sees the result sees everything.
///
/// # Errors
/// When `out` cannot be written to.
pub fn copy(folder: &Path, out: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(out).map_err(io_error("make", out))?;
    let name = folder.file_name().unwrap_or_default();
    let target = out.join(name);
    std::fs::create_dir_all(&target).map_err(io_error("make", &target))?;
    for name in [JOURNAL, MANIFEST, RESULT] {
        let from = folder.join(name);
        let content = read_file(&from).map_err(io_error("read", &from))?;
        write_whole(&target, name, &content)?;
    }
    Ok(())
}

/// Writes a file that the user asked for, whole or not at all; others may read it as far as the umask lets them.
///
/// # Errors
/// When the folder is not there or refuses, or the path is something else than a file.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let name = plain_file(path)?;
    write_whole_as(folder_of(path), &name, content, FOR_ALL)
}

/// Appends lines to a log, each with one write, so that those of several writers do not mix; a link is not followed.
///
/// # Errors
/// When the folder is not there or refuses, or the path is something else than a file.
pub fn append_lines<'a>(
    path: &Path,
    lines: impl IntoIterator<Item = &'a str>,
) -> Result<(), StoreError> {
    plain_file(path)?;
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FOR_ALL)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(io_error("open", path))?;
    for line in lines {
        file.write_all(format!("{line}\n").as_bytes())
            .map_err(io_error("append to", path))?;
    }
    file.sync_all().map_err(io_error("append to", path))
}

/// The name of a file that is there as a plain file or not at all: neither a link nor a device is replaced by a result.
fn plain_file(path: &Path) -> Result<std::ffi::OsString, StoreError> {
    let refused = |why: &str| io_error("write", path)(io::Error::other(why.to_owned()));
    let name = path
        .file_name()
        .ok_or_else(|| refused("it names no file"))?;
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => {
            Err(refused("it is a symbolic link; name the file itself"))
        }
        Ok(there) if !there.is_file() => Err(refused("it is not a regular file")),
        _ => Ok(name.to_owned()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Reads a file that dhc wrote, following no link.
///
/// # Errors
/// When it cannot be read or is larger than any result.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    read_regular(path, OFlags::NOFOLLOW, READ_MAX)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "larger than any result of dhc"))
}

/// Reads the text of a file that a user named, or of what a link that the user named leads to.
///
/// # Errors
/// When it cannot be read, is no regular file (a pipe may never end), does not answer in time, or is too large.
pub fn read_users_text(path: &Path) -> io::Result<String> {
    let (answer, heard) = std::sync::mpsc::channel();
    let named = path.to_owned();
    // A thread that does not come back is left behind; nobody can wake it.
    std::thread::spawn(move || {
        drop(answer.send(read_regular(&named, OFlags::empty(), USERS_MAX)));
    });
    let content = heard.recv_timeout(USERS_LIMIT).map_err(|_| {
        let limit = USERS_LIMIT.as_secs();
        let what = format!("it did not answer within {limit} s; its file system may be dead");
        io::Error::new(io::ErrorKind::TimedOut, what)
    })??;
    let content = content.ok_or_else(|| {
        let what = format!("it is larger than {} MiB", USERS_MAX >> 20);
        io::Error::new(io::ErrorKind::FileTooLarge, what)
    })?;
    String::from_utf8(content)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

/// The content of a regular file; none if it is larger than `max`.
fn read_regular(path: &Path, flags: OFlags, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((flags | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    let mut content = Vec::new();
    file.take(max + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= max).then_some(content))
}

/// Writes a file under another name, makes it durable, and only then gives it its own name.
fn write_whole(folder: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    write_whole_as(folder, name.as_ref(), content, FOR_OWNER)
}

fn write_whole_as(
    folder: &Path,
    name: &OsStr,
    content: &[u8],
    mode: u32,
) -> Result<(), StoreError> {
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    let temporary = folder.join(hidden);
    let path = folder.join(name);
    let written = create_new_as(&temporary, mode).and_then(|mut file| {
        file.write_all(content).map_err(io_error("write", &path))?;
        file.sync_all().map_err(io_error("write", &path))?;
        std::fs::rename(&temporary, &path).map_err(io_error("write", &path))?;
        let folder_file = File::open(folder).map_err(io_error("open", folder))?;
        folder_file
            .sync_all()
            .map_err(io_error("make durable", folder))
    });
    if written.is_err() {
        drop(std::fs::remove_file(&temporary));
    }
    written
}

fn create_new(path: &Path) -> Result<File, StoreError> {
    create_new_as(path, FOR_OWNER)
}

fn create_new_as(path: &Path, mode: u32) -> Result<File, StoreError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(io_error("make", path))
}

/// A directory that is ours alone: made if it is missing, refused if it is a link or others can write to it.
fn private_dir(path: &Path) -> Result<(), StoreError> {
    match std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
    {
        Ok(()) => {}
        Err(error) => return Err(io_error("make the directory", path)(error)),
    }
    let metadata = std::fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let refuse = |why| {
        Err(StoreError::NotPrivate {
            path: path.to_owned(),
            why,
        })
    };
    if !metadata.is_dir() {
        return refuse("is a symbolic link");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("belongs to somebody else");
    }
    if metadata.mode() & 0o022 != 0 {
        return refuse("can be written to by others");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_run_share_its_lock_and_no_other_run_does() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("state");
        let _whole = Store::open(&root, "WHOLE", None).unwrap();
        let _part = Store::open(&root, "PART", Some("WHOLE")).unwrap();
        for part_of in [None, Some("ANOTHER"), Some("WHOL")] {
            let error = Store::open(&root, "OTHER", part_of).unwrap_err();
            assert!(error.to_string().contains("run WHOLE"), "{error}");
        }
    }

    #[test]
    fn parts_share_the_lock_of_one_another_too() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("state");
        let _first = Store::open(&root, "FIRST", Some("WHOLE")).unwrap();
        assert!(Store::open(&root, "SECOND", Some("WHOLE")).is_ok());
        assert!(Store::open(&root, "OTHER", None).is_err());
    }
}
