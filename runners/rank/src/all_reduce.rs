//! The sweep: all-reduces of growing buffers, each iteration timed on every rank and its result compared.
//!
//! Sizes go up, as they do in other benchmarks, so that the figures can be compared: connections that have carried large
//! messages are slower at middling ones. Where a bandwidth is asked for, the large sizes come first, since the plateau is
//! theirs: if it is clear from some of them that it is out of reach, the rest is left out, for whoever looks for the reason
//! waits for every group.

use std::error::Error;
use std::iter;
use std::time::{Duration, Instant};

use dhc_checks::collective;
use dhc_checks::rank::{Enough, LeftOut, Phase, RankLine, SizeLine, Sweep};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use crate::voice::Voice;

/// Iterations of a size: enough for percentiles, and no more than their worth.
const ITERATIONS_MIN: u64 = 5;

/// Iterations of a size of which one alone takes longer than all should, or which takes long and is far from what is asked
/// for: their mean says how slow it is, and whoever looks for the reason waits for every one of them.
const ITERATIONS_SLOW: u64 = 3;
const ITERATIONS_MAX: u64 = 1_000;

/// So many sizes within this factor of one another are a plateau: those that its median is taken of.
const LEVEL_SIZES: usize = 3;
const LEVEL: f64 = 1.1;

/// Iterations before those that count, and which part of a size's time they take: connections need a while to come to the
/// speed of a size, and the first one of all the longest.
const WARM_UP: usize = 2;
const WARM_UP_PART: u64 = 10;
const WARM_UP_FIRST: Duration = Duration::from_millis(50);

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

/// Runs all sizes that fit the time and may tell anything new; every rank runs the same.
pub(crate) fn sweep(
    world: &SimpleCommunicator,
    all_reduce: &mut dyn AllReduce,
    sweep: &Sweep,
    voice: &Voice,
) -> Outcome<()> {
    voice.reach(Phase::Collective);
    let begun = Instant::now();
    let sizes = iter::successors(Some(sweep.bytes_min.max(4)), |bytes| bytes.checked_mul(2));
    let sizes = sizes.take_while(|bytes| *bytes <= sweep.bytes_max);
    let (large, small): (Vec<u64>, Vec<u64>) = sizes.partition(|bytes| *bytes >= sweep.bytes_large);
    let root = world.process_at_rank(0);
    let mut seen = Seen::default();
    let mut is_first = true;
    let warm_up = Duration::from_millis(sweep.size_ms / WARM_UP_PART);
    let parts = match sweep.asked_bytes_per_s {
        Some(_) => [large, small],
        None => [small, large],
    };
    for part in parts {
        for (place, bytes) in part.iter().copied().enumerate() {
            // Rank 0 decides for all, since each has seen another time.
            let left = &part[place..];
            let enough = match begun.elapsed().as_millis() as u64 >= sweep.sweep_ms {
                true => Some(Enough::TimeIsUp),
                false => seen.is_enough(left, sweep),
            };
            let is_warm = place > 0 && seen.is_hopeless(sweep);
            let mut decided = [enough.is_some(), is_warm];
            root.broadcast_into(&mut decided[..]);
            let [is_enough, is_warm] = decided;
            if is_enough {
                if let Some(why) = enough.filter(|_| world.rank() == 0) {
                    voice.say(&RankLine::LeftOut(LeftOut {
                        bytes_min: bytes,
                        bytes_max: left[left.len() - 1],
                        why,
                    }));
                }
                break;
            }
            let mut run = Size::new(world, all_reduce, bytes, voice)?;
            let cost_us = match is_warm {
                true => 2.0 * seen.cost_us,
                false if is_first => run.warm_up(warm_up.max(WARM_UP_FIRST))?,
                false => run.warm_up(warm_up)?,
            };
            is_first = false;
            let mut iterations = run.iterations(cost_us, sweep);
            root.broadcast_into(&mut iterations);
            let begun = Instant::now();
            for iteration in 0..iterations {
                run.iterate(iteration % VERIFY_EVERY == 0 || iteration + 1 == iterations)?;
            }
            let cost_us = begun.elapsed().as_secs_f64() * 1e6 / iterations as f64;
            if let Some(size) = run.tell().filter(|size| size.bytes >= sweep.bytes_large) {
                seen.sizes.push(size);
                seen.cost_us = cost_us;
            }
        }
    }
    Ok(())
}

/// What rank 0 has seen of the large sizes; the others see nothing.
#[derive(Default)]
struct Seen {
    /// In ascending order.
    sizes: Vec<SizeLine>,
    /// What one iteration of the last of them took, verification and barrier included.
    cost_us: f64,
}

impl Seen {
    /// Whether these sizes need not be measured, and why; they are what is left of the large or of the small ones.
    fn is_enough(&self, left: &[u64], sweep: &Sweep) -> Option<Enough> {
        let is_large = |bytes: &&u64| **bytes >= sweep.bytes_large;
        let large_left = left.iter().filter(is_large).count();
        let is_out_of_reach = |asked: u64| {
            self.is_below(asked, large_left) || large_left > 0 && self.cannot_come_to(asked)
        };
        if sweep.asked_bytes_per_s.is_some_and(is_out_of_reach) {
            return Some(Enough::TooSlow);
        }
        let is_level = large_left > 0 && self.is_costly(sweep) && self.is_level();
        is_level.then_some(Enough::Level)
    }

    /// Whether but a few iterations fit of the next size, which costs twice as much as the last.
    fn is_costly(&self, sweep: &Sweep) -> bool {
        fitting(2.0 * self.cost_us, sweep) <= ITERATIONS_MIN
    }

