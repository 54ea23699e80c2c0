//! `roll-call`: every node answers and can start the worker, before any collective waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Kind, Metric, Role, Subject, Unit};

use crate::check::{Budget, CheckError, ClusterCheck, Company, Recorder, Spec, Task};
use crate::group::{Group, NodeState};
use crate::rank::Work;

/// Whether a node answered.
pub static ANSWER: Metric = Metric {
    name: "roll_call.answer",
    unit: Unit::State,
    about: "whether a node answered when the worker was started on it: answered or absent",
    role: Role::Required,
    fault: "cluster.node.absent",
};

/// By what name a node that answered has told what its host calls itself, where that is not the node's name.
pub const HOST: &str = "host_name";

/// What is known of the check without running it.
pub static SPEC: Spec = Spec {
    name: "roll-call",
    about: "every node answers and can start the worker",
    explain: "Starts the worker once on every node, without MPI. A node that does not answer is never put into a \
              collective, where all others would wait for it. A node on which the worker cannot be started is not \
              accused: it is not known, and the message says what is missing there.",
    metrics: &[&ANSWER],
    needs: None,
    tags: &["cluster"],
    company: Company::Alone,
    options: &[],
};

/// The check.
pub(super) struct RollCall;

impl ClusterCheck for RollCall {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, _: &BTreeMap<String, String>, _: bool) -> Budget {
        Budget {
            expected: Duration::from_secs(2),
            deadline: Duration::from_secs(40),
        }
    }

    fn plateau(&self) -> Option<&'static str> {
        None
    }

    fn measure(
        &self,
        task: &Task,
        group: &Group,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        let launched = group.launch(&task.host, Work::RollCall, 1, task.deadline)?;
        task.confine(record)?;
        for evidence in launched.evidence(group.launch.name()) {
            record.evidence(evidence)?;
        }
        let boots: BTreeMap<&str, &str> = launched.roster.boots().collect();
        let hosts: BTreeMap<&str, &str> = launched.roster.hosts().collect();
        let strangers = launched.roster.strangers();
        let mut known = false;
        for (node, state) in launched.roster.states() {
            let subject = Subject::new(Kind::Node, node);
            match (state, boots.get(node)) {
                (_, Some(boot)) => {
                    known = true;
                    let mut identity = vec![("boot_id", (*boot).to_owned())];
                    let host = hosts.get(node).filter(|host| **host != node);
                    identity.extend(host.map(|host| (HOST, (*host).to_owned())));
                    record.device(subject.clone(), identity)?;
                    record.measure(&ANSWER, subject, "answered")?;
                }
                (
                    NodeState::CouldNotStart(why)
                    | NodeState::DiedAtStart(why)
                    | NodeState::Failed(why)
                    | NodeState::Died(why),
                    None,
                ) => {
                    known = true;
                    let why = format!(
                        "the worker `{}` could not be started on {node}: {why}",
                        group.worker.display()
                    );
                    record.gap(&ANSWER, subject, why)?;
                }
                (NodeState::Waiting | NodeState::Moving, None) if !boots.is_empty() => {
                    let strangers: Vec<&str> = strangers.iter().copied().collect();
                    let why = match strangers.as_slice() {
                        [] => format!("{node} did not answer, and had too little time to"),
                        several => format!(
                            "it is not known which hosts are which: {} answered, and none of the nodes is called so",
                            several.join(", ")
                        ),
                    };
                    record.gap(&ANSWER, subject, why)?;
                }
                // Of nobody at all it is the launcher's silence, not the nodes'.
                (_, None) if boots.is_empty() => {}
                (_, None) => record.measure(&ANSWER, subject, "absent")?,
            }
        }
        if known {
            return Ok(());
        }
        Err(CheckError::Unavailable(format!(
            "no node answered: {} {}; its own words are in the evidence of this check",
            group.launch.name(),
            launched.output.ended
        )))
    }
}
