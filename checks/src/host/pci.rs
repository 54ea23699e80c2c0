//! GPUs as the kernel sees them on the PCI bus, whatever their driver says.

use super::{Host, ReadError};

const FUNCTIONS: &str = "/sys/bus/pci/devices";

const NVIDIA: &str = "0x10de";

/// PCI class 03xxxx is a display controller: every NVIDIA GPU, with or without a display.
const DISPLAY: &str = "0x03";

/// The NVIDIA GPUs on the bus, by PCI address.
#[derive(Debug, Default)]
pub struct PciGpus {
    /// Those that say so.
    pub known: Vec<String>,
    /// Functions that do not say whether they are one, and why. After one that does not answer none is asked any more, since
    /// each would cost its whole time limit.
    pub unknown: Vec<(String, ReadError)>,
}

impl Host {
    /// The NVIDIA GPUs on the PCI bus; a machine without a bus has none.
    ///
    /// # Errors
    /// When the functions cannot be listed: then it is not known whether there are any.
    pub fn pci_gpus(&self) -> Result<PciGpus, ReadError> {
        let functions = match self.list(FUNCTIONS) {
            Err(error) if error.is_absent() => Vec::new(),
            functions => functions?,
        };
        let mut gpus = PciGpus::default();
        for bdf in functions {
            match self.is_gpu(&bdf) {
                Ok(true) => gpus.known.push(bdf),
                Ok(false) => {}
                // Gone since the list was made.
                Err(error) if error.is_absent() => {}
                Err(error) => {
                    let is_stuck = matches!(error, ReadError::Blocked { .. });
                    gpus.unknown.push((bdf, error));
                    if is_stuck {
                        break;
                    }
                }
            }
        }
        Ok(gpus)
    }

    fn is_gpu(&self, bdf: &str) -> Result<bool, ReadError> {
        let word = |file: &str| self.text(format!("{FUNCTIONS}/{bdf}/{file}"));
        Ok(word("vendor")? == NVIDIA && word("class")?.starts_with(DISPLAY))
    }
}
