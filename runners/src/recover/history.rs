//! What was seen on each machine and done to it, so that the same fault after a reboot is told from a new one.
//!
//! Kept in SQLite, which survives a crash at any moment. What is about to be done is written down before it is done, and how
//! it ended afterwards, so that after a crash it is known what may have happened. Who acts holds a lock from before his plan
//! until after his last act, so that two never do the same thing. Machines are keyed by their instance id where there is
//! one, since node names are given again to other machines.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dhc_thresholds::Action;
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, ToSql, params};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use serde::Serialize;

use super::plan::{Past, Step, marks};

/// How long SQLite waits for another connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long who wants to act waits for another who does: a few nodes take a few seconds.
const TURN: Duration = Duration::from_secs(60);

/// How often he looks.
const TICK: Duration = Duration::from_millis(20);

/// The layout of the tables; raised when it changes.
const LAYOUT: i64 = 2;

/// From no table, or from those of layout 1, which knew no beginnings and failures.
const TABLES: &str = "
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    what TEXT NOT NULL CHECK (what IN ('seen', 'begun', 'done', 'failed', 'returned')),
    node TEXT NOT NULL,
    machine TEXT NOT NULL,
    boot TEXT NOT NULL,
    run TEXT NOT NULL,
    fault TEXT NOT NULL,
    device TEXT NOT NULL,
    action TEXT NOT NULL,
    policy TEXT NOT NULL,
    UNIQUE (what, machine, boot, run, fault, device)
) STRICT;
CREATE INDEX event_by_machine ON event (machine, at);
CREATE INDEX event_by_node ON event (node, at);
PRAGMA user_version = 2;
";
const FROM_LAYOUT_1: (&str, &str) = (
    "DROP INDEX event_by_machine; DROP INDEX event_by_node; ALTER TABLE event RENAME TO event_1;",
    "INSERT INTO event SELECT * FROM event_1; DROP TABLE event_1;",
);

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A result told of a fault.
    Seen,
    /// The machine is about to be marked for an action.
    Begun,
    /// The machine was marked for an action.
    Done,
    /// It was not.
    Failed,
    /// The node was given back to the scheduler.
    Returned,
}

impl What {
    const fn word(self) -> &'static str {
        match self {
            What::Seen => "seen",
            What::Begun => "begun",
            What::Failed => "failed",
            What::Done => "done",
            What::Returned => "returned",
        }
    }
}

/// Something that was seen or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What it is.
    pub what: What,
    /// The name that the node had.
    pub node: String,
    /// The machine: its instance id, else its name and serial number, or its name alone where it has none.
    pub machine: String,
    /// The boot, empty where it is not known.
    pub boot: String,
    /// The run whose result it follows from.
    pub run: String,
    /// The fault class.
    pub fault: String,
    /// The device, as findings name it.
    pub device: String,
    /// What was asked for.
    pub action: Action,
    /// The policy that asked for it.
    pub policy: String,
}

/// Why the history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file.
    #[error("the history `{}` cannot be used; name another with --history", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: rusqlite::Error,
    },
    /// Written by another dhc.
    #[error("the history `{}` has layout {found}, and this dhc knows {LAYOUT}; use the newer dhc", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// Another dhc acts on the word of it.
    #[error(
        "another dhc works with the history `{}` and has not ended within {} s; wait for it, or look what holds it up",
        path.display(), TURN.as_secs()
    )]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The lock beside it cannot be used.
    #[error("the lock `{}` cannot be used", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
}

/// The history of all machines.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    /// `None` where there is no history yet.
    db: Option<Connection>,
    /// Held by who acts; let go by the kernel when he ends, however he ends.
    _lock: Option<File>,
}

