//! The test cluster (`fixtures/cluster`), as tests call it. Needs root, or sudo without a password.

use std::path::Path;
use std::process::{Command, Stdio};

/// Slurm's own default. With less, it takes the first host of a step out of service because that host waits for news of one
/// that is cut off.
pub(crate) const SLURM: &str = "UnkillableStepTimeout=60";

/// The cluster's script for the cluster in this folder, with lines for the end of `slurm.conf`; what to do follows.
pub(crate) fn command(folder: &Path, slurm: &str, leaves: usize) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cluster/cluster");
    let mut command = Command::new("env");
    if rustix::process::geteuid().as_raw() != 0 {
        command = Command::new("sudo");
        command.args(["-n", "env"]);
    }
    command
        .arg(format!("CLUSTER_DIR={}", folder.display()))
        .arg(format!("CLUSTER_LEAVES={leaves}"))
        .arg(format!("CLUSTER_SLURM={slurm}"))
        .arg(script.canonicalize().unwrap())
        .stdin(Stdio::null());
    command
}

/// What a call of the script printed; it has to succeed.
#[track_caller]
pub(crate) fn output_of(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
