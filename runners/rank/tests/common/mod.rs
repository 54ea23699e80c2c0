//! Ranks on this machine, started by Open MPI's own launcher.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it prints"
)]

use std::process::{Command, Output};

use dhc_checks::rank::{RankLine, RankTask};

/// So many ranks that do this: how the launcher ended, and what they said.
pub(crate) fn ranks(count: u32, task: &RankTask) -> (Output, Vec<RankLine>) {
    let output = Command::new("mpirun")
        .args(["--oversubscribe", "--bind-to", "none", "--host"])
        .args([&format!("localhost:{count}"), "-n", &count.to_string()])
        .arg(env!("CARGO_BIN_EXE_dhc-rank"))
        .arg(serde_json::to_string(task).unwrap())
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    let lines = said.lines().map(line).collect();
    (output, lines)
}
