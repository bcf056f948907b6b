//! Calls with pointers to where nothing is, and with the end of what is there inside what they
//! point at: each answers `EFAULT`, or with what it could do.

use crate::refusals::call;
use crate::watch::map;

/// Where a pointer stands in a call's words.
#[derive(Clone, Copy)]
enum Word {
    /// A number.
    Is(usize),
    /// The bad pointer.
    Bad,
    /// A path to a file.
    Path,
    /// A path to a file that may be executed and is no program.
    Run,
    /// A path to nothing.
    Fresh,
    /// A descriptor of a file of 100 bytes, at its beginning.
    File,
    /// A descriptor of a pipe with 100 bytes in it.
    Pipe,
    /// A descriptor of a folder.
    Folder,
    /// A descriptor of an `epoll`.
    Group,
    /// A place that is good, full of zeroes.
    Zeroes,
    /// One element that describes 64 bytes at the bad place (`struct iovec`).
    Vector,
}

use Word::{Bad, File, Folder, Fresh, Group, Is, Path, Pipe, Run, Vector, Zeroes};

const CALLS: &[(&str, i64, [Word; 6])] = &[
    ("read", libc::SYS_read, [File, Bad, Is(64), Is(0), Is(0), Is(0)]),
    ("read a pipe", libc::SYS_read, [Pipe, Bad, Is(64), Is(0), Is(0), Is(0)]),
    ("write", libc::SYS_write, [File, Bad, Is(64), Is(0), Is(0), Is(0)]),
    ("write a pipe", libc::SYS_write, [Pipe, Bad, Is(64), Is(0), Is(0), Is(0)]),
    ("pread", libc::SYS_pread64, [File, Bad, Is(64), Is(5), Is(0), Is(0)]),
    ("pwrite", libc::SYS_pwrite64, [File, Bad, Is(64), Is(5), Is(0), Is(0)]),
    ("readv", libc::SYS_readv, [File, Bad, Is(1), Is(0), Is(0), Is(0)]),
    ("readv to", libc::SYS_readv, [File, Vector, Is(1), Is(0), Is(0), Is(0)]),
    ("writev", libc::SYS_writev, [File, Bad, Is(1), Is(0), Is(0), Is(0)]),
    ("writev from", libc::SYS_writev, [File, Vector, Is(1), Is(0), Is(0), Is(0)]),
    ("open", libc::SYS_open, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("openat", libc::SYS_openat, [Folder, Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("access", libc::SYS_access, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("stat", libc::SYS_stat, [Path, Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("stat of", libc::SYS_stat, [Bad, Zeroes, Is(0), Is(0), Is(0), Is(0)]),
    ("fstat", libc::SYS_fstat, [File, Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("statx", libc::SYS_statx, [Folder, Path, Is(0), Is(0x7ff), Bad, Is(0)]),
    ("statfs", libc::SYS_statfs, [Path, Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("getdents64", libc::SYS_getdents64, [Folder, Bad, Is(4096), Is(0), Is(0), Is(0)]),
    ("readlink", libc::SYS_readlink, [Bad, Zeroes, Is(64), Is(0), Is(0), Is(0)]),
    ("mkdir", libc::SYS_mkdir, [Bad, Is(0o700), Is(0), Is(0), Is(0), Is(0)]),
    ("rmdir", libc::SYS_rmdir, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("unlink", libc::SYS_unlink, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("rename", libc::SYS_rename, [Path, Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("link", libc::SYS_link, [Bad, Fresh, Is(0), Is(0), Is(0), Is(0)]),
    ("symlink", libc::SYS_symlink, [Bad, Fresh, Is(0), Is(0), Is(0), Is(0)]),
    ("chmod", libc::SYS_chmod, [Bad, Is(0o600), Is(0), Is(0), Is(0), Is(0)]),
    ("truncate", libc::SYS_truncate, [Bad, Is(100), Is(0), Is(0), Is(0), Is(0)]),
    ("chdir", libc::SYS_chdir, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("utimensat", libc::SYS_utimensat, [Folder, Path, Bad, Is(0), Is(0), Is(0)]),
    ("pipe", libc::SYS_pipe, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("uname", libc::SYS_uname, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("sysinfo", libc::SYS_sysinfo, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("times", libc::SYS_times, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("getrusage", libc::SYS_getrusage, [Is(0), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("getrlimit", libc::SYS_getrlimit, [Is(7), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("setrlimit", libc::SYS_setrlimit, [Is(4), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("prlimit64", libc::SYS_prlimit64, [Is(0), Is(7), Is(0), Bad, Is(0), Is(0)]),
    ("gettimeofday", libc::SYS_gettimeofday, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("clock_gettime", libc::SYS_clock_gettime, [Is(1), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("clock_getres", libc::SYS_clock_getres, [Is(1), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("nanosleep", libc::SYS_nanosleep, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("setitimer", libc::SYS_setitimer, [Is(0), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("getitimer", libc::SYS_getitimer, [Is(0), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("poll", libc::SYS_poll, [Bad, Is(1), Is(0), Is(0), Is(0), Is(0)]),
    ("select", libc::SYS_select, [Is(64), Bad, Is(0), Is(0), Zeroes, Is(0)]),
    ("epoll_ctl", libc::SYS_epoll_ctl, [Group, Is(1), Pipe, Bad, Is(0), Is(0)]),
    ("rt_sigaction", libc::SYS_rt_sigaction, [Is(10), Bad, Is(0), Is(8), Is(0), Is(0)]),
    ("rt_sigaction's old", libc::SYS_rt_sigaction, [Is(10), Is(0), Bad, Is(8), Is(0), Is(0)]),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask, [Is(0), Bad, Is(0), Is(8), Is(0), Is(0)]),
    ("rt_sigprocmask's old", libc::SYS_rt_sigprocmask, [Is(0), Is(0), Bad, Is(8), Is(0), Is(0)]),
    ("rt_sigpending", libc::SYS_rt_sigpending, [Bad, Is(8), Is(0), Is(0), Is(0), Is(0)]),
    ("rt_sigsuspend", libc::SYS_rt_sigsuspend, [Bad, Is(7), Is(0), Is(0), Is(0), Is(0)]),
    ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, [Bad, Is(0), Zeroes, Is(8), Is(0), Is(0)]),
    (
        "rt_sigqueueinfo",
        libc::SYS_rt_sigqueueinfo,
        [Is(0x3fff_ffff), Is(10), Bad, Is(0), Is(0), Is(0)],
    ),
    ("sigaltstack", libc::SYS_sigaltstack, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("sigaltstack's old", libc::SYS_sigaltstack, [Is(0), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("futex", libc::SYS_futex, [Bad, Is(0), Is(1), Is(0), Is(0), Is(0)]),
    ("futex's time", libc::SYS_futex, [Zeroes, Is(0), Is(1), Bad, Is(0), Is(0)]),
    ("get_robust_list", libc::SYS_get_robust_list, [Is(0), Bad, Zeroes, Is(0), Is(0), Is(0)]),
    ("sched_getaffinity", libc::SYS_sched_getaffinity, [Is(0), Is(8), Bad, Is(0), Is(0), Is(0)]),
    ("sched_setaffinity", libc::SYS_sched_setaffinity, [Is(0), Is(8), Bad, Is(0), Is(0), Is(0)]),
    ("getcpu", libc::SYS_getcpu, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("setgroups", libc::SYS_setgroups, [Is(2), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("getresuid", libc::SYS_getresuid, [Bad, Zeroes, Zeroes, Is(0), Is(0), Is(0)]),
    ("getrandom", libc::SYS_getrandom, [Bad, Is(64), Is(0), Is(0), Is(0), Is(0)]),
    ("mincore", libc::SYS_mincore, [Zeroes, Is(4096), Bad, Is(0), Is(0), Is(0)]),
    ("execve", libc::SYS_execve, [Bad, Is(0), Is(0), Is(0), Is(0), Is(0)]),
    ("execve's arguments", libc::SYS_execve, [Run, Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("execve's environment", libc::SYS_execve, [Run, Is(0), Bad, Is(0), Is(0), Is(0)]),
    ("arch_prctl", libc::SYS_arch_prctl, [Is(0x1003), Bad, Is(0), Is(0), Is(0), Is(0)]),
    ("prctl", libc::SYS_prctl, [Is(16), Bad, Is(0), Is(0), Is(0), Is(0)]),
];

/// A place for a pointer: its name, and how to get there from the end of a mapping.
type Place = (&'static str, fn(usize) -> usize);

const PLACES: &[Place] = &[
    ("null", |_| 0),
    ("unmapped", |end| end),
    ("kernel", |_| 0xffff_ffff_8020_0000),
    ("wild", |_| 1 << 63),
    ("last", |_| usize::MAX),
    ("end-1", |end| end - 1),
    ("end-4", |end| end - 4),
    ("end-8", |end| end - 8),
    ("end-16", |end| end - 16),
];

/// What good words stand for.
struct Things {
    path: usize,
    fresh: usize,
    file: usize,
    pipe: [usize; 2],
    folder: usize,
    group: usize,
    zeroes: usize,
    vector: usize,
    /// The end of a page behind which nothing is.
    end: usize,
}

const PATH: &core::ffi::CStr = c"/tmp/crimes-file";
const RUN: &core::ffi::CStr = c"/tmp/crimes-run";
const FRESH: &core::ffi::CStr = c"/tmp/crimes-fresh";

impl Things {
    fn new() -> Self {
        std::fs::write("/tmp/crimes-file", [b'x'; 100]).expect("a file");
        std::fs::write("/tmp/crimes-run", "no program").expect("a file");
        call(libc::SYS_chmod, [RUN.as_ptr() as usize, 0o755, 0, 0, 0, 0]);
        let mut ends = [0i32; 2];
        // SAFETY: fresh descriptors, and a page of ours that is given back.
        let (pipe, folder, group) = unsafe {
            libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK);
            (ends, libc::open(c"/tmp".as_ptr(), 0), libc::epoll_create1(0))
        };
        let two = map(8192, libc::MAP_PRIVATE) as usize;
        // SAFETY: the second page is ours, and stays so that nothing else comes there.
        unsafe { libc::mprotect((two + 4096) as *mut libc::c_void, 4096, libc::PROT_NONE) };
        Self {
            path: PATH.as_ptr() as usize,
            fresh: FRESH.as_ptr() as usize,
            // SAFETY: a descriptor.
            file: unsafe { libc::open(PATH.as_ptr(), libc::O_RDWR) } as usize,
            pipe: pipe.map(|end| end as usize),
            folder: folder as usize,
            group: group as usize,
            zeroes: map(4096, libc::MAP_PRIVATE) as usize,
            vector: map(4096, libc::MAP_PRIVATE) as usize,
            end: two + 4096,
        }
    }

    /// Makes everything as it was.
    fn restore(&self) {
        let bytes = [b'x'; 100];
        let at = bytes.as_ptr() as usize;
        call(libc::SYS_ftruncate, [self.file, 0, 0, 0, 0, 0]);
        call(libc::SYS_pwrite64, [self.file, at, 100, 0, 0, 0]);
        call(libc::SYS_lseek, [self.file, 0, 0, 0, 0, 0]);
        let mut old = [0u8; 4096];
        call(libc::SYS_read, [self.pipe[0], old.as_mut_ptr() as usize, 4096, 0, 0, 0]);
        call(libc::SYS_write, [self.pipe[1], at, 100, 0, 0, 0]);
        call(libc::SYS_lseek, [self.folder, 0, 0, 0, 0, 0]);
        call(libc::SYS_epoll_ctl, [self.group, 2, self.pipe[0], 0, 0, 0]);
        // SAFETY: pages of ours.
        unsafe {
            (self.zeroes as *mut u8).write_bytes(0, 4096);
            ((self.end - 4096) as *mut u8).write_bytes(0, 4096);
        }
    }

    fn word(&self, word: Word, bad: usize, writes: bool) -> usize {
        match word {
            Is(number) => number,
            Bad => bad,
            Path => self.path,
            Run => RUN.as_ptr() as usize,
            Fresh => self.fresh,
            File => self.file,
            Pipe => self.pipe[usize::from(writes)],
            Folder => self.folder,
            Group => self.group,
            Zeroes => self.zeroes,
            Vector => {
                // SAFETY: a page of ours.
                unsafe { (self.vector as *mut [usize; 2]).write([bad, 64]) };
                self.vector
            }
        }
    }
}

/// Makes all calls with all pointers; how many there were.
pub fn run() -> usize {
    let things = Things::new();
    // A zero is a descriptor too: the same file everywhere.
    call(libc::SYS_dup2, [things.file, 0, 0, 0, 0, 0]);
    for (name, number, words) in CALLS {
        print!("{name}:");
        for (place, address) in PLACES {
            things.restore();
            let bad = address(things.end);
            let writes = name.starts_with("write");
            let answer = call(*number, words.map(|word| things.word(word, bad, writes)));
            let shown = match (*name, answer) {
                // Numbers that depend on the machine.
                ("times" | "sched_getaffinity" | "getdents64", 1..) => 1,
                _ => answer,
            };
            print!(" {place} {shown}");
        }
        println!();
    }
    let _ = std::fs::remove_file("/tmp/crimes-file");
    let _ = std::fs::remove_file("/tmp/crimes-fresh");
    let _ = std::fs::remove_file("/tmp/crimes-run");
    CALLS.len() * PLACES.len()
}
