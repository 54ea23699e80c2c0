//! How a run goes, for whoever watches it on a terminal: a line, or with many nodes a picture, that is gone when the run has
//! ended.

mod picture;

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::run::{NodeNow, Watcher};
use picture::{Picture, cut};

/// The terminal if it does not say how large it is, and what of it is never used.
const COLUMNS: u16 = 80;
const ROWS: u16 = 24;
const MARGIN: usize = 2;

/// Columns of the spinner and of the time before the first line.
const CLOCK: usize = 12;

/// Somebody to tell how it goes: a live view on a terminal, nobody otherwise.
pub fn watcher() -> Box<dyn Watcher> {
    if std::io::stderr().is_terminal() {
        Box::new(Live::new())
    } else {
        Box::new(Silent)
    }
}

struct Silent;

impl Watcher for Silent {
    fn begins(&self, _: &str, _: Duration) {}
    fn progress(&self, _: &str, _: &str) {}
    fn has_ended(&self, _: &str) {}
}

/// On standard error: what is under way, for how long, and how long it usually takes; below it the nodes, if there are many.
struct Live {
    line: ProgressBar,
    shown: Arc<Mutex<Shown>>,
}

#[derive(Default)]
struct Shown {
    under_way: Vec<UnderWay>,
    picture: Option<Picture>,
}

struct UnderWay {
    check: String,
    expected: Duration,
    what: String,
}

impl Shown {
    /// What is under way, each thing once.
    fn under_way(&self) -> String {
        let mut texts: Vec<(String, usize)> = Vec::new();
        for entry in &self.under_way {
            let what = if entry.what.is_empty() {
                String::new()
            } else {
                format!(": {}", entry.what)
            };
            let seconds = entry.expected.as_secs().max(1);
            let text = format!("{}{what} (usually {seconds} s)", entry.check);
            match texts.iter_mut().find(|(known, _)| *known == text) {
                Some((_, count)) => *count += 1,
                None => texts.push((text, 1)),
            }
        }
        let texts = texts.into_iter().map(|(text, count)| match count {
            1 => text,
            _ => format!("{count} x {text}"),
        });
        let alone = self.picture.as_ref().and_then(Picture::alone);
        texts.chain(alone).collect::<Vec<_>>().join(", ")
    }

    fn text(&self) -> String {
        let size = rustix::termios::tcgetwinsize(std::io::stderr());
        let (columns, rows) = match size {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
            _ => (COLUMNS, ROWS),
        };
        let (width, height) = (usize::from(columns), usize::from(rows));
        let mut lines = vec![cut(&self.under_way(), width.saturating_sub(CLOCK))];
        if let Some(picture) = &self.picture {
            lines.extend(picture.lines(width - 1, height.saturating_sub(1 + MARGIN).max(2)));
        }
        lines.join("\n")
    }
}

impl Live {
    fn new() -> Live {
        let shown: Arc<Mutex<Shown>> = Arc::default();
        let drawn = Arc::clone(&shown);
        // Made when it is drawn, five times a second, however often thousands of nodes say something.
        let draw = move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let shown = drawn.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = out.write_str(&shown.text());
        };
        let line = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {elapsed} {shown}");
        let style = style.expect("the template is sound");
        line.set_style(style.with_key("shown", draw));
        line.enable_steady_tick(Duration::from_millis(200));
        Live { line, shown }
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn change_picture(&self, change: impl FnOnce(&mut Picture)) {
        self.change(|shown| {
            if let Some(picture) = &mut shown.picture {
                change(picture);
            }
        });
    }
}

impl Watcher for Live {
    fn begins(&self, check: &str, expected: Duration) {
        self.change(|shown| {
            shown.under_way.push(UnderWay {
                check: check.to_owned(),
                expected,
                what: String::new(),
            });
        });
    }

    fn progress(&self, check: &str, what: &str) {
        self.change(|shown| {
            let mut under_way = shown.under_way.iter_mut();
            if let Some(entry) = under_way.find(|entry| entry.check == check) {
                what.clone_into(&mut entry.what);
            }
        });
    }

    fn has_ended(&self, what: &str) {
        self.change(|shown| {
            let mut under_way = shown.under_way.iter();
            if let Some(place) = under_way.position(|entry| entry.check == what) {
                shown.under_way.remove(place);
            }
        });
    }

    fn nodes(&self, names: &[String]) {
        self.change(|shown| shown.picture = Some(Picture::of(names)));
    }

    fn alone(&self, node: &str, what: &str) {
        self.change_picture(|picture| picture.doing(node, what));
    }

    fn now(&self, names: &mut dyn Iterator<Item = &str>, now: NodeNow) {
        self.change_picture(|picture| names.for_each(|name| picture.now(name, now)));
    }

    fn stage(&self, what: &str, outcome: &str) {
        self.change_picture(|picture| picture.is_over(what, outcome));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}
