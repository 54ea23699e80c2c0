//! `nccl-allreduce` over hosts that hang or break: real ranks and real Open MPI on this machine, each rank in a host name of its
//! own (a UTS namespace), and the fake CUDA and NCCL behind the real FFI. Never seen on GPUs.
#![expect(
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::Outcome;
use common::gpus::{Gpus, one_gpu};
use dhc_fixtures::{FakeNode, GpuLibraries};
use dhc_thresholds::Status;

const HOSTS: [&str; 4] = ["n1", "n2", "n3", "n4"];

/// Open MPI's launcher, told that the hosts of its command line are this machine.
const MPIRUN: &str = r#"export HOSTS="$2" OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
ranks=$4; shift 4
exec /usr/bin/mpirun --host "localhost:$ranks" -n "$ranks" "$@""#;

/// A worker on the host of its rank.
const WORKER: &str = r#"#!/bin/sh
host=$(echo "$HOSTS" | cut -d, -f$((OMPI_COMM_WORLD_RANK + 1)))
exec unshare --user --map-root-user --uts sh -c \
    'echo "$1" >/proc/sys/kernel/hostname && shift && exec "$@"' sh "${host%%:*}" RANK "$@"
"#;

/// Hosts whose libraries are these.
fn hosts(libraries: impl FnOnce(GpuLibraries) -> GpuLibraries) -> Gpus {
    let rank = common::rank();
    let node = FakeNode::plain().tool("mpirun").runs(MPIRUN);
    let gpus = Gpus::on(node, 1, &one_gpu(0.000_001, "anything that moves"));
    let worker = gpus.path("worker");
    std::fs::write(
        &worker,
        WORKER.replace("RANK \"", &format!("'{}' \"", rank.display())),
    )
    .unwrap();
    std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o755)).unwrap();
    gpus.with(libraries)
}

impl Gpus {
    /// The search over all hosts, whose groups have so long.
    fn run(&self, deadline: &str) -> Outcome {
        let nccl = format!("nccl-allreduce.libnccl={}", self.libraries.nccl().display());
        let cuda = format!("nccl-allreduce.libcuda={}", self.libraries.cuda().display());
        let table = self.table();
        let worker = self.path("worker").display().to_string();
        let nodes = HOSTS.join(",");
        let mut args = vec!["--level", "cluster", "--check", "nccl-allreduce"];
        args.extend(["--launcher", "mpirun", "--nodelist", &nodes, "--seed", "1"]);
        args.extend(["--worker", &worker, "--thresholds", &table]);
        args.extend(["--set", &nccl, "--set", &cuda, "--deadline", deadline]);
        for setting in ["max-bytes=65536", "quick-bytes=65536", "size-ms=5"] {
            let setting = format!("nccl-allreduce.{setting}");
            args.extend(["--set", setting.leak()]);
        }
        self.dhc.run(&args)
    }
}

/// Why the group of all hosts did not come to its end.
fn why_of_whole(outcome: &Outcome) -> &str {
    outcome.groups()[0].error.as_deref().unwrap_or_default()
}

/// Each host that is not well, with the class of its fault if it has one.
fn unwell(outcome: &Outcome) -> Vec<(&str, Status, Option<&str>)> {
    let nodes = outcome.report.nodes.iter();
    let unwell = nodes.filter(|node| node.status != Status::Pass);
    let of =
        |node: &'_ dhc_thresholds::NodeReport| node.faults.first().map(|fault| fault.class.clone());
    unwell
        .map(|node| {
            (
                node.name.as_str(),
                node.status,
                of(node).map(|class| &*class.leak()),
            )
        })
        .collect()
}

/// Only this host is accused, and of this.
#[track_caller]
fn assert_only(outcome: &Outcome, host: &str, fault: &str) {
    assert_eq!(
        unwell(outcome),
        [(host, Status::Fail, Some(fault))],
        "{:#?}",
        outcome.report.cluster
    );
    assert_eq!(outcome.exit, 2);
}

#[test]
fn hosts_that_are_well_are_good_together() {
    let outcome = hosts(|all| all).run("60s");
    assert_eq!(unwell(&outcome), [], "{:#?}", outcome.report.cluster);
    assert_eq!(outcome.exit, 0);
}

