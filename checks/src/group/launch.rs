//! The launchers: Slurm's steps, Open MPI's own, and ranks on this machine alone. Each only makes a command line.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::slots;
use crate::host::Command;

/// How ranks are started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launch {
    /// A step of an allocation of Slurm.
    Srun {
        /// The allocation.
        job: u32,
    },
    /// Open MPI's launcher over its own remote shell or the resource manager it finds.
    Mpirun,
    /// Open MPI's launcher, all ranks on this machine.
    Local,
}

/// The name of every step of dhc.
pub const STEP_NAME: &str = "dhc-rank";

/// What a rank that fails means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// They would wait for it without end.
    EndsAll,
    /// They say what they have to say all the same.
    EndsItself,
    /// Nothing, and nobody waits for anybody: each is a run of its own that takes as long as it takes.
    IsTold,
}

/// On which processors ranks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processors {
    /// Those that the launcher gives to each.
    OfTheLauncher,
    /// All of the node: NCCL has threads of its own beside the rank's, and one core for all of them would be the limit.
    All,
}

/// A step of Slurm, as `JOB.STEP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepId {
    /// The allocation.
    pub job: u32,
    /// The step of it.
    pub step: u32,
}

/// How long a clean-up may take: the controller may be gone.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// Open MPI refuses to run as root unless it is told twice that this is meant; health checks do run as root.
const AS_ROOT: [(&str, &str); 2] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
];

impl Launch {
    /// The launcher's name, for evidence.
    pub fn name(&self) -> &'static str {
        match self {
            Launch::Srun { .. } => "srun",
            Launch::Mpirun | Launch::Local => "mpirun",
        }
    }

    /// The command that starts ranks on these nodes; the worker and its arguments follow.
    pub(super) fn command(
        &self,
        nodes: &[String],
        ranks_per_node: u32,
        failure: Failure,
        processors: Processors,
        deadline: Duration,
    ) -> Command {
        let ranks = nodes.len() * ranks_per_node as usize;
        let unbound: &[&str] = match (self, processors) {
            (_, Processors::OfTheLauncher) => &[],
            (Launch::Srun { .. }, Processors::All) => &["--cpu-bind=none"],
            (Launch::Mpirun | Launch::Local, Processors::All) => &["--bind-to", "none"],
        };
        let command = match self {
            Launch::Srun { job } => Command::new("srun", deadline)
                .arg(format!("--jobid={job}"))
                .arg(format!("--nodes={}", nodes.len()))
                .arg(format!("--ntasks={ranks}"))
                .arg(format!("--ntasks-per-node={ranks_per_node}"))
                .arg(format!("--nodelist={}", nodes.join(",")))
                // Groups share no node, and an ending step of a wave before must not block this one.
                .arg("--overlap")
                // So that what is left of it can be found.
                .arg(format!("--job-name={STEP_NAME}"))
                .arg(match failure {
                    Failure::EndsAll => "--kill-on-bad-exit=1",
                    Failure::EndsItself | Failure::IsTold => "--kill-on-bad-exit=0",
                })
                .args(match failure {
                    Failure::EndsAll | Failure::EndsItself => vec!["--wait=15"],
                    // A run on a node needs all of its cores.
                    Failure::IsTold => vec!["--wait=0", "--mpi=none"],
                })
                // Slurm counts in whole minutes; this is the net below our own deadline, never the deadline.
                .arg(format!("--time={}", deadline.as_secs() / 60 + 2))
                // The allocation may have no more CPUs of a node than one for each rank of a group of many.
                .args((nodes.len() == 1 && ranks > 1).then_some("--overcommit")),
            Launch::Mpirun => Command::new("mpirun", deadline)
                .args([
                    "--host",
                    &slots(nodes, ranks_per_node),
                    "-n",
                    &ranks.to_string(),
                ])
                .arg("--oversubscribe"),
            Launch::Local => Command::new("mpirun", deadline)
                .args([
                    "--host",
                    &format!("localhost:{ranks}"),
                    "-n",
                    &ranks.to_string(),
                ])
                .arg("--oversubscribe"),
        };
        AS_ROOT.iter().fold(
            command.args(unbound.iter().copied()),
            |command, (name, value)| command.env(*name, *value),
        )
    }

    /// Lets the ranks have this variable of the launcher. Slurm hands on all, and Open MPI those of its own.
    pub(super) fn pass_on(&self, command: Command, variable: &str) -> Command {
        match self {
            Launch::Mpirun if !variable.starts_with("OMPI_MCA_") => command.args(["-x", variable]),
            Launch::Srun { .. } | Launch::Mpirun | Launch::Local => command,
        }
    }

    /// The command that kills what is left of a step, where the launcher has such a thing.
    pub(super) fn kill(&self, step: StepId) -> Option<Command> {
        let Launch::Srun { .. } = self else {
            return None;
        };
        let step = format!("{}.{}", step.job, step.step);
        Some(Command::new("scancel", CLEAN_UP).args(["--signal=KILL", &step]))
    }
}
