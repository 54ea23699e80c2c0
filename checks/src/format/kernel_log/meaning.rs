//! What an event asks for: its fault class, from the catalogue of Xids and from what else the log holds.

use std::collections::BTreeSet;

use dhc_thresholds::{Action, Faults};

use super::{KernelEvent, KernelLog, Recovery, What};

/// What NVIDIA's catalogue says of an Xid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XidEntry {
    /// NVIDIA's name for it.
    pub mnemonic: &'static str,
    /// What it means.
    pub about: &'static str,
    /// NVIDIA's immediate action.
    pub immediate: &'static str,
    /// NVIDIA's action when it is looked into.
    pub investigation: &'static str,
}

/// The catalogue's entry for a code, if it has one.
pub fn xid_entry(code: u32) -> Option<XidEntry> {
    let rows = include_str!("xid.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'));
    let mut entries = rows.map(|row| row.split('\t').collect::<Vec<_>>());
    let row = entries.find(|row| row[0].parse() == Ok(code))?;
    Some(XidEntry {
        mnemonic: row[1],
        about: row[2],
        immediate: row[3],
        investigation: row[4],
    })
}

impl KernelLog {
    /// The events that still say something, each with its fault class.
    ///
    /// Of what the driver asks for a GPU (Xid 154) only the last word counts. If that is "nothing", whatever a reset or
    /// reboot clears was cleared before; loading the driver again clears what a reset does.
    pub fn meanings(&self) -> Vec<(&KernelEvent, &'static str)> {
        let standing = |(place, event): (usize, &'_ KernelEvent)| {
            let class = fault_class(&event.what, self);
            let bdf = match &event.what {
                What::Xid { bdf, .. } | What::OffTheBus { bdf } => bdf,
                _ => return Some(class),
            };
            let later = &self.events[place + 1..];
            let is_older_word = matches!(event.what, What::Xid { asks_for: Some(_), .. })
                && later.iter().any(|later| {
                    matches!(&later.what, What::Xid { bdf: of, asks_for: Some(_), .. } if of == bdf)
                });
            let action = Faults::built_in().action(class);
            let has_recovered = || {
                let mut later = later.iter();
                later.any(|later| later.what.recovered() == Some(bdf.as_str()))
            };
            let is_cleared = action == Action::Reset && place < self.before_driver
                || matches!(action, Action::Reset | Action::Reboot) && has_recovered();
            (!is_older_word && !is_cleared).then_some(class)
        };
        self.events
            .iter()
            .enumerate()
            .filter_map(|(place, event)| Some((event, standing((place, event))?)))
            .collect()
    }
}

/// The fault class of an event, given the whole log: some Xids mean different things in company.
fn fault_class(event: &What, log: &KernelLog) -> &'static str {
    match event {
        What::Xid {
            asks_for: Some(recovery),
            ..
        } => match recovery {
            Recovery::None => "gpu.application",
            Recovery::Reset => "gpu.needs_reset",
            Recovery::Reboot => "gpu.needs_reboot",
            Recovery::Fabric => "nvlink.fabric",
        },
        What::Xid {
            bdf, code, fatal, ..
        } => xid_class(*code, *fatal, &log.xids_of(bdf)),
        What::Sxid { fatal, .. } => match fatal {
            Some(true) => "nvswitch.fatal",
            Some(false) => "nvswitch.nonfatal",
            None => "nvswitch.suspect",
        },
        What::OffTheBus { .. } => "gpu.lost",
        What::Neuron { error, .. } if error.starts_with("SRAM") || error.starts_with("HBM") => {
            "neuron.uncorrectable"
        }
        What::Neuron { error, .. } if error.starts_with("HANG") => "neuron.hang",
        What::Neuron { .. } => "neuron.hardware",
        What::HardwareError => "host.kernel.mce",
        What::BootBefore => "host.kernel.boot_before",
        What::Corrected => "host.kernel.corrected",
        What::Pcie { .. } => "host.pcie.errors",
        What::Disk { .. } => "host.kernel.disk",
        What::OutOfMemory => "host.kernel.oom",
    }
}

/// The fault class of an Xid among `others` of the same GPU.
///
/// Codes whose class the catalogue's bucket does not tell are named; all others follow their bucket.
fn xid_class(code: u32, fatal: Option<bool>, others: &BTreeSet<u32>) -> &'static str {
    match code {
        79 => return "gpu.lost",
        // A double bit error: with 64 the remap failed; else a reset (with 63: the remap itself) clears it.
        48 if others.contains(&64) => return "gpu.memory.remap_failed",
        48 | 95 | 140 | 171 | 172 => return "gpu.memory.uncorrectable_now",
        // The driver's own state says whether the remap still waits; this line stays in the log after the reset.
        63 | 156 => return "gpu.memory.remap_logged",
        64 => return "gpu.memory.remap_failed",
        // Channel retirement and repair events that NVIDIA's catalogue tells to ignore at first and to look into.
        157 | 160 | 161 => return "gpu.suspect",
        74 => return "nvlink.xid",
        119 | 120 => return "gpu.gsp",
        // Contained memory errors end an application, and it is the memory that made them.
        94 => return "gpu.suspect",
        // GPU stopped processing: nearly always an application's.
        43 => return "gpu.application",
        144..=150 if fatal == Some(true) => return "nvlink.errors",
        144..=150 if fatal == Some(false) => return "nvlink.suspect",
        144..=150 => return "gpu.suspect",
        54 => return "gpu.power_missing",
        _ => {}
    }
    match xid_entry(code).map(|entry| (entry.immediate, entry.investigation)) {
        Some(("RESET_GPU" | "WORKFLOW_XID_48" | "WORKFLOW_NVLINK_ERR", _)) => "gpu.needs_reset",
        Some(("RESTART_VM" | "RESTART_BM", _)) => "gpu.needs_reboot",
        // No application has failed, and NVIDIA wants to hear of it.
        Some(("IGNORE", "CONTACT_SUPPORT" | "XID_137_FLOW")) => "gpu.suspect",
        Some(("IGNORE" | "RESTART_APP" | "WORKFLOW_XID_45", _)) => "gpu.application",
        Some(("UPDATE_SWFW", _)) => "gpu.driver",
        // A code that the catalogue has no action for, or not at all, is for a person.
        _ => "gpu.suspect",
    }
}
