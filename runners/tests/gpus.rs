//! GPU checks of the built program on simulated machines, through the real FFI of nvml-wrapper, judged by the instance
//! type's own table.

mod common;

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Status};

fn quick(node: FakeNode) -> Outcome {
    Dhc::on(node).run(&["--tag", "gpu", "--skip", "long"])
}

/// The one thing that is wrong with a machine: check, fault class, subject.
#[track_caller]
fn assert_only(outcome: &Outcome, status: Status, check: &str, fault: &str, subject: &str) {
    let wanted = (
        check.to_owned(),
        status,
        fault.to_owned(),
        subject.to_owned(),
    );
    assert_eq!(outcome.complaints(), [wanted]);
}

#[test]
fn a_healthy_p5_passes_and_every_gpu_is_identified() {
    let outcome = quick(FakeNode::p5_48xlarge());
    assert_eq!(outcome.complaints(), []);
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (0, (Status::Pass, Action::None))
    );
    let node = &outcome.report.nodes[0];
    assert_eq!(node.identity.instance_type.as_deref(), Some("p5.48xlarge"));
    assert_eq!(
        node.identity.instance_id.as_deref(),
        Some("i-0a1b2c3d4e5f60718")
    );
    let gpus: Vec<_> = node
        .devices
        .iter()
        .filter(|device| device.subject.name.starts_with("gpu"))
        .collect();
    assert_eq!(gpus.len(), 8);
    assert!(gpus.iter().all(|gpu| {
        ["uuid", "serial", "bdf", "model"]
            .iter()
            .all(|key| gpu.identity.contains_key(*key))
    }));
    let links = outcome.findings("nvlink", Status::Pass);
    assert_eq!(
        links
            .iter()
            .filter(|finding| finding.metric == "nvlink.link.state")
            .count(),
        144
    );
}

#[test]
fn one_link_down_out_of_144_is_named() {
    let outcome = quick(FakeNode::p5_48xlarge().nvlink(3, 6).down());
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (2, (Status::Fail, Action::Reboot))
    );
    let down = |subject: &str| {
        (
            "nvlink".to_owned(),
            Status::Fail,
            "nvlink.link_down".to_owned(),
            subject.to_owned(),
        )
    };
    assert_eq!(outcome.complaints(), [down("gpu3/link6"), down("gpu3")]);
    let fault = &outcome.report.nodes[0].faults[0];
    assert!(
        fault.device.contains_key("uuid"),
        "a fault carries the identity of its device: {:?}",
        fault.device
    );
}

#[test]
fn a_gpu_off_the_bus_is_named_and_counted_out() {
    for node in [
        FakeNode::p5_48xlarge().gpu(5).falls_off_the_bus(),
        FakeNode::p5_48xlarge().gpu(5).is_lost_after_its_handle(),
    ] {
        let outcome = quick(node);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (2, (Status::Fail, Action::Reboot))
        );
        let lost = outcome.findings("gpu-count", Status::Fail);
        let named: Vec<_> = lost
            .iter()
            .map(|finding| (finding.metric.as_str(), finding.subject.name.as_str()))
            .collect();
        assert_eq!(named, [("gpu.state", "gpu5"), ("gpu.count", "node")]);
        let devices = &outcome.check("gpu-count").record.devices;
        let device = devices.iter().find(|one| one.subject.name == "gpu5");
        let bdf = device.and_then(|device| device.identity.get("bdf"));
        assert_eq!(bdf.map(String::as_str), Some("0000:a8:00.0"));
    }
}

#[test]
fn a_gpu_that_nvml_does_not_know_is_counted_out() {
    let outcome = quick(FakeNode::p5_48xlarge().gpu(7).missing());
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Reboot));
    let count = outcome.findings("gpu-count", Status::Fail);
    assert!(
        count.iter().any(|finding| finding.metric == "gpu.count"
            && finding.fault.as_deref() == Some("gpu.missing"))
    );
}

#[test]
fn gpus_that_may_not_be_asked_here_are_not_lost() {
    let p5 = FakeNode::p5_48xlarge;
    for (node, why) in [
        (
            p5().gpu(3)
                .answers("nvmlDeviceGetHandleByIndex_v2", "NO_PERMISSION"),
            "device cgroup hides it; run dhc where all GPUs are allowed (on Slurm: --exclusive --gres=gpu:8",
        ),
        (p5().gpu(3).is_given_away(), "vfio-pci"),
    ] {
        let outcome = Dhc::on(node).run(&["--check", "gpu-count"]);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (3, (Status::Unknown, Action::None)),
            "{:?}",
            outcome.complaints()
        );
        let unknown = outcome.findings("gpu-count", Status::Unknown);
        let says = |metric: &str, what: &str| {
            let found = unknown.iter().find(|finding| finding.metric == metric);
            found.is_some_and(|finding| finding.message.contains(what))
        };
        assert!(says("gpu.state", why), "{unknown:?}");
        assert!(says("gpu.count", "7 GPUs answer"), "{unknown:?}");
    }
}

