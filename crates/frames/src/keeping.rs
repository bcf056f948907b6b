//! Single frames come back: to the CPU's own magazine, and from there, in batches, to the core. The
//! rule by which they do, and who checks what, stand in `caches.rs`.

use lock_api::RawMutex;
use pagoda_addr::{Frame, FrameRange, PhysMap};
use pagoda_sync::Cpus;

use crate::bitmap::Core;
use crate::caches::foretold;
use crate::magazine::{Magazine, Stock, Way};
use crate::places::{CHUNK_SHIFT, ChunkBit};
use crate::shim::Ordering::*;
use crate::{Corruption, FrameAllocator, FreeError, Mobility};

impl<'m, C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'m, C, M, R> {
    /// Takes one frame back. Budget: about forty plain instructions, a dozen more for the table's
    /// entry. Nothing is changed before everything is known to be well; what is not well begins
    /// anew in a function of its own, so that this one keeps nothing across a call.
    #[inline(always)]
    pub(crate) fn free_single(&self, frame: Frame) -> Result<(), FreeError> {
        let way = |_: &Stock, mobility| self.caches.plain_way(mobility, frame.number());
        if self.keep(|| self.caches.near.bit(frame.number()), frame, way) {
            return Ok(());
        }
        self.free_single_far(frame)
    }

    /// As [`free_single`](Self::free_single), wherever the frame and however many nodes.
    #[inline(never)]
    fn free_single_far(&self, frame: Frame) -> Result<(), FreeError> {
        let chunk = || Some(self.table.directory().bit(frame.number()));
        let way = |stock: &Stock, mobility| self.caches.way(stock, mobility, frame.number());
        if self.keep(chunk, frame, way) { Ok(()) } else { self.free_single_slow(frame) }
    }

    #[inline(always)]
    fn keep<'s>(
        &'s self,
        chunk: impl FnOnce() -> Option<ChunkBit<'s>>,
        frame: Frame,
        way: impl Fn(&Stock, Mobility) -> Way,
    ) -> bool {
        let pin = self.cpus.pin();
        let Some(stock) = self.stock(&pin).filter(|stock| stock.wanted.load(Relaxed) == 0) else {
            return false;
        };
        let Some(chunk) = chunk() else { return false };
        let Some(entry) = self.table.owned_alone(chunk, frame) else { return false };
        let keep = |magazine: &Magazine, way| {
            let Some(place) = magazine.room(way) else { return false };
            self.poison(FrameRange::single(frame));
            entry.cache();
            magazine.put(way, place, frame.number());
            true
        };
        let keep_for = |mobility| {
            if way(stock, mobility) == Way::Stack {
                let kept = keep(stock.of(mobility), Way::Stack);
                foretold();
                kept
            } else {
                keep(stock.of(mobility), Way::Basket)
            }
        };
        if chunk.is_movable() {
            let kept = keep_for(Mobility::Movable);
            foretold();
            kept
        } else {
            keep_for(Mobility::Unmovable)
        }
    }

    #[cold]
    #[inline(never)]
    fn free_single_slow(&self, frame: Frame) -> Result<(), FreeError> {
        let pin = self.cpus.pin();
        let Some(stock) = self.stock(&pin) else {
            return self.give(&mut self.core.lock(), FrameRange::single(frame));
        };
        let alone = || self.table.owned_alone(self.table.directory().bit(frame.number()), frame);
        match alone().or_else(|| self.table.settle(frame).then(alone).flatten()) {
            Some(entry) => {
                self.poison(FrameRange::single(frame));
                entry.cache();
            }
            None => return Err(self.refuse(frame)),
        }
        let number = frame.number();
        let mobility = self.mobility(number);
        let (magazine, way) = (stock.of(mobility), self.caches.way(stock, mobility, number));
        let mut found = Ok(());
        if !magazine.has_room(way) && way == Way::Basket {
            let mut core = self.core.lock();
            core.touch(magazine.basket());
            found = self.bring_back(&mut core, magazine.empty_basket());
        } else if !magazine.has_room(way) && !self.caches.put_batches(mobility, magazine) {
            found = self.bring_back(&mut self.core.lock(), magazine.unload());
        }
        magazine.push(way, number);
        found.and(self.honour(stock)).map_err(FreeError::Corrupt)
    }

    /// Why the table did not agree to a free of one frame.
    #[cold]
    fn refuse(&self, frame: Frame) -> FreeError {
        let core = self.core.lock();
        let single = FrameRange::single(frame);
        match self.each_head(&core, single, |_| ()) {
            Err(error) => error,
            // It changed under our eyes: two CPUs free it at once.
            Ok(()) => FreeError::DoubleFree(frame),
        }
    }

    /// For whom the chunk of a frame is. A stale answer costs order, not correctness.
    #[inline]
    pub(crate) fn mobility(&self, frame: u64) -> Mobility {
        Mobility::of(self.table.directory().bit(frame).is_movable())
    }

    /// Frames from a magazine or the depot go back to the core. Those that follow each other in the
    /// same word of the bitmap cost one look at its line.
    ///
    /// # Errors
    /// The last frame that was not what it should be; it stays lost, the others are back.
    pub(crate) fn bring_back(
        &self,
        core: &mut Core<'m>,
        frames: impl IntoIterator<Item = u64>,
    ) -> Result<(), Corruption> {
        let (mut base, mut bits, mut found) = (0, 0, Ok(()));
        for frame in frames {
            let bit = 1 << (frame % 64);
            // The same frame twice is the word's to find out, the second time.
            if frame & !63 != base || bits & bit != 0 {
                found = found.and(self.bring_back_word(core, base, bits));
                (base, bits) = (frame & !63, 0);
            }
            bits |= bit;
        }
        found.and(self.bring_back_word(core, base, bits))
    }

    #[inline]
    fn bring_back_word(
        &self,
        core: &mut Core<'m>,
        base: u64,
        mut bits: u64,
    ) -> Result<(), Corruption> {
        if bits == 0 {
            return Ok(());
        }
        let found = self.table.uncache(base, &mut bits);
        let lowest = base + u64::from(bits.trailing_zeros());
        let twice = match core.directory.index(base) {
            Some(index) if bits != 0 => {
                let twice = core.give_word(index, bits);
                self.caches.lower_hint(core.mobility(index >> CHUNK_SHIFT), lowest);
                core.recapture(index, index + 64);
                twice
            }
            _ => bits,
        };
        if twice != 0 {
            let frame = Frame::new(base + u64::from(twice.trailing_zeros())).unwrap_or_default();
            return Err(Corruption::CacheDisturbed { frame });
        }
        found
    }
}
