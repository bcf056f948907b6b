//! Giving out areas, and taking them back.
#![allow(unsafe_code)] // declares an unsafe trait; contains no unsafe block

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, Page, PageRange, PhysRange, VirtAddr, VirtRange};
use pagoda_paging::{
    Cursor, Entry, Fate, Format, MapError, OutOfFrames, PageFlags, PageSize, PageTable, Platform,
};

use crate::{Block, Guard, Kind, Side, Stack, Window};

/// Where the pages of stacks and blocks come from.
///
/// # Safety
/// `alloc_page` returns a frame that nobody else uses, until it comes back as a page of 4 KiB
/// through the [`Platform::release`] of the kernel's table.
pub unsafe trait KernelPages {
    /// A frame, zeroed if asked for.
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames>;
}

// SAFETY: a reference forwards to an implementer that keeps the contract.
unsafe impl<P: KernelPages + ?Sized> KernelPages for &P {
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        (**self).alloc_page(zeroed)
    }
}

/// How accesses to a device window behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    /// Registers: every access happens, in order.
    Uncached,
    /// Frame buffers: writes are gathered.
    WriteCombine,
    /// Tables that firmware left in RAM.
    Cached,
}

/// Why nothing was given out. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvaError {
    /// Exhaustion: no frame for a page or a table.
    OutOfFrames,
    /// Exhaustion: no gap of this length in the window.
    OutOfSpace,
    /// Caller: nothing, or more than a window can hold, was asked for.
    Size,
    /// Caller: the window or the device memory cannot be mapped.
    Map(MapError),
}

impl From<MapError> for KvaError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::OutOfFrames => Self::OutOfFrames,
            other => Self::Map(other),
        }
    }
}

impl From<OutOfFrames> for KvaError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

impl fmt::Display for KvaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("no frame is free"),
            Self::OutOfSpace => f.write_str("no gap of this length in the kernel's window"),
            Self::Size => f.write_str("the length is zero or absurd"),
            Self::Map(error) => write!(f, "cannot be mapped: {error}"),
        }
    }
}

impl core::error::Error for KvaError {}

/// What stands at an address, for a handler that has to report a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Not in the window.
    Outside,
    /// A guard: somebody ran over the end of this area.
    Guard(Guard),
    /// In the body of an area.
    Mapped,
    /// In the window, given to nobody: a pointer into an area that was freed, or a wild one.
    Free,
    /// The table's lock is taken, perhaps by the CPU that faulted.
    Busy,
}

/// A window of the kernel's virtual space, and what was given out of it.
pub struct Kva<'k, F: Format, P: Platform, S: KernelPages> {
    table: &'k PageTable<F, P>,
    pages: S,
    window: PageRange,
    /// The page at which the next search begins. Only a hint.
    next: AtomicU64,
}

impl<'k, F: Format, P: Platform, S: KernelPages> Kva<'k, F, P, S> {
    /// Gives out `window` of the kernel's `table`, and backs stacks and blocks with `pages`;
    /// nothing else maps anything in the window. Makes the top-level entries over it, which fails
    /// when the kernel half is shared already.
    pub fn new(table: &'k PageTable<F, P>, pages: S, window: PageRange) -> Result<Self, KvaError> {
        table.prefill(window)?;
        Ok(Self { table, pages, window, next: AtomicU64::new(window.start().number()) })
    }

    /// The window.
    pub fn window(&self) -> PageRange {
        self.window
    }

    /// A stack of `pages` pages of 4 KiB, contents arbitrary.
    pub fn alloc_stack(&self, pages: u64) -> Result<Stack, KvaError> {
        self.alloc_backed(pages, Kind::Stack, false).map(Stack)
    }

    /// At least `bytes` bytes of virtually contiguous memory, zeroed if asked for.
    pub fn alloc_contiguous(&self, bytes: u64, zeroed: bool) -> Result<Block, KvaError> {
        let pages = bytes.div_ceil(pagoda_addr::PAGE_SIZE);
        self.alloc_backed(pages, Kind::Block, zeroed).map(Block)
    }

