//! The result document: what was measured on which node, what it means, and what to do about it.
//!
//! One JSON document for a node and a run. The records stand inside, so that a result can always be judged again.
//! `schema` is `name/major`: new fields keep it, a changed meaning or a removed field raises it. Readers ignore fields
//! that they do not know and refuse another major.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterReport;
use crate::fault::{Action, Fault, Faults};
use crate::fleet::FleetReport;
use crate::judge::{Finding, Status, Verdict, judge};
use crate::measurement::{Device, Ending, Metric, Record, Subject};
use crate::table::Table;

/// What `schema` says in a result that this version reads and writes.
pub const REPORT_SCHEMA: &str = "dhc.report/1";

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "dhc result")]
pub struct Report {
    /// Always `dhc.report/1`.
    pub schema: String,
    /// The run.
    pub run: Run,
    /// By what it was judged.
    pub judged_by: JudgedBy,
    /// The greatest status of the nodes.
    pub status: Status,
    /// Whether everything that was planned has run to its end.
    pub complete: bool,
    /// The nodes.
    pub nodes: Vec<NodeReport>,
    /// The nodes together, if the run looked at them so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterReport>,
    /// What the results of several runs say together, if this result puts them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetReport>,
}

/// One run of dhc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Unique, and in order of time (a ULID).
    pub id: String,
    /// The version of dhc that measured.
    pub dhc: String,
    /// `instance`, `cluster` or `all`.
    pub level: String,
    /// When it began, RFC 3339 in UTC. For people; durations are measured with a clock that nobody sets.
    pub started_at: String,
    /// How long it took, in milliseconds, monotonic.
    pub duration_ms: u64,
    /// Until when recovery tooling may act on it, RFC 3339 in UTC.
    pub expires_at: String,
    /// Variables of the environment that were passed to tools because they change what is measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The options that the user set: check, option, value. A result without them is of a dhc that did not record any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, BTreeMap<String, String>>>,
}

/// By what a run was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JudgedBy {
    /// The version of dhc that judged.
    pub dhc: String,
    /// The instance type of the table.
    pub instance_type: String,
    /// `built-in`, or the file that the table was read from.
    pub origin: String,
    /// SHA-256 of the table's text.
    pub sha256: String,
    /// The edition of the fault classes and their actions.
    pub faults: String,
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeReport {
    /// Its host name.
    pub name: String,
    /// What else it is called.
    pub identity: Identity,
    /// The greatest status of the checks.
    pub status: Status,
    /// The strongest action that a broken bound asks for; advice, never an order.
    pub action: Action,
    /// The findings that decided the action, gravest first: what recovery tooling reads.
    pub faults: Vec<FaultReport>,
    /// By what the node's own checks were judged, where it is not what the run was judged by: nodes of several instance
    /// types in one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged_by: Option<JudgedBy>,
    /// Every device that was seen, with its identity.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// The checks, those that were left out as well.
    pub checks: Vec<CheckReport>,
}

/// Who a node is. Results are keyed by instance and boot id: names are given again to other machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    /// The cloud's id of the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The instance type, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// How the instance type was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type_from: Option<String>,
    /// The instance type that firmware names, where the user or the table means another: what is due of the one is held against
    /// the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradicting_type: Option<String>,
    /// The cloud's region that the node is in, if the environment or the cloud tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The kernel's id of this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// The machine's serial number or UUID, if firmware tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_serial: Option<String>,
    /// The kernel's release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// One check of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckReport {
    /// The check.
    pub check: String,
    /// What is known.
    pub status: Status,
    /// The strongest action that a broken bound of this check asks for.
    pub action: Action,
    /// What was measured.
    pub record: Record,
    /// What it means.
    pub findings: Vec<Finding>,
}

/// A fault for recovery tooling: a finding together with the whole identity of the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FaultReport {
    /// The fault class.
    pub class: String,
    /// What to do about it.
    pub action: Action,
    /// The line of the action table that says so.
    pub rule: u8,
    /// What a person should do; of a warning never more than to look.
    pub advice: String,
    /// The check that found it.
    pub check: String,
    /// The finding.
    pub finding: Finding,
    /// The device's identity, if the check saw it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub device: BTreeMap<String, String>,
    /// SHA-256 of the evidence that the check kept, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, String>,
}

impl CheckReport {
    /// The record and its verdict.
    pub fn new(record: Record, metrics: &[&Metric], table: &Table) -> Self {
        let Verdict {
            status,
            action,
            findings,
        } = judge(&record, metrics, table);
        CheckReport {
            check: record.check.clone(),
            status,
            action,
            record,
            findings,
        }
    }

