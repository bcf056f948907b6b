//! Linux on x86-64 by its system calls alone: no C library is needed, and `errno` is never touched.
//! The reference kernel answers the same calls.
#![allow(unsafe_code)] // system calls

use core::arch::asm;
use core::ffi::CStr;
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use crate::classes::UNIT_BYTES;
use crate::options::Options;
use crate::story::Site;
use crate::system::{PAGE_BYTES, Stop, System};

const READ: usize = 0;
const WRITE: usize = 1;
const OPEN: usize = 2;
const CLOSE: usize = 3;
const MMAP: usize = 9;
const MPROTECT: usize = 10;
const MUNMAP: usize = 11;
const MREMAP: usize = 25;
const MADVISE: usize = 28;
const NANOSLEEP: usize = 35;
const GETPID: usize = 39;
const GETTID: usize = 186;
const FUTEX: usize = 202;
const TGKILL: usize = 234;
const GETRANDOM: usize = 318;

const O_CLOEXEC: usize = 0o2_000_000;

const PROT_NONE: usize = 0;
const PROT_READ_WRITE: usize = 3;
const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
const MAP_NORESERVE: usize = 0x4000;
const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const MADV_DONTNEED: usize = 4;
const MADV_HUGEPAGE: usize = 14;
const MADV_NOHUGEPAGE: usize = 15;
const FUTEX_WAIT_PRIVATE: usize = 128;
const FUTEX_WAKE_PRIVATE: usize = 129;
const SIGACTION: usize = 13;
const SIGABRT: usize = 6;
const SIGSEGV: usize = 11;
const SA_SIGINFO: usize = 4;
const SA_RESTORER: usize = 0x0400_0000;
const SA_ONSTACK: usize = 0x0800_0000;
const SA_RESETHAND: usize = 0x8000_0000;
const ESRCH: isize = -3;

