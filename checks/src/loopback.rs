//! Latency and bandwidth of a libfabric device to itself, with every byte checked.
//!
//! Two endpoints on the same device, each with a domain and a thread of its own like two processes, exchange tagged
//! messages:
//!
//! - **Latency** is half a round trip, as `fi_pingpong` and perftest count it. Each round trip is timed by itself.
//! - **Bandwidth** is that of windows: the sender starts a window of messages at once, the receiver answers when the last
//!   one has arrived, and the window's bytes are divided by the time from the first start to the answer, as fabtests'
//!   `fi_rdm_tagged_bw` does it. Between windows, outside of the time, every byte is compared with what must have been
//!   sent; each message differs from all others, so that an old buffer is found too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libfabric_sys::{Address, Completion, Device, Endpoint, FabricError};

/// Settings that keep a provider from taking a short cut through shared memory, to be given to
/// [`libfabric_sys::Library::load`]. A loopback must pass through the card that it is to test (libfabric, `fi_efa(7)`).
pub const NO_SHORTCUTS: &[(&str, &str)] = &[("FI_EFA_ENABLE_SHM_TRANSFER", "0")];

/// Messages in a window at most, as in fabtests.
const WINDOW_MAX: usize = 64;

/// Bytes in a window at most, so that memory stays small whatever the message size, and that a software provider finds the
/// messages in the processor's caches, as it does for tools that send the same few buffers again and again. A card of
/// 100 Gbit/s works on it for 0.7 ms, against which the answer's flight of some 15 us is little.
const WINDOW_BYTES_MAX: usize = 8 << 20;

/// The size of the message that answers a window.
const ANSWER_BYTES: usize = 8;

/// How often a waiting thread looks at the clock and at the other side, and lets others run.
const POLLS_BETWEEN_LOOKS: u32 = 512;

/// How much of the time between two looks counts as quiet at most: a thread that was not let run has not listened.
const LISTENED_MAX: Duration = Duration::from_millis(100);

/// The step in which a device does work that it has taken.
const EXCHANGE: &str = "exchange messages";

/// What to measure.
#[derive(Clone, Debug)]
pub struct Course {
    /// Message sizes in bytes whose latency is measured.
    pub latency_bytes: Vec<usize>,
    /// Round trips timed for each size; a tenth as many go before, untimed.
    pub round_trips: usize,
    /// Message sizes in bytes whose bandwidth is measured.
    pub bandwidth_bytes: Vec<usize>,
    /// Windows timed for each size; one goes before, untimed.
    pub windows: usize,
    /// When to give up.
    pub deadline: Duration,
    /// How long nothing may come of a device before it counts as silent.
    pub silence: Duration,
}

/// What was measured of one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// For each message size, the half round trips in microseconds, in ascending order.
    pub latency_us: Vec<(usize, Samples)>,
    /// For each message size, the bandwidth of each window in bytes a second, in ascending order.
    pub bandwidth: Vec<(usize, Samples)>,
    /// Bytes that were checked.
    pub bytes_checked: u64,
    /// Messages that arrived with other bytes than were sent.
    pub messages_corrupted: u64,
}

/// Samples in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// The samples, put in order.
    pub fn new(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Samples(samples)
    }

    /// The sample that `share` (0 to 1) of all are not above; `None` if there are none.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among at most some thousand samples"
    )]
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let rank = (share.clamp(0.0, 1.0) * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied()
    }

    /// The least.
    pub fn min(&self) -> Option<f64> {
        self.0.first().copied()
    }

    /// The greatest.
    pub fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }

    /// The mean.
    #[expect(clippy::cast_precision_loss, reason = "at most some thousand samples")]
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }
}

/// Why a device could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// libfabric refused a step.
    #[error("cannot {step}")]
    Fabric {
        /// Which.
        step: &'static str,
        /// Its answer.
        #[source]
        error: FabricError,
    },
    /// The time was over, and nothing had come for long.
    #[error("nothing came any more for {:.1} s while measuring {phase}", quiet.as_secs_f64())]
    Silent {
        /// What was measured.
        phase: String,
        /// How long nothing had come.
        quiet: Duration,
    },
    /// The time was over before the course was, which says nothing of the device.
    #[error(
        "the time was too short: its {:.1} s were over while measuring {phase}; allow more with --deadline",
        limit.as_secs_f64()
    )]
    TooShort {
        /// What was measured.
        phase: String,
        /// The time of the whole course.
        limit: Duration,
    },
    /// The other side gave up, for a reason of its own.
    #[error("the other endpoint stopped")]
    PeerStopped,
}

