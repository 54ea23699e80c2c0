//! What an invented check of a network card measures.

use dhc_thresholds::{Metric, Role, Unit};

pub(crate) const SPEED: Metric = Metric {
    name: "nic.speed",
    unit: Unit::GigabytesPerSecond,
    about: "how fast the card is",
    role: Role::Required,
    fault: "nic.performance",
};
pub(crate) const STATE: Metric = Metric {
    name: "nic.state",
    unit: Unit::State,
    about: "up or down",
    role: Role::Judged,
    fault: "nic.port_down",
};
