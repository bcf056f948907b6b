//! Mistakes made on purpose: each has to be caught, or shown not to be made.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pagoda_addr::VirtAddr;

use super::host::{CacheFile, Host, Space};
use crate::{
    Access, Advice, Backing, FaultError, FileObject, MapFlags, MapRequest, Place, Policy, Prot,
    RemapPlace, RemapRequest,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const BASE: u64 = 0x10_0000_0000;

fn at(addr: u64) -> VirtAddr {
    VirtAddr::new(addr)
}

fn anonymous<'h>(addr: u64, pages: u64) -> MapRequest<&'h Host> {
    MapRequest::anonymous(Place::Fixed(at(addr)), pages * 4096, RW)
}

/// With the first flush of `call` left out on CPU 0, which knows a page at `BASE`, what CPU 0 does
/// next stops the test.
fn is_caught(call: impl Fn(&Host, &Space<'_>)) {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let host = Host::new(64);
        let space = host.linux();
        host.enter(0, &space);
        space.map(anonymous(BASE, 2)).unwrap();
        host.store(0, &space, BASE, 1).unwrap();
        host.0.drop_flush(0, None);
        call(&host, &space);
        let _ = host.load(0, &space, BASE);
        host.0.audit();
    }));
    assert!(caught.is_err(), "a stale translation was used, and nobody noticed");
}

fn move_away(space: &Space<'_>) {
    let (addr, place) = (at(BASE), RemapPlace::Fixed(at(2 * BASE)));
    let request = RemapRequest { addr, old_len: 4096, new_len: 4096, place, keep_old: false };
    space.remap(request).unwrap();
}

#[test]
fn a_dropped_flush_at_a_move_is_caught() {
    is_caught(|_, space| move_away(space));
}

#[test]
fn a_dropped_flush_at_unmapping_protecting_and_advising_is_caught() {
    is_caught(|_, space| space.unmap(at(BASE), 4096).unwrap());
    is_caught(|_, space| space.protect(at(BASE), 4096, Prot::empty()).unwrap());
    is_caught(|_, space| space.advise(at(BASE), 4096, Advice::DontNeed).unwrap());
    is_caught(|_, space| space.advise(at(BASE), 4096, Advice::GuardInstall).unwrap());
}

#[test]
fn a_dropped_flush_at_a_copy_is_caught() {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let host = Host::new(64);
        let (space, child);
        space = host.linux();
        host.enter(0, &space);
        host.enter(1, &space);
        space.map(anonymous(BASE, 1)).unwrap();
        host.store(0, &space, BASE, 1).unwrap();
        child = space.fork(host.table()).unwrap();
        // CPU 1 knows the page that both share, and goes on to believe in it.
        host.load(1, &space, BASE).unwrap();
        host.0.drop_flush(0, None);
        host.store(0, &space, BASE, 2).unwrap();
        host.load(1, &space, BASE).unwrap();
        host.0.audit();
        drop(child);
    }));
    assert!(caught.is_err());
}

#[test]
fn a_dropped_flush_at_truncation_is_caught() {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let host = Host::new(64);
        let file = CacheFile::new(&host, 2);
        let space = host.linux();
        host.enter(0, &space);
        let object: Arc<dyn FileObject> = file.clone();
        let backing = Backing::SharedFile { object, offset: 0 };
        let (place, flags) = (Place::Fixed(at(BASE)), MapFlags::empty());
        space.map(MapRequest { place, len: 8192, prot: RW, flags, backing }).unwrap();
        host.store(0, &space, BASE, 1).unwrap();
        file.resize(0);
        host.0.drop_flush(0, None);
        space.forget_object(FileObject::key(&*file), (0, u64::MAX), true);
    }));
    assert!(caught.is_err(), "a frame was freed while a CPU knew it, and nobody noticed");
}

#[test]
fn the_page_of_zeroes_is_neither_written_nor_counted_nor_released() {
    let host = Host::adaptive(64);
    {
        let space = host.linux();
        space.set_policy(Policy::ADAPTIVE);
        host.enter(0, &space);
        space.map(anonymous(BASE, 32)).unwrap();
        let tables = host.used() + 3;
        for page in 0..32 {
            assert_eq!(host.load(0, &space, BASE + page * 4096), Ok(0));
        }
        assert_eq!(host.used(), tables, "no frame for what nobody wrote");
        assert_eq!(space.stats().rss(), 0);
        assert_eq!(space.resident(at(BASE)).present, 0);
        let child = space.fork(host.table()).unwrap();
        host.enter(1, &child);
        host.store(0, &space, BASE, 1).unwrap();
        host.store(1, &child, BASE + 4096, 2).unwrap();
        assert_eq!((host.load(1, &child, BASE), host.load(0, &space, BASE + 4096)), (Ok(0), Ok(0)));
        assert_eq!((space.stats().rss(), child.stats().rss()), (1, 1));
        space.protect(at(BASE), 32 * 4096, Prot::READ).unwrap();
        space.protect(at(BASE), 32 * 4096, RW).unwrap();
        assert!(space.fault(at(BASE + 8 * 4096), Access::Write).is_ok());
        host.check_zero_page();
        host.leave(0, &space);
        host.leave(1, &child);
    }
    assert_eq!(host.used(), 0);
    host.check_zero_page();
}

#[test]
fn resident_sizes_stay_right_over_moves_forks_and_holes() {
    let host = Host::new(128);
    {
        let space = host.linux();
        host.enter(0, &space);
        space.map(anonymous(BASE, 8)).unwrap();
        (0..8).for_each(|page| host.store(0, &space, BASE + page * 4096, 3).unwrap());
        move_away(&space);
        assert_eq!(space.stats().rss_anonymous, 8);
        let child = space.fork(host.table()).unwrap();
        assert_eq!(child.stats().rss_anonymous, 8);
        child.unmap(at(BASE), 8 * 4096).unwrap();
        assert_eq!((child.stats().rss(), space.stats().rss()), (1, 8));
        space.advise(at(BASE), 8 * 4096, Advice::DontNeed).unwrap_err();
        assert_eq!(space.stats().rss(), 1, "the moved page");
        space.unmap(at(2 * BASE), 4096).unwrap();
        assert_eq!(space.stats().rss(), 0);
        host.leave(0, &space);
    }
    assert_eq!(host.used(), 0);
}

#[test]
fn a_fault_that_finds_no_frame_changes_nothing_and_can_be_tried_again() {
    let host = Host::adaptive(64);
    {
        let space = host.linux();
        space.set_policy(Policy::ADAPTIVE);
        host.enter(0, &space);
        space.map(anonymous(BASE, 32)).unwrap();
        host.store(0, &space, BASE, 1).unwrap();
        // The second frame of the second fault is refused: one page comes instead of two.
        host.0.fail_after(Some(1));
        host.store(0, &space, BASE + 4096, 2).unwrap();
        assert_eq!(space.stats().rss(), 2);
        host.0.fail_after(Some(0));
        let refused = host.store(0, &space, BASE + 2 * 4096, 3);
        assert_eq!((refused, space.stats().rss()), (Err(FaultError::OutOfMemory), 2));
        host.0.fail_after(None);
        host.store(0, &space, BASE + 2 * 4096, 3).unwrap();
        host.leave(0, &space);
    }
    assert_eq!(host.used(), 0);
}
