//! The RDMA devices of the machine: `/sys/class/infiniband` (Linux, Documentation/ABI/stable/sysfs-class-infiniband).
//! InfiniBand, RoCE and EFA cards all stand there.

use super::files::malformed;
use super::{Host, PciKind, ReadError};

const DEVICES: &str = "/sys/class/infiniband";

/// An RDMA device with a PCI function behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaDevice {
    /// Its name: `mlx5_0`, `rdmap16s27`.
    pub name: String,
    /// Whether it is an EFA card.
    pub is_efa: bool,
    /// The PCI address.
    pub bdf: String,
    /// The globally unique id of the node, empty where the kernel does not say.
    pub guid: String,
}

/// The RDMA devices of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaDevices {
    /// Those of which it is known what they are.
    pub known: Vec<RdmaDevice>,
    /// Why it is not known of the others: each may be any card.
    pub unknown: Vec<ReadError>,
}

/// A port as the kernel shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RdmaPort {
    /// Its number.
    pub number: u32,
    /// Its state in the kernel's word: ACTIVE, DOWN, INIT, ARMED.
    pub state: Result<String, ReadError>,
    /// What its link is, in the kernel's word, empty where it does not say: `LinkUp`, `Polling`, `Disabled`.
    pub physical: String,
    /// `InfiniBand` or `Ethernet`.
    pub link_layer: String,
    /// Its rate in Gbit/s.
    pub rate_gbit_per_s: Result<f64, ReadError>,
}

impl Host {
    /// The RDMA devices with a PCI function behind them; those made of software have none and are left out.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn rdma_devices(&self) -> Result<RdmaDevices, ReadError> {
        let names = match self.list(DEVICES) {
            Ok(names) => names,
            Err(error) if error.is_absent() => return Ok(RdmaDevices::default()),
            Err(error) => return Err(error),
        };
        let mut devices = RdmaDevices::default();
        for name in names {
            match self.rdma_device(name) {
                Ok(device) => devices.known.extend(device),
                Err(error) => devices.unknown.push(error),
            }
        }
        Ok(devices)
    }

    /// The addresses of the cards of this kind on the PCI bus that have none of these RDMA devices: no driver has taken them, or
    /// not for RDMA.
    ///
    /// # Errors
    /// When the bus, or what one of its functions is, cannot be read: nobody can tell then whether a card is there.
    pub fn without_rdma_device(
        &self,
        kind: PciKind,
        devices: &[RdmaDevice],
    ) -> Result<Vec<String>, ReadError> {
        let has_none = |bdf: &str| devices.iter().all(|device| device.bdf != bdf);
        let cards = self.pci_cards()?;
        let stands_for_others = |error: &ReadError| matches!(error, ReadError::Blocked { .. });
        let mut unknown = cards.unknown(kind);
        if let Some((_, error)) =
            unknown.find(|(bdf, error)| has_none(bdf) || stands_for_others(error))
        {
            return Err(error.clone());
        }
        let left = cards.known(kind).filter(|bdf| has_none(bdf));
        let left = left.filter(|bdf| !self.pci_is_virtual(bdf));
        Ok(left.map(str::to_owned).collect())
    }

    /// What a device is; `None` for one that is made of software.
    fn rdma_device(&self, name: String) -> Result<Option<RdmaDevice>, ReadError> {
        let folder = format!("{DEVICES}/{name}");
        let bdf = self.link(format!("{folder}/device")).unwrap_or_default();
        let vendor = match self.pci_number(&format!("{folder}/device/vendor")) {
            Err(error) if error.is_absent() && !is_bdf(&bdf) => return Ok(None),
            vendor => vendor?,
        };
        let is_efa = PciKind::may_be(&vendor).contains(&PciKind::Efa) && {
            let device = self.pci_number(&format!("{folder}/device/device"))?;
            PciKind::of(&vendor, &device, "") == Some(PciKind::Efa)
        };
        Ok(Some(RdmaDevice {
            is_efa,
            bdf,
            guid: self.text(format!("{folder}/node_guid")).unwrap_or_default(),
            name,
        }))
    }

    /// A number of PCI's as sysfs writes it, such as `0x1d0f`.
    fn pci_number(&self, path: &str) -> Result<String, ReadError> {
        let text = self.text(path)?;
        match text.strip_prefix("0x") {
            Some(digits) if u32::from_str_radix(digits, 16).is_ok() => Ok(text),
            _ => Err(malformed(path.as_ref(), text.as_bytes(), "a PCI number")),
        }
    }

    /// The ports of a device, in order.
    ///
    /// # Errors
    /// When the device shows no ports, or they cannot be listed.
    pub fn rdma_ports(&self, device: &str) -> Result<Vec<RdmaPort>, ReadError> {
        let folder = format!("{DEVICES}/{device}/ports");
        let mut numbers: Vec<u32> = self
            .list(&folder)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        numbers.sort_unstable();
        let port = |number: u32| {
            let text = |file: &str| self.text(format!("{folder}/{number}/{file}"));
            // `4: ACTIVE`, `5: LinkUp`
            let word = |text: String| match text.split_once(": ") {
                Some((_, word)) => word.to_owned(),
                None => text,
            };
            RdmaPort {
                number,
                state: text("state").and_then(|state| match state.as_str() {
                    "" => Err(malformed(
                        format!("{folder}/{number}/state").as_ref(),
                        b"",
                        "a port's state",
                    )),
                    _ => Ok(word(state)),
                }),
                physical: text("phys_state").map(word).unwrap_or_default(),
                link_layer: text("link_layer").unwrap_or_default(),
                // `100 Gb/sec (4X EDR)`
                rate_gbit_per_s: text("rate").and_then(|text| {
                    let before = text.split_once(" Gb/sec");
                    let rate = before.and_then(|(rate, _)| rate.trim().parse::<f64>().ok());
                    rate.filter(|rate| rate.is_finite() && *rate >= 0.0)
                        .ok_or_else(|| {
                            let path = format!("{folder}/{number}/rate");
                            malformed(path.as_ref(), text.as_bytes(), "a rate")
                        })
                }),
            }
        };
        Ok(numbers.into_iter().map(port).collect())
    }

    /// A counter of a port.
    ///
    /// # Errors
    /// See [`ReadError`]; RoCE and virtual functions lack some.
    pub fn rdma_counter(&self, device: &str, port: u32, name: &str) -> Result<u64, ReadError> {
        self.number(format!("{DEVICES}/{device}/ports/{port}/counters/{name}"))
    }
}

/// Whether a name is a PCI address: `0000:52:00.0`.
fn is_bdf(name: &str) -> bool {
    let mut parts = name.split([':', '.']);
    let is_hex =
        |part: Option<&str>| part.is_some_and(|part| u32::from_str_radix(part, 16).is_ok());
    (0..4).all(|_| is_hex(parts.next())) && parts.next().is_none()
}
