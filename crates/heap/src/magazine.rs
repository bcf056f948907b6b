//! Magazines: for each CPU and class, an array of free blocks that nobody else touches.
//!
//! Taking a block is: load the top, compare with the bottom, step down, store, load the block. No
//! lock, no atomic read-modify-write. An array and not a list through the blocks: a list would load
//! the block to learn the next one.
//!
//! # Invariants
//! *magazine-own*: a CPU's area is read and written by that CPU while pinned (`pin-exclusive`), and
//! by nobody else; except that anybody may read `top` to count. *magazine-range*: `bottom <= top <=
//! limit`, and the slots from `bottom` up to `top` hold free blocks of the class. The slot below
//! `bottom` is the magazine's too, and null, so that the slot below `top` can always be looked at.
#![allow(unsafe_code)] // arrays behind raw pointers

use core::mem::{align_of, size_of};
use core::ptr::{NonNull, null_mut};

use crate::classes::{ALIGN_MASK, CLASSES, SIZES, SLAB_CLASSES, TAGS, Tag};
use crate::depot::Depot;
use crate::sync::{AtomicPtr, Cell, Ordering};

/// The most blocks that move at once.
pub(crate) const BATCH: usize = 32;
/// The most blocks that go to or come from their slabs at once: each touches a header and a bitmap
/// that no cache may hold, and whoever is unlucky pays for all of them.
pub(crate) const UNIT: usize = 4;
/// The most blocks in a magazine: two batches.
const SLOTS_MOST: usize = 2 * BATCH;
/// Bytes that a magazine of small blocks may hold.
const BYTES_MOST: usize = 16 << 10;
/// Bytes that a magazine of middle blocks may hold: at least four, for with two every other call
/// would go to the depot.
const BYTES_MOST_MIDDLE: usize = 32 << 10;

type Slot = *mut u8;

/// Blocks that the magazine of `class` may hold.
pub(crate) const fn capacity(class: usize) -> usize {
    let bytes = if class < SLAB_CLASSES { BYTES_MOST } else { BYTES_MOST_MIDDLE };
    let count = bytes / SIZES[class] as usize;
    if count > SLOTS_MOST { SLOTS_MOST } else { count }
}

/// Blocks of `class` that move at once: half a magazine.
#[inline]
pub(crate) const fn batch(class: usize) -> usize {
    BATCHES[class] as usize
}

/// Divided once and for all.
const BATCHES: [u8; CLASSES] = {
    let (mut batches, mut class) = ([0; CLASSES], 0);
    while class < CLASSES {
        batches[class] = (capacity(class) / 2) as u8;
        class += 1;
    }
    batches
};

const SLOTS: usize = {
    let (mut sum, mut class) = (0, 0);
    while class < CLASSES {
        sum += capacity(class) + 1;
        class += 1;
    }
    sum
};

/// Bytes of one CPU's area.
pub(crate) const AREA: usize = size_of::<Area>() + SLOTS * size_of::<Slot>();

/// One class of one CPU.
pub(crate) struct Magazine {
    top: AtomicPtr<Slot>,
    bottom: Cell<*mut Slot>,
    limit: Cell<*mut Slot>,
    /// The alignment of the blocks, less one.
    mask: Cell<usize>,
}

/// All magazines of one CPU; the slots follow.
pub(crate) struct Area {
    /// By tag, so that a tag need not be understood: a class stands at itself and one, and where no
    /// class stands is a magazine that nothing goes into.
    magazines: [Magazine; TAGS],
    /// The last request to drain that this CPU has honoured.
    pub(crate) honoured: core::cell::Cell<usize>,
}

/// What stands for the area of a CPU that has none: nothing comes out of its magazines and nothing
/// goes in, so that the fast path need not ask. Never written.
#[cfg(not(all(loom, test)))]
struct Closed(Area);

// SAFETY: nobody writes to it: the fast path stores only after it has found a block or room, and the
// slow paths ask first.
#[cfg(not(all(loom, test)))]
unsafe impl Sync for Closed {}

#[cfg(not(all(loom, test)))]
static CLOSED: Closed = Closed(Area {
    magazines: [const {
        Magazine {
            top: AtomicPtr::new(null_mut()),
            bottom: Cell::new(null_mut()),
            limit: Cell::new(null_mut()),
            mask: Cell::new(0),
        }
    }; TAGS],
    honoured: core::cell::Cell::new(0),
});

