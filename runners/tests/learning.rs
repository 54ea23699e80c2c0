//! Learning a threshold file, telling tables apart, and comparing results, by the built program on results of generated
//! machines.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "tests start the program and look at what it left"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dhc_checks::catalog;
use dhc_runners::tables;
use dhc_thresholds::{
    CheckReport, ClusterReport, Ending, GroupReport, Identity, Kind, Metric, NodeReport, Record,
    Report, Run, SearchReport, Status, Subject, WaveReport,
};

const TYPE: &str = "p5.48xlarge";
const CARDS: usize = 32;

fn metric(name: &str) -> &'static Metric {
    let mut metrics = catalog::CHECKS
        .iter()
        .flat_map(|check| check.spec().metrics);
    metrics.find(|metric| metric.name == name).unwrap()
}

/// A folder of results, and dhc.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Site {
        Site(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn keep(&self, name: &str, report: &Report) -> PathBuf {
        self.write(name, serde_json::to_vec(report).unwrap())
    }

    /// `dhc ARGS RESULTS...`
    fn dhc(&self, args: &[&str], results: &[PathBuf]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_dhc"))
            .args(args)
            .args(results)
            .current_dir(self.0.path())
            .output()
            .unwrap();
        Said::from(output)
    }

    /// `dhc thresholds learn ARGS RESULTS...`
    fn learn(&self, args: &[&str], results: &[PathBuf]) -> Said {
        self.dhc(&[&["thresholds", "learn"], args].concat(), results)
    }

    /// The results of healthy nodes, one each.
    fn healthy(&self, nodes: usize) -> Vec<PathBuf> {
        let keep = |node| self.keep(&format!("node{node}.json"), &node_result(node, 0, &[]));
        (0..nodes).map(keep).collect()
    }
}

