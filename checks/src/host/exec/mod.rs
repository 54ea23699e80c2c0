//! External commands, supervised: found in trusted places, given a clean environment, a deadline and an output cap, and
//! ended together with everything that they started.
//!
//! A tool may ignore SIGTERM, leave grandchildren behind that hold its pipe or made a session of their own, or write
//! without end. Whatever it leaves behind is killed with it ([`super::processes`]).

mod capture;
mod report_file;

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use dhc_thresholds::Evidence;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Signal, kill_process, kill_process_group};

use super::processes::{self, pid};
use super::{Host, redact};
use capture::{KEPT_BYTES, Pipe};
use report_file::ReportFile;

pub use capture::{Captured, escape};

/// Between SIGTERM and SIGKILL. Users of nextest have found ten seconds enough to clean up; one less, so that what is to be
/// told of a killed tool is told before ten seconds are over, on a busy machine as well.
pub const GRACE: Duration = Duration::from_secs(9);

/// How long a process may take to go after SIGKILL; one in uninterruptible sleep may never go.
const GONE: Duration = Duration::from_millis(300);

/// How long the pipes are read on after the tool itself has ended, where a grandchild still holds them.
const LINGER: Duration = Duration::from_millis(300);

/// The longest line that a [`Listener`] gets whole.
const HEARD_LINE_MAX: usize = 64 << 10;

/// How often a waiting supervisor looks at a process that it cannot wait for otherwise.
const TICK: Duration = Duration::from_millis(10);

/// A command to run. The program is a name, looked up in [`Host::tools`], or a whole path.
#[derive(Clone, Debug)]
pub struct Command {
    program: String,
    args: Vec<String>,
    environment: BTreeMap<String, String>,
    deadline: Duration,
    grace: Duration,
    gives_back_on: Option<Signal>,
    report_flag: Option<String>,
    input: Vec<u8>,
    kept_bytes: usize,
}

impl Command {
    /// A command without arguments that may take as long as `deadline`.
    pub fn new(program: impl Into<String>, deadline: Duration) -> Self {
        Command {
            program: program.into(),
            args: Vec::new(),
            environment: BTreeMap::new(),
            deadline,
            grace: GRACE,
            gives_back_on: None,
            report_flag: None,
            input: Vec::new(),
            kept_bytes: KEPT_BYTES,
        }
    }

    /// With one more argument, which no shell ever reads.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// With more arguments.
    pub fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// With another deadline.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// With another time between SIGTERM and SIGKILL.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Of a tool that holds something of others and gives it back when it gets this signal: it gets that instead of SIGTERM
    /// when it is to end, and instead of SIGKILL if dhc dies before it.
    pub fn gives_back_on(mut self, signal: Signal) -> Self {
        self.gives_back_on = Some(signal);
        self
    }

    /// With this option and a file for the tool to write, which becomes [`Output::report`].
    pub fn report_to(mut self, flag: impl Into<String>) -> Self {
        self.report_flag = Some(flag.into());
        self
    }

    /// With this on its standard input, which is empty otherwise.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// With so much kept of the beginning and of the end of each of its outputs, for one that has much to say and is no
    /// evidence.
    pub fn keeping(mut self, bytes: usize) -> Self {
        self.kept_bytes = bytes;
        self
    }

    /// The command line, for evidence and messages.
    pub fn line(&self) -> Vec<String> {
        std::iter::once(&self.program)
            .chain(&self.args)
            .cloned()
            .collect()
    }
}

/// A program that was found.
struct Program {
    /// The file itself, whatever links lead to it.
    path: PathBuf,
    /// The path that it is called by: a Python finds its packages beside the link that it was started through.
    name: PathBuf,
}

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It is in none of the directories.
    #[error(
        "`{program}` is not installed: it is in none of {}",
        directories(places)
    )]
    NotInstalled {
        /// The program.
        program: String,
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// Somebody other than root could have changed it.
    #[error("`{}` can be changed by others than root and you, so it is not run; set its owner and mode right (chown root, chmod go-w)", path.display())]
    Unsafe {
        /// The program.
        path: PathBuf,
    },
    /// The kernel refused to start it.
    #[error("`{}` cannot be started", path.display())]
    NotStarted {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// Of a signal that dhc did not send.
    Signaled(i32),
    /// At its deadline, by dhc.
    TimedOut,
    /// Before its deadline, by dhc, since its [`Listener`] had heard enough.
    Dismissed,
    /// Not at all: it survived SIGKILL and was left behind.
    Unkillable {
        /// The process.
        pid: u32,
        /// In which function of the kernel it sleeps, if the kernel tells.
        asleep_in: String,
    },
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exited(status) => write!(f, "exit {status}"),
            Ended::Signaled(signal) => write!(f, "signal {signal}"),
            Ended::TimedOut => write!(f, "killed at its deadline"),
            Ended::Dismissed => write!(f, "ended by dhc before its deadline"),
            Ended::Unkillable { pid, asleep_in } => {
                write!(
                    f,
                    "process {pid} survived SIGKILL (asleep in `{asleep_in}`) and was left behind"
                )
            }
        }
    }
}

