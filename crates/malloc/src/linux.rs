//! Linux on x86-64 by its system calls alone: no C library is needed, and `errno` is never touched.
//! The reference kernel answers the same calls.
#![allow(unsafe_code)] // system calls

use core::arch::asm;
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use crate::classes::UNIT_BYTES;
use crate::system::{PAGE_BYTES, Stop, System};

const WRITE: usize = 1;
const MMAP: usize = 9;
const MPROTECT: usize = 10;
const MUNMAP: usize = 11;
const MREMAP: usize = 25;
const MADVISE: usize = 28;
const GETPID: usize = 39;
const GETTID: usize = 186;
const FUTEX: usize = 202;
const TGKILL: usize = 234;

const PROT_READ_WRITE: usize = 3;
const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
const MAP_NORESERVE: usize = 0x4000;
const MREMAP_MAYMOVE: usize = 1;
const MADV_DONTNEED: usize = 4;
const MADV_NOHUGEPAGE: usize = 15;
const FUTEX_WAIT_PRIVATE: usize = 128;
const FUTEX_WAKE_PRIVATE: usize = 129;
const SIGABRT: usize = 6;
const ESRCH: isize = -3;

/// A system call; negative results are error numbers.
///
/// # Safety
/// As the call demands.
#[inline]
unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let result;
    // SAFETY: the registers are as the kernel's convention says; what the call does to memory is the
    // caller's duty.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// Linux on x86-64.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

fn map(bytes: usize, protection: usize, flags: usize) -> Option<NonNull<u8>> {
    let flags = flags | MAP_PRIVATE_ANONYMOUS;
    // SAFETY: a fresh mapping at an address of the system's choice.
    let start = unsafe { call(MMAP, [0, bytes, protection, flags, usize::MAX, 0]) };
    pointer(start)
}

fn pointer(result: isize) -> Option<NonNull<u8>> {
    if result < 0 && result > -4096 {
        return None;
    }
    NonNull::new(core::ptr::with_exposed_provenance_mut(result as usize))
}

// SAFETY: the calls do what the trait asks; none of them allocates here.
unsafe impl System for Linux {
    fn reserve(&self, bytes: usize) -> Option<NonNull<u8>> {
        let whole = bytes.checked_add(UNIT_BYTES)?;
        let start = map(whole, 0, MAP_NORESERVE)?;
        let lead = start.align_offset(UNIT_BYTES);
        // SAFETY: parts of the fresh mapping that the caller never learns of; the advice changes no
        // contents (no huge pages: a page of a sparse heap should cost a page).
        unsafe {
            if lead > 0 {
                self.unmap(start, lead);
            }
            let aligned = start.add(lead);
            self.unmap(aligned.add(bytes), UNIT_BYTES - lead);
            call(MADVISE, [aligned.addr().get(), bytes, MADV_NOHUGEPAGE, 0, 0, 0]);
            Some(aligned)
        }
    }

    unsafe fn commit(&self, start: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: the caller owns the range.
        unsafe { call(MPROTECT, [start.addr().get(), bytes, PROT_READ_WRITE, 0, 0, 0]) == 0 }
    }

    unsafe fn decommit(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller owns the range and needs nothing in it. A private anonymous mapping reads
        // as zeroes afterwards. The call fails only for locked memory, which then must be cleared.
        unsafe {
            if call(MADVISE, [start.addr().get(), bytes, MADV_DONTNEED, 0, 0, 0]) != 0 {
                start.write_bytes(0, bytes);
            }
        }
    }

    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        map(bytes, PROT_READ_WRITE, 0)
    }

    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller owns the range. It fails when the process may have no more mappings: then
        // the range stays mapped, and is lost.
        unsafe { call(MUNMAP, [start.addr().get(), bytes, 0, 0, 0, 0]) };
    }

    unsafe fn remap(&self, start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller owns the range.
        pointer(unsafe { call(MREMAP, [start.addr().get(), old, new, MREMAP_MAYMOVE, 0, 0]) })
    }

    fn wait(&self, word: &AtomicU32, value: u32) {
        // SAFETY: the word is alive during the call.
        unsafe {
            call(FUTEX, [word.as_ptr() as usize, FUTEX_WAIT_PRIVATE, value as usize, 0, 0, 0])
        };
    }

    fn wake(&self, word: &AtomicU32) {
        // SAFETY: only the address is used.
        unsafe { call(FUTEX, [word.as_ptr() as usize, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0]) };
    }

    fn thread(&self) -> u32 {
        // SAFETY: asks for a number.
        unsafe { call(GETTID, [0; 6]) as u32 }
    }

    fn process(&self) -> u32 {
        process()
    }

    fn is_gone(&self, thread: u32) -> bool {
        // SAFETY: signal 0 only asks whether the thread exists.
        unsafe { call(TGKILL, [process() as usize, thread as usize, 0, 0, 0, 0]) == ESRCH }
    }

    fn stop(&self, why: &Stop) -> ! {
        let mut line = Line { text: [0; 160], length: 0 };
        // A line that does not fit is cut.
        let _ = writeln!(line, "pagoda-malloc: {why}");
        abort(line.text.get(..line.length).unwrap_or(&[]))
    }
}

/// Says why on standard error and ends the program as `abort` does.
pub fn abort(why: &[u8]) -> ! {
    write(2, why);
    // SAFETY: if a handler of the signal comes back, an illegal instruction ends the program.
    unsafe {
        call(TGKILL, [process() as usize, Linux.thread() as usize, SIGABRT, 0, 0, 0]);
        asm!("ud2", options(noreturn, nostack));
    }
}

/// The number of the process, which is that of its first thread.
pub fn process() -> u32 {
    // SAFETY: asks for a number.
    unsafe { call(GETPID, [0; 6]) as u32 }
}

/// Writes bytes to a file descriptor, as far as it takes them.
pub fn write(descriptor: usize, mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: the text is readable.
        let done =
            unsafe { call(WRITE, [descriptor, text.as_ptr() as usize, text.len(), 0, 0, 0]) };
        match usize::try_from(done).ok().and_then(|done| text.get(done..)) {
            Some(rest) if rest.len() < text.len() => text = rest,
            _ => return,
        }
    }
}

/// A line on the stack.
struct Line {
    text: [u8; 160],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            let place = self.text.get_mut(self.length).ok_or(fmt::Error)?;
            *place = byte;
            self.length += 1;
        }
        Ok(())
    }
}

const _: () = assert!(PAGE_BYTES == 4096);
