//! What the all-reduces by dhc's own ranks have in common: their metrics, their sweeps, and how a launch becomes a record.

use std::time::Duration;

use dhc_thresholds::{Kind, Metric, Subject};

use crate::check::{CheckError, Recorder, Spec, Task};
use crate::collective;
use crate::group::{Group, Launched, NodeState};
use crate::host::Ended;
use crate::rank::{Enough, LeftOut, SizeLine, Sweep};

/// What is measured of an all-reduce.
pub(super) struct Metrics {
    pub(super) plateau: Metric,
    pub(super) wrong: Metric,
    pub(super) algbw: Metric,
    pub(super) busbw: Metric,
    pub(super) latency: Metric,
    pub(super) latency_p50: Metric,
    pub(super) latency_p99: Metric,
    pub(super) latency_max: Metric,
    pub(super) member: Metric,
}

impl Metrics {
    /// Those that are measured of every size.
    fn of_size(&self) -> [&Metric; 6] {
        [
            &self.busbw,
            &self.algbw,
            &self.latency,
            &self.latency_p50,
            &self.latency_p99,
            &self.latency_max,
        ]
    }
}

/// The metrics of an all-reduce, whose names begin with `$prefix`.
macro_rules! metrics {
    ($prefix:literal) => {{
        use dhc_thresholds::{Metric, Role, Unit};
        const fn metric(name: &'static str, unit: Unit, role: Role, about: &'static str) -> Metric {
            Metric::new(name, unit, role, about, "cluster.slow")
        }
        $crate::catalog::all_reduce::Metrics {
            plateau: metric(
                concat!($prefix, ".plateau"),
                Unit::GigabytesPerSecond,
                Role::Judged,
                "bus bandwidth of large messages: the median of the three largest sizes that were measured",
            ),
            wrong: Metric::new(
                concat!($prefix, ".wrong"),
                Unit::Count,
                Role::Required,
                "elements of results that differ from what they have to be, on all ranks",
                "data.corrupted",
            ),
            algbw: metric(
                concat!($prefix, ".algbw"),
                Unit::GigabytesPerSecond,
                Role::Context,
                "algorithm bandwidth: message size over the mean time",
            ),
            busbw: metric(
                concat!($prefix, ".busbw"),
                Unit::GigabytesPerSecond,
                Role::Context,
                "bus bandwidth: algorithm bandwidth times 2(n - 1)/n, comparable with the rate of a link whatever n is",
            ),
            latency: metric(
                concat!($prefix, ".latency"),
                Unit::Microseconds,
                Role::Context,
                "mean time of one all-reduce, mean over the ranks",
            ),
            latency_p50: metric(
                concat!($prefix, ".latency_p50"),
                Unit::Microseconds,
                Role::Context,
                "median time of one all-reduce, median over the ranks",
            ),
            latency_p99: metric(
                concat!($prefix, ".latency_p99"),
                Unit::Microseconds,
                Role::Context,
                "99th percentile of the time of one all-reduce, on the rank where it is greatest",
            ),
            latency_max: metric(
                concat!($prefix, ".latency_max"),
                Unit::Microseconds,
                Role::Context,
                "the longest all-reduce on any rank",
            ),
            member: Metric::new(
                concat!($prefix, ".member"),
                Unit::State,
                Role::Context,
                "what became of each node of the group: done, waiting (for others), behind (at a step that it takes alone, while \
                 others waited for it), lagging (it had come less far than most: it is the reason, or who it talked to), moving \
                 (it still got further, or was still to begin, when the time was up), silent, \
                 died, died_at_start, failed (a library or driver on it did not do its part), broke_off (a collective came to \
                 an error there, which something broke on it or elsewhere), could_not_start, never_answered",
                "cluster.node.unresponsive",
            ),
        }
    }};
}
pub(super) use metrics;

