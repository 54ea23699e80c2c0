//! The instance level of every node, before nodes are put together: started through the launcher, carried back as journals,
//! judged here by the table of each node's own instance type.
//!
//! Who then may enter a collective is decided by what an operator expects of it: a node with a fault would only show the
//! same fault again and hold up the others, and so may one that hangs. What dhc has no limit for, or could not look at for
//! want of a tool, says nothing against a node.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhc_checks::catalog::instance_level;
use dhc_checks::check::chain;
use dhc_checks::group::{Audience, Group};
use dhc_thresholds::{CheckReport, Ending, Identity, JudgedBy, Record, Run, Status};

use super::{Level, chunks, side_by_side};
use crate::journal;
use crate::run::NodeNow;
use crate::tables::{self, Chosen};

/// How often the instance level is started on a node that never said a word.
const ATTEMPTS: usize = 2;

/// How much longer than the runs on the nodes their launch may take: to start, and to carry the documents.
const LAUNCH: Duration = Duration::from_secs(60);

/// What the end of a run leaves to nodes to stop their checks and tell what they measured.
const TO_TELL: Duration = Duration::from_secs(15);

/// How large a result may become by the measurements of its nodes: dhc reads none that is larger than 256 MiB.
const RESULT_BYTES: usize = 160 << 20;

/// What to start on the nodes.
#[derive(Clone, Debug)]
pub struct InstanceOrders {
    /// The program dhc on the nodes.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// When a run on a node ends itself.
    pub deadline: Duration,
    /// By what all nodes are judged; each by the table of its own instance type if left out.
    pub chosen: Option<Chosen>,
}

/// The instance level of one node.
#[derive(Clone, Debug)]
pub struct NodeLevel {
    /// What the node says that it is.
    pub(super) identity: Identity,
    /// Its checks, or in their place why there are none.
    pub(super) checks: Vec<CheckReport>,
    /// By what it was judged, if it could be.
    pub(super) chosen: Option<Arc<Chosen>>,
}

/// By what nodes are judged: each by the table of its own instance type, which is read once, unless all are by the same.
struct OfTypes {
    of_all: Option<Arc<Chosen>>,
    of_type: Mutex<BTreeMap<Option<String>, Arc<Chosen>>>,
}

impl OfTypes {
    fn new(of_all: Option<&Chosen>) -> OfTypes {
        OfTypes {
            of_all: of_all.cloned().map(Arc::new),
            of_type: Mutex::new(BTreeMap::new()),
        }
    }

    fn choose(&self, own_type: Option<&str>) -> Result<Arc<Chosen>, String> {
        if let Some(chosen) = &self.of_all {
            return Ok(Arc::clone(chosen));
        }
        let mut of_type = self.of_type.lock().expect("no holder of this lock panics");
        let key = own_type.map(str::to_owned);
        if let Some(chosen) = of_type.get(&key) {
            return Ok(Arc::clone(chosen));
        }
        let chosen = tables::choose(None, None, own_type).map_err(|error| chain(&error))?;
        let chosen = Arc::new(chosen);
        of_type.insert(key, Arc::clone(&chosen));
        Ok(chosen)
    }
}

/// Counts what is written, and keeps nothing of it.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long these checks are in a result.
fn length(checks: &[CheckReport]) -> usize {
    let mut length = Length(0);
    match serde_json::to_writer_pretty(&mut length, checks) {
        Ok(()) => length.0,
        Err(_) => usize::MAX,
    }
}

impl NodeLevel {
    /// Reads what a node told and judges it.
    fn of(document: &[u8], tables: &OfTypes, room: usize) -> Result<NodeLevel, String> {
        let (header, records) = journal::read(document).map_err(|_| {
            "what it told is no journal; is the same dhc installed there as here?".to_owned()
        })?;
        let chosen = tables.choose(header.identity.instance_type.as_deref())?;
        let mut checks: Vec<CheckReport> = records
            .into_iter()
            .map(|record| {
                let metrics = tables::metrics_of(&record.check);
                CheckReport::new(record, &metrics, &chosen.table)
            })
            .collect();
        if length(&checks) > room {
            leave_at_the_node(&mut checks, &header.run);
        }
        Ok(NodeLevel {
            identity: header.identity,
            checks,
            chosen: Some(chosen),
        })
    }

    /// A node without an instance level.
    fn none(ending: Ending) -> NodeLevel {
        let record = Record::new(instance_level::SPEC.name, ending);
        let table = tables::built_in_table(dhc_thresholds::GENERIC);
        let table = table.expect("the generic table is built in").table;
        NodeLevel {
            identity: Identity::default(),
            checks: vec![CheckReport::new(record, &[], &table)],
            chosen: None,
        }
    }

