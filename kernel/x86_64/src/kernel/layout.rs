//! Where everything lies in the kernel's half of the address space.
//!
//! | from | what |
//! |---|---|
//! | `0xffff_8000_0000_0000` | direct map: all RAM, never executable |
//! | `0xffff_c000_0000_0000` | the frame table, backed where RAM is |
//! | `0xffff_d000_0000_0000` | kernel virtual ranges: stacks, device windows |
//! | `0xffff_ffff_8000_0000` | the kernel image |
#![allow(unsafe_code)] // the linker's symbols are extern statics

use pagoda_addr::{PhysAddr, PhysRange, VirtAddr, VirtRange};

/// The first byte of the direct map: physical address 0.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Bytes of physical memory that the direct map has room for.
pub(crate) const DIRECT_MAP_BYTES: u64 = FRAME_TABLE - DIRECT_MAP;
/// The first byte of the frame table.
pub(crate) const FRAME_TABLE: u64 = 0xffff_c000_0000_0000;
/// The heap lives in this much of low memory, so that its tags (a byte for each KiB) stay small on a
/// machine of any size.
pub(crate) const HEAP_MEMORY: u64 = 64 << 30;
/// The first byte of the kernel's own ranges.
pub(crate) const KVA: u64 = 0xffff_d000_0000_0000;
/// Bytes that they have room for: what one top-level entry covers.
pub(crate) const KVA_BYTES: u64 = 1 << 39;
/// The kernel's own ranges.
pub(crate) fn kva() -> VirtRange {
    VirtRange::clamped(VirtAddr::new(KVA), KVA_BYTES)
}
/// What the linker adds to a physical address to get the image's virtual one.
pub(crate) const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// The end of a program's half. The last page below the hole stays out of it, so that no `syscall`
/// instruction can have a non-canonical address after it.
pub(crate) const USER_END: u64 = 0x7fff_ffff_f000;

/// Symbols of `link.ld` and `boot.s`: only their addresses mean something.
mod symbol {
    #[allow(missing_docs)]
    unsafe extern "C" {
        pub(super) static image_start_phys: u8;
        pub(super) static image_end_phys: u8;
        pub(super) static text_start: u8;
        pub(super) static text_end: u8;
        pub(super) static rodata_start: u8;
        pub(super) static rodata_end: u8;
        pub(super) static data_start: u8;
        pub(super) static data_end: u8;
        pub(super) static ksyms_start: u8;
        pub(super) static ksyms_end: u8;
        pub(super) static boot_stack_guard: u8;
    }
}

fn between(start: *const u8, end: *const u8) -> VirtRange {
    VirtRange::clamped(VirtAddr::new(start as u64), (end as u64).saturating_sub(start as u64))
}

/// The kernel's instructions.
pub(crate) fn text() -> VirtRange {
    between(&raw const symbol::text_start, &raw const symbol::text_end)
}

/// The kernel's constants, the symbols for backtraces included.
pub(crate) fn rodata() -> VirtRange {
    between(&raw const symbol::rodata_start, &raw const symbol::rodata_end)
}

/// The kernel's statics, the boot stack and its guard page included.
pub(crate) fn data() -> VirtRange {
    between(&raw const symbol::data_start, &raw const symbol::data_end)
}

/// The symbols for backtraces, as they were filled in after linking.
pub(crate) fn symbols() -> VirtRange {
    between(&raw const symbol::ksyms_start, &raw const symbol::ksyms_end)
}

/// The page below the boot stack. Unmapped once the final tables are in use.
pub(crate) fn boot_stack_guard() -> VirtRange {
    VirtRange::clamped(VirtAddr::new(&raw const symbol::boot_stack_guard as u64), 4096)
}

/// Physical memory that the image occupies, `.bss` included.
pub(crate) fn image() -> PhysRange {
    let start = &raw const symbol::image_start_phys as u64;
    let end = &raw const symbol::image_end_phys as u64;
    PhysRange::clamped(PhysAddr::new(start), end.saturating_sub(start))
}

/// The physical memory of the kernel's text and constants.
pub(crate) fn sealed_image() -> PhysRange {
    let (start, end) = (image_phys(text().start()), image_phys(rodata().end()));
    PhysRange::new(start, end).unwrap_or_default()
}

/// Where the direct map shows `range`.
pub(crate) fn direct(range: PhysRange) -> VirtRange {
    VirtRange::clamped(VirtAddr::new(DIRECT_MAP + range.start().as_u64()), range.len())
}

/// Bytes from the start of the frame table to the end of the entry of the last frame.
pub(crate) fn frame_table_bytes(ram_end: PhysAddr) -> u64 {
    (ram_end.as_u64() >> pagoda_addr::PAGE_SHIFT) * size_of::<pagoda_frames::FrameInfo>() as u64
}

/// The physical address behind an address of the image.
pub(crate) fn image_phys(addr: VirtAddr) -> PhysAddr {
    PhysAddr::new(addr.as_u64().wrapping_sub(KERNEL_BASE))
}
