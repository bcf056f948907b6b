//! Size classes, and what a tag means.
//!
//! Small blocks come in 32 sizes: multiples of 8 up to 64, four sizes an octave up to 256, eight up
//! to 1 KiB; they are objects of slabs. Middle blocks come in 48 sizes, sixteen an octave up to
//! 8 KiB; they are cut from the pool. Every small block lies at a multiple of the lowest bit of its
//! class's size, every middle block at a multiple of 64; an alignment is served by the next class
//! that promises it.

use core::alloc::Layout;

use pagoda_addr::{Order, PAGE_SIZE};

use crate::chunk::{CHUNK, GRANULE};

/// The number of classes.
pub(crate) const CLASSES: usize = 80;
/// The number of classes that are objects of slabs: the first ones.
pub(crate) const SLAB_CLASSES: usize = 32;
/// The largest object of a slab, in bytes.
pub(crate) const SMALL_MAX: usize = 1024;
/// The largest block with a class, in bytes.
pub(crate) const CLASS_MAX: usize = 8192;
/// The largest block from the pool, in bytes; larger ones are whole pages.
pub(crate) const POOL_MAX: usize = CHUNK / 2;

/// Bytes of each class.
#[rustfmt::skip]
pub(crate) const SIZES: [u16; CLASSES] = [
    8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256,
    288, 320, 352, 384, 416, 448, 480, 512, 576, 640, 704, 768, 832, 896, 960, 1024,
    1088, 1152, 1216, 1280, 1344, 1408, 1472, 1536, 1600, 1664, 1728, 1792, 1856, 1920, 1984, 2048,
    2176, 2304, 2432, 2560, 2688, 2816, 2944, 3072, 3200, 3328, 3456, 3584, 3712, 3840, 3968, 4096,
    4352, 4608, 4864, 5120, 5376, 5632, 5888, 6144, 6400, 6656, 6912, 7168, 7424, 7680, 7936, 8192,
];

/// Names as Linux has them.
#[rustfmt::skip]
pub(crate) const NAMES: [&str; CLASSES] = [
    "kmalloc-8", "kmalloc-16", "kmalloc-24", "kmalloc-32", "kmalloc-40", "kmalloc-48",
    "kmalloc-56", "kmalloc-64", "kmalloc-80", "kmalloc-96", "kmalloc-112", "kmalloc-128",
    "kmalloc-160", "kmalloc-192", "kmalloc-224", "kmalloc-256", "kmalloc-288", "kmalloc-320",
    "kmalloc-352", "kmalloc-384", "kmalloc-416", "kmalloc-448", "kmalloc-480", "kmalloc-512",
    "kmalloc-576", "kmalloc-640", "kmalloc-704", "kmalloc-768", "kmalloc-832", "kmalloc-896",
    "kmalloc-960", "kmalloc-1k", "kmalloc-1088", "kmalloc-1152", "kmalloc-1216", "kmalloc-1280",
    "kmalloc-1344", "kmalloc-1408", "kmalloc-1472", "kmalloc-1536", "kmalloc-1600", "kmalloc-1664",
    "kmalloc-1728", "kmalloc-1792", "kmalloc-1856", "kmalloc-1920", "kmalloc-1984", "kmalloc-2k",
    "kmalloc-2176", "kmalloc-2304", "kmalloc-2432", "kmalloc-2560", "kmalloc-2688", "kmalloc-2816",
    "kmalloc-2944", "kmalloc-3k", "kmalloc-3200", "kmalloc-3328", "kmalloc-3456", "kmalloc-3584",
    "kmalloc-3712", "kmalloc-3840", "kmalloc-3968", "kmalloc-4k", "kmalloc-4352", "kmalloc-4608",
    "kmalloc-4864", "kmalloc-5k", "kmalloc-5376", "kmalloc-5632", "kmalloc-5888", "kmalloc-6k",
    "kmalloc-6400", "kmalloc-6656", "kmalloc-6912", "kmalloc-7k", "kmalloc-7424", "kmalloc-7680",
    "kmalloc-7936", "kmalloc-8k",
];

