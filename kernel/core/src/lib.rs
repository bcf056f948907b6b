//! The portable half of the reference kernel.
#![no_std]

pub mod machine;
