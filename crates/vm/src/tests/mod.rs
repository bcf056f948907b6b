//! Tests over the software MMU.

/// So many random sequences; a few where an interpreter runs them.
pub(crate) fn config(cases: u32) -> proptest::prelude::ProptestConfig {
    let all = proptest::prelude::ProptestConfig { cases, ..Default::default() };
    if !cfg!(miri) {
        return all;
    }
    proptest::prelude::ProptestConfig { cases: 2, failure_persistence: None, ..all }
}

/// The most steps in one of them.
pub(crate) const fn longest(steps: usize) -> usize {
    if cfg!(miri) { steps / 14 } else { steps }
}

mod cases;
mod fails;
mod files;
mod host;
pub(crate) use host::Host;
mod mistakes;
mod model;
mod pitfalls;
mod promises;
mod random;
mod sharing;
mod steps;
mod world;
