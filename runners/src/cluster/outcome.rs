//! What a measured group turned out to be: held against the table's limit, and against the other groups of the run.

use std::collections::{BTreeMap, BTreeSet};

use dhc_checks::check::ClusterCheck;
use dhc_thresholds::{
    At, Better, Centre, Ending, Metric, PEERS_MIN, Record, Status, Table, Value, judge,
};

use super::slurm::Standing;
use crate::localise::{Group, Node, Outcome, Purpose, Rails};

/// With fewer than [`PEERS_MIN`], at least so many, only a group below half their median fails: of two groups, one that is three times as
/// slow as the other.
const PEERS_FEW: usize = 2;
const FAR_BELOW: f64 = 0.5;

/// A group, what its last launch left, and how its nodes stood in Slurm if it did not come to its end.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub(super) group: Group,
    pub(super) record: Record,
    pub(super) standing: Standing,
}

/// What was measured of a group, and what follows.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) outcome: Outcome,
    pub(super) plateau: Option<f64>,
    /// The bound that it was held against, and whose.
    pub(super) bound: Option<(f64, String)>,
    pub(super) error: Option<String>,
    /// What of its sweep was left out since it was too slow for that to matter.
    pub(super) left_out: Option<String>,
}

/// The groups of a run that passed so far, as peers of those to come.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// How many rails a limit of the table speaks of.
    rails: usize,
    /// What kind of group it was, number of nodes and plateau.
    passed: Vec<(Kind, usize, f64)>,
}

/// Groups that can be compared: those of one node use no network, and those on one rail have a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Alone,
    OneRail,
    Together,
}

fn kind(group: &Group) -> Kind {
    match group {
        Group {
            purpose: Purpose::Alone,
            ..
        } => Kind::Alone,
        Group {
            rails: Rails::Only(_),
            ..
        } => Kind::OneRail,
        Group { .. } => Kind::Together,
    }
}

impl Peers {
    /// No groups yet, over so many rails.
    pub(super) fn over(rails: usize) -> Peers {
        Peers {
            rails,
            passed: Vec::new(),
        }
    }

    /// The least plateau that the table lets a group have, if it says so.
    pub(super) fn asked(
        &self,
        check: &dyn ClusterCheck,
        table: &Table,
        group: &Group,
    ) -> Option<f64> {
        let at = At {
            nodes: u32::try_from(group.nodes.len()).ok(),
            ..At::default()
        };
        let limits = table.limits(check.plateau()?, &at).into_iter();
        let bounds = limits.filter_map(|limit| table.number(limit.bounds.fail_below?));
        bounds
            .map(|bound| self.of_rails(group, bound))
            .reduce(f64::max)
    }

    /// Judges the groups of one wave. `name` tells the nodes' names.
    pub(super) fn judge(
        &mut self,
        check: &dyn ClusterCheck,
        table: &Table,
        wave: &[Tried],
        names: &[String],
    ) -> Vec<Measured> {
        let metrics = check.spec().metrics;
        let mut judged: Vec<Measured> = wave
            .iter()
            .map(|tried| self.alone(check, metrics, table, tried, names))
            .collect();
        let values: Vec<(Kind, usize, f64)> = wave
            .iter()
            .zip(&judged)
            .filter(|(_, judged)| judged.outcome == Outcome::Passed)
            .filter_map(|(Tried { group, .. }, judged)| {
                Some((kind(group), group.nodes.len(), judged.plateau?))
            })
            .collect();
        for (Tried { group, .. }, judged) in wave.iter().zip(&mut judged) {
            let (Outcome::Passed, Some(plateau)) = (&judged.outcome, judged.plateau) else {
                continue;
            };
            // All nodes together have no peers.
            if matches!(group.purpose, Purpose::Whole | Purpose::Closing) {
                continue;
            }
            let alike = |(of_kind, nodes, _): &&(Kind, usize, f64)| {
                *of_kind == kind(group) && nodes.abs_diff(group.nodes.len()) <= 1
            };
            let peers = self.passed.iter().chain(&values).filter(alike);
            let peers: Vec<f64> = peers.map(|(_, _, value)| *value).collect();
            // A limit of the table is the better judge than a handful of neighbours.
            let enough = judged.bound.is_none() || peers.len() >= PEERS_MIN;
            if let Some(bound) = bound(&peers).filter(|_| enough)
                && plateau < bound
            {
                judged.outcome = Outcome::Failed;
                judged.bound = Some((bound, "the other groups of this run".to_owned()));
            }
        }
        let passed = wave
            .iter()
            .zip(&judged)
            .filter(|(_, judged)| judged.outcome == Outcome::Passed)
            .filter_map(|(Tried { group, .. }, judged)| {
                Some((kind(group), group.nodes.len(), judged.plateau?))
            });
        self.passed.extend(passed);
        judged
    }

