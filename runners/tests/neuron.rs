//! Neuron checks of the built program on simulated machines.

mod common;

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Status};

const HEALTHY: &str = include_str!("../../fixtures/outputs/nccom_test/allr-32-ranks.txt");
const JSON: &str = include_str!("../../fixtures/outputs/nccom_test/allr-32-ranks.json");
const FAILED: &str = include_str!("../../fixtures/outputs/nccom_test/failed-row.txt");
const NO_DRIVER: &str = include_str!("../../fixtures/outputs/nccom_test/no-driver.txt");

fn quick(node: FakeNode) -> Outcome {
    Dhc::on(node).run(&["--check", "neuron-count,neuron-sysfs"])
}

fn nccom(node: FakeNode) -> Outcome {
    Dhc::on(node).run(&["--check", "nccom-local", "--deadline", "3s"])
}

#[test]
fn healthy_trainium_nodes_of_both_generations_pass() {
    for (node, devices, cores) in [
        (FakeNode::trn1_32xlarge(), 16, 32),
        (FakeNode::trn2_48xlarge(), 16, 128),
    ] {
        let outcome = quick(node);
        assert_eq!(outcome.complaints(), []);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (0, (Status::Pass, Action::None))
        );
        let counts = &outcome.check("neuron-count").record.measurements;
        let count = |metric: &str| {
            counts
                .iter()
                .find(|found| found.metric == metric)
                .and_then(|found| found.value.number())
        };
        assert_eq!(
            (count("neuron.device.count"), count("neuron.core.count")),
            (Some(f64::from(devices)), Some(f64::from(cores)))
        );
        assert!(
            outcome.report.nodes[0]
                .devices
                .iter()
                .all(|device| device.identity.contains_key("serial"))
        );
    }
}

#[test]
fn a_missing_device_is_counted_out() {
    let outcome = quick(FakeNode::trn2_48xlarge().neuron(5).missing());
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (2, (Status::Fail, Action::Reboot))
    );
    let faults: Vec<_> = outcome
        .findings("neuron-count", Status::Fail)
        .iter()
        .map(|finding| finding.metric.clone())
        .collect();
    assert_eq!(faults, ["neuron.device.count", "neuron.core.count"]);
}

#[test]
fn a_hardware_error_of_one_core_is_named() {
    let outcome = quick(
        FakeNode::trn2_48xlarge()
            .neuron_core(4, 1)
            .counter("hw_nc_ue_error", 3),
    );
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Replace));
    let found = outcome.findings("neuron-sysfs", Status::Fail);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].subject.name, "neuron4/core1/hw_nc_ue_error");
    assert_eq!(found[0].fault.as_deref(), Some("neuron.hardware"));
}

#[test]
fn uncorrected_memory_errors_ask_for_another_node() {
    let path = "/sys/devices/virtual/neuron_device/neuron7/stats/hardware/mem_ecc_uncorrected";
    let outcome = quick(FakeNode::trn1_32xlarge().file(path, "2\n"));
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Replace));
    assert_eq!(
        outcome.findings("neuron-sysfs", Status::Fail)[0]
            .subject
            .name,
        "neuron7"
    );
}

#[test]
fn a_counter_that_cannot_be_read_is_unknown_and_never_zero() {
    let path = "/sys/devices/virtual/neuron_device/neuron7/stats/hardware/mem_ecc_uncorrected";
    let outcome = quick(FakeNode::trn1_32xlarge().unreadable(path));
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None))
    );
    let unknown = outcome.findings("neuron-sysfs", Status::Unknown);
    assert!(
        unknown
            .iter()
            .any(|finding| finding.subject.name == "neuron7" && finding.message.contains("(21)")),
        "{unknown:?}"
    );
}

