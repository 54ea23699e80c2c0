//! The host's own checks and the EFA cards' states, of the built program on simulated machines.

mod common;

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Status};

fn host(node: FakeNode) -> Outcome {
    Dhc::on(node).check("host")
}

#[track_caller]
fn assert_fault(outcome: &Outcome, fault: &str, subject: &str, action: Action) {
    let found = outcome.findings("host", Status::Fail);
    let named: Vec<_> = found
        .iter()
        .map(|finding| {
            (
                finding.fault.as_deref().unwrap_or(""),
                finding.subject.name.as_str(),
            )
        })
        .collect();
    assert_eq!(named, [(fault, subject)]);
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (2, (Status::Fail, action))
    );
}

/// The machines with nothing wrong of every instance type that has a threshold file.
const HEALTHY: [&str; 15] = [
    "dgx-h100",
    "g4dn.12xlarge",
    "g6e.48xlarge",
    "gb200-nvl72",
    "inf2.48xlarge",
    "p4d.24xlarge",
    "p5.48xlarge",
    "p5.4xlarge",
    "p5en.48xlarge",
    "p6-b200.48xlarge",
    "p6e-gb200.36xlarge",
    "trn1.32xlarge",
    "trn1.32xlarge-old-driver",
    "trn2.48xlarge",
    "trn2u.48xlarge",
];

#[test]
fn healthy_hosts_of_every_kind_pass() {
    for machine in HEALTHY {
        let outcome = host(FakeNode::of(machine));
        assert_eq!(outcome.complaints(), [], "{machine}");
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (0, (Status::Pass, Action::None)),
            "{machine}: {:?}",
            outcome.check("host").record
        );
    }
}

#[test]
fn lost_memory_and_lost_cpus_are_found() {
    let meminfo = "MemTotal:       1585022322 kB\nMemFree: 1 kB\n";
    assert_fault(
        &host(FakeNode::p5_48xlarge().file("/proc/meminfo", meminfo)),
        "host.memory.size",
        "node",
        Action::Reboot,
    );
    let online = FakeNode::p5_48xlarge().file("/sys/devices/system/cpu/online", "0-95\n");
    assert_fault(&host(online), "host.cpu.count", "cpus", Action::Reboot);
}

#[test]
fn a_list_of_cpus_that_is_empty_was_not_read() {
    let outcome = host(FakeNode::p5_48xlarge().file("/sys/devices/system/cpu/online", "\n"));
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None))
    );
    let unknown = outcome.findings("host", Status::Unknown);
    assert_eq!(unknown[0].metric, "host.cpu.online", "{unknown:?}");
}

#[test]
fn a_narrow_link_and_a_bus_error_name_their_device() {
    let narrow = FakeNode::p5_48xlarge().pci("0000:b9:00.0").narrow(8);
    assert_fault(
        &host(narrow),
        "host.pcie.width",
        "0000:b9:00.0",
        Action::Reboot,
    );
    let errors = FakeNode::p5_48xlarge()
        .pci("0000:b9:00.0")
        .counts("fatal", "DLP", 1);
    assert_fault(
        &host(errors),
        "host.pcie.errors",
        "0000:b9:00.0",
        Action::Reboot,
    );
}

#[test]
fn a_card_that_answers_with_ones_alone_is_gone() {
    let gone = FakeNode::p5_48xlarge().pci("0000:b9:00.0").narrow(63);
    assert_fault(
        &host(gone),
        "host.pcie.gone",
        "0000:b9:00.0",
        Action::Reboot,
    );
}

#[test]
fn a_card_in_a_narrow_slot_lacks_no_lane() {
    // The other end of the link is the device above in sysfs.
    let slot = "/sys/devices/pci0000:00/max_link_width";
    let narrow = |node: FakeNode| node.pci("0000:b9:00.0").narrow(8);
    let all = |outcome: &Outcome| {
        let record = &outcome.check("host").record;
        let lacking = record.measurements.iter().find(|found| {
            found.metric == "host.pcie.width_missing" && found.subject.name == "0000:b9:00.0"
        });
        lacking.map(|found| found.value.to_string())
    };
    let outcome = host(narrow(FakeNode::p5_48xlarge().file(slot, "8\n")));
    assert_eq!(all(&outcome).as_deref(), Some("0"));
    assert_eq!(outcome.exit, 0);
    let outcome = host(narrow(FakeNode::p5_48xlarge().file(slot, "16\n")));
    assert_eq!(all(&outcome).as_deref(), Some("8"));
    assert_eq!(outcome.exit, 2);
}

