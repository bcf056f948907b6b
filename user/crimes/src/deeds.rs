//! Crimes of a few instructions.

use core::arch::{asm, naked_asm};
use core::hint::black_box;

use crate::Deed;
use crate::watch::Tell::{Exact, Place, Signal};
use crate::watch::map;

const KERNEL: usize = 0xffff_ffff_8020_0000;
const DIRECT: usize = 0xffff_8000_0010_0000;
const WILD: usize = 0x8000_0000_0000_0000;
const HOLE: usize = 0x0000_8000_0000_0000;

fn read(at: usize) {
    // SAFETY: a register, and a fault.
    unsafe { asm!("mov {0:r}, [{0:r}]", inout(reg) at => _) };
}

fn write(at: usize) {
    // SAFETY: a fault.
    unsafe { asm!("mov qword ptr [{0:r}], 7", in(reg) at) };
}

fn jump(at: usize) {
    // SAFETY: the process ends.
    unsafe { asm!("jmp {0:r}", in(reg) at) };
}

/// Instructions that end the process.
macro_rules! instructions {
    ($($text:expr),+) => {
        // SAFETY: the process ends, or goes on with what it had.
        || unsafe { asm!($($text),+, out("rax") _, out("rcx") _, out("rdx") _, out("r8") _) }
    };
}

static CONSTANT: [u64; 4] = [1, 2, 3, 4];
static RETURN: [u8; 16] = [0xc3; 16];

fn recurse(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + room[(depth % 64) as usize] }
}

fn overflow_the_stack() {
    let small = libc::rlimit { rlim_cur: 256 << 10, rlim_max: 256 << 10 };
    // SAFETY: only numbers.
    unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const small) };
    black_box(recurse(black_box(0)));
}

/// Two bytes of a `syscall` at the very end of the last page that a program may have, reached on
/// another stack: the page may hold this one's.
#[unsafe(naked)]
extern "C" fn call_from_the_last_page(stack: usize) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "mov rdi, 0x7fffffffe000",
        "mov rsi, 4096",
        "mov rdx, 7",
        "mov r10, 0x32", // fixed, private, anonymous
        "mov r8, -1",
        "xor r9, r9",
        "mov rax, 9",
        "syscall",
        "mov rdi, 0x7fffffffeffe",
        "cmp rax, -4096",
        "ja 2f",
        "mov word ptr [rdi], 0x050f",
        "mov eax, 39",
        "jmp rdi",
        "2:",
        "ud2",
    )
}

fn stack_and_raise(stack: usize) {
    // A handler that runs on the stack that there is: there is none.
    extern "C" fn never(_: i32) {}
    // SAFETY: the process ends.
    unsafe {
        libc::signal(libc::SIGUSR1, never as *const () as usize);
        let pid = libc::getpid();
        asm!("mov rsp, {stack}", "syscall", "ud2", stack = in(reg) stack,
            in("rax") libc::SYS_kill, in("rdi") pid, in("rsi") libc::SIGUSR1, options(noreturn));
    }
}

fn floating(control: u16) {
    let (one, zero) = (black_box(1.0f64), black_box(0.0f64));
    // SAFETY: raises a floating-point exception.
    unsafe {
        asm!("fninit", "fldcw [{0}]", "fld qword ptr [{1}]", "fld qword ptr [{2}]", "fdivp", "fwait",
            in(reg) &raw const control, in(reg) &raw const one, in(reg) &raw const zero);
    }
}

