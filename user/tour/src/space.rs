//! The address space, exercised from inside.
#![allow(unsafe_code)] // talks to the system through libc and touches mappings of its own

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Tour;
use crate::kernel::number;

/// An anonymous private mapping, unmapped when dropped.
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Maps `bytes` of zeroes.
    pub fn new(bytes: usize) -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping at an address of the system's choice harms nothing.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), bytes, protection, flags | libc::MAP_NORESERVE, -1, 0)
        };
        assert_ne!(start, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { start: NonNull::new(start.cast()).expect("mmap gave the null page"), bytes }
    }

    /// Writes one byte into each of the first `pages` pages.
    pub fn touch(&self, pages: usize) {
        for page in 0..pages {
            self.write(page * 4096, 1);
        }
    }

    fn write(&self, at: usize, value: u8) {
        assert!(at < self.bytes);
        // SAFETY: inside the mapping, which lives as long as `self` and is nobody else's.
        unsafe { self.start.add(at).write_volatile(value) };
    }

    fn read(&self, at: usize) -> u8 {
        assert!(at < self.bytes);
        // SAFETY: as for `write`.
        unsafe { self.start.add(at).read_volatile() }
    }

    fn protect(&self, protection: i32) -> bool {
        // SAFETY: changes only what may be done with a mapping of our own.
        unsafe { libc::mprotect(self.start.as_ptr().cast(), self.bytes, protection) == 0 }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody holds a reference into the mapping.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn resident_kib() -> u64 {
    number("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// A large mapping is a promise, not memory.
pub fn reserving_costs_nothing(tour: &mut Tour) {
    let _ = resident_kib();
    let before = resident_kib();
    let large = Mapping::new(1 << 30);
    let mapped = resident_kib();
    large.write(0, 1);
    large.write(300 << 20, 2);
    large.write((1 << 30) - 1, 3);
    let touched = resident_kib();
    tour.step(mapped.abs_diff(before) < 16, "a mapping of 1 GiB makes nothing resident");
    tour.step(
        (mapped + 12..=mapped + 64).contains(&touched),
        &format!("three bytes in it make {} KiB resident", touched.saturating_sub(mapped)),
    );
    tour.step(large.read(12345) == 0, "what nobody wrote reads as zero");
}

/// Runs `child` in a forked process; returns its wait status.
fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: this program has one thread; the child leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = child();
        // SAFETY: ends the child at once, without running the parent's destructors.
        unsafe { libc::_exit(status) };
    }
    let mut status = -1;
    // SAFETY: `status` outlives the call.
    if unsafe { libc::waitpid(pid, &mut status, 0) } != pid {
        return -1;
    }
    status
}

/// A forked child shares the parent's frames until one of them writes.
pub fn fork_copies_on_write(tour: &mut Tour) {
    let memory = Mapping::new(64 * 4096);
    memory.touch(64);
    let status = in_child(|| {
        let saw = (0..64).all(|page| memory.read(page * 4096) == 1);
        memory.write(5 * 4096, 99);
        i32::from(saw && memory.read(5 * 4096) == 99)
    });
    tour.step(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1,
        "a child sees the parent's 64 pages and writes into one",
    );
    tour.step(memory.read(5 * 4096) == 1, "the parent's page is as it was");
}

static GUARDED: AtomicUsize = AtomicUsize::new(0);
static FAULTS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn mend(_: i32) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    let page = GUARDED.load(Ordering::Relaxed) as *mut libc::c_void;
    // SAFETY: mprotect may be called in a handler; the page is a mapping of our own.
    unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE) };
}

/// A write to a read-only page raises a signal; its handler may mend the page.
pub fn protection_is_enforced_and_a_fault_can_be_mended(tour: &mut Tour) {
    let page = Mapping::new(4096);
    page.write(0, 7);
    GUARDED.store(page.start.as_ptr() as usize, Ordering::Relaxed);
    // SAFETY: the handler calls only what a handler may call.
    unsafe { libc::signal(libc::SIGSEGV, mend as *const () as libc::sighandler_t) };
    let protected = page.protect(libc::PROT_READ);
    page.write(1, 8);
    // SAFETY: back to what it was.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
    let faults = FAULTS.load(Ordering::Relaxed);
    tour.step(protected && faults == 1, "a write to a read-only page is one SIGSEGV");
    tour.step(page.read(0) == 7 && page.read(1) == 8, "its handler mends it and the write counts");
}

/// A null pointer ends the process that follows it.
pub fn a_crime_ends_the_process_and_nothing_else(tour: &mut Tour) {
    let status = in_child(|| {
        // SAFETY: it is not: that is the point. The address is mapped in no process.
        unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
        0
    });
    tour.step(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV,
        "a child that follows a null pointer dies by SIGSEGV, and we live on",
    );
}

/// Forty bytes, a hundred thousand times.
pub fn malloc_gives_forty_bytes(tour: &mut Tour) {
    let mut blocks: Vec<Box<[u8; 40]>> = Vec::new();
    let before = resident_kib();
    for index in 0..100_000u32 {
        blocks.push(Box::new([index as u8; 40]));
    }
    let during = resident_kib();
    let whole = blocks.iter().enumerate().all(|(i, block)| block.iter().all(|&b| b == i as u8));
    let mut addresses: Vec<usize> = blocks.iter().map(|block| block.as_ptr() as usize).collect();
    addresses.sort_unstable();
    let apart = addresses.windows(2).all(|pair| pair[1] - pair[0] >= 40);
    let grown = during.saturating_sub(before);
    tour.step(whole && apart, "a hundred thousand blocks of 40 bytes, none on another's bytes");
    println!("    they take {grown} KiB; {} KiB of it are theirs", 100_000 * 40 / 1024);
}

/// Up to 16 MiB in mixed sizes come, go, and are back with the system before anybody asks.
pub fn malloc_gives_back_what_it_does_not_need(tour: &mut Tour) {
    let before = resident_kib();
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut held = 0;
    let free = number("/proc/meminfo", "MemFree:").unwrap_or(0) << 10;
    let wanted = (free / 4).min(16 << 20);
    while held < wanted {
        let bytes = match blocks.len() % 50 {
            0 => 200_000,
            n if n % 10 == 0 => 1500 + n * 300,
            n => 24 + n * 19,
        };
        held += bytes as u64;
        blocks.push(vec![bytes as u8; bytes]);
    }
    for line in crate::MALLOC.stats().to_string().lines() {
        println!("    {line}");
    }
    let during = resident_kib().saturating_sub(before);
    let whole = blocks.iter().all(|block| block.iter().all(|&byte| byte == block.len() as u8));
    drop(blocks);
    let after = resident_kib().saturating_sub(before);
    // Memory that the step before left with malloc may serve them, so all of it counts.
    tour.step(
        whole && before + during >= held / 1100,
        "blocks of mixed sizes, each with its own bytes",
    );
    tour.step(after < during / 4, "freed, and back with the system without being asked");
    println!("    resident: {during} KiB more with them, {after} KiB more without");
}
