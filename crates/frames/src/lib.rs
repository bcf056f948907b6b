//! Physical frame allocator: every order from 4 KiB to 1 GiB, and the frame table
#![no_std]
