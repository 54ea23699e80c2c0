//! The kernel's log: which lines speak of broken hardware, and of which device.
//!
//! Lines come as `/dev/kmsg` records (`priority,sequence,microseconds,flags;text`, Linux
//! Documentation/ABI/testing/dev-kmsg), as `dmesg` prints them (with or without stamp, `--decode`, `--time-format iso`),
//! or through syslog (`... kernel: text`). Any process of root can write to `/dev/kmsg`, so a record whose facility is
//! not the kernel's accuses nothing, and a driver's mark counts only where its message begins. The mark of a Neuron error
//! is the exception: the runtime hands its line to the driver, which prints it as the kernel's (`ncdev_printk` of
//! aws-neuron-driver), and a stamp or the driver's name may stand before the mark.

mod envelope;
mod firmware;
mod meaning;
mod message;

use std::collections::BTreeSet;

use envelope::{kernel_message, kmsg_microseconds, kmsg_sequence};
pub use meaning::{XidEntry, xid_entry};
use message::{what, whole_bdf};

/// Longest line that is looked at; the kernel itself cuts records at about a thousand bytes.
const LINE_MAX: usize = 4096;

/// How many events are kept; a node with more has said enough.
const EVENTS_MAX: usize = 1000;

/// How much of a line stands in an event.
const QUOTE_MAX: usize = 300;

/// All that was found in a log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelLog {
    /// The events, in the order of the log.
    pub events: Vec<KernelEvent>,
    /// How many lines were looked at.
    pub lines: usize,
    /// How many records the kernel had overwritten before the first one that is here.
    pub overwritten: u64,
    /// How many events came after the first thousand and were only counted.
    pub not_kept: usize,
    /// Whether one of these was of a kind that is not among the events.
    pub kinds_lost: bool,
    /// How many of the events stand before NVIDIA's driver was last loaded.
    before_driver: usize,
}

/// One line (or group of lines) about hardware.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelEvent {
    /// What it says.
    pub what: What,
    /// The message in its own words, printable and cut to a quotation.
    pub quote: String,
    /// When, in microseconds since the boot, where the record tells.
    pub at_us: Option<u64>,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The NVIDIA driver reported an Xid.
    Xid {
        /// The GPU's PCI address as the driver writes it, with its function: `0000:b9:00.0`.
        bdf: String,
        /// The code.
        code: u32,
        /// For Xid 154, what the driver itself asks for.
        asks_for: Option<Recovery>,
        /// For the NVLink errors 144 to 150: whether the unit calls it fatal.
        fatal: Option<bool>,
    },
    /// An NVSwitch reported an SXid.
    Sxid {
        /// The switch's PCI address.
        bdf: String,
        /// The code.
        code: u32,
        /// Whether the switch calls it fatal, if it says.
        fatal: Option<bool>,
    },
    /// A GPU fell off the bus, said without an Xid.
    OffTheBus {
        /// Its PCI address.
        bdf: String,
    },
    /// The Neuron runtime reported an error of the hardware.
    Neuron {
        /// Its name: `SRAM_UNCORRECTABLE_ERROR` and the like.
        error: String,
        /// The device's index, if the line tells.
        device: Option<u32>,
        /// The core's index, if the line tells.
        core: Option<u32>,
    },
    /// A machine check or memory error that was not corrected.
    HardwareError,
    /// A machine check or memory error that was corrected.
    Corrected,
    /// The firmware kept an uncorrected error of the boot before.
    BootBefore,
    /// A PCIe device reported an error that was not corrected.
    Pcie {
        /// Its PCI address.
        bdf: String,
    },
    /// A disk could not be read or written.
    Disk {
        /// Its name.
        device: String,
    },
    /// Memory ran out and a process was killed.
    OutOfMemory,
}

/// What the driver asks for in an Xid 154. Its own text is trusted over any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing.
    None,
    /// A reset of the GPU, at once or after a drain.
    Reset,
    /// A reboot of the node.
    Reboot,
    /// Work on the NVLink domain that several nodes share.
    Fabric,
}

