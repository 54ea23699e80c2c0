//! `dhc`: arguments in, one call for each subcommand, text and exit status out.
//!
//! The only place that reads the environment, prints and exits.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "main is the one place that prints and reads the environment"
)]

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser};
use dhc_checks::catalog::{self, CHECKS};
use dhc_checks::check::{self, Task, chain};
use dhc_checks::host::{Host, redact};
use dhc_runners::cli::{
    Cli, Command, Document, Format, Level, MachineArgs, RunArgs, ThresholdsCommand,
};
use dhc_runners::journal::Journal;
use dhc_runners::localise::Settings;
use dhc_runners::machine::Machine;
use dhc_runners::plan::{self, Selection};
use dhc_runners::render::{self, Paper, html};
use dhc_runners::run::{self, Orders};
use dhc_runners::store::{self, Store, StoreError};
use dhc_runners::{Exit, cluster, explain, imds, journal, live, supervise, tables};
use dhc_thresholds::{CheckReport, NodeReport, Report, Run, TableFile};

type Failure = Box<dyn std::error::Error>;

/// Set by SIGTERM, SIGINT and SIGHUP.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            let usage = error.use_stderr();
            return ExitCode::from(if usage { Exit::Usage } else { Exit::Pass } as u8);
        }
    };
    match act(cli.command) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            eprintln!("dhc: {}", chain(error.as_ref()));
            let busy = matches!(error.downcast_ref(), Some(StoreError::Busy { .. }));
            let usage = error.is::<plan::UnknownWord>()
                || matches!(
                    error.downcast_ref(),
                    Some(tables::TablesError::NoSuchType(_))
                );
            let exit = match (busy, usage) {
                (true, _) => Exit::Unknown,
                (_, true) => Exit::Usage,
                _ => Exit::Error,
            };
            ExitCode::from(exit as u8)
        }
    }
}

fn act(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run(args) => run(*args),
        Command::List { metrics: true, .. } => print(&explain::metrics()),
        Command::List { markdown: true, .. } => print(&explain::checks_markdown()),
        Command::List { .. } => print(&explain::checks()),
        Command::Explain { topic } => match explain::topic(&topic) {
            Some(text) => print(&text),
            None => {
                eprintln!(
                    "dhc: there is no check or fault class `{topic}`; `dhc list` shows the checks"
                );
                Ok(Exit::Usage)
            }
        },
        Command::Judge {
            result,
            thresholds,
            current,
            format,
            machine,
        } => judge(&result, thresholds.as_deref(), current, format, &machine),
        Command::Verify { run } => {
            let files = store::verify(&run)?;
            print(&format!(
                "{}: unchanged since dhc wrote it ({})\n",
                run.display(),
                files.join(", ")
            ))
        }
        Command::Thresholds {
            command: ThresholdsCommand::Show { table: None },
        } => print(&explain::tables()),
        Command::Thresholds {
            command: ThresholdsCommand::Show { table: Some(name) },
        } => {
            let chosen = if Path::new(&name).is_file() {
                tables::file(Path::new(&name))?
            } else {
                tables::built_in_table(&name)?
            };
            print(&explain::table(&chosen))
        }
        Command::Thresholds {
            command: ThresholdsCommand::Validate { file },
        } => {
            let chosen = tables::file(&file)?;
            let limits = chosen.table.limits.len();
            print(&format!(
                "{}: sound, {limits} limits hold for `{}`\n",
                file.display(),
                chosen.table.instance_type
            ))
        }
        Command::Schema { document } => {
            let schema = match document {
                Document::Report => schemars::schema_for!(Report),
                Document::Thresholds => schemars::schema_for!(TableFile),
            };
            print(&(serde_json::to_string_pretty(&schema)? + "\n"))
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dhc", &mut std::io::stdout());
            Ok(Exit::Pass)
        }
        Command::Man => {
            clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?;
            Ok(Exit::Pass)
        }
        Command::Measure { check } => measure(&check),
        Command::Deposit { from, to } => {
            store::copy(&from, &to)?;
            Ok(Exit::Pass)
        }
    }
}

/// Prints text; a reader that has gone away is no error of ours.
fn print(text: &str) -> Result<Exit, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Pass),
    }
}

