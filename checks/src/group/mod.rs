//! Several nodes together: who they are, how ranks are started on them, and what becomes of each rank.
//!
//! A cluster check measures one collective over one group. The group is one launch in a process of its own, with its own
//! deadline, so a dead or hung rank costs this group and nothing else. Which groups are measured, and what follows from
//! them, is decided elsewhere.

mod documents;
mod launch;
mod names;
mod rails;
mod roster;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dhc_thresholds::{Evidence, Kind, Subject};
use serde::{Deserialize, Serialize};

use crate::check::{CheckError, chain};
use crate::host::{Command, Ended, ExecError, Host, Output};
use crate::rank::{RankTask, Work};

use documents::Documents;
pub use documents::{Audience, BEAT, NodeLine};
use launch::{Failure, Processors};
pub use launch::{Launch, STEP_NAME, StepId};
use names::Names;
pub use rails::{Card, NoCard};
pub use roster::{NodeState, Roster};

/// Nodes to measure together, and the way to start ranks on them. It travels as JSON to the process that measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// The nodes, by the names that the launcher knows; for the launcher on this machine alone the name of the machine.
    pub nodes: Vec<String>,
    /// What the hosts of nodes call themselves, where that is another name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub own_names: BTreeMap<String, String>,
    /// How ranks are started.
    pub launch: Launch,
    /// The worker program, on every node.
    pub worker: PathBuf,
    /// Whether a quick look is wanted instead of the whole sweep of message sizes.
    pub quick: bool,
    /// The bus bandwidth that is asked of its plateau, in GB/s, where that is known: how much of a sweep too slow a group is
    /// spared depends on it, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_gb_per_s: Option<f64>,
    /// The network cards that it is confined to; none leaves the choice to the communication library.
    #[serde(default)]
    pub cards: Vec<Card>,
}

/// What a launch left.
#[derive(Debug)]
pub struct Launched {
    /// What is known of each rank and node.
    pub roster: Roster,
    /// What the launcher wrote and how it ended.
    pub output: Output,
}

/// How long ranks may take to end after the launcher was told to end them.
const GRACE: Duration = Duration::from_secs(5);

/// How long nodes may take to end that nobody waits for any more.
const SOON: Duration = Duration::from_secs(1);

/// A rank ends itself so long after the deadline of its group: later than dhc would end it, so that dhc's ending is the
/// one that is seen, and soon enough to leave nothing behind where dhc is gone.
const RANK_OUTLIVES: Duration = Duration::from_secs(10);