#[test]
fn cores_without_their_second_thread_are_a_setting_and_no_loss() {
    let half = FakeNode::p5_48xlarge().file("/sys/devices/system/cpu/online", "0-95\n");
    let off = half
        .file("/sys/devices/system/cpu/smt/control", "off\n")
        .file(
            "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
            "0\n",
        );
    let found = host(off);
    let named: Vec<_> = found
        .complaints()
        .into_iter()
        .map(|(_, _, fault, _)| fault)
        .collect();
    assert_eq!(named, ["host.cpu.smt"]);
    assert_eq!(found.verdict(), (Status::Warn, Action::Investigate));
}

#[test]
fn an_xid_is_found_and_its_own_word_counts() {
    let off = "NVRM: Xid (PCI:0000:b9:00): 79, pid=1234, name=python, GPU has fallen off the bus.";
    assert_fault(
        &host(FakeNode::p5_48xlarge().logs(off)),
        "gpu.lost",
        "0000:b9:00.0",
        Action::Reboot,
    );
    let asks = "NVRM: Xid (PCI:0000:b9:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)";
    assert_fault(
        &host(FakeNode::p5_48xlarge().logs(asks)),
        "gpu.needs_reset",
        "0000:b9:00.0",
        Action::Reset,
    );
    let neuron = "NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR instance-id=i-0 hostname=h nd-id=3 nc-id=1 serial-num=1f action=TERMINATE_INSTANCE";
    assert_fault(
        &host(FakeNode::trn2_48xlarge().logs(neuron)),
        "neuron.uncorrectable",
        "neuron3/core1",
        Action::Replace,
    );
}

/// The kernel knows a GPU by its address alone; who has it replaced wants to hear its UUID.
#[test]
fn a_gpu_that_the_kernel_complains_of_is_told_with_its_uuid() {
    let line =
        "NVRM: Xid (PCI:0000:b9:00): 64, pid='<unknown>', name=<unknown>, row remapper failure";
    let outcome = Dhc::on(FakeNode::p5_48xlarge().logs(line)).run(&["--tag", "quick"]);
    let gpus = &outcome.check("gpu-count").record.devices;
    let at = |bdf: &str| {
        let identity = gpus.iter().map(|gpu| &gpu.identity);
        let mut here = identity.filter(|identity| identity["bdf"] == bdf);
        here.next().expect("a GPU has this address")["uuid"].clone()
    };
    let faults = &outcome.report.nodes[0].faults;
    let fault = faults
        .iter()
        .find(|fault| fault.check == "host")
        .expect("the host check fails");
    assert_eq!(fault.finding.subject.name, "0000:b9:00.0");
    assert_eq!(fault.device["uuid"], at("0000:b9:00.0"));
}

#[test]
fn an_application_s_xid_and_a_killed_process_do_not_fail_the_host() {
    let xid = "NVRM: Xid (PCI:0000:b9:00): 31, pid=1234, name=python, Ch 00000010, MMU Fault";
    let oom = "Out of memory: Killed process 77 (python) total-vm:1kB";
    let outcome = host(FakeNode::p5_48xlarge().logs(xid).logs(oom));
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (0, (Status::Pass, Action::None))
    );
    let noted = &outcome.check("host").record.measurements;
    assert_eq!(
        noted
            .iter()
            .filter(|found| found.metric == "host.kernel.notices")
            .count(),
        2
    );
}

#[test]
fn an_application_s_xid_is_a_warning_when_it_repeats_on_one_gpu() {
    let xid =
        |pid: u32| format!("NVRM: Xid (PCI:0000:b9:00): 31, pid={pid}, name=python, Ch 00000010");
    let logged = |pids: [u32; 4]| {
        let lines = pids.iter().map(|pid| xid(*pid));
        host(lines.fold(FakeNode::p5_48xlarge(), |node, line| node.logs(&line)))
    };
    // Four lines of two processes, and of three.
    assert_eq!(logged([7, 7, 7, 8]).exit, 0);
    let repeated = logged([7, 8, 9, 9]);
    let warned = repeated.findings("host", Status::Warn);
    let named: Vec<_> = warned
        .iter()
        .map(|finding| (finding.subject.name.as_str(), finding.fault.as_deref()))
        .collect();
    assert_eq!(named, [("0000:b9:00.0", Some("gpu.suspect"))]);
    assert_eq!(repeated.verdict(), (Status::Warn, Action::Investigate));
}