fn run(args: RunArgs) -> Result<Exit, Failure> {
    for signal in [
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, stop_flag())?;
    }
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let host = host(&args.machine, &environment);
    let mut machine = Machine::look(&host, &environment);
    if args.imds && machine.identity.instance_type.is_none() {
        imds::ask(&mut machine.identity);
    }
    let detected = machine.identity.instance_type.clone();
    let chosen = tables::choose(
        args.thresholds.as_deref(),
        args.instance_type.as_deref(),
        detected.as_deref(),
    )?;
    if let Some(named) = &args.instance_type {
        machine.identity.instance_type = Some(named.clone());
        machine.identity.instance_type_from = Some("--instance-type".to_owned());
    }
    let mut options: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for setting in &args.settings {
        options
            .entry(setting.check.clone())
            .or_default()
            .insert(setting.option.clone(), setting.value.clone());
    }
    let id = ulid::Ulid::new().to_string();
    let now = jiff::Timestamp::now();
    let begun = Instant::now();
    let run = Run {
        id: id.clone(),
        dhc: env!("CARGO_PKG_VERSION").to_owned(),
        level: match args.level {
            Level::Instance => "instance".to_owned(),
            Level::Cluster => "cluster".to_owned(),
        },
        started_at: now.to_string(),
        duration_ms: 0,
        expires_at: (now + jiff::SignedDuration::try_from(args.valid_for)?).to_string(),
        environment: host
            .environment
            .iter()
            .map(|(name, value)| (name.clone(), redact::text(value)))
            .collect(),
    };
    let keeper = Keeper {
        store: Store::open(&state(&args.machine, &environment)?, &id)?,
        run,
        begun,
        machine,
        chosen,
        options,
    };
    match args.level {
        Level::Instance => instance_level(keeper, host, &args),
        Level::Cluster => cluster_level(keeper, host, &args, &environment),
    }
}

/// What every level needs: the run, and where it is kept.
struct Keeper {
    store: Store,
    run: Run,
    begun: Instant,
    machine: Machine,
    chosen: tables::Chosen,
    options: BTreeMap<String, BTreeMap<String, String>>,
}

impl Keeper {
    /// Begins the journal of a run that means to do these checks.
    fn begin(&self, planned: Vec<String>) -> Result<(store::RunFolder, Journal), Failure> {
        let folder = self.store.run(&self.run.id)?;
        let file = folder.create(store::JOURNAL)?;
        let (name, identity) = (&self.machine.name, &self.machine.identity);
        let journal = Journal::begin(file, &self.run, name, identity, planned)?;
        Ok((folder, journal))
    }

    /// Prints and keeps the report.
    fn finish(
        &self,
        folder: store::RunFolder,
        report: &Report,
        journal_broken: Option<std::io::Error>,
        args: &RunArgs,
    ) -> Result<Exit, Failure> {
        let document = serde_json::to_vec_pretty(report)?;
        // What was measured is printed before anything else can go wrong.
        show(report, &document, args.format)?;
        if let Some(error) = journal_broken {
            eprintln!("dhc: the journal could not be kept: {error}");
        }
        let exit = Exit::of(report);
        match self.keep(&folder, &document, report, args) {
            Ok(()) => Ok(exit),
            // Whoever reads only the status must not take a failed node for a failure of dhc.
            Err(error) if exit == Exit::Fail => {
                eprintln!("dhc: {}", chain(error.as_ref()));
                Ok(exit)
            }
            Err(error) => Err(error),
        }
    }

    fn keep(
        &self,
        folder: &store::RunFolder,
        document: &[u8],
        report: &Report,
        args: &RunArgs,
    ) -> Result<(), Failure> {
        folder.finish(document)?;
        if args.format == Format::Table {
            eprintln!("result: {}", folder.path().join(store::RESULT).display());
        }
        if let Some(file) = &args.report {
            store::write_file(file, html::page(report).as_bytes())?;
        }
        if let Some(out) = &args.out {
            deposit(&std::env::current_exe()?, folder.path(), out)?;
        }
        Ok(())
    }
}

fn selection(args: &RunArgs) -> Selection {
    Selection {
        checks: args.checks.clone(),
        tags: args.tags.clone(),
        skip: args.skip.clone(),
    }
}

fn instance_level(keeper: Keeper, host: Host, args: &RunArgs) -> Result<Exit, Failure> {
    let checks = plan::instance_checks(CHECKS);
    let (table, there) = (&keeper.chosen.table, &keeper.machine.there);
    let plan = plan::instance_level(&checks, table, there, &selection(args))?;
    let planned = plan
        .iter()
        .map(|planned| planned.check.spec().name.to_owned())
        .collect();
    let (folder, mut journal) = keeper.begin(planned)?;
    let orders = Orders {
        program: std::env::current_exe()?,
        host,
        machine: &keeper.machine,
        chosen: &keeper.chosen,
        plan,
        options: keeper.options.clone(),
        deadline: args.deadline,
        run_deadline: args.run_deadline,
        readings: Some(keeper.store.readings()?),
        stop: &STOP,
    };
    let watcher = live::watcher();
    let (report, journal_broken) =
        run::node(&orders, keeper.run.clone(), &mut journal, watcher.as_ref());
    drop(watcher);
    keeper.finish(folder, &report, journal_broken, args)
}