#[test]
fn gpus_that_are_given_to_other_containers_are_not_lost() {
    const IN_PROC: &str = "/proc/driver/nvidia/gpus/0000:b9:00.0/information";
    let p5 = FakeNode::p5_48xlarge;
    let half = |is_cdi: bool| {
        let others = 4..8;
        others.fold(p5(), |node, gpu| {
            node.gpu(gpu).is_in_another_container(is_cdi)
        })
    };
    let left_out = "Device Minor: \t 6\nGPU Excluded:\t Yes\n";
    let not_started = || p5().gpu(6).does_not_start();
    for (node, others, why) in [
        (half(false), 4, "outside of the container"),
        (half(true), 4, "outside of the container"),
        (
            not_started().file(IN_PROC, left_out),
            1,
            "NVreg_ExcludedGpus",
        ),
        (not_started().unreadable(IN_PROC), 1, "is not known"),
        (not_started().file(IN_PROC, "Model: x\n"), 1, "device file"),
        (
            not_started().without("/proc/driver/nvidia/gpus"),
            1,
            "is not known",
        ),
    ] {
        let outcome = quick(node);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (3, (Status::Unknown, Action::None)),
            "{why}: {:?}",
            outcome.complaints()
        );
        let unknown = outcome.findings("gpu-count", Status::Unknown);
        let states = unknown
            .iter()
            .filter(|finding| finding.metric == "gpu.state" && finding.message.contains(why));
        assert_eq!(states.count(), others, "{unknown:?}");
    }
}

#[test]
fn a_gpu_that_the_driver_did_not_start_is_lost() {
    let not_started = || FakeNode::p5_48xlarge().gpu(6).does_not_start();
    let not_taken = || not_started().without("/sys/bus/pci/devices/0000:b9:00.0/driver");
    let in_container = not_started().gpu(7).is_in_another_container(false);
    for node in [not_started(), not_taken(), in_container] {
        let outcome = Dhc::on(node).check("gpu-count");
        assert_eq!(outcome.verdict(), (Status::Fail, Action::Reboot));
        let failed = outcome.findings("gpu-count", Status::Fail);
        let lost = |finding: &&dhc_thresholds::Finding| {
            finding.fault.as_deref() == Some("gpu.lost") && finding.subject.name == "0000:b9:00.0"
        };
        assert!(failed.into_iter().any(|finding| lost(&finding)));
    }
}

#[test]
fn a_gpu_that_fell_off_the_bus_in_a_container_has_its_address() {
    let node = FakeNode::p5_48xlarge().gpu(7).is_in_another_container(true);
    let outcome = Dhc::on(node.gpu(5).falls_off_the_bus()).check("gpu-count");
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Reboot));
    let devices = &outcome.check("gpu-count").record.devices;
    let device = devices.iter().find(|one| {
        one.identity
            .get("bdf")
            .is_some_and(|bdf| bdf == "0000:a8:00.0")
    });
    assert!(
        device.is_some_and(|device| device.subject.name == "gpu5"),
        "{devices:?}"
    );
}

#[test]
fn a_part_of_a_gpu_on_the_bus_is_no_gpu_that_is_lost() {
    let function = FakeNode::p5_48xlarge().pci("0000:53:00.0");
    let outcome =
        Dhc::on(function.has_virtual_function("0000:53:00.4")).run(&["--check", "gpu-count"]);
    assert_eq!(outcome.verdict(), (Status::Pass, Action::None));
}

#[test]
fn links_of_a_divided_gpu_that_read_inactive_are_unknown() {
    let mut node = FakeNode::of("p5.48xlarge-mig");
    for link in 0..18 {
        node = node.nvlink(0, link).down();
    }
    let node = node.gpu(0).with("nvlink.shown_when_divided = true");
    let outcome = Dhc::on(node).run(&["--check", "nvlink"]);
    assert_eq!(outcome.verdict(), (Status::Unknown, Action::None));
}

