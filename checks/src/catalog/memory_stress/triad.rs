//! STREAM's triad (J. D. McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers", 1995).

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::host::load;

/// Times that it is run; the first one warms up and does not count. As in STREAM.
const TIMES: usize = 10;

/// Read two words, write one: what STREAM counts, though caches may read the third one too before it is written.
const BYTES_AN_ELEMENT: usize = 24;

/// 10⁹ bytes a second.
pub(super) struct GigabytesPerSecond(pub(super) f64);

/// What came of it.
pub(super) struct Triad {
    /// The best time's bandwidth.
    pub(super) speed: GigabytesPerSecond,
    /// Elements that have the wrong value in the end.
    pub(super) wrong: u64,
}

/// When something began and ended.
type Span = (Instant, Instant);

/// Runs `a = b + 3 c` over thirds of `words` with all of `cpus` at once; `None` where there is nothing to run it on.
pub(super) fn best(words: &mut [u64], cpus: &[usize]) -> Option<Triad> {
    let third = words.len() / 3;
    let part = third.div_ceil(cpus.len().max(1));
    if part == 0 {
        return None;
    }
    let (a, rest) = words.split_at_mut(third);
    let (b, rest) = rest.split_at_mut(third);
    let c = &mut rest[..third];
    let parts = a
        .chunks_mut(part)
        .zip(b.chunks_mut(part))
        .zip(c.chunks_mut(part));
    let parts: Vec<_> = parts.zip(cpus).collect();
    let together = &Barrier::new(parts.len());
    let times: Vec<(Vec<Span>, u64)> = std::thread::scope(|scope| {
        let started = parts.into_iter().map(|(((a, b), c), cpu)| {
            scope.spawn(move || {
                // On another CPU the time is only worse, and the best one counts.
                let _ = load::stay_on(*cpu);
                on_one_cpu(a, b, c, together)
            })
        });
        // All have to be started before the first is waited for.
        let started: Vec<_> = started.collect();
        let ended = started.into_iter().filter_map(|thread| thread.join().ok());
        ended.collect()
    });
    let wrong = times.iter().map(|(_, wrong)| wrong).sum();
    let took = |time: usize| -> Option<Duration> {
        let spans = times.iter().map(|(spans, _)| spans[time]);
        let begun = spans.clone().map(|(begun, _)| begun).min()?;
        let ended = spans.map(|(_, ended)| ended).max()?;
        Some(ended - begun)
    };
    let fastest = (1..TIMES).filter_map(took).min()?;
    #[expect(clippy::cast_precision_loss, reason = "a bandwidth")]
    let speed = (BYTES_AN_ELEMENT * third) as f64 / fastest.as_secs_f64() / 1e9;
    Some(Triad {
        speed: GigabytesPerSecond(speed),
        wrong,
    })
}

/// When each time began and ended on this CPU, and how many elements are wrong in the end.
fn on_one_cpu(a: &mut [u64], b: &mut [u64], c: &mut [u64], together: &Barrier) -> (Vec<Span>, u64) {
    a.fill(0);
    b.fill(1.0_f64.to_bits());
    c.fill(2.0_f64.to_bits());
    let spans = (0..TIMES).map(|_| {
        together.wait();
        let begun = Instant::now();
        for ((a, b), c) in a.iter_mut().zip(&*b).zip(&*c) {
            *a = (f64::from_bits(*b) + 3.0 * f64::from_bits(*c)).to_bits();
        }
        std::hint::black_box(&mut *a);
        (begun, Instant::now())
    });
    let spans = spans.collect();
    let right = 7.0_f64.to_bits();
    let wrong = a.iter().filter(|element| **element != right).count();
    (spans, wrong as u64)
}
