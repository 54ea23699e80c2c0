//! The cluster level over a Slurm of scripts: what ranks tell, and what Slurm answers, that no real cluster does on demand.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it left"
)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_runners::cluster::slurm::{Job, Nodes, Standing};
use dhc_thresholds::{Report, Status};
use tempfile::NamedTempFile;

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
    echo '{"size":{"bytes":'$1',"ranks":'$ranks',"iterations":5,"verified":5,"wrong":0,"wrong_rank":null,"mean_us":'$2',"p50_us":'$2',"p99_us":'$2',"min_us":'$2',"max_us":'$2',"slowest":[0,'$2'],"fastest":[0,'$2']}}'
}
passes() {
    size 262144 100; size 524288 100; size 1048576 100
    ends
}
ends() {
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
    run_on(&Dhc::on(node), args)
}

fn run_on(dhc: &Dhc, args: &[&str]) -> Outcome {
    let mut all = vec!["--level", "cluster", "--check", "mpi-allreduce"];
    all.extend(["--nodes", "4", "--worker", "/bin/true", "--seed", "1"]);
    all.extend(args);
    dhc.run(&all)
}

fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
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
    let error = cluster.searches[0].waves[0].groups[0]
        .error
        .clone()
        .unwrap();
    assert!(error.contains("--deadline is too short"), "{error}");
}

/// Groups whose nodes are like `groups` tell for ever that these nodes have entered so many collectives, and all others 5; the
/// rest passes.
fn stands_still(groups: &str, these: &str, entered: u64) -> String {
    format!(
        r#"
        case ",$nodes," in
        {groups})
            while :; do
                rank=0
                for node in $nodes; do
                    case "$node" in {these}) at $rank collective {entered} ;; *) at $rank collective 5 ;; esac
                    rank=$((rank + 1))
                done
                sleep 0.5
            done ;;
        esac
        passes"#
    )
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
    let path = &stands_still("*,na,*ne,*", "na|ne", 4);
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
    let lies = &stands_still("*,nb,*", "nb", 9223372036854775808);
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

#[test]
fn no_node_is_lost_or_cut_in_two_in_a_list_that_is_longer_than_other_outputs() {
    // A megabyte: a node is listed for every partition that it is in.
    let states = |last: &str| {
        let mut states = "na idle\n".repeat(50_000) + "nb idle\n";
        states.push_str(&"nc idle\n".repeat(80_000));
        states + last
    };
    let list = |last: &str| {
        let node = slurm(&FOUR, BY_ITS_NAME, "passes");
        run(node.tool("sinfo").prints(states(last), 0), &[])
    };
    assert_eq!(nodes(&list("nd idle\n"), Status::Pass), FOUR);
    // A node that is not listed is not passed over.
    let node = slurm(&FOUR, BY_ITS_NAME, "passes");
    let dhc = Dhc::on(node.tool("sinfo").prints(states(""), 0));
    let (said, code) = refused(&dhc, &["--nodes", "4"], "");
    assert!(
        said.contains("job 12 has 4 nodes, and `sinfo` lists 3"),
        "{said}"
    );
    assert_eq!(code, Some(4));
    assert!(dhc.node.calls("scancel").contains(&"12".to_owned()));
}

/// What `dhc run` says, and its status, where there is no run; inside of a job if this is not empty.
fn refused(dhc: &Dhc, args: &[&str], job: &str) -> (String, Option<i32>) {
    let mut command = dhc.command("run", &["--level", "cluster", "--worker", "/bin/true"]);
    if !job.is_empty() {
        command.env("SLURM_JOB_ID", job);
    }
    let output = command.args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (said, output.status.code())
}

#[test]
fn a_job_that_has_ended_is_told_and_not_taken_for_one_without_nodes() {
    let node = slurm(&FOUR, BY_ITS_NAME, "passes");
    for remembered in ["", "0 \n"] {
        let dhc = Dhc::on(
            slurm(&FOUR, BY_ITS_NAME, "")
                .tool("squeue")
                .prints(remembered, 0),
        );
        let (said, code) = refused(&dhc, &[], "12");
        assert!(said.contains("job 12 has no nodes any more"), "{said}");
        assert_eq!(code, Some(4));
    }
    drop(node);
}

