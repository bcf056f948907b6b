//! Our side: the words of Linux over an address space over the emulated machine.

use std::sync::{Arc, Mutex};

use pagoda_addr::VirtAddr;
use pagoda_linux::{Errno, Mmap, Sharing, advice, mlockall, mprotect, mremap};
use pagoda_paging::{PageTable, X86_64};
use pagoda_vm::{
    AddressSpace, Backing, FileObject, FilePage, Frames, Layout, Locking, PageStore, Prot,
    ReadError,
};

use super::calls::Call;
use super::{Maps, PAGE, REACH, Side, push};

include!("../../../vm/src/tests/platform.rs");

/// Five pages and a hundred bytes, each page of one letter.
pub fn content() -> Vec<u8> {
    (0..5 * PAGE + 100).map(|at| b'A' + (at / PAGE) as u8).collect()
}

/// A file that is kept in frames.
struct Content {
    host: *const Host,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    size: u64,
    pages: Vec<Option<FilePage>>,
}

// SAFETY: the host is `Sync`, and outlives the file: see `Ours::new`.
unsafe impl Send for Content {}
// SAFETY: as for `Send`.
unsafe impl Sync for Content {}

impl Content {
    fn store(&self) -> Frames<&Host> {
        // SAFETY: the host outlives the file.
        Frames(unsafe { &*self.host })
    }

    fn inside(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.inside.lock().expect("nobody panics with it")
    }

    fn truncate(&self, len: u64) {
        let mut inside = self.inside();
        if len < inside.size {
            for page in inside.pages.drain(len.div_ceil(PAGE) as usize..).flatten() {
                self.store().free(page);
            }
            if let Some(Some(page)) = inside.pages.get((len / PAGE) as usize) {
                self.store().clear(page, (len % PAGE) as usize, PAGE as usize);
            }
        }
        inside.size = len;
        inside.pages.resize_with(len.div_ceil(PAGE) as usize, || None);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        if end > self.inside().size {
            let mut inside = self.inside();
            inside.size = end;
            inside.pages.resize_with(end.div_ceil(PAGE) as usize, || None);
        }
        for (at, &byte) in (at..).zip(bytes) {
            let frame = self.frame(at / PAGE, false).expect("a page").expect("a page");
            self.store().0.release(Released::Page { frame, size: pagoda_paging::PageSize::K4 });
            if let Some(Some(page)) = self.inside().pages.get((at / PAGE) as usize) {
                self.store().write(page, (at % PAGE) as usize, &[byte]);
            }
        }
    }

    fn read(&self, at: u64) -> i64 {
        let inside = self.inside();
        if at >= inside.size {
            return 1000;
        }
        let mut byte = [0];
        if let Some(Some(page)) = inside.pages.get((at / PAGE) as usize) {
            self.store().read(page, (at % PAGE) as usize, &mut byte);
        }
        byte[0].into()
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

impl FileObject for Content {
    fn size(&self) -> u64 {
        self.inside().size
    }
    fn read_page(&self, _: u64, _: &mut [u8; 4096]) -> Result<(), ReadError> {
        Err(ReadError::Bus)
    }
    fn frame(&self, index: u64, ahead: bool) -> Result<Option<Frame>, ReadError> {
        let mut inside = self.inside();
        let slot = inside.pages.get_mut(index as usize).ok_or(ReadError::Bus)?;
        if slot.is_none() && !ahead {
            *slot = Some(self.store().alloc().map_err(|_| ReadError::OutOfMemory)?);
        }
        Ok(slot.as_ref().and_then(|page| self.store().share(page)))
    }
}

pub fn host() -> Host {
    let machine = Machine::new(pagoda_emu::Config { frames: 4096, ..Default::default() });
    Host(machine, true, Commit::new(1 << 26))
}

pub struct Ours<'h> {
    space: AddressSpace<X86_64, &'h Host>,
    file: Arc<Content>,
}

impl<'h> Ours<'h> {
    pub fn new(host: &'h Host) -> Self {
        let table = PageTable::new(X86_64::new(4, 40, true, true), host).expect("a root");
        let space = AddressSpace::new(table, Layout::x86_64(8 << 20));
        let file = Content { host: std::ptr::from_ref(host), inside: Mutex::default() };
        Self { space, file: Arc::new(file) }
    }

    fn map(&self, call: &Mmap) -> Result<i64, Errno> {
        let sharing = call.check(&self.space.layout())?;
        let backing = match (call.is_anonymous(), sharing) {
            (true, Sharing::Shared) => Backing::SharedAnonymous,
            (true, Sharing::Private) => Backing::Anonymous,
            (false, Sharing::Shared) => {
                Backing::SharedFile { object: self.file.clone(), offset: call.offset }
            }
            _ => Backing::File { object: self.file.clone(), offset: call.offset },
        };
        Ok(self.space.map(call.request(backing))?.as_u64() as i64)
    }

