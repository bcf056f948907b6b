//! Multiboot 1, Multiboot 2 and PVH boot information to one checked memory map, and the early allocator
#![no_std]
