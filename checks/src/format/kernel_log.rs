//! The kernel's log: which lines speak of broken hardware, and of which device.
//!
//! Lines come as `/dev/kmsg` records (`priority,sequence,microseconds,flags;text`, Linux
//! Documentation/ABI/testing/dev-kmsg), as `dmesg` prints them (with or without stamp, `--decode`, `--time-format iso`),
//! or through syslog (`... kernel: text`). Any process of root can write to `/dev/kmsg`, so a record whose facility is
//! not the kernel's accuses nothing, and a driver's mark counts only where its message begins.
//!
//! Shapes of Xid and SXid lines: NVIDIA's "Xid Errors" and logs of users; of Neuron lines: AWS Neuron SDK, "Neuron
//! Runtime Troubleshooting"; of the others: `arch/x86/kernel/cpu/mce/core.c`, `drivers/edac/edac_mc.c`,
//! `drivers/firmware/efi/cper.c`, `mm/oom_kill.c`, `drivers/pci/pcie/aer.c` and `block/blk-core.c` of Linux.

use std::collections::BTreeSet;

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
    /// How many events came after the first thousand and were only counted.
    pub not_kept: usize,
    /// Whether one of these was of a kind that is not among the events.
    pub kinds_lost: bool,
}

/// One line (or group of lines) about hardware.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelEvent {
    /// What it says.
    pub what: What,
    /// The message in its own words, printable and cut to a quotation.
    pub quote: String,
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
        /// Whether the switch calls it fatal.
        fatal: bool,
    },
    /// A GPU fell off the bus, said without an Xid.
    OffTheBus {
        /// Its PCI address.
        bdf: String,
    },
    /// The Neuron runtime reported an uncorrectable error.
    Neuron {
        /// Its name: `SRAM_UNCORRECTABLE_ERROR` and the like.
        error: String,
        /// The device's index.
        device: u32,
        /// The core's index.
        core: u32,
    },
    /// A machine check or memory error that was not corrected.
    HardwareError,
    /// A machine check or memory error that was corrected.
    Corrected,
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
}

impl KernelLog {
    /// Reads a log; never fails, since whatever is not understood is somebody else's message.
    pub fn read(text: &[u8]) -> KernelLog {
        let mut log = KernelLog::default();
        let mut off_the_bus: Option<String> = None;
        for line in text.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            log.lines += 1;
            let line = String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]);
            let Some(message) = kernel_message(&line) else {
                continue;
            };
            // A dying GPU says its address in one line and its end in one of the next two.
            // `/dev/kmsg` gives all of them as one, with the line breaks escaped.
            let dying = message.strip_prefix("NVRM: The NVIDIA GPU ");
            if let Some(bdf) = dying.and_then(|rest| rest.split([' ', '\\', '\t']).next()) {
                off_the_bus = Some(bdf.to_owned());
            }
            let at_once = dying.is_some_and(|rest| rest.contains("fallen off the bus"));
            let what = if at_once
                || message.starts_with("NVRM: fallen off the bus")
                || message.starts_with("NVRM: has fallen off the bus")
            {
                off_the_bus.take().and_then(|bdf| {
                    Some(What::OffTheBus {
                        bdf: whole_bdf(&bdf)?,
                    })
                })
            } else {
                what(message)
            };
            let Some(what) = what else { continue };
            // A flood of one kind must not hide another: what is not among the kept ones is kept beyond their number.
            let full = log.events.len() >= EVENTS_MAX;
            let is_new = full && log.events.iter().all(|event| event.what != what);
            if !full || is_new && log.events.len() < 2 * EVENTS_MAX {
                log.events.push(KernelEvent {
                    what,
                    quote: quote(message),
                });
            } else {
                log.not_kept += 1;
                log.kinds_lost |= is_new;
            }
        }
        log
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

