//! What the last results on a node say, without running anything: for people, and for node-problem-detector.
//!
//! node-problem-detector starts a plugin for each condition, gives it five seconds, takes 80 bytes of what it prints, and
//! goes by its exit status: 0 no problem, 1 problem, 2 unknown (kubernetes/node-problem-detector,
//! `docs/custom_plugin_monitor.md`). A problem is what a check found out of bounds. What has expired, is from another boot,
//! or could not be looked at is unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use dhc_checks::catalog;
use dhc_thresholds::{CheckReport, Finding, Hardware, NodeReport, Report, Status};
use jiff::{SignedDuration, Timestamp, Unit};

use crate::{Exit, tables};

/// How long reading the results may take, of the five seconds that node-problem-detector gives.
pub const LIMIT: Duration = Duration::from_secs(4);

/// How many bytes node-problem-detector takes, the line's end included.
const LINE_MAX: usize = 80;

/// How many results are looked through, newest first; reading so many of a node of eight GPUs takes less than a second. With a
/// run every five minutes it is more than all of a day, after which results expire unless told otherwise.
const RESULTS_MAX: usize = 500;

/// A condition of a Kubernetes node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Condition {
    /// NVIDIA GPUs, their NVLinks and NVSwitches.
    DhcGpuUnhealthy,
    /// AWS Neuron devices.
    DhcNeuronUnhealthy,
    /// Network cards for collectives: EFA, InfiniBand, RoCE.
    DhcEfaUnhealthy,
    /// What lies between nodes, or between this node's cards and libraries.
    DhcFabricUnhealthy,
    /// The host itself: memory, CPUs, PCIe, clock, disks.
    DhcHostUnhealthy,
}

/// The node that is asked, and when.
#[derive(Clone, Debug)]
pub struct Here {
    /// Its host name.
    pub name: String,
    /// Its present boot.
    pub boot_id: Option<String>,
    /// The present time.
    pub now: Timestamp,
}

/// What a plugin answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    code: i32,
    text: String,
}

impl Answer {
    fn new(code: i32, text: impl Into<String>) -> Answer {
        let text = text.into();
        Answer { code, text }
    }

    /// That nothing is known, and why.
    pub fn unknown(why: impl Into<String>) -> Answer {
        Answer::new(2, why)
    }

    /// The one line that may be printed.
    pub fn line(&self) -> String {
        let text = self.text.replace(char::is_control, " ");
        let room = LINE_MAX - 1;
        if text.len() <= room {
            return text + "\n";
        }
        let mut end = room - "...".len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}...\n", &text[..end])
    }

    /// The exit status.
    pub fn exit(&self) -> Exit {
        Exit::of_code(self.code)
    }
}

/// How far the clocks of two machines, or of one before and after it was set, may be apart.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Why nobody should act on a report at this time, if so.
pub fn out_of_time(report: &Report, now: Timestamp) -> Option<String> {
    let run = &report.run;
    let times = (
        run.started_at.parse::<Timestamp>(),
        run.expires_at.parse::<Timestamp>(),
    );
    match times {
        (Ok(began), _) if began > now + SKEW => Some(format!(
            "the result began at {began:.0}, which is yet to come: a clock is or was wrong"
        )),
        (Ok(_), Ok(expires)) if expires >= now => None,
        (Ok(_), Ok(expires)) => Some(format!("the result expired at {expires:.0}")),
        _ => Some("the result does not say when it began and until when it holds".to_owned()),
    }
}

/// What is said when the results could not be read in time.
pub fn too_late() -> String {
    format!(
        "the results could not be read within {} s: does their disk hang?",
        LIMIT.as_secs()
    )
}

impl Here {
    /// The node in a report that is this one.
    fn node<'a>(&self, report: &'a Report) -> Option<&'a NodeReport> {
        match report.nodes.as_slice() {
            // A container may have another host name than its node.
            [node] if report.cluster.is_none() => Some(node),
            nodes => nodes.iter().find(|node| node.name == self.name),
        }
    }

    /// Why nobody should act on a report any more, if so.
    pub fn refuses(&self, report: &Report) -> Option<String> {
        if let Some(why) = out_of_time(report, self.now) {
            return Some(why);
        }
        let boot = |node: &NodeReport| node.identity.boot_id.clone();
        let other = self
            .node(report)
            .is_some_and(|node| boot(node) != self.boot_id);
        other.then(|| "the last result is from before this boot".to_owned())
    }

    /// How old a report is, and until when it holds.
    pub fn age(&self, report: &Report) -> String {
        let run = &report.run;
        let old = run.started_at.parse::<Timestamp>().ok();
        let old = old.and_then(|start| {
            let whole = SignedDuration::from_secs(self.now.duration_since(start).as_secs());
            let span = jiff::Span::try_from(whole).ok()?;
            span.round(jiff::SpanRound::new().largest(Unit::Hour)).ok()
        });
        let old = old.map_or_else(String::new, |old| format!(" began {old:#} ago and"));
        format!("this result{old} holds until {}", run.expires_at)
    }
}

