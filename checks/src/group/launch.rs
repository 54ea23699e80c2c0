//! The launchers: Slurm's steps, Open MPI's own, and ranks on this machine alone. Each only makes a command line.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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

/// So many hosts with their ranks fit into one argument, of 128 KiB at most (`MAX_ARG_STRLEN` of the kernel), however long
/// their names. Open MPI takes several together.
const HOSTS_MAX: usize = 256;

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
                .arg(format!("--nodelist={}", hostlist(nodes)))
                // Groups share no node, and an ending step of a wave before must not block this one.
                .arg("--overlap")
                // So that what is left of it can be found.
                .arg(format!("--job-name={STEP_NAME}"))
                .arg(match failure {
                    Failure::EndsAll => "--kill-on-bad-exit=1",
                    Failure::EndsItself | Failure::IsTold => "--kill-on-bad-exit=0",
                })
                // Who does not wait for the others needs no MPI, which takes longer to start than they need for their work.
                .args(match failure {
                    Failure::EndsAll => vec!["--wait=15"],
                    Failure::EndsItself => vec!["--wait=15", "--mpi=none"],
                    Failure::IsTold => vec!["--wait=0", "--mpi=none"],
                })
                // Slurm counts in whole minutes; this is the net below our own deadline, never the deadline.
                .arg(format!("--time={}", deadline.as_secs() / 60 + 2))
                // The allocation may have no more CPUs of a node than one for each rank of a group of many.
                .args((nodes.len() == 1 && ranks > 1).then_some("--overcommit")),
            Launch::Mpirun => Command::new("mpirun", deadline)
                .args(
                    nodes
                        .chunks(HOSTS_MAX)
                        .flat_map(|nodes| ["--host".to_owned(), slots(nodes, ranks_per_node)]),
                )
                .args(["-n", &ranks.to_string()])
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

/// The hosts of one option of Open MPI, with ranks on each.
fn slots(nodes: &[String], ranks_per_node: u32) -> String {
    let slots: Vec<String> = nodes
        .iter()
        .map(|node| format!("{node}:{ranks_per_node}"))
        .collect();
    slots.join(",")
}

/// Slurm's expression for these nodes. Names that differ in their last number alone are folded, since thousands of them in full
/// would not fit into one argument: `h[1,3-5],login`.
fn hostlist(nodes: &[String]) -> String {
    let mut folded: Vec<(&str, Vec<Range<'_>>)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        let prefix = node.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &node[prefix.len()..];
        let Ok(number) = digits.parse() else {
            folded.push((node.as_str(), Vec::new()));
            continue;
        };
        let place = *places.entry(prefix).or_insert_with(|| {
            folded.push((prefix, Vec::new()));
            folded.len() - 1
        });
        let ranges = &mut folded[place].1;
        match ranges.last_mut() {
            Some(last) if last.goes_on(digits, number) => (last.to, last.end) = (digits, number),
            _ => ranges.push(Range {
                from: digits,
                to: digits,
                end: number,
            }),
        }
    }
    let text = |(prefix, ranges): (&str, Vec<Range<'_>>)| match ranges.as_slice() {
        [] => prefix.to_owned(),
        [one] if one.from == one.to => format!("{prefix}{}", one.from),
        several => {
            let several: Vec<String> = several.iter().map(Range::to_string).collect();
            format!("{prefix}[{}]", several.join(","))
        }
    };
    folded.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// Numbers of a hostlist that follow one another.
struct Range<'a> {
    from: &'a str,
    to: &'a str,
    end: u64,
}

impl Range<'_> {
    /// Whether the number comes next, written as wide: `9` and `10` are two ranges, `09` and `10` are one.
    fn goes_on(&self, digits: &str, number: u64) -> bool {
        number.checked_sub(1) == Some(self.end) && digits.len() == self.from.len()
    }
}

impl std::fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.from == self.to {
            f.write_str(self.from)
        } else {
            write!(f, "{}-{}", self.from, self.to)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_their_last_number_are_folded_and_no_other() {
        for (nodes, list) in [
            ("h1", "h1"),
            ("h1,h2,h3", "h[1-3]"),
            ("h3,h1,h2,h8", "h[3,1-2,8]"),
            ("h08,h09,h10,h9,h10a", "h[08-10,9],h10a"),
            ("gpu-1-4,login,gpu-1-5,gpu-2-5", "gpu-1-[4-5],login,gpu-2-5"),
            (
                "h1.example.org,h2.example.org",
                "h1.example.org,h2.example.org",
            ),
            ("x99999999999999999999999", "x99999999999999999999999"),
        ] {
            let nodes: Vec<String> = nodes.split(',').map(str::to_owned).collect();
            assert_eq!(hostlist(&nodes), list);
        }
    }

    #[test]
    fn no_argument_for_sixteen_thousand_nodes_is_longer_than_the_kernel_takes() {
        let nodes: Vec<String> = (0..16_384)
            .map(|node| format!("ip-10-201-{}-{}", node / 64, node % 64 * 3))
            .collect();
        for launch in [Launch::Srun { job: 1 }, Launch::Mpirun] {
            let second = Duration::from_secs(1);
            let command = launch.command(&nodes, 8, Failure::EndsAll, Processors::All, second);
            let longest = command.line().iter().map(String::len).max();
            assert!(longest < Some(128 << 10), "{launch:?}: {longest:?}");
        }
    }
}