/// The message of a line of the kernel without its envelope; `None` if somebody else wrote it.
fn kernel_message(line: &str) -> Option<&str> {
    let line = line.trim_end_matches('\r');
    if let Some((head, message)) = line.split_once(';')
        && let Some(priority) = kmsg_priority(head)
    {
        return (priority >> 3 == 0).then_some(message);
    }
    if let Some((head, rest)) = line.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        let priority: u32 = head.parse().ok()?;
        return (priority >> 3 == 0).then(|| without_stamp(rest));
    }
    // dmesg --decode: `kern  :err   : [  1.0] text`.
    if let Some((facility, rest)) = line
        .split_once(':')
        .filter(|(word, _)| is_facility(word.trim_end()))
    {
        let (_, rest) = rest.split_once(": ").or_else(|| rest.split_once(':'))?;
        return (facility.trim_end() == "kern")
            .then(|| without_stamp(without_iso(rest.trim_start())));
    }
    if let Some(message) = syslog_message(line) {
        return message;
    }
    Some(without_stamp(without_iso(line)))
}

/// The priority of a `/dev/kmsg` record's head: `6,1234,567890,-`.
fn kmsg_priority(head: &str) -> Option<u32> {
    let mut fields = head.split(',');
    let priority = fields.next()?.parse().ok()?;
    let numbers = [fields.next()?, fields.next()?];
    let numeric = numbers
        .iter()
        .all(|field| !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit()));
    (numeric && fields.next().is_some()).then_some(priority)
}

fn is_facility(word: &str) -> bool {
    matches!(
        word,
        "kern"
            | "user"
            | "mail"
            | "daemon"
            | "auth"
            | "syslog"
            | "lpr"
            | "news"
            | "local0"
            | "authpriv"
    )
}

/// `Nov 23 22:34:19 host kernel: text` or `2026-11-23T22:34:19+00:00 host kernel: text`: `Some(None)` if the line is of
/// this shape and another program wrote it, `None` if it is not of this shape.
fn syslog_message(line: &str) -> Option<Option<&str>> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let stamp_words = if MONTHS.iter().any(|month| line.starts_with(month)) {
        3
    } else if is_iso_stamp(line.split(' ').next()?) {
        1
    } else {
        return None;
    };
    let mut rest = line;
    for _ in 0..=stamp_words {
        rest = rest.trim_start().split_once(' ')?.1;
    }
    let (tag, message) = rest.split_once(": ")?;
    if tag.contains(' ') {
        return None;
    }
    Some((tag == "kernel").then(|| without_stamp(message)))
}

fn is_iso_stamp(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 19
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && (bytes[10] == b'T' || bytes[10] == b' ')
}

/// A text without an ISO time stamp in front, as `dmesg --time-format iso` writes it.
fn without_iso(text: &str) -> &str {
    match text.split_once(' ') {
        Some((stamp, rest)) if is_iso_stamp(stamp) => rest.trim_start(),
        _ => text,
    }
}

/// A text without `[  123.456789]` in front. Continued lines are indented and have none.
fn without_stamp(text: &str) -> &str {
    let text = text.trim_start();
    match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((stamp, rest)) if stamp.bytes().any(|byte| byte.is_ascii_digit()) => rest.trim_start(),
        _ => text,
    }
}

fn what(message: &str) -> Option<What> {
    if let Some(rest) = message.strip_prefix("NVRM: Xid (") {
        return xid(rest);
    }
    if message.starts_with("nvidia-nvswitch") {
        return sxid(message);
    }
    if let Some(rest) = message.strip_prefix("NEURON_HW_ERR=") {
        return neuron(rest);
    }
    if let Some(rest) = message.strip_prefix("NVRM: GPU ") {
        let bdf = rest.split(':').count() >= 3 && rest.contains("GPU has fallen off the bus");
        return bdf
            .then(|| whole_bdf(rest.split_whitespace().next()?.trim_end_matches(':')))
            .flatten()
            .map(|bdf| What::OffTheBus { bdf });
    }
    if message.starts_with("Out of memory: Killed process")
        || message.starts_with("Memory cgroup out of memory: Killed process")
        || message.starts_with("Out of memory: Kill process")
    {
        return Some(What::OutOfMemory);
    }
    pcie(message)
        .or_else(|| disk(message))
        .or_else(|| machine_check(message))
}

