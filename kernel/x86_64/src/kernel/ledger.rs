//! Did every frame come back?
//!
//! *all-returned*: when the last process has ended and the heap has given its empty slabs back,
//! exactly the frames that were in use when the first one began are in use again.

use pagoda_frames::Kind;

use super::console::say;
use super::exit::Exit;
use super::host::{Frames, KERNEL, heap, kind};
use super::{backtrace, failures, stacks, time};

/// Kinds of owners that are told apart.
const KINDS: usize = 6;

/// Frames in somebody's hands, by kind; the last count is for all kinds that are not known.
pub(crate) fn by_kind(frames: &Frames) -> [(Kind, u64); KINDS] {
    let mut counts = [kind::HEAP, kind::PAGE_TABLE, kind::PROGRAM, kind::KVA, kind::TEST, Kind(0)]
        .map(|k| (k, 0));
    frames.table().for_each_allocated(|block| {
        let known = counts.iter().position(|(kind, _)| *kind == block.kind);
        counts[known.unwrap_or(KINDS - 1)].1 += block.range.count();
    });
    counts
}

/// What was in use at some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Balance {
    free: u64,
    by_kind: [(Kind, u64); KINDS],
    /// When, in counts of the time-stamp counter.
    time: u64,
}

impl Balance {
    /// Frames that nobody had.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }
}

/// Gives back what is only kept for later, then counts.
pub(crate) fn take(frames: &Frames) -> Balance {
    stacks::trim();
    KERNEL.bring_home(); // the spare page tables too
    let stats = frames.stats();
    Balance { free: stats.free + stats.cached, by_kind: by_kind(frames), time: time::tsc() }
}

/// Says who allocated what is still out and was not when the first program began, where the heap keeps
/// that (`slab_debug=U`).
fn leaks(since: u64) {
    let mut left = 20;
    // Nothing that is said here may use the heap.
    heap().live_objects(|object| {
        let Some(track) = object.allocated.filter(|track| track.time > since) else { return };
        if left > 0 {
            left -= 1;
            let caller = backtrace::Place(track.frames[0] as u64);
            say!("still out: {} bytes of {} by {caller}", object.size, object.cache);
        }
    });
}

/// Compares with `before`, says what is missing and who had it, and closes with one line for
/// whoever counts. Returns how the machine should end when the first process ended with `status`.
pub(crate) fn close(before: &Balance, status: u8) -> Exit {
    let Some(frames) = KERNEL.frames.get() else { return Exit::FramesLost };
    let after = take(frames);
    let lost = before.free.saturating_sub(after.free);
    let stats = frames.stats();
    if stats.free + stats.cached + stats.used != stats.total {
        log::error!("the frame allocator's counts do not add up: {stats:?}");
    }
    if lost == 0 {
        log::info!("every frame returned: {} handed over, {} free again", before.free, after.free);
    } else {
        log::error!("{lost} frames were not returned:");
        for ((kind, now), (_, then)) in after.by_kind.iter().zip(before.by_kind) {
            if *now > then {
                log::error!("    {} frames as {}", now - then, kind::name(*kind));
            }
        }
        if stacks::in_use() > 0 {
            log::error!("    {} kernel stacks are still there", stacks::in_use());
        }
        log::error!("    heap: {:?}", heap().stats());
    }
    leaks(before.time);
    failures::report();
    say!("frames: {} handed over, {} returned, {lost} lost", before.free, before.free - lost);
    match (lost, status) {
        (0, 0) => Exit::Clean,
        (0, _) => Exit::Status,
        _ => Exit::FramesLost,
    }
}
