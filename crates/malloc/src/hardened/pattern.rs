//! Bytes that nobody may change: the tail of a block, and the junk in a freed one.
//!
//! Both are written and compared in pairs of words, and for the small blocks that programs are full of
//! without a loop, whose end a processor guesses wrong as often as sizes differ.
#![allow(unsafe_code)] // raw bytes

use core::ptr;

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

/// Bytes behind the header that are the block's own and its tail's: 8 more than a multiple of 16. Junk takes
/// them all.
#[inline(always)]
pub fn room(bytes: usize) -> usize {
    // Two words must be there for who freed it.
    end(bytes.max(WORD))
}

/// Where the tail ends of a block that is not large.
#[inline(always)]
fn end(bytes: usize) -> usize {
    ((bytes + WORD) & !(PAIR - 1)) + WORD
}

/// The most bytes that a block may have if so many are its own and its tail's.
pub fn most(room: usize) -> usize {
    ((room - WORD) & !(PAIR - 1)) + WORD - 1
}

/// Bytes of the tail of a block that is not large: 1 to 16.
#[inline]
pub fn tail(bytes: usize) -> usize {
    end(bytes) - bytes
}

/// # Safety
/// The pair at that distance may be written.
#[inline(always)]
unsafe fn put(at: *mut u8, distance: usize, word: u64) {
    // SAFETY: as promised.
    unsafe { at.add(distance).cast::<Pair>().write_unaligned(both(word)) };
}

/// What differs from a word in the pair at that distance, added to what differed before.
///
/// # Safety
/// It may be read.
#[inline(always)]
unsafe fn look(before: Pair, at: *const u8, distance: usize, word: u64) -> Pair {
    // SAFETY: as for `put`.
    differ(before, unsafe { at.add(distance).cast::<Pair>().read_unaligned() }, both(word))
}

/// Bytes of the block that its fresh tail is written over.
pub fn overlap(bytes: usize) -> usize {
    PAIR - tail(bytes)
}

/// Writes the tail of a fresh block, and over some bytes before it: if the block is shorter than a word, over
/// the word before it, too.
///
/// # Safety
/// `room(bytes)` bytes and the word before them are the block's, and hold nothing yet.
#[inline(always)]
pub unsafe fn write_fresh_tail(at: *mut u8, bytes: usize) {
    // SAFETY: as promised.
    unsafe { put(at.sub(WORD), end(bytes) - WORD, TAIL_WORD) };
}

