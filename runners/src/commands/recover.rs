//! `dhc recover` and `dhc history`.

use std::io::Write;
use std::path::{Path, PathBuf};

use dhc_checks::catalog;
use dhc_runners::Exit;
use dhc_runners::cli::{Format, HistoryArgs, RecoverCommand, RecoveryArgs};
use dhc_runners::machine::Machine;
use dhc_runners::recover::{self, Attempts, History, Log, Mode, Plan, Policy};
use dhc_runners::render::recovery;

use super::{
    Failure, environment, host, machine_args, paper, print, print_document, state, stored,
};

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
    Ok(recover::plan(&results, policy, now, &recent, |step| {
        history.past(step)
    })?)
}

fn show_plan(plan: &Plan, format: Format) -> Result<Exit, Failure> {
    match format {
        Format::Json => print_document(&(serde_json::to_string_pretty(plan)? + "\n")),
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
