//! # Medium and large blocks that may be wanted again at once
//!
//! A program that takes and returns the same buffer again and again should not take a lock, split and
//! merge, or call the system each time. A program that frees thousands of different sizes should not
//! find them parked here. So a size is kept only after it was missed: the first free of a size leaves
//! only its *ghost*; each allocation that meets a ghost raises how many blocks of that size are
//! *wanted*, and later frees are kept up to that number.
//!
//! The budget for large blocks is learnt as well: each ghost that is met adds the block's size to it, each
//! size never seen takes an eighth away, and what it no longer covers goes back.
//!
//! 64 places, found by the size. Each may have room for one block *at hand*, whose bytes stay *reserved* in
//! the budget while the program has it, so that taking and returning it writes one word; others are linked
//! through their first words.
//!
//! A medium block that was at hand is *tied* to its thread, which its cell says, and stays so while it comes and
//! goes: whether it is *in* is a bit of the place's word alone. So who meets a tied block, and is not on the
//! shortest way, asks the tables of the threads that it may be tied to ([`Recents::has`]). A tie may outlast
//! what it was made for: then the place has another block, or none, and the block is the program's.
//!
//! A size that keeps coming while the budget for medium blocks is used up takes it from others, now and
//! then and in turn: else what came first would have it for ever.
#![allow(unsafe_code)] // links inside free blocks

use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::arena::KEPT;

/// Places in the table.
const PLACES: usize = 64;
/// A block is kept, or its bytes are reserved, only while less than this many bytes of its kind are.
const MEDIUM_BUDGET: usize = 128 << 10;
/// The same for large blocks at first: one at a time, or peaks would carry what no longer matters.
const LARGE_BUDGET: usize = 1;
/// The most that the budget of large blocks grows to.
const LARGE_MOST: usize = 8 << 20;
/// Larger ones are never kept.
pub const LARGEST_KEPT: usize = 4 << 20;
/// At most so many blocks of a size are wanted.
const WANTED_MAX: u16 = 32;

/// A size: medium in granules, large in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u32);

const LARGE: u32 = 1 << 31;

impl Key {
    /// A medium size.
    #[inline]
    pub const fn medium(granules: u32) -> Self {
        Self(granules)
    }

    /// A large size; nothing beyond [`LARGEST_KEPT`] has one.
    #[inline]
    pub fn large(pages: usize) -> Option<Self> {
        (pages <= LARGEST_KEPT / 4096).then_some(Self(pages as u32 | LARGE))
    }

    /// Whether it is a large size.
    pub const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    #[inline]
    fn place(self) -> usize {
        (self.0.wrapping_mul(0x9e37_79b9) >> 26) as usize % PLACES
    }

    #[inline]
    fn bytes(self) -> usize {
        if self.is_large() { (self.0 & !LARGE) as usize * 4096 } else { self.0 as usize * 64 }
    }
}

/// In `at_hand`, added to a block: it is in. Else the program has it.
const IN: usize = 1;
/// In `at_hand`: no room is reserved.
const NO_ROOM: *mut u8 = ptr::without_provenance_mut(2);
/// A cell of a block that is tied says so by this bit and the lowest bits of the thread's heap's number.
pub const TIED: u8 = 0x80;
/// So many heaps have different ties. Where there are more threads at a time, one that frees a block which
/// another of the same tie has just freed is not told, unless in hardened mode.
pub const TIES: usize = TIED as usize;
/// When medium sizes were wanted so often while the budget was used up, all places are looked through, and one
/// gives way: rarely enough to cost little where more sizes come and go than fit.
const DENIED_MOST: u32 = 32;

/// Whether a block is in.
#[inline(always)]
fn is_in(at_hand: *mut u8) -> bool {
    at_hand.addr() & IN != 0
}

/// Whether there is room that no block is in.
#[inline(always)]
fn is_room(at_hand: *mut u8) -> bool {
    at_hand.addr() & (IN | NO_ROOM.addr()) == 0
}

/// Blocks of one size.
#[derive(Clone, Copy)]
pub struct Kept {
    key: u32,
    wanted: u16,
    count: u16,
    first: *mut u8,
    /// A block, and whether it is [`IN`]; null, when there is room for one; or [`NO_ROOM`].
    at_hand: *mut u8,
}

