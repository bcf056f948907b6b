//! Address spaces: regions, demand-zero memory, copy-on-write fork, page faults
#![no_std]

/// What a host kernel supplies (placeholder, to be defined with the address space).
pub trait VmPlatform {}