    /// What a group says by itself.
    fn alone(
        &self,
        check: &dyn ClusterCheck,
        metrics: &[&'static Metric],
        table: &Table,
        tried: &Tried,
        names: &[String],
    ) -> Measured {
        let Tried {
            group,
            record,
            standing,
        } = tried;
        let of = |metric: Option<&'static str>| {
            record
                .measurements
                .iter()
                .filter(move |measured| Some(measured.metric.as_ref()) == metric)
        };
        let plateau = of(check.plateau()).find_map(|measured| measured.value.number());
        let named = named(check, tried, names);
        let error = error(record);
        let verdict = judge(record, metrics, table);
        let finding = verdict
            .findings
            .iter()
            .find(|finding| Some(finding.metric.as_ref()) == check.plateau());
        let limit = finding.and_then(|finding| finding.bound.as_ref());
        let bound = limit.and_then(|bound| Some((bound.value.number()?, bound.origin.clone())));
        let bound = bound.map(|(bound, origin)| {
            let rails = self.rails;
            match self.of_rails(group, bound) {
                of_one if of_one < bound => (of_one, format!("{origin}, for one of {rails} rails")),
                of_all => (of_all, origin),
            }
        });
        let mut gaps = record.gaps.iter();
        let left_out = gaps.find(|gap| Some(gap.metric.as_ref()) == check.plateau());
        let wrong = of(check.wrong())
            .any(|measured| measured.value.number().is_some_and(|wrong| wrong > 0.0));
        let slow = match (group.rails, &bound, plateau) {
            (Rails::Only(_), Some((bound, _)), Some(plateau)) => plateau < *bound,
            _ => finding.is_some_and(|finding| finding.status == Status::Fail),
        };
        let outcome = match &record.ending {
            _ if !named.is_empty() => Outcome::Named(named),
            _ if standing.ended.is_some() => Outcome::Unknown,
            Ending::Finished if wrong => Outcome::Corrupted,
            Ending::Finished if slow => Outcome::Failed,
            // What a slower plateau made needless would have been wanted of a faster one.
            Ending::Finished if plateau.is_some() && left_out.is_none() => Outcome::Passed,
            Ending::TimedOut { after_ms, .. } if cut_short(check, group, record, *after_ms) => {
                Outcome::Unknown
            }
            Ending::TimedOut { .. } => Outcome::Hung,
            Ending::Failed { .. } if has_broken(check, record) => Outcome::Broken,
            _ => Outcome::Unknown,
        };
        Measured {
            outcome,
            plateau,
            bound,
            error,
            left_out: left_out.map(|gap| gap.why.clone()),
        }
    }

    /// A limit of the table speaks of all rails together, so one of them has to bear its part of it.
    fn of_rails(&self, group: &Group, bound: f64) -> f64 {
        match group.rails {
            Rails::Only(_) => bound / self.rails.max(1) as f64,
            Rails::All => bound,
        }
    }
}

/// Below what a group is slower than these, itself among them; `None` where they are too few to say.
fn bound(values: &[f64]) -> Option<f64> {
    if let Some(peers) = dhc_thresholds::Peers::new(values, Better::Higher) {
        return Some(peers.bound());
    }
    let centre = Centre::of(values).filter(|_| values.len() >= PEERS_FEW)?;
    Some(centre.median * FAR_BELOW)
}

/// The nodes that kept their group from its end: those that Slurm calls down, and whom the ranks tell of.
fn named(check: &dyn ClusterCheck, tried: &Tried, names: &[String]) -> Vec<Node> {
    let Tried {
        group,
        record,
        standing,
    } = tried;
    let mut members: BTreeSet<&str> = standing.down().collect();
    // What becomes of ranks when the allocation ends tells nothing of their nodes.
    if standing.ended.is_none() {
        members.extend(members_in(check, record, GONE));
        let stuck = matches!(record.ending, Ending::TimedOut { .. });
        // Who is behind is only told by others who wait, and only where nobody is gone, for whom all would wait. Who lags may
        // wait for somebody itself.
        if members.is_empty() && stuck {
            members.extend(members_in(check, record, &["behind"]));
        }
    }
    let nodes = group.nodes.iter().copied();
    nodes
        .filter(|node| members.contains(names[*node].as_str()))
        .collect()
}

/// The states of a node without which its group cannot come to an end.
const GONE: &[&str] = &["silent", "died", "never_answered"];

/// The state of a node whose ranks were told of an error of the collective itself.
const BROKE_OFF: &[&str] = &["broke_off"];

/// The states of a node on which dhc, a library or what is installed did not do its part: others may have been told of an
/// error for that alone.
const COULD_NOT: &[&str] = &["failed", "could_not_start", "died_at_start"];

