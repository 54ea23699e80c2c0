//! Which of NVML's GPUs each of DCGM's is. Pure.
//!
//! DCGM numbers GPUs by itself: mostly as NVML does, but a host engine that was started before a GPU was lost, added or
//! exchanged keeps its own order. Whoever replaces a GPU goes by what is told of it, so one that is known by its serial number
//! is called as NVML calls that one, and one that NVML knows under another serial number has a name of its own.

use std::collections::{BTreeMap, BTreeSet};

use dhc_thresholds::{Kind, Subject};

use crate::format::dcgmi::Diagnosis;

/// What the GPUs that DCGM names are called.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// NVML's index by DCGM's id, where one belongs to the other.
    index: BTreeMap<u32, u32>,
    /// Where it is not the same number, or there is none: what a person should know.
    pub(super) remarks: Vec<String>,
    /// The GPUs of NVML that none of DCGM's is.
    pub(super) unnamed: Vec<u32>,
}

impl Names {
    /// The names of the GPUs of `diagnosis`; `serials` are those that NVML tells, by its index.
    pub(super) fn new(diagnosis: &Diagnosis, serials: &[Option<String>]) -> Names {
        let told_by_nvml = |index: u32| serials.get(index as usize).and_then(Option::as_deref);
        let (same, others): (Vec<_>, Vec<_>) = diagnosis
            .serials
            .iter()
            .partition(|(id, serial)| told_by_nvml(**id) == Some(serial));
        let mut names = Names::default();
        let mut taken: BTreeSet<u32> = same.iter().map(|(id, _)| **id).collect();
        names.index.extend(taken.iter().map(|id| (*id, *id)));
        for (&id, serial) in others {
            // GPUs of one board can share its serial number, which then says no more than which board it is.
            let mut of_serial = (0..)
                .zip(serials)
                .filter(|(_, known)| known.as_ref() == Some(serial));
            let (Some((index, _)), None) = (of_serial.next(), of_serial.next()) else {
                continue;
            };
            if taken.insert(index) {
                names.index.insert(id, index);
                names.remarks.push(format!(
                    "DCGM's GPU {id} is gpu{index} by its serial number {serial}, and is called so"
                ));
            }
        }
        for &id in &diagnosis.gpus {
            if names.index.contains_key(&id) {
                continue;
            }
            let serial = diagnosis.serials.get(&id);
            if taken.contains(&id) || serial.is_some() && told_by_nvml(id).is_some() {
                let serial = serial.map_or("no serial number", String::as_str);
                names.remarks.push(format!(
                    "DCGM's GPU {id} ({serial}) is not the one that NVML numbers so ({}), and is called {} here",
                    told_by_nvml(id).unwrap_or("no serial number"),
                    own_name(id),
                ));
            } else {
                names.index.insert(id, id);
            }
        }
        let named: BTreeSet<u32> = names.index.values().copied().collect();
        let all = (0..).zip(serials).map(|(index, _)| index);
        names.unnamed = all.filter(|index| !named.contains(index)).collect();
        names
    }

    /// The GPU with this id of DCGM's.
    pub(super) fn gpu(&self, id: u32) -> Subject {
        match self.index.get(&id) {
            Some(index) => Subject::gpu(*index),
            None => Subject::new(Kind::Gpu, own_name(id)),
        }
    }
}

fn own_name(id: u32) -> String {
    format!("dcgm-gpu{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of DCGM's GPUs 0, 1 … with these serial numbers, where NVML tells those; `-` is none.
    fn names(dcgm: &[&str], nvml: &[&str]) -> Vec<String> {
        let told = |serial: &str| (serial != "-").then(|| serial.to_owned());
        let ids = || (0..).zip(dcgm);
        let diagnosis = Diagnosis {
            gpus: ids().map(|(id, _)| id).collect(),
            serials: ids()
                .filter_map(|(id, serial)| Some((id, told(serial)?)))
                .collect(),
            ..Diagnosis::default()
        };
        let serials: Vec<_> = nvml.iter().map(|serial| told(serial)).collect();
        let names = Names::new(&diagnosis, &serials);
        ids().map(|(id, _)| names.gpu(id).name).collect()
    }

    #[test]
    fn a_gpu_is_called_as_nvml_calls_the_one_with_its_serial_number() {
        assert_eq!(names(&["a", "b"], &["a", "b"]), ["gpu0", "gpu1"]);
        assert_eq!(
            names(&["b", "c", "a"], &["a", "b", "c"]),
            ["gpu1", "gpu2", "gpu0"]
        );
        assert_eq!(names(&["b", "x"], &["a", "b"]), ["gpu1", "dcgm-gpu1"]);
        assert_eq!(names(&["a", "x"], &["a", "b"]), ["gpu0", "dcgm-gpu1"]);
    }

    #[test]
    fn where_one_of_the_two_tells_no_serial_number_the_numbers_are_taken_for_the_same() {
        assert_eq!(names(&["-", "-"], &["a", "b"]), ["gpu0", "gpu1"]);
        assert_eq!(names(&["a", "b"], &[]), ["gpu0", "gpu1"]);
        assert_eq!(names(&["a", "b"], &["a", "-"]), ["gpu0", "gpu1"]);
        // But no name is given twice.
        assert_eq!(names(&["b", "-"], &["a", "b"]), ["gpu1", "dcgm-gpu1"]);
    }

    #[test]
    fn gpus_that_share_the_serial_number_of_their_board_are_not_mixed_up() {
        assert_eq!(names(&["a", "a"], &["a", "a"]), ["gpu0", "gpu1"]);
        assert_eq!(names(&["b", "a"], &["a", "a"]), ["dcgm-gpu0", "gpu1"]);
        assert_eq!(names(&["a", "a"], &["a", "b"]), ["gpu0", "dcgm-gpu1"]);
    }
}
