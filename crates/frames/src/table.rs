//! The frame table: 16 bytes for each frame, the truth about who owns it.
//!
//! One virtual array, 8 KiB for each chunk, that the host backs with memory only where RAM is
//! ([`crate::backing`]); a chunk's part is initialised when an allocation first begins in it, and
//! a bit per chunk says so. An allocation is described by the entry of its first frame, the *head*;
//! *head-truth*: an entry says `HEAD` exactly if an allocation begins there. The entries in between
//! say nothing, so a block of any size is taken, given back or cut in two in O(1).
//!
//! An entry has four cells (`entry.rs`), and they do not stand side by side: of each chunk first come
//! all states, then all traits, and so on. To take and give back single frames nothing but their
//! states is touched: four bytes a frame, 1 MiB for each GiB, which one pair after the other finds in
//! the processor's cache where whole entries would not be.
//!
//! A head knows its length as an order, or, for other lengths than powers of two, in the entry that
//! follows it (there is one: such an allocation has at least three frames).
//!
//! Who writes what: heads are made and unmade under the allocator's lock, or by the CPU that
//! owns the frame. Counts, flags and links may be changed by any CPU that owns a reference.
#![allow(unsafe_code)] // indexes an array that the host backs only in part

use core::ptr::NonNull;

use pagoda_addr::{Frame, FrameRange, Order};

use crate::entry::{
    CACHED, Entry, FEW, FLAGS_SHIFT, FrameInfo, HEAD, KNOWN, LENGTH, MORE, ODD, ORDER_SHIFT, kind,
    others, place, plain, single,
};
use crate::places::{CHUNK, CHUNK_SHIFT, ChunkBit, Directory, GIG_CHUNKS, GIG_SHIFT};
use crate::shim::{AtomicU32, Ordering::*};
use crate::{Allocation, Corruption, FreeError, Kind};

/// One [`FrameInfo`] for each frame of managed memory.
#[derive(Debug)]
pub struct FrameTable<'m> {
    /// The first cell.
    base: Option<NonNull<AtomicU32>>,
    directory: Directory<'m>,
}

// SAFETY: the array behind `base` is given to the table alone (`FrameAllocator::new`), and its
// entries are atomics.
unsafe impl Send for FrameTable<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for FrameTable<'_> {}

impl<'m> FrameTable<'m> {
    pub(crate) fn new(base: Option<NonNull<FrameInfo>>, directory: Directory<'m>) -> Self {
        Self { base: base.map(NonNull::cast), directory }
    }

