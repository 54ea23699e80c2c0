//! How well and how fast the faulty nodes of simulated fleets are found. Prints the table; criterion times the planning.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]
#![expect(clippy::print_stderr, reason = "the table is the result")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use dhc_runners::localise::simulate::{Class, classes, tally};
use dhc_runners::localise::{Layout, Outcome, Rates, Search, Settings, Step};

/// A seed whose table can be repeated, and one that nobody has chosen.
fn seeds() -> [u64; 2] {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    [7, since.map_or(1, |since| since.as_nanos() as u64)]
}

fn table(_: &mut Criterion) {
    eprintln!(
        "| n | k | noise | seed | runs | waves, mean (p95) | exact | innocents a run | longest planning |"
    );
    eprintln!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (false_alarm, miss) in [(0.01, 0.02), (0.05, 0.05)] {
        let rates = Rates { false_alarm, miss };
        for (nodes, runs) in [(8, 20_000), (64, 20_000), (1_024, 4_000), (16_384, 500)] {
            for (faulty, seed) in [0, 1, 2, 8]
                .into_iter()
                .flat_map(|k| seeds().map(|seed| (k, seed)))
            {
                if faulty >= nodes {
                    continue;
                }
                let found = tally(nodes, faulty, rates, runs, seed);
                eprintln!(
                    "| {nodes} | {faulty} | {:.0} %/{:.0} % | {seed} | {runs} | {:.2} ({}) | {:.2} % | {:.4} | {:.1} ms |",
                    false_alarm * 100.0,
                    miss * 100.0,
                    found.mean_waves(),
                    found.p95_waves(),
                    found.exactness() * 100.0,
                    found.innocent as f64 / runs as f64,
                    found.planning.as_secs_f64() * 1e3
                );
            }
        }
    }
}

/// One fault of each class, planted by chance: is the class named with its node, card, rail or leaf, and nobody else?
fn class_table(_: &mut Criterion) {
    let rates = Rates {
        false_alarm: 0.01,
        miss: 0.02,
    };
    eprintln!(
        "| class | n, rails, nodes under a leaf | seed | runs | named exactly | innocents a run | waves + closer look | longest planning |"
    );
    eprintln!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (shape, runs) in [
        ((8, 2, 4), 10_000),
        ((64, 4, 8), 4_000),
        ((1_024, 8, 32), 1_000),
        ((16_384, 8, 32), 100),
    ] {
        for (class, seed) in Class::ALL
            .into_iter()
            .flat_map(|class| seeds().map(|seed| (class, seed)))
        {
            // More pairs than these no search could try.
            if class == Class::Path && shape.0 > 32 {
                continue;
            }
            let found = classes(class, shape, rates, runs, seed);
            let share = |count: usize| count as f64 / runs as f64;
            eprintln!(
                "| {class:?} | {shape:?} | {seed} | {runs} | {:.2} % | {:.4} | {:.1} + {:.1} | {:.1} ms |",
                share(found.exact) * 100.0,
                share(found.innocent),
                share(found.waves),
                share(found.closer_waves),
                found.planning.as_secs_f64() * 1e3
            );
        }
    }
}

/// The first waves of a search among 16,384 nodes whose parts all fail, with nothing known of the network and with 512
/// leaves and 8 rails.
fn planning(criterion: &mut Criterion) {
    let leaves = Layout {
        leaves: Some((0..16_384).map(|node| node / 32).collect()),
        rails: 8,
    };
    for (name, layout) in [("", Layout::default()), (" under 512 leaves", leaves)] {
        criterion.bench_function(
            &format!("plan the first waves for 16,384 nodes{name}"),
            |timer| {
                timer.iter(|| {
                    let mut search =
                        Search::new(16_384, Settings::default()).within(layout.clone());
                    for _ in 0..4 {
                        let Step::Wave(groups) = search.step() else {
                            return;
                        };
                        search.tell(&vec![Outcome::Failed; groups.len()]);
                    }
                    black_box(search.step());
                });
            },
        );
    }
}

criterion_group!(benches, table, class_table, planning);
criterion_main!(benches);
