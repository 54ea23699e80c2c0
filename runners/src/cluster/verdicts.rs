//! What roll calls and searches say of each node, and of the whole: records into reports. Pure.

use std::collections::BTreeMap;

use dhc_checks::catalog::{cluster_node, roll_call};
use dhc_checks::group::Card;
use dhc_thresholds::{
    CheckReport, Ending, Gap, GroupReport, Identity, Kind, NodeReport, Record, Subject, WaveReport,
};

use super::outcome::Measured;
use super::slurm::Away;
use super::{Cluster, NodeLevel, located};
use crate::localise::{Conclusion, Finding, Group, NodeFinding, Outcome, Place, Verdict};
use crate::tables::{self, Chosen};

/// What each node answered, from the roll calls so far; the last word of a node counts.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    of_node: BTreeMap<String, Record>,
    /// How the last roll call ended that did not end well.
    broken: Option<Ending>,
    /// Whether the run was over before all could be asked.
    cut_short: bool,
}

impl Answers {
    /// Takes in a roll call.
    pub fn add(&mut self, record: &Record) {
        if record.ending != Ending::Finished {
            self.broken = Some(record.ending.clone());
        }
        let mut nodes: BTreeMap<&str, Record> = BTreeMap::new();
        let empty = || Record {
            duration_ms: record.duration_ms,
            ..Record::new(roll_call::SPEC.name, Ending::Finished)
        };
        for measured in &record.measurements {
            let node = nodes.entry(&measured.subject.name).or_insert_with(empty);
            node.measurements.push(measured.clone());
        }
        for gap in &record.gaps {
            let node = nodes.entry(&gap.subject.name).or_insert_with(empty);
            node.gaps.push(gap.clone());
        }
        for device in &record.devices {
            let node = nodes.entry(&device.subject.name).or_insert_with(empty);
            node.devices.push(device.clone());
        }
        let nodes = nodes
            .into_iter()
            .map(|(name, record)| (name.to_owned(), record));
        self.of_node.extend(nodes);
    }

    /// The run was over before all could be asked: who has not answered is not absent for it.
    pub fn cut_short(&mut self) {
        self.cut_short = true;
    }

    /// Whether a node answered.
    pub fn has(&self, node: &str) -> bool {
        self.of_node.get(node).is_some_and(|record| {
            let answered =
                |measured: &dhc_thresholds::Measurement| measured.value == "answered".into();
            record.measurements.iter().any(answered)
        })
    }

    /// What the hosts of nodes call themselves, where they told another name than the node's.
    pub(super) fn own_names(&self) -> BTreeMap<String, String> {
        let own = |(node, record): (&String, &Record)| {
            let mut devices = record.devices.iter();
            let host = devices.find_map(|device| device.identity.get(roll_call::HOST))?;
            Some((node.clone(), host.clone()))
        };
        self.of_node.iter().filter_map(own).collect()
    }

    /// The record of a node; one that is not there says why.
    fn record(&self, node: &str, away: Option<&Away>) -> Record {
        if let Some(record) = self
            .of_node
            .get(node)
            .filter(|_| away.is_none() || self.has(node))
        {
            return record.clone();
        }
        match away {
            Some(away) if away.is_down => return absent(node, &away.to_string()),
            Some(away) => {
                let error = away.to_string();
                return Record::new(roll_call::SPEC.name, Ending::Failed { error });
            }
            None => {}
        }
        if self.cut_short {
            return Record::new(roll_call::SPEC.name, Ending::Interrupted);
        }
        if self.of_node.is_empty() {
            let ending = self.broken.clone().unwrap_or(Ending::Interrupted);
            return Record::new(roll_call::SPEC.name, ending);
        }
        // The launcher works, since others answered: it is this node that does not.
        absent(node, "it did not answer twice, and others did")
    }
}

fn absent(node: &str, why: &str) -> Record {
    let mut record = Record::new(roll_call::SPEC.name, Ending::Finished);
    let absent = roll_call::ANSWER.of(Subject::new(Kind::Node, node), "absent");
    record.measurements.push(absent.detail(why));
    record
}

/// All that is known when a run is over.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The nodes.
    pub cluster: &'a Cluster,
    /// What they answered.
    pub answers: &'a Answers,
    /// Those that entered collectives, in the order of the findings.
    pub answered: &'a [String],
    /// What each collective's search found.
    pub findings: &'a [(&'static str, Finding)],
    /// Whether there was nobody to be compared with.
    pub local: bool,
    /// The nodes that no step could be started on any more, by Slurm's word.
    pub away: &'a BTreeMap<String, Away>,
    /// In which words the allocation has ended, if it has.
    pub ended: Option<&'a str>,
    /// Whether the run was stopped or ran out of time.
    pub over: bool,
}

