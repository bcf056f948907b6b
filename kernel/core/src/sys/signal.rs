//! Signals, as programs ask for them.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_linux::Errno;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::interruptible;
use crate::sched::slots::{Channel, Patience, Wait, Wake};
use crate::signal::frame::{AltStack, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK};
use crate::signal::info::{Detail, SI_TKILL, SI_USER, SigInfo};
use crate::signal::set::{Action, SigSet, Signal};
use crate::task::{Process, Thread};

const MINSIGSTKSZ: u64 = 2048;

impl<M: Machine> Cx<'_, M> {
    pub(crate) fn sys_rt_sigaction(&mut self, a: [u64; 6]) -> Result<u64> {
        let [number, new_at, old_at, size, ..] = a;
        if size != 8 {
            return Err(Errno::EINVAL);
        }
        let signal = Signal::new(number).ok_or(Errno::EINVAL)?;
        let new = if new_at == 0 {
            None
        } else {
            let mut action = Action::from_bytes(&self.read_array(new_at)?);
            if SigSet::UNBLOCKABLE.contains(signal) {
                return Err(Errno::EINVAL);
            }
            action.mask = action.mask.without(SigSet::UNBLOCKABLE);
            Some(action)
        };
        let old = self.process.signals.lock().action(signal);
        if old_at != 0 {
            self.write_bytes(old_at, &old.to_bytes())?;
        }
        if let Some(action) = new {
            let family = self.process.family.lock();
            let mut shared = self.process.signals.lock();
            shared.set_action(signal, action);
            if action.ignores(signal) {
                shared.pending.discard(SigSet::of(signal));
                for thread in &family.threads {
                    thread.signals.lock().pending.discard(SigSet::of(signal));
                }
            }
        }
        Ok(0)
    }

    pub(crate) fn sys_rt_sigprocmask(&mut self, a: [u64; 6]) -> Result<u64> {
        let [how, new_at, old_at, size, ..] = a;
        if size != 8 {
            return Err(Errno::EINVAL);
        }
        let new = if new_at == 0 { None } else { Some(SigSet(self.read_u64(new_at)?)) };
        let old = self.thread.signals.lock().mask;
        if let Some(new) = new {
            let mask = match how {
                0 => old.or(new),
                1 => old.without(new),
                2 => new,
                _ => return Err(Errno::EINVAL),
            };
            self.thread.signals.lock().set_mask(mask);
            self.thread.attention.store(true, Ordering::SeqCst);
        }
        if old_at != 0 {
            self.write_u64(old_at, old.0)?;
        }
        Ok(0)
    }

    /// A mask for the time of one call.
    pub(super) fn take_mask(&self, mask: SigSet) {
        let mut own = self.thread.signals.lock();
        own.saved_mask = Some(own.mask);
        own.set_mask(mask);
        drop(own);
        self.thread.attention.store(true, Ordering::SeqCst);
    }

    fn pending(&self) -> SigSet {
        let shared = self.process.signals.lock().pending.set();
        self.thread.signals.lock().pending.set().or(shared)
    }

    pub(crate) fn sys_rt_sigpending(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[1] > 8 {
            return Err(Errno::EINVAL);
        }
        let mask = self.thread.signals.lock().mask;
        let bytes = self.pending().and(mask).0.to_le_bytes();
        self.write_bytes(a[0], bytes.get(..a[1] as usize).unwrap_or_default())?;
        Ok(0)
    }

    pub(crate) fn sys_rt_sigsuspend(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[1] != 8 {
            return Err(Errno::EINVAL);
        }
        let mask = SigSet(self.read_u64(a[0])?);
        self.take_mask(mask);
        self.sys_pause()
    }

    pub(crate) fn sys_pause(&mut self) -> Result<u64> {
        let wait = interruptible(Channel::Time);
        let _ = self.kernel.sched.wait_until(self.thread, wait, || None::<()>);
        Err(Errno::ERESTARTNOHAND)
    }

    pub(crate) fn sys_rt_sigtimedwait(&mut self, a: [u64; 6]) -> Result<u64> {
        let [set_at, info_at, timeout_at, size, ..] = a;
        if size != 8 {
            return Err(Errno::EINVAL);
        }
        let set = SigSet(self.read_u64(set_at)?).without(SigSet::UNBLOCKABLE);
        let deadline = if timeout_at == 0 { u64::MAX } else { self.relative_deadline(timeout_at)? };
        let take = || {
            let mut shared = self.process.signals.lock();
            let mut own = self.thread.signals.lock();
            own.pending.take(set).or_else(|| shared.pending.take(set))
        };
        self.thread.signals.lock().waited = set;
        let wait = Wait {
            channel: Channel::Signal(self.thread.tid),
            mask: !0,
            deadline,
            patience: Patience::Interruptible,
        };
        let found = self.kernel.sched.wait_until(self.thread, wait, take);
        self.thread.signals.lock().waited = SigSet::EMPTY;
        let info = found.map_err(|ended| match ended {
            Wake::TimedOut => Errno::EAGAIN,
            _ => Errno::EINTR,
        })?;
        let info = self.kernel.complete_info(self.process, info);
        if info_at != 0 {
            self.write_bytes(info_at, &info.to_bytes())?;
        }
        Ok(u64::from(info.signal.number()))
    }

    pub(crate) fn sys_sigaltstack(&mut self, a: [u64; 6]) -> Result<u64> {
        let own = self.thread.signals.lock();
        let old = own.alt;
        drop(own);
        let on_it = old.holds(self.regs.rsp);
        let new = if a[0] == 0 {
            None
        } else {
            let new = AltStack::from_bytes(&self.read_array::<24>(a[0])?);
            if on_it {
                return Err(Errno::EPERM);
            }
            Some(match new.flags & !SS_AUTODISARM {
                SS_DISABLE => AltStack { flags: new.flags, ..AltStack::NONE },
                0 | SS_ONSTACK if new.size < MINSIGSTKSZ => return Err(Errno::ENOMEM),
                0 | SS_ONSTACK => AltStack { flags: new.flags & !SS_ONSTACK, ..new },
                _ => return Err(Errno::EINVAL),
            })
        };
        if a[1] != 0 {
            let flags = old.flags | if on_it { SS_ONSTACK } else { 0 };
            self.write_bytes(a[1], &AltStack { flags, ..old }.to_bytes())?;
        }
        if let Some(new) = new {
            self.thread.signals.lock().alt = new;
        }
        Ok(0)
    }

    fn sender(&self, signal: Signal, code: i32) -> SigInfo {
        let uid = self.process.ids.lock().uid[0];
        SigInfo { signal, code, detail: Detail::Sender { pid: self.process.pid, uid } }
    }

    fn may_signal(&self, target: &Process<M>, signal: Option<Signal>) -> bool {
        let mine = self.process.ids.lock().uid;
        let theirs = target.ids.lock().uid;
        let same_session =
            target.session.load(Ordering::Relaxed) == self.process.session.load(Ordering::Relaxed);
        mine[1] == 0
            || [mine[0], mine[1]].iter().any(|id| *id == theirs[0] || *id == theirs[2])
            || (signal == Some(Signal::CONT) && same_session)
    }

    /// The signal that a call names; zero only asks whether it could be sent.
    fn named(number: u64) -> Result<Option<Signal>> {
        match number as i32 {
            0 => Ok(None),
            number => Signal::new(number as u64).map(Some).ok_or(Errno::EINVAL),
        }
    }

    pub(crate) fn sys_kill(&mut self, a: [u64; 6]) -> Result<u64> {
        let signal = Self::named(a[1])?;
        let me = self.process.pid;
        let own_group = self.process.group.load(Ordering::Relaxed);
        let chosen = |process: &Process<M>| {
            let group = process.group.load(Ordering::Relaxed);
            match a[0] as i32 {
                0 => group == own_group,
                -1 => process.pid != 1 && process.pid != me,
                i32::MIN..0 => group == (a[0] as i32).unsigned_abs(),
                pid => process.pid == pid as u32,
            }
        };
        let (mut found, mut sent) = (false, false);
        let mut next = 0;
        while let Some(process) = self.kernel.next_process(next) {
            next = process.pid + 1;
            if !chosen(&process) {
                continue;
            }
            found = true;
            if self.may_signal(&process, signal) {
                sent = true;
                if let Some(signal) = signal {
                    self.kernel.signal_and_report(&process, self.sender(signal, SI_USER));
                }
            }
        }
        match (found, sent) {
            (_, true) => Ok(0),
            (true, false) => Err(Errno::EPERM),
            // A thread's number means its process.
            (false, false) if a[0] as i32 > 0 => self.kill_thread_owner(a[0], signal),
            (false, false) => Err(Errno::ESRCH),
        }
    }

    fn kill_thread_owner(&self, id: u64, signal: Option<Signal>) -> Result<u64> {
        let thread = self.kernel.tables.lock().thread(id as u32).ok_or(Errno::ESRCH)?;
        if !self.may_signal(&thread.process, signal) {
            return Err(Errno::EPERM);
        }
        if let Some(signal) = signal {
            self.kernel.signal_and_report(&thread.process, self.sender(signal, SI_USER));
        }
        Ok(0)
    }

    /// The thread that a call names by process (any, if `any_process`) and thread number.
    fn target_thread(&self, pid: u64, tid: u64, any_process: bool) -> Result<Arc<Thread<M>>> {
        let bad = tid as i32 <= 0 || (!any_process && pid as i32 <= 0);
        if bad {
            return Err(Errno::EINVAL);
        }
        let thread = self.kernel.tables.lock().thread(tid as u32).ok_or(Errno::ESRCH)?;
        if !any_process && thread.process.pid != pid as u32 {
            return Err(Errno::ESRCH);
        }
        Ok(thread)
    }

    pub(crate) fn sys_tgkill(&mut self, a: [u64; 6], any_process: bool) -> Result<u64> {
        let thread = self.target_thread(a[0], a[1], any_process)?;
        let signal = Self::named(a[2])?;
        if !self.may_signal(&thread.process, signal) {
            return Err(Errno::EPERM);
        }
        if let Some(signal) = signal {
            let info = self.sender(signal, SI_TKILL);
            self.kernel.send_to_thread(&thread, info).map_err(|_| Errno::EAGAIN)?;
            self.kernel.after_sending();
        }
        Ok(0)
    }

    /// The circumstances that a program makes up for a signal of its own.
    fn decode_info(signal: Signal, bytes: &[u8; SigInfo::SIZE], own: bool) -> Result<SigInfo> {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(bytes.get(at..at + 4).unwrap_or(&[0; 4]));
            u32::from_le_bytes(word)
        };
        let code = word(8) as i32;
        if !own && (code >= 0 || code == SI_TKILL) {
            return Err(Errno::EPERM);
        }
        let value = u64::from(word(24)) | u64::from(word(28)) << 32;
        Ok(SigInfo { signal, code, detail: Detail::Queued { pid: word(16), uid: word(20), value } })
    }

    pub(crate) fn sys_rt_sigqueueinfo(&mut self, a: [u64; 6]) -> Result<u64> {
        // The circumstances come first, as on Linux.
        let bytes = self.read_array(a[2])?;
        let process = self.kernel.tables.lock().process(a[0] as u32).ok_or(Errno::ESRCH)?;
        let Some(signal) = Self::named(a[1])? else { return Ok(0) };
        let info = Self::decode_info(signal, &bytes, process.pid == self.process.pid)?;
        if !self.may_signal(&process, Some(signal)) {
            return Err(Errno::EPERM);
        }
        self.kernel.send_to_process(&process, info).map_err(|_| Errno::EAGAIN)?;
        self.kernel.after_sending();
        Ok(0)
    }

    pub(crate) fn sys_rt_tgsigqueueinfo(&mut self, a: [u64; 6]) -> Result<u64> {
        let bytes = self.read_array(a[3])?;
        let thread = self.target_thread(a[0], a[1], false)?;
        let Some(signal) = Self::named(a[2])? else { return Ok(0) };
        let own = thread.process.pid == self.process.pid;
        let info = Self::decode_info(signal, &bytes, own)?;
        if !self.may_signal(&thread.process, Some(signal)) {
            return Err(Errno::EPERM);
        }
        self.kernel.send_to_thread(&thread, info).map_err(|_| Errno::EAGAIN)?;
        self.kernel.after_sending();
        Ok(0)
    }
}
