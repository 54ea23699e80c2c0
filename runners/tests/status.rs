//! `dhc status`: what the last results on a node say, for people and for node-problem-detector.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it prints"
)]

mod common;

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use common::Dhc;
use common::dead_file_system::DeadFileSystem;
use dhc_fixtures::FakeNode;
use serde_json::Value;

/// What node-problem-detector takes of what a plugin prints, and how long it waits (`docs/custom_plugin_monitor.md`).
const OUTPUT_MAX: usize = 80;
const TIMEOUT: Duration = Duration::from_secs(5);

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Exit status and line of the plugin for a condition.
#[track_caller]
fn plugin(dhc: &Dhc, condition: &str) -> (i32, String) {
    answer(
        dhc.command("status", &["--npd", condition])
            .output()
            .unwrap(),
    )
}

#[track_caller]
fn answer(output: Output) -> (i32, String) {
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.len() <= OUTPUT_MAX, "{} bytes: {line}", line.len());
    assert_eq!(line.matches('\n').count(), 1, "{line:?}");
    let exit = output.status.code().unwrap();
    assert!((0..=2).contains(&exit), "{exit}: {line}");
    (exit, line.trim_end().to_owned())
}

#[test]
fn a_fault_is_a_problem_of_its_own_condition_alone() {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    dhc.run(&["--check", "nvlink,host"]);
    let fault = "gpu3/link6: nvlink.link_down, reboot (and 1 more)";
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy"), (1, fault.to_owned()));
    let host = "no fault found by host".to_owned();
    assert_eq!(plugin(&dhc, "DhcHostUnhealthy"), (0, host));
}

#[test]
fn a_short_run_does_not_take_back_what_a_long_one_found() {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    dhc.run(&["--check", "nvlink"]);
    assert_eq!(dhc.run(&["--check", "gpu-count"]).exit, 0);
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy").0, 1);
    // The same check again, on the mended machine, does.
    let mended = Dhc {
        node: FakeNode::p5_48xlarge(),
        state: dhc.state,
    };
    assert_eq!(mended.run(&["--check", "nvlink"]).exit, 0);
    let healthy = "no fault found by gpu-count, nvlink".to_owned();
    assert_eq!(plugin(&mended, "DhcGpuUnhealthy"), (0, healthy));
}

#[test]
fn a_gpus_fault_in_the_kernels_log_is_the_gpus() {
    let xid = "NVRM: Xid (PCI:0000:b9:00): 79, pid=1234, name=python, GPU has fallen off the bus.";
    let dhc = Dhc::on(FakeNode::p5_48xlarge().logs(xid));
    assert_eq!(dhc.run(&["--check", "host"]).exit, 2);
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy").0, 1);
    assert_eq!(plugin(&dhc, "DhcHostUnhealthy").0, 0);
}

#[test]
fn what_nobody_looked_at_is_unknown_and_never_healthy() {
    let dhc = Dhc::on(FakeNode::p5_48xlarge().tool("dcgmi").missing());
    let none = "dhc has left no result on this node yet".to_owned();
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy"), (2, none));
    dhc.run(&["--check", "host"]);
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy").0, 2);
    dhc.run(&["--check", "dcgm-diag"]);
    let (exit, line) = plugin(&dhc, "DhcGpuUnhealthy");
    assert_eq!(exit, 2);
    assert!(line.starts_with("dcgm-diag: "), "{line}");
    assert_eq!(plugin(&dhc, "DhcFabricUnhealthy").0, 2);
}

#[test]
fn hardware_that_the_type_does_not_have_is_no_problem() {
    let dhc = Dhc::on(FakeNode::trn1_32xlarge());
    dhc.run(&["--check", "host"]);
    let none = "trn1.32xlarge has no NVIDIA GPUs".to_owned();
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy"), (0, none));
    assert_eq!(plugin(&dhc, "DhcNeuronUnhealthy").0, 2);
}

#[test]
fn an_expired_result_and_one_of_another_boot_are_unknown() {
    let old = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    old.run(&["--check", "nvlink", "--valid-for", "1ms"]);
    let (exit, line) = plugin(&old, "DhcGpuUnhealthy");
    assert_eq!(exit, 2);
    assert!(line.starts_with("the result expired at 20"), "{line}");

    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    dhc.run(&["--check", "nvlink"]);
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy").0, 0);
    let rebooted = Dhc {
        node: FakeNode::p5_48xlarge().file(BOOT_ID, "00000000-0000-4000-8000-000000000000\n"),
        state: dhc.state,
    };
    let before = "the last result is from before this boot".to_owned();
    assert_eq!(plugin(&rebooted, "DhcGpuUnhealthy"), (2, before));
    let seen = rebooted.command("status", &[]).output().unwrap();
    assert_eq!(seen.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&seen.stderr).contains("before this boot"));
}

