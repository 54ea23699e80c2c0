//! Readings that a check keeps from one run to the next, to tell what has grown since.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The largest file of readings; one of a node with 128 Neuron cores has about 200 KiB.
const READINGS_MAX: usize = 16 << 20;

/// Counters at a moment. They can only be compared within the same epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// What makes counters start again when it changes: the boot, the driver's version.
    pub epoch: String,
    /// The counters by name.
    pub counters: BTreeMap<String, u64>,
}

impl Readings {
    /// The readings stored in `folder` under `name`, if there are any of this epoch.
    #[expect(
        clippy::disallowed_methods,
        reason = "dhc's own file, not the host that is checked"
    )]
    pub fn load(folder: &Path, name: &str, epoch: &str) -> Option<Readings> {
        let path = folder.join(format!("{name}.json"));
        let small = std::fs::symlink_metadata(&path)
            .is_ok_and(|meta| meta.is_file() && meta.len() < READINGS_MAX as u64);
        let readings: Readings =
            serde_json::from_slice(&std::fs::read(path).ok().filter(|_| small)?).ok()?;
        (readings.epoch == epoch).then_some(readings)
    }

    /// Stores the readings in place of older ones, whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn store(&self, folder: &Path, name: &str) -> std::io::Result<()> {
        let temporary = folder.join(format!(".{name}.{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|text| file.write_all(&text))
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&temporary, folder.join(format!("{name}.json"))));
        if written.is_err() {
            drop(std::fs::remove_file(&temporary));
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_of_another_epoch_and_broken_ones_are_not_compared_with() {
        let folder = tempfile::tempdir().unwrap();
        let readings = Readings {
            epoch: "boot 1".into(),
            counters: BTreeMap::from([("a".into(), 3)]),
        };
        assert_eq!(Readings::load(folder.path(), "x", "boot 1"), None);
        readings.store(folder.path(), "x").unwrap();
        assert_eq!(Readings::load(folder.path(), "x", "boot 1"), Some(readings));
        assert_eq!(Readings::load(folder.path(), "x", "boot 2"), None);
        std::fs::write(folder.path().join("x.json"), "{").unwrap();
        assert_eq!(Readings::load(folder.path(), "x", "boot 1"), None);
    }
}