#[test]
fn an_error_that_the_firmware_handled_first_is_found() {
    let record = [
        "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 4",
        "{1}[Hardware Error]: event severity: fatal",
        "{1}[Hardware Error]:  Error 0, type: fatal",
        "{1}[Hardware Error]:   section_type: memory error",
    ];
    let node = record
        .into_iter()
        .fold(FakeNode::p5_48xlarge(), FakeNode::logs);
    assert_fault(&host(node), "host.kernel.mce", "node", Action::Replace);
}

#[test]
fn a_kernel_log_that_cannot_be_read_is_unknown() {
    let outcome = host(FakeNode::p5_48xlarge().unreadable("/dev/kmsg"));
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None))
    );
}

#[test]
fn a_neuron_error_behind_a_prefix_accuses_its_device_or_the_node() {
    for (line, subject) in [
        (
            "2026-11-24T20:43:50Z NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR nd-id=0 nc-id=2",
            "neuron0/core2",
        ),
        (
            "neuron5: NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR device=5",
            "neuron5",
        ),
        (
            "NRT NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR affecting neuron devices",
            "node",
        ),
    ] {
        let outcome = host(FakeNode::trn2_48xlarge().logs(line));
        assert_fault(&outcome, "neuron.uncorrectable", subject, Action::Replace);
    }
    let hang = "NEURON_HW_ERR=HANG_ON_COLLECTIVES nd-id=0 nc-id=0";
    let outcome = host(FakeNode::trn2_48xlarge().logs(hang));
    assert_eq!(outcome.verdict(), (Status::Warn, Action::Investigate));
}

#[test]
fn two_xids_of_one_class_are_both_told_and_their_lines_are_kept() {
    let xid = |code: u32| format!("NVRM: Xid (PCI:0000:b9:00): {code}, x");
    let outcome = host(FakeNode::p5_48xlarge().logs(&xid(62)).logs(&xid(109)));
    let found = outcome.findings("host", Status::Fail);
    assert_eq!(found.len(), 2, "{found:?}");
    let kept = &outcome.check("host").record.evidence;
    let [kept] = &kept[..] else {
        panic!("{kept:?}");
    };
    assert_eq!(kept.name, "kmsg");
    assert!(kept.text.contains(&xid(62)) && kept.text.contains(&xid(109)));
}

#[test]
fn a_row_that_was_remapped_before_the_reset_is_no_fault() {
    let remap = "NVRM: Xid (PCI:0000:b9:00): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu to activate.";
    let outcome = host(FakeNode::p5_48xlarge().logs(remap));
    assert_eq!(outcome.exit, 0, "{:?}", outcome.complaints());
}

#[test]
fn functions_that_block_are_named_and_hide_no_other_evidence() {
    let remap = "NVRM: Xid (PCI:0000:b9:00): 64, Row remapping failure";
    let gpus = ["53", "b9", "ca"].map(|bus| format!("0000:{bus}:00.0"));
    let node = gpus
        .iter()
        .fold(FakeNode::p5_48xlarge().logs(remap), |node, bdf| {
            node.blocked(&format!("/sys/bus/pci/devices/{bdf}/vendor"))
        });
    // One after the other, the three would take longer than this.
    let outcome = Dhc::on(node).run(&["--check", "host", "--deadline", "12s"]);
    assert_fault(
        &outcome,
        "gpu.memory.remap_failed",
        "0000:b9:00.0",
        Action::Replace,
    );
    let unknown = outcome.findings("host", Status::Unknown);
    for bdf in &gpus {
        let is_named = unknown.iter().any(|finding| {
            finding.subject.name == *bdf && finding.message.contains("did not answer")
        });
        assert!(is_named, "{bdf}: {unknown:?}");
    }
}

