//! Old results of the node, for `--keep-results`: which are deleted, and that nothing else is.
//!
//! A run's folder is known by its name, which holds the time of its beginning, and by what is in it. Its files are removed one
//! by one, by the names that dhc gives, and then the folder, which the kernel refuses where anything is left in it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ulid::Ulid;

use crate::store::{StoreError, io_error, is_of_a_run};

/// What became of the old results.
#[derive(Debug, Default)]
pub struct Pruned {
    /// How many runs were deleted.
    pub runs: usize,
    /// Folders of old runs that were left, and why.
    pub left: Vec<(PathBuf, String)>,
}

/// Deletes the runs below `root` that began longer than `age` before `now`. What does not look like a run of dhc's own is not
/// touched.
///
/// # Errors
/// When the directory of runs is there and cannot be read.
#[expect(
    clippy::disallowed_methods,
    reason = "the store is dhc's own, and below nobody's root"
)]
pub fn results(root: &Path, age: Duration, now: SystemTime) -> Result<Pruned, StoreError> {
    let runs = root.join("runs");
    let mut pruned = Pruned::default();
    let entries = match std::fs::read_dir(&runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pruned),
        Err(error) => return Err(io_error("read", &runs)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(io_error("read", &runs))?;
        let is_old = |begun: SystemTime| begun + age < now;
        if began(&entry.file_name()).is_none_or(|begun| !is_old(begun)) {
            continue;
        }
        let path = entry.path();
        match delete(&path) {
            Ok(()) => pruned.runs += 1,
            Err(why) => pruned.left.push((path, why)),
        }
    }
    pruned.left.sort();
    Ok(pruned)
}

/// When the run of this name began; `None` where it is no run's name.
fn began(name: &OsStr) -> Option<SystemTime> {
    let name = name.to_str()?;
    let id = Ulid::from_string(name).ok()?;
    // Others may write the same number in small letters; dhc does not.
    (id.to_string() == name).then(|| id.datetime())
}

/// Deletes a run's folder, if there is nothing in it but what dhc writes.
#[expect(
    clippy::disallowed_methods,
    reason = "the store is dhc's own, and below nobody's root"
)]
fn delete(folder: &Path) -> Result<(), String> {
    let said = |error: io::Error| error.to_string();
    let metadata = std::fs::symlink_metadata(folder).map_err(said)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err("it is not a folder that dhc has made".to_owned());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(said)? {
        let entry = entry.map_err(said)?;
        let is_file = entry.file_type().map_err(said)?.is_file();
        if !is_file || !is_of_a_run(&entry.file_name()) {
            let name = entry.file_name();
            return Err(format!("dhc has not written `{}` in it", name.display()));
        }
        files.push(entry.path());
    }
    for file in files {
        std::fs::remove_file(file).map_err(said)?;
    }
    std::fs::remove_dir(folder).map_err(said)
}
