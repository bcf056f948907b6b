//! The entries of an in-memory directory.
//!
//! Entries stand in the order in which they were made, each with a *cookie* that only ever grows,
//! so that a listing that is interrupted goes on where it was whatever happens in between. A hash
//! table of entry indices finds names. Removal leaves holes in both; when holes prevail both are
//! tightened in place, without memory.
//!
//! Invariants: cookies ascend; `live` entries are `Some`, each with exactly one slot in `index`
//! that probing from its hash reaches; `index` is empty or a power of two with at least one slot
//! that is `FREE`.
//!
//! [`reserve`](Directory::reserve) is the part of an insertion that may fail; after it
//! [`insert`](Directory::insert) cannot.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::{Errno, Inode, Result};

const FREE: u32 = u32::MAX;
const HOLE: u32 = u32::MAX - 1;
/// Positions 0 and 1 of a listing are `.` and `..`.
const FIRST_COOKIE: u64 = 2;
const MIN_SLOTS: usize = 8;

/// A name and what it names.
pub(crate) struct Entry {
    cookie: u64,
    hash: u32,
    pub(crate) name: Vec<u8>,
    pub(crate) node: Arc<Inode>,
}

/// See the module.
pub(crate) struct Directory {
    entries: Vec<Option<Entry>>,
    index: Vec<u32>,
    live: usize,
    /// Slots of `index` that are not `FREE`.
    filled: usize,
    next_cookie: u64,
}

impl Directory {
    pub(crate) const fn new() -> Self {
        Self {
            entries: Vec::new(),
            index: Vec::new(),
            live: 0,
            filled: 0,
            next_cookie: FIRST_COOKIE,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&Arc<Inode>> {
        let (_, at) = self.find(name)?;
        self.entries[at].as_ref().map(|entry| &entry.node)
    }

    /// Makes room for one more entry.
    pub(crate) fn reserve(&mut self) -> Result<()> {
        self.entries.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        if (self.filled + 1) * 4 > self.index.len() * 3 {
            let slots = ((self.live + 1) * 2).next_power_of_two().max(MIN_SLOTS);
            if slots > self.index.len() {
                let more = slots - self.index.len();
                self.index.try_reserve_exact(more).map_err(|_| Errno::ENOMEM)?;
                self.index.resize(slots, FREE);
            }
            self.tighten();
        }
        if self.entries.len() >= HOLE as usize { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Adds an entry whose name is not there yet. Needs a [`reserve`](Self::reserve) before it.
    pub(crate) fn insert(&mut self, name: Vec<u8>, node: Arc<Inode>) {
        let hash = hash(&name);
        let at = self.entries.len();
        self.entries.push(Some(Entry { cookie: self.next_cookie, hash, name, node }));
        self.next_cookie += 1;
        self.live += 1;
        self.enter(hash, at as u32);
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<(Vec<u8>, Arc<Inode>)> {
        let (slot, at) = self.find(name)?;
        let entry = self.entries[at].take()?;
        self.index[slot] = HOLE;
        self.live -= 1;
        while let Some(None) = self.entries.last() {
            self.entries.pop();
        }
        if self.entries.len() > 2 * self.live + 16 {
            self.tighten();
        }
        Some((entry.name, entry.node))
    }

    /// Takes the last entry out. Needs no memory.
    pub(crate) fn pop(&mut self) -> Option<(Vec<u8>, Arc<Inode>)> {
        let entry = loop {
            if let Some(entry) = self.entries.pop()? {
                break entry;
            }
        };
        let mask = self.index.len().checked_sub(1)?;
        let mut slot = entry.hash as usize & mask;
        while self.index[slot] != self.entries.len() as u32 {
            slot = (slot + 1) & mask;
        }
        self.index[slot] = HOLE;
        self.live -= 1;
        Some((entry.name, entry.node))
    }

    /// Gives a name another file and hands out the old one.
    pub(crate) fn replace(&mut self, name: &[u8], node: Arc<Inode>) -> Option<Arc<Inode>> {
        let (_, at) = self.find(name)?;
        let entry = self.entries[at].as_mut()?;
        Some(core::mem::replace(&mut entry.node, node))
    }

    /// Entries from position `from` on, each with the position after it.
    pub(crate) fn iter_from(&self, from: u64) -> impl Iterator<Item = (u64, &Entry)> {
        // Holes have no cookie: search by the entries around them.
        let start = match from <= FIRST_COOKIE {
            true => 0,
            false => self.lower_bound(from),
        };
        let entries = self.entries[start..].iter().flatten();
        entries.filter(move |entry| entry.cookie >= from).map(|entry| (entry.cookie + 1, entry))
    }

    /// The name under which `node` is entered here.
    pub(crate) fn name_of(&self, node: &Arc<Inode>) -> Option<&[u8]> {
        let mut entries = self.entries.iter().flatten();
        entries.find(|entry| Arc::ptr_eq(&entry.node, node)).map(|entry| &entry.name[..])
    }

    /// The last entry's file.
    pub(crate) fn last(&self) -> Option<&Arc<Inode>> {
        self.entries.iter().rev().flatten().next().map(|entry| &entry.node)
    }

    /// An index at or below the first entry whose cookie is at least `from`.
    fn lower_bound(&self, from: u64) -> usize {
        let (mut low, mut high) = (0, self.entries.len());
        while low < high {
            let middle = low.midpoint(high);
            // The nearest entry at or after the middle decides for the holes before it.
            let near = self.entries[middle..high].iter().flatten().next();
            match near {
                Some(entry) if entry.cookie < from => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    /// (slot in `index`, index in `entries`) of a name.
    fn find(&self, name: &[u8]) -> Option<(usize, usize)> {
        let mask = self.index.len().checked_sub(1)?;
        let hash = hash(name);
        let mut slot = hash as usize & mask;
        loop {
            match self.index[slot] {
                FREE => return None,
                HOLE => {}
                at => {
                    let entry = self.entries.get(at as usize)?.as_ref();
                    if entry.is_some_and(|entry| entry.hash == hash && entry.name == name) {
                        return Some((slot, at as usize));
                    }
                }
            }
            slot = (slot + 1) & mask;
        }
    }

    fn enter(&mut self, hash: u32, at: u32) {
        let mask = self.index.len() - 1;
        let mut slot = hash as usize & mask;
        while self.index[slot] < HOLE {
            slot = (slot + 1) & mask;
        }
        if self.index[slot] == FREE {
            self.filled += 1;
        }
        self.index[slot] = at;
    }

    /// Removes all holes.
    fn tighten(&mut self) {
        self.entries.retain(Option::is_some);
        self.index.fill(FREE);
        self.filled = 0;
        for at in 0..self.entries.len() {
            if let Some(hash) = self.entries[at].as_ref().map(|entry| entry.hash) {
                self.enter(hash, at as u32);
            }
        }
    }
}

/// FNV-1a, 32 bits.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