    fn perform(&self, call: Call) -> Result<i64, Errno> {
        let space = &self.space;
        match call {
            Call::Map { addr, len, prot, flags, offset } => {
                return self.map(&Mmap::new(addr, len, prot, flags, offset)?);
            }
            Call::Unmap { addr, len } => space.unmap(VirtAddr::new(addr), len)?,
            Call::Protect { addr, len, prot } => {
                let request = mprotect(addr, len, prot)?;
                space.protect(request.addr, request.len, request.prot)?;
            }
            Call::Remap { addr, old, new, flags, to } => {
                return Ok(space.remap(mremap(addr, old, new, flags, to)?)?.as_u64() as i64);
            }
            Call::Advise { addr, len, advice: number } => {
                space.advise(VirtAddr::new(addr), len, advice(number)?)?;
            }
            Call::Truncate { len } => {
                self.file.truncate(len);
                let key = FileObject::key(&*self.file);
                space.forget_object(key, (len.div_ceil(PAGE), u64::MAX), true);
            }
            Call::FileWrite { at, byte } => {
                self.file.write(at, &[byte]);
                return Ok(1);
            }
            Call::FileRead { at } => return Ok(self.file.read(at)),
            Call::Mincore { addr, len } => space.residency(VirtAddr::new(addr), len, |_| ())?,
            Call::Lock { addr, len, how } => space.set_locked(VirtAddr::new(addr), len, how)?,
            Call::LockAll { flags: 0 } => space.set_all_locked(Some(Locking::Off), Locking::Off)?,
            Call::LockAll { flags } => {
                let (now, future) = mlockall(flags)?;
                space.set_all_locked(now, future)?;
            }
            Call::Write { addr, byte } => {
                let range = space.user_range(addr, 1).map_err(|_| Errno::EFAULT)?;
                space.copy_out(&[byte], range).map_err(|_| Errno::EFAULT)?;
                return Ok(byte.into());
            }
            Call::Read { addr } => {
                let mut byte = [0];
                let range = space.user_range(addr, 1).map_err(|_| Errno::EFAULT)?;
                space.copy_in(range, &mut byte).map_err(|_| Errno::EFAULT)?;
                return Ok(byte[0].into());
            }
        }
        Ok(0)
    }

    fn regions(&self) -> impl Iterator<Item = pagoda_vm::RegionInfo> {
        let mut from = VirtAddr::new(REACH.start);
        std::iter::from_fn(move || {
            let region = self.space.next_region(from)?;
            from = region.range.end();
            Some(region)
        })
    }
}

impl Side for Ours<'_> {
    fn reset_file(&mut self) {
        self.file.truncate(0);
        self.file.write(0, &content());
    }

    fn call(&mut self, call: Call) -> i64 {
        self.perform(call).unwrap_or_else(|error| -i64::from(error.number()))
    }

    fn maps(&mut self) -> Maps {
        let mut maps = Maps::new();
        for region in self.regions() {
            let letter = |right, letter| if region.prot.contains(right) { letter } else { '-' };
            let rights = [
                letter(Prot::READ, 'r'),
                letter(Prot::WRITE, 'w'),
                letter(Prot::EXEC, 'x'),
                if region.shared { 's' } else { 'p' },
            ];
            let (start, end) = (region.range.start().as_u64(), region.range.end().as_u64());
            push(&mut maps, start, end, &rights.iter().collect::<String>());
        }
        maps
    }

    fn present(&mut self, anonymous: &[bool]) -> Vec<bool> {
        let pages = (REACH.start..).step_by(PAGE as usize).zip(anonymous);
        pages
            .map(|(addr, &anonymous)| {
                let mut present = false;
                let asked = anonymous
                    && self.space.residency(VirtAddr::new(addr), PAGE, |p| present = p).is_ok();
                asked && present
            })
            .collect()
    }

    fn anonymous(&mut self) -> Vec<bool> {
        let mut pages = vec![false; ((REACH.end - REACH.start) / PAGE) as usize];
        for region in self.regions().filter(|region| region.file.is_none() && !region.shared) {
            let index = |addr: VirtAddr| {
                ((addr.as_u64().saturating_sub(REACH.start) / PAGE) as usize).min(pages.len())
            };
            let (start, end) = (index(region.range.start()), index(region.range.end()));
            pages[start..end].fill(true);
        }
        pages
    }
}
