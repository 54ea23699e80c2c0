//! Slurm's own Prolog, Epilog and HealthCheckProgram (`deploy/slurm`) on a real Slurm (`fixtures/cluster`): four hosts, each
//! of which is a simulated machine. What Slurm makes of the scripts' exit status is seen, not assumed.
//!
//! Needs root, or sudo without a password.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::cluster::Cluster;
use dhc_fixtures::FakeNode;

const SOUND: &str = "p5.48xlarge";
const LOST: &str = "p5.48xlarge-gpu-lost";

/// How long Slurm may take to call a script, or to act on how it ended.
const SOON: Duration = Duration::from_secs(40);

impl Cluster {
    /// A cluster whose scripts do nothing before `begin`; `slurm_conf` names `health-check` and `prolog-epilog` of the folder
    /// `SCRIPTS`.
    fn up(slurm_conf: &str) -> Cluster {
        let cluster = Cluster::unbooted();
        let scripts = cluster.folder.path().to_str().unwrap();
        for script in ["health-check", "prolog-epilog"] {
            let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/slurm");
            let shipped = shipped.join(script).canonicalize().unwrap();
            // What /etc/default/dhc would say on a real node.
            cluster.script(
                script,
                &format!(
                    "[ -e '{scripts}/begin' ] || exit 0\n\
                     export SLURM_CONF=/run/cluster/slurm.conf DHC=\"{scripts}/$SLURMD_NODENAME\"\n\
                     exec '{}'\n",
                    shipped.display()
                ),
            );
        }
        cluster.boot(4, 0, &slurm_conf.replace("SCRIPTS", scripts));
        cluster
    }

    /// A script, put in place whole.
    fn script(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        std::fs::write(&new, format!("#!/bin/sh\n{text}")).unwrap();
        std::fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    /// From now on this host's dhc sees this machine; `nvml` is the file that it loads NVML from, if not the machine's.
    fn is(&self, host: &str, machine: &FakeNode, nvml: Option<&str>) {
        // The tree lies in /dev/shm, which is each host's own.
        let name = machine.root().file_name().unwrap().display().to_string();
        let root = self.path(&format!("{host}-{name}"));
        let mut copy = Command::new("cp");
        copy.arg("--archive").arg(machine.root()).arg(&root);
        assert!(copy.status().unwrap().success());
        let nvml = nvml.map_or_else(|| machine.nvml(), PathBuf::from);
        self.script(
            host,
            &format!(
                "'{}' \"$@\" --state '{}' --root '{}' --tools '{}' --nvml '{}'\n\
                 status=$?; echo $status >>'{}'; exit $status\n",
                env!("CARGO_BIN_EXE_dhc"),
                self.path(&format!("state-{host}")).display(),
                root.display(),
                machine.tools().display(),
                nvml.display(),
                self.path(&format!("ended-{host}")).display(),
            ),
        );
    }

    fn begin(&self) {
        std::fs::write(self.path("begin"), "").unwrap();
    }

    /// How dhc ended on this host, each time that Slurm had it called.
    fn ended(&self, host: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(&format!("ended-{host}")));
        text.unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// State of a node and the reason for it, without who gave it and when.
    #[track_caller]
    fn node(&self, host: &str) -> (String, Option<String>) {
        let text = self.slurm(&["scontrol", "show", "node", host]);
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
            line.map(str::to_owned)
        };
        let state = value("State=").unwrap();
        let state = state.split(' ').next().unwrap().to_owned();
        let reason = value("Reason=").map(|reason| reason.split(" [").next().unwrap().to_owned());
        (state, reason)
    }

    /// Hands in a job that writes a file on the given host; returns its number.
    #[track_caller]
    fn job(&self, host: &str, does: &str) -> String {
        let output = self.path(&format!("job-{host}.out"));
        let output = format!("--output={}", output.display());
        let host = format!("--nodelist={host}");
        let job = self.slurm(&[
            "sbatch",
            "--parsable",
            "--requeue",
            &host,
            &output,
            "--wrap",
            does,
        ]);
        job.trim().to_owned()
    }

    /// State of a job and the reason for it.
    #[track_caller]
    fn job_is(&self, job: &str) -> (String, String) {
        let text = self.slurm(&["scontrol", "show", "--oneliner", "job", job]);
        let value = |key: &str| {
            let word = text.split(' ').find_map(|word| word.strip_prefix(key));
            word.unwrap().to_owned()
        };
        (value("JobState="), value("Reason="))
    }

