//! # From contradicting entries to a map
//!
//! Everything happens in the storage that the caller gave; nothing else grows with the input.
//!
//! ```text
//! entries --collect--> [ . . . . . | n claims ]      drop empty, clamp wrapping, sort by start
//!         --sweep----> [ byte segments | . . . ]     at each byte the most severe claim wins
//!         --round----> [ page regions | . . . . ]    usable inwards, all else outwards
//! taken   --carve----> [ page regions | . . . . ]    usable frames that somebody sits in
//! ```
//!
//! *Sweep.* Claims are read in order of their starts. All that has to be remembered of the claims
//! already read is, for each kind, how far it reaches: that is an array as long as there are kinds.
//! A segment ends where its own kind ends or where the next claim starts, so `n` claims make at
//! most `2n - 1` segments. Neighbours of one kind are joined as they are written: usable entries
//! that meet inside a page are one before anything is rounded.
//!
//! Invariant "sweep-in-place": having read `i` claims, the sweep has written at most `2i` segments;
//! with the claims at the far end of at least `2n` places, the write position never passes the
//! read position (`2i <= n + i`).
//!
//! *Round.* A frame that is usable in every byte is usable. A frame with any byte that the firmware
//! keeps goes to the most severe of those. A frame that is part RAM and part gap is a gap.
//! Each segment gives at most one region, so this too runs in place.
//!
//! *Carve.* A taken range claims every frame it touches, but changes only frames that are RAM, and
//! only to something more severe: the order of the taken ranges does not matter, and what stands
//! there as taken may be freed later. A carve adds two cuts, so at most two regions.
//!
//! Time: O(n log n) for n entries; O(log r) per taken range that needs no new region and O(r) per
//! one that does, r being the regions.

use pagoda_addr::{PAGE_SIZE, PhysRange};

use crate::{MapError, MemoryEntry, Region, RegionKind};

/// The end of the last page whose end is a 64-bit address. No machine has memory above it.
const SPACE_END: u64 = !(PAGE_SIZE - 1);

/// Builds the map in `storage` and returns the number of regions.
pub(crate) fn build(
    entries: impl Iterator<Item = MemoryEntry>,
    mut taken: impl Iterator<Item = (PhysRange, RegionKind)>,
    storage: &mut [Region],
) -> Result<usize, MapError> {
    let given = storage.len();
    let claims = collect(entries, storage);
    if claims.saturating_mul(2) > given {
        let needed = claims.saturating_add(taken.count()).saturating_mul(2);
        return Err(MapError::StorageTooSmall { needed, given });
    }
    let segments = sweep(storage, claims)?;
    let mut regions = Regions { len: round(storage, segments), storage };
    while let Some((range, kind)) = taken.next() {
        if kind.is_usable() {
            return Err(MapError::TakenAsUsable { range });
        }
        let before = regions.len;
        if regions.carve(range, kind).is_err() {
            let rest = taken.count().saturating_add(1);
            let needed = before.saturating_add(rest.saturating_mul(2));
            return Err(MapError::StorageTooSmall { needed, given });
        }
    }
    Ok(regions.len)
}

/// Writes the claims to the front of `storage`, as many as fit, and returns how many there are.
/// Joins a claim to the one before it where the two meet and agree.
fn collect(entries: impl Iterator<Item = MemoryEntry>, storage: &mut [Region]) -> usize {
    let mut last = Region::EMPTY;
    let mut count = 0usize;
    for entry in entries {
        let range = PhysRange::clamped(entry.start, entry.len);
        let start = range.start().as_u64();
        let end = range.end().as_u64().min(SPACE_END);
        if start >= end {
            continue;
        }
        if count > 0 && last.kind == entry.kind && last.end() == start {
            last = Region::between(last.start(), end, entry.kind);
        } else {
            last = Region::between(start, end, entry.kind);
            count = count.saturating_add(1);
        }
        if let Some(place) = storage.get_mut(count - 1) {
            *place = last;
        }
    }
    count
}

/// Resolves the first `claims` places of `storage` into disjoint, ascending byte segments.
fn sweep(storage: &mut [Region], claims: usize) -> Result<usize, MapError> {
    let given = storage.len();
    let mut next = given - claims; // claims <= given / 2
    storage.copy_within(..claims, next);
    if let Some(unread) = storage.get_mut(next..) {
        unread.sort_unstable_by_key(|claim| claim.start());
    }
    let mut reach = [0u64; RegionKind::COUNT];
    let mut position = 0u64;
    let mut written = 0usize;
    loop {
        let upcoming = loop {
            match storage.get(next).copied() {
                Some(claim) if claim.start() <= position => {
                    let end = &mut reach[claim.kind as usize];
                    *end = claim.end().max(*end);
                    next += 1;
                }
                other => break other.map(|claim| claim.start()),
            }
        };
        let strongest =
            RegionKind::BY_SEVERITY.into_iter().find(|kind| reach[*kind as usize] > position);
        let Some(kind) = strongest else {
            match upcoming {
                Some(start) => position = start,
                None => return Ok(written),
            }
            continue;
        };
        let end = reach[kind as usize].min(upcoming.unwrap_or(u64::MAX));
        // "sweep-in-place" makes the second condition always true.
        written = match push(storage, written, Region::between(position, end, kind)) {
            Some(written) if written <= next => written,
            _ => return Err(MapError::StorageTooSmall { needed: given.saturating_mul(2), given }),
        };
        position = end;
    }
}

