//! A system made of the host's heap, with a budget, that counts and that panics where others abort.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::ThreadId;

use crate::huge::REGION;
use crate::{Allocator, Heap, Local, Options, PAGE_BYTES, Stop, System};

/// Reservations above this are refused, so that the smallest window is chosen.
const RESERVABLE: usize = 40 << 20;

#[derive(Default)]
pub struct Host {
    /// Calls that may still succeed, minus one; 0 = all.
    pub budget: AtomicUsize,
    pub decommitted: AtomicUsize,
    pub process: AtomicU32,
    /// Whether every other thread counts as gone.
    pub alone: AtomicBool,
    pub options: Options,
    /// Bytes that may be reserved beyond [`RESERVABLE`].
    roomy: usize,
    /// What was said of huge pages, in order.
    pub huge: Mutex<Vec<(usize, bool)>>,
    hidden: Mutex<HashMap<usize, usize>>,
    maps: Mutex<HashMap<usize, (usize, usize)>>,
    reserved: Mutex<HashMap<usize, usize>>,
}

unsafe impl Sync for Host {}

impl Host {
    fn allowed(&self) -> bool {
        match self.budget.load(Ordering::Relaxed) {
            0 => true,
            1 => false,
            left => {
                self.budget.store(left - 1, Ordering::Relaxed);
                true
            }
        }
    }

    /// Bytes that are hidden.
    pub fn hidden(&self) -> usize {
        self.hidden.lock().unwrap().values().sum()
    }

    pub fn mapped(&self) -> usize {
        self.maps.lock().unwrap().len()
    }
}

fn pages(bytes: usize, align: usize) -> Layout {
    Layout::from_size_align(bytes, align).unwrap()
}

thread_local! {
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}
static NUMBERS: AtomicU32 = AtomicU32::new(1);

unsafe impl System for Host {
    fn reserve(&self, bytes: usize) -> Option<NonNull<u8>> {
        if bytes > RESERVABLE + self.roomy || !self.allowed() {
            return None;
        }
        let start = NonNull::new(unsafe { alloc_zeroed(pages(bytes, 1 << 14)) })?;
        self.reserved.lock().unwrap().insert(start.as_ptr() as usize, bytes);
        Some(start)
    }
    unsafe fn commit(&self, _start: NonNull<u8>, _bytes: usize) -> bool {
        self.allowed()
    }
    unsafe fn hide(&self, start: NonNull<u8>, bytes: usize) -> bool {
        self.allowed()
            && self.hidden.lock().unwrap().insert(start.as_ptr() as usize, bytes).is_none()
    }
    unsafe fn show(&self, start: NonNull<u8>, bytes: usize) -> bool {
        let mut hidden = self.hidden.lock().unwrap();
        assert_eq!(hidden.get(&(start.as_ptr() as usize)), Some(&bytes));
        self.allowed() && hidden.remove(&(start.as_ptr() as usize)).is_some()
    }
    unsafe fn decommit(&self, start: NonNull<u8>, bytes: usize) {
        assert_eq!(start.as_ptr() as usize % PAGE_BYTES, 0);
        assert_eq!(bytes % PAGE_BYTES, 0);
        self.decommitted.fetch_add(bytes, Ordering::Relaxed);
        unsafe { start.write_bytes(0, bytes) };
    }
    unsafe fn may_be_huge(&self, start: NonNull<u8>, bytes: usize, may: bool) {
        let start = start.as_ptr() as usize;
        assert_eq!((start % REGION, bytes % REGION), (0, 0));
        let regions = (start..start + bytes).step_by(REGION);
        self.huge.lock().unwrap().extend(regions.map(|region| (region, may)));
    }
    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        if bytes > 64 << 20 || !self.allowed() {
            return None;
        }
        let start = NonNull::new(unsafe { alloc_zeroed(pages(bytes, PAGE_BYTES)) })?;
        self.maps.lock().unwrap().insert(start.as_ptr() as usize, (bytes, bytes));
        Some(start)
    }
    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize) {
        let at = start.as_ptr() as usize;
        self.hidden.lock().unwrap().retain(|hidden, _| !(at..at + bytes).contains(hidden));
        if let Some(whole) = self.reserved.lock().unwrap().remove(&at) {
            assert_eq!(whole, bytes);
            return unsafe { dealloc(start.as_ptr(), pages(bytes, 1 << 14)) };
        }
        // Parts may be unmapped; the last part frees the whole.
        let mut maps = self.maps.lock().unwrap();
        let (&first, &(whole, left)) = maps
            .iter()
            .find(|&(&first, &(whole, _))| first <= at && at + bytes <= first + whole)
            .expect("unmaps only what was mapped");
        assert!(bytes <= left);
        if left == bytes {
            maps.remove(&first);
            let whole_start = start.as_ptr().wrapping_sub(at - first);
            unsafe { dealloc(whole_start, pages(whole, PAGE_BYTES)) };
        } else {
            maps.insert(first, (whole, left - bytes));
        }
    }
    unsafe fn remap(&self, start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        let moved = self.map(new)?;
        unsafe {
            moved.copy_from_nonoverlapping(start, old.min(new));
            self.unmap(start, old);
        }
        Some(moved)
    }
    fn wait(&self, _word: &AtomicU32, _value: u32) {
        std::thread::yield_now();
    }
    fn wake(&self, _word: &AtomicU32) {}
    fn pause(&self, milliseconds: u32) {
        std::thread::sleep(std::time::Duration::from_millis(milliseconds.into()));
    }
    fn thread(&self) -> u32 {
        NUMBER.with(|number| {
            if number.get() == 0 {
                number.set(NUMBERS.fetch_add(1, Ordering::Relaxed));
            }
            number.get()
        })
    }
    fn process(&self) -> u32 {
        self.process.load(Ordering::Relaxed)
    }
    fn is_gone(&self, _thread: u32) -> bool {
        self.alone.load(Ordering::Relaxed)
    }
    fn options(&self) -> Options {
        self.options
    }
    fn stop(&self, why: &Stop) -> ! {
        std::panic::panic_any(*why)
    }
}

