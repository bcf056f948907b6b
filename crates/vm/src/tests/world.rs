//! Up to three spaces on four CPUs, each with its oracle: does a step to both, and compares.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use pagoda_addr::{PageRange, VirtAddr};
use pagoda_paging::{Entry, PageFlags};

use super::host::{CacheFile, Host, Space, TestFile};
use super::model::{Back, Model, Shared, file_bytes};
use super::steps::{Kind, Step};
use crate::{
    Advice, Backing, FileObject, Layout, Limits, MapFlags, MapRequest, Place, Prot, RemapPlace,
    RemapRequest, VmError, VmPlatform,
};

pub(super) const LAYOUT: Layout = Layout {
    lowest: VirtAddr::new(0x1_0000),
    limit: VirtAddr::new(0x20_0000),
    mmap_base: VirtAddr::new(0x18_0000),
    guard_pages: 4,
};
const STACK: u64 = 40 * 4096;

/// The spaces of the system with their oracles; one is in use, on all CPUs.
pub(super) struct World<'h> {
    pub(super) host: &'h Host,
    pub(super) spaces: Vec<(Space<'h>, Model)>,
    pub(super) at: usize,
    files: [Arc<dyn FileObject>; 4],
    cached: Arc<CacheFile>,
    contents: Shared,
}

impl<'h> World<'h> {
    pub(super) fn new(host: &'h Host) -> Self {
        let space = host.space(LAYOUT);
        space.set_policy(host.policy());
        space.set_limits(Limits { stack: STACK, ..Limits::default() });
        space.start_brk(VirtAddr::new(0x4_0123));
        let mut model = Model::new(LAYOUT, STACK);
        model.brk = (0x4_0123, 0x4_0123);
        let cached = CacheFile::new(host, CACHED);
        let contents = Rc::new(RefCell::new(vec![[0; 2]; CACHED]));
        let spaces = vec![(space, model)];
        let world = Self { host, spaces, at: 0, files: file_set(), cached, contents };
        world.enter();
        world
    }

    /// Two CPUs run this space, the others the next one.
    fn enter(&self) {
        for cpu in 0..4 {
            self.host.enter(cpu, self.on(cpu));
        }
    }

