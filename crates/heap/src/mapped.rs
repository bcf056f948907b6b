//! Blocks of their own pages, with an unmapped page in front and behind: very large ones, and samples.
//!
//! A *very large* block (above [`LARGE`]) need not be contiguous in physical memory; a source that can
//! map puts its pages one behind the other, and whoever runs over an end takes a fault. A *sample* is
//! a block of a class that was served like that although it is small, right-aligned, so that an
//! overrun by a few bytes faults, too: every n-th time that a magazine is refilled
//! ([`Heap::set_sampling`]). When it is freed its page goes, and a use after that faults. Sampling
//! that is off is asked for only where a magazine is empty: the fast path knows nothing of it.
//!
//! *mapped-listed*: the record of a mapped block is a block of the heap's own, on the list for as long
//! as the block is out; both are touched under the central lock.
#![allow(unsafe_code)] // follows a list of raw records

use core::alloc::Layout;
use core::fmt;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_addr::{Order, PAGE_SIZE};
use pagoda_sync::Cpus;

use crate::classes::{ALIGN_MASK, NAMES, Place, SIZES, class_of, place};
use crate::guard::{Harm, Track};
use crate::heap::State;
use crate::inspect::{Found, What};
use crate::{Heap, HeapError, Misuse, MisuseKind, OutOfPages, PageSource, Report};

/// Bytes above which a block is mapped, where the source can do that.
pub(crate) const LARGE: usize = 1 << 20;
const PAGE: usize = PAGE_SIZE as usize;
/// What lies around a sample in its page.
const ZONE: u8 = 0xcc;
/// Bytes of it in front that are compared.
const FRONT: usize = 32;
/// Mapped blocks that went, and are remembered.
const GONE: usize = 16;

/// The record of one.
pub(crate) struct Mapped {
    start: usize,
    base: usize,
    pages: usize,
    /// Bytes asked for.
    size: usize,
    /// How such a layout is served otherwise.
    place: Option<Place>,
    /// Of a sample.
    class: Option<u8>,
    track: Track,
    next: Option<NonNull<Mapped>>,
}

/// All mapped blocks that are out, and the last ones that went.
pub(crate) struct MappedList {
    first: Option<NonNull<Mapped>>,
    /// Base, bytes, size asked for.
    gone: [(usize, usize, usize); GONE],
    next_gone: usize,
    count: usize,
}

impl MappedList {
    pub(crate) const fn new() -> Self {
        Self { first: None, gone: [(0, 0, 0); GONE], next_gone: 0, count: 0 }
    }

    /// Bytes of the records: blocks of a class, but in nobody's hands.
    pub(crate) fn bytes(&self) -> usize {
        let class = class_of(Layout::new::<Mapped>()).map_or(0, usize::from);
        self.count * usize::from(SIZES[class])
    }

    fn iter(&self) -> impl Iterator<Item = &Mapped> {
        let mut next = self.first;
        core::iter::from_fn(move || {
            // SAFETY: *mapped-listed*; whoever has the list holds the lock.
            let record = unsafe { next?.as_ref() };
            next = record.next;
            Some(record)
        })
    }

    fn find(&self, address: usize) -> Option<&Mapped> {
        self.iter().find(|record| address.wrapping_sub(record.base) < record.pages * PAGE)
    }

    /// The block whose guard page the address lies in, if it does not lie in a block.
    fn near(&self, address: usize) -> Option<&Mapped> {
        self.iter().find(|record| {
            address.wrapping_sub(record.base.wrapping_sub(PAGE)) < (record.pages + 2) * PAGE
        })
    }

    fn was_here(&self, address: usize) -> Option<(usize, usize)> {
        let inside =
            |&&(base, bytes, _): &&(usize, usize, usize)| address.wrapping_sub(base) < bytes;
        self.gone.iter().find(inside).map(|&(base, _, size)| (base, size))
    }
}