#[test]
fn a_function_that_cannot_be_read_is_unknown_and_not_absent() {
    for file in ["vendor", "class", "current_link_width", "max_link_width"] {
        let path = format!("/sys/bus/pci/devices/0000:b9:00.0/{file}");
        let outcome = host(FakeNode::p5_48xlarge().unreadable(&path));
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (3, (Status::Unknown, Action::None)),
            "{file}"
        );
    }
}

#[test]
fn a_file_of_a_link_that_is_missed_beside_the_others_is_unknown() {
    let link = |file: &str| format!("/sys/bus/pci/devices/0000:b9:00.0/{file}");
    let files = [
        "current_link_width",
        "max_link_width",
        "current_link_speed",
        "max_link_speed",
    ];
    for file in files {
        let outcome = host(FakeNode::p5_48xlarge().without(&link(file)));
        let gaps = &outcome.check("host").record.gaps;
        let is_told = gaps
            .iter()
            .any(|gap| gap.subject.name == "0000:b9:00.0" && gap.why.contains(file));
        assert!(is_told, "{file}: {gaps:?}");
        // Only for the lanes there is a limit.
        let exit = if file.ends_with("width") { 3 } else { 0 };
        assert_eq!(outcome.exit, exit, "{file}: {:?}", outcome.complaints());
    }
    // A virtual machine that shows none of them has none to miss.
    let none = files.iter().fold(FakeNode::p5_48xlarge(), |node, file| {
        node.without(&link(file))
    });
    assert_eq!(host(none).exit, 0);
}

#[test]
fn cards_that_are_all_slow_alike_are_seen_by_the_rate_of_their_type() {
    let rate = |node: FakeNode, card: u32, rate: &str| {
        let path = format!("/sys/class/infiniband/mlx5_{card}/ports/1/rate");
        node.file(&path, rate)
    };
    let dgx = || FakeNode::of("dgx-h100");
    let slow = (0..8).fold(dgx(), |node, card| {
        rate(node, card, "200 Gb/sec (2X NDR)\n")
    });
    let outcome = Dhc::on(slow).check("rdma-nic");
    let warned = outcome.findings("rdma-nic", Status::Warn);
    let metrics: Vec<&str> = warned.iter().map(|one| one.metric.as_str()).collect();
    assert_eq!(metrics, ["rdma.device.highest_rate"]);
    assert_eq!(warned[0].fault.as_deref(), Some("nic.rate"));
    for unread in ["", "fast\n", "-1 Gb/sec (?)\n"] {
        let outcome = Dhc::on(rate(dgx(), 3, unread)).check("rdma-nic");
        assert_eq!(outcome.exit, 3, "{unread:?}: {:?}", outcome.complaints());
    }
    assert_eq!(Dhc::on(dgx()).check("rdma-nic").exit, 0);
}

#[test]
fn an_efa_card_names_no_less_than_the_rate_of_its_type_and_an_unread_one_is_unknown() {
    const FIRST: &str = "rdmap79s0";
    let card = |rate: &str| {
        let node = FakeNode::p5_48xlarge();
        let path = format!("/sys/class/infiniband/{FIRST}/ports/1/rate");
        Dhc::on(node.file(&path, rate)).check("efa-loopback")
    };
    let told = |outcome: &common::Outcome, status: Status| {
        let found = outcome.findings("efa-loopback", status);
        let of_rate = found
            .into_iter()
            .filter(|one| one.metric == "efa.port.rate");
        of_rate
            .map(|one| one.subject.name.clone())
            .collect::<Vec<_>>()
    };
    let slow = card("25 Gb/sec (1X EDR)\n");
    assert_eq!(told(&slow, Status::Warn), [FIRST]);
    let unread = card("\n");
    assert_eq!(told(&unread, Status::Unknown), [FIRST]);
    let sound = card("100 Gb/sec (4X EDR)\n");
    assert_eq!(told(&sound, Status::Warn), Vec::<String>::new());
    assert_eq!(told(&sound, Status::Unknown), Vec::<String>::new());
}