/// Whether the tail of a block is as it was written.
///
/// # Safety
/// The block has a tail, and a header before it.
#[inline(always)]
pub unsafe fn is_tail_whole(at: *mut u8, bytes: usize) -> bool {
    // SAFETY: as promised. What lies before the tail in its pair is the block's or its header's.
    let unlike = unsafe { look(both(0), at.sub(WORD), end(bytes) - WORD, TAIL_WORD) };
    (zeroes(unlike) ^ ALL) >> ((bytes + WORD) % PAIR) == 0
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

/// Where the junk of a freed block starts, behind its first word, and its bytes: a multiple of 16.
#[inline(always)]
fn junk(at: *mut u8, bytes: usize) -> (*mut u8, usize) {
    (at.wrapping_add(WORD), room(bytes) - WORD)
}

/// The junk, longer than twice [`STRAIGHT`], that lies not that near to either end.
fn middles(junk: usize) -> [core::ops::Range<usize>; 2] {
    let end = junk - STRAIGHT;
    [STRAIGHT..end.min(SPAN), junk.saturating_sub(SPAN).max(SPAN).min(end)..end]
}

/// Whether junk is written without a loop.
#[inline(always)]
pub fn is_short(bytes: usize) -> bool {
    room(bytes) <= 2 * STRAIGHT + WORD
}

/// Two pairs between the first and the last, of which there are four at most; less if there are less.
#[inline(always)]
fn between(last: usize) -> [usize; 2] {
    let one = (last / 2) & !(PAIR - 1);
    [one, last - one]
}

/// Fills a freed block with junk, behind its first word. The word before it and this become `told`.
///
/// # Safety
/// The block is the caller's, with its room and the word before it.
#[inline(always)]
pub unsafe fn write_junk(at: *mut u8, bytes: usize, told: [u64; 2]) {
    let (start, junk) = junk(at, bytes);
    let last = junk - PAIR;
    // SAFETY: as promised: all distances are below the room. Blocks are aligned.
    unsafe {
        at.sub(WORD).cast::<[u64; 2]>().write(told);
        put(start, 0, JUNK_WORD);
        if junk <= STRAIGHT {
            let [one, other] = between(last);
            put(start, one, JUNK_WORD);
            put(start, other, JUNK_WORD);
        } else {
            for index in 1..STRAIGHT / PAIR {
                put(start, index * PAIR, JUNK_WORD);
                put(start, last - index * PAIR, JUNK_WORD);
            }
            if !is_short(bytes) {
                write_middles(start, junk);
            }
        }
        put(start, last, JUNK_WORD);
    }
}

#[inline(never)]
unsafe fn write_middles(start: *mut u8, junk: usize) {
    for range in middles(junk) {
        let mut index = range.start;
        while index < range.end {
            // Four pairs at a time, the last of them perhaps again.
            let last = range.end - PAIR;
            for ahead in 0..4 {
                // SAFETY: as for `write_junk`.
                unsafe { put(start, last.min(index + ahead * PAIR), JUNK_WORD) };
            }
            index += 4 * PAIR;
        }
    }
}

/// Whether the word before a freed block, its first word and its junk are as they were written.
///
/// # Safety
/// As for [`write_junk`], which has been called.
#[inline(always)]
pub unsafe fn is_junk_whole(at: *mut u8, bytes: usize, told: &[u64; 2]) -> bool {
    let (start, junk) = junk(at, bytes);
    let last = junk - PAIR;
    // SAFETY: as promised.
    unsafe {
        let tells = at.sub(WORD).cast::<Pair>().read_unaligned();
        let mut unlike =
            differ(both(0), tells, ptr::from_ref(told).cast::<Pair>().read_unaligned());
        unlike = look(unlike, start, 0, JUNK_WORD);
        unlike = look(unlike, start, last, JUNK_WORD);
        if junk <= STRAIGHT {
            let [one, other] = between(last);
            unlike = look(unlike, start, one, JUNK_WORD);
            unlike = look(unlike, start, other, JUNK_WORD);
        } else {
            for index in 1..STRAIGHT / PAIR {
                unlike = look(unlike, start, index * PAIR, JUNK_WORD);
                unlike = look(unlike, start, last - index * PAIR, JUNK_WORD);
            }
            if !is_short(bytes) && !are_middles_whole(start, junk) {
                return false;
            }
        }
        zeroes(unlike) == ALL
    }
}

#[inline(never)]
unsafe fn are_middles_whole(start: *const u8, junk: usize) -> bool {
    middles(junk).into_iter().all(|range| {
        let (mut unlike, mut index) = ([both(0); 2], range.start);
        // SAFETY: as for `is_junk_whole`; in fours as above.
        unsafe {
            while index < range.end {
                let last = range.end - PAIR;
                unlike[0] = look(unlike[0], start, index, JUNK_WORD);
                unlike[1] = look(unlike[1], start, last.min(index + PAIR), JUNK_WORD);
                unlike[0] = look(unlike[0], start, last.min(index + 2 * PAIR), JUNK_WORD);
                unlike[1] = look(unlike[1], start, last.min(index + 3 * PAIR), JUNK_WORD);
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
    let (start, junk) = junk(at, bytes);
    let end = junk.saturating_sub(SPAN).max(SPAN).min(junk);
    // SAFETY: as promised.
    let found = unsafe {
        first_unlike(start, junk.min(SPAN), JUNK)
            .or_else(|| first_unlike(start.add(end), junk - end, JUNK).map(|found| found + end))
    };
    found.map(|found| found + WORD)
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks)] // ranges inside one array
mod tests {
    use super::*;

    #[repr(align(16))]
    struct Memory([u8; 1116]);

    #[test]
    fn every_byte_of_a_tail_counts_and_no_other() {
        for bytes in 0..70 {
            let mut memory = Memory([1; 1116]);
            let at = unsafe { memory.0.as_mut_ptr().add(16) };
            unsafe { write_fresh_tail(at, bytes) };
            let tail = 16 + bytes..16 + bytes + tail(bytes);
            assert!((1..17).contains(&tail.len()) && tail.end <= 16 + room(bytes));
            assert_eq!(tail.end % 16, 8);
            for index in 0..memory.0.len() {
                let inside = tail.contains(&index);
                let before = index < tail.start && index >= tail.start - overlap(bytes);
                assert_eq!(memory.0[index], if inside || before { PATTERN } else { 1 });
                memory.0[index] ^= 9;
                let at = unsafe { memory.0.as_mut_ptr().add(16) };
                assert_eq!(unsafe { is_tail_whole(at, bytes) }, !inside);
                memory.0[index] ^= 9;
            }
        }
    }

    #[test]
    fn junk_covers_a_small_block_and_both_ends_of_a_larger_one() {
        for bytes in [
            0, 1, 7, 8, 9, 16, 23, 24, 40, 48, 56, 63, 64, 71, 72, 100, 119, 120, 127, 128, 135,
            136, 240, 255, 256, 300, 511, 520, 1000,
        ] {
            let mut memory = Memory([1; 1116]);
            let room = room(bytes);
            let told = |index: usize| {
                (WORD..room.min(WORD + SPAN)).contains(&index)
                    || (room - (room - WORD).min(SPAN)..room).contains(&index)
            };
            let ones = [0x0101_0101_0101_0101; 2];
            unsafe { write_junk(memory.0.as_mut_ptr().add(16), bytes, ones) };
            let others = memory.0[16 + room..].iter().chain(&memory.0[..16 + WORD]);
            assert!(others.copied().all(|byte| byte == 1));
            for place in 0..16 + room + 8 {
                memory.0[place] ^= 9;
                let at = unsafe { memory.0.as_mut_ptr().add(16) };
                let junk = place.checked_sub(16).filter(|&index| told(index));
                let start = (16 - WORD..16 + WORD).contains(&place);
                let whole = unsafe { is_junk_whole(at, bytes, &ones) };
                assert_eq!(whole, junk.is_none() && !start, "{place} of {bytes}");
                assert_eq!(unsafe { first_written(at, bytes) }, junk);
                memory.0[place] ^= 9;
            }
        }
    }
}
