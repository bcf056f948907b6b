//! The walk that hardware makes, on raw bits. What the bits mean stands in [`crate::bits`].
#![allow(unsafe_code)] // reads table entries through the arena

use std::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, PhysAddr, PhysMap};
use pagoda_paging::PageSize;

use crate::bits::{Hardware, Leaf, Raw};
use crate::{Access, Mode, PhysArena};

/// What the entries on the way so far allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) exec: bool,
}

impl Rights {
    pub(crate) const ALL: Self = Self { read: true, write: true, user: true, exec: true };

    fn and(self, other: Self) -> Self {
        Self {
            read: self.read && other.read,
            write: self.write && other.write,
            user: self.user && other.user,
            exec: self.exec && other.exec,
        }
    }

    /// The kernel keeps out of programs' pages, and its write protection is on.
    pub(crate) fn allow(self, mode: Mode, access: Access) -> bool {
        self.user == (mode == Mode::User)
            && match access {
                Access::Read => self.read,
                Access::Write => self.write,
                Access::Fetch => self.exec,
            }
    }

    /// Is there anything that `self` allows and `other` does not?
    pub(crate) fn exceed(self, other: Self) -> bool {
        (self.read && !other.read)
            || (self.write && !other.write)
            || (self.exec && !other.exec)
            || self.user != other.user
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
    /// The memory type, in the machine's own code.
    pub(crate) memory: u8,
    pub(crate) accessed: bool,
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
    /// The level of the entry at which the walk ended.
    pub(crate) end: u32,
    /// Where the entries stand that were used.
    entries: Vec<PhysAddr>,
}

fn entry(arena: &PhysArena, at: PhysAddr) -> &AtomicU64 {
    // SAFETY: `ptr` accepts RAM only, the address is a multiple of eight, and every access to
    // memory in use as a table is atomic.
    unsafe { AtomicU64::from_ptr(arena.ptr(at).cast()) }
}

/// Walks from `root` to `page`.
pub(crate) fn walk(arena: &PhysArena, hardware: Hardware, root: Frame, page: u64) -> Walk {
    let mut walk = Walk { ways: Vec::new(), found: None, end: 0, entries: Vec::new() };
    let (mut table, mut rights) = (root, Rights::ALL);
    for level in (1..=hardware.levels).rev() {
        assert!(
            arena.refs(table) != 0,
            "a walk to page {page:#x} meets table {table:?}: it is free"
        );
        let index = page >> (9 * (level - 1)) & 511;
        let at = PhysAddr::new(table.start().as_u64() + index * 8);
        let word = entry(arena, at).load(Ordering::Acquire);
        walk.end = level;
        match hardware.read(word, level, page) {
            Raw::Absent => return walk,
            Raw::Table { next, rights: granted } => {
                walk.entries.push(at);
                rights = rights.and(granted);
                table = next;
                walk.ways.push(Way { level: level - 1, table, rights });
            }
            Raw::Leaf(leaf) => {
                walk.entries.push(at);
                let Leaf { frame, rights: granted, global, memory, accessed, dirty } = leaf;
                let size = PageSize::of_level(level).expect("checked with the reserved bits");
                let rights = rights.and(granted);
                walk.found = Some(Found { frame, size, rights, global, memory, accessed, dirty });
                return walk;
            }
        }
    }
    walk
}

impl Walk {
    /// Sets what hardware sets: accessed, perhaps on the whole way, and dirty in the leaf.
    pub(crate) fn mark(&mut self, arena: &PhysArena, hardware: Hardware, write: bool) {
        let marks = hardware.marks();
        for &at in &self.entries {
            let bits = if Some(&at) == self.entries.last() { marks.used } else { marks.passed };
            entry(arena, at).fetch_or(bits, Ordering::AcqRel);
        }
        if let (Some(&leaf), Some(found)) = (self.entries.last(), &mut self.found) {
            found.accessed = true;
            if write {
                entry(arena, leaf).fetch_or(marks.written, Ordering::AcqRel);
                found.dirty = true;
            }
        }
    }
}
