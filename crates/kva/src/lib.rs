//! The kernel's own virtual address space: guarded stacks, device windows, virtually contiguous blocks
#![no_std]
