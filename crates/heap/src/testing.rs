//! Test equipment: a page source over a host allocation, with a budget and a grudge.
#![allow(unsafe_code)] // implements the unsafe trait `PageSource`

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::alloc;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use pagoda_addr::{Order, PAGE_SIZE};

use crate::{Misuse, MisuseKind, OutOfPages, PageSource, PageTags, Report};

/// Pages of one aligned host allocation. First fit; checks that what comes back is exactly what was
/// given, and fills it with junk.
pub(crate) struct Arena {
    memory: NonNull<u8>,
    layout: Layout,
    tags: Vec<AtomicU8>,
    /// Start offset in pages, and order, of what is out.
    out: Mutex<BTreeMap<usize, Order>>,
    /// Where mapped pages are out, and how many.
    mapped: Mutex<BTreeMap<usize, usize>>,
    /// Mapped pages that there may be.
    mappable: AtomicUsize,
    /// What [`PageSource::alloc_known_pages`] says, and what it fills pages with: see
    /// [`Self::let_know`].
    known: AtomicU8,
    /// Allocations until one fails; huge: never.
    fuse: AtomicUsize,
}

// SAFETY: the memory is only handed out, under the lock.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

const NEVER: usize = usize::MAX / 2;
/// Nothing is said about what pages hold.
const UNKNOWN: u8 = 0xee;

impl Arena {
    pub(crate) fn new(pages: usize) -> Self {
        // Under Miri each byte costs.
        let pages = if cfg!(miri) { pages.min(1024) } else { pages };
        let bytes = pages * PAGE_SIZE as usize;
        let layout =
            Layout::from_size_align(bytes, bytes.next_power_of_two().min(1 << 22)).unwrap();
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc::alloc(layout) }).unwrap();
        memory.as_ptr().expose_provenance();
        let mut tags = core::mem::ManuallyDrop::new(std::vec![0u8; PageTags::required(bytes)]);
        // SAFETY: an atomic byte is laid out as a byte. (Made one by one they take Miri a second.)
        let tags =
            unsafe { Vec::from_raw_parts(tags.as_mut_ptr().cast(), tags.len(), tags.capacity()) };
        Self {
            memory,
            layout,
            tags,
            out: Mutex::default(),
            mapped: Mutex::default(),
            mappable: AtomicUsize::new(0),
            known: AtomicU8::new(UNKNOWN),
            fuse: AtomicUsize::new(NEVER),
        }
    }

    /// From now on pages of which somebody wants to know whether they are zero hold this byte, and
    /// are said to be zero. (Any other byte is a lie: so it can be seen what is believed.)
    pub(crate) fn let_know(&self, byte: u8) {
        self.known.store(byte, Ordering::SeqCst);
    }

    /// From now on so many pages can be mapped.
    pub(crate) fn let_map(&self, pages: usize) {
        self.mappable.store(pages, Ordering::SeqCst);
    }

    /// Lets allocation number `nth` (from 0) from now on fail, once.
    pub(crate) fn fail_at(&self, nth: usize) {
        self.fuse.store(nth, Ordering::SeqCst);
    }

    /// Has the failure asked for not happened yet?
    pub(crate) fn fuse_is_burning(&self) -> bool {
        self.fuse.swap(NEVER, Ordering::SeqCst) < NEVER / 2
    }

    /// Pages that are out.
    pub(crate) fn pages_out(&self) -> usize {
        let runs: usize =
            self.out.lock().unwrap().values().map(|order| order.count() as usize).sum();
        runs + self.mapped.lock().unwrap().values().sum::<usize>()
    }

    fn mapping(pages: usize) -> Layout {
        let whole = (pages + 2) * PAGE_SIZE as usize;
        Layout::from_size_align(whole, PAGE_SIZE as usize).unwrap()
    }
}

