//! Peers within a node and across nodes, and bounds learned from them, in generated fleets with devices slow on purpose.
#![expect(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "tests of small numbers; one that cannot go on has failed"
)]
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "the example that prints the table uses the rest"
)]

mod simulation;

use dhc_thresholds::{
    Action, At, Better, CheckReport, Ending, Kind, Learned, NotLearned, PEERS, Record, Report,
    Revision, Sample, Status, Subject, Table, Terms, compare, judge, learn, revise,
};
use proptest::prelude::*;
use simulation::{Chance, DEVICES, Fleet, SPEED, many, metrics, percent, report, samples};

const SURE: Terms = Terms {
    coverage: 0.999,
    minimum: false,
};

fn table(limits: &str) -> Table {
    let text = format!("schema = \"dhc.thresholds/1\"\ninstance_type = \"generated\"\n{limits}");
    Table::parse(&text, "test.toml", &[&SPEED], &|_| None).unwrap()
}

fn floor(bounds: &str) -> Table {
    let limit = "[[limit]]\nmetric = \"nic.speed\"\nunit = \"GB/s\"\nsource = \"test\"\n";
    table(&format!("{limit}{bounds}\n"))
}

/// What peers say of each node: the device, the status and the words.
fn accused(results: &[Report]) -> Vec<(String, String, Status, String)> {
    let (nodes, _) = compare(results, &metrics);
    let mut accused = Vec::new();
    for node in nodes {
        for finding in node.checks.iter().flat_map(|check| &check.findings) {
            if finding
                .bound
                .as_ref()
                .is_some_and(|bound| bound.origin == PEERS)
            {
                let device = finding.subject.name.clone();
                accused.push((
                    node.name.clone(),
                    device,
                    finding.status,
                    finding.message.clone(),
                ));
            }
        }
    }
    accused
}

/// Nodes of eight devices at 100 GB/s or nearly so, but for those named.
fn speeds(nodes: usize, slow: &[(usize, f64)]) -> Vec<f64> {
    let mut speeds: Vec<f64> = (0..nodes * DEVICES)
        .map(|number| 100.0 + (number % 7) as f64 * 0.1)
        .collect();
    for (number, speed) in slow {
        speeds[*number] = *speed;
    }
    speeds
}

fn results(runs: &[Vec<f64>]) -> Vec<Report> {
    let table = floor("fail_below = 1");
    let one =
        |(number, speeds): (usize, &Vec<f64>)| report(&format!("run{number}"), &table, speeds);
    runs.iter().enumerate().map(one).collect()
}

// --- within a node -----------------------------------------------------------------------------------------------------

#[test]
fn a_device_unlike_the_others_of_its_node_is_a_warning_that_names_its_peers() {
    let report = &results(&[speeds(1, &[(3, 80.0)])])[0];
    let node = &report.nodes[0];
    assert_eq!(
        (node.status, node.action),
        (Status::Warn, Action::Investigate)
    );
    let finding = &node.faults[0].finding;
    assert_eq!(finding.subject, Subject::new(Kind::Nic, "nic3"));
    let bound = finding.bound.as_ref().unwrap();
    assert_eq!(
        (bound.rule.as_str(), bound.origin.as_str()),
        ("peers_below", PEERS)
    );
    assert!(
        bound.source.contains("of 8 of its kind"),
        "{}",
        bound.source
    );
    assert!(finding.margin.unwrap() < 0.0);
}

#[test]
fn both_conditions_have_to_hold() {
    // Far by spreads and near by share, then the other way round.
    let near = &results(&[speeds(1, &[(3, 96.0)])])[0];
    assert_eq!(near.status, Status::Pass);
    let wide: Vec<f64> = (0..8)
        .map(|number| 100.0 + f64::from(number) * 8.0)
        .collect();
    assert_eq!(results(&[wide])[0].status, Status::Pass);
}

#[test]
fn four_devices_are_too_few_to_be_peers() {
    let mut record = Record::new("nic-test", Ending::Finished);
    for (number, speed) in [100.0, 100.0, 100.0, 10.0].into_iter().enumerate() {
        let subject = Subject::new(Kind::Nic, format!("nic{number}"));
        record.measurements.push(SPEED.of(subject, speed));
    }
    assert_eq!(
        judge(&record, &[&SPEED], &floor("fail_below = 1")).status,
        Status::Pass
    );
}

#[test]
fn devices_of_another_model_are_no_peers() {
    let mut record = Record::new("nic-test", Ending::Finished);
    for number in 0..8 {
        let subject = Subject::new(Kind::Nic, format!("nic{number}"));
        let (model, speed) = if number < 6 {
            ("fast", 100.0)
        } else {
            ("storage", 25.0)
        };
        record.devices.push(dhc_thresholds::Device {
            subject: subject.clone(),
            identity: [("model".to_owned(), model.to_owned())].into(),
        });
        record.measurements.push(SPEED.of(subject, speed));
    }
    assert_eq!(
        judge(&record, &[&SPEED], &floor("fail_below = 1")).status,
        Status::Pass
    );
}

