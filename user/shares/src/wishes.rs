//! What a program says about memory: that it is wanted at once, or not any more, or promised.

use std::ptr::null_mut;

use super::{PAGE, RW, get, map, put, say, unmap};

const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const COLD: i32 = 20;
const PAGEOUT: i32 = 21;
const DONTNEED_LOCKED: i32 = 24;
const ONFAULT: i32 = 4;

/// Four pages with nothing beside them; a null pointer where they are refused.
fn pages(number: usize, flags: i32) -> *mut u8 {
    let at = (0x2000_0000_0000 + (number << 20)) as *mut u8;
    map(at, 4 * PAGE, RW, flags | libc::MAP_FIXED, -1)
}

fn advise(at: *mut u8, pages: usize, advice: i32) -> i64 {
    // SAFETY: advice on mappings of ours.
    unsafe { libc::madvise(at.cast(), pages * PAGE, advice).into() }
}

fn there(at: *mut u8) -> [u8; 4] {
    let mut there = [9; 4];
    // SAFETY: room for four answers.
    unsafe { libc::mincore(at.cast(), 4 * PAGE, there.as_mut_ptr()) };
    there
}

/// What `smaps` says of the mapping at this address: the flags that every kernel has, and pages
/// accessed (in KiB).
fn seen(at: *mut u8) -> String {
    const COMMON: [&str; 9] = ["rd", "wr", "sh", "lo", "lf", "ac", "nr", "dc", "wf"];
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let start = format!("{:08x}-", at as usize);
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
    let mut value = |name: &str| -> Vec<String> {
        let line = lines.find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let referenced = value("Referenced:").join(" ");
    let mut flags = value("VmFlags:");
    flags.retain(|flag| COMMON.contains(&flag.as_str()));
    format!("referenced {referenced}, flags {}", flags.join(" "))
}

pub fn lazily() {
    println!("lazily");
    let at = pages(0, ANONYMOUS);
    (0..4).for_each(|page| put(at, page * PAGE, 5));
    say("free", advise(at, 4, libc::MADV_FREE));
    println!("kept {:?}, {:?}", [0, 1, 2, 3].map(|page| get(at, page * PAGE)), there(at));
    put(at, 0, 6);
    say("free nothing", advise(at, 0, libc::MADV_FREE));
    println!("written {}", get(at, 0));
    println!("{}", seen(at));
    say("cold", advise(at, 4, COLD));
    println!("{}", seen(at));
    println!("still {}, {:?}", get(at, 0), there(at));
    put(at, 0, 7);
    say("out", advise(at, 1, PAGEOUT));
    println!("still {}", get(at, 0));
    // SAFETY: calls on a mapping of ours.
    unsafe {
        say("mlock", libc::mlock(at.cast(), 4 * PAGE).into());
        for advice in [libc::MADV_FREE, COLD, PAGEOUT, libc::MADV_DONTNEED, DONTNEED_LOCKED] {
            say("locked", advise(at, 4, advice));
        }
        println!("gone {}", get(at, 0));
        libc::munlock(at.cast(), 4 * PAGE);
        libc::munmap(at.add(PAGE).cast(), PAGE);
    }
    for advice in [libc::MADV_FREE, COLD, PAGEOUT] {
        say("hole", advise(at, 4, advice));
    }
    unmap(at, 4 * PAGE);
    let at = pages(0, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    say("free what is shared", advise(at, 4, libc::MADV_FREE));
    say("cold", advise(at, 4, COLD));
    unmap(at, 4 * PAGE);
}

pub fn promised() {
    println!("promised");
    let at = pages(0, ANONYMOUS);
    println!("{}", seen(at));
    let protect = |prot: i32| {
        // SAFETY: a mapping of ours.
        let done = unsafe { libc::mprotect(at.cast(), 4 * PAGE, prot) };
        println!("{done}: {}", seen(at));
    };
    protect(libc::PROT_READ);
    protect(RW);
    put(at, 0, 1);
    protect(libc::PROT_READ);
    unmap(at, 4 * PAGE);
    let at = pages(0, ANONYMOUS | libc::MAP_NORESERVE);
    println!("{}", seen(at));
    unmap(at, 4 * PAGE);
    // More than any machine has.
    map(null_mut(), 1 << 46, RW, ANONYMOUS, -1);
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let number = |name| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let (limit, total) = (number("CommitLimit:"), number("MemTotal:"));
    println!("limit {}", limit.abs_diff(total / 2) * 20 < total);
    println!("committed {}", number("Committed_AS:") > 0);
    for name in ["overcommit_memory", "overcommit_ratio", "overcommit_kbytes"] {
        let text = std::fs::read_to_string(format!("/proc/sys/vm/{name}")).unwrap_or_default();
        println!("{name} {text:?}");
    }
}

pub fn future() {
    println!("future");
    let fresh = |number: usize, what: &str| {
        let at = pages(number, ANONYMOUS);
        if !at.is_null() {
            println!("{what}: {:?} {}", there(at), seen(at));
        }
        at
    };
    // SAFETY: calls that concern this program's own memory; a child that leaves.
    unsafe {
        for flags in [0, ONFAULT, 8, 9] {
            say("mlockall", libc::mlockall(flags).into());
        }
        say("mlockall", libc::mlockall(libc::MCL_FUTURE).into());
        let at = fresh(1, "locked");
        println!("dontneed {}", advise(at, 4, libc::MADV_DONTNEED));
        say("mlockall", libc::mlockall(libc::MCL_FUTURE | ONFAULT).into());
        let other = fresh(2, "on fault");
        get(other, 2 * PAGE);
        println!("touched {:?}", there(other));
        say("munlockall", libc::munlockall().into());
        println!("{}", seen(at));
        unmap(at, 4 * PAGE);
        unmap(other, 4 * PAGE);
        say(
            "mlock2",
            libc::syscall(libc::SYS_mlock2, map(null_mut(), PAGE, RW, ANONYMOUS, -1), PAGE, 1),
        );
        libc::munlockall();
        limits();
    }
}

/// What binds everybody but the superuser, in a child.
fn limits() {
    // SAFETY: a child that gives up its rights, makes calls on its own memory, and leaves.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let limit = |bytes| {
                let limit = libc::rlimit { rlim_cur: bytes, rlim_max: 2 * PAGE as u64 };
                say("limit", libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit).into());
            };
            limit(2 * PAGE as u64);
            libc::setuid(65_534);
            let at = map(null_mut(), 4 * PAGE, RW, ANONYMOUS, -1);
            say("mlock 3", libc::mlock(at.cast(), 3 * PAGE).into());
            say("mlock 2", libc::mlock(at.cast(), 2 * PAGE).into());
            say("again", libc::mlock(at.cast(), 2 * PAGE).into());
            say("one more", libc::mlock(at.add(2 * PAGE).cast(), PAGE).into());
            map(null_mut(), PAGE, RW, ANONYMOUS | libc::MAP_LOCKED, -1);
            say("all", libc::mlockall(libc::MCL_CURRENT).into());
            say("future", libc::mlockall(libc::MCL_FUTURE).into());
            map(null_mut(), PAGE, RW, ANONYMOUS, -1);
            libc::munlockall();
            limit(0);
            say("mlock", libc::mlock(at.cast(), PAGE).into());
            say("all", libc::mlockall(libc::MCL_FUTURE).into());
            map(null_mut(), PAGE, RW, ANONYMOUS | libc::MAP_LOCKED, -1);
            libc::_exit(0);
        }
        libc::waitpid(child, null_mut(), 0);
    }
}

/// What `/proc/sysvipc/shm` says of a segment, as far as it is the same everywhere.
pub fn listed() {
    println!("listed");
    let rows = |id: i32| {
        let text = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        let mut lines = text.lines();
        println!("{:?}", lines.next());
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.get(1).is_some_and(|word| *word == id.to_string()) {
                let told = [2, 3, 6, 7, 8, 9, 10, 14, 15].map(|n| words.get(n).copied());
                println!("{} columns: {told:?}", line.len());
            }
        }
    };
    const KEY: i32 = 0x5041_474f;
    // SAFETY: a segment of our own.
    unsafe {
        let id = libc::shmget(KEY, 3 * PAGE - 1, 0o1640);
        rows(id);
        let at: *mut u8 = libc::shmat(id, null_mut(), 0).cast();
        put(at, PAGE, 1);
        rows(id);
        libc::shmctl(id, libc::IPC_RMID, null_mut());
        rows(id);
        libc::shmdt(at.cast());
        rows(id);
    }
}