/// `PCI:0000:b9:00): 79, pid=1234, name=python, GPU has fallen off the bus.`
fn xid(rest: &str) -> Option<What> {
    let (place, rest) = rest.split_once("): ")?;
    let bdf = whole_bdf(place.strip_prefix("PCI:").unwrap_or(place))?;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let code = rest[..digits].parse().ok()?;
    let asks_for = (code == 154).then(|| recovery(rest)).flatten();
    let fatal = (144..=150).contains(&code).then(|| {
        let mut words = rest.split_whitespace();
        words.find_map(|word| match word {
            "Fatal" => Some(true),
            "Nonfatal" => Some(false),
            _ => None,
        })
    });
    Some(What::Xid {
        bdf,
        code,
        asks_for,
        fatal: fatal.flatten(),
    })
}

/// `GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)`: what stands behind the last `to`.
fn recovery(text: &str) -> Option<Recovery> {
    let (_, target) = text.rsplit_once(" to ")?;
    let asked = [
        ("Reboot", Recovery::Reboot),
        // "Drain P2P" and "Drain and Reset" end in a reset; "GPU Reset Required" is one.
        ("Reset", Recovery::Reset),
        ("Drain", Recovery::Reset),
        ("None", Recovery::None),
    ];
    asked
        .iter()
        .find(|(word, _)| target.contains(word))
        .map(|(_, recovery)| *recovery)
}

/// `nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 ...`. Lines with the same code that give its
/// severity or data in numbers say nothing new.
fn sxid(message: &str) -> Option<What> {
    let (_, rest) = message.split_once(": SXid (PCI:")?;
    let (bdf, rest) = rest.split_once("): ")?;
    let (code, rest) = rest.split_once(", ")?;
    let fatal = match rest.split([',', ' ']).next()? {
        "Fatal" => true,
        "Non-fatal" => false,
        _ => return None,
    };
    Some(What::Sxid {
        bdf: whole_bdf(bdf)?,
        code: code.parse().ok()?,
        fatal,
    })
}

/// `SRAM_UNCORRECTABLE_ERROR instance-id=.. nd-id=0 nc-id=0 serial-num=.. action=TERMINATE_INSTANCE`
fn neuron(rest: &str) -> Option<What> {
    let mut words = rest.split_whitespace();
    let error = words.next()?;
    let known = error
        .bytes()
        .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        && error.len() <= 64;
    let mut number = |key: &str| words.find_map(|word| word.strip_prefix(key)?.parse().ok());
    let (device, core) = (number("nd-id=")?, number("nc-id=").unwrap_or(0));
    known.then(|| What::Neuron {
        error: error.to_owned(),
        device,
        core,
    })
}

/// `pcieport 0000:00:01.0: AER: Uncorrectable (Fatal) error message received from 0000:16:00.0` and
/// `nvme 0000:5e:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer`.
fn pcie(message: &str) -> Option<What> {
    let (_, said) = message.split_once(": ")?;
    let whose = || {
        message
            .split_whitespace()
            .find_map(|word| whole_bdf(word.trim_end_matches(':')))
    };
    if said.starts_with("PCIe Bus Error: severity=Uncorrect") {
        return Some(What::Pcie { bdf: whose()? });
    }
    let (_, from) = said
        .strip_prefix("AER: Uncorrect")
        .and_then(|rest| rest.rsplit_once(' '))?;
    Some(What::Pcie {
        bdf: whole_bdf(from).or_else(whose)?,
    })
}

