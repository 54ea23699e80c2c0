//! `gpu-stress` and `gpu-pairs` by the built program: the fake CUDA driver, which computes nothing by itself, the fake cuBLAS,
//! which multiplies on the CPU, and the fake NVML, behind the real FFI. Never seen on a GPU.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests look at what the program left, and may stop anywhere"
)]

mod common;

use std::path::Path;

use common::Outcome;
use common::gpus::Gpus;
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Finding, Status};

/// The type whose machine is simulated, with floors that a fake on a CPU passes.
const TABLE: &str = r#"schema = "dhc.thresholds/1"
instance_type = "p5.48xlarge"
extends = "p5.48xlarge"

[[limit]]
metric = "gpu.stress.products"
unit = "TFLOP/s"
fail_below = 0.0000000001
source = "anything that computes"

[[limit]]
metric = "gpu.stress.memory.bandwidth"
unit = "GB/s"
fail_below = 0.0000000001
source = "anything that moves"

[[limit]]
metric = "gpu.pairs.bandwidth"
unit = "GB/s"
fail_below = 0.0000000001
source = "anything that moves"
"#;

/// A sound p5.48xlarge, its libraries, and dhc on it.
fn eight_gpus() -> Gpus {
    gpus(FakeNode::p5_48xlarge(), 8)
}

/// A node of which CUDA knows so many GPUs.
fn gpus(node: FakeNode, count: u32) -> Gpus {
    Gpus::on(node, count, TABLE).with(|libraries| libraries.memory_mib(32).takes_ms(20, 2))
}

impl Gpus {
    fn stress(&self, more: &[&str]) -> Outcome {
        self.stress_over(&self.libraries.cuda(), &self.libraries.cublas(), more)
    }

    fn stress_over(&self, cuda: &Path, cublas: &Path, more: &[&str]) -> Outcome {
        let cuda = format!("gpu-stress.libcuda={}", cuda.display());
        let cublas = format!("gpu-stress.libcublas={}", cublas.display());
        let settings = [&cuda, &cublas, "gpu-stress.seconds=1", "gpu-stress.size=64"];
        self.run("gpu-stress", &settings, more)
    }

    fn pairs(&self, more: &[&str]) -> Outcome {
        let cuda = format!("gpu-pairs.libcuda={}", self.libraries.cuda().display());
        self.run("gpu-pairs", &[&cuda, "gpu-pairs.mib=1"], more)
    }

    fn run(&self, check: &str, settings: &[&str], more: &[&str]) -> Outcome {
        let table = self.table();
        let mut args = vec!["--check", check, "--thresholds", &table];
        for setting in settings {
            args.extend(["--set", setting]);
        }
        args.extend(more);
        self.dhc.run(&args)
    }
}

/// What fails, as metric and subject.
fn failing<'a>(outcome: &'a Outcome, check: &str) -> Vec<(&'a str, &'a str)> {
    let named = |finding: &'a Finding| (finding.metric.as_str(), finding.subject.name.as_str());
    outcome
        .findings(check, Status::Fail)
        .into_iter()
        .map(named)
        .collect()
}

/// What an outlier among its peers is: metric and subject of each warning.
fn unlike<'a>(outcome: &'a Outcome, check: &str, metric: &str) -> Vec<&'a str> {
    let warnings = outcome.findings(check, Status::Warn);
    let of_peers = warnings.into_iter().filter(|finding| {
        let bound = finding.bound.as_ref();
        finding.metric == metric && bound.is_some_and(|bound| bound.origin == "peers")
    });
    of_peers
        .map(|finding| finding.subject.name.as_str())
        .collect()
}

fn details(outcome: &Outcome, check: &str, metric: &str, subject: &str) -> String {
    let measurements = &outcome.check(check).record.measurements;
    let mut those = measurements
        .iter()
        .filter(|one| one.metric == metric && one.subject.name == subject);
    those.next().unwrap().detail.clone().unwrap_or_default()
}

fn gaps<'a>(outcome: &'a Outcome, check: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let gaps = outcome.check(check).record.gaps.iter();
    gaps.map(|gap| {
        (
            gap.metric.as_ref(),
            gap.subject.name.as_str(),
            gap.why.as_str(),
        )
    })
    .collect()
}