#[test]
fn memory_errors_ask_for_what_clears_them() {
    let with = |toml: &str| quick(FakeNode::p5_48xlarge().gpu(2).with(toml));
    let ecc = with("ecc.volatile.dram_uncorrected = 1");
    assert_only(
        &ecc,
        Status::Fail,
        "gpu-memory",
        "gpu.memory.uncorrectable_now",
        "gpu2",
    );
    assert_eq!(ecc.verdict().1, Action::Reset);
    let sram = with("ecc.sram_threshold_exceeded = true");
    assert_only(
        &sram,
        Status::Fail,
        "gpu-memory",
        "gpu.memory.sram_threshold",
        "gpu2",
    );
    assert_eq!(sram.verdict().1, Action::Replace);
    let pending = with("remapped_rows.pending = true");
    assert_only(
        &pending,
        Status::Fail,
        "gpu-memory",
        "gpu.memory.remap_pending",
        "gpu2",
    );
    assert_eq!(pending.verdict().1, Action::Reboot);
    let failed = with("remapped_rows.failed = true");
    assert_only(
        &failed,
        Status::Fail,
        "gpu-memory",
        "gpu.memory.remap_failed",
        "gpu2",
    );
    assert_eq!(failed.verdict().1, Action::Replace);
}

#[test]
fn what_the_driver_asks_for_is_passed_on() {
    let outcome = quick(FakeNode::p5_48xlarge().gpu(1).with("recovery_action = 2"));
    assert_only(
        &outcome,
        Status::Fail,
        "gpu-count",
        "gpu.needs_reboot",
        "gpu1",
    );
    let outcome = quick(FakeNode::p5_48xlarge().gpu(1).with("recovery_action = 99"));
    assert_only(&outcome, Status::Unknown, "gpu-count", "", "gpu1");
}

#[test]
fn link_errors_are_worth_watching_and_no_more() {
    let outcome = quick(FakeNode::p5_48xlarge().nvlink(0, 17).counts("replay", 12));
    assert_only(
        &outcome,
        Status::Warn,
        "nvlink",
        "nvlink.errors",
        "gpu0/link17/replay",
    );
    assert_eq!(
        (outcome.exit, outcome.verdict().1),
        (1, Action::Investigate)
    );
}

#[test]
fn a_fabric_that_is_not_complete_accuses_no_gpu() {
    let outcome = quick(FakeNode::p5_48xlarge().gpu(4).with("fabric.state = 2"));
    assert_only(&outcome, Status::Fail, "nvlink", "nvlink.fabric", "gpu4");
    assert_eq!(outcome.verdict().1, Action::Investigate);
}

#[test]
fn a_missing_driver_is_an_error_and_never_a_bad_gpu() {
    let outcome = quick(FakeNode::p5_48xlarge().without_nvml());
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (4, (Status::Error, Action::Retry))
    );
    for check in ["gpu-count", "nvlink", "gpu-memory"] {
        let Ending::Failed { error } = &outcome.check(check).record.ending else {
            panic!("{check} ran")
        };
        assert!(error.contains("install the NVIDIA driver"), "{error}");
    }
}

#[test]
fn a_driver_call_that_hangs_or_crashes_costs_its_check_alone() {
    let node = || FakeNode::p5_48xlarge().gpu(6);
    let hung = Dhc::on(node().answers("nvmlDeviceGetTotalEccErrors", "hangs"));
    let outcome = hung.run(&["--tag", "gpu", "--skip", "long", "--deadline", "2s"]);
    assert_eq!(outcome.check("gpu-count").status, Status::Pass);
    assert_eq!(outcome.check("gpu-memory").status, Status::Error);
    assert!(matches!(
        outcome.check("gpu-memory").record.ending,
        Ending::TimedOut { .. }
    ));
    let kept = &outcome.check("gpu-memory").record.measurements;
    assert!(
        kept.iter()
            .any(|measurement| measurement.subject.name == "gpu5"),
        "what was seen before is kept"
    );
    let crashed = quick(node().answers("nvmlDeviceGetTotalEccErrors", "crashes"));
    assert_eq!(crashed.check("nvlink").status, Status::Pass);
    assert!(
        matches!(
            crashed.check("gpu-memory").record.ending,
            Ending::Killed { signal: 6 }
        ),
        "{:?}",
        crashed.check("gpu-memory").record.ending
    );
}

#[test]
fn a_node_without_gpus_skips_their_checks_and_says_why() {
    let outcome = quick(FakeNode::trn2_48xlarge());
    for check in ["gpu-count", "nvlink", "gpu-memory"] {
        assert_eq!(
            outcome.check(check).skipped(),
            Some("trn2.48xlarge has no NVIDIA GPUs")
                .filter(|_| check != "nvlink")
                .or(Some("trn2.48xlarge has no NVLinks"))
        );
    }
    assert_eq!((outcome.exit, outcome.verdict().0), (3, Status::Unknown));
}

