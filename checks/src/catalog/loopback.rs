//! `efa-loopback` and `fabric-loopback`: each network card, or each software provider, talks to itself.
//!
//! The counters and states of EFA cards are those of `/sys/class/infiniband` (Linux, `drivers/infiniband/hw/efa`):
//! since driver 1.14 a card's counters stand in `hw_counters` and a port's in `ports/1/hw_counters`; before that all stood
//! below the port.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};
use libfabric_sys::{Device, Library};

use super::undriven::Undriven;
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values, chain,
};
use crate::foresight::Cause;
use crate::host::{Host, PciKind, ReadError};
use crate::loopback::{self, Course, NO_SHORTCUTS, Results};

/// The message size whose latency is judged, and the one whose bandwidth is.
const LATENCY_BYTES: usize = 8;
const BANDWIDTH_BYTES: usize = 1 << 20;

/// How much of the check's time the exchanges may take; the rest is for what comes before and after them.
const TIME_SHARE: f64 = 0.9;

/// How long nothing may come of a device before it counts as silent. A message takes microseconds; one that was lost is
/// sent again within a second.
const SILENCE: Duration = Duration::from_secs(3);

/// The figures of one of the two checks.
struct Figures {
    state: Metric,
    corrupted: Metric,
    latency: Metric,
    latency_p99: Metric,
    latency_mean: Metric,
    latency_max: Metric,
    bandwidth: Metric,
    bandwidth_mean: Metric,
}

const STATE: &str = "whether the messages arrived: answered; silent: none came any more; failed: work came back with an error";
const CORRUPTED: &str = "messages that arrived with other bytes than were sent";
const LATENCY: &str = "half a round trip of a message, the median (HyperPod's `typical` latency)";
const LATENCY_P99: &str = "half a round trip of a message, the 99th percentile";
const LATENCY_MEAN: &str = "half a round trip of a message, the mean";
const LATENCY_MAX: &str = "half a round trip of a message, the longest";
const BANDWIDTH: &str = "bandwidth one way of the best window of messages";
const BANDWIDTH_MEAN: &str = "bandwidth one way, mean of the windows of messages";

static EFA: Figures = Figures {
    state: Metric::new(
        "efa.loopback.state",
        Unit::State,
        Role::Required,
        STATE,
        "nic.silent",
    ),
    corrupted: Metric::new(
        "efa.loopback.corrupted",
        Unit::Count,
        Role::Required,
        CORRUPTED,
        "data.corrupted",
    ),
    latency: Metric::new(
        "efa.loopback.latency",
        Unit::Microseconds,
        Role::Judged,
        LATENCY,
        "nic.performance",
    ),
    latency_p99: Metric::new(
        "efa.loopback.latency_p99",
        Unit::Microseconds,
        Role::Context,
        LATENCY_P99,
        "nic.performance",
    ),
    latency_mean: Metric::new(
        "efa.loopback.latency_mean",
        Unit::Microseconds,
        Role::Context,
        LATENCY_MEAN,
        "nic.performance",
    ),
    latency_max: Metric::new(
        "efa.loopback.latency_max",
        Unit::Microseconds,
        Role::Context,
        LATENCY_MAX,
        "nic.performance",
    ),
    bandwidth: Metric::new(
        "efa.loopback.bandwidth",
        Unit::GigabytesPerSecond,
        Role::Judged,
        BANDWIDTH,
        "nic.performance",
    ),
    bandwidth_mean: Metric::new(
        "efa.loopback.bandwidth_mean",
        Unit::GigabytesPerSecond,
        Role::Context,
        BANDWIDTH_MEAN,
        "nic.performance",
    ),
};

static FABRIC: Figures = Figures {
    state: Metric::new(
        "fabric.loopback.state",
        Unit::State,
        Role::Required,
        STATE,
        "fabric.silent",
    ),
    corrupted: Metric::new(
        "fabric.loopback.corrupted",
        Unit::Count,
        Role::Required,
        CORRUPTED,
        "data.corrupted",
    ),
    latency: Metric::new(
        "fabric.loopback.latency",
        Unit::Microseconds,
        Role::Judged,
        LATENCY,
        "fabric.performance",
    ),
    latency_p99: Metric::new(
        "fabric.loopback.latency_p99",
        Unit::Microseconds,
        Role::Context,
        LATENCY_P99,
        "fabric.performance",
    ),
    latency_mean: Metric::new(
        "fabric.loopback.latency_mean",
        Unit::Microseconds,
        Role::Context,
        LATENCY_MEAN,
        "fabric.performance",
    ),
    latency_max: Metric::new(
        "fabric.loopback.latency_max",
        Unit::Microseconds,
        Role::Context,
        LATENCY_MAX,
        "fabric.performance",
    ),
    bandwidth: Metric::new(
        "fabric.loopback.bandwidth",
        Unit::GigabytesPerSecond,
        Role::Judged,
        BANDWIDTH,
        "fabric.performance",
    ),
    bandwidth_mean: Metric::new(
        "fabric.loopback.bandwidth_mean",
        Unit::GigabytesPerSecond,
        Role::Context,
        BANDWIDTH_MEAN,
        "fabric.performance",
    ),
};