/// Hears what a command writes while it runs.
pub trait Listener {
    /// A line of its standard output, without its end, the way it was written.
    fn line(&mut self, line: &[u8]);

    /// The same of its standard error.
    fn error_line(&mut self, _line: &[u8]) {}

    /// Whether the command need not run on; asked many times a second.
    fn is_enough(&mut self) -> bool {
        false
    }
}

/// Hears nothing.
struct Deaf;

impl Listener for Deaf {
    fn line(&mut self, _: &[u8]) {}
}

/// A listener, and the lines of standard output and standard error that have not come to their end yet.
struct Ear<'a> {
    listener: &'a mut dyn Listener,
    begun: [Vec<u8>; 2],
}

impl Ear<'_> {
    /// Hears what the pipe with this index gave.
    fn hear(&mut self, index: usize, bytes: &[u8]) {
        let begun = &mut self.begun[index];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            // A line without end is no line; what comes after its first part is not heard.
            if begun.len() < HEARD_LINE_MAX {
                begun.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                let line = begun.trim_ascii_end();
                match index {
                    0 => self.listener.line(line),
                    _ => self.listener.error_line(line),
                }
                begun.clear();
            }
        }
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// What it wrote on standard output.
    pub stdout: Captured,
    /// What it wrote on standard error.
    pub stderr: Captured,
    /// What it wrote into the file of [`Command::report_to`], if it wrote one.
    pub report: Option<Captured>,
    /// Whether something that it had started outlived it and had to be killed.
    pub leaked: bool,
    /// How long it ran.
    pub duration: Duration,
    line: Vec<String>,
}

/// A text that no command printed, as evidence: shortened, printable, without secrets.
pub fn evidence(name: &str, text: &str) -> Evidence {
    let captured = Captured::beginning(text.as_bytes().to_vec(), 0);
    Evidence {
        name: name.to_owned(),
        argv: Vec::new(),
        ended: None,
        bytes: captured.total_bytes,
        truncated: captured.is_truncated(),
        text: captured.quotation(),
        sha256: captured.sha256,
    }
}

impl Output {
    /// The output as evidence under this name: shortened, printable, without secrets.
    pub fn evidence(&self, name: &str) -> Vec<Evidence> {
        let line = redact::command_line(&self.line);
        let left = if self.leaked {
            "; what it left running was killed"
        } else {
            ""
        };
        let of = |what: &str, captured: &Captured| Evidence {
            name: format!("{name}.{what}"),
            argv: line.clone(),
            ended: Some(format!("{}{left}", self.ended)),
            bytes: captured.total_bytes,
            sha256: captured.sha256.clone(),
            truncated: captured.is_truncated(),
            text: captured.quotation(),
        };
        let empty = self.stderr.total_bytes == 0;
        let mut all = vec![of("stdout", &self.stdout)];
        all.extend((!empty).then(|| of("stderr", &self.stderr)));
        all.extend(self.report.as_ref().map(|report| of("report", report)));
        all
    }
}

impl Host {
    /// Runs a command to its end and returns what it left; at `deadline` plus grace plus one second at the latest.
    ///
    /// # Errors
    /// When it cannot be started. How it ended, however bad, is not an error.
    pub fn exec(&self, command: &Command) -> Result<Output, ExecError> {
        self.exec_heard(command, &mut Deaf)
    }