#[test]
fn sound_gpus_compute_and_keep_all_and_are_measured() {
    let outcome = eight_gpus().stress(&[]);
    assert_eq!(failing(&outcome, "gpu-stress"), []);
    assert_eq!(gaps(&outcome, "gpu-stress"), []);
    assert!(matches!(
        outcome.check("gpu-stress").record.ending,
        Ending::Finished
    ));
    for metric in [
        "gpu.stress.wrong",
        "gpu.stress.memory.wrong",
        "gpu.stress.products",
        "gpu.stress.memory.bandwidth",
        "gpu.stress.to_gpu",
        "gpu.stress.to_host",
        "gpu.stress.clock",
        "gpu.stress.power",
        "gpu.stress.temperature",
        "gpu.stress.throttled",
    ] {
        let measurements = &outcome.check("gpu-stress").record.measurements;
        let mut subjects: Vec<&str> = measurements
            .iter()
            .filter(|one| one.metric == metric)
            .map(|one| one.subject.name.as_str())
            .collect();
        subjects.sort_unstable();
        let all = [
            "gpu0", "gpu1", "gpu2", "gpu3", "gpu4", "gpu5", "gpu6", "gpu7",
        ];
        assert_eq!(subjects, all, "{metric}");
    }
}

#[test]
fn every_gpu_and_every_pair_has_its_own_figures_in_prometheus() {
    let gpus = eight_gpus();
    let page = |name: &str| {
        let file = gpus.path(name);
        (format!("prometheus={}", file.display()), file)
    };
    let (stress_to, stress) = page("stress.prom");
    let (pairs_to, pairs) = page("pairs.prom");
    let outcome = gpus.stress(&["--export", &stress_to]);
    let ways = gpus.pairs(&["--export", &pairs_to]);
    let [stress, pairs] = [stress, pairs].map(|file| std::fs::read_to_string(file).unwrap());
    let subjects = |page: &str, family: &str, metric: &str| {
        let of_metric = format!("metric=\"{metric}\"");
        let those = page
            .lines()
            .filter(|line| line.starts_with(&format!("{family}{{")) && line.contains(&of_metric));
        let name = |line: &str| {
            line.split("subject=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .to_owned()
        };
        those.map(name).collect::<std::collections::BTreeSet<_>>()
    };
    for (family, metric) in [
        ("dhc_check_flop_per_second", "gpu.stress.products"),
        ("dhc_check_power_watts", "gpu.stress.power"),
        ("dhc_check_temperature_celsius", "gpu.stress.temperature"),
    ] {
        assert_eq!(
            subjects(&stress, family, metric).len(),
            8,
            "{family}: {stress}"
        );
    }
    assert!(
        stress.contains("dhc_check_threshold_flop_per_second{"),
        "{stress}"
    );
    let measured = &outcome.check("gpu-stress").record.measurements;
    let power = measured.iter().find(|one| one.metric == "gpu.stress.power");
    let watts = power.unwrap().value.number().unwrap();
    let sample = format!("device=\"gpu0\",subject=\"gpu0\"}} {watts}");
    assert!(stress.contains(&sample), "{sample}: {stress}");
    let of_pairs = subjects(
        &pairs,
        "dhc_check_bandwidth_bytes_per_second",
        "gpu.pairs.bandwidth",
    );
    assert!(of_pairs.contains("gpu0/to-gpu3"), "{of_pairs:?}");
    let record = &ways.check("gpu-pairs").record;
    let judged = record
        .measurements
        .iter()
        .filter(|one| one.metric == "gpu.pairs.bandwidth");
    assert_eq!(of_pairs.len(), judged.count());
}

#[test]
fn a_gpu_that_computes_a_wrong_product_is_named_and_replaced() {
    let outcome = eight_gpus()
        .with(|libraries| libraries.products(5, "lies"))
        .stress(&[]);
    assert_eq!(
        failing(&outcome, "gpu-stress"),
        [("gpu.stress.wrong", "gpu5")]
    );
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (2, (Status::Fail, Action::Replace))
    );
    let detail = details(&outcome, "gpu-stress", "gpu.stress.wrong", "gpu5");
    assert!(
        detail.starts_with("first at row 21, column 32 of 64: "),
        "{detail}"
    );
    let fault = &outcome.report.nodes[0].faults[0];
    assert_eq!(fault.class, "gpu.corrupts");
}

