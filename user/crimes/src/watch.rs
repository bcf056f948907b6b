//! Watching a deed: a child does it, the parent says how the child ended.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, Ordering};

/// What is told of a handler's circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Signal, code, and the address as it is.
    Exact,
    /// Signal, code, and whether the address is that of the instruction.
    Place,
    /// The signal alone: the rest differs between processors.
    Signal,
}

/// What a handler saw: signal, code, address, instruction.
struct Seen {
    signal: AtomicI64,
    code: AtomicI64,
    address: AtomicU64,
    instruction: AtomicU64,
}

static SEEN: AtomicPtr<Seen> = AtomicPtr::new(null_mut());

/// Status of a child whose handler ran.
const HANDLED: i32 = 77;
/// Status of a child that got away with it.
const WENT_ON: i32 = 78;

/// Bytes of a signal stack.
const STACK: usize = 64 << 10;

fn seen() -> &'static Seen {
    if SEEN.load(Ordering::Relaxed).is_null() {
        SEEN.store(map(4096, libc::MAP_SHARED).cast(), Ordering::Relaxed);
    }
    // SAFETY: a shared mapping that is never unmapped; zeroes are a value.
    unsafe { &*SEEN.load(Ordering::Relaxed) }
}

/// Fresh memory, readable and writable.
pub fn map(len: usize, kind: i32) -> *mut u8 {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping touches nothing that exists.
    let at = unsafe { libc::mmap(null_mut(), len, prot, kind | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "memory for a deed");
    at.cast()
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO.
    let (info, context) = unsafe { (&*info, &*context.cast::<libc::ucontext_t>()) };
    let seen = seen();
    seen.signal.store(signal.into(), Ordering::Relaxed);
    seen.code.store(info.si_code.into(), Ordering::Relaxed);
    // SAFETY: the field is there for every signal, and only told for faults.
    seen.address.store(unsafe { info.si_addr() } as u64, Ordering::Relaxed);
    let rip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    seen.instruction.store(rip, Ordering::Relaxed);
    // SAFETY: ends the process.
    unsafe { libc::_exit(HANDLED) };
}

const CAUGHT: [i32; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
];

fn catch() {
    let stack =
        libc::stack_t { ss_sp: map(STACK, libc::MAP_PRIVATE).cast(), ss_flags: 0, ss_size: STACK };
    // SAFETY: all zeroes is a value; the handler has the type that the flags name.
    unsafe {
        libc::sigaltstack(&raw const stack, null_mut());
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in CAUGHT {
            libc::sigaction(signal, &raw const action, null_mut());
        }
    }
}

/// Back to what a fresh program has: Rust's runtime has handlers of its own.
fn forget_handlers() {
    for signal in CAUGHT {
        // SAFETY: the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Lets a child run `deed`; its status as `wait` says it.
fn child(with_handler: bool, deed: impl Fn()) -> i32 {
    let mut status = 0;
    // SAFETY: one thread; the child does the deed and ends.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "a process for a deed");
        if pid == 0 {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            // A deed that hangs is told as killed by this.
            libc::signal(libc::SIGALRM, libc::SIG_DFL);
            libc::alarm(15);
            forget_handlers();
            if with_handler {
                catch();
            }
            deed();
            libc::_exit(WENT_ON);
        }
        while libc::waitpid(pid, &raw mut status, 0) < 0 {}
    }
    status
}

fn how(status: i32) -> String {
    match (status & 0x7f, status >> 8 & 0xff) {
        (0, WENT_ON) => "went on".into(),
        (0, code) => format!("status {code}"),
        (signal, _) => format!("signal {signal}"),
    }
}

/// Does a deed with and without a handler, and says how both ended.
pub fn run(tell: Tell, deed: fn()) -> String {
    // Before the first child, which shares it then.
    let seen = seen();
    let alone = how(child(false, deed));
    let status = child(true, deed);
    if status != HANDLED << 8 {
        return format!("{alone}; with a handler {}", how(status));
    }
    let signal = seen.signal.load(Ordering::Relaxed);
    let (code, address) = (seen.code.load(Ordering::Relaxed), seen.address.load(Ordering::Relaxed));
    let here = address == seen.instruction.load(Ordering::Relaxed);
    let rest = match tell {
        Tell::Exact => format!(", code {code:#x}, address {address:#x}"),
        Tell::Place if here => format!(", code {code:#x}, at the instruction"),
        Tell::Place => format!(", code {code:#x}, elsewhere"),
        Tell::Signal => String::new(),
    };
    format!("{alone}; handled {signal}{rest}")
}