/// The area of a CPU that has none.
#[cfg(not(all(loom, test)))]
pub(crate) const fn no_area() -> *mut Area {
    (&raw const CLOSED.0).cast_mut()
}
/// Loom's cannot stand in a static: one for each interleaving.
#[cfg(all(loom, test))]
pub(crate) fn no_area() -> *mut Area {
    struct Closed(Area);
    // SAFETY: nobody writes to it.
    unsafe impl Sync for Closed {}
    loom::lazy_static! {
        static ref CLOSED: Closed = Closed(Area {
            magazines: core::array::from_fn(|_| Magazine::nothing()),
            honoured: core::cell::Cell::new(0),
        });
    }
    (&raw const CLOSED.0).cast_mut()
}

/// Does the pointer lead to the area of a CPU?
#[inline]
pub(crate) fn some_area(area: *mut Area) -> Option<NonNull<Area>> {
    if core::ptr::eq(area, no_area()) { None } else { NonNull::new(area) }
}

impl Area {
    /// Lays an area out.
    ///
    /// # Safety
    /// [`AREA`] bytes at `place`, aligned to 8, are the caller's.
    pub(crate) unsafe fn create(place: NonNull<u8>, honoured: usize) -> NonNull<Self> {
        const { assert!(align_of::<Area>() <= 8) };
        let area: NonNull<Self> = place.cast();
        // SAFETY: the caller's bytes: the slots follow the area.
        let mut slot: *mut Slot = unsafe { area.add(1).cast().as_ptr() };
        let magazines = core::array::from_fn(|tag| {
            let Tag::Class(class) = Tag::decode(tag as u8) else { return Magazine::nothing() };
            let class = usize::from(class);
            let slots = capacity(class);
            // SAFETY: `AREA` counted one slot below the bottom, and the capacity, for each class.
            unsafe {
                let place = NonNull::new_unchecked(slot);
                slot = slot.add(1 + slots);
                Magazine::over(place, slots, usize::from(ALIGN_MASK[class]))
            }
        });
        // SAFETY: the caller's bytes.
        unsafe { area.write(Self { magazines, honoured: core::cell::Cell::new(honoured) }) };
        area
    }

    /// The magazine of a class.
    #[inline]
    pub(crate) fn of(&self, class: u8) -> &Magazine {
        self.at(usize::from(class) + 1)
    }

    /// The magazine of the class that a tag, as a number, says.
    #[inline]
    pub(crate) fn at(&self, tag: usize) -> &Magazine {
        &self.magazines[tag % TAGS]
    }
}

/// Why a block did not go into a magazine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// No room.
    Full,
    /// The same block went in last.
    Twice,
    /// No block of the class can lie there.
    Askew,
}

impl Magazine {
    /// Takes a block. Budget: six instructions.
    #[inline]
    pub(crate) fn pop(&self) -> Option<NonNull<u8>> {
        let top = self.top.load(Ordering::Relaxed);
        if top == self.bottom.get() {
            return None;
        }
        // SAFETY: *magazine-range*: above the bottom, so the slot below is a block's.
        unsafe {
            let top = top.sub(1);
            self.top.store(top, Ordering::Relaxed);
            // No block is null: `push` takes none.
            Some(NonNull::new_unchecked(*top))
        }
    }

    /// A magazine over `slots + 1` slots at `place`: the one below the bottom, and those above.
    ///
    /// # Safety
    /// The slots are the magazine's for as long as it lives.
    pub(crate) unsafe fn over(place: NonNull<*mut u8>, slots: usize, mask: usize) -> Self {
        // SAFETY: the caller's slots.
        let (bottom, limit) = unsafe {
            place.write(null_mut());
            (place.as_ptr().add(1), place.as_ptr().add(1 + slots))
        };
        Self {
            top: AtomicPtr::new(bottom),
            bottom: Cell::new(bottom),
            limit: Cell::new(limit),
            mask: Cell::new(mask),
        }
    }

    /// Nothing goes in and nothing comes out.
    fn nothing() -> Self {
        Self {
            top: AtomicPtr::new(null_mut()),
            bottom: Cell::new(null_mut()),
            limit: Cell::new(null_mut()),
            mask: Cell::new(0),
        }
    }