#[test]
fn peers_never_make_a_pass_of_what_no_table_limits() {
    let mut record = Record::new("nic-test", Ending::Finished);
    for number in 0..8 {
        let subject = Subject::new(Kind::Nic, format!("nic{number}"));
        record.measurements.push(SPEED.of(subject, 100.0));
    }
    assert_eq!(
        judge(&record, &[&SPEED], &table("")).status,
        Status::Unknown
    );
}

#[test]
fn what_the_table_fails_is_not_told_again_by_peers() {
    let report = report("run0", &floor("fail_below = 90"), &speeds(1, &[(3, 80.0)]));
    let faults = &report.nodes[0].faults;
    assert_eq!(faults.len(), 1);
    assert_eq!(
        faults[0].finding.bound.as_ref().unwrap().origin,
        "test.toml"
    );
}

// --- across nodes and runs ---------------------------------------------------------------------------------------------

#[test]
fn an_outlier_of_two_runs_in_three_fails_and_of_one_is_watched() {
    let bad = || speeds(8, &[(11, 80.0)]);
    let good = || speeds(8, &[]);
    let twice = accused(&results(&[bad(), good(), bad()]));
    assert_eq!(twice.len(), 1, "{twice:?}");
    let (node, device, status, message) = &twice[0];
    assert_eq!(
        (node.as_str(), device.as_str(), *status),
        ("node00001", "nic3", Status::Fail)
    );
    assert!(message.ends_with("in 2 of its last 3 runs"), "{message}");
    let once = accused(&results(&[good(), bad(), good()]));
    assert_eq!((once.len(), once[0].2), (1, Status::Warn), "{once:?}");
    // What was so before the last three runs is over.
    let past = accused(&results(&[bad(), bad(), good(), good(), good()]));
    assert_eq!(past, []);
}

#[test]
fn runs_of_another_boot_are_no_repeats() {
    let mut runs = results(&[speeds(8, &[(11, 80.0)]), speeds(8, &[(11, 80.0)])]);
    for node in &mut runs[0].nodes {
        node.identity.boot_id = Some("an earlier one".to_owned());
    }
    let accused = accused(&runs);
    assert_eq!(
        (accused.len(), accused[0].2),
        (1, Status::Warn),
        "{accused:?}"
    );
}

#[test]
fn the_same_result_twice_is_no_repeat() {
    let one = results(&[speeds(8, &[(11, 80.0)])]);
    let accused = accused(&[one[0].clone(), one[0].clone()]);
    assert_eq!(accused[0].2, Status::Warn);
}

#[test]
fn a_node_that_is_slow_as_a_whole_is_found_by_other_nodes_alone() {
    let slow: Vec<(usize, f64)> = (8..16).map(|number| (number, 80.0)).collect();
    let one = results(&[speeds(8, &slow)]);
    assert!(one[0].nodes.iter().all(|node| node.status == Status::Pass));
    let accused = accused(&one);
    assert_eq!(accused.len(), 8);
    assert!(accused.iter().all(|(node, ..)| node == "node00001"));
}

#[test]
fn nobody_is_singled_out_for_what_more_than_a_fifth_of_the_nodes_have() {
    // The same device of each of three nodes in ten.
    let slow: Vec<(usize, f64)> = [3, 35, 59].iter().map(|number| (*number, 80.0)).collect();
    let runs = results(&[speeds(10, &slow), speeds(10, &slow)]);
    let (nodes, fleet) = compare(&runs, &metrics);
    assert!(nodes.iter().all(|node| node.status == Status::Pass));
    let common = &fleet.widespread[0];
    assert_eq!(
        (common.bound.as_str(), common.nodes.len(), common.of),
        (PEERS, 3, 10)
    );
    // Two in ten are no more than a fifth.
    assert_eq!(accused(&results(&[speeds(10, &slow[..2])])).len(), 2);
}

#[test]
fn a_floor_that_many_nodes_break_asks_for_no_action_on_any_of_them() {
    let slow: Vec<(usize, f64)> = [3, 35, 59].iter().map(|number| (*number, 80.0)).collect();
    let runs = [report(
        "run0",
        &floor("fail_below = 90"),
        &speeds(10, &slow),
    )];
    let (nodes, fleet) = compare(&runs, &metrics);
    let failed: Vec<_> = nodes
        .iter()
        .filter(|node| node.status == Status::Fail)
        .collect();
    assert_eq!(failed.len(), 3);
    for node in failed {
        assert_eq!(node.action, Action::Investigate);
        assert!(node.faults[0].finding.message.contains("3 of 10 nodes"));
    }
    assert!(
        fleet
            .widespread
            .iter()
            .any(|common| common.bound == "table")
    );
}

