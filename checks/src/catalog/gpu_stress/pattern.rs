//! What is written into a GPU's memory and must be read from it again. Pure.

/// Words that a test writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// The same word everywhere, written by the GPU itself.
    Same(u32),
    /// Words that differ from place to place, in the first half; the GPU copies them into the second.
    Places,
}

impl Pattern {
    /// Zeros, ones, both checkered patterns, and places.
    pub(super) const ALL: [Pattern; 5] = [
        Pattern::Same(0),
        Pattern::Same(u32::MAX),
        Pattern::Same(0xaaaa_aaaa),
        Pattern::Same(0x5555_5555),
        Pattern::Places,
    ];

    /// The word at a place of memory of which one half has so many words.
    pub(super) fn word(self, place: usize, half: usize) -> u32 {
        match self {
            Pattern::Same(word) => word,
            // Spread over all bits (Knuth, The Art of Computer Programming 6.4: the golden ratio of 2^32), and another word
            // at each of 2^32 places.
            #[expect(
                clippy::cast_possible_truncation,
                reason = "places that are 16 GiB apart may be alike"
            )]
            Pattern::Places => ((place % half) as u32).wrapping_mul(0x9e37_79b1),
        }
    }
}

/// Words that were read otherwise than they had been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) words: u64,
    /// Bits that differed in any of them.
    pub(super) bits: u32,
    /// The places of the first and the last.
    pub(super) places: Option<(usize, usize)>,
}

impl Wrong {
    /// Looks at words that were read from `first` on.
    pub(super) fn look(&mut self, pattern: Pattern, half: usize, first: usize, words: &[u32]) {
        for (place, word) in (first..).zip(words) {
            let bits = word ^ pattern.word(place, half);
            if bits != 0 {
                self.words += 1;
                self.bits |= bits;
                let begin = self.places.map_or(place, |(begin, _)| begin.min(place));
                let end = self.places.map_or(place, |(_, end)| end.max(place));
                self.places = Some((begin, end));
            }
        }
    }
}
