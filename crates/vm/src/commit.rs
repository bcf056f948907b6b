//! Promises: how much memory a machine has promised to its programs, and how much it may.
//!
//! A page of private memory that a program may write is *promised*: it takes a frame when it is
//! first written, perhaps long after the call that made it. A host keeps one [`Commit`], the books of
//! all promises, and decides by its mode what is still promised: Linux's three
//! (`/proc/sys/vm/overcommit_memory`), with Linux's sums.
//!
//! Invariant *books*: what the books say is the sum over all address spaces of the pages in regions
//! marked [`COUNTED`](crate::MapFlags::COUNTED), and the sizes of all counted shared objects. Calls
//! charge first and settle what they did not use before they give up their lock.
//!
//! Left out: swap and huge pages, which Linux adds to and takes from the limit; charging the pages
//! of files in memory one by one.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overcommit {
    /// Mode 0: only what all of RAM could never hold.
    Heuristic,
    /// Mode 1: nothing.
    Always,
    /// Mode 2: what together exceeds [`Commit::limit`]. `MAP_NORESERVE` counts for nothing.
    Never,
}

/// Who wants more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Charge {
    /// Pages wanted.
    pub pages: u64,
    /// Pages that the process has mapped already.
    pub mapped: u64,
    /// May use what is kept for the administrator.
    pub privileged: bool,
}

/// The books of one machine. Sizes in pages where nothing else is said.
#[derive(Debug)]
pub struct Commit {
    mode: AtomicU8,
    /// Percent of RAM, where no limit is set in KiB.
    ratio: AtomicU64,
    /// The limit in KiB; 0: by the ratio.
    kib: AtomicU64,
    total: AtomicU64,
    /// Kept for one more process of a large one's owner, in KiB.
    user_kib: AtomicU64,
    /// Kept for the administrator, in KiB.
    admin_kib: AtomicU64,
    promised: AtomicU64,
}

impl Commit {
    /// Nothing is promised yet; mode 0, ratio 50, as Linux begins. `total`: pages of RAM.
    pub const fn new(total: u64) -> Self {
        let share = total / 32 * 4;
        Self {
            mode: AtomicU8::new(0),
            ratio: AtomicU64::new(50),
            kib: AtomicU64::new(0),
            total: AtomicU64::new(total),
            user_kib: AtomicU64::new(if share < 1 << 17 { share } else { 1 << 17 }),
            admin_kib: AtomicU64::new(if share < 1 << 13 { share } else { 1 << 13 }),
            promised: AtomicU64::new(0),
        }
    }

    /// RAM is known now, for books that were made before it was. Before anything is promised.
    pub fn set_total(&self, pages: u64) {
        let fresh = Self::new(pages);
        self.total.store(pages, Ordering::Relaxed);
        self.user_kib.store(fresh.user_kib.into_inner(), Ordering::Relaxed);
        self.admin_kib.store(fresh.admin_kib.into_inner(), Ordering::Relaxed);
    }

    /// The mode.
    pub fn mode(&self) -> Overcommit {
        match self.mode.load(Ordering::Relaxed) {
            1 => Overcommit::Always,
            2 => Overcommit::Never,
            _ => Overcommit::Heuristic,
        }
    }

    /// Another mode; what is promised stays so.
    pub fn set_mode(&self, mode: Overcommit) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Percent of RAM that may be promised in mode 2; 0 where the limit is set in KiB.
    pub fn ratio(&self) -> u64 {
        self.ratio.load(Ordering::Relaxed)
    }

    /// Sets the limit as percent of RAM.
    pub fn set_ratio(&self, percent: u64) {
        self.ratio.store(percent, Ordering::Relaxed);
        self.kib.store(0, Ordering::Relaxed);
    }

    /// The limit in KiB; 0 where it is a ratio.
    pub fn kib(&self) -> u64 {
        self.kib.load(Ordering::Relaxed)
    }

    /// Sets the limit in KiB.
    pub fn set_kib(&self, kib: u64) {
        self.kib.store(kib, Ordering::Relaxed);
        self.ratio.store(0, Ordering::Relaxed);
    }

