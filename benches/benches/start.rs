//! What it costs to start `dhc`, and to run the whole quick instance level on eight GPUs.
//!
//! `cpu` counts the processor time of `dhc` and of all processes below it, the rest is time on the wall.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use dhc_benches::{Bench, QUICK};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

fn start(criterion: &mut Criterion) {
    let bench = Bench::on_eight_gpus();
    for args in [["--version"], ["list"]] {
        let name = format!("start/dhc {}", args[0]);
        criterion.bench_function(&name, |timer| timer.iter(|| black_box(bench.dhc(&args))));
    }
}

fn quick_level(criterion: &mut Criterion) {
    let bench = Bench::on_eight_gpus();
    let output = bench.run(&QUICK);
    assert!(
        matches!(output.status.code(), Some(0..=3)),
        "the machine was not looked at: {output:?}"
    );
    let mut group = criterion.benchmark_group("quick instance level, 8 GPUs");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(8));
    group.bench_function("wall", |timer| timer.iter(|| black_box(bench.run(&QUICK))));
    group.bench_function("cpu", |timer| {
        timer.iter_custom(|times| {
            let before = cpu_of_children();
            for _ in 0..times {
                black_box(bench.run(&QUICK));
            }
            cpu_of_children() - before
        });
    });
    group.finish();
}

/// Processor time of all children that have ended so far, and of theirs.
fn cpu_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    let of = |time: TimeVal| {
        let microseconds = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(microseconds.unsigned_abs())
    };
    of(usage.user_time()) + of(usage.system_time())
}

criterion_group!(benches, start, quick_level);
criterion_main!(benches);
