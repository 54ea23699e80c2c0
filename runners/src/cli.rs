//! The command line. Parsing has no effects; `main` acts on what is parsed.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::export;
use crate::status::Condition;

/// Deep health check for AI clusters: measures a node, judges it by its instance type's thresholds, and says what to do.
#[derive(Debug, Parser)]
#[command(
    name = "dhc",
    version,
    max_term_width = 100,
    after_help = "\
Exit status: 0 pass, 1 warn, 2 fail, 3 unknown or incomplete, 4 error, 64 wrong usage."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check this node and leave a verdict.
    Run(Box<RunArgs>),
    /// List the checks.
    List {
        /// List the metrics that thresholds can limit, with unit and meaning.
        #[arg(long)]
        metrics: bool,
        /// Print the table of checks as Markdown.
        #[arg(long, conflicts_with = "metrics")]
        markdown: bool,
    },
    /// Explain a check, a fault class, or what concerns them all.
    Explain {
        /// The name of a check, a fault class such as `gpu.lost`, `learning` or `peers`.
        topic: String,
    },
    /// Judge stored measurements again, without touching hardware.
    Judge {
        /// A result, a journal, or the folder of a run.
        result: PathBuf,
        /// The threshold file to judge by; the instance type's own table if left out and the run was judged by that.
        #[arg(long, value_name = "FILE")]
        thresholds: Option<PathBuf>,
        /// Judge by the instance type's own table, even if the run was judged by a file.
        #[arg(long, conflicts_with = "thresholds")]
        built_in: bool,
        /// Refuse a result that has expired or is from another boot of this node, so that nobody acts on it.
        #[arg(long)]
        current: bool,
        /// How to print the verdict.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// The machine.
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Hold the results of several nodes or runs against each other: nodes of a type are peers, and so are their devices.
    ///
    /// A device that is not like its peers is worth watching; one that is unlike them in two of the last three runs of its
    /// node's boot has failed. The outcome is a result like any other. `dhc explain peers` says more.
    Compare {
        /// Results, journals, or the folders of runs; several runs of a node count as repeats.
        #[arg(required = true, value_name = "RESULT")]
        results: Vec<PathBuf>,
        /// The threshold file to judge by besides.
        #[arg(long, value_name = "FILE")]
        thresholds: Option<PathBuf>,
        /// Judge by the instance type's own table, even if a run was judged by a file.
        #[arg(long, conflicts_with = "thresholds")]
        built_in: bool,
        /// How to print the verdict.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Check that the files of a run are what dhc wrote.
    Verify {
        /// The folder of a run.
        run: PathBuf,
    },
    /// Write a result in the format of another tool.
    Export {
        /// The format.
        format: export::Format,
        /// A result, a journal, or the folder of a run.
        result: PathBuf,
        /// The file to write, whole or not at all (hyperpod: to add lines to); standard output if left out.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Say what the last results on this node say, without running anything.
    Status {
        /// Answer as a plugin of node-problem-detector on this condition: a line of at most 80 bytes, and exit status 0 no
        /// problem, 1 problem, 2 unknown.
        #[arg(long, value_name = "CONDITION", value_enum)]
        npd: Option<Condition>,
        /// How to print it.
        #[arg(long, value_enum, default_value_t, conflicts_with = "npd")]
        format: Format,
        /// The machine.
        #[command(flatten)]
        machine: MachineArgs,
        /// Read the results in this process (what `status` starts, so that a disk that hangs does not hang it).
        #[arg(long, hide = true)]
        unguarded: bool,
    },
    /// Say, do and undo what verdicts ask for.
    Recover {
        /// What of it.
        #[command(subcommand)]
        command: RecoverCommand,
    },
    /// Show what was seen on a node and done to it.
    History {
        /// The node's name or instance id; the machines with the most actions if left out.
        node: Option<String>,
        /// Where the history is.
        #[command(flatten)]
        history: HistoryArgs,
        /// How to print it.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show, validate, compare or learn threshold tables.
    Thresholds {
        /// What to do with them.
        #[command(subcommand)]
        command: ThresholdsCommand,
    },
    /// Print the JSON Schema of a document of dhc.
    Schema {
        /// Which document.
        document: Document,
    },
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page in roff.
    Man {
        /// Write the pages of dhc and of each subcommand into this folder instead, as `dhc.1`, `dhc-run.1` and so on.
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Run one check on the task of standard input and print its events (what `run` starts for each check).
    #[command(hide = true)]
    Measure {
        /// The check.
        check: String,
    },
    /// Copy the folder of a run (what `run --out` starts).
    #[command(hide = true)]
    Deposit {
        /// The folder of the run.
        from: PathBuf,
        /// Where to.
        to: PathBuf,
    },
}

/// What `dhc run` can be told.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which level to check.
    #[arg(long, value_enum, default_value_t)]
    pub level: Level,
    /// Run only this check (repeat or separate with commas).
    #[arg(long = "check", value_name = "ID", value_delimiter = ',')]
    pub checks: Vec<String>,
    /// Run only checks with this tag: gpu, neuron, network, host, quick, long, stress.
    #[arg(long = "tag", value_name = "TAG", value_delimiter = ',')]
    pub tags: Vec<String>,
    /// Leave out this check, or all with this tag.
    #[arg(long, value_name = "ID|TAG", value_delimiter = ',')]
    pub skip: Vec<String>,
    /// Run what finds most in this time, such as `10m`, stress included; what is left out is named.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub budget: Option<Duration>,
    /// The instance type, where it cannot be detected or is to be another.
    #[arg(long, value_name = "TYPE")]
    pub instance_type: Option<String>,
    /// Judge by this threshold file instead of the instance type's own table.
    #[arg(long, value_name = "FILE")]
    pub thresholds: Option<PathBuf>,
    /// Copy the result to this directory, which may be on a network file system.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write a page for people to this file, self-contained HTML.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write the result in the format of another tool as well (repeat for several): prometheus, junit, ctrf, hyperpod, html.
    #[arg(long = "export", value_name = "FORMAT=FILE")]
    pub exports: Vec<export::Target>,
    /// The deadline of each check, such as `5s` or `90m`; each has its own if left out.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Option<Duration>,
    /// The deadline of the whole run.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub run_deadline: Option<Duration>,
    /// How to print the verdict.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Set an option of a check, such as `dcgm-diag.level=2`; `dhc explain CHECK` lists them.
    #[arg(long = "set", value_name = "CHECK.OPTION=VALUE", value_parser = setting)]
    pub settings: Vec<Setting>,
    /// Ask the cloud's metadata service for the instance type if nothing on the node tells it.
    #[arg(long)]
    pub imds: bool,
    /// How long recovery tooling may act on the result.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h")]
    pub valid_for: Duration,
    /// Delete results of this node that are older, once this one is kept; a day at least, such as `30d`. All are kept if left
    /// out.
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub keep_results: Option<Duration>,
    /// The run of the whole cluster that this one is a part of: it gets signs of life and the measurements in lines that a
    /// launcher can carry, and nothing else is printed (what `--level all` gives its nodes).
    #[arg(long, value_name = "RUN", hide = true)]
    pub part_of: Option<String>,
    /// The text of the threshold file, which is then not read (what `--level all` gives its nodes).
    #[arg(long, value_name = "TEXT", hide = true, requires = "thresholds")]
    pub thresholds_text: Option<String>,
    /// The nodes, for the levels `cluster` and `all`.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Which nodes to look at together, and how to start ranks on them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Nodes together")]
pub struct ClusterArgs {
    /// How ranks are started; found out if left out: inside an allocation of Slurm its steps, with nodes asked for an
    /// allocation of Slurm, otherwise ranks on this machine alone.
    #[arg(long, value_enum)]
    pub launcher: Option<Launcher>,
    /// Ask Slurm for so many nodes.
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,
    /// Ask Slurm for these nodes, in its own notation; with mpirun, the nodes with commas between them.
    #[arg(long, value_name = "LIST")]
    pub nodelist: Option<String>,
    /// Ask Slurm for nodes of this partition.
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// Ask Slurm for nodes without other jobs.
    #[arg(long)]
    pub exclusive: bool,
    /// Keep the nodes in a maintenance reservation `dhc-RUN` meanwhile, so that no new job gets onto them, and keep those in
    /// it that fail, as long as the result may be acted upon. Takes an operator of Slurm.
    #[arg(long)]
    pub reserve: bool,
    /// How soon the reservation ends by itself if dhc dies or loses Slurm.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    pub reservation_lease: Duration,
    /// Let the run into this reservation of Slurm, such as one that keeps nodes that failed before.
    #[arg(long, value_name = "NAME")]
    pub reservation: Option<String>,
    /// How long to wait until Slurm grants the nodes.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
    pub wait_for_nodes: Duration,
    /// Ask Slurm for the nodes for so long; 1h if left out, and 4h with `--level all`, whose diagnostics take longer.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
    /// Ask Slurm for these generic resources on every node, such as `gpu:8`; needed where Slurm shows a job no others.
    #[arg(long, value_name = "LIST")]
    pub gres: Option<String>,
    /// The worker program on every node; `dhc-rank` beside dhc if left out.
    #[arg(long, value_name = "FILE")]
    pub worker: Option<PathBuf>,
    /// The program dhc on every node, for `--level all`; where it is here if left out.
    #[arg(long, value_name = "FILE")]
    pub node_dhc: Option<PathBuf>,
    /// The network cards of every node, one for each rail, with commas between them (`eth0,eth1` or `mlx5_0,mlx5_1`): a
    /// slow node is then tried on each of them, and a rail that is slow for all is told from slow nodes.
    #[arg(long, value_name = "CARDS", value_delimiter = ',')]
    pub rails: Vec<String>,
    /// Which leaf switch each node hangs on, as in Slurm's topology.conf (`SwitchName=NAME Nodes=LIST`); Slurm itself is
    /// asked if left out.
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// How many groups may be measured side by side.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub groups: usize,
    /// Where chance begins when nodes are parted into groups; the run's own if left out.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// How ranks are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Launcher {
    /// Steps of an allocation of Slurm.
    Srun,
    /// Open MPI's launcher on the nodes of --nodelist.
    Mpirun,
    /// Ranks on this machine alone.
    Local,
}

/// Where the machine and its tools are found; the defaults are the machine that dhc runs on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Keep results, the lock and readings in this directory of the node.
    #[arg(long, value_name = "DIR", value_parser = whole_path())]
    pub state: Option<PathBuf>,
    /// Read /sys, /proc and /dev below this directory.
    #[arg(long, value_name = "DIR", default_value = "/", value_parser = whole_path())]
    pub root: PathBuf,
    /// Look for tools in this directory (repeat for several) instead of PATH and the vendors' directories.
    #[arg(long = "tools", value_name = "DIR", value_parser = whole_path())]
    pub tools: Vec<PathBuf>,
    /// Load NVML from this library.
    #[arg(long, value_name = "FILE", value_parser = library())]
    pub nvml: Option<PathBuf>,
    /// Load libfabric from this library.
    #[arg(long, value_name = "FILE", value_parser = library())]
    pub libfabric: Option<PathBuf>,
}

/// What to do with verdicts.
#[derive(Debug, Subcommand)]
pub enum RecoverCommand {
    /// Say what would be done to which node and why; nothing is done.
    Plan {
        /// What to act on.
        #[command(flatten)]
        recovery: RecoveryArgs,
        /// The policy: a file, `default` or `hyperpod`.
        #[arg(long, value_name = "FILE|NAME", default_value = "default")]
        policy: PathBuf,
    },
    /// Print a built-in policy, to be the beginning of your own.
    Policy {
        /// Its name: `default` or `hyperpod`.
        #[arg(default_value = "default")]
        name: String,
    },
    /// Do what `plan` says. The policy file has to say `mode = "enforce"`.
    Apply {
        /// What to act on.
        #[command(flatten)]
        recovery: RecoveryArgs,
        /// The policy file.
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
    },
    /// On a node that was rebooted or replaced: run the checks again that failed, and give the node back if they pass.
    Verify {
        /// What to act on.
        #[command(flatten)]
        recovery: RecoveryArgs,
        /// The policy file.
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// The name that the node has in the results and for the scheduler; this machine's host name if left out.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Where the threshold file is on this machine that the run was judged by, if it was judged by one.
        #[arg(long, value_name = "FILE")]
        thresholds: Option<PathBuf>,
    },
}

/// What recovery acts on.
#[derive(Debug, Args)]
pub struct RecoveryArgs {
    /// Results, or folders of runs.
    #[arg(required = true, value_name = "RESULT")]
    pub results: Vec<PathBuf>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Append what is done to this file, one JSON object a line; to standard error if left out.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where the history is.
    #[command(flatten)]
    pub history: HistoryArgs,
}

/// Where the history of all nodes is kept.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The file; `history.sqlite` beside the results if left out.
    #[arg(long = "history", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// What to do with threshold tables.
#[derive(Debug, Subcommand)]
pub enum ThresholdsCommand {
    /// List the built-in tables, or show what holds for one instance type.
    Show {
        /// The instance type, `generic`, or a threshold file.
        table: Option<String>,
    },
    /// Read a threshold file and say everything that is wrong with it.
    Validate {
        /// The file.
        file: PathBuf,
    },
    /// Say what changed from one table to another; exit status 0 if nothing did, 1 if something did.
    Diff {
        /// An instance type, `generic`, or a threshold file.
        from: String,
        /// The same.
        to: String,
        /// How to print it.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Make a threshold file from the results of healthy machines: beyond its bounds a value is unlike them, which warns.
    ///
    /// Machines that failed are refused, too few of them teach nothing, and no bound of the table that is extended becomes
    /// worse unless you agree to it. `dhc explain learning` says more.
    Learn(Box<LearnArgs>),
}

/// What `dhc thresholds learn` can be told.
#[derive(Debug, Args)]
pub struct LearnArgs {
    /// Results, journals, or the folders of runs.
    #[arg(required = true, value_name = "RESULT")]
    pub results: Vec<PathBuf>,
    /// Write the threshold file here, where nothing may be yet; standard output if left out.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The table that the new one extends; that of the instance type if left out.
    #[arg(long, value_name = "TABLE|FILE")]
    pub extends: Option<String>,
    /// The instance type, where the results do not tell it.
    #[arg(long, value_name = "TYPE")]
    pub instance_type: Option<String>,
    /// Learn this metric alone, even if it is only kept as context (repeat or separate with commas); every speed and latency
    /// that is judged, if left out.
    #[arg(long = "metric", value_name = "METRIC", value_delimiter = ',')]
    pub metrics: Vec<String>,
    /// What share of healthy values keeps a bound, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 99.9, value_parser = coverage)]
    pub coverage: f64,
    /// Take the worst healthy value for the bound, which assumes no distribution and needs 299 things for 99 %, 2,995 for
    /// 99.9 %.
    #[arg(long)]
    pub minimum: bool,
    /// Agree that the bound of this metric becomes worse than the table's own.
    #[arg(long, value_name = "METRIC", value_delimiter = ',')]
    pub allow_lower: Vec<String>,
    /// Leave out machines that are unfit to be learned from, up to a tenth of them, instead of refusing.
    #[arg(long)]
    pub leave_out_unfit: bool,
    /// Learn from results that have expired.
    #[arg(long)]
    pub expired: bool,
    /// Learn from machines with different versions of drivers and libraries together.
    #[arg(long)]
    pub mixed_versions: bool,
}

/// A path from the root on: processes that check, and programs that they start, need not stand where the user does.
fn whole_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(std::path::absolute)
}

/// A library: by its path, or by its name alone for the loader to find.
fn library() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.components().count() {
        1 => Ok(path),
        _ => std::path::absolute(path),
    })
}

fn coverage(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "write a number".to_owned())?;
    if (50.0..=99.999).contains(&percent) {
        Ok(percent)
    } else {
        Err("must be from 50 to 99.999".to_owned())
    }
}

