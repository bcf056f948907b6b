//! # What is an address?
//!
//! Four nouns, each its own type, so that the classic mistake (a physical address used as a
//! pointer, a page number used as an address) does not compile:
//!
//! | noun | type | counts |
//! |---|---|---|
//! | physical address | [`PhysAddr`] | bytes of the machine's memory |
//! | virtual address | [`VirtAddr`] | bytes of somebody's address space |
//! | frame | [`Frame`] | 4 KiB pieces of physical memory |
//! | page | [`Page`] | 4 KiB pieces of an address space |
//!
//! An address and a number are generic over the [`Space`] that they belong to; the four names
//! above are aliases. Ranges ([`AddrRange`], [`BlockRange`]) are half open and never run backwards:
//! `start <= end` is checked once, by the constructor. [`Order`] is a power of two of frames.
//!
//! Arithmetic on addresses is checked: what can leave the 64-bit space returns an `Option`.
//! Untrusted `(address, length)` pairs become a range through [`AddrRange::checked`] or, for
//! pointers that a program handed to the kernel, through [`UserRange`], and through nothing else.
//!
//! What this crate leaves out: which bits a machine implements (a page-table format knows), what
//! stands at an address, and how to reach it. The one door from a physical address to a pointer is
//! the [`PhysMap`] trait; this crate only declares it.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod addr;
mod block;
mod order;
mod physmap;
mod range;
mod user;

pub use addr::{Addr, Phys, PhysAddr, Space, Virt, VirtAddr};
pub use block::{Block, Frame, Page};
pub use order::Order;
pub use physmap::PhysMap;
pub use range::{AddrRange, BlockRange, FrameRange, PageRange, PhysRange, VirtRange};
pub use user::{UserRange, UserRangeError};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in one page and in one frame. Every architecture here has a 4 KiB granule.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
