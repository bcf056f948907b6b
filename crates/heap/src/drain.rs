//! Magazines come and go: made when first missed, drained when idle or when memory is short.
#![allow(unsafe_code)] // makes and ends areas

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_addr::PAGE_SHIFT;
use pagoda_sync::Cpus;

use crate::classes::{CLASSES, SIZES};
use crate::magazine::{AREA, Area, BATCH, Batch, no_area, some_area};
use crate::sync::publish;
use crate::{Heap, PageSource, Report};

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Makes this CPU's magazines if it has none and there is room in the pool.
    pub(crate) fn open_area(&self) {
        let is_open = || {
            let pin = self.cpus.pin();
            self.area(&pin).is_some()
        };
        if is_open() {
            return;
        }
        let Some(place) = self.take_own(AREA) else { return };
        let spare = {
            let pin = self.cpus.pin();
            match self.areas.get(pin.cpu().index()) {
                Some(slot) if some_area(slot.load(Ordering::Relaxed)).is_none() => {
                    // SAFETY: fresh records of this size.
                    let area = unsafe { Area::create(place, self.wanted.load(Ordering::Relaxed)) };
                    // SAFETY: as above; nobody else knows it yet.
                    self.close_guarded(unsafe { area.as_ref() });
                    slot.store(area.as_ptr(), publish());
                    None
                }
                _ => Some(place),
            }
        };
        if let Some(spare) = spare {
            self.give_own(spare);
        }
    }

    /// Has this CPU honoured every request to drain its magazines?
    #[inline]
    pub(crate) fn is_drained(&self, area: &Area) -> bool {
        area.honoured.get() == self.wanted.load(Ordering::Relaxed)
    }

    /// Drains this CPU's magazines if somebody has asked for that.
    pub(crate) fn honour(&self) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let due = {
            let pin = self.cpus.pin();
            self.area(&pin).is_some_and(|area| area.honoured.replace(wanted) != wanted)
        };
        if due {
            self.drain();
            let pin = self.cpus.pin();
            if let Some(area) = self.area(&pin) {
                self.close_guarded(area);
            }
        }
    }

    /// Brings home every block in the executing CPU's magazines. To be called before the CPU idles,
    /// so that no memory lies where nobody looks.
    pub fn drain(&self) {
        self.drain_locals(false);
        for class in 0..CLASSES as u8 {
            loop {
                let mut blocks = Batch::new();
                {
                    let pin = self.cpus.pin();
                    let Some(area) = self.area(&pin) else { return };
                    area.of(class).take_oldest(BATCH, &mut blocks);
                }
                if blocks.len() == 0 {
                    break;
                }
                self.flush(class, blocks);
            }
        }
    }

    /// Brings home what lies in depots, and their arrays.
    fn drain_depots(&self) {
        for (class, &size) in SIZES.iter().enumerate() {
            loop {
                let mut blocks = Batch::new();
                let array = {
                    let mut depot = self.depots[class].lock();
                    blocks.extend(depot.pop(BATCH));
                    let bytes = blocks.len() * usize::from(size);
                    self.in_depots.fetch_sub(bytes, Ordering::Relaxed);
                    depot.close()
                };
                let done = blocks.len() == 0;
                self.flush(class as u8, blocks);
                if let Some(array) = array {
                    self.give_own(array);
                }
                if done {
                    break;
                }
            }
        }
    }

    /// Memory is short: everything free comes home, and the other CPUs are asked to do the same.
    #[cold]
    pub(crate) fn squeeze(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.honour();
        self.drain_locals(false);
        self.drain_depots();
        self.release_quarantine();
        self.shrink_caches();
    }

    /// Gives every page without a live block back to the source, and asks the other CPUs to bring
    /// home what is in their magazines (which they do when they next miss them). Returns the number
    /// of pages given back meanwhile.
    pub fn shrink(&self) -> usize {
        let before = self.given.load(Ordering::Relaxed);
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.drain();
        self.drain_depots();
        self.release_quarantine();
        let area = {
            let pin = self.cpus.pin();
            self.areas
                .get(pin.cpu().index())
                .map_or(no_area(), |slot| slot.swap(no_area(), Ordering::Relaxed))
        };
        if let Some(area) = some_area(area) {
            self.close_area(area);
        }
        self.shrink_caches();
        self.state.lock().pool.shrink();
        self.give_retired();
        self.given.load(Ordering::Relaxed).wrapping_sub(before) >> PAGE_SHIFT
    }

    /// Brings home every block in the magazines of all CPUs, and the magazines.
    ///
    /// # Safety
    /// No other CPU is in a call of this heap, nor enters one, until this returns.
    pub unsafe fn drain_stopped(&self) {
        self.drain_locals(true);
        for slot in self.areas.iter().take(self.cpus.limit()) {
            let area = slot.swap(no_area(), Ordering::Acquire);
            if let Some(area) = some_area(area) {
                self.close_area(area);
            }
        }
    }

    /// Brings home what is in an area that no CPU can reach any more, and the area.
    fn close_area(&self, area: NonNull<Area>) {
        for class in 0..CLASSES {
            loop {
                let mut blocks = Batch::new();
                // SAFETY: *magazine-own*: taken off its slot by the one who may.
                unsafe { area.as_ref() }.of(class as u8).take_oldest(BATCH, &mut blocks);
                if blocks.len() == 0 {
                    break;
                }
                self.flush(class as u8, blocks);
            }
        }
        self.give_own(area.cast());
        self.give_retired();
    }
}
