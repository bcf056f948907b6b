//! Every interleaving of small programs, and every value that a weak memory may return.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p pagoda-sync --lib loom`.
#![allow(unsafe_code)] // implements the unsafe traits for the programs

mod epochs;
mod handover;
mod members;
mod spin;

use crate::{CachePadded, CpuId, Cpus};

/// The CPU that a loom thread plays.
#[derive(Clone, Copy)]
struct Played(usize);

// SAFETY: each test gives each number to one thread.
unsafe impl Cpus for Played {
    fn limit(&self) -> usize {
        2
    }
    fn enter(&self) -> CpuId {
        CpuId::new(self.0).unwrap()
    }
    unsafe fn leave(&self) {}
}

fn explore(preemptions: usize, program: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(program);
}

/// Storage for two CPUs. Leaked: loom's threads want `'static`, and its objects end with the run.
fn two<T>(cell: impl Fn() -> T) -> &'static mut [CachePadded<T>] {
    std::boxed::Box::leak(std::boxed::Box::new([CachePadded(cell()), CachePadded(cell())]))
}

fn leak<T>(value: T) -> &'static T {
    std::boxed::Box::leak(std::boxed::Box::new(value))
}
