//! The nodes of a cluster run as a picture of a few lines, from two nodes to tens of thousands. Pure.
//!
//! Few nodes stand there by name. Of more there is a sign for each, and of more than fit a sign for several, which is that
//! of the gravest of them, so that the one node among thousands is seen. A sign says by itself what its colour says.

use std::collections::{BTreeMap, HashMap};

use crate::run::NodeNow;

/// How many of the stages that are over are shown.
const STAGES_MAX: usize = 6;

/// Columns between two cells, and the room for the name of the first node of a row.
const GAP: usize = 2;
const NAME_MAX: usize = 16;

const ALL: [NodeNow; 7] = [
    NodeNow::Passed,
    NodeNow::Waiting,
    NodeNow::Measuring,
    NodeNow::InFailed,
    NodeNow::Suspect,
    NodeNow::Out,
    NodeNow::Accused,
];

impl NodeNow {
    fn sign(self) -> char {
        match self {
            NodeNow::Passed => '+',
            NodeNow::Waiting => '.',
            NodeNow::Measuring => '~',
            NodeNow::InFailed => '!',
            NodeNow::Suspect => '?',
            NodeNow::Out => '-',
            NodeNow::Accused => 'X',
        }
    }

    fn word(self) -> &'static str {
        match self {
            NodeNow::Passed => "passed",
            NodeNow::Waiting => "waiting",
            NodeNow::Measuring => "measuring",
            NodeNow::InFailed => "in a failed group",
            NodeNow::Suspect => "suspect",
            NodeNow::Out => "out",
            NodeNow::Accused => "accused",
        }
    }

    /// The colour, as terminals are told.
    fn colour(self) -> &'static str {
        match self {
            NodeNow::Passed => "\x1b[32m",
            NodeNow::Waiting | NodeNow::Out => "\x1b[2m",
            NodeNow::Measuring => "\x1b[36m",
            NodeNow::InFailed | NodeNow::Suspect => "\x1b[33m",
            NodeNow::Accused => "\x1b[1;31m",
        }
    }
}

/// Where the nodes stand, and what is over.
#[derive(Debug)]
pub(super) struct Picture {
    names: Vec<String>,
    places: HashMap<String, usize>,
    now: Vec<NodeNow>,
    doing: BTreeMap<usize, String>,
    stages: Vec<(String, String)>,
}

impl Picture {
    pub(super) fn of(names: &[String]) -> Picture {
        let places = names.iter().cloned().enumerate();
        Picture {
            names: names.to_vec(),
            places: places.map(|(place, name)| (name, place)).collect(),
            now: vec![NodeNow::Waiting; names.len()],
            doing: BTreeMap::new(),
            stages: Vec::new(),
        }
    }

    pub(super) fn now(&mut self, name: &str, now: NodeNow) {
        if let Some(place) = self.places.get(name) {
            self.now[*place] = now;
            self.doing.remove(place);
        }
    }

    pub(super) fn doing(&mut self, name: &str, what: &str) {
        if let Some(place) = self.places.get(name) {
            self.doing.insert(*place, what.to_owned());
        }
    }

    pub(super) fn is_over(&mut self, what: &str, outcome: &str) {
        self.stages.push((what.to_owned(), outcome.to_owned()));
    }

