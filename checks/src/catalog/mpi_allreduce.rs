//! `mpi-allreduce`: an all-reduce of host memory over MPI, by dhc's own ranks.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Kind, Metric, Role, Subject, Unit};

use crate::check::{Budget, CheckError, ClusterCheck, Company, OptionSpec, Recorder, Spec, Task};
use crate::collective;
use crate::group::{Group, Launched, NodeState};
use crate::host::Ended;
use crate::rank::{SizeLine, Sweep, Work};

const PLATEAU: Metric = Metric {
    name: "mpi.allreduce.plateau",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth of large messages: the median of the three largest sizes that were measured",
    role: Role::Judged,
    fault: "cluster.slow",
};
const WRONG: Metric = Metric {
    name: "mpi.allreduce.wrong",
    unit: Unit::Count,
    about: "elements of results that differ from what they have to be, on all ranks",
    role: Role::Required,
    fault: "data.corrupted",
};
const ALGBW: Metric = Metric {
    name: "mpi.allreduce.algbw",
    unit: Unit::GigabytesPerSecond,
    about: "algorithm bandwidth: message size over the mean time",
    role: Role::Context,
    fault: "cluster.slow",
};
const BUSBW: Metric = Metric {
    name: "mpi.allreduce.busbw",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth: algorithm bandwidth times 2(n - 1)/n, comparable with the rate of a link whatever n is",
    role: Role::Context,
    fault: "cluster.slow",
};
const LATENCY: Metric = Metric {
    name: "mpi.allreduce.latency",
    unit: Unit::Microseconds,
    about: "mean time of one all-reduce, mean over the ranks",
    role: Role::Context,
    fault: "cluster.slow",
};
const LATENCY_P50: Metric = Metric {
    name: "mpi.allreduce.latency_p50",
    unit: Unit::Microseconds,
    about: "median time of one all-reduce, median over the ranks",
    role: Role::Context,
    fault: "cluster.slow",
};
const LATENCY_P99: Metric = Metric {
    name: "mpi.allreduce.latency_p99",
    unit: Unit::Microseconds,
    about: "99th percentile of the time of one all-reduce, on the rank where it is greatest",
    role: Role::Context,
    fault: "cluster.slow",
};
const LATENCY_MAX: Metric = Metric {
    name: "mpi.allreduce.latency_max",
    unit: Unit::Microseconds,
    about: "the longest all-reduce on any rank",
    role: Role::Context,
    fault: "cluster.slow",
};
const MEMBER: Metric = Metric {
    name: "mpi.allreduce.member",
    unit: Unit::State,
    about: "what became of a node of the group: done, waiting (for others), behind (others waited for it), silent, died, died_at_start, \
            could_not_start, never_answered",
    role: Role::Context,
    fault: "cluster.node.unresponsive",
};

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
        &PLATEAU,
        &WRONG,
        &BUSBW,
        &ALGBW,
        &LATENCY,
        &LATENCY_P50,
        &LATENCY_P99,
        &LATENCY_MAX,
        &MEMBER,
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
            about: "ranks on each node",
        },
        OptionSpec {
            name: "max-bytes",
            default: "67108864",
            about: "largest message of the whole sweep, in bytes",
        },
        OptionSpec {
            name: "quick-bytes",
            default: "4194304",
            about: "largest message of the groups that look for a culprit, in bytes",
        },
        OptionSpec {
            name: "size-ms",
            default: "300",
            about: "how long the iterations of one size take together, in milliseconds",
        },
    ],
};

/// The smallest message of a quick look: below it the latency of the launch's network hides a slow path.
const QUICK_BYTES_MIN: u64 = 1 << 18;

/// How long a sweep goes on to larger sizes.
const SWEEP: Duration = Duration::from_secs(30);
const QUICK_SWEEP: Duration = Duration::from_secs(3);

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
        Some(PLATEAU.name)
    }

    fn collective_time(&self) -> Option<&'static str> {
        Some(COLLECTIVE_TIME.name)
    }

    fn member(&self) -> Option<&'static str> {
        Some(MEMBER.name)
    }

    fn wrong(&self) -> Option<&'static str> {
        Some(WRONG.name)
    }

    fn measure(
        &self,
        task: &Task,
        group: &Group,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        let number = |option: &'static str, range| task.number(&SPEC, option, range);
        let ranks_per_node = number("ranks-per-node", 1..=1024)?;
        let size_ms = number("size-ms", 1..=60_000)?;
        let sweep = if group.quick {
            Sweep {
                bytes_min: QUICK_BYTES_MIN,
                bytes_max: number("quick-bytes", QUICK_BYTES_MIN..=1 << 34)?,
                size_ms,
                sweep_ms: QUICK_SWEEP.as_millis() as u64,
            }
        } else {
            Sweep {
                bytes_min: 8,
                bytes_max: number("max-bytes", 8..=1 << 34)?,
                size_ms,
                sweep_ms: SWEEP.as_millis() as u64,
            }
        };
        record.progress(format!("{} nodes", group.nodes.len()))?;
        let ranks = u32::try_from(ranks_per_node).unwrap_or(u32::MAX);
        let launched = group.launch(&task.host, Work::AllReduce(sweep), ranks, task.deadline)?;
        task.confine(record)?;
        tell(group, &launched, record)?;
        ending(group, &launched)
    }
}

