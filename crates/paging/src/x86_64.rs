//! Entries of x86-64 (Intel SDM volume 3A, chapter "Paging"; AMD APM volume 2, chapter 5).

use pagoda_addr::{Frame, Page};

use crate::{AbsentWord, Decoded, Format, PageFlags, PageSize};

/// The format of x86-64 with four or five levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X86_64 {
    levels: u32,
    phys_bits: u32,
    nx: bool,
    huge: bool,
}

impl X86_64 {
    /// The format of a machine with 4 or 5 `levels` (others are taken as 4), `phys_bits` of
    /// physical address (CPUID 8000_0008h; at most 52), `nx` if EFER.NXE is set, and `huge` if
    /// there are 1 GiB pages.
    pub const fn new(levels: u32, phys_bits: u32, nx: bool, huge: bool) -> Self {
        let levels = if levels == 5 { 5 } else { 4 };
        let phys_bits = if phys_bits > 52 { 52 } else { phys_bits };
        Self { levels, phys_bits, nx, huge }
    }
}

impl Format for X86_64 {
    fn levels(&self) -> u32 {
        self.levels
    }
    fn has_size(&self, size: PageSize) -> bool {
        self.huge || size != PageSize::G1
    }
    fn covers(&self, page: Page) -> bool {
        page.start().is_canonical(12 + 9 * self.levels)
    }
    fn upper_half(&self, page: Page) -> bool {
        page.number() >> 51 != 0
    }
    fn frame_fits(&self, frame: Frame, size: PageSize) -> bool {
        frame.number().saturating_add(size.pages()) <= 1 << (self.phys_bits - 12)
    }
    fn grants(&self, _flags: PageFlags) -> PageFlags {
        todo!()
    }
    fn leaf(&self, _frame: Frame, _size: PageSize, _flags: PageFlags) -> u64 {
        todo!("{}", self.nx)
    }
    fn table(&self, _frame: Frame, _user: bool) -> u64 {
        todo!()
    }
    fn absent(&self, _word: AbsentWord) -> u64 {
        todo!()
    }
    fn decode(&self, _word: u64, _level: u32) -> Decoded {
        todo!()
    }
}