    /// A window on `memory`, which is device memory or RAM that nobody manages.
    ///
    /// The caller answers for what is there: the mapping is writable.
    pub fn map_device(&self, memory: PhysRange, caching: Caching) -> Result<Window, KvaError> {
        let frames = memory.blocks_touched();
        check_count(frames.count())?;
        let flags = kernel_flags()
            | match caching {
                Caching::Uncached => PageFlags::UNCACHED,
                Caching::WriteCombine => PageFlags::WRITE_COMBINE,
                Caching::Cached => PageFlags::empty(),
            };
        // Large pages fit where page and frame are the same number of pages past a multiple.
        let large = PageSize::M2.pages();
        let alike = if frames.count() >= large { large } else { 1 };
        let mut cursor = self.cursor()?;
        let body = self.find(&mut cursor, frames.count(), frames.start().number(), alike)?;
        cursor.map_largest(body, frames.start(), flags)?;
        self.guard(&mut cursor, body, Kind::Device)
            .inspect_err(|_| self.clear(&mut cursor, body, Fate::Keep))?;
        let start = body.start().start().as_u64() + memory.start().page_offset();
        let bytes = VirtRange::clamped(VirtAddr::new(start), memory.len());
        Ok(Window { pages: body, bytes })
    }

    /// Takes a stack back. Nobody stands on it any more.
    pub fn free_stack(&self, stack: Stack) -> Result<(), KvaError> {
        self.free(stack.0, Fate::Release)
    }

    /// Takes a block back.
    pub fn free_contiguous(&self, block: Block) -> Result<(), KvaError> {
        self.free(block.0, Fate::Release)
    }

    /// Closes a window.
    pub fn unmap_device(&self, window: Window) -> Result<(), KvaError> {
        self.free(window.pages, Fate::Keep)
    }

    /// What stands at `addr`. For trap handlers: never waits, allocates nothing.
    pub fn lookup(&self, addr: VirtAddr) -> Lookup {
        let page = addr.block();
        if !self.window.contains(page) {
            return Lookup::Outside;
        }
        let Some(mut cursor) = self.table.try_cursor(PageRange::single(page)) else {
            return Lookup::Busy;
        };
        match cursor.query(page) {
            Entry::Mapped { .. } => Lookup::Mapped,
            Entry::Absent(word) => Guard::read(page, word).map_or(Lookup::Free, Lookup::Guard),
        }
    }

    /// Shows `see` every area by its lower guard, lowest first.
    pub fn each_area(&self, mut see: impl FnMut(Guard)) {
        let Ok(mut cursor) = self.cursor() else { return };
        let mut from = self.window.start().number();
        while let Some((_, end, guard)) = next_area(&mut cursor, from) {
            if let Some(guard) = guard {
                see(guard);
            }
            from = end;
        }
    }

