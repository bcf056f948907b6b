//! The emulated machine as a platform of address spaces.
#![allow(unsafe_code)] // implements unsafe traits by forwarding

use std::sync::{Arc, Mutex};
use std::vec::Vec;

use pagoda_addr::VirtAddr;
use pagoda_emu::{Config, Mode};
use pagoda_paging::{PageTable, X86_64};

use crate::{
    Access, AddressSpace, FaultError, FileIdentity, FileObject, FilePage, Frames, Layout,
    PageStore, Policy, ReadError,
};

include!("platform.rs");

pub(super) type Space<'h> = AddressSpace<X86_64, &'h Host>;

impl Host {
    pub(crate) fn new(frames: u64) -> Self {
        Self::with(frames, false)
    }

    /// A host with a page of zeroes, whose spaces bring more than was asked for.
    pub(super) fn adaptive(frames: u64) -> Self {
        Self::with(frames, true)
    }

    /// Its books know of 256 GiB.
    fn with(frames: u64, zeroes: bool) -> Self {
        let machine = Machine::new(Config { frames, ..Config::default() });
        Self(machine, zeroes, Commit::new(1 << 26))
    }

    /// What its spaces do beyond what was asked.
    pub(super) fn policy(&self) -> Policy {
        if self.1 { Policy::ADAPTIVE } else { Policy::LINUX }
    }

    /// Nobody has written to the page of zeroes.
    pub(super) fn check_zero_page(&self) {
        let Some(zero) = self.zero_page() else { return };
        let mut bytes = [1; 4096];
        crate::memory::read(self, zero, 0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0), "the page of zeroes was written to");
    }

    pub(super) fn table(&self) -> PageTable<X86_64, &Self> {
        PageTable::new(self.0.format(), self).unwrap()
    }

    pub(super) fn space(&self, layout: Layout) -> Space<'_> {
        AddressSpace::new(self.table(), layout)
    }

    pub(super) fn linux(&self) -> Space<'_> {
        self.space(Layout::x86_64(8 << 20))
    }

    pub(crate) fn used(&self) -> u64 {
        self.0.arena().used()
    }

    /// CPU `cpu` loads the space.
    pub(super) fn enter(&self, cpu: usize, space: &Space<'_>) {
        self.0.enter(self.0.cpu(cpu), space.table());
    }

    pub(super) fn leave(&self, cpu: usize, space: &Space<'_>) {
        self.0.leave(self.0.cpu(cpu), space.table());
    }

    /// A program on `cpu` reads a byte; the kernel serves its faults.
    pub(super) fn load(&self, cpu: usize, space: &Space<'_>, addr: u64) -> Result<u8, FaultError> {
        let mut byte = [0];
        let addr = VirtAddr::new(addr);
        for _ in 0..3 {
            if self.0.read(self.0.cpu(cpu), Mode::User, addr, &mut byte).is_ok() {
                return Ok(byte[0]);
            }
            space.fault(addr, Access::Read)?;
        }
        panic!("a fault was served and came back: {addr:?}");
    }

    /// A program on `cpu` writes a byte.
    pub(super) fn store(
        &self,
        cpu: usize,
        space: &Space<'_>,
        addr: u64,
        byte: u8,
    ) -> Result<(), FaultError> {
        let addr = VirtAddr::new(addr);
        for _ in 0..3 {
            if self.0.write(self.0.cpu(cpu), Mode::User, addr, &[byte]).is_ok() {
                return Ok(());
            }
            space.fault(addr, Access::Write)?;
        }
        panic!("a fault was served and came back: {addr:?}");
    }
}

/// A file whose bytes follow from its number and their place.
pub(super) struct TestFile {
    pub(super) id: u8,
    pub(super) size: u64,
}

impl TestFile {
    pub(super) fn shared(id: u8, size: u64) -> Arc<dyn FileObject> {
        Arc::new(Self { id, size })
    }

