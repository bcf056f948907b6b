//! Debug modes: what stands around an object, and what is compared.
//!
//! ```text
//! slot   | red zone, 16 bytes or the alignment | object | red zone, at least 16 | record |
//! ```
//! The red zones hold one byte value while the object is free and another while it is out; the right
//! one begins at the first byte that the owner did not ask for. A free object holds poison, or, in a
//! cache whose objects stay constructed, what its checksum says. The record holds the size asked
//! for, the checksum, and who allocated and who freed the object.
//!
//! Objects of a size class under a debug mode live in slabs of their own, owned like those of an
//! object cache; their tags are not those of a class, so that no fast path takes them: what is
//! switched off costs nothing.
//!
//! *guard-locked*: zones, poison of free objects, and records are touched under the central lock.
#![allow(unsafe_code)] // reads and writes raw slots

use core::fmt;
use core::mem::size_of;
use core::ptr::NonNull;

use crate::MisuseKind;

/// The debug modes of a cache or a size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DebugFlags {
    /// `F`: every free is inspected in full, at once. (Implied by all others.)
    pub consistency: bool,
    /// `Z`: red zones on both sides.
    pub red_zone: bool,
    /// `P`: free objects are poisoned, fresh ones filled with junk.
    pub poison: bool,
    /// `U`: who allocated, who freed.
    pub track: bool,
    /// `Q`: freed objects wait before they are used again.
    pub quarantine: bool,
}

/// A part of the debug option that has no meaning: this character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadOption(pub char);

impl fmt::Display for BadOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is none of the debug modes F, Z, P, U, Q", self.0)
    }
}

impl core::error::Error for BadOption {}

impl DebugFlags {
    /// The flags that the letters mean: `F`, `Z`, `P`, `U` as Linux has them, and `Q`.
    pub fn parse(letters: &str) -> Result<Self, BadOption> {
        let mut flags = Self::default();
        for letter in letters.chars() {
            match letter {
                'F' | 'f' => flags.consistency = true,
                'Z' | 'z' => flags.red_zone = true,
                'P' | 'p' => flags.poison = true,
                'U' | 'u' => flags.track = true,
                'Q' | 'q' => flags.quarantine = true,
                other => return Err(BadOption(other)),
            }
        }
        Ok(flags)
    }

    /// No mode at all?
    pub const fn is_empty(self) -> bool {
        !(self.consistency || self.red_zone || self.poison || self.track || self.quarantine)
    }
}

/// What the option (`FZPU,name,other*;P,third`, as Linux's `slab_debug`) says about a cache. The
/// last group that names it counts; a group without names means every cache.
pub(crate) fn flags_for(option: &str, name: &str) -> Result<DebugFlags, BadOption> {
    let mut flags = DebugFlags::default();
    for group in option.split(';') {
        let mut parts = group.split(',');
        let these = DebugFlags::parse(parts.next().unwrap_or(""))?;
        let mut names = parts.peekable();
        let all = names.peek().is_none();
        let named = names.any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        });
        if all || named {
            flags = these;
        }
    }
    Ok(flags)
}

/// Return addresses in a [`Track`].
pub const TRACK_FRAMES: usize = 6;

/// Who did something to an object: what the host's hook knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Track {
    /// The CPU.
    pub cpu: u16,
    /// When, in the host's unit.
    pub time: u64,
    /// Return addresses, innermost first; 0 behind the last.
    pub frames: [usize; TRACK_FRAMES],
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on cpu{} at {}", self.cpu, self.time)?;
        self.frames.iter().take_while(|&&frame| frame != 0).try_for_each(|at| write!(f, " {at:#x}"))
    }
}

/// What damage looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Harm {
    /// The first damaged byte, counted from the object's first; negative in front of it.
    pub offset: isize,
    /// Damaged bytes, from the first to the last.
    pub bytes: usize,
    /// What the first of them should be. (A checksum knows only that something changed: then 0.)
    pub expected: u8,
    /// What it is.
    pub found: u8,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, bytes, expected, found } = self;
        write!(f, "{bytes} bytes from offset {offset} on, {found:#04x} instead of {expected:#04x}")
    }
}

