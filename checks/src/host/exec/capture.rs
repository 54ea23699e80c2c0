//! What a tool writes, while it runs and afterwards: all of it counted and digested, beginning and end kept.

use std::io::Read;
use std::os::fd::AsFd;

use sha2::{Digest, Sha256};

use super::redact;

/// How much of the beginning and of the end of an output is kept, and stands in a result as evidence.
pub(super) const KEPT_BYTES: usize = 256 << 10;

/// How much of the end of an output stands in a message, and how much of its first line.
const LAST_WORDS_BYTES: usize = 2 << 10;
const FIRST_LINE_BYTES: usize = 512;

/// What came out of a pipe: all that was written is counted and digested, the beginning and the end are kept.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Length of all that was written.
    pub total_bytes: u64,
    /// SHA-256 of all that was written.
    pub sha256: String,
}

impl Captured {
    /// The beginning of something `total_bytes` long; the digest is of what is kept.
    pub(super) fn beginning(bytes: Vec<u8>, total_bytes: u64) -> Self {
        Captured {
            total_bytes: total_bytes.max(bytes.len() as u64),
            sha256: hex(Sha256::digest(&bytes).as_slice()),
            head: bytes,
            tail: Vec::new(),
        }
    }

    /// What is kept, which is all of it unless [`Captured::is_truncated`].
    pub fn kept(&self) -> Vec<u8> {
        [self.head.as_slice(), self.tail.as_slice()].concat()
    }

    /// Whether something between beginning and end was dropped.
    pub fn is_truncated(&self) -> bool {
        self.total_bytes > (self.head.len() + self.tail.len()) as u64
    }

    /// The end of it, for a message: printable, without secrets, no longer than people read.
    pub fn last_words(&self) -> String {
        let kept = self.kept();
        let end = &kept[kept.len().saturating_sub(LAST_WORDS_BYTES)..];
        redact::text(&escape(end)).trim().to_owned()
    }

    /// Its first line that is not blank, for a message: printable, without secrets, no longer than people read.
    pub fn first_line(&self) -> String {
        let is_blank = |line: &&[u8]| line.trim_ascii().is_empty();
        let mut lines = self.head.split(|byte| *byte == b'\n');
        let line = lines.find(|line| !is_blank(line)).unwrap_or_default();
        let beginning = &line[..line.len().min(FIRST_LINE_BYTES)];
        redact::text(&escape(beginning)).trim().to_owned()
    }

    /// The beginning and the end for people: printable, without secrets.
    pub fn quotation(&self) -> String {
        if !self.is_truncated() {
            return redact::text(&escape(&self.kept()));
        }
        let left_out = self.total_bytes - (self.head.len() + self.tail.len()) as u64;
        redact::text(&format!(
            "{}\n[... {left_out} bytes left out ...]\n{}",
            escape(&self.head),
            escape(&self.tail)
        ))
    }
}

/// Bytes as text that a terminal and a reader of JSON can bear, and from which they can be had back: control characters
/// and bytes that are not UTF-8 become `\x1b` and the like, and a backslash becomes two.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' | '\t' => text.push(c),
                '\\' => text.push_str(r"\\"),
                c if c.is_control() => text.push_str(&format!("\\x{:02x}", c as u32)),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// One of the tool's outputs while it runs.
pub(super) struct Pipe {
    pub(super) source: Option<Source>,
    captured: Captured,
    digest: Sha256,
    kept_bytes: usize,
}

pub(super) enum Source {
    Out(std::process::ChildStdout),
    Err(std::process::ChildStderr),
}

impl From<std::process::ChildStdout> for Source {
    fn from(pipe: std::process::ChildStdout) -> Self {
        Source::Out(pipe)
    }
}

impl From<std::process::ChildStderr> for Source {
    fn from(pipe: std::process::ChildStderr) -> Self {
        Source::Err(pipe)
    }
}

impl Source {
    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Source::Out(pipe) => pipe.as_fd(),
            Source::Err(pipe) => pipe.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Source::Out(pipe) => pipe.read(buffer),
            Source::Err(pipe) => pipe.read(buffer),
        }
    }
}

impl Pipe {
    pub(super) fn new(source: impl Into<Source>, kept_bytes: usize) -> Self {
        Pipe {
            source: Some(source.into()),
            captured: Captured::default(),
            digest: Sha256::new(),
            kept_bytes,
        }
    }

    /// Reads once, and returns what was read; called when there is something, or the end.
    pub(super) fn read(&mut self) -> Vec<u8> {
        let Some(source) = &mut self.source else {
            return Vec::new();
        };
        let mut buffer = vec![0; 64 << 10];
        match source.read(&mut buffer) {
            Ok(0) | Err(_) => {
                self.source = None;
                Vec::new()
            }
            Ok(length) => {
                buffer.truncate(length);
                self.take(&buffer);
                buffer
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        let captured = &mut self.captured;
        captured.total_bytes += bytes.len() as u64;
        let room = self.kept_bytes - captured.head.len();
        let (head, tail) = bytes.split_at(room.min(bytes.len()));
        captured.head.extend_from_slice(head);
        captured.tail.extend_from_slice(tail);
        // Cut only now and then, so that a flood is not copied for every read.
        if captured.tail.len() > 2 * self.kept_bytes {
            captured.tail.drain(..captured.tail.len() - self.kept_bytes);
        }
    }

    pub(super) fn finish(mut self) -> Captured {
        let excess = self.captured.tail.len().saturating_sub(self.kept_bytes);
        self.captured.tail.drain(..excess);
        self.captured.sha256 = hex(self.digest.finalize().as_slice());
        self.captured
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
