//! `nccl-allreduce`: an all-reduce over all GPUs of all nodes with NCCL, by dhc's own ranks or by an installed
//! `all_reduce_perf` of nccl-tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use super::all_reduce::{self, BYTES_MIN, Limits, Metrics};
use crate::check::{
    Budget, CheckError, ClusterCheck, Company, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::collective;
use crate::format::nccl_tests::{self, Table};
use crate::group::{Group, Roster};
use crate::host::{Ended, redact};
use crate::rank::{NcclSweep, Work};

static METRICS: Metrics = all_reduce::metrics!("nccl.allreduce");

const NETWORK: Metric = Metric {
    name: "nccl.allreduce.network",
    unit: Unit::State,
    about: "the network between nodes that NCCL chose on a node: efa, ib, socket, libfabric-PROVIDER, or a plugin's name; \
            mixed where its ranks differ",
    role: Role::Context,
    fault: "nccl.network",
};

static SPEC: Spec = Spec {
    name: "nccl-allreduce",
    about: "an all-reduce over all GPUs of all nodes with NCCL: is it right, how fast, over which network, and who is to blame if not",
    explain: "Starts one rank for each GPU. A rank loads the CUDA driver and the node's libnccl.so.2 when it runs, so nothing \
              has to be built on the cluster; MPI starts the ranks and gathers figures. Message sizes are swept, every \
              iteration is timed on every GPU, and results are compared element by element. NCCL's own log is read for the \
              network that it really chose: a node that fell back to TCP where EFA is due is told. With \
              engine=all_reduce_perf an installed all_reduce_perf of nccl-tests does it instead, which has to be built with \
              MPI, and says nothing while it hangs.",
    metrics: &[
        &METRICS.plateau,
        &METRICS.wrong,
        &NETWORK,
        &METRICS.busbw,
        &METRICS.algbw,
        &METRICS.latency,
        &METRICS.latency_p50,
        &METRICS.latency_p99,
        &METRICS.latency_max,
        &METRICS.member,
    ],
    needs: Some(Hardware::NvidiaGpu),
    tags: &["cluster", "gpu"],
    company: Company::Alone,
    options: &[
        OptionSpec {
            name: "engine",
            default: RANKS,
            values: Values::Words(&[RANKS, ALL_REDUCE_PERF]),
            about: "who does it: dhc's own ranks, or all_reduce_perf of nccl-tests, installed on every node",
        },
        GPUS_PER_NODE,
        OptionSpec {
            name: "max-bytes",
            default: "8589934592",
            values: Values::Number(BYTES_MIN..=BYTES_MAX),
            about: "largest message of the whole sweep, in bytes; less where a GPU has no room for it",
        },
        OptionSpec {
            name: "quick-bytes",
            default: "1073741824",
            values: Values::Number(BYTES_MIN..=BYTES_MAX),
            about: "largest message of the groups that look for a culprit, in bytes",
        },
        OptionSpec {
            name: "size-ms",
            default: "300",
            values: Values::Number(1..=60_000),
            about: "how long the iterations of one size take together, in milliseconds; a third of it in groups that look for a culprit \
                    (engine ranks)",
        },
        OptionSpec {
            name: "libnccl",
            default: "",
            values: Values::Path,
            about: "NCCL, such as that of your jobs' container or Python environment (engine ranks)",
        },
        OptionSpec {
            name: "libcuda",
            default: "",
            values: Values::Path,
            about: "the CUDA driver; the system's if not set (engine ranks)",
        },
        OptionSpec {
            name: "library-path",
            default: "",
            values: Values::Directories(16),
            about: "folders in which NCCL's plugins are looked for first (engine ranks)",
        },
        OptionSpec {
            name: "tool",
            default: "all_reduce_perf",
            values: Values::Program,
            about: "the program (engine all_reduce_perf)",
        },
    ],
};

/// The engines.
const RANKS: &str = "ranks";
const ALL_REDUCE_PERF: &str = "all_reduce_perf";

const GPUS_PER_NODE: OptionSpec = OptionSpec {
    name: "gpus-per-node",
    default: "",
    values: Values::Number(1..=64),
    about: "GPUs on each node, a rank for each; as many as the instance type has if not set",
};

/// The largest message that may be asked for.
const BYTES_MAX: u64 = 1 << 36;

const LIMITS: Limits = Limits {
    bytes_large: 1 << 26,
    whole: Duration::from_secs(60),
    quick: Duration::from_secs(10),
};

/// Beginnings of the variables that ranks set: those that change what NCCL and libfabric do. Which GPUs a rank may use is
/// for the launcher to say, node by node.
const CARRIED: &[&str] = &["NCCL_", "FI_"];

/// So many GPUs are listed with their identity; of more, those that a figure names.
const GPUS_LISTED: usize = 2_048;

/// The check.
pub(super) struct NcclAllReduce;

impl ClusterCheck for NcclAllReduce {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, _: &BTreeMap<String, String>, quick: bool) -> Budget {
        let (expected, deadline) = if quick { (20, 120) } else { (60, 300) };
        Budget {
            expected: Duration::from_secs(expected),
            deadline: Duration::from_secs(deadline),
        }
    }

    fn plateau(&self) -> Option<&'static str> {
        Some(METRICS.plateau.name)
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
        let engine = task.option(&SPEC, "engine")?;
        let gpus = task.number_if_set(&SPEC, GPUS_PER_NODE.name)?;
        let gpus = gpus.ok_or_else(|| {
            let why = "the table of the instance type does not say how many GPUs a node has; write how many";
            GPUS_PER_NODE.refusal(SPEC.name, "", why.to_owned())
        })?;
        let gpus = u32::try_from(gpus).unwrap_or(u32::MAX);
        record.progress(format!("{} nodes", group.nodes.len()))?;
        if engine == RANKS {
            by_ranks(task, group, gpus, record)
        } else {
            by_all_reduce_perf(task, group, gpus, record)
        }
    }
}