    /// The check with these findings instead of its own; one that was left out stays so.
    pub(crate) fn with_findings(&self, findings: Vec<Finding>) -> Self {
        if self.skipped().is_some() {
            return self.clone();
        }
        let Verdict {
            status,
            action,
            findings,
        } = Verdict::of(findings);
        CheckReport {
            status,
            action,
            findings,
            ..self.clone()
        }
    }

    /// Why it was not run, if it was left out.
    pub fn skipped(&self) -> Option<&str> {
        match &self.record.ending {
            Ending::Skipped { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

impl NodeReport {
    /// The node with these checks; its status, action, faults and devices follow from them.
    pub fn new(name: String, identity: Identity, checks: Vec<CheckReport>) -> Self {
        let status = checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(Status::Skip);
        // A run in which nothing was looked at knows nothing; the absence of checks is not health.
        let status = if status == Status::Skip {
            Status::Unknown
        } else {
            status
        };
        let devices = devices(&checks);
        let mut faults: Vec<FaultReport> = checks
            .iter()
            .flat_map(|check| check_faults(check, &devices))
            .collect();
        faults.sort_by_key(|fault| std::cmp::Reverse((fault.finding.status, fault.action)));
        let action = checks
            .iter()
            .map(|check| check.action)
            .max()
            .unwrap_or_default();
        NodeReport {
            name,
            identity,
            status,
            action,
            faults,
            judged_by: None,
            devices,
            checks,
        }
    }

    /// The node judged again under `table`; `metrics` finds those that a check declares.
    pub fn judged_again(
        &self,
        metrics: &dyn Fn(&str) -> Vec<&'static Metric>,
        table: &Table,
    ) -> Self {
        let checks = self
            .checks
            .iter()
            .map(|check| CheckReport::new(check.record.clone(), &metrics(&check.check), table));
        NodeReport::new(self.name.clone(), self.identity.clone(), checks.collect())
    }

    /// Whether every check that was begun has come to an end of its own.
    pub fn is_complete(&self) -> bool {
        self.checks
            .iter()
            .all(|check| check.record.ending != Ending::Interrupted)
    }
}

impl Report {
    /// The report on these nodes; status and completeness follow from them.
    pub fn new(run: Run, judged_by: JudgedBy, nodes: Vec<NodeReport>) -> Self {
        let status = nodes
            .iter()
            .map(|node| node.status)
            .max()
            .unwrap_or(Status::Unknown);
        let complete = nodes.iter().all(NodeReport::is_complete);
        Report {
            schema: REPORT_SCHEMA.to_owned(),
            run,
            judged_by,
            status,
            complete,
            nodes,
            cluster: None,
            fleet: None,
        }
    }

    /// With what is known of the runs together. What many nodes have in common is held against none of them, but the whole is
    /// not well.
    pub fn with_fleet(mut self, fleet: FleetReport) -> Self {
        if !fleet.widespread.is_empty() {
            self.status = self.status.max(Status::Warn);
        }
        self.fleet = Some(fleet);
        self
    }

    /// With what is known of the nodes together, which counts for the whole as a node does.
    pub fn with_cluster(mut self, cluster: ClusterReport) -> Self {
        for check in &cluster.checks {
            self.status = self.status.max(check.status);
            self.complete &= check.record.ending != Ending::Interrupted;
        }
        self.complete &= cluster.searches.iter().all(|search| !search.cut_short);
        self.cluster = Some(cluster);
        self
    }

    /// The report judged again under `table`; `metrics` finds those that a check declares.
    pub fn judged_again(
        &self,
        judged_by: JudgedBy,
        metrics: &dyn Fn(&str) -> Vec<&'static Metric>,
        table: &Table,
    ) -> Self {
        let nodes = self
            .nodes
            .iter()
            .map(|node| node.judged_again(metrics, table));
        let report = Report::new(self.run.clone(), judged_by, nodes.collect());
        match &self.cluster {
            Some(cluster) => report.with_cluster(cluster.judged_again(metrics, table)),
            None => report,
        }
    }

    /// Reads a stored report.
    ///
    /// # Errors
    /// When it is not a report, or one of another major version.
    pub fn parse(text: &[u8]) -> Result<Report, ReportError> {
        #[derive(Deserialize)]
        struct Envelope {
            schema: String,
        }
        let envelope: Envelope = serde_json::from_slice(text).map_err(ReportError::NotAReport)?;
        if envelope.schema != REPORT_SCHEMA {
            return Err(ReportError::OtherSchema {
                found: envelope.schema,
            });
        }
        serde_json::from_slice(text).map_err(|error| {
            if error.classify() == serde_json::error::Category::Data {
                ReportError::NotUnderstood(error)
            } else {
                ReportError::NotAReport(error)
            }
        })
    }
}

/// Why a stored report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is not JSON, or not of this shape.
    #[error("this is not a dhc result; it may have been cut short, look for the journal beside it")]
    NotAReport(#[source] serde_json::Error),
    /// It is whole, and has words that this version does not know.
    #[error(
        "this dhc result holds what this dhc does not understand; use the dhc that wrote it, or a newer one"
    )]
    NotUnderstood(#[source] serde_json::Error),
    /// It is of another major version.
    #[error("expected schema `{REPORT_SCHEMA}`, found `{found}`; use the dhc that wrote it")]
    OtherSchema {
        /// What its `schema` says.
        found: String,
    },
}

/// Every device that a check saw, once; several checks may know different things of the same device, and under different
/// names: the kernel's log calls a GPU by its address on the bus, and recovery tooling looks for the UUID. Two devices that
/// checks call by one name, since each numbers them in its own way, stay two.
fn devices(checks: &[CheckReport]) -> Vec<Device> {
    let mut all: Vec<Device> = Vec::new();
    for device in checks.iter().flat_map(|check| &check.record.devices) {
        let known = all
            .iter_mut()
            .find(|known| known.subject == device.subject && is_same(known, device));
        match known {
            Some(known) => learn(known, device),
            None => all.push(device.clone()),
        }
    }
    all.sort_by(|one, other| one.subject.cmp(&other.subject));
    let seen = all.clone();
    for device in &mut all {
        let Some(bdf) = device.identity.get("bdf").cloned() else {
            continue;
        };
        let here = seen
            .iter()
            .filter(|known| known.identity.get("bdf") == Some(&bdf));
        for known in here {
            if is_same(device, known) {
                learn(device, known);
            }
        }
    }
    all
}

/// What no two devices of a node have in common, unless they are parts of one that is replaced as a whole.
const NAMES_ONE: [&str; 3] = ["serial", "uuid", "bdf"];

/// Whether nothing that is told of both says that they are two.
fn is_same(one: &Device, other: &Device) -> bool {
    NAMES_ONE.iter().all(
        |key| match (one.identity.get(*key), other.identity.get(*key)) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        },
    )
}

/// Adds what is known of a device elsewhere.
fn learn(device: &mut Device, known: &Device) {
    for (key, value) in &known.identity {
        let entry = device.identity.entry(key.clone());
        entry.or_insert_with(|| value.clone());
    }
}

/// The device that a check's finding is about. Where devices share its name, it is the one that the check itself saw.
fn device_of<'a>(
    subject: &Subject,
    check: &CheckReport,
    devices: &'a [Device],
) -> Option<&'a Device> {
    let has_name = |device: &&Device| device.subject.name == subject.device();
    let own = check.record.devices.iter().find(has_name);
    devices
        .iter()
        .filter(|device| has_name(device))
        .find(|device| own.is_none_or(|own| is_same(own, device)))
}