#[test]
fn a_gpu_with_a_bad_memory_word_is_named_with_its_bits() {
    let outcome = eight_gpus()
        .with(|libraries| libraries.bad_memory(2, 1_500_002, 0x10))
        .stress(&[]);
    let fails = failing(&outcome, "gpu-stress");
    assert_eq!(fails, [("gpu.stress.memory.wrong", "gpu2")]);
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Replace));
    let detail = details(&outcome, "gpu-stress", "gpu.stress.memory.wrong", "gpu2");
    // Byte 2 of the word.
    assert!(
        detail.starts_with("bits 0x00100000 differed, from address 0x"),
        "{detail}"
    );
    assert!(
        detail.contains("(1 and 1 MiB into the memory under test)"),
        "{detail}"
    );
}

#[test]
fn a_gpu_that_is_slower_than_the_seven_others_warns() {
    let outcome = eight_gpus()
        .with(|libraries| libraries.takes_ms(40, 0).products(3, "crawls"))
        .stress(&[]);
    assert_eq!(failing(&outcome, "gpu-stress"), []);
    assert!(unlike(&outcome, "gpu-stress", "gpu.stress.products").contains(&"gpu3"));
}

#[test]
fn a_gpu_that_slows_down_of_heat_warns() {
    // nvml.h: nvmlClocksEventReasonHwThermalSlowdown, and the power cap, which is no reason to worry.
    let node = FakeNode::p5_48xlarge()
        .gpu(6)
        .with("clocks_event_reasons = 0x44");
    let outcome = gpus(node, 8).stress(&[]);
    let warnings = outcome.findings("gpu-stress", Status::Warn);
    let hot: Vec<_> = warnings
        .into_iter()
        .filter(|finding| finding.metric == "gpu.stress.throttled")
        .map(|finding| (finding.subject.name.as_str(), finding.fault.as_deref()))
        .collect();
    assert_eq!(hot, [("gpu6", Some("gpu.thermal"))]);
}

#[test]
fn without_the_cuda_driver_the_check_says_what_is_missing() {
    let gpus = eight_gpus();
    let nowhere = gpus.path("libcuda.so.9");
    let outcome = gpus.stress_over(&nowhere, &gpus.libraries.cublas(), &[]);
    let Ending::Failed { error } = &outcome.check("gpu-stress").record.ending else {
        panic!("{:?}", outcome.check("gpu-stress").record.ending);
    };
    assert!(
        error.contains("libcuda.so.9") && error.contains("NVIDIA's driver"),
        "{error}"
    );
    assert_eq!(outcome.verdict(), (Status::Error, Action::Retry));
}

#[test]
fn without_cublas_memory_is_tested_and_products_are_unknown() {
    let gpus = eight_gpus();
    let nowhere = gpus.path("libcublas.so.9");
    let outcome = gpus.stress_over(&gpus.libraries.cuda(), &nowhere, &[]);
    let tested = outcome.findings("gpu-stress", Status::Pass);
    let tested = tested
        .iter()
        .filter(|one| one.metric == "gpu.stress.memory.wrong");
    assert_eq!(tested.count(), 8);
    let gaps = gaps(&outcome, "gpu-stress");
    let products = gaps
        .iter()
        .filter(|(metric, _, why)| *metric == "gpu.stress.wrong" && why.contains("install cuBLAS"));
    assert_eq!(products.count(), 8, "{gaps:?}");
    assert_eq!(outcome.verdict().0, Status::Unknown);
}