fn tell(group: &Group, launched: &Launched, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let roster = &launched.roster;
    for evidence in launched.evidence(group.launch.name()) {
        record.evidence(evidence)?;
    }
    if let Some(library) = roster.library() {
        record.note(format!("MPI: {library}"))?;
    }
    let nodes = u32::try_from(group.nodes.len()).unwrap_or(u32::MAX);
    let whole = || Subject::new(Kind::Group, format!("{nodes} nodes"));
    for (node, state) in roster.states() {
        let mut member = MEMBER.of(Subject::new(Kind::Node, node), state.word());
        if let Some(why) = state.why() {
            member = member.detail(why);
        }
        record.add(member)?;
    }
    transports(launched, record)?;
    if let Some(time) = roster.collective() {
        record.add(COLLECTIVE_TIME.of(whole(), time.as_secs_f64()).among(nodes))?;
    }
    for size in roster.sizes() {
        for (metric, value) in [
            (&BUSBW, busbw_gb_per_s(size)),
            (&ALGBW, algbw_gb_per_s(size)),
            (&LATENCY, size.mean_us),
            (&LATENCY_P50, size.p50_us),
            (&LATENCY_P99, size.p99_us),
            (&LATENCY_MAX, size.max_us),
        ] {
            let mut measured = metric.of(whole(), value).at_bytes(size.bytes).among(nodes);
            if metric.name == LATENCY.name {
                measured = measured.detail(extremes(size, launched));
            }
            record.add(measured)?;
        }
    }
    let verified: u64 = roster.sizes().iter().map(|size| size.verified).sum();
    if verified > 0 {
        let wrong: u64 = roster.sizes().iter().map(|size| size.wrong).sum();
        let mut measured = WRONG.of(whole(), wrong).among(nodes);
        let worst = roster
            .sizes()
            .iter()
            .filter_map(|size| Some((size, size.wrong_rank?)))
            .next();
        if let Some((size, rank)) = worst {
            let node = roster.node_of(rank).unwrap_or("an unknown node");
            measured = measured.detail(format!(
                "first at {} bytes, most on rank {rank} on {node}",
                size.bytes
            ));
        }
        record.add(measured)?;
    }
    let by_size: Vec<f64> = roster.sizes().iter().map(busbw_gb_per_s).collect();
    if let Some(plateau) = collective::plateau(&by_size) {
        record.add(PLATEAU.of(whole(), plateau).among(nodes))?;
    }
    Ok(())
}

/// What carried the messages, node by node, and in a word where the nodes differ.
fn transports(launched: &Launched, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let mut nodes_of: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (node, transports, seen) in launched.roster.transports() {
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

/// Which ranks were fastest and slowest, for people.
fn extremes(size: &SizeLine, launched: &Launched) -> String {
    let name = |rank: u32| launched.roster.node_of(rank).unwrap_or("?").to_owned();
    let ((slow, slow_us), (fast, fast_us)) = (size.slowest, size.fastest);
    format!(
        "slowest rank {slow} on {} {slow_us:.1} us, fastest rank {fast} on {} {fast_us:.1} us",
        name(slow),
        name(fast)
    )
}

fn algbw_gb_per_s(size: &SizeLine) -> f64 {
    collective::algbw_gb_per_s(size.bytes, size.mean_us.max(1e-3))
}

fn busbw_gb_per_s(size: &SizeLine) -> f64 {
    collective::all_reduce_busbw_gb_per_s(algbw_gb_per_s(size), size.ranks)
}

/// What the launch came to, if not to its end: who is named by it stands in the members' states.
fn ending(group: &Group, launched: &Launched) -> Result<(), CheckError> {
    if launched.roster.is_done() && launched.output.ended == Ended::Exited(0) {
        return Ok(());
    }
    let named: Vec<String> = launched
        .roster
        .states()
        .filter(|(_, state)| !matches!(state, NodeState::Done | NodeState::Waiting))
        .map(|(node, state)| match state.why() {
            Some(why) => format!("{node} {} ({why})", state.word()),
            None => format!("{node} {}", state.word()),
        })
        .collect();
    let who = if named.is_empty() {
        "no node is named by it".to_owned()
    } else {
        named.join(", ")
    };
    let what = format!(
        "the all-reduce over {} nodes did not come to its end: {} {}; {who}",
        group.nodes.len(),
        group.launch.name(),
        launched.output.ended
    );
    match launched.output.ended {
        Ended::TimedOut | Ended::Dismissed | Ended::Unkillable { .. } => {
            Err(CheckError::TimedOut(what))
        }
        Ended::Exited(_) | Ended::Signaled(_) => Err(CheckError::Unavailable(what)),
    }
}