/// `I/O error, dev nvme0n1, sector 1234` (`blk_update_request: ` before it on older kernels).
fn disk(message: &str) -> Option<What> {
    let said = message
        .strip_prefix("blk_update_request: ")
        .unwrap_or(message);
    let said = said
        .strip_prefix("critical medium error, dev ")
        .or_else(|| said.strip_prefix("I/O error, dev "))?;
    let device = said
        .split([',', ' '])
        .next()
        .filter(|name| is_plain(name))?;
    // A loop or network device fails with what is behind it.
    let real = ["nvme", "sd", "vd", "xvd", "dm-", "md"]
        .iter()
        .any(|prefix| device.starts_with(prefix));
    real.then(|| What::Disk {
        device: device.to_owned(),
    })
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 32
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Machine checks, EDAC and firmware-first (GHES) memory errors. Only the line that names the severity counts, since
/// each error comes with a dozen lines of registers.
fn machine_check(message: &str) -> Option<What> {
    let said = message.strip_prefix("mce: ").unwrap_or(message);
    let said = said.strip_prefix("[Hardware Error]: ").unwrap_or(said);
    let marked = said.len() != message.len();
    if let Some(rest) = message
        .strip_prefix("EDAC MC")
        .or_else(|| message.strip_prefix("EDAC "))
    {
        let words: Vec<&str> = rest.split_whitespace().take(4).collect();
        let at = |word: &str| words.contains(&word);
        return match (at("UE"), at("CE")) {
            (true, _) => Some(What::HardwareError),
            (false, true) => Some(What::Corrected),
            (false, false) => None,
        };
    }
    if !marked {
        let panics = message.starts_with("Kernel panic - not syncing: Fatal machine check");
        let poisoned = message.starts_with("Memory failure: ")
            && message.contains("hardware memory corruption");
        return (panics || poisoned).then_some(What::HardwareError);
    }
    if said.starts_with("event severity: corrected") || said.starts_with("Corrected error") {
        return Some(What::Corrected);
    }
    let fatal = [
        "event severity: fatal",
        "event severity: recoverable",
        "Uncorrected",
        "Deferred error",
    ];
    if fatal.iter().any(|mark| said.starts_with(mark)) {
        return Some(What::HardwareError);
    }
    // `CPU 3: Machine Check: 0 Bank 7: 8c00004000010091`: bit 61 (UC) of the status tells which it is (Intel SDM 15.3.2.2).
    let status = said
        .strip_prefix("CPU ")
        .filter(|rest| rest.contains("Machine Check"))
        .and_then(|rest| rest.rsplit(' ').next());
    let status = u64::from_str_radix(status?, 16).ok()?;
    Some(if status >> 61 & 1 == 1 {
        What::HardwareError
    } else {
        What::Corrected
    })
}

/// A PCI address with domain and function, in lower case: `0000:b9:00` becomes `0000:b9:00.0`.
fn whole_bdf(text: &str) -> Option<String> {
    let (place, function) = text.split_once('.').unwrap_or((text, "0"));
    let fields: Vec<&str> = place.split(':').collect();
    let (domain, bus, device) = match fields[..] {
        [bus, device] => ("0000", bus, device),
        [domain, bus, device] => (domain, bus, device),
        _ => return None,
    };
    let hex = |field: &str, from: usize, to: usize| {
        (from..=to).contains(&field.len()) && field.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let sound = hex(domain, 4, 8) && hex(bus, 2, 2) && hex(device, 2, 2) && hex(function, 1, 1);
    // NVML writes the domain with eight digits, everybody else with four.
    let domain = domain
        .strip_prefix("0000")
        .filter(|short| short.len() == 4)
        .unwrap_or(domain);
    sound.then(|| format!("{domain}:{bus}:{device}.{function}").to_ascii_lowercase())
}

fn quote(message: &str) -> String {
    let cut: String = message.chars().take(QUOTE_MAX).collect();
    cut.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

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

/// The fault class of an event, given the whole log: some Xids mean different things in company.
pub fn fault_class(event: &What, log: &KernelLog) -> &'static str {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(text: &str) -> Vec<What> {
        KernelLog::read(text.as_bytes())
            .events
            .into_iter()
            .map(|event| event.what)
            .collect()
    }

    fn classes(text: &str) -> Vec<&'static str> {
        let log = KernelLog::read(text.as_bytes());
        log.events
            .iter()
            .map(|event| fault_class(&event.what, &log))
            .collect()
    }

    fn xid_79() -> What {
        What::Xid {
            bdf: "0000:b9:00.0".into(),
            code: 79,
            asks_for: None,
            fatal: None,
        }
    }

    #[test]
    fn an_xid_is_found_in_every_envelope() {
        let message =
            "NVRM: Xid (PCI:0000:b9:00): 79, pid=1234, name=python, GPU has fallen off the bus.";
        for envelope in [
            "",
            "4,1234,567890,-;",
            "<4>[  201.673948] ",
            "[  201.673948] ",
            "[Mon Nov 23 22:34:19 2026] ",
            "kern  :warn  : [  201.673948] ",
            "kern  :warn  : 2026-11-23T22:34:19,123456+00:00 ",
            "2026-11-23T22:34:19,123456+00:00 ",
            "Nov  3 22:34:19 ip-10-0-1-7 kernel: [  201.673948] ",
            "Nov 23 22:34:19 ip-10-0-1-7 kernel: ",
            "2026-11-23T22:34:19.123456+00:00 ip-10-0-1-7 kernel: ",
        ] {
            assert_eq!(
                events(&format!("{envelope}{message}\n")),
                [xid_79()],
                "in `{envelope}`"
            );
        }
    }

    #[test]
    fn what_a_process_writes_accuses_nothing() {
        let message = "NVRM: Xid (PCI:0000:b9:00): 79, GPU has fallen off the bus.";
        for envelope in [
            "12,1234,567890,-;",
            "<12>",
            "user  :warn  : [  201.673948] ",
            "Nov 23 22:34:19 host python[77]: ",
            "Nov 23 22:34:19 host app: kernel: ",
            "[  1.0] audit: ",
            "6,1,2,-;systemd: ",
        ] {
            assert_eq!(
                events(&format!("{envelope}{message}\n")),
                [],
                "in `{envelope}`"
            );
        }
    }

    #[test]
    fn a_process_name_may_hold_anything() {
        let text = "NVRM: Xid (PCI:0000:b9:00): 79, pid='<unknown>', name=a, b: 13 (PCI:0000:01:00): 48, lost\n";
        assert_eq!(events(text), [xid_79()]);
    }

    #[test]
    fn old_and_short_xid_lines_are_read() {
        for text in [
            "NVRM: Xid (0000:b9:00): 79, Channel 00000001\n",
            "NVRM: Xid (PCI:0000:b9:00.0): 79\n",
        ] {
            assert_eq!(events(text), [xid_79()]);
        }
        for text in [
            "NVRM: Xid (PCI:0000:b9:00): abc\n",
            "NVRM: Xid : 32\n",
            "NVRM: Xid (PCI:zz): 79\n",
        ] {
            assert_eq!(events(text), []);
        }
    }

    #[test]
    fn the_text_of_xid_154_is_trusted_over_the_catalogue() {
        let ask = |what: &str| {
            format!(
                "NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to {what}\n"
            )
        };
        assert_eq!(
            classes(&ask("0x2 (Node Reboot Required)")),
            ["gpu.needs_reboot"]
        );
        assert_eq!(
            classes(&ask("0x1 (GPU Reset Required)")),
            ["gpu.needs_reset"]
        );
        assert_eq!(classes(&ask("0x3 (Drain P2P)")), ["gpu.needs_reset"]);
        assert_eq!(classes(&ask("0x0 (None)")), ["gpu.application"]);
        assert_eq!(
            classes("NVRM: Xid (PCI:0008:01:00): 154, something new\n"),
            ["gpu.suspect"]
        );
    }

    #[test]
    fn a_double_bit_error_is_graver_when_the_remap_failed_on_the_same_gpu() {
        let dbe = "NVRM: Xid (PCI:0000:01:00): 48, DBE\n";
        assert_eq!(classes(dbe), ["gpu.memory.uncorrectable_now"]);
        let same = format!("{dbe}NVRM: Xid (PCI:0000:01:00): 64, Row remapping failure\n");
        assert_eq!(
            classes(&same),
            ["gpu.memory.remap_failed", "gpu.memory.remap_failed"]
        );
        let other = format!("{dbe}NVRM: Xid (PCI:0000:02:00): 64, Row remapping failure\n");
        assert_eq!(
            classes(&other),
            ["gpu.memory.uncorrectable_now", "gpu.memory.remap_failed"]
        );
    }

    #[test]
    fn an_application_s_own_fault_does_not_accuse_the_gpu() {
        for code in [13, 31, 43, 45, 69, 94] {
            assert_eq!(
                classes(&format!("NVRM: Xid (PCI:0000:01:00): {code}, x\n")),
                ["gpu.application"],
                "{code}"
            );
        }
        assert_eq!(
            classes("NVRM: Xid (PCI:0000:01:00): 999, x\n"),
            ["gpu.suspect"]
        );
        assert_eq!(
            classes("NVRM: Xid (PCI:0000:01:00): 119, x\n"),
            ["gpu.needs_reset"]
        );
    }

    #[test]
    fn nvlink_5_errors_follow_their_own_severity() {
        let line = |severity: &str| {
            format!(
                "NVRM: Xid (PCI:0000:04:00): 145, RLW_REMAP {severity} XC0 i0 Link -1 (0x00000004 0x00000040)\n"
            )
        };
        assert_eq!(classes(&line("Fatal")), ["nvlink.errors"]);
        assert_eq!(classes(&line("Nonfatal")), ["gpu.application"]);
    }

    #[test]
    fn a_switch_error_counts_once_and_by_its_severity() {
        let text = "nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Fatal, Link 28 sourcetrack timeout error (First)\n\
                    nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Severity 1 Engine instance 00\n\
                    nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Data {0x50610002, 0x10100030}\n\
                    nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress\n";
        assert_eq!(classes(text), ["nvswitch.fatal", "nvswitch.nonfatal"]);
    }

    #[test]
    fn a_gpu_that_dies_without_an_xid_is_found_in_three_lines() {
        let text = "[ 1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0\n\
                    \x20              NVRM: (PCI ID: 10de:26b5) installed in this system has\n\
                    \x20              NVRM: fallen off the bus and is not responding to commands.\n";
        assert_eq!(
            events(text),
            [What::OffTheBus {
                bdf: "0000:b3:00.0".into()
            }]
        );
    }

    #[test]
    fn a_neuron_error_names_device_and_core() {
        let text = "6,1,2,-;NEURON_HW_ERR=SRAM_UNCORRECTABLE_ERROR instance-id=i-0 hostname=h nd-id=3 nc-id=1 \
                    serial-num=19fcda00f5ff6eb9 action=TERMINATE_INSTANCE\n";
        assert_eq!(
            events(text),
            [What::Neuron {
                error: "SRAM_UNCORRECTABLE_ERROR".into(),
                device: 3,
                core: 1
            }]
        );
        assert_eq!(classes(text), ["neuron.uncorrectable"]);
        assert_eq!(
            classes("NEURON_HW_ERR=DMA_ERROR nd-id=0 nc-id=0\n"),
            ["neuron.hardware"]
        );
    }

    #[test]
    fn machine_checks_are_told_apart_by_severity() {
        let class = |text: &str| classes(text);
        assert_eq!(
            class("mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 7: be00000000800400\n"),
            ["host.kernel.mce"]
        );
        assert_eq!(
            class("mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 7: 8c00004000010091\n"),
            ["host.kernel.corrected"]
        );
        assert_eq!(
            class("EDAC MC0: 1 UE memory read error on CPU_SrcID#0\n"),
            ["host.kernel.mce"]
        );
        assert_eq!(
            class("EDAC MC0: 1 CE memory read error on CPU_SrcID#0\n"),
            ["host.kernel.corrected"]
        );
        assert_eq!(
            class(
                "{1}[Hardware Error]: It has been corrected\nmce: CPU0: Thermal monitoring enabled\n"
            ),
            [] as [&str; 0]
        );
    }

    #[test]
    fn pcie_disk_and_memory_lines_are_found() {
        assert_eq!(
            events(
                "pcieport 0000:00:01.0: AER: Uncorrectable (Fatal) error message received from 0000:16:00.0\n"
            ),
            [What::Pcie {
                bdf: "0000:16:00.0".into()
            }]
        );
        assert_eq!(
            events(
                "nvme 0000:5e:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer\n"
            ),
            [What::Pcie {
                bdf: "0000:5e:00.0".into()
            }]
        );
        assert_eq!(
            events(
                "nvme 0000:5e:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer\n"
            ),
            []
        );
        assert_eq!(
            events(
                "blk_update_request: I/O error, dev nvme1n1, sector 8 op 0x0\nI/O error, dev loop0, sector 1\n"
            ),
            [What::Disk {
                device: "nvme1n1".into()
            }]
        );
        assert_eq!(
            events("Out of memory: Killed process 77 (python) total-vm:1kB\n"),
            [What::OutOfMemory]
        );
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let text = "NVRM: Xid (PCI:0000:b9:00): 79, x\n".repeat(3000);
        let log = KernelLog::read(text.as_bytes());
        assert_eq!(
            (log.events.len(), log.not_kept, log.lines),
            (1000, 2000, 3000)
        );
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other() {
        let flood = "NVRM: Xid (PCI:0000:b9:00): 31, x\n".repeat(3000);
        let log = KernelLog::read(format!("{flood}NVRM: Xid (PCI:0000:b9:00): 79, x\n").as_bytes());
        assert!(log.xids_of("0000:b9:00.0").contains(&79));
        assert!(!log.kinds_lost);
    }

    #[test]
    fn a_gpu_that_dies_is_found_in_one_record_of_the_kernel_and_in_its_short_form() {
        let gone = [What::OffTheBus {
            bdf: "0000:06:00.0".to_owned(),
        }];
        let record = "NVRM: The NVIDIA GPU 0000:06:00.0\\x0aNVRM: (PCI ID: 10de:2330) installed in this system has\\x0aNVRM: fallen off the bus and is not responding to commands.\n";
        assert_eq!(events(record), gone);
        assert_eq!(
            events("NVRM: GPU 0000:06:00.0: GPU has fallen off the bus.\n"),
            gone
        );
    }

    #[test]
    fn a_quotation_is_printable() {
        let log = KernelLog::read(b"NVRM: Xid (PCI:0000:b9:00): 79, \x1b[31mred\xff\n");
        assert!(
            log.events[0].quote.chars().all(|c| !c.is_control()),
            "{:?}",
            log.events[0].quote
        );
    }

    #[test]
    fn every_row_of_the_catalogue_can_be_read() {
        let rows: Vec<&str> = include_str!("xid.tsv")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert!(rows.len() > 100);
        for row in rows {
            let code = row.split('\t').next().unwrap().parse().unwrap();
            assert!(
                xid_entry(code).is_some_and(|entry| !entry.mnemonic.is_empty()),
                "{row}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_log_makes_the_reader_panic(text in prop::collection::vec(any::<u8>(), 0..600)) {
            KernelLog::read(&text);
        }

        #[test]
        fn marks_with_arbitrary_ends_do_not_panic(
            mark in prop::sample::select(vec![
                "NVRM: Xid (PCI:", "nvidia-nvswitch0: SXid (PCI:", "NEURON_HW_ERR=", "NVRM: The NVIDIA GPU ", "mce: [Hardware Error]: ", "<", "6,1,2,-;", "[",
            ]),
            rest in "\\PC{0,80}",
        ) {
            KernelLog::read(format!("{mark}{rest}\n").as_bytes());
        }
    }
}
