//! What dhc must survive: tools, files, disks, neighbours and operators that misbehave. Each case on the built program.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it left"
)]

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::dead_file_system::DeadFileSystem;
use common::{Dhc, Outcome, outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Report, Status};

const HEALTHY: &str = include_str!("../../fixtures/outputs/nccom_test/allr-32-ranks.txt");
const FAILED_ROW: &str = include_str!("../../fixtures/outputs/nccom_test/failed-row.txt");
const NCCOM: &[&str] = &["--check", "nccom-local"];

/// A machine whose `nccom-test` is this script.
fn nccom(script: &str) -> Dhc {
    Dhc::on(FakeNode::trn1_32xlarge().tool("nccom-test").runs(script))
}

#[track_caller]
fn assert_error(outcome: &Outcome) {
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (4, (Status::Error, Action::Retry))
    );
}

#[test]
fn a_tool_that_ignores_sigterm_ends_within_eleven_seconds_of_its_deadline() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge().tool("nccom-test").hangs());
    let begun = Instant::now();
    let outcome = dhc.run(&["--check", "nccom-local", "--deadline", "1s"]);
    // The promise: deadline + 10 s of grace + 1 s; the rest is the start of the program.
    assert!(
        begun.elapsed() < Duration::from_secs(1 + 10 + 1 + 2),
        "{:?}",
        begun.elapsed()
    );
    assert_error(&outcome);
    assert!(matches!(
        outcome.check("nccom-local").record.ending,
        Ending::TimedOut { .. }
    ));
}

#[test]
fn what_a_tool_leaves_running_is_killed_and_told() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let pid = dhc.state().parent().unwrap().join("pid");
    let script = format!(
        "(setsid sh -c 'echo $$ > {0}; exec sleep 1000' &)\nwhile ! [ -s {0} ]; do :; done\ncat <<'EOF'\n{HEALTHY}EOF",
        pid.display()
    );
    let dhc = Dhc {
        node: FakeNode::trn1_32xlarge().tool("nccom-test").runs(&script),
        ..dhc
    };
    let outcome = dhc.run(NCCOM);
    assert_eq!((outcome.exit, outcome.verdict().0), (0, Status::Pass));
    let record = &outcome.check("nccom-local").record;
    assert!(!record.evidence.is_empty(), "{record:?}");
    let told = record.evidence[0].ended.clone().unwrap();
    assert!(told.contains("left running"), "{told}");
    let survivor = std::fs::read_to_string(format!(
        "/proc/{}/stat",
        std::fs::read_to_string(pid).unwrap().trim()
    ));
    assert!(survivor.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound));
}

#[test]
fn a_process_that_cannot_be_killed_is_left_behind_and_named() {
    // A process of root cannot be killed by anybody else, as little as one in uninterruptible sleep by root.
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let tool = dhc.node.tools().join("nccom-test");
    let source = dhc.state().parent().unwrap().join("tool.c");
    std::fs::write(
        &source,
        "#include <unistd.h>\nint main(void) { if (setuid(0)) return 1; for (;;) pause(); }\n",
    )
    .unwrap();
    let compiled = Command::new("cc")
        .arg("-o")
        .arg(&tool)
        .arg(&source)
        .status();
    assert!(compiled.unwrap().success());
    let folder = dhc.state().parent().unwrap().to_owned();
    let script = format!(
        "chown 0:0 {0} && chmod 4755 {0} && chmod 755 {1} && chmod -R a+rX {2} {3} && chmod 777 {3}",
        tool.display(),
        dhc.node.tools().display(),
        dhc.node.root().parent().unwrap().display(),
        folder.display()
    );
    let as_root = |command: &mut Command| command.status().unwrap().success();
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let prepared = if is_root {
        as_root(Command::new("sh").args(["-c", &script]))
    } else {
        as_root(Command::new("sudo").args(["-n", "sh", "-c", &script]))
    };
    assert!(
        prepared,
        "this test makes a program of root: run it as root or with sudo"
    );
    let plain = dhc.command(
        "run",
        &[
            "--check",
            "nccom-local",
            "--deadline",
            "1s",
            "--format",
            "json",
        ],
    );
    let mut command = Command::new("setpriv");
    if is_root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    command
        .arg(plain.get_program())
        .args(plain.get_args())
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let begun = Instant::now();
    let outcome = outcome(command.output().unwrap());
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert_error(&outcome);
    let record = &outcome.check("nccom-local").record;
    assert!(!record.evidence.is_empty(), "{record:?}");
    let told = record.evidence[0].ended.clone().unwrap();
    assert!(told.contains("survived SIGKILL"), "{told}");
    let survivor = told.split_whitespace().nth(1).unwrap();
    let kill = if is_root {
        &["kill", "-9"][..]
    } else {
        &["sudo", "-n", "kill", "-9"][..]
    };
    assert!(as_root(
        Command::new(kill[0]).args(&kill[1..]).arg(survivor)
    ));
}

/// State of a process in the kernel's letters, and the place in the kernel that it sleeps in.
fn sleeps(pid: &str) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit(") ").next()?.split(' ').next()?.to_owned();
    let place = std::fs::read_to_string(format!("/proc/{pid}/wchan")).ok()?;
    Some((state, place))
}

#[test]
fn a_tool_in_uninterruptible_sleep_is_left_behind_with_the_place_where_it_sleeps() {
    let place = tempfile::tempdir().unwrap();
    let held = DeadFileSystem::that_holds_processes(place.path());
    // The tool itself waits, as `dcgmi` does in a driver that never answers.
    let script = format!("exec cat '{}/device'", place.path().display());
    let dhc = Dhc::on(FakeNode::p5_48xlarge().tool("dcgmi").runs(&script));
    let begun = Instant::now();
    let outcome = dhc.run(&["--check", "dcgm-diag", "--deadline", "1s"]);
    // The promise of dhc for a process that no signal ends.
    let limit = Duration::from_secs(1 + 20);
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    assert_error(&outcome);
    let record = &outcome.check("dcgm-diag").record;
    let ended = record.evidence.iter().filter_map(|one| one.ended.clone());
    let told: Vec<String> = ended.filter(|told| told.contains("survived")).collect();
    assert!(!told.is_empty(), "{record:?}");
    let survivor = told[0].split_whitespace().nth(1).unwrap();
    let (state, asleep_in) = sleeps(survivor).unwrap_or_else(|| panic!("it is gone: {told:?}"));
    assert_eq!(state, "D", "{told:?}");
    assert!(asleep_in.contains("request_wait_answer"), "{asleep_in}");
    let said = format!("survived SIGKILL (asleep in `{asleep_in}`)");
    assert!(told[0].contains(&said), "{told:?}");
    // Without its server it ends of the signal that it had.
    drop(held);
    let limit = Instant::now() + Duration::from_secs(10);
    while sleeps(survivor).is_some_and(|(state, _)| state == "D") {
        assert!(Instant::now() < limit, "it still sleeps");
        std::thread::yield_now();
    }
}

