//! Files in frames: what reading, writing and mapping see of each other.

use std::sync::Arc;

use pagoda_addr::VirtAddr;

use super::host::{CacheFile, Host};
use crate::{
    Access, Backing, FaultError, FileObject, FutexKey, MapFlags, MapRequest, Place, Prot, VmError,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const BASE: u64 = 0x10_0000_0000;
const OTHER: u64 = 0x20_0000_0000;

fn map<'h>(file: &Arc<CacheFile>, addr: u64, pages: u64, shared: bool) -> MapRequest<&'h Host> {
    let object: Arc<dyn FileObject> = file.clone();
    let backing = if shared {
        Backing::SharedFile { object, offset: 0 }
    } else {
        Backing::File { object, offset: 0 }
    };
    let place = Place::Fixed(VirtAddr::new(addr));
    MapRequest { place, len: pages * 4096, prot: RW, flags: MapFlags::empty(), backing }
}

fn forget(space: &super::host::Space<'_>, file: &CacheFile, range: (u64, u64), own: bool) {
    space.forget_object(FileObject::key(file), range, own);
}

#[test]
fn a_store_to_a_shared_file_is_in_the_file_and_in_every_mapping() {
    let host = Host::new(64);
    {
        let file = CacheFile::new(&host, 4);
        let (one, two) = (host.linux(), host.linux());
        host.enter(0, &one);
        host.enter(1, &two);
        one.map(map(&file, BASE, 4, true)).unwrap();
        two.map(map(&file, OTHER, 4, true)).unwrap();
        two.map(map(&file, BASE, 4, false)).unwrap();
        assert_eq!(host.load(1, &two, BASE + 8), Ok(0));
        host.store(0, &one, BASE + 8, 7).unwrap();
        assert_eq!(file.byte(8), 7);
        assert_eq!(host.load(1, &two, OTHER + 8), Ok(7));
        assert_eq!(host.load(1, &two, BASE + 8), Ok(7), "private, not written yet");
        file.set(8, 9);
        assert_eq!(host.load(0, &one, BASE + 8), Ok(9));
        assert_eq!(one.stats().rss_shared, 1);
        assert_eq!(one.resident(VirtAddr::new(BASE)).proportional, 4096 / 3);
        // A word in a file is one word for all who map the file.
        let key = |space: &super::host::Space<'_>, addr| {
            space.futex_key(VirtAddr::new(addr), true).unwrap()
        };
        assert_eq!(key(&one, BASE + 8), key(&two, OTHER + 8));
        assert!(matches!(key(&two, BASE + 8), FutexKey::Private(_)));
        host.leave(0, &one);
        host.leave(1, &two);
    }
    assert_eq!(host.used(), 0);
}

#[test]
fn a_private_mapping_reads_the_files_frames_and_writes_to_its_own() {
    let host = Host::new(64);
    {
        let file = CacheFile::new(&host, 4);
        (0..4).for_each(|page| file.set(page * 4096, 5));
        let space = host.linux();
        host.enter(0, &space);
        space.map(map(&file, BASE, 4, false)).unwrap();
        let used = host.used();
        assert_eq!(host.load(0, &space, BASE), Ok(5));
        assert_eq!(host.used(), used + 3, "tables and no page");
        assert_eq!(space.stats().rss_file, 4, "one fault maps what is in memory");
        host.store(0, &space, BASE + 4096, 6).unwrap();
        assert_eq!((file.byte(4096), host.load(0, &space, BASE + 4096)), (5, Ok(6)));
        assert_eq!((space.stats().rss_file, space.stats().rss_anonymous), (3, 1));
        // A fork shares both kinds.
        let child = space.fork(host.table()).unwrap();
        host.enter(1, &child);
        host.store(1, &child, BASE + 4096, 8).unwrap();
        host.store(1, &child, BASE + 8192, 8).unwrap();
        assert_eq!((file.byte(8192), host.load(0, &space, BASE + 4096)), (5, Ok(6)));
        host.leave(0, &space);
        host.leave(1, &child);
    }
    assert_eq!(host.used(), 0);
}

