//! The Linux side: a child that makes the calls it reads from a pipe.
//!
//! The child allocates nothing after the fork: it reads six words, makes one system call, and
//! writes one word back. The parent reads the child's maps and page map from `/proc`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;

use pagoda_vm::Locking;

use super::calls::Call;
use super::{Maps, PAGE, REACH, Side, ours, push};

/// Numbers that are no system calls: a byte is read, a byte is written.
const READ: u64 = u64::MAX;
const WRITE: u64 = u64::MAX - 1;

type Words = [u64; 6];

pub struct Real {
    child: libc::pid_t,
    requests: File,
    answers: File,
    pagemap: File,
    file: i32,
}

impl Real {
    /// None when the machine forbids what is needed here.
    pub fn start() -> Option<Self> {
        // SAFETY: a name that ends in zero.
        let file = unsafe { libc::memfd_create(c"differential".as_ptr(), 0) };
        if file < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and nobody else's.
        let mut content = unsafe { File::from_raw_fd(file) };
        content.write_all(&ours::content()).ok()?;
        let file = content.into_raw_fd();
        let (their_requests, requests) = pipe()?;
        let (answers, their_answers) = pipe()?;
        // SAFETY: the child calls nothing but system calls.
        match unsafe { libc::fork() } {
            0 => serve(their_requests.into_raw_fd(), their_answers.into_raw_fd()),
            child if child > 0 => {
                let pagemap = File::open(format!("/proc/{child}/pagemap")).ok()?;
                let mut real = Self { child, requests, answers, pagemap, file };
                // May the child look at its own memory?
                let here = &raw const real.file as u64;
                (real.ask([READ, here, 0, 0, 0, 0]) >= 0).then_some(real)
            }
            _ => None,
        }
    }

    /// Uses the file that the child has open too.
    fn on_file<T>(&self, act: impl FnOnce(&File) -> T) -> T {
        // SAFETY: our own descriptor, which is not closed here.
        let file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(self.file) });
        act(&file)
    }

    fn ask(&mut self, words: Words) -> i64 {
        let mut bytes = [0; 48];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        self.requests.write_all(&bytes).expect("a child that reads");
        let mut answer = [0; 8];
        self.answers.read_exact(&mut answer).expect("a child that answers");
        i64::from_ne_bytes(answer)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not waited for yet.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, std::ptr::null_mut(), 0);
            libc::close(self.file);
        }
    }
}

/// Its end to read from, its end to write to.
fn pipe() -> Option<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are new and nobody else's.
    unsafe {
        (libc::pipe(ends.as_mut_ptr()) == 0)
            .then(|| (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])))
    }
}

/// The child. Ends when the parent does.
fn serve(requests: i32, answers: i32) -> ! {
    // SAFETY: plain system calls on the child's own buffers; the memory calls stay in a window that
    // nothing of this process uses.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Nothing may depend on how much of the machine's memory is promised to others.
        loop {
            let mut words: Words = [0; 6];
            let got = libc::read(requests, words.as_mut_ptr().cast(), 48);
            if got != 48 {
                libc::_exit(0);
            }
            let answer = perform(words);
            if libc::write(answers, (&raw const answer).cast(), 8) != 8 {
                libc::_exit(0);
            }
        }
    }
}

/// # Safety
/// The call does no harm to this process.
unsafe fn perform([number, a, b, c, d, e]: Words) -> i64 {
    // SAFETY: the caller's promise; the buffers live here.
    unsafe {
        let mut residency = [0_u8; 1024];
        let result = match number {
            READ | WRITE => {
                let mut byte = b as u8;
                let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
                let remote = libc::iovec { iov_base: a as *mut libc::c_void, iov_len: 1 };
                let me = libc::getpid();
                let done = if number == READ {
                    libc::process_vm_readv(me, &raw const local, 1, &raw const remote, 1, 0)
                } else {
                    libc::process_vm_writev(me, &raw const local, 1, &raw const remote, 1, 0)
                };
                if done == 1 { i64::from(byte) } else { -1 }
            }
            _ if number == libc::SYS_mincore as u64 => {
                libc::syscall(libc::SYS_mincore, a, b, residency.as_mut_ptr())
            }
            // The file of a mapping stands in the last word, in front of the offset: see `call`.
            _ if number == libc::SYS_mmap as u64 => {
                libc::syscall(libc::SYS_mmap, a, b, c, d & 0xffff_ffff, (d >> 32) as i32, e)
            }
            _ => libc::syscall(number as libc::c_long, a, b, c, d, e),
        };
        if result == -1 { -i64::from(*libc::__errno_location()) } else { result }
    }
}

