//! What the benches share: the release build of `dhc`, told to look at a simulated machine.
#![expect(clippy::disallowed_methods, reason = "benches start dhc itself")]

use std::path::PathBuf;
use std::process::{Command, Output};

use dhc_fixtures::FakeNode;
use tempfile::TempDir;

/// The arguments that choose the quick instance level: all but diagnostics, loopback and what else takes minutes.
pub const QUICK: [&str; 4] = ["--tag", "quick", "--format", "json"];

/// The release build of `dhc` and a simulated machine of eight H100.
pub struct Bench {
    node: FakeNode,
    state: TempDir,
    program: PathBuf,
}

impl Bench {
    /// On a sound p5.48xlarge.
    ///
    /// # Panics
    /// When `dhc` was not built in release before: a bench must not measure a debug build.
    pub fn on_eight_gpus() -> Bench {
        let this = std::env::current_exe().expect("a bench knows its own path");
        let folder = this
            .parent()
            .and_then(|deps| deps.parent())
            .expect("benches lie below target/release/deps");
        let program = folder.join("dhc");
        assert!(
            program.is_file(),
            "`{}` is not there: cargo build --release --package dhc-runners",
            program.display()
        );
        Bench {
            node: FakeNode::p5_48xlarge(),
            state: tempfile::tempdir().expect("a directory for results"),
            program,
        }
    }

    /// What `dhc` answers to these arguments without a machine to look at.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn dhc(&self, args: &[&str]) -> Output {
        let output = Command::new(&self.program).args(args).output();
        output.expect("dhc starts")
    }

    /// What `dhc run` leaves on the machine.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command.arg("run").args(args);
        command.arg("--state").arg(self.state.path().join("state"));
        command.arg("--root").arg(self.node.root());
        command.arg("--tools").arg(self.node.tools());
        command.arg("--nvml").arg(self.node.nvml());
        command.output().expect("dhc starts")
    }
}