    /// What nodes that are checked alone are doing, and how many do so.
    pub(super) fn alone(&self) -> Option<String> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for what in self.doing.values().filter(|what| !what.is_empty()) {
            *counts.entry(what).or_default() += 1;
        }
        let counts = counts
            .into_iter()
            .map(|(what, count)| format!("{what} on {count}"));
        let counts: Vec<String> = counts.collect();
        (!counts.is_empty()).then(|| format!("instance level: {}", counts.join(", ")))
    }

    /// The picture in no more than `height` lines of `width` columns.
    pub(super) fn lines(&self, width: usize, height: usize) -> Vec<String> {
        let stages = self.stages.len().min(STAGES_MAX).min(height / 3);
        let over = self.stages[self.stages.len() - stages..].iter();
        let mut lines: Vec<String> = over
            .map(|(what, outcome)| cut(&format!("  {what:<24} {outcome}"), width))
            .collect();
        let rows = height.saturating_sub(lines.len() + 1).max(1);
        lines.extend(
            self.by_name(width, rows)
                .unwrap_or_else(|| self.by_sign(width, rows)),
        );
        lines.push(self.legend());
        lines
    }

    /// Every node with its name, where that fits.
    fn by_name(&self, width: usize, rows: usize) -> Option<Vec<String>> {
        let cell = self.names.iter().map(String::len).max()? + 1 + GAP;
        let in_row = width.saturating_sub(GAP) / cell;
        if in_row == 0 || self.names.len().div_ceil(in_row) > rows {
            return None;
        }
        let all: Vec<(&String, &NodeNow)> = self.names.iter().zip(&self.now).collect();
        let row = |nodes: &[(&String, &NodeNow)]| {
            let cells = nodes.iter().map(|(name, now)| {
                let text = format!("{}{name}", now.sign());
                format!("  {}{text:<1$}\x1b[0m", now.colour(), cell - GAP)
            });
            cells.collect::<String>()
        };
        Some(all.chunks(in_row).map(row).collect())
    }

    /// A sign for every node, or for several.
    fn by_sign(&self, width: usize, rows: usize) -> Vec<String> {
        let in_row = width.saturating_sub(NAME_MAX + 2 * GAP).max(1);
        let of_cell = self.names.len().div_ceil(in_row * rows).max(1);
        let row = |(first, nodes): (usize, &[NodeNow])| {
            let name = cut(&self.names[first * in_row * of_cell], NAME_MAX);
            let mut line = format!("  {name:<NAME_MAX$}  ");
            let mut last = None;
            for nodes in nodes.chunks(of_cell) {
                let gravest = nodes.iter().max().copied().unwrap_or(NodeNow::Waiting);
                if last != Some(gravest) {
                    line.push_str("\x1b[0m");
                    line.push_str(gravest.colour());
                    last = Some(gravest);
                }
                line.push(gravest.sign());
            }
            line + "\x1b[0m"
        };
        self.now
            .chunks(in_row * of_cell)
            .enumerate()
            .map(row)
            .collect()
    }

    fn legend(&self) -> String {
        let counted = ALL.into_iter().filter_map(|state| {
            let count = self.now.iter().filter(|now| **now == state).count();
            let (colour, sign, word) = (state.colour(), state.sign(), state.word());
            (count > 0).then(|| format!("  {colour}{sign} {count} {word}\x1b[0m"))
        });
        counted.collect()
    }
}

/// The beginning of a text that is too long.
pub(super) fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(nodes: usize) -> Picture {
        let names: Vec<String> = (1..=nodes).map(|node| format!("node-{node}")).collect();
        let mut picture = Picture::of(&names);
        picture.is_over("roll call", "all answered");
        for name in &names {
            picture.now(name, NodeNow::Passed);
        }
        picture
    }

    /// The lines without colours.
    fn plain(picture: &Picture, width: usize, height: usize) -> Vec<String> {
        let lines = picture.lines(width, height).into_iter();
        let plain = lines.map(|line| {
            let mut rest = line.as_str();
            let mut text = String::new();
            while let Some((before, after)) = rest.split_once('\x1b') {
                text.push_str(before);
                rest = after.split_once('m').unwrap().1;
            }
            text + rest
        });
        plain.collect()
    }

    #[test]
    fn few_nodes_stand_by_name_with_what_they_are() {
        let mut picture = picture(3);
        picture.now("node-2", NodeNow::Accused);
        assert_eq!(
            plain(&picture, 80, 20),
            [
                "  roll call                all answered",
                "  +node-1  Xnode-2  +node-3",
                "  + 2 passed  X 1 accused",
            ]
        );
    }

    #[test]
    fn the_one_bad_node_among_thousands_is_seen_however_small_the_terminal() {
        for (nodes, width, height) in [
            (200, 60, 12),
            (1_024, 80, 24),
            (16_384, 80, 24),
            (16_384, 30, 6),
        ] {
            let mut picture = picture(nodes);
            picture.now("node-77", NodeNow::Suspect);
            let lines = plain(&picture, width, height);
            assert!(lines.len() <= height, "{lines:#?}");
            let map = &lines[1..lines.len() - 1];
            assert_eq!(map.concat().matches('?').count(), 1, "{lines:#?}");
            for line in map {
                assert!(line.chars().count() <= width, "{lines:#?}");
            }
            assert!(lines.last().unwrap().contains("? 1 suspect"), "{lines:#?}");
        }
    }

    #[test]
    fn what_nodes_do_alone_is_counted() {
        let mut picture = picture(3);
        picture.doing("node-1", "host");
        picture.doing("node-2", "host");
        picture.doing("node-3", "nvlink");
        picture.now("node-3", NodeNow::Waiting);
        assert_eq!(picture.alone().unwrap(), "instance level: host on 2");
    }
}
