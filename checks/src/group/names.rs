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

    /// The same, where some hosts call themselves otherwise than the launcher does: by node, what it calls itself.
    pub(super) fn with_own(mut self, own: &BTreeMap<String, String>) -> Names {
        for (node, host) in own {
            if let Some(place) = self.whole.get(node).copied() {
                self.whole.entry(host.clone()).or_insert(place);
            }
        }
        self
    }

    /// Which of the nodes a process is on that the launcher says to be on `node`, if it says so, and whose host calls itself
    /// `host`.
    pub(super) fn place_either(&self, node: Option<&str>, host: &str) -> Option<usize> {
        node.and_then(|node| self.place(node))
            .or_else(|| self.place(host))
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
