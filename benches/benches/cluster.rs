//! What it costs to put the result of 16,384 nodes together and to write it: all that happens after the last wave.
//!
//! The fleet is simulated, eight of its nodes are faulty; the records are those that real roll calls leave.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]
#![expect(clippy::print_stderr, reason = "memory stands beside the time")]
#![expect(clippy::disallowed_methods, reason = "reads its own memory")]

use std::collections::BTreeMap;
use std::io::Write;

use criterion::{Criterion, criterion_group, criterion_main};
use dhc_checks::catalog::roll_call;
use dhc_checks::group::Launch;
use dhc_runners::cluster::Cluster;
use dhc_runners::cluster::verdicts::{Answers, Known};
use dhc_runners::localise::simulate::Fleet;
use dhc_runners::localise::{Finding, Random, Rates, Settings};
use dhc_runners::tables;
use dhc_thresholds::{Device, Ending, Kind, Record, Report, Run, Subject};

const NODES: usize = 16_384;

fn roll_calls(names: &[String]) -> Vec<Record> {
    let call = |names: &[String]| {
        let mut record = Record::new(roll_call::SPEC.name, Ending::Finished);
        for name in names {
            let subject = Subject::new(Kind::Node, name.as_str());
            record
                .measurements
                .push(roll_call::ANSWER.of(subject.clone(), "answered"));
            let boot = "0d35b938-744a-4ed8-b420-90872a7c7c80".to_owned();
            record.devices.push(Device {
                subject,
                identity: [("boot_id".to_owned(), boot)].into(),
            });
        }
        record
    };
    names.chunks(NODES / 128).map(call).collect()
}

fn finding() -> Finding {
    let rates = Rates {
        false_alarm: 0.01,
        miss: 0.02,
    };
    let mut random = Random::new(3);
    let fleet = Fleet::with_faulty(NODES, 8, rates, &mut random);
    let (search, _) = fleet.search(Settings::default(), &mut random);
    search.finding()
}

fn put_together(criterion: &mut Criterion) {
    let names: Vec<String> = (0..NODES)
        .map(|node| format!("ip-10-{}-{}", node / 256, node % 256))
        .collect();
    let cluster = Cluster {
        nodes: names.clone(),
        down: Vec::new(),
        launch: Launch::Srun { job: 1 },
        worker: "/usr/bin/dhc-rank".into(),
        cards: Vec::new(),
        topology: None,
        topology_from: String::new(),
    };
    let (calls, findings) = (roll_calls(&names), [("mpi-allreduce", finding())]);
    let chosen = tables::built_in_table("generic").expect("the generic table is built in");
    let run = Run {
        id: "01J00000000000000000000000".to_owned(),
        dhc: "0.1.0".to_owned(),
        level: "cluster".to_owned(),
        started_at: String::new(),
        duration_ms: 0,
        expires_at: String::new(),
        environment: Default::default(),
        options: Default::default(),
    };
    let merge_and_write = || {
        let mut answers = Answers::default();
        calls.iter().for_each(|call| answers.add(call));
        let known = Known {
            cluster: &cluster,
            answers: &answers,
            answered: &names,
            findings: &findings,
            local: false,
            away: &BTreeMap::new(),
            ended: None,
            over: false,
        };
        let nodes = known.nodes(BTreeMap::new(), &chosen);
        let report = Report::new(run.clone(), chosen.judged_by.clone(), nodes);
        let document = serde_json::to_vec_pretty(&report).expect("a report is JSON");
        let mut file = tempfile::NamedTempFile::new().expect("a file to write to");
        file.write_all(&document).expect("it can be written");
        file.as_file().sync_all().expect("it can be made durable");
        document.len()
    };
    let bytes = merge_and_write();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or("");
    eprintln!("{NODES} nodes: {bytes} bytes; {peak}");
    let mut group = criterion.benchmark_group("16,384 nodes");
    group.sample_size(10);
    group.bench_function("merge and write", |timer| timer.iter(merge_and_write));
    group.finish();
}

criterion_group!(benches, put_together);
criterion_main!(benches);
