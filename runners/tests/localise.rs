//! The search for the nodes to blame, in simulated fleets whose faults are known.

use std::collections::BTreeSet;

use dhc_runners::localise::simulate::{Class, Fleet, classes, tally};
use dhc_runners::localise::{
    Conclusion, Finding, Gone, Layout, Node, Outcome, PathKind, Place, Purpose, Random, Rates,
    Search, Settings, Step, Verdict,
};
use proptest::prelude::*;

const QUIET: Rates = Rates {
    false_alarm: 0.0,
    miss: 0.0,
};
const NOISY: Rates = Rates {
    false_alarm: 0.01,
    miss: 0.02,
};

const NOBODY: [Node; 0] = [];

fn fleet(nodes: usize, faulty: &[Node]) -> Fleet {
    Fleet {
        nodes,
        faulty: faulty.iter().copied().collect(),
        rates: QUIET,
        ..Fleet::default()
    }
}

fn found(fleet: &Fleet, seed: u64) -> (Finding, usize) {
    let settings = Settings {
        seed,
        ..Settings::default()
    };
    let (search, _) = fleet.search(settings, &mut Random::new(seed));
    (search.finding(), search.waves())
}

fn accused(finding: &Finding) -> Vec<Node> {
    (0..finding.nodes.len())
        .filter(|node| finding.nodes[*node].verdict.is_against())
        .collect()
}

/// What the simulator has to show: waves as published for searches of this kind, and the planted set found. Fewer runs
/// than in the bench, so the bound on exactness leaves room for chance: with a true share of 98.5 %, fewer than 95 % of 200
/// exact runs happen less than once in a thousand times.
#[test]
fn the_planted_nodes_are_found_in_few_waves() {
    let varied: u64 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64);
    for seed in [7, varied] {
        for (nodes, faulty, waves) in [
            (8, 0, 2.1),
            (8, 1, 5.3),
            (8, 2, 6.2),
            (64, 0, 2.2),
            (64, 1, 5.7),
            (64, 2, 6.0),
            (64, 8, 7.1),
            (1_024, 0, 3.7),
            (1_024, 1, 5.8),
            (1_024, 2, 6.1),
            (1_024, 8, 7.6),
        ] {
            let found = tally(nodes, faulty, NOISY, 200, seed);
            let case = format!("{faulty} of {nodes}, seed {seed}: {found:?}");
            assert!(found.exactness() >= 0.95, "{case}");
            assert!(found.innocent <= 4, "{case}");
            // A tenth of a wave is what 200 runs leave to chance.
            assert!(found.mean_waves() <= waves + 0.3, "{case}");
        }
    }
}

#[test]
fn a_large_fleet_is_searched_as_well() {
    let found = tally(16_384, 8, NOISY, 10, 7);
    assert!(found.exact >= 9, "{found:?}");
    assert!(found.mean_waves() <= 9.2, "{found:?}");
}

#[test]
fn many_faulty_ones_are_found_with_few_good_ones_to_try_them_with() {
    for (nodes, faulty) in [(8, 3), (12, 5)] {
        let found = tally(nodes, faulty, NOISY, 200, 7);
        assert!(found.exactness() >= 0.97, "{faulty} of {nodes}: {found:?}");
    }
}

#[test]
fn nobody_is_accused_where_all_are_alike() {
    for nodes in [2, 3, 4, 8, 64, 1_024] {
        let all: Vec<Node> = (0..nodes).collect();
        let (finding, waves) = found(&fleet(nodes, &all), 3);
        assert_eq!(accused(&finding), NOBODY, "{nodes} nodes");
        assert_eq!(finding.conclusion, Conclusion::AllAlike, "{nodes} nodes");
        assert!(waves <= 4);
    }
}

#[test]
fn two_nodes_cannot_tell_which_of_them_it_is() {
    let (finding, _) = found(&fleet(2, &[1]), 3);
    assert_eq!(accused(&finding), NOBODY);
    assert!(
        finding
            .nodes
            .iter()
            .all(|node| node.verdict == Verdict::Undecided)
    );
}

#[test]
fn three_nodes_can() {
    for seed in 0..20 {
        for faulty in 0..3 {
            let (finding, _) = found(&fleet(3, &[faulty]), seed);
            assert_eq!(accused(&finding), [faulty], "seed {seed}: {finding:?}");
        }
    }
}

