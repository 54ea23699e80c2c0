//! What it costs to read what tools and the kernel print.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dhc_checks::format::kernel_log::KernelLog;
use dhc_checks::format::{dcgmi, nccom_test};
use dhc_checks::host::redact;

const DCGMI: &str = include_str!("../../fixtures/outputs/dcgmi/4.5-r4-fail.json");
const NCCOM: &str = include_str!("../../fixtures/outputs/nccom_test/allr-32-ranks.txt");

/// A kernel log of 10,000 lines, one in a hundred of which tells of a fault.
fn kernel_log() -> String {
    (0..10_000)
        .map(|line| {
            let seconds = 1_000.0 + f64::from(line) * 0.25;
            if line % 100 == 0 {
                format!("<3>[{seconds:12.6}] NVRM: Xid (PCI:0000:53:00): 79, pid=4242, GPU has fallen off the bus.\n")
            } else {
                format!("<6>[{seconds:12.6}] systemd[1]: Started session {line} of user ubuntu.\n")
            }
        })
        .collect()
}

fn read(criterion: &mut Criterion) {
    let log = kernel_log();
    assert_eq!(KernelLog::read(log.as_bytes()).events.len(), 100);
    assert!(dcgmi::read(DCGMI.as_bytes()).is_ok());
    assert!(nccom_test::read(NCCOM).is_ok());

    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(DCGMI.len() as u64));
    group.bench_function("dcgmi diag -j", |timer| {
        timer.iter(|| black_box(dcgmi::read(DCGMI.as_bytes())))
    });
    group.throughput(Throughput::Bytes(NCCOM.len() as u64));
    group.bench_function("nccom-test", |timer| {
        timer.iter(|| black_box(nccom_test::read(NCCOM)))
    });
    group.throughput(Throughput::Bytes(log.len() as u64));
    group.bench_function("kernel log", |timer| {
        timer.iter(|| black_box(KernelLog::read(log.as_bytes())))
    });
    group.bench_function("secrets in a kernel log", |timer| {
        timer.iter(|| black_box(redact::text(&log)))
    });
    group.finish();
}

criterion_group!(benches, read);
criterion_main!(benches);
