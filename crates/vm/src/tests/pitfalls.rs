//! Mistakes that others made, in cases that show each of them at once.
#![allow(unsafe_code)] // a file that looks at the space which asks it

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::vec::Vec;

use pagoda_addr::{Frame, PageRange, VirtAddr};
use pagoda_paging::{Entry, PageFlags};

use super::host::{CacheFile, Host, Space};
use crate::{
    Access, Advice, Backing, FileObject, MapFlags, MapRequest, Place, Prot, ReadError, VmPlatform,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const BASE: u64 = 0x10_0000_0000;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(BASE + page * 4096)
}

fn map(space: &Space<'_>, pages: u64) {
    space.map(MapRequest::anonymous(Place::Fixed(at(0)), pages * 4096, RW)).unwrap();
}

fn entry(space: &Space<'_>, page: u64) -> (Frame, PageFlags) {
    let page = at(page).block();
    let entry = space.table().cursor(PageRange::single(page)).unwrap().query(page);
    let Entry::Mapped { frame, flags, .. } = entry else { panic!("{page:?} is absent") };
    (frame, flags)
}

#[test]
fn neighbouring_pages_need_not_have_neighbouring_frames() {
    let host = Host::new(64);
    let space = host.linux();
    map(&space, 6);
    // Frames in another order than pages.
    for page in [4, 1, 5, 0, 3, 2] {
        space.fault(at(page), Access::Write).unwrap();
    }
    let (first, last) = (entry(&space, 0).0.number(), entry(&space, 5).0.number());
    assert_ne!(last.wrapping_sub(first), 5);
    let text: Vec<u8> = (0..5 * 4096).map(|at| (at / 7 % 251) as u8 + 1).collect();
    let range = space.user_range(BASE + 2000, text.len() as u64).unwrap();
    space.copy_out(&text, range).unwrap();
    let mut seen = std::vec![0; text.len()];
    space.copy_in(range, &mut seen).unwrap();
    assert_eq!(seen, text);
    assert_eq!(space.read_cstr(at(5), &mut seen), Ok(2000), "up to the zeroes behind the text");
    host.enter(0, &space);
    for offset in [0, 2095, 2096, 9000, 5 * 4096 - 1] {
        let byte = host.load(0, &space, BASE + 2000 + offset);
        assert_eq!(byte, Ok(text[offset as usize]));
    }
    space.zero(space.user_range(BASE + 2000, 4 * 4096).unwrap()).unwrap();
    assert_eq!(host.load(0, &space, BASE + 2000 + 4 * 4096 - 1), Ok(0));
    assert_eq!(host.load(0, &space, BASE + 2000 + 4 * 4096), Ok(text[4 * 4096]));
    host.leave(0, &space);
}

#[test]
fn a_change_of_many_pages_keeps_what_is_true_of_each_alone() {
    let host = Host::adaptive(128);
    let space = host.linux();
    host.enter(0, &space);
    map(&space, 8);
    (0..3).for_each(|page| host.store(0, &space, at(page).as_u64(), 1).unwrap());
    let child = space.fork(host.table()).unwrap();
    // Its own again; freed lazily; the page of zeroes; and the second one still shared.
    host.store(0, &space, at(0).as_u64(), 2).unwrap();
    host.store(0, &space, at(2).as_u64(), 2).unwrap();
    space.advise(at(2), 4096, Advice::Free).unwrap();
    host.load(0, &space, at(3).as_u64()).unwrap();
    host.store(0, &space, at(4).as_u64(), 2).unwrap();
    for prot in [Prot::READ, RW] {
        space.protect(at(0), 8 * 4096, prot).unwrap();
    }
    let has = |flag| [0, 1, 2, 3, 4].map(|page| entry(&space, page).1.contains(flag));
    assert_eq!(has(PageFlags::WRITE), [true, false, false, false, true]);
    assert_eq!(has(PageFlags::DIRTY), [true, true, false, false, true]);
    host.enter(1, &child);
    host.store(0, &space, at(1).as_u64(), 9).unwrap();
    assert_eq!(host.load(1, &child, at(1).as_u64()), Ok(1));
    host.check_zero_page();
    host.leave(0, &space);
    host.leave(1, &child);
}

