//! `dhc`: arguments in, one call for each subcommand, text and exit status out.
//!
//! The only place that reads the environment, prints and exits.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "main is the one place that prints and reads the environment"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser};
use dhc_checks::catalog::{self, CHECKS};
use dhc_checks::check::{self, Task, chain};
use dhc_checks::host::{Host, redact};
use dhc_runners::cli::{
    Cli, Command, Document, Format, HistoryArgs, LearnArgs, Level, MachineArgs, RecoverCommand,
    RecoveryArgs, RunArgs, ThresholdsCommand,
};
use dhc_runners::export::{self, Target};
use dhc_runners::journal::Journal;
use dhc_runners::lines::Teller;
use dhc_runners::localise::Settings;
use dhc_runners::machine::Machine;
use dhc_runners::plan::{self, Selection};
use dhc_runners::recover::{self, Attempts, History, Log, Mode, Plan, Policy};
use dhc_runners::render::{self, Paper, html, recovery};
use dhc_runners::run::{self, Orders};
use dhc_runners::status::{self, Condition};
use dhc_runners::store::{self, Store, StoreError};
use dhc_runners::{Exit, cluster, explain, fleet, imds, journal, learn, live, supervise, tables};
use dhc_thresholds::{CheckReport, NodeReport, Report, Run, Status, TableFile, diff};

type Failure = Box<dyn std::error::Error>;

/// Set by SIGTERM, SIGINT and SIGHUP.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

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
            let told = redact::text(&chain(error.as_ref()));
            eprintln!("dhc: {}", render::printable(&told));
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
            built_in,
            current,
            format,
            machine,
        } => {
            let stored = stored(&result)?;
            if current {
                refuse_stale(&stored, &machine)?;
            }
            if thresholds.is_none() && !built_in {
                refuse_another_table(&stored)?;
            }
            judge(&stored, thresholds.as_deref(), format)
        }
        Command::Export { format, result, to } => {
            let report = stored(&result)?;
            match to {
                Some(file) => export::write(&report, &Target { format, file })?,
                None => drop(print_document(&export::text(format, &report)?)?),
            }
            Ok(Exit::Pass)
        }
        Command::Status {
            npd,
            format,
            machine,
            unguarded,
        } => match unguarded {
            false => guarded_status(npd),
            true => last_results(npd, format, &machine),
        },
        Command::Compare {
            results,
            thresholds,
            built_in,
            format,
        } => compare(&results, thresholds.as_deref(), built_in, format),
        Command::Recover { command } => recover(command),
        Command::History {
            node,
            history,
            format,
        } => past(node.as_deref(), &history, format),
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
        } => print(&explain::table(&tables::named(&name)?)),
        Command::Thresholds {
            command: ThresholdsCommand::Diff { from, to, format },
        } => {
            let changes = diff(&tables::named(&from)?.table, &tables::named(&to)?.table);
            match format {
                Format::Json => print_document(&render::tables::changes_json(&changes)?)?,
                Format::Table => print(&render::tables::changes(&changes))?,
            };
            let same = changes.is_empty();
            Ok(if same { Exit::Pass } else { Exit::Warn })
        }
        Command::Thresholds {
            command: ThresholdsCommand::Learn(args),
        } => learned(*args),
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
            print_document(&(serde_json::to_string_pretty(&schema)? + "\n"))
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
/// Prints text for people, in which hosts and tools may have a word.
fn print(text: &str) -> Result<Exit, Failure> {
    print_document(&render::printable(text))
}

/// Prints text for programs as it is.
fn print_document(text: &str) -> Result<Exit, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Pass),
    }
}

fn run(args: RunArgs) -> Result<Exit, Failure> {
    if args.level != Level::Instance && args.budget.is_some() {
        eprintln!("dhc: --budget is for the level of one node; give the others a --run-deadline");
        return Ok(Exit::Usage);
    }
    if args.part_of.is_none() {
        return run_here(args, None);
    }
    let teller = Teller::begin(&environment(), &STOP);
    if let Err(error) = run_here(args, Some(teller.clone())) {
        teller.give_up(&chain(error.as_ref()));
    }
    // Launchers end all their processes when one of them fails. The verdict is in the lines.
    Ok(Exit::Pass)
}

