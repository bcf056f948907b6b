//! Every allocation that the kernel makes for a small piece of work fails once, one after the other
//! (`/proc/self/fail-nth`): the work ends in an error, or in the end of its process, and whatever it
//! did answer is right. What the kernel forgot to give back shows when the machine ends.
//!
//! On a kernel without such a file there is nothing to do.
#![allow(unsafe_code)] // mappings that hold no Rust value

use core::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use crate::board::{GAVE_UP, WRONG};
use crate::faults;
use crate::regions::{compare, fill};
use crate::sys::{self, PAGE};

/// The child came to the end of its work, and all allocations were granted.
const WHOLE: usize = 50;
/// The child came to the end of its work, and one allocation was refused.
const REFUSED: usize = 51;
/// No work here needs that many allocations.
const MOST: u64 = 5000;

type Work = fn() -> Option<()>;

const WORKS: &[(&str, Work)] = &[
    ("memory", memory),
    ("fork", fork),
    ("execute", execute),
    ("pipe", pipe),
    ("file in memory", memory_file),
    ("files", files),
    ("threads", threads),
    ("signals", signals),
    ("proc", proc),
    ("waiting for files", polling),
    ("shared memory", shared),
];

/// Does all works with all failures.
pub fn run() -> ExitCode {
    if fs::write("/proc/self/fail-nth", "0").is_err() {
        println!("sweep: no /proc/self/fail-nth here");
        return ExitCode::SUCCESS;
    }
    let mut wrong = 0;
    for (name, work) in WORKS {
        let (mut refused, mut killed) = (0, 0);
        let mut whole = false;
        for nth in 1..MOST {
            match sys::fork_with_library() {
                Ok(0) => child(nth, *work),
                Ok(pid) => match sys::wait(pid as isize, 0)
                    .map(|(_, status)| (status & 0x7f, status >> 8))
                {
                    Ok((0, code)) if code == WHOLE as i32 => whole = true,
                    Ok((0, code)) if code == REFUSED as i32 => refused += 1,
                    Ok((0, code)) if code == GAVE_UP as i32 => killed += 1,
                    Ok((libc::SIGKILL | libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS, _)) => {
                        killed += 1
                    }
                    other => {
                        println!("sweep: {name}, allocation {nth}: ended with {other:x?}");
                        wrong += 1;
                    }
                },
                Err(error) => {
                    println!("sweep: fork: error {}", error.0);
                    return ExitCode::FAILURE;
                }
            }
            if whole {
                break;
            }
        }
        println!(
            "sweep: {name}: {refused} refusals survived, {killed} processes ended, whole {whole}"
        );
        wrong += u32::from(!whole);
    }
    println!("sweep: {wrong} wrong");
    ExitCode::from(u8::from(wrong != 0))
}

fn child(nth: u64, work: Work) -> ! {
    faults::install();
    let Ok(mut file) = File::options().read(true).write(true).open("/proc/self/fail-nth") else {
        sys::exit(WRONG);
    };
    let mut text = [0u8; 24];
    let mut order = Digits { bytes: [0; 24], len: 0 };
    let _ = write!(order, "{nth}");
    if file.write_all(&order.bytes[..order.len]).is_err() {
        sys::exit(REFUSED); // its own write was refused already
    }
    let _ = work();
    let left = sys::read_at(std::os::fd::AsRawFd::as_raw_fd(&file), &mut text, 0);
    let none_failed = left.is_ok_and(|count| count > 0 && text[0] != b'0');
    sys::exit(if none_failed { WHOLE } else { REFUSED })
}

struct Digits {
    bytes: [u8; 24],
    len: usize,
}

impl core::fmt::Write for Digits {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            *self.bytes.get_mut(self.len).ok_or(core::fmt::Error)? = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// What was answered must be right.
fn must(holds: bool, what: &str) {
    if !holds {
        eprintln!("sweep: WRONG: {what}");
        sys::exit(WRONG);
    }
}

fn map(pages: usize, kind: i32) -> Option<usize> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    sys::mmap(0, pages * PAGE, prot, kind | libc::MAP_ANONYMOUS, -1).ok()
}

