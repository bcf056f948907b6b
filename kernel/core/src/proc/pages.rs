//! Files of words about pages: `/proc/PID/pagemap`, `/proc/kpagecount`, `/proc/kpageflags`. Eight
//! bytes for each page or frame, read from any place that is a multiple of eight.

use alloc::sync::Weak;

use pagoda_addr::VirtAddr;
use pagoda_kernel_fs::{TextBuffer, TextSource};
use pagoda_linux::Errno;
use pagoda_vm::PageState;

use super::process::process_of;
use crate::Result;
use crate::kernel::Kernel;
use crate::machine::{FrameUse, Machine};

/// Words that are made at a time: the locks are not held for longer.
const WORDS: usize = 512;

/// The part of a read that is whole words; an error where it does not begin at one.
fn words(offset: u64, into: &mut [u8]) -> Result<(u64, &mut [[u8; 8]])> {
    let (words, rest) = into.as_chunks_mut::<8>();
    if !offset.is_multiple_of(8) || !rest.is_empty() {
        return Err(Errno::EINVAL);
    }
    Ok((offset / 8, words))
}

/// `/proc/PID/pagemap`.
pub(super) struct PageMap<M: Machine> {
    pub(super) kernel: Weak<Kernel<M>>,
    pub(super) pid: u32,
}

impl<M: Machine> PageMap<M> {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let (_, process) = process_of(&self.kernel, self.pid)?;
        let (first, words) = words(offset, into)?;
        let Some(space) = process.space() else { return Ok(0) };
        let limit = space.layout().limit.as_u64() / 4096;
        let mut done = 0;
        for part in words.chunks_mut(WORDS) {
            let from = first + done as u64;
            let count = (part.len() as u64).min(limit.saturating_sub(from));
            let mut slots = part.iter_mut();
            space.page_states(VirtAddr::new(from * 4096), count, |state| {
                if let Some(slot) = slots.next() {
                    *slot = page_word(state).to_le_bytes();
                }
            });
            done += count as usize;
            if count == 0 {
                break;
            }
        }
        Ok(done * 8)
    }
}

/// What Linux says of a page: present, of a file or shared, mapped once, written since; the frame.
fn page_word(state: PageState) -> u64 {
    const PRESENT: u64 = 1 << 63;
    const OBJECT: u64 = 1 << 61;
    const GUARD: u64 = 1 << 58;
    const SOLE: u64 = 1 << 56;
    const SOFT_DIRTY: u64 = 1 << 55;
    match state {
        PageState::Nothing => 0,
        PageState::Guard => GUARD,
        PageState::Present { frame, own, sole } => {
            let object = if own { 0 } else { OBJECT };
            let sole = if sole { SOLE } else { 0 };
            PRESENT | SOFT_DIRTY | object | sole | frame.number()
        }
    }
}

impl<M: Machine> TextSource for PageMap<M> {
    fn generate(&self, _: &mut TextBuffer) -> Result<()> {
        Err(Errno::EINVAL)
    }
    fn window(&self, offset: u64, into: &mut [u8]) -> Option<Result<usize>> {
        Some(self.read(offset, into))
    }
}

/// `/proc/kpagecount`, or with `flags` `/proc/kpageflags`.
pub(super) struct FrameWords<M: Machine> {
    pub(super) kernel: Weak<Kernel<M>>,
    pub(super) flags: bool,
}

impl<M: Machine> FrameWords<M> {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let kernel = self.kernel.upgrade().ok_or(Errno::ESRCH)?;
        let (first, words) = words(offset, into)?;
        let end = kernel.machine.frame_end();
        let mut done = 0;
        for (word, frame) in words.iter_mut().zip(first..end) {
            let (used, count) = kernel.machine.frame_use(frame);
            let value = if self.flags { frame_flags(used) } else { u64::from(count) };
            *word = value.to_le_bytes();
            done += 8;
        }
        Ok(done)
    }
}

/// The bits of Linux's `kernel-page-flags.h`.
fn frame_flags(used: FrameUse) -> u64 {
    const UPTODATE: u64 = 1 << 3;
    const SLAB: u64 = 1 << 7;
    const BUDDY: u64 = 1 << 10;
    const MMAP: u64 = 1 << 11;
    const NOPAGE: u64 = 1 << 20;
    const ZERO_PAGE: u64 = 1 << 24;
    const PGTABLE: u64 = 1 << 26;
    const RESERVED: u64 = 1 << 32;
    match used {
        FrameUse::None => NOPAGE,
        FrameUse::Free => BUDDY,
        FrameUse::Heap => SLAB,
        FrameUse::PageTable => PGTABLE,
        FrameUse::Program => UPTODATE | MMAP,
        FrameUse::Zero => ZERO_PAGE,
        FrameUse::Kernel => RESERVED,
    }
}

impl<M: Machine> TextSource for FrameWords<M> {
    fn generate(&self, _: &mut TextBuffer) -> Result<()> {
        Err(Errno::EINVAL)
    }
    fn window(&self, offset: u64, into: &mut [u8]) -> Option<Result<usize>> {
        Some(self.read(offset, into))
    }
}