fn run_here(args: RunArgs, teller: Option<Teller>) -> Result<Exit, Failure> {
    for signal in [
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&STOP))?;
    }
    let environment = environment();
    let host = host(&args.machine, &environment);
    let mut machine = Machine::look(&host, &environment);
    if args.imds && machine.identity.instance_type.is_none() {
        imds::ask(&mut machine.identity);
    }
    let detected = machine.identity.instance_type.clone();
    let chosen = match (&args.thresholds, &args.thresholds_text) {
        (Some(path), Some(text)) => tables::text(path, text)?,
        (thresholds, _) => tables::choose(
            thresholds.as_deref(),
            args.instance_type.as_deref(),
            detected.as_deref(),
        )?,
    };
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
            Level::All => "all".to_owned(),
        },
        started_at: now.to_string(),
        duration_ms: 0,
        expires_at: (now + jiff::SignedDuration::try_from(args.valid_for)?).to_string(),
        environment: host
            .environment
            .iter()
            .map(|(name, value)| (name.clone(), redact::value(name, value)))
            .collect(),
    };
    let keeper = Keeper {
        store: Store::open(
            &state(&args.machine, &environment)?,
            &id,
            args.part_of.as_deref(),
        )?,
        teller,
        run,
        begun,
        machine,
        chosen,
        options,
    };
    match args.level {
        Level::Instance => instance_level(keeper, host, &args),
        Level::Cluster | Level::All => cluster_level(keeper, host, &args, &environment),
    }
}

/// What every level needs: the run, and where it is kept.
struct Keeper {
    store: Store,
    /// Who tells the run of the whole cluster, where this run is a part of one.
    teller: Option<Teller>,
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
        let judged_by = &self.chosen.judged_by;
        let journal = Journal::begin(file, &self.run, judged_by, name, identity, planned)?;
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
        match &self.teller {
            Some(teller) => {
                let document = journal::to_carry(report, &report.nodes[0])?;
                if let Err(error) = teller.deliver(&document) {
                    eprintln!("dhc: nobody takes the measurements: {error}; they are kept here");
                }
            }
            None => drop(show(report, &document, args.format)?),
        }
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
        if args.format == Format::Table && self.teller.is_none() {
            eprintln!("result: {}", folder.path().join(store::RESULT).display());
        }
        // One that fails does not keep the others from being written.
        let exported = args.exports.iter().map(|target| {
            export::write(report, target).inspect_err(|error| {
                eprintln!("dhc: {}", render::printable(&chain(error)));
            })
        });
        let failed = exported.filter(Result::is_err).count();
        if let Some(file) = &args.report {
            store::write_file(file, html::page(report).as_bytes())?;
        }
        if let Some(out) = &args.out {
            deposit(&std::env::current_exe()?, folder.path(), out)?;
        }
        match failed {
            0 => Ok(()),
            _ => Err(format!(
                "{failed} of {} exports could not be written; the result is kept in `{}`, `dhc export` writes them again",
                args.exports.len(),
                folder.path().display()
            )
            .into()),
        }
    }
}

fn selection(args: &RunArgs) -> Selection {
    Selection {
        checks: args.checks.clone(),
        tags: args.tags.clone(),
        skip: args.skip.clone(),
        budget: args.budget,
    }
}

