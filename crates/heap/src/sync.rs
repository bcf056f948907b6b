//! Atomics: the machine's, or loom's when interleavings are explored.

#[cfg(all(loom, test))]
pub(crate) use explored::*;
#[cfg(not(all(loom, test)))]
pub(crate) use machine::*;

#[cfg(not(all(loom, test)))]
mod machine {
    pub(crate) use core::cell::Cell;
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

    /// CPUs that a heap has a place for.
    pub(crate) const PLACES: usize = pagoda_sync::MAX_CPUS;

    /// How a record is shown to the other CPUs once it is whole.
    pub(crate) const fn publish() -> Ordering {
        Ordering::Release
    }

    /// How a record is looked for that another CPU may have made.
    pub(crate) const fn observe() -> Ordering {
        Ordering::Acquire
    }

    /// A constructor that is `const` where the atomics' are.
    macro_rules! constructor {
        ($(#[$meta:meta])* pub fn $($rest:tt)*) => { $(#[$meta])* pub const fn $($rest)* };
    }

    /// An array, each element made by the expression.
    macro_rules! each {
        ($element:expr; $count:expr) => {
            [const { $element }; $count]
        };
    }

    pub(crate) use {constructor, each};
}

#[cfg(all(loom, test))]
mod explored {
    pub(crate) use loom::cell::Cell;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

    pub(crate) const PLACES: usize = 4;

    std::thread_local! {
        /// Which of the two is weakened: a test whether the other tests would notice.
        pub(crate) static WEAK: core::cell::Cell<(bool, bool)> =
            const { core::cell::Cell::new((false, false)) };
    }

    pub(crate) fn publish() -> Ordering {
        if WEAK.get().0 { Ordering::Relaxed } else { Ordering::Release }
    }

    pub(crate) fn observe() -> Ordering {
        if WEAK.get().1 { Ordering::Relaxed } else { Ordering::Acquire }
    }

    macro_rules! constructor {
        ($(#[$meta:meta])* pub fn $($rest:tt)*) => { $(#[$meta])* pub fn $($rest)* };
    }

    macro_rules! each {
        ($element:expr; $count:expr) => {
            core::array::from_fn::<_, { $count }, _>(|_| $element)
        };
    }

    pub(crate) use {constructor, each};
}