    /// Whether that is so, and the last size far from what is asked for: the next one needs no warm-up to show as much.
    fn is_hopeless(&self, sweep: &Sweep) -> bool {
        let (Some(last), Some(asked)) = (self.sizes.last(), sweep.asked_bytes_per_s) else {
            return false;
        };
        self.is_costly(sweep) && busbw_at_best(last) < hopeless_below(asked)
    }

    /// Whether the last sizes were all equally fast, so that the plateau is reached. Larger ones, of which but a few iterations
    /// fit, would tell nothing new, and take longest on the slowest links.
    fn is_level(&self) -> bool {
        let Some(last) = self.sizes.last_chunk::<LEVEL_SIZES>() else {
            return false;
        };
        let rates = || last.iter().map(|size| size.bytes as f64 / size.mean_us);
        rates().fold(0.0, f64::max) <= rates().fold(f64::INFINITY, f64::min) * LEVEL
    }

    /// Whether the plateau is below what is asked for, however fast the sizes are that are left. The fastest iteration of each
    /// size on any rank is what counts: were every second one fast enough, three of each of two sizes would all be too slow one
    /// time in 64.
    fn is_below(&self, asked: u64, left: usize) -> bool {
        let at_best = self.sizes.iter().map(busbw_at_best);
        let at_best: Vec<f64> = at_best.chain(iter::repeat_n(f64::INFINITY, left)).collect();
        collective::plateau(&at_best).is_some_and(|plateau| plateau < asked as f64)
    }

    /// Whether no larger size comes to what is asked for.
    fn cannot_come_to(&self, asked: u64) -> bool {
        let Some([half, last]) = self.sizes.last_chunk() else {
            return false;
        };
        let (half, last) = (busbw_at_best(half), busbw_at_best(last));
        last <= LEVEL * half && half.max(last) < hopeless_below(asked)
    }
}

/// Bus bandwidth of the fastest iteration, in bytes a second.
fn busbw_at_best(size: &SizeLine) -> f64 {
    busbw(size.bytes, size.min_us, size.ranks)
}

/// Below what bus bandwidth a size is so slow that larger ones cannot come to what is asked for, if they are hardly faster. As
/// far as a message takes a time of its own and a time for each byte, a size that is no more than [`LEVEL`] times as fast as
/// the one of half its bytes leaves larger ones no more than 1 / (2 - [`LEVEL`]) times its rate.
fn hopeless_below(asked: u64) -> f64 {
    (2.0 - LEVEL) * asked as f64
}

/// How many iterations fit the time of a size.
fn fitting(cost_us: f64, sweep: &Sweep) -> u64 {
    (sweep.size_ms as f64 * 1e3 / cost_us.max(0.1)) as u64
}

/// Bus bandwidth in bytes a second of one all-reduce.
fn busbw(bytes: u64, time_us: f64, ranks: u32) -> f64 {
    let algbw = collective::algbw_gb_per_s(bytes, time_us);
    collective::all_reduce_busbw_gb_per_s(algbw, ranks) * 1e9
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
    /// How many iterations do not count.
    warm_up: usize,
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
        bytes: u64,
        voice: &'a Voice,
    ) -> Outcome<Self> {
        let elements = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
        let (rank, ranks) = (world.rank() as u64, world.size() as u64);
        let pattern: Vec<f32> = (0..ELEMENT_PERIOD)
            .map(|element| sent(rank, element))
            .collect();
        all_reduce.prepare(elements, &pattern)?;
        Ok(Size {
            world,
            all_reduce,
            voice,
            bytes,
            warm_up: 0,
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

    /// Iterations that do not count, for so long at least. Returns what the last one costs in microseconds, verification and
    /// barrier included.
    fn warm_up(&mut self, so_long: Duration) -> Outcome<f64> {
        let root = self.world.process_at_rank(0);
        let begun = Instant::now();
        loop {
            let last = Instant::now();
            self.iterate(true)?;
            self.warm_up += 1;
            let mut is_warm = self.warm_up >= WARM_UP && begun.elapsed() >= so_long;
            root.broadcast_into(&mut is_warm);
            if is_warm {
                return Ok(last.elapsed().as_secs_f64() * 1e6);
            }
        }
    }

    /// How many iterations are to count, where one of them takes so long with verification and barrier.
    fn iterations(&self, cost_us: f64, sweep: &Sweep) -> u64 {
        let ranks = u32::try_from(self.world.size()).unwrap_or(u32::MAX);
        let is_hopeless = |asked| busbw(self.bytes, cost_us, ranks) < hopeless_below(asked);
        match fitting(cost_us, sweep) {
            0 => ITERATIONS_SLOW,
            1..ITERATIONS_MIN if sweep.asked_bytes_per_s.is_some_and(is_hopeless) => {
                ITERATIONS_SLOW
            }
            fitting => fitting.clamp(ITERATIONS_MIN, ITERATIONS_MAX),
        }
    }

    /// Gathers what every rank saw, and lets rank 0 tell it, which gets it as well. The times of the warm-up do not count,
    /// though what it got wrong does.
    fn tell(mut self) -> Option<SizeLine> {
        let times = &mut self.times_us[self.warm_up..];
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let mine = [mean, at(0.5), at(0.99), at(0.0), at(1.0), self.wrong as f64];
        let iterations = times.len() as u64;
        let root = self.world.process_at_rank(0);
        if self.world.rank() != 0 {
            root.gather_into(&mine[..]);
            return None;
        }
        let mut all = vec![0.0; TOLD * self.world.size() as usize];
        root.gather_into_root(&mine[..], &mut all[..]);
        let line = summary(&all, iterations, self.verified, self.bytes);
        self.voice.say(&RankLine::Size(line));
        Some(line)
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
