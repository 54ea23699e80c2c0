//! The sweep: all-reduces of growing buffers, each iteration timed on every rank and its result compared.

use std::error::Error;
use std::time::Instant;

use dhc_checks::rank::{Phase, RankLine, SizeLine, Sweep};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use crate::voice::Voice;

/// Iterations of a size: enough for percentiles, and no more than their worth.
const ITERATIONS_MIN: u64 = 5;

/// Iterations of a size of which one alone takes longer than all should: their mean says how slow it is, and whoever looks
/// for the reason waits for every one of them.
const ITERATIONS_SLOW: u64 = 2;
const ITERATIONS_MAX: u64 = 1_000;

/// So many sizes within this factor of one another are a plateau: those that its median is taken of.
const LEVEL_SIZES: usize = 3;
const LEVEL: f64 = 1.1;

/// Iterations before those that count.
const WARM_UP: usize = 2;

/// Of how many iterations one is verified, besides the first and the last: comparing costs as much as reducing.
const VERIFY_EVERY: u64 = 16;

/// Elements are small whole numbers, so that their sum over any number of ranks up to 2²⁰ is exact in 32 bits.
const ELEMENT_PERIOD: u64 = 17;

/// What each rank tells rank 0 of a size, as numbers that MPI carries.
const TOLD: usize = 6;

/// Why a rank could not go on.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// One way of adding up what all ranks hold, element by element.
pub(crate) trait AllReduce {
    /// Makes room for so many elements; of those that are sent, each is the one of `pattern` at its place, repeated.
    fn prepare(&mut self, elements: usize, pattern: &[f32]) -> Outcome<()>;

    /// One all-reduce, and how long it took on this rank in microseconds.
    fn reduce(&mut self) -> Outcome<f64>;

    /// How many elements of the sum are not those of `expected`, repeated. Wipes the sum, so that what stays is not taken
    /// for the next one.
    fn count_wrong(&mut self, expected: &[f32]) -> Outcome<u64>;
}

/// Runs all sizes that fit the time; every rank runs the same.
pub(crate) fn sweep(
    world: &SimpleCommunicator,
    all_reduce: &mut dyn AllReduce,
    sweep: &Sweep,
    voice: &Voice,
) -> Outcome<()> {
    voice.reach(Phase::Collective);
    let begun = Instant::now();
    let mut bytes = sweep.bytes_min.max(4);
    let mut rates = Vec::new();
    while bytes <= sweep.bytes_max {
        let elements = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
        let mut run = Size::new(world, all_reduce, elements, voice)?;
        // The first one opens connections; the second tells what one costs, verification and barrier included.
        run.iterate(true)?;
        let second = Instant::now();
        run.iterate(true)?;
        let warm_us = second.elapsed().as_secs_f64() * 1e6;
        // Rank 0 decides for all, since each has seen another time.
        let late = begun.elapsed().as_millis() as u64 >= sweep.sweep_ms;
        let mut iterations = iterations(sweep.size_ms, warm_us);
        if late || iterations <= ITERATIONS_MIN && is_level(&rates) {
            iterations = 0;
        }
        world.process_at_rank(0).broadcast_into(&mut iterations);
        if iterations == 0 {
            return Ok(());
        }
        for iteration in 0..iterations {
            run.iterate(iteration % VERIFY_EVERY == 0 || iteration + 1 == iterations)?;
        }
        rates.push(bytes as f64 / run.tell());
        bytes *= 2;
    }
    Ok(())
}

/// Whether the last sizes were all equally fast, so that the plateau is reached. Larger ones, of which but a few iterations
/// fit, would tell nothing new, and take longest on the slowest links.
fn is_level(rates: &[f64]) -> bool {
    let Some(last) = rates.last_chunk::<LEVEL_SIZES>() else {
        return false;
    };
    let least = last.iter().copied().fold(f64::INFINITY, f64::min);
    let most = last.iter().copied().fold(0.0, f64::max);
    most <= least * LEVEL
}

fn iterations(size_ms: u64, warm_us: f64) -> u64 {
    let fitting = size_ms as f64 * 1e3 / warm_us.max(0.1);
    if fitting < 1.0 {
        return ITERATIONS_SLOW;
    }
    (fitting as u64).clamp(ITERATIONS_MIN, ITERATIONS_MAX)
}

