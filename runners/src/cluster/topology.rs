//! Which leaf switch each node hangs on, from Slurm's `scontrol show topology` or a file in the format of `topology.conf`.
//!
//! Both are lines of `SwitchName=NAME Nodes=LIST`, other words left aside (Slurm, `topology.conf(5)`). `scontrol` lists the
//! nodes of higher switches as well, with `Level` above 0 and the switches below them; those are no leaves.

use std::collections::BTreeMap;

use dhc_checks::host::valid_host_name;

use crate::localise::Leaf;

/// The most nodes that a topology may list, and the most characters that it may have.
const NODES_MAX: usize = 65_536;
const TEXT_MAX: usize = 16 << 20;

/// The leaves of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The names of the leaf switches.
    pub leaves: Vec<String>,
    leaf_of: BTreeMap<String, Leaf>,
}

/// Why a topology is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// It names no leaf switch.
    #[error("it has no line `SwitchName=NAME Nodes=LIST`")]
    NoLeaves,
    /// A list of nodes cannot be understood.
    #[error("line {line}: `{list}` is no list of nodes, such as `node[1-4,7]`")]
    List {
        /// The line, from 1.
        line: usize,
        /// The list, cut.
        list: String,
    },
    /// A node hangs on two leaves.
    #[error("line {line}: node `{node}` was under another leaf before")]
    Twice {
        /// The line, from 1.
        line: usize,
        /// The node.
        node: String,
    },
    /// It is too large.
    #[error("it lists more than {NODES_MAX} nodes or has more than {TEXT_MAX} characters")]
    TooLarge,
}

impl Topology {
    /// Reads the lines of `text`.
    ///
    /// # Errors
    /// When it names no leaves, or cannot be understood: half a topology would accuse the wrong switch.
    pub fn parse(text: &str) -> Result<Topology, TopologyError> {
        if text.len() > TEXT_MAX {
            return Err(TopologyError::TooLarge);
        }
        let mut topology = Topology::default();
        for (line, words) in text.lines().enumerate() {
            let words = words.split('#').next().unwrap_or_default();
            let value = |key: &str| {
                let mut words = words.split_whitespace();
                words.find_map(|word| {
                    let (name, value) = word.split_once('=')?;
                    name.eq_ignore_ascii_case(key).then_some(value)
                })
            };
            let above = value("Level").is_some_and(|level| level != "0");
            let (Some(leaf), Some(list)) = (value("SwitchName"), value("Nodes")) else {
                continue;
            };
            if above || value("Switches").is_some_and(|below| !below.is_empty()) {
                continue;
            }
            let line = line + 1;
            let nodes = expand(list).ok_or_else(|| TopologyError::List {
                line,
                list: list.chars().take(100).collect(),
            })?;
            for node in nodes {
                if topology.leaf_of.len() >= NODES_MAX {
                    return Err(TopologyError::TooLarge);
                }
                let leaf = topology.leaves.len();
                if topology.leaf_of.insert(node.clone(), leaf).is_some() {
                    return Err(TopologyError::Twice { line, node });
                }
            }
            topology
                .leaves
                .push(leaf.chars().filter(|c| !c.is_control()).collect());
        }
        if topology.leaves.is_empty() {
            return Err(TopologyError::NoLeaves);
        }
        Ok(topology)
    }

    /// The leaf of each of these nodes; `None` if one of them has none.
    pub fn of(&self, nodes: &[String]) -> Option<Vec<Leaf>> {
        nodes
            .iter()
            .map(|node| self.leaf_of.get(node).copied())
            .collect()
    }
}

/// The nodes of a list in Slurm's notation: `h[1-4,7],login`, with numbers as wide as they are written.
fn expand(list: &str) -> Option<Vec<String>> {
    let mut nodes = Vec::new();
    for part in split_outside_brackets(list) {
        let mut names = vec![String::new()];
        let mut rest = part;
        while let Some((before, after)) = rest.split_once('[') {
            let (ranges, after) = after.split_once(']')?;
            let numbers = numbers(ranges)?;
            if names.len() * numbers.len() > NODES_MAX {
                return None;
            }
            names = names
                .iter()
                .flat_map(|name| {
                    numbers
                        .iter()
                        .map(move |number| format!("{name}{before}{number}"))
                })
                .collect();
            rest = after;
        }
        names.iter_mut().for_each(|name| name.push_str(rest));
        nodes.extend(names);
        if nodes.len() > NODES_MAX {
            return None;
        }
    }
    nodes
        .iter()
        .all(|name| valid_host_name(name))
        .then_some(nodes)
}

fn split_outside_brackets(list: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    list.split(move |c: char| {
        inside = (inside || c == '[') && c != ']';
        c == ',' && !inside
    })
}

/// `1-4,7` or `001-128`.
fn numbers(ranges: &str) -> Option<Vec<String>> {
    let mut numbers = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let is_number = |text: &str| {
            !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_number(first) || !is_number(last) {
            return None;
        }
        let (from, to): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if from > to || to - from >= NODES_MAX || numbers.len() > NODES_MAX {
            return None;
        }
        let width = first.len();
        numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(text: &str, nodes: &[&str]) -> Option<Vec<Leaf>> {
        let nodes: Vec<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
        Topology::parse(text).unwrap().of(&nodes)
    }

    #[test]
    fn what_scontrol_prints_gives_each_node_its_leaf() {
        let text = "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=h[1-2],gpu-[08-10] \n\
                    SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=h[3,5-6] \n\
                    SwitchName=spine Level=1 LinkSpeed=1 Nodes=h[1-3,5-6],gpu-[08-10] Switches=leaf[1-2] \n";
        assert_eq!(leaves(text, &["h2", "h6", "gpu-09"]), Some(vec![0, 1, 0]));
        assert_eq!(leaves(text, &["h2", "h4"]), None, "a node that has no leaf");
    }

    #[test]
    fn a_file_with_comments_is_read_as_slurm_reads_it() {
        let text = "# our network\nswitchname=a nodes=h1,h2 # left\n\nSwitchName=b Nodes=h3\nSwitchName=s Switches=a,b\n";
        assert_eq!(leaves(text, &["h1", "h3"]), Some(vec![0, 1]));
    }

    #[test]
    fn garbage_is_an_error_and_never_half_a_topology() {
        let refused = |text: &str| Topology::parse(text).unwrap_err();
        assert_eq!(refused(""), TopologyError::NoLeaves);
        assert_eq!(
            refused("No topology information available\n"),
            TopologyError::NoLeaves
        );
        for list in [
            "h[1-",
            "h[4-1]",
            "h[1-99999999]",
            "h[a]",
            "$(reboot)",
            "h[1-9][1-99999]",
            "h1,,h2",
        ] {
            let error = refused(&format!("SwitchName=a Nodes={list}\n"));
            assert!(
                matches!(error, TopologyError::List { line: 1, .. }),
                "{list}: {error}"
            );
        }
        let twice = refused("SwitchName=a Nodes=h1\nSwitchName=b Nodes=h[1-2]\n");
        assert!(
            matches!(twice, TopologyError::Twice { line: 2, .. }),
            "{twice}"
        );
    }
}