#[test]
fn hardware_that_cannot_be_listed_is_looked_for_where_the_type_is_not_known() {
    let functions = "/sys/bus/pci/devices";
    let vendor = format!("{functions}/0000:b9:00.0/vendor");
    let plain = FakeNode::plain;
    for (node, due) in [
        (
            plain().unlistable(functions),
            &["gpu-count", "nvlink", "gpu-memory"][..],
        ),
        (
            plain().unreadable(&vendor),
            &["gpu-count", "nvlink", "gpu-memory"],
        ),
        (
            plain().unlistable("/sys/class/infiniband"),
            &["rdma-nic", "efa-loopback"],
        ),
        (
            plain().unlistable("/sys/devices/virtual/neuron_device"),
            &["neuron-count", "neuron-sysfs"],
        ),
    ] {
        let outcome = Dhc::on(node).run(&["--check", &due.join(",")]);
        for check in due {
            let status = outcome.check(check).status;
            assert!(
                matches!(status, Status::Unknown | Status::Error),
                "{check}: {status:?}"
            );
        }
        assert!(outcome.exit >= 3, "{}", outcome.exit);
        assert!(outcome.verdict().1 <= Action::Retry, "nothing is accused");
        assert!(
            outcome.stderr.contains("--instance-type"),
            "{}",
            outcome.stderr
        );
    }
    let outcome = Dhc::on(plain()).run(&["--check", "gpu-count"]);
    assert_eq!(outcome.check("gpu-count").status, Status::Skip);
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
}

#[test]
fn a_gpu_that_the_driver_does_not_list_may_be_on_a_bus_that_cannot_be_read() {
    let functions = "/sys/bus/pci/devices";
    let vendor = format!("{functions}/0000:ff:00.0/vendor");
    for node in [
        FakeNode::p5_48xlarge().unlistable(functions),
        FakeNode::p5_48xlarge().unreadable(&vendor),
    ] {
        let outcome = Dhc::on(node).check("gpu-count");
        assert_eq!(outcome.exit, 3, "{:?}", outcome.complaints());
        let unknown = outcome.findings("gpu-count", Status::Unknown);
        assert!(
            unknown.iter().any(|finding| finding.metric == "gpu.state"
                && finding.message.contains("NVML does not list")),
            "{unknown:?}"
        );
    }
}

#[test]
fn a_card_whose_kind_cannot_be_read_is_not_missing() {
    let vendor = "/sys/class/infiniband/mlx5_3/device/vendor";
    let outcome = Dhc::on(FakeNode::of("dgx-h100").unreadable(vendor)).check("rdma-nic");
    assert_eq!(outcome.exit, 3, "{:?}", outcome.complaints());
}

#[test]
fn an_efa_card_that_cannot_be_read_is_not_missing() {
    const CARD: &str = "/sys/class/infiniband/rdmap113s0";
    let (device, vendor) = (
        format!("{CARD}/device/device"),
        format!("{CARD}/device/vendor"),
    );
    let p5 = FakeNode::p5_48xlarge;
    for node in [
        p5().unreadable(&device),
        p5().file(&device, ""),
        p5().without(&device),
        p5().blocked(&device),
        p5().unreadable(&vendor),
        p5().file(&vendor, ""),
        p5().without(&vendor),
        p5().file(&format!("{CARD}/ports/1/state"), ""),
    ] {
        let outcome = Dhc::on(node).check("efa-loopback");
        let failed = outcome.findings("efa-loopback", Status::Fail);
        assert!(failed.is_empty(), "{failed:?}");
        let unknown = outcome.findings("efa-loopback", Status::Unknown);
        assert!(
            unknown
                .iter()
                .any(|finding| finding.message.contains("rdmap113s0")
                    && finding.message.contains("could not be read")
                    && finding.metric != "efa.loopback.state"),
            "{unknown:?}"
        );
    }
}

#[test]
fn a_loopback_that_runs_out_of_time_while_messages_flow_accuses_nothing() {
    let dhc = Dhc::on(FakeNode::plain());
    let table = dhc.state.path().join("table.toml");
    // An EFA card's rule for the provider that every machine has.
    let rule = "schema = \"dhc.thresholds/1\"\ninstance_type = \"plain\"\n\
                [[limit]]\nmetric = \"fabric.loopback.state\"\nunit = \"state\"\none_of = [\"answered\"]\n\
                fault = \"nic.silent\"\nsource = \"a test\"\n";
    std::fs::write(&table, rule).unwrap();
    let outcome = dhc.run(&[
        "--check",
        "fabric-loopback",
        "--set",
        "fabric-loopback.provider=tcp",
        "--deadline",
        "500ms",
        "--thresholds",
        table.to_str().unwrap(),
    ]);
    let unknown = outcome.findings("fabric-loopback", Status::Unknown);
    assert_eq!(
        outcome.verdict(),
        (Status::Unknown, Action::None),
        "{:?}",
        outcome.complaints()
    );
    assert!(
        unknown
            .iter()
            .any(|finding| finding.message.contains("the time was too short")),
        "{unknown:?}"
    );
}