#[test]
fn nodes_of_another_type_and_of_none_are_not_compared() {
    let mut runs = results(&[speeds(12, &[])]);
    for (number, node) in runs[0].nodes.iter_mut().enumerate() {
        if number >= 6 {
            node.identity.instance_type = Some("slower".to_owned());
            for seen in &mut node.checks[0].record.measurements {
                seen.value = 50.0.into();
            }
        }
    }
    assert_eq!(accused(&runs), []);
    runs[0].judged_by.instance_type = "generic".to_owned();
    runs[0].nodes[0].identity.instance_type = None;
    let (_, fleet) = compare(&runs, &metrics);
    assert_eq!(fleet.not_compared.len(), 1);
}

// --- learning ----------------------------------------------------------------------------------------------------------

fn normal(count: usize, seed: u64) -> Vec<Sample> {
    let mut chance = Chance(seed);
    let values: Vec<f64> = (0..count).map(|_| 100.0 + chance.normal()).collect();
    samples(&values)
}

#[test]
fn too_few_things_teach_nothing_and_it_is_said_how_many_are_missing() {
    let learned = learn(&normal(12, 1), Better::Higher, SURE);
    assert_eq!(
        learned,
        Err(NotLearned::TooFew {
            things: 12,
            needed: 20
        })
    );
    assert!(
        learned
            .unwrap_err()
            .to_string()
            .contains("8 more are needed")
    );
    // Five repeats of twelve things are still twelve things.
    let repeats: Vec<Sample> = (0..5).flat_map(|seed| normal(12, seed)).collect();
    assert_eq!(
        learn(&repeats, Better::Higher, SURE),
        Err(NotLearned::TooFew {
            things: 12,
            needed: 20
        })
    );
}

#[test]
fn a_fleet_of_which_a_ninth_is_slow_teaches_nothing_and_one_with_a_few_slow_ones_drops_them() {
    let mut fleet = normal(180, 3);
    for sample in &mut fleet[..9] {
        sample.value = 80.0;
    }
    let learned = learn(&fleet, Better::Higher, SURE).unwrap();
    assert_eq!(learned.dropped, (0..9).collect::<Vec<_>>());
    for sample in &mut fleet[..20] {
        sample.value = 80.0;
    }
    let refused = learn(&fleet, Better::Higher, SURE).unwrap_err();
    assert!(
        matches!(refused, NotLearned::Unhealthy { of: 180, .. }),
        "{refused}"
    );
}

#[test]
fn a_latency_is_bounded_above() {
    let learned = learn(&normal(100, 5), Better::Lower, SURE).unwrap();
    assert!(
        learned.bound > 103.0 && learned.bound < 106.0,
        "{}",
        learned.bound
    );
}

#[test]
fn the_least_value_is_a_bound_where_there_are_enough() {
    let least = Terms {
        coverage: 0.99,
        minimum: true,
    };
    assert_eq!(
        learn(&normal(298, 7), Better::Higher, least),
        Err(NotLearned::TooFew {
            things: 298,
            needed: 299
        })
    );
    let learned = learn(&normal(299, 7), Better::Higher, least).unwrap();
    let worst = learned.minimum.unwrap();
    assert!(
        learned.bound <= worst && learned.bound > worst - 0.1,
        "{learned:?}"
    );
}

