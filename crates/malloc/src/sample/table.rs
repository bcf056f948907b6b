//! A hash table in mappings of its own, that doubles as it fills, up to a bound.
#![allow(unsafe_code)] // a slice over a mapping

use core::ptr::NonNull;
use core::slice;

use crate::probe;
use crate::system::{PAGE_BYTES, System};

/// What stands in a table, found by its key.
///
/// # Safety
/// All bytes zero are a value, whose key is zero.
pub unsafe trait Entry: Copy {
    /// Zero: there is nothing.
    fn key(&self) -> usize;
}

/// The first size.
const FIRST: usize = 128;

/// The table; at most seven eighths of `MOST`, a power of two, are filled.
pub struct Table<E: Entry, const MOST: usize> {
    memory: NonNull<E>,
    /// Zero, or a power of two.
    room: usize,
    used: usize,
}

fn bytes_of<E>(room: usize) -> usize {
    (room * size_of::<E>()).next_multiple_of(PAGE_BYTES)
}

impl<E: Entry, const MOST: usize> Table<E, MOST> {
    pub const fn new() -> Self {
        Self { memory: NonNull::dangling(), room: 0, used: 0 }
    }

    fn entries(&self) -> &[E] {
        // SAFETY: a mapping with room for so many, zeroed at first, where all zero is a value; or none at all.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.room) }
    }

    fn entries_mut(&mut self) -> &mut [E] {
        // SAFETY: as above; the mapping is the table's alone.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.room) }
    }

    /// Where a key is, or else where it would be. Only if there is room.
    fn place(&self, key: usize) -> usize {
        let entries = self.entries();
        probe::find(key, self.room, |at| entries[at].key())
    }

    pub fn get_mut(&mut self, key: usize) -> Option<&mut E> {
        if self.room == 0 {
            return None;
        }
        let at = self.place(key);
        self.entries_mut().get_mut(at).filter(|entry| entry.key() != 0)
    }

    /// Puts an entry in, for the one with its key if there is one. False: there is no room.
    pub fn insert<S: System>(&mut self, system: &S, entry: E) -> bool {
        if self.used * 4 >= self.room * 3 && !self.grow(system) && self.used * 8 >= self.room * 7 {
            return false;
        }
        let at = self.place(entry.key());
        let before = core::mem::replace(&mut self.entries_mut()[at], entry);
        self.used += usize::from(before.key() == 0);
        true
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: usize) -> Option<E> {
        let entry = *self.get_mut(key)?;
        let (room, mut hole) = (self.room, self.place(key));
        let entries = self.entries_mut();
        while let Some(from) = probe::filler(hole, room, |at| entries[at].key()) {
            entries[hole] = entries[from];
            hole = from;
        }
        // SAFETY: all zero is a value.
        entries[hole] = unsafe { core::mem::zeroed() };
        self.used -= 1;
        Some(entry)
    }

    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.entries().iter().filter(|entry| entry.key() != 0)
    }

    fn grow<S: System>(&mut self, system: &S) -> bool {
        let room = (self.room * 2).max(FIRST);
        if room > MOST {
            return false;
        }
        let Some(mut larger) = Self::with_room(system, room) else { return false };
        for &entry in self.iter() {
            let at = larger.place(entry.key());
            larger.entries_mut()[at] = entry;
        }
        larger.used = self.used;
        self.clear(system);
        *self = larger;
        true
    }

    fn with_room<S: System>(system: &S, room: usize) -> Option<Self> {
        let memory = system.map(bytes_of::<E>(room))?.cast();
        Some(Self { memory, room, used: 0 })
    }

    /// Another one with the same entries.
    pub fn copy<S: System>(&self, system: &S) -> Option<Self> {
        if self.room == 0 {
            return Some(Self::new());
        }
        let mut copy = Self::with_room(system, self.room)?;
        copy.entries_mut().copy_from_slice(self.entries());
        copy.used = self.used;
        Some(copy)
    }

    /// Takes all out, and gives the memory back.
    pub fn clear<S: System>(&mut self, system: &S) {
        let old = core::mem::replace(self, Self::new());
        if old.room > 0 {
            // SAFETY: a mapping of that length, that only the table knew.
            unsafe { system.unmap(old.memory.cast(), bytes_of::<E>(old.room)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::rig::Host;

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Pair(usize, usize);

    // SAFETY: two numbers.
    unsafe impl Entry for Pair {
        fn key(&self) -> usize {
            self.0
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 256 }))]

        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((1_usize..600, 0_u8..3), 0..if cfg!(miri) { 200 } else { 2000 })) {
            let (host, mut model) = (Host::default(), HashMap::new());
            let mut table = Table::<Pair, 1024>::new();
            for (number, (key, what)) in steps.into_iter().enumerate() {
                // Keys that meet: addresses are multiples of something too.
                let key = key * 4096;
                match what {
                    0 => prop_assert_eq!(table.remove(key).map(|pair| pair.1), model.remove(&key)),
                    _ => {
                        prop_assert!(table.insert(&host, Pair(key, number)));
                        model.insert(key, number);
                    }
                }
                prop_assert_eq!(table.used, model.len());
                prop_assert_eq!(table.get_mut(key).map(|pair| pair.1), model.get(&key).copied());
            }
            let copy = table.copy(&host).expect("there is memory");
            let all: HashMap<_, _> = copy.iter().map(|pair| (pair.0, pair.1)).collect();
            prop_assert_eq!(all, model);
            for mut table in [table, copy] {
                table.clear(&host);
            }
            prop_assert_eq!(host.mapped(), 0);
        }
    }

    #[test]
    fn it_is_full_at_its_bound_and_where_there_is_no_memory() {
        let host = Host::default();
        let mut table = Table::<Pair, 256>::new();
        let fitted = (1..1000).take_while(|&key| table.insert(&host, Pair(key, 0))).count();
        assert_eq!((fitted, table.room), (224, 256));
        assert_eq!(table.iter().count(), fitted);
        assert!(table.remove(7).is_some() && table.insert(&host, Pair(5000, 0)));
        table.clear(&host);
        host.budget.store(1, std::sync::atomic::Ordering::Relaxed);
        assert!(!table.insert(&host, Pair(1, 0)), "no memory");
        assert!(table.get_mut(1).is_none() && table.remove(1).is_none());
        assert_eq!(host.mapped(), 0);
    }
}
