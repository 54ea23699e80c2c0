//! `dhc`: arguments in, one call for each subcommand, text and exit status out.
//!
//! With its `commands` the only place that reads the environment, prints and exits.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "main is the one place that prints and reads the environment"
)]

mod commands;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use dhc_checks::check::chain;
use dhc_checks::host::redact;
use dhc_runners::cli::{Cli, Command, Document, Format, ThresholdsCommand};
use dhc_runners::export::{self, Target};
use dhc_runners::plan;
use dhc_runners::render;
use dhc_runners::store::{self, StoreError};
use dhc_runners::{Exit, explain, tables};
use dhc_thresholds::{Report, TableFile, diff};

use commands::{Failure, measured, print, print_document, print_json, stored};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            let exit = match commands::unless_gone_away(printed) {
                _ if error.use_stderr() => Exit::Usage,
                Ok(()) => Exit::Pass,
                Err(error) => {
                    eprintln!("dhc: {}", chain(&error));
                    Exit::Error
                }
            };
            return ExitCode::from(exit as u8);
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
        Command::Run(args) => commands::run::run(*args),
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
            let (stored, _) = measured(&result)?;
            if current {
                commands::judge::refuse_stale(&stored, &machine)?;
            }
            if thresholds.is_none() && !built_in {
                commands::judge::refuse_another_table(&stored)?;
            }
            commands::judge::judge(&stored, thresholds.as_deref(), format)
        }
        Command::Export { format, result, to } => {
            let report = stored(&result)?;
            match to {
                Some(file) => export::write(&report, &Target { format, file })?,
                None => {
                    let text = export::text(format, &report)?;
                    match format == export::Format::Ctrf {
                        true => print_json(&text)?,
                        false => print_document(&text)?,
                    };
                }
            }
            Ok(Exit::Pass)
        }
        Command::Status {
            npd,
            format,
            machine,
            unguarded,
        } => match unguarded {
            false => commands::status::guarded_status(npd),
            true => commands::status::last_results(npd, format, &machine),
        },
        Command::Compare {
            results,
            thresholds,
            built_in,
            format,
        } => commands::judge::compare(&results, thresholds.as_deref(), built_in, format),
        Command::Recover { command } => commands::recover::recover(command),
        Command::History {
            node,
            history,
            format,
        } => commands::recover::past(node.as_deref(), &history, format),
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
                Format::Json => print_json(&render::tables::changes_json(&changes)?)?,
                Format::Table => print(&render::tables::changes(&changes))?,
            };
            let same = changes.is_empty();
            Ok(if same { Exit::Pass } else { Exit::Warn })
        }
        Command::Thresholds {
            command: ThresholdsCommand::Learn(args),
        } => commands::learn::learned(*args),
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
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dhc", &mut text);
            print_document(&String::from_utf8(text)?)
        }
        Command::Man { to: None } => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            print_document(&String::from_utf8(text)?)
        }
        Command::Man { to: Some(folder) } => {
            clap_mangen::generate_to(Cli::command(), &folder).map_err(|error| {
                format!(
                    "cannot write pages into the folder `{}`: {error}",
                    folder.display()
                )
            })?;
            Ok(Exit::Pass)
        }
        Command::Measure { check } => commands::run::measure(&check),
        Command::Deposit { from, to } => {
            store::copy(&from, &to)?;
            Ok(Exit::Pass)
        }
    }
}
