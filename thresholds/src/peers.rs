//! Things of equal kind that are measured alike, as each other's peers: which of them is not like the others.
//!
//! Such a comparison needs no table and knows no bound that is right or wrong; it only sees what stands out. So alone it is
//! never more than worth watching.

use std::collections::BTreeMap;

use crate::judge::{Bound, Finding, Status, finding};
use crate::measurement::{At, Kind, Measurement, Metric, Record, Subject};
use crate::statistics::{Better, Centre, normal_quantile};
use crate::unit::{Unit, Value};

/// Peers that a comparison needs; half of them may be bad before the median is.
pub const PEERS_MIN: usize = 5;

/// How often in a run something sound may stand out, all peers of one comparison together.
const FALSE_ALARMS: f64 = 0.01;

/// An outlier is also worse than the median by this share: what is a little slow among very equal ones is no fault.
const WORSE_BANDWIDTH: f64 = 0.05;
const WORSE_LATENCY: f64 = 0.10;

/// What [`Bound::origin`] says of a bound that comes from peers.
pub const PEERS: &str = "peers";

/// How many spreads make an outlier among `count`, so that less than one sound comparison in a hundred has one: the
/// quantile of the normal distribution at 1 - 0.01 / count.
#[expect(
    clippy::cast_precision_loss,
    reason = "numbers of devices are far below 2^53"
)]
fn spreads(count: usize) -> f64 {
    normal_quantile(1.0 - FALSE_ALARMS / count as f64)
}

/// Values of things of equal kind, and the bound beyond which one is an outlier.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers {
    better: Better,
    count: usize,
    centre: Centre,
}

impl Peers {
    /// The peers with these values, one each; `None` where they are too few to say who is unlike the others.
    pub fn new(values: &[f64], better: Better) -> Option<Peers> {
        let centre = Centre::of(values).filter(|_| values.len() >= PEERS_MIN)?;
        Some(Peers {
            better,
            count: values.len(),
            centre,
        })
    }

    /// Where they are and how far apart.
    pub fn centre(&self) -> Centre {
        self.centre
    }

    /// The last value that is not an outlier: so many spreads *and* such a share of the median away from it.
    pub fn bound(&self) -> f64 {
        let share = match self.better {
            Better::Higher => WORSE_BANDWIDTH,
            Better::Lower => WORSE_LATENCY,
        };
        let distance = spreads(self.count) * self.centre.spread;
        let distance = distance.max(share * self.centre.median.abs());
        self.better.worse(self.centre.median, distance)
    }

    /// Whether a value is beyond the bound.
    pub fn stands_out(&self, value: f64) -> bool {
        self.better.worse_by(value, self.bound()) > 0.0
    }

    /// How far a value is on the good side of the bound, as a share of it; negative beyond it.
    pub(crate) fn margin(&self, value: f64) -> f64 {
        let bound = self.bound();
        let distance = -self.better.worse_by(value, bound);
        if bound == 0.0 {
            distance
        } else {
            distance / bound.abs()
        }
    }

    /// The bound as a finding names it; `whose` says who the peers are.
    pub(crate) fn named(&self, whose: &str, unit: Unit) -> Bound {
        let rule = match self.better {
            Better::Higher => "peers_below",
            Better::Lower => "peers_above",
        };
        let Centre { median, spread } = self.centre;
        Bound {
            rule: rule.to_owned(),
            value: Value::Real(self.bound()),
            origin: PEERS.to_owned(),
            source: format!(
                "median {} {unit} and spread {} {unit} of {} {whose}; {:.1} spreads make an outlier among so many",
                Value::Real(median),
                Value::Real(spread),
                self.count,
                spreads(self.count)
            ),
        }
    }
}

/// What makes measurements comparable: taken of the same metric, of things of the same kind, under the same conditions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alike {
    pub(crate) metric: &'static str,
    kind: Kind,
    /// The model of the device, or the name of the subject where only namesakes are alike.
    model: String,
    pub(crate) at: At,
}

/// A value that can be compared, and with what.
pub(crate) struct Comparable<'a> {
    pub(crate) alike: Alike,
    pub(crate) metric: &'a Metric,
    pub(crate) better: Better,
    pub(crate) measurement: &'a Measurement,
    pub(crate) value: f64,
}

/// The measurements of a record that can be compared with others at all: numbers of which more, or less, is better, and
/// which are not merely kept as context.
pub(crate) fn comparable<'a>(record: &'a Record, metrics: &[&'a Metric]) -> Vec<Comparable<'a>> {
    let one = |measurement: &'a Measurement| {
        let name = &measurement.metric;
        let metric = *metrics.iter().find(|metric| metric.name == name)?;
        let better = metric
            .better()
            .filter(|_| metric.unit == measurement.unit)?;
        let value = measurement.value.number()?;
        let Subject { kind, name } = &measurement.subject;
        let model = match kind {
            Kind::Gpu | Kind::Nvlink | Kind::Nic | Kind::NeuronDevice | Kind::NeuronCore => {
                let is_it = |subject: &Subject| subject.name == measurement.subject.device();
                let mut devices = record.devices.iter();
                let device = devices.find(|device| is_it(&device.subject));
                device
                    .and_then(|device| device.identity.get("model").cloned())
                    .unwrap_or_default()
            }
            Kind::Cpu | Kind::Memory => String::new(),
            // Two disks, providers or PCI devices of one node have little in common; the same one of two nodes has.
            Kind::Node | Kind::Disk | Kind::Pci | Kind::Nvswitch | Kind::Provider => name.clone(),
            // Groups are compared where they are measured, by those who know which of them are of equal size.
            Kind::Group => return None,
        };
        Some(Comparable {
            alike: Alike {
                metric: metric.name,
                kind: *kind,
                model,
                at: measurement.at.clone(),
            },
            metric,
            better,
            measurement,
            value,
        })
    };
    record.measurements.iter().filter_map(one).collect()
}

/// A warning for each device of a record that is not like the other devices of its kind.
pub(crate) fn unlike_its_peers<'a>(record: &'a Record, metrics: &[&'a Metric]) -> Vec<Finding> {
    let mut pools: BTreeMap<Alike, Vec<Comparable<'_>>> = BTreeMap::new();
    for one in comparable(record, metrics) {
        pools.entry(one.alike.clone()).or_default().push(one);
    }
    let mut findings = Vec::new();
    for pool in pools.values() {
        let values: Vec<f64> = pool.iter().map(|one| one.value).collect();
        let Some(peers) = Peers::new(&values, pool[0].better) else {
            continue;
        };
        let outliers = pool.iter().filter(|one| peers.stands_out(one.value));
        findings.extend(outliers.map(|one| {
            let bound = peers.named("of its kind on this node", one.metric.unit);
            let margin = Some(peers.margin(one.value));
            finding(
                one.measurement,
                one.metric,
                Status::Warn,
                bound,
                margin,
                None,
            )
        }));
    }
    findings
}
