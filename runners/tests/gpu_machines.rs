//! The GPU checks of the built `dhc` on every kind of machine, healthy and with each fault that a machine file describes.

mod common;

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Status};

const CHECKS: [&str; 3] = ["gpu-count", "nvlink", "gpu-memory"];

fn look(node: FakeNode) -> Outcome {
    Dhc::on(node).run(&["--check", "gpu-count,nvlink,gpu-memory"])
}

/// All findings that are no pass, as `status check fault subject`.
fn complaints(outcome: &Outcome) -> Vec<String> {
    let of_check = |check: &&str| {
        let report = outcome.check(check);
        let findings = report.findings.iter();
        let bad = findings.filter(|finding| finding.status != Status::Pass);
        bad.map(|finding| {
            let fault = finding.fault.as_deref().unwrap_or("-");
            format!("{} {check} {fault} {}", finding.status, finding.subject)
        })
        .collect::<Vec<_>>()
    };
    CHECKS.iter().flat_map(of_check).collect()
}

#[track_caller]
fn assert_complaints(machine: &str, expected: &[&str]) {
    let outcome = look(FakeNode::of(machine));
    assert_eq!(complaints(&outcome), expected, "{machine}");
}

#[test]
fn healthy_machines_of_every_kind_pass() {
    for (machine, gpus, links) in [
        ("p4d.24xlarge", 8, 12),
        ("p5.48xlarge", 8, 18),
        ("p5en.48xlarge", 8, 18),
        ("p6-b200.48xlarge", 8, 18),
        ("p6e-gb200.36xlarge", 4, 18),
        ("gb200-nvl72", 4, 18),
        ("dgx-h100", 8, 18),
    ] {
        let outcome = look(FakeNode::of(machine));
        assert_eq!(complaints(&outcome), [] as [&str; 0], "{machine}");
        let measured = |check: &str, metric: &str| {
            let measurements = &outcome.check(check).record.measurements;
            let of = |one: &&dhc_thresholds::Measurement| one.metric == metric;
            measurements.iter().filter(of).count()
        };
        assert_eq!(measured("gpu-count", "gpu.state"), gpus, "{machine}");
        assert_eq!(
            measured("nvlink", "nvlink.link.state"),
            gpus * links,
            "{machine}"
        );
        assert_eq!(measured("nvlink", "nvlink.link.errors"), gpus, "{machine}");
        assert_eq!(
            measured("gpu-memory", "gpu.remap.pending"),
            gpus,
            "{machine}"
        );
    }
}

#[test]
fn machines_without_nvlink_skip_its_check_and_pass_the_others() {
    for machine in ["g6e.48xlarge", "g4dn.12xlarge", "p5.4xlarge"] {
        let outcome = look(FakeNode::of(machine));
        assert_eq!(complaints(&outcome), [] as [&str; 0], "{machine}");
        assert!(outcome.check("nvlink").skipped().is_some(), "{machine}");
        assert_eq!(
            outcome.check("gpu-memory").status,
            Status::Pass,
            "{machine}"
        );
    }
}

#[test]
fn one_link_down_is_named() {
    assert_complaints(
        "p5.48xlarge-link-down",
        &[
            "fail nvlink nvlink.link_down gpu3/link6",
            "fail nvlink nvlink.link_down gpu3",
        ],
    );
}

#[test]
fn links_that_lead_nowhere_accuse_no_board_of_an_unknown_type() {
    let bad = complaints(&look(FakeNode::of("h100-nvl")));
    assert!(
        bad.contains(&"warn nvlink nvlink.link_down gpu1/link17".to_owned()),
        "{bad:?}"
    );
    assert!(
        bad.iter().all(|complaint| !complaint.starts_with("fail")),
        "{bad:?}"
    );
}

