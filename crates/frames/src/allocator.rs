//! The allocator that a kernel holds: the core behind a lock, the frame table beside it, and the
//! caches of the CPUs in front (`caches.rs`). Here stands what comes out of the core directly; what
//! goes back is in `giving.rs`.
//!
//! Lock order: the locks have the rank that the host gives them (`pagoda_sync::rank::FRAMES`) and
//! are never held together. While the core's is held, only the core and the table are called; frames
//! are zeroed after it was let go.
#![allow(unsafe_code)] // the constructor trusts the caller

use core::alloc::Layout;
use core::fmt;
use core::mem::{self, MaybeUninit};
use core::ptr::NonNull;

use lock_api::{Mutex, RawMutex};
use pagoda_addr::{Frame, FrameRange, PAGE_SHIFT, PhysMap};
use pagoda_sync::Cpus;

use crate::bitmap::Core;
use crate::caches::Caches;
use crate::entry::FrameInfo;
use crate::magazine::Stock;
use crate::nodes::Area;
use crate::places::{Places, Plan};
use crate::runs::Run;
use crate::search::Window;
use crate::shim::{AtomicU32, AtomicU64, Ordering};
use crate::table::FrameTable;
use crate::{AllocError, Class, Kind, Mobility, Node, OwnedFrames, Request, SetupError, Zone};

/// Bytes of metadata storage that an allocator for these ranges and this many CPUs
/// ([`Cpus::limit`]) needs. The ranges are sorted and disjoint.
///
/// # Errors
/// What [`FrameAllocator::new`] would complain about too.
pub fn required(ranges: &[FrameRange], cpus: usize) -> Result<Layout, SetupError> {
    Plan::new(ranges, cpus)?.layout()
}

/// What [`FrameAllocator::new`] starts from.
#[derive(Debug)]
pub struct Setup<'a, 'm> {
    /// The free memory, sorted and disjoint. Copied; none of it is touched.
    pub ranges: &'a [FrameRange],
    /// As much as [`required`] says, so aligned; its content does not matter.
    pub storage: &'m mut [MaybeUninit<u8>],
    /// The frame table's array, 16 bytes for each frame from frame 0 on. None: no table; ownership is then
    /// checked by the bitmap alone, which sees a second free of a single frame only when the
    /// caches drain.
    pub table: Option<NonNull<FrameInfo>>,
    /// Frames that only [`Class::Reserve`] may have.
    pub reserve: u64,
}

/// The physical frame allocator. See the crate's head.
pub struct FrameAllocator<'m, C, M, R> {
    pub(crate) core: Mutex<R, Core<'m>>,
    pub(crate) caches: Caches<'m, R>,
    pub(crate) table: FrameTable<'m>,
    /// Where each zone is.
    pub(crate) zones: [Window; Zone::ALL.len()],
    pub(crate) reserve: AtomicU64,
    pub(crate) low: AtomicU64,
    pub(crate) high: AtomicU64,
    /// Not 0: freed frames are filled with a pattern.
    pub(crate) poison: AtomicU32,
    pub(crate) cpus: C,
    map: M,
}

impl<'m, C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'m, C, M, R> {
    /// An allocator for which every frame of `setup.ranges` is free.
    ///
    /// # Safety
    /// - The frames of `setup.ranges` are RAM that nobody else uses, managed memory in the sense of
    ///   `map`'s contract.
    /// - Of the array at `setup.table`, the parts that [`backing`](crate::backing) names for these
    ///   ranges are mapped, writable, used by nobody else, and stay so for `'m`. Their content does
    ///   not matter.
    /// - Without a table, [`OwnedFrames`] only ever go back to the allocator that they came from.
    ///
    /// # Errors
    /// [`SetupError`]: ranges that are not sorted, or too little storage.
    pub unsafe fn new(setup: Setup<'_, 'm>, cpus: C, map: M) -> Result<Self, SetupError> {
        let mut places = Places::carve(setup.ranges, cpus.limit(), setup.storage)?;
        let batches = mem::take(&mut places.batches);
        let highest = setup.ranges.iter().map(|range| range.end_number() - 1).max().unwrap_or(0);
        let directory = places.directory;
        let caches = Caches::new(places.stocks, batches, highest, directory.near());
        let table = FrameTable::new(setup.table, directory);
        let core = Core::new(places);
        let mut start = 0;
        let zones = Zone::ALL.map(|zone| {
            let end = directory.index_from(zone.end());
            Window::new(mem::replace(&mut start, end), end)
        });
        let reserve = AtomicU64::new(setup.reserve);
        Ok(Self {
            core: Mutex::new(core),
            caches,
            table,
            zones,
            reserve,
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
            poison: AtomicU32::new(0),
            cpus,
            map,
        })
    }

