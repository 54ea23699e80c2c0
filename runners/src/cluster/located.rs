//! What was located, with the groups that show it: a finding and its waves into [`LocatedReport`]s. Pure.

use dhc_thresholds::{GroupReport, LocatedReport, TestReport, WaveReport};

use super::Cluster;
use crate::localise::{
    Cause, Conclusion, Finding, NodeFinding, PathFinding, PathKind, Place, Tally, Verdict,
};

/// How many partners of a test are named.
const PARTNERS_MAX: usize = 8;

/// How many nodes under a leaf are named.
const NODES_MAX: usize = 256;

/// Everything that a search located.
pub(super) fn located(
    finding: &Finding,
    waves: &[WaveReport],
    names: &[String],
    cluster: &Cluster,
) -> Vec<LocatedReport> {
    let told = Told {
        waves,
        names,
        cluster,
    };
    let nodes = finding.nodes.iter().enumerate();
    // Who is unresponsive was named by the group itself; nothing had to be located.
    let nodes = nodes
        .filter(|(_, found)| found.verdict.is_against() && found.verdict != Verdict::Unresponsive);
    let mut reports: Vec<LocatedReport> =
        nodes.map(|(node, found)| told.node(node, found)).collect();
    reports.extend(finding.paths.iter().map(|path| told.path(path)));
    reports.extend(
        finding
            .rails
            .iter()
            .map(|found| told.rail(found.rail, found.pairs)),
    );
    reports.extend(told.leaves(finding));
    if finding.conclusion == Conclusion::AllAlike {
        reports.push(told.all_alike());
    }
    reports
}

/// The fault class of an accused node, as its own report and the whole's name it.
pub(super) fn fault_of(found: &NodeFinding) -> &'static str {
    match (found.verdict, &found.cause.place) {
        (Verdict::Corrupting, Place::Nics(_)) => "cluster.nic.corrupting",
        (Verdict::Corrupting, _) => "cluster.node.corrupting",
        (Verdict::Hanging, _) => "cluster.node.hanging",
        (Verdict::Breaking, _) => "cluster.node.breaking",
        (_, Place::Nics(_)) => "cluster.nic.slow",
        (_, Place::Inside) => "cluster.node.slow_alone",
        (_, Place::Network | Place::NotKnown) => "cluster.node.slow",
    }
}

/// What was seen of an accused node beyond its being slow, or wrong, with others; nothing if nothing was.
pub(super) fn words_of(cause: &Cause, cards: &[String], names: &[String]) -> String {
    let mut words = Vec::new();
    if cause.alone.groups() > 0 {
        words.push(format!("by itself {}", counts(cause.alone)));
    }
    for (rail, tally) in cause.rails.iter().enumerate() {
        if tally.groups() > 0 {
            let card = cards.get(rail).map_or("?", String::as_str);
            words.push(format!("on {card} {}", counts(*tally)));
        }
    }
    if let Some(majority) = &cause.majority {
        let (one, other) = majority.witnesses;
        words.push(format!(
            "with {} or {} {}, those two with one another {}",
            names[one],
            names[other],
            counts(majority.with_it),
            counts(majority.without_it)
        ));
    }
    words.join("; ")
}

/// `3 of 4 failed`.
fn counts(tally: Tally) -> String {
    format!("{} of {} failed", tally.failed, tally.groups())
}

struct Told<'a> {
    waves: &'a [WaveReport],
    names: &'a [String],
    cluster: &'a Cluster,
}

