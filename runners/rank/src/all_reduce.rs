//! The sweep: all-reduces of growing buffers, each iteration timed on every rank and its result compared.

use std::time::Instant;

use dhc_checks::rank::{Phase, RankLine, SizeLine, Sweep};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use crate::voice::Voice;

/// Iterations of a size: enough for percentiles, and no more than their worth.
const ITERATIONS_MIN: u64 = 5;
const ITERATIONS_MAX: u64 = 1_000;

/// Iterations before those that count.
const WARM_UP: usize = 2;

/// Of how many iterations one is verified, besides the first and the last: comparing costs as much as reducing.
const VERIFY_EVERY: u64 = 16;

/// Elements are small whole numbers, so that their sum over any number of ranks up to 2²⁰ is exact in 32 bits.
const ELEMENT_PERIOD: u64 = 17;

/// What each rank tells rank 0 of a size, as numbers that MPI carries.
const TOLD: usize = 6;

/// Runs all sizes that fit the time; every rank runs the same.
pub(crate) fn sweep(world: &SimpleCommunicator, sweep: &Sweep, voice: &Voice) {
    voice.reach(Phase::Collective);
    let begun = Instant::now();
    let mut bytes = sweep.bytes_min.max(4);
    while bytes <= sweep.bytes_max {
        let elements = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
        let mut run = Size::new(world, elements, voice);
        // The first one opens connections; the second tells what one costs, verification and barrier included.
        run.iterate(true);
        let second = Instant::now();
        run.iterate(true);
        let warm_us = second.elapsed().as_secs_f64() * 1e6;
        // Rank 0 decides for all, since each has seen another time.
        let late = begun.elapsed().as_millis() as u64 >= sweep.sweep_ms;
        let mut iterations = if late {
            0
        } else {
            iterations(sweep.size_ms, warm_us)
        };
        world.process_at_rank(0).broadcast_into(&mut iterations);
        if iterations == 0 {
            return;
        }
        for iteration in 0..iterations {
            run.iterate(iteration % VERIFY_EVERY == 0 || iteration + 1 == iterations);
        }
        run.tell();
        bytes *= 2;
    }
}

fn iterations(size_ms: u64, warm_us: f64) -> u64 {
    let fitting = size_ms as f64 * 1e3 / warm_us.max(0.1);
    (fitting as u64).clamp(ITERATIONS_MIN, ITERATIONS_MAX)
}

/// One message size under measurement.
struct Size<'a> {
    world: &'a SimpleCommunicator,
    voice: &'a Voice,
    send: Buffer,
    sum: Buffer,
    /// What each element of the result has to be, for one period.
    expected: Vec<f32>,
    times_us: Vec<f64>,
    verified: u64,
    wrong: u64,
}

impl<'a> Size<'a> {
    fn new(world: &'a SimpleCommunicator, elements: usize, voice: &'a Voice) -> Self {
        let of = |rank: u64, element: u64| ((element + 7 * rank) % ELEMENT_PERIOD) as f32;
        let (rank, ranks) = (world.rank() as u64, world.size() as u64);
        let expected =
            (0..ELEMENT_PERIOD).map(|element| (0..ranks).map(|rank| of(rank, element)).sum());
        Size {
            world,
            voice,
            send: Buffer::of(
                elements,
                (0..elements as u64).map(|element| of(rank, element)),
            ),
            sum: Buffer::of(elements, std::iter::repeat_n(0.0, elements)),
            expected: expected.collect(),
            times_us: Vec::new(),
            verified: 0,
            wrong: 0,
        }
    }

    /// One all-reduce, timed on this rank. The barrier after it is not timed, so that one
    /// rank's verification is not another one's all-reduce.
    fn iterate(&mut self, verify: bool) {
        self.voice.enters();
        let begun = Instant::now();
        self.world.all_reduce_into(
            self.send.elements(),
            self.sum.elements_mut(),
            SystemOperation::sum(),
        );
        let time_us = begun.elapsed().as_secs_f64() * 1e6;
        self.times_us.push(time_us);
        if verify {
            self.verified += 1;
            let period = self.expected.len();
            let wrong = self
                .sum
                .elements()
                .chunks(period)
                .flat_map(|chunk| chunk.iter().zip(&self.expected));
            self.wrong += wrong.filter(|(is, due)| is != due).count() as u64;
            // What stays in the buffer must not be taken for the next result.
            self.sum.elements_mut().fill(-1.0);
        }
        self.world.barrier();
    }

    /// Gathers what every rank saw, and lets rank 0 tell it. The times of the warm-up do not count, though what it got
    /// wrong does.
    fn tell(mut self) {
        let times = &mut self.times_us[WARM_UP..];
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let mine = [mean, at(0.5), at(0.99), at(0.0), at(1.0), self.wrong as f64];
        let iterations = times.len() as u64;
        let root = self.world.process_at_rank(0);
        if self.world.rank() != 0 {
            root.gather_into(&mine[..]);
            return;
        }
        let mut all = vec![0.0; TOLD * self.world.size() as usize];
        root.gather_into_root(&mine[..], &mut all[..]);
        let line = summary(
            &all,
            iterations,
            self.verified,
            (self.send.elements().len() * 4) as u64,
        );
        self.voice.say(&RankLine::Size(line));
    }
}

/// Elements that begin on a page, as those of other benchmarks do: copying what begins beside a cache line is slower.
struct Buffer {
    storage: Vec<f32>,
    from: usize,
}

const PAGE_BYTES: usize = 4_096;

impl Buffer {
    fn of(count: usize, elements: impl Iterator<Item = f32>) -> Buffer {
        let mut storage: Vec<f32> = Vec::with_capacity(count + PAGE_BYTES / 4);
        let from = storage
            .as_ptr()
            .align_offset(PAGE_BYTES)
            .min(PAGE_BYTES / 4);
        storage.resize(from, 0.0);
        storage.extend(elements);
        Buffer { storage, from }
    }

    fn elements(&self) -> &[f32] {
        &self.storage[self.from..]
    }

    fn elements_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.from..]
    }
}

fn summary(all: &[f64], iterations: u64, verified: u64, bytes: u64) -> SizeLine {
    let ranks: Vec<&[f64]> = all.chunks_exact(TOLD).collect();
    let column = |place: usize| ranks.iter().map(move |told| told[place]);
    let most = |place: usize| {
        let most = column(place).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        most.map_or((0, 0.0), |(rank, value)| (rank as u32, value))
    };
    let least = |place: usize| {
        let least = column(place).enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        least.map_or((0, 0.0), |(rank, value)| (rank as u32, value))
    };
    let mut medians: Vec<f64> = column(1).collect();
    medians.sort_by(f64::total_cmp);
    let wrong: f64 = column(5).sum();
    SizeLine {
        bytes,
        ranks: ranks.len() as u32,
        iterations,
        verified,
        wrong: wrong as u64,
        wrong_rank: (wrong > 0.0).then(|| most(5).0),
        mean_us: column(0).sum::<f64>() / ranks.len() as f64,
        p50_us: medians[medians.len() / 2],
        p99_us: most(2).1,
        min_us: least(3).1,
        max_us: most(4).1,
        slowest: most(0),
        fastest: least(0),
    }
}
