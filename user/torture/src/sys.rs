//! System calls without a library between: what is tortured is the kernel, and a child of a
//! threaded process may not use much of a library.
#![allow(unsafe_code)] // system calls

use core::arch::asm;

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
#[inline]
pub unsafe fn call(number: i64, a: [usize; 6]) -> Result<usize> {
    let answer: isize;
    // SAFETY: the caller's promise; the instruction itself changes no more than these registers.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => answer,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4],
            in("r9") a[5], lateout("rcx") _, lateout("r11") _);
    }
    if (-4095..0).contains(&answer) { Err(Errno(-answer as i32)) } else { Ok(answer as usize) }
}

/// A call that touches no memory of ours that Rust believes to own.
fn plain(number: i64, a: [usize; 6]) -> Result<usize> {
    // SAFETY: every caller in this module passes numbers, buffers that outlive the call, or
    // addresses of mappings that hold no Rust value.
    unsafe { call(number, a) }
}

/// As [`plain`], again when a signal came in between.
fn patient(number: i64, a: [usize; 6]) -> Result<usize> {
    loop {
        match plain(number, a) {
            Err(Errno(libc::EINTR)) => {}
            answer => return answer,
        }
    }
}

/// `mmap` of memory that holds no Rust value.
pub fn mmap(at: usize, len: usize, prot: i32, flags: i32, file: i32) -> Result<usize> {
    plain(libc::SYS_mmap, [at, len, prot as usize, flags as usize, file as usize, 0])
}

/// `munmap` of such memory.
pub fn munmap(at: usize, len: usize) -> Result<()> {
    plain(libc::SYS_munmap, [at, len, 0, 0, 0, 0]).map(drop)
}

/// `mprotect` of such memory.
pub fn mprotect(at: usize, len: usize, prot: i32) -> Result<()> {
    plain(libc::SYS_mprotect, [at, len, prot as usize, 0, 0, 0]).map(drop)
}

/// `mremap` of such memory.
pub fn mremap(at: usize, len: usize, new: usize, flags: i32, to: usize) -> Result<usize> {
    plain(libc::SYS_mremap, [at, len, new, flags as usize, to, 0])
}

/// `madvise` on such memory.
pub fn madvise(at: usize, len: usize, advice: i32) -> Result<()> {
    plain(libc::SYS_madvise, [at, len, advice as usize, 0, 0, 0]).map(drop)
}

/// `fork`: 0 in the child, which has this thread only and knows the C library's idea of its
/// parent's thread: it must not abort, nor raise a signal through the library.
pub fn fork() -> Result<usize> {
    plain(libc::SYS_fork, [0; 6])
}

/// `fork` through the C library, for a child that uses it.
pub fn fork_with_library() -> Result<usize> {
    // SAFETY: the caller has one thread, so the child has a whole copy of everything.
    let child = unsafe { libc::fork() };
    usize::try_from(child)
        .map_err(|_| Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN)))
}

/// Ends this process.
pub fn exit(status: usize) -> ! {
    loop {
        let _ = plain(libc::SYS_exit_group, [status, 0, 0, 0, 0, 0]);
    }
}

/// Waits for a child (`-1`: any); its number and status. 0 when none has ended (`WNOHANG`).
pub fn wait(child: isize, flags: i32) -> Result<(usize, i32)> {
    let mut status = 0i32;
    let words = [child as usize, &raw mut status as usize, flags as usize, 0, 0, 0];
    patient(libc::SYS_wait4, words).map(|pid| (pid, status))
}

/// Replaces the program.
pub fn exec(path: &core::ffi::CStr, args: &[*const u8], env: &[*const u8]) -> Errno {
    let words = [path.as_ptr() as usize, args.as_ptr() as usize, env.as_ptr() as usize, 0, 0, 0];
    plain(libc::SYS_execve, words).map_or_else(|error| error, |_| Errno(0))
}

/// `kill`.
pub fn kill(pid: usize, signal: i32) -> Result<()> {
    plain(libc::SYS_kill, [pid, signal as usize, 0, 0, 0, 0]).map(drop)
}

/// `tgkill` within this process.
pub fn signal_thread(tid: i32, signal: i32) -> Result<()> {
    plain(libc::SYS_tgkill, [getpid(), tid as usize, signal as usize, 0, 0, 0]).map(drop)
}

/// `rt_tgsigqueueinfo` to the calling thread, with a value.
pub fn queue_to_self(signal: i32, value: u64) -> Result<()> {
    let mut info = [0u64; 16];
    let low = |word: i32| u64::from(word as u32);
    info[0] = low(signal);
    info[1] = low(libc::SI_QUEUE);
    info[2] = getpid() as u64;
    info[3] = value;
    let words = [getpid(), gettid() as usize, signal as usize, info.as_ptr() as usize, 0, 0];
    plain(libc::SYS_rt_tgsigqueueinfo, words).map(drop)
}

/// `rt_sigprocmask`; the old mask.
pub fn mask(how: i32, set: u64) -> Result<u64> {
    let mut old = 0u64;
    let words = [how as usize, &raw const set as usize, &raw mut old as usize, 8, 0, 0];
    plain(libc::SYS_rt_sigprocmask, words).map(|_| old)
}

