//! Nodes by the names that hosts give themselves.

use std::collections::BTreeMap;

/// The names of some nodes, to be looked up once for each of thousands of ranks.
pub(super) struct Names {
    nodes: usize,
    whole: BTreeMap<String, usize>,
    first_part: BTreeMap<String, usize>,
}

impl Names {
    pub(super) fn of<'a>(names: impl IntoIterator<Item = &'a String>) -> Names {
        let mut all = Names {
            nodes: 0,
            whole: BTreeMap::new(),
            first_part: BTreeMap::new(),
        };
        for name in names {
            all.whole.entry(name.clone()).or_insert(all.nodes);
            let part = first_part(name).to_owned();
            all.first_part.entry(part).or_insert(all.nodes);
            all.nodes += 1;
        }
        all
    }

    /// Which of the nodes calls itself `host`, or by the first part of its name. One that is alone is the one, since a launch
    /// on this machine has one node, whatever its name.
    pub(super) fn place(&self, host: &str) -> Option<usize> {
        if self.nodes == 1 {
            return Some(0);
        }
        let by_part = || self.first_part.get(first_part(host));
        self.whole.get(host).or_else(by_part).copied()
    }
}

fn first_part(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}
