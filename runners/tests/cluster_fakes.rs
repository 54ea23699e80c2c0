//! The cluster level over a Slurm of scripts: what ranks tell, and what Slurm answers, that no real cluster does on demand.
#![expect(clippy::unwrap_used, reason = "tests look at what a run left")]

mod common;

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::Status;

/// A step of Slurm: its ranks say hello, and have nothing else to do in a roll call. Names end in a letter, so that lists of
/// them are not folded.
const HELLO: &str = r#"
for word; do case "$word" in --nodelist=*) nodes=${word#*=} ;; esac; task=$word; done
IFS=,
ranks=0
for node in $nodes; do
    hello
    ranks=$((ranks + 1))
done
case "$task" in *roll_call*) exit 0 ;; esac
at() { echo '{"at":{"rank":'$1',"progress":{"phase":"'$2'","entered":'$3'}}}'; }
size() {
    echo '{"size":{"bytes":'$1',"ranks":'$ranks',"iterations":5,"verified":5,"wrong":0,"wrong_rank":null,"mean_us":100,"p50_us":100,"p99_us":100,"min_us":100,"max_us":100,"slowest":[0,100],"fastest":[0,100]}}'
}
passes() {
    size 262144; size 524288; size 1048576
    rank=0
    while [ $rank -lt $ranks ]; do at $rank done 20; rank=$((rank + 1)); done
    exit 0
}
"#;

/// A node that calls itself what Slurm calls it.
const BY_ITS_NAME: &str =
    r#"hello() { echo '{"hello":{"rank":'$ranks',"host":"'$node'","boot":"b","pid":1}}'; }"#;

/// Slurm with these nodes, whose ranks say hello in this way and then do this.
fn slurm(nodes: &[&str], hello: &str, then: &str) -> FakeNode {
    let states: String = nodes.iter().map(|node| format!("{node} idle\n")).collect();
    FakeNode::plain()
        .tool("salloc")
        .says("", "salloc: Granted job allocation 12\n", 0)
        .tool("scancel")
        .prints_nothing()
        .tool("scontrol")
        .says("", "no topology\n", 1)
        .tool("squeue")
        .prints(format!("{} {}\n", nodes.len(), nodes.join(",")), 0)
        .tool("sinfo")
        .prints(states, 0)
        .tool("srun")
        .runs(&format!("{hello}\n{HELLO}\n{then}"))
}

fn run(node: FakeNode, args: &[&str]) -> Outcome {
    let mut all = vec!["--level", "cluster", "--check", "mpi-allreduce"];
    all.extend(["--nodes", "4", "--worker", "/bin/true", "--seed", "1"]);
    all.extend(args);
    Dhc::on(node).run(&all)
}

fn nodes(outcome: &Outcome, status: Status) -> Vec<&str> {
    let nodes = outcome.report.nodes.iter();
    let nodes = nodes.filter(|node| node.status == status);
    nodes.map(|node| node.name.as_str()).collect()
}

#[track_caller]
fn assert_nobody_is_accused_or_named(outcome: &Outcome) {
    let cluster = outcome.report.cluster.as_ref();
    assert_eq!(nodes(outcome, Status::Fail), [""; 0], "{cluster:#?}");
    let searches = cluster.unwrap().searches.iter();
    let mut groups = searches
        .flat_map(|search| &search.waves)
        .flat_map(|wave| &wave.groups);
    assert!(groups.all(|group| group.named.is_empty()), "{cluster:#?}");
}

const FOUR: [&str; 4] = ["na", "nb", "nc", "nd"];

