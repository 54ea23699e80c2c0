//! External commands, supervised: found in trusted places, given a clean environment, a deadline and an output cap, and
//! ended together with everything that they started.
//!
//! A tool may ignore SIGTERM, leave grandchildren behind that hold its pipe or made a session of their own, or write
//! without end. So the process of a check makes itself the reaper of its descendants (`PR_SET_CHILD_SUBREAPER`): whatever
//! the tool leaves becomes its own child, and since one process runs one check, every descendant belongs to the tool that
//! is running and is killed with it.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use dhc_thresholds::Evidence;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use sha2::{Digest, Sha256};

use super::{Host, redact};

/// Between SIGTERM and SIGKILL. Users of nextest have found ten seconds enough to clean up; one less, so that what is to be
/// told of a killed tool is told before ten seconds are over, on a busy machine as well.
pub const GRACE: Duration = Duration::from_secs(9);

/// How long a process may take to go after SIGKILL; one in uninterruptible sleep may never go.
const GONE: Duration = Duration::from_millis(300);

/// How long the pipes are read on after the tool itself has ended, where a grandchild still holds them.
const LINGER: Duration = Duration::from_millis(300);

/// How much of the beginning and of the end of an output is kept.
const KEPT_BYTES: usize = 256 << 10;

/// How much of the beginning and of the end of an output stands in a result as evidence.
const QUOTED_BYTES: usize = 8 << 10;

/// How often a waiting supervisor looks at a process that it cannot wait for otherwise.
const TICK: Duration = Duration::from_millis(10);

/// A command to run. The program is a name, looked up in [`Host::tools`].
#[derive(Clone, Debug)]
pub struct Command {
    program: String,
    args: Vec<String>,
    environment: BTreeMap<String, String>,
    deadline: Duration,
    grace: Duration,
    report_flag: Option<String>,
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
            report_flag: None,
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

    /// With this option and a file for the tool to write, which becomes [`Output::report`].
    pub fn report_to(mut self, flag: impl Into<String>) -> Self {
        self.report_flag = Some(flag.into());
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
            Ended::Unkillable { pid, asleep_in } => {
                write!(
                    f,
                    "process {pid} survived SIGKILL (asleep in `{asleep_in}`) and was left behind"
                )
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

impl Output {
    /// The output as evidence under this name: shortened, printable, without secrets.
    pub fn evidence(&self, name: &str) -> Vec<Evidence> {
        let line: Vec<String> = self.line.iter().map(|word| redact::text(word)).collect();
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
            truncated: captured.is_truncated() || captured.kept().len() > 2 * QUOTED_BYTES,
            text: captured.quotation(),
        };
        let empty = self.stderr.total_bytes == 0;
        let mut all = vec![of("stdout", &self.stdout)];
        all.extend((!empty).then(|| of("stderr", &self.stderr)));
        all.extend(self.report.as_ref().map(|report| of("report", report)));
        all
    }
}

/// What came out of a pipe: all that was written is counted and digested, the beginning and the end are kept.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Length of all that was written.
    pub total_bytes: u64,
    /// SHA-256 of all that was written.
    pub sha256: String,
}

impl Captured {
    /// What is kept, which is all of it unless [`Captured::is_truncated`].
    pub fn kept(&self) -> Vec<u8> {
        [self.head.as_slice(), self.tail.as_slice()].concat()
    }

    /// Whether something between beginning and end was dropped.
    pub fn is_truncated(&self) -> bool {
        self.total_bytes > (self.head.len() + self.tail.len()) as u64
    }

