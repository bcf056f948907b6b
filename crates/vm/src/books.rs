//! How an address space keeps *books* (see [`AddressSpace`]): charge first, settle when the call ends.

use core::ops::{Deref, DerefMut};

use lock_api::MutexGuard;
use pagoda_paging::Format;

use crate::space::Inner;
use crate::{AddressSpace, Charge, Limits, VmPlatform};

/// The lock of the regions, for a call that changes what is promised (*books*).
pub(crate) struct Change<'s, F: Format, P: VmPlatform> {
    space: &'s AddressSpace<F, P>,
    inner: MutexGuard<'s, P::RegionLock, Inner<P>>,
}

impl<F: Format, P: VmPlatform> Deref for Change<'_, F, P> {
    type Target = Inner<P>;
    fn deref(&self) -> &Inner<P> {
        &self.inner
    }
}

impl<F: Format, P: VmPlatform> DerefMut for Change<'_, F, P> {
    fn deref_mut(&mut self) -> &mut Inner<P> {
        &mut self.inner
    }
}

impl<F: Format, P: VmPlatform> Drop for Change<'_, F, P> {
    #[inline]
    fn drop(&mut self) {
        self.space.settle(&mut self.inner);
    }
}

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// As [`lock`](Self::lock), to change what is promised.
    #[inline]
    pub(crate) fn change(&self) -> Change<'_, F, P> {
        Change { space: self, inner: self.inner.lock() }
    }

    /// Charges `pages` more to the machine's books, or is refused.
    #[inline]
    pub(crate) fn charge(&self, inner: &mut Inner<P>, pages: u64) -> bool {
        let granted = inner.may_charge(self.platform(), pages);
        if granted {
            inner.charged += pages;
        }
        granted
    }

    /// Makes *books* true again: what was charged and is not promised goes back.
    #[inline]
    pub(crate) fn settle(&self, inner: &mut Inner<P>) {
        let promised = inner.stats.committed;
        if inner.charged != promised {
            debug_assert!(inner.charged > promised, "books");
            if let Some(books) = self.platform().commit() {
                books.release(inner.charged.saturating_sub(promised));
            }
            inner.charged = promised;
        }
    }
}

impl<P: VmPlatform> Inner<P> {
    /// Asks the machine's books for `pages` more; what is granted is to be released.
    #[inline]
    pub(crate) fn may_charge(&self, platform: &P, pages: u64) -> bool {
        let Limits { privileged, .. } = self.limits;
        let charge = Charge { pages, mapped: self.stats.mapped, privileged };
        platform.commit().is_none_or(|books| books.charge(charge))
    }
}
