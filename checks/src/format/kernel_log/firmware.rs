//! Errors that the firmware handles first and hands to the kernel as records of several lines (ACPI's GHES, and BERT for
//! those of the boot before): `drivers/firmware/efi/cper.c` and `drivers/acpi/apei/{ghes,bert}.c` of Linux.
//!
//! ```text
//! {1}[Hardware Error]: event severity: recoverable
//! {1}[Hardware Error]:  Error 0, type: recoverable
//! {1}[Hardware Error]:   section_type: PCIe error
//! {1}[Hardware Error]:   device_id: 0000:5e:00.0
//! ```
//!
//! How grave it is stands above, what it is about below, so a record speaks when its first telling section has been read
//! or when it ends. Of several sections each speaks.

use super::What;
use super::message::whole_bdf;

/// A record whose lines are being read.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// What parts its lines from those of others: `{1}`, or nothing for those of the boot before.
    mark: String,
    /// How grave it is.
    severity: Severity,
    /// Whether a section of it has spoken.
    has_spoken: bool,
    /// Whether the section under way is about a PCIe device, whose address is still to come.
    is_pcie: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Information,
    Corrected,
    Uncorrected,
}

/// What a line of a record, or its end, says.
pub(super) struct Said {
    pub(super) what: What,
    /// The lines of the record that say so, in one.
    pub(super) quote: String,
}

/// The mark and the text of a line of such a record.
fn split(message: &str) -> Option<(&str, &str)> {
    let (mark, text) = message.split_once("[Hardware Error]:")?;
    let number = mark
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    let is_mark = mark.is_empty()
        || number.is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
    is_mark.then(|| (mark, text.trim_start()))
}

impl Record {
    /// The record that a line begins: its severity comes first.
    pub(super) fn begin(message: &str) -> Option<Record> {
        let (mark, text) = split(message)?;
        let severity = match text.strip_prefix("event severity: ")?.trim_end() {
            "corrected" => Severity::Corrected,
            "fatal" | "recoverable" => Severity::Uncorrected,
            "info" => Severity::Information,
            _ => return None,
        };
        Some(Record {
            mark: mark.to_owned(),
            severity,
            has_spoken: false,
            is_pcie: false,
        })
    }

    /// What a line says, if it belongs to this record and says something.
    pub(super) fn line(&mut self, message: &str) -> Option<Said> {
        let (_, text) = split(message).filter(|(mark, _)| *mark == self.mark)?;
        if let Some(section) = text.strip_prefix("section_type: ") {
            self.is_pcie = section.starts_with("PCIe");
            return if self.is_pcie {
                None
            } else {
                self.say(None, section)
            };
        }
        let device = text.strip_prefix("device_id: ").filter(|_| self.is_pcie)?;
        self.is_pcie = false;
        self.say(whole_bdf(device.trim_end()), device)
    }

    /// What the record says of itself if none of its sections did.
    pub(super) fn end(mut self) -> Option<Said> {
        (!self.has_spoken)
            .then(|| self.say(None, "its sections are not told"))
            .flatten()
    }

    fn say(&mut self, pcie: Option<String>, about: &str) -> Option<Said> {
        self.has_spoken = true;
        let of_this_boot = !self.mark.is_empty();
        let what = match (self.severity, pcie) {
            (Severity::Uncorrected, _) if !of_this_boot => What::BootBefore,
            (Severity::Uncorrected, Some(bdf)) => What::Pcie { bdf },
            (Severity::Uncorrected, None) => What::HardwareError,
            // Corrected errors of PCIe are everyday, as in the counters of AER.
            (Severity::Corrected, None) if of_this_boot => What::Corrected,
            (Severity::Corrected | Severity::Information, _) => return None,
        };
        let severity = match self.severity {
            Severity::Uncorrected => "not corrected",
            Severity::Corrected | Severity::Information => "corrected",
        };
        Some(Said {
            what,
            quote: format!(
                "{}[Hardware Error]: {severity}, {}",
                self.mark,
                about.trim_end()
            ),
        })
    }
}