fn check_faults(check: &CheckReport, devices: &[Device]) -> Vec<FaultReport> {
    let faults = Faults::built_in();
    let evidence: BTreeMap<String, String> = check
        .record
        .evidence
        .iter()
        .map(|proof| (proof.name.clone(), proof.sha256.clone()))
        .collect();
    let mut reports = Vec::new();
    for finding in &check.findings {
        let Some(class) = &finding.fault else {
            continue;
        };
        let fault = faults.get(class);
        let device = device_of(&finding.subject, check, devices);
        reports.push(FaultReport {
            class: class.clone(),
            action: finding.action,
            rule: fault.map_or(2, |fault| fault.rule),
            advice: fault.map_or_else(String::new, |fault| {
                advice(fault, finding, &check.check) + &which_one(finding, device, devices)
            }),
            check: check.check.clone(),
            finding: finding.clone(),
            device: device
                .map(|device| device.identity.clone())
                .unwrap_or_default(),
            evidence: evidence.clone(),
        });
    }
    reports
}

/// By what a person tells the device of a finding from others that are called the same.
fn which_one(finding: &Finding, device: Option<&Device>, devices: &[Device]) -> String {
    let name = finding.subject.device();
    let namesakes = devices.iter().filter(|one| one.subject.name == name);
    let key = NAMES_ONE.iter().find_map(|key| {
        let told = device?.identity.get(*key)?;
        Some(format!("{key} {told}"))
    });
    match key {
        Some(key) if namesakes.count() > 1 => {
            format!("; checks call different devices {name}, this is the one with {key}")
        }
        _ => String::new(),
    }
}

/// What a person should do about a finding. What a class asks for beyond a look is for those that failed.
fn advice(fault: &Fault, finding: &Finding, check: &str) -> String {
    if finding.status == Status::Fail || fault.action <= Action::Investigate {
        return fault.advice.clone();
    }
    format!(
        "nothing to do to the node yet; run {check} again and watch whether {} of {} gets worse",
        finding.metric, finding.subject
    )
}