#[test]
fn a_run_that_is_stopped_while_it_waits_for_nodes_ends_soon_and_keeps_none() {
    let waits = "trap 'echo \"salloc: Granted job allocation 12\" >&2; exit 1' HUP\necho >\"$0.waits\"\nsleep 60 & wait $!";
    let dhc = Dhc::on(slurm(&FOUR, BY_ITS_NAME, "").tool("salloc").runs(waits));
    let mut child = dhc
        .command("run", &["--level", "cluster", "--worker", "/bin/true"])
        .args(["--nodes", "4"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while !dhc.node.tools().join("salloc.waits").exists() {
        assert!(begun.elapsed().as_secs() < 30, "salloc was never called");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let told = std::time::Instant::now();
    let status = child.wait().unwrap();
    assert!(told.elapsed().as_secs() < 10, "{:?}", told.elapsed());
    assert_eq!(status.code(), Some(4));
    // What was granted in the last moment is given back.
    assert!(dhc.node.calls("scancel").contains(&"12".to_owned()));
}

/// What Slurm says after the first collective over all nodes: of the job, of its nodes, and of `nb`.
struct Then<'a> {
    /// The state of the job.
    job: &'a str,
    /// How many nodes it has, and which.
    has: &'a str,
    /// The state and the reason of `nb`.
    nb: &'a str,
    /// Which lists of nodes `srun` refuses, as a pattern of the shell; all other groups pass.
    refused: &'a str,
}

/// Steps with `nb`, first or last or in the middle of a list.
const WITH_NB: &str = "*[=,]nb[,\\ ]*";
const ANY: &str = "*";

/// Four nodes that Slurm says this of after the first collective over all of them.
fn then(then: &Then<'_>) -> FakeNode {
    let Then {
        job,
        has,
        nb,
        refused,
    } = then;
    let by_its_name = format!(
        r#"
        if [ -e "$0.begun" ]; then
            case "$*" in {refused}) echo 'srun: error: Unable to create step' >&2; exit 1 ;; esac
        fi
        {BY_ITS_NAME}"#
    );
    let squeue = format!(
        r#"
        begun="${{0%squeue}}srun.begun"
        case "$*" in
        *%T*) if [ -e "$begun" ]; then echo '{job}'; else echo RUNNING; fi ;;
        *) if [ -e "$begun" ]; then echo '{has}'; else echo '4 na,nb,nc,nd'; fi ;;
        esac"#
    );
    let sinfo = format!(
        r#"
        nb='idle|none'
        [ -e "${{0%sinfo}}srun.begun" ] && nb='{nb}'
        case "$*" in *%E*) echo 'na mixed|none'; echo "nb $nb"; echo 'nc mixed|none'; echo 'nd mixed|none'; exit ;; esac
        for word; do case "$word" in --nodes=*) nodes=${{word#*=}} ;; esac; done
        IFS=,
        for node in $nodes; do
            case "$node" in nb) echo "nb ${{nb%%|*}}" ;; *) echo "$node mixed" ;; esac
        done"#
    );
    slurm(&FOUR, &by_its_name, ": >\"$0.begun\"; passes")
        .tool("squeue")
        .runs(&squeue)
        .tool("sinfo")
        .runs(&sinfo)
}

/// The words that a run tells of `nb` in its own report, and of the groups of the run.
fn words_of_nb(outcome: &Outcome) -> (String, String) {
    let report = serde_json::to_string(&outcome.report.nodes[1]).unwrap();
    let groups = serde_json::to_string(&outcome.report.cluster).unwrap();
    (report, groups)
}

#[test]
fn a_node_that_slurm_has_given_up_before_the_next_wave_is_named_and_the_rest_goes_on_without_it() {
    let node = then(&Then {
        job: "RUNNING",
        has: "3 na,nc,nd",
        nb: "down*|Not responding",
        refused: WITH_NB,
    });
    let outcome = run(node, &[]);
    let cluster = outcome.report.cluster.as_ref().unwrap();
    assert_eq!(nodes(&outcome, Status::Fail), ["nb"], "{cluster:#?}");
    assert_eq!(
        nodes(&outcome, Status::Pass),
        ["na", "nc", "nd"],
        "{cluster:#?}"
    );
    let (report, groups) = words_of_nb(&outcome);
    for words in [report, groups] {
        assert!(
            words.contains("Slurm calls nb `down*` (Not responding)"),
            "{words}"
        );
    }
    let closing = cluster.searches[0].waves.last().unwrap();
    assert_eq!(closing.groups[0].nodes, ["na", "nc", "nd"]);
}