#[test]
fn a_kernel_log_without_a_record_has_not_been_searched() {
    for node in [
        FakeNode::p5_48xlarge().file("/dev/kmsg", ""),
        FakeNode::p5_48xlarge().blocked("/dev/kmsg"),
    ] {
        let outcome = host(node);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (3, (Status::Unknown, Action::None))
        );
        let unknown = outcome.findings("host", Status::Unknown);
        assert_eq!(unknown[0].metric, "host.kernel.faults", "{unknown:?}");
    }
}

#[test]
fn a_width_that_makes_no_sense_is_unknown() {
    for width in ["0", "", "x", "255"] {
        let path = "/sys/bus/pci/devices/0000:b9:00.0/current_link_width";
        let outcome = host(FakeNode::p5_48xlarge().file(path, width));
        let unknown = outcome.findings("host", Status::Unknown);
        assert!(
            unknown
                .iter()
                .any(|finding| finding.subject.name == "0000:b9:00.0"
                    && finding.metric == "host.pcie.width_missing"),
            "{width}: {unknown:?}"
        );
        assert_eq!((outcome.exit, outcome.verdict().0), (3, Status::Unknown));
    }
}

#[test]
fn a_missing_efa_card_and_a_port_that_is_down_are_found() {
    let efa = |node: FakeNode| {
        // The cards are simulated in sysfs alone; libfabric has none to talk through, which is a gap of its own.
        let outcome = Dhc::on(node).check("efa-loopback");
        let found = outcome.findings("efa-loopback", Status::Fail);
        found
            .iter()
            .map(|finding| {
                (
                    finding.fault.clone().unwrap_or_default(),
                    finding.subject.name.clone(),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(efa(FakeNode::p5_48xlarge()), []);
    assert_eq!(
        efa(FakeNode::p5_48xlarge().nic("rdmap79s0").missing()),
        [("nic.missing".to_owned(), "node".to_owned())]
    );
    assert_eq!(
        efa(FakeNode::p5_48xlarge().nic("rdmap79s0").down()),
        [("nic.port_down".to_owned(), "rdmap79s0".to_owned())]
    );
}

#[test]
fn infiniband_cards_are_counted_and_their_ports_read() {
    let nics = |node: FakeNode| Dhc::on(node).check("rdma-nic");
    let healthy = nics(FakeNode::of("dgx-h100"));
    assert_eq!(
        (healthy.exit, healthy.complaints()),
        (0, Vec::new()),
        "{:?}",
        healthy.check("rdma-nic").record
    );

    let missing = nics(FakeNode::of("dgx-h100").nic("mlx5_3").missing());
    let found = missing.findings("rdma-nic", Status::Fail);
    let named: Vec<_> = found
        .iter()
        .filter_map(|finding| finding.fault.as_deref())
        .collect();
    assert!(named.contains(&"nic.missing"), "{named:?}");
    assert_eq!(missing.exit, 2);

    let slow = nics(
        FakeNode::of("dgx-h100")
            .nic("mlx5_3")
            .runs_at("100 Gb/sec (4X EDR)"),
    );
    let found = slow.findings("rdma-nic", Status::Warn);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].fault.as_deref(), Some("nic.rate"));
    assert_eq!(slow.exit, 1);

    let down = nics(FakeNode::of("dgx-h100").nic("mlx5_3").down());
    let complaints = down.complaints();
    assert!(
        complaints
            .iter()
            .all(|(_, _, fault, _)| fault == "nic.port_down"),
        "{complaints:?}"
    );
    assert!(
        complaints
            .iter()
            .any(|(.., subject)| subject == "mlx5_3/port1"),
        "{complaints:?}"
    );
    assert_eq!(down.exit, 2);
}

#[test]
fn a_machine_whose_type_has_no_infiniband_cards_skips_their_check() {
    let outcome = Dhc::on(FakeNode::p5_48xlarge()).check("rdma-nic");
    assert_eq!(outcome.check("rdma-nic").status, Status::Skip);
}
