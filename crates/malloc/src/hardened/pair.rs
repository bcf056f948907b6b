//! Two words, written and compared as one where the processor can.
#![allow(unsafe_code)] // the processor's own instructions

#[cfg(target_arch = "x86_64")]
pub use core::arch::x86_64::__m128i as Pair;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{
    _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi64x, _mm_setzero_si128,
    _mm_xor_si128,
};

/// Bytes of a pair.
pub const PAIR: usize = size_of::<Pair>();

#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Pair([u64; 2]);

/// The same word twice.
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

/// A bit for each byte that is zero, the first byte's the lowest.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn zeroes(pair: Pair) -> u32 {
    // SAFETY: as above.
    unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(pair, _mm_setzero_si128())) as u32 }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn zeroes(pair: Pair) -> u32 {
    let bytes = pair.0.iter().flat_map(|word| word.to_ne_bytes());
    bytes.enumerate().map(|(index, byte)| u32::from(byte == 0) << index).sum()
}