impl LoopbackError {
    /// What the device did, where the device itself is why: `silent`, or `failed` for work that it took and did not do.
    pub fn of_the_device(&self) -> Option<&'static str> {
        match self {
            LoopbackError::Silent { .. } => Some("silent"),
            LoopbackError::Fabric { step, .. } if *step == EXCHANGE => Some("failed"),
            LoopbackError::Fabric { .. }
            | LoopbackError::TooShort { .. }
            | LoopbackError::PeerStopped => None,
        }
    }
}

/// Measures `device`. `heard` is told what is measured next.
///
/// # Errors
/// When the device cannot be opened or does not answer; what the other side says is preferred to "the peer stopped".
pub fn measure(
    device: &Device,
    course: &Course,
    heard: &mut dyn FnMut(&str),
) -> Result<Results, LoopbackError> {
    let largest = course
        .latency_bytes
        .iter()
        .chain(&course.bandwidth_bytes)
        .copied()
        .max()
        .unwrap_or(0);
    let slot = largest.max(ANSWER_BYTES);
    let slots = course
        .bandwidth_bytes
        .iter()
        .map(|bytes| window(*bytes))
        .max()
        .unwrap_or(1);
    let stopped = AtomicBool::new(false);
    let begun = Instant::now();
    let mut sender = Side::open(device, slots, slot, course, begun, &stopped)?;
    let mut receiver = Side::open(device, slots, slot, course, begun, &stopped)?;
    sender.connect(&receiver.address()?)?;
    receiver.connect(&sender.address()?)?;
    heard("exchanging messages");
    std::thread::scope(|scope| {
        let stop = |_: &LoopbackError| stopped.store(true, Ordering::Relaxed);
        let far = scope.spawn(move || receiver.answer(course).inspect_err(stop));
        let near = sender.drive(course, heard).inspect_err(stop);
        let far = far.join().expect("the receiver's thread does not panic");
        match (near, far) {
            (Ok(near), Ok(far)) => Ok(Results {
                bytes_checked: near.bytes_checked + far.bytes_checked,
                messages_corrupted: near.messages_corrupted + far.messages_corrupted,
                ..near
            }),
            // What still came on one side was not silence.
            (Err(LoopbackError::Silent { .. }), Err(error @ LoopbackError::TooShort { .. }))
            | (Err(LoopbackError::PeerStopped) | Ok(_), Err(error))
            | (Err(error), _) => Err(error),
        }
    })
}

/// How many messages of this size are in a window.
fn window(bytes: usize) -> usize {
    (WINDOW_BYTES_MAX / bytes.max(1)).clamp(1, WINDOW_MAX)
}

/// One of the two endpoints.
struct Side<'a> {
    endpoint: Endpoint,
    begun: Instant,
    deadline: Duration,
    silence: Duration,
    /// When it was last seen whether anything had come, and how long nothing has.
    looked: Instant,
    quiet: Duration,
    /// Whether one of the two sides has given up.
    stopped: &'a AtomicBool,
    /// How often nothing had happened yet.
    polls: u32,
    /// Tag of the next message to send and to receive. Both sides count alike, so that each message meets its slot.
    next_out: u64,
    next_in: u64,
    /// Operations that have ended and that nobody has waited for yet.
    sent: Vec<bool>,
    received: Vec<bool>,
    results: Results,
}