fn cluster_level(
    keeper: Keeper,
    host: Host,
    args: &RunArgs,
    environment: &BTreeMap<String, String>,
) -> Result<Exit, Failure> {
    let checks = plan::cluster_level(CHECKS, &keeper.chosen.table, &selection(args))?;
    let planned = checks.iter().map(|check| check.spec().name.to_owned());
    let (folder, mut journal) = keeper.begin(planned.collect())?;
    let mut options = keeper.options.clone();
    let nodes = cluster::gather(
        &host,
        &args.cluster,
        environment,
        &keeper.machine.name,
        &keeper.run.id,
    )?;
    nodes.defaults(&mut options);
    let orders = cluster::Orders {
        program: std::env::current_exe()?,
        host,
        cluster: nodes.cluster(),
        chosen: &keeper.chosen,
        checks,
        options,
        deadline: args.deadline,
        run_deadline: args.run_deadline,
        settings: Settings {
            groups_max: args.cluster.groups,
            seed: args
                .cluster
                .seed
                .unwrap_or(keeper.begun.elapsed().as_nanos() as u64),
            ..Settings::default()
        },
        stop: &STOP,
    };
    let watcher = live::watcher();
    let outcomes = cluster::run(&orders, &mut journal, watcher.as_ref());
    drop(watcher);
    let run = Run {
        duration_ms: u64::try_from(keeper.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..keeper.run.clone()
    };
    let mut report = Report::new(run, keeper.chosen.judged_by.clone(), outcomes.nodes)
        .with_cluster(outcomes.cluster);
    report.complete &= !STOP.load(Ordering::Relaxed);
    let exit = keeper.finish(folder, &report, outcomes.journal_broken, args);
    nodes.release();
    exit
}

fn stop_flag() -> Arc<AtomicBool> {
    // signal-hook wants an Arc and the workers a plain flag, so a thread carries the news from one to the other.
    let flag = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&flag);
    std::thread::spawn(move || {
        while !heard.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        STOP.store(true, Ordering::Relaxed);
    });
    flag
}

fn show(report: &Report, document: &[u8], format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => print(&(String::from_utf8_lossy(document).into_owned() + "\n")),
        Format::Table => {
            let paper = if std::io::stdout().is_terminal() {
                Paper::Terminal
            } else {
                Paper::Plain
            };
            print(&render::report(report, paper))
        }
    }
}

/// Copies the result to where the user wants it, in another process, since a network file system may hang for ever.
fn deposit(program: &Path, folder: &Path, out: &Path) -> Result<(), Failure> {
    let mut child = std::process::Command::new(program)
        .arg("deposit")
        .args([folder, out])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    let kept = || format!("the result is kept in `{}`", folder.display());
    while begun.elapsed() < store::COPY_LIMIT {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(_) => {
                return Err(format!(
                    "the result could not be copied to `{}`; {}",
                    out.display(),
                    kept()
                )
                .into());
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    drop(child.kill());
    let limit = store::COPY_LIMIT.as_secs();
    Err(format!(
        "`{}` did not take the result within {limit} s; {}",
        out.display(),
        kept()
    )
    .into())
}

fn judge(
    path: &Path,
    thresholds: Option<&Path>,
    current: bool,
    format: Format,
    machine: &MachineArgs,
) -> Result<Exit, Failure> {
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
    let stored = match journal::read(&text) {
        Ok((header, records)) => {
            let chosen =
                tables::choose(thresholds, None, header.identity.instance_type.as_deref())?;
            let checks = records.into_iter().map(|record| {
                let metrics = tables::metrics_of(&record.check);
                CheckReport::new(record, &metrics, &chosen.table)
            });
            let node = NodeReport::new(header.name, header.identity, checks.collect());
            Report::new(header.run, chosen.judged_by, vec![node])
        }
        Err(journal::NotAJournal) => Report::parse(&text)
            .map_err(|error| format!("cannot judge `{}`: {}", path.display(), chain(&error)))?,
    };
    if current {
        refuse_stale(&stored, machine)?;
    }
    let chosen = tables::choose(thresholds, None, Some(&stored.judged_by.instance_type))?;
    let report = stored.judged_again(chosen.judged_by.clone(), &tables::metrics_of, &chosen.table);
    show(&report, &serde_json::to_vec_pretty(&report)?, format)?;
    Ok(Exit::of(&report))
}

/// Refuses a result on which nobody should act any more.
fn refuse_stale(report: &Report, machine: &MachineArgs) -> Result<(), Failure> {
    let expires: jiff::Timestamp = report.run.expires_at.parse()?;
    if jiff::Timestamp::now() > expires {
        return Err(format!(
            "the result expired at {expires}; run the checks again before acting on it"
        )
        .into());
    }
    let here = Machine::look(&host(machine, &BTreeMap::new()), &BTreeMap::new());
    for node in report.nodes.iter().filter(|node| node.name == here.name) {
        if node.identity.boot_id != here.identity.boot_id {
            return Err(format!(
                "the result is from another boot of {}; run the checks again before acting on it",
                node.name
            )
            .into());
        }
    }
    Ok(())
}

fn measure(name: &str) -> Result<Exit, Failure> {
    supervise::end_with_the_run()?;
    let check = catalog::find(name).ok_or_else(|| format!("there is no check `{name}`"))?;
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let task: Task = serde_json::from_slice(&text)?;
    check::run(check, &task, &mut std::io::stdout())?;
    Ok(Exit::Pass)
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