#[test]
fn what_one_core_does_not_tell_is_unknown() {
    let device = "/sys/devices/virtual/neuron_device/neuron7";
    let node = FakeNode::trn1_32xlarge();
    let outcome = quick(node.unreadable(&format!("{device}/core_count")));
    assert_eq!(outcome.exit, 3, "{:?}", outcome.complaints());
    let counter = format!("{device}/neuron_core1/stats/status/hw_error");
    let outcome = quick(FakeNode::trn1_32xlarge().without(&counter));
    let unknown = outcome.findings("neuron-sysfs", Status::Unknown);
    assert!(
        unknown
            .iter()
            .any(|finding| finding.subject.name == "neuron7/core1/hw_error"),
        "{unknown:?}"
    );
}

#[test]
fn zero_that_the_driver_could_not_read_is_unknown() {
    let outcome = quick(
        FakeNode::trn1_32xlarge()
            .logs("neuron:nsysfsmetric: sysfs failed to read ECC SRAM error from FWIO"),
    );
    assert_eq!(outcome.verdict().0, Status::Unknown);
    assert!(
        outcome
            .findings("neuron-sysfs", Status::Unknown)
            .iter()
            .all(|finding| finding.metric == "neuron.sram.uncorrected")
    );
}

#[test]
fn failed_work_counts_from_the_last_reading_on() {
    let counter = |count| {
        FakeNode::trn1_32xlarge()
            .neuron_core(2, 0)
            .counter("exec_bad_input", count)
    };
    let mut dhc = Dhc::on(counter(5));
    let args = ["--check", "neuron-sysfs"];
    assert_eq!(
        dhc.run(&args).verdict().0,
        Status::Pass,
        "the first reading has nothing to compare with"
    );
    assert_eq!(
        dhc.run(&args).verdict().0,
        Status::Pass,
        "nothing came since"
    );
    dhc.node = counter(7);
    let outcome = dhc.run(&args);
    assert_eq!(outcome.verdict(), (Status::Warn, Action::Investigate));
    let found = outcome.findings("neuron-sysfs", Status::Warn);
    assert_eq!(
        (
            found[0].subject.name.as_str(),
            found[0]
                .value
                .as_ref()
                .and_then(dhc_thresholds::Value::number)
        ),
        ("neuron2/core0/exec_bad_input", Some(2.0))
    );
    // One that went back was cleared, by a reload of the driver for one, and what it shows has come since.
    dhc.node = counter(3);
    let outcome = dhc.run(&args);
    let found = outcome.findings("neuron-sysfs", Status::Warn);
    let new = found[0].value.as_ref();
    assert_eq!(new.and_then(dhc_thresholds::Value::number), Some(3.0));
}

#[test]
fn failed_work_that_could_not_be_counted_is_unknown_and_not_new_later() {
    const COUNTER: &str =
        "/sys/devices/virtual/neuron_device/neuron2/neuron_core0/stats/status/exec_bad_input/total";
    let counter = |count| {
        FakeNode::trn1_32xlarge()
            .neuron_core(2, 0)
            .counter("exec_bad_input", count)
    };
    let args = ["--check", "neuron-sysfs"];
    // Not read at first, and not read in between.
    for readable_before in [None, Some(5)] {
        let mut dhc = Dhc::on(counter(5));
        if readable_before.is_some() {
            assert_eq!(dhc.run(&args).exit, 0);
        }
        dhc.node = counter(5).unreadable(COUNTER);
        let outcome = dhc.run(&args);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (3, (Status::Unknown, Action::None))
        );
        let unknown = outcome.findings("neuron-sysfs", Status::Unknown);
        assert_eq!(unknown[0].subject.name, "neuron2/core0/exec_bad_input");
        dhc.node = counter(5);
        let outcome = dhc.run(&args);
        assert_eq!(outcome.exit, 0, "{:?}", outcome.complaints());
        dhc.node = counter(6);
        assert_eq!(dhc.run(&args).verdict().0, Status::Warn);
    }
}

