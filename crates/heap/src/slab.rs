//! A slab: a span of pages cut into objects of one size.
//!
//! ```text
//! base                                                                  base + span
//! | header | bitmap | room too small for an object | object 0 | ... | object n-1 |
//! ```
//! Objects end with the span, so they lie at multiples of the largest power of two that divides
//! their stride (up to the span's own alignment). Nothing of the heap's is inside an object: what
//! is free is a set bit in the bitmap, and a write after free cannot lead the heap astray.
//!
//! # Invariants
//! *slab-valid*: a [`Slab`] denotes an initialised header in memory that the heap took from its
//! source and has not given back. *slab-locked*: it is used only by the holder of the heap's lock,
//! or before it is added to a shelf, or after it was taken off.
//! *slab-count*: `free` is the number of set bits, all of them below `count`.
#![allow(unsafe_code)] // reads and writes headers in raw pages

use core::cell::Cell;
use core::mem::size_of;
use core::ops::Deref;
use core::ptr::NonNull;

/// Which of a shelf's lists holds the slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Listed {
    Empty = 0,
    Partial = 1,
    Full = 2,
}

#[repr(C)]
pub(crate) struct Header {
    magic: Cell<u32>,
    stride: Cell<u32>,
    span: Cell<u32>,
    first: Cell<u32>,
    count: Cell<u16>,
    free: Cell<u16>,
    /// No word of the bitmap below this one has a set bit.
    hint: Cell<u16>,
    pub(crate) listed: Cell<Listed>,
    pub(crate) next: Cell<Option<Slab>>,
    pub(crate) prev: Cell<Option<Slab>>,
    /// Bytes of a slot in front of the object.
    lead: Cell<u32>,
    /// Bytes of unused room behind the last object, see [`Slab::set_colour`].
    colour: Cell<u32>,
    /// The shelf of an object cache; 0 for the slabs of a size class.
    pub(crate) owner: Cell<usize>,
}

/// A handle to a slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slab(NonNull<Header>);

/// What an address inside a slab's span is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spot {
    /// The first byte of this object.
    Start(usize),
    /// A later byte of this object.
    Inside(usize),
    /// The header, or unused room.
    Outside,
}

const MAGIC: u32 = 0x5ab0_c0de;
const HEADER: usize = size_of::<Header>();

/// Objects of `stride` bytes that fit a span of `span` bytes beside the header.
pub(crate) const fn capacity(span: usize, stride: usize) -> usize {
    if stride == 0 || span < HEADER + 8 + stride {
        return 0;
    }
    let mut count = (span - HEADER) / stride;
    while HEADER + count.div_ceil(64) * 8 + count * stride > span {
        count -= 1;
    }
    if count > u16::MAX as usize { u16::MAX as usize } else { count }
}

/// Bytes of such a span that no object needs.
pub(crate) const fn room(span: usize, stride: usize) -> usize {
    let count = capacity(span, stride);
    span - HEADER - count.div_ceil(64) * 8 - count * stride
}

/// Bytes of a span that holds `count` objects of `stride` bytes and nothing else.
pub(crate) const fn span_for(count: usize, stride: usize) -> usize {
    HEADER + count.div_ceil(64) * 8 + count * stride
}

impl Slab {
    /// Makes `span` bytes at `base` a slab of free objects.
    ///
    /// # Safety
    /// The bytes belong to the caller, aligned to 64, with exposed provenance over all of them;
    /// `capacity(span, stride) > 0`, and `span` fits 32 bits.
    pub(crate) unsafe fn create(base: NonNull<u8>, span: usize, stride: usize) -> Self {
        let count = capacity(span, stride);
        let header = Header {
            magic: Cell::new(Self::magic_at(base.as_ptr() as usize)),
            stride: Cell::new(stride as u32),
            span: Cell::new(span as u32),
            first: Cell::new((span - count * stride) as u32),
            count: Cell::new(count as u16),
            free: Cell::new(count as u16),
            hint: Cell::new(0),
            listed: Cell::new(Listed::Empty),
            next: Cell::new(None),
            prev: Cell::new(None),
            lead: Cell::new(0),
            colour: Cell::new(0),
            owner: Cell::new(0),
        };
        let slab = Self(base.cast());
        // SAFETY: the caller's bytes; `capacity` counted the header and the bitmap.
        unsafe { slab.0.write(header) };
        for word in 0..count.div_ceil(64) {
            let bits = count - word * 64;
            let value = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
            // SAFETY: as above; the bitmap follows the header.
            unsafe { slab.0.add(1).cast::<u64>().add(word).write(value) };
        }
        slab
    }

    /// The slab whose header lies at `base`, which a tag vouches for; none when the header does not
    /// look like one (somebody wrote over it).
    ///
    /// # Safety
    /// *slab-valid* and *slab-locked* hold for `base` unless its memory was overwritten.
    pub(crate) unsafe fn at(base: usize) -> Option<Self> {
        let header = NonNull::new(core::ptr::with_exposed_provenance_mut::<Header>(base))?;
        let slab = Self(header);
        // Checked before anything else is believed: counts and offsets lead to memory accesses.
        let (span, stride) = (slab.span.get() as usize, slab.stride.get() as usize);
        let sound = slab.magic.get() == Self::magic_at(base)
            && slab.count() != 0
            && slab.count() == capacity(span, stride)
            && slab.first.get() as usize + slab.colour.get() as usize
                == span - slab.count() * stride
            && slab.free.get() <= slab.count.get()
            && slab.lead.get() < slab.stride.get();
        sound.then_some(slab)
    }

    const fn magic_at(base: usize) -> u32 {
        MAGIC ^ (base >> 6) as u32
    }

