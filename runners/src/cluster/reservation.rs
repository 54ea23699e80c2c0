//! A maintenance reservation around the nodes of a run, so that no new job gets onto them meanwhile, nor afterwards onto
//! those that fail.
//!
//! It ends by itself: dhc reserves for a short time and, as long as it lives, moves the end away again. Whatever happens to
//! dhc, to its host or to the controller, the nodes are free one lease later.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use dhc_checks::host::{Command, Host, valid_host_name};

use super::slurm::{ANSWER, CLEAN_UP, Job, NODES_MAX, SlurmError, ask, node_list};

/// How the names begin of the reservations that dhc makes; the run follows.
const OURS: &str = "dhc-";

/// For maintenance; jobs that run there run on; and whoever is let in (`--reservation`) may use other nodes beside, so that a
/// node can be tried again together with good ones.
const FLAGS: &str = "MAINT,IGNORE_JOBS,FLEX";

/// In how many pieces a lease is renewed: several renewals may fail before it runs out.
const RENEWALS: u32 = 5;

/// A reservation that lasts as long as this does.
#[derive(Debug)]
pub struct Reservation {
    host: Host,
    name: String,
    renewal: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Reservation {
    /// Reserves the nodes of an allocation for this run.
    ///
    /// # Errors
    /// When Slurm refuses; it does unless the user is an operator or administrator of Slurm.
    pub fn around(
        host: &Host,
        run: &str,
        job: Job,
        lease: Duration,
    ) -> Result<Reservation, SlurmError> {
        let nodes = node_list(host, job)?;
        let name = format!("{OURS}{run}");
        create(host, &name, &nodes, lease)?;
        let (stop, stopped) = channel();
        let (of_renewal, renewed) = (host.clone(), name.clone());
        let renewal = std::thread::spawn(move || {
            while stopped.recv_timeout(lease / RENEWALS) == Err(RecvTimeoutError::Timeout) {
                let end = format!("EndTime=now+{}", lease.as_secs());
                let renewal = update(&of_renewal, &renewed, [end], ANSWER);
                // It ran out while the controller was away.
                if renewal.is_err_and(|error| error.to_string().contains("reservation is invalid"))
                {
                    drop(create(&of_renewal, &renewed, &nodes, lease));
                }
            }
        });
        Ok(Reservation {
            host: host.clone(),
            name,
            renewal: Some((stop, renewal)),
        })
    }

    /// Ends the reservation, but for the nodes that failed: those stay reserved for so long.
    ///
    /// # Errors
    /// When Slurm does not do it; then the reservation ends with its lease.
    pub fn keep(
        mut self,
        failed: &[String],
        so_long: Duration,
    ) -> Result<Option<String>, SlurmError> {
        self.stop_renewal();
        if failed.is_empty() {
            delete(&self.host, &self.name)?;
            return Ok(None);
        }
        let settings = [
            format!("Nodes={}", failed.join(",")),
            format!("EndTime=now+{}", so_long.as_secs()),
        ];
        update(&self.host, &self.name, settings, ANSWER)?;
        Ok(Some(self.name.clone()))
    }

    fn stop_renewal(&mut self) -> bool {
        let Some((stop, renewal)) = self.renewal.take() else {
            return false;
        };
        drop(stop);
        drop(renewal.join());
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.stop_renewal() {
            drop(delete(&self.host, &self.name));
        }
    }
}

/// Takes a node out of the reservations that dhc keeps, and names those.
///
/// # Errors
/// When Slurm does not answer or refuses.
pub fn let_go(host: &Host, node: &str) -> Result<Vec<String>, SlurmError> {
    let mut all = of_node(host, node)?;
    all.retain(|reservation| is_ours(&reservation.name));
    for reservation in &all {
        let left: Vec<&str> = reservation
            .nodes
            .iter()
            .map(String::as_str)
            .filter(|other| *other != node)
            .collect();
        if left.is_empty() {
            delete(host, &reservation.name)?;
        } else {
            let nodes = format!("Nodes={}", left.join(","));
            update(host, &reservation.name, [nodes], ANSWER)?;
        }
    }
    Ok(all
        .into_iter()
        .map(|reservation| reservation.name)
        .collect())
}

/// A reservation for maintenance that somebody other than dhc has made around a node, if there is one.
///
/// # Errors
/// When Slurm does not answer.
pub fn of_others(host: &Host, node: &str) -> Result<Option<String>, SlurmError> {
    let all = of_node(host, node)?;
    let other = all
        .into_iter()
        .find(|reservation| reservation.is_maintenance && !is_ours(&reservation.name));
    Ok(other.map(|reservation| reservation.name))
}

/// Whether a reservation of this name is one that dhc has made: others may call theirs `dhc-firmware`.
fn is_ours(name: &str) -> bool {
    let run = name.strip_prefix(OURS);
    run.is_some_and(|run| ulid::Ulid::from_string(run).is_ok())
}

/// A reservation as Slurm lists it.
struct Listed {
    name: String,
    nodes: Vec<String>,
    is_maintenance: bool,
}

/// The reservations that a node is in.
fn of_node(host: &Host, node: &str) -> Result<Vec<Listed>, SlurmError> {
    let list = Command::new("scontrol", ANSWER).args(["show", "reservation", "--oneliner"]);
    let (text, _) = ask(host, "scontrol", &list)?;
    let mut found = Vec::new();
    for (name, nodes, is_maintenance) in text.lines().filter_map(listed) {
        let expand = Command::new("scontrol", ANSWER).args(["show", "hostnames", nodes]);
        let (names, _) = ask(host, "scontrol", &expand)?;
        let nodes: Vec<String> = names
            .lines()
            .take(NODES_MAX)
            .filter(|name| valid_host_name(name))
            .map(str::to_owned)
            .collect();
        if nodes.iter().any(|name| name == node) {
            let name = name.to_owned();
            found.push(Listed {
                name,
                nodes,
                is_maintenance,
            });
        }
    }
    Ok(found)
}

/// Name and nodes, in Slurm's notation, of a reservation that is in force, and whether it is for maintenance; `None` for other
/// lines and others.
fn listed(line: &str) -> Option<(&str, &str, bool)> {
    let value = |key: &str| {
        line.split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let is_word = |text: &&str| {
        !text.is_empty()
            && !text.starts_with('-')
            && text.chars().all(|c| {
                c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ',' | '[' | ']')
            })
    };
    let name = value("ReservationName").filter(is_word)?;
    let nodes = value("Nodes").filter(is_word)?;
    let flags = value("Flags").unwrap_or_default();
    let is_maintenance = flags.split(',').any(|flag| flag == "MAINT");
    (value("State") == Some("ACTIVE")).then_some((name, nodes, is_maintenance))
}

fn create(host: &Host, name: &str, nodes: &str, lease: Duration) -> Result<(), SlurmError> {
    let user = rustix::process::geteuid().as_raw();
    let command = Command::new("scontrol", ANSWER)
        .args(["create", "reservation", "StartTime=now"])
        .args([
            format!("ReservationName={name}"),
            format!("Nodes={nodes}"),
            format!("EndTime=now+{}", lease.as_secs()),
            format!("Users={user}"),
            format!("Flags={FLAGS}"),
        ]);
    ask(host, "scontrol create reservation", &command).map(drop)
}

fn update(
    host: &Host,
    name: &str,
    settings: impl IntoIterator<Item = String>,
    deadline: Duration,
) -> Result<(), SlurmError> {
    let command = Command::new("scontrol", deadline)
        .args(["update", &format!("ReservationName={name}")])
        .args(settings);
    ask(host, "scontrol update", &command).map(drop)
}

fn delete(host: &Host, name: &str) -> Result<(), SlurmError> {
    let command =
        Command::new("scontrol", CLEAN_UP).args(["delete", &format!("ReservationName={name}")]);
    ask(host, "scontrol delete", &command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_of_a_run_makes_a_reservation_dhc_s() {
        assert!(is_ours("dhc-01M85J2Q7TZ3N4V5W6X7Y8Z9A0"));
        for name in [
            "dhc-firmware",
            "dhc-",
            "dhc-01M85",
            "01M85J2Q7TZ3N4V5W6X7Y8Z9A0",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }

    #[test]
    fn a_reservation_in_force_is_read_and_anything_else_is_not() {
        let line = |name: &str, nodes: &str, state: &str| {
            format!(
                "ReservationName={name} StartTime=2026-01-02T03:04:05 Nodes={nodes} NodeCnt=2 Flags=IGNORE_JOBS,MAINT \
                 State={state} Watts=n/a"
            )
        };
        assert_eq!(
            listed(&line("dhc-01M85", "h[3-4],k1", "ACTIVE")),
            Some(("dhc-01M85", "h[3-4],k1", true))
        );
        let of_a_project = line("project", "h1", "ACTIVE").replace("MAINT", "SPEC_NODES");
        assert_eq!(listed(&of_a_project), Some(("project", "h1", false)));
        for line in [
            line("weekly", "h1", "INACTIVE"),
            line("licences", "(null)", "ACTIVE"),
            line("a", "--help", "ACTIVE"),
            "No reservations in the system".to_owned(),
            String::new(),
        ] {
            assert_eq!(listed(&line), None, "{line}");
        }
    }
}
