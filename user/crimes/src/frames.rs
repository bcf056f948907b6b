//! Signal frames that a handler has changed before it returns.

use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::Deed;
use crate::watch::Tell::{Exact, Signal};

type Context = libc::ucontext_t;

static CHANGE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let change = CHANGE.load(Ordering::Relaxed);
    // SAFETY: `with` stored a function of this type, and the kernel passes a context.
    unsafe { core::mem::transmute::<usize, fn(&mut Context)>(change)(&mut *context.cast()) };
}

/// Returns from a handler by a frame that `change` has changed.
fn with(change: fn(&mut Context)) {
    CHANGE.store(change as usize, Ordering::Relaxed);
    // SAFETY: all zeroes is a value; the handler has the type that the flags name.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGUSR1, &raw const action, core::ptr::null_mut());
        libc::raise(libc::SIGUSR1);
    }
}

fn register(context: &mut Context, which: i32, value: u64) {
    context.uc_mcontext.gregs[which as usize] = value as i64;
}

/// Where the context says that the floating-point image is: behind its 23 registers.
fn fpregs(context: &mut Context) -> &mut usize {
    let registers = &raw mut context.uc_mcontext.gregs;
    // SAFETY: the field that follows the registers, a pointer.
    unsafe { &mut *registers.add(1).cast::<usize>() }
}

/// Changes a word of the floating-point image, at this offset.
fn image(context: &mut Context, at: usize, change: impl FnOnce(u64) -> u64) {
    let word = *fpregs(context) + at;
    // SAFETY: inside the image on this stack.
    unsafe { (word as *mut u64).write_unaligned(change((word as *const u64).read_unaligned())) };
}

fn return_with(stack: usize) {
    // SAFETY: the process ends.
    unsafe {
        asm!("mov rsp, {0}", "mov eax, 15", "syscall", "ud2", in(reg) stack, options(noreturn));
    }
}

/// See the module.
pub const ALL: &[Deed] = &[
    ("return from no handler", Signal, || return_with(0)),
    ("return from a stack in the kernel", Signal, || return_with(0xffff_ffff_8020_0000)),
    ("return from a wild stack", Signal, || return_with(1 << 63)),
    ("return to the kernel's code", Signal, || {
        with(|context| {
            let selectors = context.uc_mcontext.gregs[libc::REG_CSGSFS as usize] as u64;
            register(context, libc::REG_CSGSFS, selectors & !0xffff | 0x10);
        });
    }),
    ("return to a wild selector", Signal, || {
        with(|context| {
            let selectors = context.uc_mcontext.gregs[libc::REG_CSGSFS as usize] as u64;
            register(context, libc::REG_CSGSFS, selectors & !0xffff | 0xfff3);
        });
    }),
    ("return to an instruction in the kernel", Exact, || {
        with(|context| register(context, libc::REG_RIP, 0xffff_ffff_8020_0000));
    }),
    ("return to a wild instruction", Exact, || {
        with(|context| register(context, libc::REG_RIP, 1 << 63));
    }),
    ("return to the first address of the hole", Exact, || {
        with(|context| register(context, libc::REG_RIP, 1 << 47));
    }),
    ("return to a null pointer", Exact, || {
        with(|context| register(context, libc::REG_RIP, 0));
    }),
    ("return with all ports", Exact, || {
        with(|context| {
            let flags = context.uc_mcontext.gregs[libc::REG_EFL as usize] as u64;
            register(context, libc::REG_EFL, flags | 0x3000);
        });
        // SAFETY: ends in a fault.
        unsafe { asm!("cli") };
    }),
    ("return with interrupts off, nested and virtual", Exact, || {
        with(|context| {
            let flags = context.uc_mcontext.gregs[libc::REG_EFL as usize] as u64;
            register(context, libc::REG_EFL, flags & !0x200 | 0x1a_4000);
        });
        // SAFETY: ends in a fault.
        unsafe { asm!("hlt") };
    }),
    ("return with no image", Signal, || with(|context| *fpregs(context) = 0)),
    ("return with an image at a wild place", Signal, || {
        with(|context| *fpregs(context) = 1 << 63);
    }),
    ("return with an image in the kernel", Signal, || {
        with(|context| *fpregs(context) = 0xffff_ffff_8020_0000);
    }),
    ("return with reserved bits of MXCSR", Signal, || {
        with(|context| image(context, 24, |word| word | 0xffff_ffff));
    }),
    ("return with reserved features", Signal, || {
        with(|context| image(context, 512, |_| !0));
    }),
    ("return with a compact image", Signal, || {
        with(|context| image(context, 520, |_| !0));
    }),
    ("return with a reserved header", Signal, || {
        with(|context| image(context, 528, |_| !0));
    }),
    ("return with a large image", Signal, || {
        with(|context| image(context, 464 + 16, |word| word | 0xffff_fff0));
    }),
    ("return with SIGKILL blocked", Signal, || {
        with(|context| {
            // SAFETY: the mask is plain bits.
            unsafe { (&raw mut context.uc_sigmask).cast::<u64>().write(!0) };
        });
        // SAFETY: ends the process.
        unsafe { libc::raise(libc::SIGKILL) };
    }),
];