impl Known<'_> {
    /// A report for each node, judged by `chosen`; the node's own checks, in `instance` where they ran, were judged by its own
    /// table.
    pub fn nodes(
        &self,
        mut instance: BTreeMap<String, NodeLevel>,
        chosen: &Chosen,
    ) -> Vec<NodeReport> {
        let table = &chosen.table;
        let judged = |record: Record| {
            let metrics = tables::metrics_of(&record.check);
            CheckReport::new(record, &metrics, table)
        };
        let places: BTreeMap<&str, usize> = self
            .answered
            .iter()
            .enumerate()
            .map(|(place, name)| (name.as_str(), place))
            .collect();
        let asked = !self.local && (self.over || !self.findings.is_empty());
        let up = self.cluster.nodes.iter().map(|name| {
            let away = self.away.get(name);
            let answer = self.answers.record(name, away);
            let boot_id = answer
                .devices
                .iter()
                .find_map(|device| device.identity.get("boot_id").cloned());
            let mut checks = vec![judged(answer)];
            let mut level = instance.remove(name);
            let keeps_out = level.as_ref().and_then(NodeLevel::keeps_out);
            // Of thousands of nodes there is no room for two copies.
            let own_checks = level
                .as_mut()
                .map(|level| std::mem::take(&mut level.checks));
            checks.extend(own_checks.into_iter().flatten());
            if let Some(why) = keeps_out {
                let reason = format!("kept out of collectives: {why}");
                checks.push(judged(Record::new(
                    cluster_node::SPEC.name,
                    Ending::Skipped {
                        reason,
                        lacks: None,
                    },
                )));
            } else if let Some(place) = places.get(name.as_str()).filter(|_| asked) {
                let found: Vec<(&str, &NodeFinding)> = self
                    .findings
                    .iter()
                    .map(|(check, finding)| (*check, &finding.nodes[*place]))
                    .collect();
                checks.push(judged(part_in_groups(name, &found, self)));
            }
            let judged_by = level
                .as_ref()
                .and_then(|level| level.judged_by(&chosen.judged_by));
            let own = level.map(|level| level.identity).unwrap_or_default();
            let identity = Identity {
                boot_id: own.boot_id.or(boot_id),
                ..own
            };
            NodeReport {
                judged_by,
                ..NodeReport::new(name.clone(), identity, checks)
            }
        });
        let down = self.cluster.down.iter().map(|(name, state)| {
            let record = absent(name, &format!("Slurm calls it `{state}`"));
            NodeReport::new(name.clone(), Identity::default(), vec![judged(record)])
        });
        up.chain(down).collect()
    }
}

/// What the groups that a node was in say of it: the gravest verdict of any collective.
fn part_in_groups(name: &str, found: &[(&str, &NodeFinding)], known: &Known<'_>) -> Record {
    let spec = &cluster_node::SPEC;
    let Some((check, gravest)) = found.iter().max_by_key(|(_, finding)| finding.verdict) else {
        return Record::new(spec.name, Ending::Interrupted);
    };
    let mut record = Record::new(spec.name, Ending::Finished);
    let subject = || Subject::new(Kind::Node, name);
    let words = if gravest.groups == 0 {
        format!(
            "no group of two or more nodes was measured with it, so nobody is there to compare it with ({check})"
        )
    } else {
        format!(
            "{} of {} groups with it failed ({check}); faulty with a probability of {:.1} %",
            gravest.failed,
            gravest.groups,
            gravest.probability * 100.0
        )
    };
    let closer = located::words_of(&gravest.cause, &known.cluster.card_names(), known.answered);
    let away = known.away.get(name).map(Away::to_string);
    let closer = Some(closer).filter(|closer| !closer.is_empty());
    let words: Vec<String> = away.into_iter().chain([words]).chain(closer).collect();
    let words = words.join("; ");
    let state = |word: &'static str, fault: &'static str| {
        cluster_node::STATE
            .of(subject(), word)
            .fault(fault)
            .detail(words.clone())
    };
    match gravest.verdict {
        Verdict::Healthy => record
            .measurements
            .push(cluster_node::STATE.of(subject(), "healthy")),
        Verdict::Interrupted => record
            .measurements
            .push(state("interrupted", "cluster.node.interrupted")),
        Verdict::Suspect => record
            .measurements
            .push(state("suspect", "cluster.node.suspect")),
        Verdict::Unresponsive => record
            .measurements
            .push(state("unresponsive", "cluster.node.unresponsive")),
        Verdict::Hanging => record
            .measurements
            .push(state("hanging", located::fault_of(gravest))),
        Verdict::Breaking => record
            .measurements
            .push(state("breaking", located::fault_of(gravest))),
        Verdict::Corrupting => record
            .measurements
            .push(state("corrupting", located::fault_of(gravest))),
        Verdict::Faulty => record
            .measurements
            .push(state("slow", located::fault_of(gravest))),
        Verdict::Undecided => record.gaps.push(Gap {
            metric: cluster_node::STATE.name.into(),
            subject: subject(),
            why: if let Some(ended) = known.ended {
                format!("{ended}: {words}")
            } else if known.over {
                format!("the run ended before enough was known: {words}")
            } else if known.away.contains_key(name) {
                words
            } else {
                format!("the groups do not tell this node from the others: {words}")
            },
        }),
    }
    let percent = cluster_node::PROBABILITY.of(subject(), gravest.probability * 100.0);
    record.measurements.push(percent);
    record
        .measurements
        .push(cluster_node::GROUPS.of(subject(), u64::from(gravest.groups)));
    record
        .measurements
        .push(cluster_node::FAILED_GROUPS.of(subject(), u64::from(gravest.failed)));
    cards_of(gravest, known, &mut record);
    record
}

