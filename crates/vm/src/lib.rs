#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

#[cfg(test)]
extern crate self as pagoda_vm;

mod ahead;
mod books;
mod commit;
mod copy;
mod error;
pub mod fallible;
mod fault;
mod fork;
mod guard;
mod lazy;
mod locked;
mod map;
mod memory;
mod object;
mod platform;
mod protect;
mod region;
mod remap;
mod request;
mod seen;
mod slots;
mod space;
mod store;
mod touched;
mod tree;

pub use ahead::Policy;
pub use commit::{Charge, Commit, Overcommit};
pub use copy::FutexKey;
pub use error::{CStrError, CopyError, FaultError, VmError};
pub use fault::FaultDone;
pub use object::{FileIdentity, FileObject, ReadError, SharedObject};
pub use pagoda_paging::OutOfFrames;
pub use platform::VmPlatform;
pub use request::{
    Access, Advice, Backing, Layout, Limits, Locking, MapFlags, MapRequest, Place, Prot,
    RemapPlace, RemapRequest,
};
pub use seen::{PageState, Residency};
pub use space::{AddressSpace, RegionInfo, SpaceStats};
pub use store::{FilePage, Frames, HeapPages, PageStore};

#[cfg(test)]
mod tests;
