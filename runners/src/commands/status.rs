//! `dhc status`: what the last results on this node say.

use std::io::Read;

use dhc_checks::check::chain;
use dhc_runners::Exit;
use dhc_runners::cli::{Format, MachineArgs};
use dhc_runners::machine::Machine;
use dhc_runners::status::{self, Condition};
use dhc_runners::store::{self, Store};
use dhc_thresholds::Report;

use super::{Failure, ended_within, environment, host, print, show, state};

/// `dhc status` in another process, since the disk that results are on may hang for ever.
pub(crate) fn guarded_status(npd: Option<Condition>) -> Result<Exit, Failure> {
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
pub(crate) fn last_results(
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
    show(&report, format)?;
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
