//! Use after free, made visible in debug builds: a freed frame is filled with a pattern, and when it
//! is handed out again, the pattern must still be there.
//!
//! Whether a free frame was filled is not recorded anywhere: one that still begins or ends with the
//! pattern must be full of it. Of large blocks only the first 512 frames are looked at.
#![allow(unsafe_code)] // reads and writes free frames through the `PhysMap`

use lock_api::RawMutex;
use pagoda_addr::{FrameRange, PAGE_SIZE, PhysMap};
use pagoda_sync::Cpus;

use crate::shim::Ordering::Relaxed;
use crate::{Corruption, FrameAllocator};

const PATTERN: u64 = 0xdead_f4ee_dead_f4ee;
const WORDS: usize = PAGE_SIZE as usize / size_of::<u64>();
const MOST: u64 = 512;

impl<C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'_, C, M, R> {
    /// From now on, fill freed frames with a pattern and check it at the next allocation. Only debug
    /// builds do it.
    ///
    /// # Safety
    /// All managed memory is initialised in the sense of the language: RAM as the machine found it
    /// is, memory that a host has just got from its own allocator has to be written once.
    pub unsafe fn set_poison(&self, on: bool) {
        self.poison.store(on.into(), Relaxed);
    }

    #[inline]
    pub(crate) fn poisons(&self) -> bool {
        cfg!(debug_assertions) && self.poison.load(Relaxed) != 0
    }

    /// The frames are free from now on.
    #[inline]
    pub(crate) fn poison(&self, range: FrameRange) {
        if self.poisons() {
            self.each_word(range, |word| {
                // SAFETY: a word of a frame that nobody owns any more.
                unsafe { word.write(PATTERN) };
                true
            });
        }
    }

    /// The frames were free until now.
    #[inline]
    pub(crate) fn check_poison(&self, range: FrameRange) -> Result<(), Corruption> {
        if !self.poisons() {
            return Ok(());
        }
        for frame in range.iter().take(MOST as usize) {
            // SAFETY: a word of a frame that was taken from the core just now, and initialised, as
            // `set_poison` demands.
            let intact = |word: *mut u64| unsafe { word.read() } == PATTERN;
            let start = self.map().ptr(frame.start()).cast::<u64>();
            let filled = intact(start) || intact(start.wrapping_add(WORDS - 1));
            if filled && !self.each_word(FrameRange::single(frame), intact) {
                return Err(Corruption::WrittenAfterFree { frame });
            }
        }
        Ok(())
    }

    /// Calls `each` for every word of the frames; stops and returns false as soon as it does.
    fn each_word(&self, range: FrameRange, mut each: impl FnMut(*mut u64) -> bool) -> bool {
        range.iter().take(MOST as usize).all(|frame| {
            let start = self.map().ptr(frame.start()).cast::<u64>();
            (0..WORDS).all(|word| each(start.wrapping_add(word)))
        })
    }
}
