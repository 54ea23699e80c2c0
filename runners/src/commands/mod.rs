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
use dhc_thresholds::{CheckReport, JudgedBy, NodeReport, Report};

/// Whatever went wrong, told on one line before dhc ends.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Prints text for people, in which hosts and tools may have a word.
pub(crate) fn print(text: &str) -> Result<Exit, Failure> {
    print_document(&render::printable(text))
}

/// Prints text for programs, or text that is printable already, as it is.
pub(crate) fn print_document(text: &str) -> Result<Exit, Failure> {
    let mut out = std::io::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    unless_gone_away(written)?;
    Ok(Exit::Pass)
}

/// Prints a JSON document, in which hosts and tools may have a word: the same document with nothing in it that steers a terminal.
pub(crate) fn print_json(document: &str) -> Result<Exit, Failure> {
    print_document(&render::printable_json(document))
}

/// How writing to standard output ended; a reader that has gone away has seen enough.
pub(crate) fn unless_gone_away(written: std::io::Result<()>) -> std::io::Result<()> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            let what = format!("cannot write to standard output: {error}");
            Err(std::io::Error::new(error.kind(), what))
        }
        Ok(()) => Ok(()),
    }
}

fn show(report: &Report, format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => print_json(&(serde_json::to_string_pretty(report)? + "\n")),
        Format::Table => print_document(&render::report(report, paper())),
    }
}

fn paper() -> Paper {
    if std::io::stdout().is_terminal() {
        Paper::Terminal
    } else {
        Paper::Plain
    }
}

/// The result in a file or the folder of a run; where the run was killed, what its journal holds, judged by the table that the
/// run was to be judged by.
pub(crate) fn stored(path: &Path) -> Result<Report, Failure> {
    match measured(path)? {
        (report, true) => Ok(report),
        (report, false) => {
            let judged_by = &report.judged_by;
            Err(format!(
                "the run in `{}` was stopped, and the file `{}` that was to judge it (SHA-256 {}) is not kept with it; judge \
                 it with `dhc judge --thresholds FILE`, or with --built-in, and go on with that result",
                path.display(),
                judged_by.origin,
                judged_by.sha256
            )
            .into())
        }
    }
}

/// What a file or the folder of a run holds, and whether it is judged by the table that it names. That is not so where a
/// journal names a user's file without its text; what is to be judged again anyway can do without.
pub(crate) fn measured(path: &Path) -> Result<(Report, bool), Failure> {
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
            let named = header.judged_by;
            let is_users = |by: &&JudgedBy| by.origin != tables::BUILT_IN;
            let chosen = match (named.as_ref().filter(is_users), &header.table) {
                (Some(named), Some(text)) => tables::text(Path::new(&named.origin), text)?,
                _ => tables::choose(None, None, header.identity.instance_type.as_deref())?,
            };
            let checks = records.into_iter().map(|record| {
                let metrics = tables::metrics_of(&record.check);
                CheckReport::new(record, &metrics, &chosen.table)
            });
            let node = NodeReport::new(header.name, header.identity, checks.collect());
            let lost = named.filter(|by| is_users(&by) && chosen.text.is_none());
            let is_as_named = lost.is_none();
            let judged_by = lost.unwrap_or(chosen.judged_by);
            let report = Report::new(header.run, judged_by, vec![node]);
            Ok((report, is_as_named))
        }
        Err(journal::NotAJournal) => {
            let report = Report::parse(&text)
                .map_err(|error| format!("cannot read `{}`: {}", path.display(), chain(&error)))?;
            Ok((report, true))
        }
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
