//! How an entry is written down.

use pagoda_addr::{Frame, Page, PageRange};

use crate::{AbsentWord, ENTRIES, PageFlags, PageSize};

/// An entry, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// No frame; the caller's word.
    Absent(AbsentWord),
    /// The next lower table.
    Table(Frame),
    /// A leaf: its first frame and its flags.
    Leaf(Frame, PageFlags),
}

/// What a CPU may go on refusing although the tables allow it by now.
///
/// The other way round there is nothing to choose: what a table no longer allows is flushed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Remembers {
    /// Nothing: a fault forgets the page, and the next try walks (x86-64).
    Nothing,
    /// Leaves that had fewer rights, until somebody makes it forget (AArch64).
    Refusals,
    /// These, and that there was no entry: neither a leaf nor a table (RISC-V).
    Absence,
}

/// A change of a leaf that a CPU may know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rewrite {
    /// The same translations in another size.
    Size,
    /// Another frame, another memory type, or another answer to "global?".
    Target,
}

/// The encoding of a page table's entries: 64-bit words, 512 in a table of one frame, one to five
/// levels, level 1 the lowest. A value, since some of it is known only when the machine runs
/// (number of levels, physical address width, which leaf sizes there are).
///
/// Common to all formats: the word 0 is absent and means nothing.
///
/// Where a root covers one half only (AArch64), a format value stands for one half
/// ([`covers`](Self::covers)) and [`upper_half`](Self::upper_half) is false everywhere.
pub trait Format: Copy {
    /// Levels of tables, 3 to 5.
    fn levels(&self) -> u32;
    /// Is a leaf of this size possible? One that fills an entry of the root (1 GiB with three
    /// levels) is, too; in a half that is shared already, though, it can neither come nor go nor
    /// change ([`MapError::Sealed`](crate::MapError::Sealed)).
    fn has_size(&self, size: PageSize) -> bool;
    /// Bits of a physical address.
    fn phys_bits(&self) -> u32;
    /// Does the machine implement addresses of this page? Provided for a root with both halves.
    #[inline]
    fn covers(&self, page: Page) -> bool {
        page.start().is_canonical(12 + 9 * self.levels())
    }
    /// Does the page belong to the half that every address space shares? Provided for a root with
    /// both halves.
    #[inline]
    fn upper_half(&self, page: Page) -> bool {
        page.start().as_u64() >> 63 != 0
    }
    /// The first index of the root that belongs to the upper half; 512 where there is none. Provided
    /// for a root with both halves.
    #[inline]
    fn upper_index(&self) -> usize {
        ENTRIES / 2
    }
    /// Does a leaf of `size` at `frame` lie within the physical address width?
    #[inline]
    fn frame_fits(&self, frame: Frame, size: PageSize) -> bool {
        frame.number().saturating_add(size.pages()) <= 1 << (self.phys_bits() - 12)
    }
    /// What a leaf with `flags` really has: at least the rights asked for, and every flag that the
    /// format can keep.
    fn grants(&self, flags: PageFlags) -> PageFlags;
    /// The word for a leaf. `frame` fits and is aligned to `size`.
    fn leaf(&self, frame: Frame, size: PageSize, flags: PageFlags) -> u64;
    /// The word for the next lower table, which allows everything that its leaves allow. `user`:
    /// the table stands in the programs' half.
    fn table(&self, frame: Frame, user: bool) -> u64;
    /// The word for an absent entry; never reads as anything else; 0 for
    /// [`AbsentWord::NOTHING`].
    fn absent(&self, word: AbsentWord) -> u64;
    /// Reads a word of a table of `level`.
    fn decode(&self, word: u64, level: u32) -> Decoded;
    /// The next lower table, if that is what a word of a table of `level` (2 at least) names: what a
    /// walk asks at every step.
    #[inline]
    fn next_table(&self, word: u64, level: u32) -> Option<Frame> {
        match self.decode(word, level) {
            Decoded::Table(frame) => Some(frame),
            _ => None,
        }
    }
    /// The bits of a leaf's word that say which frame, and do nothing else: what is left of two
    /// leaves of one size is equal exactly if their flags are. Zero where no such bits are named,
    /// which costs speed alone.
    #[inline]
    fn frame_bits(&self) -> u64 {
        0
    }
    /// The frame in the word of a 4 KiB leaf.
    #[inline]
    fn leaf_frame(&self, word: u64) -> Frame {
        match self.decode(word, 1) {
            Decoded::Leaf(frame, _) => frame,
            _ => Frame::default(),
        }
    }
    /// Is this a word of a 4 KiB leaf into which hardware writes nothing more (because nobody may
    /// use it, or all history is there already)? Such a word may be replaced by a plain store.
    #[inline]
    fn is_settled(&self, word: u64) -> bool {
        let _ = word;
        false
    }
    /// Which gains have to be told to [`Platform::gained`](crate::Platform::gained).
    fn remembers(&self) -> Remembers;
    /// Has a leaf to be absent, and flushed, before it is written anew in this way
    /// (break-before-make)?
    fn breaks_for(&self, rewrite: Rewrite) -> bool;

    /// Does the whole range lie in one half, and does the machine implement it?
    fn covers_range(&self, range: PageRange) -> bool {
        let Some(last) = range.count().checked_sub(1) else { return true };
        let first = range.start();
        let Some(last) = first.checked_add(last) else { return false };
        // The hole lies between the halves: both ends in the same half means no hole in between.
        self.covers(first) && self.covers(last) && self.upper_half(first) == self.upper_half(last)
    }
}

/// What holds for every format; each format's tests call these.
#[cfg(test)]
pub(crate) mod laws {
    use super::*;

    /// Every leaf reads back with just the flags that the format says it grants.
    pub(crate) fn leaves_read_back(format: &impl Format) {
        let frame = Frame::from_number(3 << 18);
        for bits in 0..=PageFlags::all().bits() {
            let flags = format.grants(PageFlags::from_bits_retain(bits));
            assert_eq!(format.grants(flags), flags);
            for size in PageSize::ALL {
                let word = format.leaf(frame, size, flags);
                assert_eq!(format.decode(word, size.level()), Decoded::Leaf(frame, flags));
            }
        }
    }

    /// No absent word reads as anything else, nor has the `valid` bit.
    pub(crate) fn absence_reads_back(format: &impl Format, valid: u64) {
        for value in [0, 1, 2, 3, 0x80, u64::MAX >> 2] {
            let word = AbsentWord::new(value).unwrap();
            let raw = format.absent(word);
            for level in 1..=format.levels() {
                assert_eq!(format.decode(raw, level), Decoded::Absent(word));
            }
            assert_eq!(raw & valid, 0);
        }
        assert_eq!(AbsentWord::new(1 << 62), None);
    }
}