impl Condition {
    /// What the results, newest first, say of this condition: of each check the last one that did not leave it out, since a
    /// short run takes nothing back of what a long one found, and one that expired early hides none that still holds. A result
    /// that cannot be read makes everything unknown.
    pub fn answer(
        self,
        results: impl Iterator<Item = Result<Report, String>>,
        here: &Here,
    ) -> Answer {
        let mut last: BTreeMap<String, CheckReport> = BTreeMap::new();
        let mut unknown = None;
        let mut absent = None;
        for report in results.take(RESULTS_MAX) {
            let report = match report {
                Ok(report) => report,
                Err(why) => return Answer::unknown(why),
            };
            if let Some(why) = here.refuses(&report) {
                unknown.get_or_insert(why);
                continue;
            }
            unknown.get_or_insert_with(|| {
                "no run that still holds looked at this; run dhc without leaving it out".to_owned()
            });
            absent = absent.or_else(|| self.absent(&report));
            let node = here.node(&report);
            for check in node.iter().flat_map(|node| &node.checks) {
                if check.status != Status::Skip {
                    last.entry(check.check.clone())
                        .or_insert_with(|| check.clone());
                }
            }
        }
        self.of_checks(&last)
            .or(absent)
            .or(unknown.map(Answer::unknown))
            .unwrap_or_else(|| Answer::unknown("dhc has left no result on this node yet"))
    }

    /// What the last report on each check says; nothing if none looked at what this is about.
    fn of_checks(self, last: &BTreeMap<String, CheckReport>) -> Option<Answer> {
        let findings = last
            .values()
            .flat_map(|check| check.findings.iter().map(move |finding| (check, finding)));
        let problems: Vec<&Finding> = findings
            .filter(|(_, finding)| finding.status == Status::Fail)
            .filter(|(check, finding)| Condition::of_finding(check, finding) == Some(self))
            .map(|(_, finding)| finding)
            .collect();
        if let Some(answer) = problem(&problems) {
            return Some(answer);
        }
        let looked: Vec<&CheckReport> = last
            .values()
            .filter(|check| Condition::of_check(&check.check) == Some(self))
            .collect();
        let blind = looked
            .iter()
            .find(|check| matches!(check.status, Status::Unknown | Status::Error));
        if let Some(blind) = blind {
            let why = crate::render::summary(blind);
            return Some(Answer::unknown(format!("{}: {why}", blind.check)));
        }
        let names: Vec<&str> = looked.iter().map(|check| check.check.as_str()).collect();
        let text = format!("no fault found by {}", names.join(", "));
        (!names.is_empty()).then(|| Answer::new(0, text))
    }

    /// That there is no such hardware on the node's type, if its table says so.
    fn absent(self, report: &Report) -> Option<Answer> {
        let kinds: &[Hardware] = match self {
            Condition::DhcGpuUnhealthy => &[Hardware::NvidiaGpu],
            Condition::DhcNeuronUnhealthy => &[Hardware::NeuronDevice],
            Condition::DhcEfaUnhealthy => &[Hardware::Efa, Hardware::RdmaNic],
            Condition::DhcFabricUnhealthy | Condition::DhcHostUnhealthy => return None,
        };
        let judged_by = &report.judged_by;
        if judged_by.origin != tables::BUILT_IN {
            return None;
        }
        let table = tables::built_in_table(&judged_by.instance_type).ok()?.table;
        let none = kinds.iter().all(|kind| table.due(*kind) == Some(0));
        let words: Vec<&str> = kinds.iter().map(|kind| kind.plural()).collect();
        let text = format!("{} has no {}", table.instance_type, words.join(", no "));
        none.then(|| Answer::new(0, text))
    }

    /// What a check looks at.
    fn of_check(check: &str) -> Option<Condition> {
        let spec = catalog::find(check)?.spec();
        if spec.tags.contains(&"cluster") {
            return Some(Condition::DhcFabricUnhealthy);
        }
        Some(match spec.needs {
            Some(Hardware::NvidiaGpu | Hardware::NvlinkPerGpu) => Condition::DhcGpuUnhealthy,
            Some(Hardware::NeuronDevice | Hardware::NeuronCore) => Condition::DhcNeuronUnhealthy,
            Some(Hardware::Efa | Hardware::RdmaNic) => Condition::DhcEfaUnhealthy,
            None if spec.tags.contains(&"network") => Condition::DhcFabricUnhealthy,
            Some(Hardware::Cpu) | None => Condition::DhcHostUnhealthy,
        })
    }

    /// What a finding accuses: its fault class tells, since a check of the host may find a GPU's fault in the kernel's log.
    fn of_finding(check: &CheckReport, finding: &Finding) -> Option<Condition> {
        let class = finding.fault.as_deref().unwrap_or_default();
        match class.split('.').next() {
            _ if class == "nvlink.fabric" => Some(Condition::DhcFabricUnhealthy),
            Some("gpu" | "nvlink" | "nvswitch" | "dcgm") => Some(Condition::DhcGpuUnhealthy),
            Some("neuron") => Some(Condition::DhcNeuronUnhealthy),
            Some("nic") => Some(Condition::DhcEfaUnhealthy),
            Some("fabric" | "cluster") => Some(Condition::DhcFabricUnhealthy),
            Some("host") => Some(Condition::DhcHostUnhealthy),
            _ => Condition::of_check(&check.check),
        }
    }
}

/// The gravest of the problems, and how many there are besides.
fn problem(problems: &[&Finding]) -> Option<Answer> {
    let gravest = problems.iter().rev().max_by_key(|finding| finding.action)?;
    let more = match problems.len() {
        1 => String::new(),
        all => format!(" (and {} more)", all - 1),
    };
    let class = gravest.fault.as_deref().unwrap_or("out of bounds");
    let (subject, action) = (&gravest.subject, gravest.action);
    Some(Answer::new(
        1,
        format!("{subject}: {class}, {action}{more}"),
    ))
}