#[test]
fn a_node_that_does_not_respond_and_is_still_in_the_allocation_is_tried_again_and_then_named() {
    let node = then(&Then {
        job: "RUNNING",
        has: "4 na,nb,nc,nd",
        nb: "mixed*|none",
        refused: WITH_NB,
    });
    let outcome = run(node, &[]);
    let cluster = outcome.report.cluster.as_ref().unwrap();
    assert_eq!(nodes(&outcome, Status::Fail), ["nb"], "{cluster:#?}");
    let groups = cluster.searches[0].waves.iter();
    let groups = groups.flat_map(|wave| &wave.groups);
    let naming = groups.filter(|group| group.named == ["nb"]);
    assert_eq!(naming.count(), 2, "{cluster:#?}");
}

#[test]
fn a_node_that_somebody_took_away_is_not_known_and_the_rest_goes_on_without_it() {
    let node = then(&Then {
        job: "RUNNING",
        has: "3 na,nc,nd",
        nb: "drained|new fans",
        refused: WITH_NB,
    });
    let outcome = run(node, &[]);
    assert_nobody_is_accused_or_named(&outcome);
    assert_eq!(nodes(&outcome, Status::Pass), ["na", "nc", "nd"]);
    assert_eq!(nodes(&outcome, Status::Unknown), ["nb"]);
    let (report, _) = words_of_nb(&outcome);
    assert!(report.contains("calls it `drained` (new fans)"), "{report}");
}

#[test]
fn a_node_that_cannot_be_asked_for_is_accused_of_nothing() {
    // The controller is gone: nothing is known of anybody.
    let node = then(&Then {
        job: "RUNNING",
        has: "4 na,nb,nc,nd",
        nb: "mixed|none",
        refused: ANY,
    });
    let gone = "[ -e \"${0%squeue}srun.begun\" ] || { case \"$*\" in *%T*) echo RUNNING ;; *) echo '4 na,nb,nc,nd' ;; esac; exit; }\n\
                echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1";
    let outcome = run(node.tool("squeue").runs(gone), &[]);
    assert_nobody_is_accused_or_named(&outcome);
    let (_, groups) = words_of_nb(&outcome);
    assert!(
        groups.contains("how its nodes stand is not known"),
        "{groups}"
    );
}

#[test]
fn an_allocation_that_has_ended_accuses_nobody_and_the_run_says_so_and_ends() {
    for (job, has, words) in [
        ("TIMEOUT", "", "job 12 has ended (TIMEOUT)"),
        ("CANCELLED", "0 ", "job 12 has ended (CANCELLED)"),
        ("", "", "job 12 has ended (Slurm remembers no more of it)"),
    ] {
        // By now the nodes are somebody else's, and what becomes of them there tells nothing of the run.
        let node = then(&Then {
            job,
            has,
            nb: "down*|Not responding",
            refused: ANY,
        });
        let outcome = run(node, &[]);
        assert_nobody_is_accused_or_named(&outcome);
        let search = &outcome.report.cluster.as_ref().unwrap().searches[0];
        assert!(search.sentence.contains(words), "{}", search.sentence);
        assert_eq!(search.waves.len(), 2, "{search:#?}");
    }
}

#[test]
fn an_allocation_that_ended_with_its_first_lost_node_accuses_that_node_and_no_other() {
    let node = then(&Then {
        job: "NODE_FAIL",
        has: "",
        nb: "down*|Not responding",
        refused: ANY,
    });
    let outcome = run(node, &[]);
    assert_eq!(nodes(&outcome, Status::Fail), ["nb"]);
    let search = &outcome.report.cluster.as_ref().unwrap().searches[0];
    assert!(
        search.sentence.contains("job 12 has ended (NODE_FAIL)"),
        "{}",
        search.sentence
    );
}

