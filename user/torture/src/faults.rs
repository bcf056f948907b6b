//! Faults that are meant: an access that must fault, a handler that looks at the circumstances and
//! lets the program go on behind the access.
#![allow(unsafe_code)] // signal handlers, and accesses that fault

use core::arch::{asm, global_asm};
use core::cell::Cell;

use crate::board::{GAVE_UP, WRONG};
use crate::sys;

global_asm!(
    // rdi: address, rsi: 0 to read, else the value to write. Answers 1 when it faulted.
    ".global torture_probe_read",
    ".global torture_probe_write",
    ".global torture_probe_landing",
    ".global torture_probe",
    "torture_probe:",
    "xor eax, eax",
    "test rsi, rsi",
    "jnz torture_probe_write",
    "torture_probe_read:",
    "mov cl, [rdi]",
    "ret",
    "torture_probe_write:",
    "mov [rdi], sil",
    "ret",
    "torture_probe_landing:",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    fn torture_probe(at: usize, write: usize) -> u32;
    static torture_probe_read: u8;
    static torture_probe_write: u8;
    static torture_probe_landing: u8;
}

/// What a handler was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The signal.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: usize,
}

/// `si_code` of a fault where nothing is mapped.
pub const MAPERR: i32 = 1;
/// `si_code` of a fault where something is mapped with other rights.
pub const ACCERR: i32 = 2;

/// Bytes of a signal stack.
const STACK: usize = 64 << 10;

std::thread_local! {
    static SEEN: Cell<Option<Fault>> = const { Cell::new(None) };
    static SIGNAL_STACK: Cell<usize> = const { Cell::new(0) };
    static BUSY: Cell<u32> = const { Cell::new(0) };
    static RECEIVED: Cell<u64> = const { Cell::new(0) };
    static QUEUED: Cell<[u64; 4]> = const { Cell::new([0; 4]) };
}

/// Reads or writes one byte; what the handler saw if that faulted.
pub fn probe(at: usize, write: bool) -> Option<Fault> {
    SEEN.set(None);
    // SAFETY: reads a byte into a register, or writes one to memory that must not be writable;
    // where it faults the handler goes on at the landing, which returns.
    let faulted = unsafe { torture_probe(at, if write { 0x77 } else { 0 }) };
    if faulted == 0 { None } else { SEEN.get() }
}

/// Notes what this thread does, for the report of a fault that nobody meant.
pub fn note(op: u32) {
    BUSY.set(op);
}

/// Signals that this thread has handled.
pub fn received() -> u64 {
    RECEIVED.get()
}

/// The last values that came with a queued signal, newest first; forgets them.
pub fn take_queued() -> [u64; 4] {
    QUEUED.replace([0; 4])
}

/// A queued signal's number.
pub const QUEUE_SIGNAL: i32 = 44;

/// Installs the handlers, for the whole process.
pub fn install() {
    let on_stack = libc::SA_SIGINFO | libc::SA_ONSTACK;
    handle(libc::SIGSEGV, on_fault, on_stack);
    handle(libc::SIGBUS, on_fault, on_stack);
    handle(libc::SIGUSR1, on_signal, on_stack | libc::SA_RESTART);
    handle(libc::SIGUSR2, on_signal, libc::SA_SIGINFO);
    handle(QUEUE_SIGNAL, on_signal, on_stack);
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

fn handle(signal: i32, handler: Handler, flags: i32) {
    // SAFETY: all zeroes is a value of this type; the handler has the type that the flags name.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, core::ptr::null_mut());
    }
}

/// Gives this thread a stack for its handlers; false when there is no memory for it.
pub fn make_signal_stack() -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let Ok(at) = sys::mmap(0, STACK, libc::PROT_READ | libc::PROT_WRITE, flags, -1) else {
        return false;
    };
    let stack = libc::stack_t { ss_sp: at as *mut libc::c_void, ss_flags: 0, ss_size: STACK };
    // SAFETY: a fresh mapping, used for nothing else until `drop_signal_stack`.
    if unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) } != 0 {
        return false;
    }
    SIGNAL_STACK.set(at);
    true
}

/// Gives the stack back.
pub fn drop_signal_stack() {
    let stack =
        libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    // SAFETY: from here on no handler runs on it.
    unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
    let _ = sys::munmap(SIGNAL_STACK.replace(0), STACK);
}

/// Ends the process with a word that needs no memory.
fn end(text: &[u8], status: usize) -> ! {
    let _ = sys::write(2, text);
    sys::exit(status)
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let here = core::ptr::from_ref(&signal) as usize;
    let stack = SIGNAL_STACK.get();
    if stack != 0 && !(stack..stack + STACK).contains(&here) {
        end(b"torture: WRONG: a fault's handler is not on its stack\n", WRONG);
    }
    let rip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
    let probes = [&raw const torture_probe_read as usize, &raw const torture_probe_write as usize];
    // SAFETY: a fault's information has an address.
    let address = unsafe { info.si_addr() } as usize;
    // Where no signal frame can be written for want of memory, the signal becomes this one.
    const SI_KERNEL: i32 = 0x80;
    if info.si_code == SI_KERNEL {
        sys::exit(GAVE_UP);
    }
    if !probes.contains(&rip) {
        let mut text = *b"torture: WRONG: a fault at 0x................, ip 0x................, \
            code 0x.., operation 0x..\n";
        hex(&mut text[29..45], address);
        hex(&mut text[52..68], rip);
        hex(&mut text[77..79], info.si_code as usize);
        hex(&mut text[93..95], BUSY.get() as usize);
        end(&text, WRONG);
    }
    SEEN.set(Some(Fault { signal, code: info.si_code, address }));
    let landing = &raw const torture_probe_landing as i64;
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = landing;
    spoil();
}

fn hex(to: &mut [u8], value: usize) {
    for (place, byte) in to.iter_mut().rev().enumerate() {
        *byte = b"0123456789abcdef"[(value >> (4 * place)) & 15];
    }
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RECEIVED.set(RECEIVED.get() + 1);
    if signal == QUEUE_SIGNAL {
        // SAFETY: the signal was queued with a value.
        let value = unsafe { (*info).si_value().sival_ptr } as u64;
        let [a, b, c, _] = QUEUED.get();
        QUEUED.set([value, a, b, c]);
    }
    spoil();
}

/// Changes every vector register, so that one that is not restored shows.
fn spoil() {
    // SAFETY: changes only what it names.
    unsafe {
        asm!(
            "pcmpeqd xmm0, xmm0", "pcmpeqd xmm1, xmm1", "pcmpeqd xmm2, xmm2",
            "pcmpeqd xmm3, xmm3", "pcmpeqd xmm4, xmm4", "pcmpeqd xmm5, xmm5",
            "pcmpeqd xmm6, xmm6", "pcmpeqd xmm7, xmm7", "pcmpeqd xmm8, xmm8",
            "pcmpeqd xmm9, xmm9", "pcmpeqd xmm10, xmm10", "pcmpeqd xmm11, xmm11",
            "pcmpeqd xmm12, xmm12", "pcmpeqd xmm13, xmm13", "pcmpeqd xmm14, xmm14",
            "pcmpeqd xmm15, xmm15",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
            out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
            out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _,
            out("xmm15") _, options(nomem, nostack)
        );
    }
}
