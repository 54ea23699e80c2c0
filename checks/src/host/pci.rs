//! Accelerators and network cards as the kernel sees them on the PCI bus, whatever their drivers do.

use super::{Host, ReadError};

const FUNCTIONS: &str = "/sys/bus/pci/devices";

const NVIDIA: &str = "0x10de";
const AMAZON: &str = "0x1d0f";
const MELLANOX: &str = "0x15b3";

/// The PCI device numbers of Inferentia (0x70..), Trainium (0x71..), Inferentia 2 (0x72..), Trainium 2 (0x73..) and Trainium 3
/// (0x75..): aws-neuron-driver 2.24.7, `neuron_device.h`; those of Trainium 3 from a published reading of 2.27.4's
/// `neuron_device.h` and `neuron_pci.c` (`TRN3_DEVICE_ID0` and `1`), which was not at hand itself.
const NEURON: [&str; 9] = [
    "0x7064", "0x7065", "0x7066", "0x7067", "0x7164", "0x7264", "0x7364", "0x7564", "0x7565",
];

/// What a PCI function is, if it is one that checks look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciKind {
    /// An NVIDIA GPU, with or without a display.
    Gpu,
    /// An EFA card.
    Efa,
    /// A network card of Mellanox, which InfiniBand and RoCE cards are.
    RdmaNic,
    /// A Neuron device.
    Neuron,
}

impl PciKind {
    /// What a function is by the numbers that sysfs shows of it.
    pub fn of(vendor: &str, device: &str, class: &str) -> Option<PciKind> {
        match (vendor, class.get(..4)) {
            // PCI class 03xxxx is a display controller, 02xxxx a network controller.
            (NVIDIA, Some("0x03")) => Some(PciKind::Gpu),
            (MELLANOX, Some("0x02")) => Some(PciKind::RdmaNic),
            // 0xefa0, 0xefa1 and so on (rdma-core, `providers/efa`).
            (AMAZON, _) if device.starts_with("0xefa") => Some(PciKind::Efa),
            (AMAZON, _) if NEURON.contains(&device) => Some(PciKind::Neuron),
            _ => None,
        }
    }

    /// What a function of this vendor may be.
    pub fn may_be(vendor: &str) -> &'static [PciKind] {
        match vendor {
            NVIDIA => &[PciKind::Gpu],
            AMAZON => &[PciKind::Efa, PciKind::Neuron],
            MELLANOX => &[PciKind::RdmaNic],
            _ => &[],
        }
    }
}

/// The accelerators and network cards on the bus.
#[derive(Debug, Default)]
pub struct PciCards {
    known: Vec<(String, PciKind)>,
    unknown: Vec<Unread>,
}

/// A function that does not say what it is.
#[derive(Debug)]
struct Unread {
    bdf: String,
    may_be: &'static [PciKind],
    why: ReadError,
}

impl PciCards {
    /// The addresses of those that are of this kind.
    pub fn known(&self, kind: PciKind) -> impl Iterator<Item = &str> {
        let of_kind = self.known.iter().filter(move |(_, one)| *one == kind);
        of_kind.map(|(bdf, _)| bdf.as_str())
    }

    /// Those that may be of this kind, and why it is not known. One that does not answer may be anything and stands for all
    /// after it, which are not asked any more: each would cost its whole time limit.
    pub fn unknown(&self, kind: PciKind) -> impl Iterator<Item = (&str, &ReadError)> {
        let may_be = self
            .unknown
            .iter()
            .filter(move |one| one.may_be.contains(&kind));
        may_be.map(|one| (one.bdf.as_str(), &one.why))
    }
}

impl Host {
    /// The accelerators and network cards on the PCI bus.
    ///
    /// # Errors
    /// When the functions cannot be listed, or there is no bus: where sysfs is not that of the machine, nobody can tell.
    pub fn pci_cards(&self) -> Result<PciCards, ReadError> {
        const ANYTHING: &[PciKind] = &[
            PciKind::Gpu,
            PciKind::Efa,
            PciKind::RdmaNic,
            PciKind::Neuron,
        ];
        let mut cards = PciCards::default();
        for bdf in self.list(FUNCTIONS)? {
            let word = |file: &str| self.text(format!("{FUNCTIONS}/{bdf}/{file}"));
            let (may_be, kind) = match word("vendor") {
                Ok(vendor) => {
                    let may_be = PciKind::may_be(&vendor);
                    let kind = || Ok(PciKind::of(&vendor, &word("device")?, &word("class")?));
                    (may_be, if may_be.is_empty() { Ok(None) } else { kind() })
                }
                Err(error) => (ANYTHING, Err(error)),
            };
            match kind {
                Ok(kind) => cards.known.extend(kind.map(|kind| (bdf, kind))),
                // Gone since the list was made.
                Err(error) if error.is_absent() => {}
                Err(why @ ReadError::Blocked { .. }) => {
                    let may_be = ANYTHING;
                    cards.unknown.push(Unread { bdf, may_be, why });
                    break;
                }
                Err(why) => cards.unknown.push(Unread { bdf, may_be, why }),
            }
        }
        Ok(cards)
    }

    /// The name of the driver that has a function, if one has.
    ///
    /// # Errors
    /// When nobody can tell.
    pub fn pci_driver(&self, bdf: &str) -> Result<Option<String>, ReadError> {
        match self.link(format!("{FUNCTIONS}/{bdf}/driver")) {
            Err(error) if error.is_absent() => Ok(None),
            driver => driver.map(Some),
        }
    }

    /// Whether a function is a virtual one (SR-IOV): a part of a card that is on the bus by itself.
    pub fn pci_is_virtual(&self, bdf: &str) -> bool {
        self.link(format!("{FUNCTIONS}/{bdf}/physfn")).is_ok()
    }
}
