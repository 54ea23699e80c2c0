//! How nodes are parted into the groups of one wave.

use std::collections::BTreeMap;

use super::evidence::Evidence;
use super::{Group, Node, Purpose, Random};

/// Among so many partings by chance the one that repeats fewest failed groups is taken.
const RESHUFFLES: usize = 8;

/// Parts all active nodes by chance into groups as small as the launches allow. A node that was named gets one partner, so
/// that it costs nobody else the measurement.
pub(super) fn by_chance(evidence: &Evidence, groups_max: usize, random: &mut Random) -> Vec<Group> {
    let tries: Vec<Vec<Group>> = (0..RESHUFFLES)
        .map(|_| one_by_chance(evidence, groups_max, random))
        .collect();
    let repeated = |groups: &Vec<Group>| {
        let known = |group: &&Group| evidence.has_failed(&group.nodes);
        groups.iter().filter(known).count()
    };
    tries.into_iter().min_by_key(repeated).unwrap_or_default()
}

fn one_by_chance(evidence: &Evidence, groups_max: usize, random: &mut Random) -> Vec<Group> {
    let mut nodes = evidence.active();
    random.shuffle(&mut nodes);
    let (named, mut rest): (Vec<Node>, Vec<Node>) = nodes
        .into_iter()
        .partition(|node| evidence.nodes[*node].is_to_be_tried());
    let mut groups = Vec::new();
    let mut named = named.into_iter();
    while groups.len() + 1 < groups_max
        && let Some(one) = named.next()
    {
        let Some(partner) = rest.pop().or_else(|| named.next()) else {
            break;
        };
        groups.push(Group::new(vec![one, partner], Purpose::Part));
    }
    let slots = groups_max - groups.len();
    groups.extend(split(
        evidence,
        rest,
        Purpose::Part,
        slots,
        smallest(evidence),
    ));
    groups
}

/// Where the whole has failed the smallest groups tell most. Where it has passed the parts only confirm that, and each group
/// more is one more that may fail for nothing: about √n groups of √n nodes.
fn smallest(evidence: &Evidence) -> usize {
    if evidence.whole_passed() {
        evidence.nodes.len().isqrt().max(2)
    } else {
        2
    }
}

/// Parts everybody who is not accused, into groups that are about equally likely to hold the one who hides: small ones of
/// those who were suspected before, large ones of the others.
pub(super) fn by_belief(evidence: &Evidence, groups_max: usize, random: &mut Random) -> Vec<Group> {
    let mut nodes = evidence.not_accused();
    random.shuffle(&mut nodes);
    nodes.sort_by(|a, b| evidence.belief(*b).total_cmp(&evidence.belief(*a)));
    let slots = groups_max.min(nodes.len() / 2).max(1);
    let mass: f64 = nodes.iter().map(|node| evidence.belief(*node)).sum();
    let mut groups: Vec<Vec<Node>> = vec![Vec::new()];
    let mut filled = 0.0;
    for (place, node) in nodes.iter().enumerate() {
        let last = groups.last().map_or(0, Vec::len);
        let full = filled * slots as f64 >= mass * groups.len() as f64;
        if last >= 2 && full && groups.len() < slots && nodes.len() - place >= 2 {
            groups.push(Vec::new());
        }
        filled += evidence.belief(*node);
        if let Some(group) = groups.last_mut() {
            group.push(*node);
        }
    }
    groups
        .into_iter()
        .map(|nodes| Group::new(nodes, Purpose::Part))
        .collect()
}

/// Splits nodes into groups of at least two, no more than there are launches; one that is left over joins the last.
pub(super) fn split(
    evidence: &Evidence,
    nodes: Vec<Node>,
    purpose: Purpose,
    slots: usize,
    smallest: usize,
) -> Vec<Group> {
    let count = (nodes.len() / smallest).clamp(1, slots.max(1));
    if nodes.len() < 2 {
        return Vec::new();
    }
    if let Some(groups) = split_by_leaf(evidence, &nodes, purpose, count) {
        return groups;
    }
    // Three nodes that fail say less than two: where there are but three, one rests and is looked at next time.
    let shared = if nodes.len() == 3 {
        &nodes[..2]
    } else {
        &nodes
    };
    evenly(shared, count)
        .map(|part| Group::new(part.to_vec(), purpose))
        .collect()
}

/// The same with no group over two leaves, as far as there are launches enough: so the way between leaves makes no node a
/// suspect. Where the whole has passed that way is good, and parts may as well try it again.
fn split_by_leaf(
    evidence: &Evidence,
    nodes: &[Node],
    purpose: Purpose,
    count: usize,
) -> Option<Vec<Group>> {
    let leaves = evidence.leaves().filter(|_| !evidence.whole_passed())?;
    let mut under: BTreeMap<_, Vec<Node>> = BTreeMap::new();
    for node in nodes {
        under.entry(leaves[*node]).or_default().push(*node);
    }
    // Single nodes have to be measured with those of other leaves.
    let (single, under): (Vec<_>, Vec<_>) = under.into_values().partition(|nodes| nodes.len() < 2);
    let mut parts = under;
    let single: Vec<Node> = single.into_iter().flatten().collect();
    if single.len() >= 2 {
        parts.push(single);
    } else if let Some(last) = parts.last_mut() {
        last.extend(single);
    }
    if parts.len() > count || nodes.len() <= 3 {
        return None;
    }
    let more = count - parts.len();
    let groups = parts.iter().flat_map(|part| {
        let shares = (1 + part.len() * more / nodes.len()).min(part.len() / 2);
        evenly(part, shares).map(|share| Group::new(share.to_vec(), purpose))
    });
    Some(groups.collect())
}

/// So many parts of sizes that differ by one at most, the larger ones first.
fn evenly(nodes: &[Node], parts: usize) -> impl Iterator<Item = &[Node]> {
    let (size, larger) = (nodes.len() / parts, nodes.len() % parts);
    let mut rest = nodes;
    (0..parts).map(move |place| {
        let (part, after) = rest.split_at(size + usize::from(place < larger));
        rest = after;
        part
    })
}
