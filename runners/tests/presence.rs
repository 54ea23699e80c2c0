//! What is there, what is missing, and what merely cannot be seen: network cards without their driver, a PCI bus that shows
//! nothing, folders that cannot be listed, of the built program on simulated machines.

mod common;

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Status};

const BUS: &str = "/sys/bus/pci/devices";
const CLASS: &str = "/sys/class/infiniband";

#[track_caller]
fn error_of<'a>(outcome: &'a Outcome, check: &str) -> &'a str {
    match &outcome.check(check).record.ending {
        Ending::Failed { error } => error,
        other => panic!("{check}: {other:?}"),
    }
}

fn faults(outcome: &Outcome, check: &str) -> Vec<String> {
    let failed = outcome.findings(check, Status::Fail);
    let faults = failed.iter().filter_map(|finding| finding.fault.clone());
    faults.collect()
}

/// An EFA card on the bus that nothing drives.
fn with_efa_function(node: FakeNode) -> FakeNode {
    let file = |name: &str| format!("{BUS}/0000:10:00.0/{name}");
    node.file(&file("vendor"), "0x1d0f\n")
        .file(&file("device"), "0xefa1\n")
        .file(&file("class"), "0x020000\n")
}

#[test]
fn efa_cards_without_their_driver_accuse_nothing() {
    let no_class = || FakeNode::p5_48xlarge().without(CLASS);
    let outcome = Dhc::on(no_class()).check("efa-loopback");
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (4, (Status::Error, Action::Retry)),
        "{:?}",
        outcome.complaints()
    );
    let error = error_of(&outcome, "efa-loopback");
    for part in ["32 cards", "0000:4f:00.0", "modprobe efa"] {
        assert!(error.contains(part), "{error}");
    }
    let unbound = no_class().without(&format!("{BUS}/0000:4f:00.0/driver"));
    let outcome = Dhc::on(unbound).check("efa-loopback");
    let error = error_of(&outcome, "efa-loopback");
    assert!(error.contains("0000:4f:00.0 (no driver has it)"), "{error}");
}

#[test]
fn one_efa_card_without_its_driver_is_named_and_one_that_is_gone_is_missing() {
    const CARD: &str = "/sys/class/infiniband/rdmap79s0";
    let outcome = Dhc::on(FakeNode::p5_48xlarge().without(CARD)).check("efa-loopback");
    assert_eq!(faults(&outcome, "efa-loopback"), Vec::<String>::new());
    let unknown = outcome.findings("efa-loopback", Status::Unknown);
    let of_card = |finding: &&&dhc_thresholds::Finding| finding.subject.name == "0000:4f:00.0";
    let told = unknown.iter().find(of_card).expect("the card is named");
    assert!(told.message.contains("has no RDMA device"), "{told:?}");
    let gone = FakeNode::p5_48xlarge().nic("rdmap79s0").missing();
    for node in [
        gone,
        FakeNode::p5_48xlarge()
            .nic("rdmap79s0")
            .missing()
            .without(CLASS),
    ] {
        let outcome = Dhc::on(node).check("efa-loopback");
        assert_eq!(faults(&outcome, "efa-loopback"), ["nic.missing"]);
        assert_eq!(outcome.verdict(), (Status::Fail, Action::Reboot));
    }
}

#[test]
fn rdma_cards_without_their_driver_accuse_nothing() {
    let dgx = || FakeNode::of("dgx-h100");
    let outcome = Dhc::on(dgx().without(CLASS)).check("rdma-nic");
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (4, (Status::Error, Action::Retry)),
        "{:?}",
        outcome.complaints()
    );
    let error = error_of(&outcome, "rdma-nic");
    assert!(error.contains("modprobe mlx5_ib"), "{error}");
    let two = ["mlx5_3", "mlx5_6"]
        .iter()
        .fold(dgx(), |node, card| node.without(&format!("{CLASS}/{card}")));
    let outcome = Dhc::on(two).check("rdma-nic");
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (3, (Status::Unknown, Action::None)),
        "{:?}",
        outcome.complaints()
    );
    let unknown = outcome.findings("rdma-nic", Status::Unknown);
    let named = unknown
        .iter()
        .filter(|finding| finding.message.contains("has no RDMA device"));
    assert_eq!(named.count(), 2, "{unknown:?}");
    let gone = dgx()
        .nic("mlx5_3")
        .missing()
        .without(&format!("{CLASS}/mlx5_6"));
    let outcome = Dhc::on(gone).check("rdma-nic");
    assert_eq!(faults(&outcome, "rdma-nic"), ["nic.missing"]);
}

#[test]
fn a_card_of_another_network_needs_no_rdma_device() {
    let file = |name: &str| format!("{BUS}/0000:01:00.0/{name}");
    let node = FakeNode::of("dgx-h100")
        .file(&file("vendor"), "0x15b3\n")
        .file(&file("device"), "0x1015\n")
        .file(&file("class"), "0x020000\n");
    let outcome = Dhc::on(node).check("rdma-nic");
    assert_eq!(outcome.exit, 0, "{:?}", outcome.complaints());
}