impl Mapped {
    fn name(&self) -> &'static str {
        self.class.map_or("kmalloc-mapped", |class| NAMES[usize::from(class)])
    }

    fn misuse(&self, kind: MisuseKind, address: usize) -> Misuse {
        let allocated = (self.track != Track::default()).then_some(self.track);
        Misuse {
            cache: self.name(),
            block: self.start,
            size: self.size,
            allocated,
            ..Misuse::at(kind, address)
        }
    }

    /// Is it what a layout with this place gets?
    pub(crate) fn is_served_as(&self, wanted: Option<Place>) -> bool {
        match self.class {
            Some(class) => wanted == Some(Place::Class(class)),
            None => wanted == self.place,
        }
    }

    /// The first byte around a sample that is not as it was laid down.
    fn harm(&self) -> Option<(MisuseKind, Harm)> {
        self.class?;
        let end = self.base + self.pages * PAGE;
        let front = (self.start - self.base).min(FRONT);
        let look = |from: usize, to: usize| {
            let byte = |at: usize| {
                // SAFETY: a byte of the block's pages; volatile, for nobody should write there.
                unsafe { with_exposed_provenance_mut::<u8>(at).read_volatile() }
            };
            let first = (from..to).find(|&at| byte(at) != ZONE)?;
            let last = (first..to).rev().find(|&at| byte(at) != ZONE)?;
            let offset = first as isize - self.start as isize;
            Some(Harm { offset, bytes: last - first + 1, expected: ZONE, found: byte(first) })
        };
        let under = look(self.start - front, self.start).map(|harm| (MisuseKind::Underflow, harm));
        under.or_else(|| look(self.start + self.size, end).map(|harm| (MisuseKind::Overflow, harm)))
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Serves every `every`-th refill of a magazine by a block between guard pages; 0: none (the
    /// default). Needs a source that can map.
    pub fn set_sampling(&self, every: usize) {
        self.sampling.store(every, Ordering::Relaxed);
    }

    /// A sample, if it is time for one and there is memory for it.
    #[inline]
    pub(crate) fn sample(&self, class: u8, layout: Layout) -> Option<NonNull<u8>> {
        match self.sampling.load(Ordering::Relaxed) {
            0 => None,
            every => self.sample_now(class, layout, every),
        }
    }

    #[cold]
    fn sample_now(&self, class: u8, layout: Layout, every: usize) -> Option<NonNull<u8>> {
        if self.refills.fetch_add(1, Ordering::Relaxed) % every != every - 1 {
            return None;
        }
        self.alloc_mapped(layout, Some(class), false)
    }

    /// A block of its own pages; none when the source cannot map, or has no more.
    pub(crate) fn alloc_mapped(
        &self,
        layout: Layout,
        class: Option<u8>,
        zeroed: bool,
    ) -> Option<NonNull<u8>> {
        if layout.align() > PAGE || self.failing.now() {
            return None;
        }
        let (track, place) = (self.track(), place(layout));
        let record = self.record(Layout::new::<Mapped>()).ok()?.cast::<Mapped>();
        let (offset, size) = match class {
            Some(class) => right_aligned(layout, class),
            None => (0, layout.size().max(1)),
        };
        let pages = (offset + size).div_ceil(PAGE);
        let memory = match self.failing.now() {
            true => Err(OutOfPages),
            false => self.source.map_pages(pages, zeroed),
        };
        let Ok(memory) = memory else {
            // SAFETY: just received.
            let _ = unsafe { self.kfree(record.cast()) };
            return None;
        };
        let base = memory.as_ptr().expose_provenance();
        let start = base + offset;
        if class.is_some() {
            // SAFETY: the pages are the heap's.
            unsafe { memory.write_bytes(ZONE, pages * PAGE) };
        }
        self.taken.fetch_add(pages * PAGE, Ordering::Relaxed);
        let mut state = self.state.lock();
        let next = state.mapped.first;
        // SAFETY: fresh memory of this layout.
        unsafe { record.write(Mapped { start, base, pages, size, place, class, track, next }) };
        state.mapped.first = Some(record);
        state.mapped.count += 1;
        match class {
            // Counted as a block of its class: a magazine that takes it counts it so.
            Some(class) => {
                let size = usize::from(SIZES[usize::from(class)]);
                state.unclassed += size;
                state.own += pages * PAGE - size;
            }
            None => state.runs += pages * PAGE,
        }
        NonNull::new(with_exposed_provenance_mut(start))
    }

    /// What a mapped block at `address` is; a misuse when none that is out starts there.
    pub(crate) fn inspect_mapped(&self, state: &State, address: usize) -> Result<Found, Misuse> {
        let Some(record) = state.mapped.find(address) else {
            if let Some(record) = state.mapped.near(address) {
                return Err(record.misuse(MisuseKind::Interior, address));
            }
            let kind = match state.mapped.was_here(address) {
                Some(_) => MisuseKind::DoubleFree,
                None => MisuseKind::Foreign,
            };
            return Err(Misuse::at(kind, address));
        };
        if record.start != address {
            return Err(record.misuse(MisuseKind::Interior, address));
        }
        if let Some((kind, harm)) = record.harm() {
            return Err(Misuse { harm: Some(harm), ..record.misuse(kind, address) });
        }
        let what = What::Mapped(NonNull::from(record));
        let size = match record.class {
            Some(_) => record.size,
            None => record.pages * PAGE,
        };
        Ok(Found { what, start: address, size, name: record.name() })
    }

    /// Takes a mapped block off the list: what is to be unmapped, and the record.
    pub(crate) fn unlist_mapped(state: &mut State, record: NonNull<Mapped>) -> Unmapped {
        let list = &mut state.mapped;
        let mut link: *mut Option<NonNull<Mapped>> = &mut list.first;
        // SAFETY: *mapped-listed*; the lock is held while the list is walked and changed.
        let (base, pages, size, class) = unsafe {
            while let Some(other) = *link {
                if other == record {
                    *link = (*other.as_ptr()).next;
                    break;
                }
                link = &raw mut (*other.as_ptr()).next;
            }
            let record = record.as_ref();
            (record.base, record.pages, record.size, record.class)
        };
        list.gone[list.next_gone % GONE] = (base, pages * PAGE, size);
        list.next_gone = list.next_gone.wrapping_add(1);
        list.count -= 1;
        match class {
            Some(class) => {
                let size = usize::from(SIZES[usize::from(class)]);
                state.unclassed -= size;
                state.own -= pages * PAGE - size;
            }
            None => state.runs -= pages * PAGE,
        }
        Unmapped { base, pages, record }
    }

    /// Gives its pages back. Without the lock.
    pub(crate) fn give_mapped(&self, unmapped: Unmapped) {
        let Unmapped { base, pages, record } = unmapped;
        self.taken.fetch_sub(pages * PAGE, Ordering::Relaxed);
        self.given.fetch_add(pages * PAGE, Ordering::Relaxed);
        if let Some(base) = NonNull::new(with_exposed_provenance_mut(base)) {
            // SAFETY: mapped by `alloc_mapped` with so many pages, and nobody's block any more.
            unsafe { self.source.unmap_pages(base, pages) };
        }
        // A block of the heap's own, off the list. Past the magazines, which may just be drained.
        let _ = self.free_checked(record.cast(), None, |_| None);
    }

    /// Whose end, or whose grave, an address is at which a fault was taken: for the report of a trap
    /// handler. None when no mapped block is near. Never waits.
    pub fn explain(&self, address: usize) -> Option<Misuse> {
        let state = self.state.try_lock()?;
        if let Some(record) = state.mapped.find(address).or_else(|| state.mapped.near(address)) {
            let kind = match address < record.start {
                true => MisuseKind::Underflow,
                false => MisuseKind::Overflow,
            };
            return Some(record.misuse(kind, address));
        }
        let (block, size) = state.mapped.was_here(address)?;
        Some(Misuse { block, size, ..Misuse::at(MisuseKind::UseAfterFree, address) })
    }

    /// The mapped blocks as Linux's `/proc/vmallocinfo` has its areas: addresses (the guard page
    /// behind counts), size, who asked, pages. The lock is not held while `out` is written to.
    pub fn vmallocinfo(&self, out: &mut impl fmt::Write) -> fmt::Result {
        for index in 0.. {
            let line =
                self.state.lock().mapped.iter().nth(index).map(|record| {
                    (record.base, record.pages, record.name(), record.track.frames[0])
                });
            let Some((base, pages, name, caller)) = line else { break };
            let bytes = (pages + 1) * PAGE;
            write!(out, "{:#018x}-{:#018x} {bytes:7} ", base, base + bytes)?;
            match caller {
                0 => out.write_str(name)?,
                caller => write!(out, "{caller:#x}")?,
            }
            writeln!(out, " pages={pages} vmalloc")?;
        }
        Ok(())
    }

    /// Makes a run twice (or more) as large where it stands, if what lies behind it is free.
    pub(crate) fn grow_run(&self, ptr: NonNull<u8>, from: Order, to: Order) -> bool {
        if from >= to || self.failing.now() || self.source.grow_pages(ptr, from, to).is_err() {
            return false;
        }
        let (old, new) = (from.bytes() as usize, to.bytes() as usize);
        self.taken.fetch_add(new - old, Ordering::Relaxed);
        let mut state = self.state.lock();
        self.tag_run(ptr.as_ptr() as usize, to);
        state.runs += new - old;
        true
    }

    /// A very large block: mapped, or of pages in a row.
    pub(crate) fn alloc_large(
        &self,
        layout: Layout,
        order: Order,
        zeroed: bool,
    ) -> Result<NonNull<u8>, HeapError> {
        if layout.size() > LARGE {
            if let Some(block) = self.alloc_mapped(layout, None, zeroed) {
                return Ok(block);
            }
        }
        // A source without so many pages in a row may have as many here and there.
        self.alloc_run(order, zeroed)
            .or_else(|error| self.alloc_mapped(layout, None, zeroed).ok_or(error))
    }
}

/// Where in its pages a sample of this class begins, and its size: as near to the end as its alignment
/// allows.
fn right_aligned(layout: Layout, class: u8) -> (usize, usize) {
    let (size, align) = (layout.size().max(1), layout.align());
    let (largest, mask) =
        (usize::from(SIZES[usize::from(class)]), usize::from(ALIGN_MASK[usize::from(class)]));
    let end = largest.next_multiple_of(PAGE);
    let start = (end - size) & !(align - 1);
    if start & mask != 0 {
        // No block of the class can lie there: no magazine takes it, and its free is seen at once.
        return (start, size);
    }
    if align <= mask && start >= align {
        return (start - align, size);
    }
    // A magazine may take it, and give it to somebody who asks for more: the class's whole size.
    (end - largest, largest)
}

/// A mapped block on its way back.
pub(crate) struct Unmapped {
    base: usize,
    pages: usize,
    record: NonNull<Mapped>,
}
