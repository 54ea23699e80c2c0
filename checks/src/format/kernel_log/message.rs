//! The shapes of single messages that speak of hardware.
//!
//! Xid and SXid lines follow NVIDIA's "Xid Errors" and logs of users; Neuron lines AWS Neuron SDK, "Neuron Runtime
//! Troubleshooting"; the others `arch/x86/kernel/cpu/mce/core.c`, `drivers/edac/edac_mc.c`, `drivers/firmware/efi/cper.c`,
//! `mm/oom_kill.c`, `drivers/pci/pcie/aer.c` and `block/blk-core.c` of Linux.

use super::{Recovery, What};

/// What a message of the kernel says of hardware, if it says anything.
pub(super) fn what(message: &str) -> Option<What> {
    if let Some(rest) = message.strip_prefix("NVRM: Xid (") {
        return xid(rest);
    }
    if message.starts_with("nvidia-nvswitch") {
        return sxid(message);
    }
    if let Some(what) = neuron(message) {
        return Some(what);
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

/// `PCI:0000:b9:00): 79, pid=1234, name=python, GPU has fallen off the bus.`, and `PCI:0000:b9:00 GPU-I:05): 94, ...` of an
/// instance of a divided GPU, which is one piece of hardware with all others.
fn xid(rest: &str) -> Option<What> {
    let (place, rest) = rest.split_once("): ")?;
    let place = place.split(' ').next()?;
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
        ("IMEX", Recovery::Fabric),
        ("0x5", Recovery::Fabric),
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

/// `nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 ...`, or `26006, SOE HALTED` without a word of how
/// grave it is. Lines with the same code that give its severity or data in numbers say nothing new.
fn sxid(message: &str) -> Option<What> {
    let (_, rest) = message.split_once(": SXid (PCI:")?;
    let (bdf, rest) = rest.split_once("): ")?;
    let (code, rest) = rest.split_once(", ")?;
    let fatal = match rest.split([',', ' ']).next()? {
        "Fatal" => Some(true),
        "Non-fatal" => Some(false),
        "Severity" | "Data" => return None,
        _ => None,
    };
    Some(What::Sxid {
        bdf: whole_bdf(bdf)?,
        code: code.parse().ok()?,
        fatal,
    })
}

/// `NEURON_HW_ERR=SRAM_UNCORRECTABLE_ERROR instance-id=.. nd-id=0 nc-id=0 serial-num=.. action=TERMINATE_INSTANCE`, with a
/// stamp or `neuron0: ` before the mark, and `device=0` or nothing in place of `nd-id=0`.
///
/// The kernel also prints names that processes gave themselves (up to 15 bytes) and their programs: neither may look like
/// such a line.
fn neuron(message: &str) -> Option<What> {
    let (before, rest) = message.split_once("NEURON_HW_ERR=")?;
    let is_stamp_or_driver = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            || word.starts_with("neuron")
            || word.starts_with("NRT")
    };
    if !before.split_whitespace().all(is_stamp_or_driver) {
        return None;
    }
    let error = rest.split_whitespace().next()?;
    let is_name = error
        .bytes()
        .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    let known = is_name && (5..=64).contains(&error.len());
    let number = |key: &str| {
        let mut words = rest.split([' ', '\t', ',']);
        words.find_map(|word| word.strip_prefix(key)?.parse().ok())
    };
    let prefix = || {
        let mut words = before.split_whitespace();
        words.find_map(|word| {
            word.strip_prefix("neuron")?
                .trim_end_matches(':')
                .parse()
                .ok()
        })
    };
    known.then(|| What::Neuron {
        error: error.to_owned(),
        device: number("nd-id=")
            .or_else(|| number("device="))
            .or_else(prefix),
        core: number("nc-id=").or_else(|| number("core=")),
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
    let aer = said.strip_prefix("AER: ");
    let told = aer.unwrap_or(said);
    if told.starts_with("PCIe Bus Error: severity=Uncorrect") {
        return Some(What::Pcie { bdf: whose()? });
    }
    let told = aer?;
    let (_, from) = told
        .strip_prefix("Multiple ")
        .unwrap_or(told)
        .strip_prefix("Uncorrect")
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

/// Machine checks and EDAC's memory errors. Only the line that names the severity counts, since each error comes with a
/// dozen lines of registers.
fn machine_check(message: &str) -> Option<What> {
    let said = message.strip_prefix("mce: ").unwrap_or(message);
    let said = said.strip_prefix("[Hardware Error]: ").unwrap_or(said);
    let marked = said.len() != message.len();
    if let Some(rest) = message.strip_prefix("EDAC MC") {
        return memory_controller(rest);
    }
    if !marked {
        let panics = message.starts_with("Kernel panic - not syncing: Fatal machine check");
        let poisoned = message.starts_with("Memory failure: ")
            && message.contains("hardware memory corruption");
        return (panics || poisoned).then_some(What::HardwareError);
    }
    if said.starts_with("Corrected error") {
        return Some(What::Corrected);
    }
    if said.starts_with("Uncorrected") || said.starts_with("Deferred error") {
        return Some(What::HardwareError);
    }
    // `CPU 3: Machine Check: 0 Bank 7: 8c00004000010091`: bit 61 (UC) of the status tells which it is (Intel SDM 15.3.2.2).
    let (cpu, rest) = said.strip_prefix("CPU ")?.split_once(": Machine Check")?;
    is_number(cpu).then_some(())?;
    let status = u64::from_str_radix(rest.rsplit(' ').next()?, 16).ok()?;
    Some(if status >> 61 & 1 == 1 {
        What::HardwareError
    } else {
        What::Corrected
    })
}

/// `0: 1 UE memory read error on CPU_SrcID#0_Channel#1 (channel:1 slot:0 page:0x12 ...)` behind `EDAC MC`. The whole shape
/// counts: a process may call itself `EDAC MC0: 1 UE`, and the kernel prints that name when it crashes.
fn memory_controller(rest: &str) -> Option<What> {
    let (controller, rest) = rest.split_once(": ")?;
    let (count, rest) = rest.split_once(' ')?;
    let (kind, said) = rest.split_once(' ')?;
    let (_, place) = said.split_once("on ")?.1.split_once(" (")?;
    let is_place = place.split_whitespace().next()?.contains(':') && !said.starts_with('[');
    let whole = is_number(controller) && is_number(count) && is_place;
    match kind {
        "UE" if whole => Some(What::HardwareError),
        "CE" if whole => Some(What::Corrected),
        _ => None,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A PCI address with domain and function, in lower case: `0000:b9:00` becomes `0000:b9:00.0`.
pub(super) fn whole_bdf(text: &str) -> Option<String> {
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