const EFA_COUNT: Metric = Metric::new(
    "efa.device.count",
    Unit::Count,
    Role::Required,
    "EFA cards that are there, those without a driver among them",
    "nic.missing",
);
const PORT_STATE: Metric = Metric::new(
    "efa.port.state",
    Unit::State,
    Role::Judged,
    "state of a card's port, as the kernel names it: ACTIVE, DOWN, INIT, ARMED",
    "nic.port_down",
);
const PORT_RATE: Metric = Metric::new(
    "efa.port.rate",
    Unit::GigabitsPerSecond,
    Role::Context,
    "rate of a card's port",
    "nic.rate",
);
const COUNTER_GROWTH: Metric = Metric::new(
    "efa.counter.growth",
    Unit::Count,
    Role::Judged,
    "growth of an error counter of a card while its loopback ran",
    "nic.errors",
);

/// Error counters whose growth during a loopback says something about the card (FORMATS of the EFA driver: device and
/// port counters). Byte and packet counters only show that the card was used.
const ERROR_COUNTERS: &[&str] = &[
    "cmds_err",
    "no_completion_cmds",
    "rx_drops",
    "rdma_read_wr_err",
    "rdma_write_wr_err",
    "retrans_timeout_events",
    "unresponsive_remote_events",
    "impaired_remote_conn_events",
];

const INFINIBAND: &str = "/sys/class/infiniband";

static EFA_SPEC: Spec = Spec {
    name: "efa-loopback",
    about: "each EFA card exchanges messages with itself: latency, bandwidth, every byte checked, counters before and after",
    explain: "\
Counts the EFA cards, of which one that is on the PCI bus and has no RDMA device wants its driver, which accuses nothing; reads the state and rate of their ports, and then makes each card exchange messages with itself
through libfabric's efa provider, with the short cut through shared memory switched off. Latency is half a round trip;
bandwidth is that of windows of messages, as perftest and fabtests measure them. Every byte is compared with what was
sent. A card is silent if nothing has come of it for three seconds when its time is over; a time that ends while messages
still flow says nothing of the card. Error counters of the card are read before and after.",
    metrics: &[
        &EFA_COUNT,
        &PORT_STATE,
        &PORT_RATE,
        &COUNTER_GROWTH,
        &EFA.state,
        &EFA.corrupted,
        &EFA.latency,
        &EFA.latency_p99,
        &EFA.latency_mean,
        &EFA.latency_max,
        &EFA.bandwidth,
        &EFA.bandwidth_mean,
    ],
    needs: Some(Hardware::Efa),
    tags: &["network", "efa"],
    company: Company::Alone,
    options: &[],
};

static FABRIC_SPEC: Spec = Spec {
    name: "fabric-loopback",
    about: "each software provider of libfabric exchanges messages with itself on this host, every byte checked",
    explain: "\
Makes libfabric's software providers (tcp and whatever else is installed) exchange messages with themselves on this
host, measures latency and bandwidth as efa-loopback does, and compares every byte with what was sent. It needs no
network card, so it shows on any machine that libfabric and the host's memory path are sound. Name one provider, even
one of hardware, with --set fabric-loopback.provider=NAME.",
    metrics: &[
        &FABRIC.state,
        &FABRIC.corrupted,
        &FABRIC.latency,
        &FABRIC.latency_p99,
        &FABRIC.latency_mean,
        &FABRIC.latency_max,
        &FABRIC.bandwidth,
        &FABRIC.bandwidth_mean,
    ],
    needs: None,
    tags: &["network", "host"],
    company: Company::Alone,
    options: &[OptionSpec {
        name: "provider",
        default: "",
        values: Values::Text {
            form: "a provider's name such as tcp or tcp;ofi_rxm",
            fits: |name| {
                let is_of_names = |c: char| c.is_ascii_alphanumeric() || "_-;".contains(c);
                name.len() <= 64 && name.chars().all(is_of_names)
            },
        },
        about: "the libfabric provider to use; all software providers if not set",
    }],
};