    /// Makes objects begin `lead` bytes into their slots. Before any is handed out.
    pub(crate) fn set_lead(self, lead: usize) {
        self.lead.set(lead as u32);
    }

    /// Moves all objects so many bytes to the front, if there is so much unused room: objects of
    /// different slabs then fall on different cache lines. Before any is handed out.
    pub(crate) fn set_colour(self, colour: usize) {
        let room = self.first.get() as usize - (HEADER + self.count().div_ceil(64) * 8);
        if colour <= room {
            self.first.set(self.first.get() - colour as u32);
            self.colour.set(colour as u32);
        }
    }

    /// The first byte of the span.
    pub(crate) fn base(self) -> NonNull<u8> {
        self.0.cast()
    }

    /// Bytes of the span.
    pub(crate) fn span(self) -> usize {
        self.span.get() as usize
    }

    /// Objects in the slab.
    pub(crate) fn count(self) -> usize {
        usize::from(self.count.get())
    }

    /// Free objects in the slab.
    pub(crate) fn free(self) -> usize {
        usize::from(self.free.get())
    }

    /// Bytes that are no object's.
    pub(crate) fn overhead(self) -> usize {
        self.first.get() as usize + self.colour.get() as usize
    }

    fn bits(&self) -> &[Cell<u64>] {
        let words = self.count().div_ceil(64);
        // SAFETY: *slab-valid*: the bitmap follows the header; *slab-locked*: nobody else writes.
        unsafe { core::slice::from_raw_parts(self.0.add(1).cast().as_ptr(), words) }
    }

    /// The address of object `index`.
    pub(crate) fn object(self, index: usize) -> NonNull<u8> {
        debug_assert!(index < self.count());
        let slot = self.first.get() as usize + index * self.stride.get() as usize;
        let offset = slot + self.lead.get() as usize;
        // SAFETY: *slab-valid*: the object lies inside the span.
        unsafe { self.base().add(offset) }
    }

    /// What lies at `address`.
    pub(crate) fn locate(self, address: usize) -> Spot {
        let offset = address.wrapping_sub(self.0.as_ptr() as usize);
        let end = self.span.get() as usize - self.colour.get() as usize;
        if offset < self.first.get() as usize || offset >= end {
            return Spot::Outside;
        }
        let (stride, rest) = (self.stride.get(), offset as u32 - self.first.get());
        let index = (rest / stride) as usize;
        if rest % stride == self.lead.get() { Spot::Start(index) } else { Spot::Inside(index) }
    }

    /// Takes a free object: the one at the lowest address.
    pub(crate) fn take(self) -> Option<NonNull<u8>> {
        let bits = self.bits();
        for (index, word) in bits.iter().enumerate().skip(usize::from(self.hint.get())) {
            let value = word.get();
            if value != 0 {
                word.set(value & (value - 1));
                self.free.set(self.free.get() - 1);
                self.hint.set(index as u16);
                return Some(self.object(index * 64 + value.trailing_zeros() as usize));
            }
        }
        None
    }

    /// Takes the free object that is next to a random place.
    pub(crate) fn take_any(self, number: usize) -> Option<NonNull<u8>> {
        let bits = self.bits();
        let first = number / 64 % bits.len();
        // The word where it begins comes twice: its last bits first, its first bits at the end.
        for step in 0..=bits.len() {
            let index = (first + step) % bits.len();
            let word = bits.get(index)?;
            let below = (1 << (number % 64)) - 1;
            let value = match step {
                0 => word.get() & !below,
                step if step == bits.len() => word.get() & below,
                _ => word.get(),
            };
            if value != 0 {
                let bit = value.trailing_zeros() as usize;
                word.set(word.get() & !(1 << bit));
                self.free.set(self.free.get() - 1);
                return Some(self.object(index * 64 + bit));
            }
        }
        None
    }

    /// Is object `index` free?
    pub(crate) fn is_free(self, index: usize) -> bool {
        self.bits().get(index / 64).is_some_and(|word| word.get() >> (index % 64) & 1 != 0)
    }

    /// Makes object `index` free; false when it is free already.
    pub(crate) fn put(self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1u64 << (index % 64));
        match self.bits().get(word) {
            Some(cell) if cell.get() & bit == 0 => {
                cell.set(cell.get() | bit);
                self.free.set(self.free.get() + 1);
                if usize::from(self.hint.get()) > word {
                    self.hint.set(word as u16);
                }
                true
            }
            _ => false,
        }
    }

    /// *slab-count*, checked in full.
    pub(crate) fn is_sound(self) -> bool {
        let bits = self.bits();
        let set: u32 = bits.iter().map(|word| word.get().count_ones()).sum();
        let hint = usize::from(self.hint.get());
        let last = bits.last().map_or(0, Cell::get);
        let beyond = match self.count() % 64 {
            0 => 0,
            rest => last >> rest,
        };
        set as usize == self.free()
            && beyond == 0
            && bits.iter().take(hint).all(|word| word.get() == 0)
    }
}

/// Whose the slab at `base` is, without the lock: the owner is written before a tag vouches for the
/// slab, and never again.
///
/// # Safety
/// A tag says that a slab of an object cache lies at `base`.
#[inline]
pub(crate) unsafe fn owner_at(base: usize) -> usize {
    let header = core::ptr::with_exposed_provenance::<Header>(base);
    // SAFETY: the caller's promise.
    unsafe { (*header).owner.get() }
}

impl Deref for Slab {
    type Target = Header;
    fn deref(&self) -> &Header {
        // SAFETY: *slab-valid*; all fields are cells, and *slab-locked* keeps other CPUs away.
        unsafe { self.0.as_ref() }
    }
}
