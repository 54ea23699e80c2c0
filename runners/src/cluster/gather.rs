//! Which nodes, and how ranks are started on them: what the user said, what the environment says, what Slurm says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dhc_checks::check::chain;
use dhc_checks::group::{Card, Launch, NoCard};
use dhc_checks::host::{Host, valid_host_name};
use dhc_thresholds::{Hardware, Table};

use super::Cluster;
use super::reservation::Reservation;
use super::slurm::{self, Allocation, Job, SlurmError, Wanted};
use super::topology::{Topology, TopologyError};
use crate::cli::{ClusterArgs, Launcher};
use crate::store;

/// Ranks on one machine that has no other node to talk to.
const LOCAL_RANKS: &str = "2";

/// Why there are no nodes to look at.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// Slurm refused.
    #[error(transparent)]
    Slurm(#[from] SlurmError),
    /// The worker is not where it should be.
    #[error("the worker `{}` is not there; install dhc-rank beside dhc, or name it with --worker", .0.display())]
    NoWorker(PathBuf),
    /// `mpirun` was not told where to.
    #[error("with --launcher mpirun name the nodes with --nodelist, with commas between them")]
    NoNodes,
    /// A name is none.
    #[error(
        "`{0}` cannot be the name of a host; write names such as node-1, with commas between them"
    )]
    Name(String),
    /// A network card is none.
    #[error("--rails: {0}")]
    Card(#[from] NoCard),
    /// A card is named twice.
    #[error("--rails names `{0}` twice; a rail is one card of every node")]
    CardTwice(String),
    /// The file with the topology cannot be read.
    #[error("--topology `{}` cannot be read: {error}", path.display())]
    NoTopology {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file with the topology is none.
    #[error("--topology `{}`: {error}", path.display())]
    Topology {
        /// The file.
        path: PathBuf,
        /// Why.
        error: TopologyError,
    },
    /// `srun` outside of an allocation without nodes to ask for.
    #[error(
        "say which nodes to ask Slurm for: --nodes N, --nodelist LIST or --partition NAME; or run inside an allocation"
    )]
    NothingAsked,
    /// Nodes that are not Slurm's cannot be reserved.
    #[error(
        "--reserve and --reservation are about nodes of Slurm; leave them out, or use --launcher srun"
    )]
    NotSlurm,
    /// Slurm does not reserve them.
    #[error(
        "the nodes cannot be reserved, which takes an operator or administrator of Slurm; leave out --reserve to go without"
    )]
    NotReserved(#[source] SlurmError),
}

/// The nodes of a run; [`Nodes::release`] gives back what was taken for it, and so does dropping it.
#[derive(Debug)]
pub struct Nodes {
    cluster: Cluster,
    /// Ends before the allocation does, lest others get in between.
    reservation: Option<Reservation>,
    /// Made for this run.
    allocation: Option<Allocation>,
    /// An allocation of the user's, which outlasts this run.
    users: Option<Job>,
    host: Host,
}

impl Nodes {
    /// The nodes and the way to start ranks on them.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Options that follow from the nodes and their type where the user set none.
    pub fn defaults(
        &self,
        table: &Table,
        options: &mut BTreeMap<String, BTreeMap<String, String>>,
    ) {
        if let Some(gpus) = table.due(Hardware::NvidiaGpu) {
            let all_reduce = options.entry("nccl-allreduce".to_owned()).or_default();
            all_reduce
                .entry("gpus-per-node".to_owned())
                .or_insert_with(|| gpus.to_string());
        }
        if self.cluster.launch == Launch::Local {
            let all_reduce = options.entry("mpi-allreduce".to_owned()).or_default();
            all_reduce
                .entry("ranks-per-node".to_owned())
                .or_insert_with(|| LOCAL_RANKS.to_owned());
        }
    }

    /// Keeps the nodes that failed reserved for so long, if the run's nodes are, and lets go of the others. Says what is to
    /// be said about that.
    pub fn keep_reserved(&mut self, failed: &[String], so_long: Duration) -> Option<String> {
        let reservation = self.reservation.take()?;
        match reservation.keep(failed, so_long) {
            Ok(None) => None,
            Ok(Some(name)) => Some(format!(
                "{} kept in the reservation {name}; `dhc recover verify` takes a node out again",
                failed.join(", ")
            )),
            Err(error) => Some(format!(
                "the reservation was not changed and ends by itself: {}",
                chain(&error)
            )),
        }
    }

    /// Ends what is left of the run's steps, and the allocation if it was made for the run.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        drop(self.reservation.take());
        drop(self.allocation.take());
        if let Some(job) = self.users {
            slurm::end_steps(&self.host, job);
        }
    }
}

