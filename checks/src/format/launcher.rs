//! What `srun` and `mpirun` say of hosts on which something failed.

/// How Slurm tells of a worker that did not understand its task (`EX_USAGE`).
const OF_ANOTHER_VERSION: &str = "Exited with exit code 64";

/// What a launcher says of a host.
#[derive(Debug, PartialEq, Eq)]
pub struct Complaint<'a> {
    /// The host, as the launcher calls it.
    pub host: &'a str,
    /// What of it failed.
    pub of: Of,
    /// In which words.
    pub why: String,
}

/// What of a host failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Of {
    /// A process on it.
    Task,
    /// The host itself.
    Node,
}

/// The complaints about hosts that failed first, from the standard error of `srun` or `mpirun`.
///
/// Slurm (22.05, `src/api/step_launch.c` and `src/plugins/launch/slurm`): `srun: error: h3: task 2: Killed`, then
/// `Terminating StepId`, after which the others are reported too; `srun: error: Node failure on h3`. Open MPI 4.1:
/// `mpirun noticed that process rank 2 with PID 0 on node h3 exited on signal 9 (Killed).`
pub fn complaints(text: &str) -> Vec<Complaint<'_>> {
    let mut found = Vec::new();
    let execve = text.lines().find(|line| line.contains("error: execve(): "));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("srun: error: Node failure on ") {
            let why = "Slurm lost the node".to_owned();
            found.push(Complaint {
                host: rest.trim(),
                of: Of::Node,
                why,
            });
        } else if let Some((host, why)) = task_of_srun(line) {
            // Those are ended because of the first one.
            if why != "Terminated" && found.is_empty() {
                let why = if why == OF_ANOTHER_VERSION {
                    "it did not understand its task: is the same dhc installed there as here?"
                } else {
                    why
                };
                let why =
                    execve.map_or(why, |line| line.rsplit("execve(): ").next().unwrap_or(why));
                found.push(Complaint {
                    host,
                    of: Of::Task,
                    why: why.to_owned(),
                });
            }
        } else if let Some((_, rest)) = line.split_once(" on node ")
            && line.contains("noticed that process rank")
            && let Some((host, why)) = rest.split_once(' ')
        {
            found.push(Complaint {
                host,
                of: Of::Task,
                why: why.trim_end_matches('.').to_owned(),
            });
        }
    }
    found
}

/// `srun: error: h3: task 2: Killed`, `srun: error: h[1-2]: tasks 0-1: Killed`.
fn task_of_srun(line: &str) -> Option<(&str, &str)> {
    let (host, rest) = line.strip_prefix("srun: error: ")?.split_once(": ")?;
    let (tasks, why) = rest.split_once(": ")?;
    (tasks.starts_with("task ") || tasks.starts_with("tasks ")).then_some((host, why.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_the_launcher_complains_of_is_the_culprit() {
        let killed = "srun: error: h3: task 2: Killed\n\
                      srun: launch/slurm: _step_signal: Terminating StepId=1.1\n\
                      srun: error: h1: task 0: Terminated\n\
                      srun: error: h2: task 1: Killed\n";
        let said = complaints(killed);
        assert_eq!(
            said,
            [Complaint {
                host: "h3",
                of: Of::Task,
                why: "Killed".to_owned()
            }]
        );
        let lost = "srun: error: Node failure on h3\nsrun: error: h1: task 0: Killed\n";
        assert_eq!(complaints(lost).len(), 1);
        assert_eq!(complaints(lost)[0].of, Of::Node);
        let missing = "srun: error: h3: task 2: Exited with exit code 2\n\
                       slurmstepd-h3: error: execve(): /opt/dhc-rank: No such file or directory\n";
        assert_eq!(
            complaints(missing)[0].why,
            "/opt/dhc-rank: No such file or directory"
        );
        let open_mpi = "mpirun noticed that process rank 2 with PID 0 on node h3 exited on signal 9 (Killed).\n";
        assert_eq!(complaints(open_mpi)[0].host, "h3");
        assert_eq!(complaints("srun: error: whatever\nnoise: : :\n"), []);
    }
}
