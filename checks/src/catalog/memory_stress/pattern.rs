//! What is written into memory, and what is found there afterwards.

use crate::host::vector::mixed;

/// What every word of a piece of memory is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Bits that are stuck at one show.
    Zeros,
    /// Bits that are stuck at zero show.
    Ones,
    /// Neighbours that pull each other over show, in both directions.
    Checkered,
    /// The other way round.
    CheckeredInverse,
    /// Its own place: two addresses that lead to the same cell show.
    Address,
    /// What looks like chance, and differs from pass to pass.
    Random,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Words that differ from what was written.
    pub(super) words: u64,
    /// Every bit that differed in one of them.
    pub(super) bits: u64,
    /// The place of the first one.
    pub(super) first: Option<u64>,
}

impl Pattern {
    /// Every pattern, in the order of a pass.
    pub(super) const ALL: [Pattern; 6] = [
        Pattern::Zeros,
        Pattern::Ones,
        Pattern::Checkered,
        Pattern::CheckeredInverse,
        Pattern::Address,
        Pattern::Random,
    ];

    /// Writes the pattern; `place` is that of the first word in the whole memory under test.
    pub(super) fn write(self, words: &mut [u64], place: u64, pass: u64) {
        match self {
            Pattern::Zeros => words.fill(0),
            Pattern::Ones => words.fill(u64::MAX),
            Pattern::Checkered => words.fill(CHECKERED),
            Pattern::CheckeredInverse => words.fill(!CHECKERED),
            Pattern::Address => write(words, place, own_address),
            Pattern::Random => write(words, place, |place| random(place, pass)),
        }
    }

    /// Reads the memory that was written with the same `place` and `pass`.
    pub(super) fn check(self, words: &[u64], place: u64, pass: u64) -> Wrong {
        match self {
            Pattern::Zeros => check(words, place, |_| 0),
            Pattern::Ones => check(words, place, |_| u64::MAX),
            Pattern::Checkered => check(words, place, |_| CHECKERED),
            Pattern::CheckeredInverse => check(words, place, |_| !CHECKERED),
            Pattern::Address => check(words, place, own_address),
            Pattern::Random => check(words, place, |place| random(place, pass)),
        }
    }
}

const CHECKERED: u64 = 0xAAAA_AAAA_AAAA_AAAA;

/// The place in the lower half, its inverse in the upper one, so that every bit of a word changes between places.
fn own_address(place: u64) -> u64 {
    place ^ (!place).rotate_left(32)
}

fn random(place: u64, pass: u64) -> u64 {
    mixed(place ^ pass.rotate_right(16))
}

fn write(words: &mut [u64], place: u64, value: impl Fn(u64) -> u64) {
    for (word, place) in words.iter_mut().zip(place..) {
        *word = value(place);
    }
}

/// Words that are looked at together; nearly always all of them are right, and then nothing more is done.
const TOGETHER: usize = 64;

fn check(words: &[u64], place: u64, value: impl Fn(u64) -> u64) -> Wrong {
    let mut wrong = Wrong::default();
    for (some, place) in words.chunks(TOGETHER).zip((place..).step_by(TOGETHER)) {
        let pairs = || some.iter().zip(place..);
        let differing = pairs().fold(0, |bits, (word, place)| bits | (word ^ value(place)));
        if differing == 0 {
            continue;
        }
        wrong.bits |= differing;
        for (_, place) in pairs().filter(|(word, place)| **word != value(*place)) {
            wrong.words += 1;
            wrong.first.get_or_insert(place);
        }
    }
    wrong
}

impl Wrong {
    /// This and what was found elsewhere.
    pub(super) fn and(self, other: Wrong) -> Wrong {
        Wrong {
            words: self.words + other.words,
            bits: self.bits | other.bits,
            first: self.first.or(other.first),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORDS: usize = 200;

    proptest! {
        #[test]
        fn a_flipped_bit_is_found_in_every_pattern(
            at in 0..WORDS,
            bit in 0..64_u32,
            place in 0..u64::MAX / 2,
            pass in 0..1000_u64,
        ) {
            for pattern in Pattern::ALL {
                let mut words = vec![0x1234; WORDS];
                pattern.write(&mut words, place, pass);
                prop_assert_eq!(pattern.check(&words, place, pass), Wrong::default());
                words[at] ^= 1 << bit;
                let found = Wrong { words: 1, bits: 1 << bit, first: Some(place + at as u64) };
                prop_assert_eq!(pattern.check(&words, place, pass), found, "{:?}", pattern);
            }
        }

        #[test]
        fn a_cell_that_answers_at_two_addresses_is_found(
            one in 0..WORDS, other in 0..WORDS, place in 0..u64::MAX / 2,
        ) {
            prop_assume!(one != other);
            for pattern in [Pattern::Address, Pattern::Random] {
                let mut words = vec![0; WORDS];
                pattern.write(&mut words, place, 0);
                words[one] = words[other];
                prop_assert_eq!(pattern.check(&words, place, 0).words, 1);
            }
        }
    }

    #[test]
    fn a_bit_that_is_stuck_is_found_by_one_of_the_patterns_whatever_its_value() {
        for stuck_at_one in [true, false] {
            for bit in 0..64 {
                let found = Pattern::ALL.into_iter().any(|pattern| {
                    let mut words = vec![0; 2];
                    pattern.write(&mut words, 0, 0);
                    for word in &mut words {
                        *word = if stuck_at_one {
                            *word | 1 << bit
                        } else {
                            *word & !(1 << bit)
                        };
                    }
                    pattern.check(&words, 0, 0).words == 2
                });
                assert!(found, "bit {bit}, at one: {stuck_at_one}");
            }
        }
    }

    #[test]
    fn memory_that_kept_the_pass_before_is_found() {
        let mut words = vec![0; WORDS];
        Pattern::Random.write(&mut words, 0, 0);
        let pass = Pattern::ALL.len() as u64;
        assert_eq!(Pattern::Random.check(&words, 0, pass).words, WORDS as u64);
    }
}