#[test]
fn a_gpu_that_does_not_answer_is_named_with_its_address() {
    for (machine, fault, word) in [
        ("p5.48xlarge-gpu-lost", "gpu.lost", "lost"),
        ("p5.48xlarge-gpu-lost-later", "gpu.lost", "lost"),
        (
            "p5.48xlarge-gpu-needs-reset",
            "gpu.needs_reset",
            "needs_reset",
        ),
        (
            "p5.48xlarge-gpu-without-interrupt",
            "gpu.lost",
            "no_interrupt",
        ),
    ] {
        let outcome = look(FakeNode::of(machine));
        let bad = complaints(&outcome);
        assert!(
            bad.contains(&format!("fail gpu-count {fault} gpu3")),
            "{machine}: {bad:?}"
        );
        assert!(
            bad.contains(&"fail gpu-count gpu.missing node".to_owned()),
            "{machine}: {bad:?}"
        );
        let record = &outcome.check("gpu-count").record;
        let state = record
            .measurements
            .iter()
            .find(|one| one.metric == "gpu.state" && one.subject.name == "gpu3");
        assert_eq!(
            state.map(|one| one.value.to_string()).as_deref(),
            Some(word)
        );
        let device = record
            .devices
            .iter()
            .find(|device| device.subject.name == "gpu3");
        let bdf = device.and_then(|device| device.identity.get("bdf"));
        assert_eq!(bdf.map(String::as_str), Some("0000:86:00.0"), "{machine}");
        for check in ["nvlink", "gpu-memory"] {
            assert_eq!(
                outcome.check(check).status,
                Status::Unknown,
                "{machine}: {check}"
            );
        }
    }
}

#[test]
fn seven_gpus_are_not_eight() {
    assert_complaints(
        "p5.48xlarge-seven-gpus",
        &[
            "fail gpu-count gpu.missing node",
            "unknown nvlink - node",
            "unknown gpu-memory - node",
            "unknown gpu-memory - node",
        ],
    );
}

#[test]
fn a_gpu_that_the_driver_did_not_start_is_named_by_its_address() {
    let outcome = look(FakeNode::p5_48xlarge().nvml_with("missing = [5]"));
    let bad = complaints(&outcome);
    assert!(
        bad.contains(&"fail gpu-count gpu.lost 0000:a8:00.0".to_owned()),
        "{bad:?}"
    );
    assert!(
        bad.contains(&"fail gpu-count gpu.missing node".to_owned()),
        "{bad:?}"
    );
}

#[test]
fn memory_faults_ask_for_what_clears_them() {
    assert_complaints(
        "p5.48xlarge-ecc-volatile",
        &[
            "fail gpu-count gpu.needs_reset gpu2",
            "fail gpu-memory gpu.memory.uncorrectable_now gpu2",
            "warn gpu-memory gpu.memory.uncorrectable gpu2",
            "fail gpu-memory gpu.memory.remap_pending gpu2",
        ],
    );
    assert_complaints(
        "p5.48xlarge-ecc-old",
        &["warn gpu-memory gpu.memory.uncorrectable gpu2"],
    );
    assert_complaints(
        "p5.48xlarge-sram-threshold",
        &[
            "warn gpu-memory gpu.memory.uncorrectable gpu2",
            "fail gpu-memory gpu.memory.sram_threshold gpu2",
        ],
    );
    assert_complaints(
        "p5.48xlarge-remap-pending",
        &["fail gpu-memory gpu.memory.remap_pending gpu2"],
    );
    assert_complaints(
        "p5.48xlarge-remap-failed",
        &[
            "fail gpu-memory gpu.memory.remap_failed gpu2",
            "warn gpu-memory gpu.memory.worn gpu2",
        ],
    );
    assert_complaints("p5.48xlarge-ecc-off", &["warn gpu-memory gpu.mode gpu2"]);
}

#[test]
fn a_warning_never_tells_anybody_to_drain_or_replace() {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-ecc-old"));
    let outcome = dhc.check("gpu-memory");
    assert_eq!(outcome.verdict(), (Status::Warn, Action::Investigate));
    let [fault] = outcome.report.nodes[0].faults.as_slice() else {
        panic!("{:?}", outcome.report.nodes[0].faults);
    };
    assert_eq!(
        fault.advice,
        "nothing to do to the node yet; run gpu-memory again and watch whether gpu.ecc.aggregate_uncorrected of gpu2 gets worse"
    );
    let printed = dhc.command("run", &["--check", "gpu-memory"]).output();
    let printed = String::from_utf8(printed.unwrap().stdout).unwrap();
    assert!(printed.contains(&fault.advice), "{printed}");
    assert!(!printed.contains("drain"), "{printed}");
}

#[test]
fn a_repair_that_waits_for_a_reset_is_found() {
    let node = FakeNode::p5_48xlarge()
        .gpu(6)
        .with("repair.channel_pending = true");
    let bad = complaints(&look(node));
    assert_eq!(bad, ["fail gpu-memory gpu.needs_reset gpu6"]);
}