/// See the module.
pub const ALL: &[Deed] = &[
    ("null read", Exact, || read(0)),
    ("null write", Exact, || write(8)),
    ("null jump", Exact, || jump(0)),
    ("read below the first mappable page", Exact, || read(0xfff8)),
    ("kernel read", Exact, || read(KERNEL)),
    ("kernel write", Exact, || write(KERNEL)),
    ("kernel jump", Exact, || jump(KERNEL)),
    ("direct map read", Exact, || read(DIRECT)),
    ("direct map write", Exact, || write(DIRECT)),
    ("last byte read", Exact, || read(usize::MAX - 7)),
    ("first byte of the upper half", Exact, || read(0xffff_8000_0000_0000)),
    ("first page of nobody", Exact, || read(0x7fff_ffff_f000)),
    ("non-canonical read", Exact, || read(WILD)),
    ("non-canonical write", Exact, || write(HOLE)),
    ("non-canonical jump", Exact, || jump(WILD)),
    ("a read across the hole", Signal, || read(HOLE - 4)),
    ("a call from the last page", Exact, || {
        let stack = map(64 << 10, libc::MAP_PRIVATE) as usize;
        call_from_the_last_page(stack + (64 << 10))
    }),
    ("a jump into the page of old calls", Signal, || jump(0xffff_ffff_ff60_0011)),
    ("stack overflow", Place, overflow_the_stack),
    ("execute data", Place, || jump(&raw const RETURN as usize)),
    ("execute fresh memory", Place, || jump(map(4096, libc::MAP_PRIVATE) as usize)),
    ("execute the stack", Place, || {
        let code = black_box([0xc3u8; 16]);
        jump(code.as_ptr() as usize);
    }),
    ("write text", Place, || write(overflow_the_stack as *const () as usize)),
    ("write constants", Place, || write(&raw const CONSTANT as usize)),
    ("write through a read-only page", Place, || {
        let at = map(4096, libc::MAP_PRIVATE);
        // SAFETY: takes a right away.
        unsafe { libc::mprotect(at.cast(), 4096, libc::PROT_READ) };
        write(at as usize);
    }),
    ("read a page without rights", Place, || {
        let at = map(4096, libc::MAP_PRIVATE);
        // SAFETY: takes all rights away.
        unsafe { libc::mprotect(at.cast(), 4096, libc::PROT_NONE) };
        read(at as usize);
    }),
    ("read behind the end of a file", Place, || {
        // SAFETY: a mapping of an empty file.
        unsafe {
            let file = libc::memfd_create(c"empty".as_ptr(), 0);
            libc::ftruncate(file, 4096);
            let at = libc::mmap(
                core::ptr::null_mut(),
                8192,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file,
                0,
            );
            read(at as usize + 4096);
        }
    }),
    (
        "divide by zero",
        Place,
        instructions!("xor ecx, ecx", "xor edx, edx", "mov eax, 7", "div ecx"),
    ),
    (
        "divide too large",
        Place,
        instructions!("mov ecx, -1", "mov eax, 0x80000000", "cdq", "idiv ecx"),
    ),
    ("divide by zero in floating point", Place, || floating(0x37b)),
    ("undefined instruction", Place, instructions!("ud2")),
    ("an instruction of 32 bits", Place, instructions!(".byte 0x06")),
    ("a lock before what cannot be locked", Place, instructions!(".byte 0xf0, 0x90")),
    ("hlt", Exact, instructions!("hlt")),
    ("cli", Exact, instructions!("cli")),
    ("sti", Exact, instructions!("sti")),
    ("in", Exact, instructions!("mov edx, 0x3f8", "in al, dx")),
    ("out", Exact, instructions!("mov edx, 0xf4", "mov eax, 16", "out dx, eax")),
    ("read cr3", Exact, instructions!("mov rax, cr3")),
    ("write cr3", Exact, instructions!("xor eax, eax", "mov cr3, rax")),
    ("write cr0", Exact, instructions!("xor eax, eax", "mov cr0, rax")),
    ("write cr4", Exact, instructions!("xor eax, eax", "mov cr4, rax")),
    ("read dr7", Exact, instructions!("mov rax, dr7")),
    ("rdmsr", Exact, instructions!("mov ecx, 0xc0000082", "rdmsr")),
    ("wrmsr", Exact, instructions!("mov ecx, 0xc0000082", "xor eax, eax", "xor edx, edx", "wrmsr")),
    ("lgdt", Exact, instructions!("lgdt [rsp]")),
    ("lidt", Exact, instructions!("lidt [rsp]")),
    ("ltr", Exact, instructions!("mov eax, 0x40", "ltr ax")),
    ("invlpg", Exact, instructions!("invlpg [rsp]")),
    ("wbinvd", Exact, instructions!("wbinvd")),
    ("swapgs", Signal, instructions!("swapgs")),
    ("sysret", Signal, instructions!("sysretq")),
    ("clts", Exact, instructions!("clts")),
    ("xsetbv", Exact, instructions!("xor ecx, ecx", "xor eax, eax", "xor edx, edx", "xsetbv")),
    ("a selector of the kernel's data", Exact, instructions!("mov eax, 0x10", "mov ss, eax")),
    ("a selector of nothing", Exact, instructions!("mov eax, 0x1230", "mov ds, eax")),
    ("int3", Exact, instructions!("int3")),
    ("the vector of page faults", Exact, instructions!("int 14")),
    ("a vector of a device", Exact, instructions!("int 0x21")),
    ("a vector of the timer", Exact, instructions!("int 0x30")),
    ("a single step", Place, instructions!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop")),
    (
        "interrupts off by popf",
        Exact,
        instructions!("pushfq", "and qword ptr [rsp], -513", "popfq", "nop"),
    ),
    (
        "all ports by popf",
        Exact,
        instructions!("pushfq", "or qword ptr [rsp], 0x3000", "popfq", "cli"),
    ),
    (
        "nested task by popf",
        Signal,
        instructions!("pushfq", "or qword ptr [rsp], 0x4000", "popfq", "iretq"),
    ),
    (
        "a far jump to the kernel's code",
        Signal,
        instructions!("push 0", "mov word ptr [rsp + 4], 8", ".byte 0xff, 0x2c, 0x24"),
    ),
    (
        "a far jump to a wild selector",
        Signal,
        instructions!("push 0", "mov word ptr [rsp + 4], 0x4567", ".byte 0xff, 0x2c, 0x24"),
    ),
    (
        "a far call to the kernel's data",
        Signal,
        instructions!("push 0", "mov word ptr [rsp + 4], 0x10", ".byte 0xff, 0x1c, 0x24"),
    ),
    ("a signal on a null stack", Signal, || stack_and_raise(0)),
    ("a signal on a stack in the kernel", Signal, || stack_and_raise(KERNEL)),
    ("a signal on a wild stack", Signal, || stack_and_raise(WILD)),
    ("a signal on a stack that is not there", Signal, || stack_and_raise(0x1000_0000_0000)),
];
