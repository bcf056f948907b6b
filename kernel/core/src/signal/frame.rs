//! The signal frame of x86-64 Linux, byte for byte: what stands on a program's stack while its
//! handler runs, and what `rt_sigreturn` reads back.
//!
//! ```text
//!  higher addresses
//!    the interrupted stack, then 128 bytes of red zone
//!    floating-point image, 64-byte aligned, with Linux's software bytes at 464 and behind it
//!    siginfo              128 bytes   frame + 312
//!    ucontext             304 bytes   frame +   8
//!      flags, link, stack_t            8 +  0, 8, 16
//!      sigcontext                      8 + 40  (18 registers, selectors, fault, fpstate pointer)
//!      signal mask                     8 + 296
//!    return address         8 bytes   frame, = the restorer; (frame + 8) is 16-byte aligned
//! ```
//! Layout from Linux's `asm/sigframe.h` and `asm/ucontext.h` as the ABI fixes it.

use super::info::SigInfo;
use super::set::SigSet;
use crate::machine::UserRegs;

/// Bytes of the frame without the floating-point image.
pub(crate) const FRAME: usize = 440;
/// Bytes of the `ucontext`.
pub(crate) const UCONTEXT: usize = 304;
const UC: usize = 8;
const CONTEXT: usize = UC + 40;
const MASK: usize = UC + 296;
const INFO: usize = 312;
/// Bytes below the stack pointer that belong to the interrupted function.
pub(crate) const RED_ZONE: u64 = 128;
/// The image has an extended part; the stack segment is saved and to be restored.
const UC_FLAGS: u64 = 0x7;
const FP_MAGIC1: u32 = 0x4650_5853;
const FP_MAGIC2: u32 = 0x4650_5845;
const FP_SOFTWARE: usize = 464;
/// Status bits that a program may set through a frame.
const RESTORABLE_FLAGS: u64 = 0x0005_0dd5;

/// `stack_t`: the alternative signal stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct AltStack {
    pub(crate) base: u64,
    pub(crate) flags: u32,
    pub(crate) size: u64,
}

pub(crate) const SS_ONSTACK: u32 = 1;
pub(crate) const SS_DISABLE: u32 = 2;
pub(crate) const SS_AUTODISARM: u32 = 1 << 31;

impl AltStack {
    /// None is set.
    pub(crate) const NONE: Self = Self { base: 0, flags: SS_DISABLE, size: 0 };

    /// Does the stack pointer stand in it?
    pub(crate) fn holds(&self, rsp: u64) -> bool {
        self.flags & SS_DISABLE == 0 && rsp > self.base && rsp - self.base <= self.size
    }

    pub(crate) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        put(&mut bytes, 0, &self.base.to_le_bytes());
        put(&mut bytes, 8, &self.flags.to_le_bytes());
        put(&mut bytes, 16, &self.size.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self { base: word(bytes, 0), flags: word(bytes, 8) as u32, size: word(bytes, 16) }
    }
}

/// What goes into a frame.
pub(crate) struct FrameContent<'a> {
    pub(crate) regs: &'a UserRegs,
    pub(crate) info: &'a SigInfo,
    pub(crate) mask: SigSet,
    pub(crate) alt: AltStack,
    pub(crate) restorer: u64,
    /// Where the floating-point image stands, 0 for none.
    pub(crate) fp: u64,
    pub(crate) trap: FaultWords,
}

/// The last fault of the thread, as the frame shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct FaultWords {
    pub(crate) error: u64,
    pub(crate) vector: u64,
    pub(crate) cr2: u64,
}

/// What `rt_sigreturn` restores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Restored {
    pub(crate) regs: UserRegs,
    pub(crate) mask: SigSet,
    pub(crate) alt: AltStack,
    pub(crate) fp: u64,
    /// The code selector is that of programs. With another one the CPU would refuse to go there.
    pub(crate) is_programs: bool,
}

/// The selector of programs' code, in Linux's numbers.
const USER_CODE: u16 = 0x33;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(from) = bytes.get(at..at + 8) {
        word.copy_from_slice(from);
    }
    u64::from_le_bytes(word)
}

/// The stack positions of a frame below `top`: (floating-point image, frame).
pub(crate) fn place(top: u64, fp_len: u64) -> Option<(u64, u64)> {
    let fp = top.checked_sub(fp_len)? & !63;
    let frame = (fp.checked_sub(FRAME as u64)? & !15).checked_sub(8)?;
    Some((fp, frame))
}

/// The registers in the order of `sigcontext`.
fn order(regs: &UserRegs) -> [u64; 18] {
    let r = regs;
    [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx,
        r.rax, r.rcx, r.rsp, r.rip, r.rflags,
    ]
}

/// The bytes of the frame.
pub(crate) fn encode(content: &FrameContent<'_>) -> [u8; FRAME] {
    let mut bytes = [0; FRAME];
    put(&mut bytes, 0, &content.restorer.to_le_bytes());
    put(&mut bytes, UC, &UC_FLAGS.to_le_bytes());
    put(&mut bytes, UC + 16, &content.alt.to_bytes());
    for (index, value) in order(content.regs).into_iter().enumerate() {
        put(&mut bytes, CONTEXT + 8 * index, &value.to_le_bytes());
    }
    // Selectors of user code and of the user stack; fs and gs are bases here.
    for (at, selector) in [(144, USER_CODE), (146, 0), (148, 0), (150, 0x2b)] {
        put(&mut bytes, CONTEXT + at, &selector.to_le_bytes());
    }
    let trap = content.trap;
    for (at, value) in [
        (152, trap.error),
        (160, trap.vector),
        (168, content.mask.0),
        (176, trap.cr2),
        (184, content.fp),
    ] {
        put(&mut bytes, CONTEXT + at, &value.to_le_bytes());
    }
    put(&mut bytes, MASK, &content.mask.0.to_le_bytes());
    put(&mut bytes, INFO, &content.info.to_bytes());
    bytes
}

