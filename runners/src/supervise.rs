//! One check in a process of its own: started, listened to, and ended at its deadline.
//!
//! A library that crashes or hangs below a check must cost that check and nothing else, so no check runs inside the
//! runner. The child reads its [`Task`] as JSON on standard input and writes [`Event`]s, one a line, on standard output;
//! what it had said before it died is kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use dhc_checks::check::{Event, Task};
use dhc_checks::host::processes;
use dhc_thresholds::{Ending, Record};
use rustix::process::{Pid, Signal, kill_process_group};

/// How often the runner looks whether it has been told to stop.
const TICK: Duration = Duration::from_millis(50);

/// A check that hangs in itself gets this long beyond its deadline to say so; then it is killed.
const LATE: Duration = Duration::from_millis(500);

/// A check that is ending a tool gets this long beyond its deadline: the tool's grace ([`dhc_checks::host::GRACE`]), and
/// time to reap it and to report. The whole promise is deadline + 11 s.
pub(crate) const ENDING_A_TOOL: Duration = Duration::from_millis(10_900);

/// How long a tool gets to go by itself when the run is stopped, and how long its check gets to kill what is left then.
const STOPPING_A_TOOL: Duration = Duration::from_millis(1_500);
const STOPPING: Duration = Duration::from_millis(2_000);

/// How long a killed child may take to go. One in uninterruptible sleep never goes; it is left behind.
const GONE: Duration = Duration::from_secs(2);

/// The longest line that a check may write, and how many: both far above what any check needs.
const LINE_MAX: u64 = 4 << 20;
const LINES_MAX: usize = 200_000;

/// Runs the check `name` as `program measure NAME` and returns all that it recorded.
///
/// `stop` ends it early; `progress` hears what it is doing.
pub fn measure(
    program: &Path,
    name: &str,
    task: &Task,
    stop: &AtomicBool,
    progress: &dyn Fn(&str),
) -> Record {
    let begun = Instant::now();
    let mut record = Record::new(name, Ending::Finished);
    record.ending = match start(program, name, task) {
        Ok(mut child) => {
            let ending = listen(
                &mut child,
                task.deadline,
                begun,
                stop,
                progress,
                &mut record,
            );
            reap(&mut child);
            ending
        }
        Err(error) => Ending::Failed {
            error: format!("cannot start the process of the check: {error}"),
        },
    };
    record.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    record
}

