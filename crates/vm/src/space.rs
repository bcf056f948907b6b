//! One program's address space (API skeleton).
#![allow(unused_variables, missing_docs)]

use core::marker::PhantomData;

use pagoda_addr::{Frame, UserRange, UserRangeError, VirtAddr, VirtRange};
use pagoda_paging::Format;

use crate::*;

/// A private address space.
pub struct AddressSpace<F: Format, P: VmPlatform> {
    _marker: PhantomData<(F, P)>,
}

/// What a fault did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultDone {
    /// A page was made present.
    Mapped,
    /// A shared page was copied, or reused by its last owner.
    Copied,
    /// Nothing was to do: another CPU was faster.
    Spurious,
}

/// What a region looks like from outside.
#[derive(Clone)]
pub struct RegionInfo {
    pub range: VirtRange,
    pub prot: Prot,
    pub flags: MapFlags,
    pub shared: bool,
    /// Bytes from the start of the file or object.
    pub offset: u64,
    pub file: Option<alloc::sync::Arc<dyn FileObject>>,
    /// Overlaps the heap made by `set_brk`.
    pub heap: bool,
    /// Is the main stack.
    pub stack: bool,
}

/// Pages in use, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceStats {
    pub mapped: u64,
    pub mapped_peak: u64,
    /// Private writable, not stack.
    pub data: u64,
    pub stack: u64,
    /// Executable.
    pub exec: u64,
    pub locked: u64,
    pub rss_anonymous: u64,
    pub rss_file: u64,
    pub rss_shared: u64,
    pub rss_peak: u64,
    pub tables: u64,
    pub regions: usize,
}

/// What identifies a futex word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FutexKey {
    /// An address in this address space.
    Private(u64),
    /// Bytes from the start of an object.
    Shared { object: usize, offset: u64 },
}

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    pub fn root(&self) -> Frame {
        todo!()
    }
    pub fn layout(&self) -> Layout {
        todo!()
    }
    pub fn user_range(&self, addr: u64, len: u64) -> Result<UserRange, UserRangeError> {
        UserRange::new(addr, len, self.layout().limit)
    }
    pub fn map(&self, request: MapRequest<P>) -> Result<VirtAddr, VmError> {
        todo!()
    }
    pub fn unmap(&self, addr: VirtAddr, len: u64) -> Result<(), VmError> {
        todo!()
    }
    pub fn protect(&self, addr: VirtAddr, len: u64, prot: Prot) -> Result<(), VmError> {
        todo!()
    }
    pub fn remap(
        &self,
        addr: VirtAddr,
        old_len: u64,
        new_len: u64,
        place: RemapPlace,
    ) -> Result<VirtAddr, VmError> {
        todo!()
    }
    pub fn advise(&self, addr: VirtAddr, len: u64, advice: Advice) -> Result<(), VmError> {
        todo!()
    }
    /// One call of `each` for each page: is it present?
    pub fn residency(
        &self,
        addr: VirtAddr,
        len: u64,
        each: &mut dyn FnMut(bool),
    ) -> Result<(), VmError> {
        todo!()
    }
    /// Says where the heap begins (the end of the program's data).
    pub fn start_brk(&self, start: VirtAddr) -> Result<(), VmError> {
        todo!()
    }
    /// Moves the end of the heap; returns where it is afterwards (unchanged on failure).
    pub fn set_brk(&self, end: VirtAddr) -> VirtAddr {
        todo!()
    }
    pub fn fault(&self, addr: VirtAddr, access: Access) -> Result<FaultDone, FaultError> {
        todo!()
    }
    pub fn fork(&self) -> Result<Self, VmError> {
        todo!()
    }
    /// Unmaps everything.
    pub fn clear(&self) {
        todo!()
    }
    /// The first region that ends above `from`.
    pub fn next_region(&self, from: VirtAddr) -> Option<RegionInfo> {
        todo!()
    }
    pub fn stats(&self) -> SpaceStats {
        todo!()
    }
    pub fn limits(&self) -> Limits {
        todo!()
    }
    pub fn set_limits(&self, limits: Limits) {
        todo!()
    }
    pub fn copy_in(&self, from: UserRange, into: &mut [u8]) -> Result<(), CopyError> {
        todo!()
    }
    pub fn copy_out(&self, from: &[u8], to: UserRange) -> Result<(), CopyError> {
        todo!()
    }
    pub fn zero(&self, range: UserRange) -> Result<(), CopyError> {
        todo!()
    }
    /// Bytes of the string without its terminator.
    pub fn read_cstr(&self, from: VirtAddr, into: &mut [u8]) -> Result<usize, CStrError> {
        todo!()
    }
    pub fn fetch_u32(&self, addr: VirtAddr) -> Result<u32, FaultError> {
        todo!()
    }
    /// Atomic; `Ok(Err(seen))` when the word was not `old`.
    pub fn cmpxchg_u32(
        &self,
        addr: VirtAddr,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, FaultError> {
        todo!()
    }
    /// `shared`: the word may lie in memory shared between processes.
    pub fn futex_key(&self, addr: VirtAddr, shared: bool) -> Result<FutexKey, FaultError> {
        todo!()
    }
}