#[test]
fn ten_gigabytes_of_output_cost_no_memory() {
    let dhc = Dhc::on(
        FakeNode::trn1_32xlarge()
            .tool("nccom-test")
            .floods(10_000_000_000),
    );
    // `time` of bash knows no memory; the kernel's count of the largest descendant does.
    let plain = dhc.command("run", &["--check", "nccom-local", "--format", "json"]);
    let script = r#"import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)"#;
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(plain.get_program())
        .args(plain.get_args());
    let outcome = outcome(command.output().unwrap());
    assert_error(&outcome);
    let peak_kib: u64 = outcome
        .stderr
        .lines()
        .last()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(peak_kib < 64 << 10, "peak memory is {peak_kib} KiB");
    let evidence = &outcome.check("nccom-local").record.evidence[0];
    assert_eq!((evidence.bytes, evidence.truncated), (10_000_000_000, true));
    assert_eq!(evidence.sha256.len(), 64);
}

#[test]
fn hostile_json_is_an_error_and_never_a_pass() {
    let healthy = include_str!("../../fixtures/outputs/dcgmi/4.5-r4-pass.json");
    let deep = format!(
        "{{\"DCGM Diagnostic\": {}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let twice = healthy.replacen(
        "\"DCGM Diagnostic\"",
        "\"DCGM Diagnostic\": {}, \"DCGM Diagnostic\"",
        1,
    );
    let nan = healthy.replacen("\"entity_id\" : 0", "\"entity_id\" : NaN", 1);
    assert_ne!(nan, healthy);
    let cases: Vec<Vec<u8>> = vec![
        healthy.as_bytes()[..healthy.len() / 2].to_vec(),
        healthy.as_bytes()[..healthy.len() - 3].to_vec(),
        deep.into_bytes(),
        twice.into_bytes(),
        nan.into_bytes(),
        b"{}".to_vec(),
        b"null".to_vec(),
        b"\xff\xfe{\"DCGM Diagnostic\": \"\xff\"}".to_vec(),
        Vec::new(),
    ];
    for case in cases {
        let outcome =
            Dhc::on(FakeNode::p5_48xlarge().tool("dcgmi").prints(&case, 0)).check("dcgm-diag");
        assert!(
            matches!(outcome.verdict().0, Status::Error | Status::Unknown),
            "{:?} for {}",
            outcome.complaints(),
            String::from_utf8_lossy(&case[..case.len().min(80)])
        );
    }
}

#[test]
fn bytes_that_are_not_text_do_not_change_the_verdict() {
    let outcome = nccom(&format!(
        "printf 'a\\377\\033[2J\\000' >&2\ncat <<'EOF'\n{HEALTHY}EOF"
    ))
    .run(NCCOM);
    assert_eq!((outcome.exit, outcome.verdict().0), (0, Status::Pass));
    let stderr = &outcome.check("nccom-local").record.evidence[1];
    assert_eq!(stderr.text, "a\\xff\\x1b[2J\\x00");
}

#[test]
fn a_file_that_blocks_is_unknown_and_the_others_are_read() {
    let path = "/sys/devices/virtual/neuron_device/neuron7/stats/hardware/mem_ecc_uncorrected";
    let dhc = Dhc::on(FakeNode::trn1_32xlarge().blocked(path));
    let begun = Instant::now();
    let outcome = dhc.check("neuron-sysfs");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None))
    );
    let unknown = outcome.findings("neuron-sysfs", Status::Unknown);
    assert!(
        unknown[0].subject.name == "neuron7" && unknown[0].message.contains("did not answer"),
        "{unknown:?}"
    );
    let read = outcome.findings("neuron-sysfs", Status::Pass);
    assert!(
        read.iter()
            .any(|finding| finding.subject.name == "neuron15")
    );
}

/// Runs `dhc` with its state on a file system of this size of its own.
fn on_small_disk(dhc: &Dhc, size: &str) -> std::process::Output {
    std::fs::create_dir(dhc.state()).unwrap();
    let plain = dhc.command("run", &["--check", "nccom-local", "--format", "json"]);
    let script = "mount -t tmpfs -o size=$1,mode=700 tmpfs \"$2\" && shift 2 && \"$@\"; code=$?; ls -R \"$STATE\" >&2; exit $code";
    Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            size,
        ])
        .arg(dhc.state())
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("STATE", dhc.state())
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_is_told_before_anything_is_measured() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    let output = on_small_disk(&dhc, "64k");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(
        stderr.contains("hold space for the result") && stderr.contains("os error 28"),
        "{stderr}"
    );
}

