//! The frame table: 16 bytes for each frame, the truth about who owns it.
//!
//! One virtual array, indexed by frame number, that the host backs with memory only where RAM is
//! ([`crate::backing`]); the entries of a chunk are initialised when an allocation first begins in it, and
//! a bit per chunk says so. An allocation is described by the entry of its first frame, the *head*;
//! *head-truth*: an entry says `HEAD` exactly if an allocation begins there. The entries in between
//! say nothing, so a block of any size is taken, given back or cut in two in O(1).
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
    CACHED, FLAGS_SHIFT, FrameInfo, HEAD, LENGTH, ODD, ORDER_SHIFT, OWNERS_SHIFT, owners, single,
};
use crate::places::{CHUNK, CHUNK_SHIFT, ChunkBit, Directory, GIG_CHUNKS, GIG_SHIFT};
use crate::shim::Ordering::*;
use crate::{Allocation, Corruption, FreeError, Kind};

/// One [`FrameInfo`] for each frame of managed memory.
#[derive(Debug)]
pub struct FrameTable<'m> {
    base: Option<NonNull<FrameInfo>>,
    directory: Directory<'m>,
}

// SAFETY: the array behind `base` is given to the table alone (`FrameAllocator::new`), and its
// entries are atomics.
unsafe impl Send for FrameTable<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for FrameTable<'_> {}

impl<'m> FrameTable<'m> {
    pub(crate) fn new(base: Option<NonNull<FrameInfo>>, directory: Directory<'m>) -> Self {
        Self { base, directory }
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
    pub(crate) fn entry(&self, frame: u64) -> Option<&FrameInfo> {
        self.entry_at(self.directory.bit(frame), frame)
    }

    /// As [`entry`](Self::entry), of a frame whose chunk was looked up already.
    #[inline]
    fn entry_at(&self, chunk: ChunkBit<'_>, frame: u64) -> Option<&FrameInfo> {
        let base = self.base?;
        if !chunk.is_started() {
            return None;
        }
        // SAFETY: the chunk's bit says that its entries were written once (*started*), which
        // happens only for chunks with managed memory, whose part of the array the host backs.
        Some(unsafe { &*base.as_ptr().wrapping_add(frame as usize) })
    }

    /// Like [`entry`](Self::entry), initialising the chunk's entries before. Only under the
    /// allocator's lock, and only for managed frames.
    #[inline]
    fn start(&self, frame: u64) -> Option<&FrameInfo> {
        match self.entry(frame) {
            Some(entry) => Some(entry),
            None => self.start_chunk(frame),
        }
    }

    #[cold]
    fn start_chunk(&self, frame: u64) -> Option<&FrameInfo> {
        let base = self.base?;
        self.directory.index(frame)?;
        let first = base.as_ptr().wrapping_add(frame as usize & !(CHUNK - 1));
        for place in 0..CHUNK {
            // SAFETY: the chunk has managed memory, so the host backs its entries; nobody reads
            // them before the bit below is set, and the lock keeps others from initialising too.
            unsafe { first.add(place).write(FrameInfo::unused()) };
        }
        self.directory.bit(frame).set_started();
        self.entry(frame)
    }

    /// Frames of the allocation whose head holds this state.
    #[inline]
    fn length(&self, frame: u64, word: u64) -> u64 {
        if word & ODD == 0 {
            return 1 << ((word >> ORDER_SHIFT) & 31);
        }
        // An odd allocation reaches beyond the entry that follows.
        self.entry(frame + 1).map_or(1, |next| u64::from(next.link.load(Relaxed)))
    }

    /// Makes `range` an allocation. Only by whoever has just taken the frames from the core (under
    /// its lock), or cuts an allocation that it owns.
    #[inline]
    pub(crate) fn claim(&self, range: FrameRange, traits: u64) -> Result<(), Corruption> {
        if self.base.is_none() {
            return Ok(());
        }
        let frame = range.start();
        let Some(head) = self.start(frame.number()) else { return Ok(()) };
        if head.word.load(Relaxed) & (HEAD | CACHED) != 0 {
            return Err(Corruption::HandedOutTwice { frame });
        }
        let word = HEAD | traits | self.put_length(range);
        head.maps.store(0, Relaxed);
        head.link.store(0, Relaxed);
        head.word.store(word, Release);
        Ok(())
    }

    fn put_length(&self, range: FrameRange) -> u64 {
        let count = range.count();
        if count.is_power_of_two() {
            return u64::from(count.trailing_zeros()) << ORDER_SHIFT;
        }
        if let Some(next) = self.start(range.start().number() + 1) {
            next.link.store(count as u32, Relaxed);
        }
        ODD
    }

    /// Frames of one word (`base` and up, by set bits) that were just taken from the core go to a
    /// magazine; those that may not are cleared from `bits`. Under the core's lock.
    pub(crate) fn cache_free(&self, base: u64, bits: &mut u64) -> Result<(), Corruption> {
        let mut found = Ok(());
        let mut rest = *bits;
        if self.base.is_none() || self.start(base).is_none() {
            return found;
        }
        self.touch(base, rest);
        while rest != 0 {
            let number = base + u64::from(rest.trailing_zeros());
            rest &= rest - 1;
            let entry = self.started_entry(number);
            let free = entry.map(|entry| entry.word.compare_exchange(0, CACHED, Relaxed, Relaxed));
            if !matches!(free, Some(Ok(_))) {
                *bits &= !(1 << (number - base));
                found = Err(Corruption::HandedOutTwice {
                    frame: Frame::new(number).unwrap_or_default(),
                });
            }
        }
        found
    }

    /// Looks at the entries of frames, which are started, so that those that are far away come all
    /// at once: a compare-and-swap waits for its own.
    fn touch(&self, base: u64, mut bits: u64) {
        let mut sum = 0;
        while bits != 0 {
            let number = base + u64::from(bits.trailing_zeros());
            bits &= bits - 1;
            sum |= self.started_entry(number).map_or(0, |entry| entry.word.load(Relaxed));
        }
        core::hint::black_box(sum);
    }

    /// The entry of a frame that came out of a magazine, or whose chunk is known to be started.
    /// *cached-started*: a frame gets into a magazine only by way of its entry.
    #[inline]
    fn started_entry(&self, number: u64) -> Option<&FrameInfo> {
        // SAFETY: see above; an initialised entry stays one.
        self.base.map(|base| unsafe { &*base.as_ptr().wrapping_add(number as usize) })
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
            let cached = cached.map(|one| one.word.compare_exchange(CACHED, 0, AcqRel, Relaxed));
            if !matches!(cached, Some(Ok(_))) {
                *bits &= !(1 << (number - base));
                let frame = Frame::new(number).unwrap_or_default();
                found = Err(Corruption::CacheDisturbed { frame });
            }
        }
        found
    }