#[test]
fn a_slow_path_between_good_nodes_accuses_neither() {
    for seed in 0..20 {
        let fleet = Fleet {
            paths: [(2, 5)].into(),
            ..fleet(8, &[])
        };
        let (finding, waves) = found(&fleet, seed);
        assert_eq!(accused(&finding), NOBODY, "seed {seed}: {finding:?}");
        let paths: Vec<_> = finding.paths.iter().map(|path| path.nodes).collect();
        assert_eq!(paths, [(2, 5)], "seed {seed}: {finding:?}");
        assert_eq!(finding.paths[0].kind, PathKind::Stays, "seed {seed}");
        assert_eq!(finding.conclusion, Conclusion::Paths);
        assert!(waves <= 20, "seed {seed}: {waves}");
    }
}

/// All pairs of so many take more waves than a search for nodes may have.
#[test]
fn a_slow_path_among_as_many_nodes_as_pairs_are_promised_for_is_named() {
    // The pairs have their turn one after another: one of these is in the last wave of them.
    for other in 3..32 {
        let fleet = Fleet {
            paths: [(2, other)].into(),
            ..fleet(32, &[])
        };
        let (finding, waves) = found(&fleet, 1);
        assert_eq!(accused(&finding), NOBODY, "{other}: {finding:?}");
        let paths: Vec<_> = finding.paths.iter().map(|path| path.nodes).collect();
        assert_eq!(paths, [(2, other)], "{waves} waves: {finding:?}");
        assert_eq!(finding.conclusion, Conclusion::Paths, "{other}");
    }
}

/// Also when all that is measured after it tells nothing any more.
#[test]
fn a_slow_path_that_was_found_stays_in_the_conclusion() {
    let fleet = Fleet {
        paths: [(2, 5)].into(),
        ..fleet(8, &[])
    };
    let mut search = Search::new(8, Settings::default());
    let mut failed = 0;
    let mut is_other_slow = false;
    while let Step::Wave(groups) = search.step() {
        let outcomes: Vec<Outcome> = groups
            .iter()
            .map(|group| {
                // Beside the slow path one more pair fails now and then, so the search is not at its end with the first.
                let is_other = group.purpose == Purpose::Path && group.nodes == [0, 7];
                is_other_slow ^= is_other;
                match fleet.measure(group, &mut Random::new(1)) {
                    _ if failed >= 3 => Outcome::Unknown,
                    _ if is_other && is_other_slow => Outcome::Failed,
                    outcome => {
                        let is_path = group.purpose == Purpose::Path && group.nodes == [2, 5];
                        failed += u32::from(is_path && outcome == Outcome::Failed);
                        outcome
                    }
                }
            })
            .collect();
        search.tell(&outcomes);
    }
    let finding = search.finding();
    assert_eq!(failed, 3);
    let found = finding.paths.iter().any(|path| path.nodes == (2, 5));
    assert!(found, "{finding:?}");
    assert_eq!(finding.conclusion, Conclusion::Paths);
}

#[test]
fn a_dead_node_costs_nobody_else_the_verdict() {
    for nodes in [3, 8, 64] {
        let fleet = Fleet {
            dead: [1].into(),
            ..fleet(nodes, &[])
        };
        let (finding, _) = found(&fleet, 5);
        assert_eq!(finding.nodes[1].verdict, Verdict::Unresponsive);
        let others = finding
            .nodes
            .iter()
            .enumerate()
            .filter(|(node, _)| *node != 1);
        assert!(
            others
                .clone()
                .all(|(_, node)| node.verdict == Verdict::Healthy),
            "{nodes}: {finding:?}"
        );
    }
}

#[test]
fn a_node_that_stumbled_once_is_interrupted_and_not_accused() {
    let fleet = fleet(8, &[]);
    let mut search = Search::new(8, Settings::default());
    let mut first = true;
    while let Step::Wave(groups) = search.step() {
        let outcomes: Vec<Outcome> = groups
            .iter()
            .map(|group| match std::mem::take(&mut first) {
                true => Outcome::Named(vec![6]),
                false => fleet.measure(group, &mut Random::new(1)),
            })
            .collect();
        search.tell(&outcomes);
    }
    let finding = search.finding();
    assert_eq!(accused(&finding), NOBODY);
    assert_eq!(finding.nodes[6].verdict, Verdict::Interrupted);
    assert_eq!(finding.conclusion, Conclusion::AllGood);
}