    /// The beginning and the end for people: printable, without secrets.
    pub fn quotation(&self) -> String {
        let kept = self.kept();
        if kept.len() <= 2 * QUOTED_BYTES {
            return redact::text(&escape(&kept));
        }
        let (head, tail) = (&kept[..QUOTED_BYTES], &kept[kept.len() - QUOTED_BYTES..]);
        let left_out = self.total_bytes - 2 * QUOTED_BYTES as u64;
        redact::text(&format!(
            "{}\n[... {left_out} bytes left out ...]\n{}",
            escape(head),
            escape(tail)
        ))
    }
}

/// Bytes as text that a terminal and a reader of JSON can bear: control characters and bytes that are not UTF-8 become
/// `\x1b` and the like.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' | '\t' => text.push(c),
                c if c.is_control() => text.push_str(&format!("\\x{:02x}", c as u32)),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

impl Host {
    /// Runs a command to its end and returns what it left; at `deadline` plus grace plus one second at the latest.
    ///
    /// # Errors
    /// When it cannot be started. How it ended, however bad, is not an error.
    pub fn exec(&self, command: &Command) -> Result<Output, ExecError> {
        let path = self.find(&command.program)?;
        adopt_orphans();
        let report = command.report_flag.as_deref().and_then(ReportFile::new);
        let mut line = command.line();
        line.extend(report.iter().flat_map(ReportFile::args));
        let begun = Instant::now();
        let mut child = self
            .start(&path, &line[1..], command)
            .map_err(|error| ExecError::NotStarted { path, error })?;
        let mut pipes = [
            Pipe::new(child.stdout.take().expect("stdout was asked for")),
            Pipe::new(child.stderr.take().expect("stderr was asked for")),
        ];
        let mut ended = listen(&mut child, &mut pipes, begun, command.deadline);
        if ended.is_none() {
            signal(&child, Signal::TERM);
            let by_itself = listen(
                &mut child,
                &mut pipes,
                begun,
                command.deadline + command.grace,
            );
            if by_itself.is_none() {
                signal(&child, Signal::KILL);
            }
            ended = Some(match wait(&mut child, GONE) {
                true => Ended::TimedOut,
                false => Ended::Unkillable {
                    pid: child.id(),
                    asleep_in: asleep_in(child.id()),
                },
            });
        }
        let left = kill_descendants(child.id());
        drain(&mut pipes);
        let [stdout, stderr] = pipes.map(Pipe::finish);
        let ended = ended.expect("it ended or was ended");
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

    /// Whether a tool is installed where tools are looked for.
    pub fn has_tool(&self, program: &str) -> bool {
        self.find(program).is_ok()
    }

    fn find(&self, program: &str) -> Result<PathBuf, ExecError> {
        let not_installed = || ExecError::NotInstalled {
            program: program.to_owned(),
            places: self.tools.clone(),
        };
        if program.is_empty() || program.contains('/') {
            return Err(not_installed());
        }
        let candidates = self
            .tools
            .iter()
            .filter(|place| place.is_absolute())
            .map(|place| place.join(program));
        let is_program = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
        };
        let path = candidates
            .into_iter()
            .find(is_program)
            .ok_or_else(not_installed)?;
        let path = path.canonicalize().map_err(|error| ExecError::NotStarted {
            path: path.clone(),
            error,
        })?;
        if changeable_by_others(&path) || path.parent().is_some_and(changeable_by_others) {
            return Err(ExecError::Unsafe { path });
        }
        Ok(path)
    }

