//! The machine's format, chosen at run time.

use pagoda_addr::{Frame, Page};
use pagoda_paging::{
    Aarch64, AbsentWord, Decoded, Format, PageFlags, PageSize, Remembers, Rewrite, RiscV, X86_64,
};

/// Any of the formats, so that one test runs over all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnyFormat {
    /// x86-64.
    X86_64(X86_64),
    /// AArch64.
    Aarch64(Aarch64),
    /// RISC-V.
    RiscV(RiscV),
}

macro_rules! ask {
    ($any:expr, $format:ident => $answer:expr) => {
        match $any {
            AnyFormat::X86_64($format) => $answer,
            AnyFormat::Aarch64($format) => $answer,
            AnyFormat::RiscV($format) => $answer,
        }
    };
}

impl Format for AnyFormat {
    fn levels(&self) -> u32 {
        ask!(self, format => format.levels())
    }
    fn has_size(&self, size: PageSize) -> bool {
        ask!(self, format => format.has_size(size))
    }
    fn phys_bits(&self) -> u32 {
        ask!(self, format => format.phys_bits())
    }
    fn covers(&self, page: Page) -> bool {
        ask!(self, format => format.covers(page))
    }
    fn upper_half(&self, page: Page) -> bool {
        ask!(self, format => format.upper_half(page))
    }
    fn upper_index(&self) -> usize {
        ask!(self, format => format.upper_index())
    }
    fn grants(&self, flags: PageFlags) -> PageFlags {
        ask!(self, format => format.grants(flags))
    }
    fn leaf(&self, frame: Frame, size: PageSize, flags: PageFlags) -> u64 {
        ask!(self, format => format.leaf(frame, size, flags))
    }
    fn table(&self, frame: Frame, user: bool) -> u64 {
        ask!(self, format => format.table(frame, user))
    }
    fn absent(&self, word: AbsentWord) -> u64 {
        ask!(self, format => format.absent(word))
    }
    fn decode(&self, word: u64, level: u32) -> Decoded {
        ask!(self, format => format.decode(word, level))
    }
    fn remembers(&self) -> Remembers {
        ask!(self, format => format.remembers())
    }
    fn breaks_for(&self, rewrite: Rewrite) -> bool {
        ask!(self, format => format.breaks_for(rewrite))
    }
}
