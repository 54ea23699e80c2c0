//! Rails and leaves as the user names them, through a launcher that is a script: what every launch is confined to, what
//! follows if one rail is slow for all, and what is said of names that are none. Never seen on GPUs.

mod common;

use common::gpu_cluster::{OF_RANKS, SLOW, arguments, fast};
use common::{Dhc, Outcome, ROLL_CALL};
use dhc_fixtures::FakeNode;

/// Nodes whose collectives are slow whenever they may use `mlx5_1`.
fn nodes() -> Dhc {
    let script = format!(
        "{ROLL_CALL}\n\
         case \"$NCCL_IB_HCA\" in *mlx5_1*) awk -v n=\"$4\" '{OF_RANKS}' <<'EOF'\n{SLOW}EOF\n;; \
         *) awk -v n=\"$4\" '{OF_RANKS}' <<'EOF'\n{}EOF\n;; esac",
        fast()
    );
    Dhc::on(FakeNode::plain().tool("mpirun").runs(&script))
}

const NODES: &str = "n1,n2,n3,n4,n5,n6";

fn run(dhc: &Dhc, args: &[&str]) -> Outcome {
    let mut all = arguments(NODES);
    all.extend(args);
    dhc.run(&all)
}

#[test]
fn a_rail_that_is_slow_for_all_is_named_and_no_node_is() {
    let dhc = nodes();
    let outcome = run(&dhc, &["--rails", "mlx5_0,mlx5_1"]);
    let cluster = outcome
        .report
        .cluster
        .as_ref()
        .expect("a cluster was measured");
    assert_eq!(cluster.rails, ["mlx5_0", "mlx5_1"]);
    let search = &cluster.searches[0];
    assert_eq!(search.conclusion, "rails", "{search:?}");
    assert_eq!(search.located.len(), 1, "{search:?}");
    let located = &search.located[0];
    assert_eq!(
        (located.class.as_str(), located.fault.as_str()),
        ("rail", "cluster.rail")
    );
    assert_eq!(located.rails, ["mlx5_1"]);
    assert!(located.nodes.is_empty());
    assert!(
        outcome
            .report
            .nodes
            .iter()
            .all(|node| node.faults.is_empty())
    );
    // One rail of two has to bear half of what the table asks of both.
    let groups = search.waves.iter().flat_map(|wave| &wave.groups);
    let of_one = groups.filter(|group| group.rail.is_some());
    assert!(of_one.clone().count() >= 6);
    assert!(
        of_one
            .clone()
            .all(|group| group.bound_gb_per_s == Some(220.0)),
        "{search:?}"
    );
    // Open MPI hands on to other nodes what it is told to.
    let calls = dhc.node.calls("mpirun");
    assert!(
        calls.iter().any(|call| call.contains("-x NCCL_IB_HCA")),
        "{calls:?}"
    );
}

#[test]
fn without_names_of_cards_no_rail_is_tried() {
    let outcome = run(&nodes(), &[]);
    let cluster = outcome
        .report
        .cluster
        .as_ref()
        .expect("a cluster was measured");
    assert!(cluster.rails.is_empty());
    assert_eq!(cluster.searches[0].conclusion, "all_good");
}

#[test]
fn what_is_no_card_and_no_topology_is_told_before_anything_is_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("topology");
    let topology = path.to_str().expect("a plain path").to_owned();
    let refused = |args: &[&str], words: &str| {
        let dhc = nodes();
        let mut all = arguments(NODES);
        all.extend(args);
        let output = dhc.command("run", &all).output().expect("dhc starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(words),
            "{args:?}: {said}"
        );
        assert!(dhc.node.calls("mpirun").is_empty(), "{args:?}");
    };
    refused(&["--rails", "eth0,$(reboot)"], "cannot be a network card");
    refused(&["--rails", "eth0,eth0"], "`eth0` twice");
    refused(&["--topology", &topology], "cannot be read");
    for garbage in [
        "",
        "\0\0\0",
        "SwitchName=a Nodes=n[1-\n",
        "SwitchName=a Nodes=n1\nSwitchName=b Nodes=n1\n",
    ] {
        std::fs::write(&path, garbage).expect("a file");
        refused(&["--topology", &topology], "--topology");
    }
}

#[test]
fn leaves_come_from_a_file_where_slurm_is_not_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("topology.conf");
    std::fs::write(
        &path,
        "SwitchName=a Nodes=n[1-3]\nSwitchName=b Nodes=n[4-6]\n",
    )
    .expect("a file");
    let outcome = run(
        &nodes(),
        &["--topology", path.to_str().expect("a plain path")],
    );
    let cluster = outcome
        .report
        .cluster
        .as_ref()
        .expect("a cluster was measured");
    assert!(
        cluster.topology.starts_with("from "),
        "{}",
        cluster.topology
    );
}
