//! System calls without a library between: what is measured is the kernel and as little else as
//! can be. Arguments and errors are Linux's own on x86-64.
#![allow(unsafe_code)] // system calls, and memory that they made

use core::arch::asm;
use core::arch::x86_64::_rdtsc;

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// A system call failed with this error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What a system call answers.
pub type Result<T> = core::result::Result<T, Errno>;

/// One system call.
///
/// # Safety
/// What the call does to memory must not touch what Rust believes to own.
#[inline(always)]
pub unsafe fn call(number: i64, a: [usize; 6]) -> Result<usize> {
    let answer: isize;
    // SAFETY: the caller's promise; the instruction itself changes no more than these registers.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => answer,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4],
            in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&answer) { Err(Errno(-answer as i32)) } else { Ok(answer as usize) }
}

/// The time-stamp counter: under `-icount shift=0` the number of instructions so far.
#[inline(always)]
pub fn counter() -> u64 {
    // SAFETY: every CPU with a long mode has it.
    unsafe { _rdtsc() }
}

/// The cheapest call there is.
#[inline(always)]
pub fn getppid() {
    // SAFETY: touches no memory.
    let _ = unsafe { call(libc::SYS_getppid, [0; 6]) };
}

/// A mapping: gone when dropped.
#[derive(Debug)]
pub struct Map {
    /// Where it starts.
    pub start: usize,
    /// How long it is (bytes).
    pub len: usize,
}

/// Readable and writable.
pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Private memory without a file.
pub const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

impl Map {
    /// `mmap`.
    #[inline(always)]
    pub fn new(at: usize, len: usize, prot: i32, flags: i32, file: i32) -> Result<Self> {
        let words = [at, len, prot as usize, flags as usize, file as usize, 0];
        // SAFETY: MAP_FIXED is only used over mappings of this type that nobody refers to.
        let start = unsafe { call(libc::SYS_mmap, words)? };
        Ok(Self { start, len })
    }

    /// Fresh private memory.
    #[inline(always)]
    pub fn anonymous(len: usize) -> Result<Self> {
        Self::new(0, len, RW, PRIVATE, -1)
    }

    /// Fresh private memory that may be larger than the machine.
    pub fn reserved(len: usize) -> Result<Self> {
        Self::new(0, len, RW, PRIVATE | libc::MAP_NORESERVE, -1)
    }

    /// Writes one byte to each page of `[from, from + len)`.
    #[inline(always)]
    pub fn touch(&self, from: usize, len: usize) {
        assert!(from + len <= self.len, "inside the mapping");
        let (mut at, end) = (self.start + from, self.start + from + len);
        while at < end {
            // SAFETY: inside a mapping of ours that holds no Rust value.
            unsafe { (at as *mut u8).write_volatile(1) };
            at += PAGE;
        }
    }

    /// Reads one byte of each page.
    #[inline(always)]
    pub fn read(&self) -> u8 {
        let (mut at, end, mut sum) = (self.start, self.start + self.len, 0);
        while at < end {
            // SAFETY: as in `touch`.
            sum |= unsafe { (at as *const u8).read_volatile() };
            at += PAGE;
        }
        sum
    }

    /// `mprotect` on a part.
    #[inline(always)]
    pub fn protect(&self, from: usize, len: usize, prot: i32) -> Result<()> {
        let words = [self.start + from, len, prot as usize, 0, 0, 0];
        // SAFETY: a mapping of ours that holds no Rust value.
        unsafe { call(libc::SYS_mprotect, words).map(|_| ()) }
    }

    /// `mremap` to a new size, and to `to` where that is given.
    #[inline(always)]
    pub fn remap(&mut self, len: usize, to: Option<usize>) -> Result<()> {
        let flags = libc::MREMAP_MAYMOVE | to.map_or(0, |_| libc::MREMAP_FIXED);
        let words = [self.start, self.len, len, flags as usize, to.unwrap_or(0), 0];
        // SAFETY: moves memory that holds no Rust value to a place that the kernel or a mapping of
        // ours gave.
        self.start = unsafe { call(libc::SYS_mremap, words)? };
        self.len = len;
        Ok(())
    }

    /// `munmap`, and what it answered.
    #[inline(always)]
    pub fn unmap(self) -> Result<()> {
        let words = [self.start, self.len, 0, 0, 0, 0];
        core::mem::forget(self);
        // SAFETY: a mapping of ours, given up here.
        unsafe { call(libc::SYS_munmap, words).map(|_| ()) }
    }

