//! Whose guard page is this? For the report of a kernel stack overflow.

use core::fmt;

use pagoda_addr::VirtAddr;

use super::{layout, stacks};

/// A stack that overflowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overflowed {
    /// The stack that the kernel booted on.
    Boot,
    /// The stack of a thread.
    Thread,
}

impl fmt::Display for Overflowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot => f.write_str("the boot stack"),
            Self::Thread => f.write_str("a thread's kernel stack"),
        }
    }
}

/// The stack whose guard page holds `addr`.
pub(crate) fn owner(addr: VirtAddr) -> Option<Overflowed> {
    if layout::boot_stack_guard().contains(addr) {
        return Some(Overflowed::Boot);
    }
    stacks::is_guard(addr).then_some(Overflowed::Thread)
}

/// What the kernel keeps at `addr`, as the end of a sentence.
pub(crate) fn place(addr: VirtAddr) -> &'static str {
    if layout::text().contains(addr) {
        " (kernel text)"
    } else if layout::rodata().contains(addr) {
        " (kernel constants)"
    } else if layout::data().contains(addr) {
        " (kernel data)"
    } else if addr.as_u64() < layout::USER_END {
        " (a program's half)"
    } else {
        ""
    }
}
