//! A shelf: all slabs of one object size, sorted into full, partly used and empty ones.
//!
//! *shelf-count*: `objects` is the sum of the slabs' counts, and `objects - live` the sum of their
//! free objects; a slab is on the list that its number of free objects says.

use core::ptr::NonNull;

use crate::classes::{NAMES, SIZES, Tag};
use crate::guard::Guard;
use crate::hardening::Dice;
use crate::slab::{Listed, Slab, room};
use pagoda_addr::Order;

/// Called for each object of a slab that is given back.
pub(crate) type Destroy = unsafe fn(NonNull<u8>);

/// The slabs of one object size.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) name: &'static str,
    /// Bytes that an owner may use.
    pub(crate) object: usize,
    /// Bytes from one object to the next.
    pub(crate) stride: usize,
    /// Empty slabs that the shelf keeps, so that a pair at the edge of a slab does not construct
    /// and destroy each time.
    kept: usize,
    /// What stands in the tags of its slabs.
    pub(crate) tag: Tag,
    pub(crate) destroy: Option<Destroy>,
    /// By how much the objects of the next slab are moved, and the step; 0 for none.
    colour: (usize, usize),
    /// How the objects are guarded, in a debug mode.
    pub(crate) guard: Option<Guard>,
    lists: [Option<Slab>; 3],
    pub(crate) slabs: usize,
    pub(crate) empty: usize,
    pub(crate) objects: usize,
    pub(crate) live: usize,
    pub(crate) overhead: usize,
}

/// Bytes of the spans that a size class asks for: small ones first, larger ones when it has many
/// objects.
const SPAN_LEAST: usize = 4 << 10;
const SPAN_MOST: usize = 32 << 10;

impl Shelf {
    /// A shelf without slabs.
    pub(crate) const fn new(
        name: &'static str,
        object: usize,
        stride: usize,
        kept: usize,
        tag: Tag,
        destroy: Option<Destroy>,
    ) -> Self {
        Self {
            name,
            object,
            stride,
            kept,
            tag,
            destroy,
            colour: (0, 0),
            guard: None,
            lists: [None; 3],
            slabs: 0,
            empty: 0,
            objects: 0,
            live: 0,
            overhead: 0,
        }
    }

    /// The shelf of size class `class`.
    pub(crate) const fn of_class(class: usize) -> Self {
        let size = SIZES[class] as usize;
        Self::new(NAMES[class], size, size, 0, Tag::Class(class as u8), None)
    }

    fn link(&mut self, slab: Slab, list: Listed) {
        let head = &mut self.lists[list as usize];
        slab.listed.set(list);
        slab.prev.set(None);
        slab.next.set(*head);
        if let Some(next) = *head {
            next.prev.set(Some(slab));
        }
        *head = Some(slab);
        self.empty += usize::from(list == Listed::Empty);
    }

    fn unlink(&mut self, slab: Slab) {
        let list = slab.listed.get();
        match slab.prev.get() {
            Some(prev) => prev.next.set(slab.next.get()),
            None => self.lists[list as usize] = slab.next.get(),
        }
        if let Some(next) = slab.next.get() {
            next.prev.set(slab.prev.get());
        }
        self.empty -= usize::from(list == Listed::Empty);
    }

    fn relist(&mut self, slab: Slab) {
        let list = match slab.free() {
            0 => Listed::Full,
            free if free == slab.count() => Listed::Empty,
            _ => Listed::Partial,
        };
        if list != slab.listed.get() {
            self.unlink(slab);
            self.link(slab, list);
        }
    }

    /// Adds a fresh slab.
    pub(crate) fn add(&mut self, slab: Slab) {
        self.slabs += 1;
        self.objects += slab.count();
        self.overhead += slab.overhead();
        self.link(slab, Listed::Empty);
    }

    /// Takes a slab off for good.
    fn remove(&mut self, slab: Slab) {
        self.unlink(slab);
        self.slabs -= 1;
        self.objects -= slab.count();
        self.overhead -= slab.overhead();
    }