/// Providers that need no hardware. `shm` is left out: it is the short cut that a loopback must not take; so is `sockets`,
/// which its authors have given up (fi_sockets(7)) and whose progress thread starves on a busy host. Either can be named.
const SOFTWARE: &[&str] = &["tcp", "net", "udp"];

/// A loopback check: one struct for both entries of the registry.
pub(super) struct Loopback {
    spec: &'static Spec,
    figures: &'static Figures,
    foresees: &'static [Cause],
}

/// The loopback of EFA cards.
pub(super) const EFA_LOOPBACK: Loopback = Loopback {
    spec: &EFA_SPEC,
    figures: &EFA,
    foresees: &[Cause::Nic],
};

/// The loopback of software providers.
pub(super) const FABRIC_LOOPBACK: Loopback = Loopback {
    spec: &FABRIC_SPEC,
    figures: &FABRIC,
    // It is of software alone.
    foresees: &[],
};

impl InstanceCheck for Loopback {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn budget(&self, _: &BTreeMap<String, String>) -> Budget {
        // HyperPod's documentation gives its EFA check two to five minutes for all cards.
        Budget {
            expected: Duration::from_secs(20),
            deadline: Duration::from_secs(300),
        }
    }

    fn foresees(&self) -> &'static [Cause] {
        self.foresees
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let begun = Instant::now();
        let on_efa = self.spec.needs == Some(Hardware::Efa);
        let cards = if on_efa {
            efa_cards(task, record)?
        } else {
            Vec::new()
        };
        if on_efa && cards.is_empty() {
            // Zero cards are a measurement, recorded above; there is nothing to exchange messages with.
            return Ok(());
        }
        let library = Library::load(task.host.libfabric.as_deref(), NO_SHORTCUTS)
            .map_err(|error| CheckError::Unavailable(chain(&error)))?;
        let (major, minor) = library.version();
        record.note(format!(
            "libfabric {major}.{minor} from {}",
            library.path().display()
        ))?;
        let before: Vec<Counters> = cards
            .iter()
            .map(|card| counters(&task.host, card))
            .collect();
        let devices = if on_efa {
            efa_devices(&library, &cards)?
        } else {
            software_devices(task, self.spec, &library)?
        };
        for (place, (subject, device)) in devices.iter().enumerate() {
            // A silent device costs its share of the time and no other device's.
            let left = task
                .deadline
                .mul_f64(TIME_SHARE)
                .saturating_sub(begun.elapsed());
            let waiting = u32::try_from(devices.len() - place).unwrap_or(u32::MAX);
            self.one(subject, device, left / waiting, record)?;
        }
        for (card, before) in cards.iter().zip(before) {
            growth(card, &before, &counters(&task.host, card), record)?;
        }
        let served: BTreeSet<&str> = devices
            .iter()
            .map(|(subject, _)| subject.name.as_str())
            .collect();
        for card in cards.iter().filter(|card| !served.contains(card.as_str())) {
            let why = "libfabric's efa provider does not offer the card; see `fi_info -p efa`";
            let subject = Subject::new(Kind::Nic, card.as_str());
            record.gap(&self.figures.state, subject, why)?;
        }
        Ok(())
    }
}

impl Loopback {
    /// Measures one device. One that cannot be measured is a gap, and the others go on.
    fn one(
        &self,
        subject: &Subject,
        device: &Device,
        deadline: Duration,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        let course = Course {
            latency_bytes: vec![LATENCY_BYTES, 4096],
            round_trips: 1000,
            bandwidth_bytes: vec![65_536, BANDWIDTH_BYTES],
            windows: 20,
            deadline,
            silence: SILENCE,
        };
        let mut phases = Vec::new();
        let outcome =
            loopback::measure(device, &course, &mut |phase| phases.push(phase.to_owned()));
        if let Some(phase) = phases.last() {
            record.progress(format!("{subject}: {phase}"))?;
        }
        let state = &self.figures.state;
        match outcome {
            Ok(results) => {
                let answered = state.of(subject.clone(), "answered");
                record.add(answered.over(device.provider.as_str()))?;
                self.figures(subject, device, &results, record)
            }
            Err(error) => match error.of_the_device() {
                Some(word) => {
                    let seen = state.of(subject.clone(), word).detail(chain(&error));
                    record.add(seen.over(device.provider.as_str()))
                }
                None => record.gap(state, subject.clone(), chain(&error)),
            },
        }
    }

