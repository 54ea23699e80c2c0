//! The RDMA devices of the machine: `/sys/class/infiniband` (Linux, Documentation/ABI/stable/sysfs-class-infiniband).
//! InfiniBand, RoCE and EFA cards all stand there.

use super::{Host, ReadError};

const DEVICES: &str = "/sys/class/infiniband";

/// The vendor of EFA cards, whose PCI device ids are 0xefa0, 0xefa1 and so on (rdma-core, `providers/efa`).
const AMAZON: &str = "0x1d0f";

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
    pub rate_gbit_per_s: Option<f64>,
}

impl Host {
    /// The RDMA devices with a PCI function behind them; those made of software have none and are left out.
    ///
    /// # Errors
    /// When the directory or what a device is can not be read: how many there are is not known then.
    pub fn rdma_devices(&self) -> Result<Vec<RdmaDevice>, ReadError> {
        let names = match self.list(DEVICES) {
            Ok(names) => names,
            Err(error) if error.is_absent() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let device = |name: String| {
            let text = |file: &str| self.text(format!("{DEVICES}/{name}/{file}"));
            let vendor = match text("device/vendor") {
                Err(error) if error.is_absent() => return None,
                Err(error) => return Some(Err(error)),
                Ok(vendor) => vendor,
            };
            let pci_device = text("device/device").unwrap_or_default();
            Some(Ok(RdmaDevice {
                is_efa: vendor == AMAZON && pci_device.starts_with("0xefa"),
                bdf: self
                    .link(format!("{DEVICES}/{name}/device"))
                    .unwrap_or_default(),
                guid: text("node_guid").unwrap_or_default(),
                name,
            }))
        };
        names.into_iter().filter_map(device).collect()
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
                state: text("state").map(word),
                physical: text("phys_state").map(word).unwrap_or_default(),
                link_layer: text("link_layer").unwrap_or_default(),
                // `100 Gb/sec (4X EDR)`
                rate_gbit_per_s: text("rate")
                    .ok()
                    .and_then(|text| text.split_once(" Gb/sec")?.0.trim().parse().ok()),
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
