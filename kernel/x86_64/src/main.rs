//! The machine half of the reference kernel. Built for `x86_64-unknown-none`; anywhere else it is
//! a stub that says so, which lets the whole workspace be checked with one command.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod kernel;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: build it with `cargo xtask run`");
    std::process::exit(2);
}