/// In the process of a check: when the run is stopped or killed, ends with it, and whatever it has started as well.
///
/// # Errors
/// When the kernel cannot be asked for it.
pub fn end_with_the_run() -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM])?;
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    // In a thread of its own, since the check may be waiting for a library that never returns.
    std::thread::spawn(move || {
        signals.forever().next();
        processes::end_all(STOPPING_A_TOOL);
        // Not `exit`, which would run what libraries want done at the end.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    });
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "starts dhc itself; `Host::exec` starts the tools below it"
)]
fn start(program: &Path, name: &str, task: &Task) -> std::io::Result<Child> {
    let mut child = processes::spawn(
        Command::new(program)
            .args(["measure", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0),
    )?;
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    // A child that dies before it has read its task is told by its ending, not by this broken pipe.
    drop(stdin.write_all(&serde_json::to_vec(task)?));
    Ok(child)
}

/// Takes the child's lines until it ends, is too late, or the run is stopped.
fn listen(
    child: &mut Child,
    deadline: Duration,
    begun: Instant,
    stop: &AtomicBool,
    progress: &dyn Fn(&str),
    record: &mut Record,
) -> Ending {
    let stdout = child.stdout.take().expect("stdout was asked for");
    let (sender, lines) = mpsc::sync_channel(64);
    // The thread ends with the pipe. A grandchild that keeps the pipe open keeps only this thread, not the run.
    std::thread::spawn(move || read_lines(stdout, &sender));
    let mut last = None;
    let mut doing = String::new();
    let mut busy = begun;
    loop {
        match lines.recv_timeout(TICK) {
            Ok(Line::Event(event)) => {
                if let Event::Progress(what) = &event {
                    doing = format!("its last sign of life was `{what}`");
                }
                let ended = take(event, record, progress, &mut last);
                if ended {
                    break;
                }
            }
            Ok(Line::Garbage(why)) => {
                last = Some(Ending::Failed {
                    error: format!("the process of the check wrote {why}; please report it"),
                });
                kill(child, Signal::KILL);
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if stop.load(Ordering::Relaxed) {
            // It ends its tool and what the tool started, and then itself.
            kill(child, Signal::TERM);
            wait(child, STOPPING);
            return Ending::Interrupted;
        }
        let late = begun.elapsed().saturating_sub(deadline);
        // It may be about to end a tool.
        if late > LATE && processes::has_children(child.id()) {
            busy = Instant::now();
        }
        // A process that is just ending has lost its children before it is seen to end, so it must be alone for a while.
        if late > ENDING_A_TOOL || (late > LATE && busy.elapsed() > LATE) {
            kill(child, Signal::KILL);
            let after = begun.elapsed().as_millis();
            return Ending::TimedOut {
                after_ms: u64::try_from(after).unwrap_or(u64::MAX),
                doing,
                of_the_run: false,
            };
        }
    }
    let status = wait(child, GONE);
    last.unwrap_or_else(|| {
        // A scheduler ends all processes of a job at once, and the check may have obeyed before the run has heard of it.
        std::thread::sleep(TICK);
        if stop.load(Ordering::Relaxed) {
            return Ending::Interrupted;
        }
        died(status)
    })
}

/// What a child that said no last word died of.
fn died(status: Option<ExitStatus>) -> Ending {
    match status.map(|status| (status.signal(), status.code())) {
        Some((Some(signal), _)) => Ending::Killed { signal },
        Some((None, code)) => Ending::Failed {
            error: format!(
                "the process of the check ended with status {} without a result",
                code.unwrap_or(-1)
            ),
        },
        None => Ending::Failed {
            error: "the process of the check closed its output but did not end".to_owned(),
        },
    }
}

/// Adds an event to the record; true if it was the last one.
fn take(
    event: Event,
    record: &mut Record,
    progress: &dyn Fn(&str),
    last: &mut Option<Ending>,
) -> bool {
    match event {
        Event::Measurement(measurement) => record.measurements.push(measurement),
        Event::Device(device) => record.devices.push(device),
        Event::Gap(gap) => record.gaps.push(gap),
        Event::Note(note) => record.notes.push(note),
        Event::Evidence(evidence) => record.evidence.push(evidence),
        Event::Progress(what) => progress(&what),
        Event::Failed(error) => *last = Some(Ending::Failed { error }),
        Event::TimedOut { after_ms, doing } => {
            *last = Some(Ending::TimedOut {
                after_ms,
                doing,
                of_the_run: false,
            });
        }
        Event::Finished => *last = Some(Ending::Finished),
    }
    last.is_some()
}

enum Line {
    Event(Event),
    Garbage(String),
}

fn read_lines(stdout: ChildStdout, sender: &mpsc::SyncSender<Line>) {
    let mut reader = BufReader::new(stdout);
    for _ in 0..LINES_MAX {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // A line without its end is the last gasp of a child that was killed: nothing that can be trusted.
        if line.last() != Some(&b'\n') {
            return;
        }
        let line = match serde_json::from_slice(&line) {
            Ok(event) => Line::Event(event),
            Err(error) => Line::Garbage(format!("a line that is not an event ({error})")),
        };
        if sender.send(line).is_err() {
            return;
        }
    }
    drop(sender.send(Line::Garbage(format!("more than {LINES_MAX} lines"))));
}

fn kill(child: &Child, signal: Signal) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself in this moment; that is as good.
        let _gone_already = kill_process_group(group, signal);
    }
}

/// Waits for the child to end, for `limit` at most.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if begun.elapsed() > limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(TICK);
    }
}

/// Makes sure that nothing of the child is left, as far as the kernel lets us.
fn reap(child: &mut Child) {
    if wait(child, Duration::ZERO).is_none() {
        kill(child, Signal::KILL);
        wait(child, GONE);
    }
    processes::forget(child);
    // Where it was killed, what its tool had started is ours now.
    processes::kill_leftovers();
}