/// A search among eight good nodes whose groups with node 6 come to what `of_it` says, in the order in which they are
/// measured; all others pass.
fn among_good_ones(mut of_it: impl FnMut(usize) -> Outcome) -> (Finding, usize) {
    let mut search = Search::new(8, Settings::default());
    let mut groups_of_it = 0;
    while let Step::Wave(groups) = search.step() {
        let outcomes = groups.iter().map(|group| {
            if !group.nodes.contains(&6) {
                return Outcome::Passed;
            }
            groups_of_it += 1;
            of_it(groups_of_it)
        });
        let outcomes: Vec<Outcome> = outcomes.collect();
        search.tell(&outcomes);
    }
    (search.finding(), groups_of_it)
}

fn named() -> Outcome {
    Outcome::Named(vec![6])
}

#[test]
fn a_node_is_unresponsive_only_if_it_works_in_no_group_after_the_first_that_names_it() {
    let (finding, groups) = among_good_ones(|group| match group {
        1 => Outcome::Passed,
        _ => named(),
    });
    assert_eq!(finding.nodes[6].verdict, Verdict::Unresponsive);
    assert_eq!(groups, 3);
    // A group that got stuck without anybody to name does not show that it works.
    let (finding, groups) = among_good_ones(|group| match group {
        2 => Outcome::Hung,
        _ => named(),
    });
    assert_eq!(finding.nodes[6].verdict, Verdict::Unresponsive);
    assert_eq!(groups, 3);
}

#[test]
fn a_node_that_is_named_now_and_then_and_works_in_between_is_suspect_and_from_the_third_time_on_hangs()
 {
    let (finding, groups) = among_good_ones(|group| match group {
        1 | 3 => named(),
        _ => Outcome::Passed,
    });
    assert_eq!(finding.nodes[6].verdict, Verdict::Suspect);
    assert_eq!(accused(&finding), NOBODY);
    assert!(groups < 8, "{groups} groups");
    let (finding, groups) = among_good_ones(|group| match group % 2 {
        1 => named(),
        _ => Outcome::Passed,
    });
    assert_eq!(finding.nodes[6].verdict, Verdict::Hanging);
    assert_eq!(finding.conclusion, Conclusion::Nodes);
    assert_eq!(groups, 5, "the others go on without it");
    let others = (0..8).filter(|node| *node != 6);
    for node in others {
        assert_eq!(finding.nodes[node].verdict, Verdict::Healthy);
    }
}

#[test]
fn a_node_that_is_lost_is_in_no_further_group_and_costs_nobody_else_the_verdict() {
    for (gone, verdict, conclusion) in [
        (Gone::Down, Verdict::Unresponsive, Conclusion::Nodes),
        (Gone::TakenAway, Verdict::Undecided, Conclusion::AllGood),
    ] {
        for lost_after in 0..4 {
            let mut search = Search::new(8, Settings::default());
            if lost_after == 0 {
                search.lose(6, gone);
            }
            while let Step::Wave(groups) = search.step() {
                let is_lost = search.waves() >= lost_after;
                let outcomes = groups.iter().map(|group| {
                    let with_it = group.nodes.contains(&6);
                    assert!(!is_lost || !with_it, "{group:?}");
                    // What Slurm refuses says nothing by itself.
                    match with_it && search.waves() + 1 == lost_after {
                        true => Outcome::Unknown,
                        false => Outcome::Passed,
                    }
                });
                let outcomes: Vec<Outcome> = outcomes.collect();
                search.tell(&outcomes);
                // Told again after every wave.
                if search.waves() >= lost_after {
                    search.lose(6, gone);
                }
            }
            let finding = search.finding();
            let case = format!("{gone:?} after {lost_after} waves: {finding:?}");
            assert!(search.waves() <= 6, "{} waves, {case}", search.waves());
            if lost_after < 3 {
                assert_eq!(finding.nodes[6].verdict, verdict, "{case}");
                assert_eq!(finding.conclusion, conclusion, "{case}");
            }
            let others = (0..8).filter(|node| *node != 6);
            for node in others {
                assert_eq!(finding.nodes[node].verdict, Verdict::Healthy, "{case}");
            }
        }
    }
}

#[test]
fn a_fleet_that_cannot_be_measured_is_not_known() {
    let mut search = Search::new(8, Settings::default());
    while let Step::Wave(groups) = search.step() {
        search.tell(&vec![Outcome::Unknown; groups.len()]);
    }
    assert!(search.waves() <= 3);
    let finding = search.finding();
    assert_eq!(finding.conclusion, Conclusion::NotKnown);
    assert_eq!(accused(&finding), NOBODY);
}