/// The alignment that each class promises, less one. As long as a byte can count, so that no bound
/// is checked.
pub(crate) const ALIGN_MASK: [u16; 256] = {
    let mut masks = [GRANULE as u16 - 1; 256];
    let mut class = 0;
    while class < SLAB_CLASSES {
        masks[class] = (1 << SIZES[class].trailing_zeros()) - 1;
        class += 1;
    }
    masks
};

/// Steps of size in which the table below counts.
const STEP: usize = 8;

/// The class of each size, a byte each. Over a KiB of constants, of which a program uses a few lines:
/// less work than to calculate. A constant and not a static, so that a compiler that knows the size looks
/// it up itself, in whichever crate.
const BY_SIZE: [u8; CLASS_MAX / STEP + 1] = {
    let mut table = [0; CLASS_MAX / STEP + 1];
    let (mut class, mut index) = (0, 0);
    while index < table.len() {
        while index * STEP > SIZES[class] as usize {
            class += 1;
        }
        table[index] = class as u8;
        index += 1;
    }
    table
};

/// How a request is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// A block of a class.
    Class(u8),
    /// A block of the pool without a class: so many granules, aligned to so many.
    Pool(usize, usize),
    /// Whole pages.
    Run(Order),
}

/// The class of `layout`, if a class serves it. Budget: seven instructions, and no branch that
/// depends on the size below the largest, which nobody could predict.
#[inline]
pub(crate) fn class_of(layout: Layout) -> Option<u8> {
    if layout.align() > STEP {
        return class_of_aligned(layout);
    }
    // No overflow: a layout's size is at most half of what a word holds.
    BY_SIZE.get((layout.size() + (STEP - 1)) >> STEP.trailing_zeros()).copied()
}

/// Up to an alignment of 64, every multiple of the alignment has a next class that promises it.
#[inline]
fn class_of_aligned(layout: Layout) -> Option<u8> {
    if layout.align() > GRANULE {
        return None;
    }
    // A layout's size is at most half of what a word holds: no overflow.
    let size = layout.size().max(1).next_multiple_of(layout.align());
    BY_SIZE.get(size / STEP).copied()
}

/// How `layout` is served; none when it is too large for any heap.
pub(crate) fn place(layout: Layout) -> Option<Place> {
    if let Some(class) = class_of(layout) {
        return Some(Place::Class(class));
    }
    let (size, align) = (layout.size(), layout.align());
    if size <= SMALL_MAX && align <= SMALL_MAX {
        // Rounding up to the alignment stays below the maximum: both are multiples of a power of
        // two that is at most the maximum, itself one.
        let mut class = BY_SIZE[size.max(1).next_multiple_of(align).div_ceil(STEP)];
        while usize::from(ALIGN_MASK[usize::from(class)]) < align - 1 {
            class += 1;
        }
        return Some(Place::Class(class));
    }
    if size <= POOL_MAX && align < PAGE_SIZE as usize {
        let least = (SMALL_MAX / GRANULE).max(size.div_ceil(GRANULE));
        return Some(Place::Pool(least, align.div_ceil(GRANULE)));
    }
    let order = Order::for_bytes(size as u64)?;
    Some(Place::Run(order.max(Order::for_bytes(align as u64)?)))
}

/// The meaning of a tag, and back. One byte for each KiB of the source's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tag {
    /// Never used by this heap.
    None,
    /// A block of this class begins in the KiB, or (small classes) the KiB holds objects of a slab.
    Class(u8),
    /// In a chunk; no block begins in the KiB.
    Chunk,
    /// In a chunk; a block without a class begins in the KiB.
    Pool,
    /// In a chunk; records of the heap's own begin in the KiB.
    Own,
    /// A slab of an object cache, 2^order pages.
    Cache(Order),
    /// The first KiB of a run.
    Run,
    /// The second KiB of a run: its order.
    RunOrder(Order),
    /// Any later KiB of a run.
    RunInside,
    /// Given back to the source.
    Gone,
}

