//! Two ranks with a GPU each on this machine: Open MPI's own launcher, and the fake CUDA and NCCL behind the real FFI.
#![expect(
    clippy::unwrap_used,
    reason = "tests start the program and look at what it prints"
)]

mod common;

use common::ranks;
use dhc_checks::rank::{NcclSweep, Phase, RankLine, RankTask, Sweep, Work};
use dhc_fixtures::GpuLibraries;

fn task(fakes: &GpuLibraries, bytes_max: u64, deadline_ms: u64) -> RankTask {
    RankTask {
        work: Work::NcclAllReduce(NcclSweep {
            sweep: Sweep {
                bytes_min: 8,
                bytes_max,
                bytes_large: 0,
                asked_bytes_per_s: None,
                size_ms: 20,
                sweep_ms: 20_000,
            },
            nccl: Some(fakes.nccl()),
            cuda: Some(fakes.cuda()),
            library_path: Vec::new(),
            environment: [("NCCL_ALGO".to_owned(), "Ring".to_owned())].into(),
        }),
        deadline_ms,
        beat_ms: 200,
    }
}

/// How far a rank came.
fn last_phase(lines: &[RankLine], of: u32) -> Phase {
    let phases = lines.iter().filter_map(|line| match line {
        RankLine::At { rank, progress } if *rank == of => Some(progress.phase),
        _ => None,
    });
    phases.max().unwrap()
}

#[test]
fn four_ranks_verify_every_size_up_to_what_does_not_fit_into_one_copy() {
    let folder = tempfile::tempdir().unwrap();
    let fakes = GpuLibraries::in_folder(folder.path(), 4);
    // Small sizes, and two of which the larger one is checked in more than one copy: between them a sweep may find itself at
    // the plateau on a busy machine, and end.
    for (from, to) in [(3, 16), (24, 25)] {
        let mut task = task(&fakes, 1 << to, 60_000);
        if let Work::NcclAllReduce(work) = &mut task.work {
            work.sweep.bytes_min = 1 << from;
        }
        let (output, lines) = ranks(4, &task);
        assert!(output.status.success(), "{output:?}");
        let sizes = lines.iter().filter_map(|line| match line {
            RankLine::Size(size) => Some(size),
            _ => None,
        });
        let sizes: Vec<_> = sizes.collect();
        let bytes: Vec<u64> = sizes.iter().map(|size| size.bytes).collect();
        let due: Vec<u64> = (from..=to).map(|power| 1 << power).collect();
        assert_eq!(bytes, due);
        for size in sizes {
            assert_eq!(
                (size.ranks, size.wrong, size.wrong_rank),
                (4, 0, None),
                "{size:?}"
            );
            assert!(size.verified >= 4 && size.iterations >= 2, "{size:?}");
            assert!(size.min_us > 0.0 && size.p50_us <= size.p99_us, "{size:?}");
        }
        let is_gpu = |line: &&RankLine| matches!(line, RankLine::Gpu { .. });
        assert_eq!(lines.iter().filter(is_gpu).count(), 4);
        for rank in 0..4 {
            assert_eq!(last_phase(&lines, rank), Phase::Done);
        }
    }
}

#[test]
fn messages_for_which_a_gpu_has_no_room_are_left_out_and_that_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let fakes = GpuLibraries::in_folder(folder.path(), 2).memory_mib(1);
    let (output, lines) = ranks(2, &task(&fakes, 1 << 30, 60_000));
    assert!(output.status.success(), "{output:?}");
    let largest = lines.iter().filter_map(|line| match line {
        RankLine::Size(size) => Some(size.bytes),
        _ => None,
    });
    assert_eq!(largest.max(), Some(1 << 18));
    let told = |line: &RankLine| matches!(line, RankLine::Note { text } if text.contains("no room for more"));
    assert!(lines.iter().any(told));
}

#[test]
fn a_rank_that_hangs_in_the_driver_is_behind_those_that_wait_for_it_and_all_end_at_their_deadline()
{
    let folder = tempfile::tempdir().unwrap();
    let fakes = GpuLibraries::in_folder(folder.path(), 2);
    let fakes = fakes.cuda_fault("cuMemGetInfo_v2", 1, 0, "\"hangs\"");
    let (output, lines) = ranks(2, &task(&fakes, 1 << 10, 2_500));
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert_eq!(last_phase(&lines, 0), Phase::Barrier);
    assert_eq!(last_phase(&lines, 1), Phase::Memory);
}

#[test]
fn ranks_that_lose_one_of_them_say_so_only_after_the_launcher_could_have_named_it() {
    let folder = tempfile::tempdir().unwrap();
    // Rank 1 closes its connections and lives on, as if its network had failed.
    let fakes = GpuLibraries::in_folder(folder.path(), 2);
    let fakes = fakes.nccl_fault("ncclAllReduce", 1, 5, "\"disconnects\"");
    let begun = std::time::Instant::now();
    let (output, lines) = ranks(2, &task(&fakes, 1 << 10, 30_000));
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(begun.elapsed() >= std::time::Duration::from_secs(5));
    let failed = lines.iter().find_map(|line| match line {
        RankLine::Broke { error, .. } => Some(error.clone()),
        _ => None,
    });
    let failed = failed.unwrap();
    assert!(
        failed.contains("remote process exited or there was a network error"),
        "{failed}"
    );
    assert!(failed.contains("NCCL: socketProgress"), "{failed}");
}