#[test]
fn a_disk_that_fills_up_meanwhile_still_takes_the_result() {
    let dhc = nccom("true");
    let fill = format!(
        "cat /dev/zero > {}/fill 2>/dev/null\ncat <<'EOF'\n{HEALTHY}EOF",
        dhc.state().display()
    );
    let dhc = Dhc {
        node: FakeNode::trn1_32xlarge().tool("nccom-test").runs(&fill),
        ..dhc
    };
    let output = on_small_disk(&dhc, "8m");
    let outcome = outcome(output);
    assert_eq!(
        (outcome.exit, outcome.verdict().0),
        (0, Status::Pass),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains("fill") && outcome.stderr.contains("result.json"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_result_directory_that_cannot_be_reached_loses_nothing() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    let file = dhc.state().parent().unwrap().join("file");
    std::fs::write(&file, "").unwrap();
    let outcome = dhc.run(&[
        "--check",
        "nccom-local",
        "--out",
        file.join("below").to_str().unwrap(),
    ]);
    assert_eq!((outcome.exit, outcome.verdict().0), (4, Status::Pass));
    let kept = &dhc.runs()[0];
    assert!(
        outcome
            .stderr
            .contains(&format!("kept in `{}`", kept.display())),
        "{}",
        outcome.stderr
    );
    assert!(kept.join("result.json").exists());
}

#[test]
fn a_dead_file_system_for_results_costs_ten_seconds_and_loses_nothing() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    let out = dhc.state().parent().unwrap().join("out");
    std::fs::create_dir(&out).unwrap();
    let dead = DeadFileSystem::on(&out);
    let begun = Instant::now();
    let outcome = dhc.run(&["--check", "nccom-local", "--out", out.to_str().unwrap()]);
    let taken = begun.elapsed();
    drop(dead);
    assert_eq!((outcome.exit, outcome.verdict().0), (4, Status::Pass));
    assert!(taken < Duration::from_secs(13), "{taken:?}");
    let kept = &dhc.runs()[0];
    let told = format!(
        "did not take the result within 10 s; the result is kept in `{}`",
        kept.display()
    );
    assert!(outcome.stderr.contains(&told), "{}", outcome.stderr);
    assert!(kept.join("result.json").exists());
}

#[test]
fn a_result_is_copied_to_where_it_is_wanted() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    let out = dhc.state().parent().unwrap().join("out");
    assert_eq!(
        dhc.run(&["--check", "nccom-local", "--out", out.to_str().unwrap()])
            .exit,
        0
    );
    let copy = out.join(dhc.runs()[0].file_name().unwrap());
    let verified = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .arg("verify")
        .arg(&copy)
        .output()
        .unwrap();
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
}

#[test]
fn a_clock_that_races_does_not_change_durations() {
    let dhc = nccom(&format!("sleep 0.3\ncat <<'EOF'\n{HEALTHY}EOF"));
    let plain = dhc.command("run", &["--check", "nccom-local", "--format", "json"]);
    // The wall clock runs 100,000 times too fast: a day a second.
    let mut command = Command::new("faketime");
    command
        .args(["-f", "+1d x100000"])
        .arg(plain.get_program())
        .args(plain.get_args());
    command
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let begun = Instant::now();
    let outcome = outcome(command.output().unwrap());
    assert_eq!((outcome.exit, outcome.verdict().0), (0, Status::Pass));
    let told = outcome.report.run.started_at.clone();
    let real = Command::new("date")
        .args(["-u", "+%Y-%m-%d"])
        .output()
        .unwrap();
    let today = String::from_utf8(real.stdout).unwrap();
    assert!(
        !told.starts_with(today.trim()),
        "the clock was not made to race: {told}"
    );
    let took = Duration::from_millis(outcome.report.run.duration_ms);
    assert!(
        took >= Duration::from_millis(300) && took <= begun.elapsed(),
        "{took:?}"
    );
}

/// A tool that works through a child and keeps another in a session of its own. Their names can be told from others.
const FAMILY: &str = r#"cp /bin/sleep "$0.child"; setsid "$0.child" 1000 & "$0.child" 1000"#;

#[test]
fn sigterm_leaves_a_partial_result_within_five_seconds() {
    let dhc = nccom(&format!("trap '' TERM; {FAMILY}"));
    let mut child = dhc
        .command(
            "run",
            &["--check", "neuron-count,nccom-local", "--format", "json"],
        )
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_journal(&dhc, 2);
    Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    let begun = Instant::now();
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut text).unwrap();
    let exit = child.wait().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    let report = Report::parse(&text).unwrap();
    assert_eq!((exit.code(), report.complete), (Some(3), false));
    let ending = |name: &str| {
        report.nodes[0]
            .checks
            .iter()
            .find(|check| check.check == name)
            .unwrap()
            .record
            .ending
            .clone()
    };
    assert_eq!(
        (ending("neuron-count"), ending("nccom-local")),
        (Ending::Finished, Ending::Interrupted)
    );
    assert!(
        no_process_mentions(&dhc.node.tools().display().to_string()),
        "a tool was left running"
    );
}

#[test]
fn a_scheduler_that_ends_all_processes_at_once_makes_no_error_of_the_check() {
    let dhc = nccom(FAMILY);
    let mut command = dhc.command("run", &["--check", "neuron-count,nccom-local"]);
    command.args(["--format", "json"]).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for_journal(&dhc, 2);
    let run = child.id().to_string();
    let children = Command::new("pgrep").args(["-P", &run]).output().unwrap();
    let check = String::from_utf8(children.stdout).unwrap();
    // The check first, so that it is sure to hear of it before the run.
    let mut told = Command::new("kill");
    told.args(["-TERM", check.trim(), &run]);
    assert!(told.status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let report = Report::parse(&output.stdout).unwrap();
    assert_eq!((output.status.code(), report.complete), (Some(3), false));
    let mut checks = report.nodes[0].checks.iter();
    let nccom = checks.find(|check| check.check == "nccom-local").unwrap();
    assert_eq!(nccom.record.ending, Ending::Interrupted);
}

#[test]
fn sigkill_leaves_a_journal_that_can_be_judged_and_no_tool() {
    let dhc = nccom(FAMILY);
    let mut child = dhc
        .command("run", &["--check", "neuron-count,nccom-local"])
        .spawn()
        .unwrap();
    wait_for_journal(&dhc, 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(["judge", "--format", "json"])
        .arg(&dhc.runs()[0])
        .output()
        .unwrap();
    let judged = outcome(output);
    assert_eq!((judged.exit, judged.report.complete), (3, false));
    assert_eq!(judged.check("neuron-count").status, Status::Pass);
    assert_eq!(
        judged.check("nccom-local").record.ending,
        Ending::Interrupted
    );
    let begun = Instant::now();
    while !no_process_mentions(&dhc.node.tools().display().to_string()) {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "a tool outlived its supervisor"
        );
        std::thread::yield_now();
    }
}

/// Waits until the journal has its header and this many lines of checks that are over.
fn wait_for_journal(dhc: &Dhc, lines: usize) {
    let begun = Instant::now();
    loop {
        let text = dhc
            .runs()
            .first()
            .and_then(|run| std::fs::read_to_string(run.join("journal.jsonl")).ok())
            .unwrap_or_default();
        let done = text.contains("\"check\":\"neuron-count\"") && text.lines().count() > lines;
        let family = dhc.node.tools().join("nccom-test.child 1000");
        if done && !no_process_mentions(&family.display().to_string()) {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the run did not get going: {text}"
        );
        std::thread::yield_now();
    }
}

fn no_process_mentions(text: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().all(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // The tool and what it started, not dhc, which names the directory in its arguments.
        !line.contains(text) || line.starts_with(env!("CARGO_BIN_EXE_dhc"))
    })
}