impl<'a> Side<'a> {
    fn open(
        device: &Device,
        slots: usize,
        slot: usize,
        course: &Course,
        begun: Instant,
        stopped: &'a AtomicBool,
    ) -> Result<Side<'a>, LoopbackError> {
        let endpoint = Endpoint::open(device, slots, slot).map_err(at("open an endpoint"))?;
        Ok(Side {
            endpoint,
            begun,
            deadline: course.deadline,
            silence: course.silence,
            looked: begun,
            quiet: Duration::ZERO,
            stopped,
            polls: 0,
            next_out: 0,
            next_in: 0,
            sent: vec![false; slots],
            received: vec![false; slots],
            results: Results::default(),
        })
    }

    fn address(&self) -> Result<Address, LoopbackError> {
        self.endpoint
            .address()
            .map_err(at("ask for an endpoint's address"))
    }

    fn connect(&mut self, peer: &Address) -> Result<(), LoopbackError> {
        self.endpoint
            .connect(peer)
            .map_err(at("name an endpoint's peer"))
    }

    /// The side that measures.
    fn drive(
        mut self,
        course: &Course,
        heard: &mut dyn FnMut(&str),
    ) -> Result<Results, LoopbackError> {
        for &bytes in &course.latency_bytes {
            let phase = format!("the latency of {bytes} bytes");
            heard(&phase);
            let mut samples = Vec::with_capacity(course.round_trips);
            for round in 0..warm_up(course.round_trips) + course.round_trips {
                fill(
                    &mut self.endpoint.outgoing(0)[..bytes],
                    bytes,
                    self.next_out,
                );
                self.expect(0, bytes, &phase)?;
                let begun = Instant::now();
                self.send(0, bytes, &phase)?;
                self.wait_received(0, &phase)?;
                let round_trip = begun.elapsed();
                self.wait_sent(0, &phase)?;
                self.check(0, bytes);
                if round >= warm_up(course.round_trips) {
                    samples.push(round_trip.as_secs_f64() * 1e6 / 2.0);
                }
            }
            self.results.latency_us.push((bytes, Samples::new(samples)));
        }
        for &bytes in &course.bandwidth_bytes {
            let phase = format!("the bandwidth of {bytes} bytes");
            heard(&phase);
            let mut samples = Vec::with_capacity(course.windows);
            for round in 0..=course.windows {
                let seconds = self.send_window(bytes, &phase)?;
                if round > 0 {
                    #[expect(clippy::cast_precision_loss, reason = "at most 8 MiB")]
                    samples.push((window(bytes) * bytes) as f64 / seconds);
                }
            }
            self.results.bandwidth.push((bytes, Samples::new(samples)));
        }
        Ok(self.results)
    }

    /// Sends a window and returns the seconds until its answer.
    fn send_window(&mut self, bytes: usize, phase: &str) -> Result<f64, LoopbackError> {
        let window = window(bytes);
        for slot in 0..window {
            fill(
                &mut self.endpoint.outgoing(slot)[..bytes],
                bytes,
                self.next_out + slot as u64,
            );
        }
        // The receiver says that it is ready, so that its checking is in nobody's time.
        self.expect(0, ANSWER_BYTES, phase)?;
        self.wait_received(0, phase)?;
        self.check(0, ANSWER_BYTES);
        self.expect(0, ANSWER_BYTES, phase)?;
        let begun = Instant::now();
        for slot in 0..window {
            self.send(slot, bytes, phase)?;
        }
        self.wait_received(0, phase)?;
        let seconds = begun.elapsed().as_secs_f64();
        for slot in 0..window {
            self.wait_sent(slot, phase)?;
        }
        self.check(0, ANSWER_BYTES);
        Ok(seconds)
    }

    /// The side that answers, step for step as [`Side::drive`] asks.
    fn answer(mut self, course: &Course) -> Result<Results, LoopbackError> {
        for &bytes in &course.latency_bytes {
            let phase = format!("the latency of {bytes} bytes");
            for _ in 0..warm_up(course.round_trips) + course.round_trips {
                fill(
                    &mut self.endpoint.outgoing(0)[..bytes],
                    bytes,
                    self.next_out,
                );
                self.expect(0, bytes, &phase)?;
                self.wait_received(0, &phase)?;
                self.send(0, bytes, &phase)?;
                self.wait_sent(0, &phase)?;
                self.check(0, bytes);
            }
        }
        for &bytes in &course.bandwidth_bytes {
            let phase = format!("the bandwidth of {bytes} bytes");
            for _ in 0..=course.windows {
                for slot in 0..window(bytes) {
                    self.expect(slot, bytes, &phase)?;
                }
                self.say(&phase)?;
                for slot in 0..window(bytes) {
                    self.wait_received(slot, &phase)?;
                }
                self.say(&phase)?;
                for slot in 0..window(bytes) {
                    self.check_at(slot, bytes, self.next_in - (window(bytes) - slot) as u64);
                }
            }
        }
        Ok(self.results)
    }

    /// Sends an answer.
    fn say(&mut self, phase: &str) -> Result<(), LoopbackError> {
        fill(
            &mut self.endpoint.outgoing(0)[..ANSWER_BYTES],
            ANSWER_BYTES,
            self.next_out,
        );
        self.send(0, ANSWER_BYTES, phase)?;
        self.wait_sent(0, phase)
    }

    /// Starts to receive the next message into a slot, which is made to differ from what is to come.
    fn expect(&mut self, slot: usize, bytes: usize, phase: &str) -> Result<(), LoopbackError> {
        if let Some(first) = self.endpoint.incoming(slot).first_mut() {
            *first = !*first;
        }
        self.received[slot] = false;
        let tag = self.next_in;
        while !self
            .endpoint
            .receive(slot, bytes, tag)
            .map_err(at("start to receive"))?
        {
            self.progress(phase)?;
        }
        self.next_in += 1;
        Ok(())
    }

    fn send(&mut self, slot: usize, bytes: usize, phase: &str) -> Result<(), LoopbackError> {
        self.sent[slot] = false;
        let tag = self.next_out;
        while !self
            .endpoint
            .send(slot, bytes, tag)
            .map_err(at("start to send"))?
        {
            self.progress(phase)?;
        }
        self.next_out += 1;
        Ok(())
    }

    fn wait_sent(&mut self, slot: usize, phase: &str) -> Result<(), LoopbackError> {
        while !self.sent[slot] {
            self.progress(phase)?;
        }
        Ok(())
    }

    fn wait_received(&mut self, slot: usize, phase: &str) -> Result<(), LoopbackError> {
        while !self.received[slot] {
            self.progress(phase)?;
        }
        Ok(())
    }

    /// Takes one completion, if there is one. Every wait passes here, and gives up at the deadline or when the other side has.
    fn progress(&mut self, phase: &str) -> Result<(), LoopbackError> {
        match self.endpoint.poll().map_err(at(EXCHANGE))? {
            Some(completion) => {
                self.quiet = Duration::ZERO;
                match completion {
                    Completion::Sent(slot) => self.sent[slot] = true,
                    Completion::Received(slot) => self.received[slot] = true,
                }
            }
            None => {
                self.polls = self.polls.wrapping_add(1);
                if self.polls.is_multiple_of(POLLS_BETWEEN_LOOKS) {
                    self.look(phase)?;
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, phase: &str) -> Result<(), LoopbackError> {
        let now = Instant::now();
        self.quiet += (now - self.looked).min(LISTENED_MAX);
        self.looked = now;
        if now - self.begun > self.deadline {
            let phase = phase.to_owned();
            return Err(if self.quiet >= self.silence {
                LoopbackError::Silent {
                    phase,
                    quiet: self.quiet,
                }
            } else {
                LoopbackError::TooShort {
                    phase,
                    limit: self.deadline,
                }
            });
        }
        if self.stopped.load(Ordering::Relaxed) {
            return Err(LoopbackError::PeerStopped);
        }
        std::thread::yield_now();
        Ok(())
    }

    fn check(&mut self, slot: usize, bytes: usize) {
        self.check_at(slot, bytes, self.next_in - 1);
    }

    fn check_at(&mut self, slot: usize, bytes: usize, tag: u64) {
        let intact = is_intact(&self.endpoint.incoming(slot)[..bytes], bytes, tag);
        self.results.bytes_checked += bytes as u64;
        self.results.messages_corrupted += u64::from(!intact);
    }
}

fn at(step: &'static str) -> impl FnOnce(FabricError) -> LoopbackError {
    move |error| LoopbackError::Fabric { step, error }
}

fn warm_up(round_trips: usize) -> usize {
    round_trips / 10 + 1
}

/// Writes the content of the message with this size and tag: words that differ from place to place and between
/// messages, so that neither a lost, a repeated nor an exchanged word goes unseen.
fn fill(message: &mut [u8], bytes: usize, tag: u64) {
    let mut words = Words::new(bytes, tag);
    let mut chunks = message.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&words.next_word().to_le_bytes());
    }
    let rest = chunks.into_remainder();
    let length = rest.len();
    rest.copy_from_slice(&words.next_word().to_le_bytes()[..length]);
}