/// More than any tag is coded as: a class as itself and one, 0 nothing.
pub(crate) const TAGS: usize = 128;
const CHUNK_TAG: u8 = 1 + CLASSES as u8;
const POOL: u8 = CHUNK_TAG + 1;
const OWN: u8 = POOL + 1;
const RUN: u8 = OWN + 1;
const RUN_INSIDE: u8 = RUN + 1;
const GONE: u8 = RUN_INSIDE + 1;
const CACHE: u8 = GONE + 1;
const RUN_ORDER: u8 = CACHE + Order::MAX.get() + 1;
const END: u8 = RUN_ORDER + Order::MAX.get() + 1;
const _: () = assert!(END as usize <= TAGS);

impl Tag {
    pub(crate) const fn encode(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Class(class) => 1 + class,
            Self::Chunk => CHUNK_TAG,
            Self::Pool => POOL,
            Self::Own => OWN,
            Self::Cache(order) => CACHE + order.get(),
            Self::Run => RUN,
            Self::RunOrder(order) => RUN_ORDER + order.get(),
            Self::RunInside => RUN_INSIDE,
            Self::Gone => GONE,
        }
    }

    /// Bytes that the heap never writes mean "not the heap's".
    pub(crate) const fn decode(byte: u8) -> Self {
        match byte {
            1..CHUNK_TAG => Self::Class(byte - 1),
            CACHE..RUN_ORDER => match Order::new(byte - CACHE) {
                Some(order) => Self::Cache(order),
                None => Self::None,
            },
            RUN_ORDER..END => match Order::new(byte - RUN_ORDER) {
                Some(order) => Self::RunOrder(order),
                None => Self::None,
            },
            RUN => Self::Run,
            RUN_INSIDE => Self::RunInside,
            GONE => Self::Gone,
            CHUNK_TAG => Self::Chunk,
            POOL => Self::Pool,
            OWN => Self::Own,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_smallest_that_holds_the_size_and_honours_the_alignment() {
        for size in (0..=CLASS_MAX).step_by(if cfg!(miri) { 251 } else { 1 }) {
            for shift in 0..=10 {
                let align = 1 << shift;
                if size > SMALL_MAX && align > GRANULE {
                    continue;
                }
                let layout = Layout::from_size_align(size, align).unwrap();
                let fits = |class: usize| {
                    SIZES[class] as usize >= size && ALIGN_MASK[class] as usize >= align - 1
                };
                let want = (0..CLASSES).find(|&class| fits(class)).unwrap();
                assert_eq!(place(layout), Some(Place::Class(want as u8)), "{size} align {align}");
            }
        }
    }

    #[test]
    fn absurd_layouts_have_no_place() {
        let most = isize::MAX as usize;
        let of = |size, align| place(Layout::from_size_align(size, align).unwrap());
        assert_eq!(of(most, 1), None);
        assert_eq!(of(1, 1 << 62), None);
        assert_eq!(of(1 << 30, 1), Some(Place::Run(Order::MAX)));
        assert_eq!(of((1 << 30) + 1, 1), None);
        assert_eq!(of(4096, 4096), Some(Place::Run(Order::PAGE)));
        assert_eq!(of(8193, 8), Some(Place::Pool(129, 1)));
        assert_eq!(of(1500, 2048), Some(Place::Pool(24, 32)));
        assert_eq!(of(1, 2048), Some(Place::Pool(16, 32)));
    }

    #[test]
    fn tags_mean_one_thing() {
        for byte in 0..=255 {
            let tag = Tag::decode(byte);
            assert!(tag == Tag::None || tag.encode() == byte);
        }
    }
}
