//! `cluster-node`: what the groups that a node was measured in say about this node.
//!
//! Nothing is run for it: the runner infers it from the outcomes of the cluster checks' groups.

use dhc_thresholds::{Metric, Role, Unit};

use crate::check::{Company, Spec};

/// The state of a node in the cluster.
pub static STATE: Metric = Metric {
    name: "cluster.node.state",
    unit: Unit::State,
    about: "what the groups with this node show: healthy, slow, hanging (stuck with it), breaking (errors with it), \
            corrupting, absent (never answered), unresponsive (fell silent or died in every group, or the scheduler calls it \
            down), interrupted (did so once and then worked), or suspect",
    role: Role::Required,
    fault: "cluster.node.slow",
};

/// How likely a node is to be faulty.
pub static PROBABILITY: Metric = Metric {
    name: "cluster.node.fault_probability",
    unit: Unit::Percent,
    about: "how likely the node is to be the cause of the failed groups it was in",
    role: Role::Context,
    fault: "cluster.node.slow",
};

/// Groups that a node was in.
pub static GROUPS: Metric = Metric {
    name: "cluster.node.groups",
    unit: Unit::Count,
    about: "groups that the node was measured in",
    role: Role::Context,
    fault: "cluster.node.slow",
};

/// Failed groups that a node was in.
pub static FAILED_GROUPS: Metric = Metric {
    name: "cluster.node.failed_groups",
    unit: Unit::Count,
    about: "groups with the node that failed",
    role: Role::Context,
    fault: "cluster.node.slow",
};

/// A network card of a node that was tried rail by rail.
pub static NIC_STATE: Metric = Metric {
    name: "cluster.nic.state",
    unit: Unit::State,
    about: "what groups confined to this network card of the node show: good, slow, hanging, breaking or corrupting",
    role: Role::Judged,
    fault: "cluster.nic.slow",
};

/// What is known of the check that is no run of its own.
pub static SPEC: Spec = Spec {
    name: "cluster-node",
    about: "what the collectives that a node took part in say about this node",
    explain: "When a collective over many nodes is slow, hangs or dies, groups of nodes are measured again in waves \
              until the node to blame is known, or until it is known that no single node is. A node is called slow \
              only after at least three failed groups with two or more different partners that worked with others, and \
              the whole without it is measured once more; hanging or breaking in the same way, where those groups got stuck \
              or ended in errors of the collective library. A node that fell silent or died once and then worked is \
              `interrupted`: a warning; twice, and working in between, `suspect`; three times, hanging. Nobody is accused \
              where everything is slow alike. A node that is accused is measured by itself as well, and, where --rails \
              names the network cards, with good nodes on each of them: slow by itself is a fault inside of it, slow on \
              one card alone is that card.",
    metrics: &[&STATE, &PROBABILITY, &GROUPS, &FAILED_GROUPS, &NIC_STATE],
    needs: None,
    tags: &["cluster"],
    company: Company::Alone,
    options: &[],
};
