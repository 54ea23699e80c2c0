//! Small texts of Linux: `/proc/meminfo`, lists of CPUs, PCIe speeds, AER counters.

/// The `MemTotal` of `/proc/meminfo`, in KiB (which the file calls `kB`).
pub fn mem_total_kib(meminfo: &str) -> Option<u64> {
    meminfo_kib(meminfo, "MemTotal:")
}

/// The `MemAvailable` of `/proc/meminfo`, in KiB: what can be taken without swapping (since Linux 3.14).
pub fn mem_available_kib(meminfo: &str) -> Option<u64> {
    meminfo_kib(meminfo, "MemAvailable:")
}

fn meminfo_kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The numbers below 65,536 that a list such as `0-3,8,10-11` names; an empty list names none.
pub fn list(list: &str) -> Option<Vec<u64>> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u16, u16) = (from.parse().ok()?, to.parse().ok()?);
        numbers.extend((from..=to).map(u64::from));
    }
    Some(numbers)
}

/// How many numbers a list such as `0-3,8,10-11` names (Linux, Documentation/admin-guide/cputopology.rst). At least one of
/// what is counted so, CPUs and NUMA nodes, is always online: an empty list is one that was not read.
pub fn list_length(list: &str) -> Option<u64> {
    let mut count = 0_u64;
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
        count = count.checked_add(to.checked_sub(from)?.checked_add(1)?)?;
    }
    Some(count)
}

/// A PCIe speed in GT/s: `32.0 GT/s PCIe`. `Unknown` and the like have none.
pub fn pcie_speed(text: &str) -> Option<f64> {
    let number = text
        .split(" GT/s")
        .next()
        .filter(|number| number.len() < text.len())?;
    number
        .trim()
        .parse()
        .ok()
        .filter(|speed: &f64| speed.is_finite() && *speed > 0.0)
}

/// A PCIe width in lanes; 0 and 255 mean that the device does not say.
pub fn pcie_width(text: &str) -> Option<u64> {
    text.trim()
        .parse()
        .ok()
        .filter(|width| (1..=32).contains(width))
}

/// Whether a width is what a function shows that has fallen off the bus: its registers read as ones alone, and the width is
/// the six bits of one of them.
pub fn is_off_the_bus(width: &str) -> bool {
    width.trim() == "63"
}

/// The sum of an AER counter file: its last line is `TOTAL_ERR_COR 3`, `TOTAL_ERR_FATAL 0` or `TOTAL_ERR_NONFATAL 0`
/// (Linux, Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats).
pub fn aer_total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("TOTAL_ERR_"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mem_total_is_read_and_a_cut_line_is_not() {
        assert_eq!(
            mem_total_kib("MemTotal:       2113363096 kB\nMemFree: 1 kB\n"),
            Some(2_113_363_096)
        );
        assert_eq!(mem_total_kib("MemTotal:       21133"), None);
        assert_eq!(mem_total_kib(""), None);
    }

    #[test]
    fn lists_of_cpus_are_written_out() {
        assert_eq!(list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(list(""), Some(vec![]));
        assert_eq!((list("0-x"), list("0-65536")), (None, None));
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(list_length("0-191\n"), Some(192));
        assert_eq!(list_length("0-3,8,10-11"), Some(7));
        assert_eq!((list_length(""), list_length("0-3,\n")), (None, None));
        assert_eq!(list_length("3-0"), None);
        assert_eq!(list_length("0-18446744073709551615"), None);
    }

    #[test]
    fn links_that_do_not_say_their_speed_have_none() {
        assert_eq!(pcie_speed("32.0 GT/s PCIe"), Some(32.0));
        assert_eq!(pcie_speed("2.5 GT/s"), Some(2.5));
        assert_eq!(pcie_speed("Unknown"), None);
        assert_eq!(pcie_speed("32.0"), None);
        assert_eq!(
            (pcie_width("16"), pcie_width("0"), pcie_width("255")),
            (Some(16), None, None)
        );
        assert!(is_off_the_bus("63\n") && !is_off_the_bus("16") && pcie_width("63").is_none());
    }

    #[test]
    fn the_total_of_an_aer_file_is_its_own_line() {
        let text = "Undefined 0\nDLP 2\nSDES 1\nTOTAL_ERR_FATAL 3\n";
        assert_eq!(aer_total(text), Some(3));
        assert_eq!(aer_total("Undefined 0\nDLP 2\n"), None);
    }
}
