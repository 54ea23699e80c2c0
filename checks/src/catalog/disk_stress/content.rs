//! What is written to every page of the file, and what is wrong with a page that comes back otherwise.

use std::fmt;

use crate::host::scratch::PAGE_BYTES;
use crate::host::vector::mixed;

/// What a page was written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// Of this run of the check, so that content of an earlier one is told from this one's.
    pub(super) run: u64,
    /// The page's place in the file.
    pub(super) page: u64,
    /// How often the page has been written.
    pub(super) generation: u64,
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It holds what was written to another page.
    OtherPlace(u64),
    /// It holds what was there before: a write that was acknowledged and never done.
    Old(u64),
    /// It holds nothing.
    Zeros,
    /// It holds what was written, but for so many bits.
    Bits(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::OtherPlace(page) => write!(f, "it holds what was written to page {page}"),
            Fault::Old(generation) => write!(
                f,
                "it holds what write {generation} of this page left, so a later write was lost"
            ),
            Fault::Zeros => f.write_str("it holds zeros, so its write was lost"),
            Fault::Bits(bits) => write!(f, "{bits} of its bits differ"),
        }
    }
}

const WORDS: usize = PAGE_BYTES / 8;

impl Label {
    /// Fills a page.
    pub(super) fn write(self, page: &mut [u8]) {
        for (bytes, word) in page.chunks_exact_mut(8).zip(self.words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// What is wrong with a page that was written as this, if anything.
    pub(super) fn check(self, page: &[u8]) -> Option<Fault> {
        let differing = differing(page, self.words());
        if differing == 0 {
            return None;
        }
        if page.iter().all(|byte| *byte == 0) {
            return Some(Fault::Zeros);
        }
        // The page says what it was written as; whether that is true is seen from the rest of it.
        let [_, page_said, generation_said] = [word(page, 0), word(page, 1), word(page, 2)];
        let said = Label {
            run: self.run,
            page: page_said,
            generation: generation_said,
        };
        if said != self && differing_at_all(page, said) == 0 {
            return Some(if said.page == self.page {
                Fault::Old(said.generation)
            } else {
                Fault::OtherPlace(said.page)
            });
        }
        Some(Fault::Bits(differing))
    }

    /// The label itself, and then what looks like chance and follows from it.
    fn words(self) -> impl Iterator<Item = u64> {
        let seed = mixed(self.run ^ mixed(self.page ^ mixed(self.generation)));
        let rest = (3..WORDS as u64).map(move |word| mixed(seed.wrapping_add(word)));
        [self.run, self.page, self.generation]
            .into_iter()
            .chain(rest)
    }
}

fn word(page: &[u8], place: usize) -> u64 {
    let bytes = page[8 * place..][..8].try_into();
    u64::from_le_bytes(bytes.expect("eight bytes were taken"))
}

fn differing_at_all(page: &[u8], label: Label) -> u64 {
    differing(page, label.words())
}

/// How many bits of a page are otherwise than these words.
fn differing(page: &[u8], words: impl Iterator<Item = u64>) -> u64 {
    let found = (0..WORDS).map(|place| word(page, place));
    let differing = found
        .zip(words)
        .map(|(found, word)| (found ^ word).count_ones());
    differing.map(u64::from).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label(page: u64, generation: u64) -> Label {
        Label {
            run: 77,
            page,
            generation,
        }
    }

    fn written(label: Label) -> Vec<u8> {
        let mut page = vec![0xEE; PAGE_BYTES];
        label.write(&mut page);
        page
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_found(at in 0..PAGE_BYTES, bit in 0..8_u32, page in 0..1_000_000_u64) {
            let label = label(page, 3);
            let mut bytes = written(label);
            prop_assert_eq!(label.check(&bytes), None);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(label.check(&bytes), Some(Fault::Bits(1)));
        }
    }

    #[test]
    fn lost_and_misplaced_writes_are_told_apart() {
        let right = label(5, 2);
        assert_eq!(right.check(&written(label(5, 1))), Some(Fault::Old(1)));
        assert_eq!(
            right.check(&written(label(9, 2))),
            Some(Fault::OtherPlace(9))
        );
        assert_eq!(right.check(&[0; PAGE_BYTES]), Some(Fault::Zeros));
        // Content of an earlier run is none of this one's.
        let earlier = Label { run: 76, ..right };
        assert!(matches!(
            right.check(&written(earlier)),
            Some(Fault::Bits(_))
        ));
    }
}
