//! What it costs to read and to judge the results of a fleet: a thousand nodes of eight GPUs each, all measured alike.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]
#![expect(clippy::print_stderr, reason = "what was read stands beside its time")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dhc_benches::{Bench, QUICK};
use dhc_runners::tables;
use dhc_thresholds::{NodeReport, Report};

const NODES: u64 = 1_000;

fn judge(criterion: &mut Criterion) {
    let text = Bench::on_eight_gpus().run(&QUICK).stdout;
    let report = Report::parse(&text).expect("dhc left a report");
    let node = &report.nodes[0];
    let measurements: usize = node
        .checks
        .iter()
        .map(|check| check.record.measurements.len())
        .sum();
    eprintln!(
        "{} checks and {measurements} measurements a node, {} bytes",
        node.checks.len(),
        text.len()
    );
    let table = tables::built_in_table("p5.48xlarge")
        .expect("the type has a table")
        .table;
    let fleet: Vec<NodeReport> = vec![node.clone(); NODES as usize];

    let mut group = criterion.benchmark_group("fleet of 1,000 nodes");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(NODES));
    group.bench_function("judge", |timer| {
        timer.iter(|| {
            for node in &fleet {
                black_box(node.judged_again(&tables::metrics_of, &table));
            }
        });
    });
    group.bench_function("read", |timer| {
        timer.iter(|| {
            for _ in 0..NODES {
                black_box(Report::parse(&text).expect("it was read before"));
            }
        });
    });
    group.finish();
    criterion.bench_function("read and check the table of p5.48xlarge", |timer| {
        timer.iter(|| black_box(tables::built_in_table("p5.48xlarge")));
    });
}

criterion_group!(benches, judge);
criterion_main!(benches);
