//! `dhc run` and what it starts: the levels, and the processes of single checks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use dhc_checks::catalog::{self, CHECKS};
use dhc_checks::check::{self, Task, chain};
use dhc_checks::host::{Host, redact};
use dhc_runners::cli::{Format, Level, RunArgs};
use dhc_runners::export;
use dhc_runners::journal::Journal;
use dhc_runners::lines::Teller;
use dhc_runners::localise::Settings;
use dhc_runners::machine::{self, Machine};
use dhc_runners::plan::{self, Options, Selection};
use dhc_runners::prune;
use dhc_runners::recover::Policy;
use dhc_runners::render::{self, html};
use dhc_runners::run::{self, Orders};
use dhc_runners::store::{self, Store};
use dhc_runners::{Exit, cluster, imds, journal, live, supervise, tables};
use dhc_thresholds::{Action, NodeReport, Report, Run, Status};

use super::{Failure, ended_within, environment, host, machine_args, show, state};

/// How long an allocation of Slurm lasts if nobody gives it back: for the collectives, and for DCGM's diagnostics before.
const ALLOCATION: Duration = Duration::from_secs(3_600);
const ALLOCATION_ALL: Duration = Duration::from_secs(4 * 3_600);

/// Set by SIGTERM, SIGINT and SIGHUP.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

pub(crate) fn run(args: RunArgs) -> Result<Exit, Failure> {
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
    let environment = environment();
    let host = host(&args.machine, &environment);
    let mut machine = Machine::look(&host, &environment);
    if args.imds && machine.identity.instance_type.is_none() {
        imds::ask(&mut machine.identity);
    }
    let detected = machine.identity.instance_type.clone();
    let named = args.instance_type.as_deref();
    let chosen = match (&args.thresholds, &args.thresholds_text) {
        (Some(path), Some(text)) => tables::text(path, text)?,
        (thresholds, _) => tables::choose(
            thresholds.as_deref(),
            named.or(machine::named_in(&environment)),
            detected.as_deref(),
        )?,
    };
    if let Some(named) = named {
        machine.identity.instance_type = Some(named.to_owned());
        machine.identity.instance_type_from = Some("--instance-type".to_owned());
    }
    if let Some(said) = machine.contradiction(&chosen.table) {
        eprintln!("dhc: warning: {}", render::printable(&said));
    }
    if let (true, Some(why)) = (chosen.table.is_generic(), machine.unread.first()) {
        let said = format!(
            "neither the instance type nor all hardware can be told ({why}), so checks run that may have nothing to look at; \
             name the type with --instance-type"
        );
        eprintln!("dhc: warning: {}", render::printable(&said));
    }
    let options = options(&args);
    // Until here a signal ends dhc at once, whatever file it waits for: nothing has begun, so nothing can be lost.
    for signal in [
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&STOP))?;
    }
    let id = ulid::Ulid::new().to_string();
    let now = jiff::Timestamp::now();
    let begun = Instant::now();
    let run = Run {
        id: id.clone(),
        dhc: env!("CARGO_PKG_VERSION").to_owned(),
        level: args.level.word().to_owned(),
        started_at: now.to_string(),
        duration_ms: 0,
        expires_at: (now + jiff::SignedDuration::try_from(args.valid_for)?).to_string(),
        environment: host
            .environment
            .iter()
            .map(|(name, value)| (name.clone(), redact::value(name, value)))
            .collect(),
        options: Some(options.clone()),
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
    options: Options,
}

impl Keeper {
    /// Begins the journal of a run that means to do these checks.
    fn begin(&self, planned: Vec<String>) -> Result<(store::RunFolder, Journal), Failure> {
        let folder = self.store.run(&self.run.id)?;
        let file = folder.create(store::JOURNAL)?;
        let (name, identity) = (&self.machine.name, &self.machine.identity);
        let journal = Journal::begin(file, &self.run, &self.chosen, name, identity, planned)?;
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
            None => drop(show(report, args.format)?),
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
        if let Some(age) = args.keep_results {
            self.forget(age);
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

    /// Deletes the results that are older than `age`. What cannot be deleted changes no verdict.
    fn forget(&self, age: Duration) {
        match prune::results(self.store.root(), age, SystemTime::now()) {
            Ok(pruned) => {
                if pruned.runs > 0 {
                    eprintln!("dhc: {} old results were deleted", pruned.runs);
                }
                for (folder, why) in pruned.left {
                    let said = format!("`{}` is old and was left: {why}", folder.display());
                    eprintln!("dhc: {}", render::printable(&said));
                }
            }
            Err(error) => eprintln!("dhc: {}", render::printable(&chain(&error))),
        }
    }
}

fn options(args: &RunArgs) -> Options {
    let mut options = Options::new();
    for setting in &args.settings {
        let of_check = options.entry(setting.check.clone()).or_default();
        of_check.insert(setting.option.clone(), setting.value.clone());
    }
    options
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
    let selection = selection(args);
    let mut plan = plan::instance_level(&checks, table, there, &selection)?;
    run::leave_out_what_is_not_installed(&mut plan, &host, &selection, &keeper.options);
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
    let so_long = args.cluster.time_limit.unwrap_or(match args.level {
        Level::All => ALLOCATION_ALL,
        Level::Instance | Level::Cluster => ALLOCATION,
    });
    let mut nodes = cluster::gather(
        &host,
        &args.cluster,
        environment,
        &keeper.machine.name,
        &keeper.run.id,
        so_long,
        &STOP,
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
    if args.cluster.reserve {
        let said = match to_keep(&report)? {
            Ok(failed) => nodes.keep_reserved(&failed, args.valid_for),
            Err(why) => {
                eprintln!("dhc: {why}");
                nodes.keep_reserved(&[], args.valid_for)
            }
        };
        if let Some(said) = said {
            eprintln!("dhc: {said}");
        }
    }
    nodes.release();
    exit
}

/// The nodes that a run keeps reserved: those that recovery would touch, or why none, which is why it would touch none.
fn to_keep(report: &Report) -> Result<Result<Vec<String>, String>, Failure> {
    let acts = |node: &&NodeReport| node.status == Status::Fail && node.action >= Action::Reset;
    let failed = report.nodes.iter().filter(acts);
    let failed: Vec<String> = failed.map(|node| node.name.clone()).collect();
    let (nodes, most) = (
        report.nodes.len(),
        Policy::load(Path::new("default"))?.most(report.nodes.len()),
    );
    Ok(if failed.len() <= most {
        Ok(failed)
    } else {
        Err(format!(
            "{} of {nodes} nodes failed, and at most {most} are kept reserved: so many at once means configuration, fabric or \
             the check itself; all are let go",
            failed.len()
        ))
    })
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
    if let Some(age) = args.keep_results {
        add("--keep-results", format!("{}ms", age.as_millis()).into());
    }
    if let Some(instance_type) = &args.instance_type {
        add("--instance-type", instance_type.into());
    }
    if let (Some(path), Some(text)) = (&args.thresholds, &keeper.chosen.text) {
        // The nodes need not reach the file.
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

pub(crate) fn measure(name: &str) -> Result<Exit, Failure> {
    supervise::end_with_the_run()?;
    let check = catalog::find(name).ok_or_else(|| format!("there is no check `{name}`"))?;
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    let task: Task = serde_json::from_slice(&text)?;
    check::run(check, &task, &mut std::io::stdout())?;
    Ok(Exit::Pass)
}
