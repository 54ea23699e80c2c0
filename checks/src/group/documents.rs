//! Documents that a program on every node hands back through the launcher, in short lines.
//!
//! Launchers cut long lines and mix those of several nodes, so a document travels in pieces, each a [`NodeLine`] with the
//! number that the launcher gave its process. A node that gives no sign of life any more is given up without waiting for
//! the launch to end, and the others lose nothing by it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::format::launcher;
use crate::host::{Ended, Listener, Output};
use crate::rank::LINE_MAX;

use super::launch::StepId;
use super::names::Names;

/// How often a node gives a sign of life.
pub const BEAT: Duration = Duration::from_secs(2);

/// A node that gave no sign of life for so long is given up: ten signs that did not come.
const SILENCE: Duration = Duration::from_secs(20);

/// How long a node may take to its first sign: thousands of processes are not started at once.
const START: Duration = Duration::from_secs(60);

/// How long nodes may take to end after the last has told all: they keep their results then.
const KEEPING: Duration = Duration::from_secs(5);

/// The longest document of a node. The largest that dhc writes, of a node with 72 links of each of its GPUs, is a tenth.
const DOCUMENT_MAX: usize = 4 << 20;

/// How much of what a launcher or node says goes into a message.
const SAID_MAX: usize = 300;

/// One line of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeLine {
    /// The program has started.
    Hello {
        /// The number of the process in its launch.
        task: u32,
        /// What the host calls itself.
        host: String,
        /// What Slurm calls it, which may be something else.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        /// The step of Slurm that it belongs to, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<StepId>,
    },
    /// A sign of life.
    At {
        /// The process.
        task: u32,
        /// What it is doing.
        doing: String,
    },
    /// The next piece of the document.
    Piece {
        /// The process.
        task: u32,
        /// The piece.
        text: String,
    },
    /// The document is whole.
    Whole {
        /// The process.
        task: u32,
        /// Its length in bytes.
        bytes: u64,
    },
    /// There will be no document.
    Failed {
        /// The process.
        task: u32,
        /// Why.
        error: String,
    },
}

impl NodeLine {
    /// The lines that carry a document.
    pub fn of_document(task: u32, document: &str) -> Vec<NodeLine> {
        let mut lines = Vec::new();
        let mut piece = String::new();
        let mut room = PIECE_MAX;
        for c in document.chars() {
            let needed = written_length(c);
            if needed > room {
                let text = std::mem::take(&mut piece);
                lines.push(NodeLine::Piece { task, text });
                room = PIECE_MAX;
            }
            room -= needed;
            piece.push(c);
        }
        lines.push(NodeLine::Piece { task, text: piece });
        let bytes = document.len() as u64;
        lines.push(NodeLine::Whole { task, bytes });
        lines
    }
}

/// What a line holds beside its piece, and more.
const PIECE_MAX: usize = LINE_MAX - 60;

/// How many bytes a character takes in JSON.
fn written_length(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    }
}

/// What hears of the nodes of a launch.
pub trait Audience {
    /// A node is doing this now.
    fn doing(&mut self, node: &str, what: &str);
    /// A node's document, or why there is none; once for every node.
    fn document(&mut self, node: &str, document: Result<Vec<u8>, String>);
    /// Whether nobody wants to hear more.
    fn is_over(&self) -> bool;
}

/// The documents of one launch, on their way.
pub(super) struct Documents<'a> {
    nodes: Vec<Told>,
    names: Names,
    /// The node of each process that said hello.
    tasks: BTreeMap<u32, usize>,
    begun: Instant,
    last_end: Instant,
    step: Option<StepId>,
    audience: &'a mut dyn Audience,
}

/// What a node has told so far.
struct Told {
    name: String,
    heard: Option<Instant>,
    text: Vec<u8>,
    is_done: bool,
}

impl<'a> Documents<'a> {
    pub(super) fn of(nodes: &[String], names: Names, audience: &'a mut dyn Audience) -> Self {
        let told = |name: &String| Told {
            name: name.clone(),
            heard: None,
            text: Vec::new(),
            is_done: false,
        };
        Documents {
            nodes: nodes.iter().map(told).collect(),
            names,
            tasks: BTreeMap::new(),
            begun: Instant::now(),
            last_end: Instant::now(),
            step: None,
            audience,
        }
    }

