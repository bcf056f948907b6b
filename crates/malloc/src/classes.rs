//! # How are small sizes rounded?
//!
//! 32 classes: steps of 16 bytes to 128, then eight for each octave to 1 KiB. A slab is one unit of
//! 16 KiB cut into blocks of one class, the first at its start.
//!
//! Invariant *exact-block*: for a class of `d` bytes let `m = floor(2^64 / d) + 1` and
//! `e = m * d - 2^64`, so that `0 < e <= d`. For every distance `x` between two addresses below
//! 2^47, forwards or backwards (modulo 2^64), `x * m mod 2^64 < n * e` holds exactly when `x` is
//! `q * d` for some `0 <= q < n`, as long as `n` is at most the number of blocks in a slab. Reason:
//! `x = q d + r` gives `q e + r m`; the first term is below 2^53, `m` is at least 2^54 and
//! `(d - 1) m` is below `2^64 - m + e`, so a rest `r > 0` always lands between `2^53` and
//! `2^64 - 2^53`. After Lemire, Kaser and Kurz, "Faster remainder by direct computation" (2019).

/// Bytes of a unit: a slab, and the grain of the small window.
pub const UNIT_BYTES: usize = 1 << UNIT_SHIFT;
/// Binary logarithm of [`UNIT_BYTES`].
pub const UNIT_SHIFT: u32 = 14;
/// The largest request that a slab serves, in bytes.
pub const SMALL_MAX: usize = 1024;
/// How many size classes there are.
pub const CLASSES: usize = 32;
/// Requests are counted in words of 16 bytes: 0 to 64.
pub const WORDS: usize = SMALL_MAX / 16 + 1;

/// What a class's slabs need to know.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// Bytes of a block.
    pub bytes: u32,
    /// Blocks in a slab.
    pub blocks: u32,
    /// `m` of *exact-block*.
    pub multiplier: u64,
    /// `e` of *exact-block*: the limit for one block.
    pub step: u64,
    /// How many blocks that another thread freed leave together ([`crate::outgoing`]): all of a slab or an equal
    /// part, so that nothing is left over where all are freed (in hardened mode, whose slabs may have a block less,
    /// the last part waits). At most 256; a half where there are few and large ones, which their owner would miss.
    pub share: u16,
}

const fn bytes_of(class: usize) -> u32 {
    if class < 8 {
        return 16 * (class as u32 + 1);
    }
    let octave = (class as u32 - 8) / 8;
    let eighth = (class as u32 - 8) % 8;
    (128 << octave) + (eighth + 1) * (16 << octave)
}

const fn describe(class: usize) -> Class {
    let bytes = bytes_of(class);
    let multiplier = ((1u128 << 64) / bytes as u128) as u64 + 1;
    let step = (multiplier as u128 * bytes as u128 - (1u128 << 64)) as u64;
    let blocks = UNIT_BYTES as u32 / bytes;
    let parts = if blocks < 128 { 2 } else { blocks.div_ceil(256) };
    Class { bytes, blocks, multiplier, step, share: blocks.div_ceil(parts) as u16 }
}

/// All classes, by number.
pub static TABLE: [Class; CLASSES] = {
    let mut table = [describe(0); CLASSES];
    let mut class = 0;
    while class < CLASSES {
        table[class] = describe(class);
        class += 1;
    }
    table
};

/// The class of a request of so many words.
static BY_WORDS: [u8; WORDS] = {
    let mut table = [0; WORDS];
    let (mut words, mut class) = (0, 0);
    while words < WORDS {
        if words * 16 > bytes_of(class) as usize {
            class += 1;
        }
        table[words] = class as u8;
        words += 1;
    }
    table
};

/// The class that serves `bytes`, which must be at most [`SMALL_MAX`].
#[inline]
pub fn class_of(bytes: usize) -> usize {
    BY_WORDS.get(bytes.div_ceil(16)).map_or(CLASSES - 1, |&class| usize::from(class))
}

/// The class that serves `bytes` aligned to `align` (a power of two), if any.
pub fn aligned_class_of(bytes: usize, align: usize) -> Option<usize> {
    if bytes > SMALL_MAX || align > SMALL_MAX {
        return None;
    }
    (class_of(bytes.max(align))..CLASSES).find(|&class| of(class).bytes as usize % align == 0)
}

/// The description of a class; numbers beyond the last mean the last.
#[inline]
pub fn of(class: usize) -> &'static Class {
    &TABLE[if class < CLASSES { class } else { CLASSES - 1 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_leaves_in_equal_parts() {
        for class in &TABLE {
            let (blocks, share) = (class.blocks, u32::from(class.share));
            let parts = blocks.div_ceil(share);
            assert!((8..=256).contains(&share) && parts * share < blocks + parts, "{class:?}");
        }
        let share = |bytes| TABLE[class_of(bytes)].share;
        assert_eq!([16, 32, 48, 64, 128, 144, 1024].map(share), [256, 256, 171, 256, 128, 57, 8]);
    }

    #[test]
    fn classes_ascend_and_the_next_larger_one_is_chosen() {
        assert_eq!(of(0).bytes, 16);
        assert_eq!(of(7).bytes, 128);
        assert_eq!(of(15).bytes, 256);
        assert_eq!(of(31).bytes, 1024);
        for bytes in 0..=SMALL_MAX {
            let class = class_of(bytes);
            assert!(of(class).bytes as usize >= bytes);
            assert!(class == 0 || (of(class - 1).bytes as usize) < bytes);
        }
    }

    #[test]
    fn an_aligned_class_is_a_multiple_of_the_alignment() {
        for shift in 0..=10 {
            for bytes in 0..=SMALL_MAX {
                let class = aligned_class_of(bytes, 1 << shift).expect("1024 serves all");
                assert_eq!(of(class).bytes % (1 << shift), 0);
                assert!(of(class).bytes as usize >= bytes);
            }
        }
        assert_eq!(aligned_class_of(16, 2048), None);
    }

    #[test]
    fn exact_block_accepts_block_starts_and_nothing_else() {
        for class in 0..CLASSES {
            let class = of(class);
            for carved in [0, 1, class.blocks / 2, class.blocks] {
                let limit = u64::from(carved) * class.step;
                let accepts = |x: i64| (x as u64).wrapping_mul(class.multiplier) < limit;
                for x in if cfg!(miri) { -40..40_i64 } else { -20_000..40_000 } {
                    let start = x >= 0
                        && x % i64::from(class.bytes) == 0
                        && x / i64::from(class.bytes) < i64::from(carved);
                    assert_eq!(accepts(x), start, "{x} of {}", class.bytes);
                }
                let mut far = 1_i64;
                for _ in 0..if cfg!(miri) { 20 } else { 10_000 } {
                    far = far.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let x = (far >> 17) | 1 << 40;
                    let multiple = x - x % i64::from(class.bytes);
                    assert!(!accepts(x) && !accepts(-x));
                    assert!(!accepts(multiple) && !accepts(-multiple));
                }
            }
        }
    }
}