    fn on(&self, cpu: usize) -> &Space<'h> {
        let which = if cpu < 2 { self.at } else { (self.at + 1) % self.spaces.len() };
        &self.spaces[which].0
    }

    pub(super) fn leave(&self) {
        (0..4).for_each(|cpu| self.host.leave(cpu, self.on(cpu)));
    }

    pub(super) fn space(&self) -> &Space<'h> {
        &self.spaces[self.at].0
    }

    /// Does the step to the space and to the oracle, and compares what they say.
    pub(super) fn run(&mut self, step: &Step) {
        let at = self.at;
        let host = self.host;
        match *step {
            Step::Map { .. } => self.map(step),
            Step::Unmap { addr, len } => {
                let (space, model) = &mut self.spaces[at];
                let got = space.unmap(VirtAddr::new(addr), len);
                assert_eq!(got, model.unmap(addr, len), "{step:?}");
            }
            Step::Protect { addr, len, prot } => {
                let prot = Prot::from_bits_truncate(prot);
                let (space, model) = &mut self.spaces[at];
                let got = space.protect(VirtAddr::new(addr), len, prot);
                assert_eq!(got, model.protect(addr, len, prot), "{step:?}");
            }
            Step::Remap { addr, old, new, may_move } => {
                let (space, model) = &mut self.spaces[at];
                let place = if may_move { RemapPlace::MayMove } else { RemapPlace::InPlace };
                let got = space.remap(RemapRequest {
                    addr: VirtAddr::new(addr),
                    old_len: old,
                    new_len: new,
                    place,
                    keep_old: false,
                });
                let want = model.remap(addr, old, new, may_move);
                match want {
                    // All of these are one number to a program.
                    Err(VmError::NoSpace)
                        if matches!(got, Err(VmError::OutOfMemory | VmError::Limit)) => {}
                    want => assert_eq!(got.map(VirtAddr::as_u64), want, "{step:?}"),
                }
            }
            Step::MoveTo { addr, old, new, to } => {
                let (space, model) = &mut self.spaces[at];
                let got = space.remap(RemapRequest {
                    addr: VirtAddr::new(addr),
                    old_len: old,
                    new_len: new,
                    place: RemapPlace::Fixed(VirtAddr::new(to)),
                    keep_old: false,
                });
                let want = model.move_to(addr, old, new, to);
                assert_eq!(got.map(VirtAddr::as_u64), want, "{step:?}");
            }
            Step::DontNeed { addr, len } => {
                let (space, model) = &mut self.spaces[at];
                let got = space.advise(VirtAddr::new(addr), len, Advice::DontNeed);
                assert_eq!(got, model.dont_need(addr, len), "{step:?}");
            }
            Step::Free { addr, len } => {
                let (space, model) = &mut self.spaces[at];
                let got = space.advise(VirtAddr::new(addr), len, Advice::Free);
                assert_eq!(got, model.free_lazily(addr, len), "{step:?}");
            }
            Step::Cool { addr, len, out } => {
                let (space, model) = &mut self.spaces[at];
                let advice = if out { Advice::PageOut } else { Advice::Cold };
                let got = space.advise(VirtAddr::new(addr), len, advice);
                assert_eq!(got, model.advise(addr, len, |_| Ok(())), "{step:?}");
                self.look_at_lazy();
            }
            Step::LetGo => {
                for (space, _) in &self.spaces {
                    space.let_go();
                }
                self.look_at_lazy();
            }
            Step::Guard { addr, len, install } => {
                let (space, model) = &mut self.spaces[at];
                let advice = if install { Advice::GuardInstall } else { Advice::GuardRemove };
                let got = space.advise(VirtAddr::new(addr), len, advice);
                assert_eq!(got, model.guard(addr, len, install), "{step:?}");
            }
            Step::Brk { to } => {
                let (space, model) = &mut self.spaces[at];
                model.set_brk(to);
                assert_eq!(space.set_brk(VirtAddr::new(to)).as_u64(), model.brk.1, "{step:?}");
            }
            Step::Load { cpu, page, last } => {
                let which = if cpu < 2 { at } else { (at + 1) % self.spaces.len() };
                let (space, model) = &mut self.spaces[which];
                let got = host.load(cpu, space, page * 4096 + if last { 4095 } else { 0 });
                assert_eq!(got, model.read(page, last), "{step:?}");
            }
            Step::Store { cpu, page, last, byte } => {
                let which = if cpu < 2 { at } else { (at + 1) % self.spaces.len() };
                let (space, model) = &mut self.spaces[which];
                let got = host.store(cpu, space, page * 4096 + if last { 4095 } else { 0 }, byte);
                assert_eq!(got, model.write(page, last, byte), "{step:?}");
            }
            Step::Sweep { cpu, store, byte } => {
                for page in 0x20..0x48 {
                    let last = page % 3 == 0;
                    self.run(&if store {
                        Step::Store { cpu, page, last, byte: byte.wrapping_add(page as u8) }
                    } else {
                        Step::Load { cpu, page, last }
                    });
                }
            }
            Step::Copy { page, byte } => {
                let (space, model) = &mut self.spaces[at];
                // The last byte of one page and the first of the next, by the kernel.
                let Ok(range) = space.user_range(page * 4096 + 4095, 2) else { return };
                let mut seen = [0; 2];
                let got = space.copy_in(range, &mut seen).map_err(|e| (e.done, e.error));
                let want = model.read(page, true).map_err(|e| (0, e)).and_then(|first| {
                    Ok([first, model.read(page + 1, false).map_err(|e| (1, e))?])
                });
                assert_eq!(got.map(|()| seen), want, "{step:?}");
                let got = space.copy_out(&[byte; 2], range).map_err(|e| (e.done, e.error));
                let want = model
                    .write(page, true, byte)
                    .map_err(|e| (0, e))
                    .and_then(|()| model.write(page + 1, false, byte).map_err(|e| (1, e)));
                assert_eq!(got, want, "{step:?}");
            }
            Step::Resize { pages } => {
                self.cached.resize(pages as usize);
                self.contents.borrow_mut().resize(pages as usize, [0; 2]);
                let key = FileObject::key(&*self.cached);
                for (space, model) in &mut self.spaces {
                    space.forget_object(key, (pages, u64::MAX), true);
                    model.truncated(&self.contents, pages);
                }
            }
            Step::Fork => {
                self.leave_cpu23();
                if self.spaces.len() == 3 {
                    let oldest = usize::from(at == 0);
                    self.spaces.remove(oldest);
                    self.at -= usize::from(oldest < at);
                }
                let at = self.at;
                let (space, model) = &self.spaces[at];
                let child = space.fork(host.table()).unwrap();
                let model = model.clone();
                self.spaces.push((child, model));
                // The parent's CPUs go on with what they remember.
                (2..4).for_each(|cpu| host.enter(cpu, self.on(cpu)));
            }
            Step::Drop if self.spaces.len() > 1 => {
                self.leave();
                self.spaces.remove(at);
                self.at %= self.spaces.len();
                self.enter();
            }
            Step::Next => {
                self.leave();
                self.at = (self.at + 1) % self.spaces.len();
                self.enter();
            }
            Step::Drop => {}
        }
    }

    /// Of what was freed lazily each page is as it was, or gone; the oracle takes over which.
    fn look_at_lazy(&mut self) {
        for (space, model) in &mut self.spaces {
            for (&number, page) in model.pages.iter_mut().filter(|(_, page)| page.lazy) {
                let Back::Anonymous(bytes) = &mut page.back else { continue };
                let place = VirtAddr::new(number * 4096).block();
                let entry = space.table().cursor(PageRange::single(place)).unwrap().query(place);
                if let Entry::Mapped { frame, .. } = entry {
                    let mut seen = [0; 2];
                    crate::memory::read(self.host, frame, 0, &mut seen[..1]);
                    crate::memory::read(self.host, frame, 4095, &mut seen[1..]);
                    assert_eq!(seen, *bytes, "page {number:#x} was freed lazily");
                } else {
                    *bytes = [0; 2];
                }
            }
        }
    }

    /// *books*: the oracle takes over which pages are counted, if those that have to be are and
    /// those that may not be are not; the sum is what the machine knows.
    fn check_books(&mut self) {
        let (mut sum, mut objects) = (0, Vec::new());
        for (space, model) in &mut self.spaces {
            sum += space.stats().committed;
            let mut from = VirtAddr::ZERO;
            while let Some(info) = space.next_region(from) {
                let counted = info.flags.contains(MapFlags::COUNTED);
                let (start, end) =
                    (info.range.start().as_u64() >> 12, info.range.end().as_u64() >> 12);
                for (number, page) in model.pages.range_mut(start..end) {
                    page.flags.set(MapFlags::COUNTED, counted);
                    let private = match &page.back {
                        Back::Anonymous(bytes) => counted || *bytes == [0; 2],
                        Back::Shared(object, _) => {
                            if !Rc::ptr_eq(object, &self.contents)
                                && !objects.iter().any(|other| Rc::ptr_eq(object, other))
                            {
                                objects.push(object.clone());
                            }
                            !counted
                        }
                        _ => true,
                    };
                    let writable = page.prot.contains(Prot::WRITE) && !info.shared;
                    assert!(private && (counted || !writable), "page {number:#x}, {counted}");
                }
                from = info.range.end();
            }
        }
        sum += objects.iter().map(|object| object.borrow().len() as u64).sum::<u64>();
        assert_eq!(self.host.2.promised(), sum, "books");
    }

    fn leave_cpu23(&self) {
        (2..4).for_each(|cpu| self.host.leave(cpu, self.on(cpu)));
    }

    pub(super) fn request(&self, step: &Step) -> Option<MapRequest<&'h Host>> {
        let Step::Map { place, addr, len, prot, kind, populate } = *step else { return None };
        let addr = VirtAddr::new(addr);
        let place = match place {
            0 | 1 => Place::Anywhere,
            2 => Place::Hint(addr),
            3 => Place::FixedNoReplace(addr),
            _ => Place::Fixed(addr),
        };
        let mut flags = MapFlags::empty();
        flags.set(MapFlags::POPULATE, populate);
        let backing = match kind {
            Kind::Anonymous => Backing::Anonymous,
            Kind::Stack => {
                flags |= MapFlags::GROWS_DOWN;
                Backing::Anonymous
            }
            Kind::Shared => Backing::SharedAnonymous,
            Kind::Cached(shared) => {
                let object: Arc<dyn FileObject> = self.cached.clone();
                if shared {
                    Backing::SharedFile { object, offset: 0 }
                } else {
                    Backing::File { object, offset: 0 }
                }
            }
            Kind::File(id) => {
                let object = self.files[usize::from(id % 4)].clone();
                Backing::File { object, offset: u64::from(id) * 4096 }
            }
        };
        Some(MapRequest { place, len, prot: Prot::from_bits_truncate(prot), flags, backing })
    }

    fn map(&mut self, step: &Step) {
        let (Some(request), Step::Map { len, kind, populate, .. }) = (self.request(step), step)
        else {
            return;
        };
        let own_at_once = *populate && request.prot.contains(Prot::WRITE);
        let (space, model) = &mut self.spaces[self.at];
        let (place, prot) = (request.place, request.prot);
        let kept = request.flags & MapFlags::GROWS_DOWN;
        let got = space.map(request).map(|addr| addr.as_u64() >> 12);
        let pages = len.div_ceil(4096);
        let want = expected_place(model, place, pages);
        assert_eq!(got, want, "{step:?}");
        let Ok(start) = got else { return };
        let object = Rc::new(RefCell::new(vec![[0; 2]; pages as usize]));
        model.insert(start, pages, prot, kept, |page| match *kind {
            Kind::Anonymous | Kind::Stack => Back::Anonymous([0; 2]),
            Kind::Shared => Back::Shared(object.clone(), page),
            Kind::Cached(true) => Back::Shared(self.contents.clone(), page),
            Kind::Cached(false) => {
                // Pages made present for writing are the program's own from then on, as on Linux.
                let own = own_at_once.then(|| self.contents.borrow().get(page as usize).copied());
                Back::Cached(self.contents.clone(), page, own.flatten())
            }
            Kind::File(id) => {
                let index = u64::from(id) + page;
                Back::File(id, file_size(id), index, file_bytes(id, file_size(id), index))
            }
        });
    }

    /// The regions, the sizes and the TLBs are what they have to be.
    pub(super) fn check(&mut self) {
        self.host.0.audit();
        self.check_books();
        for (space, model) in &self.spaces {
            let mut from = VirtAddr::ZERO;
            let mut runs = Vec::new();
            while let Some(info) = space.next_region(from) {
                let (start, end) = (info.range.start().as_u64(), info.range.end().as_u64());
                runs.push((start >> 12, end >> 12, info.prot, info.flags, info.shared));
                from = info.range.end();
            }
            assert_eq!(runs, model.runs());
            let stats = space.stats();
            assert_eq!(stats.mapped, model.pages.len() as u64);
            let data = model.pages.values().filter(|page| {
                page.prot.contains(Prot::WRITE)
                    && !matches!(page.back, Back::Shared(..))
                    && !page.flags.contains(MapFlags::GROWS_DOWN)
            });
            assert_eq!(stats.data, data.count() as u64);
            let (mut present, mut zeroes) = (0, 0);
            if host_has_zeroes(self.host) {
                zeroes = zero_leaves(self.host, space);
            }
            for &(start, end, ..) in &model.runs() {
                let len = (end - start) * 4096;
                space
                    .residency(VirtAddr::new(start * 4096), len, |is| present += u64::from(is))
                    .unwrap();
            }
            assert_eq!(stats.rss() + zeroes, present, "class-marks");
        }
    }
}

