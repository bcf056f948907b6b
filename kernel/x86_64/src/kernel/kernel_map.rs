//! Storey 2, the kernel's own page table: what stands where, with which rights.
//!
//! *kernel-half-sealed*: every top-level entry that the kernel will ever use is made here; programs'
//! tables share them, and the paging crate refuses new ones afterwards.
//!
//! *write-xor-execute*: text is read and execute, constants are read, everything else is read and
//! write; the direct map, through which all RAM is visible a second time, is never executable and
//! shows text and constants read-only.

use pagoda_addr::{PageRange, PhysAddr, PhysRange, VirtAddr, VirtRange};
use pagoda_paging::{MapError, PageFlags, PageSize, PageTable, X86_64};

use super::host::Kernel;
use super::layout;

/// The kernel's table.
pub(crate) type KernelTable = PageTable<X86_64, &'static Kernel>;

/// Rights of kernel mappings. Accessed and dirty are set at once: nobody looks at them, and the CPU
/// need not set them.
const READ: PageFlags =
    PageFlags::READ.union(PageFlags::GLOBAL).union(PageFlags::ACCESSED).union(PageFlags::DIRTY);
/// Data.
pub(crate) const READ_WRITE: PageFlags = READ.union(PageFlags::WRITE);
const READ_EXEC: PageFlags = READ.union(PageFlags::EXEC);

fn pages(range: VirtRange) -> PageRange {
    range.blocks_touched()
}

/// Makes all top-level entries over the kernel's windows.
pub(crate) fn prefill(table: &KernelTable, ram_end: PhysAddr) -> Result<(), MapError> {
    for (start, bytes) in [
        (layout::DIRECT_MAP, ram_end.as_u64()),
        (layout::FRAME_TABLE, layout::frame_table_bytes(ram_end)),
        (layout::KERNEL_BASE, 1 << 30),
    ] {
        table.prefill(pages(VirtRange::clamped(VirtAddr::new(start), bytes)))?;
    }
    Ok(())
}

/// Maps `range` to the frames from `start` on.
pub(crate) fn map(
    table: &KernelTable,
    range: VirtRange,
    start: PhysAddr,
    flags: PageFlags,
) -> Result<(), MapError> {
    let range = pages(range);
    table.cursor(range)?.map_largest(range, start.block(), flags)
}

/// Maps a piece of the image where it is linked.
fn map_image(table: &KernelTable, range: VirtRange, flags: PageFlags) -> Result<(), MapError> {
    if range.is_empty() {
        return Ok(());
    }
    map(table, range, layout::image_phys(range.start()), flags)
}

/// Maps the image, piece by piece with its own rights; the guard page below the boot stack stays
/// out.
pub(crate) fn map_kernel(table: &KernelTable) -> Result<(), MapError> {
    map_image(table, layout::text(), READ_EXEC)?;
    map_image(table, layout::rodata(), READ)?;
    let (data, guard) = (layout::data(), layout::boot_stack_guard());
    for (start, end) in [(data.start(), guard.start()), (guard.end(), data.end())] {
        let Some(piece) = VirtRange::new(start, end) else { continue };
        map_image(table, piece, READ_WRITE)?;
    }
    Ok(())
}

// ANCHOR: map_ram
/// Maps one range of RAM into the direct map; the kernel's text and constants inside it read-only.
pub(crate) fn map_ram(table: &KernelTable, ram: PhysRange) -> Result<(), MapError> {
    let sealed = layout::sealed_image();
    let before = PhysRange::new(ram.start(), sealed.start().min(ram.end()));
    let inside = ram.intersection(sealed);
    let after = PhysRange::new(sealed.end().max(ram.start()), ram.end());
    for (piece, flags) in [(before, READ_WRITE), (inside, READ), (after, READ_WRITE)] {
        let Some(piece) = piece.filter(|piece| !piece.is_empty()) else { continue };
        map(table, layout::direct(piece), piece.start(), flags)?;
    }
    Ok(())
}
// ANCHOR_END: map_ram

/// Leaves by size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leaves {
    pub(crate) huge: u64,
    pub(crate) large: u64,
    pub(crate) small: u64,
}

impl Leaves {
    /// Adds the leaves that `range` of the table really has.
    pub(crate) fn count(&mut self, table: &KernelTable, range: VirtRange) {
        let range = pages(range);
        let Ok(mut cursor) = table.cursor(range) else { return };
        let mut next = Some(range.start());
        while let Some((page, entry)) = next.and_then(|from| cursor.next_used(from)) {
            let size = entry.leaf().map_or(PageSize::K4, |leaf| leaf.size);
            match size {
                PageSize::K4 => self.small += 1,
                PageSize::M2 => self.large += 1,
                PageSize::G1 => self.huge += 1,
            }
            next = page.checked_add(size.pages()).filter(|&page| range.contains(page));
        }
    }
}