#[test]
fn an_expired_result_hides_none_that_still_holds() {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    assert_eq!(dhc.run(&["--check", "nvlink"]).exit, 2);
    for _ in 0..40 {
        dhc.run(&["--check", "gpu-count", "--valid-for", "1ms"]);
    }
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy").0, 1);
}

#[test]
fn a_result_that_cannot_be_read_hides_no_other() {
    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    dhc.run(&["--check", "nvlink"]);
    let result = dhc.runs()[0].join("result.json");
    for broken in [
        "",
        "{\"schema\":\"dhc.report/1\"",
        "{\"schema\":\"dhc.report/2\"}",
        "\u{1b}[2J",
    ] {
        std::fs::write(&result, broken).unwrap();
        let (exit, line) = plugin(&dhc, "DhcGpuUnhealthy");
        assert_eq!(exit, 2, "{line}");
        assert!(line.starts_with("cannot read `"), "{line}");
    }
    // A run that is under way has none yet, and says nothing.
    std::fs::remove_file(&result).unwrap();
    assert_eq!(plugin(&dhc, "DhcGpuUnhealthy").0, 2);
}

#[test]
fn a_disk_that_hangs_is_unknown_within_the_plugins_time() {
    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    std::fs::create_dir_all(dhc.state()).unwrap();
    let dead = DeadFileSystem::on(&dhc.state());
    for args in [&["--npd", "DhcGpuUnhealthy"][..], &[]] {
        let begun = Instant::now();
        let output = dhc.command("status", args).output().unwrap();
        // The promise to node-problem-detector, which kills what takes longer.
        assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
        if args.is_empty() {
            assert_eq!(output.status.code(), Some(4));
            assert!(String::from_utf8_lossy(&output.stderr).contains("within 4 s"));
        } else {
            let (exit, line) = answer(output);
            assert_eq!(exit, 2);
            assert!(line.contains("within 4 s"), "{line}");
        }
    }
    drop(dead);
}

#[test]
fn people_see_the_last_result_and_how_old_it_is() {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    let nothing = dhc.command("status", &[]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("`dhc run` leaves one"));
    dhc.run(&["--check", "nvlink"]);
    let seen = dhc.command("status", &[]).output().unwrap();
    assert_eq!(seen.status.code(), Some(2));
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(text.contains("FAIL, suggested action: reboot"), "{text}");
    let said = String::from_utf8_lossy(&seen.stderr).into_owned();
    assert!(said.contains("ago and holds until 20"), "{said}");
    let json = dhc
        .command("status", &["--format", "json"])
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(document["status"], "fail");
}

/// The plugins as node-problem-detector would start them, from the file that is shipped for it.
#[test]
fn the_shipped_configuration_asks_for_conditions_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/node-problem-detector/dhc.json");
    let config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(config["plugin"], "custom");
    assert_eq!(config["pluginConfig"]["max_output_length"], OUTPUT_MAX);
    let conditions: Vec<&str> = config["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|condition| condition["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        conditions,
        [
            "DhcGpuUnhealthy",
            "DhcNeuronUnhealthy",
            "DhcEfaUnhealthy",
            "DhcFabricUnhealthy",
            "DhcHostUnhealthy"
        ]
    );
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    dhc.run(&["--check", "nvlink,host"]);
    let rules = config["rules"].as_array().unwrap();
    assert_eq!(rules.len(), conditions.len());
    for (rule, condition) in rules.iter().zip(conditions) {
        assert_eq!(
            (&rule["type"], &rule["timeout"]),
            (&"permanent".into(), &"5s".into())
        );
        assert_eq!(rule["condition"], condition);
        let args: Vec<&str> = rule["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap())
            .collect();
        let (exit, line) = answer(dhc.command(args[0], &args[1..]).output().unwrap());
        let expected = match condition {
            "DhcGpuUnhealthy" => 1,
            "DhcNeuronUnhealthy" | "DhcHostUnhealthy" => 0,
            _ => 2,
        };
        assert_eq!(exit, expected, "{condition}: {line}");
    }
}
