//! Size classes, and what a tag means.
//!
//! Small blocks come in 32 sizes: multiples of 8 up to 64, four sizes an octave up to 256, eight up
//! to 1 KiB. Every class size is a multiple of its own lowest bit, and blocks lie at multiples of
//! that bit, so an alignment is served by the next class whose size it divides.

use core::alloc::Layout;

use pagoda_addr::Order;

/// The number of small classes.
pub(crate) const CLASSES: usize = 32;
/// The largest small block, in bytes.
pub(crate) const SMALL_MAX: usize = 1024;

/// Bytes of each class.
pub(crate) const SIZES: [u16; CLASSES] = [
    8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416,
    448, 480, 512, 576, 640, 704, 768, 832, 896, 960, 1024,
];

/// Names as Linux has them.
pub(crate) const NAMES: [&str; CLASSES] = [
    "kmalloc-8",
    "kmalloc-16",
    "kmalloc-24",
    "kmalloc-32",
    "kmalloc-40",
    "kmalloc-48",
    "kmalloc-56",
    "kmalloc-64",
    "kmalloc-80",
    "kmalloc-96",
    "kmalloc-112",
    "kmalloc-128",
    "kmalloc-160",
    "kmalloc-192",
    "kmalloc-224",
    "kmalloc-256",
    "kmalloc-288",
    "kmalloc-320",
    "kmalloc-352",
    "kmalloc-384",
    "kmalloc-416",
    "kmalloc-448",
    "kmalloc-480",
    "kmalloc-512",
    "kmalloc-576",
    "kmalloc-640",
    "kmalloc-704",
    "kmalloc-768",
    "kmalloc-832",
    "kmalloc-896",
    "kmalloc-960",
    "kmalloc-1k",
];

/// The class of each size, in steps of 8 bytes.
const BY_SIZE: [u8; SMALL_MAX / 8 + 1] = {
    let mut table = [0; SMALL_MAX / 8 + 1];
    let mut class = 0;
    let mut step = 0;
    while step < table.len() {
        if step * 8 > SIZES[class] as usize {
            class += 1;
        }
        table[step] = class as u8;
        step += 1;
    }
    table
};

/// How a request is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// From the slabs of a class.
    Class(u8),
    /// As whole pages.
    Run(Order),
}

/// How `layout` is served; none when it is too large for any heap.
#[inline]
pub(crate) fn place(layout: Layout) -> Option<Place> {
    let (size, align) = (layout.size(), layout.align());
    if size <= SMALL_MAX && align <= SMALL_MAX {
        // Rounding up to the alignment stays below the maximum: both are multiples of a power of
        // two that is at most the maximum, itself one.
        let mut class = BY_SIZE[size.max(1).next_multiple_of(align).div_ceil(8)];
        while usize::from(SIZES[usize::from(class)]) & (align - 1) != 0 {
            class += 1;
        }
        return Some(Place::Class(class));
    }
    let order = Order::for_bytes(size as u64)?;
    Some(Place::Run(order.max(Order::for_bytes(align as u64)?)))
}

/// The meaning of a tag, and back. One byte for each KiB of the source's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tag {
    /// Never used by this heap, or given back.
    None,
    /// A slab of a size class.
    Slab(u8),
    /// A slab of an object cache, 2^order pages.
    Cache(Order),
    /// The first KiB of a run.
    Run,
    /// The second KiB of a run: its order.
    RunOrder(Order),
    /// Any later KiB of a run.
    RunInside,
    /// The first KiB of a run that was given back.
    Gone,
}

const CACHE: u8 = 0xa0;
const RUN_ORDER: u8 = 0xc0;
const RUN: u8 = 0xf0;
const RUN_INSIDE: u8 = 0xf1;
const GONE: u8 = 0xf2;

impl Tag {
    pub(crate) const fn encode(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Slab(class) => 1 + class,
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
            1..CACHE if (byte as usize) <= CLASSES => Self::Slab(byte - 1),
            CACHE..RUN_ORDER => match Order::new(byte - CACHE) {
                Some(order) => Self::Cache(order),
                None => Self::None,
            },
            RUN_ORDER..RUN => match Order::new(byte - RUN_ORDER) {
                Some(order) => Self::RunOrder(order),
                None => Self::None,
            },
            RUN => Self::Run,
            RUN_INSIDE => Self::RunInside,
            GONE => Self::Gone,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_smallest_that_holds_the_size_and_honours_the_alignment() {
        for size in 0..=SMALL_MAX {
            for shift in 0..=10 {
                let align = 1 << shift;
                let layout = Layout::from_size_align(size, align).unwrap();
                let fits = |class: usize| {
                    SIZES[class] as usize >= size.max(1) && SIZES[class] as usize % align == 0
                };
                let want = (0..CLASSES).find(|&class| fits(class)).unwrap();
                assert_eq!(place(layout), Some(Place::Class(want as u8)), "{size} align {align}");
            }
        }
    }

    #[test]
    fn absurd_layouts_have_no_place() {
        let most = isize::MAX as usize;
        assert_eq!(place(Layout::from_size_align(most, 1).unwrap()), None);
        assert_eq!(place(Layout::from_size_align(1, 1 << 62).unwrap()), None);
        assert_eq!(
            place(Layout::from_size_align(1 << 30, 1).unwrap()),
            Some(Place::Run(Order::MAX))
        );
        assert_eq!(place(Layout::from_size_align((1 << 30) + 1, 1).unwrap()), None);
    }

    #[test]
    fn tags_mean_one_thing() {
        for byte in 0..=255 {
            let tag = Tag::decode(byte);
            assert!(tag == Tag::None || tag.encode() == byte);
        }
    }
}
