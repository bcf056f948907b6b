//! malloc over mmap: no_std core, generic over the operating system; Rust GlobalAlloc
#![no_std]