#[test]
fn a_gpu_that_hangs_ends_at_the_deadline_and_is_named() {
    for gpus in [
        eight_gpus().with(|libraries| libraries.products(4, "hangs")),
        eight_gpus().with(|libraries| libraries.cuda_fault("cuMemcpyDtoH_v2", 4, 2, "\"hangs\"")),
    ] {
        let outcome = gpus.stress(&["--deadline", "10s"]);
        let check = outcome.check("gpu-stress");
        assert!(
            matches!(check.record.ending, Ending::TimedOut { .. }),
            "{:?}",
            check.record.ending
        );
        let said = &outcome.findings("gpu-stress", Status::Error)[0].message;
        assert!(said.contains("while: gpu4 "), "{said}");
        assert!(!said.contains("gpu3"), "{said}");
        assert!(
            check
                .record
                .measurements
                .iter()
                .any(|one| one.subject.name == "gpu3"),
            "what was seen of the others is kept"
        );
        assert_eq!(outcome.verdict().0, Status::Error);
        assert_eq!(failing(&outcome, "gpu-stress"), []);
    }
}

#[test]
fn memory_that_the_driver_knows_to_be_lost_fails() {
    let outcome = eight_gpus()
        .with(|libraries| libraries.cuda_fault("cuMemcpyDtoH_v2", 1, 3, "214"))
        .stress(&[]);
    assert_eq!(
        failing(&outcome, "gpu-stress"),
        [("gpu.stress.uncorrectable", "gpu1")]
    );
    let gaps = gaps(&outcome, "gpu-stress");
    assert!(
        gaps.iter()
            .all(|(_, subject, why)| *subject == "gpu1" && why.contains("ECC_UNCORRECTABLE")),
        "{gaps:?}"
    );
}

#[test]
fn gpus_that_cuda_does_not_have_are_no_pass() {
    let outcome = gpus(FakeNode::p5_48xlarge(), 6).stress(&[]);
    let gaps = gaps(&outcome, "gpu-stress");
    let missing: Vec<&str> = gaps.iter().map(|(_, subject, _)| *subject).collect();
    assert_eq!(missing, ["gpu6", "gpu7"]);
    assert!(gaps[0].2.contains("0000:b9:00.0"), "{gaps:?}");
    assert!(outcome.verdict().0 >= Status::Unknown);
    let pairs = gpus(FakeNode::p5_48xlarge(), 6).pairs(&[]);
    assert_eq!(failing(&pairs, "gpu-pairs"), [("gpu.pairs.gpus", "node")]);
}

#[test]
fn every_pair_is_measured_in_both_directions_and_the_slow_one_is_named() {
    let outcome = eight_gpus()
        .with(|libraries| libraries.slow_pair(1, 5, 100))
        .pairs(&[]);
    assert_eq!(failing(&outcome, "gpu-pairs"), []);
    let measurements = &outcome.check("gpu-pairs").record.measurements;
    let pairs: Vec<_> = measurements
        .iter()
        .filter(|one| one.metric == "gpu.pairs.bandwidth")
        .collect();
    assert_eq!(pairs.len(), 56);
    assert!(
        pairs
            .iter()
            .all(|one| one.at.provider.as_deref() == Some("direct-rank-0"))
    );
    let slow = unlike(&outcome, "gpu-pairs", "gpu.pairs.bandwidth");
    let speeds: Vec<String> = pairs.iter().map(|one| one.value.to_string()).collect();
    assert!(slow.contains(&"gpu1/to-gpu5"), "{slow:?} of {speeds:?}");
}

#[test]
fn a_gpu_that_receives_other_words_than_were_sent_is_named() {
    let outcome = eight_gpus()
        .with(|libraries| libraries.bad_memory(7, 5_000, 0x0f))
        .pairs(&[]);
    let failing = failing(&outcome, "gpu-pairs");
    assert_eq!(failing.len(), 7, "{failing:?}");
    assert!(
        failing
            .iter()
            .all(|(metric, pair)| *metric == "gpu.pairs.wrong" && pair.ends_with("/to-gpu7")),
        "{failing:?}"
    );
}

#[test]
fn without_being_asked_for_neither_runs() {
    let outcome = eight_gpus()
        .dhc
        .run(&["--tag", "gpu", "--skip", "dcgm-diag,gpu-training"]);
    for check in ["gpu-stress", "gpu-pairs"] {
        let ending = &outcome.check(check).record.ending;
        assert!(
            matches!(ending, Ending::Skipped { reason, .. } if reason.contains("only when asked for")),
            "{ending:?}"
        );
    }
}
