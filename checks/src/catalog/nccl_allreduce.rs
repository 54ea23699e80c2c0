//! `nccl-allreduce`: an all-reduce over all GPUs of all nodes, by an installed `all_reduce_perf` of nccl-tests.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use crate::check::{Budget, CheckError, ClusterCheck, Company, OptionSpec, Recorder, Spec, Task};
use crate::collective;
use crate::format::nccl_tests::{self, Table};
use crate::group::Group;
use crate::host::Ended;

const PLATEAU: Metric = Metric {
    name: "nccl.allreduce.plateau",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth of large messages: the median of the three largest sizes that were measured",
    role: Role::Judged,
    fault: "cluster.slow",
};
const WRONG: Metric = Metric {
    name: "nccl.allreduce.wrong",
    unit: Unit::Count,
    about: "results out of bounds, as the tool counts them over all sizes",
    role: Role::Required,
    fault: "data.corrupted",
};
const BUSBW: Metric = Metric {
    name: "nccl.allreduce.busbw",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth: algorithm bandwidth times 2(n - 1)/n over n GPUs",
    role: Role::Context,
    fault: "cluster.slow",
};
const ALGBW: Metric = Metric {
    name: "nccl.allreduce.algbw",
    unit: Unit::GigabytesPerSecond,
    about: "algorithm bandwidth: message size over time, of the slower of the out-of-place and the in-place half",
    role: Role::Context,
    fault: "cluster.slow",
};
const LATENCY: Metric = Metric {
    name: "nccl.allreduce.latency",
    unit: Unit::Microseconds,
    about: "time of one all-reduce",
    role: Role::Context,
    fault: "cluster.slow",
};

static SPEC: Spec = Spec {
    name: "nccl-allreduce",
    about: "an all-reduce over all GPUs of all nodes with NCCL, by an installed all_reduce_perf",
    explain: "Starts nccl-tests' all_reduce_perf with one process for each GPU and reads its table, in the layouts of all \
              its versions. It has to be installed on every node and built with MPI. Its own average is not used, since it \
              depends on the sizes that were run: the plateau of the large ones is judged. Set NCCL_DEBUG=INFO to have \
              the network that NCCL chose told in the result. The tool says nothing while it hangs, so a hung group is a \
              failed one, and the search finds the node by the groups it is in.",
    metrics: &[&PLATEAU, &WRONG, &BUSBW, &ALGBW, &LATENCY],
    needs: Some(Hardware::NvidiaGpu),
    tags: &["cluster", "gpu"],
    company: Company::Alone,
    options: &[
        OptionSpec {
            name: "tool",
            default: "all_reduce_perf",
            about: "the program, by name or whole path",
        },
        OptionSpec {
            name: "gpus-per-node",
            default: "8",
            about: "GPUs on each node, a process for each",
        },
        OptionSpec {
            name: "max-bytes",
            default: "8589934592",
            about: "largest message of the whole sweep, in bytes",
        },
        OptionSpec {
            name: "quick-bytes",
            default: "1073741824",
            about: "largest message of the groups that look for a culprit, in bytes",
        },
    ],
};

/// The smallest messages of the two kinds of groups.
const BYTES_MIN: u64 = 8;
const QUICK_BYTES_MIN: u64 = 1 << 26;

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
        Some(PLATEAU.name)
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
        let tool = task.option(&SPEC, "tool");
        if tool.is_empty() || tool.starts_with('-') {
            return Err(CheckError::Option {
                check: SPEC.name,
                option: "tool",
                value: tool.to_owned(),
                why: "write the name or path of all_reduce_perf".to_owned(),
            });
        }
        let gpus = task.number(&SPEC, "gpus-per-node", 1..=64)?;
        let (from, to) = if group.quick {
            (
                QUICK_BYTES_MIN,
                task.number(&SPEC, "quick-bytes", QUICK_BYTES_MIN..=1 << 36)?,
            )
        } else {
            (
                BYTES_MIN,
                task.number(&SPEC, "max-bytes", BYTES_MIN..=1 << 36)?,
            )
        };
        let gpus = u32::try_from(gpus).unwrap_or(u32::MAX);
        let words = [
            tool,
            "-b",
            &from.to_string(),
            "-e",
            &to.to_string(),
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
        record.progress(format!("{} nodes", group.nodes.len()))?;
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
        tell(&table, group, gpus, record)
    }
}

fn tell(
    table: &Table,
    group: &Group,
    gpus: u32,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let nodes = u32::try_from(group.nodes.len()).unwrap_or(u32::MAX);
    let ranks = nodes.saturating_mul(gpus);
    let whole = || Subject::new(Kind::Group, format!("{nodes} nodes"));
    if let Some(network) = &table.network {
        record.note(format!("NCCL: {network}"))?;
    }
    let rows: Vec<_> = table.rows.iter().filter(|row| row.bytes > 0).collect();
    if rows.is_empty() {
        return Err(CheckError::NotUnderstood(
            "the table has no rows".to_owned(),
        ));
    }
    for row in &rows {
        for (metric, value) in [
            (&BUSBW, row.all_reduce_busbw_gb_per_s(ranks)),
            (&ALGBW, row.algbw_gb_per_s()),
            (&LATENCY, row.time_us),
        ] {
            record.add(metric.of(whole(), value).at_bytes(row.bytes).among(nodes))?;
        }
    }
    let in_rows: u64 = rows.iter().filter_map(|row| row.wrong).sum();
    record.add(
        WRONG
            .of(whole(), table.out_of_bounds.max(in_rows))
            .among(nodes),
    )?;
    let by_size: Vec<f64> = rows
        .iter()
        .map(|row| row.all_reduce_busbw_gb_per_s(ranks))
        .collect();
    let plateau = collective::plateau(&by_size).expect("there are rows");
    record.add(PLATEAU.of(whole(), plateau).among(nodes))
}
