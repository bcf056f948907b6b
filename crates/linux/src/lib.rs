#![doc = include_str!("../README.md")]
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
pub use mem::{Mmap, Mprotect, Sharing, advice, mlockall, mprotect, mremap, prot_bits};