/// Which level to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// This node alone.
    #[default]
    Instance,
    /// Nodes together: collectives across them, and who is to blame where they fall short.
    Cluster,
    /// Every node alone, all at the same time, and then together those that did not fail.
    All,
}

impl Level {
    /// The word for it in results.
    pub fn word(self) -> &'static str {
        match self {
            Level::Instance => "instance",
            Level::Cluster => "cluster",
            Level::All => "all",
        }
    }
}

/// How to print a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// The result document, alone on standard output.
    Json,
}

/// A document that has a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Document {
    /// The result of a run.
    Report,
    /// A threshold file.
    Thresholds,
}

/// `CHECK.OPTION=VALUE`.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The check.
    pub check: String,
    /// Its option.
    pub option: String,
    /// The value.
    pub value: String,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}={}", self.check, self.option, self.value)
    }
}

fn setting(text: &str) -> Result<Setting, String> {
    let parts = text
        .split_once('=')
        .and_then(|(key, value)| Some((key.split_once('.')?, value)));
    let Some(((check, option), value)) = parts else {
        return Err("write CHECK.OPTION=VALUE, such as dcgm-diag.level=2".to_owned());
    };
    let found =
        dhc_checks::catalog::find(check).ok_or_else(|| format!("there is no check `{check}`"))?;
    let spec = found.spec();
    let Some(declared) = spec.option(option) else {
        let names: Vec<&str> = spec.options.iter().map(|known| known.name).collect();
        let known = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        return Err(format!(
            "`{check}` has no option `{option}`; it has {known}"
        ));
    };
    declared
        .accept(spec.name, value)
        .map_err(|error| error.to_string())?;
    Ok(Setting {
        check: check.to_owned(),
        option: option.to_owned(),
        value: value.to_owned(),
    })
}

/// How long results are kept. A day at least, so that no run that is still under way is taken for an old one.
fn age(text: &str) -> Result<Duration, String> {
    let age = duration(text)?;
    if age < Duration::from_secs(24 * 3600) {
        return Err("must be a day or more, such as 30d".to_owned());
    }
    Ok(age)
}

/// A duration such as `500ms`, `5s`, `10m`, `2h`, `30d`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "write a whole number and a unit, such as 5s".to_owned())?;
    let duration = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        "d" => number.checked_mul(24 * 3600).map(Duration::from_secs),
        _ => {
            return Err(format!(
                "`{unit}` is not a unit of time; write ms, s, m, h or d"
            ));
        }
    };
    let year = Duration::from_secs(365 * 24 * 3600);
    duration
        .filter(|duration| !duration.is_zero() && *duration <= year)
        .ok_or_else(|| "must be more than nothing and less than a year".to_owned())
}