    #[expect(unsafe_code, reason = "what a child does between fork and exec")]
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    fn start(&self, path: &Path, args: &[String], command: &Command) -> std::io::Result<Child> {
        let supervisor = rustix::process::getpid();
        let mut process = std::process::Command::new(path);
        process
            .args(args)
            .env_clear()
            .env(
                "PATH",
                std::env::join_paths(&self.tools).unwrap_or_default(),
            )
            .envs([("LANG", "C"), ("LC_ALL", "C"), ("TZ", "UTC"), ("HOME", "/")])
            .envs(&self.environment)
            .envs(&command.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // SAFETY: only calls that are safe between fork and exec: prctl and getppid, no allocation, no lock.
        unsafe {
            process.pre_exec(move || {
                // A tool must not outlive its supervisor, which may be killed at any time.
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                if rustix::process::getppid() != Some(supervisor) {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
                Ok(())
            });
        }
        process.spawn()
    }
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

/// Makes this process the parent of whatever its children leave behind.
fn adopt_orphans() {
    // Kernels since 3.4 can; without it orphans go to init and are only killed with their process group.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Reads the pipes until the tool has ended and they are closed, or it is `until`; then returns how it ended.
fn listen(
    child: &mut Child,
    pipes: &mut [Pipe; 2],
    begun: Instant,
    until: Duration,
) -> Option<Ended> {
    let mut pause = Duration::from_millis(1);
    loop {
        let left = until.checked_sub(begun.elapsed())?;
        // A tool that closes its pipes may run on; one that ends may leave them open in a grandchild.
        let waited = read_ready(pipes, left.min(pause));
        pause = if waited {
            Duration::from_millis(1)
        } else {
            (pause * 2).min(TICK * 5)
        };
        if let Ok(Some(status)) = child.try_wait() {
            let signaled = || Ended::Signaled(status.signal().unwrap_or(0));
            return Some(status.code().map_or_else(signaled, Ended::Exited));
        }
    }
}

/// Waits up to `limit` for something to read, reads what there is, and says whether there was anything.
fn read_ready(pipes: &mut [Pipe; 2], limit: Duration) -> bool {
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
        pipes[*index].read();
    }
    !ready.is_empty()
}

/// Reads what is left in the pipes; by now nobody should write to them any more.
fn drain(pipes: &mut [Pipe; 2]) {
    let begun = Instant::now();
    while pipes.iter().any(|pipe| pipe.source.is_some()) && begun.elapsed() < LINGER {
        if !read_ready(pipes, TICK) && kill_descendants(0) {
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

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// Kills everything that descends from this process, again until nothing is left or [`GONE`] has passed, and reaps it.
/// Says whether there was anything. `main` has been waited for already or is left behind.
fn kill_descendants(main: u32) -> bool {
    let begun = Instant::now();
    let mut found = false;
    loop {
        let alive: Vec<u32> = descendants(std::process::id())
            .into_iter()
            .filter(|id| *id != main)
            .collect();
        if alive.is_empty() || begun.elapsed() > GONE {
            return found;
        }
        found = true;
        for pid in alive.iter().copied().filter_map(pid) {
            let _ = kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
        std::thread::sleep(TICK / 5);
    }
}

/// All processes below `id`, as the kernel lists the children of each thread.
fn descendants(id: u32) -> Vec<u32> {
    let mut all = children(id);
    let mut next = 0;
    while next < all.len() {
        all.extend(children(all[next]));
        next += 1;
    }
    all
}

#[expect(
    clippy::disallowed_methods,
    reason = "our own descendants, not the host that is checked"
)]
fn children(id: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
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

/// A file for the tool to write, in a directory that nobody else can enter and that goes with this value.
struct ReportFile {
    flag: String,
    folder: tempfile::TempDir,
}

impl ReportFile {
    /// None where no such directory can be made: the tool then runs without, and what it prints has to do.
    fn new(flag: &str) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("dhc-").tempdir().ok()?;
        Some(ReportFile {
            flag: flag.to_owned(),
            folder,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("report")
    }

    fn args(&self) -> [String; 2] {
        [self.flag.clone(), self.path().display().to_string()]
    }

    /// What the tool wrote, its beginning only where it is too long; the digest is of what is kept.
    fn read(self) -> Option<Captured> {
        use rustix::fs::{Mode, OFlags};
        // The tool may have put a link or a pipe there instead.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.path(), flags, Mode::empty()).ok()?;
        let file = std::fs::File::from(file);
        let whole = file.metadata().ok()?;
        if !whole.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(2 * KEPT_BYTES as u64)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(Captured {
            total_bytes: whole.len().max(bytes.len() as u64),
            sha256: hex(Sha256::digest(&bytes).as_slice()),
            head: bytes,
            tail: Vec::new(),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One of the tool's outputs while it runs.
struct Pipe {
    source: Option<Source>,
    captured: Captured,
    digest: Sha256,
}

enum Source {
    Out(std::process::ChildStdout),
    Err(std::process::ChildStderr),
}

impl From<std::process::ChildStdout> for Source {
    fn from(pipe: std::process::ChildStdout) -> Self {
        Source::Out(pipe)
    }
}

impl From<std::process::ChildStderr> for Source {
    fn from(pipe: std::process::ChildStderr) -> Self {
        Source::Err(pipe)
    }
}

impl Source {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Source::Out(pipe) => pipe.as_fd(),
            Source::Err(pipe) => pipe.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Source::Out(pipe) => pipe.read(buffer),
            Source::Err(pipe) => pipe.read(buffer),
        }
    }
}

impl Pipe {
    fn new(source: impl Into<Source>) -> Self {
        Pipe {
            source: Some(source.into()),
            captured: Captured::default(),
            digest: Sha256::new(),
        }
    }

    /// Reads once; called when there is something, or the end.
    fn read(&mut self) {
        let Some(source) = &mut self.source else {
            return;
        };
        let mut buffer = vec![0; 64 << 10];
        match source.read(&mut buffer) {
            Ok(0) | Err(_) => self.source = None,
            Ok(length) => self.take(&buffer[..length]),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        let captured = &mut self.captured;
        captured.total_bytes += bytes.len() as u64;
        let room = KEPT_BYTES - captured.head.len();
        let (head, tail) = bytes.split_at(room.min(bytes.len()));
        captured.head.extend_from_slice(head);
        captured.tail.extend_from_slice(tail);
        // Cut only now and then, so that a flood is not copied for every read.
        if captured.tail.len() > 2 * KEPT_BYTES {
            captured.tail.drain(..captured.tail.len() - KEPT_BYTES);
        }
    }

    fn finish(mut self) -> Captured {
        let excess = self.captured.tail.len().saturating_sub(KEPT_BYTES);
        self.captured.tail.drain(..excess);
        self.captured.sha256 = hex(self.digest.finalize().as_slice());
        self.captured
    }
}