#[test]
fn a_stuck_device_hides_no_other_one() {
    const DEVICES: &str = "/sys/devices/virtual/neuron_device";
    let node = FakeNode::trn1_32xlarge()
        .neuron(15)
        .counter("mem_ecc_uncorrected", 5);
    let files = [
        "stats/hardware/mem_ecc_uncorrected",
        "stats/hardware/sram_ecc_uncorrected",
        "neuron_core0/stats/status/hw_error/total",
        "neuron_core0/stats/status/hw_nc_ue_error/total",
        "neuron_core0/stats/status/timeout/total",
        "neuron_core1/stats/status/hw_error/total",
        "neuron_core1/stats/status/timeout/total",
    ];
    // Two devices, which cost no more than one.
    let node = ["neuron0", "neuron1"]
        .iter()
        .flat_map(|device| files.map(|file| format!("{DEVICES}/{device}/{file}")))
        .fold(node, |node, file| node.blocked(&file));
    let outcome = Dhc::on(node).run(&["--check", "neuron-sysfs", "--deadline", "9s"]);
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Replace));
    let failed = outcome.findings("neuron-sysfs", Status::Fail);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].subject.name, "neuron15");
    let unknown = outcome.findings("neuron-sysfs", Status::Unknown);
    for stuck in ["neuron0", "neuron0/core0/status", "neuron1/core1/status"] {
        assert!(
            unknown.iter().any(|finding| finding.subject.name == stuck
                && finding.message.contains("did not answer")),
            "{stuck}: {unknown:?}"
        );
    }
}

#[test]
fn a_counter_of_a_device_that_is_new_is_read_too() {
    let folder = "/sys/devices/virtual/neuron_device/neuron3/stats/hardware";
    let with = |name: &str, count: &str| {
        let file = format!("{folder}/{name}");
        Dhc::on(FakeNode::trn1_32xlarge().file(&file, count)).check("neuron-sysfs")
    };
    let outcome = with("new_counter_uncorrected", "5\n");
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Replace));
    let failed = outcome.findings("neuron-sysfs", Status::Fail);
    assert_eq!(failed[0].subject.name, "neuron3/new_counter_uncorrected");
    assert_eq!(with("new_counter_uncorrected", "0\n").exit, 0);
    assert_eq!(with("new_counter_uncorrected", "").exit, 3);
    // Corrected errors are no fault; they are kept.
    let corrected = with("new_counter_corrected", "5\n");
    assert_eq!(corrected.exit, 0, "{:?}", corrected.complaints());
    let kept = &corrected.check("neuron-sysfs").record.measurements;
    assert!(
        kept.iter()
            .any(|kept| kept.subject.name == "neuron3/new_counter_corrected")
    );
}

#[test]
fn an_all_reduce_that_works_passes_and_its_bandwidths_are_computed() {
    let outcome = nccom(
        FakeNode::trn1_32xlarge()
            .tool("nccom-test")
            .prints(HEALTHY, 0),
    );
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (0, (Status::Pass, Action::None))
    );
    let measured = &outcome.check("nccom-local").record.measurements;
    let largest = measured
        .iter()
        .find(|found| found.metric == "nccom.allreduce.busbw" && found.at.bytes == Some(1 << 30))
        .unwrap();
    // 1 GiB in 20,500 us over 32 cores.
    let busbw = 1_073.741_824 / 20.5 * 62.0 / 32.0;
    assert!((largest.value.number().unwrap() - busbw).abs() < 1e-9);
}

#[test]
fn the_json_file_of_nccom_test_is_held_against_its_table() {
    let tool = || FakeNode::trn1_32xlarge().tool("nccom-test");
    let flag = "--report-to-json-file";
    let outcome = nccom(tool().reports(HEALTHY, flag, JSON));
    assert_eq!(outcome.exit, 0, "{:?}", outcome.complaints());
    let kept = &outcome.check("nccom-local").record.evidence;
    assert!(kept.iter().any(|kept| kept.name == "nccom-test.report"));
    for lie in [
        JSON.replace("1048576", "2097152"),
        "{".to_owned(),
        String::new(),
    ] {
        let outcome = nccom(tool().reports(HEALTHY, flag, lie));
        assert_eq!(outcome.verdict(), (Status::Error, Action::Retry));
    }
}

