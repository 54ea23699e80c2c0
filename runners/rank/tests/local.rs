//! Two ranks on this machine, started by Open MPI's own launcher.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the program and look at what it prints"
)]

mod common;

use std::process::Command;

use dhc_checks::rank::{Phase, RankLine, RankTask, Sweep, Work};

/// What two ranks said that came to their end.
fn two_ranks(task: &RankTask) -> Vec<RankLine> {
    let (output, lines) = common::ranks(2, task);
    assert!(output.status.success(), "{output:?}");
    lines
}

#[test]
fn two_ranks_measure_every_size_and_verify_it() {
    let lines = two_ranks(&RankTask {
        work: Work::AllReduce(Sweep {
            bytes_min: 8,
            bytes_max: 1 << 16,
            size_ms: 20,
            sweep_ms: 20_000,
        }),
        deadline_ms: 60_000,
        beat_ms: 1_000,
    });
    let sizes: Vec<_> = lines
        .iter()
        .filter_map(|line| match line {
            RankLine::Size(size) => Some(size),
            _ => None,
        })
        .collect();
    let bytes: Vec<u64> = sizes.iter().map(|size| size.bytes).collect();
    assert_eq!(
        bytes,
        (3..=16).map(|power| 1 << power).collect::<Vec<u64>>()
    );
    for size in sizes {
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
