//! Bytes that nobody may change: the tail of a block, and the junk in a freed one.
//!
//! Both are written and compared in pairs of words, and for the small blocks that programs are full of
//! without a loop, whose end a processor guesses wrong as often as sizes differ.
#![allow(unsafe_code)] // raw bytes

use super::pair::{PAIR, Pair, both, differ, zeroes};
use super::{JUNK, PATTERN};

const WORD: usize = size_of::<u64>();
const TAIL_WORD: u64 = u64::from_ne_bytes([PATTERN; WORD]);
const JUNK_WORD: u64 = u64::from_ne_bytes([JUNK; WORD]);

/// What [`zeroes`] says of a pair of zeroes.
const ALL: u32 = 0xffff;
/// The junk of a freed block: so many bytes at its start, and again at its end.
const SPAN: usize = 256;
/// Up to twice so many are written without a loop: so many from each end.
const STRAIGHT: usize = 64;

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

/// Bytes behind the header that are the block's own and its tail's, in pairs of words. Junk takes them all.
#[inline]
pub fn room(bytes: usize) -> usize {
    (bytes & !(PAIR - 1)) + PAIR
}

/// Bytes of the tail of a block that is not large: to the next multiple of 16, and 16 behind such a one.
#[inline]
pub fn tail(bytes: usize) -> usize {
    PAIR - bytes % PAIR
}

/// # Safety
/// The pair at that distance may be written.
#[inline(always)]
unsafe fn put(at: *mut u8, distance: usize, word: u64) {
    // SAFETY: as promised; blocks are aligned to 16 bytes, and so are the distances.
    unsafe { at.add(distance).cast::<Pair>().write(both(word)) };
}

/// What differs from a word in the pair at that distance, added to what differed before.
///
/// # Safety
/// It may be read.
#[inline(always)]
unsafe fn look(before: Pair, at: *const u8, distance: usize, word: u64) -> Pair {
    // SAFETY: as for `put`.
    differ(before, unsafe { at.add(distance).cast::<Pair>().read() }, both(word))
}

/// Writes the tail of a fresh block, and over some bytes before it.
///
/// # Safety
/// `room(bytes)` bytes are the block's, aligned to 16, and hold nothing yet.
#[inline]
pub unsafe fn write_fresh_tail(at: *mut u8, bytes: usize) {
    // SAFETY: as promised.
    unsafe { put(at, room(bytes) - PAIR, TAIL_WORD) };
}