#[test]
fn an_older_nccom_test_is_asked_without_its_json_file() {
    let script = format!(
        "case \"$*\" in *--report-to-json-file*) \
         echo 'nccom-test: error: unrecognized arguments: --report-to-json-file' >&2; exit 2;; esac\n\
         cat <<'EOF'\n{HEALTHY}EOF"
    );
    let dhc = Dhc::on(FakeNode::trn1_32xlarge().tool("nccom-test").runs(&script));
    let outcome = dhc.run(&["--check", "nccom-local"]);
    assert_eq!(outcome.exit, 0, "{:?}", outcome.complaints());
    assert_eq!(dhc.node.calls("nccom-test").len(), 2);
}

#[test]
fn the_json_file_of_nccom_test_lies_in_no_directory() {
    let dhc = Dhc::on(
        FakeNode::trn1_32xlarge()
            .tool("nccom-test")
            .prints(HEALTHY, 0),
    );
    dhc.run(&["--check", "nccom-local"]);
    let calls = dhc.node.calls("nccom-test");
    let mut words = calls[0].split(' ');
    words.find(|word| word.starts_with("--report"));
    let file = words.next().unwrap();
    assert!(
        file.starts_with("/proc/") && file.contains("/fd/"),
        "{file}"
    );
}

#[test]
fn a_slow_all_reduce_of_the_cores_fails_and_one_without_a_limit_is_not_judged() {
    let slow = |node: FakeNode| {
        // A hundred times as long, with the bandwidths that follow.
        let times = HEALTHY
            .replace(
                "310.45           3.15           6.10",
                "31045.0           0.03           0.06",
            )
            .replace(
                "2105.33          29.69          57.52",
                "210533.0          0.30           0.58",
            )
            .replace(
                "20500.00          48.78          94.52",
                "2050000.0         0.49           0.95",
            );
        nccom(node.tool("nccom-test").prints(times, 0))
    };
    let failed = slow(FakeNode::trn1_32xlarge());
    assert_eq!(failed.verdict(), (Status::Fail, Action::Reboot));
    let found = failed.findings("nccom-local", Status::Fail);
    assert_eq!(found[0].metric, "nccom.allreduce.plateau");
    let unknown = slow(FakeNode::of("inf2.48xlarge"));
    assert_eq!(unknown.verdict().0, Status::Unknown);
}

#[test]
fn an_all_reduce_over_a_part_of_the_cores_is_not_held_against_the_bound_of_all() {
    let with_ranks = |ranks: &str, table: &str| {
        let node = FakeNode::trn1_32xlarge().tool("nccom-test");
        let ranks = format!("nccom-local.ranks={ranks}");
        let args = ["--check", "nccom-local", "--set", &ranks];
        Dhc::on(node.prints(table, 0))
            .command("run", &[&args[..], &["--format", "json"]].concat())
            .output()
            .unwrap()
    };
    let one = with_ranks("1", HEALTHY);
    assert_eq!(one.status.code(), Some(64));
    // Between two ranks the two bandwidths are the same.
    let of_two = HEALTHY
        .replace("0.49\n", "0.25\n")
        .replace("6.10\n", "3.15\n")
        .replace("57.52\n", "29.69\n")
        .replace("94.52\n", "48.78\n");
    let two = common::outcome(with_ranks("2", &of_two));
    assert_eq!(
        (two.exit, two.verdict()),
        (3, (Status::Unknown, Action::None))
    );
    let unknown = two.findings("nccom-local", Status::Unknown);
    assert!(
        unknown[0]
            .message
            .contains("2 of the node's 32 cores took part"),
        "{unknown:?}"
    );
    let all = common::outcome(with_ranks("32", HEALTHY));
    assert_eq!(all.exit, 0, "{:?}", all.complaints());
    for (ranks, table) in [("32", of_two.as_str()), ("2", HEALTHY)] {
        let lie = common::outcome(with_ranks(ranks, table));
        assert_eq!(lie.verdict(), (Status::Error, Action::Retry));
        let Ending::Failed { error } = &lie.check("nccom-local").record.ending else {
            panic!("a table of another number of ranks was believed")
        };
        assert!(error.contains("is that of another number"), "{error}");
    }
}

