//! # How much may wait before it goes back to the system?
//!
//! Memory that is given back and taken again at once cost two trips for nothing. A program that goes
//! up and down by some megabytes should pay that once, and then be left alone; one that is done should
//! keep little. So there is a budget that is always allowed, and *extra* beside it: what went back and
//! is wanted again was regretted, and so much more may wait from then on; what goes back takes an eighth
//! of itself from extra.
//!
//! What may wait at all is the owner's to say each time ([`Regret::extra`]): it falls as the program lets
//! go of its memory, so that a program that ends its work keeps little, whatever was learnt.
//!
//! In whatever unit its owner counts; guarded by its owner's lock. All zero is a valid start.

use core::cell::Cell;

/// What was learnt.
#[repr(C)]
pub struct Regret {
    extra: Cell<u32>,
    /// What went back and was not wanted again.
    out: Cell<u32>,
}

impl Regret {
    /// Nothing learnt yet.
    pub const fn new() -> Self {
        Self { extra: Cell::new(0), out: Cell::new(0) }
    }

    /// What may wait beyond the budget that is always allowed, and never more than `most`.
    pub fn extra(&self, most: u32) -> u32 {
        self.extra.get().min(most)
    }

    /// So much was taken that had no memory behind it.
    pub fn taken(&self, amount: u32) {
        let again = amount.min(self.out.get());
        self.out.set(self.out.get() - again);
        self.extra.set(self.extra.get().saturating_add(again));
    }

    /// So much goes back.
    pub fn gives(&self, amount: u32) {
        self.out.set(self.out.get().saturating_add(amount));
        self.extra.set(self.extra.get().saturating_sub(amount.div_ceil(8)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_up_and_down_is_learnt_whatever_the_portions() {
        for portion in [1, 10, 100] {
            let (regret, depth) = (Regret::new(), 1000);
            let mut given = depth;
            for _ in 0..6 {
                given = u32::saturating_sub(depth, regret.extra(u32::MAX));
                (0..given.div_ceil(portion)).for_each(|_| regret.gives(portion));
                regret.taken(given);
            }
            assert_eq!(given, 0, "in portions of {portion}");
            assert!(regret.extra(u32::MAX) < 2 * depth && regret.extra(30) == 30);
        }
    }

    #[test]
    fn going_down_only_or_growing_only_is_not() {
        let falls = Regret::new();
        (0..100).for_each(|_| falls.gives(50));
        assert_eq!(falls.extra(u32::MAX), 0);
        let grows = Regret::new();
        grows.taken(1000);
        assert_eq!(grows.extra(u32::MAX), 0);
    }

    #[test]
    fn what_is_no_longer_wanted_is_forgotten() {
        let regret = Regret::new();
        regret.gives(100);
        regret.taken(100);
        assert_eq!(regret.extra(u32::MAX), 100);
        (0..10).for_each(|_| regret.gives(100));
        assert_eq!(regret.extra(u32::MAX), 0);
    }
}