    /// A frame goes from the magazine to an owner, on the CPU of both.
    pub(crate) fn own_cached(&self, number: u64, traits: u64) -> Result<(), Corruption> {
        if self.try_own_cached(number, traits) {
            return Ok(());
        }
        Err(Corruption::CacheDisturbed { frame: Frame::new(number).unwrap_or_default() })
    }

    /// As [`own_cached`](Self::own_cached); false if the entry does not agree.
    #[inline]
    pub(crate) fn try_own_cached(&self, number: u64, traits: u64) -> bool {
        let Some(entry) = self.started_entry(number) else { return true };
        if entry.word.load(Relaxed) != CACHED {
            return false;
        }
        entry.link.store(0, Relaxed);
        entry.word.store(HEAD | traits, Release);
        true
    }

    /// The entry of a frame that its owner, the only one, may give back: nobody maps it, and it is
    /// not part of a larger allocation. Without a table the caller is believed.
    #[inline]
    pub(crate) fn owned_alone(&self, chunk: ChunkBit<'_>, frame: Frame) -> Option<OwnedEntry<'_>> {
        if self.base.is_none() {
            return Some(OwnedEntry(None));
        }
        let entry = self.entry_at(chunk, frame.number())?;
        // Acquire: who is the last owner sees what the others did before they left.
        let alone = single(entry.word.load(Acquire)) && entry.maps.load(Relaxed) == 0;
        alone.then_some(OwnedEntry(Some(entry)))
    }

    /// An allocation of one frame with one owner?
    #[inline]
    pub(crate) fn is_single(&self, frame: Frame) -> bool {
        self.entry(frame.number()).is_some_and(|entry| single(entry.word.load(Relaxed)))
    }

    /// Is the frame in a magazine or on its way between them?
    pub(crate) fn is_cached(&self, frame: Frame) -> bool {
        self.entry(frame.number()).is_some_and(|entry| entry.word.load(Relaxed) == CACHED)
    }

    /// The entries of a frame's chunk, if they are initialised, and the number of the first.
    #[inline]
    pub(crate) fn chunk(&self, frame: u64) -> Option<(u64, &[FrameInfo])> {
        let first = frame & !(CHUNK as u64 - 1);
        self.entry(first)?;
        let start = self.base?.as_ptr().wrapping_add(first as usize);
        // SAFETY: the host backs the entries of whole chunks, and `start_chunk` writes all of them
        // before the chunk's bit is set (*started*), which `entry` has seen.
        Some((first, unsafe { core::slice::from_raw_parts(start, CHUNK) }))
    }

    /// What [`claim`](Self::claim) wants to know besides the range.
    #[inline]
    pub(crate) const fn traits(kind: Kind, flags: u8) -> u64 {
        kind.0 as u64 | ((flags as u64) << FLAGS_SHIFT)
    }

    /// No allocation begins at `frame` any more.
    #[inline]
    pub(crate) fn unclaim(&self, frame: Frame) {
        if let Some(head) = self.entry(frame.number()) {
            head.word.store(0, Release);
        }
    }

    /// The allocation that begins at `frame`, if there is one.
    #[inline]
    pub fn begins(&self, frame: Frame) -> Option<Allocation> {
        let head = self.entry(frame.number())?;
        let word = head.word.load(Acquire);
        if word & HEAD == 0 {
            return None;
        }
        Some(Allocation {
            range: FrameRange::new(frame, self.length(frame.number(), word))?,
            kind: Kind(word as u8),
            flags: (word >> FLAGS_SHIFT) as u8,
            refs: owners(word),
            maps: head.maps.load(Relaxed),
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
        if let Some(entry) = self.entry(frame.number()) {
            entry.word.fetch_add(u64::from(block.refs - 1) << OWNERS_SHIFT, Relaxed);
            entry.maps.store(block.maps, Relaxed);
        }
    }

    /// Another length for the allocation that begins at `frame`; owners may come and go meanwhile.
    fn resize(&self, frame: Frame, length: u64) {
        if let Some(head) = self.entry(frame.number()) {
            let change = |word: u64| Some(word & !LENGTH | length);
            let _ = head.word.fetch_update(AcqRel, Relaxed, change);
        }
    }
}

/// What [`FrameTable::owned_alone`] found.
pub(crate) struct OwnedEntry<'t>(Option<&'t FrameInfo>);

impl OwnedEntry<'_> {
    /// The frame goes to the magazine of the CPU that looked.
    #[inline]
    pub(crate) fn cache(&self) {
        if let Some(entry) = self.0 {
            entry.word.store(CACHED, Release);
        }
    }
}

const _: () = assert!(GIG_CHUNKS << CHUNK_SHIFT == 1 << GIG_SHIFT);