// SAFETY: blocks are aligned pieces of the allocation, out once at a time; one tag for each KiB.
unsafe impl PageSource for Arena {
    fn alloc_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages> {
        if self.fuse.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.fuse.store(NEVER, Ordering::SeqCst);
            return Err(OutOfPages);
        }
        let mut out = self.out.lock().unwrap();
        let (count, pages) = (order.count() as usize, self.layout.size() / PAGE_SIZE as usize);
        let align = (count * PAGE_SIZE as usize).min(self.layout.align()) / PAGE_SIZE as usize;
        let mut start = 0;
        for (&taken, taken_order) in out.iter() {
            if start + count <= taken {
                break;
            }
            start = start.max((taken + taken_order.count() as usize).next_multiple_of(align));
        }
        if start + count > pages || count * PAGE_SIZE as usize > self.layout.align() {
            return Err(OutOfPages);
        }
        out.insert(start, order);
        // SAFETY: inside the allocation.
        Ok(unsafe { self.memory.add(start * PAGE_SIZE as usize) })
    }

    unsafe fn free_pages(&self, start: NonNull<u8>, order: Order) {
        let offset = start.as_ptr() as usize - self.memory.as_ptr() as usize;
        let page = offset / PAGE_SIZE as usize;
        let mut out = self.out.lock().unwrap();
        assert_eq!(out.remove(&page), Some(order), "pages came back that were not out");
        // SAFETY: inside the allocation, and nobody's.
        unsafe { start.write_bytes(0xdd, order.bytes() as usize) };
    }

    fn alloc_known_pages(&self, order: Order) -> Result<(NonNull<u8>, bool), OutOfPages> {
        let start = self.alloc_pages(order)?;
        let byte = self.known.load(Ordering::SeqCst);
        if byte == UNKNOWN {
            return Ok((start, false));
        }
        // SAFETY: just received, of this size.
        unsafe { start.write_bytes(byte, order.bytes() as usize) };
        Ok((start, true))
    }

    // Host memory of its own, and a page in front and one behind; but there is nothing that could fault.
    fn map_pages(&self, pages: usize, zeroed: bool) -> Result<NonNull<u8>, OutOfPages> {
        let mut mapped = self.mapped.lock().unwrap();
        let burnt = self.fuse.fetch_sub(1, Ordering::SeqCst) == 0;
        if burnt {
            self.fuse.store(NEVER, Ordering::SeqCst);
        }
        let used = mapped.values().sum::<usize>() + pages;
        if burnt || used > self.mappable.load(Ordering::SeqCst) {
            return Err(OutOfPages);
        }
        // SAFETY: the size is not zero.
        let whole = NonNull::new(unsafe { alloc::alloc(Self::mapping(pages)) }).unwrap();
        // SAFETY: behind the page in front.
        let start = unsafe { whole.add(PAGE_SIZE as usize) };
        let junk = if zeroed { 0 } else { 0xdd };
        // SAFETY: just received.
        unsafe { start.write_bytes(junk, pages * PAGE_SIZE as usize) };
        mapped.insert(start.as_ptr() as usize, pages);
        Ok(start)
    }

    unsafe fn unmap_pages(&self, start: NonNull<u8>, pages: usize) {
        let was = self.mapped.lock().unwrap().remove(&(start.as_ptr() as usize));
        assert_eq!(was, Some(pages), "pages were unmapped that were not mapped");
        // SAFETY: allocated with this layout.
        unsafe {
            alloc::dealloc(start.as_ptr().sub(PAGE_SIZE as usize), Self::mapping(pages));
        }
    }

    fn grow_pages(&self, start: NonNull<u8>, from: Order, to: Order) -> Result<(), OutOfPages> {
        let mut out = self.out.lock().unwrap();
        let offset = start.as_ptr() as usize - self.memory.as_ptr() as usize;
        let page = offset / PAGE_SIZE as usize;
        assert_eq!(out.get(&page), Some(&from), "a run that is not out");
        let (count, end) = (to.count() as usize, page + from.count() as usize);
        let next = out.range(end..).next().map_or(usize::MAX, |(&next, _)| next);
        let pages = self.layout.size() / PAGE_SIZE as usize;
        if page % count != 0 || page + count > next.min(pages) {
            return Err(OutOfPages);
        }
        out.insert(page, to);
        Ok(())
    }

    fn tag(&self, address: usize) -> Option<&AtomicU8> {
        PageTags::new(self.memory.as_ptr() as usize, &self.tags).get(address)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { alloc::dealloc(self.memory.as_ptr(), self.layout) };
    }
}

/// Collects misuses.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Vec<Misuse>>, AtomicUsize);

impl Ledger {
    /// The only misuse since the last call.
    pub(crate) fn one(&self) -> Misuse {
        let list = core::mem::take(&mut *self.0.lock().unwrap());
        assert_eq!(list.len(), 1, "{list:?}");
        list[0]
    }

    /// Has nothing happened?
    pub(crate) fn is_clean(&self) -> bool {
        let list = self.0.lock().unwrap();
        list.iter().for_each(|misuse| std::eprintln!("{misuse}"));
        list.is_empty()
    }

    pub(crate) fn kind(&self) -> MisuseKind {
        self.one().kind
    }
}

impl Report for Ledger {
    fn misuse(&self, misuse: &Misuse) {
        self.0.lock().unwrap().push(*misuse);
    }

    /// The n-th call is made by the function at 0x1000 + n, at time n.
    fn track(&self, frames: &mut [usize]) -> u64 {
        let call = self.1.fetch_add(1, Ordering::Relaxed) + 1;
        frames[0] = 0x1000 + call;
        call as u64
    }
}
