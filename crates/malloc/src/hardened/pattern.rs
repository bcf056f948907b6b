//! Bytes that nobody may change: the tail of a block, and the junk in a freed one.
//!
//! Both are written and compared without a loop over bytes, and without a branch for each word: that is
//! what makes them cheap for the small blocks that programs are full of.
#![allow(unsafe_code)] // raw bytes

use core::hint::black_box;
use core::ptr;

use super::{JUNK, PATTERN, TAIL};

const WORD: usize = size_of::<u64>();
const TAIL_WORD: u64 = u64::from_ne_bytes([PATTERN; WORD]);
const JUNK_WORD: u64 = u64::from_ne_bytes([JUNK; WORD]);
const _: () = assert!(TAIL == WORD);

/// Junk is written in pairs of words.
const PAIR: usize = 2 * WORD;
/// The junk of a freed block: so many bytes at its start, and again at its end.
const SPAN: usize = 256;

/// Asks for the memory at an address, which need not be one.
#[inline]
pub fn fetch(at: *mut u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint; no memory is touched.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Bytes of the tail of a block that is not large: to the next multiple of 8 behind the first 8.
#[inline]
pub fn tail(bytes: usize) -> usize {
    (bytes + TAIL).next_multiple_of(WORD) - bytes
}

/// Writes the tail of a block: `tail(bytes)` bytes behind it.
///
/// # Safety
/// They are the block's.
#[inline]
pub unsafe fn write_tail(at: *mut u8, bytes: usize) {
    // SAFETY: as promised; the two words overlap or touch.
    unsafe {
        at.add(bytes).cast::<u64>().write_unaligned(TAIL_WORD);
        at.add(bytes + tail(bytes) - WORD).cast::<u64>().write_unaligned(TAIL_WORD);
    }
}

/// Whether the tail of a block is as it was written.
///
/// # Safety
/// The block has a tail.
#[inline]
pub unsafe fn is_tail_whole(at: *mut u8, bytes: usize) -> bool {
    // SAFETY: as promised.
    unsafe {
        let first = at.add(bytes).cast::<u64>().read_unaligned();
        let last = at.add(bytes + tail(bytes) - WORD).cast::<u64>().read_unaligned();
        (first ^ TAIL_WORD) | (last ^ TAIL_WORD) == 0
    }
}

/// Writes the pattern over a range.
///
/// # Safety
/// The range is the caller's.
pub unsafe fn fill(at: *mut u8, bytes: usize) {
    // SAFETY: as promised.
    unsafe { at.write_bytes(PATTERN, bytes) };
}

/// Where a range first differs from the pattern.
///
/// # Safety
/// The range may be read.
pub unsafe fn first_other(at: *mut u8, bytes: usize) -> Option<usize> {
    // SAFETY: as promised.
    unsafe { first_unlike(at, bytes, PATTERN) }
}

/// # Safety
/// The range may be read.
unsafe fn first_unlike(at: *mut u8, bytes: usize, byte: u8) -> Option<usize> {
    // SAFETY: all reads lie in the range.
    (0..bytes).find(|&index| unsafe { at.add(index).read() } != byte)
}

/// Bytes of a block that junk may take: its own and those of its tail, in pairs of words.
#[inline]
fn room(bytes: usize) -> usize {
    (bytes + TAIL).next_multiple_of(PAIR)
}

/// Two words, written and compared as one where the processor can.
mod pair {
    #[cfg(target_arch = "x86_64")]
    pub use core::arch::x86_64::__m128i as Pair;
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi64x, _mm_xor_si128,
    };

    #[cfg(not(target_arch = "x86_64"))]
    #[derive(Clone, Copy)]
    #[repr(C, align(16))]
    pub struct Pair([u64; 2]);

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn both(word: u64) -> Pair {
        // SAFETY: each x86-64 processor has SSE2.
        unsafe { _mm_set1_epi64x(word as i64) }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn both(word: u64) -> Pair {
        Pair([word; 2])
    }

    /// What differs, added to what differed before.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn differ(before: Pair, one: Pair, other: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { _mm_or_si128(before, _mm_xor_si128(one, other)) }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn differ(before: Pair, one: Pair, other: Pair) -> Pair {
        Pair(core::array::from_fn(|word| before.0[word & 1] | one.0[word & 1] ^ other.0[word & 1]))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn is_zero(pair: Pair) -> bool {
        // SAFETY: as above.
        unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(pair, both(0))) == 0xffff }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_zero(pair: Pair) -> bool {
        pair.0 == [0; 2]
    }
}
use pair::{Pair, both, differ, is_zero};

