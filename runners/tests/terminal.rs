//! What people see: colours and progress on a terminal, neither in a pipe, and what `dhc` says of itself.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it prints"
)]

mod common;

use std::process::{Command, Stdio};

use common::Dhc;
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Ending, Status};

const HEALTHY: &str = include_str!("../../fixtures/outputs/nccom_test/allr-32-ranks.txt");

/// A machine whose `nccom-test` takes its time.
fn slow() -> Dhc {
    let script = format!("sleep 1\ncat <<'EOF'\n{HEALTHY}EOF");
    Dhc::on(FakeNode::trn1_32xlarge().tool("nccom-test").runs(&script))
}

/// What the command leaves on a terminal (of util-linux's `script`).
fn on_a_terminal(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let output = Command::new("script")
        .args(["-qec", &line.join(" "), "/dev/null"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_terminal_gets_colours_and_sees_what_is_under_way() {
    let dhc = slow();
    let seen = on_a_terminal(&dhc.command("run", &["--check", "nccom-local"]));
    assert!(
        seen.contains("nccom-local: all-reduce over 32 cores (usually 180 s)"),
        "{seen}"
    );
    assert!(
        seen.contains("\x1b[38;5;10m") || seen.contains("\x1b[32m"),
        "{seen:?}"
    );
    let verdict = seen.rfind("PASS").unwrap();
    let last_of_progress = seen.rfind("usually").unwrap();
    assert!(last_of_progress < verdict, "{seen:?}");
}

/// A machine whose firmware names it with what moves the cursor, turns the writing round and cannot be seen.
fn steering() -> (Dhc, &'static str) {
    let name = "p9\u{9b}1A\u{202e}x\u{7f}\u{e0041}";
    let dhc = Dhc::on(FakeNode::plain().file("/sys/class/dmi/id/product_name", name));
    (dhc, name)
}

#[test]
fn a_json_document_steers_no_terminal_and_is_the_same_document() {
    let (dhc, name) = steering();
    let steers = |c: char| (c.is_control() && c != '\n') || !c.is_ascii();
    let mut run = dhc.command("run", &["--check", "host", "--format", "json"]);
    let output = run.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(!printed.contains(steers), "{printed:?}");
    let report = dhc_thresholds::Report::parse(printed.as_bytes()).unwrap();
    let kept = |report: &dhc_thresholds::Report| {
        let node = &report.nodes[0];
        node.identity.instance_type.clone().unwrap()
    };
    assert_eq!(kept(&report), name);
    // Another dhc hands on what this one has printed.
    let mut judge = Command::new(env!("CARGO_BIN_EXE_dhc"));
    judge.args(["judge", "--format", "json"]).args(dhc.runs());
    for mut command in [dhc.command("status", &["--format", "json"]), judge] {
        let output = command.output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(!printed.contains(steers), "{command:?}: {printed:?}");
        let again = dhc_thresholds::Report::parse(printed.as_bytes()).unwrap();
        assert_eq!(kept(&again), name, "{command:?}");
    }
}

#[test]
fn a_terminal_sees_nodes_and_waves_and_a_pipe_does_not() {
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
    command.args(["run", "--level", "cluster", "--state"]);
    command.arg(state.path().join("state"));
    command.args(["--set", "mpi-allreduce.max-bytes=4096"]);
    let seen = on_a_terminal(&command);
    for words in [
        "roll call",
        "1 answered, 0 did not",
        "mpi-allreduce wave 0",
        "1 measuring",
    ] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("measuring"), "{stderr}");
}

#[test]
fn a_pipe_gets_neither_colours_nor_progress() {
    let dhc = slow();
    let output = dhc
        .command("run", &["--check", "nccom-local"])
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("nccom-local"), "{stdout}");
    assert!(!stdout.contains('\x1b'), "{stdout:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("usually"), "{stderr:?}");
}

#[test]
fn what_hosts_and_tools_say_hides_nothing_by_its_colours() {
    // SGR 8 conceals, 30 and 40 are black on black: the verdict behind the name would not be seen.
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    dhc.check("neuron-count");
    let result = dhc.runs()[0].join("result.json");
    let text = std::fs::read_to_string(&result).unwrap();
    let name = "\"name\": \"ip-10-0-1-7";
    assert!(text.contains(name));
    let text = text.replace(name, &format!("{name}\\u001b[8m\\u001b[30;40m"));
    std::fs::write(&result, text).unwrap();
    let mut judge = Command::new(env!("CARGO_BIN_EXE_dhc"));
    judge.arg("judge").arg(&result);
    let seen = on_a_terminal(&judge);
    assert!(seen.contains("\\u{1b}[8m"), "{seen:?}");
    assert!(seen.contains("\x1b[38;5;10m"), "{seen:?}");
    let steered = ["\x1b[8m", "\x1b[30;40m"].map(|colour| seen.contains(colour));
    assert_eq!(steered, [false, false], "{seen:?}");
    let piped = String::from_utf8(judge.output().unwrap().stdout).unwrap();
    assert!(piped.contains("\\u{1b}[8m"), "{piped:?}");
    assert!(!piped.contains('\x1b'), "{piped:?}");
}

#[test]
fn json_is_alone_on_standard_output_even_on_a_terminal() {
    let dhc = slow();
    let command = dhc.command("run", &["--check", "nccom-local", "--format", "json"]);
    let seen = on_a_terminal(&command);
    let document = &seen[seen.find("{\"schema\"").or(seen.find("{\r\n")).unwrap()..];
    let end = document.rfind('}').unwrap();
    assert!(dhc_thresholds::Report::parse(&document.as_bytes()[..=end]).is_ok());
}

#[test]
fn the_deadline_of_a_run_ends_it_early_and_says_so() {
    let node = FakeNode::trn1_32xlarge().tool("nccom-test").hangs();
    let outcome = Dhc::on(node).run(&[
        "--check",
        "nccom-local",
        "--check",
        "fabric-loopback",
        "--run-deadline",
        "1s",
    ]);
    let ending = |check: &str| outcome.check(check).record.ending.clone();
    assert!(matches!(ending("nccom-local"), Ending::TimedOut { .. }));
    assert_eq!(ending("fabric-loopback"), Ending::Interrupted);
    assert_eq!(outcome.verdict().0, Status::Error);
    assert!(!outcome.report.complete);
}

/// Exit status and output of `dhc` with these arguments.
fn dhc(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(args)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), stdout)
}