#[test]
fn a_host_whose_driver_hangs_is_named_while_the_others_wait_for_it() {
    let outcome = hosts(|all| all.cuda_fault_on("n3", "cuInit", 0, "\"hangs\"")).run("20s");
    assert_eq!(outcome.groups()[0].named, ["n3"]);
    let why = why_of_whole(&outcome);
    for words in [
        "ended by dhc before its deadline",
        "n3 behind",
        "1 of 4 ranks (n3) opening its GPU",
    ] {
        assert!(why.contains(words), "`{words}` is not in: {why}");
    }
    assert_only(&outcome, "n3", "cluster.node.unresponsive");
}

#[test]
fn a_first_rank_that_cannot_make_the_communicator_s_id_is_named() {
    let outcome =
        hosts(|all| all.nccl_fault_on("n1", "ncclGetUniqueId", 0, "\"hangs\"")).run("20s");
    assert_eq!(
        outcome.groups()[0].named,
        ["n1"],
        "{}",
        why_of_whole(&outcome)
    );
    assert!(why_of_whole(&outcome).contains("3 of 4 ranks (n2, n3, n4) waiting for the id"));
    assert_only(&outcome, "n1", "cluster.node.unresponsive");
}

#[test]
fn a_host_that_hangs_inside_the_communicator_s_start_is_found_by_the_groups_that_it_stops() {
    let outcome =
        hosts(|all| all.nccl_fault_on("n3", "ncclCommInitRank", 0, "\"hangs\"")).run("12s");
    let whole = outcome.groups()[0];
    assert_eq!((whole.outcome.as_str(), whole.named.len()), ("failed", 0));
    let why = why_of_whole(&outcome);
    for words in [
        "ended by dhc before its deadline",
        "no node is named by it",
        "4 of 4 ranks (4 nodes) inside ncclCommInitRank",
    ] {
        assert!(why.contains(words), "`{words}` is not in: {why}");
    }
    assert_only(&outcome, "n3", "cluster.node.hanging");
}

#[test]
fn a_host_whose_network_breaks_off_is_found_by_the_groups_that_end_in_errors_and_nobody_died() {
    let broken =
        |all: GpuLibraries| all.nccl_fault_on("n2", "ncclAllReduce", 10, "\"disconnects\"");
    let outcome = hosts(broken).run("15s");
    let whole = outcome.groups()[0];
    assert_eq!((whole.outcome.as_str(), whole.named.len()), ("failed", 0));
    let why = why_of_whole(&outcome);
    for words in [
        "broke_off (",
        "remote process exited or there was a network error",
    ] {
        assert!(why.contains(words), "`{words}` is not in: {why}");
    }
    assert_only(&outcome, "n2", "cluster.node.breaking");
}

#[test]
fn a_host_whose_gpu_loses_memory_in_the_sweep_is_found_by_the_errors_of_its_groups() {
    let broken = |all: GpuLibraries| all.cuda_fault_on("n4", "cuMemcpyDtoH_v2", 5, "214");
    let outcome = hosts(broken).run("60s");
    let why = why_of_whole(&outcome);
    assert!(
        why.contains("n4 broke_off (cuMemcpyDtoH: CUDA_ERROR_ECC_UNCORRECTABLE"),
        "{why}"
    );
    assert_only(&outcome, "n4", "cluster.node.breaking");
}

#[test]
fn errors_that_every_group_ends_in_accuse_nobody() {
    let everywhere = |all: GpuLibraries| {
        HOSTS.iter().fold(all, |all, host| {
            all.nccl_fault_on(host, "ncclCommInitRank", 0, "2")
        })
    };
    let outcome = hosts(everywhere).run("60s");
    let accused = unwell(&outcome).into_iter();
    let accused = accused.filter(|(_, status, _)| *status == Status::Fail);
    assert_eq!(accused.count(), 0, "{:#?}", outcome.report.cluster);
    let search = &outcome.report.cluster.as_ref().unwrap().searches[0];
    assert_eq!(search.conclusion, "all_alike");
    assert_eq!(outcome.exit, 4, "{}", why_of_whole(&outcome));
}

#[test]
fn a_host_that_has_too_little_of_something_is_told_and_not_accused() {
    let full = |all: GpuLibraries| all.nccl_fault_on("n2", "ncclCommInitRank", 0, "1");
    let outcome = hosts(full).run("60s");
    let why = why_of_whole(&outcome);
    assert!(
        why.contains("n2 failed (ncclCommInitRank: ") && why.contains("out of memory"),
        "{why}"
    );
    assert_eq!(outcome.groups()[0].outcome, "unknown");
    let accused = unwell(&outcome).into_iter();
    assert_eq!(
        accused
            .filter(|(_, status, _)| *status == Status::Fail)
            .count(),
        0
    );
    assert_eq!(outcome.exit, 4, "{why}");
}
