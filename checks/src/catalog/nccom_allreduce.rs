//! `nccom-allreduce`: an all-reduce over the Neuron cores of several nodes, by AWS's `nccom-test`.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::time::Duration;

use dhc_thresholds::{Hardware, Metric, Role, Unit};

use super::nccom::{self, TOOL};
use crate::check::{
    Budget, CheckError, ClusterCheck, Company, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::collective;
use crate::group::{Group, Launch};
use crate::host::Command;

const PLATEAU: Metric = Metric {
    name: "nccom.cluster.plateau",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth of large messages: the median of the three largest sizes that were measured",
    role: Role::Judged,
    fault: "cluster.slow",
};
const WRONG: Metric = Metric {
    name: "nccom.cluster.wrong",
    unit: Unit::Count,
    about: "message sizes whose result was wrong",
    role: Role::Required,
    fault: "data.corrupted",
};
const BUSBW: Metric = Metric {
    name: "nccom.cluster.busbw",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth: algorithm bandwidth times 2(n - 1)/n over n logical cores",
    role: Role::Context,
    fault: "cluster.slow",
};
const ALGBW: Metric = Metric {
    name: "nccom.cluster.algbw",
    unit: Unit::GigabytesPerSecond,
    about: "algorithm bandwidth: message size over time",
    role: Role::Context,
    fault: "cluster.slow",
};
const LATENCY: Metric = Metric {
    name: "nccom.cluster.latency",
    unit: Unit::Microseconds,
    about: "time of one all-reduce",
    role: Role::Context,
    fault: "cluster.slow",
};

static SPEC: Spec = Spec {
    name: "nccom-allreduce",
    about: "an all-reduce over all Neuron cores of all nodes, with nccom-test",
    explain: "\
Runs AWS's nccom-test here, on a node of the cluster or its head node, which starts its workers on the nodes of a group
through Open MPI: over Slurm in an allocation, over ssh otherwise. It has to be installed here and on every node. Set
FI_PROVIDER=efa and FI_EFA_USE_DEVICE_RDMA=1 as your jobs do; they are passed on and stand in the result. The tool says
nothing while it hangs, so a hung group is a failed one, and the search finds the node by the groups it is in.",
    metrics: &[&PLATEAU, &WRONG, &BUSBW, &ALGBW, &LATENCY],
    needs: Some(Hardware::NeuronDevice),
    tags: &["cluster", "neuron"],
    company: Company::Alone,
    options: &[
        OptionSpec {
            name: "cores-per-node",
            default: "",
            values: Values::Number(1..=1024),
            about: "logical cores to use on each node; as many as this machine has if not set",
        },
        OptionSpec {
            name: "max-bytes",
            default: "1073741824",
            values: Values::Number(BYTES_MIN..=BYTES_MAX),
            about: "largest message of the whole sweep, in bytes",
        },
        OptionSpec {
            name: "quick-bytes",
            default: "268435456",
            values: Values::Number(QUICK_BYTES_MIN..=BYTES_MAX),
            about: "largest message of the groups that look for a culprit, in bytes",
        },
        OptionSpec {
            name: "port",
            default: "45654",
            values: Values::Number(1024..=65_535),
            about: "TCP port of the first node of a group, at which its workers meet",
        },
    ],
};

/// The smallest messages of the two kinds of groups, and the largest that may be asked for.
const BYTES_MIN: u64 = 8;
const QUICK_BYTES_MIN: u64 = 1 << 26;
const BYTES_MAX: u64 = 1 << 34;

/// The check.
pub(super) struct NccomAllReduce;

impl ClusterCheck for NccomAllReduce {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, _: &BTreeMap<String, String>, quick: bool) -> Budget {
        // Most of it is the start: nccom-test compiles a program for each size.
        let (expected, deadline) = if quick { (60, 300) } else { (180, 900) };
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
        let cores = match task.number_if_set(&SPEC, "cores-per-node")? {
            Some(cores) => u32::try_from(cores).unwrap_or(u32::MAX),
            None => nccom::logical_cores(task)?,
        };
        let (from, to) = if group.quick {
            (QUICK_BYTES_MIN, task.number(&SPEC, "quick-bytes")?)
        } else {
            (BYTES_MIN, task.number(&SPEC, "max-bytes")?)
        };
        let port = u16::try_from(task.number(&SPEC, "port")?).unwrap_or(u16::MAX);
        let nodes = group.size();
        let ranks = nodes.saturating_mul(cores);
        let command = Command::new(TOOL, task.deadline)
            .args(["-r", &ranks.to_string(), "-N", &nodes.to_string()])
            .args(["-b", &from.to_string(), "-e", &to.to_string()])
            .args(["-f", "2", "-n", "20", "-w", "5", "-d", "fp32"])
            .args(["--check", "--non-interactive", "allr"]);
        record.progress(format!("{nodes} nodes"))?;
        let table = nccom::table(task, on_nodes(command, group, port)?, ranks, record)?;
        let busbw: Vec<f64> = table
            .rows
            .iter()
            .map(|row| row.all_reduce_busbw_gb_per_s(ranks))
            .collect();
        for (row, busbw) in table.rows.iter().zip(&busbw) {
            for (metric, value) in [
                (&BUSBW, *busbw),
                (&ALGBW, row.algbw_gb_per_s()),
                (&LATENCY, row.time_us),
            ] {
                record.add(
                    metric
                        .of(group.whole(), value)
                        .at_bytes(row.bytes)
                        .among(nodes),
                )?;
            }
        }
        let wrong = table.failed.iter().filter(|row| row.is_wrong);
        record.add(WRONG.of(group.whole(), wrong.count()).among(nodes))?;
        if let Some(failed) = table.failed.iter().find(|row| !row.is_wrong) {
            return Err(nccom::could_not_run(failed));
        }
        match collective::plateau(&busbw) {
            Some(plateau) => record.add(PLATEAU.of(group.whole(), plateau).among(nodes)),
            None => Ok(()),
        }
    }
}

/// The command on the nodes of the group. Open MPI starts its daemons through Slurm where it finds itself in an allocation,
/// so it is told of the group as if the allocation had no other nodes (Open MPI 4.1, `ras_slurm_module.c`).
fn on_nodes(command: Command, group: &Group, port: u16) -> Result<Command, CheckError> {
    let (job, first) = match (&group.launch, group.nodes.first()) {
        (Launch::Srun { job }, Some(first)) => (Some(*job), first),
        (Launch::Mpirun, Some(first)) => (None, first),
        (Launch::Local, _) | (_, None) => return Ok(command),
    };
    let cannot = |why: String| {
        CheckError::Unavailable(format!(
            "the address of `{first}` is not known here, and {TOOL} wants it: {why}"
        ))
    };
    let mut addresses = (first.as_str(), port)
        .to_socket_addrs()
        .map_err(|error| cannot(error.to_string()))?;
    let root = addresses
        .next()
        .ok_or_else(|| cannot("the name has none".to_owned()))?;
    let command = command
        .env("NEURON_RT_ROOT_COMM_ID", root.to_string())
        .arg("--hosts")
        .args(&group.nodes);
    Ok(match job {
        Some(job) => command
            .env("SLURM_JOBID", job.to_string())
            .env("SLURM_JOB_ID", job.to_string())
            .env("SLURM_NODELIST", group.nodes.join(","))
            .env("SLURM_JOB_NODELIST", group.nodes.join(","))
            .env("SLURM_NNODES", group.nodes.len().to_string())
            .env("SLURM_TASKS_PER_NODE", format!("1(x{})", group.nodes.len())),
        None => command,
    })
}