impl Told<'_> {
    fn node(&self, node: usize, found: &NodeFinding) -> LocatedReport {
        let name = &self.names[node];
        let cards = self.cluster.card_names();
        let wrong = found.verdict == Verdict::Corrupting;
        let is = match found.verdict {
            Verdict::Corrupting => "gets wrong results",
            Verdict::Hanging => "hangs",
            Verdict::Breaking => "ends in errors",
            _ => "is slow",
        };
        let (class, rails, what) = match &found.cause.place {
            Place::Nics(rails) => {
                let slow: Vec<String> = rails.iter().map(|rail| cards[*rail].clone()).collect();
                let what = format!("{name} {is} on {} and on no other rail", slow.join(", "));
                ("nic", slow, what)
            }
            Place::Inside => ("node", Vec::new(), format!("{name} {is} by itself as well")),
            Place::Network if found.cause.rails.is_empty() => (
                "node",
                Vec::new(),
                format!("{name} {is} with others and good by itself"),
            ),
            Place::Network => {
                let what = format!(
                    "{name} {is} with others, not on some of its rails alone, and good by itself"
                );
                ("node", Vec::new(), what)
            }
            Place::NotKnown => ("node", Vec::new(), format!("{name} {is} with others")),
        };
        // A card is as certain as its rail, whose node is at fault anyhow.
        let of_rails = match &found.cause.place {
            Place::Nics(rails) => rails
                .iter()
                .filter_map(|rail| found.cause.rail_probability.get(*rail).copied())
                .fold(1.0, f64::min),
            Place::NotKnown | Place::Inside | Place::Network => 1.0,
        };
        let seen = words_of(&found.cause, &cards, self.names);
        let class = if wrong && class == "node" {
            "corruption"
        } else {
            class
        };
        LocatedReport {
            class: class.to_owned(),
            fault: fault_of(found).to_owned(),
            nodes: vec![name.clone()],
            rails,
            leaves: Vec::new(),
            confidence: Some(found.probability * of_rails),
            sentence: match seen.is_empty() {
                true => format!(
                    "{what}; {} of {} groups with it failed",
                    found.failed, found.groups
                ),
                false => format!(
                    "{what}; {} of {} groups with it failed; {seen}",
                    found.failed, found.groups
                ),
            },
            tests: self.tests(|group| group.nodes.contains(name), &[name.as_str()]),
        }
    }

    fn path(&self, path: &PathFinding) -> LocatedReport {
        let (one, other) = (&self.names[path.nodes.0], &self.names[path.nodes.1]);
        let repeats = counts(path.repeats);
        let what = match path.kind {
            PathKind::Stays => format!(
                "stays slow with new connections ({repeats}), so it is a link that they all share"
            ),
            PathKind::Moves => format!(
                "is slow with some connections and not with others ({repeats}), so it is one of several links that \
                 traffic is spread over"
            ),
            PathKind::NotKnown => {
                "is slow twice, and could not be repeated often enough to say more".to_owned()
            }
        };
        let both = |group: &GroupReport| {
            group.nodes.len() == 2 && group.nodes.contains(one) && group.nodes.contains(other)
        };
        LocatedReport {
            class: "path".to_owned(),
            fault: "cluster.path".to_owned(),
            nodes: vec![one.clone(), other.clone()],
            rails: Vec::new(),
            leaves: Vec::new(),
            confidence: None,
            sentence: format!(
                "the path between {one} and {other} {what}; both are good with others, and neither is accused"
            ),
            tests: self.tests(both, &[]),
        }
    }

    fn rail(&self, rail: usize, pairs: Tally) -> LocatedReport {
        let card = self.cluster.card_names()[rail].clone();
        let sentence = format!(
            "pairs of all nodes are slow on {card} ({}) and good on another rail; no node is accused",
            counts(pairs)
        );
        LocatedReport {
            class: "rail".to_owned(),
            fault: "cluster.rail".to_owned(),
            nodes: Vec::new(),
            rails: vec![card],
            leaves: Vec::new(),
            confidence: None,
            sentence,
            tests: self.tests(|group| group.purpose == "rail", &[]),
        }
    }

    fn leaves(&self, finding: &Finding) -> Option<LocatedReport> {
        let topology = self.cluster.topology.as_ref()?;
        let name = |leaf: usize| topology.leaves.get(leaf).cloned().unwrap_or_default();
        let leaves: Vec<String> = finding.leaves.iter().map(|leaf| name(*leaf)).collect();
        let (leaves, what) = match (leaves.as_slice(), finding.leaf_paths.as_slice()) {
            ([], []) => return None,
            ([], pairs) => {
                let pairs: Vec<String> = pairs
                    .iter()
                    .map(|(one, other)| format!("{} and {}", name(*one), name(*other)))
                    .collect();
                (
                    Vec::new(),
                    format!("the way between {} is slow", pairs.join(", between ")),
                )
            }
            ([one], _) => {
                let what = format!("the nodes under {one} are slow with those of all other leaves");
                (leaves, what)
            }
            (several, _) => {
                let what = format!(
                    "the nodes under {} are slow with one another's",
                    several.join(" and ")
                );
                (leaves, what)
            }
        };
        let is_named = |leaf: &usize| {
            let of_pair = |(one, other): &(usize, usize)| one == leaf || other == leaf;
            finding.leaves.contains(leaf) || finding.leaf_paths.iter().any(of_pair)
        };
        let under = topology.of(self.names)?;
        let nodes = self.names.iter().zip(&under);
        let nodes = nodes
            .filter(|(_, leaf)| is_named(leaf))
            .map(|(node, _)| node.clone());
        Some(LocatedReport {
            class: "leaf".to_owned(),
            fault: "cluster.leaf".to_owned(),
            nodes: nodes.take(NODES_MAX).collect(),
            rails: Vec::new(),
            leaves,
            confidence: None,
            sentence: format!(
                "{what}, and good with one another under their own leaf; no node is accused"
            ),
            tests: self.tests(|group| group.purpose == "leaf", &[]),
        })
    }

    fn all_alike(&self) -> LocatedReport {
        let rails = match self.cluster.cards.len() {
            0 | 1 => "rails were not tried",
            _ => "no rail is better than another",
        };
        LocatedReport {
            class: "config_or_fabric".to_owned(),
            fault: "cluster.slow".to_owned(),
            nodes: Vec::new(),
            rails: Vec::new(),
            leaves: Vec::new(),
            confidence: None,
            sentence: format!(
                "no part of the nodes is better than another, and {rails}: it is what they share, the fabric, the \
                 configuration or the limit; no node is accused"
            ),
            tests: self.tests(|_| true, &[]),
        }
    }

    /// The groups that are wanted, summed up by purpose and rail; `without` are left out of the partners.
    fn tests(&self, wanted: impl Fn(&GroupReport) -> bool, without: &[&str]) -> Vec<TestReport> {
        let mut tests: Vec<TestReport> = Vec::new();
        let groups = self.waves.iter().flat_map(|wave| &wave.groups);
        for group in groups.filter(|group| wanted(group)) {
            let failed = match group.outcome.as_str() {
                "passed" => false,
                "failed" | "corrupted" => true,
                "named"
                    if group
                        .named
                        .iter()
                        .any(|name| without.contains(&name.as_str())) =>
                {
                    true
                }
                _ => continue,
            };
            let same = |test: &TestReport| test.purpose == group.purpose && test.rail == group.rail;
            let place = tests.iter().position(same).unwrap_or_else(|| {
                tests.push(TestReport {
                    purpose: group.purpose.clone(),
                    rail: group.rail.clone(),
                    with: Vec::new(),
                    passed: 0,
                    failed: 0,
                });
                tests.len() - 1
            });
            let test = &mut tests[place];
            test.failed += u32::from(failed);
            test.passed += u32::from(!failed);
            for node in &group.nodes {
                let known = test.with.contains(node) || without.contains(&node.as_str());
                if !known && test.with.len() < PARTNERS_MAX {
                    test.with.push(node.clone());
                }
            }
        }
        tests
    }
}
