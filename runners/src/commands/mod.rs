//! The subcommands, one file each, and what they share: printing, the machine, stored results.

pub(crate) mod judge;
pub(crate) mod learn;
pub(crate) mod recover;
pub(crate) mod run;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dhc_checks::check::chain;
use dhc_checks::host::Host;
use dhc_runners::cli::{Format, MachineArgs};
use dhc_runners::render::{self, Paper};
use dhc_runners::store;
use dhc_runners::{Exit, journal, tables};
use dhc_thresholds::{CheckReport, NodeReport, Report};

/// Whatever went wrong, told on one line before dhc ends.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Prints text for people, in which hosts and tools may have a word.
pub(crate) fn print(text: &str) -> Result<Exit, Failure> {
    print_document(&render::printable(text))
}

/// Prints text for programs as it is; a reader that has gone away is no error of ours.
pub(crate) fn print_document(text: &str) -> Result<Exit, Failure> {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> Result<Exit, Failure> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Pass),
    }
}

fn show(report: &Report, document: &[u8], format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => {
            print_bytes(document)?;
            print_bytes(b"\n")
        }
        Format::Table => print(&render::report(report, paper())),
    }
}

fn paper() -> Paper {
    if std::io::stdout().is_terminal() {
        Paper::Terminal
    } else {
        Paper::Plain
    }
}

/// The result in a file or the folder of a run; where the run was killed, what its journal holds, judged by the instance
/// type's own table and under the name of the run's.
pub(crate) fn stored(path: &Path) -> Result<Report, Failure> {
    let path = if path.is_dir() {
        let result = path.join(store::RESULT);
        if result.exists() {
            result
        } else {
            path.join(store::JOURNAL)
        }
    } else {
        path.to_owned()
    };
    let text = store::read_file(&path)
        .map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
    match journal::read(&text) {
        Ok((header, records)) => {
            let chosen = tables::choose(None, None, header.identity.instance_type.as_deref())?;
            let checks = records.into_iter().map(|record| {
                let metrics = tables::metrics_of(&record.check);
                CheckReport::new(record, &metrics, &chosen.table)
            });
            let node = NodeReport::new(header.name, header.identity, checks.collect());
            let judged_by = header.judged_by.unwrap_or(chosen.judged_by);
            Ok(Report::new(header.run, judged_by, vec![node]))
        }
        Err(journal::NotAJournal) => Ok(Report::parse(&text)
            .map_err(|error| format!("cannot read `{}`: {}", path.display(), chain(&error)))?),
    }
}

fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn host(args: &MachineArgs, environment: &BTreeMap<String, String>) -> Host {
    let mut host = Host::of_this_machine(environment);
    host.root = args.root.clone();
    if !args.tools.is_empty() {
        host.tools = args.tools.clone();
    }
    host.nvml = args.nvml.clone();
    host.libfabric = args.libfabric.clone();
    host
}

/// Where results are kept on the node: /var/lib/dhc for root, the user's own state directory otherwise.
fn state(args: &MachineArgs, environment: &BTreeMap<String, String>) -> Result<PathBuf, Failure> {
    if let Some(state) = &args.state {
        return Ok(state.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/dhc"));
    }
    let absolute = |name: &str| {
        environment
            .get(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .map(|state| state.join("dhc"))
        .ok_or_else(|| "neither XDG_STATE_HOME nor HOME names a directory; say where to keep results with --state".into())
}

/// How a process ended within a time; one that did not is killed and left behind, since a dead file system may hold it.
fn ended_within(
    child: &mut std::process::Child,
    limit: Duration,
) -> std::io::Result<Option<std::process::ExitStatus>> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(child.kill());
    Ok(None)
}

/// The arguments that make another dhc look at the same machine.
fn machine_args(args: &MachineArgs) -> Vec<std::ffi::OsString> {
    let mut all: Vec<std::ffi::OsString> = vec!["--root".into(), args.root.clone().into()];
    let mut add = |flag: &str, path: &Path| all.extend([flag.into(), path.into()]);
    for (flag, path) in [
        ("--state", &args.state),
        ("--nvml", &args.nvml),
        ("--libfabric", &args.libfabric),
    ] {
        if let Some(path) = path {
            add(flag, path);
        }
    }
    for tools in &args.tools {
        add("--tools", tools);
    }
    all
}