#[test]
fn a_second_run_on_the_node_is_told_who_holds_it() {
    let dhc = nccom("while :; do sleep 1; done");
    let mut first = dhc
        .command("run", NCCOM)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while dhc.runs().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::yield_now();
    }
    let second = dhc.command("run", NCCOM).output().unwrap();
    let stderr = String::from_utf8_lossy(&second.stderr).into_owned();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains(&format!("process {}", first.id())),
        "{stderr}"
    );
    // The lock died with its holder.
    let third = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    let third = Dhc {
        node: third.node,
        ..dhc
    };
    assert_eq!(third.run(NCCOM).exit, 0);
}

#[test]
fn links_in_the_way_are_not_followed() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    let elsewhere = tempfile::tempdir().unwrap();
    let victim = elsewhere.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let refused = |what: &str| {
        let output = dhc.command("run", NCCOM).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(4),
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            std::fs::read_to_string(&victim).unwrap(),
            "precious",
            "{what}"
        );
        assert_eq!(
            std::fs::read_dir(elsewhere.path()).unwrap().count(),
            1,
            "{what} wrote elsewhere"
        );
    };
    symlink(elsewhere.path(), dhc.state()).unwrap();
    refused("the state directory is a link");
    std::fs::remove_file(dhc.state()).unwrap();
    std::fs::create_dir(dhc.state()).unwrap();
    std::fs::set_permissions(dhc.state(), std::fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&victim, dhc.state().join("lock")).unwrap();
    refused("the lock is a link");
    std::fs::remove_file(dhc.state().join("lock")).unwrap();
    symlink(elsewhere.path(), dhc.state().join("runs")).unwrap();
    refused("the folder of runs is a link");
    std::fs::remove_file(dhc.state().join("runs")).unwrap();
    std::fs::set_permissions(dhc.state(), std::fs::Permissions::from_mode(0o777)).unwrap();
    refused("the state directory is open to all");
    std::fs::set_permissions(dhc.state(), std::fs::Permissions::from_mode(0o700)).unwrap();
    give(&dhc.state(), "65534");
    refused("the state directory belongs to somebody else");
    give(
        &dhc.state(),
        &rustix::process::geteuid().as_raw().to_string(),
    );
}

/// Gives a file to another user.
fn give(path: &Path, user: &str) {
    let is_root = rustix::process::geteuid().is_root();
    let mut chown = Command::new(if is_root { "chown" } else { "sudo" });
    if !is_root {
        chown.args(["-n", "chown"]);
    }
    let done = chown.arg(user).arg(path).status().unwrap();
    assert!(done.success());
}

#[test]
fn results_are_for_their_owner_alone() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    dhc.run(NCCOM);
    for name in ["result.json", "journal.jsonl", "SHA256SUMS"] {
        let mode = dhc.runs()[0]
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_result_that_was_changed_is_found() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    dhc.run(NCCOM);
    let run = &dhc.runs()[0];
    let verify = || {
        Command::new(env!("CARGO_BIN_EXE_dhc"))
            .arg("verify")
            .arg(run)
            .output()
            .unwrap()
    };
    assert_eq!(verify().status.code(), Some(0));
    let path = run.join("result.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("pass", "fail", 1)).unwrap();
    let output = verify();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SHA-256 differs"));
}

#[test]
fn a_tool_that_others_can_change_is_not_run() {
    let dhc = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF"));
    let tool = dhc.node.tools().join("nccom-test");
    std::fs::set_permissions(tool, std::fs::Permissions::from_mode(0o777)).unwrap();
    let outcome = dhc.run(NCCOM);
    assert_error(&outcome);
    assert!(dhc.node.calls("nccom-test").is_empty());
}

#[test]
fn what_a_tool_printed_is_read_without_privileges() {
    let nccom = nccom(&format!("cat <<'EOF'\n{HEALTHY}EOF")).run(NCCOM);
    let dcgm = Dhc::on(FakeNode::p5_48xlarge().tool("dcgmi").prints("{}", 0)).check("dcgm-diag");
    for (outcome, check) in [(nccom, "nccom-local"), (dcgm, "dcgm-diag")] {
        let notes = outcome.check(check).record.notes.join("; ");
        assert!(
            notes.contains("unprivileged user on, system call filter on"),
            "{check}: {notes}"
        );
    }
}

#[test]
fn a_hostile_environment_stays_outside() {
    let dhc = nccom(&format!("env >&2\ncat <<'EOF'\n{HEALTHY}EOF"));
    let mut command = dhc.command("run", &["--check", "nccom-local", "--format", "json"]);
    command
        .env("LD_PRELOAD", "/nowhere/evil.so")
        .env("BASH_ENV", "/nowhere/evil.sh")
        .env("NCCL_DEBUG", "INFO");
    command
        .env("SOME_TOKEN", "do-not-tell-anybody")
        .env("NEURON_RT_LOG_LEVEL", "INFO");
    let outcome = outcome(command.output().unwrap());
    assert_eq!(outcome.verdict().0, Status::Pass);
    let seen = &outcome.check("nccom-local").record.evidence[1].text;
    assert!(
        seen.contains("NCCL_DEBUG=INFO") && !seen.contains("evil") && !seen.contains("do-not-tell"),
        "{seen}"
    );
    let recorded: Vec<&str> = outcome
        .report
        .run
        .environment
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(recorded, ["NCCL_DEBUG", "NEURON_RT_LOG_LEVEL"]);
}

#[test]
fn a_hostile_host_name_is_made_harmless() {
    let node = FakeNode::trn1_32xlarge().file(
        "/proc/sys/kernel/hostname",
        "$(reboot); rm -rf / \u{1b}[31m\n",
    );
    let outcome = Dhc::on(node).check("neuron-count");
    let name = &outcome.report.nodes[0].name;
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.'),
        "{name}"
    );
    assert!(
        name.starts_with(|c: char| c.is_ascii_alphanumeric()),
        "{name}"
    );
}