impl Side for Real {
    fn reset_file(&mut self) {
        let content = ours::content();
        self.on_file(|file| {
            file.set_len(0)?;
            file.write_all_at(&content, 0)
        })
        .expect("a file in memory");
    }

    fn call(&mut self, call: Call) -> i64 {
        let words = match call {
            Call::Truncate { len } => {
                return self.on_file(|file| file.set_len(len)).map_or(-1, |()| 0);
            }
            Call::FileWrite { at, byte } => {
                return self.on_file(|file| file.write_at(&[byte], at)).map_or(-1, |n| n as i64);
            }
            Call::FileRead { at } => {
                let mut byte = [0];
                let read = self.on_file(|file| file.read_at(&mut byte, at));
                return match read {
                    Ok(1) => byte[0].into(),
                    Ok(_) => 1000,
                    Err(_) => -1,
                };
            }
            Call::Map { addr, len, prot, flags, offset } => {
                let file = if flags & 0x20 == 0 { self.file } else { -1 };
                let packed = flags | u64::from(file as u32) << 32;
                [libc::SYS_mmap as u64, addr, len, prot, packed, offset]
            }
            Call::Unmap { addr, len } => [libc::SYS_munmap as u64, addr, len, 0, 0, 0],
            Call::Protect { addr, len, prot } => [libc::SYS_mprotect as u64, addr, len, prot, 0, 0],
            Call::Remap { addr, old, new, flags, to } => {
                [libc::SYS_mremap as u64, addr, old, new, flags, to]
            }
            Call::Advise { addr, len, advice } => {
                [libc::SYS_madvise as u64, addr, len, advice, 0, 0]
            }
            Call::Mincore { addr, len } => [libc::SYS_mincore as u64, addr, len, 0, 0, 0],
            Call::Lock { addr, len, how: Locking::Now } => {
                [libc::SYS_mlock as u64, addr, len, 0, 0, 0]
            }
            Call::Lock { addr, len, how: Locking::OnFault } => {
                [libc::SYS_mlock2 as u64, addr, len, 1, 0, 0]
            }
            Call::Lock { addr, len, .. } => [libc::SYS_munlock as u64, addr, len, 0, 0, 0],
            Call::LockAll { flags: 0 } => [libc::SYS_munlockall as u64, 0, 0, 0, 0, 0],
            Call::LockAll { flags } => [libc::SYS_mlockall as u64, flags, 0, 0, 0, 0],
            Call::Write { addr, byte } => [WRITE, addr, byte.into(), 0, 0, 0],
            Call::Read { addr } => [READ, addr, 0, 0, 0, 0],
        };
        self.ask(words)
    }

    fn maps(&mut self) -> Maps {
        let text = std::fs::read_to_string(format!("/proc/{}/maps", self.child));
        let mut maps = Maps::new();
        for line in text.expect("a child with maps").lines() {
            let mut words = line.split_whitespace();
            let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
            let Some((start, end)) = range.split_once('-') else { continue };
            let hex = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            if REACH.contains(&hex(start)) {
                push(&mut maps, hex(start), hex(end), rights);
            }
        }
        maps
    }

    fn present(&mut self, anonymous: &[bool]) -> Vec<bool> {
        let mut entries = vec![0; anonymous.len() * 8];
        let at = REACH.start / PAGE * 8;
        self.pagemap.read_exact_at(&mut entries, at).expect("a child with a page map");
        let present = entries.chunks_exact(8).map(|entry| entry[7] & 0x80 != 0);
        present.zip(anonymous).map(|(present, &anonymous)| present && anonymous).collect()
    }

    fn anonymous(&mut self) -> Vec<bool> {
        Vec::new()
    }
}