/// How far sweeps go.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// The smallest large message: below it latency hides a slow path.
    pub(super) bytes_large: u64,
    /// When no further size is begun: in the whole sweep, and in a quick look.
    pub(super) whole: Duration,
    pub(super) quick: Duration,
}

/// The smallest message of a whole sweep.
pub(super) const BYTES_MIN: u64 = 8;

/// Of the time that is due to a size, a quick look takes this part: nobody is accused for a single one of them.
const QUICK_SHARE: u64 = 3;

/// The sweep that the options `max-bytes`, `quick-bytes` and `size-ms` ask for: of all sizes, or of the large ones alone for a
/// quick look.
pub(super) fn sweep(
    task: &Task,
    spec: &'static Spec,
    limits: Limits,
    group: &Group,
) -> Result<Sweep, CheckError> {
    let (bytes_max, share, time) = if group.quick {
        ("quick-bytes", QUICK_SHARE, limits.quick)
    } else {
        ("max-bytes", 1, limits.whole)
    };
    let bytes_max = task.number(spec, bytes_max)?;
    // Three sizes at least, of which the plateau is the median.
    let bytes_large = limits.bytes_large.min(bytes_max / 4).max(BYTES_MIN);
    Ok(Sweep {
        bytes_min: if group.quick { bytes_large } else { BYTES_MIN },
        bytes_max,
        bytes_large,
        asked_bytes_per_s: group.asked_gb_per_s.map(|asked| (asked * 1e9) as u64),
        size_ms: task.number(spec, "size-ms")?.div_ceil(share),
        sweep_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Records what a launch left.
pub(super) fn tell(
    group: &Group,
    launched: &Launched,
    metrics: &Metrics,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let roster = &launched.roster;
    for evidence in launched.evidence(group.launch.name()) {
        record.evidence(evidence)?;
    }
    if let Some(library) = roster.library() {
        record.note(library)?;
    }
    for note in roster.notes() {
        record.note(note)?;
    }
    let nodes = group.size();
    for (node, state) in roster.states() {
        let mut member = metrics
            .member
            .of(Subject::new(Kind::Node, node), state.word());
        if let Some(why) = state.why() {
            member = member.detail(why);
        }
        record.add(member)?;
    }
    for size in roster.sizes() {
        let values = [
            busbw_gb_per_s(size),
            algbw_gb_per_s(size),
            size.mean_us,
            size.p50_us,
            size.p99_us,
            size.max_us,
        ];
        for (metric, value) in metrics.of_size().into_iter().zip(values) {
            let mut measured = metric
                .of(group.whole(), value)
                .at_bytes(size.bytes)
                .among(nodes);
            if metric.name == metrics.latency.name {
                measured = measured.detail(extremes(size, launched));
            }
            record.add(measured)?;
        }
    }
    let verified: u64 = roster.sizes().iter().map(|size| size.verified).sum();
    if verified > 0 {
        let wrong: u64 = roster.sizes().iter().map(|size| size.wrong).sum();
        let mut measured = metrics.wrong.of(group.whole(), wrong).among(nodes);
        let first = roster
            .sizes()
            .iter()
            .find_map(|size| Some((size, size.wrong_rank?)));
        if let Some((size, rank)) = first {
            measured = measured.detail(format!(
                "first at {} bytes, seen by {} of {} ranks, most by {}",
                size.bytes,
                size.wrong_ranks,
                size.ranks,
                roster.describe(rank)
            ));
        }
        record.add(measured)?;
    }
    let by_size: Vec<f64> = roster.sizes().iter().map(busbw_gb_per_s).collect();
    // The largest sizes of a sweep that was cut short may be small ones.
    if let Some(plateau) = collective::plateau(&by_size).filter(|_| roster.is_done()) {
        record.add(metrics.plateau.of(group.whole(), plateau).among(nodes))?;
    }
    for left_out in roster.left_out() {
        let largest = roster.sizes().last();
        let is_large = largest.is_none_or(|largest| left_out.bytes_min > largest.bytes);
        let plateau = is_large.then_some(&metrics.plateau);
        let missing = metrics.of_size().into_iter().chain(plateau);
        tell_left_out(left_out, group, missing, record)?;
    }
    Ok(())
}

/// Sizes that were not measured. Where what was asked for made them needless, `missing` has gaps, since another bound would
/// want them.
fn tell_left_out<'a>(
    left_out: &LeftOut,
    group: &Group,
    missing: impl Iterator<Item = &'a Metric>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let LeftOut {
        bytes_min,
        bytes_max,
        why,
    } = left_out;
    let sizes = format!("messages of {bytes_min} to {bytes_max} bytes were left out");
    match why {
        Enough::TimeIsUp => record.note(format!("{sizes}: the time of the sweep was up")),
        Enough::Level => record.note(format!(
            "{sizes}: the sizes before were equally fast, and hardly any iterations of larger ones fit"
        )),
        Enough::TooSlow => {
            let asked = group.asked_gb_per_s.unwrap_or_default();
            let why = format!("{sizes}: the {asked} GB/s that are asked for were out of reach");
            for metric in missing {
                record.gap(metric, group.whole(), why.as_str())?;
            }
            Ok(())
        }
    }
}

/// Which ranks were fastest and slowest, for people.
fn extremes(size: &SizeLine, launched: &Launched) -> String {
    let ((slow, slow_us), (fast, fast_us)) = (size.slowest, size.fastest);
    format!(
        "slowest {} {slow_us:.1} us, fastest {} {fast_us:.1} us",
        launched.roster.describe(slow),
        launched.roster.describe(fast)
    )
}

fn algbw_gb_per_s(size: &SizeLine) -> f64 {
    collective::algbw_gb_per_s(size.bytes, size.mean_us.max(1e-3))
}

fn busbw_gb_per_s(size: &SizeLine) -> f64 {
    collective::all_reduce_busbw_gb_per_s(algbw_gb_per_s(size), size.ranks)
}

/// So many nodes are named with what became of them; the members' states have them all.
const NAMED_MAX: usize = 16;

/// What the launch came to, if not to its end: who is named by it stands in the members' states.
pub(super) fn ending(task: &Task, group: &Group, launched: &Launched) -> Result<(), CheckError> {
    if launched.roster.is_done() && launched.output.ended == Ended::Exited(0) {
        return Ok(());
    }
    let mut named: Vec<String> = launched
        .roster
        .states()
        .filter(|(_, state)| {
            !matches!(
                state,
                NodeState::Done | NodeState::Waiting | NodeState::Moving
            )
        })
        .map(|(node, state)| match state.why() {
            Some(why) => format!("{node} {} ({why})", state.word()),
            None => format!("{node} {}", state.word()),
        })
        .collect();
    let more = named.len().saturating_sub(NAMED_MAX);
    named.truncate(NAMED_MAX);
    let who = match (named.is_empty(), more) {
        (true, _) => "no node is named by it".to_owned(),
        (false, 0) => named.join(", "),
        (false, more) => format!("{}, and {more} more", named.join(", ")),
    };
    let what = format!(
        "the all-reduce over {} nodes did not come to its end: {} {}; {who}; last seen: {}",
        group.nodes.len(),
        group.launch.name(),
        launched.output.ended,
        launched.roster.whereabouts()
    );
    let what = if launched.roster.is_moving() {
        format!(
            "{what}; it had not come to a standstill: it is too slow for {} s, or --deadline is too short",
            task.deadline.as_secs()
        )
    } else {
        what
    };
    match launched.output.ended {
        Ended::TimedOut | Ended::Dismissed | Ended::Unkillable { .. } => {
            Err(CheckError::TimedOut(what))
        }
        Ended::Exited(_) | Ended::Signaled(_) => Err(CheckError::Unavailable(what)),
    }
}
