//! What dhc asks of Slurm: nodes, an allocation of them, and to end what is left of its steps.
//!
//! All through Slurm's own commands, whose output formats are asked for by name so that they hold from release to release.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dhc_checks::check::chain;
use dhc_checks::group::STEP_NAME;
use dhc_checks::host::{Command, Ended, ExecError, Host, Listener, valid_host_name};

use super::topology::Topology;

/// How long Slurm's controller may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(15);

/// How long a clean-up may take: a controller that is gone must not hold up the result.
pub(super) const CLEAN_UP: Duration = Duration::from_secs(3);

/// The longest line of a topology.
const TOPOLOGY_LINE_MAX: &str = "1048576";

/// The largest allocation that is looked at.
pub(super) const NODES_MAX: usize = 65_536;

/// How much of a list is read: 65,536 nodes with long names in several partitions each.
const LIST_BYTES: usize = 32 << 20;

/// Which nodes are wanted from Slurm.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// How many.
    pub nodes: Option<u32>,
    /// Which, in Slurm's notation.
    pub nodelist: Option<String>,
    /// From which partition.
    pub partition: Option<String>,
    /// Which generic resources of each.
    pub gres: Option<String>,
    /// Whether no other job may run on them meanwhile.
    pub exclusive: bool,
    /// A reservation that lets the run in.
    pub reservation: Option<String>,
    /// How long the allocation lasts if nobody gives it back.
    pub time: Duration,
    /// How long to wait for them.
    pub patience: Duration,
}

/// An allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: u32,
    /// Whether it was made for this run, and ends with it.
    pub ours: bool,
}

/// Why Slurm did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    /// A command could not be run or failed.
    #[error("`{command}` {ended}: {said}; look at `sinfo` and `scontrol ping`")]
    Refused {
        /// The command.
        command: &'static str,
        /// How it ended.
        ended: String,
        /// What it said.
        said: String,
    },
    /// A node list cannot be understood.
    #[error("Slurm named a node `{0}`, which cannot be a host name")]
    Name(String),
    /// A list that is not whole would lose nodes.
    #[error("`{0}` printed more than can be read")]
    TooLong(&'static str),
    /// The job has no nodes.
    #[error("job {0} has no nodes any more: it has ended; start a new one, or unset SLURM_JOB_ID")]
    Ended(u32),
    /// Two lists of the same nodes differ.
    #[error(
        "job {job} has {due} nodes, and `sinfo` lists {listed} of them; look at `scontrol show job {job}`"
    )]
    Count {
        /// The job.
        job: u32,
        /// How many it has.
        due: usize,
        /// How many are listed.
        listed: usize,
    },
    /// The run was stopped while it waited.
    #[error("stopped while it waited for nodes")]
    Stopped,
}

/// The nodes of an allocation as they are now, in Slurm's order, with those that Slurm itself calls down or not responding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Nodes that can be used.
    pub up: Vec<String>,
    /// Nodes that cannot, with the state that Slurm gives them.
    pub down: Vec<(String, String)>,
}

/// Asks for an allocation.
///
/// # Errors
/// When Slurm refuses it or does not grant it in time.
pub fn allocate(
    host: &Host,
    wanted: &Wanted,
    name: &str,
    stop: &'static AtomicBool,
) -> Result<Job, SlurmError> {
    let mut command = Command::new("salloc", wanted.patience + ANSWER)
        .args(["--no-shell", "--no-kill", "--job-name", name])
        .arg(format!("--immediate={}", wanted.patience.as_secs().max(1)))
        .arg(format!("--time={}", wanted.time.as_secs() / 60 + 1));
    if let Some(nodes) = wanted.nodes {
        command = command.arg(format!("--nodes={nodes}"));
    }
    if let Some(list) = &wanted.nodelist {
        command = command.arg(format!("--nodelist={list}"));
    }
    if let Some(partition) = &wanted.partition {
        command = command.arg(format!("--partition={partition}"));
    }
    if let Some(gres) = &wanted.gres {
        command = command.arg(format!("--gres={gres}"));
    }
    if wanted.exclusive {
        command = command.arg("--exclusive");
    }
    if let Some(reservation) = &wanted.reservation {
        command = command.arg(format!("--reservation={reservation}"));
    }
    let command = command.grace(CLEAN_UP);
    let output = host
        .exec_heard(&command, &mut Until(stop))
        .map_err(|error| cannot_run("salloc", &error))?;
    let (stdout, stderr) = (output.stdout.quotation(), output.stderr.quotation());
    // `salloc: Granted job allocation 12`
    let granted = stderr.lines().chain(stdout.lines()).find_map(|line| {
        let (_, number) = line.split_once("Granted job allocation ")?;
        number.trim().parse().ok()
    });
    if output.ended != Ended::Exited(0) {
        // It may have been granted all the same, just before the end.
        if let Some(id) = granted {
            clean_up(host, Job { id, ours: true });
        }
        return Err(match output.ended {
            Ended::Dismissed => SlurmError::Stopped,
            ended => SlurmError::Refused {
                command: "salloc",
                ended: ended.to_string(),
                said: output.stderr.last_words(),
            },
        });
    }
    granted
        .map(|id| Job { id, ours: true })
        .ok_or(SlurmError::Refused {
            command: "salloc",
            ended: "granted nothing".to_owned(),
            said: stderr.trim().to_owned(),
        })
}

