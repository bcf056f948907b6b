//! Magazines and depots under every interleaving of a few steps:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p pagoda-heap --lib interleavings`.
#![allow(unsafe_code)] // areas in host memory, blocks that are only numbers

use core::ptr::{NonNull, without_provenance_mut};
use std::alloc;
use std::boxed::Box;
use std::vec::Vec;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use crate::classes::CLASSES;
use crate::depot::{Depot, array_bytes};
use crate::magazine::{AREA, Area, Batch, Magazine, Refused, capacity};

mod whole;

/// A class with small magazines: four blocks, moved two by two.
const CLASS: usize = CLASSES - 1;
/// Blocks that the depot has room for.
const ROOM: usize = 8;

/// A lock whose interleavings loom explores.
struct LoomLock(AtomicBool);

impl LoomLock {
    fn with<T>(&self, inside: impl FnOnce() -> T) -> T {
        while self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            thread::yield_now();
        }
        let value = inside();
        self.0.store(false, Ordering::Release);
        value
    }
}

/// One CPU's magazines, and the memory behind them.
struct Cpu(NonNull<Area>);

// SAFETY: *magazine-own*: moved to the thread that is this CPU.
unsafe impl Send for Cpu {}
// SAFETY: others only ask for a magazine's length.
unsafe impl Sync for Cpu {}

fn layout() -> alloc::Layout {
    alloc::Layout::from_size_align(AREA, 64).unwrap()
}

impl Cpu {
    fn new() -> Self {
        // SAFETY: the size is not zero; the memory is the area's.
        Self(unsafe { Area::create(NonNull::new(alloc::alloc(layout())).unwrap(), 0) })
    }

    fn magazine(&self) -> &Magazine {
        // SAFETY: alive until dropped.
        &unsafe { self.0.as_ref() }.of(CLASS as u8)
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // SAFETY: made by `new`; nobody uses it any more.
        unsafe {
            self.0.drop_in_place();
            alloc::dealloc(self.0.cast().as_ptr(), layout());
        }
    }
}

/// What the CPUs share. The cell is loom's: it fails the test when two are inside at once.
struct Shared {
    lock: LoomLock,
    depot: loom::cell::UnsafeCell<Depot>,
}

// SAFETY: the depot is used under the lock.
unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> Self {
        let mut depot = Depot::new();
        let array: Vec<u64> = std::vec![0; array_bytes(ROOM) / 8];
        let array = NonNull::from(Box::leak(array.into_boxed_slice()));
        // SAFETY: fresh memory of this size.
        unsafe { depot.open(array.cast(), ROOM) };
        Self { lock: LoomLock(AtomicBool::new(false)), depot: loom::cell::UnsafeCell::new(depot) }
    }

    fn with<T>(&self, inside: impl FnOnce(&mut Depot) -> T) -> T {
        // SAFETY: under the lock.
        self.lock.with(|| self.depot.with_mut(|depot| inside(unsafe { &mut *depot })))
    }

    /// As `home::make_room` does it.
    fn free(&self, cpu: &Cpu, block: usize) {
        let block = NonNull::new(without_provenance_mut(block)).unwrap();
        match cpu.magazine().push(block) {
            Ok(()) => {}
            Err(Refused::Twice | Refused::Askew) => {
                panic!("no block was freed twice or beside its place")
            }
            Err(Refused::Full) => {
                assert!(self.with(|depot| cpu.magazine().send_oldest(2, depot)));
                cpu.magazine().push(block).unwrap();
            }
        }
    }

    /// As `refill::receive` does it.
    fn alloc(&self, cpu: &Cpu) -> Option<usize> {
        if let Some(block) = cpu.magazine().pop() {
            return Some(block.as_ptr() as usize);
        }
        self.with(|depot| cpu.magazine().receive(2, depot));
        cpu.magazine().pop().map(|block| block.as_ptr() as usize)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let array = self.with(|depot| {
            depot.pop(ROOM);
            depot.close()
        });
        let array = array.unwrap().cast::<u64>().as_ptr();
        // SAFETY: leaked by `new` with this length.
        drop(unsafe {
            Box::from_raw(core::ptr::slice_from_raw_parts_mut(array, array_bytes(ROOM) / 8))
        });
    }
}

#[test]
fn blocks_that_travel_through_a_depot_are_nobodys_twice() {
    assert_eq!(capacity(CLASS), 4);
    loom::model(|| {
        let shared = Arc::new(Shared::new());
        let other = {
            let shared = shared.clone();
            thread::spawn(move || {
                let cpu = Cpu::new();
                let mut mine: Vec<usize> = (0..2).filter_map(|_| shared.alloc(&cpu)).collect();
                mine.dedup();
                for &block in &mine {
                    shared.free(&cpu, block);
                }
                let mut rest = Batch::new();
                cpu.magazine().take_oldest(8, &mut rest);
                rest.as_slice().iter().map(|block| *block as usize).collect::<Vec<_>>()
            })
        };
        let cpu = Cpu::new();
        (1..=6).for_each(|block| shared.free(&cpu, block * 64));
        let mut all: Vec<usize> = shared.alloc(&cpu).into_iter().collect();
        all.extend(other.join().unwrap());
        while let Some(block) = shared.alloc(&cpu) {
            all.push(block);
        }
        all.sort_unstable();
        assert_eq!(all, [64, 128, 192, 256, 320, 384], "each block is in exactly one place");
    });
}

#[test]
fn whoever_counts_sees_a_number_that_was_true() {
    loom::model(|| {
        let cpu = Arc::new(Cpu::new());
        let reader = {
            let cpu = cpu.clone();
            thread::spawn(move || cpu.magazine().len())
        };
        let block = NonNull::new(without_provenance_mut(64)).unwrap();
        cpu.magazine().push(block).unwrap();
        assert_eq!(cpu.magazine().pop(), Some(block));
        assert!(reader.join().unwrap() <= 1);
    });
}
