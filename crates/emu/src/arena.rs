//! Host memory at a pretended physical address.
//!
//! Lowest frame first, a reference count for each, junk in whatever is free: plain on purpose.
#![allow(unsafe_code)] // allocates memory and implements the unsafe trait `PhysMap`

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use pagoda_addr::{Frame, FrameRange, PAGE_SIZE, PhysAddr, PhysMap};
use pagoda_paging::{OutOfFrames, PageSize};

/// What fills a frame that nobody owns, and one that was asked for without zeroing.
pub(crate) const JUNK: u8 = 0xa5;

/// Host memory at a pretended physical address, with a plain frame allocator and reference counts.
pub struct PhysArena {
    range: FrameRange,
    memory: NonNull<u8>,
    layout: Layout,
    state: Mutex<State>,
}

struct State {
    refs: Vec<u32>,
    used: u64,
    /// No frame below this index is free.
    hint: usize,
    fail_after: Option<u64>,
    /// A frame that nobody counts.
    zero: Option<Frame>,
}

// SAFETY: the memory is plain bytes that are reached through raw pointers only; whoever uses them
// answers for its own accesses (the contract of `PhysMap`), and the allocator has a lock.
unsafe impl Send for PhysArena {}
// SAFETY: as for `Send`.
unsafe impl Sync for PhysArena {}