impl History {
    /// Opens the history to read it; where there is none yet, nothing has been seen.
    ///
    /// # Errors
    /// When the file is no history.
    pub fn read(path: &Path) -> Result<History, HistoryError> {
        if !path.exists() {
            return Ok(History {
                path: path.to_owned(),
                db: None,
                _lock: None,
            });
        }
        History::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    /// Opens the history to act on the word of it and add to it, and makes it if there is none. Waits while another does.
    ///
    /// # Errors
    /// When the file cannot be made or is no history, or the other does not come to an end.
    pub fn write(path: &Path) -> Result<History, HistoryError> {
        let lock = lock(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        Ok(History {
            _lock: Some(lock),
            ..History::open(path, flags)?
        })
    }

    fn open(path: &Path, flags: OpenFlags) -> Result<History, HistoryError> {
        let unusable = |error| HistoryError::Unusable {
            path: path.to_owned(),
            error,
        };
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut db = Connection::open_with_flags(path, flags).map_err(unusable)?;
        db.busy_timeout(PATIENCE).map_err(unusable)?;
        // What has been done is on the disk before the next node is touched.
        db.pragma_update(None, "synchronous", "FULL")
            .map_err(unusable)?;
        let change = rusqlite::TransactionBehavior::Immediate;
        let transaction = db.transaction_with_behavior(change).map_err(unusable)?;
        let found: i64 = transaction
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(unusable)?;
        let (before, after) = match found {
            LAYOUT => ("", ""),
            1 => FROM_LAYOUT_1,
            0 => ("", ""),
            found => {
                return Err(HistoryError::Layout {
                    path: path.to_owned(),
                    found,
                });
            }
        };
        if found != LAYOUT {
            for batch in [before, TABLES, after] {
                transaction.execute_batch(batch).map_err(unusable)?;
            }
        }
        transaction.commit().map_err(unusable)?;
        Ok(History {
            path: path.to_owned(),
            db: Some(db),
            _lock: None,
        })
    }

    /// Adds events, all or none. One that is there already is not added again; a beginning, a failure or a return takes the
    /// place of the one before, since it may happen more than once.
    ///
    /// # Errors
    /// When they cannot be made durable.
    pub fn add(&mut self, events: &[Event]) -> Result<(), HistoryError> {
        let path = self.path.clone();
        let unusable = |error| HistoryError::Unusable { path, error };
        let Some(db) = &mut self.db else {
            *self = History::write(&self.path)?;
            return self.add(events);
        };
        let add = |db: &mut Connection| -> rusqlite::Result<()> {
            let transaction = db.transaction()?;
            for event in events {
                let again = match event.what {
                    What::Begun | What::Failed | What::Returned => "REPLACE",
                    What::Seen | What::Done => "IGNORE",
                };
                transaction.execute(
                    &format!(
                        "INSERT OR {again} INTO event (at, what, node, machine, boot, run, fault, device, action, policy) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
                    ),
                    params![
                        event.at.to_string(),
                        event.what.word(),
                        event.node,
                        event.machine,
                        event.boot,
                        event.run,
                        event.fault,
                        event.device,
                        event.action.word(),
                        event.policy,
                    ],
                )?;
            }
            transaction.commit()
        };
        add(db).map_err(unusable)
    }

    /// What is known of the machine of a step. One whose results do not tell which it is, as those of a whole cluster do not,
    /// is known by its boot; where that tells nothing either it has no past but that of this boot. What another machine is known
    /// to have done is never its past, whatever boot it tells of.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn past(&self, step: &Step) -> Result<Past, HistoryError> {
        let (id, boot) = (step.machine_id(), step.boot());
        let by_boot: Vec<String> = self.rows(
            "SELECT machine FROM event WHERE boot = ?1 AND boot <> '' AND machine <> node ORDER BY id DESC LIMIT 1",
            &[&boot],
            |row| row.get(0),
        )?;
        let machine = id.or_else(|| by_boot.into_iter().next());
        let condition = "machine = ?1 OR node = ?3 AND boot = '' OR boot <> '' AND machine = node AND (boot = ?2 \
             OR boot IN (SELECT boot FROM event WHERE machine = ?1))";
        let events = self.select(
            condition,
            &[&machine.as_deref().unwrap_or_default(), &boot, &step.node],
        )?;
        let marked = self.select("node = ?1 AND what = 'done'", &[&step.node])?;
        Ok(Past {
            machine,
            events,
            marked,
        })
    }

    /// The marks of the node of this name that were not taken back since, as far as is known, oldest first.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn not_returned(&self, node: &str) -> Result<Vec<Event>, HistoryError> {
        let all = self.select(
            "node = ?1 AND id > (SELECT coalesce(max(id), 0) FROM event WHERE node = ?1 AND what = 'returned')",
            &[&node],
        )?;
        Ok(marks(&all).cloned().collect())
    }