#[test]
fn an_allocation_that_ends_in_the_roll_call_makes_nobody_absent() {
    // The first node answers, and all others are refused.
    let ends = r#"
        if mkdir "$0.begun" 2>/dev/null; then :; else
            while [ ! -e "$0.answered" ]; do sleep 0.05; done
            echo 'srun: error: Slurm job 12 has expired' >&2; exit 1
        fi
        hello() { echo '{"hello":{"rank":'$ranks',"host":"'$node'","boot":"b","pid":1}}'; : >"$0.answered"; }"#;
    let squeue = r#"
        if [ -e "${0%squeue}srun.begun" ]; then case "$*" in *%T*) echo TIMEOUT ;; esac; exit; fi
        echo '4 na,nb,nc,nd'"#;
    let node = slurm(&FOUR, ends, "passes").tool("squeue").runs(squeue);
    let outcome = run(node, &[]);
    assert_eq!(nodes(&outcome, Status::Fail), [""; 0]);
    assert_eq!(outcome.exit, 3);
}

#[test]
fn what_slurm_says_of_nodes_is_taken_by_the_word() {
    let asked = FOUR.map(str::to_owned);
    let job = Job(12);
    let nodes = |up: &[&str], down: &[(&str, &str)]| Nodes {
        up: up.iter().map(|name| (*name).to_owned()).collect(),
        down: down
            .iter()
            .map(|(name, state)| ((*name).to_owned(), (*state).to_owned()))
            .collect(),
    };
    let states = "na mixed|none\nnb down*|Not responding\nnc drained|fans | again\nnd idle|\nnd down|twice\n\nx\nna down\n";
    let all_but = |away: &[&str]| {
        let up: Vec<&str> = FOUR.into_iter().filter(|n| !away.contains(n)).collect();
        nodes(&up, &[])
    };
    let told = |now: Option<&Nodes>, state: &str| {
        let standing = Standing::read(job, now, state, states, &asked);
        let away = standing.away.iter();
        let away = away.map(|away| (away.node.clone(), away.is_down, away.has_left));
        (standing.ended.is_some(), away.collect::<Vec<_>>())
    };
    let away = |name: &str, is_down, has_left| (name.to_owned(), is_down, has_left);
    assert_eq!(told(Some(&all_but(&[])), "RUNNING"), (false, vec![]));
    // Who is given up, and who was taken away.
    assert_eq!(
        told(Some(&all_but(&["nb", "nc", "nd"])), "RUNNING\n"),
        (
            false,
            vec![
                away("nb", true, true),
                away("nc", false, true),
                away("nd", false, true)
            ]
        )
    );
    // Not given up yet.
    let silent = nodes(&["na", "nc", "nd"], &[("nb", "mixed*")]);
    assert_eq!(
        told(Some(&silent), "RUNNING"),
        (false, vec![away("nb", true, false)])
    );
    // A node that no line tells of is not known.
    let unheard = Standing::read(job, Some(&all_but(&["nb"])), "RUNNING", "", &asked);
    assert_eq!(unheard, Standing::default());
    for (state, named) in [
        ("TIMEOUT", false),
        ("CANCELLED", false),
        ("PREEMPTED", false),
        ("NODE_FAIL", true),
        ("COMPLETING", true),
    ] {
        let expected = match named {
            true => vec![away("nb", true, true)],
            false => vec![],
        };
        assert_eq!(told(None, state), (true, expected), "{state}");
    }
    let reason = Standing::read(job, Some(&all_but(&["nc"])), "RUNNING", states, &asked);
    let words: Vec<String> = reason.words().collect();
    assert!(words[0].contains("`drained` (fans | again)"), "{words:?}");
}

/// A table that asks for so much of every group.
fn floor(gb_per_s: &str) -> String {
    format!(
        r#"schema = "dhc.thresholds/1"
        instance_type = "scripts"

        [[limit]]
        metric = "mpi.allreduce.plateau"
        unit = "GB/s"
        fail_below = {gb_per_s}
        source = "the test"
        "#
    )
}

/// Groups like these are slow, and leave out what is large where they are asked for 0.02 GB/s; the rest passes.
fn is_slow(groups: &str) -> String {
    format!(
        r#"
        case ",$nodes," in {groups})
            size 262144 26214.4; size 524288 52428.8
            case "$task" in *'"asked_bytes_per_s":20000000,'*)
                echo '{{"left_out":{{"bytes_min":1048576,"bytes_max":4194304,"why":"too_slow"}}}}' ;;
            esac
            ends ;;
        esac
        passes"#
    )
}

