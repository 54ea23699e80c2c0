//! `mpi-allreduce`: an all-reduce of host memory over MPI, by dhc's own ranks.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Kind, Metric, Role, Subject, Unit};

use super::all_reduce::{self, BYTES_MIN, Limits, Metrics};
use crate::check::{
    Budget, CheckError, ClusterCheck, Company, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::group::{Group, Launched};
use crate::rank::Work;

static METRICS: Metrics = all_reduce::metrics!("mpi.allreduce");

const TRANSPORT: Metric = Metric {
    name: "mpi.allreduce.transport",
    unit: Unit::State,
    about: "what the ranks of a node held open to carry messages when they had done their work: tcp, efa, verbs, opa, cxi, shm, \
            several joined by +",
    role: Role::Context,
    fault: "cluster.slow",
};
const COLLECTIVE_TIME: Metric = Metric {
    name: "mpi.allreduce.collective_time",
    unit: Unit::Seconds,
    about: "from the barrier before the first all-reduce to the end of the last, on the rank where that took longest",
    role: Role::Context,
    fault: "cluster.slow",
};

static SPEC: Spec = Spec {
    name: "mpi-allreduce",
    about: "an all-reduce of host memory over MPI across the nodes: is it right, how fast, and who is to blame if not",
    explain: "Sweeps message sizes; every iteration is timed on every rank and results are compared with what they have \
              to be. The plateau of the bus bandwidth is judged, by the table's limit for this number of nodes and by the \
              other groups of the same run. Works on every cluster with MPI, without accelerators. The collective is \
              MPI's own, so its transport is the one that MPI chooses; the result says which MPI it was, and of each node what its ranks \
              held open to carry messages. That is what they really had, whatever MPI was told to use.",
    metrics: &[
        &METRICS.plateau,
        &METRICS.wrong,
        &METRICS.busbw,
        &METRICS.algbw,
        &METRICS.latency,
        &METRICS.latency_p50,
        &METRICS.latency_p99,
        &METRICS.latency_max,
        &METRICS.member,
        &TRANSPORT,
        &COLLECTIVE_TIME,
    ],
    needs: None,
    tags: &["cluster", "mpi"],
    company: Company::Alone,
    options: &[
        OptionSpec {
            name: "ranks-per-node",
            default: "1",
            values: Values::Number(1..=1024),
            about: "ranks on each node",
        },
        OptionSpec {
            name: "max-bytes",
            default: "67108864",
            values: Values::Number(BYTES_MIN..=BYTES_MAX),
            about: "largest message of the whole sweep, in bytes",
        },
        OptionSpec {
            name: "quick-bytes",
            default: "4194304",
            values: Values::Number(BYTES_MIN..=BYTES_MAX),
            about: "largest message of the groups that look for a culprit, in bytes",
        },
        OptionSpec {
            name: "size-ms",
            default: "300",
            values: Values::Number(1..=60_000),
            about: "how long the iterations of one size take together, in milliseconds; a third of it in groups that look for a culprit",
        },
    ],
};

/// The largest message that may be asked for.
const BYTES_MAX: u64 = 1 << 34;

const LIMITS: Limits = Limits {
    bytes_large: 1 << 18,
    whole: Duration::from_secs(30),
    quick: Duration::from_secs(3),
};

/// The check.
pub(super) struct MpiAllReduce;

impl ClusterCheck for MpiAllReduce {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, _: &BTreeMap<String, String>, quick: bool) -> Budget {
        if quick {
            Budget {
                expected: Duration::from_secs(5),
                deadline: Duration::from_secs(60),
            }
        } else {
            Budget {
                expected: Duration::from_secs(15),
                deadline: Duration::from_secs(180),
            }
        }
    }

    fn plateau(&self) -> Option<&'static str> {
        Some(METRICS.plateau.name)
    }

    fn collective_time(&self) -> Option<&'static str> {
        Some(COLLECTIVE_TIME.name)
    }

    fn member(&self) -> Option<&'static str> {
        Some(METRICS.member.name)
    }

    fn wrong(&self) -> Option<&'static str> {
        Some(METRICS.wrong.name)
    }

    fn can_choose_cards(&self) -> bool {
        true
    }

    fn measure(
        &self,
        task: &Task,
        group: &Group,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        let ranks = task.number(&SPEC, "ranks-per-node")?;
        let sweep = all_reduce::sweep(task, &SPEC, LIMITS, group)?;
        record.progress(format!("{} nodes", group.nodes.len()))?;
        let ranks = u32::try_from(ranks).unwrap_or(u32::MAX);
        // One rank of one node would have nobody to talk to.
        let ranks = if group.nodes.len() == 1 {
            ranks.max(2)
        } else {
            ranks
        };
        let launched = group.launch(&task.host, Work::AllReduce(sweep), ranks, task.deadline)?;
        task.confine(record)?;
        all_reduce::tell(group, &launched, &METRICS, record)?;
        transports(&launched, record)?;
        if let Some(time) = launched.roster.collective() {
            let measured = COLLECTIVE_TIME.of(group.whole(), time.as_secs_f64());
            record.add(measured.among(group.size()))?;
        }
        all_reduce::ending(task, group, &launched)
    }
}

/// What carried the messages, node by node, and in a word where the nodes differ.
fn transports(launched: &Launched, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let mut nodes_of: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (node, transports, seen) in launched.roster.carriers() {
        let subject = Subject::new(Kind::Node, node);
        if transports.is_empty() {
            let why = "the ranks held no connection to another host, no RDMA device and no shared segment";
            record.gap(&TRANSPORT, subject, why)?;
            continue;
        }
        let word = transports.into_iter().collect::<Vec<_>>().join("+");
        record.add(TRANSPORT.of(subject, word.clone()).detail(seen))?;
        nodes_of.entry(word).or_default().push(node);
    }
    match nodes_of.len() {
        0 => Ok(()),
        1 => {
            let words: Vec<String> = nodes_of.into_keys().collect();
            record.note(format!("transport: {}", words.concat()))
        }
        _ => {
            let few = nodes_of.iter().min_by_key(|(_, nodes)| nodes.len());
            let (word, nodes) = few.expect("there are two or more");
            let others: Vec<&str> = nodes_of
                .keys()
                .filter(|other| *other != word)
                .map(String::as_str)
                .collect();
            record.note(format!(
                "transport differs: {word} on {}, {} on the others",
                nodes.join(" "),
                others.join(" or ")
            ))
        }
    }
}