    /// Puts a block in. Budget: ten instructions.
    #[inline]
    pub(crate) fn push(&self, block: NonNull<u8>) -> Result<(), Refused> {
        if block.as_ptr() as usize & self.mask.get() != 0 {
            return Err(Refused::Askew);
        }
        let top = self.top.load(Ordering::Relaxed);
        if top == self.limit.get() {
            return Err(Refused::Full);
        }
        // SAFETY: *magazine-range*: below the limit there is a slot, and below the top another.
        unsafe {
            if *top.sub(1) == block.as_ptr() {
                return Err(Refused::Twice);
            }
            *top = block.as_ptr();
            self.top.store(top.add(1), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Blocks inside. Any CPU may ask; only the owner's answer stays true.
    pub(crate) fn len(&self) -> usize {
        let top = self.top.load(Ordering::Relaxed);
        (top as usize).wrapping_sub(self.bottom.get() as usize) / size_of::<Slot>()
    }

    /// Is there no room? (So it is, too, with a closed one, which is empty.)
    pub(crate) fn is_full(&self) -> bool {
        self.top.load(Ordering::Relaxed) == self.limit.get()
    }

    /// Moves the `count` blocks that lie longest in the magazine, or as many as there are, out.
    pub(crate) fn take_oldest(&self, count: usize, into: &mut Batch) {
        let len = self.len();
        let count = count.min(len).min(BATCH - into.len);
        let bottom = self.bottom.get();
        // SAFETY: *magazine-range*: `len` slots from the bottom are blocks.
        unsafe {
            for index in 0..count {
                into.push(*bottom.add(index));
            }
        }
        self.forget_oldest(count);
    }

    /// Moves the `count` blocks that lie longest in the magazine into the depot; false, and nothing
    /// moved, when there are not so many or the depot has no room.
    pub(crate) fn send_oldest(&self, count: usize, depot: &mut Depot) -> bool {
        if count == 0 || self.len() < count {
            return false;
        }
        // SAFETY: *magazine-range*: so many slots from the bottom are blocks.
        let oldest = unsafe { core::slice::from_raw_parts(self.bottom.get(), count) };
        let sent = depot.push(oldest);
        if sent {
            self.forget_oldest(count);
        }
        sent
    }

    /// Moves up to `count` blocks from the depot into the magazine; returns how many.
    pub(crate) fn receive(&self, count: usize, depot: &mut Depot) -> usize {
        let (top, limit) = (self.top.load(Ordering::Relaxed), self.limit.get());
        let room = (limit as usize).wrapping_sub(top as usize) / size_of::<Slot>();
        let blocks = depot.pop(count.min(room));
        // SAFETY: *magazine-range*: there is so much room below the limit.
        unsafe {
            top.copy_from_nonoverlapping(blocks.as_ptr(), blocks.len());
            self.top.store(top.add(blocks.len()), Ordering::Relaxed);
        }
        blocks.len()
    }

    /// Closes the gap that the `count` lowest blocks leave.
    fn forget_oldest(&self, count: usize) {
        let (bottom, rest) = (self.bottom.get(), self.len() - count);
        // SAFETY: *magazine-range*: `count + rest` slots from the bottom are blocks.
        unsafe {
            bottom.add(count).copy_to(bottom, rest);
            self.top.store(bottom.add(rest), Ordering::Relaxed);
        }
    }

    /// Lets nothing in from now on, so that every call goes the slow way. Only while empty; else it
    /// stays open.
    pub(crate) fn close(&self) {
        if self.len() == 0 {
            self.limit.set(self.bottom.get());
        }
    }
}

/// A handful of blocks on their way.
pub(crate) struct Batch {
    blocks: [Slot; BATCH],
    len: usize,
}

impl Batch {
    pub(crate) const fn new() -> Self {
        Self { blocks: [null_mut(); BATCH], len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a block; ignored when full, which no caller lets happen.
    pub(crate) fn push(&mut self, block: *mut u8) {
        if let Some(slot) = self.blocks.get_mut(self.len) {
            *slot = block;
            self.len += 1;
        }
    }

    /// Adds blocks, as long as there is room.
    pub(crate) fn extend(&mut self, blocks: &[*mut u8]) {
        blocks.iter().for_each(|&block| self.push(block));
    }

    pub(crate) fn pop(&mut self) -> Option<NonNull<u8>> {
        self.len = self.len.checked_sub(1)?;
        NonNull::new(*self.blocks.get(self.len)?)
    }

    pub(crate) fn as_slice(&self) -> &[*mut u8] {
        self.blocks.get(..self.len).unwrap_or(&[])
    }
}
