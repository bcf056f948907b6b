//! Kernel stacks with a guard page below each.
//!
//! A slot of the kernel's own range is one guard page and the stack above it; the guard page of the
//! next slot ends it. Slots are reused, last given back first.
#![allow(unsafe_code)] // raw locks

use alloc::vec::Vec;

use lock_api::Mutex;
use pagoda_addr::{PAGE_SIZE, Page, PageRange, VirtAddr, VirtRange};
use pagoda_frames::Request;
use pagoda_kernel_core::machine::OutOfMemory;
use pagoda_paging::{Fate, PageSize};
use pagoda_sync::rank;

use super::host::{KERNEL, Lock, kind};
use super::kernel_map::READ_WRITE;
use super::layout;

/// Pages of a stack.
const STACK_PAGES: u64 = 8;
/// Pages of a slot: the guard and the stack.
const SLOT_PAGES: u64 = STACK_PAGES + 1;
/// Slots that there is room for.
const SLOTS: u64 = layout::KVA_BYTES / PAGE_SIZE / SLOT_PAGES;

/// Which slots are free.
struct Slots {
    /// Slots below this number were in use at some time.
    fresh: u64,
    /// Those of them that are free; has room for all of them.
    free: Vec<u64>,
    in_use: u64,
}

static SLOTS_FREE: Mutex<Lock<{ rank::KVA }>, Slots> =
    Mutex::new(Slots { fresh: 0, free: Vec::new(), in_use: 0 });

/// A kernel stack; unmapped and given back when dropped.
#[derive(Debug)]
pub(crate) struct Stack {
    slot: u64,
}

fn first_page(slot: u64) -> Page {
    Page::from_number((layout::KVA / PAGE_SIZE + slot * SLOT_PAGES) % Page::LIMIT)
}

fn pages(slot: u64) -> PageRange {
    let first = first_page(slot);
    PageRange::new(Page::from_number(first.number() + 1), STACK_PAGES)
        .unwrap_or(PageRange::single(first))
}

impl Slots {
    fn take(&mut self) -> Result<u64, OutOfMemory> {
        if let Some(slot) = self.free.pop() {
            self.in_use += 1;
            return Ok(slot);
        }
        if self.fresh == SLOTS {
            return Err(OutOfMemory);
        }
        // So that giving it back can never fail.
        self.free.try_reserve(self.fresh as usize + 1).map_err(|_| OutOfMemory)?;
        self.fresh += 1;
        self.in_use += 1;
        Ok(self.fresh - 1)
    }

    fn give(&mut self, slot: u64) {
        self.free.push(slot);
        self.in_use -= 1;
    }
}

impl Stack {
    /// A fresh stack.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let slot = SLOTS_FREE.lock().take()?;
        let stack = Self { slot }; // whatever was mapped goes when this is dropped
        stack.map().ok_or(OutOfMemory)?;
        Ok(stack)
    }

    fn map(&self) -> Option<()> {
        let (frames, table) = (KERNEL.frames.get()?, KERNEL.table.get()?);
        let mut cursor = table.cursor(pages(self.slot)).ok()?;
        cursor.prepare(pages(self.slot)).ok()?;
        for page in pages(self.slot).iter() {
            let frame = frames.alloc(Request::frame().kind(kind::KVA)).ok()?.into_range();
            if cursor.map(page, frame.start(), PageSize::K4, READ_WRITE).is_err() {
                KERNEL.give_back(frame);
                return None;
            }
        }
        Some(())
    }

    /// The usable bytes.
    pub(crate) fn range(&self) -> VirtRange {
        pages(self.slot).addresses()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(table) = KERNEL.table.get() {
            let mut batch = table.batch();
            if let Ok(mut cursor) = table.cursor(pages(self.slot)) {
                // Nothing in this range is part of a larger page: taking it out cannot fail.
                let _ = cursor.take(pages(self.slot), &mut batch, |_, _| Fate::Release);
            }
            batch.finish();
        }
        SLOTS_FREE.lock().give(self.slot);
    }
}

/// Is `addr` in the guard page of a stack?
pub(crate) fn is_guard(addr: VirtAddr) -> bool {
    let Some(offset) = addr.as_u64().checked_sub(layout::KVA) else { return false };
    offset < SLOTS * SLOT_PAGES * PAGE_SIZE && (offset / PAGE_SIZE).is_multiple_of(SLOT_PAGES)
}

/// Stacks in use.
pub(crate) fn in_use() -> u64 {
    SLOTS_FREE.lock().in_use
}

/// Bytes of all stacks in use.
pub(crate) fn bytes_in_use() -> u64 {
    in_use() * STACK_PAGES * PAGE_SIZE
}

/// Gives back what is kept for later stacks, if there are none now.
pub(crate) fn trim() {
    let mut slots = SLOTS_FREE.lock();
    if slots.in_use == 0 {
        slots.free = Vec::new();
        slots.fresh = 0;
    }
}
