//! An allocator on the host, with a frame table whose memory starts out as garbage.
#![allow(unsafe_code)] // hands raw memory to the allocator

use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::alloc::{Layout, alloc, dealloc};
use std::vec::Vec;

use pagoda_addr::{Frame, FrameRange, PhysAddr, PhysMap};
use pagoda_sync::host::ThreadRanks;
use pagoda_sync::{CpuId, Cpus, Ranked, RawSpin, rank};

use crate::entry::{MORE, ODD, others};
use crate::places::{CHUNK, CHUNK_SHIFT};
use crate::shim::Ordering::Relaxed;
use crate::{FrameAllocator, FrameInfo, Setup, backing, required};

/// Memory that is given back at the end.
pub(crate) struct Raw {
    pub(crate) start: NonNull<u8>,
    layout: Layout,
}

impl Raw {
    pub(crate) fn new(layout: Layout) -> Self {
        let layout = Layout::from_size_align(layout.size().max(1), layout.align()).unwrap();
        // SAFETY: not empty.
        let start = NonNull::new(unsafe { alloc(layout) }).expect("host memory");
        Self { start, layout }
    }
}

// SAFETY: bytes that whoever holds pieces of them keeps apart.
unsafe impl Send for Raw {}
// SAFETY: as for `Send`.
unsafe impl Sync for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: from `alloc` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Memory for the lowest frames only.
pub(crate) struct Arena {
    first: u64,
    memory: Raw,
}

// SAFETY: tests ask only for frames that the arena has, which is memory of its own.
unsafe impl PhysMap for Arena {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        let offset = addr.as_u64() - self.first;
        assert!(offset < self.memory.layout.size() as u64);
        self.memory.start.as_ptr().wrapping_add(offset as usize)
    }
}

/// What the allocator stands on; lives longer than it.
pub(crate) struct Ground {
    pub(crate) ranges: Vec<FrameRange>,
    storage: Raw,
    table: Option<Raw>,
    table_base: Option<NonNull<FrameInfo>>,
}

/// Panics when one of the allocator's locks is taken inside another.
type Lock = Ranked<RawSpin, ThreadRanks, { rank::FRAMES }>;

pub(crate) type Frames<'g, C = Turns> = FrameAllocator<'g, C, Arena, Lock>;

/// Four CPUs that one thread plays in turns.
#[derive(Default)]
pub(crate) struct Turns(pub(crate) Cell<usize>);

impl Turns {
    pub(crate) const LIMIT: usize = 4;
}

// SAFETY: not `Sync`, so one thread only, which switches between calls.
unsafe impl Cpus for Turns {
    fn limit(&self) -> usize {
        Self::LIMIT
    }
    fn enter(&self) -> CpuId {
        CpuId::new(self.0.get()).unwrap()
    }
    unsafe fn leave(&self) {}
}

pub(crate) fn frame(number: u64) -> Frame {
    Frame::from_number(number)
}

pub(crate) fn frames(start: u64, count: u64) -> FrameRange {
    FrameRange::new(frame(start), count).unwrap()
}

impl Ground {
    /// For [`Turns`].
    pub(crate) fn new(ranges: &[(u64, u64)], with_table: bool) -> Self {
        Self::with_cpus(ranges, with_table, Turns::LIMIT)
    }

    pub(crate) fn with_cpus(ranges: &[(u64, u64)], with_table: bool, cpus: usize) -> Self {
        let ranges: Vec<_> = ranges.iter().map(|&(start, count)| frames(start, count)).collect();
        let storage = Raw::new(required(&ranges, cpus).unwrap());
        // Only what is backed exists: the base lies far below it.
        let parts: Vec<_> = backing(&ranges).collect();
        let (first, last) = (parts[0], parts[parts.len() - 1]);
        let bytes = (last.0 + last.1 - first.0) as usize;
        let table = with_table.then(|| Raw::new(Layout::from_size_align(bytes, 64).unwrap()));
        let mut table_base = None;
        if let Some(raw) = &table {
            for (offset, len) in parts {
                let start = raw.start.as_ptr().wrapping_add((offset - first.0) as usize);
                // Of huge tables only the ends: the rest is whatever the host gave us.
                let end = (len as usize).min(1 << 20);
                // SAFETY: inside the memory made above.
                unsafe {
                    start.write_bytes(0xa5, end);
                    start.wrapping_add(len as usize - end).write_bytes(0xa5, end);
                }
            }
            table_base = NonNull::new(raw.start.as_ptr().wrapping_sub(first.0 as usize).cast());
        }
        Self { ranges, storage, table, table_base }
    }

