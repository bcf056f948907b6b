//! A software MMU with per-CPU TLBs that remember stale entries: test equipment for page-table code
#![no_std]
