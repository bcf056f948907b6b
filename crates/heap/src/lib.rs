//! Kernel heap: size-class slabs behind kalloc and kfree, object caches, large blocks
#![no_std]
