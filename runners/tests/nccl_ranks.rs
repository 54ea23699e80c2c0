//! `nccl-allreduce` by dhc's own ranks on this machine: real Open MPI, and the fake CUDA and NCCL behind the real FFI. Never
//! seen on GPUs.
mod common;

use std::path::Path;

use common::Outcome;
use common::gpus::Gpus;
use dhc_fixtures::FakeNode;
use dhc_thresholds::{CheckReport, Ending, Status, Value};

/// A type with EFA and two GPUs, on which everything is fast enough.
const TWO_GPUS: &str = r#"schema = "dhc.thresholds/1"
instance_type = "two-gpus"
extends = "p5.48xlarge"

[[hardware]]
kind = "nvidia_gpu"
count = 2
source = "as many as the fixture has"

[[limit]]
metric = "nccl.allreduce.plateau"
unit = "GB/s"
fail_below = 0.000001
source = "anything that moves"
"#;

/// A machine with two GPUs, its libraries, and dhc on it.
fn two_gpus() -> Gpus {
    common::rank();
    let mpirun = "export OMPI_MCA_mpi_yield_when_idle=1\nexec /usr/bin/mpirun \"$@\"";
    Gpus::on(FakeNode::plain().tool("mpirun").runs(mpirun), 2, TWO_GPUS)
}

impl Gpus {
    fn run(&self) -> Outcome {
        self.run_with(&self.libraries.nccl(), &self.libraries.cuda(), &[])
    }

    fn run_with(&self, nccl: &Path, cuda: &Path, more: &[&str]) -> Outcome {
        let output = self.command(nccl, cuda, more).output();
        common::outcome(output.expect("dhc can be started"))
    }

    fn command(&self, nccl: &Path, cuda: &Path, more: &[&str]) -> std::process::Command {
        let table = self.table();
        let nccl = format!("nccl-allreduce.libnccl={}", nccl.display());
        let cuda = format!("nccl-allreduce.libcuda={}", cuda.display());
        let mut args = vec![
            "--level",
            "cluster",
            "--check",
            "nccl-allreduce",
            "--launcher",
            "local",
            "--thresholds",
            &table,
            "--set",
            &nccl,
            "--set",
            &cuda,
            "--set",
            "nccl-allreduce.max-bytes=65536",
            "--set",
            "nccl-allreduce.size-ms=5",
        ];
        args.extend(["--format", "json"]);
        args.extend(more);
        self.dhc.command("run", &args)
    }
}

/// What was measured over both GPUs.
fn whole(outcome: &Outcome) -> &CheckReport {
    let cluster = outcome.report.cluster.as_ref();
    &cluster.expect("the cluster level was run").checks[0]
}

/// The check could not look: dhc says why in these words, and accuses nothing.
#[track_caller]
fn assert_could_not(outcome: &Outcome, words: &[&str]) {
    let Ending::Failed { error } = &whole(outcome).record.ending else {
        panic!("{:?}", whole(outcome).record);
    };
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    assert_eq!(outcome.exit, 4, "{error}");
    assert!(outcome.accused().is_empty(), "{:?}", outcome.accused());
}

#[test]
fn two_gpus_are_measured_size_by_size_and_pass() {
    let outcome = two_gpus().run();
    let check = whole(&outcome);
    assert_eq!(outcome.exit, 0, "{:#?}", check.record);
    let of = |metric: &str| {
        let all = check.record.measurements.iter();
        all.filter(move |one| one.metric == metric)
            .collect::<Vec<_>>()
    };
    for metric in [
        "busbw",
        "algbw",
        "latency",
        "latency_p50",
        "latency_p99",
        "latency_max",
    ] {
        let sizes: Vec<_> = of(&format!("nccl.allreduce.{metric}"))
            .iter()
            .map(|one| one.at.bytes)
            .collect();
        let due: Vec<_> = (3..=16).map(|power| Some(1 << power)).collect();
        assert_eq!(sizes, due, "{metric}");
    }
    let slowest = of("nccl.allreduce.latency")[0]
        .detail
        .clone()
        .unwrap_or_default();
    assert!(
        slowest.contains("slowest rank") && slowest.contains(":00.0 GPU-"),
        "{slowest}"
    );
    assert_eq!(of("nccl.allreduce.network")[0].value, Value::from("efa"));
    assert_eq!(of("nccl.allreduce.wrong")[0].value.number(), Some(0.0));
    let gpus: Vec<_> = check
        .record
        .devices
        .iter()
        .map(|gpu| gpu.identity["bdf"].as_str())
        .collect();
    assert_eq!(gpus, ["0000:53:00.0", "0000:64:00.0"]);
    let notes = check.record.notes.join("\n");
    for said in [
        "NCCL 2.27.3, CUDA driver for 12.8",
        "provider efa, aws-ofi-nccl 1.16.2",
        "P2P/CUMEM",
    ] {
        assert!(notes.contains(said), "`{said}` is not in: {notes}");
    }
}

#[test]
fn a_sum_that_is_wrong_on_one_gpu_is_corruption_and_names_it() {
    let gpus = two_gpus().with(|fake| fake.nccl_fault("ncclAllReduce", 1, 10, "\"lies\""));
    let outcome = gpus.run();
    assert_eq!(outcome.exit, 2);
    let findings = whole(&outcome).findings.iter();
    let failed: Vec<_> = findings
        .filter(|finding| finding.status == Status::Fail)
        .collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].fault.as_deref(), Some("data.corrupted"));
    let message = &failed[0].message;
    assert!(
        message.contains("seen by 1 of 2 ranks, most by rank 1 on "),
        "{message}"
    );
    assert!(message.contains("(0000:64:00.0 GPU-"), "{message}");
}

