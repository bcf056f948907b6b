//! Memory that several see: files mapped shared and private, truncated under a mapping, sealed;
//! System V segments; guard pages; the memory of another process; and ([`wishes`]) what a program says
//! about its memory: locked, freed lazily, promised. Prints what it sees, which is the
//! same on every kernel that does what Linux does. Exit status 0.
#![allow(unsafe_code)] // makes system calls and touches what they map

mod wishes;

use std::ffi::CStr;
use std::io::Error;
use std::ptr::null_mut;

const PAGE: usize = 4096;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;

/// A result, or the name of the error.
fn say(what: &str, result: i64) -> bool {
    if result >= 0 {
        println!("{what}: {result}");
    } else {
        println!("{what}: error {}", Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    result >= 0
}

/// As [`say`], for calls that return what differs from kernel to kernel.
fn done(what: &str, result: i64) -> bool {
    say(what, result.min(0))
}

/// A mapping that is not taken away.
fn map(at: *mut u8, len: usize, prot: i32, flags: i32, file: i32) -> *mut u8 {
    // SAFETY: a new mapping where nothing is, or over one of ours.
    let address = unsafe { libc::mmap(at.cast(), len, prot, flags, file, 0) };
    if address == libc::MAP_FAILED {
        done("mmap", -1);
        return null_mut();
    }
    address.cast()
}

fn get(at: *mut u8, offset: usize) -> u8 {
    // SAFETY: inside a mapping of this program; others may write it, hence volatile.
    unsafe { at.add(offset).read_volatile() }
}

fn put(at: *mut u8, offset: usize, byte: u8) {
    // SAFETY: as in `get`.
    unsafe { at.add(offset).write_volatile(byte) }
}

/// Which signal ends a child that does this; 0: it lives to its end.
fn ends_by(act: impl FnOnce()) -> i32 {
    // SAFETY: the child does `act` and leaves.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            act();
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
    }
}

fn pread(file: i32, at: usize) -> u8 {
    let mut byte = [0_u8];
    // SAFETY: one byte to a buffer of one.
    unsafe { libc::pread(file, byte.as_mut_ptr().cast(), 1, at as i64) };
    byte[0]
}

fn pwrite(file: i32, at: usize, byte: u8) -> i64 {
    // SAFETY: one byte from a buffer of one.
    unsafe { libc::pwrite(file, (&raw const byte).cast(), 1, at as i64) as i64 }
}

fn truncate(file: i32, len: usize) -> i64 {
    // SAFETY: our own file.
    unsafe { libc::ftruncate(file, len as i64).into() }
}

fn unmap(at: *mut u8, len: usize) {
    // SAFETY: a mapping of this program that nothing refers to any more.
    done("munmap", unsafe { libc::munmap(at.cast(), len) }.into());
}

fn files(name: &CStr) {
    println!("files");
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
    // SAFETY: a name that ends in zero.
    let file = unsafe { libc::open(name.as_ptr(), flags, 0o600) };
    done("open", file.into());
    say("ftruncate", truncate(file, 4 * PAGE));
    let shared = map(null_mut(), 4 * PAGE, RW, libc::MAP_SHARED, file);
    let again = map(null_mut(), 4 * PAGE, RW, libc::MAP_SHARED, file);
    let private = map(null_mut(), 4 * PAGE, RW, libc::MAP_PRIVATE, file);
    put(shared, 5, 7);
    println!("stored {} {} {}", get(again, 5), get(private, 5), pread(file, 5));
    say("pwrite", pwrite(file, 6, 9));
    println!("written {} {} {}", get(shared, 6), get(again, 6), get(private, 6));
    put(private, 6, 1);
    say("pwrite", pwrite(file, 7, 3));
    println!("private {} {} {}", get(shared, 6), get(private, 6), get(private, 7));
    let child = ends_by(|| put(shared, 2 * PAGE, 11));
    println!("a child's store {child} {} {}", get(again, 2 * PAGE), pread(file, 2 * PAGE));
    // SAFETY: the range is mapped.
    say("msync", unsafe { libc::msync(shared.cast(), 4 * PAGE, libc::MS_SYNC) }.into());

    put(private, 3 * PAGE, 8);
    say("ftruncate", truncate(file, PAGE + 100));
    for (name, at) in [("shared", shared), ("again", again), ("private", private)] {
        let ends: Vec<i32> = (0..4)
            .map(|page| {
                ends_by(|| {
                    get(at, page * PAGE);
                })
            })
            .collect();
        println!("{name} after truncation {ends:?}");
    }
    put(shared, PAGE + 99, 4);
    // By its name, too.
    // SAFETY: a name that ends in zero.
    say("truncate", unsafe { libc::truncate(name.as_ptr(), PAGE as i64) }.into());
    println!("cut to a page {}", ends_by(|| put(shared, PAGE, 1)));
    say("ftruncate", truncate(file, 4 * PAGE));
    println!("grown again {} {}", get(shared, PAGE + 99), get(shared, 3 * PAGE));
    println!("private again {}", get(private, 3 * PAGE));

    put(shared, 0, 5);
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: our own file.
    say("punch", unsafe { libc::fallocate(file, hole, 0, PAGE as i64) }.into());
    println!("hole {} {} {}", get(shared, 0), get(again, 0), get(private, 6));

    // SAFETY: a name that ends in zero.
    let reader = unsafe { libc::open(name.as_ptr(), libc::O_RDONLY) };
    map(null_mut(), PAGE, RW, libc::MAP_SHARED, reader);
    let read_only = map(null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, reader);
    // SAFETY: a mapping of ours.
    say("mprotect", unsafe { libc::mprotect(read_only.cast(), PAGE, RW) }.into());
    // SAFETY: a name that ends in zero, descriptors of ours.
    unsafe {
        libc::unlink(name.as_ptr());
        libc::close(reader);
        libc::close(file);
    }
    put(again, PAGE, 77);
    println!("nameless {}", get(shared, PAGE));
    [shared, again, private].into_iter().for_each(|at| unmap(at, 4 * PAGE));
}

fn seals() {
    println!("seals");
    // SAFETY: a name that ends in zero.
    let file = unsafe { libc::memfd_create(c"sealed".as_ptr(), libc::MFD_ALLOW_SEALING) };
    let add = |seals: i32| {
        // SAFETY: a descriptor of ours.
        say("seal", unsafe { libc::fcntl(file, libc::F_ADD_SEALS, seals) }.into())
    };
    // SAFETY: a descriptor of ours.
    let list = || say("seals", unsafe { libc::fcntl(file, libc::F_GET_SEALS) }.into());
    list();
    say("ftruncate", truncate(file, 2 * PAGE));
    let shared = map(null_mut(), PAGE, RW, libc::MAP_SHARED, file);
    add(libc::F_SEAL_WRITE);
    unmap(shared, PAGE);
    add(libc::F_SEAL_SHRINK);
    say("shrink", truncate(file, PAGE));
    say("grow", truncate(file, 3 * PAGE));
    add(libc::F_SEAL_GROW);
    say("grow", truncate(file, 4 * PAGE));
    say("write beyond", pwrite(file, 3 * PAGE, 1));
    say("write", pwrite(file, 0, 1));
    add(libc::F_SEAL_WRITE);
    say("write", pwrite(file, 0, 1));
    map(null_mut(), PAGE, RW, libc::MAP_SHARED, file);
    let private = map(null_mut(), PAGE, RW, libc::MAP_PRIVATE, file);
    put(private, 0, 3);
    println!("private {} {}", get(private, 0), pread(file, 0));
    add(libc::F_SEAL_SEAL);
    add(libc::F_SEAL_GROW);
    list();
}

fn segments() {
    println!("segments");
    // SAFETY: System V calls on segments of this program; what they map is checked before use.
    unsafe {
        let id = libc::shmget(libc::IPC_PRIVATE, 3 * PAGE + 1, 0o600);
        done("shmget", id.into());
        let at: *mut u8 = libc::shmat(id, null_mut(), 0).cast();
        let reader: *mut u8 = libc::shmat(id, null_mut(), libc::SHM_RDONLY).cast();
        put(at, PAGE, 21);
        println!("attached twice {}", get(reader, PAGE));
        println!("store to what is read {}", ends_by(|| put(reader, 0, 1)));
        println!("a child {} {}", ends_by(|| put(at, 0, 22)), get(reader, 0));
        say("mprotect", libc::mprotect(reader.cast(), PAGE, RW).into());
        let mut record: libc::shmid_ds = std::mem::zeroed();
        say("stat", libc::shmctl(id, libc::IPC_STAT, &raw mut record).into());
        println!("{} bytes, {} attached", record.shm_segsz, record.shm_nattch);
        say("remove", libc::shmctl(id, libc::IPC_RMID, null_mut()).into());
        println!("still there {}", get(reader, PAGE));
        say("detach", libc::shmdt(reader.cast()).into());
        say("detach again", libc::shmdt(reader.cast()).into());
        say("detach", libc::shmdt(at.cast()).into());
        say("stat", libc::shmctl(id, libc::IPC_STAT, &raw mut record).into());
        let key = 0x7061_676f;
        say("no such key", libc::shmget(key, PAGE, 0).into());
        let id = libc::shmget(key, PAGE, libc::IPC_CREAT | 0o600);
        done("by key", id.into());
        println!("the same {}", libc::shmget(key, PAGE, 0) == id);
        say("too large", libc::shmget(key, 2 * PAGE, 0).into());
        say("exclusive", libc::shmget(key, PAGE, libc::IPC_CREAT | libc::IPC_EXCL).into());
        say("nothing", libc::shmget(key + 1, 0, libc::IPC_CREAT).into());
        say("remove", libc::shmctl(id, libc::IPC_RMID, null_mut()).into());
        say("no such key", libc::shmget(key, PAGE, 0).into());
    }
}

fn guards() {
    println!("guards");
    let at = map(null_mut(), 4 * PAGE, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    (0..4).for_each(|page| put(at, page * PAGE, 9));
    let advise = |page: usize, advice: i32| -> i64 {
        // SAFETY: advice on a mapping of ours.
        unsafe { libc::madvise(at.add(page * PAGE).cast(), 2 * PAGE, advice).into() }
    };
    let ends = || -> Vec<i32> {
        (0..4)
            .map(|page| {
                ends_by(|| {
                    get(at, page * PAGE);
                })
            })
            .collect()
    };
    // Linux has it since 6.13: what an older one would say is not compared.
    if advise(1, GUARD_INSTALL) == 0 {
        let seen = ends();
        advise(1, libc::MADV_DONTNEED);
        let kept = ends();
        advise(1, GUARD_REMOVE);
        assert_eq!((seen, kept), (vec![0, 11, 11, 0], vec![0, 11, 11, 0]));
        assert_eq!((get(at, 0), get(at, PAGE), get(at, 3 * PAGE)), (9, 0, 9));
    }
    unmap(at, 4 * PAGE);
}

fn others() {
    println!("others");
    let at = map(null_mut(), 2 * PAGE, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    put(at, 0, 1);
    // SAFETY: a child that waits to be killed; buffers of ours.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            put(at, 0, 33);
            loop {
                libc::pause();
            }
        }
        let mut byte = 0_u8;
        let one = |at: *mut u8, len| libc::iovec { iov_base: at.cast(), iov_len: len };
        let (mine, theirs) = (one(&raw mut byte, 1), one(at, 1));
        while get(mine.iov_base.cast(), 0) != 33 {
            libc::process_vm_readv(child, &raw const mine, 1, &raw const theirs, 1, 0);
        }
        byte = 44;
        let written = libc::process_vm_writev(child, &raw const mine, 1, &raw const theirs, 1, 0);
        say("write", written as i64);
        let read = libc::process_vm_readv(child, &raw const mine, 1, &raw const theirs, 1, 0);
        say("read", read as i64);
        println!("theirs {byte}, mine {}", get(at, 0));
        // The second page, and what is not there.
        let mut buffer = vec![0_u8; 3 * PAGE];
        let (mine, theirs) = (one(buffer.as_mut_ptr(), 3 * PAGE), one(at, 3 * PAGE));
        libc::munmap(at.add(PAGE).cast(), PAGE);
        let own =
            libc::process_vm_readv(libc::getpid(), &raw const mine, 1, &raw const theirs, 1, 0);
        say("up to the hole", own as i64);
        let nobody = libc::process_vm_readv(0x3f_ffff, &raw const mine, 1, &raw const theirs, 1, 0);
        say("nobody", nobody as i64);
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, null_mut(), 0);
    }
}