    /// Takes a free object, from a partly used slab if there is one: the lowest one, or one that the
    /// dice choose.
    pub(crate) fn take(&mut self, dice: &mut Dice) -> Option<NonNull<u8>> {
        let slab = self.lists[Listed::Partial as usize].or(self.lists[Listed::Empty as usize])?;
        let object = match dice.throw() {
            None => slab.take(),
            Some(number) => slab.take_any(number),
        }?;
        self.live += 1;
        self.relist(slab);
        Some(object)
    }

    /// Makes object `index` of `slab` free; none when it is already, else perhaps a slab that is
    /// now to be given back.
    pub(crate) fn put(&mut self, slab: Slab, index: usize) -> Option<Option<Slab>> {
        if !slab.put(index) {
            return None;
        }
        self.live -= 1;
        self.relist(slab);
        if self.empty > self.kept && slab.listed.get() == Listed::Empty {
            self.remove(slab);
            return Some(Some(slab));
        }
        Some(None)
    }

    /// Bytes of the span that the next slab should have.
    pub(crate) fn span_wanted(&self) -> usize {
        (self.objects * self.stride / 4).clamp(SPAN_LEAST.max(16 * self.stride), SPAN_MOST)
    }

    /// Pages of each slab of an object cache.
    pub(crate) fn order(&self) -> Order {
        match self.tag {
            Tag::Cache(order) => order,
            _ => Order::PAGE,
        }
    }

    /// Colours the slabs to come in steps of a cache line, or of the alignment if that is more.
    pub(crate) fn set_coloured(&mut self, align: usize) {
        self.colour = (0, align.max(64));
    }

    /// By how much to move the objects of the next slab: within the room that there is anyway.
    pub(crate) fn next_colour(&mut self) -> usize {
        let (colour, step) = self.colour;
        let room = room(self.order().bytes() as usize, self.stride);
        self.colour.0 = if colour + step <= room { colour + step } else { 0 };
        colour
    }

    /// The partly used slab with the fewest live objects, and the one with the most; none when
    /// there are not two.
    pub(crate) fn extremes(&self, skipped: impl Fn(Slab) -> bool) -> Option<(Slab, Slab)> {
        let partial = || self.iter().filter(|slab| slab.listed.get() == Listed::Partial);
        let emptiest = partial().filter(|&slab| !skipped(slab)).max_by_key(|slab| slab.free())?;
        let fullest = partial().min_by_key(|slab| slab.free())?;
        (emptiest != fullest).then_some((emptiest, fullest))
    }

    /// Takes a free object of this very slab.
    pub(crate) fn take_from(&mut self, slab: Slab) -> Option<NonNull<u8>> {
        let object = slab.take()?;
        self.live += 1;
        self.relist(slab);
        Some(object)
    }

    /// Takes an empty slab off, if there is one.
    pub(crate) fn pop_empty(&mut self) -> Option<Slab> {
        let slab = self.lists[Listed::Empty as usize]?;
        self.remove(slab);
        Some(slab)
    }

    /// All slabs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Slab> + '_ {
        self.lists.iter().flat_map(|head| {
            let mut next = *head;
            core::iter::from_fn(move || {
                let slab = next?;
                next = slab.next.get();
                Some(slab)
            })
        })
    }

    /// *shelf-count*, checked in full; the address of the slab that breaks it, or 0 if only the sums
    /// are wrong.
    pub(crate) fn check(&self) -> Result<(), usize> {
        let (mut slabs, mut objects, mut free, mut overhead) = (0, 0, 0, 0);
        for slab in self.iter() {
            let list = match slab.free() {
                0 => Listed::Full,
                free if free == slab.count() => Listed::Empty,
                _ => Listed::Partial,
            };
            if !slab.is_sound() || list != slab.listed.get() {
                return Err(slab.base().as_ptr() as usize);
            }
            slabs += 1;
            objects += slab.count();
            free += slab.free();
            overhead += slab.overhead();
        }
        let same = (slabs, objects, free, overhead)
            == (self.slabs, self.objects, self.objects - self.live, self.overhead);
        if same { Ok(()) } else { Err(0) }
    }
}