    /// Why the node is kept out of collectives, if it is.
    pub(super) fn keeps_out(&self) -> Option<String> {
        let failed = self
            .checks
            .iter()
            .filter(|check| check.status == Status::Fail);
        if let Some(check) = failed.max_by_key(|check| check.action) {
            let fails = |finding: &&dhc_thresholds::Finding| finding.status == Status::Fail;
            let what = check.findings.iter().find(fails);
            let what = what.map_or("", |finding| finding.message.as_str());
            return Some(format!("{} failed: {what}", check.check));
        }
        self.checks.iter().find_map(|check| {
            let name = &check.check;
            match &check.record.ending {
                _ if *name == instance_level::SPEC.name => {
                    Some("its instance level did not come".to_owned())
                }
                Ending::TimedOut { .. } => Some(format!("{name} hung")),
                Ending::Killed { signal } => Some(format!("{name} died of signal {signal}")),
                Ending::Interrupted => Some(format!(
                    "its instance level was stopped before {name} had ended"
                )),
                Ending::Finished | Ending::Failed { .. } | Ending::Skipped { .. } => None,
            }
        })
    }

    /// By what it was judged, where that is not `whole`.
    pub(super) fn judged_by(&self, whole: &JudgedBy) -> Option<JudgedBy> {
        let own = &self.chosen.as_ref()?.judged_by;
        (own != whole).then(|| own.clone())
    }

    fn now(&self) -> NodeNow {
        let fails = self.checks.iter().any(|check| check.status == Status::Fail);
        match (fails, self.keeps_out()) {
            (true, _) => NodeNow::Accused,
            (false, Some(_)) => NodeNow::Out,
            (false, None) => NodeNow::Waiting,
        }
    }
}

/// Of checks that pass, only that they did: the measurements are in the node's own result.
fn leave_at_the_node(checks: &mut [CheckReport], run: &Run) {
    for check in checks
        .iter_mut()
        .filter(|check| check.status == Status::Pass)
    {
        let count = check.record.measurements.len();
        // Not cleared, which would keep their memory: all of it for thousands of nodes.
        check.record.measurements = Vec::new();
        check.record.devices = Vec::new();
        check.record.evidence = Vec::new();
        check.findings = Vec::new();
        check.record.notes = vec![format!(
            "judged by all of its {count} measurements; they would make this result too large and are in the node's own, run {}",
            run.id
        )];
    }
}

impl Level<'_> {
    /// Runs the instance level on all of these nodes at the same time.
    pub(super) fn instance(
        &self,
        orders: &InstanceOrders,
        nodes: &[String],
    ) -> BTreeMap<String, NodeLevel> {
        let room = RESULT_BYTES / nodes.len().max(1);
        let tables = OfTypes::new(orders.chosen.as_ref());
        let heard = Mutex::new(Heard {
            levels: BTreeMap::new(),
            speaking: BTreeSet::new(),
        });
        for _ in 0..ATTEMPTS {
            let missing: Vec<String> = {
                let heard = heard.lock().expect("no holder of this lock panics");
                let missing = nodes.iter().filter(|node| !heard.has_answered(node));
                missing.cloned().collect()
            };
            if missing.is_empty() || self.is_over() {
                break;
            }
            let groups = chunks(missing, self.orders.settings.groups_max);
            side_by_side(groups, |nodes| {
                self.start(orders, nodes, &tables, room, &heard);
            });
        }
        let mut levels = heard
            .into_inner()
            .expect("no holder of this lock panics")
            .levels;
        for node in nodes {
            let level = levels.entry(node.clone());
            level.or_insert_with(|| NodeLevel::none(Ending::Interrupted));
        }
        levels
    }

    /// One launch of the instance level.
    fn start(
        &self,
        orders: &InstanceOrders,
        nodes: Vec<String>,
        tables: &OfTypes,
        room: usize,
        heard: &Mutex<Heard>,
    ) {
        let left = self.left();
        // Runs on nodes end before the whole does, so that what they measured comes through.
        let in_time = left.map(|left| left - TO_TELL.min(left / 2));
        let runs = in_time.map_or(orders.deadline, |limit| orders.deadline.min(limit));
        let mut args = orders.args.clone();
        args.push("--run-deadline".to_owned());
        args.push(format!("{}ms", runs.as_millis().max(1)));
        let deadline = left.map_or(runs + LAUNCH, |left| left.min(runs + LAUNCH));
        let group = Group {
            nodes,
            own_names: self.own_names.clone(),
            launch: self.orders.cluster.launch.clone(),
            worker: orders.program.clone(),
            quick: false,
            asked_gb_per_s: None,
            cards: Vec::new(),
        };
        self.watcher
            .now(&mut names(&group.nodes), NodeNow::Measuring);
        let mut ear = Ear {
            level: self,
            tables,
            room,
            heard,
        };
        let host = &self.orders.host;
        if let Err(error) = group.gather_documents(host, &args, deadline, &mut ear) {
            for node in &group.nodes {
                ear.document(node, Err(chain(&error)));
            }
        }
    }
}

fn names(nodes: &[String]) -> impl Iterator<Item = &str> {
    nodes.iter().map(String::as_str)
}

/// What has come of all nodes so far.
struct Heard {
    levels: BTreeMap<String, NodeLevel>,
    /// Those that said a word: starting them works.
    speaking: BTreeSet<String>,
}

impl Heard {
    fn has_answered(&self, node: &str) -> bool {
        self.speaking.contains(node)
    }
}

