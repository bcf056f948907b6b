//! Forks again and again out of a process whose threads allocate meanwhile, and stops by itself:
//! `cargo run --release -p pagoda-malloc --example malloc_forks [FORKS]`
//!
//! Sixteen threads exchange blocks of all sizes through a table, so that each frees what others allocated.
//! A child, which has none of these threads, allocates and frees, frees blocks that they left in the
//! table, and ends; an alarm ends a child that hangs. Any other end of a child ends the soak with an error.
#![allow(unsafe_code)] // fork, and blocks without owners in a table

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_int;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use pagoda_malloc::Malloc;

#[global_allocator]
static MALLOC: Malloc = Malloc::new();

unsafe extern "C" {
    fn fork() -> c_int;
    fn waitpid(child: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn alarm(seconds: u32) -> u32;
    fn _exit(status: c_int) -> !;
}

const THREADS: u64 = 16;
const SECONDS: u32 = 60;
const HEAD: usize = 16;

/// Blocks that anybody may take. A block begins with its size and a mark that depends on it.
static TABLE: [AtomicPtr<u64>; 1024] = [const { AtomicPtr::new(ptr::null_mut()) }; 1024];
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Mostly small, some medium, few large.
    fn size(&mut self) -> usize {
        let most = match self.below(400) {
            0 => 400_000,
            1..4 => 100_000,
            4..20 => 20_000,
            _ => 1000,
        };
        HEAD + self.below(most) as usize
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 16).expect("small enough")
}

fn take(bytes: usize) -> *mut u64 {
    ALLOCATED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the size is not zero, and there is room for the head.
    unsafe {
        let block: *mut u64 = MALLOC.alloc(layout(bytes)).cast();
        assert!(!block.is_null(), "no memory");
        block.write(bytes as u64);
        block.add(1).write(!(bytes as u64) ^ block as u64);
        block
    }
}

fn give(block: *mut u64) {
    if block.is_null() {
        return;
    }
    // SAFETY: whoever swapped it out of the table owns it alone.
    unsafe {
        let bytes = block.read();
        assert_eq!(block.add(1).read(), !bytes ^ block as u64, "somebody wrote into a block");
        block.add(1).write(0);
        MALLOC.dealloc(block.cast(), layout(bytes as usize));
    }
}

fn work(numbers: &mut Numbers, turns: u64) {
    for _ in 0..turns {
        let place = &TABLE[numbers.below(TABLE.len() as u64) as usize];
        give(place.swap(take(numbers.size()), Ordering::AcqRel));
    }
}

fn child(seed: u64) -> ! {
    // SAFETY: the alarm's default ends the process; so does `_exit`, without a word to anybody.
    unsafe {
        alarm(SECONDS);
        let mut numbers = Numbers(seed);
        work(&mut numbers, 300);
        let blocks: Vec<_> = (0..100).map(|n| take(HEAD + n * n)).collect();
        blocks.into_iter().for_each(give);
        // A thread of the child's own.
        if seed % 16 == 0 {
            let thread = std::thread::spawn(move || work(&mut Numbers(seed | 1), 100));
            if thread.join().is_err() {
                _exit(2);
            }
        }
        _exit(0)
    }
}

fn reap(id: c_int) -> Result<(), String> {
    let mut status = 0;
    // SAFETY: a child of ours.
    let reaped = unsafe { waitpid(id, &raw mut status, 0) };
    if reaped == id && status == 0 { Ok(()) } else { Err(format!("child: status {status:#x}")) }
}

fn soak(forks: u64) -> Result<(), String> {
    let began = Instant::now();
    let mut children = std::collections::VecDeque::new();
    for turn in 1..=forks {
        // SAFETY: the child calls nothing but malloc, threads, and `_exit`.
        match unsafe { fork() } {
            0 => child(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63),
            id if id > 0 => children.push_back(id),
            _ => return Err("no fork".into()),
        }
        if children.len() >= 4 {
            children.pop_front().map_or(Ok(()), reap)?;
        }
        if turn % 10_000 == 0 || turn == forks {
            let allocated = ALLOCATED.load(Ordering::Relaxed);
            println!(
                "{turn} forks, {allocated} blocks allocated by {THREADS} threads meanwhile, {} s; {} KiB",
                began.elapsed().as_secs(),
                MALLOC.stats().footprint() / 1024,
            );
        }
    }
    children.into_iter().try_for_each(reap)
}

fn main() -> ExitCode {
    let forks = std::env::args().nth(1).map_or(Ok(100_000), |number| number.parse());
    let Ok(forks) = forks else {
        eprintln!("malloc_forks: how many forks?");
        return ExitCode::FAILURE;
    };
    // While a thread starts, Rust's library holds a lock of its own, which a child of that moment would find
    // taken for ever when it starts one.
    let started = Arc::new(Barrier::new(THREADS as usize + 1));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let started = started.clone();
            std::thread::spawn(move || {
                started.wait();
                let mut numbers = Numbers(thread * 2 + 1);
                while !OVER.load(Ordering::Relaxed) {
                    work(&mut numbers, 50);
                    std::thread::sleep(Duration::from_micros(200));
                }
            })
        })
        .collect();
    started.wait();
    let result = soak(forks);
    OVER.store(true, Ordering::Relaxed);
    let whole = threads.into_iter().all(|thread| thread.join().is_ok());
    match result {
        Ok(()) if whole => {
            println!("malloc_forks: {forks} forks: no hang, no crash, every child allocated");
            ExitCode::SUCCESS
        }
        Ok(()) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("malloc_forks: {why}");
            ExitCode::FAILURE
        }
    }
}