/// The nodes of a record in one of these states.
fn members_in<'a>(
    check: &dyn ClusterCheck,
    record: &'a Record,
    wanted: &'a [&str],
) -> impl Iterator<Item = &'a str> {
    let member = check.member();
    let members = record.measurements.iter();
    let members = members.filter(move |measured| {
        Some(measured.metric.as_ref()) == member
            && matches!(&measured.value, Value::Word(word) if wanted.contains(&word.as_ref()))
    });
    members.map(|measured| measured.subject.name.as_str())
}

/// Whether the collective itself came to an error that nobody's want of something explains: it says that something broke, and
/// of no node that it was this one.
fn has_broken(check: &dyn ClusterCheck, record: &Record) -> bool {
    let is_any = |wanted| members_in(check, record, wanted).next().is_some();
    is_any(BROKE_OFF) && !is_any(COULD_NOT)
}

/// Whether the group still got further when its time was up, which was less than such a group is due: it says nothing of its
/// nodes then.
fn cut_short(check: &dyn ClusterCheck, group: &Group, record: &Record, after_ms: u64) -> bool {
    let is_quick = group.purpose != Purpose::Whole;
    let due = check.budget(&BTreeMap::new(), is_quick).deadline;
    u128::from(after_ms) < due.as_millis() && members_in(check, record, MOVING).next().is_some()
}

/// The state of a node that still got further when the time was up.
const MOVING: &[&str] = &["moving"];

/// Whether a record says nothing of its group: nobody is named, nothing broke, and nothing was measured.
pub(super) fn is_unknown(check: &dyn ClusterCheck, record: &Record) -> bool {
    matches!(record.ending, Ending::Failed { .. } | Ending::Killed { .. })
        && members_in(check, record, GONE).next().is_none()
        && !has_broken(check, record)
}

/// Whether a group that was begun did not come to its end.
pub(super) fn is_unfinished(record: &Record) -> bool {
    matches!(
        record.ending,
        Ending::Failed { .. } | Ending::Killed { .. } | Ending::TimedOut { .. }
    )
}

/// Adds this to what is told of a group that did not come to its end.
pub(super) fn add_to_error(record: &mut Record, words: &str) {
    let told = match &mut record.ending {
        Ending::Failed { error } => Some(error),
        Ending::TimedOut { .. } => record.notes.last_mut(),
        Ending::Finished | Ending::Killed { .. } | Ending::Interrupted | Ending::Skipped { .. } => {
            None
        }
    };
    match told {
        Some(told) => {
            told.push_str("; ");
            told.push_str(words);
        }
        None => record.notes.push(words.to_owned()),
    }
}

/// What happened, if the group did not come to its end.
pub(super) fn error(record: &Record) -> Option<String> {
    match &record.ending {
        Ending::Finished => None,
        Ending::Failed { error } => Some(error.clone()),
        Ending::TimedOut {
            after_ms, doing, ..
        } if doing.is_empty() => Some(format!("stopped after {after_ms} ms")),
        Ending::TimedOut { doing, .. } => Some(doing.clone()),
        Ending::Killed { signal } => Some(format!("its process died of signal {signal}")),
        Ending::Interrupted => Some("the run was stopped".to_owned()),
        Ending::Skipped { reason, .. } => Some(reason.clone()),
    }
}

/// For how long collectives were under way in the group where that took longest, if the groups tell.
pub(super) fn collective_ms<'a>(
    check: &dyn ClusterCheck,
    records: impl Iterator<Item = &'a Record>,
) -> Option<u64> {
    let times = records
        .flat_map(|record| &record.measurements)
        .filter(|measured| Some(measured.metric.as_ref()) == check.collective_time());
    let longest = times.filter_map(|measured| measured.value.number());
    let longest = longest.reduce(f64::max)?;
    Some((longest * 1e3).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_far_from_its_peers_is_an_outlier_and_a_near_one_is_not() {
        let mut values = vec![100.0, 101.0, 99.0, 100.5, 98.5, 100.2];
        let bound_of = bound(&values).unwrap();
        assert!(bound_of > 90.0 && bound_of < 96.0, "{bound_of}");
        values.push(12.0);
        assert!(bound(&values).unwrap() > 12.0);
    }

    #[test]
    fn few_groups_accuse_only_what_is_far_below() {
        assert_eq!(bound(&[100.0]), None);
        assert_eq!(bound(&[100.0, 90.0]), Some(47.5));
        assert!(bound(&[100.0, 30.0]).is_some_and(|bound| bound > 30.0));
        assert_eq!(bound(&[100.0, 90.0, 80.0, 10.0]), Some(42.5));
        assert_eq!(bound(&[]), None);
    }

    #[test]
    fn groups_that_are_equal_make_no_outlier_of_the_slightly_slower() {
        let values = vec![100.0; 20];
        assert!(bound(&values).unwrap() <= 95.0);
    }
}