    pub(super) fn byte(id: u8, size: u64, at: u64) -> u8 {
        if at < size { id.wrapping_add((at >> 12) as u8).wrapping_add(at as u8) | 1 } else { 0 }
    }
}

impl FileObject for TestFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_page(&self, index: u64, into: &mut [u8; 4096]) -> Result<(), ReadError> {
        if index * 4096 >= self.size {
            return Err(ReadError::Bus);
        }
        for (at, byte) in into.iter_mut().enumerate() {
            // Beyond the end: junk that nobody may see.
            let at = index * 4096 + at as u64;
            *byte = if at < self.size { Self::byte(self.id, self.size, at) } else { 0xee };
        }
        Ok(())
    }

    fn identity(&self) -> FileIdentity {
        FileIdentity { major: 0, minor: 1, inode: self.id.into() }
    }
}

/// A file that is kept in the frames of a host: one set for reading, writing and mapping.
pub(super) struct CacheFile {
    host: *const Host,
    pages: Mutex<Vec<Option<FilePage>>>,
}

// SAFETY: the host is `Sync`; `new` asks that it outlives the file.
unsafe impl Send for CacheFile {}
// SAFETY: as for `Send`.
unsafe impl Sync for CacheFile {}

impl CacheFile {
    /// `pages` pages of holes. Tests drop their files, and the spaces that map them, before the host.
    pub(super) fn new(host: &Host, pages: usize) -> Arc<Self> {
        let pages = Mutex::new((0..pages).map(|_| None).collect());
        Arc::new(Self { host: core::ptr::from_ref(host), pages })
    }

    fn store(&self) -> Frames<&Host> {
        // SAFETY: see `new`.
        Frames(unsafe { &*self.host })
    }

    /// Other pages from now on; whoever maps the file is still to be told.
    pub(super) fn resize(&self, pages: usize) {
        let mut all = self.pages.lock().unwrap();
        while all.len() > pages {
            all.pop().flatten().into_iter().for_each(|page| self.store().free(page));
        }
        all.resize_with(pages, || None);
    }

    /// Makes a hole.
    pub(super) fn punch(&self, index: usize) {
        let page = self.pages.lock().unwrap()[index].take();
        page.into_iter().for_each(|page| self.store().free(page));
    }

    /// The byte of the file, as `read` sees it.
    pub(super) fn byte(&self, at: u64) -> u8 {
        let mut byte = [0];
        if let Some(page) = &self.pages.lock().unwrap()[(at / 4096) as usize] {
            self.store().read(page, (at % 4096) as usize, &mut byte);
        }
        byte[0]
    }

    /// Writes a byte, as `write` does.
    pub(super) fn set(&self, at: u64, byte: u8) {
        let frame = self.frame(at / 4096, false).unwrap().unwrap();
        self.store().0.release(Released::Page { frame, size: pagoda_paging::PageSize::K4 });
        let pages = self.pages.lock().unwrap();
        let page = pages[(at / 4096) as usize].as_ref().unwrap();
        self.store().write(page, (at % 4096) as usize, &[byte]);
    }
}

impl Drop for CacheFile {
    fn drop(&mut self) {
        self.resize(0);
    }
}

impl FileObject for CacheFile {
    fn size(&self) -> u64 {
        self.pages.lock().unwrap().len() as u64 * 4096
    }
    fn read_page(&self, _: u64, _: &mut [u8; 4096]) -> Result<(), ReadError> {
        Err(ReadError::Bus)
    }
    fn frame(&self, index: u64, ahead: bool) -> Result<Option<Frame>, ReadError> {
        let mut pages = self.pages.lock().unwrap();
        let slot = pages.get_mut(index as usize).ok_or(ReadError::Bus)?;
        if slot.is_none() {
            if ahead {
                return Ok(None);
            }
            *slot = Some(self.store().alloc().map_err(|_| ReadError::OutOfMemory)?);
        }
        Ok(slot.as_ref().and_then(|page| self.store().share(page)))
    }
}