    fn figures(
        &self,
        subject: &Subject,
        device: &Device,
        results: &Results,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        let figures = self.figures;
        record.measure(
            &figures.corrupted,
            subject.clone(),
            results.messages_corrupted,
        )?;
        for (bytes, samples) in &results.latency_us {
            for (metric, value) in [
                (&figures.latency, samples.percentile(0.5)),
                (&figures.latency_p99, samples.percentile(0.99)),
                (&figures.latency_mean, samples.mean()),
                (&figures.latency_max, samples.max()),
            ] {
                add(metric, subject, device, *bytes, value, record)?;
            }
        }
        for (bytes, samples) in &results.bandwidth {
            let (best, mean) = (samples.max(), samples.mean());
            add(
                &figures.bandwidth,
                subject,
                device,
                *bytes,
                best.map(|rate| rate / 1e9),
                record,
            )?;
            add(
                &figures.bandwidth_mean,
                subject,
                device,
                *bytes,
                mean.map(|rate| rate / 1e9),
                record,
            )?;
        }
        record.note(summary(subject, results))
    }
}

fn add(
    metric: &Metric,
    subject: &Subject,
    device: &Device,
    bytes: usize,
    value: Option<f64>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let value = value.unwrap_or(f64::NAN);
    record.add(
        metric
            .of(subject.clone(), value)
            .at_bytes(bytes as u64)
            .over(device.provider.as_str()),
    )
}

/// The figures in the words of HyperPod's log, whose readers look for them: bandwidths in Gbit/s, latencies in us. The
/// typical latency is the median of a size; its least and greatest are taken over the sizes.
fn summary(subject: &Subject, results: &Results) -> String {
    let rates = || results.bandwidth.iter().map(|(_, samples)| samples);
    let gbits = |rate: f64| rate * 8.0 / 1e9;
    let max = rates()
        .filter_map(loopback::Samples::max)
        .fold(0.0, f64::max);
    let largest = results
        .bandwidth
        .last()
        .and_then(|(_, samples)| samples.mean())
        .unwrap_or(f64::NAN);
    let typical = || {
        results
            .latency_us
            .iter()
            .filter_map(|(_, samples)| samples.percentile(0.5))
    };
    let mean = results
        .latency_us
        .first()
        .and_then(|(_, samples)| samples.mean())
        .unwrap_or(f64::NAN);
    format!(
        "device: {subject} . Output summary is MaxBw: {:.2}, AvgBw: {:.2}, MaxTypicalLat: {:.2}, MinTypicalLat: {:.2}, \
         AvgLat: {mean:.2} (Gbit/s, us); {} bytes checked",
        gbits(max),
        gbits(largest),
        typical().fold(f64::NAN, f64::max),
        typical().fold(f64::NAN, f64::min),
        results.bytes_checked
    )
}

/// One device of each software provider (or of the one that the user names): the host's own loopback interface where
/// there is one.
fn software_devices(
    task: &Task,
    spec: &'static Spec,
    library: &Library,
) -> Result<Vec<(Subject, Device)>, CheckError> {
    let named = task.option(spec, "provider")?;
    let filter = (!named.is_empty()).then_some(named);
    let all = library
        .devices(filter)
        .map_err(|error| CheckError::Unavailable(chain(&error)))?;
    let mut chosen: BTreeMap<String, Device> = BTreeMap::new();
    for device in all {
        // A layered provider is called `tcp;ofi_rxm`.
        let core = device.provider.split(';').next().unwrap_or_default();
        if filter.is_none() && !SOFTWARE.contains(&core) {
            continue;
        }
        let better = chosen
            .get(&device.provider)
            .is_none_or(|known| known.domain != "lo" && device.domain == "lo");
        if better {
            chosen.insert(device.provider.clone(), device);
        }
    }
    if chosen.is_empty() {
        let what = filter.map_or_else(
            || "no software provider".to_owned(),
            |name| format!("no device of provider `{name}`"),
        );
        let why = format!(
            "libfabric offers {what} with reliable datagram endpoints; `fi_info -t FI_EP_RDM` shows what there is"
        );
        return Err(CheckError::Unavailable(why));
    }
    Ok(chosen
        .into_iter()
        .map(|(provider, device)| (Subject::new(Kind::Provider, provider), device))
        .collect())
}

