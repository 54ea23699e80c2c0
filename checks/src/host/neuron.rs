//! The Neuron devices of the machine, as their driver shows them below `/sys/devices/virtual/neuron_device`.

use super::{Host, ReadError};
use crate::format::neuron_sysfs::index;

const DEVICES: &str = "/sys/devices/virtual/neuron_device";

/// A Neuron device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeuronDevice {
    /// Its index.
    pub index: u32,
    /// Its directory in sysfs.
    pub path: String,
    /// The indices of its physical cores that have a directory, if it can be listed.
    pub cores: Result<Vec<u32>, ReadError>,
}

impl NeuronDevice {
    /// What measurements call it.
    pub fn name(&self) -> String {
        format!("neuron{}", self.index)
    }
}

impl Host {
    /// All devices that the driver shows, in order; none if there is no driver.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn neuron_devices(&self) -> Result<Vec<NeuronDevice>, ReadError> {
        let names = match self.list(DEVICES) {
            Ok(names) => names,
            Err(error) if error.is_absent() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut devices = Vec::new();
        for name in names {
            let Some(device) = index(&name, "neuron") else {
                continue;
            };
            let path = format!("{DEVICES}/{name}");
            let cores = self.list(&path).map(|entries| {
                let cores = entries.iter();
                let mut cores: Vec<u32> = cores
                    .filter_map(|entry| index(entry, "neuron_core"))
                    .collect();
                cores.sort_unstable();
                cores
            });
            devices.push(NeuronDevice {
                index: device,
                path,
                cores,
            });
        }
        devices.sort_by_key(|device| device.index);
        Ok(devices)
    }

    /// The processes that hold a Neuron device open, by number and name, as far as this process may look.
    pub fn neuron_users(&self) -> Vec<String> {
        let held = |id: &String| {
            let files = self.list(format!("/proc/{id}/fd")).unwrap_or_default();
            files.iter().find_map(|file| {
                let target = self.target(format!("/proc/{id}/fd/{file}")).ok()?;
                index(target.strip_prefix("/dev/")?, "neuron").map(|_| target)
            })
        };
        let mut processes = self.list("/proc").unwrap_or_default();
        processes.retain(|entry| entry.parse::<u32>().is_ok());
        let users = processes.iter().filter_map(|id| {
            let device = held(id)?;
            let name = self.text(format!("/proc/{id}/comm")).unwrap_or_default();
            Some(format!("process {id} ({}, {device})", name.escape_debug()))
        });
        users.collect()
    }

    /// A counter of the Neuron driver: a file with a number, or a directory whose `total` is the number, depending on the
    /// driver's version.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn neuron_counter(&self, path: &str) -> Result<u64, ReadError> {
        match self.number(format!("{path}/total")) {
            // Below a plain file there is nothing, which the kernel says as ENOTDIR; the file itself tells the rest.
            Err(
                ReadError::Absent { .. }
                | ReadError::Unreadable {
                    errno: rustix::io::Errno::NOTDIR,
                    ..
                },
            ) => self.number(path),
            total => total,
        }
    }
}