fn memory() -> Option<()> {
    let at = map(16, libc::MAP_PRIVATE)?;
    (0..16).for_each(|page| fill(at + page * PAGE, 7 + page as u64));
    let holds = |at: usize, first: u64, count: usize| {
        for page in 0..count {
            must(compare(at + page * PAGE, first + page as u64).is_none(), "a page changed");
        }
    };
    let _ = sys::mprotect(at + 4 * PAGE, 2 * PAGE, libc::PROT_READ);
    let _ = sys::mprotect(at + 4 * PAGE, 2 * PAGE, libc::PROT_READ | libc::PROT_WRITE);
    holds(at, 7, 16);
    if sys::munmap(at + 8 * PAGE, PAGE).is_err() {
        holds(at, 7, 16);
    }
    let moved = sys::mremap(at, 8 * PAGE, 40 * PAGE, libc::MREMAP_MAYMOVE, 0);
    holds(moved.unwrap_or(at), 7, 8);
    let _ = sys::madvise(at + 9 * PAGE, PAGE, libc::MADV_DONTNEED);
    holds(at + 10 * PAGE, 17, 6);
    // Memory in a part of the address space that has no tables yet.
    let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_POPULATE;
    let far = sys::mmap(0x2345_6789_0000, 8 * PAGE, libc::PROT_READ | libc::PROT_WRITE, fixed, -1);
    fill(far.ok()?, 5);
    sys::munmap(0x2345_6789_0000, 8 * PAGE).ok()
}

fn reap(child: usize, status: usize) {
    while let Err(error) = sys::wait(child as isize, 0).map(|(_, seen)| {
        let ended =
            seen == (status as i32) << 8 || seen & 0x7f != 0 || seen == (GAVE_UP as i32) << 8;
        must(ended, "a child ended in another way");
    }) {
        must(error.0 == libc::ENOMEM, "wait4 answered an odd error");
    }
}

fn fork() -> Option<()> {
    let at = map(6, libc::MAP_PRIVATE)?;
    (0..6).for_each(|page| fill(at + page * PAGE, 9 + page as u64));
    let child = sys::fork().ok()?;
    if child == 0 {
        fill(at, 1);
        must(compare(at + PAGE, 10).is_none(), "a page of a child");
        sys::exit(3);
    }
    fill(at + PAGE, 2);
    must(compare(at, 9).is_none(), "a page of a parent");
    reap(child, 3);
    Some(())
}

fn execute() -> Option<()> {
    let args = [c"torture".as_ptr().cast(), c"--left".as_ptr().cast(), core::ptr::null()];
    let env = [c"TORTURE=yes".as_ptr().cast(), core::ptr::null()];
    // The order to fail stays with the thread, whose new program will answer.
    let error = sys::exec(c"/proc/self/exe", &args, &env);
    must(error.0 == libc::ENOMEM, "an odd error of execve");
    None
}

/// In a program that was executed by [`execute`]: has an allocation failed?
pub fn left() -> ExitCode {
    let text = fs::read_to_string("/proc/self/fail-nth").unwrap_or_default();
    let none_failed = text.trim().parse().is_ok_and(|left: u64| left != 0);
    ExitCode::from(if none_failed { WHOLE } else { REFUSED } as u8)
}

fn pipe() -> Option<()> {
    let [reader, writer] = sys::pipe().ok()?;
    let bytes: [u8; 5000] = core::array::from_fn(|at| (at * 7) as u8);
    let sent = sys::write(writer, &bytes).unwrap_or(0);
    let mut seen = [0u8; 6000];
    let mut done = 0;
    while done < sent {
        match sys::read(reader, &mut seen[done..]) {
            Ok(count) => done += count,
            Err(error) => must(error.0 == libc::ENOMEM, "an odd error of read"),
        }
    }
    must(seen[..sent] == bytes[..sent], "bytes of a pipe");
    sys::close(reader);
    sys::close(writer);
    Some(())
}

fn memory_file() -> Option<()> {
    let file = sys::memory_file(5 * PAGE).ok()?;
    let page = [5u8; PAGE];
    let written = sys::write(file, &page).unwrap_or(0);
    let at =
        sys::mmap(0, 5 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE, file).ok()?;
    let mut seen = [0u8; PAGE];
    let count = sys::read_at(file, &mut seen, 0).unwrap_or(0).min(written);
    must(seen[..count] == page[..count], "bytes of a file in memory");
    fill(at, 77);
    must(compare(at, 77).is_none(), "a private page of a file");
    sys::munmap(at, 5 * PAGE).ok()?;
    sys::close(file);
    Some(())
}