    pub(crate) fn directory(&self) -> Directory<'m> {
        self.directory
    }

    /// Is there a table at all?
    #[inline]
    pub fn is_present(&self) -> bool {
        self.base.is_some()
    }

    /// The entry of a frame, if there is one and it is initialised.
    #[inline]
    pub(crate) fn entry(&self, frame: u64) -> Option<Entry<'_>> {
        self.entry_at(self.directory.bit(frame), frame)
    }

    /// As [`entry`](Self::entry), of a frame whose chunk was looked up already.
    #[inline]
    fn entry_at(&self, chunk: ChunkBit<'_>, frame: u64) -> Option<Entry<'_>> {
        let base = self.base?;
        if !chunk.is_started() {
            return None;
        }
        // SAFETY: the chunk's bit says that its entries were written once (*started*), which
        // happens only for chunks with managed memory, whose part of the array the host backs.
        Some(unsafe { Entry::new(base, frame) })
    }

    /// Like [`entry`](Self::entry), initialising the chunk's entries before. Only under the
    /// allocator's lock, and only for managed frames.
    #[inline]
    fn start(&self, frame: u64) -> Option<Entry<'_>> {
        match self.entry(frame) {
            Some(entry) => Some(entry),
            None => self.start_chunk(frame),
        }
    }

    #[cold]
    fn start_chunk(&self, frame: u64) -> Option<Entry<'_>> {
        let base = self.base?;
        self.directory.index(frame)?;
        let chunk = frame as usize & !(CHUNK - 1);
        let first = base.cast::<FrameInfo>().as_ptr().wrapping_add(chunk);
        // SAFETY: the chunk has managed memory, so the host backs its entries; nobody reads them
        // before the bit below is set, and the lock keeps others from initialising too.
        unsafe { start(first.cast()) };
        self.directory.bit(frame).set_started();
        self.entry(frame)
    }

    /// Frames of the allocation whose head has these traits; 0 when it is gone meanwhile.
    #[inline]
    fn length(&self, frame: u64, traits: u32) -> u64 {
        if traits & ODD == 0 {
            return 1 << ((traits >> ORDER_SHIFT) & 31);
        }
        // An odd allocation reaches beyond the entry that follows.
        self.entry(frame + 1).map_or(1, |next| u64::from(next.link().load(Acquire)))
    }

    /// Makes `range` an allocation. Only by whoever has just taken the frames from the core (under
    /// its lock), or cuts an allocation that it owns.
    #[inline]
    pub(crate) fn claim(&self, range: FrameRange, traits: u32) -> Result<(), Corruption> {
        if self.base.is_none() {
            return Ok(());
        }
        let frame = range.start();
        let Some(head) = self.start(frame.number()) else { return Ok(()) };
        if head.state().load(Relaxed) & (HEAD | CACHED) != 0 {
            return Err(Corruption::HandedOutTwice { frame });
        }
        let traits = traits | self.put_length(range);
        let kind = Kind(traits as u8);
        let is_plain = traits == u32::from(kind.0);
        if !is_plain {
            head.traits().store(KNOWN | traits, Relaxed);
        }
        head.state().store(if is_plain { plain(kind) } else { HEAD | MORE }, Release);
        Ok(())
    }

    fn put_length(&self, range: FrameRange) -> u32 {
        let count = range.count();
        if count.is_power_of_two() {
            return count.trailing_zeros() << ORDER_SHIFT;
        }
        if let Some(next) = self.start(range.start().number() + 1) {
            next.link().store(count as u32, Relaxed);
        }
        ODD
    }

    /// A head with nothing more to say: *clean* again. By its last owner.
    #[cold]
    fn close(&self, frame: u64, head: Entry<'_>) {
        let traits = head.traits().load(Relaxed);
        head.traits().store(0, Relaxed);
        head.link().store(0, Relaxed);
        self.forget_length(frame, traits);
    }

    /// What stood in the entry that follows an odd allocation's head.
    fn forget_length(&self, frame: u64, traits: u32) {
        if let Some(next) = self.entry(frame + 1).filter(|_| traits & ODD != 0) {
            next.link().store(0, Release);
        }
    }

    /// Makes a plain head again of one that says more, if it is one frame and has one owner, the
    /// caller, and no mapping; false if it is not, or is plain.
    pub(crate) fn settle(&self, frame: Frame) -> bool {
        let Some(head) = self.entry(frame.number()) else { return false };
        let more = head.state().load(Acquire) & MORE != 0;
        let Some(block) = self.begins(frame).filter(|_| more) else { return false };
        let settled = block.range.count() == 1 && block.refs == 1 && block.maps == 0;
        if settled {
            self.close(frame.number(), head);
            head.state().store(plain(block.kind), Release);
        }
        settled
    }

    /// Frames of one word (`base` and up, by set bits) that were just taken from the core go to a
    /// magazine; those that may not are cleared from `bits`. Under the core's lock.
    pub(crate) fn cache_free(&self, base: u64, bits: &mut u64) -> Result<(), Corruption> {
        let mut found = Ok(());
        let mut rest = *bits;
        if self.base.is_none() || self.start(base).is_none() {
            return found;
        }
        self.touch(base);
        while rest != 0 {
            let number = base + u64::from(rest.trailing_zeros());
            rest &= rest - 1;
            let entry = self.started_entry(number);
            let free =
                entry.map(|entry| entry.state().compare_exchange(0, CACHED, Relaxed, Relaxed));
            if !matches!(free, Some(Ok(_))) {
                *bits &= !(1 << (number - base));
                found = Err(Corruption::HandedOutTwice {
                    frame: Frame::new(number).unwrap_or_default(),
                });
            }
        }
        found
    }

    /// Looks at the states of a word's frames, which are started, so that those that are far away
    /// come all at once: a compare-and-swap waits for its own.
    fn touch(&self, base: u64) {
        let mut sum = 0;
        for line in (base..base + 64).step_by(16) {
            sum |= self.started_entry(line).map_or(0, |entry| entry.state().load(Relaxed));
        }
        core::hint::black_box(sum);
    }

    /// The entry of a frame that came out of a magazine, or whose chunk is known to be started.
    /// *cached-started*: a frame gets into a magazine only by way of its entry.
    #[inline]
    fn started_entry(&self, number: u64) -> Option<Entry<'_>> {
        // SAFETY: see above; an initialised entry stays one.
        self.base.map(|base| unsafe { Entry::new(base, number) })
    }

    /// Frames of one word (`base` and up, by set bits) leave the magazines for the core; those that
    /// may not are cleared from `bits`. Under the core's lock.
    pub(crate) fn uncache(&self, base: u64, bits: &mut u64) -> Result<(), Corruption> {
        let mut found = Ok(());
        let mut rest = if self.base.is_some() { *bits } else { 0 };
        while rest != 0 {
            let number = base + u64::from(rest.trailing_zeros());
            rest &= rest - 1;
            let cached = self.started_entry(number);
            let cached = cached.map(|one| one.state().compare_exchange(CACHED, 0, AcqRel, Relaxed));
            if !matches!(cached, Some(Ok(_))) {
                *bits &= !(1 << (number - base));
                let frame = Frame::new(number).unwrap_or_default();
                found = Err(Corruption::CacheDisturbed { frame });
            }
        }
        found
    }

    /// A frame goes from the magazine to an owner, on the CPU of both.
    pub(crate) fn own_cached(&self, number: u64, kind: Kind) -> Result<(), Corruption> {
        if self.try_own_cached(number, kind) {
            return Ok(());
        }
        Err(Corruption::CacheDisturbed { frame: Frame::new(number).unwrap_or_default() })
    }

    /// As [`own_cached`](Self::own_cached); false if the entry does not agree.
    #[inline]
    pub(crate) fn try_own_cached(&self, number: u64, kind: Kind) -> bool {
        let Some(entry) = self.started_entry(number) else { return true };
        if entry.state().load(Relaxed) != CACHED {
            return false;
        }
        entry.state().store(plain(kind), Release);
        true
    }

    /// The entry of a frame that its owner, the only one, may give back: nobody maps it, and it is
    /// not part of a larger allocation, or its head would not be plain. Without a table the caller is believed.
    #[inline]
    pub(crate) fn owned_alone(&self, chunk: ChunkBit<'_>, frame: Frame) -> Option<OwnedEntry<'_>> {
        if self.base.is_none() {
            return Some(OwnedEntry(None));
        }
        let state = self.entry_at(chunk, frame.number())?.state();
        // Acquire: who is the last owner sees what the others did before they left.
        single(state.load(Acquire)).then_some(OwnedEntry(Some(state)))
    }

    /// A plain allocation of one frame with one owner?
    #[inline]
    pub(crate) fn is_single(&self, frame: Frame) -> bool {
        self.entry(frame.number()).is_some_and(|entry| single(entry.state().load(Relaxed)))
    }

    /// Is the frame in a magazine or on its way between them?
    pub(crate) fn is_cached(&self, frame: Frame) -> bool {
        self.entry(frame.number()).is_some_and(|entry| entry.state().load(Relaxed) == CACHED)
    }

    /// The states of a frame's chunk, if they are initialised, and the number of the first.
    #[inline]
    pub(crate) fn chunk(&self, frame: u64) -> Option<(u64, &[AtomicU32])> {
        let first = frame & !(CHUNK as u64 - 1);
        self.entry(first)?;
        let start = self.base?.as_ptr().wrapping_add(place(first, 0));
        // SAFETY: the host backs the entries of whole chunks, and `start_chunk` writes all of them
        // before the chunk's bit is set (*started*), which `entry` has seen.
        Some((first, unsafe { core::slice::from_raw_parts(start, CHUNK) }))
    }

    /// What [`claim`](Self::claim) wants to know besides the range.
    #[inline]
    pub(crate) const fn traits(kind: Kind, flags: u8) -> u32 {
        kind.0 as u32 | ((flags as u32) << FLAGS_SHIFT)
    }

    /// No allocation begins at `frame` any more.
    #[inline]
    pub(crate) fn unclaim(&self, frame: Frame) {
        if let Some(head) = self.entry(frame.number()) {
            if head.state().load(Relaxed) & MORE != 0 {
                self.close(frame.number(), head);
            }
            head.state().store(0, Release);
        }
    }

    /// The allocation that begins at `frame`, if there is one.
    #[inline]
    pub fn begins(&self, frame: Frame) -> Option<Allocation> {
        let head = self.entry(frame.number())?;
        let state = head.state().load(Acquire);
        if state & HEAD == 0 {
            return None;
        }
        let refs = others(state) + 1;
        if state & MORE == 0 {
            let range = FrameRange::single(frame);
            return Some(Allocation { range, kind: kind(state), flags: 0, refs, maps: 0 });
        }
        let traits = head.traits().load(Acquire);
        let count = self.length(frame.number(), traits);
        // Closed meanwhile, or about to be?
        if traits & KNOWN == 0 || count == 0 {
            return None;
        }
        Some(Allocation {
            range: FrameRange::new(frame, count)?,
            kind: Kind(traits as u8),
            flags: (traits >> FLAGS_SHIFT) as u8,
            refs,
            maps: head.maps().load(Relaxed),
        })
    }

    /// The allocation that `frame` is part of, if there is one. O(1) for the head itself and for
    /// frames of aligned blocks; otherwise a walk back over the entries, chunk by chunk.
    pub fn find(&self, frame: Frame) -> Option<Allocation> {
        let covering = |head: Frame| self.begins(head).filter(|block| block.range.contains(frame));
        if let Some(block) = Order::all().find_map(|order| covering(frame.align_down(order))) {
            return Some(block);
        }
        let lowest =
            self.directory.ranges().partition_point(|has| has.end_number() <= frame.number());
        let mut lowest = self.directory.ranges().get(lowest)?.start().number();
        // Ranges that touch may carry one allocation across.
        for range in self.directory.ranges().iter().rev() {
            if range.end_number() == lowest {
                lowest = range.start().number();
            }
        }
        let mut next = frame.number();
        while next > lowest {
            if self.entry(next - 1).is_none() {
                next = (next - 1) & !(CHUNK as u64 - 1);
                continue;
            }
            next -= 1;
            if let Some(block) = self.begins(Frame::new(next)?) {
                return Some(block).filter(|block| block.range.contains(frame));
            }
        }
        None
    }

    /// Calls `each` for every allocation, lowest first. What others allocate or free meanwhile may
    /// or may not be seen. O(allocations + chunks in which one ever began).
    pub fn for_each_allocated(&self, mut each: impl FnMut(Allocation)) {
        for (word, marks) in self.directory.marks().iter().enumerate() {
            let mut bits = marks.started.load(Acquire);
            while bits != 0 {
                let chunk = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let first = self.directory.frame(chunk << CHUNK_SHIFT);
                let mut next = first;
                while next < first + CHUNK as u64 {
                    let block = Frame::new(next).and_then(|frame| self.begins(frame));
                    next += block.map_or(1, |block| block.range.count());
                    if let Some(block) = block {
                        each(block);
                    }
                }
            }
        }
    }

    /// May the allocation that begins at `frame` be given back?
    #[inline]
    pub(crate) fn check_free(&self, frame: Frame) -> Option<Result<Allocation, FreeError>> {
        let block = self.begins(frame)?;
        if block.refs > 1 {
            return Some(Err(FreeError::Shared { frame, refs: block.refs }));
        }
        if block.maps > 0 {
            return Some(Err(FreeError::Mapped { frame, maps: block.maps }));
        }
        Some(Ok(block))
    }

    /// Cuts the allocation at `head` in two, `at` frames from its start. The new one inherits
    /// everything but the link. The caller owns the allocation and holds the allocator's lock.
    pub(crate) fn cut(&self, block: &Allocation, at: u64) -> Result<(), Corruption> {
        let start = block.range.start();
        let (Some(low), Some(middle)) = (FrameRange::new(start, at), start.checked_add(at)) else {
            return Ok(());
        };
        let Some(high) = FrameRange::new(middle, block.range.count() - at) else { return Ok(()) };
        self.claim(high, Self::traits(block.kind, block.flags))?;
        self.inherit(middle, block);
        // The length of a short allocation would stand in the new head: but a part of one or two
        // frames is a power of two.
        self.resize(start, self.put_length(low));
        Ok(())
    }

    /// Makes every frame of the allocation one of its own, which inherits everything but the link.
    /// The caller owns the allocation and holds the allocator's lock.
    pub(crate) fn shatter(&self, block: &Allocation) -> Result<(), Corruption> {
        let traits = Self::traits(block.kind, block.flags);
        for frame in block.range.iter().skip(1) {
            self.claim(FrameRange::single(frame), traits)?;
            self.inherit(frame, block);
        }
        self.resize(block.range.start(), 0);
        Ok(())
    }

    /// As many owners and mappings for the new head as the old one has.
    fn inherit(&self, frame: Frame, block: &Allocation) {
        let Some(entry) = self.entry(frame.number()) else { return };
        if block.maps > 0 || block.refs > FEW {
            entry.open();
            entry.maps().store(block.maps, Relaxed);
        }
        entry.state().fetch_add(block.refs - 1, Relaxed);
    }

    /// Another length for the allocation that begins at `frame` and had several frames; owners may
    /// come and go meanwhile.
    fn resize(&self, frame: Frame, length: u32) {
        let Some(head) = self.entry(frame.number()) else { return };
        let change = |traits: u32| Some(traits & !LENGTH | length);
        let old = head.traits().fetch_update(AcqRel, Relaxed, change).unwrap_or_else(|same| same);
        self.forget_length(frame.number(), old & !length);
    }
}

/// Initialises the entries of a chunk.
///
/// # Safety
/// As many cells as a chunk has are at `first`, and nobody else uses them.
unsafe fn start(first: *mut AtomicU32) {
    for place in 0..CHUNK * (size_of::<FrameInfo>() / size_of::<AtomicU32>()) {
        // SAFETY: this function's contract.
        unsafe { first.add(place).write(AtomicU32::new(0)) };
    }
}

/// What [`FrameTable::owned_alone`] found.
pub(crate) struct OwnedEntry<'t>(Option<&'t AtomicU32>);

impl OwnedEntry<'_> {
    /// The frame goes to the magazine of the CPU that looked.
    #[inline]
    pub(crate) fn cache(&self) {
        if let Some(state) = self.0 {
            state.store(CACHED, Release);
        }
    }
}

const _: () = assert!(GIG_CHUNKS << CHUNK_SHIFT == 1 << GIG_SHIFT);
