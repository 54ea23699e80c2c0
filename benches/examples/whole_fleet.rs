//! `dhc run --level all` over 16,384 nodes on this machine: what it costs to hear of all nodes, to judge them, and to measure
//! them together, in the process that does it.
//!
//! Everything of dhc is real but the launcher, which is this program again: it says what the ranks and the runs of so many nodes
//! would say, each node that of a sound p5.48xlarge with eight GPUs, and one rank for each node in the collective.
//!
//! ```sh
//! cargo build --release --package dhc-runners && cargo run --release --package dhc-benches --example whole_fleet [NODES]
//! ```
#![expect(clippy::disallowed_methods, reason = "starts dhc itself")]
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use dhc_checks::group::NodeLine;
use dhc_checks::rank::{Hello, Phase, Progress, RankLine, SizeLine};
use dhc_fixtures::FakeNode;
use dhc_runners::journal;
use dhc_thresholds::Report;
use nix::sys::resource::{UsageWho, getrusage};

/// The first argument of this program where it is the launcher; the document of a node and the launcher's arguments follow.
const AS_LAUNCHER: &str = "--as-launcher";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [first, document, rest @ ..] if first == AS_LAUNCHER => launch(Path::new(document), rest),
        [nodes] => run(nodes.parse().expect("a number of nodes")),
        _ => run(16_384),
    }
}

/// Runs dhc over so many nodes and tells what it took.
fn run(nodes: usize) {
    let this = std::env::current_exe().expect("a program knows its own path");
    let folder = this
        .parent()
        .and_then(Path::parent)
        .expect("examples lie below target/release");
    let dhc = folder.join("dhc");
    let work = tempfile::tempdir().expect("a folder");
    let document = work.path().join("document");
    std::fs::write(&document, document_of_a_node(&dhc, work.path())).expect("it can be written");
    let launcher = format!(
        "exec '{}' {AS_LAUNCHER} '{}' \"$@\"",
        this.display(),
        document.display()
    );
    let node = FakeNode::plain().tool("mpirun").runs(&launcher);
    let names: Vec<String> = (1..=nodes).map(|node| format!("n{node}")).collect();
    let mut command = Command::new(&dhc);
    command.args([
        "run",
        "--level",
        "all",
        "--launcher",
        "mpirun",
        "--nodelist",
        &names.join(","),
    ]);
    command.args([
        "--skip",
        "nccl-allreduce",
        "--seed",
        "1",
        "--format",
        "json",
    ]);
    for flag in ["--worker", "--node-dhc"] {
        command.arg(flag).arg(&this);
    }
    command.arg("--state").arg(work.path().join("state"));
    command
        .arg("--root")
        .arg(node.root())
        .arg("--tools")
        .arg(node.tools());
    let begun = Instant::now();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .expect("dhc starts");
    let took = begun.elapsed();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    let report = Report::parse(&output.stdout).expect("a report");
    let passed = report
        .nodes
        .iter()
        .filter(|node| node.status == dhc_thresholds::Status::Pass);
    println!(
        "{nodes} nodes: {took:.1?}, largest process {} MiB, result {} MiB, {} nodes passed, {:?}",
        usage.max_rss() >> 10,
        output.stdout.len() >> 20,
        passed.count(),
        report.cluster.map(|cluster| cluster
            .searches
            .into_iter()
            .map(|search| search.sentence)
            .collect::<Vec<_>>()),
    );
}

/// What the run on a sound node hands over.
fn document_of_a_node(dhc: &Path, work: &Path) -> String {
    let node = FakeNode::p5_48xlarge();
    let mut command = Command::new(dhc);
    command.args(["run", "--tag", "quick", "--format", "json"]);
    command.arg("--state").arg(work.join("state-of-node"));
    command
        .arg("--root")
        .arg(node.root())
        .arg("--tools")
        .arg(node.tools());
    let output = command
        .arg("--nvml")
        .arg(node.nvml())
        .output()
        .expect("dhc starts");
    let report = Report::parse(&output.stdout).expect("a report");
    journal::to_carry(&report, &report.nodes[0]).expect("a report is JSON")
}

/// Says what the launcher with these arguments would have to carry.
fn launch(document: &Path, args: &[String]) {
    let hosts = args.windows(2).filter(|pair| pair[0] == "--host");
    let hosts: Vec<&str> = hosts.flat_map(|pair| pair[1].split(',')).collect();
    let hosts = hosts
        .into_iter()
        .map(|host| host.split(':').next().unwrap_or(host));
    let hosts: Vec<String> = hosts.map(str::to_owned).collect();
    let mut said = BufWriter::new(std::io::stdout().lock());
    if args.iter().any(|word| word == "--part-of") {
        let document = std::fs::read_to_string(document).expect("the document is there");
        for (task, host) in (0..).zip(hosts) {
            let step = None;
            say(
                &mut said,
                &NodeLine::Hello {
                    task,
                    host,
                    node: None,
                    step,
                },
            );
            for line in NodeLine::of_document(task, &document) {
                say(&mut said, &line);
            }
        }
        return;
    }
    let ranks = u32::try_from(hosts.len()).expect("few enough");
    for (rank, host) in (0..).zip(hosts) {
        let boot = "0d35b938-744a-4ed8-b420-90872a7c7c80".to_owned();
        let (pid, step) = (1, None);
        say(
            &mut said,
            &RankLine::Hello(Hello {
                rank,
                host,
                node: None,
                boot,
                pid,
                step,
                dhc: String::new(),
            }),
        );
    }
    if args.iter().any(|word| word.contains("roll_call")) {
        return;
    }
    let phases = [
        Phase::Init,
        Phase::Barrier,
        Phase::Collective,
        Phase::Collective,
    ];
    for (entered, phase) in (0..).zip(phases) {
        for rank in 0..ranks {
            let progress = Progress { phase, entered };
            say(&mut said, &RankLine::At { rank, progress });
        }
    }
    for power in 3..=26 {
        say(&mut said, &RankLine::Size(size(1 << power, ranks)));
    }
    for rank in 0..ranks {
        let transports = vec!["tcp".to_owned()];
        let (collective_ms, seen) = (1_000, "connections to other hosts".to_owned());
        say(
            &mut said,
            &RankLine::Left {
                rank,
                collective_ms,
                transports,
                seen,
            },
        );
        let progress = Progress {
            phase: Phase::Done,
            entered: 9,
        };
        say(&mut said, &RankLine::At { rank, progress });
    }
}

/// A message size of which every rank is as fast as the others.
fn size(bytes: u64, ranks: u32) -> SizeLine {
    let mean_us = 10.0 + bytes as f64 / 20e3;
    SizeLine {
        bytes,
        ranks,
        iterations: 100,
        verified: 10,
        wrong: 0,
        wrong_rank: None,
        wrong_ranks: 0,
        mean_us,
        p50_us: mean_us,
        p99_us: mean_us,
        min_us: mean_us,
        max_us: mean_us,
        slowest: (0, mean_us),
        fastest: (ranks - 1, mean_us),
    }
}

fn say(said: &mut impl Write, line: &impl serde::Serialize) {
    let text = serde_json::to_string(line).expect("a line is JSON");
    // A listener that has heard enough may be gone.
    drop(writeln!(said, "{text}"));
}