/// Pages of the file in frames, at first.
const CACHED: usize = 12;

fn file_set() -> [Arc<dyn FileObject>; 4] {
    [0, 1, 2, 3].map(|id| TestFile::shared(id, file_size(id)))
}

fn file_size(id: u8) -> u64 {
    [0, 4 * 4096 + 100, 9 * 4096, 100 * 4096 + 1][usize::from(id % 4)]
}

fn expected_place(model: &Model, place: Place, pages: u64) -> Result<u64, VmError> {
    if pages == 0 {
        return Err(VmError::Invalid);
    }
    if pages > model.limit() {
        return Err(VmError::NoSpace);
    }
    let (addr, replace) = match place {
        Place::Anywhere => return model.hole(None, pages),
        Place::Hint(addr) => return model.hole(Some(addr.as_u64() >> 12), pages),
        Place::Fixed(addr) => (addr.as_u64(), true),
        Place::FixedNoReplace(addr) => (addr.as_u64(), false),
    };
    let page = addr >> 12;
    if addr > (model.limit() - pages) << 12 {
        return Err(VmError::OutOfRange);
    }
    if addr % 4096 != 0 {
        return Err(VmError::Invalid);
    }
    if addr < LAYOUT.lowest.as_u64() {
        return Err(VmError::TooLow);
    }
    if !replace && model.pages.range(page..page + pages).next().is_some() {
        return Err(VmError::Exists);
    }
    Ok(page)
}

fn host_has_zeroes(host: &Host) -> bool {
    (&host).zero_page().is_some()
}

/// Leaves that show the page of zeroes; which has to be full of zeroes.
fn zero_leaves(host: &Host, space: &Space<'_>) -> u64 {
    let Some(zero) = (&host).zero_page() else { return 0 };
    let all = PageRange::between(VirtAddr::ZERO.block(), LAYOUT.limit.block()).unwrap();
    let mut cursor = space.table().cursor(all).unwrap();
    let (mut count, mut next) = (0, Some(all.start()));
    while let Some((page, entry)) = next.and_then(|from| cursor.next_used(from)) {
        if let Entry::Mapped { frame, flags, .. } = entry {
            assert!(
                frame != zero || !flags.contains(PageFlags::WRITE),
                "the page of zeroes is nobody's"
            );
            count += u64::from(frame == zero);
        }
        next = page.checked_add(1).filter(|&page| all.contains(page));
    }
    count
}
