//! Calls that must be refused, each with its error.

use crate::watch::map;

type Words = [usize; 6];

/// The answer of a call: its value or the number of the error, negative.
pub fn call(number: i64, a: Words) -> i64 {
    // SAFETY: the callers pass what must be refused, or memory of their own.
    let answer = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if answer == -1 {
        -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        answer
    }
}

const KERNEL: usize = 0xffff_ffff_8020_0000;
const WILD: usize = 1 << 63;
const FIXED: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as usize;
const NONE: usize = usize::MAX;

/// A name, a call's number, its words.
const REFUSED: &[(&str, i64, Words)] = &[
    ("map the kernel", libc::SYS_mmap, [KERNEL & !4095, 4096, 3, FIXED, NONE, 0]),
    ("map a wild place", libc::SYS_mmap, [WILD, 4096, 3, FIXED, NONE, 0]),
    ("map the first page of nobody", libc::SYS_mmap, [0x7fff_ffff_f000, 4096, 3, FIXED, NONE, 0]),
    ("map over the end", libc::SYS_mmap, [0x7fff_ffff_e000, 8192, 3, FIXED, NONE, 0]),
    ("map nothing", libc::SYS_mmap, [0, 0, 3, FIXED & !0x10, NONE, 0]),
    ("map more than there is", libc::SYS_mmap, [0, 1 << 62, 3, FIXED & !0x10, NONE, 0]),
    ("map all", libc::SYS_mmap, [0, usize::MAX, 3, FIXED & !0x10, NONE, 0]),
    ("map at half a page", libc::SYS_mmap, [0x1000_0800, 4096, 3, FIXED, NONE, 0]),
    ("map no file", libc::SYS_mmap, [0, 4096, 3, 2, NONE, 0]),
    ("unmap the kernel", libc::SYS_munmap, [KERNEL & !4095, 4096, 0, 0, 0, 0]),
    ("unmap everything", libc::SYS_munmap, [0, usize::MAX, 0, 0, 0, 0]),
    ("unmap half a page", libc::SYS_munmap, [0x800, 4096, 0, 0, 0, 0]),
    ("protect the kernel", libc::SYS_mprotect, [KERNEL & !4095, 4096, 7, 0, 0, 0]),
    ("protect nothing that is there", libc::SYS_mprotect, [0x10_0000_0000, 4096, 7, 0, 0, 0]),
    ("move the kernel", libc::SYS_mremap, [KERNEL & !4095, 4096, 8192, 1, 0, 0]),
    ("advise the kernel", libc::SYS_madvise, [KERNEL & !4095, 4096, 4, 0, 0, 0]),
    ("a segment base in the kernel", libc::SYS_arch_prctl, [0x1002, KERNEL, 0, 0, 0, 0]),
    ("a segment base nowhere", libc::SYS_arch_prctl, [0x1001, WILD, 0, 0, 0, 0]),
    ("a call that there is not", 100_000, [0; 6]),
    ("a call with a negative number", -5, [0; 6]),
    ("all flags of clone", libc::SYS_clone, [usize::MAX, 0, 0, 0, 0, 0]),
    ("a thread without its process's memory", libc::SYS_clone, [0x1_0000, 0, 0, 0, 0, 0]),
    ("a signal that there is not", libc::SYS_kill, [0, 65, 0, 0, 0, 0]),
    ("a signal to nobody", libc::SYS_kill, [0x3fff_ffff, 9, 0, 0, 0, 0]),
    ("a handler for SIGKILL", libc::SYS_rt_sigaction, [9, 0x1000, 0, 8, 0, 0]),
    ("a mask of another size", libc::SYS_rt_sigprocmask, [0, 0, 0, 9, 0, 0]),
    ("a futex at an odd address", libc::SYS_futex, [0x1001, 0, 0, 0, 0, 0]),
    ("a robust list of another size", libc::SYS_set_robust_list, [0x1000, 25, 0, 0, 0, 0]),
    ("sleep for a negative time", libc::SYS_clock_nanosleep, [99, 0, 0, 0, 0, 0]),
    ("wait in a way that there is not", libc::SYS_wait4, [NONE, 0, 0x100, 0, 0, 0]),
    ("read from no file", libc::SYS_read, [999, 0, 1, 0, 0, 0]),
    ("a limit that there is not", libc::SYS_getrlimit, [99, 0, 0, 0, 0, 0]),
];

/// Makes all calls; how many there were.
pub fn run() -> usize {
    for (name, number, words) in REFUSED {
        println!("{name}: {}", call(*number, *words));
    }
    println!("a huge list of arguments: {}", huge_list());
    println!("a huge argument: {}", huge_argument());
    println!("a small signal stack: {}", small_stack());
    REFUSED.len() + 3
}

fn execute(list: &[*const u8]) -> i64 {
    let none: [*const u8; 1] = [core::ptr::null()];
    let path = c"/proc/self/exe".as_ptr() as usize;
    call(libc::SYS_execve, [path, list.as_ptr() as usize, none.as_ptr() as usize, 0, 0, 0])
}

fn huge_list() -> i64 {
    let mut list = vec![c"argument".as_ptr().cast::<u8>(); 3 << 20];
    list.push(core::ptr::null());
    execute(&list)
}

fn huge_argument() -> i64 {
    let text = vec![b'x'; 200 << 10];
    let mut text = text;
    text.push(0);
    execute(&[c"crimes".as_ptr().cast(), text.as_ptr(), core::ptr::null()])
}

fn small_stack() -> i64 {
    let base = map(4096, libc::MAP_PRIVATE) as usize;
    let stack = [base, 0, 1000];
    call(libc::SYS_sigaltstack, [stack.as_ptr() as usize, 0, 0, 0, 0, 0])
}
