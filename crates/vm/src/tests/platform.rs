// The emulated machine as a platform of address spaces; included by tests and by the README.

use pagoda_addr::{Frame, PhysAddr, PhysMap};
use pagoda_emu::Machine;
use pagoda_paging::{FlushRange, OutOfFrames, Platform, Released, SpaceTlb};
use pagoda_sync::RawSpin;
use pagoda_vm::{Commit, VmPlatform};

/// The machine; has it a page of zeroes? The books of what it has promised.
pub(crate) struct Host(pub(crate) Machine, pub(crate) bool, pub(crate) Commit);

// SAFETY: forwards to the machine.
unsafe impl PhysMap for Host {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.0.ptr(addr)
    }
}

// SAFETY: forwards to the machine.
unsafe impl Platform for Host {
    type Lock = RawSpin;

    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.0.alloc_table()
    }
    fn release(&self, item: Released) {
        self.0.release(item);
    }
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) {
        self.0.flush(space, what);
    }
    fn unwinding(&self) -> bool {
        std::thread::panicking()
    }
}

// SAFETY: the arena counts references.
unsafe impl VmPlatform for Host {
    type RegionLock = RawSpin;
    type ObjectLock = RawSpin;

    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        self.0.alloc_page(zeroed)
    }
    fn share(&self, frame: Frame) {
        self.0.share(frame);
    }
    fn refs(&self, frame: Frame) -> u32 {
        self.0.refs(frame)
    }
    fn zero_page(&self) -> Option<Frame> {
        self.1.then(|| self.0.arena().zero_page())
    }
    fn commit(&self) -> Option<&Commit> {
        Some(&self.2)
    }
}