    /// Fills it with this byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: inside a mapping of ours that holds no Rust value.
        unsafe { (self.start as *mut u8).write_bytes(byte, self.len) };
    }

    /// Calls `offset` bytes into the mapping, which holds code.
    pub fn enter(&self, offset: usize) {
        assert!(offset < self.len, "inside the mapping");
        let code = self.start + offset;
        // SAFETY: the only caller has written a `ret` there.
        unsafe { asm!("call {}", in(reg) code, clobber_abi("C")) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours, given up here.
        let _ = unsafe { call(libc::SYS_munmap, [self.start, self.len, 0, 0, 0, 0]) };
    }
}

/// `brk`; 0 asks where it is.
#[inline(always)]
pub fn brk(to: usize) -> usize {
    // SAFETY: this program allocates nothing by `brk` while it measures (see `cases::brk`).
    unsafe { call(libc::SYS_brk, [to, 0, 0, 0, 0, 0]).unwrap_or(0) }
}

/// `fork`: 0 in the child.
#[inline(always)]
pub fn fork() -> Result<usize> {
    // SAFETY: one thread; the child has a copy of everything.
    unsafe { call(libc::SYS_fork, [0; 6]) }
}

/// Ends this process.
#[inline(always)]
pub fn exit(status: usize) -> ! {
    loop {
        // SAFETY: nothing is left to be hurt.
        let _ = unsafe { call(libc::SYS_exit_group, [status, 0, 0, 0, 0, 0]) };
    }
}

/// Waits for a child; its status.
#[inline(always)]
pub fn wait(child: usize) -> Result<i32> {
    let mut status = 0i32;
    // SAFETY: `status` outlives the call.
    unsafe { call(libc::SYS_wait4, [child, &raw mut status as usize, 0, 0, 0, 0])? };
    Ok(status)
}

/// Writes all bytes.
pub fn write(file: i32, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let words = [file as usize, rest.as_ptr() as usize, rest.len(), 0, 0, 0];
        // SAFETY: only reads.
        done += unsafe { call(libc::SYS_write, words)? };
    }
    Ok(())
}

/// Reads up to the buffer's size.
pub fn read(file: i32, buffer: &mut [u8]) -> Result<usize> {
    let words = [file as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: writes into the buffer only.
    unsafe { call(libc::SYS_read, words) }
}

/// Opens a file that may have to be made.
pub fn open(path: &core::ffi::CStr, flags: i32) -> Result<i32> {
    let words = [path.as_ptr() as usize, flags as usize, 0o600, 0, 0, 0];
    // SAFETY: only reads the path.
    unsafe { call(libc::SYS_open, words).map(|file| file as i32) }
}

/// Both ends of a pipe.
pub fn pipe() -> Result<[i32; 2]> {
    let mut ends = [0i32; 2];
    // SAFETY: writes the two numbers.
    unsafe { call(libc::SYS_pipe, [ends.as_mut_ptr() as usize, 0, 0, 0, 0, 0])? };
    Ok(ends)
}

/// Closes a file.
pub fn close(file: i32) {
    // SAFETY: touches no memory.
    let _ = unsafe { call(libc::SYS_close, [file as usize, 0, 0, 0, 0, 0]) };
}

/// No huge pages in this process: every kernel has the same pages to make.
pub fn no_huge_pages() {
    // SAFETY: touches no memory.
    let _ = unsafe { call(libc::SYS_prctl, [libc::PR_SET_THP_DISABLE as usize, 1, 0, 0, 0, 0]) };
}

/// Waits until what was written to the terminal is out.
pub fn drain(file: i32) {
    const TCSBRK: usize = 0x5409;
    // SAFETY: touches no memory.
    let _ = unsafe { call(libc::SYS_ioctl, [file as usize, TCSBRK, 1, 0, 0, 0]) };
}

/// Mounts `/proc`.
pub fn mount_proc() {
    let name = c"proc".as_ptr() as usize;
    let words = [name, c"/proc".as_ptr() as usize, name, 0, 0, 0];
    // SAFETY: only reads the strings.
    let _ = unsafe { call(libc::SYS_mount, words) };
}

/// Ends the machine, for a first process under Linux. Returns where there is no such call.
pub fn reset_machine() {
    let magic = [libc::LINUX_REBOOT_MAGIC1 as usize, libc::LINUX_REBOOT_MAGIC2 as usize];
    let words = [magic[0], magic[1], libc::LINUX_REBOOT_CMD_RESTART as usize, 0, 0, 0];
    // SAFETY: nothing is left to be hurt.
    let _ = unsafe { call(libc::SYS_reboot, words) };
}
