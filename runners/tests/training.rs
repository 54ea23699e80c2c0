//! The training checks of the built program: the real script on the real CPU, and what a Python prints that is a script.
#![expect(
    clippy::unwrap_used,
    reason = "tests make the tools that the check starts"
)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Dhc, Outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Ending, Status};

/// The Python that the tests' set-up has put JAX into.
fn python() -> PathBuf {
    let python =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python-with-jax/bin/python3");
    assert!(python.is_file(), "there is no JAX: run `.ci/setup tests`");
    python
}

fn on_the_cpu(python: &Path) -> Outcome {
    Dhc::on(FakeNode::plain()).run(&[
        "--check",
        "cpu-training",
        "--set",
        &format!("cpu-training.python={}", python.display()),
        "--set",
        "cpu-training.steps=20",
        "--set",
        "cpu-training.width=64",
    ])
}

/// A Python whose core 2 gets one bit of one weight wrong.
fn lying_python(folder: &Path, bit: u32) -> PathBuf {
    let lie = format!(
        "#!{}\nimport sys\n\
         def lie(arrays):\n    \
             import numpy as np\n    \
             x, y, weights = arrays\n    \
             wrong = weights[0].copy()\n    \
             wrong.view(np.uint32)[2, 3, 4] ^= np.uint32(1 << {bit})\n    \
             return x, y, [wrong, *weights[1:]]\n\
         script = sys.argv[3].replace('together(*replicated)', 'together(*lie(replicated))')\n\
         assert script != sys.argv[3]\n\
         sys.argv = ['-c', *sys.argv[4:]]\n\
         exec(compile(script, 'script', 'exec'))\n",
        python().display()
    );
    let path = folder.join("lying-python");
    std::fs::write(&path, lie).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The losses of three GPUs, of which the last has another second step.
fn three_gpus(second: f32, done: &str) -> String {
    let bits = |losses: [f32; 2]| format!("{:?}", losses.map(f32::to_bits));
    let mut text = r#"{"event": "found", "jax": "0.6.0", "cores": [{"id": 0, "kind": "NVIDIA H100"}, {"id": 1, "kind": "NVIDIA H100"}, {"id": 2, "kind": "NVIDIA H100"}]}"#.to_owned();
    for (event, bits) in [
        ("\"reference\"", bits([0.5, 0.25])),
        ("\"losses\", \"cores\": [0, 1]", bits([0.5, 0.25])),
        ("\"losses\", \"cores\": [2]", bits([0.5, second])),
    ] {
        text += &format!("\n{{\"event\": {event}, \"dtype\": \"float32\", \"bits\": {bits}}}");
    }
    text + "\n" + done
}

const DONE: &str = r#"{"event": "done"}"#;

fn gpus(prints: &str) -> Outcome {
    Dhc::on(FakeNode::p5_48xlarge().tool("python3").prints(prints, 0))
        .run(&["--check", "gpu-training"])
}

#[test]
fn the_script_trains_on_the_cpu_with_the_same_bits_on_all_cores() {
    let outcome = on_the_cpu(&python());
    assert_eq!(outcome.complaints(), []);
    assert_eq!(
        (outcome.exit, outcome.verdict()),
        (0, (Status::Pass, Action::None))
    );
    let measured = &outcome.check("cpu-training").record.measurements;
    let of = |metric: &str| {
        measured
            .iter()
            .filter(|found| found.metric == metric)
            .count()
    };
    assert_eq!(of("cpu.training.deviation"), 4);
    assert_eq!(of("cpu.training.disagreeing_steps"), 4);
}

#[test]
fn one_wrong_bit_on_one_core_is_seen_and_names_the_core() {
    let folder = tempfile::tempdir().unwrap();
    // The 12th of the 23 bits behind the point: too little to bend the curve by a thousandth.
    let outcome = on_the_cpu(&lying_python(folder.path(), 11));
    let verdict = outcome.verdict();
    assert_eq!(
        verdict,
        (Status::Fail, Action::Replace),
        "{:?}",
        outcome.complaints()
    );
    let found = outcome.findings("cpu-training", Status::Fail);
    let named: Vec<_> = found
        .iter()
        .map(|finding| (finding.metric.as_str(), finding.subject.name.as_str()))
        .collect();
    assert_eq!(named, [("cpu.training.disagreeing_steps", "cpu/jax2")]);
}

#[test]
fn a_gpu_whose_curve_leaves_the_reference_is_named() {
    let outcome = gpus(&three_gpus(0.26, DONE));
    assert_eq!(outcome.verdict(), (Status::Fail, Action::Replace));
    let found = outcome.findings("gpu-training", Status::Fail);
    assert!(
        found.iter().all(|finding| finding.subject.name == "gpu2"),
        "{found:?}"
    );
    assert_eq!(found.len(), 2);
}

#[test]
fn three_good_gpus_of_eight_are_no_good_node() {
    let outcome = gpus(&three_gpus(0.25, DONE).replace("[0, 1]", "[0, 1, 2]"));
    assert_eq!(
        outcome.verdict().0,
        Status::Error,
        "a core told twice is no curve"
    );
    let text = three_gpus(0.25, DONE);
    let outcome = gpus(&text);
    assert_eq!(
        outcome.verdict().0,
        Status::Unknown,
        "{:?}",
        outcome.complaints()
    );
}

#[test]
fn what_could_not_train_accuses_nothing() {
    let missing = r#"{"event": "missing", "module": "jax", "why": "No module named 'jax'"}"#;
    for (prints, said) in [
        (missing, "gpu-training.python"),
        ("", "did not come to its end"),
        (&three_gpus(0.25, ""), "did not come to its end"),
        ("{\"event\": \"found\", \"jax\": 7}\n", "cannot be read"),
    ] {
        let outcome = gpus(prints);
        assert_eq!(
            (outcome.exit, outcome.verdict()),
            (4, (Status::Error, Action::Retry))
        );
        let Ending::Failed { error } = &outcome.check("gpu-training").record.ending else {
            panic!("it did not fail")
        };
        assert!(error.contains(said), "{error}");
    }
    let absent = Dhc::on(FakeNode::p5_48xlarge()).run(&[
        "--check",
        "gpu-training",
        "--set",
        "gpu-training.python=no-such-python",
    ]);
    assert_eq!(absent.verdict(), (Status::Error, Action::Retry));
}

/// Training on whatever the node has, without its check being named.
fn unnamed(node: FakeNode, more: &[&str]) -> Outcome {
    let others = "cpu-stress,memory-stress,disk-stress,gpu-stress,gpu-pairs";
    let args = [&["--tag", "stress", "--skip", others], more].concat();
    Dhc::on(node).run(&args)
}

#[test]
fn without_jax_the_cpu_is_trained_only_where_somebody_asks_for_it() {
    let plain = || FakeNode::plain().tool("python3");
    for node in [plain().missing(), plain().prints("", 3)] {
        let outcome = unnamed(node, &[]);
        let Ending::Skipped { reason, .. } = &outcome.check("cpu-training").record.ending else {
            panic!("{:?}", outcome.check("cpu-training"))
        };
        assert!(reason.contains("has no JAX"), "{reason}");
        assert!(reason.contains("pip install jax"), "{reason}");
        // Nothing was measured, so nothing passed.
        assert_eq!((outcome.exit, outcome.verdict().0), (3, Status::Unknown));
    }
    let named = Dhc::on(plain().missing()).check("cpu-training");
    assert_eq!((named.exit, named.verdict().0), (4, Status::Error));
    let set = ["--set", "cpu-training.python=no-such-python"];
    let set = unnamed(plain().missing(), &set);
    assert_eq!((set.exit, set.verdict().0), (4, Status::Error));
}

#[test]
fn a_python_that_breaks_is_no_missing_jax() {
    let node = FakeNode::plain().tool("python3").crashes("core dumped");
    let outcome = unnamed(node, &[]);
    assert_eq!((outcome.exit, outcome.verdict().0), (4, Status::Error));
}

#[test]
fn without_jax_accelerators_were_not_measured_and_do_not_pass() {
    let node = FakeNode::p5_48xlarge().tool("python3").missing();
    let outcome = unnamed(node, &[]);
    assert_eq!(outcome.check("gpu-training").status, Status::Error);
    assert_eq!(outcome.check("cpu-training").status, Status::Skip);
    assert_eq!((outcome.exit, outcome.verdict().0), (4, Status::Error));
}

#[test]
fn a_training_that_hangs_is_ended_at_its_deadline() {
    let node = FakeNode::p5_48xlarge().tool("python3").hangs();
    let outcome = Dhc::on(node).run(&["--check", "gpu-training", "--deadline", "1s"]);
    assert_eq!(outcome.verdict(), (Status::Error, Action::Retry));
    let ending = &outcome.check("gpu-training").record.ending;
    assert!(matches!(ending, Ending::TimedOut { .. }), "{ending:?}");
}
