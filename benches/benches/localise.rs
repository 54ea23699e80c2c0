//! How well and how fast the faulty nodes of simulated fleets are found. Prints the table; criterion times the planning.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]
#![expect(clippy::print_stderr, reason = "the table is the result")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use dhc_runners::localise::simulate::{Class, classes, tally};
use dhc_runners::localise::{Rates, Search, Settings, Step};

fn table(_: &mut Criterion) {
    eprintln!("| n | k | noise | waves, mean (p95) | exact | innocents a run | longest planning |");
    eprintln!("| --- | --- | --- | --- | --- | --- | --- |");
    for (false_alarm, miss) in [(0.01, 0.02), (0.05, 0.05)] {
        let rates = Rates { false_alarm, miss };
        for (nodes, runs) in [(8, 4_000), (64, 4_000), (1_024, 1_000), (16_384, 400)] {
            for faulty in [0, 1, 2, 8] {
                if faulty >= nodes {
                    continue;
                }
                let found = tally(nodes, faulty, rates, runs, 7);
                eprintln!(
                    "| {nodes} | {faulty} | {:.0} %/{:.0} % | {:.1} ({}) | {:.1} % | {:.4} | {:.1} ms |",
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
        "| class | n, rails, nodes under a leaf | named exactly | innocents a run | waves + closer look |"
    );
    eprintln!("| --- | --- | --- | --- | --- |");
    for (shape, runs) in [
        ((8, 2, 4), 1_000),
        ((64, 4, 8), 1_000),
        ((1_024, 8, 32), 200),
        ((16_384, 8, 32), 20),
    ] {
        for class in Class::ALL {
            // More pairs than these no search could try.
            if class == Class::Path && shape.0 > 32 {
                continue;
            }
            let found = classes(class, shape, rates, runs, 7);
            let share = |count: usize| count as f64 / runs as f64;
            eprintln!(
                "| {class:?} | {shape:?} | {:.1} % | {:.4} | {:.1} + {:.1} |",
                share(found.exact) * 100.0,
                share(found.innocent),
                share(found.waves),
                share(found.closer_waves)
            );
        }
    }
}

fn planning(criterion: &mut Criterion) {
    criterion.bench_function("plan the first waves for 16,384 nodes", |timer| {
        timer.iter(|| {
            let mut search = Search::new(16_384, Settings::default());
            let Step::Wave(_) = search.step() else { return };
            search.tell(&[dhc_runners::localise::Outcome::Failed]);
            black_box(search.step());
        });
    });
}

criterion_group!(benches, table, class_table, planning);
criterion_main!(benches);