/// Whether a message holds what [`fill`] wrote.
fn is_intact(message: &[u8], bytes: usize, tag: u64) -> bool {
    let mut words = Words::new(bytes, tag);
    let chunks = message.chunks_exact(8);
    let rest = chunks.remainder();
    // No early end: the whole message is looked at in one branchless pass.
    let mut difference = 0;
    for chunk in chunks {
        difference |=
            u64::from_le_bytes(chunk.try_into().expect("a chunk has 8 bytes")) ^ words.next_word();
    }
    difference == 0 && *rest == words.next_word().to_le_bytes()[..rest.len()]
}

/// A Weyl sequence with a multiply-xorshift finish: one word for each place of each message.
struct Words(u64);

impl Words {
    fn new(bytes: usize, tag: u64) -> Self {
        Words((bytes as u64) << 40 ^ tag.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }
}

#[cfg(test)]
mod tests {
    use libfabric_sys::Library;
    use proptest::prelude::*;

    use super::*;

    fn course() -> Course {
        Course {
            latency_bytes: vec![8, 1000],
            round_trips: 50,
            bandwidth_bytes: vec![4096, 1 << 20],
            windows: 3,
            deadline: Duration::from_secs(60),
            silence: Duration::from_millis(100),
        }
    }

    /// The host's own loopback device of a provider that needs no hardware.
    fn tcp() -> Device {
        let library = Library::load(None, NO_SHORTCUTS).unwrap();
        let devices = library.devices(Some("tcp")).unwrap();
        devices
            .into_iter()
            .find(|device| device.domain == "lo")
            .expect("libfabric's tcp provider serves `lo`")
    }

