//! Touching the bytes of a frame.
//!
//! The only place of this crate that goes through the [`PhysMap`](pagoda_addr::PhysMap). A page that
//! a program may reach changes under our feet at any time (another CPU, the program's own threads),
//! so nothing here makes a reference to such bytes: they are copied raw, or used as atomics.
//!
//! Invariant *frame-held*: a frame passed in is managed RAM, and the caller keeps it from being
//! freed meanwhile: it has just come from `alloc_page`, or it was found in the page table and the
//! lock of the regions is still held, under which alone frames leave the table.
#![allow(unsafe_code)] // reads and writes frames through raw pointers

use core::sync::atomic::{AtomicU32, Ordering};

use pagoda_addr::{Frame, PAGE_SIZE, PhysAddr};

use crate::VmPlatform;

/// Bytes of a page.
pub(crate) const PAGE: usize = PAGE_SIZE as usize;

/// Address of the byte at `offset`, held inside the frame whatever `offset` says.
fn at(frame: Frame, offset: usize) -> PhysAddr {
    PhysAddr::new(frame.start().as_u64() + (offset % PAGE) as u64)
}

/// How many of `len` bytes at `offset` lie inside the frame.
fn inside(offset: usize, len: usize) -> usize {
    len.min(PAGE - offset % PAGE)
}

/// Copies from the frame; what does not fit into the page is left alone.
pub(crate) fn read<P: VmPlatform>(platform: &P, frame: Frame, offset: usize, into: &mut [u8]) {
    let len = inside(offset, into.len());
    // SAFETY: *frame-held*; `len` bytes from `offset` lie inside the frame and inside `into`, which
    // is the kernel's own memory and does not alias a frame of programs.
    unsafe {
        core::ptr::copy_nonoverlapping(platform.ptr(at(frame, offset)), into.as_mut_ptr(), len)
    }
}

/// Copies to the frame; what does not fit into the page is left out.
pub(crate) fn write<P: VmPlatform>(platform: &P, frame: Frame, offset: usize, from: &[u8]) {
    let len = inside(offset, from.len());
    // SAFETY: as in `read`, with the roles exchanged.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), platform.ptr(at(frame, offset)), len) }
}

/// Clears `len` bytes from `offset` on, as far as the page reaches.
pub(crate) fn clear<P: VmPlatform>(platform: &P, frame: Frame, offset: usize, len: usize) {
    // SAFETY: *frame-held*; the bytes lie inside the frame.
    unsafe { core::ptr::write_bytes(platform.ptr(at(frame, offset)), 0, inside(offset, len)) }
}

/// Copies a whole frame. `to` has just been allocated.
pub(crate) fn copy<P: VmPlatform>(platform: &P, from: Frame, to: Frame) {
    debug_assert!(from != to);
    // SAFETY: *frame-held* for both; different frames do not overlap.
    unsafe {
        core::ptr::copy_nonoverlapping(platform.ptr(at(from, 0)), platform.ptr(at(to, 0)), PAGE);
    }
}

/// Lends the bytes of a frame that has just been allocated and is known to nobody else.
pub(crate) fn fresh<P: VmPlatform, T>(
    platform: &P,
    frame: Frame,
    fill: impl FnOnce(&mut [u8; PAGE]) -> T,
) -> T {
    // SAFETY: *frame-held*, and exclusively: the frame is in no page table yet. The pointer is
    // aligned to a page and valid for the whole page.
    fill(unsafe { &mut *platform.ptr(at(frame, 0)).cast::<[u8; PAGE]>() })
}

/// The word at `offset`, a multiple of four.
fn word<P: VmPlatform>(platform: &P, frame: Frame, offset: usize) -> &AtomicU32 {
    // SAFETY: *frame-held* as long as the reference is used, which is within this module; aligned
    // to four bytes by the mask; programs change the word as hardware does, atomically.
    unsafe { AtomicU32::from_ptr(platform.ptr(at(frame, offset & !3)).cast::<u32>()) }
}

/// Reads the word.
pub(crate) fn load_u32<P: VmPlatform>(platform: &P, frame: Frame, offset: usize) -> u32 {
    word(platform, frame, offset).load(Ordering::SeqCst)
}

/// Replaces the word if it is `old`; else says what it is.
pub(crate) fn cmpxchg_u32<P: VmPlatform>(
    platform: &P,
    frame: Frame,
    offset: usize,
    old: u32,
    new: u32,
) -> Result<u32, u32> {
    word(platform, frame, offset).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
}