/// Thread-local pointers of one allocator.
#[derive(Default)]
pub struct Slots {
    slots: Mutex<HashMap<ThreadId, Pointer>>,
    /// How often a helper was asked for.
    pub helpers: AtomicU32,
}

struct Pointer(*const Heap);
unsafe impl Send for Pointer {}

unsafe impl Local for Slots {
    fn get(&self) -> *const Heap {
        let slots = self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        slots.get(&std::thread::current().id()).map_or(Heap::none(), |pointer| pointer.0)
    }
    fn set(&self, heap: *const Heap) {
        let mut slots = self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        slots.insert(std::thread::current().id(), Pointer(heap));
    }
    fn arm(&self, _heap: *const Heap) {}
    fn helper(&self) -> bool {
        self.helpers.fetch_add(1, Ordering::Relaxed);
        true
    }
}

pub type Rig = Allocator<Host, Slots>;

pub fn rig() -> Rig {
    Allocator::new(Host::default(), Slots::default())
}

pub fn hardened_rig() -> Rig {
    let host = Host { options: Options::HARDENED, ..Host::default() };
    Allocator::new(host, Slots::default())
}

/// A rig whose windows have 32 MiB each.
pub fn roomy_rig(options: Options) -> Rig {
    Allocator::new(Host { options, roomy: 60 << 20, ..Host::default() }, Slots::default())
}

/// One block in so many bytes is a sample.
pub fn sampled_rig(interval: u32) -> Rig {
    let host = Host { options: Options::sampling(interval), ..Host::default() };
    Allocator::new(host, Slots::default())
}

/// Checks the books of samples. How many are live.
pub fn check_samples(rig: &Rig) -> usize {
    let is_marked = |at: usize| rig.is_sample(std::ptr::with_exposed_provenance_mut(at));
    rig.samples.check(&rig.system, rig.options().interval(), is_marked)
}

/// Everything was freed: nothing may be left, and the books must say so.
pub fn must_be_empty(rig: &Rig) {
    rig.trim(0);
    let stats = rig.stats();
    assert_eq!(stats.slabs.iter().sum::<u32>(), 0, "slabs are left");
    assert_eq!(stats.pool.frontier, stats.pool.dirty + stats.pool.clean);
    assert_eq!(stats.pool.dirty, 0);
    assert_eq!(stats.medium.live, 0);
    assert_eq!(stats.large_count, 0);
    assert_eq!(stats.large_bytes, 0);
    assert_eq!(check_samples(rig), 0);
    rig.samples.end(&rig.system);
    // Numbers of places are never taken back.
    assert_eq!(rig.system.mapped(), usize::from(rig.is_hardened()));
    check_arenas(rig);
}

pub fn check_arenas(rig: &Rig) {
    if rig.window.is_open() {
        for number in 0..crate::arena::ARENAS {
            let ground = crate::arena::Ground::enter(&rig.window, &rig.system, number);
            assert!(ground.check(), "arena {number}");
        }
    }
}

/// A block that may go to another thread: its bytes are all the mark.
pub struct Sent(pub *mut u8, pub usize, pub u8);
unsafe impl Send for Sent {}

/// Under Miri one byte in so many is looked at, and as much less is done.
pub const SOME: usize = if cfg!(miri) { 20 } else { 1 };

pub fn check_and_free(rig: &Rig, Sent(at, bytes, mark): Sent) {
    unsafe {
        let contents = std::slice::from_raw_parts(at, bytes);
        assert!(contents.iter().step_by(SOME).all(|&byte| byte == mark));
        rig.free(at);
    }
}
