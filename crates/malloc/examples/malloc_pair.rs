//! Nanoseconds for an allocation and its free, by size, for this allocator and the system's.
//! `cargo run --release -p pagoda-malloc --example malloc_pair`
#![allow(unsafe_code)] // calls the allocators directly

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

use pagoda_malloc::Malloc;

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
}

/// Nanoseconds that this thread has run.
fn now() -> u64 {
    const THREAD_CPUTIME: i32 = 3;
    let mut time = [0; 2];
    // SAFETY: a place for seconds and nanoseconds.
    unsafe { clock_gettime(THREAD_CPUTIME, &mut time) };
    (time[0] * 1_000_000_000 + time[1]) as u64
}

fn pair(allocator: &impl GlobalAlloc, bytes: usize, rounds: u32) -> f64 {
    let layout = Layout::from_size_align(bytes, 8).expect("a small size");
    let mut best = f64::MAX;
    for _ in 0..9 {
        let start = now();
        for _ in 0..rounds {
            // SAFETY: the size is not zero; the block is freed as it was allocated.
            unsafe {
                let block = black_box(allocator.alloc(black_box(layout)));
                allocator.dealloc(block, layout);
            }
        }
        best = best.min((now() - start) as f64 / f64::from(rounds));
    }
    best
}

fn live(allocator: &impl GlobalAlloc, rounds: u32) -> f64 {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut live = vec![(core::ptr::null_mut::<u8>(), Layout::new::<u8>()); 100_000];
    let mut replace = |count: u32| {
        let start = now();
        for _ in 0..count {
            let (number, size) = (next(), next());
            let bytes = 16 + (size as usize % 1000) * usize::from(size >> 60 != 0) + 8;
            let layout = Layout::from_size_align(bytes, 8).expect("a small size");
            let place = &mut live[number as usize % 100_000];
            // SAFETY: each block is freed once, as it was allocated.
            unsafe {
                if !place.0.is_null() {
                    allocator.dealloc(place.0, place.1);
                }
                *place = (allocator.alloc(layout), layout);
                place.0.write(1);
            }
        }
        (now() - start) as f64 / f64::from(count)
    };
    replace(300_000);
    replace(rounds)
}

fn main() {
    // `pair BYTES ROUNDS`: nothing else, to be counted by an instruction counter.
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    if let [bytes, rounds] = numbers[..] {
        println!("{:.2}", pair(&Malloc, bytes as usize, rounds));
        return;
    }
    println!("{:>10} {:>8} {:>8}", "bytes", "pagoda", "system");
    for bytes in [16, 64, 1024, 4096, 32 << 10, 128 << 10, 1 << 20] {
        let (ours, theirs) = (pair(&Malloc, bytes, 300_000), pair(&System, bytes, 300_000));
        println!("{bytes:>10} {ours:>8.2} {theirs:>8.2}");
    }
    let (ours, theirs) = (live(&Malloc, 1_000_000), live(&System, 1_000_000));
    println!("{:>10} {ours:>8.2} {theirs:>8.2}", "100k live");
}