impl Kept {
    const NOTHING: Self =
        Self { key: 0, wanted: 0, count: 0, first: ptr::null_mut(), at_hand: NO_ROOM };

    /// Bytes that the budget counts for it.
    fn counted(&self) -> usize {
        let blocks = usize::from(self.count) + usize::from(self.at_hand != NO_ROOM);
        blocks * self.key().bytes()
    }

    /// Takes one of the blocks.
    #[inline]
    pub fn pop(&mut self) -> Option<*mut u8> {
        if is_in(self.at_hand) {
            let block = core::mem::replace(&mut self.at_hand, NO_ROOM);
            return Some(block.wrapping_byte_sub(IN));
        }
        if self.count == 0 {
            return None;
        }
        let block = self.first;
        // SAFETY: blocks here are free, at least 1 KiB, and linked by `link`.
        self.first = unsafe { block.cast::<*mut u8>().read() };
        self.count -= 1;
        Some(block)
    }

    /// Their size.
    pub const fn key(&self) -> Key {
        Key(self.key)
    }
}

/// What became of an offered block.
pub enum Offer {
    /// It is kept; what its cell says then, as [`Recents::keep`] has it.
    Kept(u8),
    /// The caller must free it, and these too.
    Refused(Kept),
}

/// What is linked under one size.
#[derive(Clone, Copy)]
struct Linked {
    first: *mut u8,
    wanted: u16,
    count: u16,
}

impl Linked {
    const NOTHING: Self = Self { first: ptr::null_mut(), wanted: 0, count: 0 };
}

/// The table: three columns, so that what the shortest way reads is found by the place's number alone.
pub struct Recents {
    keys: [Cell<u32>; PLACES],
    /// Written by the owner alone; others look whether a block is in.
    at_hand: [AtomicPtr<u8>; PLACES],
    linked: [Cell<Linked>; PLACES],
    medium: Cell<usize>,
    large: Cell<usize>,
    /// What was learnt beyond [`LARGE_BUDGET`].
    large_extra: Cell<usize>,
    /// What the cells of blocks say that are tied to this table; nothing that a cell says, if there is no heap.
    tie: Cell<u8>,
    /// How often a medium size was wanted while the budget was used up.
    denied: Cell<u32>,
    /// The place from which the next that gives way is looked for.
    next: Cell<u32>,
}

impl Recents {
    /// Empty.
    pub const fn new() -> Self {
        Self {
            keys: [const { Cell::new(0) }; PLACES],
            at_hand: [const { AtomicPtr::new(NO_ROOM) }; PLACES],
            linked: [const { Cell::new(Linked::NOTHING) }; PLACES],
            medium: Cell::new(0),
            large: Cell::new(0),
            large_extra: Cell::new(0),
            tie: Cell::new(0),
            denied: Cell::new(0),
            next: Cell::new(0),
        }
    }

    /// Says which heap's it is.
    pub fn belong(&self, heap: u32) {
        self.tie.set(TIED | heap as u8);
    }

    /// What the cells of blocks say that are tied to this table.
    #[inline(always)]
    pub fn tie(&self) -> u8 {
        self.tie.get()
    }

