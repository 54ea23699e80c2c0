//! How suspects are confirmed: with partners that are good, each time with another one.

use std::collections::BTreeSet;

use super::evidence::{Evidence, SUSPECT};
use super::parts;
use super::{Group, Node, Purpose, Random};

/// Tries the open nodes with good partners: each alone if there are launches and partners enough, packed otherwise. Once
/// every suspect has failed alone among good nodes, all the others are measured beside them.
pub(super) fn confirm(
    evidence: &mut Evidence,
    open: Vec<Node>,
    groups_max: usize,
    random: &mut Random,
) -> Vec<Group> {
    let mut good = partners_for(evidence, &open, random);
    let (strong, weak): (Vec<Node>, Vec<Node>) = open.iter().partition(|node| {
        evidence.belief(**node) > SUSPECT || evidence.nodes[**node].is_to_be_tried()
    });
    // Those that passed alone before are looked at once more among all the others.
    let closing_beside = !strong.is_empty()
        && strong.iter().all(|node| evidence.witnesses(*node) > 0)
        && weak
            .iter()
            .all(|node| !evidence.nodes[*node].partners.is_empty());
    let mut tried =
        if closing_beside || (!strong.is_empty() && weak.len() > strong.len() + groups_max / 2) {
            strong
        } else {
            open
        };
    let is_tried: BTreeSet<Node> = tried.iter().copied().collect();
    let others = weak.iter().filter(|node| !is_tried.contains(node));
    if evidence.leaves().is_some() {
        // Neighbours that are good, though not beyond doubt, are better partners than strangers.
        good.extend(others);
    } else if good.len() < tried.len() {
        // They are better partners than none.
        good.splice(0..0, others.copied());
    }
    random.shuffle(&mut tried);
    let slots = groups_max - usize::from(closing_beside);
    if good.len() < tried.len() && tried.len() <= 2 * good.len() {
        // Half of them alone tells more than all of them packed; the others have their turn in the next wave.
        tried.truncate(good.len());
    }
    let mut groups = if tried.len() <= slots && tried.len() <= good.len() {
        each_alone(evidence, tried, good)
    } else {
        packed(evidence, tried, good, slots)
    };
    if closing_beside {
        let busy: BTreeSet<Node> = groups
            .iter()
            .flat_map(|group| group.nodes.iter().copied())
            .collect();
        let mut rest = evidence.not_accused();
        rest.retain(|node| !busy.contains(node) && evidence.belief(*node) <= SUSPECT);
        if rest.len() >= 2 {
            groups.push(Group::new(rest, Purpose::Closing));
        }
    }
    groups
}

/// The good nodes, those in the least doubt last.
fn partners_for(evidence: &Evidence, open: &[Node], random: &mut Random) -> Vec<Node> {
    let open: BTreeSet<Node> = open.iter().copied().collect();
    let mut good = evidence.good();
    good.retain(|node| !open.contains(node));
    if good.is_empty() && open.len() == 1 {
        // The least suspected has to do as a partner.
        let mut others = evidence.not_accused();
        others.retain(|node| !open.contains(node));
        let belief = |node: &Node| evidence.belief(*node);
        good.extend(
            others
                .into_iter()
                .min_by(|a, b| belief(a).total_cmp(&belief(b))),
        );
    }
    random.shuffle(&mut good);
    good.sort_by(|a, b| evidence.belief(*b).total_cmp(&evidence.belief(*a)));
    good
}

fn each_alone(evidence: &mut Evidence, tried: Vec<Node>, mut good: Vec<Node>) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut waiting: Vec<Node> = tried.into_iter().rev().collect();
    while let Some(suspect) = waiting.pop() {
        let partner = partner(evidence, suspect, &mut good, &mut waiting);
        evidence.nodes[suspect].partners.insert(partner);
        groups.push(Group::new(vec![suspect, partner], Purpose::Suspect));
    }
    groups
}

/// Whom a suspect is tried with: a good node that is new to it, a neighbour first. Before it has failed with a good one of
/// these, no stranger: a slow uplink would make faulty nodes of all who are under it.
fn partner(
    evidence: &Evidence,
    suspect: Node,
    good: &mut Vec<Node>,
    waiting: &mut Vec<Node>,
) -> Node {
    let new = |partner: &Node| !evidence.nodes[suspect].partners.contains(partner);
    let near = |partner: &Node| evidence.are_neighbours(suspect, *partner);
    if let Some(place) = good.iter().rposition(|node| near(node) && new(node)) {
        return good.remove(place);
    }
    if !evidence.failed_at_home(suspect) {
        let suits = |place: &usize| near(&waiting[*place]) && new(&waiting[*place]);
        let neighbours = (0..waiting.len()).filter(suits);
        let belief = |place: &usize| evidence.belief(waiting[*place]);
        if let Some(place) = neighbours.min_by(|a, b| belief(a).total_cmp(&belief(b))) {
            return waiting.remove(place);
        }
        if let Some(place) = good.iter().rposition(near) {
            return good.remove(place);
        }
    }
    // Where it was tried with all of them, one with whom it failed least: the others may be at the end of a slow path.
    let seldom = || {
        let failures = |place: &usize| evidence.failures_together(suspect, good[*place]);
        (0..good.len()).rev().min_by_key(failures).unwrap_or(0)
    };
    let place = good.iter().rposition(new).unwrap_or_else(seldom);
    good.remove(place)
}

fn packed(
    evidence: &mut Evidence,
    tried: Vec<Node>,
    mut good: Vec<Node>,
    slots: usize,
) -> Vec<Group> {
    let mut groups = parts::split(evidence, tried, Purpose::Suspect, slots, 2);
    for group in &mut groups {
        if let Some(partner) = partner_of_several(evidence, &group.nodes, &mut good) {
            group.nodes.push(partner);
            group.nodes.sort_unstable();
        }
        if group.nodes.len() <= 2 {
            for node in &group.nodes {
                let others = group.nodes.iter().filter(|other| *other != node);
                evidence.nodes[*node].partners.extend(others);
            }
        }
    }
    groups
}

/// A good node to go with several suspects; if they are all of one leaf, one of theirs or none.
fn partner_of_several(
    evidence: &Evidence,
    suspects: &[Node],
    good: &mut Vec<Node>,
) -> Option<Node> {
    let first = suspects.first()?;
    let near = |node: &Node| evidence.are_neighbours(*first, *node);
    if suspects.len() < 2 || !suspects.iter().all(near) {
        return good.pop();
    }
    let place = good.iter().rposition(near)?;
    Some(good.remove(place))
}
