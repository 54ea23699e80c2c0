//! `nccom-local`: an all-reduce over the Neuron cores of this node, by AWS's `nccom-test`.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, chain,
};
use crate::format::nccom_test;
use crate::format::neuron_sysfs::physical_per_logical;
use crate::host::{Command, Ended, Output};

const FAILED_SIZES: Metric = Metric {
    name: "nccom.allreduce.failed_sizes",
    unit: Unit::Count,
    about: "message sizes whose all-reduce failed or gave wrong results",
    role: Role::Required,
    fault: "neuron.collective",
};
const BUSBW: Metric = Metric {
    name: "nccom.allreduce.busbw",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth of an all-reduce over the node's cores, at the largest size",
    role: Role::Context,
    fault: "neuron.collective",
};
const ALGBW: Metric = Metric {
    name: "nccom.allreduce.algbw",
    unit: Unit::GigabytesPerSecond,
    about: "algorithm bandwidth of an all-reduce over the node's cores",
    role: Role::Context,
    fault: "neuron.collective",
};
const TIME: Metric = Metric {
    name: "nccom.allreduce.time",
    unit: Unit::Microseconds,
    about: "time of one all-reduce over the node's cores",
    role: Role::Context,
    fault: "neuron.collective",
};
const RANKS: Metric = Metric {
    name: "nccom.ranks",
    unit: Unit::Count,
    about: "logical cores that took part",
    role: Role::Context,
    fault: "neuron.collective",
};

static SPEC: Spec = Spec {
    name: "nccom-local",
    about: "an all-reduce over this node's Neuron cores with nccom-test: does it work, is the result right, how fast",
    explain: "\
Runs AWS's nccom-test with one rank for each logical core of this node and reads its table. A message size that fails, or
whose result is wrong, is a fault of the node. Bandwidths are converted: what nccom-test calls GB/s are 2^30 bytes a
second. That the tool is missing, cannot reach the driver or prints something else is an error and accuses nothing.",
    metrics: &[&FAILED_SIZES, &BUSBW, &ALGBW, &TIME, &RANKS],
    needs: Some(Hardware::NeuronDevice),
    tags: &["neuron", "long"],
    company: Company::Alone,
    options: &[
        OptionSpec { name: "ranks", default: "", about: "logical cores to use; all of the node if not set" },
        OptionSpec { name: "max-bytes", default: "1GB", about: "largest message, as nccom-test's -e takes it" },
    ],
};

const TOOL: &str = "nccom-test";

/// Where newer versions write their rows once more, for programs.
const JSON_FLAG: &str = "--report-to-json-file";

/// The check.
pub(super) struct NccomLocal;

impl InstanceCheck for NccomLocal {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, _: &BTreeMap<String, String>) -> Budget {
        Budget {
            expected: Duration::from_secs(180),
            deadline: Duration::from_secs(900),
        }
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let ranks = ranks(task)?;
        let max_bytes = task.option(&SPEC, "max-bytes");
        if max_bytes.is_empty() || !max_bytes.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(CheckError::Option {
                check: SPEC.name,
                option: "max-bytes",
                value: max_bytes.to_owned(),
                why: "write a size such as 64MB or 1GB".to_owned(),
            });
        }
        record.measure(&RANKS, Subject::node(), ranks)?;
        record.progress(format!("all-reduce over {ranks} cores"))?;
        let all_ranks = ranks;
        let ranks = ranks.to_string();
        let command = Command::new(TOOL, task.deadline)
            .args([
                "-r", &ranks, "-b", "8", "-e", max_bytes, "-f", "8", "-n", "20", "-w", "5", "-d",
                "fp32",
            ])
            .args(["--check", "--non-interactive", "allr"]);
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
        match &output.ended {
            Ended::TimedOut | Ended::Dismissed | Ended::Unkillable { .. } => {
                return Err(CheckError::TimedOut(format!("{TOOL} {}", output.ended)));
            }
            Ended::Exited(_) | Ended::Signaled(_) => {}
        }
        let text = String::from_utf8_lossy(&output.stdout.kept()).into_owned();
        let table = match nccom_test::read(&text) {
            Ok(_) if output.stdout.is_truncated() => {
                return Err(CheckError::NotUnderstood(format!(
                    "{TOOL} printed more than can be kept"
                )));
            }
            Ok(table) => table,
            Err(error) => {
                return Err(CheckError::NotUnderstood(format!(
                    "{error} ({})",
                    output.ended
                )));
            }
        };
        // Rows that failed stand in the table alone.
        if let Some(file) = output.report.as_ref().filter(|_| table.failed.is_empty()) {
            nccom_test::compare(&file.kept(), &table)
                .map_err(|error| CheckError::NotUnderstood(error.to_string()))?;
        }
        self.record(&table, all_ranks, &output.ended, record)
    }
}

