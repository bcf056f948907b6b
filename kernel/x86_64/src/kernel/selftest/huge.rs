//! Blocks of 1 GiB are taken, marked at both ends, and given back: on a large machine they lie near
//! the top of memory.
//!
//! The blocks are kept in a list that runs through their own first words, and each has its address
//! in its last word: two blocks that overlap, a block that the direct map does not show, and memory
//! that is not there would all break the list.

use pagoda_addr::{FrameRange, Order, PhysAddr, PhysMap};
use pagoda_frames::Request;

use crate::kernel::host::{DirectMap, KERNEL, kind};
use crate::kernel::time;

/// Blocks that are taken, at most. Each costs 4 MiB of the frame table, written at its first use.
const BLOCKS: u64 = 16;

/// A block of the list: its first and its last word.
fn words(block: PhysAddr) -> (*mut u64, *mut u64) {
    let first = DirectMap.ptr(block).cast::<u64>();
    (first, first.wrapping_add(Order::HUGE.bytes() as usize / 8 - 1))
}

/// Takes, marks, checks, returns; panics when something does not hold.
pub(super) fn run() {
    let Some(frames) = KERNEL.frames.get() else { return };
    let before = frames.stats();
    let started = time::since_boot_ns();
    let request = Request::order(Order::HUGE).kind(kind::TEST);
    let (mut list, mut count, mut highest, mut first) = (PhysAddr::ZERO, 0u64, 0, None);
    while count < BLOCKS
        && let Ok(owned) = frames.alloc(request)
    {
        let block = owned.into_range().start().start();
        let (head, tail) = words(block);
        // SAFETY: the block was just received; it is this function's alone.
        unsafe {
            head.write_volatile(list.as_u64());
            tail.write_volatile(block.as_u64());
        }
        (list, count, highest) = (block, count + 1, highest.max(block.as_u64()));
        first.get_or_insert(block.as_u64());
    }
    let taken = time::since_boot_ns();
    assert_eq!(before.free - frames.stats().free, count * Order::HUGE.count());
    let mut returned = 0;
    while list != PhysAddr::ZERO {
        let (head, tail) = words(list);
        // SAFETY: the list runs through blocks that were received above and not given back yet.
        let (next, own) = unsafe { (head.read_volatile(), tail.read_volatile()) };
        assert_eq!(own, list.as_u64(), "the last word of a block");
        let Some(block) = FrameRange::new(list.block(), Order::HUGE.count()) else { break };
        KERNEL.give_back(block);
        list = PhysAddr::new(next);
        returned += 1;
    }
    assert_eq!((returned, frames.stats().free), (count, before.free));
    log::info!(
        "selftest: huge: {count} blocks of 1 GiB, the first at {:#x}, the highest at {highest:#x}: \
         taken in {} us, returned in {} us",
        first.unwrap_or_default(),
        (taken - started) / 1000,
        (time::since_boot_ns() - taken) / 1000,
    );
}