/// The all-reduce by dhc's own ranks.
fn by_ranks(
    task: &Task,
    group: &Group,
    gpus: u32,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let work = NcclSweep {
        sweep: all_reduce::sweep(task, &SPEC, LIMITS, group)?,
        nccl: task.path(&SPEC, "libnccl")?,
        cuda: task.path(&SPEC, "libcuda")?,
        library_path: task.directories(&SPEC, "library-path")?,
        environment: carried(task),
    };
    let launched = group.launch(&task.host, Work::NcclAllReduce(work), gpus, task.deadline)?;
    task.confine(record)?;
    all_reduce::tell(group, &launched, &METRICS, record)?;
    tell_gpus(&launched.roster, record)?;
    tell_transport(&launched.roster, record)?;
    all_reduce::ending(task, group, &launched)
}

/// The variables that ranks set. They travel in the ranks' command lines, which all users of a node can read, so nothing
/// that looks like a secret goes with them.
fn carried(task: &Task) -> BTreeMap<String, String> {
    let variables = task.host.environment.iter().filter(|(name, value)| {
        CARRIED.iter().any(|prefix| name.starts_with(prefix))
            && redact::value(name, value) == **value
    });
    variables
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Which GPU is which.
fn tell_gpus(roster: &Roster, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let mut named: BTreeSet<u32> = BTreeSet::new();
    for size in roster.sizes() {
        named.extend([size.slowest.0, size.fastest.0]);
        named.extend(size.wrong_rank);
    }
    let all = roster.gpus().count();
    for (rank, node, gpu) in roster.gpus() {
        if all > GPUS_LISTED && !named.contains(&rank) {
            continue;
        }
        let subject = Subject::new(Kind::Gpu, format!("{node}:{}", gpu.bdf));
        let identity = [
            ("node", node.to_owned()),
            ("bdf", gpu.bdf.clone()),
            ("uuid", gpu.uuid.clone()),
            ("model", gpu.model.clone()),
            ("rank", rank.to_string()),
        ];
        record.device(subject, identity)?;
    }
    Ok(())
}

/// Over which network the ranks of each node reach the others. A node whose ranks never came so far is passed over.
fn tell_transport(roster: &Roster, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    let mut nodes: BTreeMap<&str, BTreeSet<Option<String>>> = BTreeMap::new();
    let mut ways: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (node, transport) in roster.transports() {
        nodes
            .entry(node)
            .or_default()
            .insert(transport.network_word());
        ways.entry(transport.to_string()).or_default().insert(node);
    }
    for (node, mut words) in nodes {
        let subject = Subject::new(Kind::Node, node);
        match (words.pop_first().flatten(), words.pop_first().flatten()) {
            (Some(word), None) => record.add(NETWORK.of(subject, word))?,
            (Some(one), Some(other)) => record.add(
                NETWORK
                    .of(subject, "mixed")
                    .detail(format!("{one} and {other}")),
            )?,
            (None, Some(_)) => record.gap(
                &NETWORK,
                subject,
                "NCCL's log does not tell it for every rank",
            )?,
            (None, None) => record.gap(&NETWORK, subject, "NCCL's log does not tell it")?,
        }
    }
    for (way, nodes) in ways.iter().take(WAYS_TOLD) {
        let example = nodes.first().copied().unwrap_or_default();
        record.note(format!(
            "NCCL on {} nodes, {example} among them: {way}",
            nodes.len()
        ))?;
    }
    Ok(())
}

/// So many different ways of reaching others are told.
const WAYS_TOLD: usize = 8;

/// The all-reduce by an installed tool.
fn by_all_reduce_perf(
    task: &Task,
    group: &Group,
    gpus: u32,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let tool = task.option(&SPEC, "tool")?;
    let sweep = all_reduce::sweep(task, &SPEC, LIMITS, group)?;
    let words = [
        tool,
        "-b",
        &sweep.bytes_min.to_string(),
        "-e",
        &sweep.bytes_max.to_string(),
        "-f",
        "2",
        "-g",
        "1",
        "-c",
        "1",
        "-n",
        "20",
    ]
    .map(str::to_owned);
    let output = group.launch_tool(&task.host, &words, gpus, task.deadline)?;
    task.confine(record)?;
    for evidence in output.evidence(group.launch.name()) {
        record.evidence(evidence)?;
    }
    if let Ended::TimedOut | Ended::Dismissed | Ended::Unkillable { .. } = output.ended {
        return Err(CheckError::TimedOut(format!("{tool} {}", output.ended)));
    }
    let text = String::from_utf8_lossy(&output.stdout.kept()).into_owned();
    let table = nccl_tests::read(&text).map_err(|error| {
        CheckError::NotUnderstood(format!("{tool}: {error} ({})", output.ended))
    })?;
    if output.stdout.is_truncated() {
        return Err(CheckError::NotUnderstood(format!(
            "{tool} printed more than can be kept"
        )));
    }
    tell_table(&table, group, gpus, record)
}

fn tell_table(
    table: &Table,
    group: &Group,
    gpus: u32,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let nodes = group.size();
    let ranks = nodes.saturating_mul(gpus);
    if let Some(network) = &table.network {
        record.note(format!("NCCL: {network}"))?;
    }
    let rows: Vec<_> = table.rows.iter().filter(|row| row.bytes > 0).collect();
    if rows.is_empty() {
        return Err(CheckError::NotUnderstood(
            "the table has no rows".to_owned(),
        ));
    }
    let alone = |why: String| {
        let what = "was it built with MPI? Otherwise every process is alone";
        Err(CheckError::NotUnderstood(format!("{why}: {what}")))
    };
    if table.devices < ranks as usize {
        let devices = table.devices;
        return alone(format!(
            "the table lists {devices} devices of {ranks} ranks"
        ));
    }
    let due = collective::all_reduce_busbw_gb_per_s(1.0, ranks);
    let another = |(factor, off): &(f64, f64)| (factor - due).abs() > off + collective::EQUAL * due;
    if let Some((factor, _)) = rows.iter().filter_map(|row| row.bus_factor).find(another) {
        return alone(format!(
            "busbw over algbw is {factor:.3} in the table and {due:.3} for {ranks} ranks"
        ));
    }
    for row in &rows {
        for (metric, value) in [
            (&METRICS.busbw, row.all_reduce_busbw_gb_per_s(ranks)),
            (&METRICS.algbw, row.algbw_gb_per_s()),
            (&METRICS.latency, row.time_us),
        ] {
            record.add(
                metric
                    .of(group.whole(), value)
                    .at_bytes(row.bytes)
                    .among(nodes),
            )?;
        }
    }
    let in_rows: u64 = rows.iter().filter_map(|row| row.wrong).sum();
    record.add(
        METRICS
            .wrong
            .of(group.whole(), table.out_of_bounds.max(in_rows))
            .among(nodes),
    )?;
    let by_size: Vec<f64> = rows
        .iter()
        .map(|row| row.all_reduce_busbw_gb_per_s(ranks))
        .collect();
    let plateau = collective::plateau(&by_size).expect("there are rows");
    record.add(METRICS.plateau.of(group.whole(), plateau).among(nodes))
}