    /// The step that Slurm made for the launch, if a node told.
    pub(super) fn step(&self) -> Option<StepId> {
        self.step
    }

    fn hear(&mut self, line: &[u8], now: Instant) {
        let Ok(line) = serde_json::from_slice::<NodeLine>(line) else {
            return;
        };
        let (NodeLine::Hello { task, .. }
        | NodeLine::At { task, .. }
        | NodeLine::Piece { task, .. }
        | NodeLine::Whole { task, .. }
        | NodeLine::Failed { task, .. }) = line;
        if let NodeLine::Hello {
            host, node, step, ..
        } = &line
            && let Some(node) = self.names.place_either(node.as_deref(), host)
        {
            // Of several processes that call themselves so the first one counts.
            if !self.tasks.values().any(|known| *known == node) {
                self.tasks.entry(task).or_insert(node);
            }
            self.step = self.step.or(*step);
        }
        let known = self.tasks.get(&task).copied();
        let Some(place) = known.filter(|place| !self.nodes[*place].is_done) else {
            return;
        };
        let node = &mut self.nodes[place];
        node.heard = Some(now);
        match line {
            NodeLine::Hello { .. } => self.audience.doing(&node.name, ""),
            NodeLine::At { doing, .. } => self.audience.doing(&node.name, &doing),
            NodeLine::Piece { text, .. } => {
                node.text.extend_from_slice(text.as_bytes());
                if node.text.len() > DOCUMENT_MAX {
                    let most = DOCUMENT_MAX >> 20;
                    self.end(
                        place,
                        Err(format!(
                            "its document is longer than {most} MiB; it is kept on the node"
                        )),
                    );
                }
            }
            NodeLine::Whole { bytes, .. } => {
                let text = std::mem::take(&mut node.text);
                let came = text.len() as u64;
                let whole = if came == bytes {
                    Ok(text)
                } else {
                    Err(format!(
                        "{came} of {bytes} bytes of its document came through; it is kept on the node"
                    ))
                };
                self.end(place, whole);
            }
            NodeLine::Failed { error, .. } => self.end(place, Err(error)),
        }
    }

    fn end(&mut self, place: usize, document: Result<Vec<u8>, String>) {
        let node = &mut self.nodes[place];
        if !std::mem::replace(&mut node.is_done, true) {
            node.text = Vec::new();
            self.last_end = Instant::now();
            self.audience.document(&node.name, document);
        }
    }

    /// Gives up nodes that are silent.
    fn give_up(&mut self, now: Instant) {
        for place in 0..self.nodes.len() {
            let node = &self.nodes[place];
            let (since, limit) = match node.heard {
                Some(heard) => (heard, SILENCE),
                None => (self.begun, START),
            };
            let silent = now.saturating_duration_since(since);
            if !node.is_done && silent > limit {
                let why = format!("it gave no sign of life for {} s", silent.as_secs());
                self.end(place, Err(why));
            }
        }
    }