/// Hears one launch.
struct Ear<'a, 'run> {
    level: &'a Level<'run>,
    tables: &'a OfTypes,
    room: usize,
    heard: &'a Mutex<Heard>,
}

impl Audience for Ear<'_, '_> {
    fn doing(&mut self, node: &str, what: &str) {
        let mut heard = self.heard.lock().expect("no holder of this lock panics");
        heard.speaking.insert(node.to_owned());
        drop(heard);
        self.level.watcher.alone(node, what);
    }

    fn document(&mut self, node: &str, document: Result<Vec<u8>, String>) {
        let level = document.and_then(|text| NodeLevel::of(&text, self.tables, self.room));
        let level = level.unwrap_or_else(|error| {
            NodeLevel::none(if self.level.is_over() {
                Ending::Interrupted
            } else {
                Ending::Failed {
                    error: format!("the instance level of {node} did not come: {error}"),
                }
            })
        });
        self.level
            .watcher
            .now(&mut std::iter::once(node), level.now());
        let mut heard = self.heard.lock().expect("no holder of this lock panics");
        heard.levels.insert(node.to_owned(), level);
    }

    fn is_over(&self) -> bool {
        self.level.is_over()
    }
}

#[cfg(test)]
mod tests {
    use dhc_thresholds::{Kind, Subject};

    use super::*;

    /// What a node tells whose roll call, of all checks, ended in this way with these answers.
    fn told(instance_type: &str, ending: Ending, answers: &[&str]) -> Vec<u8> {
        let mut record = Record::new("roll-call", ending);
        record.measurements = answers
            .iter()
            .map(|answer| {
                let subject = Subject::new(Kind::Node, "h1");
                dhc_checks::catalog::roll_call::ANSWER.of(subject, (*answer).to_owned())
            })
            .collect();
        let run = r#"{"id":"01RUN","dhc":"0.1.0","level":"instance","started_at":"","duration_ms":0,"expires_at":""}"#;
        let header = format!(
            r#"{{"schema":"dhc.journal/1","run":{run},"name":"h1","identity":{{"instance_type":"{instance_type}"}},"planned":["roll-call"]}}"#
        );
        let record = serde_json::to_string(&record).unwrap();
        format!("{header}\n{record}\n").into_bytes()
    }

    fn level(document: &[u8]) -> NodeLevel {
        NodeLevel::of(document, &OfTypes::new(None), RESULT_BYTES).unwrap()
    }

    #[test]
    fn a_node_with_a_fault_or_a_check_that_hung_or_was_cut_off_stays_out_and_others_go_on() {
        let failed = || Ending::Failed {
            error: "not installed".to_owned(),
        };
        for (ending, answers, stays_out) in [
            (Ending::Finished, &["answered"][..], None),
            (Ending::Finished, &[], None),
            (failed(), &[], None),
            (Ending::Finished, &["absent"], Some("roll-call failed")),
            (
                Ending::TimedOut {
                    after_ms: 1,
                    doing: String::new(),
                    of_the_run: false,
                },
                &[],
                Some("roll-call hung"),
            ),
            (Ending::Killed { signal: 9 }, &[], Some("died of signal 9")),
            (Ending::Interrupted, &[], Some("was stopped before")),
        ] {
            let level = level(&told("", ending.clone(), answers));
            let why = level.keeps_out();
            match stays_out {
                None => assert_eq!(why, None, "{ending:?} {answers:?}"),
                Some(words) => assert!(why.is_some_and(|why| why.contains(words)), "{ending:?}"),
            }
        }
        let none = NodeLevel::none(failed());
        assert!(none.keeps_out().is_some());
        assert_eq!(none.checks[0].status, Status::Error);
    }

    #[test]
    fn a_node_is_judged_by_the_table_of_its_own_type() {
        let level = level(&told("p5.48xlarge", Ending::Finished, &["answered"]));
        let whole = tables::built_in_table("trn2.48xlarge").unwrap().judged_by;
        let own = level.judged_by(&whole).unwrap();
        assert_eq!(own.instance_type, "p5.48xlarge");
        assert_eq!(level.judged_by(&own), None);
    }

    #[test]
    fn where_the_result_would_become_too_large_only_what_passed_stays_at_the_node() {
        let many = ["answered"; 200];
        let tables = OfTypes::new(None);
        let small = NodeLevel::of(&told("", Ending::Finished, &many), &tables, 4_096).unwrap();
        assert_eq!(small.checks[0].status, Status::Pass);
        assert!(small.checks[0].record.measurements.is_empty());
        assert!(small.checks[0].record.notes[0].contains("200 measurements"));
        let mut bad = many;
        bad[7] = "absent";
        let kept = NodeLevel::of(&told("", Ending::Finished, &bad), &tables, 4_096).unwrap();
        assert_eq!(kept.checks[0].record.measurements.len(), 200);
    }

    #[test]
    fn what_is_no_journal_is_an_error_with_words() {
        for garbage in [&b""[..], b"{}", b"dhc: unknown option\n", b"\xff\xfe\n"] {
            let error = NodeLevel::of(garbage, &OfTypes::new(None), RESULT_BYTES).unwrap_err();
            assert!(error.contains("no journal"), "{error}");
        }
    }
}
