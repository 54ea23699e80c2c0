//! How many slow devices learned bounds and peers find in generated fleets, and how many sound ones they suspect: the table of
//! `LEARNING.md`. `cargo run --release --package dhc-thresholds --example fleets`
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "it prints a table of small numbers"
)]

#[path = "../tests/simulation/mod.rs"]
mod simulation;

use dhc_thresholds::{Better, Terms, learn};
use simulation::{Fleet, many, percent, samples};

fn main() {
    println!(
        "| nodes | spread | tails | slower by | warned (1 run) | failed (3 runs) | learned bound | false: warned (1 run) | failed (3 runs) | learned bound |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (nodes, fleets) in [(8, 400), (64, 60), (1_024, 5)] {
        for (spread, heavy) in [(0.005, false), (0.01, false), (0.02, false), (0.01, true)] {
            for slow in [0.03, 0.05, 0.10, 0.20] {
                let fleet = Fleet {
                    nodes,
                    spread,
                    heavy,
                    slow,
                    seed: 7,
                };
                let (once, thrice, learned) = many(fleet, fleets);
                let false_of =
                    |count: usize| format!("{:.2}", 1e6 * count as f64 / once.sound as f64 / 1e4);
                println!(
                    "| {nodes} | {} % | {} | {} % | {:.1} % | {:.1} % | {:.1} % | {} % | {} % | {} % |",
                    spread * 100.0,
                    if heavy { "heavy" } else { "normal" },
                    slow * 100.0,
                    percent(once.warned, once.slow),
                    percent(thrice.failed, thrice.slow),
                    percent(learned.warned, learned.slow),
                    false_of(once.falsely_warned),
                    false_of(thrice.falsely_failed),
                    false_of(learned.falsely_warned),
                );
            }
        }
    }
    println!("\n| things | bounds that 99.9 % of further values keep, normal | heavy tails |");
    println!("| --- | --- | --- |");
    for things in [20_usize, 50, 100, 300, 1_000] {
        let kept = |heavy| {
            let fleets = 400;
            let sound = (0..fleets).filter(|seed| {
                let fleet = Fleet {
                    nodes: things.div_ceil(8),
                    spread: 0.01,
                    heavy,
                    slow: 0.0,
                    seed: 1 + seed,
                };
                let values = fleet.values(1).remove(0);
                let terms = Terms {
                    coverage: 0.999,
                    minimum: false,
                };
                let Ok(learned) = learn(&samples(&values[..things]), Better::Higher, terms) else {
                    return false;
                };
                let further = Fleet {
                    nodes: 2_500,
                    seed: 1_000_000 + seed,
                    ..fleet
                };
                let beyond = further.values(1)[0]
                    .iter()
                    .filter(|value| **value < learned.bound)
                    .count();
                beyond <= 20
            });
            percent(sound.count(), fleets as usize)
        };
        println!("| {things} | {:.0} % | {:.0} % |", kept(false), kept(true));
    }
}