    pub(crate) fn allocator(&mut self, reserve: u64, arena_frames: usize) -> Frames<'_> {
        self.allocator_for(Turns::default(), reserve, arena_frames)
    }

    pub(crate) fn allocator_for<C: Cpus>(
        &mut self,
        cpus: C,
        reserve: u64,
        arena_frames: usize,
    ) -> Frames<'_, C> {
        let arena = Layout::from_size_align(arena_frames * 4096, 4096).unwrap();
        let first = self.ranges[0].start().start().as_u64();
        let arena = Arena { first, memory: Raw::new(arena) };
        // SAFETY: all of the arena.
        unsafe { arena.memory.start.as_ptr().write_bytes(0x77, arena_frames * 4096) };
        // SAFETY: the storage is ours, and borrowed as long as `self` is.
        let storage = unsafe {
            let start = self.storage.start.as_ptr().cast::<MaybeUninit<u8>>();
            core::slice::from_raw_parts_mut(start, self.storage.layout.size())
        };
        let end = storage.len().min(if cfg!(miri) { 256 } else { 1 << 20 });
        storage[..end].fill(MaybeUninit::new(0x5a));
        assert_eq!(self.table.is_some(), self.table_base.is_some());
        let setup = Setup { ranges: &self.ranges, storage, table: self.table_base, reserve };
        // SAFETY: frames are only numbers here, and the table's parts were made by `new`.
        unsafe { FrameAllocator::new(setup, cpus, arena) }.unwrap()
    }
}

/// What tests do to the insides.
impl<C: Cpus, M, R: lock_api::RawMutex> FrameAllocator<'_, C, M, R> {
    /// Makes the bitmap say that owned frames are free.
    pub(crate) fn corrupt_for_test(&self, range: FrameRange) {
        let mut core = self.core.lock();
        let index = core.directory.index(range.start().number()).unwrap_or(0);
        core.give(index, range.count() as usize);
    }

    /// As a CPU sees it that has not heard of a free yet.
    pub(crate) fn own_again_for_test(&self, frame: Frame) {
        self.table.own_cached(frame.number(), crate::Kind(0)).unwrap_or(());
    }

    /// Has this CPU anything in its magazine?
    pub(crate) fn has_stock(&self) -> bool {
        self.caches.stocks[self.cpus.pin().cpu().index()].count() > 0
    }

    /// Was this CPU asked to drain?
    pub(crate) fn is_asked(&self) -> bool {
        self.caches.stocks[self.cpus.pin().cpu().index()].wanted.load(Relaxed)
            == crate::magazine::ASKED
    }

    pub(crate) fn audit(&self) {
        self.core.lock().audit();
        self.audit_table();
    }

    /// *clean*: only open heads, and what follows an odd one, say more than their state.
    fn audit_table(&self) {
        if !self.table.is_present() || cfg!(miri) {
            return;
        }
        let directory = self.table.directory();
        for (word, marks) in directory.marks().iter().enumerate() {
            let started = marks.started.load(Relaxed);
            for chunk in (0..64).filter(|bit| started >> bit & 1 != 0).map(|bit| word * 64 + bit) {
                let first = directory.frame(chunk << CHUNK_SHIFT);
                let mut odd = first > 0 && self.is_odd(first - 1);
                for number in first..first + CHUNK as u64 {
                    let Some(entry) = self.table.entry(number) else { break };
                    if entry.state().load(Relaxed) & MORE == 0 {
                        let cells = [entry.traits(), entry.maps()].map(|cell| cell.load(Relaxed));
                        assert_eq!(cells, [0, 0], "traits and maps of frame {number:#x}");
                        assert_eq!(entry.link().load(Relaxed) != 0, odd, "link of {number:#x}");
                    }
                    odd = self.is_odd(number);
                }
            }
        }
    }

    fn is_odd(&self, number: u64) -> bool {
        self.table.entry(number).is_some_and(|entry| {
            entry.state().load(Relaxed) & MORE != 0 && entry.traits().load(Relaxed) & ODD != 0
        })
    }

    /// The head of an allocation has so many owners.
    pub(crate) fn set_owners(&self, frame: Frame, owners: u32) {
        let Some(entry) = self.table.entry(frame.number()) else { return };
        let state = entry.state().load(Relaxed);
        entry.state().store(state - others(state) + owners - 1, Relaxed);
    }
}