    /// What is known of a machine, oldest first.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn of_machine(&self, machine: &str) -> Result<Vec<Event>, HistoryError> {
        self.select("machine = ?1", &[&machine])
    }

    /// What is known of the node of this name and of the machine that had it last, oldest first.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn of_node(&self, node: &str) -> Result<Vec<Event>, HistoryError> {
        self.select(
            "node = ?1 OR machine = ?1 OR machine = (SELECT machine FROM event WHERE node = ?1 ORDER BY id DESC LIMIT 1)",
            &[&node],
        )
    }

    fn select(&self, condition: &str, of: &[&dyn ToSql]) -> Result<Vec<Event>, HistoryError> {
        let sql = format!(
            "SELECT at, what, node, machine, boot, run, fault, device, action, policy FROM event WHERE {condition} \
             ORDER BY id"
        );
        self.rows(&sql, of, event)
    }

    /// What a query finds; nothing where there is no history yet.
    fn rows<T, All: FromIterator<T> + Default>(
        &self,
        sql: &str,
        of: &[&dyn ToSql],
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<All, HistoryError> {
        let Some(db) = &self.db else {
            return Ok(All::default());
        };
        let read = || -> rusqlite::Result<All> { db.prepare(sql)?.query_map(of, row)?.collect() };
        read().map_err(|error| HistoryError::Unusable {
            path: self.path.clone(),
            error,
        })
    }

    /// The nodes that were marked since then, as far as is known: an attempt of which no end is known may have come to a mark.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn marked_since(&self, since: Timestamp) -> Result<BTreeSet<String>, HistoryError> {
        self.rows(
            "SELECT DISTINCT node FROM event WHERE at >= ?1 AND (what = 'done' OR what = 'begun' AND NOT EXISTS \
             (SELECT 1 FROM event AS later WHERE later.what = 'failed' AND later.id > event.id \
             AND later.machine = event.machine AND later.run = event.run AND later.boot = event.boot))",
            &[&since.to_string()],
            |row| row.get(0),
        )
    }

    /// The machines with the most actions, most first, and the name that each had last: repeat offenders.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn offenders(&self, most: usize) -> Result<Vec<(String, String, usize)>, HistoryError> {
        self.rows(
            "SELECT machine, (SELECT node FROM event AS last WHERE last.machine = event.machine ORDER BY id DESC LIMIT 1), \
             count(DISTINCT run || boot) AS times FROM event WHERE what = 'done' \
             GROUP BY machine ORDER BY times DESC, machine LIMIT ?1",
            &[&most],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
    }

    /// Whether SQLite finds the file whole.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_whole(&self) -> Result<bool, HistoryError> {
        let Some(db) = &self.db else { return Ok(true) };
        let check = db
            .query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
            .optional();
        let check = check.map_err(|error| HistoryError::Unusable {
            path: self.path.clone(),
            error,
        })?;
        Ok(check.as_deref() == Some("ok"))
    }
}

/// Waits for the lock beside the history.
fn lock(history: &Path) -> Result<File, HistoryError> {
    let mut path = history.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let unusable = |error: Errno| HistoryError::Lock {
        path: path.clone(),
        error: error.into(),
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(unusable)?;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file.into()),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < TURN => std::thread::sleep(TICK),
            Err(Errno::WOULDBLOCK) => {
                return Err(HistoryError::Busy {
                    path: history.to_owned(),
                });
            }
            Err(error) => return Err(unusable(error)),
        }
    }
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let text = |index: usize| row.get::<_, String>(index);
    let no_such = |index: usize, what: String| {
        rusqlite::Error::FromSqlConversionFailure(
            index,
            rusqlite::types::Type::Text,
            format!("`{what}` is not one that this dhc knows").into(),
        )
    };
    let at = text(0)?;
    let what = match text(1)?.as_str() {
        "seen" => What::Seen,
        "begun" => What::Begun,
        "failed" => What::Failed,
        "done" => What::Done,
        "returned" => What::Returned,
        other => return Err(no_such(1, other.to_owned())),
    };
    let action = text(8)?;
    Ok(Event {
        at: at.parse().map_err(|_| no_such(0, at.clone()))?,
        what,
        node: text(2)?,
        machine: text(3)?,
        boot: text(4)?,
        run: text(5)?,
        fault: text(6)?,
        device: text(7)?,
        action: serde_json::from_value(action.clone().into()).map_err(|_| no_such(8, action))?,
        policy: text(9)?,
    })
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test looks at the file that it made"
)]
mod tests {
    use super::*;