#[test]
fn a_threshold_file_with_a_mistake_stops_the_run_with_line_and_column() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let file = dhc.state().parent().unwrap().join("mine.toml");
    std::fs::write(
        &file,
        "schema = \"dhc.thresholds/1\"\ninstance_type = \"x\"\nlimitt = 1\n",
    )
    .unwrap();
    let output = dhc
        .command("run", &["--thresholds", file.to_str().unwrap()])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(
        stderr.contains("mine.toml:3:1") && stderr.contains("limitt"),
        "{stderr}"
    );
    assert!(dhc.runs().is_empty());
}

#[test]
fn what_is_wrong_in_a_threshold_file_is_named_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let sound = "schema = \"dhc.thresholds/1\"\ninstance_type = \"x\"\n[[limit]]\nmetric = \"efa.loopback.bandwidth\"\n\
                 unit = \"GB/s\"\nfail_below = 1\nsubjects = 1\nfault = \"nic.rate\"\nvalidated_on = \"2024-02-29\"\nsource = \"t\"\n";
    let validate = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command
            .args(["thresholds", "validate"])
            .arg(&file)
            .output()
            .unwrap()
    };
    let output = validate(sound);
    assert!(output.status.success(), "{output:?}");
    for (from, to, place) in [
        (
            "nic.rate",
            "nic.raet",
            ":8:9: there is no fault class `nic.raet` (did you mean `nic.rate`?)",
        ),
        ("nic.rate", "nosuch.class", ":8:9: there is no fault class"),
        ("subjects = 1", "subjects = nan", ":7:12: `subjects` is NaN"),
        ("subjects = 1", "subjects = -1", ":7:12: `subjects` is -1"),
        ("subjects = 1", "subjects = 1.5", ":7:12: `subjects` is 1.5"),
        (
            "fail_below = 1",
            "fail_below = { hardware = \"gpus\" }",
            ":6:14: expected a number, or the count of some hardware",
        ),
        ("2024-02-29", "yesterday", ":9:16: `yesterday` is not a day"),
        (
            "2024-02-29",
            "2023-02-29",
            ":9:16: `2023-02-29` is not a day",
        ),
        (
            "2024-02-29",
            "2024-13-01",
            ":9:16: `2024-13-01` is not a day",
        ),
        (
            "= \"x\"",
            "= \"\"",
            ":2:17: `instance_type` has to name the type",
        ),
        (
            "= \"x\"",
            "= \"x\\n\\u001b[8m\"",
            ":2:17: `instance_type` has to name the type",
        ),
    ] {
        let output = validate(&sound.replacen(from, to, 1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(4), 0),
            "{to}: {said}"
        );
        assert!(said.contains(place), "{to}: {said}");
    }
}

