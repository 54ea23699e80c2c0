//! `rdma-nic`: are the InfiniBand or RoCE cards of the instance type there, with their ports active?

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use super::undriven::Undriven;
use crate::check::{CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::foresight::Cause;
use crate::host::{PciKind, ReadError};

const COUNT: Metric = Metric {
    name: "rdma.device.count",
    unit: Unit::Count,
    about: "InfiniBand or RoCE cards that are there, those without a driver among them and EFA cards not",
    role: Role::Required,
    fault: "nic.missing",
};
const ACTIVE: Metric = Metric {
    name: "rdma.device.active",
    unit: Unit::Count,
    about: "those of them that have an active port",
    role: Role::Required,
    fault: "nic.port_down",
};
const STATE: Metric = Metric {
    name: "rdma.port.state",
    unit: Unit::State,
    about: "state of a port, as the kernel names it: ACTIVE, DOWN, INIT, ARMED",
    role: Role::Judged,
    fault: "nic.port_down",
};
const RATE: Metric = Metric {
    name: "rdma.port.rate",
    unit: Unit::GigabitsPerSecond,
    about: "rate of a port",
    role: Role::Context,
    fault: "nic.rate",
};
const NOT_SLOWER: Metric = Metric {
    name: "rdma.device.not_slower",
    unit: Unit::Count,
    about: "devices without those that are active at less than the highest rate of the node's",
    role: Role::Judged,
    fault: "nic.rate",
};
const HIGHEST_RATE: Metric = Metric {
    name: "rdma.device.highest_rate",
    unit: Unit::GigabitsPerSecond,
    about: "the highest rate of an active port of the node",
    role: Role::Context,
    fault: "nic.rate",
};
const DOWNED: Metric = Metric {
    name: "rdma.port.link_downed",
    unit: Unit::Count,
    about: "how often a port has lost its link since the driver was loaded",
    role: Role::Context,
    fault: "nic.errors",
};
const SYMBOL_ERRORS: Metric = Metric {
    name: "rdma.port.symbol_errors",
    unit: Unit::Count,
    about: "symbol errors of a port since the driver was loaded",
    role: Role::Context,
    fault: "nic.errors",
};

static SPEC: Spec = Spec {
    name: "rdma-nic",
    about: "all InfiniBand or RoCE cards of the instance type are there, with their ports active",
    explain: "\
Counts the RDMA devices in sysfs that are not EFA cards, and reads the state and rate of their ports. Where they are fewer
than the type has, cards on the PCI bus that have no RDMA device want their driver, which accuses nothing. A type's number is
that of the cards of its compute fabric. A machine may have more for storage and management, so more is no fault, and a port
that is not active is one only when fewer devices are active than the type has; before that it is a warning, since a port
that nobody has cabled looks the same. The cards of a fabric are alike, so it is a warning if, without those that run at less than
the node's highest rate, there are fewer than the type has: a cable or port has trained to less. Where the type's rate is known,
the highest is held against it, so that cards which are all slow alike are seen too.",
    metrics: &[&COUNT, &ACTIVE, &NOT_SLOWER, &HIGHEST_RATE, &STATE, &RATE, &DOWNED, &SYMBOL_ERRORS],
    needs: Some(Hardware::RdmaNic),
    tags: &["network", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// The check.
pub(super) struct RdmaNic;

impl InstanceCheck for RdmaNic {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::Nic]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let host = &task.host;
        let unknown = |error: &ReadError, record: &mut Recorder<'_>| {
            record.gap(&COUNT, Subject::node(), error.to_string())?;
            record.gap(&ACTIVE, Subject::node(), error.to_string())
        };
        let mut devices = match host.rdma_devices() {
            Ok(devices) => match devices.unknown.first() {
                Some(error) => return unknown(error, record),
                None => devices.known,
            },
            Err(error) => return unknown(&error, record),
        };
        devices.retain(|device| !device.is_efa);
        // Machines have cards for other networks, which need no RDMA device, so none is looked for where enough are there.
        let due = task.due(Hardware::RdmaNic).unwrap_or_default();
        let undriven = if devices.len() as u64 >= due {
            Ok(Undriven::none(PciKind::RdmaNic))
        } else {
            Undriven::find(host, PciKind::RdmaNic, &devices)
        };
        let mut not_read = match undriven {
            Ok(undriven) => {
                record.measure(&COUNT, Subject::node(), devices.len() + undriven.len())?;
                if devices.is_empty() && undriven.len() > 0 {
                    return Err(undriven.all());
                }
                undriven.gaps(&STATE, record)?;
                let some = undriven.len() > 0;
                some.then(|| format!("{} cards have no RDMA device", undriven.len()))
            }
            Err(error) => {
                let why = format!("cards are missing or have no RDMA device: {error}");
                record.gap(&COUNT, Subject::node(), why.clone())?;
                Some(why)
            }
        };
        let (mut active, mut rate_not_read) = (0_u64, not_read.clone());
        // In Mbit/s, which every rate is a whole number of.
        let mut rates: Vec<u64> = Vec::new();
        for device in &devices {
            let subject = Subject::new(Kind::Nic, device.name.as_str());
            record.device(
                subject.clone(),
                [("bdf", device.bdf.clone()), ("guid", device.guid.clone())],
            )?;
            let ports = match host.rdma_ports(&device.name) {
                Ok(ports) => ports,
                Err(error) => {
                    record.gap(&STATE, subject, error.to_string())?;
                    not_read = Some(error.to_string());
                    continue;
                }
            };
            let (mut is_active, mut rate_active) = (false, None);
            for port in ports {
                let place = format!("{}/port{}", device.name, port.number);
                let subject = Subject::new(Kind::Nic, place);
                match port.state {
                    Ok(state) => {
                        if state == "ACTIVE" {
                            is_active = true;
                            match &port.rate_gbit_per_s {
                                Ok(rate) => {
                                    let rate = (rate * 1e3).round() as u64;
                                    rate_active = rate_active.max(Some(rate));
                                }
                                Err(error) => rate_not_read = Some(error.to_string()),
                            }
                        }
                        let link = format!("{} {}", port.link_layer, port.physical);
                        record.add(STATE.of(subject.clone(), state).detail(link.trim()))?;
                    }
                    Err(error) => {
                        record.gap(&STATE, subject.clone(), error.to_string())?;
                        not_read = Some(error.to_string());
                    }
                }
                match port.rate_gbit_per_s {
                    Ok(rate) => record.measure(&RATE, subject.clone(), rate)?,
                    Err(error) => record.gap(&RATE, subject.clone(), error.to_string())?,
                }
                for (metric, counter) in
                    [(&DOWNED, "link_downed"), (&SYMBOL_ERRORS, "symbol_error")]
                {
                    if let Ok(count) = host.rdma_counter(&device.name, port.number, counter) {
                        record.measure(metric, subject.clone(), count)?;
                    }
                }
            }
            active += u64::from(is_active);
            rates.extend(rate_active);
        }
        if let Some(why) = rate_not_read {
            // Whether it is slower than the others, and whether the others are slow, is not known without it.
            record.gap(&NOT_SLOWER, Subject::node(), why.clone())?;
            record.gap(&HIGHEST_RATE, Subject::node(), why)?;
        } else if let Some(highest) = rates.iter().max() {
            let slower = rates.iter().filter(|rate| *rate < highest).count();
            record.measure(&NOT_SLOWER, Subject::node(), devices.len() - slower)?;
            record.measure(&HIGHEST_RATE, Subject::node(), *highest as f64 / 1e3)?;
        }
        match not_read {
            // Whether enough are active is not known as long as one of them cannot be read.
            Some(why) => record.gap(&ACTIVE, Subject::node(), why),
            None => record.measure(&ACTIVE, Subject::node(), active),
        }
    }
}
