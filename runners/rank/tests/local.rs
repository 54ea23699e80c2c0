//! Two ranks on this machine, started by Open MPI's own launcher.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the program and look at what it prints"
)]

mod common;

use std::process::Command;

use dhc_checks::rank::{Enough, LeftOut, Phase, RankLine, RankTask, SizeLine, Sweep, Work};

/// What two ranks said that came to their end.
fn two_ranks(task: &RankTask) -> Vec<RankLine> {
    let (output, lines) = common::ranks(2, task);
    assert!(output.status.success(), "{output:?}");
    lines
}

/// All sizes from 8 B to 64 KiB, of which those from 4 KiB are large.
const SWEEP: Sweep = Sweep {
    bytes_min: 8,
    bytes_max: 1 << 16,
    bytes_large: 1 << 12,
    asked_bytes_per_s: None,
    size_ms: 20,
    sweep_ms: 20_000,
};

/// What two ranks tell of this sweep, in their order.
fn swept(sweep: Sweep) -> Vec<RankLine> {
    two_ranks(&RankTask {
        work: Work::AllReduce(sweep),
        deadline_ms: 60_000,
        beat_ms: 1_000,
    })
}

fn sizes(lines: &[RankLine]) -> Vec<&SizeLine> {
    let sizes = lines.iter().filter_map(|line| match line {
        RankLine::Size(size) => Some(size),
        _ => None,
    });
    sizes.collect()
}

fn bytes(lines: &[RankLine]) -> Vec<u64> {
    sizes(lines).iter().map(|size| size.bytes).collect()
}

fn left_out(lines: &[RankLine]) -> Vec<LeftOut> {
    let left_out = |line: &RankLine| match line {
        RankLine::LeftOut(sizes) => Some(*sizes),
        _ => None,
    };
    lines.iter().filter_map(left_out).collect()
}

/// Large sizes come before small ones.
fn in_order(
    large: std::ops::RangeInclusive<u32>,
    small: std::ops::RangeInclusive<u32>,
) -> Vec<u64> {
    large.chain(small).map(|power| 1 << power).collect()
}

#[test]
fn two_ranks_measure_every_size_and_verify_it() {
    // What is asked for is reached.
    let lines = swept(Sweep {
        asked_bytes_per_s: Some(1),
        ..SWEEP
    });
    assert_eq!(bytes(&lines), in_order(12..=16, 3..=11));
    assert_eq!(left_out(&lines), []);
    for size in sizes(&lines) {
        assert_eq!((size.ranks, size.wrong), (2, 0), "{size:?}");
        assert!(size.verified > 0 && size.iterations >= 5, "{size:?}");
        assert!(size.min_us > 0.0 && size.min_us <= size.p50_us, "{size:?}");
        assert!(
            size.p99_us <= size.max_us && size.fastest.1 <= size.slowest.1,
            "{size:?}"
        );
    }
    let left: Vec<_> = lines
        .iter()
        .filter_map(|line| match line {
            RankLine::Left {
                rank,
                collective_ms,
                transports,
                seen,
            } => Some((*rank, *collective_ms, transports, seen)),
            _ => None,
        })
        .collect();
    assert_eq!(left.len(), 2);
    for (rank, collective_ms, transports, seen) in left {
        assert!(collective_ms > 0, "rank {rank}");
        assert_eq!(*transports, ["shm"], "two ranks of one host: {seen}");
        assert!(seen.contains("pml "), "{seen}");
    }
    for rank in [0, 1] {
        assert!(
            lines
                .iter()
                .any(|line| matches!(line, RankLine::Hello(hello) if hello.rank == rank))
        );
        assert!(lines.iter().any(|line| {
            matches!(line, RankLine::At { rank: of, progress } if *of == rank && progress.phase == Phase::Done)
        }));
    }
}

#[test]
fn what_is_far_from_what_is_asked_for_is_measured_until_that_is_clear_and_says_what_was_left_out() {
    let lines = swept(Sweep {
        asked_bytes_per_s: Some(u64::MAX),
        ..SWEEP
    });
    let measured = bytes(&lines);
    assert!(measured.len() >= 2, "{measured:?}");
    let smallest = (12..).map(|power| 1 << power).take(measured.len());
    assert_eq!(measured, smallest.collect::<Vec<u64>>());
    assert!(
        sizes(&lines)
            .iter()
            .all(|size| size.verified > 0 && size.wrong == 0)
    );
    let large = LeftOut {
        bytes_min: 2 * measured[measured.len() - 1],
        bytes_max: 1 << 16,
        why: Enough::TooSlow,
    };
    let small = LeftOut {
        bytes_min: 8,
        bytes_max: 1 << 11,
        why: Enough::TooSlow,
    };
    let large = (large.bytes_min <= large.bytes_max).then_some(large);
    let due: Vec<LeftOut> = large.into_iter().chain([small]).collect();
    assert_eq!(left_out(&lines), due);
}

#[test]
fn sizes_for_which_there_is_no_time_are_told() {
    let lines = swept(Sweep {
        sweep_ms: 0,
        ..SWEEP
    });
    assert!(bytes(&lines).is_empty());
    let left_out = left_out(&lines);
    let whys: Vec<Enough> = left_out.iter().map(|sizes| sizes.why).collect();
    assert_eq!(whys, [Enough::TimeIsUp, Enough::TimeIsUp]);
    // Nothing is asked for, so sizes go up.
    let sizes = left_out
        .iter()
        .map(|sizes| (sizes.bytes_min, sizes.bytes_max));
    let sizes: Vec<(u64, u64)> = sizes.collect();
    assert_eq!(sizes, [(8, 1 << 11), (1 << 12, 1 << 16)]);
}

#[test]
fn a_roll_call_says_hello_and_nothing_else() {
    let lines = two_ranks(&RankTask {
        work: Work::RollCall,
        deadline_ms: 10_000,
        beat_ms: 1_000,
    });
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| matches!(line, RankLine::Hello(_))));
}

#[test]
fn a_rank_without_a_task_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_dhc-rank"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by dhc"));
}

#[test]
fn a_rank_ends_itself_at_its_deadline() {
    // Alone it would wait in MPI's start for its peer without end; without a launcher MPI lets it be a world of one, so the
    // sweep is what takes longer than the deadline.
    let task = RankTask {
        work: Work::AllReduce(Sweep {
            bytes_min: 8,
            bytes_max: 1 << 30,
            bytes_large: 0,
            asked_bytes_per_s: None,
            size_ms: 60_000,
            sweep_ms: 600_000,
        }),
        deadline_ms: 1_500,
        beat_ms: 200,
    };
    let output = Command::new(env!("CARGO_BIN_EXE_dhc-rank"))
        .arg(serde_json::to_string(&task).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(124), "{output:?}");
}