    /// As [`Host::exec`], with somebody who hears the output as it comes and may end the command early.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn exec_heard(
        &self,
        command: &Command,
        listener: &mut dyn Listener,
    ) -> Result<Output, ExecError> {
        let program = self.find(&command.program)?;
        let report = command.report_flag.as_deref().and_then(ReportFile::new);
        let mut line = command.line();
        line.extend(report.iter().flat_map(ReportFile::args));
        let begun = Instant::now();
        let mut child =
            self.start(&program, &line[1..], command)
                .map_err(|error| ExecError::NotStarted {
                    path: program.path,
                    error,
                })?;
        let mut pipes = [
            Pipe::new(
                child.stdout.take().expect("stdout was asked for"),
                command.kept_bytes,
            ),
            Pipe::new(
                child.stderr.take().expect("stderr was asked for"),
                command.kept_bytes,
            ),
        ];
        let mut ear = Ear {
            listener,
            begun: Default::default(),
        };
        let heard = listen(&mut child, &mut pipes, &mut ear, begun, command.deadline);
        let ended = match heard {
            Heard::End(ended) => ended,
            enough_or_late => {
                signal(&child, command.gives_back_on.unwrap_or(Signal::TERM));
                let until = begun.elapsed() + command.grace;
                let by_itself = listen_on(&mut child, &mut pipes, &mut ear, begun, until);
                if by_itself.is_none() {
                    signal(&child, Signal::KILL);
                }
                match wait(&mut child, GONE) {
                    true if matches!(enough_or_late, Heard::Enough) => Ended::Dismissed,
                    true => Ended::TimedOut,
                    false => Ended::Unkillable {
                        pid: child.id(),
                        asleep_in: asleep_in(child.id()),
                    },
                }
            }
        };
        if !matches!(ended, Ended::Unkillable { .. }) {
            processes::forget(&child);
        }
        let left = processes::kill_leftovers();
        drain(&mut pipes, &mut ear);
        let [stdout, stderr] = pipes.map(Pipe::finish);
        Ok(Output {
            ended,
            stdout,
            stderr,
            report: report.and_then(ReportFile::read),
            leaked: left,
            duration: begun.elapsed(),
            line,
        })
    }

    /// The program of this name in the first directory that has it, or at this whole path.
    fn find(&self, program: &str) -> Result<Program, ExecError> {
        let not_installed = || ExecError::NotInstalled {
            program: program.to_owned(),
            places: self.tools.clone(),
        };
        let whole = Path::new(program).is_absolute();
        if program.is_empty() || (program.contains('/') && !whole) {
            return Err(not_installed());
        }
        let candidates = self
            .tools
            .iter()
            .filter(|place| place.is_absolute())
            // A whole path replaces the directory that it is joined to.
            .map(|place| place.join(program));
        let is_program = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
        };
        let name = candidates
            .into_iter()
            .find(is_program)
            .ok_or_else(not_installed)?;
        let path = name.canonicalize().map_err(|error| ExecError::NotStarted {
            path: name.clone(),
            error,
        })?;
        let is_unsafe = {
            let folders = [name.parent(), path.parent()];
            let places = folders.into_iter().flatten().chain([path.as_path()]);
            places.into_iter().any(changeable_by_others)
        };
        if is_unsafe {
            return Err(ExecError::Unsafe { path });
        }
        Ok(Program { path, name })
    }

    #[expect(unsafe_code, reason = "what a child does between fork and exec")]
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    fn start(
        &self,
        program: &Program,
        args: &[String],
        command: &Command,
    ) -> std::io::Result<Child> {
        let supervisor = rustix::process::getpid();
        let if_orphaned = command.gives_back_on.unwrap_or(Signal::KILL);
        let mut process = std::process::Command::new(&program.path);
        process
            .arg0(&program.name)
            .args(args)
            .env_clear()
            .env(
                "PATH",
                std::env::join_paths(&self.tools).unwrap_or_default(),
            )
            .envs([("LANG", "C"), ("LC_ALL", "C"), ("TZ", "UTC"), ("HOME", "/")])
            .envs(&self.environment)
            .envs(&command.environment)
            .stdin(standard_input(&command.input)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // SAFETY: only calls that are safe between fork and exec: prctl and getppid, no allocation, no lock.
        unsafe {
            process.pre_exec(move || {
                // A tool must not outlive its supervisor, which may be killed at any time.
                rustix::process::set_parent_process_death_signal(Some(if_orphaned))?;
                if rustix::process::getppid() != Some(supervisor) {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
                Ok(())
            });
        }
        processes::spawn(&mut process)
    }
}

/// What the tool reads: a file in memory, so that nobody has to feed a pipe, and nothing is left on a disk.
fn standard_input(bytes: &[u8]) -> std::io::Result<Stdio> {
    if bytes.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = std::fs::File::from(memfd_create("dhc-input", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Whether anybody but root and us may write to the program, or put another one in its place.
fn changeable_by_others(path: &Path) -> bool {
    let Ok(meta) = path.metadata() else {
        return true;
    };
    let ours = meta.uid() == 0 || meta.uid() == rustix::process::geteuid().as_raw();
    // Debian lets the group `staff` write to /usr/local/bin, so of directories only those open to everyone count; in a
    // sticky one such as /tmp nobody can replace the file of another.
    let open = if meta.is_dir() {
        meta.mode() & 0o1002 == 0o002
    } else {
        meta.mode() & 0o022 != 0
    };
    !ours || open
}

fn directories(places: &[PathBuf]) -> String {
    places
        .iter()
        .map(|place| place.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// What came of listening.
enum Heard {
    /// The tool has ended.
    End(Ended),
    /// The listener has heard enough.
    Enough,
    /// Time is up.
    Late,
}

/// Reads the pipes until the tool has ended, the listener has heard enough, or it is `until`.
fn listen(
    child: &mut Child,
    pipes: &mut [Pipe; 2],
    ear: &mut Ear<'_>,
    begun: Instant,
    until: Duration,
) -> Heard {
    let mut pause = Duration::from_millis(1);
    loop {
        let Some(left) = until.checked_sub(begun.elapsed()) else {
            return Heard::Late;
        };
        // A tool that closes its pipes may run on; one that ends may leave them open in a grandchild.
        let waited = read_ready(pipes, ear, left.min(pause));
        pause = if waited {
            Duration::from_millis(1)
        } else {
            (pause * 2).min(TICK * 5)
        };
        if let Ok(Some(status)) = child.try_wait() {
            let signaled = || Ended::Signaled(status.signal().unwrap_or(0));
            return Heard::End(status.code().map_or_else(signaled, Ended::Exited));
        }
        if ear.listener.is_enough() {
            return Heard::Enough;
        }
    }
}

/// Reads on until the tool has ended or it is `until`; then returns how it ended.
fn listen_on(
    child: &mut Child,
    pipes: &mut [Pipe; 2],
    ear: &mut Ear<'_>,
    begun: Instant,
    until: Duration,
) -> Option<Ended> {
    loop {
        match listen(child, pipes, ear, begun, until) {
            Heard::End(ended) => return Some(ended),
            Heard::Enough => std::thread::sleep(TICK / 10),
            Heard::Late => return None,
        }
    }
}

/// Waits up to `limit` for something to read, reads what there is, and says whether there was anything.
fn read_ready(pipes: &mut [Pipe; 2], ear: &mut Ear<'_>, limit: Duration) -> bool {
    let open: Vec<usize> = (0..2)
        .filter(|index| pipes[*index].source.is_some())
        .collect();
    if open.is_empty() {
        std::thread::sleep(limit);
        return false;
    }
    let ready: Vec<usize> = {
        let mut polled: Vec<PollFd<'_>> = open
            .iter()
            .map(|index| {
                PollFd::from_borrowed_fd(
                    pipes[*index].source.as_ref().expect("it is open").fd(),
                    PollFlags::IN,
                )
            })
            .collect();
        let limit = Timespec::try_from(limit).unwrap_or(Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        });
        if poll(&mut polled, Some(&limit)).is_err() {
            return false;
        }
        open.iter()
            .zip(&polled)
            .filter(|(_, polled)| !polled.revents().is_empty())
            .map(|(index, _)| *index)
            .collect()
    };
    for index in &ready {
        let bytes = pipes[*index].read();
        ear.hear(*index, &bytes);
    }
    !ready.is_empty()
}

/// Reads what is left in the pipes; by now nobody should write to them any more.
fn drain(pipes: &mut [Pipe; 2], ear: &mut Ear<'_>) {
    let begun = Instant::now();
    while pipes.iter().any(|pipe| pipe.source.is_some()) && begun.elapsed() < LINGER {
        if !read_ready(pipes, ear, TICK) && processes::kill_leftovers() {
            break;
        }
    }
}

/// Whether the process ends within `limit`.
fn wait(child: &mut Child, limit: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return true;
        }
        std::thread::sleep(TICK / 5);
    }
    false
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = pid(child.id()) {
        // Both, since the tool may have left its group; a process that is gone already is as good.
        let _ = kill_process_group(pid, signal);
        let _ = kill_process(pid, signal);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "our own child, not the host that is checked"
)]
fn asleep_in(id: u32) -> String {
    let place = std::fs::read_to_string(format!("/proc/{id}/wchan")).unwrap_or_default();
    if place.is_empty() || place == "0" {
        "unknown".to_owned()
    } else {
        escape(place.as_bytes())
    }
}