#[test]
fn a_learned_bound_warns_beside_the_floor_and_never_lowers_it_unasked() {
    let anywhere = At::default();
    let revised = |bounds: &str, bound, may_lower| {
        revise(
            &floor(bounds),
            &SPEED,
            &anywhere,
            Better::Higher,
            bound,
            may_lower,
        )
    };
    let number = |revision: Revision| match revision {
        Revision::Limit(limit) => {
            let table = table("");
            let number = |number: Option<_>| number.and_then(|number| table.number(number));
            (
                number(limit.bounds.fail_below),
                number(limit.bounds.warn_below),
            )
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(
        number(revised("fail_below = 80", 96.0, false)),
        (Some(80.0), Some(96.0))
    );
    assert_eq!(
        number(revised("fail_below = 80\nwarn_below = 95", 96.0, false)),
        (Some(80.0), Some(96.0))
    );
    // Within 2 %, but five such steps would be ten.
    let a_little_lower = revised("fail_below = 80\nwarn_below = 97", 96.0, false);
    assert_eq!(a_little_lower, Revision::Stays);
    let lowers = revised("fail_below = 80\nwarn_below = 99", 96.0, false);
    assert!(
        matches!(lowers, Revision::Lowers { own: 99.0, .. }),
        "{lowers:?}"
    );
    assert_eq!(
        number(revised("fail_below = 80\nwarn_below = 99", 96.0, true)),
        (Some(80.0), Some(96.0))
    );
    assert_eq!(revised("fail_below = 97", 96.0, false), Revision::Stays);
    assert!(matches!(
        revised("fail_below = 99", 96.0, false),
        Revision::Lowers { .. }
    ));
    assert_eq!(
        number(revised("fail_below = 99", 96.0, true)),
        (Some(96.0), None)
    );
    assert_eq!(revised("expect = 100", 96.0, true), Revision::Stays);
}

fn learned(samples: &[Sample], better: Better) -> Learned {
    learn(samples, better, SURE).unwrap()
}

proptest! {
    #[test]
    fn the_order_of_the_samples_does_not_matter(seed in any::<u64>(), better in prop_oneof![Just(Better::Higher), Just(Better::Lower)]) {
        let samples = normal(60, seed);
        let mut shuffled = samples.clone();
        let mut chance = Chance(!seed);
        shuffled.sort_by_cached_key(|_| (chance.even() * 1e12) as u64);
        let (one, other) = (learned(&samples, better), learned(&shuffled, better));
        prop_assert_eq!((one.bound, one.centre, one.values), (other.bound, other.centre, other.values));
    }

    #[test]
    fn more_of_the_same_moves_the_bound_little(seed in any::<u64>()) {
        let mut samples = normal(200, seed);
        let before = learned(&samples, Better::Higher).bound;
        let mut more = normal(200, seed.wrapping_add(1));
        for sample in &mut more {
            sample.of.push('b');
        }
        samples.extend(more);
        let after = learned(&samples, Better::Higher).bound;
        prop_assert!((before - after).abs() < 1.5, "{} {}", before, after);
    }

    #[test]
    fn a_learned_bound_finds_its_own_samples_healthy_but_for_the_dropped(seed in any::<u64>(), slow in 0_usize..6) {
        let mut samples = normal(100, seed);
        for sample in &mut samples[..slow] {
            sample.value *= 0.7;
        }
        let learned = learned(&samples, Better::Higher);
        for (place, sample) in samples.iter().enumerate() {
            if !learned.dropped.contains(&place) {
                prop_assert!(sample.value >= learned.bound);
            }
        }
        prop_assert!(learned.dropped.len() >= slow);
    }
}

// --- rates -------------------------------------------------------------------------------------------------------------

/// The rates that `LEARNING.md` states, in fewer fleets than its table was made from.
#[test]
fn slow_devices_are_found_and_sound_ones_left_alone_as_often_as_is_stated() {
    for (nodes, fleets) in [(8, 40), (64, 6), (1_024, 1)] {
        for (spread, heavy) in [(0.005, false), (0.01, false), (0.02, false), (0.01, true)] {
            for slow in [0.10, 0.20] {
                let fleet = Fleet {
                    nodes,
                    spread,
                    heavy,
                    slow,
                    seed: 7,
                };
                let (once, thrice, _) = many(fleet, fleets);
                let case = format!("{fleet:?}: {once:?} {thrice:?}");
                let found = percent(thrice.failed, thrice.slow);
                let due = match (slow >= 0.2, spread >= 0.02, heavy) {
                    (true, _, true) => 90.0,
                    (true, _, false) => 97.0,
                    (false, false, false) => 99.0,
                    (false, true, _) => 60.0,
                    (false, _, true) => 85.0,
                };
                assert!(found >= due, "{case}");
                let innocent = percent(thrice.falsely_failed, thrice.sound);
                assert!(innocent <= if heavy { 0.5 } else { 0.02 }, "{case}");
            }
        }
    }
}

#[test]
fn of_ten_thousand_sound_devices_one_at_most_fails_in_two_runs_of_three() {
    for spread in [0.005, 0.01, 0.02] {
        let fleet = Fleet {
            nodes: 64,
            spread,
            heavy: false,
            slow: 0.0,
            seed: 11,
        };
        let (once, thrice, learned) = many(fleet, 20);
        let innocent = percent(thrice.falsely_failed, thrice.sound);
        assert!(innocent <= 0.01, "{spread}: {thrice:?}");
        assert!(
            percent(once.falsely_warned, once.sound) <= 0.02,
            "{spread}: {once:?}"
        );
        assert!(
            percent(learned.falsely_warned, learned.sound) < 0.3,
            "{learned:?}"
        );
    }
}

#[test]
fn what_the_check_could_not_look_at_stays_an_error_among_peers() {
    let record = Record::new(
        "nic-test",
        Ending::Failed {
            error: "no driver".to_owned(),
        },
    );
    let mut runs = results(&[speeds(8, &[])]);
    runs[0].nodes[2].checks[0] = CheckReport::new(record, &[&SPEED], &floor("fail_below = 1"));
    let (nodes, _) = compare(&runs, &metrics);
    assert_eq!(nodes[2].status, Status::Error);
}