#[test]
fn a_node_is_accused_of_what_its_groups_came_to() {
    for (outcome, verdict) in [
        (Outcome::Failed, Verdict::Faulty),
        (Outcome::Corrupted, Verdict::Corrupting),
        (Outcome::Hung, Verdict::Hanging),
        (Outcome::Broken, Verdict::Breaking),
    ] {
        let fleet = fleet(8, &[4]);
        let mut search = Search::new(8, Settings::default());
        while let Step::Wave(groups) = search.step() {
            let outcomes: Vec<Outcome> = groups
                .iter()
                .map(|group| match fleet.measure(group, &mut Random::new(1)) {
                    Outcome::Failed => outcome.clone(),
                    other => other,
                })
                .collect();
            search.tell(&outcomes);
        }
        let finding = search.finding();
        assert_eq!(accused(&finding), [4], "{outcome:?}");
        assert_eq!(finding.nodes[4].verdict, verdict, "{outcome:?}");
    }
}

/// Every class of fault is named, with the node, card, rail or leaf that it is at, and nobody else is: in fleets of all
/// sizes, with the noise of real groups.
#[test]
fn each_class_of_fault_is_named_with_its_place() {
    for (nodes, rails, under_leaf, runs) in [(8, 2, 4, 100), (64, 4, 8, 100), (1_024, 8, 32, 20)] {
        for class in Class::ALL {
            // Among more than a few dozen nodes no search could try every pair.
            if class == Class::Path && nodes > 32 {
                continue;
            }
            let found = classes(class, (nodes, rails, under_leaf), NOISY, runs, 11);
            let case = format!("{class:?} among {nodes}: {found:?}");
            assert!(found.exact * 100 >= found.runs * 95, "{case}");
            assert!(found.innocent * 33 <= found.runs, "{case}");
        }
    }
}

/// What few nodes have in common, a path or a rail, makes suspects of the innocent more easily than among many.
#[test]
fn a_path_or_a_rail_of_eight_nodes_is_named_and_no_node_is() {
    // The true shares are 97.4 % and 99.8 %; by chance these bounds are missed less than once in a thousand times.
    for (class, least) in [(Class::Path, 94), (Class::Rail, 98)] {
        for seed in [7, 8] {
            let found = classes(class, (8, 2, 4), NOISY, 400, seed);
            let case = format!("{class:?}, seed {seed}: {found:?}");
            assert!(found.exact * 100 >= found.runs * least, "{case}");
            assert!(found.innocent * 100 <= found.runs, "{case}");
        }
    }
}

#[test]
fn a_card_is_named_only_where_rails_are_known() {
    let fleet = Fleet {
        nics: [(3, 1)].into(),
        ..fleet(8, &[])
    };
    let (finding, _) = found(&fleet, 4);
    assert_eq!(accused(&finding), [3]);
    assert_eq!(finding.nodes[3].cause.place, Place::Network);
    assert_eq!(finding.nodes[3].cause.rails, []);
}

#[test]
fn two_slow_cards_of_one_node_are_both_named() {
    let fleet = Fleet {
        nics: [(3, 1), (3, 2)].into(),
        layout: Layout {
            leaves: None,
            rails: 4,
        },
        ..fleet(8, &[])
    };
    for seed in 0..20 {
        let (finding, _) = found(&fleet, seed);
        assert_eq!(accused(&finding), [3], "seed {seed}");
        assert_eq!(
            finding.nodes[3].cause.place,
            Place::Nics(vec![1, 2]),
            "seed {seed}: {finding:?}"
        );
    }
}

#[test]
fn a_slow_node_under_a_slow_uplink_is_told_from_its_neighbours() {
    for seed in 0..20 {
        let fleet = Fleet {
            faulty: [5].into(),
            leaves: [1].into(),
            layout: Layout {
                leaves: Some((0..16).map(|node| node / 4).collect()),
                rails: 0,
            },
            ..fleet(16, &[])
        };
        let (finding, waves) = found(&fleet, seed);
        let case = format!("seed {seed}, {waves} waves: {:?}", finding.conclusion);
        assert_eq!(accused(&finding), [5], "{case}");
        assert_eq!(finding.leaves, [1], "{case}");
    }
}