const ZONE: usize = 16;
const ZONE_FREE: u8 = 0xbb;
const ZONE_LIVE: u8 = 0xcc;
const POISON: u8 = 0x6b;
const POISON_END: u8 = 0xa5;
const JUNK: u8 = 0x5a;
const LIVE: usize = 0x11fe_0b1e;
const FREE: usize = 0xf4ee_0b1e;

/// What stands behind a guarded object.
#[repr(C)]
struct Record {
    state: usize,
    /// Bytes asked for.
    size: usize,
    sum: u64,
    tracks: [Track; 2],
}

/// How the objects of a shelf are guarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Guard {
    pub(crate) flags: DebugFlags,
    /// Bytes in front of the object.
    pub(crate) lead: usize,
    /// The largest object.
    object: usize,
    /// From the object to its record.
    record: usize,
    /// The objects stay constructed: no poison, a checksum.
    constructed: bool,
}

impl Guard {
    /// The guard for objects of this size and alignment, and the bytes of a slot.
    pub(crate) fn new(
        flags: DebugFlags,
        object: usize,
        align: usize,
        constructed: bool,
    ) -> Option<(Self, usize)> {
        let lead = align.max(ZONE);
        let record = object.checked_add(ZONE)?.checked_next_multiple_of(8)?;
        let stride = lead
            .checked_add(record)?
            .checked_add(size_of::<Record>())?
            .checked_next_multiple_of(align.max(8))?;
        Some((Self { flags, lead, object, record, constructed }, stride))
    }

    fn record(&self, object: NonNull<u8>) -> *mut Record {
        // The slot has room for the record, aligned to 8.
        object.as_ptr().wrapping_add(self.record).cast()
    }

    /// # Safety
    /// `object` is an object of the shelf with this guard; *guard-locked*.
    unsafe fn fill(&self, object: NonNull<u8>, size: usize, zone: u8) {
        if self.flags.red_zone {
            // SAFETY: the zones are part of the slot.
            unsafe {
                object.sub(self.lead).write_bytes(zone, self.lead);
                object.add(size).write_bytes(zone, self.record - size);
            }
        }
    }

    /// # Safety
    /// As for `fill`.
    unsafe fn look(
        object: NonNull<u8>,
        from: isize,
        len: usize,
        want: impl Fn(usize) -> u8,
    ) -> Option<Harm> {
        // SAFETY: bytes of the slot. Volatile: their owner may be writing where he should not.
        let byte =
            |at: usize| unsafe { object.offset(from + at as isize).as_ptr().read_volatile() };
        let first = (0..len).find(|&at| byte(at) != want(at))?;
        let last = (first..len).rev().find(|&at| byte(at) != want(at))?;
        let (expected, found) = (want(first), byte(first));
        Some(Harm { offset: from + first as isize, bytes: last - first + 1, expected, found })
    }