    /// The frame table.
    #[inline]
    pub fn table(&self) -> &FrameTable<'m> {
        &self.table
    }

    /// The host's CPUs.
    #[inline]
    pub fn cpus(&self) -> &C {
        &self.cpus
    }

    /// The host's way to memory.
    #[inline]
    pub fn map(&self) -> &M {
        &self.map
    }

    /// From now on, leave this many frames to [`Class::Reserve`].
    pub fn set_reserve(&self, frames: u64) {
        self.reserve.store(frames, Ordering::Relaxed);
    }

    /// Frames as `request` says.
    ///
    /// # Errors
    /// [`AllocError`]; nothing has changed then.
    // Always inline: the request then never exists in memory, where it would cost more than the rest.
    #[inline(always)]
    pub fn alloc(&self, request: Request) -> Result<OwnedFrames, AllocError> {
        if request.is_single() && !request.zeroed {
            return self.alloc_single(request.kind, request.class, request.mobility);
        }
        if request.is_single() {
            return self.alloc_clean(request.kind, request.class, request.mobility);
        }
        self.alloc_several(request)
    }

    #[inline(never)]
    fn alloc_several(&self, request: Request) -> Result<OwnedFrames, AllocError> {
        let owned = match request.large() {
            Some(order) => self.alloc_large(order, &request)?,
            None => self.alloc_shared(&request)?,
        };
        if request.zeroed {
            self.zero(owned.range());
        }
        Ok(owned)
    }

    /// As many allocations, each as `request` says, as `into` has empty places for and memory has
    /// room for; returns how many were made.
    ///
    /// # Errors
    /// The reason why there were not more; those that were made stay in `into`.
    pub fn alloc_bulk(
        &self,
        request: Request,
        into: &mut [Option<OwnedFrames>],
    ) -> (usize, Result<(), AllocError>) {
        let mut made = 0;
        for slot in into.iter_mut().filter(|slot| slot.is_none()) {
            match self.alloc(request) {
                Ok(owned) => *slot = Some(owned),
                Err(error) => return (made, Err(error)),
            }
            made += 1;
        }
        (made, Ok(()))
    }

    /// Exactly the frames of `range`, whatever the reserve.
    ///
    /// # Errors
    /// [`AllocError::NotManaged`] or [`AllocError::Busy`] with the first frame that is not to be
    /// had.
    pub fn alloc_at(&self, range: FrameRange, kind: Kind) -> Result<OwnedFrames, AllocError> {
        if range.is_empty() || range.count() > u64::from(u32::MAX) {
            return Err(AllocError::BadRequest);
        }
        match self.take_at(range, kind) {
            Err(error @ AllocError::Busy(_)) => {
                self.retry(&self.cpus.pin(), error, || self.take_at(range, kind))
            }
            done => done,
        }
    }

    fn take_at(&self, range: FrameRange, kind: Kind) -> Result<OwnedFrames, AllocError> {
        let mut core = self.core.lock();
        if let Some(frame) = core.directory.first_foreign(range) {
            return Err(AllocError::NotManaged(frame));
        }
        let first = range.start();
        let index = core.directory.index(first.number()).ok_or(AllocError::NotManaged(first))?;
        if let Some(busy) = core.first_other(index, index + range.count() as usize, true) {
            return Err(AllocError::Busy(frame_at(&core, busy)));
        }
        core.take(index, range.count() as usize, Mobility::Unmovable);
        self.claim(range, kind)
    }

    /// Frames that were just taken from the core get an owner.
    #[inline]
    fn claim(&self, range: FrameRange, kind: Kind) -> Result<OwnedFrames, AllocError> {
        let claimed = self.table.claim(range, FrameTable::traits(kind, 0));
        claimed.and_then(|()| self.check_poison(range)).map_err(AllocError::Corrupt)?;
        Ok(OwnedFrames::new(range))
    }

    pub(crate) fn take(
        &self,
        core: &mut Core<'m>,
        request: &Request,
    ) -> Result<OwnedFrames, AllocError> {
        let Request { count, align, boundary, .. } = *request;
        let crossing = boundary.is_some_and(|boundary| boundary.count() < count);
        if count == 0 || count > u64::from(u32::MAX) || crossing {
            return Err(AllocError::BadRequest);
        }
        let left = core.free_frames().checked_sub(count).ok_or(AllocError::NoMemory)?;
        if request.class == Class::Normal && left < self.reserve.load(Ordering::Relaxed) {
            return Err(AllocError::Reserved);
        }
        let run = Run { count, align, boundary };
        if self.caches.failing.now() {
            return Err(AllocError::Fragmented);
        }
        let index = self.find(core, &run, request).ok_or(AllocError::Fragmented)?;
        let range = FrameRange::new(frame_at(core, index), count).ok_or(AllocError::Fragmented)?;
        core.take(index, count as usize, request.mobility);
        self.claim(range, request.kind)
    }

    /// An aligned block of at least 2 MiB, wherever.
    fn alloc_large(&self, order: u8, request: &Request) -> Result<OwnedFrames, AllocError> {
        let Request { kind, class, mobility, .. } = *request;
        let count = 1 << order;
        let here = self.here();
        let mut core = self.core.lock();
        let kept = if class == Class::Normal { self.reserve.load(Ordering::Relaxed) } else { 0 };
        if core.free_frames() >= kept.saturating_add(count) && !self.caches.failing.now() {
            let take = |area: Area| core.take_large(order, &area.window, mobility);
            if let Some(index) = self.caches.nodes.in_order(&self.zones, here, take) {
                let range = FrameRange::new(frame_at(&core, index), count).unwrap_or_default();
                return self.claim(range, kind);
            }
        }
        drop(core);
        self.alloc_shared(request)
    }

    /// Node by node in order of distance, zone by zone from the top, at last across their borders.
    fn find(&self, core: &Core<'m>, run: &Run, request: &Request) -> Option<usize> {
        let limit = match request.below {
            Some(below) => core.directory.index_from(below.as_u64() >> PAGE_SHIFT),
            None => core.end(),
        };
        let nodes = &self.caches.nodes;
        let wanted = request.node.unwrap_or_else(|| self.here());
        let mut areas = 0;
        let found = nodes.in_order(&self.zones, wanted, |area| {
            let window = area.window.below(limit);
            if window.is_empty() || request.only && area.node != wanted {
                return None;
            }
            areas += 1;
            core.find_run(run, window, request.mobility)
        });
        if found.is_some() || run.count == 1 || areas < 2 || request.only {
            return found;
        }
        core.find_run(run, Window::new(0, limit), request.mobility)
    }

    /// The node of the CPU that runs this.
    #[inline]
    pub(crate) fn here(&self) -> Node {
        if self.caches.nodes.is_one() {
            return Node(0);
        }
        let pin = self.cpus.pin();
        self.stock(&pin).map_or(Node(0), Stock::node)
    }
}

pub(crate) fn frame_at(core: &Core<'_>, index: usize) -> Frame {
    // Indices stand for frame numbers below 2^40.
    Frame::new(core.directory.frame(index)).unwrap_or_default()
}

impl<C, M, R> fmt::Debug for FrameAllocator<'_, C, M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameAllocator").finish_non_exhaustive()
    }
}
