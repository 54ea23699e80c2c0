//! How a run goes, for whoever watches it on a terminal: one line that is gone when the run has ended.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::run::Watcher;

/// Somebody to tell how it goes: a live line on a terminal, nobody otherwise.
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

/// One line on standard error: what is under way, for how long, and how long it usually takes.
struct Live {
    line: ProgressBar,
    under_way: Mutex<Vec<(String, Duration, String)>>,
}

impl Live {
    fn new() -> Live {
        let line = ProgressBar::new_spinner();
        line.set_style(
            ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")
                .expect("the template is sound"),
        );
        line.enable_steady_tick(Duration::from_millis(200));
        Live {
            line,
            under_way: Mutex::new(Vec::new()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(String, Duration, String)>)) {
        let mut under_way = self
            .under_way
            .lock()
            .expect("no holder of this lock panics");
        change(&mut under_way);
        let text = under_way.iter().map(|(check, expected, what)| {
            let what = if what.is_empty() {
                String::new()
            } else {
                format!(": {what}")
            };
            format!("{check}{what} (usually {} s)", expected.as_secs().max(1))
        });
        self.line.set_message(text.collect::<Vec<_>>().join(", "));
    }
}

impl Watcher for Live {
    fn begins(&self, check: &str, expected: Duration) {
        self.change(|under_way| under_way.push((check.to_owned(), expected, String::new())));
    }

    fn progress(&self, check: &str, what: &str) {
        self.change(|under_way| {
            if let Some(entry) = under_way.iter_mut().find(|entry| entry.0 == check) {
                what.clone_into(&mut entry.2);
            }
        });
    }

    fn has_ended(&self, what: &str) {
        self.change(|under_way| {
            if let Some(place) = under_way.iter().position(|entry| entry.0 == what) {
                under_way.remove(place);
            }
        });
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}