fn instance_level(keeper: Keeper, host: Host, args: &RunArgs) -> Result<Exit, Failure> {
    let checks = plan::instance_checks(CHECKS);
    let (table, there) = (&keeper.chosen.table, &keeper.machine.there);
    let mut plan = plan::instance_level(&checks, table, there, &selection(args))?;
    if let Some(budget) = args.budget {
        plan = plan::within(plan, budget, &keeper.options);
    }
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
    let watcher = match &keeper.teller {
        Some(teller) => Box::new(teller.clone()),
        None => live::watcher(),
    };
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
    let selection = selection(args);
    let (of_nodes, of_groups) = match args.level {
        Level::All => plan::all_levels(CHECKS, &selection)?,
        Level::Instance | Level::Cluster => (None, Some(selection)),
    };
    let mut planned = Vec::new();
    if let Some(selection) = &of_groups {
        let checks = plan::cluster_level(CHECKS, &keeper.chosen.table, selection)?;
        planned.extend(checks.iter().map(|check| check.spec().name.to_owned()));
    }
    let instance = of_nodes.map(|selection| nodes_alone(&keeper, args, &selection));
    let instance = instance.transpose()?;
    let (folder, mut journal) = keeper.begin(planned)?;
    let mut options = keeper.options.clone();
    let mut nodes = cluster::gather(
        &host,
        &args.cluster,
        environment,
        &keeper.machine.name,
        &keeper.run.id,
    )?;
    nodes.defaults(&keeper.chosen.table, &mut options);
    let orders = cluster::Orders {
        program: std::env::current_exe()?,
        host,
        cluster: nodes.cluster(),
        chosen: &keeper.chosen,
        instance,
        selection: of_groups,
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
    let mut reports = outcomes.nodes;
    for node in &mut reports {
        // A cluster lies in one region.
        node.identity
            .region
            .clone_from(&keeper.machine.identity.region);
    }
    let mut report = Report::new(run, outcomes.judged_by, reports).with_cluster(outcomes.cluster);
    report.complete &= !STOP.load(Ordering::Relaxed);
    let exit = keeper.finish(folder, &report, outcomes.journal_broken, args);
    let failed = report
        .nodes
        .iter()
        .filter(|node| node.status == Status::Fail);
    let failed: Vec<String> = failed.map(|node| node.name.clone()).collect();
    if let Some(said) = nodes.keep_reserved(&failed, args.valid_for) {
        eprintln!("dhc: {said}");
    }
    nodes.release();
    exit
}

/// What `--level all` starts on every node: the instance level, with what of the command line is about it.
fn nodes_alone(
    keeper: &Keeper,
    args: &RunArgs,
    selection: &Selection,
) -> Result<cluster::InstanceOrders, Failure> {
    /// How much of a threshold file can be given to the nodes on their command line.
    const CARRIED_MAX: usize = 64 << 10;
    let mut words: Vec<OsString> = Vec::new();
    let mut add = |flag: &str, value: OsString| words.extend([flag.into(), value]);
    add("--part-of", keeper.run.id.clone().into());
    for (flag, list) in [
        ("--check", &selection.checks),
        ("--tag", &selection.tags),
        ("--skip", &selection.skip),
    ] {
        list.iter().for_each(|word| add(flag, word.into()));
    }
    for setting in &args.settings {
        add("--set", setting.to_string().into());
    }
    if let Some(deadline) = args.deadline {
        add("--deadline", format!("{}ms", deadline.as_millis()).into());
    }
    if let Some(instance_type) = &args.instance_type {
        add("--instance-type", instance_type.into());
    }
    if let Some(path) = &args.thresholds {
        // The nodes need not reach the file.
        let text = std::fs::read_to_string(path)?;
        if text.len() > CARRIED_MAX {
            let (path, most) = (path.display(), CARRIED_MAX >> 10);
            return Err(format!(
                "`{path}` is longer than {most} KiB and cannot be carried to the nodes; shorten it"
            )
            .into());
        }
        add("--thresholds", path.into());
        add("--thresholds-text", text.into());
    }
    words.extend(machine_args(&args.machine));
    words.extend(args.imds.then(|| "--imds".into()));
    let mut all = ["run", "--level", "instance"].map(str::to_owned).to_vec();
    for word in words {
        all.push(word.into_string().map_err(|word| {
            let word = word.display();
            format!("`{word}` is not UTF-8 and cannot be given to the nodes")
        })?);
    }
    let named = args.thresholds.is_some() || args.instance_type.is_some();
    let program = match &args.cluster.node_dhc {
        Some(program) => program.clone(),
        None => std::env::current_exe()?,
    };
    let checks = plan::instance_checks(CHECKS);
    Ok(cluster::InstanceOrders {
        program,
        args: all,
        deadline: run::longest(&checks, selection, &keeper.options, args.deadline),
        chosen: named.then(|| keeper.chosen.clone()),
    })
}

fn show(report: &Report, document: &[u8], format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => print_document(&(String::from_utf8_lossy(document).into_owned() + "\n")),
        Format::Table => print(&render::report(report, paper())),
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
    let kept = || format!("the result is kept in `{}`", folder.display());
    match ended_within(&mut child, store::COPY_LIMIT)? {
        Some(status) if status.success() => return Ok(()),
        Some(_) => {
            return Err(format!(
                "the result could not be copied to `{}`; {}",
                out.display(),
                kept()
            )
            .into());
        }
        None => {}
    }
    let limit = store::COPY_LIMIT.as_secs();
    Err(format!(
        "`{}` did not take the result within {limit} s; {}",
        out.display(),
        kept()
    )
    .into())
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

/// `dhc status` in another process, since the disk that results are on may hang for ever.
fn guarded_status(npd: Option<Condition>) -> Result<Exit, Failure> {
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--unguarded")
        .stdin(std::process::Stdio::null())
        // Whoever called waits for the end of what it is told; a process that is held must not hold its end open.
        .stdout(match npd {
            Some(_) => std::process::Stdio::piped(),
            None => std::process::Stdio::inherit(),
        })
        .spawn()?;
    let ended = ended_within(&mut child, status::LIMIT)?;
    let Some(mut said) = child.stdout.take() else {
        return match ended.and_then(|status| status.code()) {
            Some(code) => Ok(Exit::of_code(code)),
            None => Err(status::too_late().into()),
        };
    };
    let mut text = String::new();
    let answer = match ended.and_then(|status| status.code()) {
        Some(code @ 0..=2) => {
            said.read_to_string(&mut text)?;
            return print(&text).map(|_| Exit::of_code(code));
        }
        Some(_) => status::Answer::unknown("dhc could not read the last results; run `dhc status`"),
        None => status::Answer::unknown(status::too_late()),
    };
    print(&answer.line())?;
    Ok(answer.exit())
}

/// What the last results on this node say.
fn last_results(
    npd: Option<Condition>,
    format: Format,
    machine: &MachineArgs,
) -> Result<Exit, Failure> {
    let environment = environment();
    let here = Machine::look(&host(machine, &environment), &environment);
    let here = status::Here {
        name: here.name,
        boot_id: here.identity.boot_id,
        now: jiff::Timestamp::now(),
    };
    let state = state(machine, &environment)?;
    let mut results = Store::results(&state)?.into_iter().filter_map(|path| {
        let unread = |why: String| format!("cannot read `{}`: {why}", path.display());
        match store::read_file(&path) {
            // A run that is under way, or was killed, has left no result.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(unread(error.to_string()))),
            Ok(text) => Some(Report::parse(&text).map_err(|error| unread(chain(&error)))),
        }
    });
    if let Some(condition) = npd {
        let answer = condition.answer(results, &here);
        print(&answer.line())?;
        return Ok(answer.exit());
    }
    let Some(report) = results.next() else {
        return Err(format!(
            "there is no result in `{}` yet; `dhc run` leaves one",
            state.display()
        )
        .into());
    };
    let report = report?;
    show(&report, &serde_json::to_vec_pretty(&report)?, format)?;
    match here.refuses(&report) {
        Some(why) => {
            eprintln!("dhc: {why}; run the checks again before acting on it");
            Ok(Exit::Unknown)
        }
        None => {
            eprintln!("dhc: {}", here.age(&report));
            Ok(Exit::of(&report))
        }
    }
}

fn judge(stored: &Report, thresholds: Option<&Path>, format: Format) -> Result<Exit, Failure> {
    let report = judged(stored, thresholds)?;
    show(&report, &serde_json::to_vec_pretty(&report)?, format)?;
    Ok(Exit::of(&report))
}

/// A stored report judged again, by the user's file or by the table of its own instance type.
fn judged(stored: &Report, thresholds: Option<&Path>) -> Result<Report, Failure> {
    let judged_by = &stored.judged_by;
    let own_type = if judged_by.origin == tables::BUILT_IN {
        Some(judged_by.instance_type.as_str())
    } else {
        instance_type(stored)
    };
    let chosen = tables::choose(thresholds, None, own_type)?;
    let report = stored.judged_again(chosen.judged_by.clone(), &tables::metrics_of, &chosen.table);
    match thresholds {
        Some(_) => Ok(report),
        None => nodes_of_other_types(stored, report),
    }
}

/// Puts results together, with nodes of a type as each other's peers.
fn compare(
    paths: &[PathBuf],
    thresholds: Option<&Path>,
    built_in: bool,
    format: Format,
) -> Result<Exit, Failure> {
    let mut results = Vec::new();
    for path in paths {
        let stored = stored(path)?;
        if stored.cluster.is_some() {
            return Err(format!(
                "`{}` is of the cluster level, whose groups were compared when they were measured; compare results of the \
                 instance level",
                path.display()
            )
            .into());
        }
        if thresholds.is_none() && !built_in {
            refuse_another_table(&stored)?;
        }
        results.push(judged(&stored, thresholds)?);
    }
    let report = fleet::together(&results, ulid::Ulid::new().to_string())?;
    show(&report, &serde_json::to_vec_pretty(&report)?, format)?;
    Ok(Exit::of(&report))
}

/// Makes a threshold file from results.
fn learned(args: LearnArgs) -> Result<Exit, Failure> {
    if let Some(out) = args
        .out
        .as_ref()
        .filter(|out| out.symlink_metadata().is_ok())
    {
        return Err(format!(
            "`{}` is there already; earlier tables are worth keeping, so name another file, and see what changed with \
             `dhc thresholds diff`",
            out.display()
        )
        .into());
    }
    let mut results = Vec::new();
    for path in &args.results {
        results.push((path.display().to_string(), stored(path)?));
    }
    let base = args.extends.as_deref().map(tables::named).transpose()?;
    let terms = learn::Terms {
        bounds: dhc_thresholds::Terms {
            coverage: args.coverage / 100.0,
            minimum: args.minimum,
        },
        metrics: args.metrics,
        allow_lower: args.allow_lower,
        instance_type: args.instance_type,
        expired: args.expired,
        mixed_versions: args.mixed_versions,
        leave_out_unfit: args.leave_out_unfit,
    };
    let lesson = learn::from_results(&results, base, &terms, jiff::Timestamp::now())?;
    for line in &lesson.said {
        eprintln!("dhc: {}", render::printable(line));
    }
    if lesson.limits == 0 {
        eprintln!("dhc: nothing was learned, so nothing is written");
        return Ok(Exit::Unknown);
    }
    match &args.out {
        Some(out) => {
            store::write_file(out, lesson.text.as_bytes())?;
            let limits = lesson.limits;
            print(&format!("{}: {limits} limits learned\n", out.display()))
        }
        None => print_document(&lesson.text),
    }
}

/// The report with nodes of other instance types than the run's judged by the tables of theirs.
fn nodes_of_other_types(stored: &Report, mut report: Report) -> Result<Report, Failure> {
    for (node, was) in report.nodes.iter_mut().zip(&stored.nodes) {
        let own = was.judged_by.as_ref();
        if let Some(own) = own.filter(|own| own.origin == tables::BUILT_IN) {
            let own = tables::choose(None, None, Some(&own.instance_type))?;
            *node = was.judged_again(&tables::metrics_of, &own.table);
            node.judged_by = Some(own.judged_by);
        }
    }
    let cluster = report.cluster.take();
    let report = Report::new(report.run, report.judged_by, report.nodes);
    Ok(match cluster {
        Some(cluster) => report.with_cluster(cluster),
        None => report,
    })
}

/// What a user's file allowed or forbade must not change for want of a word on the command line.
fn refuse_another_table(stored: &Report) -> Result<(), Failure> {
    let judged_by = &stored.judged_by;
    if judged_by.origin == tables::BUILT_IN {
        return Ok(());
    }
    Err(format!(
        "this run was judged by the file `{}` (SHA-256 {}); name it, or another, with --thresholds, or say --built-in to judge \
         by dhc's own table of {}",
        judged_by.origin,
        judged_by.sha256,
        instance_type(stored).unwrap_or(dhc_thresholds::GENERIC)
    )
    .into())
}

/// The instance type that the nodes said they are of; a user's file may give it another name.
fn instance_type(stored: &Report) -> Option<&str> {
    let first = stored.nodes.first()?;
    first.identity.instance_type.as_deref()
}

/// The result in a file or the folder of a run; where the run was killed, what its journal holds, judged by the instance
/// type's own table and under the name of the run's.
fn stored(path: &Path) -> Result<Report, Failure> {
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

fn recover(command: RecoverCommand) -> Result<Exit, Failure> {
    match command {
        RecoverCommand::Plan { recovery, policy } => {
            let policy = Policy::load(&policy)?;
            let history = History::read(&history_file(&recovery.history)?)?;
            let plan = recovery_plan(&recovery, &policy, &history)?;
            show_plan(&plan, recovery.format)
        }
        RecoverCommand::Policy { name } => {
            let text = Policy::built_in(&name).ok_or_else(|| {
                format!("there is no built-in policy `{name}`; there are default and hyperpod")
            })?;
            print(text)
        }
        RecoverCommand::Apply { recovery, policy } => {
            let policy = own_policy(&policy)?;
            let mut history = History::write(&history_file(&recovery.history)?)?;
            let plan = recovery_plan(&recovery, &policy, &history)?;
            if policy.mode == Mode::Observe {
                show_plan(&plan, recovery.format)?;
                eprintln!(
                    "dhc: nothing was done, since the policy says mode = \"observe\"; write \"enforce\" to have it done"
                );
                return Ok(Exit::Pass);
            }
            let environment = environment();
            let host = host(&recovery.history.machine, &environment);
            let scheduler = recover::scheduler(&policy, &host, &environment);
            let mut to = log_file(recovery.log.as_deref())?;
            let now = jiff::Timestamp::now;
            let mut log = Log::new(&mut to, &now, &policy.version, scheduler.name());
            let applied =
                recover::apply(&plan, &policy, scheduler.as_ref(), &mut history, &mut log)?;
            match recovery.format {
                Format::Json => print_document(&(serde_json::to_string_pretty(&applied)? + "\n"))?,
                Format::Table => {
                    print(&(recovery::plan(&plan, paper()) + &recovery::done(&applied.nodes)))?
                }
            };
            if let Some(why) = &applied.breaker {
                eprintln!("dhc: nobody was touched: {why}");
                return Ok(Exit::Error);
            }
            let all = applied.nodes.iter().all(|done| done.outcome.is_done());
            Ok(if all { Exit::Pass } else { Exit::Error })
        }
        RecoverCommand::Verify {
            recovery,
            policy,
            node,
        } => verify(&recovery, &policy, node.as_deref()),
    }
}

/// Runs the checks again that failed on this node, and gives it back if they pass.
fn verify(recovery: &RecoveryArgs, policy: &Path, node: Option<&str>) -> Result<Exit, Failure> {
    let policy = own_policy(policy)?;
    let args = &recovery.history.machine;
    let environment = environment();
    let host = host(args, &environment);
    let here = Machine::look(&host, &environment);
    let node = node.unwrap_or(&here.name);
    let history = history_file(&recovery.history)?;
    let plan = recovery_plan(recovery, &policy, &History::read(&history)?)?;
    let step = plan
        .steps
        .into_iter()
        .find(|step| step.node == node)
        .ok_or_else(|| format!("the results hold nothing against `{node}`; name it with --node"))?;
    let mut checks: Vec<&str> = step
        .causes
        .iter()
        .map(|cause| cause.check.as_str())
        .collect();
    checks.sort_unstable();
    checks.dedup();
    let alone = |check: &&str| catalog::find(check).is_some_and(|check| check.instance().is_some());
    if checks.is_empty() || !checks.iter().all(alone) {
        return Err(format!(
            "{node} was found with {}, which needs other nodes; run `dhc run --level cluster` with it and good ones, and \
             give it back by hand if it passes",
            checks.join(", ")
        )
        .into());
    }
    let program = std::env::current_exe()?;
    let status = std::process::Command::new(program)
        .args(["run", "--check", &checks.join(",")])
        .args(machine_args(args))
        .status()?;
    match status.code() {
        Some(0 | 1) => {}
        code => {
            eprintln!(
                "dhc: {node} is not given back: {} did not pass again",
                checks.join(", ")
            );
            return Ok(match code {
                Some(2) => Exit::Fail,
                Some(3) => Exit::Unknown,
                _ => Exit::Error,
            });
        }
    }
    if policy.mode == Mode::Observe {
        eprintln!(
            "dhc: {node} passes; it is not given back, since the policy says mode = \"observe\""
        );
        return Ok(Exit::Pass);
    }
    let mut history = History::write(&history)?;
    let scheduler = recover::scheduler(&policy, &host, &environment);
    let mut to = log_file(recovery.log.as_deref())?;
    let now = jiff::Timestamp::now;
    let mut log = Log::new(&mut to, &now, &policy.version, scheduler.name());
    match recover::give_back(&step, &policy, scheduler.as_ref(), &mut history, &mut log)? {
        Ok(what) => {
            eprintln!("dhc: {node}: {what}");
            Ok(Exit::Pass)
        }
        Err(why) => Err(format!("{node} passes and could not be given back: {why}").into()),
    }
}

/// Where recovery tells what it does while it does it.
fn log_file(path: Option<&Path>) -> Result<Box<dyn Write>, Failure> {
    let Some(path) = path else {
        return Ok(Box::new(std::io::stderr()));
    };
    let mut file = std::fs::OpenOptions::new();
    let file = file.append(true).create(true).open(path);
    Ok(Box::new(file.map_err(|error| {
        format!("cannot open the log `{}`: {error}", path.display())
    })?))
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

/// A policy that something may be done by: a file that somebody has read, never a built-in one.
fn own_policy(path: &Path) -> Result<Policy, Failure> {
    if path
        .to_str()
        .is_some_and(|name| Policy::built_in(name).is_some())
    {
        let name = path.display();
        return Err(format!(
            "`{name}` is built in and does nothing; write it to a file (`dhc recover policy {name}`), read it, change its \
             mode, and name the file"
        )
        .into());
    }
    Ok(Policy::load(path)?)
}

fn recovery_plan(
    recovery: &RecoveryArgs,
    policy: &Policy,
    history: &History,
) -> Result<Plan, Failure> {
    let mut results = Vec::new();
    for path in &recovery.results {
        results.push(stored(path)?);
    }
    let now = jiff::Timestamp::now();
    let recent = history.marked_since(now - policy.window())?;
    Ok(recover::plan(&results, policy, now, &recent, |machine| {
        history.of_machine(machine)
    })?)
}

fn show_plan(plan: &Plan, format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => print_document(&(serde_json::to_string_pretty(plan)? + "\n")),
        Format::Table => print(&recovery::plan(plan, paper())),
    }
}

fn past(node: Option<&str>, history: &HistoryArgs, format: Format) -> Result<Exit, Failure> {
    /// How many machines are shown.
    const MOST: usize = 20;
    let history = History::read(&history_file(history)?)?;
    let now = jiff::Timestamp::now();
    let Some(node) = node else {
        let mut offenders = Vec::new();
        for (machine, node, times) in history.offenders(MOST)? {
            let attempts = Attempts::of(&history.of_machine(&machine)?, now);
            offenders.push((machine, node, times, attempts));
        }
        return match format {
            Format::Json => print_document(&recovery::offenders_json(&offenders)),
            Format::Table => print(&recovery::offenders(&offenders, paper())),
        };
    };
    let events = history.of_node(node)?;
    match format {
        Format::Json => print_document(&(serde_json::to_string_pretty(&events)? + "\n")),
        Format::Table if events.is_empty() => print(&format!("nothing is known of `{node}`\n")),
        Format::Table => print(&recovery::history(&events, paper())),
    }
}

fn history_file(args: &HistoryArgs) -> Result<PathBuf, Failure> {
    match &args.file {
        Some(file) => Ok(file.clone()),
        None => Ok(state(&args.machine, &environment())?.join("history.sqlite")),
    }
}

fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn paper() -> Paper {
    if std::io::stdout().is_terminal() {
        Paper::Terminal
    } else {
        Paper::Plain
    }
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
    let here = Machine::look(&host(machine, &BTreeMap::new()), &environment());
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
