//! The test cluster (`fixtures/cluster`), as tests call it. Needs root, or sudo without a password.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Slurm's own default. With less, it takes the first host of a step out of service because that host waits for news of one
/// that is cut off.
pub(crate) const SLURM: &str = "UnkillableStepTimeout=60";

/// What a slowed link passes: 12.5 MB/s. No sound group of a cluster stays below the floor of 20.
pub(crate) const SLOW: &str = "100mbit";
pub(crate) const FLOOR: &str = r#"schema = "dhc.thresholds/1"
instance_type = "namespace-cluster"

[[limit]]
metric = "mpi.allreduce.plateau"
unit = "GB/s"
fail_below = 0.02
source = "twice what a link of 100 Mbit/s carries"
"#;

/// The machine bears one cluster at a time.
static ONE: Mutex<()> = Mutex::new(());

/// A cluster and its folder; both go away with this. Each test file adds what it asks of one.
pub(crate) struct Cluster {
    pub(crate) folder: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Cluster {
    /// A folder for a cluster, which is still to be booted.
    pub(crate) fn unbooted() -> Cluster {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Cluster {
            folder: tempfile::tempdir().unwrap(),
            _one: one,
        }
    }

    /// Boots so many hosts on so many leaf switches, with lines for the end of `slurm.conf`. No leaves stand for one switch
    /// that Slurm knows nothing of.
    #[track_caller]
    pub(crate) fn boot(&self, hosts: usize, leaves: usize, slurm_conf: &str) {
        let mut up = self.with_settings(&[
            format!("CLUSTER_LEAVES={leaves}"),
            format!("CLUSTER_SLURM={slurm_conf}"),
        ]);
        output_of(up.args(["up", &hosts.to_string()]));
    }

    /// A file of the folder, which all hosts see.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The cluster's script with these arguments.
    pub(crate) fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut command = self.with_settings(&[]);
        command.args(args);
        command
    }

    /// What a call of the script printed; it has to succeed.
    #[track_caller]
    pub(crate) fn tool(&self, args: &[&str]) -> String {
        output_of(&mut self.command(args))
    }

    /// A command of Slurm on the head node.
    #[track_caller]
    pub(crate) fn slurm(&self, args: &[&str]) -> String {
        self.tool(&[&["exec", "ctl"], args].concat())
    }

    fn with_settings(&self, settings: &[String]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cluster/cluster");
        let mut command = Command::new("env");
        if rustix::process::geteuid().as_raw() != 0 {
            command = Command::new("sudo");
            command.args(["-n", "env"]);
        }
        command
            .arg(format!("CLUSTER_DIR={}", self.path("cluster").display()))
            .args(settings)
            .arg(script.canonicalize().unwrap())
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.command(["down"]).output());
    }
}

#[track_caller]
fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