impl Group {
    /// How many nodes it has.
    pub fn size(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// All of it, as what a measurement is of.
    pub fn whole(&self) -> Subject {
        Subject::new(Kind::Group, format!("{} nodes", self.size()))
    }

    /// Starts `ranks_per_node` ranks on each node and listens to them until they have ended, until they never will, or
    /// until `deadline`. Nothing of the launch is left behind as far as the launcher can see to it.
    ///
    /// # Errors
    /// When the launcher cannot be started.
    pub fn launch(
        &self,
        host: &Host,
        work: Work,
        ranks_per_node: u32,
        deadline: Duration,
    ) -> Result<Launched, CheckError> {
        let unavailable = |error: ExecError| CheckError::Unavailable(chain(&error));
        let beat = self.beat(ranks_per_node);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (failure, processors) = match &work {
            Work::RollCall => (Failure::EndsItself, Processors::OfTheLauncher),
            Work::AllReduce(_) => (Failure::EndsAll, Processors::OfTheLauncher),
            Work::NcclAllReduce(_) => (Failure::EndsAll, Processors::All),
        };
        let names = self.names();
        let mut roster = Roster::new(&self.nodes, names, ranks_per_node, &work, beat, deadline);
        let task = RankTask {
            work,
            deadline_ms: millis(deadline + RANK_OUTLIVES),
            beat_ms: millis(beat),
        };
        let mut args = vec![self.worker.display().to_string()];
        args.push(serde_json::to_string(&task).expect("a task has no keys but words"));
        let command = self.command(ranks_per_node, failure, processors, deadline);
        let command = command.args(args).grace(GRACE);
        let output = host
            .exec_heard(&command, &mut roster)
            .map_err(unavailable)?;
        roster.read_launcher(&output);
        let clean_up = roster.step().and_then(|step| self.launch.kill(step));
        // A launcher that ended well has seen all ranks end.
        if let Some(clean_up) = clean_up.filter(|_| output.ended != Ended::Exited(0)) {
            // A step that has ended is as good as one that is killed.
            drop(host.exec(&clean_up).map_err(unavailable)?);
        }
        Ok(Launched { roster, output })
    }

    /// Starts a tool that knows nothing of dhc on every node, so many processes each, and waits for its end or the deadline.
    /// What is left of its step is ended by the runner, since such a tool does not say which one it is.
    ///
    /// # Errors
    /// When the launcher cannot be started.
    pub fn launch_tool(
        &self,
        host: &Host,
        tool: &[String],
        ranks_per_node: u32,
        deadline: Duration,
    ) -> Result<Output, CheckError> {
        let command = self.command(ranks_per_node, Failure::EndsAll, Processors::All, deadline);
        let command = command.args(tool.iter().cloned()).grace(GRACE);
        host.exec(&command)
            .map_err(|error| CheckError::Unavailable(chain(&error)))
    }

    /// Starts the worker once on every node with these arguments, and hands on what it tells in [`NodeLine`]s, until all
    /// nodes have told all, nobody wants to hear more, or `deadline`.
    ///
    /// # Errors
    /// When the launcher cannot be started; then nobody has heard anything.
    pub fn gather_documents(
        &self,
        host: &Host,
        args: &[String],
        deadline: Duration,
        audience: &mut dyn Audience,
    ) -> Result<(), CheckError> {
        let unavailable = |error: ExecError| CheckError::Unavailable(chain(&error));
        let command = self
            .launch
            .command(&self.nodes, 1, Failure::IsTold, Processors::All, deadline)
            .arg(self.worker.display().to_string())
            .args(args.iter().cloned())
            .grace(SOON);
        let mut documents = Documents::of(&self.nodes, self.names(), audience);
        let output = host
            .exec_heard(&command, &mut documents)
            .map_err(unavailable)?;
        let step = documents.step();
        documents.launch_has_ended(&output);
        let by_itself = matches!(output.ended, Ended::Exited(_));
        if let Some(clean_up) = step.and_then(|step| self.launch.kill(step))
            && !by_itself
        {
            // A step that has ended is as good as one that is killed.
            drop(host.exec(&clean_up).map_err(unavailable)?);
        }
        Ok(())
    }

    /// The launcher's command with the cards that it is confined to; the worker and its arguments follow.
    fn command(
        &self,
        ranks_per_node: u32,
        failure: Failure,
        processors: Processors,
        deadline: Duration,
    ) -> Command {
        let command =
            self.launch
                .command(&self.nodes, ranks_per_node, failure, processors, deadline);
        rails::environment(&self.cards)
            .into_iter()
            .fold(command, |command, (name, value)| {
                self.launch.pass_on(command, name).env(name, value)
            })
    }

    fn names(&self) -> Names {
        Names::of(&self.nodes).with_own(&self.own_names)
    }

    /// How often ranks give a sign of life: every second, more seldom where thousands would drown the launcher.
    fn beat(&self, ranks_per_node: u32) -> Duration {
        let ranks = self.nodes.len() * ranks_per_node as usize;
        Duration::from_secs(if ranks <= 512 { 1 } else { 5 })
    }
}

impl Launched {
    /// The command and its output as evidence; the command is that of [`Group::launch`].
    pub fn evidence(&self, launcher: &str) -> Vec<Evidence> {
        self.output.evidence(launcher)
    }
}
