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
    })
}

impl KernelLog {
    /// The events that still say something, each with its fault class.
    ///
    /// Of what the driver asks for a GPU (Xid 154) only the last word counts. If that is "nothing", whatever a reset or
    /// reboot clears was cleared before.
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
            let clears = matches!(
                Faults::built_in().action(class),
                Action::Reset | Action::Reboot
            );
            let is_cleared = clears
                && later
                    .iter()
                    .any(|later| later.what.recovered() == Some(bdf.as_str()));
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
        },
        What::Xid {
            bdf, code, fatal, ..
        } => xid_class(*code, *fatal, &log.xids_of(bdf)),
        What::Sxid { fatal: true, .. } => "nvswitch.fatal",
        What::Sxid { fatal: false, .. } => "nvswitch.nonfatal",
        What::OffTheBus { .. } => "gpu.lost",
        What::Neuron { error, .. } if error.starts_with("SRAM") || error.starts_with("HBM") => {
            "neuron.uncorrectable"
        }
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
        63 | 156 => return "gpu.memory.remap_pending",
        64 => return "gpu.memory.remap_failed",
        // Channel retirement and repair events that NVIDIA's catalogue tells to ignore at first and to look into.
        157 | 160 | 161 => return "gpu.suspect",
        74 => return "nvlink.errors",
        144..=150 if fatal == Some(true) => return "nvlink.errors",
        144..=150 if fatal == Some(false) => return "gpu.application",
        144..=150 => return "gpu.suspect",
        54 => return "gpu.power",
        _ => {}
    }
    match xid_entry(code).map(|entry| entry.immediate) {
        Some("RESET_GPU" | "WORKFLOW_XID_48" | "WORKFLOW_NVLINK_ERR") => "gpu.needs_reset",
        Some("RESTART_VM" | "RESTART_BM") => "gpu.needs_reboot",
        Some("IGNORE" | "RESTART_APP" | "WORKFLOW_XID_45") => "gpu.application",
        Some("UPDATE_SWFW") => "gpu.driver",
        // A code that the catalogue has no action for, or not at all, is for a person.
        _ => "gpu.suspect",
    }
}
