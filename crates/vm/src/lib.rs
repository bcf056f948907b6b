//! Address spaces: regions, demand-zero memory, copy-on-write fork, page faults
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

mod error;
pub mod fallible;
mod object;
mod platform;
mod request;
mod slots;
mod space;
mod tree;

pub use error::{CStrError, CopyError, FaultError, VmError};
pub use object::{FileIdentity, FileObject, ReadError, SharedObject};
pub use platform::{OutOfFrames, VmPlatform};
pub use request::{
    Access, Advice, Backing, Layout, Limits, MapFlags, MapRequest, Place, Prot, RemapPlace,
};
pub use space::{AddressSpace, FaultDone, FutexKey, RegionInfo, SpaceStats};
