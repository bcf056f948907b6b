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
    // Written out: the general way to round asks whether there is something to round.
    ((bytes + TAIL + WORD - 1) & !(WORD - 1)) - bytes
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
    (bytes + TAIL + PAIR - 1) & !(PAIR - 1)
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
fn end_span(room: usize) -> usize {
    room.saturating_sub(SPAN).max(SPAN)
}

/// Fills a freed block with junk, behind its first word, which becomes `first`.
///
/// # Safety
/// The block is the caller's, aligned to 16 bytes, and has its tail: both round up to a multiple of 16 that
/// is inside the inner block.
#[inline]
pub unsafe fn write_junk(at: *mut u8, bytes: usize, first: u64) {
    let room = room(bytes);
    // SAFETY: as promised.
    unsafe {
        at.cast::<[u64; 2]>().write([first, JUNK_WORD]);
        if room > SPAN {
            return write_long_junk(at, room);
        }
        // Hidden, or a call to fill memory would become of a loop that has two or three turns.
        let junk = both(black_box(JUNK_WORD));
        let (mut place, end) = (at.add(PAIR).cast::<Pair>(), at.add(room).cast());
        while place < end {
            place.write(junk);
            place = place.add(1);
        }
    }
}

#[cold]
unsafe fn write_long_junk(at: *mut u8, room: usize) {
    let start = end_span(room);
    // SAFETY: as for `write_junk`.
    unsafe {
        ptr::write_bytes(at.add(PAIR), JUNK, SPAN - PAIR);
        ptr::write_bytes(at.add(start), JUNK, room - start);
    }
}

/// Whether a freed block's first word and its junk are as they were written.
///
/// # Safety
/// As for [`write_junk`], which has been called.
#[inline]
pub unsafe fn is_junk_whole(at: *mut u8, bytes: usize, first: u64) -> bool {
    let room = room(bytes);
    // SAFETY: as promised.
    unsafe {
        let [word, junk] = at.cast::<[u64; 2]>().read();
        if (word ^ first) | (junk ^ JUNK_WORD) != 0 {
            return false;
        }
        if room > SPAN {
            return is_long_junk_whole(at, room);
        }
        is_junk(at.add(PAIR), at.add(room))
    }
}

/// # Safety
/// The range may be read, and is made of whole pairs.
#[inline]
unsafe fn is_junk(from: *const u8, end: *const u8) -> bool {
    let (mut others, junk) = (both(0), both(JUNK_WORD));
    let (mut place, end) = (from.cast::<Pair>(), end.cast());
    while place < end {
        // SAFETY: as promised.
        unsafe {
            others = differ(others, place.read(), junk);
            place = place.add(1);
        }
    }
    is_zero(others)
}

#[cold]
unsafe fn is_long_junk_whole(at: *const u8, room: usize) -> bool {
    // SAFETY: as for `is_junk_whole`; both numbers are multiples of a pair.
    unsafe { is_junk(at.add(PAIR), at.add(SPAN)) && is_junk(at.add(end_span(room)), at.add(room)) }
}

/// Where a freed block first differs from its junk.
///
/// # Safety
/// As for [`is_junk_whole`].
#[cold]
#[inline(never)]
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
            unsafe { write_junk(memory.0.as_mut_ptr(), bytes, 0x0101_0101_0101_0101) };
            assert!(memory.0[room..].iter().chain(&memory.0[..WORD]).all(|&byte| byte == 1));
            for index in 0..room {
                let told = index >= WORD && (index < SPAN || index >= room - SPAN.min(room));
                memory.0[index] ^= 9;
                let at = memory.0.as_mut_ptr();
                let whole = unsafe { is_junk_whole(at, bytes, 0x0101_0101_0101_0101) };
                assert_eq!(whole, !told && index >= WORD, "{index} of {bytes}");
                assert_eq!(unsafe { first_written(at, bytes) }, told.then_some(index));
                memory.0[index] ^= 9;
            }
        }
    }
}
