//! What puts dhc onto machines (`deploy/`): the Debian package, installed into a folder and removed again, the systemd units,
//! and Slurm's scripts on every way that dhc can end. `cluster_scripts` has the scripts called by Slurm itself.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const DHC: &str = env!("CARGO_BIN_EXE_dhc");

fn deploy(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    folder.join(name).canonicalize().unwrap()
}

#[track_caller]
fn success(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// All that lies below a folder but dpkg's own files, sorted.
fn below(folder: &Path) -> Vec<String> {
    let found = success(Command::new("find").arg(folder).args([
        "-mindepth",
        "1",
        "-path",
        "*/var/lib/dpkg",
        "-prune",
        "-o",
        "-printf",
        "%P\n",
    ]));
    let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
    found.sort();
    found
}

/// dpkg on a folder that is a machine's root.
fn dpkg(root: &Path, args: &[&str]) {
    let mut command = Command::new("dpkg");
    command
        // Of the machine's own configuration and PATH it needs nothing.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .arg(format!("--root={}", root.display()))
        .args(["--force-not-root", "--force-script-chrootless"])
        .args(["--force-depends", "--log=/dev/null"])
        .args(args);
    success(&mut command);
}

#[test]
fn the_package_installs_what_it_promises_and_leaves_no_trace() {
    let rank = Path::new(DHC).with_file_name("dhc-rank");
    assert!(
        rank.is_file(),
        "dhc-rank is not built: cargo build --package dhc-rank"
    );
    let folder = tempfile::tempdir().unwrap();
    let mut build = Command::new(deploy("debian/build"));
    build.arg(Path::new(DHC).parent().unwrap());
    build.arg(folder.path()).arg("-Znone");
    success(&mut build);
    let package = std::fs::read_dir(folder.path()).unwrap().next().unwrap();
    let package = package.unwrap().path();
    let field = |name: &str| {
        let mut command = Command::new("dpkg-deb");
        success(command.arg("--field").arg(&package).arg(name))
    };
    // dhc itself wants nothing but the C library; MPI is for dhc-rank alone.
    let depends = field("Depends");
    let depends: Vec<&str> = depends.trim().split(", ").collect();
    let c_library = |name: &&str| name.starts_with("libc6 ") || name.starts_with("libgcc-s1 ");
    assert!(depends.iter().all(c_library), "{depends:?}");
    assert!(!depends.is_empty());
    assert!(field("Recommends").contains("mpi"));

    let root = folder.path().join("root");
    let database = root.join("var/lib/dpkg");
    std::fs::create_dir_all(database.join("info")).unwrap();
    std::fs::create_dir_all(database.join("updates")).unwrap();
    std::fs::write(database.join("status"), "").unwrap();
    let before = below(&root);
    dpkg(&root, &["--install", package.to_str().unwrap()]);
    let installed = below(&root);
    for file in [
        "usr/bin/dhc",
        "usr/bin/dhc-rank",
        "usr/lib/dhc/slurm/health-check",
        "usr/lib/dhc/slurm/prolog-epilog",
        "usr/lib/systemd/system/dhc.service",
        "usr/lib/systemd/system/dhc.timer",
        "usr/lib/tmpfiles.d/dhc.conf",
        "usr/share/bash-completion/completions/dhc",
        "usr/share/doc/dhc/copyright",
        "usr/share/doc/dhc/examples/default.toml",
        "usr/share/fish/vendor_completions.d/dhc.fish",
        "usr/share/man/man1/dhc.1.gz",
        "usr/share/man/man1/dhc-recover-apply.1.gz",
        "usr/share/zsh/vendor-completions/_dhc",
    ] {
        assert!(installed.iter().any(|found| found == file), "no {file}");
    }
    // A page for every subcommand that the help names.
    let help = success(Command::new(root.join("usr/bin/dhc")).arg("--help"));
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names: Vec<&str> = commands
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.contains(&"run") && names.len() > 10, "{names:?}");
    for name in names {
        let page = format!("usr/share/man/man1/dhc-{name}.1.gz");
        assert!(installed.contains(&page), "no {page}");
    }
    // What use leaves behind: results, a page for node exporter, a timer that was enabled.
    let wants = root.join("etc/systemd/system/timers.target.wants");
    std::fs::create_dir_all(&wants).unwrap();
    let timer = wants.join("dhc.timer");
    std::os::unix::fs::symlink("/usr/lib/systemd/system/dhc.timer", &timer).unwrap();
    std::fs::create_dir_all(root.join("var/lib/dhc/runs")).unwrap();
    std::fs::write(root.join("var/lib/prometheus/node-exporter/dhc.prom"), "").unwrap();
    dpkg(&root, &["--remove", "dhc"]);
    assert!(root.join("var/lib/dhc/runs").is_dir(), "results are lost");
    dpkg(&root, &["--purge", "dhc"]);
    // The folders are the administrator's.
    std::fs::remove_dir_all(root.join("etc")).unwrap();
    assert_eq!(below(&root), before);
}

#[test]
fn results_of_forty_days_ago_are_cleaned_up_and_the_history_is_not() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().join("var/lib/dhc");
    for run in ["OLD", "NEW"] {
        std::fs::create_dir_all(state.join("runs").join(run)).unwrap();
        std::fs::write(state.join("runs").join(run).join("result.json"), "").unwrap();
    }
    std::fs::write(state.join("history.sqlite"), "").unwrap();
    for old in ["runs/OLD/result.json", "runs/OLD", "history.sqlite"] {
        let mut touch = Command::new("touch");
        success(touch.args(["--date", "40 days ago"]).arg(state.join(old)));
    }
    let mut clean = Command::new("systemd-tmpfiles");
    clean.arg(format!("--root={}", root.path().display()));
    clean.arg("--clean").arg(deploy("tmpfiles/dhc.conf"));
    success(&mut clean);
    let left = ["history.sqlite", "runs", "runs/NEW", "runs/NEW/result.json"];
    assert_eq!(below(&state), left);
}

