//! The kernel's counters of memory errors (Linux, Documentation/admin-guide/ras.rst and
//! Documentation/ABI/testing/sysfs-devices-edac).

use std::collections::BTreeMap;

use crate::host::{Host, ReadError};

const CONTROLLERS: &str = "/sys/devices/system/edac/mc";

/// What each memory controller has counted, by the controller's name.
pub(super) type Counts = BTreeMap<String, Result<Count, ReadError>>;

/// What one memory controller has counted since its driver was loaded or the counters were reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Count {
    /// Errors that were corrected.
    pub(super) corrected: u64,
    /// Errors that were not.
    pub(super) uncorrected: u64,
    /// Both together by DIMM (its label, or the kernel's name of its place).
    pub(super) dimms: BTreeMap<String, u64>,
}

/// The counts of all controllers; none where the kernel has no driver for them.
pub(super) fn read(host: &Host) -> Result<Counts, ReadError> {
    let names = match host.list(CONTROLLERS) {
        Err(error) if error.is_absent() => return Ok(Counts::new()),
        names => names?,
    };
    let controllers = names.into_iter().filter(|name| is_numbered(name, "mc"));
    Ok(controllers
        .map(|name| {
            let count = count(host, &name);
            (name, count)
        })
        .collect())
}

fn count(host: &Host, name: &str) -> Result<Count, ReadError> {
    let folder = format!("{CONTROLLERS}/{name}");
    let mut dimms = BTreeMap::new();
    for place in host.list(&folder)? {
        if !is_numbered(&place, "dimm") && !is_numbered(&place, "rank") {
            continue;
        }
        let place_folder = format!("{folder}/{place}");
        // A driver may count for the controller alone.
        let number = |file| host.number(format!("{place_folder}/{file}")).unwrap_or(0);
        let errors = number("dimm_ce_count").saturating_add(number("dimm_ue_count"));
        let label = host.text(format!("{place_folder}/dimm_label"));
        let label = label.ok().filter(|label| !label.is_empty());
        dimms.insert(
            label.map_or(place.clone(), |label| format!("{place} ({label})")),
            errors,
        );
    }
    Ok(Count {
        corrected: host.number(format!("{folder}/ce_count"))?,
        uncorrected: host.number(format!("{folder}/ue_count"))?,
        dimms,
    })
}

fn is_numbered(name: &str, kind: &str) -> bool {
    let number = name.strip_prefix(kind);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

impl Count {
    /// What was counted since `before`; `None` if a counter went back, so that nobody knows.
    pub(super) fn since(&self, before: &Count) -> Option<Count> {
        let grown = self.dimms.iter().map(|(dimm, errors)| {
            let grown = errors.checked_sub(before.dimms.get(dimm).copied().unwrap_or(0));
            Some((dimm.clone(), grown?))
        });
        Some(Count {
            corrected: self.corrected.checked_sub(before.corrected)?,
            uncorrected: self.uncorrected.checked_sub(before.uncorrected)?,
            dimms: grown.collect::<Option<_>>()?,
        })
    }

    /// The DIMMs that counted errors, for people.
    pub(super) fn dimms(&self) -> String {
        let erring = self.dimms.iter().filter(|(_, errors)| **errors > 0);
        let erring: Vec<String> = erring
            .map(|(dimm, errors)| format!("{dimm}: {errors}"))
            .collect();
        erring.join(", ")
    }
}
