//! `nccom-local`: an all-reduce over the Neuron cores of this node, by AWS's `nccom-test`.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_thresholds::{Hardware, Kind, Metric, Role, Subject, Unit};

use super::nccom::{self, TOOL};
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::collective;
use crate::foresight::Cause;
use crate::host::Command;

const FAILED_SIZES: Metric = Metric {
    name: "nccom.allreduce.failed_sizes",
    unit: Unit::Count,
    about: "message sizes whose all-reduce gave wrong results",
    role: Role::Required,
    fault: "neuron.collective",
};
const PLATEAU: Metric = Metric {
    name: "nccom.allreduce.plateau",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth of large messages: the median of the three largest sizes; its condition is the largest one",
    role: Role::Judged,
    fault: "neuron.collective",
};
const BUSBW: Metric = Metric {
    name: "nccom.allreduce.busbw",
    unit: Unit::GigabytesPerSecond,
    about: "bus bandwidth of an all-reduce over the node's cores",
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
Runs AWS's nccom-test with one rank for each logical core of this node and reads its table. A message size whose result is
wrong is a fault of the node; one that the tool could not run accuses nothing. Bandwidths are computed from bytes and time,
since nccom-test's GB/s are 10^9 bytes in some versions and 2^30 in others; the plateau of the large sizes is judged if all
cores of the node took part. That the
tool is missing, cannot reach the driver or prints something else is an error and accuses nothing.",
    metrics: &[&FAILED_SIZES, &PLATEAU, &BUSBW, &ALGBW, &TIME, &RANKS],
    needs: Some(Hardware::NeuronDevice),
    tags: &["neuron", "long"],
    company: Company::Alone,
    options: &[
        OptionSpec {
            name: "ranks",
            default: "",
            values: Values::Number(2..=1024),
            about: "logical cores to use; all of the node if not set",
        },
        OptionSpec {
            name: "max-bytes",
            default: "1GB",
            values: Values::Text {
                form: "a size such as 64MB or 1GB",
                fits: |text| bytes(text).is_some(),
            },
            about: "largest message, as nccom-test's -e takes it",
        },
    ],
};

/// Each size of the sweep is so many times the one before.
const STEP: u64 = 8;

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

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::AcceleratorLost, Cause::AcceleratorLink]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let chosen = task.number_if_set(&SPEC, "ranks")?;
        let ranks = match chosen {
            Some(number) => u32::try_from(number).unwrap_or(u32::MAX),
            None => nccom::logical_cores(task)?,
        };
        let max_bytes = task.option(&SPEC, "max-bytes")?;
        let asked = bytes(max_bytes).expect("the option takes nothing else");
        record.measure(&RANKS, Subject::node(), ranks)?;
        let users = task.host.neuron_users();
        if !users.is_empty() {
            // A monitor may hold a device without being in the way, so this alone is no reason not to try.
            record.note(format!(
                "Neuron devices were in use before the test: {}",
                users.join(", ")
            ))?;
        }
        record.progress(format!("all-reduce over {ranks} cores"))?;
        let command = Command::new(TOOL, task.deadline)
            .args(["-r", &ranks.to_string(), "-b", "8", "-e", max_bytes])
            .args(["-f", &STEP.to_string(), "-n", "20", "-w", "5", "-d", "fp32"])
            .args(["--check", "--non-interactive", "allr"]);
        let table = nccom::table(task, command, ranks, record)?;
        let all = || Subject::new(Kind::NeuronDevice, "neuron cores");
        for row in &table.rows {
            record.add(TIME.of(all(), row.time_us).at_bytes(row.bytes))?;
            let algbw = ALGBW.of(all(), row.algbw_gb_per_s());
            record.add(algbw.at_bytes(row.bytes))?;
            let busbw = BUSBW.of(all(), row.all_reduce_busbw_gb_per_s(ranks));
            record.add(busbw.at_bytes(row.bytes))?;
        }
        let mut rows: Vec<_> = table.rows.iter().collect();
        rows.sort_by_key(|row| row.bytes);
        let by_size: Vec<f64> = rows
            .iter()
            .map(|row| row.all_reduce_busbw_gb_per_s(ranks))
            .collect();
        if let (Some(largest), Some(plateau)) = (rows.last(), collective::plateau(&by_size)) {
            // The bounds are those of all cores together.
            let left_out = match chosen.map(|_| nccom::logical_cores(task)) {
                None => None,
                Some(Ok(cores)) if cores == ranks => None,
                Some(Ok(cores)) => Some(format!("{ranks} of the node's {cores} cores took part")),
                Some(Err(error)) => Some(error.to_string()),
            };
            match left_out {
                None => record.add(PLATEAU.of(all(), plateau).at_bytes(largest.bytes))?,
                Some(why) => record.gap(&PLATEAU, all(), why)?,
            }
        }
        let wrong: Vec<_> = table.failed.iter().filter(|row| row.is_wrong).collect();
        let mut failed = FAILED_SIZES.of(Subject::node(), wrong.len());
        if let Some(first) = wrong.first() {
            failed = failed.detail(format!("{} bytes: {}", first.bytes, first.said));
        }
        let not_run = table.failed.iter().find(|row| !row.is_wrong);
        let Some(not_run) = not_run else {
            record.add(failed)?;
            return match rows.last() {
                Some(last) if last.bytes.saturating_mul(STEP) <= asked && wrong.is_empty() => {
                    Err(CheckError::NotUnderstood(format!(
                        "{TOOL} was asked for messages of up to {max_bytes}, and its table ends at {} bytes",
                        last.bytes
                    )))
                }
                _ => Ok(()),
            };
        };
        // What was found wrong stands; that nothing was found wrong does not, for not all was looked at.
        if !wrong.is_empty() {
            record.add(failed)?;
        }
        Err(nccom::could_not_run(not_run))
    }
}

/// A size as nccom-test takes it: a number, and B, KB, MB or GB, which are powers of 1,024 to it.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" => 1,
        "m" | "mb" => 2,
        "g" | "gb" => 3,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << (10 * power))?;
    (bytes > 0).then_some(bytes)
}
