//! The static build (`deploy/static`), for hosts that have nothing: it starts there, does all that needs no library as the
//! dynamic one does, and says of everything else that it could not look.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests build and start the program"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Dhc, Outcome, outcome};
use dhc_fixtures::FakeNode;
use dhc_thresholds::{Action, Status};

/// The static `dhc`, built now unless it is up to date; `.ci/test` has built it already.
fn program() -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let build = top.join("runners/deploy/static/build");
    let output = Command::new(build).arg("dev").output().unwrap();
    assert!(
        output.status.success(),
        "`.ci/setup static` installs what it takes: {output:?}"
    );
    top.join(String::from_utf8(output.stdout).unwrap().trim_end())
}

/// The checks of GPUs, each of which loads a library of NVIDIA's.
const OF_GPUS: [&str; 5] = [
    "gpu-count",
    "nvlink",
    "gpu-memory",
    "gpu-stress",
    "gpu-pairs",
];

/// `dhc run` of the static build on the machine of `dhc`.
fn run(dhc: &Dhc, args: &[&str]) -> Outcome {
    let plain = dhc.command("run", args);
    let mut command = Command::new(program());
    command.args(plain.get_args()).env_clear();
    outcome(command.args(["--format", "json"]).output().unwrap())
}

/// A root folder that holds the static `dhc` and what the kernel shows, and nothing else.
struct EmptyHost(tempfile::TempDir);

impl EmptyHost {
    fn new() -> EmptyHost {
        let host = EmptyHost(tempfile::tempdir().unwrap());
        for folder in ["proc", "sys", "dev"] {
            std::fs::create_dir(host.0.path().join(folder)).unwrap();
        }
        std::fs::copy(program(), host.0.path().join("dhc")).unwrap();
        host
    }

    fn dhc(&self, args: &[&str]) -> Output {
        let script = "for shown in proc sys dev; do mount --rbind /$shown \"$1/$shown\" || exit 99; done; exec chroot \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(self.0.path()).arg("/dhc").args(args);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.output().unwrap()
    }
}

#[test]
fn the_static_build_asks_for_no_loader_and_no_library() {
    let mut readelf = Command::new("readelf");
    readelf.args(["--wide", "--program-headers", "--dynamic"]);
    let output = readelf.arg(program()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("LOAD"), "{text}");
    assert!(
        !text.contains("INTERP") && !text.contains("NEEDED"),
        "{text}"
    );
}

#[test]
fn a_host_with_nothing_but_a_kernel_can_be_checked() {
    let host = EmptyHost::new();
    let version = host.dhc(&["--version"]);
    assert!(version.stdout.starts_with(b"dhc "), "{version:?}");
    let list = String::from_utf8(host.dhc(&["list"]).stdout).unwrap();
    assert!(
        list.contains("gpu-count") && list.contains("host"),
        "{list}"
    );

    let ran = outcome(host.dhc(&[
        "run",
        "--check=host,cpu-stress,memory-stress,disk-stress",
        "--set=cpu-stress.seconds=1",
        "--set=memory-stress.seconds=1",
        "--set=memory-stress.percent=1",
        "--set=disk-stress.seconds=1",
        "--set=disk-stress.mib=8",
        "--state=/state",
        "--format=json",
    ]));
    // What the machine under the test is like is not known, but dhc could look.
    for check in ["host", "cpu-stress", "memory-stress", "disk-stress"] {
        let status = ran.check(check).status;
        let looked = status != Status::Skip && status != Status::Error;
        assert!(looked, "{check}: {:?}", ran.check(check));
    }
    assert_eq!(ran.check("cpu-stress").status, Status::Pass);

    // What works on results does so too: the journal, SQLite, the reader of a process of its own.
    let result = format!("/state/runs/{}/result.json", ran.report.run.id);
    let judged = host.dhc(&["judge", &result, "--format=json"]);
    assert_eq!(judged.status.code(), Some(ran.exit), "{judged:?}");
    let status = host.dhc(&["status", "--state=/state"]);
    assert_ne!(status.status.code(), Some(4), "{status:?}");
    let page = host.dhc(&["export", "prometheus", &result]);
    assert!(page.stdout.starts_with(b"# HELP"), "{page:?}");
    let plan = host.dhc(&["recover", "plan", &result, "--state=/state"]);
    assert!(plan.status.success(), "{plan:?}");
}

/// The errors of a check that say it was not possible for this build.
fn why(ran: &Outcome, check: &str) -> Vec<String> {
    let errors = ran.findings(check, Status::Error).into_iter();
    let messages = errors.map(|error| error.message.clone());
    messages
        .filter(|message| message.contains("this dhc is a static build"))
        .collect()
}

#[test]
fn gpus_and_cards_whose_libraries_it_cannot_load_are_errors_and_accuse_nothing() {
    // Known by its type, and unknown with GPUs on the PCI bus.
    for machine in ["p5.48xlarge", "h100-nvl"] {
        let dhc = Dhc::on(FakeNode::of(machine));
        let ran = run(&dhc, &["--check", &OF_GPUS.join(",")]);
        assert_eq!(
            (ran.exit, ran.verdict()),
            (4, (Status::Error, Action::Retry))
        );
        for (check, status, fault, _) in ran.complaints() {
            // What was not measured is unknown as well, of no class.
            let blameless = matches!(
                (status, fault.as_str()),
                (Status::Error, "check.could_not_run") | (Status::Unknown, "")
            );
            assert!(blameless, "{machine}: {check}: {status:?} {fault}");
        }
        for check in OF_GPUS {
            assert_eq!(why(&ran, check).len(), 1, "{machine}: {check}");
        }
    }
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge"));
    let ran = run(&dhc, &["--check", "efa-loopback,fabric-loopback"]);
    for check in ["efa-loopback", "fabric-loopback"] {
        assert_eq!(why(&ran, check).len(), 1, "{check}");
        assert!(ran.findings(check, Status::Fail).is_empty());
    }
}

#[test]
fn what_drives_tools_and_reads_files_ends_as_in_the_dynamic_build() {
    let nccom = include_str!("../../fixtures/outputs/nccom_test/allr-32-ranks.txt");
    let dcgm = include_str!("../../fixtures/outputs/dcgmi/3.3.9-r3-fail.json");
    let neuron = FakeNode::trn1_32xlarge();
    // Where NVML answers, the dynamic build matches DCGM's GPUs with NVML's; here neither of the two can ask it.
    let gpu = FakeNode::of("p5.48xlarge-driver-not-loaded");
    for (node, checks, expected) in [
        (
            neuron.tool("nccom-test").prints(nccom, 0),
            "nccom-local,neuron-count,neuron-sysfs,host",
            Status::Pass,
        ),
        (
            gpu.tool("dcgmi").prints(dcgm, 226),
            "dcgm-diag,host",
            Status::Fail,
        ),
    ] {
        let dhc = Dhc::on(node);
        let (dynamic, without) = (dhc.check(checks), run(&dhc, &["--check", checks]));
        let first = checks.split(',').next().unwrap();
        assert_eq!(without.check(first).status, expected, "{first}");
        assert_eq!(without.complaints(), dynamic.complaints());
        for check in checks.split(',') {
            let passed = |of: &Outcome| of.findings(check, Status::Pass).len();
            assert_eq!(passed(&without), passed(&dynamic), "{check}");
        }
    }
}
