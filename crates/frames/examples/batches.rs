//! What an address space does with the frames of a range: fork shares them, unmapping lets them go.
//! `cargo run --release -p pagoda-frames --example batches`; under callgrind the two functions
//! `fork` and `unmap` say what a page costs.
#![allow(unsafe_code)] // sets up an allocator whose frames are only numbers

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use pagoda_addr::{Frame, FrameRange, PhysAddr, PhysMap};
use pagoda_frames::{FrameAllocator, Mobility, Request, Setup, required};
use pagoda_sync::{RawSpin, Uniprocessor};

struct Unmapped;

// SAFETY: never asked, since no request here wants zeroes.
unsafe impl PhysMap for Unmapped {
    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        unreachable!()
    }
}

type Frames = FrameAllocator<'static, Uniprocessor, Unmapped, RawSpin>;

#[inline(never)]
fn fork(frames: &Frames, pages: &[Frame]) {
    frames.table().share_many(pages).expect("pages of ours");
}

#[inline(never)]
fn unmap(frames: &Frames, pages: &[Frame]) -> usize {
    frames.release_many(pages).expect("pages of ours")
}

fn main() {
    const COUNT: u64 = 1 << 16;
    let ram = [FrameRange::new(Frame::from_number(0), COUNT).expect("small")];
    let layout = required(&ram, 1).expect("one range");
    let storage = vec![MaybeUninit::<u8>::uninit(); layout.size() + layout.align()].leak();
    let skip = storage.as_ptr().align_offset(layout.align());
    let table = NonNull::new(vec![0u128; COUNT as usize].leak().as_mut_ptr().cast());
    let setup = Setup { ranges: &ram, storage: &mut storage[skip..], table, reserve: 0 };
    // SAFETY: one thread; nobody touches the frames; the table is as long as the range.
    let frames: Frames =
        unsafe { FrameAllocator::new(setup, Uniprocessor::new(), Unmapped) }.expect("enough");

    // As an address space holds them: by number, in the order of its pages.
    let page = Request::frame().mobility(Mobility::Movable);
    let mut pages: Vec<Frame> =
        (0..1 << 14).map(|_| frames.alloc(page).expect("memory").into_range().start()).collect();
    pages.sort_unstable();
    // A batch holds 64 pages.
    let (mut kept, mut freed) = (0, 0);
    pages.chunks(64).for_each(|pages| fork(&frames, pages));
    for pages in pages.chunks(64) {
        kept += pages.len() - unmap(&frames, pages);
    }
    for pages in pages.chunks(64) {
        freed += unmap(&frames, pages);
    }
    println!("{kept} pages kept by the other owner, then {freed} freed");
    println!("{:?}", frames.stats());
}
