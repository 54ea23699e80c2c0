//! `nccom-allreduce` through an `nccom-test` that is a script, and an `mpirun` that only answers roll calls. Never seen on
//! Neuron devices.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the program and look at what it left"
)]

mod common;

use common::{Dhc, Outcome, ROLL_CALL};
use dhc_fixtures::FakeNode;

/// Four Trainium nodes by addresses of this machine, with an `nccom-test` of these lines.
fn four_nodes(script: &str) -> Dhc {
    let node = FakeNode::trn1_32xlarge();
    Dhc::on(
        node.tool("mpirun")
            .runs(ROLL_CALL)
            .tool("nccom-test")
            .runs(script),
    )
}

fn run(dhc: &Dhc) -> Outcome {
    dhc.run(&[
        "--level",
        "cluster",
        "--check",
        "nccom-allreduce",
        "--launcher",
        "mpirun",
        "--nodelist",
        "127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.4",
        "--worker",
        env!("CARGO_BIN_EXE_dhc"),
    ])
}

/// A script that prints a table of the ranks asked for, `factor` times as slow where this host takes part. It writes down where its
/// workers were to meet.
fn table(slow_host: &str, factor: u32) -> String {
    format!(
        "case \"$*\" in *report-to-json*) echo 'error: unrecognized arguments: --report-to-json-file' >&2; exit 2;; esac\n\
         echo \"$NEURON_RT_ROOT_COMM_ID\" >> \"$0.roots\"\n\
         case \" $* \" in *' {slow_host} '*) f={factor};; *) f=1;; esac\n\
         echo 'size(B) count(elems) type time(us) algbw(GB/s) busbw(GB/s)'\n\
         for a in \"$@\"; do [ \"$last\" = -r ] && r=$a; last=$a; done\n\
         for b in 67108864 134217728 268435456; do\n\
         t=$((b / 10000 * f)); g=$((b / t)); w=$((g * 2 * (r - 1) / r))\n\
         printf '%d %d fp32 %d %d.%03d %d.%03d\\n' $b $((b / 4)) $t $((g / 1000)) $((g % 1000)) $((w / 1000)) $((w % 1000))\n\
         done\n\
         echo 'Avg bus bandwidth: 1.0GB/s'"
    )
}

#[test]
fn all_nodes_are_measured_together_at_the_first_one_s_address() {
    let dhc = four_nodes(&table("nobody", 1));
    let outcome = run(&dhc);
    let whole = outcome.groups()[0];
    assert_eq!(whole.nodes.len(), 4, "{:?}", outcome.report);
    let calls = dhc.node.calls("nccom-test");
    assert!(
        calls.iter().any(|call| call.contains("-r 128 -N 4 ")
            && call.contains(" allr --hosts 127.0.0.1 127.0.0.2 127.0.0.3 127.0.0.4")),
        "{calls:?}"
    );
    let roots = std::fs::read_to_string(dhc.node.tools().join("nccom-test.roots"));
    let roots = roots.expect("nccom-test was run");
    assert!(roots.starts_with("127.0.0.1:45654\n"), "{roots}");
    let busbw = outcome.report.cluster.as_ref().unwrap().checks[0]
        .record
        .measurements
        .iter()
        .find(|measured| measured.metric == "nccom.cluster.plateau")
        .and_then(|measured| measured.value.number());
    // 10 GB/s times 2 * 127/128.
    assert!(
        busbw.is_some_and(|busbw| (busbw - 19.84).abs() < 0.01),
        "{busbw:?}"
    );
}

#[test]
fn a_node_that_makes_its_groups_slow_is_named() {
    let outcome = run(&four_nodes(&table("127.0.0.3", 10)));
    assert_eq!(
        outcome.accused(),
        ["127.0.0.3"],
        "{:?}",
        outcome.report.cluster
    );
    assert_eq!(outcome.exit, 2);
}

#[test]
fn a_wrong_result_is_corruption_and_a_tool_that_cannot_run_is_nobody_s_fault() {
    let header = "echo 'size(B) count(elems) type time(us) algbw(GB/s) busbw(GB/s)'\n";
    let refuses = "case \"$*\" in *report-to-json*) echo 'unrecognized arguments: --report-to-json-file' >&2; exit 2;; esac\n";
    let wrong = format!(
        "{refuses}{header}echo '67108864 16777216 fp32 6710 10.0 19.8 ERROR: mismatch'\necho '1 errors found - test failed'; exit 1"
    );
    let outcome = run(&four_nodes(&wrong));
    assert_eq!(outcome.groups()[0].outcome, "corrupted");
    assert_eq!(outcome.exit, 2);

    let cannot = format!(
        "{refuses}{header}echo '67108864 Failure running neuron-bench - log file /tmp/log'\necho '1 errors found - test failed'; exit 1"
    );
    let outcome = run(&four_nodes(&cannot));
    assert!(outcome.accused().is_empty(), "{:?}", outcome.report.nodes);
    assert_eq!(outcome.exit, 4, "{:?}", outcome.report.cluster);
}
