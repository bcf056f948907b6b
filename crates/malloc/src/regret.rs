//! # How much may wait before it goes back to the system?
//!
//! Memory that is given back and taken again at once cost two trips for nothing. A program that goes
//! up and down by some megabytes should pay that once or twice, and then be left alone; one that is
//! done should keep little. So there is a budget that is always allowed, and *extra* beside it, which
//! grows when most of what went back last time was wanted again before the next time, and shrinks
//! when it was not.
//!
//! In whatever unit its owner counts; guarded by its owner's lock. All zero is a valid start.

use core::cell::Cell;

/// What was learnt.
#[repr(C)]
pub struct Regret {
    extra: Cell<u32>,
    given: Cell<u32>,
    again: Cell<u32>,
}

impl Regret {
    /// Nothing learnt yet.
    pub const fn new() -> Self {
        Self { extra: Cell::new(0), given: Cell::new(0), again: Cell::new(0) }
    }

    /// What may wait beyond the budget that is always allowed.
    pub fn extra(&self) -> u32 {
        self.extra.get()
    }

    /// So much was taken that had no memory behind it.
    pub fn taken(&self, amount: u32) {
        self.again.set(self.again.get().saturating_add(amount));
    }

    /// So much goes back. `most` is what may ever be extra.
    pub fn gives(&self, amount: u32, most: u32) {
        let (extra, given) = (self.extra.get(), self.given.get());
        let sorry = given > 0 && self.again.get() >= given / 2;
        let extra = if sorry { extra.saturating_mul(2).max(given) } else { extra - extra / 4 };
        self.extra.set(extra.min(most));
        self.given.set(amount);
        self.again.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_up_and_down_is_learnt_and_going_down_only_is_not() {
        let swings = Regret::new();
        for _ in 0..6 {
            swings.gives(10, 200);
            swings.taken(10);
        }
        assert!(swings.extra() > 100 && swings.extra() <= 200);
        for _ in 0..40 {
            swings.gives(10, 200);
        }
        assert!(swings.extra() < 10);
        let falls = Regret::new();
        (0..100).for_each(|_| falls.gives(50, 200));
        assert_eq!(falls.extra(), 0);
    }
}