impl PhysArena {
    /// `frames` frames, the first of which pretends to be `first`. The host's memory is as aligned
    /// as a 4 KiB frame; only the pretended addresses matter for large pages.
    ///
    /// # Panics
    /// When the range leaves the physical space, or the host has no memory.
    pub fn new(first: Frame, frames: u64) -> Self {
        let range = FrameRange::new(first, frames).expect("the arena leaves the physical space");
        let bytes = usize::try_from(range.bytes().max(PAGE_SIZE)).expect("the arena is too large");
        let layout = Layout::from_size_align(bytes, PAGE_SIZE as usize).expect("arena layout");
        // SAFETY: the layout has at least one page.
        let memory = unsafe { alloc(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        // SAFETY: just allocated with this size.
        unsafe { memory.as_ptr().write_bytes(JUNK, bytes) };
        let refs = vec![0; frames as usize];
        let state = Mutex::new(State { refs, used: 0, hint: 0, fail_after: None, zero: None });
        Self { range, memory, layout, state }
    }

    /// All frames.
    pub fn range(&self) -> FrameRange {
        self.range
    }

    /// A frame with one reference, zeroed or full of junk.
    pub fn alloc(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        self.alloc_block(PageSize::K4, zeroed)
    }

    /// `size.pages()` aligned consecutive frames with one reference each.
    pub fn alloc_block(&self, size: PageSize, zeroed: bool) -> Result<Frame, OutOfFrames> {
        self.alloc_run(size.pages(), size.pages(), zeroed)
    }

    /// `count` consecutive frames with one reference each; the first one's number is a multiple of
    /// `align`.
    pub fn alloc_run(&self, count: u64, align: u64, zeroed: bool) -> Result<Frame, OutOfFrames> {
        let mut state = self.state();
        match &mut state.fail_after {
            Some(0) => {
                state.fail_after = None;
                return Err(OutOfFrames);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let first = self.range.start().number();
        let mut index = state.hint;
        loop {
            let number = (first + index as u64).next_multiple_of(align);
            index = (number - first) as usize;
            let Some(run) = state.refs.get(index..index + count as usize) else {
                return Err(OutOfFrames);
            };
            match run.iter().rposition(|&refs| refs != 0) {
                None => break,
                Some(busy) => index += busy + 1,
            }
        }
        state.refs[index..index + count as usize].fill(1);
        state.used += count;
        if count == 1 {
            state.hint = index + 1;
        }
        let frame = Frame::from_number(first + index as u64);
        if zeroed {
            self.fill(frame, count, 0);
        }
        Ok(frame)
    }

    /// A page of zeroes, made by the first call: no frame in use, sharing and releasing it does
    /// nothing.
    ///
    /// # Panics
    /// When there is no frame for it.
    pub fn zero_page(&self) -> Frame {
        if let Some(zero) = self.state().zero {
            return zero;
        }
        let zero = self.alloc(true).expect("a frame for the page of zeroes");
        let mut state = self.state();
        state.used -= 1;
        *state.zero.insert(zero)
    }

    /// Is `frame` the page of zeroes?
    pub(crate) fn is_zero_page(&self, frame: Frame) -> bool {
        self.state().zero == Some(frame)
    }

    /// One reference more.
    ///
    /// # Panics
    /// When the frame is free or not of this arena.
    pub fn share(&self, frame: Frame) {
        if self.is_zero_page(frame) {
            return;
        }
        let index = self.index(frame);
        let mut state = self.state();
        assert!(state.refs[index] != 0, "frame {frame:?} is shared, but it is free");
        state.refs[index] += 1;
    }

    /// References to the frame; 0 when it is free or not of this arena.
    pub fn refs(&self, frame: Frame) -> u32 {
        if self.range.contains(frame) { self.state().refs[self.index(frame)] } else { 0 }
    }

    /// One reference less; true when it was the last. The frame is then filled with junk.
    ///
    /// # Panics
    /// When the frame is free or not of this arena.
    pub fn release(&self, frame: Frame) -> bool {
        if self.is_zero_page(frame) {
            return false;
        }
        let index = self.index(frame);
        let mut state = self.state();
        assert!(state.refs[index] != 0, "frame {frame:?} is released, but it is free");
        state.refs[index] -= 1;
        if state.refs[index] != 0 {
            return false;
        }
        self.fill(frame, 1, JUNK);
        state.used -= 1;
        state.hint = state.hint.min(index);
        true
    }

    /// Frames in use.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Frames not in use.
    pub fn free(&self) -> u64 {
        self.range.count() - self.used()
    }

    /// Lets the `count`-th allocation from now (0: the next) fail, once; `None`: no more failures.
    pub fn fail_after(&self, count: Option<u64>) {
        self.state().fail_after = count;
    }

    /// Is a failure still to come?
    pub fn failure_pending(&self) -> bool {
        self.state().fail_after.is_some()
    }

    fn fill(&self, frame: Frame, count: u64, byte: u8) {
        // SAFETY: whole frames of the arena, of which nobody has a reference: they are free, or
        // were just taken by the caller's caller.
        unsafe { self.ptr(frame.start()).write_bytes(byte, (count * PAGE_SIZE) as usize) };
    }

    fn index(&self, frame: Frame) -> usize {
        assert!(self.range.contains(frame), "frame {frame:?} is not of this arena");
        (frame.number() - self.range.start().number()) as usize
    }

    /// A panic that is a test's result must not make the arena useless for the next check.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PhysArena {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, and no pointer is used after the owner.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

// SAFETY: the arena's frames are one host allocation, so their pointers are valid, aligned,
// consecutive, and as many as the frames; the arena itself makes no references into it.
unsafe impl PhysMap for PhysArena {
    /// # Panics
    /// For an address outside of the arena: it would be a wild pointer.
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        let offset = addr
            .checked_offset_from(self.range.start().start())
            .filter(|&offset| offset < self.layout.size() as u64)
            .unwrap_or_else(|| panic!("physical address {addr} is not RAM"));
        // SAFETY: inside the allocation, as just checked.
        unsafe { self.memory.as_ptr().add(offset as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_lowest_first_and_go_with_the_last_reference() {
        let arena = PhysArena::new(Frame::from_number(0x1ff), 1100);
        let (a, b) = (arena.alloc(true).unwrap(), arena.alloc(false).unwrap());
        assert_eq!((a.number(), b.number()), (0x1ff, 0x200));
        // SAFETY: a frame of ours.
        let first = |frame: Frame| unsafe { arena.ptr(frame.start()).read() };
        assert_eq!((first(a), first(b)), (0, JUNK));
        let large = arena.alloc_block(PageSize::M2, false).unwrap();
        assert_eq!(large.number(), 0x400);
        assert_eq!(arena.used(), 514);
        arena.share(a);
        assert!(!arena.release(a));
        assert!(arena.release(a));
        assert_eq!((arena.refs(a), arena.refs(b)), (0, 1));
        assert_eq!(arena.alloc(false), Ok(a));
        assert_eq!(arena.alloc_block(PageSize::M2, false), Err(OutOfFrames));
    }

    #[test]
    fn the_nth_allocation_fails_once() {
        let arena = PhysArena::new(Frame::from_number(1), 8);
        arena.fail_after(Some(1));
        assert!(arena.alloc(true).is_ok());
        assert!(arena.failure_pending());
        assert_eq!(arena.alloc(true), Err(OutOfFrames));
        assert!(arena.alloc(true).is_ok() && !arena.failure_pending());
    }

    #[test]
    #[should_panic(expected = "is released, but it is free")]
    fn a_double_free_is_named() {
        let arena = PhysArena::new(Frame::from_number(1), 8);
        let frame = arena.alloc(true).unwrap();
        arena.release(frame);
        arena.release(frame);
    }
}