#[test]
fn what_a_truncated_file_has_lost_is_sigbus_in_every_mapping() {
    let host = Host::new(64);
    {
        let file = CacheFile::new(&host, 4);
        let space = host.linux();
        host.enter(0, &space);
        space.map(map(&file, BASE, 4, true)).unwrap();
        space.map(map(&file, OTHER, 4, false)).unwrap();
        for page in 0..4 {
            host.store(0, &space, BASE + page * 4096, 1).unwrap();
            host.store(0, &space, OTHER + page * 4096, 2).unwrap();
        }
        let used = host.used();
        file.resize(1);
        assert_eq!(host.used(), used, "mapped pages outlive their file");
        forget(&space, &file, (1, u64::MAX), true);
        assert_eq!(host.used(), used - 6);
        for base in [BASE, OTHER] {
            assert!(host.load(0, &space, base).is_ok());
            assert_eq!(host.load(0, &space, base + 4096), Err(FaultError::Bus));
            assert_eq!(host.store(0, &space, base + 3 * 4096, 1), Err(FaultError::Bus));
        }
        file.resize(2);
        assert_eq!(host.load(0, &space, OTHER + 4096), Ok(0), "grown again, it reads as zero");
        host.leave(0, &space);
    }
    assert_eq!(host.used(), 0);
}

#[test]
fn a_hole_takes_the_files_pages_and_leaves_a_programs_own() {
    let host = Host::new(64);
    {
        let file = CacheFile::new(&host, 2);
        file.set(0, 3);
        let space = host.linux();
        host.enter(0, &space);
        space.map(map(&file, BASE, 2, true)).unwrap();
        space.map(map(&file, OTHER, 2, false)).unwrap();
        host.store(0, &space, OTHER + 4096, 4).unwrap();
        assert_eq!((host.load(0, &space, BASE), host.load(0, &space, OTHER)), (Ok(3), Ok(3)));
        file.punch(0);
        forget(&space, &file, (0, 2), false);
        assert_eq!((host.load(0, &space, BASE), host.load(0, &space, OTHER)), (Ok(0), Ok(0)));
        assert_eq!(host.load(0, &space, OTHER + 4096), Ok(4));
        host.leave(0, &space);
    }
    assert_eq!(host.used(), 0);
}

#[test]
fn what_may_never_be_written_stays_so_and_what_lies_before_is_changed() {
    let host = Host::new(64);
    {
        let file = CacheFile::new(&host, 2);
        let space = host.linux();
        let mut request = map(&file, BASE + 4096, 2, true);
        (request.prot, request.flags) = (Prot::READ, MapFlags::NEVER_WRITE);
        space.map(request).unwrap();
        let below = Place::Fixed(VirtAddr::new(BASE));
        space.map(MapRequest::anonymous(below, 4096, Prot::READ)).unwrap();
        let asked = space.protect(VirtAddr::new(BASE), 3 * 4096, RW);
        assert_eq!(asked, Err(VmError::Denied));
        assert!(space.fault(VirtAddr::new(BASE), Access::Write).is_ok());
        let refused = space.fault(VirtAddr::new(BASE + 4096), Access::Write);
        assert_eq!(refused, Err(FaultError::Protection));
    }
    assert_eq!(host.used(), 0);
}

#[test]
fn a_host_without_frames_for_files_refuses_to_share_them() {
    let host = Host::new(64);
    let space = host.linux();
    let object = super::host::TestFile::shared(1, 4096);
    let place = Place::Fixed(VirtAddr::new(BASE));
    let backing = Backing::SharedFile { object, offset: 0 };
    let request = MapRequest { place, len: 4096, prot: RW, flags: MapFlags::empty(), backing };
    space.map(request).unwrap();
    assert_eq!(space.fault(VirtAddr::new(BASE), Access::Read), Err(FaultError::Bus));
}
