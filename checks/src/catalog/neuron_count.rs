//! `neuron-count`: are all Neuron devices there, with all their cores?

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use crate::check::{CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::foresight::Cause;
use crate::host::{PciKind, ReadError};

const DEVICES: Metric = Metric {
    name: "neuron.device.count",
    unit: Unit::Count,
    about: "Neuron devices that the driver shows",
    role: Role::Required,
    fault: "neuron.missing",
};
const CORES: Metric = Metric {
    name: "neuron.core.count",
    unit: Unit::Count,
    about: "physical cores of all Neuron devices together",
    role: Role::Required,
    fault: "neuron.missing",
};
const CONNECTED: Metric = Metric {
    name: "neuron.device.connected",
    unit: Unit::Count,
    about: "devices that a device is directly connected to",
    role: Role::Context,
    fault: "neuron.missing",
};

static SPEC: Spec = Spec {
    name: "neuron-count",
    about: "all Neuron devices and cores of the instance type are there, each with its identity",
    explain: "\
Counts the Neuron devices and their physical cores that the driver shows in sysfs and compares them with the instance
type. Each device is recorded with its serial number, model and connections, so that a missing one can be told by what is
left. Devices that are on the PCI bus while no driver shows any want the driver, which is an error and accuses nothing;
where the bus has none either, they are missing, and where it cannot be read, nobody can tell.",
    metrics: &[&DEVICES, &CORES, &CONNECTED],
    needs: Some(Hardware::NeuronDevice),
    tags: &["neuron", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// The check.
pub(super) struct NeuronCount;

impl InstanceCheck for NeuronCount {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::AcceleratorLost]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let host = &task.host;
        let devices = host
            .neuron_devices()
            .map_err(|error| CheckError::Unavailable(error.to_string()))?;
        if devices.is_empty() {
            let untold = |error: &ReadError| {
                CheckError::Unavailable(format!(
                    "no driver shows a Neuron device, and the PCI bus does not tell whether one is there: {error}"
                ))
            };
            let cards = host.pci_cards().map_err(|error| untold(&error))?;
            let on_the_bus = cards.known(PciKind::Neuron).count();
            if on_the_bus > 0 {
                return Err(CheckError::Unavailable(format!(
                    "{on_the_bus} Neuron devices are on the PCI bus and no driver shows them; load it (modprobe neuron), or \
                     install it (package aws-neuronx-dkms), and see `dmesg` if it refuses"
                )));
            }
            if let Some((_, error)) = cards.unknown(PciKind::Neuron).next() {
                return Err(untold(error));
            }
            record.note("neither the Neuron driver nor the PCI bus shows a Neuron device")?;
        }
        let mut cores = 0;
        let mut not_read = None;
        for device in &devices {
            let subject = Subject::new(Kind::NeuronDevice, device.name());
            let word = |file: &str| {
                host.text(format!("{}/{file}", device.path))
                    .unwrap_or_default()
            };
            record.device(
                subject.clone(),
                [
                    ("serial", word("info/serial_number")),
                    ("model", word("info/architecture/device_name")),
                    ("architecture", word("info/architecture/arch_type")),
                ]
                .into_iter()
                .filter(|(_, value)| !value.is_empty()),
            )?;
            // The driver's own number and the directories must agree; the smaller one is what can be used.
            let shown = match &device.cores {
                Ok(cores) => cores.len() as u64,
                Err(error) => {
                    not_read = Some(error.clone());
                    continue;
                }
            };
            let said = match host.number(format!("{}/core_count", device.path)) {
                Ok(said) => said,
                Err(error) if error.is_absent() => shown,
                Err(error) => {
                    not_read = Some(error);
                    shown
                }
            };
            if said != shown {
                record.note(format!(
                    "{subject} says that it has {said} cores and shows {shown}"
                ))?;
            }
            cores += said.min(shown);
            let connected = word("connected_devices");
            if !connected.is_empty() {
                record.measure(&CONNECTED, subject, connected.split(',').count())?;
            }
        }
        let indices: Vec<String> = devices
            .iter()
            .map(|device| device.index.to_string())
            .collect();
        let seen = format!("devices that are there: {}", indices.join(", "));
        record.add(DEVICES.of(Subject::node(), devices.len()).detail(seen))?;
        match not_read {
            Some(error) => record.gap(&CORES, Subject::node(), error.to_string()),
            None => record.measure(&CORES, Subject::node(), cores),
        }
    }
}