#[test]
fn paths_of_the_machine_may_be_relative_to_where_the_user_stands() {
    let dhc = Dhc::on(
        FakeNode::trn1_32xlarge()
            .tool("nccom-test")
            .prints(HEALTHY, 0),
    );
    let here = dhc.state.path();
    std::os::unix::fs::symlink(dhc.node.tools(), here.join("t")).unwrap();
    std::os::unix::fs::symlink(dhc.node.root(), here.join("machine")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
    command.args([
        "run",
        "--check",
        "nccom-local,neuron-sysfs,host",
        "--format",
        "json",
    ]);
    command.args(["--state", "o/s1", "--tools", "t", "--root", "machine"]);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir(here);
    let outcome = outcome(command.output().unwrap());
    assert_eq!(outcome.check("nccom-local").status, Status::Pass);
    assert_eq!(outcome.check("host").record.gaps, []);
    assert!(here.join("o/s1/readings").is_dir());
}

#[test]
fn a_tag_in_place_of_a_check_and_a_mistyped_type_are_wrong_usage() {
    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    let said = |args: &[&str], named: &str| {
        let mut command = dhc.command("run", args);
        let output = command.env("DHC_INSTANCE_TYPE", named).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(
        said(&["--check", "gpu"], "").contains("no check `gpu`; it is a tag, so write --tag gpu")
    );
    assert!(said(&["--tag", "nvlink"], "").contains("it is a check, so write --check nvlink"));
    assert!(said(&["--check", "nvlnk"], "").contains("no check `nvlnk`; there are "));
    assert!(said(&["--skip", "nvlnk"], "").contains("no check or tag `nvlnk`; there are "));
    assert!(said(&[], "p5.48xlarg").contains("no table for the instance type `p5.48xlarg`"));
    assert!(dhc.runs().is_empty());
}

#[test]
fn firmware_that_contradicts_the_named_type_is_told() {
    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    let named = [
        "--check",
        "neuron-count",
        "--instance-type",
        "trn2.48xlarge",
    ];
    let wrong = dhc.run(&named);
    let said = "--instance-type says that this is a `trn2.48xlarge`, but the DMI product name says `p5.48xlarge`";
    assert!(wrong.stderr.contains(said), "{}", wrong.stderr);
    let identity = &wrong.report.nodes[0].identity;
    assert_eq!(identity.contradicting_type.as_deref(), Some("p5.48xlarge"));
    let printed = dhc.command("run", &named).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(
        printed.contains("(trn2.48xlarge, though firmware says p5.48xlarge"),
        "{printed}"
    );
    // SageMaker's name of the same type is none.
    let right = dhc.run(&[
        "--check",
        "neuron-count",
        "--instance-type",
        "ml.p5.48xlarge",
    ]);
    assert!(!right.stderr.contains("warning"), "{}", right.stderr);
    assert_eq!(right.report.nodes[0].identity.contradicting_type, None);
    // Nor does a table of one's own contradict anything, unless it is for another of the types that dhc knows.
    let table = dhc.state.path().join("mine.toml");
    let judged_by = |instance_type: &str| {
        let text = format!("schema = \"dhc.thresholds/1\"\ninstance_type = \"{instance_type}\"\n");
        std::fs::write(&table, text).unwrap();
        let file = table.to_str().unwrap();
        let outcome = dhc.run(&["--check", "gpu-count", "--thresholds", file]);
        let warned = outcome.stderr.contains("warning: ");
        let identity = &outcome.report.nodes[0].identity;
        assert_eq!(
            warned,
            identity.contradicting_type.is_some(),
            "{}",
            outcome.stderr
        );
        (warned, outcome.verdict().0)
    };
    assert_eq!(judged_by("home-lab-1"), (false, Status::Unknown));
    assert_eq!(judged_by("p5en.48xlarge"), (true, Status::Fail));
    // A table of the type's own name begins with what dhc knows of it.
    assert_eq!(judged_by("p5.48xlarge"), (false, Status::Pass));
}

#[test]
fn what_cannot_be_printed_is_an_error_and_no_panic() {
    for args in [
        ["completions", "bash"].as_slice(),
        &["man"],
        &["--help"],
        &["run", "--help"],
        &["--version"],
        &["list"],
        &["schema", "report"],
    ] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        let output = command.args(args).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{args:?}: {said}");
        assert!(
            said.starts_with("dhc: cannot write to standard output: No space left"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn secrets_in_the_output_of_tools_reach_no_file() {
    let secret = "hf_abcdefghijklmnopqrstuvwxyz";
    let dhc = nccom(&format!(
        "echo HF_TOKEN={secret} >&2\necho https://user:{secret}@host/ >&2\ncat <<'EOF'\n{HEALTHY}EOF"
    ));
    let outcome = dhc.run(NCCOM);
    assert_eq!(outcome.verdict().0, Status::Pass);
    for name in ["result.json", "journal.jsonl"] {
        let text = std::fs::read_to_string(dhc.runs()[0].join(name)).unwrap();
        assert!(
            text.contains("[redacted]") && !text.contains("abcdefghij"),
            "{name}"
        );
    }
}

#[test]
fn secrets_in_what_a_tool_complains_of_reach_neither_file_nor_terminal() {
    let secret = "s3cr3tV4lu3s3cr3tV4lu3";
    let shapes = [
        format!("HF_TOKEN={secret}"),
        format!("Authorization: Bearer {secret}"),
        format!("https://user:{secret}@host/x"),
        format!("nccom-test --token {secret}"),
        "AKIAs3cr3tV4lu3EXAMPLE".to_owned(),
    ];
    for shape in shapes {
        // Both as a message of the tool alone, and as what stands in the row of a size that failed.
        for says in [
            format!("error: {shape}"),
            FAILED_ROW.replace("log file /tmp/nccom_test_log_x1.log", &shape),
        ] {
            let dhc = nccom(&format!("cat <<'EOF'\n{says}\nEOF\nexit 1"));
            let mut command = dhc.command("run", NCCOM);
            let output = command.env("NCCL_API_TOKEN", secret).output().unwrap();
            assert_eq!(output.status.code(), Some(4));
            let mut all = [output.stdout, output.stderr].concat();
            for name in ["result.json", "journal.jsonl"] {
                all.extend(std::fs::read(dhc.runs()[0].join(name)).unwrap());
            }
            let all = String::from_utf8_lossy(&all);
            assert!(!all.contains("s3cr3tV4lu3"), "{shape}: {all}");
            assert!(all.contains("[redacted]"), "{all}");
        }
    }
}

#[test]
fn success_without_output_is_never_a_pass() {
    assert_error(&nccom("exit 0").run(NCCOM));
    let dcgm = Dhc::on(FakeNode::p5_48xlarge().tool("dcgmi").prints_nothing()).check("dcgm-diag");
    assert!(
        matches!(dcgm.verdict().0, Status::Error | Status::Unknown),
        "{:?}",
        dcgm.complaints()
    );
}

#[test]
fn a_stale_result_is_refused_where_somebody_would_act_on_it() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    dhc.run(&["--check", "neuron-count", "--valid-for", "1ms"]);
    dhc.run(&["--check", "neuron-count"]);
    let judge = |dhc: &Dhc, run: usize, current: &[&str]| {
        let mut args = vec![dhc.runs()[run].to_str().unwrap().to_owned()];
        args.extend(current.iter().map(|word| (*word).to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = dhc.command("judge", &args).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(
        judge(&dhc, 0, &[]).0,
        Some(0),
        "what is stored can always be judged"
    );
    let (exit, stderr) = judge(&dhc, 0, &["--current"]);
    assert!(exit == Some(4) && stderr.contains("expired"), "{stderr}");
    assert_eq!(judge(&dhc, 1, &["--current"]).0, Some(0));
    // Nor is one that has yet to begin.
    let file = dhc.runs()[1].join("result.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let report = Report::parse(text.as_bytes()).unwrap();
    let later = text
        .replace(&report.run.started_at, "2099-01-01T00:00:00Z")
        .replace(&report.run.expires_at, "2099-01-02T00:00:00Z");
    std::fs::write(&file, later).unwrap();
    let (exit, stderr) = judge(&dhc, 1, &["--current"]);
    assert!(
        exit == Some(4) && stderr.contains("yet to come"),
        "{stderr}"
    );
    std::fs::write(&file, text).unwrap();
    let rebooted = FakeNode::trn1_32xlarge().file(
        "/proc/sys/kernel/random/boot_id",
        "11111111-2222-3333-4444-555555555555\n",
    );
    let dhc = Dhc {
        node: rebooted,
        ..dhc
    };
    let (exit, stderr) = judge(&dhc, 1, &["--current"]);
    assert!(
        exit == Some(4) && stderr.contains("another boot"),
        "{stderr}"
    );
}

#[test]
fn a_run_that_was_judged_by_a_file_is_not_judged_by_another_table_unasked() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let table = dhc.state().parent().unwrap().join("mine.toml");
    let text = "schema = \"dhc.thresholds/1\"\ninstance_type = \"mine\"\n[[hardware]]\nkind = \"neuron_device\"\ncount = 17\nsource = \"t\"\n[[hardware]]\nkind = \"neuron_core\"\ncount = 32\nsource = \"t\"\n";
    std::fs::write(&table, text).unwrap();
    let table = table.to_str().unwrap();
    let ran = dhc.run(&["--check", "neuron-count", "--thresholds", table]);
    assert_eq!(ran.exit, 2);
    let run = dhc.runs()[0].clone();
    let judge = |more: &[&str]| {
        let args = [&[run.to_str().unwrap(), "--format", "json"], more].concat();
        dhc.command("judge", &args).output().unwrap()
    };
    let refused = |run: &str| {
        assert!(
            run.contains(table) && run.contains("--thresholds") && run.contains("--built-in"),
            "{run}"
        );
    };
    let output = judge(&[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 0));
    refused(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(judge(&["--thresholds", table]).status.code(), Some(2));
    let own = outcome(judge(&["--built-in"]));
    assert_eq!(
        (own.exit, own.report.judged_by.instance_type.as_str()),
        (0, "trn1.32xlarge")
    );
    // The journal of a run that was killed says it too.
    std::fs::remove_file(run.join("result.json")).unwrap();
    let output = judge(&[]);
    assert_eq!(output.status.code(), Some(4));
    refused(&String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_killed_run_is_judged_by_the_table_of_the_run_or_not_at_all() {
    // The machine has 16 devices: it passes by the built-in table and fails by the file.
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let file = dhc.state.path().join("strict.toml");
    let text = "schema = \"dhc.thresholds/1\"\ninstance_type = \"mine\"\n[[hardware]]\nkind = \"neuron_device\"\ncount = 17\nsource = \"t\"\n[[hardware]]\nkind = \"neuron_core\"\ncount = 32\nsource = \"t\"\n";
    std::fs::write(&file, text).unwrap();
    let table = file.to_str().unwrap();
    let ran = dhc.run(&["--check", "neuron-count", "--thresholds", table]);
    assert_eq!(ran.exit, 2);
    let run = dhc.runs()[0].clone();
    // What is left of a run that was killed; and the file is another by now.
    std::fs::remove_file(run.join("result.json")).unwrap();
    std::fs::write(&file, text.replace("17", "16")).unwrap();
    let export = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command.args(["export", "ctrf"]).arg(&run).output().unwrap()
    };
    let exported = String::from_utf8(export().stdout).unwrap();
    let document: serde_json::Value = serde_json::from_str(&exported).unwrap();
    assert_eq!(document["results"]["summary"]["failed"], 1, "{exported}");
    assert!(exported.contains(&ran.report.judged_by.sha256));
    // Journals of before the table was kept do not hold it.
    let journal = run.join("journal.jsonl");
    let (header, rest) = {
        let text = std::fs::read_to_string(&journal).unwrap();
        let (header, rest) = text.split_once('\n').unwrap();
        (header.to_owned(), rest.to_owned())
    };
    let mut header: serde_json::Value = serde_json::from_str(&header).unwrap();
    assert!(header.as_object_mut().unwrap().remove("table").is_some());
    std::fs::write(&journal, format!("{header}\n{rest}")).unwrap();
    for args in [["export", "ctrf"].as_slice(), &["recover", "plan"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command.args(args).arg(&run);
        if args[0] == "recover" {
            command.arg("--state").arg(dhc.state());
        }
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 0));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains(table) && said.contains("--thresholds"),
            "{said}"
        );
    }
}

#[test]
fn a_threshold_file_that_never_ends_or_never_answers_is_refused() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let pipe = dhc.state.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let large = dhc.state.path().join("large.toml");
    let file = std::fs::File::create(&large).unwrap();
    file.set_len(1 << 40).unwrap();
    let pipe = pipe.to_str().unwrap();
    let large = large.to_str().unwrap();
    for (file, why) in [
        (pipe, "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (large, "larger than 4 MiB"),
    ] {
        let run = dhc.command("run", &["--thresholds", file]).output();
        let mut validate = Command::new(env!("CARGO_BIN_EXE_dhc"));
        let validated = validate.args(["thresholds", "validate", file]).output();
        for output in [run.unwrap(), validated.unwrap()] {
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(4), "{said}");
            assert!(said.contains(file) && said.contains(why), "{said}");
        }
    }
    // A link is followed: tables of Kubernetes' ConfigMaps are links.
    let table = dhc.state.path().join("table.toml");
    std::fs::write(
        &table,
        "schema = \"dhc.thresholds/1\"\ninstance_type = \"x\"\n",
    )
    .unwrap();
    let link = dhc.state.path().join("link.toml");
    std::os::unix::fs::symlink(&table, &link).unwrap();
    let mut validate = Command::new(env!("CARGO_BIN_EXE_dhc"));
    let output = validate.args(["thresholds", "validate"]).arg(link).output();
    assert!(output.unwrap().status.success());
}

/// Before anything is measured there is no partial result to write, and so nothing to wait for.
#[test]
fn sigterm_ends_a_run_that_waits_for_its_threshold_file() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let place = dhc.state.path().join("nfs");
    std::fs::create_dir(&place).unwrap();
    let dead = DeadFileSystem::on(&place);
    let file = place.join("mine.toml");
    let mut child = dhc
        .command("run", &["--thresholds", file.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it waits for the file");
    let begun = Instant::now();
    Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    let exit = child.wait().unwrap();
    assert_eq!(exit.signal(), Some(15));
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(dead);
    assert!(dhc.runs().is_empty());
}

#[test]
fn what_a_tool_says_cannot_steer_the_terminal() {
    let says = "\u{1b}]0;owned\u{7}\u{1b}[2J\rPASS\u{202e}";
    let node = FakeNode::trn1_32xlarge().tool("nccom-test").prints(says, 1);
    let dhc = Dhc::on(node);
    let output = dhc
        .command("run", &["--check", "nccom-local"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("owned"), "{text}");
    let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(steers), "{text:?}");
}

#[test]
fn what_a_tool_says_cannot_look_like_a_line_of_dhc() {
    let says =
        r#"{"DCGM Diagnostic": {"runtime_error": "busy\nip-10-0-1-7: PASS", "version": "4.5.3"}}"#;
    let dhc = Dhc::on(FakeNode::p5_48xlarge().tool("dcgmi").prints(says, 226));
    let mut command = dhc.command("run", &["--check", "dcgm-diag"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(r"busy\nip-10-0-1-7: PASS"), "{text}");
    assert!(!text.contains("\nip-10-0-1-7: PASS"), "{text}");
}

#[test]
fn a_stored_result_can_be_judged_by_another_table() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    assert_eq!(dhc.run(&["--check", "neuron-count"]).exit, 0);
    let table = dhc.state().parent().unwrap().join("mine.toml");
    let text = "schema = \"dhc.thresholds/1\"\ninstance_type = \"mine\"\n[[hardware]]\nkind = \"neuron_device\"\ncount = 17\nsource = \"t\"\n[[hardware]]\nkind = \"neuron_core\"\ncount = 32\nsource = \"t\"\n";
    std::fs::write(&table, text).unwrap();
    let run = dhc.runs()[0].clone();
    let output = dhc
        .command(
            "judge",
            &[
                run.to_str().unwrap(),
                "--thresholds",
                table.to_str().unwrap(),
                "--format",
                "json",
            ],
        )
        .output()
        .unwrap();
    let judged = outcome(output);
    assert_eq!(
        (judged.exit, judged.verdict()),
        (2, (Status::Fail, Action::Reboot))
    );
    assert_eq!(judged.report.judged_by.instance_type, "mine");
}

/// Where no cards were expected none were looked for, and a table that asks for them cannot call that a pass.
#[test]
fn what_was_left_out_for_want_of_hardware_is_no_pass_under_a_table_that_asks_for_it() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    let run = dhc.run(&["--check", "neuron-count,gpu-count"]);
    assert_eq!(run.verdict().0, Status::Pass);
    let table = dhc.state.path().join("mine.toml");
    let text = "schema = \"dhc.thresholds/1\"\ninstance_type = \"trn1.32xlarge\"\n\
                [[hardware]]\nkind = \"nvidia_gpu\"\ncount = 2\nsource = \"t\"\n";
    std::fs::write(&table, text).unwrap();
    let result = dhc.runs()[0].to_str().unwrap().to_owned();
    let args = [result.as_str(), "--thresholds", table.to_str().unwrap()];
    let judged = outcome(
        dhc.command("judge", &args)
            .args(["--format", "json"])
            .output()
            .unwrap(),
    );
    assert_eq!((judged.exit, judged.verdict().0), (3, Status::Unknown));
    let unknown = judged.findings("gpu-count", Status::Unknown);
    assert!(
        unknown[0].message.contains("has 2; run it again"),
        "{unknown:?}"
    );
    // What the user left out is left out under every table.
    assert_eq!(judged.check("nvlink").status, Status::Skip);
}

#[test]
fn old_results_are_deleted_where_asked_and_nothing_else_ever_is() {
    const DAY: u64 = 24 * 3600;
    let dhc = Dhc::on(FakeNode::plain());
    assert_eq!(dhc.check("host").stderr.matches("deleted").count(), 0);
    let of_today = dhc.runs();
    let runs = dhc.state().join("runs");
    let begun = |days_ago: u64, number: u128| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        let then = now - Duration::from_secs(days_ago * DAY);
        ulid::Ulid::from_parts(u64::try_from(then.as_millis()).unwrap(), number).to_string()
    };
    let make = |name: &str, files: &[&str]| {
        let folder = runs.join(name);
        std::fs::create_dir(&folder).unwrap();
        for file in files {
            std::fs::write(folder.join(file), "{}").unwrap();
        }
        folder
    };
    let whole = ["result.json", "journal.jsonl", "SHA256SUMS"];
    let old = make(&begun(31, 1), &whole);
    let killed = make(
        &begun(40, 2),
        &["journal.jsonl", ".reserve", ".result.json.77"],
    );
    let young = make(&begun(29, 3), &whole);
    // None of these is what dhc leaves, however old it is.
    let with_notes = make(&begun(31, 4), &["result.json", "notes.txt"]);
    let with_folder = make(&begun(31, 5), &whole);
    std::fs::create_dir(with_folder.join(".reserve")).unwrap();
    let another = make("before-the-upgrade", &whole);
    let small = make(&begun(31, 6).to_lowercase(), &whole);
    let elsewhere = dhc.state().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("result.json"), "{}").unwrap();
    let link = runs.join(begun(31, 7));
    symlink(&elsewhere, &link).unwrap();
    let file = runs.join(begun(31, 8));
    std::fs::write(&file, "{}").unwrap();

    let outcome = dhc.run(&["--check", "host", "--keep-results", "30d"]);
    assert!(
        outcome.stderr.contains("2 old results were deleted"),
        "{}",
        outcome.stderr
    );
    assert!(!old.exists() && !killed.exists());
    for kept in [&with_notes, &with_folder, &link, &file] {
        let said = format!("`{}` is old and was left: ", kept.display());
        assert!(outcome.stderr.contains(&said), "{}", outcome.stderr);
    }
    for kept in [young, with_notes, with_folder, another, small, link, file] {
        assert!(kept.symlink_metadata().is_ok(), "{}", kept.display());
        if kept.is_dir() {
            assert!(kept.join("result.json").exists(), "{}", kept.display());
        }
    }
    let runs = dhc.runs();
    assert!(of_today.iter().all(|run| runs.contains(run)));
}

#[test]
fn results_of_today_cannot_be_deleted() {
    let dhc = Dhc::on(FakeNode::plain());
    let mut command = dhc.command("run", &["--keep-results", "23h"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("must be a day or more, such as 30d"),
        "{said}"
    );
}
