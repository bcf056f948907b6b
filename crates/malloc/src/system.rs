//! # What the host must supply
//!
//! - [`System`]: pages, a way to sleep on a word, and a way to stop.
//! - [`Local`]: one pointer for each thread.
//! - [`Misuse`], [`Corruption`]: what is reported before the program is stopped.
#![allow(unsafe_code)] // the traits carry duties that only an `unsafe impl` can promise

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use crate::heap::Heap;
use crate::options::Options;
use crate::story::{Story, Trouble, sentence};

/// Bytes of a page. Larger pages only make giving memory back less exact.
pub const PAGE_BYTES: usize = 4096;

/// The operating system, as far as malloc needs it. All lengths are multiples of [`PAGE_BYTES`].
///
/// # Safety
/// Whoever implements it promises that memory handed out belongs to the caller alone until it is
/// given back, that fresh memory reads as zeroes, and that nothing here calls the allocator.
pub unsafe trait System: Sync {
    /// Reserves addresses without memory behind them; aligned to 16 KiB.
    fn reserve(&self, bytes: usize) -> Option<NonNull<u8>>;
    /// Makes part of a reservation readable and writable, full of zeroes. False: no memory.
    ///
    /// # Safety
    /// The range lies in a reservation and has not been committed before.
    unsafe fn commit(&self, start: NonNull<u8>, bytes: usize) -> bool;
    /// Gives the memory behind a committed range back. The range stays usable and reads as zeroes.
    ///
    /// # Safety
    /// Nobody needs the contents.
    unsafe fn decommit(&self, start: NonNull<u8>, bytes: usize);
    /// Says whether huge pages may stand behind a part of a reservation, from the next touch on; before any
    /// call, none may. Advice: nothing depends on it.
    ///
    /// # Safety
    /// The range is the caller's.
    unsafe fn may_be_huge(&self, _start: NonNull<u8>, _bytes: usize, _may: bool) {}
    /// Maps fresh pages of their own; aligned to a page.
    fn map(&self, bytes: usize) -> Option<NonNull<u8>>;
    /// Ends a mapping, a part of one, or a reservation.
    ///
    /// # Safety
    /// Nobody uses the range again.
    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize);
    /// Makes a mapping longer or shorter, moving it if need be; the contents move with it.
    ///
    /// # Safety
    /// The range came whole from [`System::map`] or [`System::remap`]; if it moves, nobody uses the old one.
    unsafe fn remap(&self, start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>>;
    /// Makes a committed range neither readable nor writable; what is in it stays. False: nothing has happened.
    ///
    /// # Safety
    /// The range is the caller's.
    unsafe fn hide(&self, _start: NonNull<u8>, _bytes: usize) -> bool {
        false
    }
    /// Undoes [`System::hide`]. False: nothing has happened.
    ///
    /// # Safety
    /// The range was hidden as it is.
    unsafe fn show(&self, _start: NonNull<u8>, _bytes: usize) -> bool {
        false
    }
    /// Moves the pages of a committed range into a reservation, where the range gets another length: fresh
    /// pages follow, or the last ones are lost. Where it was, nothing is mapped then. False: nothing has
    /// happened.
    ///
    /// # Safety
    /// Both ranges are the caller's; nobody uses the old one again, and nothing in the new one is needed.
    unsafe fn transplant(
        &self,
        _from: NonNull<u8>,
        _old: usize,
        _to: NonNull<u8>,
        _new: usize,
    ) -> bool {
        false
    }
    /// Sleeps while `word` has this value, or for no reason at all.
    fn wait(&self, word: &AtomicU32, value: u32);
    /// Wakes one sleeper.
    fn wake(&self, word: &AtomicU32);
    /// Sleeps for so long, or less.
    fn pause(&self, milliseconds: u32);
    /// The number of the running thread; never zero.
    fn thread(&self) -> u32;
    /// The number of the process: another one after a fork.
    fn process(&self) -> u32;
    /// Whether this process certainly no longer has the thread of that number.
    fn is_gone(&self, thread: u32) -> bool;
    /// What the process is asked to do beside its work. Asked once, at the first allocation.
    fn options(&self) -> Options {
        Options::NONE
    }
    /// A number that nobody can guess. Asked once, in hardened mode or when allocations are sampled.
    fn random(&self) -> usize {
        0x5bd1_e995_9d1c_e4e5_u64 as usize
    }
    /// Says why and stops the program. Must not return; need not allocate.
    fn stop(&self, why: &Stop) -> !;
}

/// One pointer for each thread.
///
/// # Safety
/// [`Local::get`] gives what this thread last [`set`](Local::set), and [`Heap::none`] before that.
pub unsafe trait Local: Sync {
    /// The running thread's heap.
    fn get(&self) -> *const Heap;
    /// Remembers the running thread's heap.
    fn set(&self, heap: *const Heap);
    /// Called once, when the window is open: where the headers are, and the mask that leads to them. For
    /// hosts with a shorter way of their own.
    fn opened(&self, _headers: *const u8, _mask: usize) {}
    /// Called before any thread but the first gets a heap, without a lock held; it may allocate:
    /// arrange that the allocator is told of forks. A program with one thread needs no telling.
    fn prepare(&self) {}
    /// Called when a thread got a heap of its own: arrange that the allocator's `thread_ends` is
    /// called when the thread ends. Without that, the heap is found when the next thread needs one.
    fn arm(&self, heap: *const Heap);
    /// Called once, when memory lies idle in a program with threads, perhaps with locks held; it must not
    /// allocate: start a thread that calls [`Allocator::tend`](crate::Allocator::tend). False: there will be
    /// none.
    fn helper(&self) -> bool {
        false
    }
    /// Writes the addresses that the calls around this one return to, the innermost first; as many as there is
    /// room for. How many; none, if that cannot be known. Called where allocations are sampled, without a lock
    /// held; it may allocate.
    fn callers(&self, _all: &mut [usize]) -> usize {
        0
    }
}

/// Why the program was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The caller's mistake.
    Misuse(Misuse, usize),
    /// Memory that the allocator had to itself was overwritten, near this address.
    Corruption(Corruption, usize),
    /// What hardened mode found at this address, and the story of the block, if there is one.
    Trouble(Trouble, usize, Option<Story>),
}

/// What a caller did wrong with a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// Freed, and not allocated since.
    DoubleFree,
    /// Inside a block, not at its start; or behind the last block ever handed out.
    Interior,
    /// Not from this allocator.
    Foreign,
    /// Allocated, but with a different size or alignment than is now claimed.
    WrongSize,
}

/// What turned out to be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// The free list of a slab.
    FreeList,
    /// The size or the links of a free medium block.
    FreeBlock,
    /// The counts of a slab: more blocks freed than allocated.
    Count,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Misuse(what, at) => write!(f, "{what}: {at:#x}"),
            Self::Corruption(what, at) => write!(f, "{what} is overwritten near {at:#x}"),
            Self::Trouble(what, at, ref story) => sentence(f, what, at, story.as_ref()),
        }
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DoubleFree => "double free",
            Self::Interior => "free of a pointer that is not the start of a block",
            Self::Foreign => "free of a pointer that malloc never returned",
            Self::WrongSize => "free with a size that the block does not have",
        })
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FreeList => "the free list of a slab",
            Self::FreeBlock => "a free block",
            Self::Count => "the count of a slab",
        })
    }
}