/// Where the junk at a block's end starts.
#[inline]
fn end_span(room: usize) -> usize {
    room.saturating_sub(SPAN).max(SPAN)
}

/// Fills a freed block with junk, behind its first word.
///
/// # Safety
/// The block is the caller's, aligned to 16 bytes, and has its tail: both round up to a multiple of 16 that
/// is inside the inner block.
#[inline]
pub unsafe fn write_junk(at: *mut u8, bytes: usize) {
    let room = room(bytes);
    // SAFETY: as promised.
    unsafe {
        // Hidden, or a call to fill memory would become of a loop that has two or three turns.
        let junk = both(black_box(JUNK_WORD));
        at.add(WORD).cast::<u64>().write(JUNK_WORD);
        let (mut place, end) = (at.add(PAIR).cast::<Pair>(), at.add(room.min(SPAN)).cast());
        while place < end {
            place.write(junk);
            place = place.add(1);
        }
        if room > SPAN {
            let start = end_span(room);
            ptr::write_bytes(at.add(start), JUNK, room - start);
        }
    }
}

/// Whether a freed block's junk is as it was written.
///
/// # Safety
/// As for [`write_junk`], which has been called.
#[inline]
pub unsafe fn is_junk_whole(at: *mut u8, bytes: usize) -> bool {
    let room = room(bytes);
    // SAFETY: as promised.
    unsafe {
        let first = at.add(WORD).cast::<u64>().read() == JUNK_WORD;
        let (mut others, junk) = (both(0), both(JUNK_WORD));
        let (mut place, end) = (at.add(PAIR).cast::<Pair>(), at.add(room.min(SPAN)).cast());
        while place < end {
            others = differ(others, place.read(), junk);
            place = place.add(1);
        }
        let whole = first && is_zero(others);
        if room > SPAN {
            let start = end_span(room);
            return whole && first_unlike(at.add(start), room - start, JUNK).is_none();
        }
        whole
    }
}

/// Where a freed block first differs from its junk.
///
/// # Safety
/// As for [`is_junk_whole`].
#[cold]
pub unsafe fn first_written(at: *mut u8, bytes: usize) -> Option<usize> {
    let room = room(bytes);
    let first = room.min(SPAN) - WORD;
    // SAFETY: as promised.
    unsafe {
        first_unlike(at.add(WORD), first, JUNK).map(|found| found + WORD).or_else(|| {
            let start = end_span(room).min(room);
            first_unlike(at.add(start), room - start, JUNK).map(|found| found + start)
        })
    }
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks)] // ranges inside one array
mod tests {
    use super::*;

    #[repr(align(16))]
    struct Memory([u8; 1100]);

    #[test]
    fn every_byte_of_a_tail_counts_and_no_other() {
        for bytes in 0..70 {
            let mut memory = Memory([1; 1100]);
            let at = memory.0.as_mut_ptr();
            unsafe { write_tail(at, bytes) };
            let tail = bytes..bytes + tail(bytes);
            assert!((8..16).contains(&tail.len()));
            for index in 0..memory.0.len() {
                let inside = tail.contains(&index);
                assert_eq!(memory.0[index], if inside { PATTERN } else { 1 });
                memory.0[index] ^= 9;
                assert_eq!(unsafe { is_tail_whole(memory.0.as_mut_ptr(), bytes) }, !inside);
                memory.0[index] ^= 9;
            }
        }
    }

    #[test]
    fn junk_covers_a_small_block_and_both_ends_of_a_larger_one() {
        for bytes in [0, 1, 7, 8, 9, 24, 40, 100, 240, 248, 249, 300, 500, 520, 700, 1000] {
            let mut memory = Memory([1; 1100]);
            let room = room(bytes);
            unsafe { write_junk(memory.0.as_mut_ptr(), bytes) };
            assert!(memory.0[room..].iter().chain(&memory.0[..WORD]).all(|&byte| byte == 1));
            for index in 0..room {
                let told = index >= WORD && (index < SPAN || index >= room - SPAN.min(room));
                memory.0[index] ^= 9;
                let at = memory.0.as_mut_ptr();
                assert_eq!(unsafe { is_junk_whole(at, bytes) }, !told, "{index} of {bytes}");
                assert_eq!(unsafe { first_written(at, bytes) }, told.then_some(index));
                memory.0[index] ^= 9;
            }
        }
    }
}