fn locked() {
    println!("locked");
    let at = map(null_mut(), 4 * PAGE, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    let mut there = [0_u8; 4];
    // SAFETY: calls on a mapping of ours.
    unsafe {
        say("mlock", libc::mlock(at.add(PAGE).cast(), PAGE + 1).into());
        say("mincore", libc::mincore(at.cast(), 4 * PAGE, there.as_mut_ptr()).into());
        println!("there {there:?}");
        say("dontneed", libc::madvise(at.add(PAGE).cast(), PAGE, libc::MADV_DONTNEED).into());
        say("munlock", libc::munlock(at.cast(), 4 * PAGE).into());
        say("dontneed", libc::madvise(at.add(PAGE).cast(), PAGE, libc::MADV_DONTNEED).into());
        say("mincore", libc::mincore(at.cast(), 4 * PAGE, there.as_mut_ptr()).into());
        println!("there {there:?}");
        say("mlockall", libc::mlockall(8).into());
        libc::munmap(at.add(3 * PAGE).cast(), PAGE);
        say("mlock with a hole", libc::mlock(at.cast(), 4 * PAGE).into());
    }
}

/// Nobody writes to a file that runs.
fn running() {
    println!("running");
    // SAFETY: names that end in zero.
    unsafe {
        say("open", libc::open(c"/proc/self/exe".as_ptr(), libc::O_RDWR).into());
        say("truncate", libc::truncate(c"/proc/self/exe".as_ptr(), 0).into());
    }
}

fn main() {
    running();
    files(c"/tmp/shares.data");
    files(c"/dev/shm/shares.data");
    seals();
    segments();
    guards();
    others();
    locked();
    wishes::lazily();
    wishes::promised();
    wishes::future();
    wishes::listed();
}