#[test]
fn a_table_that_ends_before_the_size_asked_for_is_not_believed() {
    let cut = HEALTHY.lines().filter(|line| !line.contains("1073741824"));
    let cut: String = cut.map(|line| format!("{line}\n")).collect();
    let outcome = nccom(FakeNode::trn1_32xlarge().tool("nccom-test").prints(cut, 0));
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (4, (Status::Error, Action::Retry))
    );
    let Ending::Failed { error } = &outcome.check("nccom-local").record.ending else {
        panic!("it did not fail")
    };
    assert!(error.contains("ends at 67108864 bytes"), "{error}");
}

#[test]
fn who_holds_neuron_devices_open_is_named() {
    let node = FakeNode::trn1_32xlarge()
        .process(4242, "python3", "/dev/neuron7")
        .process(4243, "sshd", "/dev/null");
    let outcome = nccom(node.tool("nccom-test").prints(HEALTHY, 0));
    let notes = &outcome.check("nccom-local").record.notes;
    let users = "Neuron devices were in use before the test: process 4242 (python3, /dev/neuron7)";
    assert!(notes.iter().any(|note| note == users), "{notes:?}");
}

#[test]
fn nccom_test_gets_one_rank_for_each_logical_core() {
    for (node, ranks) in [
        (FakeNode::trn1_32xlarge(), "32"),
        (FakeNode::trn2_48xlarge(), "64"),
    ] {
        let dhc = Dhc::on(node.tool("nccom-test").prints(HEALTHY, 0));
        dhc.run(&["--check", "nccom-local"]);
        let calls = dhc.node.calls("nccom-test");
        assert!(calls[0].contains(&format!("-r {ranks} ")), "{calls:?}");
    }
}

#[test]
fn a_size_with_a_wrong_result_is_a_fault_of_the_node_and_one_that_could_not_run_is_not() {
    let tool = || FakeNode::trn1_32xlarge().tool("nccom-test");
    let failed = nccom(tool().prints(FAILED, 1));
    assert_eq!(
        (failed.exit, failed.verdict()),
        (4, (Status::Error, Action::Retry))
    );
    let Ending::Failed { error } = &failed.check("nccom-local").record.ending else {
        panic!("it did not fail")
    };
    assert!(
        error.contains("33554432 bytes: Failure running neuron-bench")
            && error.contains("neuron-ls"),
        "{error}"
    );
    let mismatch = FAILED.replace(
        "    Failure running neuron-bench - log file /tmp/nccom_test_log_x1.log",
        "         8388608    fp32        4100           8.18          15.85    data mismatch",
    );
    let wrong = nccom(tool().prints(mismatch, 1));
    assert_eq!(wrong.verdict(), (Status::Fail, Action::Reboot));
    let found = wrong.findings("nccom-local", Status::Fail);
    assert!(
        found[0].message.contains("33554432 bytes: data mismatch"),
        "{}",
        found[0].message
    );
}

#[test]
fn devices_without_their_driver_accuse_nothing_and_devices_that_are_gone_do() {
    let no_driver = FakeNode::trn1_32xlarge().without("/sys/devices/virtual/neuron_device");
    let outcome = quick(no_driver);
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (4, (Status::Error, Action::Retry))
    );
    for check in ["neuron-count", "neuron-sysfs"] {
        let Ending::Failed { error } = &outcome.check(check).record.ending else {
            panic!("{check} ran")
        };
        assert!(error.contains("modprobe neuron"), "{error}");
    }
    let gone = FakeNode::trn1_32xlarge().without_neuron_devices();
    let outcome = Dhc::on(gone).run(&["--check", "neuron-count"]);
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Reboot));
}