#[test]
fn retired_pages_count_where_pages_are_retired() {
    let pages = |count: u32| {
        let list: Vec<String> = (0..count).map(|page| (page * 4096).to_string()).collect();
        let toml = format!("retired_pages.double_bit = [{}]", list.join(", "));
        complaints(&look(FakeNode::of("g4dn.12xlarge").gpu(1).with(&toml)))
    };
    assert_eq!(pages(3), [] as [&str; 0]);
    assert_eq!(pages(60), ["fail gpu-memory gpu.memory.worn gpu1"]);
    let waiting = FakeNode::of("g4dn.12xlarge")
        .gpu(1)
        .with("retired_pages.pending = true");
    let bad = complaints(&look(waiting));
    assert_eq!(bad, ["fail gpu-memory gpu.memory.remap_pending gpu1"]);
}

#[test]
fn a_divided_gpu_is_a_mode_and_accuses_no_link() {
    assert_complaints(
        "p5.48xlarge-mig",
        &[
            "warn gpu-count gpu.mode gpu0",
            "unknown nvlink - gpu0",
            "unknown nvlink - node",
            "unknown gpu-memory - gpu0",
            "unknown gpu-memory - node",
        ],
    );
}

#[test]
fn a_virtual_gpu_is_told_apart() {
    let outcome = look(FakeNode::of("vgpu"));
    let bad = complaints(&outcome);
    assert!(
        bad.contains(&"warn gpu-count gpu.mode gpu0".to_owned()),
        "{bad:?}"
    );
    assert!(
        bad.iter().all(|complaint| !complaint.starts_with("fail")),
        "{bad:?}"
    );
}

#[test]
fn a_degraded_fabric_is_the_rack_s_and_says_what_is_wrong() {
    assert_complaints(
        "gb200-nvl72-fabric-degraded",
        &["fail nvlink nvlink.fabric gpu2"],
    );
    let outcome = look(FakeNode::of("gb200-nvl72-fabric-degraded"));
    let finding = &outcome.findings("nvlink", Status::Fail)[0];
    assert!(
        finding.message.contains("degraded bandwidth"),
        "{}",
        finding.message
    );
    assert_complaints(
        "gb200-nvl72-fabric-not-joined",
        &[
            "fail nvlink nvlink.fabric gpu1",
            "fail nvlink nvlink.fabric gpu3",
        ],
    );
    assert_complaints(
        "gb200-nvl72-two-cliques",
        &["fail nvlink nvlink.fabric node"],
    );
}

#[test]
fn fabric_manager_that_does_not_run_is_one_fault_of_all_gpus() {
    let bad = complaints(&look(FakeNode::of("p5.48xlarge-fabric-manager-down")));
    let expected: Vec<String> = (0..8)
        .map(|gpu| format!("fail nvlink nvlink.fabric gpu{gpu}"))
        .collect();
    assert_eq!(bad, expected);
}

#[test]
fn errors_of_a_blackwell_s_link_are_read_from_its_fields() {
    let node = FakeNode::of("p6-b200.48xlarge")
        .nvlink(7, 17)
        .counts("effective", 4);
    let bad = complaints(&look(node));
    assert_eq!(bad, ["warn nvlink nvlink.errors gpu7/link17/effective"]);
}

#[test]
fn a_driver_that_cannot_be_used_accuses_no_gpu() {
    for (machine, words) in [
        ("p5.48xlarge-driver-not-loaded", "modprobe nvidia"),
        ("p5.48xlarge-driver-mismatch", "reboot after an update"),
    ] {
        let outcome = look(FakeNode::of(machine));
        for check in CHECKS {
            let Ending::Failed { error } = &outcome.check(check).record.ending else {
                panic!("{machine}: {check} looked")
            };
            assert!(error.contains(words), "{error}");
            assert_eq!(outcome.check(check).status, Status::Error);
        }
    }
}