#[test]
fn a_group_that_is_too_slow_for_its_table_says_what_it_left_out_and_its_node_is_named() {
    let floor = file(&floor("0.02"));
    let args = ["--thresholds", floor.path().to_str().unwrap()];
    let outcome = run(slurm(&FOUR, BY_ITS_NAME, &is_slow("*,nc,*")), &args);
    let cluster = outcome.report.cluster.as_ref().unwrap();
    assert_eq!(nodes(&outcome, Status::Fail), ["nc"], "{cluster:#?}");
    let groups = cluster.searches[0]
        .waves
        .iter()
        .flat_map(|wave| &wave.groups);
    for group in groups.filter(|group| group.nodes.len() > 1) {
        let has_it = group.nodes.contains(&"nc".to_owned());
        let due = has_it.then_some(
            "messages of 1048576 to 4194304 bytes were left out: the 0.02 GB/s that are asked for were out of reach",
        );
        assert_eq!(group.left_out.as_deref(), due, "{group:?}");
    }
}

#[test]
fn what_was_left_out_under_one_table_is_no_pass_under_another() {
    let (strict, mild) = (file(&floor("0.02")), file(&floor("0.001")));
    let args = ["--thresholds", strict.path().to_str().unwrap()];
    let dhc = Dhc::on(slurm(&FOUR, BY_ITS_NAME, &is_slow("*")));
    let outcome = run_on(&dhc, &args);
    let status = |report: &Report| report.cluster.as_ref().unwrap().checks[0].status;
    assert_eq!(status(&outcome.report), Status::Fail);
    let result = file(&serde_json::to_string(&outcome.report).unwrap());
    let again = |table: &NamedTempFile| {
        let (table, result) = (table.path(), result.path());
        let mut judge = Command::new(env!("CARGO_BIN_EXE_dhc"));
        let args = ["judge", "--format", "json", "--thresholds"];
        let output = judge.args(args).arg(table).arg(result).output().unwrap();
        common::outcome(output).report
    };
    assert_eq!(status(&again(&strict)), Status::Fail);
    assert_eq!(status(&again(&mild)), Status::Unknown);
}

#[test]
fn a_group_that_leaves_out_what_it_should_not_have_is_not_known() {
    // It is ten times as fast as it is asked to be.
    let floor = file(&floor("0.001"));
    let args = ["--thresholds", floor.path().to_str().unwrap()];
    let hasty = is_slow("*").replace("20000000", "1000000");
    let outcome = run(slurm(&FOUR, BY_ITS_NAME, &hasty), &args);
    assert_nobody_is_accused_or_named(&outcome);
    let cluster = outcome.report.cluster.as_ref().unwrap();
    assert_eq!(nodes(&outcome, Status::Pass), [""; 0], "{cluster:#?}");
    assert_eq!(cluster.searches[0].conclusion, "not_known", "{cluster:#?}");
}

#[test]
fn a_search_that_would_take_dozens_of_waves_ends_in_time_and_claims_no_more_than_it_knows() {
    // More than two together are slow and pairs are not, so that every path is tried: 31 waves, each of which takes half a second.
    let letters = || 'a'..='p';
    let names = letters().flat_map(|one| ['x', 'y'].map(|other| format!("n{one}{other}")));
    let names: Vec<String> = names.collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let floor = file(&floor("0.02"));
    let args = ["--thresholds", floor.path().to_str().unwrap()];
    let slow = format!("sleep 0.5\n{}", is_slow("*,*,*,*,*"));
    let begun = Instant::now();
    let outcome = run(
        slurm(&names, BY_ITS_NAME, &slow),
        &[&args[..], &["--run-deadline", "6s"]].concat(),
    );
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert_nobody_is_accused_or_named(&outcome);
    let search = &outcome.report.cluster.as_ref().unwrap().searches[0];
    assert!((4..30).contains(&search.waves.len()), "{search:#?}");
    assert_eq!(search.conclusion, "not_known", "{search:#?}");
    assert!(search.cut_short && !outcome.report.complete);
    // The whole is slow, whoever is to blame.
    assert_eq!(outcome.exit, 2);
}
