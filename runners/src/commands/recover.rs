//! `dhc recover` and `dhc history`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use dhc_checks::catalog;
use dhc_checks::check::chain;
use dhc_runners::Exit;
use dhc_runners::cli::{Format, HistoryArgs, RecoverCommand, RecoveryArgs};
use dhc_runners::machine::Machine;
use dhc_runners::recover::{self, Again, Attempts, By, History, Log, Mode, Plan, Policy, Standing};
use dhc_runners::render::recovery;
use dhc_runners::tables;
use dhc_thresholds::Report;

use super::{Failure, environment, host, machine_args, paper, print, print_json, state, stored};

pub(crate) fn recover(command: RecoverCommand) -> Result<Exit, Failure> {
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
                Format::Json => print_json(&(serde_json::to_string_pretty(&applied)? + "\n"))?,
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
            thresholds,
        } => verify(&recovery, &policy, node.as_deref(), thresholds.as_deref()),
    }
}

/// Runs the checks again that the node was taken out for, and gives it back if they pass.
fn verify(
    recovery: &RecoveryArgs,
    policy: &Path,
    node: Option<&str>,
    thresholds: Option<&Path>,
) -> Result<Exit, Failure> {
    let policy = own_policy(policy)?;
    let args = &recovery.history.machine;
    let environment = environment();
    let host = host(args, &environment);
    let here = Machine::look(&host, &environment);
    let node = node.unwrap_or(&here.name);
    let scheduler = recover::scheduler(&policy, &host, &environment);
    let history = history_file(&recovery.history)?;
    let results = results(recovery)?;
    let verification = {
        let history = History::read(&history)?;
        let plan = plan_of(&results, &policy, &history)?;
        let marked = match policy.mode {
            Mode::Observe => None,
            Mode::Enforce => match scheduler.look(node)? {
                Standing::Marked {
                    by: By::Dhc { run },
                    ..
                } => Some(run),
                _ => None,
            },
        };
        let step = plan.steps.into_iter().find(|step| step.node == node);
        let marks = history.not_returned(node)?;
        recover::verification(node, &results, step, &marks, marked.as_deref(), &policy)?
    };
    let step = &verification.step;
    let of_results = &step.identity.instance_id;
    let is_this_machine = of_results.is_some() && *of_results == here.identity.instance_id;
    if node != here.name && !is_this_machine && !scheduler.is_here(node, &here)? {
        return Err(format!(
            "this machine is {}, and neither its instance id nor {} says that it is {node}; run verify on {node}",
            here.name,
            scheduler.name()
        )
        .into());
    }
    let checks = verification.again.iter().flat_map(|again| &again.checks);
    let together: BTreeSet<&str> = checks
        .copied()
        .filter(|check| catalog::find(check).is_none_or(|check| check.instance().is_none()))
        .collect();
    if !together.is_empty() {
        return Err(format!(
            "{node} was found with {}, which needs other nodes; run `dhc run --level cluster` with it and good ones, and \
             give it back by hand if it passes",
            list(&together, ", ")
        )
        .into());
    }
    let again = verification.again.iter();
    let orders: Result<Vec<_>, Failure> = again
        .map(|again| Ok((again, as_before(again, &here, thresholds)?)))
        .collect();
    for (again, rules) in orders? {
        let program = std::env::current_exe()?;
        let status = std::process::Command::new(program)
            .args(["run", "--check", &list(&again.checks, ",")])
            .args(rules)
            .args(machine_args(args))
            .status()?;
        let exit = match status.code() {
            Some(0 | 1) => continue,
            Some(2) => Exit::Fail,
            Some(3) => Exit::Unknown,
            _ => Exit::Error,
        };
        eprintln!(
            "dhc: {node} is not given back: {} did not pass again",
            list(&again.checks, ", ")
        );
        return Ok(exit);
    }
    if policy.mode == Mode::Observe {
        eprintln!(
            "dhc: {node} passes; it is not given back, since the policy says mode = \"observe\""
        );
        return Ok(Exit::Pass);
    }
    let mut history = History::write(&history)?;
    let mut to = log_file(recovery.log.as_deref())?;
    let now = jiff::Timestamp::now;
    let mut log = Log::new(&mut to, &now, &policy.version, scheduler.name());
    match recover::give_back(step, &policy, scheduler.as_ref(), &mut history, &mut log)? {
        Ok(what) => {
            eprintln!("dhc: {node}: {what}");
            Ok(Exit::Pass)
        }
        Err(why) => Err(format!("{node} passes and could not be given back: {why}").into()),
    }
}

