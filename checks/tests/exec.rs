//! Tools that misbehave, run for real: each is a small script in a directory of its own.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests look at the machine directly"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dhc_checks::host::{Command, Ended, ExecError, Host, Listener, Output};

/// `exec` takes every descendant of its process for the tool's, so within one process only one test may use it.
static ALONE: Mutex<()> = Mutex::new(());

struct Bench {
    folder: tempfile::TempDir,
    host: Host,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Bench {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let environment =
            BTreeMap::from([("PATH".to_owned(), folder.path().display().to_string())]);
        Bench {
            host: Host::of_this_machine(&environment),
            folder,
            _alone: alone,
        }
    }

    /// Installs a tool with this script.
    fn tool(self, script: &str) -> Bench {
        let path = self.folder.path().join("tool");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn run(&self, deadline: Duration) -> Output {
        let command = Command::new("tool", deadline).grace(Duration::from_millis(500));
        self.host.exec(&command).unwrap()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A zombie is dead; only its parent has not looked yet.
    !stat.is_empty() && !stat.contains(") Z ")
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_tool_s_words_and_status_are_kept() {
    let output = Bench::new()
        .tool("echo out; echo err >&2; exit 226")
        .run(LONG);
    assert_eq!(output.ended, Ended::Exited(226));
    assert_eq!(
        (output.stdout.kept(), output.stderr.kept()),
        (b"out\n".to_vec(), b"err\n".to_vec())
    );
    assert!(!output.leaked);
}

/// Has heard enough once a line of standard error says so.
#[derive(Default)]
struct UntilHeld {
    heard: Vec<String>,
}

impl Listener for UntilHeld {
    fn line(&mut self, line: &[u8]) {
        panic!("{line:?} is on standard error");
    }

    fn error_line(&mut self, line: &[u8]) {
        self.heard.push(String::from_utf8_lossy(line).into_owned());
    }

    fn is_enough(&mut self) -> bool {
        self.heard.iter().any(|line| line == "held")
    }
}

#[test]
fn a_tool_that_gives_back_on_a_signal_gets_that_one_and_no_sigterm() {
    let bench = Bench::new().tool(
        "trap 'echo given back >&2; exit 0' HUP; trap 'echo killed >&2; exit 1' TERM\n\
         echo held >&2; sleep 60 & wait $!",
    );
    let command = Command::new("tool", LONG)
        .gives_back_on(rustix::process::Signal::HUP)
        .grace(Duration::from_secs(5));
    let mut listener = UntilHeld::default();
    let output = bench.host.exec_heard(&command, &mut listener).unwrap();
    assert_eq!(output.ended, Ended::Dismissed);
    assert_eq!(listener.heard, ["held", "given back"]);
}

#[test]
fn a_tool_that_ignores_sigterm_is_killed_after_the_grace() {
    let bench = Bench::new();
    let pid = bench.file("pid");
    let bench = bench.tool(&format!(
        "trap '' TERM; echo $$ > {}; while :; do sleep 1; done",
        pid.display()
    ));
    let begun = Instant::now();
    let output = bench.run(SHORT);
    assert_eq!(output.ended, Ended::TimedOut);
    assert!(begun.elapsed() < SHORT + Duration::from_millis(500) + Duration::from_secs(1));
    assert!(!is_alive(&std::fs::read_to_string(pid).unwrap()));
}

#[test]
fn a_grandchild_that_holds_the_pipe_does_not_hold_the_reader() {
    let bench = Bench::new().tool("sleep 1000 & echo done");
    let output = bench.run(LONG);
    assert_eq!(output.ended, Ended::Exited(0));
    assert_eq!(output.stdout.kept(), b"done\n");
    assert!(output.leaked);
    assert!(
        output.duration < Duration::from_secs(5),
        "{:?}",
        output.duration
    );
}

#[test]
fn what_left_its_session_is_killed_as_well() {
    let bench = Bench::new();
    let pid = bench.file("pid");
    // Double fork and a session of its own: no process group and no parent lead back to the tool.
    let script = format!(
        "(setsid sh -c 'echo $$ > {0}; exec sleep 1000' >/dev/null 2>&1 &)\nwhile ! [ -s {0} ]; do :; done",
        pid.display()
    );
    let bench = bench.tool(&script);
    let output = bench.run(LONG);
    assert_eq!(
        (output.ended.clone(), output.leaked),
        (Ended::Exited(0), true)
    );
    assert!(!is_alive(&std::fs::read_to_string(pid).unwrap()));
}

#[test]
fn a_flood_is_counted_and_digested_and_costs_no_memory() {
    let bench = Bench::new().tool("head -c 300000000 /dev/zero");
    let output = bench.run(LONG);
    assert_eq!(
        (output.ended.clone(), output.stdout.total_bytes),
        (Ended::Exited(0), 300_000_000)
    );
    assert!(output.stdout.is_truncated());
    assert_eq!(output.stdout.kept().len(), 512 << 10);
    // sha256sum of 300,000,000 zero bytes, as coreutils computes it.
    let expected = std::process::Command::new("sh")
        .args(["-c", "head -c 300000000 /dev/zero | sha256sum"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8(expected.stdout)
            .unwrap()
            .starts_with(&output.stdout.sha256)
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 64 << 10, "peak memory is {peak_kib} KiB");
}

#[test]
fn bytes_that_are_not_text_are_kept_and_quoted_printable() {
    let output = Bench::new()
        .tool("printf 'a\\377\\033[31m\\000b'")
        .run(LONG);
    assert_eq!(output.stdout.kept(), b"a\xff\x1b[31m\0b");
    let evidence = output.evidence("tool");
    assert_eq!(evidence[0].text, "a\\xff\\x1b[31m\\x00b");
}

#[test]
fn secrets_do_not_reach_the_evidence() {
    let output = Bench::new()
        .tool("echo HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz")
        .run(LONG);
    assert!(!output.evidence("tool")[0].text.contains("hf_abc"));
}

#[test]
fn a_tool_sees_a_clean_environment() {
    let bench = Bench::new().tool("env");
    let given = BTreeMap::from([
        ("PATH".to_owned(), bench.folder.path().display().to_string()),
        ("LD_PRELOAD".to_owned(), "/tmp/evil.so".to_owned()),
        ("NCCL_DEBUG".to_owned(), "INFO".to_owned()),
        ("AWS_SECRET_ACCESS_KEY".to_owned(), "secret".to_owned()),
    ]);
    let host = Host::of_this_machine(&given);
    let output = host.exec(&Command::new("tool", LONG)).unwrap();
    let environment = String::from_utf8(output.stdout.kept()).unwrap();
    assert!(
        environment.contains("NCCL_DEBUG=INFO") && environment.contains("LANG=C"),
        "{environment}"
    );
    assert!(
        !environment.contains("LD_PRELOAD") && !environment.contains("AWS_"),
        "{environment}"
    );
}

#[test]
fn arguments_reach_the_tool_unread_by_any_shell() {
    let bench = Bench::new().tool("printf '%s|' \"$@\"");
    let command = Command::new("tool", LONG).args(["$(reboot)", "; rm -rf /", "`id`", "a b", "*"]);
    let output = bench.host.exec(&command).unwrap();
    assert_eq!(output.stdout.kept(), b"$(reboot)|; rm -rf /|`id`|a b|*|");
}

#[test]
fn a_missing_tool_and_a_path_that_is_not_whole_are_told() {
    let bench = Bench::new();
    for name in ["no-such-tool", "../tool", "/no/such/tool", ""] {
        let error = bench.host.exec(&Command::new(name, LONG)).unwrap_err();
        assert!(matches!(error, ExecError::NotInstalled { .. }), "{error}");
    }
}

#[test]
fn a_whole_path_is_taken_and_a_link_keeps_its_name() {
    let bench = Bench::new().tool("printf %s \"$0\"");
    let link = bench.file("link");
    std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
    let command = Command::new(link.to_str().unwrap(), LONG).args(["-c", "printf %s \"$0\""]);
    let output = bench.host.exec(&command).unwrap();
    assert_eq!(output.stdout.kept(), link.to_str().unwrap().as_bytes());
}

#[test]
fn a_tool_that_anyone_can_change_is_not_run() {
    let bench = Bench::new().tool("echo run");
    std::fs::set_permissions(bench.file("tool"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = bench.host.exec(&Command::new("tool", LONG)).unwrap_err();
    assert!(matches!(error, ExecError::Unsafe { .. }), "{error}");
    assert!(error.to_string().contains("chmod"), "{error}");
}

#[test]
fn a_tool_in_a_directory_that_anyone_can_change_is_not_run() {
    let bench = Bench::new().tool("echo run");
    std::fs::set_permissions(bench.folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = bench.host.exec(&Command::new("tool", LONG)).unwrap_err();
    assert!(matches!(error, ExecError::Unsafe { .. }), "{error}");
}

#[test]
fn a_tool_that_kills_itself_is_told_by_its_signal() {
    let bench = Bench::new().tool("kill -SEGV $$");
    let output = bench.run(LONG);
    assert_eq!(output.ended, Ended::Signaled(11));
}

#[test]
fn a_tool_that_closes_its_output_and_runs_on_is_still_ended() {
    let output = Bench::new()
        .tool("exec >&- 2>&-; while :; do sleep 1; done")
        .run(SHORT);
    assert_eq!(output.ended, Ended::TimedOut);
}

#[test]
fn relative_directories_of_path_are_not_searched() {
    let host = Host::of_this_machine(&BTreeMap::from([(
        "PATH".to_owned(),
        ".:bin:/opt/x".to_owned(),
    )]));
    assert!(host.tools.iter().all(|place| place.is_absolute()));
    assert_eq!(host.tools[0], Path::new("/opt/x"));
}
