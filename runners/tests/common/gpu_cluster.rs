//! Nodes of GPUs behind an `mpirun` that is a script: it says hello for roll calls, and prints a table of all_reduce_perf for
//! everything else, a slow one where a slow node takes part.

use std::process::Command;

use dhc_fixtures::FakeNode;

use super::{Dhc, Outcome, ROLL_CALL, outcome};

/// A table of H100 nodes that is far below the floor of the type.
pub(crate) const SLOW: &str =
    include_str!("../../../fixtures/outputs/nccl_tests/2.17-allreduce.txt");

/// Makes of a table that of `n` ranks, for awk.
pub(crate) const OF_RANKS: &str = r#"
/^# *Rank /{ if (!told) for (rank = 0; rank < n; rank++) print "Rank " rank " Pid 1 on n device 0 [0x1b] NVIDIA"; told = 1; next }
NF == 13 && $1 ~ /^[0-9]+$/ { $8 = sprintf("%.2f", $7 * 2 * (n - 1) / n); $12 = sprintf("%.2f", $11 * 2 * (n - 1) / n) }
{ print }"#;

/// A table whose large sizes are as fast as the floor of the type asks for.
pub(crate) fn fast() -> String {
    SLOW.replace("71.35    1.84    1.84", " 0.14  936.23  936.23")
        .replace("70.97    1.85    1.85", " 0.14  936.23  936.23")
        .replace("402.11   41.72   41.72", " 33.55  500.07  500.07")
        .replace("401.80   41.76   41.76", " 33.55  500.07  500.07")
        .replace("9021.45  119.02  119.02", "2147.48  500.00  500.00")
        .replace("9019.33  119.05  119.05", "2147.48  500.00  500.00")
}

/// What `dhc run` is given to have H100 nodes with one GPU each measured by all_reduce_perf, behind an `mpirun` that is a script.
pub(crate) fn arguments(nodes: &str) -> Vec<&str> {
    let mut all = vec!["--level", "cluster", "--check", "nccl-allreduce"];
    all.extend(["--launcher", "mpirun", "--nodelist", nodes]);
    all.extend(["--worker", env!("CARGO_BIN_EXE_dhc")]);
    all.extend(["--instance-type", "BM.GPU.H100.8"]);
    all.extend(["--set", "nccl-allreduce.gpus-per-node=1"]);
    all.extend(["--set", "nccl-allreduce.engine=all_reduce_perf"]);
    all
}

/// The cluster level over eight nodes, `n1` to `n8`, of which `n5` is slow.
pub(crate) struct EightNodes(pub(crate) Dhc);

impl EightNodes {
    pub(crate) fn up() -> EightNodes {
        let script = format!(
            "{ROLL_CALL}\ncase \"$*\" in \
             *n5*) awk -v n=\"$4\" '{OF_RANKS}' <<'EOF'\n{SLOW}EOF\n;; *) awk -v n=\"$4\" '{OF_RANKS}' <<'EOF'\n{}EOF\n;; esac",
            fast()
        );
        EightNodes(Dhc::on(FakeNode::plain().tool("mpirun").runs(&script)))
    }

    /// `dhc run --level cluster --format json` with these arguments.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut all = arguments("n1,n2,n3,n4,n5,n6,n7,n8");
        all.extend(["--seed", "1", "--format", "json"]);
        all.extend(args);
        self.0.command("run", &all)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        outcome(self.command(args).output().unwrap())
    }
}
