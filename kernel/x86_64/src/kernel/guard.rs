//! Whose guard page is this? For the report of a kernel stack overflow, or of whatever else ran
//! over the end of an area.

use core::fmt;

use pagoda_addr::VirtAddr;
use pagoda_kva::{Guard, Kind, Lookup, Side};

use super::host::KERNEL;
use super::layout;

/// An area whose end somebody ran over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overrun {
    /// The stack that the kernel booted on.
    BootStack,
    /// An area of the kernel's own ranges.
    Area(Guard),
}

impl Overrun {
    /// Did a stack grow too large (and not something else run over an end)?
    pub(crate) fn is_overflow(self) -> bool {
        match self {
            Self::BootStack => true,
            Self::Area(guard) => guard.kind == Kind::Stack && guard.side == Side::Below,
        }
    }
}

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Area(guard) = self else {
            return f.write_str("the guard page under the boot stack");
        };
        let side = match guard.side {
            Side::Below => "under",
            Side::Above => "above",
        };
        let area = match guard.kind {
            Kind::Stack => "a thread's kernel stack",
            Kind::Block => "a block of kernel memory",
            Kind::Device => "a window on a device",
        };
        let bytes = guard.body.addresses();
        write!(f, "the guard page {side} {area} ({}..{})", bytes.start(), bytes.end())
    }
}

/// The area whose guard page holds `addr`. Never waits: a handler may ask.
pub(crate) fn owner(addr: VirtAddr) -> Option<Overrun> {
    if layout::boot_stack_guard().contains(addr) {
        return Some(Overrun::BootStack);
    }
    match KERNEL.ranges.get()?.lookup(addr) {
        Lookup::Guard(guard) => Some(Overrun::Area(guard)),
        Lookup::Outside | Lookup::Mapped | Lookup::Free | Lookup::Busy => None,
    }
}

/// What the kernel keeps at `addr`, as the end of a sentence.
pub(crate) fn place(addr: VirtAddr) -> &'static str {
    if layout::text().contains(addr) {
        " (kernel text)"
    } else if layout::rodata().contains(addr) {
        " (kernel constants)"
    } else if layout::data().contains(addr) {
        " (kernel data)"
    } else if layout::kva().contains(addr) {
        " (the kernel's own ranges)"
    } else if addr.as_u64() < layout::USER_END {
        " (a program's half)"
    } else {
        ""
    }
}