/// The nodes of an allocation, asked anew: they change while it lasts.
///
/// # Errors
/// When Slurm does not answer.
pub fn nodes(host: &Host, job: Job) -> Result<Nodes, SlurmError> {
    let (due, list) = nodes_of(host, job)?;
    let states = Command::new("sinfo", ANSWER)
        .args(["--noheader", "--Node", "--format=%N %T"])
        .arg(format!("--nodes={list}"));
    let (states, _) = ask(host, "sinfo", &states.keeping(LIST_BYTES))?;
    let nodes = sort(&states)?;
    let listed = nodes.up.len() + nodes.down.len();
    if listed != due {
        let job = job.id;
        return Err(SlurmError::Count { job, due, listed });
    }
    Ok(nodes)
}

/// The nodes of an allocation in Slurm's notation, which is short however many they are.
pub(super) fn node_list(host: &Host, job: Job) -> Result<String, SlurmError> {
    nodes_of(host, job).map(|(_, list)| list)
}

/// How many nodes an allocation has, and which.
fn nodes_of(host: &Host, job: Job) -> Result<(usize, String), SlurmError> {
    let id = job.id.to_string();
    let list = Command::new("squeue", ANSWER)
        .args(["--noheader", "--jobs", &id, "--format=%D %N"])
        .keeping(LIST_BYTES);
    let (list, _) = ask(host, "squeue", &list)?;
    // A job that has ended is remembered for some minutes, and listed as none or without nodes.
    let (count, list) = list.trim().split_once(' ').unwrap_or_default();
    let count = count.parse().unwrap_or(0);
    match (count, list.trim()) {
        (0, _) | (_, "") => Err(SlurmError::Ended(job.id)),
        (count, list) => Ok((count, list.to_owned())),
    }
}

/// Hears nothing, and ends a command once this is set.
struct Until(&'static AtomicBool);

impl Listener for Until {
    fn line(&mut self, _: &[u8]) {}

    fn is_enough(&mut self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn cannot_run(command: &'static str, error: &ExecError) -> SlurmError {
    SlurmError::Refused {
        command,
        ended: "cannot be run".to_owned(),
        said: chain(error),
    }
}

fn sort(states: &str) -> Result<Nodes, SlurmError> {
    let mut nodes = Nodes::default();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for line in states.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(state)) = (words.next(), words.next()) else {
            continue;
        };
        if !valid_host_name(name) {
            return Err(SlurmError::Name(name.chars().take(100).collect()));
        }
        // A node in several partitions is listed for each.
        if !known.insert(name) {
            continue;
        }
        // `*`: not responding.
        if state.starts_with("down") || state.ends_with('*') {
            nodes.down.push((name.to_owned(), state.to_owned()));
        } else {
            nodes.up.push(name.to_owned());
        }
    }
    Ok(nodes)
}

/// The leaf switches that Slurm knows of.
///
/// # Errors
/// In words, when it does not answer, knows none, or says what cannot be understood: then leaves are not told apart, and
/// nothing else is lost.
pub fn topology(host: &Host) -> Result<Topology, String> {
    // A limit that a user set for reading would cut the lists (Slurm, `scontrol(1)`).
    let command = Command::new("scontrol", ANSWER)
        .args(["show", "topology"])
        .env("SLURM_TOPO_LEN", TOPOLOGY_LINE_MAX);
    let (text, _) = ask(host, "scontrol", &command).map_err(|error| chain(&error))?;
    Topology::parse(&text).map_err(|error| format!("scontrol show topology: {error}"))
}

/// Ends the steps of this run, and the allocation if it was made for the run. What fails here has an end of its own: ranks
/// end themselves, and an allocation has a time limit.
pub fn clean_up(host: &Host, job: Job) {
    let id = job.id.to_string();
    if job.ours {
        drop(host.exec(&Command::new("scancel", CLEAN_UP).arg(id)));
        return;
    }
    let steps = Command::new("squeue", CLEAN_UP).args([
        "--noheader",
        "--steps",
        "--jobs",
        &id,
        "--format=%i %j",
    ]);
    let Ok(output) = host.exec(&steps) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout.kept()).into_owned();
    let ours = text.lines().filter_map(|line| {
        let (step, name) = line.trim().split_once(' ')?;
        let is_step = step
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        (name == STEP_NAME && is_step).then(|| step.to_owned())
    });
    let ours: Vec<String> = ours.collect();
    if !ours.is_empty() {
        drop(
            host.exec(
                &Command::new("scancel", CLEAN_UP)
                    .arg("--signal=KILL")
                    .args(ours),
            ),
        );
    }
}

pub(super) fn ask(
    host: &Host,
    name: &'static str,
    command: &Command,
) -> Result<(String, String), SlurmError> {
    let refused = |ended: String, said: String| SlurmError::Refused {
        command: name,
        ended,
        said,
    };
    let output = host
        .exec(command)
        .map_err(|error| cannot_run(name, &error))?;
    if output.stdout.is_truncated() {
        return Err(SlurmError::TooLong(name));
    }
    let stdout = String::from_utf8_lossy(&output.stdout.kept()).into_owned();
    if output.ended != Ended::Exited(0) {
        return Err(refused(
            output.ended.to_string(),
            output.stderr.last_words(),
        ));
    }
    Ok((stdout, output.stderr.quotation()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_slurm_has_given_up_are_told_apart() {
        let nodes = sort("h1 mixed\nh2 allocated\nh3 down*\nh4 idle*\nh1 mixed\n").unwrap();
        assert_eq!(nodes.up, ["h1", "h2"]);
        let down: Vec<&str> = nodes.down.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(down, ["h3", "h4"]);
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        assert!(matches!(sort("$(reboot) idle\n"), Err(SlurmError::Name(_))));
    }
}