/// Rounds the first `segments` places of `storage` to pages and returns the number of regions.
fn round(storage: &mut [Region], segments: usize) -> usize {
    let mut written = 0usize;
    for read in 0..segments {
        let Some(segment) = storage.get(read).copied() else { break };
        let down = |address: u64| address & !(PAGE_SIZE - 1);
        let up = |address: u64| down(address.saturating_add(PAGE_SIZE - 1));
        let mut region = if segment.kind.is_usable() {
            Region::between(up(segment.start()), down(segment.end()), segment.kind)
        } else {
            Region::between(down(segment.start()), up(segment.end()), segment.kind)
        };
        // Rounded outwards, the one before may share this region's first page.
        if let Some(before) = written.checked_sub(1).and_then(|i| storage.get_mut(i)) {
            if before.end() > region.start() {
                if region.kind > before.kind {
                    *before = Region::between(before.start(), region.start(), before.kind);
                    written -= usize::from(before.range.is_empty());
                } else {
                    region = Region::between(before.end(), region.end(), region.kind);
                }
            }
        }
        if !region.range.is_empty() {
            written = push(storage, written, region).unwrap_or(written);
        }
    }
    written
}

/// Appends `region` to the first `len` places, or extends the last one where the two meet and
/// agree. Returns the new length; none when there is no place.
fn push(storage: &mut [Region], len: usize, region: Region) -> Option<usize> {
    if let Some(last) = len.checked_sub(1).and_then(|i| storage.get_mut(i)) {
        if last.kind == region.kind && last.end() == region.start() {
            *last = Region::between(last.start(), region.end(), region.kind);
            return Some(len);
        }
    }
    *storage.get_mut(len)? = region;
    Some(len + 1)
}

/// No place for another region; `needed` places would have done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Full {
    pub(crate) needed: usize,
}

/// A finished map while it is being changed: the first `len` places of `storage` are sorted,
/// disjoint, page-aligned, not empty, and no two neighbours that meet are of one kind.
pub(crate) struct Regions<'s> {
    pub(crate) storage: &'s mut [Region],
    pub(crate) len: usize,
}

impl Regions<'_> {
    pub(crate) fn as_slice(&self) -> &[Region] {
        self.storage.get(..self.len).unwrap_or_default()
    }

    /// The place of the first region that ends above `address`.
    pub(crate) fn first_above(&self, address: u64) -> usize {
        self.as_slice().partition_point(|region| region.end() <= address)
    }

    /// Turns every frame touched by `range` that is RAM of a less severe kind into `kind`.
    /// On failure a part of the range may have been turned, never the rest of the map.
    pub(crate) fn carve(&mut self, range: PhysRange, kind: RegionKind) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let mut start = range.start().as_u64() & !(PAGE_SIZE - 1);
        let last = range.end().as_u64().min(SPACE_END);
        let end = last.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1);
        loop {
            let place = self.first_above(start);
            let Some(region) = self.as_slice().get(place).copied() else { return Ok(()) };
            if region.start() >= end {
                return Ok(());
            }
            if region.kind.is_ram() && region.kind < kind {
                let part = (region.start().max(start), region.end().min(end));
                self.turn(place, region, part, kind)?;
            }
            start = region.end();
        }
    }

    /// Turns the bytes `start..end` of `region`, which stands at `place`, into `kind`.
    fn turn(
        &mut self,
        place: usize,
        region: Region,
        (start, end): (u64, u64),
        kind: RegionKind,
    ) -> Result<(), Full> {
        let left = Region::between(region.start(), start, region.kind);
        let right = Region::between(end, region.end(), region.kind);
        let mut middle = Region::between(start, end, kind);
        let (mut from, mut to) = (place, place + 1);
        if let Some(before) = place.checked_sub(1).and_then(|i| self.as_slice().get(i)) {
            if before.end() == start && before.kind == kind {
                middle = Region::between(before.start(), middle.end(), kind);
                from = place - 1;
            }
        }
        if let Some(after) = self.as_slice().get(place + 1) {
            if after.start() == end && after.kind == kind {
                middle = Region::between(middle.start(), after.end(), kind);
                to = place + 2;
            }
        }
        let pieces = [left, middle, right];
        let wanted = pieces.iter().filter(|piece| !piece.range.is_empty());
        self.resize(from, to, wanted.clone().count())?;
        for (slot, piece) in self.storage.iter_mut().skip(from).zip(wanted) {
            *slot = *piece;
        }
        Ok(())
    }

    /// Makes the places `from..to` `count` long, moving what follows.
    fn resize(&mut self, from: usize, to: usize, count: usize) -> Result<(), Full> {
        let needed = self.len - (to - from) + count;
        if needed > self.storage.len() {
            return Err(Full { needed });
        }
        self.storage.copy_within(to..self.len, from + count);
        self.len = needed;
        Ok(())
    }
}