/// Address of the `siginfo` and of the `ucontext` in a frame that stands at `frame`.
pub(crate) fn arguments(frame: u64) -> (u64, u64) {
    (frame + INFO as u64, frame + UC as u64)
}

/// Reads a `ucontext` back. `now` supplies what a frame does not hold.
pub(crate) fn decode(ucontext: &[u8; UCONTEXT], now: &UserRegs) -> Restored {
    let at = |index: usize| word(ucontext, CONTEXT - UC + 8 * index);
    let regs = UserRegs {
        r8: at(0),
        r9: at(1),
        r10: at(2),
        r11: at(3),
        r12: at(4),
        r13: at(5),
        r14: at(6),
        r15: at(7),
        rdi: at(8),
        rsi: at(9),
        rbp: at(10),
        rbx: at(11),
        rdx: at(12),
        rax: at(13),
        rcx: at(14),
        rsp: at(15),
        rip: at(16),
        rflags: (now.rflags & !RESTORABLE_FLAGS) | (at(17) & RESTORABLE_FLAGS),
        fs_base: now.fs_base,
        gs_base: now.gs_base,
        ..UserRegs::default()
    };
    Restored {
        regs,
        mask: SigSet(word(ucontext, MASK - UC)),
        alt: AltStack::from_bytes(ucontext.get(16..40).unwrap_or(&[])),
        fp: word(ucontext, CONTEXT - UC + 184),
        is_programs: word(ucontext, CONTEXT - UC + 144) as u16 | 3 == USER_CODE,
    }
}

/// Bytes that the floating-point image takes in a frame: the image, and a closing magic word where
/// it is longer than the legacy 512 bytes.
pub(crate) fn fp_len(image: usize) -> usize {
    if image > 512 { image + 4 } else { image }
}

/// Linux's software bytes inside the legacy area of an image of `len` bytes, and the closing word.
pub(crate) fn fp_marks(len: usize, features: u64) -> ([u8; 48], [u8; 4]) {
    let mut software = [0; 48];
    if len > 512 {
        put(&mut software, 0, &FP_MAGIC1.to_le_bytes());
        put(&mut software, 4, &((len + 4) as u32).to_le_bytes());
        put(&mut software, 8, &features.to_le_bytes());
        put(&mut software, 16, &(len as u32).to_le_bytes());
    }
    (software, FP_MAGIC2.to_le_bytes())
}

/// Where the software bytes stand in the image.
pub(crate) const FP_MARKS_AT: u64 = FP_SOFTWARE as u64;

#[cfg(test)]
mod tests {
    use super::super::info::{Detail, SEGV_MAPERR};
    use super::super::set::Signal;
    use super::*;

    fn regs() -> UserRegs {
        UserRegs {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rbp: 7,
            rsp: 8,
            r8: 9,
            r9: 10,
            r10: 11,
            r11: 12,
            r12: 13,
            r13: 14,
            r14: 15,
            r15: 16,
            rip: 17,
            rflags: 0x246,
            fs_base: 19,
            gs_base: 20,
            ..UserRegs::default()
        }
    }

    #[test]
    fn a_frame_read_back_is_what_was_written() {
        let info =
            SigInfo { signal: Signal::SEGV, code: SEGV_MAPERR, detail: Detail::Fault { addr: 3 } };
        let alt = AltStack { base: 0x1000, flags: 0, size: 0x2000 };
        let content = FrameContent {
            regs: &regs(),
            info: &info,
            mask: SigSet(0x55),
            alt,
            restorer: 0x99,
            fp: 0x7000,
            trap: FaultWords { error: 6, vector: 14, cr2: 3 },
        };
        let bytes = encode(&content);
        // The offsets that C libraries and unwinders rely on (gregs of ucontext, in its order).
        assert_eq!(word(&bytes, 0), 0x99);
        assert_eq!(word(&bytes, 8 + 40 + 8 * 16), 17, "rip");
        assert_eq!(word(&bytes, 8 + 40 + 8 * 15), 8, "rsp");
        assert_eq!(word(&bytes, 8 + 40 + 8 * 22), 3, "cr2");
        assert_eq!(word(&bytes, 8 + 296), 0x55, "mask");
        assert_eq!(bytes[312], 11, "siginfo");
        let mut ucontext = [0; UCONTEXT];
        ucontext.copy_from_slice(&bytes[8..312]);
        let back = decode(&ucontext, &regs());
        assert_eq!(
            back,
            Restored { regs: regs(), mask: SigSet(0x55), alt, fp: 0x7000, is_programs: true }
        );
    }

    #[test]
    fn no_frame_sets_privileged_flags() {
        let mut ucontext = [0xff; UCONTEXT];
        ucontext[0] = 0;
        let flags = decode(&ucontext, &regs()).regs.rflags;
        assert_eq!(flags & (3 << 12), 0, "I/O privilege");
        assert_ne!(flags & (1 << 9), 0, "interrupts stay on");
        assert_eq!(flags & (1 << 14 | 1 << 17 | 1 << 19 | 1 << 20), 0);
    }

    #[test]
    fn frames_are_aligned_as_the_calling_convention_wants() {
        for top in 0x10000..0x10100 {
            let (fp, frame) = place(top, 836).unwrap();
            assert_eq!(fp % 64, 0);
            assert_eq!((frame + 8) % 16, 0);
            assert!(fp + 836 <= top && frame + FRAME as u64 <= fp);
        }
        assert_eq!(place(100, 836), None);
    }
}