    #[inline(always)]
    fn at_hand(&self, place: usize) -> *mut u8 {
        self.at_hand[place].load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn set_at_hand(&self, place: usize, at_hand: *mut u8) {
        self.at_hand[place].store(at_hand, Ordering::Relaxed);
    }

    /// Whether a block of this size is at hand. Any thread may ask.
    pub fn has(&self, key: Key, block: *mut u8) -> bool {
        self.at_hand(key.place()) == block.wrapping_byte_add(IN)
    }

    fn get(&self, place: usize) -> Kept {
        let Linked { first, wanted, count } = self.linked[place].get();
        Kept { key: self.keys[place].get(), wanted, count, first, at_hand: self.at_hand(place) }
    }

    fn set(&self, place: usize, kept: Kept) {
        let Kept { key, wanted, count, first, at_hand } = kept;
        self.keys[place].set(key);
        self.linked[place].set(Linked { first, wanted, count });
        self.set_at_hand(place, at_hand);
    }

    /// Empties a place for the ghost of a size: what was kept there, which the caller must free.
    fn vacate(&self, place: usize, ghost: Key) -> Kept {
        let kept = self.replace(place, Kept { key: ghost.0, ..Kept::NOTHING });
        let total = self.total(kept.key());
        total.set(total.get() - kept.counted());
        kept
    }

    fn replace(&self, place: usize, kept: Kept) -> Kept {
        let old = self.get(place);
        self.set(place, kept);
        old
    }

    #[inline]
    fn total(&self, key: Key) -> &Cell<usize> {
        if key.is_large() { &self.large } else { &self.medium }
    }

    fn budget(&self, key: Key) -> usize {
        if key.is_large() { LARGE_BUDGET + self.large_extra.get() } else { MEDIUM_BUDGET }
    }

    /// A block of exactly this size, if one is kept. Learns nothing if not.
    #[inline(always)]
    pub fn take_kept(&self, key: Key) -> *mut u8 {
        self.take_at_hand(key).map_or_else(|| self.take_linked(key), NonNull::as_ptr)
    }

    /// The block of this size that is at hand. The shortest way.
    #[inline(always)]
    pub fn take_at_hand(&self, key: Key) -> Option<NonNull<u8>> {
        let place = key.place();
        let at_hand = self.at_hand(place);
        if !is_in(at_hand) || self.keys[place].get() != key.0 {
            return None;
        }
        let block = at_hand.wrapping_byte_sub(IN);
        self.set_at_hand(place, block);
        NonNull::new(block)
    }

    /// Puts a block at hand if there is room for its size, which a table that is never written has not. False:
    /// [`Recents::keep`] it.
    #[inline(always)]
    pub fn put_at_hand(&self, key: Key, block: *mut u8) -> bool {
        let place = key.place();
        let room = is_room(self.at_hand(place)) && self.keys[place].get() == key.0;
        if room {
            self.set_at_hand(place, block.wrapping_byte_add(IN));
        }
        room
    }

    fn take_linked(&self, key: Key) -> *mut u8 {
        let place = key.place();
        let mut linked = self.linked[place].get();
        if self.keys[place].get() != key.0 || linked.count == 0 {
            return ptr::null_mut();
        }
        let block = linked.first;
        // SAFETY: blocks here are free, at least 1 KiB, and linked by `link`.
        linked.first = unsafe { block.cast::<*mut u8>().read() };
        linked.count -= 1;
        self.linked[place].set(linked);
        let total = self.total(key);
        total.set(total.get() - key.bytes());
        block
    }

    /// Keeps a free block if its size is wanted: what the cell of a medium one says then. Nothing:
    /// [`Recents::offer`] it.
    pub fn keep(&self, key: Key, block: *mut u8) -> Option<u8> {
        if self.put_at_hand(key, block) {
            return Some(self.tie());
        }
        self.link(key, block).then_some(KEPT)
    }

    fn link(&self, key: Key, block: *mut u8) -> bool {
        let place = key.place();
        let mut linked = self.linked[place].get();
        let total = self.total(key);
        let wanted = self.keys[place].get() == key.0 && linked.count < linked.wanted;
        if !wanted || total.get() >= self.budget(key) {
            return false;
        }
        // SAFETY: the block is the caller's, at least 1 KiB and aligned.
        unsafe { block.cast::<*mut u8>().write(linked.first) };
        linked.first = block;
        linked.count += 1;
        self.linked[place].set(linked);
        total.set(total.get() + key.bytes());
        true
    }

    /// A block of exactly this size. If there is none, one more is wanted; `at_hand`: it may be at hand.
    pub fn take(&self, key: Key, at_hand: bool) -> Option<*mut u8> {
        let place = key.place();
        let met = self.keys[place].get() == key.0;
        let block = if met { self.take_kept(key) } else { ptr::null_mut() };
        if block.is_null() && key.is_large() {
            self.learn(key, met);
        }
        if block.is_null() && met && !(at_hand && self.reserve(key)) {
            let linked = self.linked[place].get();
            let wanted = (linked.wanted + 1).min(WANTED_MAX);
            self.linked[place].set(Linked { wanted, ..linked });
        }
        (!block.is_null()).then_some(block)
    }

    /// A large block is not here: its size met a ghost, or nobody knows it.
    fn learn(&self, key: Key, met: bool) {
        let extra = self.large_extra.get();
        let extra = if met { (extra + key.bytes()).min(LARGE_MOST) } else { extra - extra / 8 };
        self.large_extra.set(extra);
    }

    /// Large blocks that the budget no longer covers (a single one it always does): the caller must free
    /// them.
    pub fn shed(&self) -> Option<Kept> {
        let like = Key(LARGE);
        if self.large.get() <= self.budget(like).max(LARGEST_KEPT) {
            return None;
        }
        let large =
            |&place: &usize| self.get(place).key().is_large() && self.get(place).counted() > 0;
        let place = (0..PLACES).find(large)?;
        Some(self.vacate(place, self.get(place).key()))
    }

    /// Blocks of a medium size that gives way to one that keeps coming: the caller must free them.
    pub fn give_way(&self, to: Key) -> Option<Kept> {
        if self.denied.get() < DENIED_MOST {
            return None;
        }
        self.denied.set(0);
        if self.medium.get() < MEDIUM_BUDGET {
            return None;
        }
        let others = |place: &usize| {
            let kept = self.get(*place);
            kept.key() != to && !kept.key().is_large() && kept.counted() > 0
        };
        let first = self.next.get() as usize;
        let place = (first..first + PLACES).map(|place| place % PLACES).find(others)?;
        self.next.set(place as u32 + 1);
        Some(self.vacate(place, self.get(place).key()))
    }

    /// Reserves room at hand for a size. False: there is some, or the budget is used up.
    fn reserve(&self, key: Key) -> bool {
        let (place, total) = (key.place(), self.total(key));
        if self.at_hand(place) != NO_ROOM {
            return false;
        }
        if total.get() >= self.budget(key) && (key.is_large() || self.is_denied_often()) {
            self.give_room_up(key);
        }
        if total.get() >= self.budget(key) {
            return false;
        }
        self.set_at_hand(place, ptr::null_mut());
        total.set(total.get() + key.bytes());
        true
    }

    /// Counts a medium size that finds the budget used up. Whether it is time to look through all places.
    fn is_denied_often(&self) -> bool {
        self.denied.set(self.denied.get() + 1);
        self.denied.get() >= DENIED_MOST
    }

    /// Gives room up that is reserved for a kind's blocks that the program has.
    fn give_room_up(&self, like: Key) {
        for place in 0..PLACES {
            let key = Key(self.keys[place].get());
            if key.is_large() == like.is_large() && is_room(self.at_hand(place)) {
                self.set_at_hand(place, NO_ROOM);
                let total = self.total(like);
                total.set(total.get() - key.bytes());
            }
        }
    }

    /// Offers a free block.
    pub fn offer(&self, key: Key, block: *mut u8) -> Offer {
        let place = key.place();
        if self.keys[place].get() != key.0 {
            return Offer::Refused(self.vacate(place, key));
        }
        self.keep(key, block).map_or(Offer::Refused(Kept::NOTHING), Offer::Kept)
    }

    /// Empties one place after the other; ghosts go too.
    pub fn drain(&self) -> impl Iterator<Item = Kept> {
        self.medium.set(0);
        self.large.set(0);
        (0..PLACES).map(|place| self.replace(place, Kept::NOTHING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that are nobody's, to be linked.
    fn blocks<const N: usize>() -> [Box<[u64; 128]>; N] {
        std::array::from_fn(|_| Box::new([0; 128]))
    }

    fn at(block: &mut Box<[u64; 128]>) -> *mut u8 {
        (&raw mut **block).cast()
    }

    fn counted(recents: &Recents, large: bool) -> usize {
        let places = (0..PLACES).map(|place| recents.get(place));
        places.filter(|kept| kept.key().is_large() == large).map(|kept| kept.counted()).sum()
    }

    #[test]
    fn a_size_is_kept_after_it_was_missed_and_room_is_counted() {
        let recents = Recents::new();
        let [mut a, mut b] = blocks();
        let key = Key::medium(512);
        assert!(matches!(recents.offer(key, at(&mut a)), Offer::Refused(_)));
        assert_eq!(recents.take(key, true), None);
        assert!(matches!(recents.offer(key, at(&mut a)), Offer::Kept(_)));
        assert!(matches!(recents.offer(key, at(&mut b)), Offer::Refused(_)), "one was missed");
        assert_eq!(recents.take_kept(key), at(&mut a));
        assert!(recents.take_kept(key).is_null());
        assert_eq!(recents.take(key, true), None);
        assert!(recents.keep(key, at(&mut a)).is_some() && recents.keep(key, at(&mut b)).is_some());
        assert_eq!(recents.medium.get(), 2 * 512 * 64);
        assert_eq!(recents.medium.get(), counted(&recents, false));
        let drained: Vec<_> = recents
            .drain()
            .flat_map(|mut kept| std::iter::from_fn(move || kept.pop()).collect::<Vec<_>>())
            .collect();
        assert_eq!(drained.len(), 2);
        assert!(drained.contains(&at(&mut a)) && drained.contains(&at(&mut b)));
    }

    #[test]
    fn large_blocks_that_come_and_go_together_are_kept_until_others_are_wanted() {
        let recents = Recents::new();
        let mut backing: [_; 6] = blocks();
        let key = Key::large(300).expect("small enough");
        let kept = (0..4).map(|_| {
            let missed = backing.iter().filter(|_| recents.take(key, true).is_none()).count();
            let offer = |block| matches!(recents.offer(key, at(block)), Offer::Kept(_));
            assert_eq!(recents.large.get(), counted(&recents, true));
            (missed, backing.iter_mut().map(offer).filter(|&kept| kept).count())
        });
        assert_eq!(kept.collect::<Vec<_>>(), [(6, 0), (6, 6), (0, 6), (0, 6)]);
        assert!(recents.shed().is_none(), "they are wanted");
        let others = (301..340).filter_map(Key::large);
        assert!(others.clone().all(|other| recents.take(other, true).is_none()));
        let shed: Vec<_> = std::iter::from_fn(|| recents.shed()).collect();
        assert_eq!(shed.len(), 1);
        assert_eq!((recents.large.get(), counted(&recents, true)), (0, 0));
    }

    #[test]
    fn room_of_blocks_that_the_program_has_goes_to_who_asks() {
        let recents = Recents::new();
        let mut backing: [_; 4] = blocks();
        // Three fill all the room that there may be; the fourth asks.
        let keys = [1024, 1023, 1022, 1021].map(|pages| Key::large(pages).expect("small enough"));
        for (key, block) in keys.into_iter().zip(&mut backing) {
            let block = at(block);
            assert!(matches!(recents.offer(key, block), Offer::Refused(_)));
            assert_eq!(recents.take(key, true), None);
            assert_eq!(recents.large.get(), counted(&recents, true));
            assert!(recents.keep(key, block).is_some());
            assert_eq!(recents.take_kept(key), block);
        }
        let [old, .., new] = keys;
        let [a, .., b] = &mut backing;
        assert!(recents.keep(old, at(a)).is_none(), "its room went to the other");
        assert!(recents.keep(new, at(b)).is_some());
        assert_eq!(recents.take(old, true), None);
        assert!(recents.keep(old, at(a)).is_some(), "now there is some");
        assert_eq!(recents.large.get(), counted(&recents, true));
    }

    #[test]
    fn who_came_first_gives_way_to_who_keeps_coming() {
        let recents = Recents::new();
        let mut backing: [_; 9] = blocks();
        // Four fill the budget; then others come, one after the other, for some time.
        for (number, block) in backing.iter_mut().enumerate() {
            let (key, block) = (Key::medium(512 + number as u32), at(block));
            let mut dismissed = 0;
            let turns = (0..200).filter(|_| {
                let taken = recents.take(key, true);
                if taken.is_none() {
                    let mut others = recents.give_way(key);
                    dismissed += others.iter_mut().filter_map(Kept::pop).count();
                }
                assert!(taken.is_none_or(|taken| taken == block));
                _ = recents.offer(key, block);
                assert_eq!(recents.medium.get(), counted(&recents, false));
                taken.is_none()
            });
            let (missed, most) = (turns.count(), if number < 4 { 2 } else { 35 });
            assert!(missed <= most, "{missed} of the {number}th");
            assert_eq!(dismissed, usize::from(number >= 4));
        }
    }
}