#[test]
fn ranks_that_still_get_further_when_the_time_is_up_accuse_nobody() {
    // Each tells once a second, one after the other, and so all but one look behind at any moment.
    let moving = r#"
        step=0
        while :; do
            step=$((step + 1)); rank=0
            while [ $rank -lt $ranks ]; do
                at $rank collective $((step * 40 + rank * 10)); rank=$((rank + 1)); sleep 0.2
            done
        done"#;
    let outcome = run(slurm(&FOUR, BY_ITS_NAME, moving), &["--deadline", "3s"]);
    assert_nobody_is_accused_or_named(&outcome);
    let cluster = outcome.report.cluster.unwrap();
    let error = cluster.searches[0].waves[0].groups[0].error.clone().unwrap();
    assert!(error.contains("--deadline is too short"), "{error}");
}

#[test]
fn ranks_that_had_no_time_to_say_hello_are_not_gone() {
    let late = r#"hello() {
        case "$task$ranks" in *roll_call*|*0) ;; *) sleep 9 ;; esac
        echo '{"hello":{"rank":'$ranks',"host":"'$node'","boot":"b","pid":1}}'
    }"#;
    let outcome = run(slurm(&FOUR, late, "sleep 9"), &["--deadline", "2s"]);
    assert_nobody_is_accused_or_named(&outcome);
}

#[test]
fn a_path_that_passes_nothing_accuses_neither_of_its_ends() {
    // Whoever has both ends in its group stands still, and both of them have entered fewer collectives than the others.
    let path = r#"
        case ",$nodes," in
        *,na,*ne,*)
            while :; do
                rank=0
                for node in $nodes; do
                    case "$node" in na|ne) at $rank collective 4 ;; *) at $rank collective 5 ;; esac
                    rank=$((rank + 1))
                done
                sleep 0.5
            done ;;
        esac
        passes"#;
    let eight = ["na", "nb", "nc", "nd", "ne", "nf", "ng", "nh"];
    let outcome = run(slurm(&eight, BY_ITS_NAME, path), &["--deadline", "4s"]);
    assert_nobody_is_accused_or_named(&outcome);
    let search = &outcome.report.cluster.as_ref().unwrap().searches[0];
    let pair = ("na".to_owned(), "ne".to_owned());
    assert_eq!(search.paths, [pair], "{search:#?}");
    let error = search.waves[0].groups[0].error.as_deref().unwrap();
    assert!(error.contains("na lagging, ne lagging"), "{error}");
}

#[test]
fn a_rank_that_says_what_cannot_be_makes_nobody_else_look_bad() {
    let lies = r#"
        case ",$nodes," in
        *,nb,*)
            while :; do
                rank=0
                for node in $nodes; do
                    case "$node" in nb) at $rank collective 9223372036854775808 ;; *) at $rank collective 5 ;; esac
                    rank=$((rank + 1))
                done
                sleep 0.5
            done ;;
        esac
        passes"#;
    let outcome = run(slurm(&FOUR, BY_ITS_NAME, lies), &["--deadline", "4s"]);
    let cluster = outcome.report.cluster.as_ref().unwrap();
    assert_eq!(nodes(&outcome, Status::Fail), ["nb"], "{cluster:#?}");
    let whole = &cluster.searches[0].waves[0].groups[0];
    assert!(whole.named.is_empty(), "{whole:?}");
    let error = whole.error.as_deref().unwrap();
    assert!(error.contains("which cannot be"), "{error}");
}

#[test]
fn a_host_that_calls_itself_otherwise_is_the_node_that_slurm_calls_it() {
    // A worker says both names. One that says its own alone is known from the roll call.
    for node in ["", r#","node":"'$node'""#] {
        let renamed = format!(
            r#"hello() {{
                case "$node" in nc) host=ip-10-77-0-3 ;; *) host=$node ;; esac
                echo '{{"hello":{{"rank":'$ranks',"host":"'$host'","boot":"b","pid":1{node}}}}}'
            }}"#
        );
        let outcome = run(slurm(&FOUR, &renamed, "passes"), &[]);
        let cluster = outcome.report.cluster.as_ref();
        assert_eq!(nodes(&outcome, Status::Pass), FOUR, "{cluster:#?}");
    }
}
