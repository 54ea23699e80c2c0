//! What Slurm is asked for; a script stands in its place and refuses.

mod common;

use common::Dhc;
use dhc_fixtures::FakeNode;

/// What `salloc` was called with, and what dhc said of its refusal.
fn asked(args: &[&str]) -> (String, String) {
    let refuses = "echo 'salloc: error: Requested time limit is invalid' >&2; exit 1";
    let dhc = Dhc::on(FakeNode::plain().tool("salloc").runs(refuses));
    let mut command = dhc.command("run", &["--nodes", "2", "--worker", "/bin/true"]);
    let output = command.args(args).output().expect("dhc starts");
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (dhc.node.calls("salloc").join("\n"), said)
}

#[test]
fn nodes_are_asked_for_as_long_as_the_user_says_or_the_level_takes() {
    // Slurm counts in minutes, and rounds up.
    for (args, minutes) in [
        (&["--level", "cluster", "--time-limit", "30m"][..], 31),
        (&["--level", "cluster"][..], 61),
        (&["--level", "all"][..], 241),
    ] {
        let (call, said) = asked(args);
        assert!(call.contains(&format!("--time={minutes} ")), "{call}");
        assert!(said.contains("Requested time limit is invalid"), "{said}");
    }
}