    /// # Safety
    /// As for `fill`.
    unsafe fn zones(
        &self,
        object: NonNull<u8>,
        size: usize,
        zone: u8,
    ) -> Result<(), (MisuseKind, Harm)> {
        if !self.flags.red_zone {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe {
            let lead = self.lead;
            if let Some(harm) = Self::look(object, -(lead as isize), lead, |_| zone) {
                return Err((MisuseKind::Underflow, harm));
            }
            match Self::look(object, size as isize, self.record - size, |_| zone) {
                Some(harm) => Err((MisuseKind::Overflow, harm)),
                None => Ok(()),
            }
        }
    }

    /// # Safety
    /// As for `fill`.
    unsafe fn sum(&self, object: NonNull<u8>) -> u64 {
        (0..self.object).fold(0xcbf2_9ce4_8422_2325, |sum: u64, at| {
            // SAFETY: bytes of the object; volatile, since some may be padding.
            let byte = unsafe { object.add(at).as_ptr().read_volatile() };
            (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    const fn poison_at(&self, at: usize) -> u8 {
        if at + 1 == self.object { POISON_END } else { POISON }
    }

    /// Makes a fresh or freed object what a free one should be.
    ///
    /// # Safety
    /// As for `fill`; nobody owns the object.
    unsafe fn lay_down(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe {
            self.fill(object, self.object, ZONE_FREE);
            if self.flags.poison && self.constructed {
                (*self.record(object)).sum = self.sum(object);
            } else if self.flags.poison {
                object.write_bytes(POISON, self.object);
                if let Some(last) = self.object.checked_sub(1) {
                    object.add(last).write(POISON_END);
                }
            }
            (*self.record(object)).state = FREE;
        }
    }

    /// A fresh object of a fresh slab.
    ///
    /// # Safety
    /// As for `lay_down`; constructed, if it is of that sort.
    pub(crate) unsafe fn init(&self, object: NonNull<u8>) {
        let record = Record { state: FREE, size: 0, sum: 0, tracks: [Track::default(); 2] };
        // SAFETY: the caller's promise.
        unsafe {
            self.record(object).write(record);
            self.lay_down(object);
        }
    }

    /// Is a free object as it was laid down?
    ///
    /// # Safety
    /// As for `fill`.
    pub(crate) unsafe fn check_free(&self, object: NonNull<u8>) -> Result<(), (MisuseKind, Harm)> {
        let kind = MisuseKind::UseAfterFree;
        // SAFETY: the caller's promise.
        unsafe {
            self.zones(object, self.object, ZONE_FREE).map_err(|(_, harm)| (kind, harm))?;
            if !self.flags.poison {
                return Ok(());
            }
            if !self.constructed {
                let found = Self::look(object, 0, self.object, |at| self.poison_at(at));
                return found.map_or(Ok(()), |harm| Err((kind, harm)));
            }
            if (*self.record(object)).sum != self.sum(object) {
                let harm = Harm { offset: 0, bytes: self.object, expected: 0, found: 0 };
                return Err((kind, harm));
            }
        }
        Ok(())
    }

    /// Hands a free object out.
    ///
    /// # Safety
    /// As for `fill`; the object was just taken off its shelf; `size` is at most the largest.
    pub(crate) unsafe fn hand_out(
        &self,
        object: NonNull<u8>,
        size: usize,
        track: Track,
    ) -> Result<(), (MisuseKind, Harm)> {
        // SAFETY: the caller's promise.
        unsafe {
            self.check_free(object)?;
            self.fill(object, size, ZONE_LIVE);
            if self.flags.poison && !self.constructed {
                object.write_bytes(JUNK, size);
            }
            let record = self.record(object);
            (*record).state = LIVE;
            (*record).size = size;
            (*record).tracks[0] = track;
        }
        Ok(())
    }

    /// Takes an object back from its owner; `size`: what he thinks that he asked for.
    ///
    /// # Safety
    /// As for `fill`.
    pub(crate) unsafe fn take_back(
        &self,
        object: NonNull<u8>,
        size: Option<usize>,
        track: Track,
    ) -> Result<(), (MisuseKind, Option<Harm>)> {
        let record = self.record(object);
        // SAFETY: the caller's promise.
        unsafe {
            match (*record).state {
                LIVE => {}
                FREE => return Err((MisuseKind::DoubleFree, None)),
                _ => return Err((MisuseKind::Damaged, None)),
            }
            let asked = (*record).size.min(self.object);
            self.zones(object, asked, ZONE_LIVE).map_err(|(kind, harm)| (kind, Some(harm)))?;
            if size.is_some_and(|size| size != asked) {
                return Err((MisuseKind::WrongLayout, None));
            }
            (*record).tracks[1] = track;
            self.lay_down(object);
        }
        Ok(())
    }

    /// Who allocated and who freed the object, if that is kept; and the size, if it is out.
    ///
    /// # Safety
    /// As for `fill`.
    pub(crate) unsafe fn story(&self, object: NonNull<u8>) -> (Option<usize>, [Option<Track>; 2]) {
        let record = self.record(object);
        // SAFETY: the caller's promise.
        let (state, size, tracks) = unsafe { ((*record).state, (*record).size, (*record).tracks) };
        let known = |track: Track| (self.flags.track && track != Track::default()).then_some(track);
        ((state == LIVE).then_some(size), tracks.map(known))
    }
}
