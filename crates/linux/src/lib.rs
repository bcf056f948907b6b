//! Linux's words for `pagoda-vm`: error numbers, flags, `/proc` text. No mechanism.
//!
//! - [`Errno`]: an error number with its name; every error of `pagoda-vm` becomes one by `From`.
//! - [`Mmap`], [`mprotect`], [`mremap`], [`advice`]: registers of the memory calls, checked in Linux's
//!   order and turned into requests.
//! - [`FaultSignal`]: which signal a fault that cannot be served deserves.
//! - [`text`]: `/proc/PID/{maps,smaps,statm,status}` and `/proc/meminfo` from plain numbers.
//!
//! Left out: everything that does something.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod errno;
mod fault;
mod mem;
pub mod text;

pub use errno::Errno;
pub use fault::FaultSignal;
pub use mem::{Mmap, Mprotect, Sharing, advice, mprotect, mremap, prot_bits};