    /// What is kept for one more process of the same owner, in KiB.
    pub fn user_reserve_kib(&self) -> u64 {
        self.user_kib.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_user_reserve_kib(&self, kib: u64) {
        self.user_kib.store(kib, Ordering::Relaxed);
    }

    /// What is kept for the administrator, in KiB.
    pub fn admin_reserve_kib(&self) -> u64 {
        self.admin_kib.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_admin_reserve_kib(&self, kib: u64) {
        self.admin_kib.store(kib, Ordering::Relaxed);
    }

    /// The most that mode 2 promises (`CommitLimit`).
    pub fn limit(&self) -> u64 {
        match self.kib() {
            0 => {
                let total = u128::from(self.total.load(Ordering::Relaxed));
                u64::try_from(total * u128::from(self.ratio()) / 100).unwrap_or(u64::MAX)
            }
            kib => kib / 4,
        }
    }

    /// What is promised (`Committed_AS`).
    pub fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }

    /// Promises more, or refuses.
    #[must_use]
    pub fn charge(&self, charge: Charge) -> bool {
        let before = self.promised.fetch_add(charge.pages, Ordering::Relaxed);
        let granted = match self.mode() {
            Overcommit::Heuristic => charge.pages <= self.total.load(Ordering::Relaxed),
            Overcommit::Always => true,
            Overcommit::Never => before.saturating_add(charge.pages) < self.allowed(charge),
        };
        if !granted {
            self.release(charge.pages);
        }
        granted
    }

    /// Promises end.
    pub fn release(&self, pages: u64) {
        let before = self.promised.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "books");
    }

    #[cold]
    fn allowed(&self, charge: Charge) -> u64 {
        let admin = if charge.privileged { 0 } else { self.admin_reserve_kib() / 4 };
        let user = (charge.mapped / 32).min(self.user_reserve_kib() / 4);
        self.limit().saturating_sub(admin).saturating_sub(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(books: &Commit, pages: u64) -> bool {
        books.charge(Charge { pages, mapped: 0, privileged: true })
    }

    #[test]
    fn each_mode_refuses_what_linux_refuses_and_keeps_no_trace_of_it() {
        let books = Commit::new(1000);
        assert!(asks(&books, 1000) && asks(&books, 1000));
        assert!(!asks(&books, 1001), "more than there is, at once");
        books.set_mode(Overcommit::Always);
        assert!(asks(&books, 1 << 40));
        books.release(1 << 40);
        assert_eq!(books.promised(), 2000);
        books.set_mode(Overcommit::Never);
        assert!(!asks(&books, 1), "half of RAM is promised already");
        books.release(1900);
        assert_eq!(books.limit(), 500);
        assert!(asks(&books, 399), "up to one below the limit");
        assert!(!asks(&books, 1));
        books.set_ratio(60);
        assert!(asks(&books, 100));
        books.set_kib(4 * 700);
        assert_eq!((books.limit(), books.ratio()), (700, 0));
        assert!(asks(&books, 100) && !asks(&books, 1));
        assert_eq!(books.promised(), 699);
    }

    #[test]
    fn mode_2_keeps_something_for_the_administrator_and_for_one_process_more() {
        let books = Commit::new(1 << 20);
        books.set_mode(Overcommit::Never);
        assert_eq!((books.admin_reserve_kib(), books.user_reserve_kib()), (8192, 131_072));
        let limit = books.limit();
        let ask = |pages, mapped, privileged| books.charge(Charge { pages, mapped, privileged });
        assert!(!ask(limit - 2048, 0, false));
        assert!(ask(limit - 2049, 0, false));
        assert!(ask(2047, 0, true));
        books.release(limit - 2);
        // A process with much keeps a part of its size free, up to the reserve.
        assert!(!ask(limit - 10, 320, true) && ask(limit - 11, 320, true));
        books.release(limit - 11);
        assert!(
            !ask(limit - (1 << 15), u64::MAX, true) && ask(limit - (1 << 15) - 1, u64::MAX, true)
        );
    }
}