#[test]
fn trainium_3_without_its_driver_accuses_nothing_and_its_links_are_looked_at() {
    const FIRST: &str = "0000:cc:00.0";
    for id in ["0x7564\n", "0x7565\n"] {
        let device = format!("/sys/bus/pci/devices/{FIRST}/device");
        let alone = || {
            let others = FakeNode::trn2_48xlarge().without_neuron_devices();
            let file = |name: &str| format!("/sys/bus/pci/devices/{FIRST}/{name}");
            others
                .file(&file("vendor"), "0x1d0f\n")
                .file(&file("class"), "0x088000\n")
                .file(&device, id)
        };
        let outcome = Dhc::on(alone()).check("neuron-count");
        assert_eq!(outcome.verdict(), (Status::Error, Action::Retry), "{id}");
        let narrow = FakeNode::trn2_48xlarge().file(&device, id).pci(FIRST);
        let outcome = Dhc::on(narrow.narrow(1)).check("host");
        assert_eq!(outcome.verdict(), (Status::Fail, Action::Reboot), "{id}");
        let failed = outcome.findings("host", Status::Fail);
        assert_eq!(failed[0].subject.name, FIRST);
    }
}

#[test]
fn a_device_that_cannot_be_listed_hides_no_other() {
    const UNREAD: &str = "/sys/devices/virtual/neuron_device/neuron5";
    let node = FakeNode::trn1_32xlarge()
        .neuron(3)
        .counter("sram_ecc_uncorrected", 5);
    let outcome = quick(node.unlistable(UNREAD));
    let failed = outcome.findings("neuron-sysfs", Status::Fail);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].subject.name, "neuron3");
    for (check, metric, subject) in [
        ("neuron-sysfs", "neuron.sram.uncorrected", "neuron5"),
        ("neuron-sysfs", "neuron.hbm.uncorrected", "neuron5"),
        ("neuron-sysfs", "neuron.core.hardware_errors", "neuron5"),
        ("neuron-count", "neuron.core.count", "node"),
    ] {
        let unknown = outcome.findings(check, Status::Unknown);
        let is_told = |finding: &&dhc_thresholds::Finding| {
            finding.metric == metric
                && finding.subject.name == subject
                && finding.message.contains("neuron5")
        };
        assert!(
            unknown.into_iter().any(|finding| is_told(&finding)),
            "{metric}"
        );
    }
    assert_eq!(outcome.check("neuron-count").status, Status::Unknown);
}

#[test]
fn a_bus_that_cannot_be_read_is_not_one_without_devices() {
    const BUS: &str = "/sys/bus/pci/devices";
    let vendor = format!("{BUS}/0000:00:04.0/vendor");
    let gone = || {
        let node = FakeNode::trn1_32xlarge().without_neuron_devices();
        node.file(&vendor, "0x1d0f\n")
    };
    for node in [
        gone().without(BUS),
        gone().without(BUS).file(BUS, "no folder"),
        gone().unreadable(&vendor),
    ] {
        let outcome = Dhc::on(node).run(&["--check", "neuron-count"]);
        let record = &outcome.check("neuron-count").record;
        let Ending::Failed { error } = &record.ending else {
            panic!("{record:?}")
        };
        assert!(
            error.contains("does not tell whether one is there"),
            "{error}"
        );
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (4, (Status::Error, Action::Retry))
        );
    }
}

#[test]
fn a_tool_that_cannot_look_accuses_nothing() {
    let tool = || FakeNode::trn1_32xlarge().tool("nccom-test");
    for node in [
        tool().prints(NO_DRIVER, 1),
        tool().prints_nothing(),
        tool().prints(&HEALTHY[..HEALTHY.find("Avg").unwrap()], 0),
        tool().prints(HEALTHY, 3),
        tool().crashes("segmentation"),
        FakeNode::trn1_32xlarge(),
    ] {
        let outcome = nccom(node);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (4, (Status::Error, Action::Retry)),
            "{:?}",
            outcome.complaints()
        );
    }
}

#[test]
fn a_tool_that_hangs_is_ended() {
    let outcome = nccom(FakeNode::trn1_32xlarge().tool("nccom-test").hangs());
    assert_eq!(outcome.verdict(), (Status::Error, Action::Retry));
    assert!(matches!(
        outcome.check("nccom-local").record.ending,
        Ending::TimedOut { .. }
    ));
}
