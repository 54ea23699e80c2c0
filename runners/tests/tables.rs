//! The built-in threshold tables against what a sound machine measures: each bound that a check needs is there.

use dhc_checks::catalog;
use dhc_runners::tables;
use dhc_thresholds::{
    Ending, Hardware, Kind, Measurement, Metric, Record, Status, Subject, Table, Verdict, built_in,
    judge,
};

fn tables() -> Vec<Table> {
    built_in::names()
        .map(|name| {
            tables::built_in_table(name)
                .unwrap_or_else(|error| panic!("{name}: {error}"))
                .table
        })
        .collect()
}

fn metric(name: &str) -> &'static Metric {
    catalog::CHECKS
        .iter()
        .flat_map(|check| check.spec().metrics)
        .find(|metric| metric.name == name)
        .unwrap_or_else(|| panic!("no check declares `{name}`"))
}

/// What `efa-loopback` records of this many cards whose bandwidth of large messages is this.
fn efa(cards: u64, gb_per_s: f64) -> Vec<Measurement> {
    let mut seen = vec![metric("efa.device.count").of(Subject::node(), cards)];
    for card in 0..cards {
        let card = || Subject::new(Kind::Nic, format!("rdmap{card}s0"));
        let of = |name: &str, value: f64| metric(name).of(card(), value);
        seen.push(metric("efa.port.state").of(card(), "ACTIVE"));
        seen.push(
            metric("efa.loopback.state")
                .of(card(), "answered")
                .over("efa"),
        );
        seen.push(metric("efa.loopback.corrupted").of(card(), 0_u64));
        seen.push(metric("efa.counter.growth").of(card(), 0_u64));
        for bytes in [8, 4096] {
            seen.push(of("efa.loopback.latency", 25.0).at_bytes(bytes).over("efa"));
        }
        for (bytes, share) in [(65_536, 0.5), (1_048_576, 1.0)] {
            let bandwidth = of("efa.loopback.bandwidth", gb_per_s * share);
            seen.push(bandwidth.at_bytes(bytes).over("efa"));
        }
    }
    seen
}

fn judged(seen: Vec<Measurement>, table: &Table) -> Verdict {
    let mut record = Record::new("efa-loopback", Ending::Finished);
    record.measurements = seen;
    judge(&record, &tables::metrics_of("efa-loopback"), table)
}

#[track_caller]
fn assert_passes(seen: Vec<Measurement>, table: &Table) {
    let verdict = judged(seen, table);
    let complaints: Vec<_> = verdict
        .findings
        .iter()
        .filter(|finding| finding.status > Status::Pass)
        .collect();
    assert_eq!(
        verdict.status,
        Status::Pass,
        "{}: {complaints:?}",
        table.instance_type
    );
}

#[test]
fn sound_efa_cards_pass_under_every_table_that_has_them_and_one_too_few_does_not() {
    let mut with_efa = 0;
    for table in tables() {
        let Some(cards) = table.due(Hardware::Efa).filter(|cards| *cards > 0) else {
            continue;
        };
        with_efa += 1;
        // Nine tenths of 400 Gbit/s, the fastest card there is.
        assert_passes(efa(cards, 45.0), &table);
        let one_less = judged(efa(cards - 1, 45.0), &table);
        assert_eq!(one_less.status, Status::Fail, "{}", table.instance_type);
        let broken = judged(efa(cards, 0.01), &table);
        assert_eq!(broken.status, Status::Fail, "{}", table.instance_type);
    }
    assert!(with_efa >= 10, "only {with_efa} tables have EFA cards");
}

#[test]
fn where_efa_cards_are_an_option_any_number_of_them_up_to_the_most_passes() {
    let mut optional = 0;
    for table in tables() {
        let most = table
            .limits
            .iter()
            .filter(|limit| limit.metric == "efa.device.count")
            .find_map(|limit| table.number(limit.bounds.fail_above?));
        let Some(most) = most else { continue };
        optional += 1;
        // A machine without any skips the check.
        for cards in 1..=most as u64 {
            assert_passes(efa(cards, 11.0), &table);
        }
        let more = judged(efa(most as u64 + 1, 11.0), &table);
        assert_eq!(more.status, Status::Fail, "{}", table.instance_type);
    }
    assert!(
        optional >= 5,
        "only {optional} tables have optional EFA cards"
    );
}

#[test]
fn sagemaker_s_names_of_instance_types_are_those_of_ec2() {
    let table = |name: &str| tables::built_in_table(name).map(|chosen| chosen.table.instance_type);
    assert!(matches!(table("ml.p5.48xlarge"), Ok(name) if name == "p5.48xlarge"));
    assert!(table("ml.no-such-type").is_err());
}

#[test]
fn a_gpu_with_less_memory_than_the_type_s_is_another_one() {
    let table = tables::built_in_table("p5.48xlarge").map(|chosen| chosen.table);
    let size = |mebibytes: u64| {
        let mut record = Record::new("gpu-count", Ending::Finished);
        record.measurements = vec![metric("gpu.memory.size").of(Subject::gpu(3), mebibytes)];
        let table = table.as_ref().expect("p5.48xlarge has a table");
        let verdict = judge(&record, &[metric("gpu.memory.size")], table);
        let finding = verdict.findings.iter().max_by_key(|finding| finding.status);
        finding.map(|finding| (finding.status, finding.fault.clone()))
    };
    let model = Some("gpu.model".into());
    assert_eq!(size(81_559), Some((Status::Pass, None)));
    assert_eq!(size(40_960), Some((Status::Fail, model)));
}
