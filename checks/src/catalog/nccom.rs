//! What the checks that run AWS's `nccom-test` share: running it, and taking nothing for a table that is not one.

use crate::check::{CheckError, Recorder, Task, chain};
use crate::format::nccom_test::{self, Table};
use crate::format::neuron_sysfs::physical_per_logical;
use crate::host::{Command, Ended, NeuronDevice, Output, ReadError};

/// The tool.
pub(super) const TOOL: &str = "nccom-test";

/// Where newer versions write their rows once more, for programs.
const JSON_FLAG: &str = "--report-to-json-file";

/// The fewest ranks between which anything is sent; the bus bandwidth of one alone is 0 by definition.
const RANKS_MIN: u32 = 2;

/// Runs `nccom-test` over so many ranks and reads its table, which has at least one row; what was printed is kept as
/// evidence.
///
/// # Errors
/// When it cannot be run, is too late, or leaves anything but a whole table of that many ranks.
pub(super) fn table(
    task: &Task,
    command: Command,
    ranks: u32,
    record: &mut Recorder<'_>,
) -> Result<Table, CheckError> {
    if ranks < RANKS_MIN {
        let why = format!("an all-reduce takes {RANKS_MIN} Neuron cores, and there is {ranks}");
        return Err(CheckError::Unavailable(why));
    }
    let run = |command: &Command| {
        let output = task.host.exec(command);
        output.map_err(|error| CheckError::Unavailable(chain(&error)))
    };
    let mut output = run(&command.clone().report_to(JSON_FLAG))?;
    if refuses_json(&output) {
        record.note(format!(
            "this {TOOL} does not know {JSON_FLAG}; its table alone is read"
        ))?;
        let begun = output.duration;
        output = run(&command.within(task.deadline.saturating_sub(begun)))?;
    }
    task.confine(record)?;
    for evidence in output.evidence(TOOL) {
        record.evidence(evidence)?;
    }
    let ended = &output.ended;
    match ended {
        Ended::TimedOut | Ended::Dismissed | Ended::Unkillable { .. } => {
            return Err(CheckError::TimedOut(format!("{TOOL} {ended}")));
        }
        Ended::Exited(_) | Ended::Signaled(_) => {}
    }
    let not_understood = |why: String| CheckError::NotUnderstood(format!("{why} ({ended})"));
    let text = String::from_utf8_lossy(&output.stdout.kept()).into_owned();
    let table = nccom_test::read(&text).map_err(|error| not_understood(error.to_string()))?;
    if output.stdout.is_truncated() {
        return Err(not_understood(format!(
            "{TOOL} printed more than can be kept"
        )));
    }
    if table.rows.is_empty() && table.failed.is_empty() {
        return Err(not_understood(format!(
            "{TOOL} printed a table without rows"
        )));
    }
    if let Some(row) = table.rows.iter().find(|row| !row.is_of_ranks(ranks)) {
        return Err(not_understood(format!(
            "{TOOL} was asked for {ranks} ranks, and the busbw that it printed for {} bytes is that of another number",
            row.bytes
        )));
    }
    if table.failed.is_empty() {
        // Rows that failed stand in the table alone.
        if let Some(file) = &output.report {
            nccom_test::compare(&file.kept(), &table)
                .map_err(|error| not_understood(error.to_string()))?;
        }
        if *ended != Ended::Exited(0) {
            return Err(not_understood(format!(
                "{TOOL} did not end well though its table shows no failure"
            )));
        }
    }
    Ok(table)
}

/// Whether an older version stopped at the option that it does not know, as Python's argparse tells.
fn refuses_json(output: &Output) -> bool {
    let said = [output.stdout.kept(), output.stderr.kept()].concat();
    output.ended != Ended::Exited(0)
        && String::from_utf8_lossy(&said)
            .lines()
            .any(|line| line.contains("unrecognized arguments") && line.contains(JSON_FLAG))
}

/// Why a size was not measured, which says nothing of the hardware.
pub(super) fn could_not_run(row: &nccom_test::FailedRow) -> CheckError {
    CheckError::Unavailable(format!(
        "{TOOL} could not measure messages of {} bytes: {}; look into the log file that it names, and whether another \
         program uses the Neuron devices (neuron-ls; the result's notes name those that dhc saw)",
        row.bytes, row.said
    ))
}

/// The logical cores of this machine, as the driver shows them.
///
/// # Errors
/// When it shows none, or cannot be asked.
pub(super) fn logical_cores(task: &Task) -> Result<u32, CheckError> {
    let host = &task.host;
    let unavailable = |error: ReadError| CheckError::Unavailable(error.to_string());
    let devices = host.neuron_devices().map_err(unavailable)?;
    let config = host
        .environment
        .get("NEURON_LOGICAL_NC_CONFIG")
        .map(String::as_str);
    let logical = |device: NeuronDevice| {
        let cores = device.cores.map_err(unavailable)?;
        let name = host
            .text(format!("{}/info/architecture/device_name", device.path))
            .unwrap_or_default();
        Ok(u32::try_from(cores.len()).unwrap_or(0) / physical_per_logical(&name, config))
    };
    let cores: Result<u32, CheckError> = devices.into_iter().map(logical).sum();
    match cores? {
        0 => Err(CheckError::Unavailable(
            "the Neuron driver shows no core; load it (modprobe neuron)".to_owned(),
        )),
        cores => Ok(cores),
    }
}
