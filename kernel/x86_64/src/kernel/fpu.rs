//! A program's floating-point and vector registers.
//!
//! The kernel is compiled without them, so they keep the running program's values while the kernel
//! runs, and only a switch between programs stores and loads them: XSAVE in its standard layout,
//! FXSAVE where that is all there is. What an image may hold is fixed at boot (XCR0): x87, SSE, AVX,
//! and the three parts of AVX-512 if all of them are there.
//!
//! *image-loadable*: every [`Fpu`] can be loaded without a fault: no unknown feature bit, no compact
//! layout, nothing reserved set, in the header and in MXCSR.
//!
//! Left out: lazy switching, compact layouts, AMX, protection keys.
#![allow(unsafe_code)] // XSAVE and its area

use alloc::alloc::{Layout, alloc, dealloc};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pagoda_kernel_core::machine::OutOfMemory;
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};

use super::cpu;

/// Bytes of the part that FXSAVE writes.
const LEGACY_BYTES: usize = 512;
/// Bytes of the header that follows it in an XSAVE image.
const HEADER_BYTES: usize = 64;
/// Control word of a fresh program: all exceptions masked, extended precision.
const CONTROL_WORD: u16 = 0x37f;
/// MXCSR of a fresh program: all exceptions masked.
const MXCSR: u32 = 0x1f80;
/// MXCSR bits where the CPU does not say which there are.
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;
/// Where MXCSR stands in an image, and behind it its mask.
const MXCSR_AT: usize = 24;
/// x87 and SSE, in XCR0 and in an image's header.
const BASE_FEATURES: u64 = 3;

/// XCR0; 0 without XSAVE.
static FEATURES: AtomicU64 = AtomicU64::new(0);
/// Bytes of an image.
static IMAGE_BYTES: AtomicUsize = AtomicUsize::new(LEGACY_BYTES);
static MXCSR_MASK: AtomicU32 = AtomicU32::new(DEFAULT_MXCSR_MASK);

/// Decides what is saved, and switches it on.
pub(crate) fn init() {
    if cpu::features().is_some_and(|features| features.xsave) {
        let leaf = core::arch::x86_64::__cpuid_count(0xd, 0);
        let supported =
            XCr0Flags::from_bits_truncate(u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
        let avx512 = XCr0Flags::OPMASK | XCr0Flags::ZMM_HI256 | XCr0Flags::HI16_ZMM;
        let mut wanted = XCr0Flags::X87 | XCr0Flags::SSE;
        if supported.contains(XCr0Flags::AVX) {
            wanted |= XCr0Flags::AVX;
            if supported.contains(avx512) {
                wanted |= avx512;
            }
        }
        // SAFETY: only features that CPUID lists, in combinations that the manual allows.
        unsafe { XCr0::write(wanted) };
        FEATURES.store(wanted.bits(), Ordering::Relaxed);
        // With XCR0 set, `ebx` is the size of an image of just these features.
        let size = core::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize;
        IMAGE_BYTES.store(size.max(LEGACY_BYTES + HEADER_BYTES), Ordering::Relaxed);
    }
    let mut probe = Area([0; LEGACY_BYTES]);
    // SAFETY: the area has the size and alignment that the instruction asks for.
    unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut probe, options(nostack)) };
    if let Some(mask) = word(&probe.0, MXCSR_AT + 4).filter(|&mask| mask != 0) {
        MXCSR_MASK.store(mask, Ordering::Relaxed);
    }
}

/// Switches on, on another CPU, what the boot CPU decided on.
pub(crate) fn init_other() {
    if features() != 0 {
        // SAFETY: what the boot CPU's XCR0 holds; CPUs of one machine have the same features.
        unsafe { XCr0::write(XCr0Flags::from_bits_truncate(features())) };
    }
}

#[repr(C, align(64))]
struct Area([u8; LEGACY_BYTES]);

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The feature bits of an image; 0 without XSAVE.
pub(crate) fn features() -> u64 {
    FEATURES.load(Ordering::Relaxed)
}

