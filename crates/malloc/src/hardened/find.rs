//! From a pointer to its block, without trusting the pointer.
#![allow(unsafe_code)] // headers of slabs

use core::sync::atomic::Ordering;

use super::{FAR_HEADER, Found, MARK, Standing, header, large, pattern};
use crate::allocator::Allocator;
use crate::arena::{ARENAS, CELL_BYTES, GRANULE, Ground, LIVE};
use crate::story::Trouble;
use crate::system::{Local, PAGE_BYTES, System};

impl<S: System, L: Local> Allocator<S, L> {
    /// The block that starts at `at`: what its header says, and the bytes from there on that are its own.
    #[inline]
    pub(super) fn find(&self, at: *mut u8) -> Option<(Found, usize)> {
        // A slab's first bytes belong to no block.
        let before = (at as usize).wrapping_sub(FAR_HEADER);
        if before % 16 == 0 && self.window.is_small(before) {
            if let Some(unit) = self.small_unit(at) {
                let found = self.read_header(at)?;
                return Some((
                    found,
                    (unit.class().bytes as usize).saturating_sub(found.lead + MARK),
                ));
            }
        }
        self.find_far(at)
    }

    #[inline(never)]
    fn find_far(&self, at: *mut u8) -> Option<(Found, usize)> {
        if at as usize % 16 != 0 {
            return None;
        }
        if let Some(offset) = self.window.medium_offset((at as usize).wrapping_sub(FAR_HEADER)) {
            // SAFETY: there is a cell for each KiB of the window, and all zero is a valid one.
            let cell = unsafe { &*self.window.cells().wrapping_add(offset / CELL_BYTES) };
            if let (Some(size @ 1..), LIVE) =
                (cell.block_of(offset), cell.state.load(Ordering::Relaxed))
            {
                // Most blocks start so near to their inner block's start.
                if let Some(found) = self.read_header(at).filter(|found| found.lead == FAR_HEADER) {
                    return Some((found, size as usize * GRANULE - FAR_HEADER));
                }
            }
        }
        if !self.is_open_for(at) {
            return None;
        }
        let found = self.read_header(at)?;
        if found.is_fenced() {
            return self.is_fenced(at).then(|| (found, large::capacity(at)));
        }
        // What lies in a slab was found before.
        if self.window.is_small(at as usize) {
            return None;
        }
        let live = found.standing == Standing::Live;
        let inner = if live { self.usable_inner(at.wrapping_sub(found.lead)) } else { 0 };
        Some((found, inner.saturating_sub(found.lead)))
    }

    /// Whether the memory around an address is ours and readable, back to where its header would be.
    fn is_open_for(&self, at: *mut u8) -> bool {
        if self.is_fenced(at) {
            return true;
        }
        let before = at.wrapping_sub(FAR_HEADER);
        if self.window.is_small(at as usize) {
            return self.small_unit(at).is_some() && self.window.is_small(before as usize);
        }
        match (self.window.medium_offset(at as usize), self.window.medium_offset(before as usize)) {
            (Some(offset), Some(_)) => self.is_committed(offset),
            _ => false,
        }
    }

    fn is_committed(&self, offset: usize) -> bool {
        let bytes = self.window.medium_bytes() / ARENAS;
        let ground = Ground::enter(&self.window, &self.system, offset / bytes);
        offset % bytes < ground.stats().bytes && offset % bytes >= FAR_HEADER
    }

    /// The slab of an address in the small window, if it is one.
    fn small_unit(&self, at: *mut u8) -> Option<&crate::unit::Unit> {
        // SAFETY: *every-header-readable*.
        let unit = unsafe { &*self.window.unit_of(at as usize) };
        let owned = !unit.owner.load(Ordering::Relaxed).is_null();
        (owned && self.window.is_small(at as usize)).then_some(unit)
    }

    /// `at` was given to us as a live block, and is none: finds out what it is, and stops the program.
    #[cold]
    pub(super) fn accuse(&self, at: *mut u8, what: Trouble) -> ! {
        if let Some((found, _)) = self.find(at) {
            self.tell(what, at, at, &found);
        }
        if let Some(found) = self.fences.remembered(&self.system, at as usize) {
            self.tell(what, at, at, &found);
        }
        let story = self
            .around(at)
            .map(|(block, found)| found.story((at as isize).wrapping_sub(block as isize)));
        // A block whose seal is broken was written before.
        let trouble =
            if story.is_none() && self.starts_a_block(at) { Trouble::Before } else { what };
        self.stop(&crate::Stop::Trouble(trouble, at as usize, story))
    }

    /// The nearest block that starts before `at` (or a little behind) and reaches it, by its seal.
    fn around(&self, at: *mut u8) -> Option<(*mut u8, Found)> {
        let fenced = self.fences.around(at as usize);
        if let Some(block) = fenced {
            let block = at.wrapping_sub((at as usize).wrapping_sub(block));
            return self.read_header(block).map(|found| (block, found));
        }
        let top = (at as usize).next_multiple_of(16) + 4 * FAR_HEADER;
        for back in 0..(PAGE_BYTES * 36 / 16) {
            let block = at.wrapping_add(top - at as usize).wrapping_sub(back * 16);
            if !self.is_open_for(block) {
                if back > 16 {
                    return None;
                }
                continue;
            }
            if let Some(found) = self.read_header(block) {
                let distance = (at as isize).wrapping_sub(block as isize);
                let reach = (found.bytes + pattern::tail(found.bytes)) as isize;
                let before = found.lead.max(FAR_HEADER) as isize;
                if distance < reach && distance >= -before {
                    return Some((block, found));
                }
                if distance >= 0 {
                    return None;
                }
            }
        }
        None
    }

    /// Whether an inner block starts where the one of `at` would.
    fn starts_a_block(&self, at: *mut u8) -> bool {
        if self.is_fenced(at) {
            return true;
        }
        if let Some(unit) = self.small_unit(at) {
            return unit.holds(self.distance(unit, at));
        }
        let inner = header(at).cast::<u8>();
        let Some(offset) = self.window.medium_offset(inner as usize) else { return false };
        let bytes = self.window.medium_bytes() / ARENAS;
        if offset % GRANULE != 0 || offset % bytes % CELL_BYTES == usize::MAX {
            return false;
        }
        let ground = Ground::enter(&self.window, &self.system, offset / bytes);
        let granule = (offset % bytes / GRANULE) as u32;
        ground.cell(granule).block_at(granule).is_some()
    }
}
