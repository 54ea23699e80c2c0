//! What dhc asks of Slurm: nodes, an allocation of them, and to end what is left of its steps.
//!
//! All through Slurm's own commands, whose output formats are asked for by name so that they hold from release to release.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dhc_checks::check::chain;
use dhc_checks::group::STEP_NAME;
use dhc_checks::host::{Command, Ended, ExecError, Host, Listener, Output, valid_host_name};
use rustix::process::Signal;

use super::topology::Topology;

/// How long Slurm's controller may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(15);

/// How long a clean-up may take: a controller that is gone must not hold up the result.
pub(super) const CLEAN_UP: Duration = Duration::from_secs(3);

/// For how much longer than an allocation lasts its `salloc` may run.
const HELD_ON: Duration = Duration::from_secs(60);

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

/// The number of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job(pub u32);

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

/// An allocation that was made for this run and lasts as long as this does.
///
/// A `salloc` beside dhc holds it. It gives the allocation back when it is told to, and when dhc dies, however that comes
/// about; so nothing is left of a dhc that is killed. Only if `salloc` is killed with it, or the host dies, is the time limit
/// of the allocation what ends it, or Slurm's `InactiveLimit`.
#[derive(Debug)]
pub struct Allocation {
    host: Host,
    id: u32,
    is_over: Arc<AtomicBool>,
    salloc: Option<JoinHandle<()>>,
}

impl Allocation {
    /// What its nodes are asked for by.
    pub fn job(&self) -> Job {
        Job(self.id)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // At once, since `salloc` may have been killed; what fails here has an end of its own.
        let scancel = Command::new("scancel", CLEAN_UP).arg(self.id.to_string());
        drop(self.host.exec(&scancel));
        drop(self.salloc.take().map(JoinHandle::join));
    }
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
) -> Result<Allocation, SlurmError> {
    let patience = wanted.patience + ANSWER;
    let command = salloc(wanted, name, patience + wanted.time + HELD_ON);
    let (told, answer) = channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let mut holder = Holder {
        granted: told.clone(),
        is_granted: false,
        until: Instant::now() + patience,
        stop,
        is_over: Arc::clone(&is_over),
    };
    let of_salloc = host.clone();
    let salloc = std::thread::spawn(move || {
        // Nobody waits for an answer any more once there was one, and then it is heard by nobody.
        let refused = not_granted(
            of_salloc.exec_heard(&command, &mut holder),
            stop.load(Ordering::Relaxed),
        );
        drop(told.send(Err(refused)));
    });
    let id = answer.recv().unwrap_or(Err(SlurmError::Stopped))?;
    let allocation = Allocation {
        host: host.clone(),
        id,
        is_over,
        salloc: Some(salloc),
    };
    match stop.load(Ordering::Relaxed) {
        // It was granted just before the end.
        true => Err(SlurmError::Stopped),
        false => Ok(allocation),
    }
}

/// The command that gets an allocation and holds it until its own end.
fn salloc(wanted: &Wanted, name: &str, deadline: Duration) -> Command {
    let options = [
        wanted.nodes.map(|nodes| format!("--nodes={nodes}")),
        wanted
            .nodelist
            .as_ref()
            .map(|list| format!("--nodelist={list}")),
        wanted
            .partition
            .as_ref()
            .map(|name| format!("--partition={name}")),
        wanted.gres.as_ref().map(|gres| format!("--gres={gres}")),
        wanted.exclusive.then(|| "--exclusive".to_owned()),
        wanted
            .reservation
            .as_ref()
            .map(|name| format!("--reservation={name}")),
    ];
    Command::new("salloc", deadline)
        .args(["--no-kill", "--job-name", name])
        .arg(format!("--immediate={}", wanted.patience.as_secs().max(1)))
        .arg(format!("--time={}", wanted.time.as_secs() / 60 + 1))
        .args(options.into_iter().flatten())
        // What `salloc` waits for, and kills when it gives the allocation back.
        .args(["sleep".to_owned(), deadline.as_secs().to_string()])
        // On SIGTERM and SIGINT it leaves its command behind (Slurm 22.05).
        .gives_back_on(Signal::HUP)
        .grace(CLEAN_UP)
}

/// Hears of the allocation, and says how long `salloc` is to run.
struct Holder {
    granted: Sender<Result<u32, SlurmError>>,
    is_granted: bool,
    /// When it has to be granted.
    until: Instant,
    stop: &'static AtomicBool,
    is_over: Arc<AtomicBool>,
}

impl Listener for Holder {
    fn line(&mut self, _: &[u8]) {}

    fn error_line(&mut self, line: &[u8]) {
        // `salloc: Granted job allocation 12`
        let line = String::from_utf8_lossy(line);
        let id = line
            .split_once("Granted job allocation ")
            .and_then(|(_, id)| id.trim().parse().ok());
        if let (false, Some(id)) = (self.is_granted, id) {
            self.is_granted = true;
            drop(self.granted.send(Ok(id)));
        }
    }

    fn is_enough(&mut self) -> bool {
        match self.is_granted {
            // A run that is stopped still has steps to end.
            true => self.is_over.load(Ordering::Relaxed),
            false => self.stop.load(Ordering::Relaxed) || Instant::now() > self.until,
        }
    }
}

/// Why `salloc` has ended without a word of an allocation.
fn not_granted(ran: Result<Output, ExecError>, is_stopped: bool) -> SlurmError {
    let output = match ran {
        Ok(output) => output,
        Err(error) => return cannot_run("salloc", &error),
    };
    let ended = match output.ended {
        Ended::Dismissed if is_stopped => return SlurmError::Stopped,
        Ended::Dismissed => Ended::TimedOut.to_string(),
        Ended::Exited(0) => "granted nothing".to_owned(),
        ended => ended.to_string(),
    };
    SlurmError::Refused {
        command: "salloc",
        ended,
        said: output.stderr.last_words(),
    }
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
        return Err(SlurmError::Count {
            job: job.0,
            due,
            listed,
        });
    }
    Ok(nodes)
}

/// The nodes of an allocation in Slurm's notation, which is short however many they are.
pub(super) fn node_list(host: &Host, job: Job) -> Result<String, SlurmError> {
    nodes_of(host, job).map(|(_, list)| list)
}

/// How many nodes an allocation has, and which.
fn nodes_of(host: &Host, job: Job) -> Result<(usize, String), SlurmError> {
    let id = job.0.to_string();
    let list = Command::new("squeue", ANSWER)
        .args(["--noheader", "--jobs", &id, "--format=%D %N"])
        .keeping(LIST_BYTES);
    let (list, _) = ask(host, "squeue", &list)?;
    // A job that has ended is remembered for some minutes, and listed as none or without nodes.
    let (count, list) = list.trim().split_once(' ').unwrap_or_default();
    let count = count.parse().unwrap_or(0);
    match (count, list.trim()) {
        (0, _) | (_, "") => Err(SlurmError::Ended(job.0)),
        (count, list) => Ok((count, list.to_owned())),
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

/// Ends what is left of dhc's steps in an allocation. What fails here has an end of its own: ranks end themselves.
pub fn end_steps(host: &Host, job: Job) {
    let id = job.0.to_string();
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
