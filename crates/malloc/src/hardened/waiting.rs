//! Mappings of large blocks that were freed: hidden, until a block of the same length is wanted.
//!
//! A program that takes and returns large blocks again and again would pay for each page each time. What
//! waits can neither be read nor written, as if it were gone; the one that waits longest is used first.
//! How much may wait is learnt ([`crate::regret`]).
#![allow(unsafe_code)] // a list in the table's last page, and mappings

use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::large::Fences;
use crate::allocator::Allocator;
use crate::regret::Regret;
use crate::system::{Local, PAGE_BYTES, System};

/// So many wait at most.
const PLACES: usize = PAGE_BYTES / size_of::<Hidden>();
/// So many pages wait at most.
const PAGES: u32 = (8 << 20) / PAGE_BYTES as u32;

/// A mapping that ends with a page that always faults.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Hidden {
    /// Where it starts.
    pub mapping: usize,
    /// Its bytes.
    pub reserved: usize,
    /// Bytes that were open before that last page.
    pub open: usize,
}

impl Hidden {
    const NONE: Self = Self { mapping: 0, reserved: 0, open: 0 };

    fn pages(&self) -> u32 {
        u32::try_from(self.open / PAGE_BYTES).unwrap_or(u32::MAX)
    }

    fn start(&self) -> Option<NonNull<u8>> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(self.mapping))
    }

    /// The first of the bytes that were open.
    fn first(&self) -> Option<NonNull<u8>> {
        let first = self.mapping + self.reserved - PAGE_BYTES - self.open;
        NonNull::new(core::ptr::with_exposed_provenance_mut(first))
    }
}

/// How many wait; guarded by the table's lock.
pub struct Waiting {
    count: Cell<usize>,
    pages: Cell<u32>,
    regret: Regret,
}

// SAFETY: only touched under the lock.
unsafe impl Sync for Waiting {}

impl Waiting {
    pub const fn new() -> Self {
        Self { count: Cell::new(0), pages: Cell::new(0), regret: Regret::new() }
    }
}

impl Fences {
    /// Takes out the first that fits; those behind it move up.
    fn extract(&self, fits: impl Fn(&Hidden) -> bool) -> Option<Hidden> {
        let count = self.waiting.count.get();
        let place = |index| self.hidden(index).map_or(Hidden::NONE, Cell::get);
        let found = (0..count).find(|&index| fits(&place(index)))?;
        let taken = place(found);
        for index in found + 1..count {
            if let Some(before) = self.hidden(index - 1) {
                before.set(place(index));
            }
        }
        self.waiting.count.set(count - 1);
        self.waiting.pages.set(self.waiting.pages.get() - taken.pages());
        Some(taken)
    }

    /// Takes one out for which there is no room, if `new` more pages are to wait.
    fn excess<S: System>(&self, system: &S, new: u32) -> Option<Hidden> {
        let _held = self.lock.take(system);
        let Waiting { count, pages, regret } = &self.waiting;
        if count.get() < PLACES && pages.get().saturating_add(new) <= regret.extra(PAGES) {
            return None;
        }
        let oldest = self.extract(|_| true)?;
        self.waiting.regret.gives(oldest.pages());
        Some(oldest)
    }

    /// Whether so many pages may wait. If not, they are gone.
    fn admits<S: System>(&self, system: &S, pages: u32) -> bool {
        let _held = self.lock.take(system);
        let admitted = pages <= self.waiting.regret.extra(PAGES);
        if !admitted {
            self.waiting.regret.gives(pages);
        }
        admitted
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    fn end(&self, hidden: Hidden) {
        self.large.bytes.fetch_sub(hidden.open, Ordering::Relaxed);
        self.large.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(start) = hidden.start() {
            // SAFETY: the mapping is ours, and nobody uses it.
            unsafe { self.system.unmap(start, hidden.reserved) };
        }
    }

    /// A block's mapping is no longer used: it waits, or is gone.
    pub(super) fn retire_mapping(&self, mapping: Hidden) {
        let pages = mapping.pages();
        if !self.fences.admits(&self.system, pages) {
            return self.end(mapping);
        }
        // SAFETY: the range was committed; the block in it is freed.
        if !mapping.first().is_some_and(|first| unsafe { self.system.hide(first, mapping.open) }) {
            return self.end(mapping);
        }
        while let Some(oldest) = self.fences.excess(&self.system, pages) {
            self.end(oldest);
        }
        let held = self.fences.lock.take(&self.system);
        let waiting = &self.fences.waiting;
        let count = waiting.count.get();
        // Others may have come meanwhile.
        let place = (count < PLACES).then(|| self.fences.hidden(count)).flatten();
        if let Some(place) = place {
            place.set(mapping);
            waiting.count.set(count + 1);
            waiting.pages.set(waiting.pages.get() + pages);
        }
        drop(held);
        if place.is_none() {
            self.end(mapping);
        }
    }

    /// A mapping of this length with so many open bytes, which hold anything. Nothing: there is none.
    pub(super) fn recall_mapping(&self, reserved: usize, open: usize) -> Option<Hidden> {
        let held = self.fences.lock.take(&self.system);
        let found =
            self.fences.extract(|hidden| hidden.reserved == reserved && hidden.open == open);
        if found.is_none() {
            self.fences.waiting.regret.taken((open / PAGE_BYTES) as u32);
        }
        drop(held);
        let found = found?;
        // SAFETY: the range was hidden by us.
        if unsafe { self.system.show(found.first()?, open) } {
            return Some(found);
        }
        self.end(found);
        None
    }

    /// Ends all mappings that wait.
    pub(crate) fn dismiss_mappings(&self) {
        loop {
            let held = self.fences.lock.take(&self.system);
            let hidden = self.fences.extract(|_| true);
            drop(held);
            match hidden {
                Some(hidden) => self.end(hidden),
                None => return,
            }
        }
    }
}