#[test]
fn cards_that_no_bus_can_tell_of_are_not_missing() {
    let cases = [
        (FakeNode::p5_48xlarge(), "efa-loopback"),
        (FakeNode::of("dgx-h100"), "rdma-nic"),
    ];
    for (node, check) in cases {
        let outcome = Dhc::on(node.without(CLASS).without(BUS)).check(check);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (3, (Status::Unknown, Action::None)),
            "{:?}",
            outcome.complaints()
        );
    }
}

#[test]
fn cards_that_may_be_there_are_looked_for_where_the_table_does_not_say() {
    let p5 = || FakeNode::of("p5.4xlarge");
    let none = p5().nic("rdmap82s0").missing().without(CLASS);
    let outcome = Dhc::on(none).check("efa-loopback");
    assert_eq!(outcome.check("efa-loopback").status, Status::Skip);
    let undriven = p5().without(CLASS);
    for node in [p5().unlistable(CLASS), undriven] {
        let outcome = Dhc::on(node).check("efa-loopback");
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (4, (Status::Error, Action::Retry)),
            "{:?}",
            outcome.complaints()
        );
    }
}

#[test]
fn what_is_on_the_bus_without_a_driver_is_looked_for_on_an_unknown_type() {
    let outcome = Dhc::on(with_efa_function(FakeNode::plain())).check("efa-loopback");
    let error = error_of(&outcome, "efa-loopback");
    assert!(error.contains("0000:10:00.0 (no driver has it)"), "{error}");
    let file = |name: &str| format!("{BUS}/0000:10:00.0/{name}");
    let neuron = FakeNode::plain()
        .file(&file("vendor"), "0x1d0f\n")
        .file(&file("device"), "0x7565\n")
        .file(&file("class"), "0x088000\n");
    let outcome = Dhc::on(neuron).check("neuron-count");
    let error = error_of(&outcome, "neuron-count");
    assert!(
        error.contains("1 Neuron devices are on the PCI bus"),
        "{error}"
    );
}

#[test]
fn a_neuron_folder_that_cannot_be_read_is_looked_at_where_the_table_does_not_say() {
    let devices = "/sys/devices/virtual/neuron_device";
    // Without its functions on the bus, so that the folder alone may hold some.
    let gone = FakeNode::trn2_48xlarge().without_neuron_devices();
    let dhc = Dhc::on(gone.unlistable(devices));
    let table = dhc.state.path().join("table.toml");
    let text = "schema = \"dhc.thresholds/1\"\ninstance_type = \"trn2.48xlarge\"\n";
    std::fs::write(&table, text).unwrap();
    let args = [
        "--check",
        "neuron-count",
        "--thresholds",
        table.to_str().unwrap(),
    ];
    let outcome = dhc.run(&args);
    assert_eq!(outcome.verdict(), (Status::Error, Action::Retry));
}

#[test]
fn one_function_that_does_not_answer_makes_no_check_of_gpus_skip() {
    let vendor = format!("{BUS}/0000:00:00.0/vendor");
    let node = FakeNode::p5_48xlarge().file("/sys/class/dmi/id/product_name", "Home Lab 1\n");
    let outcome = Dhc::on(node.file(&vendor, "").blocked(&vendor)).check("gpu-count");
    let unknown = outcome.findings("gpu-count", Status::Unknown);
    let of_function = unknown
        .iter()
        .any(|finding| finding.subject.name == "0000:00:00.0");
    assert!(of_function, "{unknown:?}");
    assert_eq!(outcome.exit, 3);
}

#[test]
fn a_bus_that_shows_nothing_is_no_pass_where_cards_are_due() {
    // In place of a file or folder, `unreadable` puts an empty folder.
    for node in [
        FakeNode::p5_48xlarge().without(BUS),
        FakeNode::p5_48xlarge().unreadable(BUS),
        FakeNode::trn2_48xlarge().unreadable(BUS),
    ] {
        let outcome = Dhc::on(node).check("host");
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (3, (Status::Unknown, Action::None)),
            "{:?}",
            outcome.complaints()
        );
        let unknown = outcome.findings("host", Status::Unknown);
        assert!(
            unknown[0].message.contains("shows no function"),
            "{unknown:?}"
        );
    }
    // A machine without such hardware need not have a bus.
    let dhc = Dhc::on(FakeNode::plain().unreadable(BUS));
    let outcome = dhc.check("host");
    let gaps = &outcome.check("host").record.gaps;
    assert!(
        gaps.iter()
            .all(|gap| gap.metric != "host.pcie.width_missing"),
        "{gaps:?}"
    );
}