fn files() -> Option<()> {
    let name = format!("/tmp/sweep-{}", sys::getpid());
    fs::create_dir(&name).ok()?;
    let path = format!("{name}/a");
    let result = (|| {
        fs::write(&path, vec![3u8; 9000]).ok()?;
        fs::rename(&path, format!("{name}/b")).ok()?;
        std::os::unix::fs::symlink("b", format!("{name}/c")).ok()?;
        let back = fs::read(format!("{name}/c")).ok()?;
        must(back == vec![3u8; 9000], "bytes of a file");
        let count = fs::read_dir(&name).ok()?.filter(Result::is_ok).count();
        must(count <= 2, "a folder's entries");
        fs::metadata(format!("{name}/b")).ok()?;
        Some(())
    })();
    let _ = fs::remove_dir_all(&name);
    result
}

fn threads() -> Option<()> {
    let thread = std::thread::Builder::new().stack_size(32 << 10).spawn(|| 42).ok()?;
    must(thread.join().is_ok_and(|number| number == 42), "a thread's answer");
    Some(())
}

fn signals() -> Option<()> {
    if !faults::make_signal_stack() {
        return None;
    }
    let _ = sys::mask(libc::SIG_BLOCK, 1 << (faults::QUEUE_SIGNAL - 1));
    let sent =
        (1..4).filter(|&value| sys::queue_to_self(faults::QUEUE_SIGNAL, value).is_ok()).count();
    while sys::mask(libc::SIG_UNBLOCK, 1 << (faults::QUEUE_SIGNAL - 1)).is_err() {}
    let came = faults::take_queued().into_iter().filter(|&value| value != 0).count();
    must(came == sent, "queued signals");
    let _ = sys::signal_thread(sys::gettid(), libc::SIGUSR1);
    let at = map(1, libc::MAP_PRIVATE)?;
    sys::mprotect(at, PAGE, libc::PROT_NONE).ok()?;
    let fault = faults::probe(at, true)?;
    must(fault.address == at && fault.code == faults::ACCERR, "a fault's circumstances");
    faults::drop_signal_stack();
    Some(())
}

fn proc() -> Option<()> {
    let mut text = Vec::new();
    for file in [
        "self/maps",
        "self/status",
        "self/smaps",
        "self/stat",
        "meminfo",
        "slabinfo",
        "stat",
        "cpuinfo",
    ] {
        text.clear();
        if let Ok(mut file) = File::open(format!("/proc/{file}")) {
            let _ = file.read_to_end(&mut text);
        }
    }
    for folder in ["/proc", "/proc/self/fd", "/proc/self/task"] {
        let _ = fs::read_dir(folder).ok()?.count();
    }
    let _ = fs::read_link("/proc/self/exe");
    let _ = std::env::current_dir();
    Some(())
}

fn polling() -> Option<()> {
    let [reader, writer] = sys::pipe().ok()?;
    // SAFETY: plain calls on numbers and on values that outlive them.
    unsafe {
        let mut wanted = [reader, writer].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN | libc::POLLOUT,
            revents: 0,
        });
        libc::poll(wanted.as_mut_ptr(), 2, 1);
        let group = libc::epoll_create1(0);
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 5 };
        libc::epoll_ctl(group, libc::EPOLL_CTL_ADD, reader, &raw mut event);
        let _ = sys::write(writer, b"x");
        libc::epoll_wait(group, &raw mut event, 1, 1);
        let counter = libc::eventfd(3, 0);
        let copy = libc::dup(counter);
        libc::fcntl(copy, libc::F_DUPFD, 100);
        for fd in [reader, writer, group, counter, copy] {
            libc::close(fd);
        }
    }
    Some(())
}

fn shared() -> Option<()> {
    let at = map(4, libc::MAP_SHARED)?;
    fill(at, 4);
    let child = sys::fork().ok()?;
    if child == 0 {
        fill(at + PAGE, 5);
        sys::exit(4);
    }
    let whole = sys::wait(child as isize, 0).is_ok_and(|(_, status)| status == 4 << 8);
    must(compare(at, 4).is_none(), "a shared page");
    must(!whole || compare(at + PAGE, 5).is_none(), "a shared page that a child wrote");
    sys::munmap(at, 4 * PAGE).ok()
}