    #[track_caller]
    fn wait_for(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(
                begun.elapsed() < SOON,
                "not within {SOON:?}: {what}; {}",
                self.slurm(&["sinfo", "--Node", "--long"])
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn well() -> (String, Option<String>) {
    ("IDLE".to_owned(), None)
}

#[test]
fn the_health_check_drains_the_node_at_fault_and_nobody_else() {
    let cluster = Cluster::up(
        "HealthCheckProgram=SCRIPTS/health-check\nHealthCheckInterval=2\nHealthCheckNodeState=ANY",
    );
    let (lost, sound) = (FakeNode::of(LOST), FakeNode::of(SOUND));
    cluster.is("h1", &lost, None);
    cluster.is("h2", &sound, Some("/nowhere/libnvidia-ml.so.1"));
    cluster.is("h3", &lost, None);
    // On h4 there is no dhc.
    let drained = ("IDLE+DRAIN".to_owned(), Some("fans".to_owned()));
    cluster.slurm(&[
        "scontrol",
        "update",
        "NodeName=h3",
        "State=DRAIN",
        "Reason=fans",
    ]);
    cluster.begin();
    cluster.wait_for("h1 is drained", || cluster.node("h1").0 == "IDLE+DRAIN");
    let reason = "dhc: fail, see dhc status on the node".to_owned();
    assert_eq!(cluster.node("h1").1, Some(reason));
    // One more round began after the one that all have had.
    cluster.wait_for("two rounds", || {
        ["h1", "h2", "h3"]
            .iter()
            .all(|host| cluster.ended(host).len() > 2)
    });
    assert!(cluster.ended("h1").iter().all(|status| status == "2"));
    assert!(cluster.ended("h2").iter().all(|status| status == "4"));
    assert!(cluster.ended("h3").iter().all(|status| status == "2"));
    assert_eq!(cluster.node("h2"), well(), "an error accused the hardware");
    assert_eq!(cluster.node("h3"), drained, "another's words are gone");
    assert_eq!(cluster.node("h4"), well(), "no dhc accused the hardware");
}

#[test]
fn the_prolog_gives_the_job_back_and_the_epilog_takes_the_node_after_it() {
    let cluster = Cluster::up("Prolog=SCRIPTS/prolog-epilog\nEpilog=SCRIPTS/prolog-epilog");
    let (lost, sound) = (FakeNode::of(LOST), FakeNode::of(SOUND));
    cluster.is("h1", &lost, None);
    cluster.is("h2", &sound, Some("/nowhere/libnvidia-ml.so.1"));
    cluster.is("h3", &sound, None);
    cluster.begin();
    let (first, second) = (cluster.job("h1", "echo ran"), cluster.job("h2", "echo ran"));
    cluster.wait_for("h1 is drained", || cluster.node("h1").0 == "IDLE+DRAIN");
    assert_eq!(cluster.node("h1").1.as_deref(), Some("Prolog error"));
    cluster.wait_for("the job waits", || cluster.job_is(&first).0 == "PENDING");
    let held = (
        "PENDING".to_owned(),
        "launch_failed_requeued_held".to_owned(),
    );
    assert_eq!(cluster.job_is(&first), held);
    // Slurm's own words, and none of the job's.
    let output = std::fs::read_to_string(cluster.path("job-h1.out")).unwrap();
    assert_eq!(output, "Error running slurm prolog: 1\n");
    cluster.wait_for("the job on h2", || cluster.job_is(&second).0 == "COMPLETED");
    cluster.wait_for("h2's epilog", || cluster.ended("h2").len() == 2);
    assert_eq!(cluster.ended("h2"), ["4", "4"]);
    // The GPU is lost while the job runs.
    let third = cluster.job("h3", "echo begun; sleep 2; echo ran");
    let output = cluster.path("job-h3.out");
    cluster.wait_for("the job on h3", || {
        std::fs::read_to_string(&output).is_ok_and(|text| text == "begun\n")
    });
    cluster.is("h3", &lost, None);
    cluster.wait_for("h3 is drained", || cluster.node("h3").0 == "IDLE+DRAIN");
    assert_eq!(cluster.node("h3").1.as_deref(), Some("Epilog error"));
    assert_eq!(cluster.job_is(&third).0, "COMPLETED");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "begun\nran\n");
    cluster.wait_for("h2 is free", || cluster.node("h2") == well());
}
