//! Everything fails once: each allocation that a call makes is refused in turn, and the space has to
//! be as it was before. Then the call is done for good.

use std::vec::Vec;

use pagoda_addr::{Frame, PageRange, VirtAddr};
use pagoda_paging::Entry;
use proptest::prelude::*;

use super::host::{Host, Space};
use super::steps::{Step, step};
use super::world::{LAYOUT, World};
use super::{config, longest};
use crate::fallible;
use crate::{Advice, MapFlags, Prot, RemapPlace, RemapRequest, SpaceStats, VmError};

type Picture = (Vec<(u64, u64, Prot, MapFlags, bool, u64)>, Vec<(u64, Frame)>, SpaceStats, u64);

/// Regions, frames by page, counts, heap.
fn picture(space: &Space<'_>) -> Picture {
    let (mut regions, mut frames, mut from) = (Vec::new(), Vec::new(), VirtAddr::ZERO);
    while let Some(info) = space.next_region(from) {
        let (start, end) = (info.range.start().as_u64(), info.range.end().as_u64());
        regions.push((start, end, info.prot, info.flags, info.shared, info.offset));
        from = info.range.end();
    }
    let all = PageRange::between(VirtAddr::ZERO.block(), LAYOUT.limit.block()).unwrap();
    let mut cursor = space.table().cursor(all).unwrap();
    let mut next = Some(all.start());
    while let Some((page, entry)) = next.and_then(|from| cursor.next_used(from)) {
        if let Entry::Mapped { frame, .. } = entry {
            frames.push((page.number(), frame));
        }
        next = page.checked_add(1).filter(|&page| all.contains(page));
    }
    drop(cursor);
    let stats = SpaceStats { mapped_peak: 0, rss_peak: 0, tables: 0, ..space.stats() };
    (regions, frames, stats, space.brk().1.as_u64())
}

/// Does the call, says whether it was refused for want of memory.
fn attempt(world: &World<'_>, step: &Step) -> bool {
    let space = world.space();
    let result = match *step {
        Step::Map { .. } => world.request(step).map_or(Ok(()), |r| space.map(r).map(drop)),
        Step::Unmap { addr, len } => space.unmap(VirtAddr::new(addr), len),
        Step::Protect { addr, len, prot } => {
            space.protect(VirtAddr::new(addr), len, Prot::from_bits_truncate(prot))
        }
        Step::Remap { addr, old, new, may_move } => {
            let place = if may_move { RemapPlace::MayMove } else { RemapPlace::InPlace };
            let addr = VirtAddr::new(addr);
            let request = RemapRequest { addr, old_len: old, new_len: new, place, keep_old: false };
            space.remap(request).map(drop)
        }
        Step::MoveTo { addr, old, new, to } => {
            let (addr, to) = (VirtAddr::new(addr), VirtAddr::new(to));
            let place = RemapPlace::Fixed(to);
            let request = RemapRequest { addr, old_len: old, new_len: new, place, keep_old: false };
            space.remap(request).map(drop)
        }
        Step::DontNeed { addr, len } => space.advise(VirtAddr::new(addr), len, Advice::DontNeed),
        Step::Brk { to } => {
            let before = space.brk().1;
            let after = space.set_brk(VirtAddr::new(to));
            if after == before { Err(VmError::OutOfMemory) } else { Ok(()) }
        }
        Step::Store { page, byte, .. } => {
            world.host.store(0, space, page * 4096, byte).map_err(VmError::from)
        }
        Step::Fork => space.fork(world.host.table()).map(drop),
        _ => Ok(()),
    };
    result == Err(VmError::OutOfMemory)
}

/// Refuses the first allocation of the call, then the second, until it gets by; for allocations of
/// frames, then for those of records. The call is thus done twice, which is as good as any two.
fn fail_each(world: &World<'_>, step: &Step) {
    let exempt = match *step {
        // Populating goes as far as it can and reports nothing.
        Step::Map { populate, .. } => populate,
        // Unmaps what is at the new place first.
        Step::MoveTo { .. } => true,
        // A stack that has grown stays so.
        Step::Store { page, .. } => {
            let addr = VirtAddr::new(page * 4096);
            world.space().next_region(addr).is_some_and(|info| !info.range.contains(addr))
        }
        _ => false,
    };
    if exempt {
        attempt(world, step);
        return;
    }
    for frames in [true, false] {
        for count in 0.. {
            let before = picture(world.space());
            if frames {
                // The root of a child is made before the call.
                let skip = u64::from(matches!(step, Step::Fork));
                world.host.0.fail_after(Some(count + skip));
            } else {
                fallible::host::fail_after(Some(count));
            }
            let refused = attempt(world, step);
            world.host.0.fail_after(None);
            fallible::host::fail_after(None);
            if !refused || count == 100 {
                break;
            }
            assert_eq!(picture(world.space()), before, "{step:?} refused at {count}");
            world.host.0.audit();
        }
    }
}

#[test]
fn a_move_within_one_table_needs_no_frame_half_way() {
    let host = Host::new(3072);
    let world = World::new(&host);
    let rw = Prot::READ | Prot::WRITE;
    let place = crate::Place::Fixed(VirtAddr::new(0x2_0000));
    world.space().map(crate::MapRequest::anonymous(place, 0x4000, rw)).unwrap();
    host.store(0, world.space(), 0x2_1000, 7).unwrap();
    host.0.fail_after(Some(0));
    let request = RemapRequest {
        addr: VirtAddr::new(0x2_1000),
        old_len: 0x1000,
        new_len: 0x2000,
        place: RemapPlace::MayMove,
        keep_old: false,
    };
    let to = world.space().remap(request).unwrap().as_u64();
    host.0.fail_after(None);
    assert_eq!(host.load(1, world.space(), to), Ok(7));
    world.leave();
}

proptest! {
    #![proptest_config(config(60))]
    #[test]
    fn what_is_refused_leaves_everything_as_it_was(steps in prop::collection::vec(step(), 1..longest(80))) {
        let host = Host::new(3072);
        {
            let world = World::new(&host);
            for step in &steps {
                fail_each(&world, step);
            }
            world.leave();
        }
        prop_assert_eq!(host.used(), 0, "every frame and table came back");
    }
}