#[test]
fn a_page_that_256_children_share_is_nobodys_to_keep() {
    // One more than a byte counts, and one, which a byte takes for one.
    const SPACES: usize = if cfg!(miri) { 20 } else { 256 };
    let host = Host::new(4 * SPACES as u64 + 64);
    {
        let space = host.linux();
        map(&space, 1);
        space.copy_out(&[1], space.user_range(BASE, 1).unwrap()).unwrap();
        let (shared, _) = entry(&space, 0);
        let children: Vec<_> = (0..SPACES).map(|_| space.fork(host.table()).unwrap()).collect();
        assert_eq!((&&host).refs(shared) as usize, SPACES + 1);
        space.copy_out(&[2], space.user_range(BASE, 1).unwrap()).unwrap();
        assert_ne!(entry(&space, 0).0, shared, "others still see it");
        for (index, child) in children.iter().enumerate() {
            let mut byte = [0];
            child.copy_in(child.user_range(BASE, 1).unwrap(), &mut byte).unwrap();
            assert_eq!(byte[0], 1, "child {index}");
        }
        let mut left = SPACES;
        for child in children {
            assert_eq!((&&host).refs(shared) as usize, left);
            if left == 1 {
                // The last one keeps the frame.
                child.copy_out(&[3], child.user_range(BASE, 1).unwrap()).unwrap();
                assert_eq!(entry(&child, 0).0, shared);
            }
            left -= 1;
        }
    }
    assert_eq!(host.used(), 0);
}

#[test]
fn two_that_write_to_a_shared_page_at_once_never_both_keep_it() {
    const ROUNDS: u8 = if cfg!(miri) { 4 } else { 100 };
    let host = Host::new(128);
    let parent = host.linux();
    map(&parent, 2);
    for round in 0..ROUNDS {
        parent.copy_out(&[round], parent.user_range(BASE, 1).unwrap()).unwrap();
        let child = parent.fork(host.table()).unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for (space, byte) in [(&parent, 200), (&child, 100)] {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    space.copy_out(&[byte], space.user_range(BASE + 1, 1).unwrap()).unwrap();
                });
            }
        });
        for (space, byte) in [(&parent, 200), (&child, 100)] {
            let mut seen = [0; 2];
            space.copy_in(space.user_range(BASE, 2).unwrap(), &mut seen).unwrap();
            assert_eq!(seen, [round, byte]);
        }
        assert_ne!(entry(&parent, 0).0, entry(&child, 0).0);
    }
}

/// A file that looks whether the page table of its one user can be had while it is asked.
struct Asked {
    file: Arc<CacheFile>,
    user: AtomicPtr<()>,
    times: AtomicUsize,
    /// How often it could not.
    held: AtomicUsize,
}

impl Asked {
    fn look(&self) {
        let user = self.user.load(Ordering::SeqCst).cast::<Space<'static>>();
        // SAFETY: the test puts its space here, which outlives every call that asks this file.
        if let Some(space) = unsafe { user.as_ref() } {
            let free = space.table().try_cursor(PageRange::single(at(0).block())).is_some();
            self.times.fetch_add(1, Ordering::SeqCst);
            self.held.fetch_add(usize::from(!free), Ordering::SeqCst);
        }
    }
}

impl FileObject for Asked {
    fn size(&self) -> u64 {
        self.file.size()
    }
    fn read_page(&self, index: u64, into: &mut [u8; 4096]) -> Result<(), ReadError> {
        self.look();
        into.fill(index as u8 + 1);
        Ok(())
    }
    fn frame(&self, index: u64, ahead: bool) -> Result<Option<Frame>, ReadError> {
        self.look();
        // Some pages are kept for all, some are copied.
        if index % 2 == 0 { self.file.frame(index, ahead) } else { Ok(None) }
    }
}

#[test]
fn no_file_is_asked_for_a_page_with_the_lock_of_the_page_table_held() {
    let host = Host::new(128);
    {
        let file = CacheFile::new(&host, 8);
        let (times, held) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let asked = Arc::new(Asked { file, user: AtomicPtr::default(), times, held });
        let space = host.linux();
        asked.user.store((&raw const space).cast_mut().cast(), Ordering::SeqCst);
        let object: Arc<dyn FileObject> = asked.clone();
        let (flags, backing) = (MapFlags::empty(), Backing::File { object, offset: 0 });
        let place = Place::Fixed(at(0));
        space.map(MapRequest { place, len: 8 * 4096, prot: RW, flags, backing }).unwrap();
        // By faults of the program, and by copies for it, which fault in themselves.
        space.fault(at(0), Access::Read).unwrap();
        space.fault(at(1), Access::Write).unwrap();
        space.fault(at(0), Access::Write).unwrap();
        let mut bytes = [0; 3 * 4096];
        space.copy_in(space.user_range(BASE + 2 * 4096, 3 * 4096).unwrap(), &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[4096]), (0, 4));
        space.copy_out(&bytes, space.user_range(BASE + 5 * 4096, 3 * 4096).unwrap()).unwrap();
        assert!(asked.times.load(Ordering::SeqCst) >= 8);
        let held = asked.held.load(Ordering::SeqCst);
        assert_eq!(held, 0, "a file is asked with the lock of the page table held");
        asked.user.store(std::ptr::null_mut(), Ordering::SeqCst);
    }
    assert_eq!(host.used(), 0);
}