/// Whether the tail of a block is as it was written.
///
/// # Safety
/// The block, aligned to 16 bytes, has a tail.
#[inline]
pub unsafe fn is_tail_whole(at: *mut u8, bytes: usize) -> bool {
    // SAFETY: as promised. What lies before the tail in its pair is the block's.
    let unlike = unsafe { look(both(0), at, room(bytes) - PAIR, TAIL_WORD) };
    (zeroes(unlike) ^ ALL) >> (bytes % PAIR) == 0
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

/// The junk of a block with more room than twice [`STRAIGHT`] that lies not that near to either end.
fn middles(room: usize) -> [core::ops::Range<usize>; 2] {
    let end = room - STRAIGHT;
    [STRAIGHT..end.min(SPAN), room.saturating_sub(SPAN).max(SPAN).min(end)..end]
}

/// Whether junk is written without a loop.
#[inline(always)]
pub fn is_short(bytes: usize) -> bool {
    room(bytes) <= 2 * STRAIGHT
}

/// Fills a freed block with junk, behind its first word, which becomes `first`.
///
/// # Safety
/// The block is the caller's, aligned to 16 bytes, with its tail behind it.
#[inline(always)]
pub unsafe fn write_junk(at: *mut u8, bytes: usize, first: u64) {
    let room = room(bytes);
    let last = room - PAIR;
    // SAFETY: as promised: all distances are below the room.
    unsafe {
        if room <= STRAIGHT {
            put(at, last.min(PAIR), JUNK_WORD);
            put(at, last.min(2 * PAIR), JUNK_WORD);
        } else {
            for index in 1..STRAIGHT / PAIR {
                put(at, index * PAIR, JUNK_WORD);
                put(at, last - index * PAIR, JUNK_WORD);
            }
            if !is_short(bytes) {
                write_middles(at, room);
            }
        }
        put(at, last, JUNK_WORD);
        at.cast::<[u64; 2]>().write([first, JUNK_WORD]);
    }
}

#[inline(never)]
unsafe fn write_middles(at: *mut u8, room: usize) {
    for range in middles(room) {
        let mut index = range.start;
        while index < range.end {
            // Four pairs at a time, the last of them perhaps again.
            let last = range.end - PAIR;
            for ahead in 0..4 {
                // SAFETY: as for `write_junk`.
                unsafe { put(at, last.min(index + ahead * PAIR), JUNK_WORD) };
            }
            index += 4 * PAIR;
        }
    }
}

/// Whether a freed block's first word and its junk are as they were written.
///
/// # Safety
/// As for [`write_junk`], which has been called.
#[inline(always)]
pub unsafe fn is_junk_whole(at: *mut u8, bytes: usize, first: u64) -> bool {
    let room = room(bytes);
    let last = room - PAIR;
    // SAFETY: as promised.
    unsafe {
        let [word, junk] = at.cast::<[u64; 2]>().read();
        if (word ^ first) | (junk ^ JUNK_WORD) != 0 {
            return false;
        }
        if last == 0 {
            return true;
        }
        let mut unlike = look(both(0), at, last, JUNK_WORD);
        if room <= STRAIGHT {
            unlike = look(unlike, at, PAIR, JUNK_WORD);
            unlike = look(unlike, at, last.min(2 * PAIR), JUNK_WORD);
        } else {
            for index in 1..STRAIGHT / PAIR {
                unlike = look(unlike, at, index * PAIR, JUNK_WORD);
                unlike = look(unlike, at, last - index * PAIR, JUNK_WORD);
            }
            if !is_short(bytes) && !are_middles_whole(at, room) {
                return false;
            }
        }
        zeroes(unlike) == ALL
    }
}

#[inline(never)]
unsafe fn are_middles_whole(at: *const u8, room: usize) -> bool {
    middles(room).into_iter().all(|range| {
        let (mut unlike, mut index) = ([both(0); 2], range.start);
        // SAFETY: as for `is_junk_whole`; in fours as above.
        unsafe {
            while index < range.end {
                let last = range.end - PAIR;
                unlike[0] = look(unlike[0], at, index, JUNK_WORD);
                unlike[1] = look(unlike[1], at, last.min(index + PAIR), JUNK_WORD);
                unlike[0] = look(unlike[0], at, last.min(index + 2 * PAIR), JUNK_WORD);
                unlike[1] = look(unlike[1], at, last.min(index + 3 * PAIR), JUNK_WORD);
                index += 4 * PAIR;
            }
        }
        zeroes(differ(unlike[0], unlike[1], both(0))) == ALL
    })
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
            let start = room.saturating_sub(SPAN).max(SPAN).min(room);
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
            unsafe { write_fresh_tail(at, bytes) };
            let tail = bytes..bytes + tail(bytes);
            assert!((1..17).contains(&tail.len()) && tail.end == room(bytes));
            for index in 0..memory.0.len() {
                let inside = tail.contains(&index);
                let before = index < bytes && index >= bytes - bytes % 16;
                assert_eq!(memory.0[index], if inside || before { PATTERN } else { 1 });
                memory.0[index] ^= 9;
                assert_eq!(unsafe { is_tail_whole(memory.0.as_mut_ptr(), bytes) }, !inside);
                memory.0[index] ^= 9;
            }
        }
    }

    #[test]
    fn junk_covers_a_small_block_and_both_ends_of_a_larger_one() {
        for bytes in [
            0, 1, 7, 8, 9, 16, 24, 40, 48, 63, 64, 100, 127, 128, 240, 255, 256, 300, 511, 520,
            1000,
        ] {
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