/// `rt_sigpending`.
pub fn pending() -> Result<u64> {
    let mut set = 0u64;
    plain(libc::SYS_rt_sigpending, [&raw mut set as usize, 8, 0, 0, 0, 0]).map(|_| set)
}

/// Waits on a private futex while it holds `value`; never longer than this (nanoseconds).
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32, ns: u64) -> Result<()> {
    let time = [ns / 1_000_000_000, ns % 1_000_000_000];
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let words = [word.as_ptr() as usize, op as usize, value as usize, time.as_ptr() as usize, 0, 0];
    plain(libc::SYS_futex, words).map(drop)
}

/// Wakes that many; how many there were.
pub fn futex_wake(word: &core::sync::atomic::AtomicU32, count: usize) -> Result<usize> {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    plain(libc::SYS_futex, [word.as_ptr() as usize, op as usize, count, 0, 0, 0])
}

/// Wakes one and lets the others wait on another word.
pub fn futex_requeue(
    word: &core::sync::atomic::AtomicU32,
    to: &core::sync::atomic::AtomicU32,
) -> Result<usize> {
    let op = libc::FUTEX_REQUEUE | libc::FUTEX_PRIVATE_FLAG;
    let words = [word.as_ptr() as usize, op as usize, 1, 100, to.as_ptr() as usize, 0];
    plain(libc::SYS_futex, words)
}

/// Both ends of a pipe.
pub fn pipe() -> Result<[i32; 2]> {
    let mut ends = [0i32; 2];
    plain(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, libc::O_CLOEXEC as usize, 0, 0, 0, 0])?;
    Ok(ends)
}

/// Closes a file.
pub fn close(file: i32) {
    let _ = plain(libc::SYS_close, [file as usize, 0, 0, 0, 0, 0]);
}

/// Reads up to the buffer's size.
pub fn read(file: i32, buffer: &mut [u8]) -> Result<usize> {
    patient(libc::SYS_read, [file as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
}

/// Reads at a place.
pub fn read_at(file: i32, buffer: &mut [u8], at: usize) -> Result<usize> {
    let words = [file as usize, buffer.as_mut_ptr() as usize, buffer.len(), at, 0, 0];
    patient(libc::SYS_pread64, words)
}

/// Writes some of the bytes.
pub fn write(file: i32, bytes: &[u8]) -> Result<usize> {
    patient(libc::SYS_write, [file as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0])
}

/// A file without a name, of this size.
pub fn memory_file(len: usize) -> Result<i32> {
    let name = c"torture".as_ptr() as usize;
    let file = plain(libc::SYS_memfd_create, [name, libc::MFD_CLOEXEC as usize, 0, 0, 0, 0])?;
    if let Err(error) = plain(libc::SYS_ftruncate, [file, len, 0, 0, 0, 0]) {
        close(file as i32);
        return Err(error);
    }
    Ok(file as i32)
}

/// This process.
pub fn getpid() -> usize {
    plain(libc::SYS_getpid, [0; 6]).unwrap_or(0)
}

/// This thread.
pub fn gettid() -> i32 {
    plain(libc::SYS_gettid, [0; 6]).unwrap_or(0) as i32
}

/// Sleeps this long or until a signal (nanoseconds).
pub fn sleep(ns: u64) {
    let time = [ns / 1_000_000_000, ns % 1_000_000_000];
    let _ = plain(libc::SYS_nanosleep, [time.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

/// Monotonic nanoseconds; asks until there is memory for the answer.
pub fn now() -> u64 {
    let mut time = [0u64; 2];
    let clock = libc::CLOCK_MONOTONIC as usize;
    let words = [clock, time.as_mut_ptr() as usize, 0, 0, 0, 0];
    while plain(libc::SYS_clock_gettime, words).is_err() {}
    time[0] * 1_000_000_000 + time[1]
}

/// Lets others run.
pub fn yield_now() {
    let _ = plain(libc::SYS_sched_yield, [0; 6]);
}

/// The CPUs that this thread may run on, a bit each.
pub fn affinity() -> Result<u64> {
    let mut set = [0u64; 16];
    plain(libc::SYS_sched_getaffinity, [0, 128, set.as_mut_ptr() as usize, 0, 0, 0])?;
    Ok(set[0])
}

/// Lets this thread run on these CPUs only.
pub fn set_affinity(set: u64) -> Result<()> {
    plain(libc::SYS_sched_setaffinity, [0, 8, &raw const set as usize, 0, 0, 0]).map(drop)
}

/// The CPU that this thread runs on.
pub fn cpu() -> Result<u32> {
    let mut cpu = 0u32;
    plain(libc::SYS_getcpu, [&raw mut cpu as usize, 0, 0, 0, 0, 0])?;
    Ok(cpu)
}

/// Orphans of this process's children come to it.
pub fn adopt_orphans() {
    let _ = plain(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as usize, 1, 0, 0, 0, 0]);
}