impl KernelLog {
    /// Reads a log; never fails, since whatever is not understood is somebody else's message.
    pub fn read(text: &[u8]) -> KernelLog {
        let mut reader = Reader::default();
        for line in text.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            reader.log.lines += 1;
            let line = String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]);
            if reader.log.lines == 1 {
                reader.log.overwritten = kmsg_sequence(&line).unwrap_or(0);
            }
            if let Some(message) = kernel_message(&line) {
                reader.at_us = kmsg_microseconds(&line);
                reader.message(message);
            }
        }
        reader.end_of_record();
        reader.log
    }

    /// The Xid codes that a GPU logged.
    pub fn xids_of(&self, bdf: &str) -> BTreeSet<u32> {
        let codes = self.events.iter().filter_map(|event| match &event.what {
            What::Xid { bdf: of, code, .. } if of == bdf => Some(*code),
            _ => None,
        });
        codes.collect()
    }
}

/// A log that is being read, and what of it is still to be continued.
#[derive(Default)]
struct Reader {
    log: KernelLog,
    /// When the line under way was written.
    at_us: Option<u64>,
    /// The GPU whose end the next lines tell.
    off_the_bus: Option<String>,
    /// The firmware's record under way.
    firmware: Option<firmware::Record>,
}

impl Reader {
    fn message(&mut self, message: &str) {
        if message.starts_with("NVRM: loading NVIDIA UNIX ") {
            self.log.before_driver = self.log.events.len();
        }
        if let Some(record) = firmware::Record::begin(message) {
            self.end_of_record();
            self.firmware = Some(record);
        } else if let Some(said) = self
            .firmware
            .as_mut()
            .and_then(|record| record.line(message))
        {
            self.keep(said.what, quote(&said.quote));
        }
        if let Some(what) = self.off_the_bus(message).or_else(|| what(message)) {
            self.keep(what, quote(message));
        }
    }

    /// The firmware's record under way has no more lines.
    fn end_of_record(&mut self) {
        if let Some(said) = self.firmware.take().and_then(firmware::Record::end) {
            self.keep(said.what, quote(&said.quote));
        }
    }

    /// A dying GPU says its address in one line and its end in one of the next two. `/dev/kmsg` gives all of them as one,
    /// with the line breaks escaped.
    fn off_the_bus(&mut self, message: &str) -> Option<What> {
        let dying = message.strip_prefix("NVRM: The NVIDIA GPU ");
        if let Some(bdf) = dying.and_then(|rest| rest.split([' ', '\\', '\t']).next()) {
            self.off_the_bus = Some(bdf.to_owned());
        }
        let is_told = dying.is_some_and(|rest| rest.contains("fallen off the bus"))
            || message.starts_with("NVRM: fallen off the bus")
            || message.starts_with("NVRM: has fallen off the bus");
        let bdf = self.off_the_bus.take_if(|_| is_told)?;
        Some(What::OffTheBus {
            bdf: whole_bdf(&bdf)?,
        })
    }

    /// A flood of one kind must not hide another: what is new since the last recovery is kept beyond the number of those
    /// that are kept.
    fn keep(&mut self, what: What, quote: String) {
        let at_us = self.at_us;
        let log = &mut self.log;
        let full = log.events.len() >= EVENTS_MAX;
        let mut since = log.events.iter().rev();
        let is_new = full
            && since
                .by_ref()
                .take_while(|event| event.what.recovered().is_none())
                .all(|event| event.what != what);
        if !full || is_new && log.events.len() < 2 * EVENTS_MAX {
            log.events.push(KernelEvent { what, quote, at_us });
        } else {
            log.not_kept += 1;
            log.kinds_lost |= is_new;
        }
    }
}

impl What {
    /// The GPU that needs nothing any more, if the driver says this of one.
    fn recovered(&self) -> Option<&str> {
        match self {
            What::Xid {
                bdf,
                asks_for: Some(Recovery::None),
                ..
            } => Some(bdf),
            _ => None,
        }
    }
}

fn quote(message: &str) -> String {
    let cut: String = message.chars().take(QUOTE_MAX).collect();
    cut.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