    #[test]
    fn a_loopback_over_tcp_measures_every_size_and_every_byte_arrives() {
        let results = measure(&tcp(), &course(), &mut |_| {}).unwrap();
        let sizes = |of: &[(usize, Samples)]| {
            of.iter()
                .map(|(bytes, samples)| (*bytes, samples.0.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(&results.latency_us), [(8, 50), (1000, 50)]);
        assert_eq!(sizes(&results.bandwidth), [(4096, 3), (1 << 20, 3)]);
        assert_eq!(results.messages_corrupted, 0);
        // Both sides check 56 round trips of each latency size; one side 4 windows of each bandwidth size.
        let windows = 4 * (64 * 4096 + 8 * (1 << 20));
        let answers = 2 * 4 * 2 * 8;
        assert_eq!(results.bytes_checked, 2 * 56 * 1008 + windows + answers);
        assert!(results.latency_us[0].1.min().unwrap() > 0.0);
    }

    #[test]
    fn a_peer_that_never_answers_is_given_up_at_the_deadline() {
        let course = Course {
            deadline: Duration::from_millis(300),
            ..course()
        };
        let error = alone(&course, &AtomicBool::new(false));
        assert!(matches!(error, LoopbackError::Silent { .. }), "{error}");
    }

    #[test]
    fn a_time_too_short_to_tell_is_no_silence() {
        let course = Course {
            deadline: Duration::from_millis(50),
            silence: Duration::from_secs(60),
            ..course()
        };
        let error = alone(&course, &AtomicBool::new(false));
        assert!(matches!(error, LoopbackError::TooShort { .. }), "{error}");
        assert_eq!(error.of_the_device(), None);
    }

    #[test]
    fn a_peer_that_gives_up_is_not_waited_for() {
        let error = alone(&course(), &AtomicBool::new(true));
        assert!(matches!(error, LoopbackError::PeerStopped), "{error}");
    }

    /// Why a side gives up whose peer never answers.
    fn alone(course: &Course, stopped: &AtomicBool) -> LoopbackError {
        let device = tcp();
        let begun = Instant::now();
        let mut near = Side::open(&device, 1, 1024, course, begun, stopped).unwrap();
        let far = Side::open(&device, 1, 1024, course, begun, stopped).unwrap();
        near.connect(&far.address().unwrap()).unwrap();
        let latency_alone = Course {
            bandwidth_bytes: Vec::new(),
            ..course.clone()
        };
        near.drive(&latency_alone, &mut |_| {}).unwrap_err()
    }

    #[test]
    fn a_provider_that_does_not_exist_offers_no_device() {
        let library = Library::load(None, NO_SHORTCUTS).unwrap();
        assert!(
            library
                .devices(Some("no-such-provider"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let error = Library::load(Some("/nowhere/libfabric.so".as_ref()), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nowhere/libfabric.so") && error.contains("install"),
            "{error}"
        );
    }

    #[test]
    fn percentiles_are_samples() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(samples.percentile(0.5), Some(2.0));
        assert_eq!(samples.percentile(0.99), Some(4.0));
        assert_eq!(samples.percentile(0.0), Some(1.0));
        assert_eq!(Samples::default().percentile(0.5), None);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_anywhere_is_seen(bytes in 1_usize..300, tag: u64, place: usize, bit in 0..8) {
            let mut message = vec![0; bytes];
            fill(&mut message, bytes, tag);
            prop_assert!(is_intact(&message, bytes, tag));
            message[place % bytes] ^= 1_u8 << bit;
            prop_assert!(!is_intact(&message, bytes, tag));
        }

        #[test]
        fn another_message_is_not_mistaken_for_this_one(bytes in 8_usize..300, tag: u64, by in 1_u64..1000) {
            let mut message = vec![0; bytes];
            fill(&mut message, bytes, tag.wrapping_add(by));
            prop_assert!(!is_intact(&message, bytes, tag));
        }
    }
}