    /// The launch has ended: whoever has not delivered by now never will.
    pub(super) fn launch_has_ended(mut self, output: &Output) {
        let text = String::from_utf8_lossy(&output.stderr.kept()).into_owned();
        let said = output.stderr.last_words();
        let by_us = matches!(output.ended, Ended::TimedOut | Ended::Dismissed);
        for complaint in launcher::complaints(&text).into_iter().filter(|_| !by_us) {
            if let Some(node) = self.names.place(complaint.host) {
                self.end(node, Err(short(&complaint.why)));
            }
        }
        for place in 0..self.nodes.len() {
            let last = said.trim().lines().last().unwrap_or_default();
            let words = if last.is_empty() { "" } else { ": " };
            let why = format!(
                "the launcher ended ({}){words}{}",
                output.ended,
                short(last)
            );
            self.end(place, Err(why));
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(SAID_MAX).collect()
}

impl Listener for Documents<'_> {
    fn line(&mut self, line: &[u8]) {
        self.hear(line, Instant::now());
    }

    fn is_enough(&mut self) -> bool {
        self.give_up(Instant::now());
        let all_told = self.nodes.iter().all(|node| node.is_done);
        self.audience.is_over() || (all_told && self.last_end.elapsed() > KEEPING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(nodes: &[String], audience: &'a mut dyn Audience) -> Documents<'a> {
        Documents::of(nodes, Names::of(nodes), audience)
    }

    #[derive(Default)]
    struct Heard(Vec<(String, Result<Vec<u8>, String>)>);

    impl Audience for Heard {
        fn doing(&mut self, _: &str, _: &str) {}
        fn document(&mut self, node: &str, document: Result<Vec<u8>, String>) {
            self.0.push((node.to_owned(), document));
        }
        fn is_over(&self) -> bool {
            false
        }
    }

    fn line(line: &NodeLine) -> Vec<u8> {
        let text = serde_json::to_vec(line).unwrap();
        assert!(text.len() <= LINE_MAX, "{}", text.len());
        text
    }

    fn hello(task: u32, host: &str) -> Vec<u8> {
        line(&NodeLine::Hello {
            task,
            node: None,
            host: host.to_owned(),
            step: None,
        })
    }

    #[test]
    fn documents_of_two_nodes_come_through_whole_however_their_lines_are_mixed() {
        let long = "\"\\\n\u{1}€𝕏 and so on ".repeat(500);
        let mut heard = Heard::default();
        let mut documents = of(&["h1".into(), "h2".into()], &mut heard);
        documents.line(&hello(7, "h2.cluster.example"));
        documents.line(&hello(3, "h1"));
        let (one, other) = (
            NodeLine::of_document(3, &long),
            NodeLine::of_document(7, "short"),
        );
        let mut other = other.iter();
        for told in &one {
            documents.line(&line(told));
            documents.line(b"noise");
            if let Some(told) = other.next() {
                documents.line(&line(told));
            }
        }
        // They keep their results before they end.
        assert!(!documents.is_enough());
        heard.0.sort();
        let whole = |node: &str, text: &str| (node.to_owned(), Ok(text.as_bytes().to_vec()));
        assert_eq!(heard.0, [whole("h1", &long), whole("h2", "short")]);
    }

    #[test]
    fn a_document_with_a_hole_is_none() {
        let mut heard = Heard::default();
        let mut documents = of(&["h1".into()], &mut heard);
        documents.line(&hello(0, "h1"));
        for told in NodeLine::of_document(0, &"x".repeat(5_000)).iter().skip(1) {
            documents.line(&line(told));
        }
        assert!(heard.0[0].1.as_ref().unwrap_err().contains("of 5000 bytes"));
    }

    #[test]
    fn a_node_that_falls_silent_is_given_up_and_the_others_are_waited_for() {
        let mut heard = Heard::default();
        let mut documents = of(&["h1".into(), "h2".into()], &mut heard);
        let begun = Instant::now();
        documents.hear(&hello(0, "h1"), begun);
        documents.hear(&hello(1, "h2"), begun + SILENCE);
        documents.give_up(begun + SILENCE + BEAT);
        assert_eq!(heard.0.len(), 1);
        assert_eq!(heard.0[0].0, "h1");
        assert!(
            heard.0[0]
                .1
                .as_ref()
                .unwrap_err()
                .contains("no sign of life")
        );
    }

    #[test]
    fn a_document_without_end_is_cut_off() {
        let mut heard = Heard::default();
        let mut documents = of(&["h1".into()], &mut heard);
        documents.line(&hello(0, "h1"));
        let piece = line(&NodeLine::Piece {
            task: 0,
            text: "x".repeat(800),
        });
        for _ in 0..=DOCUMENT_MAX / 800 {
            documents.line(&piece);
        }
        assert!(
            heard.0[0]
                .1
                .as_ref()
                .unwrap_err()
                .contains("longer than 4 MiB")
        );
    }
}
