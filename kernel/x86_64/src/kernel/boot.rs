//! The way in. See the head of `boot.s`.
#![allow(unsafe_code)] // the entry is assembly

use core::arch::global_asm;

/// Bytes of the stack that the kernel boots on and that the boot thread keeps.
pub(crate) const STACK_BYTES: usize = 64 * 1024;

/// What `boot.s` passes for a PVH boot: the magic of PVH's own structure.
pub(crate) const PVH_MAGIC: u32 = 0x336e_c578;

global_asm!(
    include_str!("boot.s"),
    entry = sym super::entry,
    stack_bytes = const STACK_BYTES,
);