    fn event(machine: &str, run: &str) -> Event {
        Event {
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            what: What::Done,
            node: format!("node-of-{machine}"),
            machine: machine.to_owned(),
            boot: "boot-1".to_owned(),
            run: run.to_owned(),
            fault: "gpu.lost".to_owned(),
            device: "gpu3".to_owned(),
            action: Action::Reboot,
            policy: "default@1".to_owned(),
        }
    }

    #[test]
    fn what_is_added_is_read_again_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.sqlite");
        assert_eq!(History::read(&path).unwrap().of_machine("i-1").unwrap(), []);
        assert!(!path.exists(), "reading made a file");
        let mut history = History::write(&path).unwrap();
        history
            .add(&[event("i-1", "a"), event("i-2", "a")])
            .unwrap();
        history
            .add(&[event("i-1", "a"), event("i-1", "b")])
            .unwrap();
        let again = History::read(&path).unwrap();
        assert_eq!(
            again.of_machine("i-1").unwrap(),
            [event("i-1", "a"), event("i-1", "b")]
        );
        assert_eq!(again.of_node("node-of-i-2").unwrap(), [event("i-2", "a")]);
        assert_eq!(
            again.offenders(1).unwrap(),
            [("i-1".to_owned(), "node-of-i-1".to_owned(), 2)]
        );
    }

    #[test]
    fn two_writers_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.sqlite");
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let path = &path;
                scope.spawn(move || {
                    let mut history = History::write(path).unwrap();
                    for run in 0..30 {
                        history
                            .add(&[event("i-1", &format!("{writer}-{run}"))])
                            .unwrap();
                    }
                });
            }
        });
        let history = History::read(&path).unwrap();
        assert_eq!(history.of_machine("i-1").unwrap().len(), 60);
        assert!(history.is_whole().unwrap());
    }

    #[test]
    fn an_attempt_counts_until_it_is_known_to_have_failed_and_then_is_told_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::write(&folder.path().join("history.sqlite")).unwrap();
        let then: Timestamp = "2026-01-02T03:00:00Z".parse().unwrap();
        let of = |what| Event {
            what,
            ..event("i-1", "a")
        };
        let marked = |history: &History| history.marked_since(then).unwrap().len();
        history.add(&[of(What::Seen)]).unwrap();
        assert_eq!(marked(&history), 0);
        for (what, count) in [
            (What::Begun, 1),
            (What::Failed, 0),
            (What::Begun, 1),
            (What::Done, 1),
        ] {
            history.add(&[of(what)]).unwrap();
            assert_eq!(marked(&history), count, "{what:?}");
        }
        let later: Timestamp = "2026-01-02T04:00:00Z".parse().unwrap();
        assert_eq!(history.marked_since(later).unwrap(), BTreeSet::new());
    }

    #[test]
    fn a_history_of_the_layout_before_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.sqlite");
        let db = Connection::open(&path).unwrap();
        let old = TABLES
            .replace("'begun', ", "")
            .replace("'failed', ", "")
            .replace("user_version = 2", "user_version = 1");
        db.execute_batch(&old).unwrap();
        db.execute_batch(
            "INSERT INTO event (at, what, node, machine, boot, run, fault, device, action, policy) VALUES \
             ('2026-01-02T03:04:05Z', 'done', 'node-of-i-1', 'i-1', 'boot-1', 'a', 'gpu.lost', 'gpu3', 'reboot', 'default@1')",
        )
        .unwrap();
        drop(db);
        let mut history = History::write(&path).unwrap();
        let begun = Event {
            what: What::Begun,
            ..event("i-1", "b")
        };
        history.add(std::slice::from_ref(&begun)).unwrap();
        assert_eq!(
            history.of_machine("i-1").unwrap(),
            [event("i-1", "a"), begun]
        );
        assert!(history.is_whole().unwrap());
    }

    #[test]
    fn what_is_no_history_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.sqlite");
        std::fs::write(&path, "precious").unwrap();
        assert!(History::write(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let newer = folder.path().join("newer.sqlite");
        drop(History::write(&newer).unwrap());
        let db = Connection::open(&newer).unwrap();
        db.pragma_update(None, "user_version", 9).unwrap();
        drop(db);
        let error = History::read(&newer).unwrap_err();
        assert!(
            matches!(error, HistoryError::Layout { found: 9, .. }),
            "{error}"
        );
    }
}
