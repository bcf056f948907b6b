//! The one door from physical addresses to memory.
#![allow(unsafe_code)] // declares an unsafe trait; contains no unsafe block

use crate::PhysAddr;

/// Physical address to pointer: the kernel's direct map, an arena in a test. The only way in which
/// a Pagoda library touches RAM.
///
/// # Safety
/// For every address of RAM that the implementer hands to a library as managed memory, `ptr`
/// returns a pointer that stays valid for reads and writes up to the end of the enclosing 4 KiB
/// frame, aligned as the address is, for as long as the library is in use; the pointers of
/// consecutive managed frames are consecutive too; the same address always gives the same pointer,
/// and different addresses give pointers that do not alias. The
/// memory is normal (not device) memory, and nobody holds Rust references into it that the owner of
/// the frame did not make.
pub unsafe trait PhysMap {
    /// A pointer to the byte at `addr`. Never fails for managed RAM; for anything else it returns
    /// an arbitrary pointer that must not be used.
    fn ptr(&self, addr: PhysAddr) -> *mut u8;
}

// SAFETY: a reference forwards to an implementer that keeps the contract.
unsafe impl<M: PhysMap + ?Sized> PhysMap for &M {
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        (**self).ptr(addr)
    }
}
