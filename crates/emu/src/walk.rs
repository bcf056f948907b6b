//! The walk that hardware makes, from the manual (Intel SDM volume 3A, "4-level paging and 5-level
//! paging"), on raw bits. Deliberately shares nothing with the formats under test.
#![allow(unsafe_code)] // reads table entries through the arena

use std::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, PhysAddr, PhysMap, VirtAddr};
use pagoda_paging::PageSize;

use crate::{Access, Mode, PhysArena};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LEAF: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// What the entries on the way so far allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) exec: bool,
}

impl Rights {
    const ALL: Self = Self { write: true, user: true, exec: true };

    fn and(self, entry: u64) -> Self {
        Self {
            write: self.write && entry & WRITE != 0,
            user: self.user && entry & USER != 0,
            exec: self.exec && entry & NX == 0,
        }
    }

    /// With SMEP, SMAP and write protection on.
    pub(crate) fn allow(self, mode: Mode, access: Access) -> bool {
        self.user == (mode == Mode::User)
            && match access {
                Access::Read => true,
                Access::Write => self.write,
                Access::Fetch => self.exec,
            }
    }

    /// Is there anything that `self` allows and `other` does not?
    pub(crate) fn exceed(self, other: Self) -> bool {
        (self.write && !other.write) || (self.exec && !other.exec) || self.user != other.user
    }
}

/// A table on the way, as a paging-structure cache remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Way {
    /// The level of `table`.
    pub(crate) level: u32,
    pub(crate) table: Frame,
    pub(crate) rights: Rights,
}

/// The leaf at the end, as a TLB remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// The first frame of the leaf.
    pub(crate) frame: Frame,
    pub(crate) size: PageSize,
    pub(crate) rights: Rights,
    pub(crate) global: bool,
    pub(crate) dirty: bool,
}

impl Found {
    /// The frame behind `page`, which belongs to the leaf.
    pub(crate) fn frame_of(&self, page: u64) -> u64 {
        self.frame.number() + (page & (self.size.pages() - 1))
    }
}

/// A whole walk. Changes nothing until [`Walk::mark`].
#[derive(Debug)]
pub(crate) struct Walk {
    /// The tables below the root, highest first.
    pub(crate) ways: Vec<Way>,
    pub(crate) found: Option<Found>,
    /// Where the entries stand that were used.
    entries: Vec<PhysAddr>,
}

/// The machine's own parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widths {
    pub(crate) levels: u32,
    pub(crate) phys_bits: u32,
}

impl Widths {
    pub(crate) fn canonical(&self, addr: VirtAddr) -> bool {
        addr.is_canonical(12 + 9 * self.levels)
    }
}

fn entry(arena: &PhysArena, at: PhysAddr) -> &AtomicU64 {
    // SAFETY: `ptr` accepts RAM only, the address is a multiple of eight, and every access to
    // memory in use as a table is atomic.
    unsafe { AtomicU64::from_ptr(arena.ptr(at).cast()) }
}

/// Walks from `root` to `page`.
pub(crate) fn walk(arena: &PhysArena, widths: Widths, root: Frame, page: u64) -> Walk {
    let mut walk = Walk { ways: Vec::new(), found: None, entries: Vec::new() };
    let (mut table, mut rights) = (root, Rights::ALL);
    for level in (1..=widths.levels).rev() {
        assert!(
            arena.refs(table) != 0,
            "a walk to page {page:#x} meets table {table:?}: it is free"
        );
        let index = page >> (9 * (level - 1)) & 511;
        let at = PhysAddr::new(table.start().as_u64() + index * 8);
        let word = entry(arena, at).load(Ordering::Acquire);
        if word & PRESENT == 0 {
            return walk;
        }
        let leaf = level == 1 || word & LEAF != 0;
        check_reserved(widths, word, level, leaf, page);
        rights = rights.and(word);
        walk.entries.push(at);
        let next = PhysAddr::new(word & 0x000f_ffff_ffff_f000).block();
        if leaf {
            let size = PageSize::of_level(level).expect("checked with the reserved bits");
            let (global, dirty) = (word & GLOBAL != 0, word & DIRTY != 0);
            walk.found = Some(Found { frame: next, size, rights, global, dirty });
            return walk;
        }
        table = next;
        walk.ways.push(Way { level: level - 1, table, rights });
    }
    walk
}

fn check_reserved(widths: Widths, word: u64, level: u32, leaf: bool, page: u64) {
    let mut reserved = 0x000f_ffff_ffff_ffff & !((1 << widths.phys_bits) - 1);
    if level >= 4 {
        reserved |= LEAF;
    }
    if leaf && level > 1 {
        // Below the leaf's own alignment, but for bit 12, which is part of the memory type.
        reserved |= ((1 << (12 + 9 * (level - 1))) - 1) & !0x1fff;
    }
    assert!(
        word & reserved == 0,
        "entry {word:#x} of level {level} on the way to page {page:#x} has reserved bits set"
    );
}

impl Walk {
    /// Sets accessed on the way, and dirty in the leaf, as hardware does.
    pub(crate) fn mark(&mut self, arena: &PhysArena, dirty: bool) {
        for &at in &self.entries {
            entry(arena, at).fetch_or(ACCESSED, Ordering::AcqRel);
        }
        if let (true, Some(&leaf), Some(found)) = (dirty, self.entries.last(), &mut self.found) {
            entry(arena, leaf).fetch_or(DIRTY, Ordering::AcqRel);
            found.dirty = true;
        }
    }
}
