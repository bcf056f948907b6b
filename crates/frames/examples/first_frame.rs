//! From free ranges to the first frame, on your desk: the RAM is a block of this program's own
//! memory that stands for the first 64 MiB of a PC.
//!
//! `cargo run -p pagoda-frames --example first_frame`; the guide's chapter on the first frame shows
//! its parts.
#![allow(unsafe_code)] // stands for RAM, and hands it over

use std::error::Error;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use pagoda_addr::{Frame, FrameRange, Order, PhysAddr, PhysMap};
use pagoda_frames::{AllocError, Class, FrameAllocator, Kind, Request, Setup, backing, required};
use pagoda_sync::{RawSpin, Uniprocessor};

// ANCHOR: bitmap
/// One bit for each frame, set while the frame is free. Frame 0 is never free: page 0 stays unmapped.
struct Bitmap<'a> {
    words: &'a mut [u64],
}

impl Bitmap<'_> {
    /// The lowest free frame.
    fn alloc(&mut self) -> Option<u64> {
        let place = self.words.iter().position(|word| *word != 0)?;
        let bit = self.words[place].trailing_zeros();
        self.words[place] &= !(1 << bit);
        Some(place as u64 * 64 + u64::from(bit))
    }

    /// Takes a frame back. False, and nothing has changed, if it was free or is none of ours.
    fn free(&mut self, frame: u64) -> bool {
        let Some(word) = self.words.get_mut(frame as usize / 64) else { return false };
        let bit = 1 << (frame % 64);
        let was_used = *word & bit == 0;
        *word |= bit;
        was_used
    }
}
// ANCHOR_END: bitmap

// ANCHOR: direct
/// All RAM at a fixed distance: the direct map, in miniature.
struct DirectMap(*mut u8);

// SAFETY: the block is as long as the RAM that the allocator is given, and is written only by
// whoever was given a frame.
unsafe impl PhysMap for DirectMap {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.0.wrapping_add(addr.as_usize())
    }
}
// ANCHOR_END: direct

/// The kinds of frames that this kernel knows: a byte that the frame table keeps.
const PAGE_TABLE: Kind = Kind(1);
const DISK_BUFFER: Kind = Kind(2);

const RAM_BYTES: usize = 64 << 20;

fn begin() {
    println!("== bitmap");
    // ANCHOR: by_hand
    let mut words = [0; 256]; // 16384 frames, 64 MiB: all in use
    for frame in 0x467..0x3f9f {
        words[frame / 64] |= 1 << (frame % 64); // free: from the boot map
    }
    let mut frames = Bitmap { words: &mut words };
    let (first, second) = (frames.alloc(), frames.alloc());
    println!("{first:x?}, {second:x?}");
    println!("taken back: {}, and once more: {}", frames.free(0x467), frames.free(0x467));
    println!("the next one: {:x?}", frames.alloc());
    // ANCHOR_END: by_hand
}

fn main() -> Result<(), Box<dyn Error>> {
    begin();

    println!("\n== setup");
    let mut ram = vec![0u8; RAM_BYTES];
    let direct = DirectMap(ram.as_mut_ptr());
    // ANCHOR: setup
    let frame = Frame::from_number;
    let free = [
        FrameRange::between(frame(0x10), frame(0x9f)),
        FrameRange::between(frame(0x100), frame(0x200)),
        FrameRange::between(frame(0x324), frame(0x400)),
        FrameRange::between(frame(0x467), frame(0x3f9f)),
    ]
    .map(Option::unwrap);
    let layout = required(&free, 1)?;
    let mut storage = vec![MaybeUninit::<u8>::uninit(); layout.size() + layout.align()];
    let skip = storage.as_ptr().align_offset(layout.align());
    // 16 bytes for each frame, from frame 0 on, in whole chunks of 2 MiB.
    let table_bytes = backing(&free).map(|(offset, bytes)| offset + bytes).last().unwrap_or(0);
    let mut table = vec![0u128; table_bytes as usize / 16];
    let setup = Setup {
        ranges: &free,
        storage: &mut storage[skip..],
        table: NonNull::new(table.as_mut_ptr().cast()),
        reserve: 64,
    };
    // SAFETY: the ranges are RAM that nobody sits in, all of it behind `direct`; one thread.
    let frames: FrameAllocator<_, _, RawSpin> =
        unsafe { FrameAllocator::new(setup, Uniprocessor::new(), direct) }?;
    let stats = frames.stats();
    println!("{} frames, {} of them for hard times", stats.free, stats.reserve);
    println!(
        "cost: {} KiB, and {} KiB for the frame table",
        layout.size() >> 10,
        table_bytes >> 10
    );
    // ANCHOR_END: setup

    println!("\n== first");
    // ANCHOR: first
    let first = frames.alloc(Request::frame().zeroed().kind(PAGE_TABLE))?;
    let second = frames.alloc(Request::frame().zeroed().kind(PAGE_TABLE))?;
    println!("{:?}, {:?}", first.range(), second.range());
    let large = frames.alloc(Request::order(Order::LARGE))?;
    println!("2 MiB in one piece, aligned: {:?}", large.range());
    let buffer = Request::count(12).below(PhysAddr::new(1 << 20)).kind(DISK_BUFFER);
    let buffer = frames.alloc(buffer)?;
    println!("48 KiB that an old disk controller can reach: {:?}", buffer.range());
    // ANCHOR_END: first

    println!("\n== books");
    // ANCHOR: books
    let stats = frames.stats();
    let free_now = stats.free + stats.cached;
    println!("{free_now} free and {} in use are {}", stats.used, stats.total);
    assert_eq!(free_now + stats.used, stats.total);
    // ANCHOR_END: books

    println!("\n== misuse");
    // ANCHOR: misuse
    let (once, whole) = (first.range(), large.range());
    frames.free(first)?;
    for (mistake, range) in [
        ("the same frame again", once),
        ("a part of 2 MiB", FrameRange::single(whole.start())),
        ("the kernel's image", FrameRange::single(frame(0x200))),
    ] {
        match frames.free_range(range) {
            Ok(()) => println!("{mistake}: taken back"),
            Err(error) => println!("{mistake}: {error}"),
        }
    }
    // ANCHOR_END: misuse

    println!("\n== end");
    // ANCHOR: end
    let mut held = Vec::new();
    let refused = loop {
        match frames.alloc(Request::frame()) {
            Ok(frame) => held.push(frame),
            Err(error) => break error,
        }
    };
    println!("after {} more: {refused}", held.len());
    assert_eq!(refused, AllocError::Reserved);
    let kernels = frames.alloc(Request::frame().class(Class::Reserve))?;
    println!("the kernel, to end somebody: {:?}", kernels.range());
    for owned in held.into_iter().chain([kernels, second, large, buffer]) {
        frames.free(owned)?;
    }
    frames.drain_cpu()?;
    let stats = frames.stats();
    println!("{} in use, {} lost", stats.used, stats.total - stats.free - stats.cached);
    // ANCHOR_END: end
    Ok(())
}
