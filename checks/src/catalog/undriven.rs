//! Network cards that are on the PCI bus and have no RDMA device: their driver is missing, or did not take them. They are not
//! missing, and nothing more can be measured of them.

use dhc_thresholds::{Kind, Metric, Subject};

use crate::check::{CheckError, Recorder};
use crate::host::{Host, PciKind, RdmaDevice, ReadError};

/// Cards of one kind without an RDMA device.
pub(super) struct Undriven {
    kind: PciKind,
    /// Address, and who has the card instead.
    cards: Vec<(String, String)>,
}

impl Undriven {
    /// Those that have none of `devices`, which fewer cards have than are due.
    ///
    /// # Errors
    /// When it cannot be told whether there are any.
    pub(super) fn find(
        host: &Host,
        kind: PciKind,
        devices: &[RdmaDevice],
    ) -> Result<Undriven, ReadError> {
        let by_driver = |bdf: String| {
            let why = match host.pci_driver(&bdf) {
                Ok(None) => "no driver has it".to_owned(),
                Ok(Some(driver)) => format!("driver {} has it", driver.escape_default()),
                Err(error) => error.to_string(),
            };
            (bdf, why)
        };
        let cards = host.without_rdma_device(kind, devices)?;
        let cards = cards.into_iter().map(by_driver).collect();
        Ok(Undriven { kind, cards })
    }

    /// None, where nobody has to look.
    pub(super) fn none(kind: PciKind) -> Undriven {
        let cards = Vec::new();
        Undriven { kind, cards }
    }

    pub(super) fn len(&self) -> usize {
        self.cards.len()
    }

    /// Why nothing can be measured where no card has an RDMA device.
    pub(super) fn all(&self) -> CheckError {
        let cards = self.cards.iter().map(|(bdf, why)| format!("{bdf} ({why})"));
        let cards: Vec<String> = cards.collect();
        CheckError::Unavailable(format!(
            "{} cards are on the PCI bus and none has an RDMA device: {}; {}",
            self.len(),
            cards.join(", "),
            self.advice()
        ))
    }

    /// Says of each that `metric` is not known.
    pub(super) fn gaps(
        &self,
        metric: &Metric,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        for (bdf, why) in &self.cards {
            let advice = self.advice();
            let why = format!("it is on the PCI bus and has no RDMA device ({why}); {advice}");
            record.gap(metric, Subject::new(Kind::Nic, bdf.as_str()), why)?;
        }
        Ok(())
    }

    fn advice(&self) -> &'static str {
        match self.kind {
            PciKind::Efa => {
                "load the driver (modprobe efa), or install it (AWS's EFA installer), and see `dmesg` if it refuses"
            }
            _ => {
                "load the driver (modprobe mlx5_ib), or install it (DOCA-OFED), and see `dmesg` if it refuses"
            }
        }
    }
}
