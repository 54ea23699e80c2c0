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

#[test]
fn healthy_hosts_pass() {
    for node in [
        FakeNode::p5_48xlarge(),
        FakeNode::trn2_48xlarge(),
        FakeNode::trn1_32xlarge(),
    ] {
        let outcome = host(node);
        assert_eq!(outcome.complaints(), []);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (0, (Status::Pass, Action::None))
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
fn a_kernel_log_that_cannot_be_read_is_unknown() {
    let outcome = host(FakeNode::p5_48xlarge().unreadable("/dev/kmsg"));
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None))
    );
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
