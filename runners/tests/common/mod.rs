//! The built `dhc` on a simulated machine, and its result.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it left"
)]
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test file uses its own part"
)]

pub(crate) mod cluster;
pub(crate) mod dead_file_system;
pub(crate) mod gpu_cluster;
pub(crate) mod gpus;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, CheckReport, Finding, GroupReport, Report, Status};

/// `dhc`, a machine to run it on, and a directory for its results.
pub(crate) struct Dhc {
    /// The machine.
    pub(crate) node: FakeNode,
    pub(crate) state: tempfile::TempDir,
}

/// What a run left.
pub(crate) struct Outcome {
    /// Its exit status.
    pub(crate) exit: i32,
    /// The document on standard output.
    pub(crate) report: Report,
    /// What it said on standard error.
    pub(crate) stderr: String,
}

impl Dhc {
    pub(crate) fn on(node: FakeNode) -> Dhc {
        Dhc {
            node,
            state: tempfile::tempdir().unwrap(),
        }
    }

    /// Where it keeps results.
    pub(crate) fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// `dhc` with these arguments, told to look at the machine.
    pub(crate) fn command(&self, subcommand: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command
            .arg(subcommand)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin");
        command
            .arg("--state")
            .arg(self.state())
            .arg("--root")
            .arg(self.node.root());
        command
            .arg("--tools")
            .arg(self.node.tools())
            .arg("--nvml")
            .arg(self.node.nvml());
        command
    }

    /// `dhc run --format json` with these arguments.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        outcome(
            self.command("run", args)
                .args(["--format", "json"])
                .output()
                .unwrap(),
        )
    }

    /// `dhc run` of one check.
    pub(crate) fn check(&self, check: &str) -> Outcome {
        self.run(&["--check", check])
    }

    /// The folders of all runs, oldest first.
    pub(crate) fn runs(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.state().join("runs")) else {
            return Vec::new();
        };
        let mut runs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        runs.sort();
        runs
    }
}

/// The beginning of an `mpirun` that says hello for roll calls, from the first host of its command line, and ends.
pub(crate) const ROLL_CALL: &str = r#"case "$*" in *roll_call*)
echo '{"hello":{"rank":0,"host":"'"${2%%:*}"'","boot":"b","pid":1}}'; exit ;; esac"#;

/// The worker of collectives, which has to be built.
#[track_caller]
pub(crate) fn rank() -> PathBuf {
    let rank = Path::new(env!("CARGO_BIN_EXE_dhc")).with_file_name("dhc-rank");
    assert!(
        rank.is_file(),
        "dhc-rank is not built: cargo build --package dhc-rank"
    );
    rank
}

/// A built-in policy, but one that is meant.
pub(crate) fn enforced_policy(built_in: &str) -> String {
    let mut dhc = Command::new(env!("CARGO_BIN_EXE_dhc"));
    let output = dhc.args(["recover", "policy", built_in]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let enforced = text.replace("mode = \"observe\"", "mode = \"enforce\"");
    assert_ne!(text, enforced);
    enforced
}

/// The parts of a finished `dhc run --format json`.
pub(crate) fn outcome(output: Output) -> Outcome {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = Report::parse(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "no report ({error:?}) but `{}`; {stderr}",
            String::from_utf8_lossy(&output.stdout)
        )
    });
    Outcome {
        exit: output.status.code().expect("dhc ends by itself"),
        report,
        stderr,
    }
}

impl Outcome {
    /// What became of a check.
    pub(crate) fn check(&self, name: &str) -> &CheckReport {
        let checks = &self.report.nodes[0].checks;
        checks
            .iter()
            .find(|check| check.check == name)
            .unwrap_or_else(|| panic!("no check {name}"))
    }

    /// The findings that are worse than a pass: check, status, fault class, subject.
    pub(crate) fn complaints(&self) -> Vec<(String, Status, String, String)> {
        let mut complaints = Vec::new();
        for check in &self.report.nodes[0].checks {
            for finding in check
                .findings
                .iter()
                .filter(|finding| finding.status > Status::Pass)
            {
                let fault = finding.fault.clone().unwrap_or_default();
                complaints.push((
                    check.check.clone(),
                    finding.status,
                    fault,
                    finding.subject.name.clone(),
                ));
            }
        }
        complaints
    }

    /// The findings of a check with this status.
    pub(crate) fn findings(&self, check: &str, status: Status) -> Vec<&Finding> {
        self.check(check)
            .findings
            .iter()
            .filter(|finding| finding.status == status)
            .collect()
    }

    /// The groups of the first search of the cluster level, in the order in which they were measured.
    pub(crate) fn groups(&self) -> Vec<&GroupReport> {
        let cluster = self.report.cluster.as_ref();
        let search = &cluster.expect("the cluster level was run").searches[0];
        search.waves.iter().flat_map(|wave| &wave.groups).collect()
    }

    /// The nodes that failed.
    pub(crate) fn accused(&self) -> Vec<&str> {
        let nodes = self.report.nodes.iter();
        let accused = nodes.filter(|node| node.status == Status::Fail);
        accused.map(|node| node.name.as_str()).collect()
    }

    /// Status of the node and the action that is suggested.
    pub(crate) fn verdict(&self) -> (Status, Action) {
        (self.report.nodes[0].status, self.report.nodes[0].action)
    }
}
