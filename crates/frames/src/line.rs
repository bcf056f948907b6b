//! 512 bits: the frames of a chunk, or the chunks of a gig. A set bit is a free one.
//!
//! Everything works on whole words; no function looks at single bits one by one.

/// Bits in a line.
pub(crate) const LINE_BITS: usize = 512;
const WORDS: usize = LINE_BITS / 64;
/// log2 of [`LINE_BITS`]: the order of a whole line.
pub(crate) const LINE_ORDER: u8 = 9;

/// Where a block of order 0..=6 may begin in a word.
const STARTS: [u64; 7] = [
    !0,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

/// 512 bits on a cache line of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u64; WORDS]);

/// The bits of word `word` that lie in `start..end` of the line.
#[inline]
pub(crate) fn word_mask(word: usize, start: usize, end: usize) -> u64 {
    let lo = start.max(word * 64);
    let hi = end.min(word * 64 + 64);
    if lo >= hi {
        return 0;
    }
    (!0u64 >> (64 - (hi - lo))) << (lo % 64)
}

/// The starts of free, aligned blocks of 2^`order` (at most 6) in a word.
#[inline]
fn block_starts(mut word: u64, order: u8) -> u64 {
    for step in 0..order {
        word &= word >> (1u32 << step);
    }
    word & STARTS[usize::from(order)]
}

impl Line {
    pub(crate) const EMPTY: Self = Self([0; WORDS]);
    pub(crate) const FULL: Self = Self([!0; WORDS]);

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().fold(0, |sum, word| sum | word) == 0
    }

    #[inline]
    pub(crate) fn get(&self, bit: usize) -> bool {
        self.0[bit / 64] & (1 << (bit % 64)) != 0
    }

    #[inline]
    pub(crate) fn set(&mut self, bit: usize) {
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    #[inline]
    pub(crate) fn clear(&mut self, bit: usize) {
        self.0[bit / 64] &= !(1 << (bit % 64));
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Sets (or clears) the bits `start..end`.
    #[inline]
    pub(crate) fn fill(&mut self, start: usize, end: usize, value: bool) {
        for word in start / 64..end.div_ceil(64) {
            let mask = word_mask(word, start, end);
            if value {
                self.0[word] |= mask;
            } else {
                self.0[word] &= !mask;
            }
        }
    }

    /// The first bit in `start..end` that is not `value`.
    #[inline]
    pub(crate) fn first_other(&self, start: usize, end: usize, value: bool) -> Option<usize> {
        (start / 64..end.div_ceil(64)).find_map(|word| {
            let bits = if value { !self.0[word] } else { self.0[word] };
            let bits = bits & word_mask(word, start, end);
            (bits != 0).then(|| word * 64 + bits.trailing_zeros() as usize)
        })
    }

    /// Only the bits in `start..end`.
    #[inline]
    pub(crate) fn masked(&self, start: usize, end: usize) -> Self {
        if start == 0 && end >= LINE_BITS {
            return *self;
        }
        let mut line = *self;
        for (word, bits) in line.0.iter_mut().enumerate() {
            *bits &= word_mask(word, start, end);
        }
        line
    }

    #[inline]
    fn block_at(&self, word: usize, order: u8) -> bool {
        self.0[word..word + (1 << (order - 6))].iter().all(|bits| *bits == !0)
    }

    /// The lowest free, aligned block of 2^`order` (at most 9).
    #[inline]
    pub(crate) fn lowest(&self, order: u8) -> Option<usize> {
        if order <= 6 {
            for (word, bits) in self.0.iter().enumerate() {
                let starts = block_starts(*bits, order);
                if starts != 0 {
                    return Some(word * 64 + starts.trailing_zeros() as usize);
                }
            }
            return None;
        }
        let step = 1 << (order - 6);
        (0..WORDS).step_by(step).find(|&word| self.block_at(word, order)).map(|word| word * 64)
    }

    /// The highest free, aligned block of 2^`order` (at most 9).
    #[inline]
    pub(crate) fn highest(&self, order: u8) -> Option<usize> {
        if order <= 6 {
            for (word, bits) in self.0.iter().enumerate().rev() {
                let starts = block_starts(*bits, order);
                if starts != 0 {
                    return Some(word * 64 + 63 - starts.leading_zeros() as usize);
                }
            }
            return None;
        }
        let step = 1 << (order - 6);
        (0..WORDS)
            .step_by(step)
            .rev()
            .find(|&word| self.block_at(word, order))
            .map(|word| word * 64)
    }

    /// One more than the largest order of which there is a free, aligned block; 0 for none at all.
    #[inline]
    pub(crate) fn tallness(&self) -> u8 {
        let full = |word: usize| self.0[word] == !0;
        if (0..WORDS).any(full) {
            let pair = |word: usize| full(word) && full(word + 1);
            let four = |word: usize| pair(word) && pair(word + 2);
            if four(0) && four(4) {
                return 10;
            }
            if four(0) || four(4) {
                return 9;
            }
            return if pair(0) || pair(2) || pair(4) || pair(6) { 8 } else { 7 };
        }
        let mut words = self.0;
        let mut tall = 0;
        for order in 0..6u8 {
            let mut any = 0;
            for word in &mut words {
                if order > 0 {
                    *word &= *word >> (1u32 << (order - 1));
                }
                any |= *word & STARTS[usize::from(order)];
            }
            if any == 0 {
                break;
            }
            tall = order + 1;
        }
        tall
    }

    /// One more than the order of the largest free, aligned block that touches word `place`.
    #[inline]
    pub(crate) fn tallness_of(&self, place: usize) -> u8 {
        let word = self.0[place];
        if word == !0 {
            return self.tallness();
        }
        (0..6).take_while(|&order| block_starts(word, order) != 0).count() as u8
    }

    /// [`tallness`](Self::tallness), when it is known to be at most `most`.
    #[inline]
    pub(crate) fn tallness_below(&self, most: u8) -> u8 {
        // Single bits are what crowded lines are made of; for them one look at each word will do.
        if most <= 1 { u8::from(!self.is_empty()) } else { self.tallness() }
    }

    /// Is `bit` in a free, aligned block of 2^`order` (at most 9)?
    #[inline]
    pub(crate) fn has_block_at(&self, bit: usize, order: u8) -> bool {
        let word = self.0[bit / 64];
        if order < 6 {
            let size = 1u32 << order;
            let mask = ((1u64 << size) - 1) << ((bit as u32 % 64) & !(size - 1));
            return word & mask == mask;
        }
        word == !0 && self.block_at((bit / 64) & !((1 << (order - 6)) - 1), order)
    }

    /// One more than the order of the largest free, aligned block that contains the free bit `bit`.
    #[inline]
    pub(crate) fn tallness_at(&self, bit: usize) -> u8 {
        let word = self.0[bit / 64];
        for order in 1..=5u8 {
            let size = 1u32 << order;
            let mask = ((1u64 << size) - 1) << ((bit as u32 % 64) & !(size - 1));
            if word & mask != mask {
                return order;
            }
        }
        if word != !0 { 6 } else { self.tallness() }
    }

    /// Adds to `counts[k]` the free, aligned blocks of order k that are not half of a larger one
    /// within the line.
    pub(crate) fn count_blocks(mut self, counts: &mut [u64; LINE_ORDER as usize + 1]) {
        // Level by level, only those blocks stay that pair up; the others are counted.
        for (order, slot) in counts.iter_mut().enumerate() {
            if order < 6 {
                for word in &mut self.0 {
                    let starts = *word & STARTS[order];
                    let pairs = starts & (starts >> (1u32 << order)) & STARTS[order + 1];
                    *slot += u64::from(starts.count_ones() - 2 * pairs.count_ones());
                    *word = pairs;
                }
            } else {
                let step = 1 << (order - 6);
                for word in (0..WORDS).step_by(2 * step) {
                    let low = self.0[word] & 1;
                    let high = self.0.get(word + step).map_or(0, |bits| bits & 1);
                    self.0[word] = low & high;
                    *slot += if low & high == 0 { low + high } else { 0 };
                }
            }
        }
    }
}

/// So many random cases, few and without a file of old ones where an interpreter runs them.
#[cfg(test)]
pub(crate) fn random_cases(usual: u32) -> proptest::prelude::ProptestConfig {
    let mut config = proptest::prelude::ProptestConfig::with_cases(usual);
    if cfg!(miri) {
        (config.cases, config.failure_persistence) = (usual.min(2), None);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, as nobody should do it.
    fn starts(line: &Line, order: u8) -> impl DoubleEndedIterator<Item = usize> + '_ {
        let step = 1usize << order;
        (0..LINE_BITS / step)
            .map(move |index| index * step)
            .filter(move |&start| (start..start + step).all(|bit| line.get(bit)))
    }

    fn any_line() -> impl Strategy<Value = Line> {
        prop::collection::vec((0usize..512, 1usize..300, any::<bool>()), 0..40).prop_map(|fills| {
            let mut line = Line::FULL;
            for (start, len, value) in fills {
                line.fill(start, (start + len).min(512), value);
            }
            line
        })
    }

    proptest! {
        #![proptest_config(random_cases(256))]
        #[test]
        fn searches_agree_with_a_look_at_every_bit(line in any_line()) {
            for order in 0..=LINE_ORDER {
                prop_assert_eq!(line.lowest(order), starts(&line, order).next());
                prop_assert_eq!(line.highest(order), starts(&line, order).next_back());
            }
            let tall = (0..=LINE_ORDER).rev().find(|&order| starts(&line, order).next().is_some());
            prop_assert_eq!(line.tallness(), tall.map_or(0, |order| order + 1));
            prop_assert_eq!(line.is_empty(), tall.is_none());
        }

        #[test]
        fn a_frame_that_comes_back_can_only_make_the_chunk_taller(line in any_line(), bit in 0usize..512) {
            let mut more = line;
            more.fill(bit, bit + 1, true);
            prop_assert_eq!(more.tallness(), line.tallness().max(more.tallness_at(bit)));
            let touched = more.tallness_of(bit / 64);
            prop_assert_eq!(more.tallness(), line.tallness().max(touched));
            for order in 0..=LINE_ORDER {
                let start = bit >> order << order;
                let free = (start..start + (1 << order)).all(|bit| more.get(bit));
                prop_assert_eq!(more.has_block_at(bit, order), free);
            }
        }

        #[test]
        fn filling_and_masking_agree_with_a_look_at_every_bit(
            line in any_line(), start in 0usize..512, len in 1usize..513, value: bool,
        ) {
            let end = (start + len).min(512);
            let mut filled = line;
            filled.fill(start, end, value);
            let masked = line.masked(start, end);
            for bit in 0..512 {
                let inside = (start..end).contains(&bit);
                prop_assert_eq!(filled.get(bit), if inside { value } else { line.get(bit) });
                prop_assert_eq!(masked.get(bit), inside && line.get(bit));
            }
            prop_assert_eq!(
                line.first_other(start, end, value),
                (start..end).find(|&bit| line.get(bit) != value)
            );
        }

        #[test]
        fn counted_blocks_are_the_largest_and_cover_everything(line in any_line()) {
            let mut counts = [0; 10];
            line.count_blocks(&mut counts);
            let mut larger = 0;
            for order in (0..=LINE_ORDER).rev() {
                let all = starts(&line, order).count() as u64;
                prop_assert_eq!(counts[usize::from(order)], all - 2 * larger);
                larger = all;
            }
        }
    }
}