/// Finds the nodes, and takes them if Slurm has to be asked.
///
/// An allocation lasts for `so_long` at most, whatever becomes of dhc and its host.
///
/// # Errors
/// When there are none to be had; nothing is kept of an allocation then.
pub fn gather(
    host: &Host,
    args: &ClusterArgs,
    environment: &BTreeMap<String, String>,
    this_node: &str,
    run: &str,
    so_long: Duration,
    stop: &'static AtomicBool,
) -> Result<Nodes, GatherError> {
    let worker = worker(args)?;
    let cards = cards(args)?;
    // What the user said wrongly is told before nodes are asked for.
    let from_file = topology_of_file(args)?;
    let inside = environment
        .get("SLURM_JOB_ID")
        .and_then(|job| job.parse().ok())
        .map(Job);
    let asked = args.nodes.is_some() || args.nodelist.is_some() || args.partition.is_some();
    let launcher = args.launcher.unwrap_or(match (inside, asked) {
        (None, false) => Launcher::Local,
        _ => Launcher::Srun,
    });
    let nodes = |names: Vec<String>, launch: Launch| Nodes {
        cluster: Cluster {
            nodes: names,
            down: Vec::new(),
            launch,
            worker: worker.clone(),
            cards: cards.clone(),
            topology: from_file.clone(),
            topology_from: match &args.topology {
                Some(path) => format!("from {}", path.display()),
                None => "not known: neither --topology nor Slurm tells".to_owned(),
            },
        },
        reservation: None,
        allocation: None,
        users: None,
        host: host.clone(),
    };
    if launcher != Launcher::Srun && (args.reserve || args.reservation.is_some()) {
        return Err(GatherError::NotSlurm);
    }
    match launcher {
        Launcher::Local => Ok(nodes(vec![this_node.to_owned()], Launch::Local)),
        Launcher::Mpirun => {
            let list = args.nodelist.as_ref().ok_or(GatherError::NoNodes)?;
            let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
            match names.iter().find(|name| !valid_host_name(name)) {
                Some(name) => Err(GatherError::Name(name.clone())),
                None => Ok(nodes(names, Launch::Mpirun)),
            }
        }
        Launcher::Srun => {
            // From here on an error gives the allocation back.
            let (job, allocation) = match inside {
                Some(job) if !asked => (job, None),
                _ if asked => {
                    let name = format!("dhc-{run}");
                    let made = slurm::allocate(host, &wanted(args, so_long), &name, stop)?;
                    (made.job(), Some(made))
                }
                _ => return Err(GatherError::NothingAsked),
            };
            let mut taken = nodes(Vec::new(), Launch::Srun { job: job.0 });
            taken.users = allocation.is_none().then_some(job);
            taken.allocation = allocation;
            let slurm::Nodes { up, down } = slurm::nodes(host, job)?;
            taken.cluster.nodes = up;
            taken.cluster.down = down;
            if args.topology.is_none() {
                match slurm::topology(host) {
                    Ok(topology) => {
                        taken.cluster.topology = Some(topology);
                        taken.cluster.topology_from = "from scontrol show topology".to_owned();
                    }
                    Err(why) => taken.cluster.topology_from = format!("not known: {why}"),
                }
            }
            if args.reserve {
                let reservation = Reservation::around(host, run, job, args.reservation_lease);
                taken.reservation = Some(reservation.map_err(GatherError::NotReserved)?);
            }
            Ok(taken)
        }
    }
}

fn wanted(args: &ClusterArgs, time: Duration) -> Wanted {
    Wanted {
        nodes: args.nodes,
        nodelist: args.nodelist.clone(),
        partition: args.partition.clone(),
        gres: args.gres.clone(),
        exclusive: args.exclusive || args.reserve,
        reservation: args.reservation.clone(),
        time,
        patience: args.wait_for_nodes,
    }
}

fn cards(args: &ClusterArgs) -> Result<Vec<Card>, GatherError> {
    let mut cards: Vec<Card> = Vec::new();
    for name in &args.rails {
        let card: Card = name.trim().parse()?;
        if cards.iter().any(|known| known.name() == card.name()) {
            return Err(GatherError::CardTwice(card.name().to_owned()));
        }
        cards.push(card);
    }
    Ok(cards)
}

fn topology_of_file(args: &ClusterArgs) -> Result<Option<Topology>, GatherError> {
    let Some(path) = &args.topology else {
        return Ok(None);
    };
    let text = store::read_users_text(path).map_err(|error| GatherError::NoTopology {
        path: path.clone(),
        error,
    })?;
    let topology = Topology::parse(&text).map_err(|error| GatherError::Topology {
        path: path.clone(),
        error,
    })?;
    Ok(Some(topology))
}

fn worker(args: &ClusterArgs) -> Result<PathBuf, GatherError> {
    let beside = || {
        let this = std::env::current_exe().unwrap_or_default();
        this.with_file_name("dhc-rank")
    };
    let worker = args.worker.clone().unwrap_or_else(beside);
    if worker.is_file() && worker.is_absolute() {
        Ok(worker)
    } else {
        Err(GatherError::NoWorker(worker))
    }
}