#[test]
fn every_check_and_every_fault_class_is_explained() {
    for check in dhc_checks::catalog::CHECKS {
        let spec = check.spec();
        let (exit, text) = dhc(&["explain", spec.name]);
        assert_eq!(exit, Some(0), "{}", spec.name);
        for metric in spec.metrics {
            assert!(
                text.contains(metric.name),
                "{} of {}",
                metric.name,
                spec.name
            );
            let (exit, text) = dhc(&["explain", metric.fault]);
            assert_eq!(exit, Some(0), "{}", metric.fault);
            assert!(text.contains(metric.fault));
        }
    }
    assert_eq!(dhc(&["explain", "gpu.lsot"]).0, Some(64));
}

#[test]
fn shells_and_man_learn_what_dhc_can_do() {
    for shell in ["bash", "zsh", "fish"] {
        let (exit, text) = dhc(&["completions", shell]);
        assert_eq!(exit, Some(0));
        assert!(text.contains("run-deadline"), "{shell}");
    }
    assert!(dhc(&["man"]).1.contains(".SH"));
}

#[test]
fn the_page_for_people_stands_alone_and_says_what_is_wrong() {
    let node = FakeNode::of("p5.48xlarge-link-down")
        .file("/proc/sys/kernel/hostname", "<script>alert(1)</script>\n");
    let dhc = Dhc::on(node);
    let page = dhc.state().parent().unwrap().join("page.html");
    let outcome = dhc.run(&["--check", "nvlink", "--report", page.to_str().unwrap()]);
    assert_eq!(outcome.exit, 2);
    let page = std::fs::read_to_string(page).unwrap();
    for word in ["nvlink.link_down", "gpu3/link6", "drain and reboot"] {
        assert!(page.contains(word), "{word}");
    }
    for foreign in ["<script", "http:", "https:", "src=", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}