#[test]
fn systemd_takes_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for unit in ["dhc.service", "dhc.timer"] {
        let text = std::fs::read_to_string(deploy("systemd").join(unit)).unwrap();
        let copy = folder.path().join(unit);
        std::fs::write(&copy, text.replace("/usr/bin/dhc", DHC)).unwrap();
        verify.arg(copy);
    }
    let output = verify.output().unwrap();
    // Of a key that it does not know systemd only warns.
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn the_unit_runs_what_dhc_understands() {
    let unit = std::fs::read_to_string(deploy("systemd/dhc.service")).unwrap();
    let started = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let page = tempfile::tempdir().unwrap();
    let page = page.path().join("dhc.prom");
    let started = started.unwrap().replace(
        "/var/lib/prometheus/node-exporter/dhc.prom",
        page.to_str().unwrap(),
    );
    let mut words = started.split(' ');
    assert_eq!(words.next(), Some("/usr/bin/dhc"));
    let node = dhc_fixtures::FakeNode::of("p5.48xlarge-gpu-lost");
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(DHC);
    command.args(words).arg("--state").arg(state.path());
    command.arg("--root").arg(node.root());
    command.arg("--nvml").arg(node.nvml());
    command.arg("--tools").arg(node.tools());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = std::fs::read_to_string(page).unwrap();
    assert!(text.contains("fault_class=\"gpu.lost\""), "{text}");
}

/// A machine of scripts: `dhc`, and a `scontrol` that says this of the node and writes down what it is told.
struct Scripts(tempfile::TempDir);

impl Scripts {
    fn with(dhc: &str, state: &str) -> Scripts {
        let scripts = Scripts(tempfile::tempdir().unwrap());
        scripts.add("dhc", dhc);
        scripts.add(
            "scontrol",
            &format!(
                "case $1 in\n\
                 update) printf '%s\\n' \"$@\" >'{}' ;;\n\
                 *) echo \"NodeName=$4 Arch=x86_64 State={state} ThreadsPerCore=1 Comment=State=DOWN\" ;;\n\
                 esac",
                scripts.0.path().join("updates").display()
            ),
        );
        scripts
    }

    fn add(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, script: &str) -> Output {
        let mut command = Command::new(deploy("slurm").join(script));
        command
            .env_clear()
            .env("PATH", self.0.path())
            .env("SLURMD_NODENAME", "n1");
        command.output().unwrap()
    }

    /// What `scontrol update` was told.
    fn updates(&self) -> Option<Vec<String>> {
        let text = std::fs::read_to_string(self.0.path().join("updates")).ok()?;
        Some(text.lines().map(str::to_owned).collect())
    }
}

/// Every way to end that is no fault of the node.
const NO_FAULT: [&str; 8] = [
    "exit 0",
    "exit 1",
    "exit 3",
    "exit 4",
    "exit 64",
    "exit 101",
    "exec /nowhere/dhc",
    "kill -SEGV $$",
];

#[test]
fn only_a_fault_fails_the_prolog() {
    for end in NO_FAULT {
        let output = Scripts::with(end, "IDLE").run("prolog-epilog");
        assert_eq!(output.status.code(), Some(0), "{end}: {output:?}");
    }
    let output = Scripts::with("exit 2", "IDLE").run("prolog-epilog");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // It hangs and does not hear SIGTERM.
    let output = Scripts::with("trap '' TERM; sleep 600", "IDLE").run("prolog-epilog");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn only_a_fault_drains_and_only_a_node_in_service() {
    for end in NO_FAULT {
        let scripts = Scripts::with(end, "IDLE");
        scripts.run("health-check");
        assert_eq!(scripts.updates(), None, "{end}");
    }
    for state in ["IDLE", "MIXED", "ALLOCATED", "IDLE+CLOUD"] {
        let scripts = Scripts::with("exit 2", state);
        scripts.run("health-check");
        let told = [
            "update",
            "NodeName=n1",
            "State=DRAIN",
            "Reason=dhc: fail, see dhc status on the node",
        ];
        assert_eq!(scripts.updates().unwrap(), told, "{state}");
    }
    for state in [
        "IDLE+DRAIN",
        "DOWN*",
        "MIXED+DRAIN",
        "IDLE+FAIL",
        "IDLE+MAINT",
        "IDLE+REBOOT_REQUESTED",
    ] {
        let scripts = Scripts::with("exit 2", state);
        scripts.run("health-check");
        assert_eq!(scripts.updates(), None, "{state}");
    }
    // The controller does not answer.
    let scripts = Scripts::with("exit 2", "IDLE");
    scripts.add("scontrol", "exit 1");
    assert_eq!(scripts.run("health-check").status.code(), Some(1));
}

#[test]
fn shellcheck_finds_nothing() {
    let mut shellcheck = Command::new("shellcheck");
    for folder in ["slurm", "debian", "static"] {
        for script in std::fs::read_dir(deploy(folder)).unwrap() {
            shellcheck.arg(script.unwrap().path());
        }
    }
    success(&mut shellcheck);
}
