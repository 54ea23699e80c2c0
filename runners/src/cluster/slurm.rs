//! What dhc asks of Slurm: nodes, an allocation of them, and to end what is left of its steps.
//!
//! All through Slurm's own commands, whose output formats are asked for by name so that they hold from release to release.

use std::collections::{BTreeMap, BTreeSet};
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

impl SlurmError {
    /// Whether Slurm refused since it has no such job: it forgets those that have ended after some minutes.
    fn is_of_no_job(&self) -> bool {
        matches!(self, SlurmError::Refused { said, .. } if said.contains("Invalid job id"))
    }
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

/// How an allocation and some nodes of it stand, in Slurm's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// That the allocation has ended, if it has, and in which state: no step begins in it any more.
    pub ended: Option<String>,
    /// The nodes that are not there as they should be. Where the allocation has ended for another reason than a node's
    /// failure there are none, since its nodes are somebody else's by then.
    pub away: Vec<Away>,
}

/// A node that is not there as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// Its name.
    pub node: String,
    /// Whether Slurm calls it down or not responding. Otherwise it was taken away for a reason that need not be its own: an
    /// operator drained it, or made the allocation smaller.
    pub is_down: bool,
    /// Whether it has left the allocation, so that no step can be started on it any more.
    pub has_left: bool,
    /// The state and the reason that Slurm gives.
    pub words: String,
}

impl std::fmt::Display for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Away { node, words, .. } = self;
        match (self.is_down, self.has_left) {
            (true, _) => write!(f, "Slurm calls {node} {words}"),
            (false, _) => write!(
                f,
                "{node} is no longer in the allocation, and Slurm calls it {words}: somebody took it away, or it was down \
                 for a while, and that accuses it of nothing"
            ),
        }
    }
}

impl Standing {
    /// What follows for `nodes`, which were all in the allocation when it was made, from Slurm's answers: the nodes that it
    /// has now, if any, the state of its job, and a line `NODE STATE|REASON` for every node of the cluster.
    pub fn read(
        job: Job,
        now: Option<&Nodes>,
        state: &str,
        states: &str,
        nodes: &[String],
    ) -> Standing {
        let state = state.trim();
        let ended = (now.is_none() || ENDED.contains(&state)).then(|| {
            let state = match state {
                "" => "Slurm remembers no more of it",
                state => state,
            };
            format!(
                "job {} has ended ({state}), so nothing can be started on its nodes any more",
                job.0
            )
        });
        if ended.is_some() && !BY_A_NODE.contains(&state) {
            let away = Vec::new();
            return Standing { ended, away };
        }
        let now = now.cloned().unwrap_or_default();
        let up: BTreeSet<&str> = now.up.iter().map(String::as_str).collect();
        let down: BTreeSet<&str> = now.down.iter().map(|(name, _)| name.as_str()).collect();
        let mut said: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        for line in states.lines() {
            if let Some((name, rest)) = line.split_once(' ')
                && let Some((state, reason)) = rest.split_once('|')
            {
                // A node in several partitions is listed for each.
                said.entry(name).or_insert((state.trim(), reason.trim()));
            }
        }
        let away = nodes.iter().filter(|node| !up.contains(node.as_str()));
        let away = away.filter_map(|node| {
            let (state, reason) = said.get(node.as_str())?;
            let is_down = is_down(state);
            // When an allocation ends, all of its nodes leave it.
            let matters = is_down || ended.is_none();
            matters.then(|| Away {
                node: node.clone(),
                is_down,
                has_left: !down.contains(node.as_str()),
                words: match *reason {
                    "" | "none" => format!("`{state}`"),
                    reason => {
                        let reason: String = reason.chars().take(REASON_MAX).collect();
                        format!("`{state}` ({reason})")
                    }
                },
            })
        });
        let away = away.collect();
        Standing { ended, away }
    }

    /// The nodes that Slurm calls down or not responding.
    pub fn down(&self) -> impl Iterator<Item = &str> {
        let down = self.away.iter().filter(|away| away.is_down);
        down.map(|away| away.node.as_str())
    }

    /// What is to be told; nothing if all is as it should be.
    pub fn words(&self) -> impl Iterator<Item = String> {
        let away = self.away.iter().map(Away::to_string);
        self.ended.iter().cloned().chain(away)
    }
}

/// The states of a job that starts no step any more (`squeue(1)`, job state codes).
const ENDED: &[&str] = &[
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "COMPLETING",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

/// Those of them that may come of a node that failed: an allocation without `--no-kill` ends with its first node.
/// `COMPLETING` hides the reason for a while.
const BY_A_NODE: &[&str] = &["COMPLETING", "NODE_FAIL"];

/// How much of a reason is repeated.
const REASON_MAX: usize = 200;

/// Whether a state is that of a node that Slurm has given up, or that does not respond (`*`).
fn is_down(state: &str) -> bool {
    state.starts_with("down") || state.ends_with('*')
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

/// How an allocation stands, and these of its nodes.
///
/// # Errors
/// When Slurm does not answer: nothing is known then.
pub fn standing(host: &Host, job: Job, asked: &[String]) -> Result<Standing, SlurmError> {
    let now = match nodes(host, job) {
        Ok(now) => Some(now),
        Err(SlurmError::Ended(_)) => None,
        Err(error) => return Err(error),
    };
    // Asked last, so that an allocation that ends meanwhile is not taken for one that has lost its nodes.
    let state = Command::new("squeue", ANSWER)
        .args(["--noheader", "--states=all", "--format=%T"])
        .args(["--jobs", &job.0.to_string()]);
    let state = match ask(host, "squeue", &state) {
        Err(error) if error.is_of_no_job() => String::new(),
        answer => answer?.0,
    };
    let up = now.iter().flat_map(|now| &now.up);
    let up: BTreeSet<&String> = up.collect();
    let states = if asked.iter().all(|node| up.contains(node)) {
        String::new()
    } else {
        // Of all nodes: a list of those that are asked for may be too long for an argument.
        let states = Command::new("sinfo", ANSWER)
            .args(["--noheader", "--Node", "--format=%N %T|%E"])
            .keeping(LIST_BYTES);
        ask(host, "sinfo", &states)?.0
    };
    Ok(Standing::read(job, now.as_ref(), &state, &states, asked))
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
    let list = match ask(host, "squeue", &list) {
        Err(error) if error.is_of_no_job() => return Err(SlurmError::Ended(job.0)),
        answer => answer?.0,
    };
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
        if is_down(state) {
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