/// The cards of a node whose rails were tried, if it is cards that are at fault.
fn cards_of(found: &NodeFinding, known: &Known<'_>, record: &mut Record) {
    let Place::Nics(bad) = &found.cause.place else {
        return;
    };
    for (rail, card) in known.cluster.card_names().into_iter().enumerate() {
        let word = match (bad.contains(&rail), found.verdict) {
            (false, _) => "good",
            (true, Verdict::Corrupting) => "corrupting",
            (true, Verdict::Hanging) => "hanging",
            (true, Verdict::Breaking) => "breaking",
            (true, _) => "slow",
        };
        let subject = Subject::new(Kind::Nic, card);
        let state = cluster_node::NIC_STATE.of(subject, word);
        let state = match found.cause.rails.get(rail) {
            Some(tally) => state.detail(format!(
                "{} of {} groups on it failed",
                tally.failed,
                tally.groups()
            )),
            None => state,
        };
        record
            .measurements
            .push(state.fault(located::fault_of(found)));
    }
}

pub(super) fn group_report(
    group: &Group,
    judged: &Measured,
    names: &[String],
    cards: &[Card],
) -> GroupReport {
    let (outcome, named) = match &judged.outcome {
        Outcome::Passed => ("passed", Vec::new()),
        Outcome::Failed | Outcome::Hung | Outcome::Broken => ("failed", Vec::new()),
        Outcome::Corrupted => ("corrupted", Vec::new()),
        Outcome::Unknown => ("unknown", Vec::new()),
        Outcome::Named(nodes) => (
            "named",
            nodes.iter().map(|node| names[*node].clone()).collect(),
        ),
    };
    let (bound, bound_from) = judged.bound.clone().unzip();
    GroupReport {
        nodes: group
            .nodes
            .iter()
            .map(|node| names[*node].clone())
            .collect(),
        purpose: group.purpose.word().to_owned(),
        rail: group.rails.only().map(|rail| cards[rail].name().to_owned()),
        outcome: outcome.to_owned(),
        named,
        plateau_gb_per_s: judged.plateau,
        bound_gb_per_s: bound,
        bound_from,
        error: judged.error.clone(),
        left_out: judged.left_out.clone(),
    }
}

/// The conclusion in one sentence, with the figures it rests on.
pub(super) fn sentence(finding: &Finding, waves: &[WaveReport], names: &[String]) -> String {
    let groups = || waves.iter().flat_map(|wave| &wave.groups);
    let figure = |group: &GroupReport| {
        group.plateau_gb_per_s.map_or_else(
            || group.outcome.clone(),
            |plateau| format!("{plateau:.3} GB/s"),
        )
    };
    let whole = groups()
        .find(|group| group.purpose == "whole")
        .map_or_else(|| "not measured".to_owned(), figure);
    let accused: Vec<&str> = (0..finding.nodes.len())
        .filter(|node| finding.nodes[*node].verdict.is_against())
        .map(|node| names[node].as_str())
        .collect();
    let without = groups()
        .rfind(|group| group.purpose == "closing")
        .map(figure);
    match finding.conclusion {
        Conclusion::AllGood => format!(
            "all {} nodes together: {whole}; nothing is held against any of them",
            names.len()
        ),
        Conclusion::Nodes => match without {
            Some(without) => format!(
                "all {} nodes together: {whole}; without {}: {without}",
                names.len(),
                accused.join(", ")
            ),
            None => format!(
                "all {} nodes together: {whole}; held against {}",
                names.len(),
                accused.join(", ")
            ),
        },
        Conclusion::Paths => format!(
            "all {} nodes together: {whole}; every node is good with others, and pairs of them are not",
            names.len()
        ),
        Conclusion::Leaves => format!(
            "all {} nodes together: {whole}; nodes are good with one another under their own leaf, and slow across leaves",
            names.len()
        ),
        Conclusion::Rails => format!(
            "all {} nodes together: {whole}; all of them are slow on the same rail, and good on another",
            names.len()
        ),
        Conclusion::AllAlike => format!(
            "all {} nodes together: {whole}; no part of them is better, so no node is accused",
            names.len()
        ),
        Conclusion::NotLocated => format!(
            "all {} nodes together: {whole}; none of the nodes explains it, and no pair that was tried",
            names.len()
        ),
        Conclusion::NotKnown => format!(
            "all {} nodes together: {whole}; too little could be measured to say more",
            names.len()
        ),
    }
}