struct Said {
    exit: i32,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            exit: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Said {
    #[track_caller]
    fn ends(self, exit: i32, words: &[&str]) -> Said {
        assert_eq!(self.exit, exit, "{}{}", self.out, self.err);
        for word in words {
            let said = self.out.contains(word) || self.err.contains(word);
            assert!(said, "no `{word}` in `{}{}`", self.out, self.err);
        }
        self
    }
}

fn run(id: &str) -> Run {
    Run {
        id: id.to_owned(),
        dhc: "0.1.0".to_owned(),
        level: "instance".to_owned(),
        started_at: "2026-11-24T10:00:00Z".to_owned(),
        duration_ms: 1,
        expires_at: "2999-01-01T00:00:00Z".to_owned(),
        environment: BTreeMap::new(),
        options: Some(BTreeMap::new()),
    }
}

/// What efa-loopback finds on a node in a run of it; the cards named have that bandwidth.
fn node_result(node: usize, number: usize, slow: &[(usize, f64)]) -> Report {
    let mut record = Record::new("efa-loopback", Ending::Finished);
    record
        .notes
        .push("libfabric 2.1 from /opt/amazon/efa/lib64/libfabric.so.1".to_owned());
    let seen = &mut record.measurements;
    seen.push(metric("efa.device.count").of(Subject::node(), CARDS));
    for card in 0..CARDS {
        let subject = || Subject::new(Kind::Nic, format!("rdmap{card}s0"));
        seen.push(metric("efa.port.state").of(subject(), "ACTIVE"));
        seen.push(
            metric("efa.loopback.state")
                .of(subject(), "answered")
                .over("efa"),
        );
        seen.push(metric("efa.loopback.corrupted").of(subject(), 0_u64));
        seen.push(metric("efa.counter.growth").of(subject(), 0_u64));
        let sound = 11.8 + ((node * 7 + card * 5 + number * 3) % 11) as f64 * 0.02;
        let slow = slow.iter().find(|(place, _)| *place == card);
        let bandwidth = slow.map_or(sound, |(_, speed)| *speed);
        let latency = 25.0 - sound;
        let of = |name: &str, value: f64| metric(name).of(subject(), value).over("efa");
        seen.push(of("efa.loopback.bandwidth", bandwidth).at_bytes(1 << 20));
        seen.push(of("efa.loopback.latency", latency).at_bytes(8));
    }
    let chosen = tables::built_in_table(TYPE).unwrap();
    let check = CheckReport::new(record, &tables::metrics_of("efa-loopback"), &chosen.table);
    let identity = Identity {
        instance_id: Some(format!("i-{node:08}")),
        instance_type: Some(TYPE.to_owned()),
        boot_id: Some(format!("boot-{node}")),
        ..Identity::default()
    };
    let node_report = NodeReport::new(format!("node{node}"), identity, vec![check]);
    let id = format!("01K{number:05}{node:05}");
    Report::new(run(&id), chosen.judged_by, vec![node_report])
}

fn statuses(said: &Said) -> Vec<(String, Status)> {
    let report = Report::parse(said.out.as_bytes()).unwrap();
    let nodes = report
        .nodes
        .iter()
        .filter(|node| node.status > Status::Pass);
    nodes.map(|node| (node.name.clone(), node.status)).collect()
}

// --- learn -------------------------------------------------------------------------------------------------------------

#[test]
fn a_table_is_learned_that_is_sound_and_finds_its_own_machines_healthy_but_for_a_slow_one() {
    let site = Site::new();
    let mut results = site.healthy(6);
    let said = site.learn(&["--out", "new.toml"], &results);
    said.ends(0, &["new.toml: 2 limits learned"]);
    let text = std::fs::read_to_string(site.path("new.toml")).unwrap();
    for words in [
        "extends = \"p5.48xlarge\"",
        "learned from 6 nodes, 192 values of 192 things, 6 runs from 01K0000000000 to 01K0000000005",
        "99.9 % tolerance bound at 95 % confidence of 192 normal values",
        "with libfabric 2.1",
        "samples = 192",
        "validated_on = \"2026-11-24\"",
        "fail_below = 1.25",
        "warn_above",
        "bytes = 1048576",
        "provider = \"efa\"",
    ] {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
    site.dhc(&["thresholds", "validate", "new.toml"], &[])
        .ends(0, &["sound"]);
    for result in &results {
        site.dhc(
            &["judge", "--thresholds", "new.toml"],
            std::slice::from_ref(result),
        )
        .ends(0, &[]);
    }
    // 4 % slower: no floor and no peer says anything, but the learned bound does.
    results.push(site.keep("slow.json", &node_result(7, 0, &[(3, 11.4)])));
    site.dhc(&["judge"], &results[6..]).ends(0, &[]);
    site.dhc(&["judge", "--thresholds", "new.toml"], &results[6..])
        .ends(
            1,
            &["efa.loopback.bandwidth of rdmap3s0 is 11.400 GB/s, should be at least"],
        );
}

#[test]
fn an_earlier_table_is_never_overwritten() {
    let site = Site::new();
    site.write("old.toml", "precious");
    site.learn(&["--out", "old.toml"], &site.healthy(2))
        .ends(4, &["is there already"]);
    assert_eq!(
        std::fs::read_to_string(site.path("old.toml")).unwrap(),
        "precious"
    );
}

#[test]
fn too_few_machines_teach_nothing_and_nothing_is_written() {
    let site = Site::new();
    let mut result = node_result(0, 0, &[]);
    let mut check = result.nodes[0].checks[0].clone();
    check
        .record
        .measurements
        .retain(|seen| seen.subject.name.len() < "rdmap10s0".len());
    check.status = Status::Pass;
    result.nodes[0].checks[0] = check;
    let one = site.keep("one.json", &result);
    site.learn(&["--out", "new.toml"], &[one])
        .ends(3, &["10 measured, 10 more are needed for 20"]);
    assert!(!site.path("new.toml").exists());
}

#[test]
fn a_machine_that_failed_expired_or_is_of_another_kind_is_refused_and_can_be_left_out() {
    type Spoil = fn(&mut Report);
    let spoilt: [(Spoil, &str); 6] = [
        (
            |report| report.nodes[0].status = Status::Fail,
            "its status is fail",
        ),
        (
            |report| report.nodes[0].status = Status::Error,
            "its status is error",
        ),
        (|report| report.complete = false, "did not come to its end"),
        (
            |report| report.run.expires_at = "2020-01-01T00:00:00Z".to_owned(),
            "expired at 2020",
        ),
        (
            |report| report.nodes[0].identity.instance_type = Some("p4d.24xlarge".to_owned()),
            "it is a p4d.24xlarge, not a p5.48xlarge",
        ),
        (
            |report| {
                report.nodes[0].checks[0].record.notes[0] = "libfabric 1.9 from /usr/lib".to_owned()
            },
            "`libfabric 1.9 from /usr/lib` where most have `libfabric 2.1",
        ),
    ];
    for (spoil, words) in spoilt {
        let site = Site::new();
        let mut results = site.healthy(12);
        let mut report = node_result(12, 0, &[]);
        spoil(&mut report);
        results.push(site.keep("bad.json", &report));
        site.learn(&["--out", "new.toml"], &results)
            .ends(4, &["1 of 13 machines", "node12", words]);
        assert!(!site.path("new.toml").exists());
        site.learn(&["--out", "new.toml", "--leave-out-unfit"], &results)
            .ends(0, &["left out: node12", words, "learned from 12 nodes"]);
        // One in three is no healthy fleet, whatever is left out.
        results.drain(..10);
        site.learn(&["--leave-out-unfit"], &results)
            .ends(4, &["not a healthy fleet"]);
    }
}

#[test]
fn what_is_excused_is_learned_from() {
    let site = Site::new();
    let mut report = node_result(3, 0, &[]);
    report.run.expires_at = "2020-01-01T00:00:00Z".to_owned();
    report.nodes[0].checks[0].record.notes[0] = "libfabric 1.9".to_owned();
    let mut results = site.healthy(3);
    results.push(site.keep("old.json", &report));
    site.learn(&["--expired", "--mixed-versions"], &results)
        .ends(
            0,
            &[
                "learned from 4 nodes",
                "libfabric 1.9, libfabric 2.1",
                "comes from 4 machines",
            ],
        );
}

#[test]
fn a_bound_that_would_be_lower_than_the_tables_own_has_to_be_agreed_to() {
    let site = Site::new();
    let own = "schema = \"dhc.thresholds/1\"\ninstance_type = \"p5.48xlarge\"\nextends = \"p5.48xlarge\"\n\
        [[hardware]]\nkind = \"rdma_nic\"\ncount = 2\nsource = \"ours\"\n\
        [[limit]]\nmetric = \"host.disk.free\"\nunit = \"percent\"\nfail_below = 5\nsource = \"ours\"\n\
        [[limit]]\nmetric = \"efa.loopback.bandwidth\"\nunit = \"GB/s\"\nat = { bytes = 1048576, provider = \"efa\" }\n\
        fail_below = 2\nwarn_below = 11.99\nsource = \"ours\"\n";
    site.write("own.toml", own);
    let results = site.healthy(6);
    let args = ["--extends", "own.toml", "--out", "new.toml"];
    site.learn(&args, &results).ends(
        4,
        &[
            "efa.loopback.bandwidth",
            "--allow-lower",
            "instead of 11.990 GB/s",
            "% worse",
        ],
    );
    assert!(!site.path("new.toml").exists());
    let agreed = [&args[..], &["--allow-lower", "efa.loopback.bandwidth"]].concat();
    site.learn(&agreed, &results).ends(0, &[]);
    // What the file held of its own is still there.
    let diff = site.dhc(&["thresholds", "diff", "own.toml", "new.toml"], &[]);
    let diff = diff.ends(
        1,
        &["efa.loopback.bandwidth at 1048576 bytes over efa warn_below loosened: 11.99 GB/s ->"],
    );
    assert!(
        !diff.out.contains("host.disk.free") && !diff.out.contains("network cards"),
        "{}",
        diff.out
    );
}

#[test]
fn bounds_do_not_follow_a_fleet_that_slows_down_step_by_step() {
    let site = Site::new();
    site.learn(&["--out", "t0.toml"], &site.healthy(6))
        .ends(0, &[]);
    let slower = |by: f64| -> Vec<PathBuf> {
        let result = |node| {
            let mut report = node_result(node, 0, &[]);
            for seen in &mut report.nodes[0].checks[0].record.measurements {
                if seen.metric == "efa.loopback.bandwidth" {
                    seen.value = (seen.value.number().unwrap() * by).into();
                }
            }
            site.keep(&format!("slower{node}.json"), &report)
        };
        (0..6).map(result).collect()
    };
    let args = ["--metric", "efa.loopback.bandwidth", "--extends", "t0.toml"];
    site.learn(&args, &slower(0.985)).ends(
        3,
        &[
            "efa.loopback.bandwidth at 1048576 bytes over efa: the table's own limit stays",
            "nothing is written",
        ],
    );
    site.learn(&args, &slower(0.97)).ends(4, &["% worse"]);
    // What is agreed to says what was before.
    let agreed = [&args[..], &["--allow-lower", "efa.loopback.bandwidth"]].concat();
    site.learn(&agreed, &slower(0.97)).ends(
        0,
        &["warns below 11.240 GB/s, before: >= 1.250 GB/s, warns below 11.590 GB/s"],
    );
}

#[test]
fn a_machine_counts_once_whether_or_not_a_result_knows_its_instance_id() {
    let site = Site::new();
    let with_cards = |number, id: bool| {
        let mut report = node_result(0, number, &[]);
        report.nodes[0].checks[0]
            .record
            .measurements
            .retain(|seen| seen.subject.name.len() < "rdmap10s0".len());
        if !id {
            report.nodes[0].identity.instance_id = None;
        }
        site.keep(&format!("run{number}.json"), &report)
    };
    let results = [with_cards(0, true), with_cards(1, false)];
    site.learn(&[], &results)
        .ends(3, &["10 measured, 10 more are needed for 20"]);
}

#[test]
fn of_two_results_of_one_run_the_worse_one_teaches() {
    let site = Site::new();
    let mut results = site.healthy(6);
    let mut failed = node_result(0, 0, &[]);
    failed.status = Status::Fail;
    failed.nodes[0].status = Status::Fail;
    results.push(site.keep("failed.json", &failed));
    site.learn(&[], &results).ends(
        4,
        &[
            "1 of 6 machines are unfit",
            "failed.json): its status is fail",
        ],
    );
}

#[test]
fn a_machine_with_two_reasons_is_one_machine() {
    let site = Site::new();
    let mut results = site.healthy(6);
    let mut failed = node_result(6, 0, &[]);
    failed.nodes[0].status = Status::Fail;
    failed.complete = false;
    results.push(site.keep("failed.json", &failed));
    site.learn(&[], &results).ends(
        4,
        &[
            "1 of 7 machines are unfit",
            "its status is fail",
            "the run did not come to its end",
        ],
    );
}

#[test]
fn a_fleet_that_is_two_fleets_teaches_nothing() {
    let site = Site::new();
    let slow: Vec<(usize, f64)> = (0..CARDS).map(|card| (card, 9.0)).collect();
    let mut results = site.healthy(5);
    results.push(site.keep("slow.json", &node_result(6, 0, &slow)));
    site.learn(&[], &results).ends(
        4,
        &[
            "32 of 192 values are unlike the others",
            "efa.loopback.bandwidth at 1048576",
        ],
    );
}

#[test]
fn a_context_metric_is_learned_by_name_alone_and_a_word_never() {
    let site = Site::new();
    let results = site.healthy(2);
    site.learn(&["--metric", "efa.loopback.latency"], &results)
        .ends(0, &["efa.loopback.latency"]);
    site.learn(&["--metric", "efa.port.state"], &results)
        .ends(4, &["nothing says whether more of it is better"]);
    site.learn(&["--metric", "efa.portstate"], &results)
        .ends(4, &["no check measures it"]);
}

#[test]
fn plateaus_are_learned_by_the_number_of_nodes_from_groups_that_passed() {
    let site = Site::new();
    let names: Vec<String> = (0..4).map(|node| format!("n{node}")).collect();
    let group = |number: usize, size: usize, outcome: &str| GroupReport {
        nodes: names[..size].to_vec(),
        purpose: "part".to_owned(),
        rail: None,
        outcome: outcome.to_owned(),
        named: Vec::new(),
        plateau_gb_per_s: Some(if outcome == "passed" {
            40.0 + number as f64 * 0.02
        } else {
            3.0
        }),
        bound_gb_per_s: None,
        bound_from: None,
        error: None,
        left_out: None,
    };
    let mut groups: Vec<GroupReport> = (0..24).map(|number| group(number, 2, "passed")).collect();
    groups.push(group(0, 2, "failed"));
    groups.extend((0..3).map(|number| group(number, 4, "passed")));
    // Neither one rail of two nor a node by itself is a sample of what groups reach.
    groups.extend((0..24).map(|number| GroupReport {
        purpose: "rail".to_owned(),
        rail: Some("eth1".to_owned()),
        plateau_gb_per_s: Some(20.0),
        ..group(number, 2, "passed")
    }));
    groups.extend((0..24).map(|number| GroupReport {
        purpose: "alone".to_owned(),
        plateau_gb_per_s: Some(400.0),
        ..group(number, 1, "passed")
    }));
    let chosen = tables::built_in_table(TYPE).unwrap();
    let nodes = names.iter().map(|name| {
        let mut record = Record::new("roll-call", Ending::Finished);
        record
            .measurements
            .push(metric("roll_call.answer").of(Subject::new(Kind::Node, name), "answered"));
        let check = CheckReport::new(record, &tables::metrics_of("roll-call"), &chosen.table);
        NodeReport::new(name.clone(), Identity::default(), vec![check])
    });
    let cluster = ClusterReport {
        launcher: "srun".to_owned(),
        job: None,
        rails: Vec::new(),
        topology: String::new(),
        checks: Vec::new(),
        searches: vec![SearchReport {
            cut_short: false,
            check: "mpi-allreduce".to_owned(),
            conclusion: "all_good".to_owned(),
            sentence: String::new(),
            paths: Vec::new(),
            located: Vec::new(),
            waves: vec![WaveReport {
                collective_ms: None,
                duration_ms: 1,
                groups,
            }],
        }],
    };
    let report =
        Report::new(run("01KCLUSTER"), chosen.judged_by, nodes.collect()).with_cluster(cluster);
    let result = site.keep("cluster.json", &report);
    let said = site.learn(&["--coverage", "99"], &[result]);
    let said = said.ends(
        0,
        &[
            "mpi.allreduce.plateau",
            "nodes = \"2\"",
            "24 values of 24 things, run 01KCLUSTER",
            "mpi.allreduce.plateau over 4 nodes: not learned: 3 measured, 17 more are needed",
            "99 % tolerance bound",
        ],
    );
    let bound = said
        .out
        .lines()
        .find_map(|line| line.strip_prefix("warn_below = "))
        .unwrap();
    let bound: f64 = bound.parse().unwrap();
    assert!(bound > 38.0 && bound < 40.0, "{bound}");
}

#[test]
fn learning_and_peers_are_explained() {
    let site = Site::new();
    site.dhc(&["explain", "learning"], &[])
        .ends(0, &["--allow-lower", "20 devices"]);
    site.dhc(&["explain", "peers"], &[])
        .ends(0, &["two of a device's last three runs"]);
}

// --- diff --------------------------------------------------------------------------------------------------------------

#[test]
fn a_table_does_not_differ_from_itself_and_a_changed_one_says_how() {
    let site = Site::new();
    site.dhc(&["thresholds", "diff", TYPE, TYPE], &[])
        .ends(0, &[]);
    let head = "schema = \"dhc.thresholds/1\"\ninstance_type = \"lab\"\n";
    let limit = |metric: &str, unit: &str, bound: &str, source: &str| {
        format!(
            "[[limit]]\nmetric = \"{metric}\"\nunit = \"{unit}\"\n{bound}\nsource = \"{source}\"\n"
        )
    };
    let disk = |bound: &str| limit("host.disk.free", "percent", bound, "s");
    let latency = |source: &str| limit("efa.loopback.latency", "us", "fail_above = 100", source);
    let size = limit("gpu.memory.size", "MiB", "fail_below = 1", "s");
    site.write(
        "a.toml",
        format!("{head}{}{}", disk("fail_below = 10"), latency("old")),
    );
    site.write(
        "b.toml",
        format!("{head}{}{}{size}", disk("fail_below = 8"), latency("new")),
    );
    site.dhc(&["thresholds", "diff", "a.toml", "b.toml"], &[])
        .ends(
            1,
            &[
                "host.disk.free fail_below loosened: 10 percent -> 8 percent (-20.0 %)",
                "efa.loopback.latency source changed: old -> new",
                "gpu.memory.size limit added: nothing -> >= 1 MiB",
            ],
        );
    let back = site
        .dhc(
            &["thresholds", "diff", "b.toml", "a.toml", "--format", "json"],
            &[],
        )
        .ends(1, &[]);
    let document: serde_json::Value = serde_json::from_str(&back.out).unwrap();
    assert_eq!(document["schema"], "dhc.thresholds.diff/1");
    assert_eq!(document["same"], false);
    let kinds: Vec<_> = document["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["changed", "removed", "tightened"]);
    site.dhc(&["thresholds", "diff", "a.toml", "no-such-type"], &[])
        .ends(64, &["no table for the instance type"]);
}

// --- compare -----------------------------------------------------------------------------------------------------------

fn kept(site: &Site, reports: &[Report]) -> Vec<PathBuf> {
    let keep = |report: &Report| site.keep(&format!("{}.json", report.run.id), report);
    reports.iter().map(keep).collect()
}

#[test]
fn a_slow_card_is_watched_in_one_run_and_fails_in_two_of_three() {
    let site = Site::new();
    let fleet = |number: usize, slow: &[(usize, f64)]| -> Vec<Report> {
        (0..6)
            .map(|node| node_result(node, number, if node == 4 { slow } else { &[] }))
            .collect()
    };
    let slow = [(9, 9.0)];
    let once = kept(&site, &fleet(0, &slow));
    let said = site
        .dhc(&["compare", "--format", "json"], &once)
        .ends(1, &[]);
    assert_eq!(statuses(&said), [("node4".to_owned(), Status::Warn)]);
    let thrice = kept(
        &site,
        &[fleet(0, &slow), fleet(1, &[]), fleet(2, &slow)].concat(),
    );
    let said = site
        .dhc(&["compare", "--format", "json"], &thrice)
        .ends(2, &["\"origin\": \"peers\""]);
    assert_eq!(statuses(&said), [("node4".to_owned(), Status::Fail)]);
    let report = Report::parse(said.out.as_bytes()).unwrap();
    assert_eq!(
        (report.run.level.as_str(), report.fleet.unwrap().runs.len()),
        ("fleet", 18)
    );
    site.dhc(&["compare"], &thrice).ends(
        2,
        &[
            "6 nodes in 18 runs",
            "efa.loopback.bandwidth of rdmap9s0 is 9 GB/s, its peers have at least",
            "in 2 of its last 3 runs",
            "together: FAIL",
        ],
    );
    // The outcome is a result like any other.
    let together = site.write("together.json", &said.out);
    site.dhc(&["recover", "plan", "--state", "state"], &[together])
        .ends(0, &["node4"]);
}

#[test]
fn three_runs_of_one_node_are_enough_to_fail_one_of_its_cards() {
    let site = Site::new();
    let slow = [(9, 9.0)];
    let runs: Vec<Report> = (0..3).map(|number| node_result(0, number, &slow)).collect();
    site.dhc(&["judge"], &kept(&site, &runs[..1])).ends(
        1,
        &[
            "bound peers_below from peers",
            "of 32 of its kind on this node",
        ],
    );
    site.dhc(&["compare"], &kept(&site, &runs))
        .ends(2, &["in 3 of its last 3 runs"]);
}

#[test]
fn results_of_the_cluster_level_and_of_different_tables_are_not_compared() {
    let site = Site::new();
    let mut other = node_result(1, 0, &[]);
    let chosen = tables::built_in_table("p4d.24xlarge").unwrap();
    other.judged_by = chosen.judged_by;
    let mixed = kept(&site, &[node_result(0, 0, &[]), other]);
    site.dhc(&["compare"], &mixed)
        .ends(4, &["judged by different tables (`p5.48xlarge`"]);
    let cluster = ClusterReport {
        launcher: "srun".to_owned(),
        job: None,
        rails: Vec::new(),
        topology: String::new(),
        checks: Vec::new(),
        searches: Vec::new(),
    };
    let cluster = node_result(3, 0, &[]).with_cluster(cluster);
    site.dhc(&["compare"], &kept(&site, &[cluster]))
        .ends(4, &["is of the cluster level"]);
    site.dhc(&["compare"], &[Path::new("nowhere.json").to_owned()])
        .ends(4, &["cannot read `nowhere.json`"]);
}
