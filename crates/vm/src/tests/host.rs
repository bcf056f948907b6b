//! The emulated machine as a platform of address spaces.
#![allow(unsafe_code)] // implements unsafe traits by forwarding

use std::sync::Arc;

use pagoda_addr::VirtAddr;
use pagoda_emu::{Config, Mode};
use pagoda_paging::{PageTable, X86_64};

use crate::{
    Access, AddressSpace, FaultError, FileIdentity, FileObject, Layout, Policy, ReadError,
};

include!("platform.rs");

pub(super) type Space<'h> = AddressSpace<X86_64, &'h Host>;

impl Host {
    pub(crate) fn new(frames: u64) -> Self {
        Self(Machine::new(Config { frames, ..Config::default() }), false)
    }

    /// A host with a page of zeroes, whose spaces bring more than was asked for.
    pub(super) fn adaptive(frames: u64) -> Self {
        Self(Machine::new(Config { frames, ..Config::default() }), true)
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
