//! # Which thread has which heap? What happens at fork?
//!
//! Heaps are numbered from zero as they are needed. A thread that needs one takes a dead one first,
//! then one whose thread certainly no longer exists, then a new one.
//!
//! Lock order: 1 the table of heaps, 2 the sweep, 3 the pool, 4 the arenas by number, 5 the table of
//! fenced blocks, 6 the books of samples. Fork takes all of them in this order before, so that what they guard is whole in the child; what threads own alone is not, see
//! *generation* in [`crate::heap`].
#![allow(unsafe_code)] // heaps live in the window

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::allocator::Allocator;
use crate::heap::{BUSY, DEAD, FRESH, Heap, LIVE};
use crate::huge::FROM_HARDENED;
use crate::lock::Lock;
use crate::options::Options;
use crate::system::{Local, Stop, System};

/// The table of heaps.
pub struct Threads {
    /// Rank 1 of the locks.
    pub lock: Lock,
    /// Rank 2 of the locks: held while slabs are between a stack and its heap ([`crate::sweep`]).
    pub sweep: Lock,
    /// Heaps ever used.
    pub count: AtomicU32,
}

/// How often a heap's thread is asked whether it still exists, for one new thread.
const ASKED: usize = 4;

impl Threads {
    /// No heaps.
    pub const fn new() -> Self {
        Self { lock: Lock::new(), sweep: Lock::new(), count: AtomicU32::new(0) }
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// This thread's heap, found or made. Nothing: there is no room.
    pub(crate) fn heap(&self) -> Option<&Heap> {
        let heap = self.local.get();
        if ptr::eq(heap, Heap::none()) {
            return self.new_heap();
        }
        // SAFETY: *heap-exclusive*: it is this thread's, and heaps never go away.
        Some(unsafe { &*heap })
    }

    /// This thread's heap, if it has one.
    pub(crate) fn own_heap(&self) -> Option<&Heap> {
        let heap = self.local.get();
        // SAFETY: as above.
        (!ptr::eq(heap, Heap::none())).then(|| unsafe { &*heap })
    }

    #[cold]
    fn new_heap(&self) -> Option<&Heap> {
        if self.threads.count.load(Ordering::Relaxed) > 0 {
            self.local.prepare();
        }
        let held = self.threads.lock.take(&self.system);
        if !self.window.is_open() {
            if !self.window.open(&self.system) {
                return None;
            }
            let (headers, mask) = self.window.headers();
            let options = self.system.options().settled();
            if options.has(Options::SAMPLE) {
                self.samples.begin(self.system.random());
            }
            if options.has(Options::HARDENED) {
                self.secret.store(self.system.random() & !0xffff | 0x5a50, Ordering::Relaxed);
                // Its blocks are larger and come back later.
                self.window.set_patience(4);
                self.window.set_huge_from(FROM_HARDENED);
            }
            if options.has(Options::NO_HUGE) {
                self.window.set_huge_from(usize::MAX);
            }
            self.options.store(options.bits(), Ordering::Relaxed);
            self.local.opened(headers.cast(), mask);
        }
        let thread = self.system.thread();
        let count = self.threads.count.load(Ordering::Relaxed) as usize;
        let heap = match self.abandoned(count, thread) {
            Some(heap) => heap,
            None if count < self.window.heaps() => {
                let heap = self.window.heap(count);
                // SAFETY: a place of the table that was never used.
                unsafe { heap.write(Heap::new()) };
                self.threads.count.store(count as u32 + 1, Ordering::Release);
                // SAFETY: just written.
                let heap = unsafe { &*heap };
                heap.number.store(count as u32, Ordering::Relaxed);
                heap.recents.belong(count as u32);
                heap
            }
            None => return None,
        };
        let process = self.system.process();
        heap.thread.store(thread, Ordering::Relaxed);
        heap.process.store(process, Ordering::Relaxed);
        heap.generation.store(self.generation.load(Ordering::Relaxed), Ordering::Relaxed);
        heap.state.store(LIVE, Ordering::Relaxed);
        self.local.set(heap);
        self.idle.count_thread(process);
        drop(held);
        self.local.arm(heap);
        Some(heap)
    }

    /// A heap of this generation without a thread.
    fn abandoned(&self, count: usize, thread: u32) -> Option<&Heap> {
        let mut asked = 0;
        let process = self.system.process();
        for number in 0..count {
            // SAFETY: places below the count have been written.
            let heap = unsafe { &*self.window.heap(number) };
            if self.is_stale(heap) {
                continue;
            }
            let owner = heap.thread.load(Ordering::Relaxed);
            // After a fork that nobody told us of, the thread that forked goes on under another number.
            let known = heap.process.load(Ordering::Relaxed) == process;
            match heap.state.load(Ordering::Relaxed) {
                DEAD => {
                    let taken = heap.state.compare_exchange(
                        DEAD,
                        BUSY,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    );
                    if taken.is_ok() {
                        return Some(heap);
                    }
                }
                // Nobody changes a LIVE heap's state but its thread.
                LIVE if known && owner == thread => return Some(heap),
                LIVE if known && asked < ASKED => {
                    asked += 1;
                    if self.system.is_gone(owner) {
                        return Some(heap);
                    }
                }
                FRESH | LIVE | BUSY => {}
                _ => self.stop(&Stop::Corruption(
                    crate::system::Corruption::Count,
                    ptr::from_ref(heap) as usize,
                )),
            }
        }
        None
    }

    /// Whether a fork left the heap behind.
    #[inline]
    pub(crate) fn is_stale(&self, heap: &Heap) -> bool {
        heap.generation.load(Ordering::Relaxed) != self.generation.load(Ordering::Relaxed)
    }

    /// The generation as the slabs' words carry it.
    #[inline]
    pub(crate) fn word_generation(&self) -> u16 {
        self.generation.load(Ordering::Relaxed) as u16
    }

    /// To be called when a thread ends: its heap becomes the next thread's.
    pub fn thread_ends(&self) {
        let Some(heap) = self.own_heap() else { return };
        if self.is_hardened() {
            self.empty_quarantine(heap);
        }
        // SAFETY: the heap is this thread's.
        unsafe { self.tidy_own(heap) };
        self.dismiss_all(heap);
        self.local.set(Heap::none());
        heap.state.store(DEAD, Ordering::Release);
    }

    /// To be called before fork, in the thread that forks.
    pub fn before_fork(&self) {
        self.threads.lock.raw_take(&self.system);
        self.threads.sweep.raw_take(&self.system);
        // What was pushed before a fork is lost to the child; nobody has any of it in hand now.
        if let Some(heap) = self.own_heap() {
            self.drain_announced(heap);
        }
        self.pool.lock.raw_take(&self.system);
        for lock in self.window.locks() {
            lock.raw_take(&self.system);
        }
        self.fences.lock.raw_take(&self.system);
        self.samples.lock.raw_take(&self.system);
    }

    /// To be called after fork in the parent, in the thread that forked.
    pub fn after_fork_in_parent(&self) {
        self.samples.lock.raw_release(&self.system);
        self.fences.lock.raw_release(&self.system);
        for lock in self.window.locks() {
            lock.raw_release(&self.system);
        }
        self.pool.lock.raw_release(&self.system);
        self.threads.sweep.raw_release(&self.system);
        self.threads.lock.raw_release(&self.system);
    }

    /// To be called after fork in the child.
    pub fn after_fork_in_child(&self) {
        self.samples.lock.reset();
        self.fences.lock.reset();
        for lock in self.window.locks() {
            lock.reset();
        }
        self.pool.lock.reset();
        self.threads.sweep.reset();
        self.threads.lock.reset();
        self.idle.after_fork(self.system.process(), u32::from(self.own_heap().is_some()));
        if let Some(heap) = self.own_heap() {
            heap.thread.store(self.system.thread(), Ordering::Relaxed);
            heap.process.store(self.system.process(), Ordering::Relaxed);
        }
        // A program with one thread has left nobody behind.
        if self.threads.count.load(Ordering::Relaxed) <= 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Relaxed).wrapping_add(1).max(1);
        self.generation.store(generation, Ordering::Relaxed);
        if let Some(heap) = self.own_heap() {
            heap.generation.store(generation, Ordering::Relaxed);
            heap.announced.store(0, Ordering::Relaxed);
        }
    }
}