#[test]
fn a_library_that_is_missing_is_named_with_what_to_do() {
    let gpus = two_gpus();
    let nowhere = gpus.path("nowhere.so");
    let outcome = gpus.run_with(&nowhere, &gpus.libraries.cuda(), &[]);
    assert_could_not(
        &outcome,
        &[
            "nowhere.so` cannot be loaded",
            "nccl-allreduce.libnccl=PATH",
        ],
    );
    let outcome = gpus.run_with(&gpus.libraries.nccl(), &nowhere, &[]);
    assert_could_not(
        &outcome,
        &["nowhere.so` cannot be loaded", "part of NVIDIA's driver"],
    );
}

#[test]
fn a_library_that_lacks_a_call_is_named_with_the_call() {
    let gpus = two_gpus();
    let outcome = gpus.run_with(&gpus.libraries.cuda(), &gpus.libraries.cuda(), &[]);
    assert_could_not(
        &outcome,
        &["libcuda.so.1` has no `nccl", "too old or another library"],
    );
}

#[test]
fn a_communicator_that_does_not_come_about_is_told_in_the_words_of_nccl() {
    let gpus = two_gpus().with(|fake| fake.nccl_fault("ncclCommInitRank", 1, 0, "5"));
    assert_could_not(
        &gpus.run(),
        &["ncclCommInitRank: invalid usage", "Duplicate GPU detected"],
    );
}

#[test]
fn an_error_of_a_gpu_in_mid_sweep_is_told_and_not_judged() {
    let gpus = two_gpus().with(|fake| fake.cuda_fault("cuMemcpyDtoH_v2", 1, 5, "214"));
    assert_could_not(
        &gpus.run(),
        &["broke_off (cuMemcpyDtoH: CUDA_ERROR_ECC_UNCORRECTABLE"],
    );
}

#[test]
fn fewer_gpus_than_ranks_are_told_with_what_to_set() {
    let gpus = two_gpus();
    let more = ["--set", "nccl-allreduce.gpus-per-node=3"];
    let outcome = gpus.run_with(&gpus.libraries.nccl(), &gpus.libraries.cuda(), &more);
    assert_could_not(
        &outcome,
        &["has 2 GPUs to use; set nccl-allreduce.gpus-per-node"],
    );
}

#[test]
fn a_rank_that_dies_is_told() {
    let gpus = two_gpus().with(|fake| fake.nccl_fault("ncclAllReduce", 1, 10, "\"crashes\""));
    let outcome = gpus.run();
    assert_could_not(&outcome, &["died (exited on signal 6 (Aborted))"]);
}

#[test]
fn a_collective_that_hangs_ends_at_its_deadline() {
    let gpus = two_gpus().with(|fake| fake.nccl_fault("ncclAllReduce", 1, 10, "\"hangs\""));
    let (nccl, cuda) = (gpus.libraries.nccl(), gpus.libraries.cuda());
    let outcome = gpus.run_with(&nccl, &cuda, &["--deadline", "6s"]);
    let record = &whole(&outcome).record;
    assert!(
        matches!(record.ending, Ending::TimedOut { .. }),
        "{record:?}"
    );
    // What was measured before is kept.
    let measured = |one: &dhc_thresholds::Measurement| one.metric == "nccl.allreduce.network";
    assert!(record.measurements.iter().any(measured), "{record:?}");
    assert!(outcome.accused().is_empty(), "{:?}", outcome.accused());
}

#[test]
fn tcp_where_efa_is_due_fails_and_is_not_said_to_be_the_hardware() {
    let outcome = two_gpus().with(|fake| fake.network("socket")).run();
    let findings = whole(&outcome).findings.iter();
    let failed: Vec<_> = findings
        .filter(|finding| finding.status == Status::Fail)
        .collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].fault.as_deref(), Some("nccl.network"));
    assert_eq!(failed[0].action, dhc_thresholds::Action::Investigate);
    assert!(
        failed[0].message.contains("is socket, must be one of efa"),
        "{}",
        failed[0].message
    );
    assert_eq!(outcome.exit, 2);
}

#[test]
fn a_network_that_cannot_be_told_is_unknown_where_efa_is_due() {
    let outcome = two_gpus().with(|fake| fake.network("untold")).run();
    assert_eq!(whole(&outcome).status, Status::Unknown);
    assert_eq!(outcome.exit, 3);
}

#[test]
fn variables_of_nccl_reach_the_ranks_and_no_secret_does() {
    let gpus = two_gpus();
    let mut command = gpus.command(&gpus.libraries.nccl(), &gpus.libraries.cuda(), &[]);
    command
        .env("NCCL_ALGO", "Ring")
        .env("NCCL_PASSWORD", "drowssap");
    let output = command.output().expect("dhc can be started");
    let document = String::from_utf8_lossy(&output.stdout);
    assert!(document.contains("NCCL_ALGO"), "{document}");
    assert!(!document.contains("drowssap"), "{document}");
    let calls = gpus.dhc.node.calls("mpirun").join("\n");
    assert!(calls.contains("\"NCCL_ALGO\":\"Ring\""), "{calls}");
    assert!(!calls.contains("drowssap"), "{calls}");
}