/// The device of each EFA card. A card is offered several times (fabrics `efa` and `efa-direct`); the first one of
/// fabric `efa` counts, since `efa-direct` does not promise order of large messages.
fn efa_devices(library: &Library, cards: &[String]) -> Result<Vec<(Subject, Device)>, CheckError> {
    let all = library
        .devices(Some("efa"))
        .map_err(|error| CheckError::Unavailable(chain(&error)))?;
    let mut chosen: BTreeMap<String, Device> = BTreeMap::new();
    for device in all
        .into_iter()
        .filter(|device| device.fabric != "efa-direct")
    {
        // The domain is the card's name with `-rdm` behind it.
        let name = device
            .domain
            .strip_suffix("-rdm")
            .unwrap_or(&device.domain)
            .to_owned();
        if cards.contains(&name) {
            chosen.entry(name).or_insert(device);
        }
    }
    Ok(chosen
        .into_iter()
        .map(|(name, device)| (Subject::new(Kind::Nic, name), device))
        .collect())
}

/// The EFA cards that the kernel has; their count, identity, and the state and rate of their ports are recorded.
///
/// # Errors
/// When nobody can tell which there are, or no driver has made an RDMA device of any.
fn efa_cards(task: &Task, record: &mut Recorder<'_>) -> Result<Vec<String>, CheckError> {
    let host = &task.host;
    let unavailable = |error: ReadError| CheckError::Unavailable(error.to_string());
    let devices = host.rdma_devices().map_err(unavailable)?;
    let mut cards = devices.known;
    cards.retain(|card| card.is_efa);
    let are_all_there = task
        .due(Hardware::Efa)
        .is_some_and(|due| cards.len() as u64 >= due);
    let undriven = if are_all_there || !devices.unknown.is_empty() {
        Ok(Undriven::none(PciKind::Efa))
    } else {
        Undriven::find(host, PciKind::Efa, &cards)
    };
    for error in devices.unknown.iter().chain(undriven.as_ref().err()) {
        record.gap(&EFA_COUNT, Subject::node(), error.to_string())?;
    }
    if let (Ok(undriven), true) = (&undriven, devices.unknown.is_empty()) {
        record.measure(&EFA_COUNT, Subject::node(), cards.len() + undriven.len())?;
        if cards.is_empty() && undriven.len() > 0 {
            return Err(undriven.all());
        }
        undriven.gaps(&PORT_STATE, record)?;
    }
    for card in &cards {
        let subject = Subject::new(Kind::Nic, card.name.as_str());
        let identity = [("bdf", card.bdf.clone()), ("guid", card.guid.clone())];
        record.device(subject.clone(), identity)?;
        // An EFA card has one port.
        match host
            .rdma_ports(&card.name)
            .map(|ports| ports.into_iter().next())
        {
            Ok(Some(port)) => {
                match port.state {
                    Ok(state) => record.measure(&PORT_STATE, subject.clone(), state)?,
                    Err(error) => record.gap(&PORT_STATE, subject.clone(), error.to_string())?,
                }
                match port.rate_gbit_per_s {
                    Ok(rate) => record.measure(&PORT_RATE, subject, rate)?,
                    Err(error) => record.gap(&PORT_RATE, subject, error.to_string())?,
                }
            }
            Ok(None) => record.gap(&PORT_STATE, subject, "the card shows no port")?,
            Err(error) => record.gap(&PORT_STATE, subject, error.to_string())?,
        }
    }
    Ok(cards.into_iter().map(|card| card.name).collect())
}

/// Error counters of a card by name; what an older driver or card does not have is not there.
type Counters = BTreeMap<&'static str, Result<u64, String>>;

fn counters(host: &Host, card: &str) -> Counters {
    let mut counters = Counters::new();
    for name in ERROR_COUNTERS {
        for place in ["hw_counters", "ports/1/hw_counters"] {
            match host.number(format!("{INFINIBAND}/{card}/{place}/{name}")) {
                Ok(value) => drop(counters.insert(name, Ok(value))),
                Err(error) if error.is_absent() => continue,
                Err(error) => drop(counters.insert(name, Err(error.to_string()))),
            }
            break;
        }
    }
    counters
}

fn growth(
    card: &str,
    before: &Counters,
    after: &Counters,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    for (name, after) in after {
        let subject = Subject::new(Kind::Nic, format!("{card}/{name}"));
        match (before.get(name), after) {
            (Some(Ok(before)), Ok(after)) if after >= before => {
                record.measure(&COUNTER_GROWTH, subject, after - before)?;
            }
            (Some(Ok(_)), Ok(_)) => record.gap(
                &COUNTER_GROWTH,
                subject,
                "the counter went back: the driver was reloaded",
            )?,
            (Some(Err(why)), _) | (_, Err(why)) => {
                record.gap(&COUNTER_GROWTH, subject, why.clone())?
            }
            (None, Ok(_)) => {
                record.gap(&COUNTER_GROWTH, subject, "the counter was not there before")?
            }
        }
    }
    Ok(())
}