/// What a rank sends at a place. Rank 0 goes in other steps than the rest: if all went alike, the sums of as many ranks as the
/// period has places would be the same everywhere, and data at a wrong place would pass for right.
fn sent(rank: u64, element: u64) -> f32 {
    let place = if rank == 0 {
        2 * element
    } else {
        element + 7 * rank
    };
    (place % ELEMENT_PERIOD) as f32
}

/// What all ranks together send at each place of a period.
fn sums(ranks: u64) -> Vec<f32> {
    let sum = |element| (0..ranks).map(|rank| sent(rank, element)).sum();
    (0..ELEMENT_PERIOD).map(sum).collect()
}

/// How many elements differ from those of `expected`, repeated.
pub(crate) fn count_differences(elements: &[f32], expected: &[f32]) -> u64 {
    let pairs = elements
        .chunks(expected.len())
        .flat_map(|chunk| chunk.iter().zip(expected));
    pairs.filter(|(is, due)| is != due).count() as u64
}

/// One message size under measurement.
struct Size<'a> {
    world: &'a SimpleCommunicator,
    all_reduce: &'a mut dyn AllReduce,
    voice: &'a Voice,
    bytes: u64,
    /// What each element of the result has to be, for one period.
    expected: Vec<f32>,
    times_us: Vec<f64>,
    verified: u64,
    wrong: u64,
}

impl<'a> Size<'a> {
    fn new(
        world: &'a SimpleCommunicator,
        all_reduce: &'a mut dyn AllReduce,
        elements: usize,
        voice: &'a Voice,
    ) -> Outcome<Self> {
        let (rank, ranks) = (world.rank() as u64, world.size() as u64);
        let pattern: Vec<f32> = (0..ELEMENT_PERIOD)
            .map(|element| sent(rank, element))
            .collect();
        all_reduce.prepare(elements, &pattern)?;
        Ok(Size {
            world,
            all_reduce,
            voice,
            bytes: (elements * 4) as u64,
            expected: sums(ranks),
            times_us: Vec::new(),
            verified: 0,
            wrong: 0,
        })
    }

    /// One all-reduce, timed on this rank. The barrier after it is not timed, so that one
    /// rank's verification is not another one's all-reduce.
    fn iterate(&mut self, verify: bool) -> Outcome<()> {
        self.voice.enters();
        self.times_us.push(self.all_reduce.reduce()?);
        if verify {
            self.verified += 1;
            self.wrong += self.all_reduce.count_wrong(&self.expected)?;
        }
        // Who is stuck in between has entered fewer than those who wait here.
        self.voice.enters();
        self.world.barrier();
        Ok(())
    }

    /// Gathers what every rank saw, and lets rank 0 tell it. The times of the warm-up do not count, though what it got
    /// wrong does. Returns the mean on this rank, in microseconds.
    fn tell(mut self) -> f64 {
        let times = &mut self.times_us[WARM_UP..];
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let mine = [mean, at(0.5), at(0.99), at(0.0), at(1.0), self.wrong as f64];
        let iterations = times.len() as u64;
        let root = self.world.process_at_rank(0);
        if self.world.rank() != 0 {
            root.gather_into(&mine[..]);
            return mean;
        }
        let mut all = vec![0.0; TOLD * self.world.size() as usize];
        root.gather_into_root(&mine[..], &mut all[..]);
        let line = summary(&all, iterations, self.verified, self.bytes);
        self.voice.say(&RankLine::Size(line));
        mean
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
        wrong_ranks: column(5).filter(|wrong| *wrong > 0.0).count() as u32,
        mean_us: column(0).sum::<f64>() / ranks.len() as f64,
        p50_us: medians[medians.len() / 2],
        p99_us: most(2).1,
        min_us: least(3).1,
        max_us: most(4).1,
        slowest: most(0),
        fastest: least(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_at_a_wrong_place_is_wrong_among_any_number_of_ranks() {
        for ranks in 2..=4 * ELEMENT_PERIOD {
            let sums = sums(ranks);
            for shift in 1..sums.len() {
                let mut shifted = sums.clone();
                shifted.rotate_left(shift);
                assert!(
                    count_differences(&shifted, &sums) > 0,
                    "{ranks} ranks, {shift} places"
                );
            }
        }
    }
}