#[test]
fn on_an_unknown_type_what_is_there_is_measured_and_counts_are_not_judged() {
    let outcome =
        quick(FakeNode::p5_48xlarge().file("/sys/class/dmi/id/product_name", "Home Lab 1\n"));
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None))
    );
    let unknown = outcome.findings("gpu-count", Status::Unknown);
    assert!(
        unknown
            .iter()
            .any(|finding| finding.metric == "gpu.count" && finding.message.contains("not judged"))
    );
    assert!(outcome.findings("gpu-count", Status::Fail).is_empty());
}

/// A node whose DCGM found faulty memory on its own GPU 2, which has this serial number; the others have NVML's.
fn with_faulty_memory_on_dcgms_gpu2(serial: &str) -> Outcome {
    let dhc = Dhc::on(FakeNode::p5_48xlarge());
    let devices = &dhc.check("gpu-count").report.nodes[0].devices;
    let mut document: serde_json::Value = serde_json::from_str(include_str!(
        "../../fixtures/outputs/dcgmi/4.5-r4-pass.json"
    ))
    .expect("the output is JSON");
    let tests = &mut document["DCGM Diagnostic"]["test_categories"];
    let mut tests = tests
        .as_array_mut()
        .into_iter()
        .flatten()
        .filter_map(|category| category["tests"].as_array_mut())
        .flatten();
    let memory = tests
        .find(|test| test["name"] == "memory")
        .expect("the memory is tested");
    memory["results"][2]["status"] = "Fail".into();
    memory["results"][2]["warnings"] = serde_json::json!([
        {"warning": "GPU 2 failed the memory test", "error_id": 52, "error_severity": 2, "error_category": 7}
    ]);
    for gpu in 0..8 {
        let nvml = devices[gpu].identity["serial"].as_str();
        let serial = match gpu {
            2 => serial,
            // Whose serial number GPU 2 has, that one has GPU 2's.
            _ if nvml == serial => devices[2].identity["serial"].as_str(),
            _ => nvml,
        };
        document["entity_groups"][0]["entities"][gpu]["serial_num"] = serial.into();
    }
    let Dhc { node, state } = dhc;
    let dhc = Dhc {
        node: node.tool("dcgmi").prints(document.to_string(), 205),
        state,
    };
    let outcome = dhc.run(&["--check", "gpu-count,dcgm-diag"]);
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Replace));
    outcome
}

#[test]
fn a_fault_that_dcgm_finds_names_the_gpu_that_has_it() {
    let healthy = quick(FakeNode::p5_48xlarge());
    let nvml = &healthy.report.nodes[0].devices;
    let gpu5 = &nvml[5].identity;
    // DCGM's GPU 2 is NVML's gpu5.
    let outcome = with_faulty_memory_on_dcgms_gpu2(&gpu5["serial"]);
    let fault = &outcome.report.nodes[0].faults[0];
    assert_eq!(fault.finding.subject.name, "gpu5/memory");
    assert_eq!(fault.device["uuid"], gpu5["uuid"]);
    // It is none of NVML's: nothing of NVML's gpu2 may pass for it.
    let outcome = with_faulty_memory_on_dcgms_gpu2("102");
    let fault = &outcome.report.nodes[0].faults[0];
    assert_eq!(fault.finding.subject.name, "dcgm-gpu2/memory");
    let known: Vec<_> = fault.device.iter().collect();
    assert_eq!(known, [(&"serial".to_owned(), &"102".to_owned())]);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test writes what dhc reads, and starts it"
)]
fn a_stored_result_in_which_two_gpus_have_one_name_is_judged_by_what_the_check_saw() {
    let outcome = with_faulty_memory_on_dcgms_gpu2("102");
    let stored = serde_json::to_string(&outcome.report).expect("a report is JSON");
    // As a dhc wrote it that took DCGM's numbers for NVML's.
    let state = tempfile::tempdir().expect("a temporary folder");
    let file = state.path().join("stored.json");
    std::fs::write(&file, stored.replace("dcgm-gpu2", "gpu2")).expect("it can be written");
    let judged = std::process::Command::new(env!("CARGO_BIN_EXE_dhc"))
        .args(["judge", "--format", "json"])
        .arg(&file)
        .output();
    let report = common::outcome(judged.expect("dhc starts")).report;
    let fault = &report.nodes[0].faults[0];
    assert_eq!(fault.finding.subject.name, "gpu2/memory");
    let known: Vec<_> = fault.device.iter().collect();
    assert_eq!(known, [(&"serial".to_owned(), &"102".to_owned())]);
    let told = "checks call different devices gpu2, this is the one with serial 102";
    assert!(fault.advice.contains(told), "{}", fault.advice);
    let called = report.nodes[0].devices.iter();
    assert_eq!(called.filter(|one| one.subject.name == "gpu2").count(), 2);
}