#[test]
fn an_unreadable_value_is_unknown_and_never_fine() {
    for (check, call) in [
        ("gpu-count", "nvmlDeviceGetFieldValues"),
        ("gpu-count", "nvmlDeviceGetMigMode"),
        ("nvlink", "nvmlDeviceGetNvLinkState"),
        ("nvlink", "nvmlDeviceGetGpuFabricInfoV"),
        ("nvlink", "nvmlDeviceGetNvLinkErrorCounter"),
        ("gpu-memory", "nvmlDeviceGetEccMode"),
        ("gpu-memory", "nvmlDeviceGetTotalEccErrors"),
        ("gpu-memory", "nvmlDeviceGetSramEccErrorStatus"),
        ("gpu-memory", "nvmlDeviceGetFieldValues"),
        ("gpu-memory", "nvmlDeviceGetRepairStatus"),
    ] {
        let node = FakeNode::p5_48xlarge().gpu(4).answers(call, "UNKNOWN");
        let outcome = Dhc::on(node).check(check);
        assert_eq!(outcome.check(check).status, Status::Unknown, "{call}");
        let bad = outcome.findings(check, Status::Unknown);
        assert!(
            bad.iter()
                .any(|finding| finding.subject.name.starts_with("gpu4")),
            "{call}"
        );
    }
}

#[test]
fn a_call_that_never_returns_is_named_and_what_was_seen_is_kept() {
    for (check, call) in [
        ("gpu-count", "nvmlDeviceGetUUID"),
        ("nvlink", "nvmlDeviceGetNvLinkState"),
        ("gpu-memory", "nvmlDeviceGetEccMode"),
    ] {
        let node = FakeNode::p5_48xlarge().gpu(6).answers(call, "hangs");
        let outcome = Dhc::on(node).run(&["--check", check, "--deadline", "2s"]);
        let record = &outcome.check(check).record;
        assert!(matches!(record.ending, Ending::TimedOut { .. }), "{check}");
        let said = &outcome.findings(check, Status::Error)[0].message;
        assert!(
            said.contains("asking gpu6") && said.contains("Xid 119") && said.contains("--deadline"),
            "{check}: {said}"
        );
        let seen = |name: &str| {
            record
                .measurements
                .iter()
                .any(|one| one.subject.device() == name)
        };
        assert!(seen("gpu5"), "{check}: what was seen before is kept");
        assert!(!seen("gpu7"), "{check}");
        assert_eq!(outcome.check(check).status, Status::Error);
    }
    let node = FakeNode::p5_48xlarge().nvml_with("calls = { nvmlInit_v2 = \"hangs\" }");
    let outcome = Dhc::on(node).run(&["--check", "nvlink", "--deadline", "1s"]);
    let said = &outcome.findings("nvlink", Status::Error)[0].message;
    assert!(said.contains("starting NVML"), "{said}");
}

#[test]
fn a_check_that_the_run_s_own_deadline_ended_says_so() {
    let node = FakeNode::p5_48xlarge()
        .gpu(6)
        .answers("nvmlDeviceGetUUID", "hangs");
    let outcome = Dhc::on(node).run(&["--check", "gpu-count", "--run-deadline", "2s"]);
    let said = &outcome.findings("gpu-count", Status::Error)[0].message;
    assert!(
        said.contains("asking gpu6") && said.contains("a longer --run-deadline"),
        "{said}"
    );
    assert!(!said.contains("its deadline"), "{said}");
}

#[test]
fn a_link_that_leads_elsewhere_than_the_type_s_is_found() {
    let with = |toml: &str| complaints(&look(FakeNode::p5_48xlarge().gpu(2).with(toml)));
    // On this board every link leads to a switch.
    let led_astray = with("nvlink.remote = \"gpu\"");
    assert_eq!(led_astray.len(), 18, "{led_astray:?}");
    assert_eq!(led_astray[0], "fail nvlink nvlink.link_down gpu2/link0");
    // A guest does not always see what its links lead to.
    assert_eq!(with("nvlink.remote = \"unknown\""), [] as [&str; 0]);
    // NVML's number 5 is NVLink 3.1, older than any H100's.
    let old = with("nvlink.version = 5");
    assert_eq!(old.len(), 18, "{old:?}");
    assert!(old[0].starts_with("warn nvlink"), "{old:?}");
}

#[test]
fn an_nvl72_that_is_in_no_fabric_does_not_pass() {
    let look = |gpus: std::ops::Range<u32>, toml: &str| {
        let node = FakeNode::of("p6e-gb200.36xlarge");
        let node = gpus.fold(node, |node, gpu| node.gpu(gpu).with(toml));
        complaints(&look(node))
    };
    let alone = look(0..4, "fabric.state = 0");
    let expected: Vec<String> = (0..4)
        .map(|gpu| format!("fail nvlink nvlink.fabric gpu{gpu}"))
        .collect();
    assert_eq!(alone, expected);
    let silent = "calls = { nvmlDeviceGetGpuFabricInfoV = \"NOT_SUPPORTED\" }";
    assert_eq!(look(0..4, silent), ["unknown nvlink - node"]);
    assert_eq!(
        look(3..4, silent),
        ["unknown nvlink - gpu3", "unknown nvlink - node"]
    );
}

