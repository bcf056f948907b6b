//! Delivering signals: what happens between the kernel's work for a thread and its program.

use core::sync::atomic::Ordering;

use pagoda_linux::Errno;

use super::frame::{self, AltStack, FrameContent, SS_AUTODISARM, SS_DISABLE};
use super::info::{CLD_STOPPED, SI_KERNEL, SigInfo};
use super::set::{
    Action, Default, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER, SIG_DFL,
    SIG_IGN, SigSet, Signal,
};
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait};
use crate::task::WaitStatus;

/// The length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;
const NR_RESTART_SYSCALL: u64 = 219;
const RLIMIT_CORE: usize = 4;
/// Trap, direction and resume: a handler starts without them.
const HANDLER_CLEARS: u64 = 0x100 | 0x400 | 0x1_0000;

/// What the thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Runs its program.
    Program,
    /// Ends.
    End,
}

impl<M: Machine> Cx<'_, M> {
    /// Everything that has to happen before the program goes on.
    pub(crate) fn before_program(&mut self) -> Next {
        loop {
            self.thread.attention.store(false, Ordering::SeqCst);
            let sole = self.process.sole.load(Ordering::SeqCst);
            if self.process.is_ending() || (sole != 0 && sole != self.thread.tid) {
                return Next::End;
            }
            if self.process.is_stopped() {
                self.wait_for_continue();
                continue;
            }
            let Some(info) = self.take_signal() else { break };
            let action = self.process.signals.lock().action(info.signal);
            match action.handler {
                SIG_IGN => {}
                SIG_DFL => self.default_action(info),
                _ => self.call_handler(info, action),
            }
        }
        self.restart_call(None);
        let mut own = self.thread.signals.lock();
        if let Some(mask) = own.saved_mask.take() {
            own.set_mask(mask);
            drop(own);
            // What the old mask lets through was pending all the time.
            if self.thread.has_signal() {
                return self.before_program();
            }
        }
        Next::Program
    }

    fn take_signal(&self) -> Option<SigInfo> {
        let mut shared = self.process.signals.lock();
        let mut own = self.thread.signals.lock();
        if let Some(info) = own.forced.take() {
            return Some(info);
        }
        let open = SigSet(!own.mask.0);
        let info = own.pending.take(open).or_else(|| shared.pending.take(open));
        drop((own, shared));
        info.map(|info| self.kernel.complete_info(self.process, info))
    }

    fn wait_for_continue(&self) {
        let wait = Wait {
            channel: Channel::Continue(self.process.pid),
            mask: !0,
            deadline: u64::MAX,
            patience: Patience::Killable,
        };
        let _ = self.kernel.sched.wait_until(self.thread, wait, || {
            (!self.process.is_stopped() || self.process.is_ending()).then_some(())
        });
    }

    fn default_action(&mut self, info: SigInfo) {
        let signal = info.signal;
        match signal.default() {
            Default::Ignore | Default::Continue => {}
            Default::Terminate => self.end_process(WaitStatus::killed(signal.number(), false)),
            // As on Linux, the bit says that a core was asked for (and is missing here).
            Default::Core => {
                let core = self.process.limit(RLIMIT_CORE) != 0;
                self.end_process(WaitStatus::killed(signal.number(), core));
            }
            Default::Stop => self.stop_process(signal),
        }
    }

    fn stop_process(&self, signal: Signal) {
        // The terminal's stops do not reach a group that no shell looks after.
        let group = self.process.group.load(Ordering::Relaxed);
        if signal != Signal::STOP && self.kernel.is_orphaned(group) {
            return;
        }
        let mut family = self.process.family.lock();
        if !self.process.set_stopped(true) {
            return;
        }
        family.stop_report = Some(signal.number());
        family.continue_report = false;
        for thread in &family.threads {
            thread.notify(false);
        }
        drop(family);
        self.kernel.tell_parent(self.process, CLD_STOPPED, signal.number() as i32);
    }

    /// Turns a call that asks for it into its repetition, or into `EINTR` where a handler runs that
    /// did not ask for restarts.
    fn restart_call(&mut self, handler: Option<&Action>) {
        let Some(number) = self.call.take() else { return };
        let Err(error) = Errno::from_result_register(self.regs.rax) else { return };
        let (again, as_number) = match (error, handler) {
            (Errno::ERESTARTNOINTR, _) => (true, number),
            (Errno::ERESTARTSYS, Some(action)) => (action.flags & SA_RESTART != 0, number),
            (Errno::ERESTARTNOHAND | Errno::ERESTART_RESTARTBLOCK, Some(_)) => (false, number),
            (Errno::ERESTARTSYS | Errno::ERESTARTNOHAND, None) => (true, number),
            (Errno::ERESTART_RESTARTBLOCK, None) => (true, NR_RESTART_SYSCALL),
            _ => return,
        };
        if again {
            self.regs.rax = as_number;
            self.regs.rip = self.regs.rip.wrapping_sub(SYSCALL_LEN);
        } else {
            self.regs.rax = Errno::EINTR.to_result_register();
        }
    }

    fn call_handler(&mut self, info: SigInfo, action: Action) {
        self.restart_call(Some(&action));
        if self.push_frame(&info, &action).is_err() {
            // No room for a frame. A SIGSEGV that cannot be delivered ends the process.
            let mut shared = self.process.signals.lock();
            if info.signal == Signal::SEGV {
                shared.set_action(Signal::SEGV, Action::default());
            }
            drop(shared);
            self.kernel.force_signal(self.thread, SigInfo::kernel(Signal::SEGV));
            return;
        }
        let mut shared = self.process.signals.lock();
        let mut own = self.thread.signals.lock();
        own.saved_mask = None;
        let mut mask = own.mask.or(action.mask);
        if action.flags & SA_NODEFER == 0 {
            mask.insert(info.signal);
        }
        own.set_mask(mask);
        if own.alt.flags & SS_AUTODISARM != 0 {
            own.alt = AltStack::NONE;
        }
        if action.flags & SA_RESETHAND != 0 {
            shared.set_action(info.signal, Action { handler: SIG_DFL, ..action });
        }
    }

    /// Writes the frame and points the registers at the handler; nothing is changed on failure but
    /// memory below the stack pointer.
    fn push_frame(&mut self, info: &SigInfo, action: &Action) -> Result<(), Errno> {
        if action.flags & SA_RESTORER == 0 {
            return Err(Errno::EFAULT);
        }
        let (mask, alt, trap) = {
            let own = self.thread.signals.lock();
            (own.saved_mask.unwrap_or(own.mask), own.alt, own.fault)
        };
        let was_on_alt = alt.holds(self.regs.rsp);
        let enters_alt =
            action.flags & SA_ONSTACK != 0 && alt.flags & SS_DISABLE == 0 && !was_on_alt;
        let top = if enters_alt {
            alt.base.wrapping_add(alt.size)
        } else {
            self.regs.rsp.wrapping_sub(frame::RED_ZONE)
        };
        let machine = self.kernel.machine;
        let image_len = self.thread.with_fpu(|fpu| machine.fpu_bytes(fpu).len());
        let (fp, at) = frame::place(top, frame::fp_len(image_len) as u64).ok_or(Errno::EFAULT)?;
        if (enters_alt || was_on_alt) && at < alt.base {
            return Err(Errno::EFAULT);
        }
        self.thread.with_fpu(|fpu| self.write_bytes(fp, machine.fpu_bytes(fpu)))?;
        if image_len > 512 {
            let (software, end) = frame::fp_marks(image_len, machine.fpu_features());
            self.write_bytes(fp + frame::FP_MARKS_AT, &software)?;
            self.write_bytes(fp + image_len as u64, &end)?;
        }
        let content =
            FrameContent { regs: &self.regs, info, mask, alt, restorer: action.restorer, fp, trap };
        self.write_bytes(at, &frame::encode(&content))?;
        let (info_at, context_at) = frame::arguments(at);
        let regs = &mut self.regs;
        regs.rdi = u64::from(info.signal.number());
        regs.rsi = info_at;
        regs.rdx = context_at;
        regs.rax = 0;
        regs.rip = action.handler;
        regs.rsp = at;
        regs.rflags &= !HANDLER_CLEARS;
        machine.load_fpu(&self.kernel.clean_fpu.lock());
        Ok(())
    }

    /// `rt_sigreturn`: the program goes on where its handler interrupted it. Returns what `rax`
    /// then holds.
    pub(crate) fn signal_return(&mut self) -> u64 {
        match self.restore_frame() {
            Ok(()) => self.regs.rax,
            Err(_) => {
                let info = SigInfo { code: SI_KERNEL, ..SigInfo::kernel(Signal::SEGV) };
                self.kernel.force_signal(self.thread, info);
                0
            }
        }
    }

    fn restore_frame(&mut self) -> Result<(), Errno> {
        let mut ucontext = [0; frame::UCONTEXT];
        self.read_bytes(self.regs.rsp, &mut ucontext)?;
        let restored = frame::decode(&ucontext, &self.regs);
        if !restored.is_programs {
            return Err(Errno::EFAULT);
        }
        let machine = self.kernel.machine;
        if restored.fp == 0 {
            machine.load_fpu(&self.kernel.clean_fpu.lock());
        } else {
            let len = self.thread.with_fpu(|fpu| machine.fpu_bytes(fpu).len());
            let mut image = pagoda_vm::fallible::try_vec(0u8, len).map_err(|_| Errno::ENOMEM)?;
            self.read_bytes(restored.fp, &mut image)?;
            let accepted = self.thread.with_fpu(|fpu| {
                let accepted = machine.set_fpu_bytes(fpu, &image);
                if accepted {
                    machine.load_fpu(fpu);
                }
                accepted
            });
            if !accepted {
                return Err(Errno::EFAULT);
            }
        }
        let mut own = self.thread.signals.lock();
        own.set_mask(restored.mask);
        own.alt = restored.alt;
        drop(own);
        self.thread.attention.store(true, Ordering::SeqCst);
        self.regs = restored.regs;
        Ok(())
    }
}