fn layout() -> Layout {
    // Both numbers are fixed at boot: a size of a few KiB at most, and the alignment of XSAVE.
    Layout::from_size_align(IMAGE_BYTES.load(Ordering::Relaxed), 64)
        .unwrap_or(Layout::new::<Area>())
}

/// An image. *image-loadable*.
#[derive(Debug)]
pub(crate) struct Fpu(NonNull<u8>);

// SAFETY: the memory is the value's own.
unsafe impl Send for Fpu {}

impl Drop for Fpu {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with the same layout, which never changes after boot.
        unsafe { dealloc(self.0.as_ptr(), layout()) }
    }
}

impl Fpu {
    /// The state of a fresh program.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        // SAFETY: the layout has a size.
        let area = unsafe { alloc(layout()) };
        let mut fpu = Self(NonNull::new(area).ok_or(OutOfMemory)?);
        fpu.reset();
        Ok(fpu)
    }

    fn reset(&mut self) {
        // SAFETY: the allocation is this long, and exclusively borrowed.
        unsafe { self.0.write_bytes(0, layout().size()) };
        let bytes = self.bytes_mut();
        bytes[..2].copy_from_slice(&CONTROL_WORD.to_le_bytes());
        bytes[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&MXCSR.to_le_bytes());
        if features() != 0 {
            bytes[LEGACY_BYTES..LEGACY_BYTES + 8].copy_from_slice(&BASE_FEATURES.to_le_bytes());
        }
    }

    /// The image.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation is this long and was written by `reset`.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr(), layout().size()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, exclusively borrowed.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_ptr(), layout().size()) }
    }

    /// Stores the CPU's registers.
    pub(crate) fn save(&mut self) {
        let (area, features) = (self.0.as_ptr(), features());
        // SAFETY: the area is as large and as aligned as these features need, and its header is
        // sound (*image-loadable*), which XSAVE relies on too.
        unsafe {
            if features == 0 {
                asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags));
            } else {
                asm!("xsave64 [{}]", in(reg) area, in("eax") features as u32,
                    in("edx") (features >> 32) as u32, options(nostack, preserves_flags));
            }
        }
    }

    /// Loads the CPU's registers.
    pub(crate) fn load(&self) {
        let (area, features) = (self.0.as_ptr(), features());
        // SAFETY: *image-loadable*. The kernel does not use the registers that this overwrites.
        unsafe {
            if features == 0 {
                asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags, readonly));
            } else {
                asm!("xrstor64 [{}]", in(reg) area, in("eax") features as u32,
                    in("edx") (features >> 32) as u32, options(nostack, preserves_flags, readonly));
            }
        }
    }

    /// Takes an image that a program wrote; false, and no change, when it could not be loaded. One
    /// that ends with the part of FXSAVE sets the rest to its initial state.
    pub(crate) fn set(&mut self, bytes: &[u8]) -> bool {
        if !acceptable(bytes) {
            return false;
        }
        self.reset();
        let own = self.bytes_mut();
        let taken = if bytes.len() < own.len() { LEGACY_BYTES } else { own.len() };
        own[..taken].copy_from_slice(&bytes[..taken]);
        true
    }
}

/// Would these bytes load without a fault?
fn acceptable(bytes: &[u8]) -> bool {
    let unknown = !MXCSR_MASK.load(Ordering::Relaxed);
    if bytes.len() < LEGACY_BYTES || word(bytes, MXCSR_AT).is_none_or(|mxcsr| mxcsr & unknown != 0)
    {
        return false;
    }
    if features() == 0 || bytes.len() < layout().size() {
        return true;
    }
    let header = &bytes[LEGACY_BYTES..LEGACY_BYTES + HEADER_BYTES];
    long(header, 0).is_some_and(|present| present & !features() == 0)
        && header[8..].iter().all(|&byte| byte == 0)
}
