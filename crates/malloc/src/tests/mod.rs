#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)] // tests call the unsafe interface

mod hardened;
mod huge;
mod idle;
mod life;
mod misuse;
mod model;
pub(crate) mod rig;
mod sample;
mod sweep;
mod threads;