impl NccomLocal {
    fn record(
        &self,
        table: &nccom_test::Table,
        ranks: u32,
        ended: &Ended,
        record: &mut Recorder<'_>,
    ) -> Result<(), CheckError> {
        if table.rows.is_empty() && table.failed.is_empty() {
            return Err(CheckError::NotUnderstood(format!(
                "{TOOL} printed a table without rows ({ended})"
            )));
        }
        let all = || Subject::new(Kind::NeuronDevice, "neuron cores");
        for row in &table.rows {
            record.add(TIME.of(all(), row.time_us).at_bytes(row.bytes))?;
            let algbw = ALGBW.of(all(), row.algbw_gb_per_s());
            record.add(algbw.at_bytes(row.bytes))?;
            let busbw = BUSBW.of(all(), row.all_reduce_busbw_gb_per_s(ranks));
            record.add(busbw.at_bytes(row.bytes))?;
        }
        let mut failed = FAILED_SIZES.of(Subject::node(), table.failed.len());
        if let Some(first) = table.failed.first() {
            failed = failed.detail(format!("{} bytes: {}", first.bytes, first.said));
        }
        record.add(failed)?;
        if table.failed.is_empty() && *ended != Ended::Exited(0) {
            let why = format!("{TOOL} ended with {ended} though its table shows no failure");
            return Err(CheckError::NotUnderstood(why));
        }
        Ok(())
    }
}

/// Whether an older version stopped at the option that it does not know, as Python's argparse tells.
fn refuses_json(output: &Output) -> bool {
    let said = [output.stdout.kept(), output.stderr.kept()].concat();
    output.ended != Ended::Exited(0)
        && String::from_utf8_lossy(&said)
            .lines()
            .any(|line| line.contains("unrecognized arguments") && line.contains(JSON_FLAG))
}

/// The logical cores to use: the user's number, or all that the driver shows.
fn ranks(task: &Task) -> Result<u32, CheckError> {
    let wanted = task.option(&SPEC, "ranks");
    if !wanted.is_empty() {
        let number = task.number(&SPEC, "ranks", 1..=1024)?;
        return Ok(u32::try_from(number).unwrap_or(u32::MAX));
    }
    let devices = task
        .host
        .neuron_devices()
        .map_err(|error| CheckError::Unavailable(error.to_string()))?;
    let config = task
        .host
        .environment
        .get("NEURON_LOGICAL_NC_CONFIG")
        .map(String::as_str);
    let logical = |device: &crate::host::NeuronDevice| {
        let name = task
            .host
            .text(format!("{}/info/architecture/device_name", device.path))
            .unwrap_or_default();
        u32::try_from(device.cores.len()).unwrap_or(0) / physical_per_logical(&name, config)
    };
    match devices.iter().map(logical).sum() {
        0 => Err(CheckError::Unavailable(
            "the Neuron driver shows no core; load it (modprobe neuron)".to_owned(),
        )),
        ranks => Ok(ranks),
    }
}