/// What one GPU of many does not tell, or answers with an error, by check and call, and the findings of this check.
#[test]
fn what_one_gpu_does_not_tell_and_the_others_do_is_unknown() {
    let remaps = "unknown gpu-memory - node";
    let links = |count: usize| (0..count).map(|link| format!("gpu3/link{link}"));
    let of_links: Vec<String> = links(18)
        .map(|link| format!("unknown nvlink - {link}"))
        .collect();
    let of_links: Vec<&str> = of_links.iter().map(String::as_str).collect();
    let gpu3 = |check: &str| format!("unknown {check} - gpu3");
    let [count, links, memory] = CHECKS.map(gpu3);
    let counters =
        ["crc_data", "crc_flit", "recovery", "replay"].map(|counter| format!("{links}/{counter}"));
    let counters: Vec<&str> = counters.iter().map(String::as_str).collect();
    for (call, answer, expected) in [
        ("nvmlDeviceGetMigMode", "NOT_SUPPORTED", &[&*count][..]),
        (
            "nvmlDeviceGetVirtualizationMode",
            "NOT_SUPPORTED",
            &[&count],
        ),
        ("nvmlDeviceGetMemoryInfo_v2", "UNKNOWN", &[&count]),
        ("nvmlDeviceGetEccMode", "NOT_SUPPORTED", &[&memory]),
        (
            "nvmlDeviceGetTotalEccErrors",
            "NOT_SUPPORTED",
            &[&memory, &memory],
        ),
        (
            "nvmlDeviceGetSramEccErrorStatus",
            "NOT_SUPPORTED",
            &[&memory],
        ),
        ("nvmlDeviceGetRepairStatus", "NOT_SUPPORTED", &[&memory]),
        ("nvmlDeviceGetGpuFabricInfoV", "NOT_SUPPORTED", &[&links]),
        (
            "nvmlDeviceGetNvLinkErrorCounter",
            "NOT_SUPPORTED",
            &counters,
        ),
        ("nvmlDeviceGetNvLinkVersion", "NOT_SUPPORTED", &of_links),
        ("nvmlDeviceGetNvLinkVersion", "UNKNOWN", &of_links),
        ("nvmlDeviceGetNvLinkRemoteDeviceType", "UNKNOWN", &of_links),
        // Asking for a reset, the speed of links, and of remaps those that are pending or have failed.
        (
            "nvmlDeviceGetFieldValues",
            "NOT_SUPPORTED",
            &[&count, &links, &memory, &memory, remaps],
        ),
    ] {
        let node = FakeNode::p5_48xlarge().gpu(3).answers(call, answer);
        let outcome = look(node);
        assert_eq!(complaints(&outcome), expected, "{call} {answer}");
    }
}

#[test]
fn what_no_gpu_of_a_model_tells_is_left_out() {
    let silent = "calls = { nvmlDeviceGetSramEccErrorStatus = \"NOT_SUPPORTED\", \
                  nvmlDeviceGetNvLinkErrorCounter = \"NOT_SUPPORTED\" }";
    let all = |node| (0..8).fold(node, |node: FakeNode, gpu| node.gpu(gpu).with(silent));
    assert_eq!(complaints(&look(all(FakeNode::p5_48xlarge()))), [""; 0]);
    // Seven of another model tell what this one does not have.
    let other = format!("name = \"NVIDIA H100 PCIe\"\n{silent}");
    let mixed = FakeNode::p5_48xlarge().gpu(3).with(&other);
    assert_eq!(complaints(&look(mixed)), [""; 0]);
}

#[test]
fn a_link_that_does_not_tell_what_the_others_do_is_unknown() {
    let silent = "nvlink.untold = { 6 = [\"replay\"] }";
    let node = FakeNode::p5_48xlarge().gpu(3).with(silent);
    assert_eq!(
        complaints(&look(node)),
        ["unknown nvlink - gpu3/link6/replay"]
    );
}