/// The arguments that have checks judged by the rules of a run, and measured with its options.
fn as_before(
    again: &Again<'_>,
    here: &Machine,
    thresholds: Option<&Path>,
) -> Result<Vec<OsString>, Failure> {
    let mut args: Vec<OsString> = Vec::new();
    let recorded = &again.result.run.options;
    for check in &again.checks {
        let options = recorded.as_ref().and_then(|all| all.get(*check));
        for (option, value) in options.into_iter().flatten() {
            args.extend(["--set".into(), format!("{check}.{option}={value}").into()]);
        }
    }
    let (run, rules) = (&again.result.run.id, again.judged_by);
    if recorded.is_none() {
        eprintln!(
            "dhc: the result of run {run} is of dhc {}, which did not record with which options it measured; {} will run \
             with the defaults, so give the node back by hand if the run had others",
            again.result.run.dhc,
            list(&again.checks, ", ")
        );
    }
    let is_it = |chosen: &tables::Chosen| chosen.judged_by.sha256 == rules.sha256;
    if rules.origin == tables::BUILT_IN {
        let detected = here.identity.instance_type.as_deref();
        if !is_it(&tables::choose(None, None, detected)?) {
            let named = tables::built_in_table(&rules.instance_type);
            named.ok().filter(is_it).ok_or_else(|| {
                format!(
                    "run {run} was judged by the built-in table of {} of dhc {}, and that of this dhc is another; verify \
                     with that dhc, or give the node back by hand",
                    rules.instance_type, rules.dhc
                )
            })?;
            args.extend(["--instance-type".into(), (&rules.instance_type).into()]);
        }
        return Ok(args);
    }
    let file = thresholds.unwrap_or(Path::new(&rules.origin));
    match tables::file(file) {
        Ok(chosen) if is_it(&chosen) => {
            args.extend(["--thresholds".into(), file.into()]);
            Ok(args)
        }
        found => {
            let why = match found {
                Ok(_) => format!("`{}` has changed since", file.display()),
                Err(error) => chain(&error),
            };
            Err(format!(
                "run {run} was judged by the threshold file `{}` (SHA-256 {}), and {why}; name the same file with \
                 --thresholds, or give the node back by hand",
                rules.origin, rules.sha256
            )
            .into())
        }
    }
}

fn list(checks: &BTreeSet<&str>, between: &str) -> String {
    let checks: Vec<&str> = checks.iter().copied().collect();
    checks.join(between)
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
    plan_of(&results(recovery)?, policy, history)
}

fn results(recovery: &RecoveryArgs) -> Result<Vec<Report>, Failure> {
    recovery.results.iter().map(|path| stored(path)).collect()
}

fn plan_of(results: &[Report], policy: &Policy, history: &History) -> Result<Plan, Failure> {
    let now = jiff::Timestamp::now();
    let recent = history.marked_since(now - policy.window())?;
    Ok(recover::plan(results, policy, now, &recent, |step| {
        history.past(step)
    })?)
}

fn show_plan(plan: &Plan, format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => print_json(&(serde_json::to_string_pretty(plan)? + "\n")),
        Format::Table => print(&recovery::plan(plan, paper())),
    }
}

pub(crate) fn past(
    node: Option<&str>,
    history: &HistoryArgs,
    format: Format,
) -> Result<Exit, Failure> {
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
            Format::Json => print_json(&recovery::offenders_json(&offenders)),
            Format::Table => print(&recovery::offenders(&offenders, paper())),
        };
    };
    let events = history.of_node(node)?;
    match format {
        Format::Json => print_json(&(serde_json::to_string_pretty(&events)? + "\n")),
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
