//! A program touches a page and there is no frame for it.
//!
//! First goes what programs have freed lazily (`MADV_FREE`), everywhere; where that brings something,
//! the access is tried again. Else the process that wanted the frame ends, and everybody else lives
//! on. Only the first process, whose end would be the end of everything, gets one at the expense of
//! somebody else: the largest process ends in its place.
//!
//! Lazily freed memory also goes before frames run out: at interrupts, once few are left.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{FIRST, Process, WaitStatus};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait};
use crate::signal::info::SigInfo;
use crate::signal::set::Signal;

/// How long the first process waits for a victim's frames before it tries again, in nanoseconds.
const PATIENCE_NS: u64 = 1_000_000;

impl<M: Machine> Cx<'_, M> {
    /// A fault without a frame.
    pub(crate) fn out_of_memory(&mut self) {
        if self.kernel.let_go() != 0 {
            return;
        }
        if self.process.pid == FIRST && self.kernel.sacrifice() {
            let deadline = self.kernel.machine.monotonic_ns().saturating_add(PATIENCE_NS);
            let patience = Patience::Killable;
            let wait = Wait { channel: Channel::Time, mask: !0, deadline, patience };
            let _ = self.kernel.sched.wait_until(self.thread, wait, || None::<()>);
            return;
        }
        report(self.process);
        self.end_process(WaitStatus::killed(Signal::KILL.number(), false));
    }
}

impl<M: Machine> Kernel<M> {
    /// Some process has freed memory lazily.
    pub(crate) fn note_lazy(&self) {
        self.lazy.store(true, Ordering::Relaxed);
    }

    /// Lets go of what was freed lazily, in all processes; returns how many pages that was.
    #[cold]
    pub(crate) fn let_go(&self) -> u64 {
        if !self.lazy.swap(false, Ordering::Relaxed) {
            return 0;
        }
        let (mut pages, mut next) = (0, 0);
        while let Some(process) = self.next_process(next) {
            next = process.pid + 1;
            pages += process.space().map_or(0, |space| space.let_go());
        }
        pages
    }

    /// Does so if few frames are left: four times what is kept for the kernel.
    pub(crate) fn let_go_in_time(&self) {
        if self.lazy.load(Ordering::Relaxed) {
            let memory = self.machine.memory();
            if memory.free + memory.cached < 4 * memory.reserve {
                self.let_go();
            }
        }
    }

    /// Ends the largest process but the first, unless one is ending already. False when there is
    /// none.
    fn sacrifice(&self) -> bool {
        let mut largest: Option<(u64, Arc<Process<M>>)> = None;
        let mut next = FIRST + 1;
        while let Some(process) = self.next_process(next) {
            next = process.pid + 1;
            let Some(space) = process.space() else { continue };
            if process.is_ending() {
                return true;
            }
            let pages = space.stats().rss();
            if largest.as_ref().is_none_or(|(most, _)| pages > *most) {
                largest = Some((pages, process));
            }
        }
        let Some((_, process)) = largest else { return false };
        report(&process);
        let _ = self.send_to_process(&process, SigInfo::kernel(Signal::KILL));
        true
    }
}

fn report<M: Machine>(process: &Process<M>) {
    let name = process.program.lock().name;
    let stats = process.space().map(|space| space.stats()).unwrap_or_default();
    log::warn!(
        "out of memory: killed process {} ({}), {} KiB mapped, {} KiB resident",
        process.pid,
        crate::text::name(&name),
        stats.mapped * 4,
        stats.rss() * 4,
    );
}
