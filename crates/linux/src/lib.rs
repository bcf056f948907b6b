//! Linux's words for pagoda-vm: flags, error numbers, /proc text
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod errno;

pub use errno::Errno;