/// A system call; negative results are error numbers.
///
/// # Safety
/// As the call demands.
#[inline]
pub(crate) unsafe fn call(number: usize, args: [usize; 6]) -> isize {
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
        // contents (no huge pages but where `may_be_huge` says so).
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

    unsafe fn hide(&self, start: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: the caller owns the range.
        unsafe { call(MPROTECT, [start.addr().get(), bytes, PROT_NONE, 0, 0, 0]) == 0 }
    }

    unsafe fn show(&self, start: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: as above.
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

    unsafe fn may_be_huge(&self, start: NonNull<u8>, bytes: usize, may: bool) {
        let advice = if may { MADV_HUGEPAGE } else { MADV_NOHUGEPAGE };
        // SAFETY: the advice changes no contents.
        unsafe { call(MADVISE, [start.addr().get(), bytes, advice, 0, 0, 0]) };
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

    unsafe fn transplant(
        &self,
        from: NonNull<u8>,
        old: usize,
        to: NonNull<u8>,
        new: usize,
    ) -> bool {
        let (from, to) = (from.addr().get(), to.addr().get());
        // SAFETY: the caller owns both ranges.
        unsafe {
            call(MREMAP, [from, old, new, MREMAP_MAYMOVE | MREMAP_FIXED, to, 0]) == to as isize
        }
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

    fn pause(&self, milliseconds: u32) {
        let time = [milliseconds as usize / 1000, milliseconds as usize % 1000 * 1_000_000];
        // SAFETY: seconds and nanoseconds.
        unsafe { call(NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
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

    fn options(&self) -> Options {
        options()
    }

    fn random(&self) -> usize {
        let mut number = 0_usize;
        // SAFETY: a place for that many bytes. If there is no randomness, addresses must do.
        unsafe { call(GETRANDOM, [&raw mut number as usize, size_of::<usize>(), 0, 0, 0, 0]) };
        number ^ (&raw const number as usize).rotate_left(24)
    }

    fn stop(&self, why: &Stop) -> ! {
        let mut line = Line::new();
        // A line that does not fit is cut.
        let _ = writeln!(line, "pagoda-malloc: {why}");
        if let Stop::Trouble(_, _, Some(story)) = why {
            for (what, site) in [("allocated", story.allocated), ("freed", story.freed)] {
                if site != Site::NOBODY {
                    let _ = write!(line, "  {what} by thread {} at ", site.thread());
                    place(site.pc(), &mut line);
                    let _ = writeln!(line);
                }
            }
        } else if let Stop::Trouble(_, at, None) = why {
            let _ = write!(line, "  it lies in ");
            place(*at, &mut line);
            let _ = writeln!(line);
        }
        abort(line.as_bytes())
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

/// Text on the stack.
pub struct Line {
    text: [u8; 1024],
    length: usize,
}

impl Line {
    /// Empty.
    pub const fn new() -> Self {
        Self { text: [0; 1024], length: 0 }
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or(&[])
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a file in pieces. Stops when there is no more, when it cannot be read, or when `each` says so.
pub fn read_file(path: &CStr, mut each: impl FnMut(&[u8]) -> bool) {
    // SAFETY: the path ends with a zero; the buffer is as long as said.
    unsafe {
        let file = call(OPEN, [path.as_ptr() as usize, O_CLOEXEC, 0, 0, 0, 0]);
        if file < 0 {
            return;
        }
        let mut buffer = [0_u8; 2048];
        loop {
            let args = [file as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
            let Ok(got) = usize::try_from(call(READ, args)) else { break };
            match buffer.get(..got) {
                Some(piece) if got > 0 && each(piece) => {}
                _ => break,
            }
        }
        call(CLOSE, [file as usize, 0, 0, 0, 0, 0]);
    }
}

/// Writes a file anew; nobody else may read it. False: it cannot be.
pub fn write_file(path: &CStr, fill: impl FnOnce(usize)) -> bool {
    const WRITE_CREATE_TRUNCATE: usize = 0o1101;
    // SAFETY: the path ends with a zero.
    unsafe {
        let args = [path.as_ptr() as usize, WRITE_CREATE_TRUNCATE | O_CLOEXEC, 0o600, 0, 0, 0];
        let Ok(file) = usize::try_from(call(OPEN, args)) else { return false };
        fill(file);
        call(CLOSE, [file, 0, 0, 0, 0, 0]);
    }
    true
}

/// Asks to be told of addresses without memory, if nobody else has. When `told` comes back, the program
/// ends as if nobody had asked.
pub fn watch_faults(told: unsafe extern "C" fn(i32, *const [usize; 3], *const u8)) {
    let mut old = [0_usize; 4];
    // SAFETY: the kernel's form of an action: handler, flags, restorer, mask.
    unsafe {
        call(SIGACTION, [SIGSEGV, 0, &raw mut old as usize, 8, 0, 0]);
        if old.first() == Some(&0) {
            let flags = SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_RESETHAND;
            let action = [told as usize, flags, restore as *const () as usize, 0];
            call(SIGACTION, [SIGSEGV, &raw const action as usize, 0, 8, 0, 0]);
        }
    }
}

unsafe extern "C" {
    #[link_name = "pagoda_malloc_restore_0_1"]
    fn restore();
}

core::arch::global_asm!(
    ".text",
    ".globl pagoda_malloc_restore_0_1",
    ".hidden pagoda_malloc_restore_0_1",
    "pagoda_malloc_restore_0_1:",
    "mov eax, 15",
    "syscall",
);

/// Says where an address lies: file and distance from where the file is mapped, as `addr2line` takes it.
pub fn place(address: usize, to: &mut Line) {
    if address == 0 {
        let _ = to.write_str("a place unknown");
        return;
    }
    let mut text = Line::new();
    let (mut name, mut name_start) = ([0_u8; 256], 0);
    let mut name_length = 0;
    let mut found = false;
    // Lines: start-end rights offset device inode path. The first line of a path says where it starts.
    read_file(c"/proc/self/maps", |piece| {
        for &byte in piece {
            if byte != b'\n' {
                let _ = text.write_str(core::str::from_utf8(&[byte]).unwrap_or("?"));
                continue;
            }
            let line = core::str::from_utf8(text.as_bytes()).unwrap_or("");
            let mut words = line.split_ascii_whitespace();
            let range = words.next().unwrap_or("");
            let path = words.nth(4).unwrap_or("");
            let (start, end) = range.split_once('-').unwrap_or(("", ""));
            let number = |digits| usize::from_str_radix(digits, 16).unwrap_or(0);
            let (start, end) = (number(start), number(end));
            if name.get(..name_length) != Some(path.as_bytes()) || path.is_empty() {
                name_length = path.len().min(name.len());
                name_start = start;
                if let (Some(to), Some(from)) =
                    (name.get_mut(..name_length), path.as_bytes().get(..name_length))
                {
                    to.copy_from_slice(from);
                }
            }
            text = Line::new();
            if (start..end).contains(&address) {
                found = true;
                return false;
            }
        }
        true
    });
    let path = name.get(..name_length).and_then(|name| core::str::from_utf8(name).ok());
    let _ = match (found, path) {
        (true, Some(path)) if !path.is_empty() => {
            write!(to, "{path}+{:#x}", address - name_start)
        }
        (true, _) => write!(to, "memory without a name, {address:#x}"),
        (false, _) => write!(to, "nothing, {address:#x}"),
    };
}

/// Reads the words after `PAGODA_MALLOC=` in the environment that the process was started with.
fn options() -> Options {
    const NAME: &[u8] = b"PAGODA_MALLOC=";
    let (mut matched, mut words, mut length) = (0, [0_u8; 128], 0);
    read_file(c"/proc/self/environ", |piece| {
        for &byte in piece {
            if byte == 0 {
                if matched == NAME.len() {
                    return false;
                }
                matched = 0;
            } else if matched == NAME.len() {
                if let Some(place) = words.get_mut(length) {
                    *place = byte;
                    length += 1;
                }
            } else if NAME.get(matched) == Some(&byte) {
                matched += 1;
            } else {
                // Not this one: nothing matches until the next zero.
                matched = NAME.len() + 1;
            }
        }
        true
    });
    Options::parse(words.get(..length).unwrap_or(&[]))
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