    pub(crate) fn cursor(&self) -> Result<Cursor<'k, F, P>, KvaError> {
        Ok(self.table.cursor(self.window)?)
    }

    fn alloc_backed(&self, count: u64, kind: Kind, zeroed: bool) -> Result<PageRange, KvaError> {
        check_count(count)?;
        let mut cursor = self.cursor()?;
        let body = self.find(&mut cursor, count, 0, 1)?;
        let filled = cursor
            .prepare(body)
            .and_then(|()| self.back(&mut cursor, body, zeroed))
            .map_err(KvaError::from)
            .and_then(|()| self.guard(&mut cursor, body, kind));
        if let Err(error) = filled {
            self.clear(&mut cursor, body, Fate::Release);
            return Err(error);
        }
        Ok(body)
    }

    fn back(
        &self,
        cursor: &mut Cursor<'_, F, P>,
        body: PageRange,
        zeroed: bool,
    ) -> Result<(), MapError> {
        for page in body.iter() {
            let frame = self.pages.alloc_page(zeroed)?;
            cursor.map(page, frame, PageSize::K4, kernel_flags())?;
        }
        Ok(())
    }

    /// Marks the two guards of `body`, or none.
    fn guard(
        &self,
        cursor: &mut Cursor<'_, F, P>,
        body: PageRange,
        kind: Kind,
    ) -> Result<(), KvaError> {
        let Some(all) = with_guards(body) else { return Err(KvaError::Size) };
        cursor.prepare(all)?;
        let last = body.end_number();
        for (page, side) in [(all.start().number(), Side::Below), (last, Side::Above)] {
            let page = Page::new(page).ok_or(KvaError::Size)?;
            cursor.mark(page, Guard { kind, side, body }.word())?;
        }
        self.next.store(last + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Empties `body`, its guards and what tables were made for them (*flushed-before-reuse*).
    fn clear(&self, cursor: &mut Cursor<'_, F, P>, body: PageRange, fate: Fate) {
        let mut batch = self.table.batch();
        if let Some(all) = with_guards(body) {
            // Areas lie between guards, so no large leaf reaches over an edge, nothing is split,
            // and nothing can fail.
            let taken = cursor.take(all, &mut batch, |_, _| fate);
            debug_assert_eq!(taken, Ok(()), "an area of the window was mapped by somebody else");
        }
        batch.finish();
    }

    fn free(&self, body: PageRange, fate: Fate) -> Result<(), KvaError> {
        let mut cursor = self.cursor()?;
        self.clear(&mut cursor, body, fate);
        Ok(())
    }

    /// A gap for `count` pages and two guards: the body's first page is as many pages past a
    /// multiple of `alike` as `as_page` is.
    fn find(
        &self,
        cursor: &mut Cursor<'_, F, P>,
        count: u64,
        as_page: u64,
        alike: u64,
    ) -> Result<PageRange, KvaError> {
        let (start, end) = (self.window.start().number(), self.window.end_number());
        let hint = self.next.load(Ordering::Relaxed).clamp(start, end);
        // The second search covers all, so that a gap around the hint is found too.
        for from in [hint, start] {
            let mut from = from;
            loop {
                let used = next_area(cursor, from);
                let limit = used.map_or(end, |(start, ..)| start);
                if let Some(body) = fit(from, limit, count, as_page, alike) {
                    return Ok(body);
                }
                match used {
                    Some((_, end, _)) => from = end,
                    None => break,
                }
            }
        }
        Err(KvaError::OutOfSpace)
    }
}

/// The first area at or after page `from`: where it begins and ends, guards included. `from` is not
/// inside of one, but may be (then: the rest of it, by its leaf or upper guard).
fn next_area<F: Format, P: Platform>(
    cursor: &mut Cursor<'_, F, P>,
    from: u64,
) -> Option<(u64, u64, Option<Guard>)> {
    let (page, entry) = cursor.next_used(Page::new(from)?)?;
    let at = page.number();
    let guard = match entry {
        Entry::Absent(word) => Guard::read(page, word),
        Entry::Mapped { .. } => None,
    };
    match guard {
        Some(guard) if guard.side == Side::Below => {
            Some((at, guard.body.end_number() + 1, Some(guard)))
        }
        _ => Some((at, at + 1, None)),
    }
}

/// The body of an area in the free pages `[from, limit)`.
fn fit(from: u64, limit: u64, count: u64, as_page: u64, alike: u64) -> Option<PageRange> {
    let lowest = from.checked_add(1)?;
    let shift = as_page.wrapping_sub(lowest) % alike;
    let first = lowest.checked_add(shift)?;
    let end = first.checked_add(count)?.checked_add(1)?;
    if end > limit {
        return None;
    }
    PageRange::new(Page::new(first)?, count)
}

fn with_guards(body: PageRange) -> Option<PageRange> {
    PageRange::new(body.start().checked_sub(1)?, body.count().checked_add(2)?)
}

fn check_count(count: u64) -> Result<(), KvaError> {
    if count == 0 || count > Guard::MAX_PAGES { Err(KvaError::Size) } else { Ok(()) }
}

/// In every address space, never executed; history is of no interest, so it is preset.
fn kernel_flags() -> PageFlags {
    PageFlags::READ_WRITE | PageFlags::GLOBAL | PageFlags::ACCESSED | PageFlags::DIRTY
}