#[test]
fn a_path_that_is_slow_now_and_then_is_told_from_a_slow_link() {
    let mut moving = 0;
    for seed in 0..40 {
        let fleet = Fleet {
            paths: [(2, 5)].into(),
            path_share: Some(0.8),
            ..fleet(8, &[])
        };
        let (finding, _) = found(&fleet, seed);
        assert_eq!(accused(&finding), NOBODY, "seed {seed}: {finding:?}");
        let moves = |kind: PathKind| kind == PathKind::Moves;
        moving += finding.paths.iter().filter(|path| moves(path.kind)).count();
        let stays = finding.paths.iter().filter(|path| !moves(path.kind));
        // Four of five by chance happen in one of five runs.
        assert!(stays.count() <= 1, "seed {seed}");
    }
    assert!(moving >= 3, "{moving}");
}

#[test]
fn wrong_results_are_shown_by_a_majority_of_three() {
    let fleet = Fleet {
        corrupting: [4].into(),
        ..fleet(8, &[])
    };
    let (finding, _) = found(&fleet, 9);
    assert_eq!(finding.nodes[4].verdict, Verdict::Corrupting);
    let majority = finding.nodes[4]
        .cause
        .majority
        .expect("three were compared");
    assert_eq!((majority.with_it.failed, majority.with_it.passed), (2, 0));
    assert_eq!(
        (majority.without_it.failed, majority.without_it.passed),
        (0, 1)
    );
    assert_eq!(finding.nodes[4].cause.place, Place::Network);
}

/// Where good nodes are slow by themselves too, being slow by itself says nothing of a node.
#[test]
fn a_node_is_slow_by_itself_only_where_others_are_not() {
    let fleet = Fleet {
        faulty: [3].into(),
        inside: (0..8).collect(),
        ..fleet(8, &[])
    };
    let (finding, _) = found(&fleet, 2);
    assert_eq!(accused(&finding), [3]);
    assert_eq!(finding.nodes[3].cause.place, Place::NotKnown);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn without_noise_the_planted_set_is_found_exactly(
        nodes in 5_usize..200,
        share in 0_usize..20,
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let planted = Fleet::with_faulty(nodes, nodes * share / 100, QUIET, &mut random);
        let (finding, _) = found(&planted, seed);
        let planted: Vec<Node> = planted.faulty.into_iter().collect();
        prop_assert_eq!(accused(&finding), planted);
    }

    #[test]
    fn whatever_groups_answer_waves_stay_sound_and_come_to_an_end(
        nodes in 0_usize..40,
        groups_max in 2_usize..10,
        rails in 0_usize..5,
        leaves in prop::option::of(1_usize..9),
        answers in prop::collection::vec(0_u8..5, 0..400),
        seed in any::<u64>(),
    ) {
        let settings = Settings { groups_max, seed, ..Settings::default() };
        let waves_max = settings.waves_max;
        let leaves = leaves.map(|under| (0..nodes).map(|node| node / under).collect());
        let mut search = Search::new(nodes, settings).within(Layout { leaves, rails });
        let mut answers = answers.into_iter().chain(std::iter::repeat(1));
        while let Step::Wave(groups) = search.step() {
            prop_assert!(!groups.is_empty() && groups.len() <= groups_max, "{groups:?}");
            let mut seen = BTreeSet::new();
            for group in &groups {
                let least = if group.purpose == Purpose::Alone { 1 } else { 2 };
                prop_assert!(group.nodes.len() >= least, "{group:?}");
                prop_assert!(group.rails.only().is_none_or(|rail| rail < rails), "{group:?}");
                for node in &group.nodes {
                    prop_assert!(*node < nodes && seen.insert(*node), "{groups:?}");
                }
            }
            let outcomes: Vec<Outcome> = groups
                .iter()
                .map(|group| match answers.next() {
                    Some(0) => Outcome::Passed,
                    Some(2) => Outcome::Named(vec![group.nodes[0]]),
                    Some(3) => Outcome::Unknown,
                    Some(4) => Outcome::Corrupted,
                    _ => Outcome::Failed,
                })
                .collect();
            search.tell(&outcomes);
            // All pairs come on top: two rounds of them, with room for those in doubt.
            let all_pairs = if nodes <= 32 { 2 * (nodes + 10) } else { 0 };
            prop_assert!(search.waves() <= waves_max + all_pairs);
            prop_assert!(search.closer_waves() <= 400, "a closer look has an end");
        }
        prop_assert_eq!(search.finding().nodes.len(), nodes);
    }
}
