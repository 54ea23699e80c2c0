//! `nccl-allreduce` with an installed all_reduce_perf, through a launcher that is not there: a script that says hello for roll
//! calls and prints a table of the tool for the rest. Never seen on GPUs.
mod common;

use common::gpu_cluster::{SLOW, arguments, fast};
use common::{Dhc, Outcome, ROLL_CALL};
use dhc_fixtures::FakeNode;
use dhc_thresholds::Status;

/// Two H100 nodes behind an `mpirun` that leaves this table.
fn two_nodes(table: &str) -> Dhc {
    let script = format!("{ROLL_CALL}\ncat <<'EOF'\n{table}EOF\n");
    Dhc::on(FakeNode::plain().tool("mpirun").runs(&script))
}

fn run(dhc: &Dhc) -> Outcome {
    dhc.run(&arguments("n1,n2"))
}

#[test]
fn a_table_above_the_floor_of_the_type_passes() {
    let dhc = two_nodes(&fast());
    let outcome = run(&dhc);
    assert_eq!(outcome.exit, 0, "{:?}", outcome.report);
    let calls = dhc.node.calls("mpirun");
    assert!(
        calls
            .iter()
            .any(|call| call.contains("all_reduce_perf -b 8 -e ")),
        "{calls:?}"
    );
    let whole = outcome.groups()[0].clone();
    assert_eq!(
        (whole.outcome.as_str(), whole.bound_gb_per_s),
        ("passed", Some(440.0))
    );
}

#[test]
fn a_table_below_it_fails_the_cluster_and_accuses_neither_of_two_nodes() {
    let outcome = run(&two_nodes(SLOW));
    assert_eq!(outcome.exit, 2, "{:?}", outcome.report);
    assert!(
        outcome
            .report
            .nodes
            .iter()
            .all(|node| node.status == Status::Unknown)
    );
    let cluster = outcome
        .report
        .cluster
        .as_ref()
        .expect("the cluster level was run");
    assert_eq!(cluster.searches[0].conclusion, "all_alike");
}

#[test]
fn wrong_results_are_corruption_however_fast_they_come() {
    let wrong = fast().replace("values : 0 OK", "values : 3 FAILED");
    let outcome = run(&two_nodes(&wrong));
    assert_eq!(outcome.exit, 2);
    assert!(
        outcome
            .groups()
            .iter()
            .all(|group| group.outcome == "corrupted")
    );
    let cluster = outcome
        .report
        .cluster
        .as_ref()
        .expect("the cluster level was run");
    let faults: Vec<_> = cluster.checks[0]
        .findings
        .iter()
        .filter_map(|finding| finding.fault.as_deref())
        .collect();
    assert_eq!(faults, ["data.corrupted"]);
}

#[test]
fn a_tool_that_cannot_work_accuses_nobody() {
    for said in [
        "n1: Test NCCL failure common.cu:958 'unhandled cuda error / '\n",
        "",
    ] {
        let outcome = run(&two_nodes(said));
        assert_eq!(outcome.exit, 4, "{:?}", outcome.report.nodes);
        assert!(outcome.accused().is_empty(), "{:?}", outcome.accused());
    }
}

#[test]
fn a_tool_that_was_built_without_mpi_measures_nothing_and_says_so() {
    // Every process prints the table of its own, alone: nothing crosses a link, however short the times are.
    let alone: String = fast()
        .lines()
        .filter(|line| !line.contains("Rank  1"))
        .map(|line| format!("{line}\n"))
        .collect();
    let no_link = fast().replace("500.00  500.00", "500.00    0.00");
    for (table, words) in [
        (alone.repeat(2), "several tables"),
        (alone, "lists 1 devices of 2 ranks"),
        (no_link, "busbw over algbw is 0.000"),
    ] {
        let outcome = run(&two_nodes(&table));
        assert_eq!(outcome.exit, 4, "{words}: {:?}", outcome.report);
        let error = outcome.groups()[0].error.clone().unwrap_or_default();
        assert!(error.contains(words), "`{words}` is not in: {error}");
        assert!(error.contains("MPI"), "{error}");
    }
}
