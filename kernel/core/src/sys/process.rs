//! Processes and threads: making, replacing, ending, waiting, and what each thread has of its own.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_kernel_fs::Follow;
use pagoda_linux::Errno;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::signal::info::{CLD_CONTINUED, CLD_STOPPED, Detail, SigInfo};
use crate::signal::send::child_end;
use crate::signal::set::Signal;
use crate::task::fork::{CLONE_VFORK, CLONE_VM};
use crate::task::wait::{News, WCONTINUED, WEXITED, WNOHANG, WNOWAIT, WUNTRACED};
use crate::task::{CloneArgs, Request, Thread, WaitFor, WaitStatus};

/// Bytes of arguments and environment together, as on Linux with 8 MiB of stack.
const ARG_MAX: usize = 2 << 20;
const PIDFD: u64 = 0x1000;

impl<M: Machine> Cx<'_, M> {
    pub(crate) fn sys_exit(&mut self, a: [u64; 6]) -> Result<u64> {
        self.exiting = Some(WaitStatus::exited(a[0] as u32));
        self.thread.attention.store(true, Ordering::SeqCst);
        Ok(0)
    }

    pub(crate) fn sys_exit_group(&mut self, a: [u64; 6]) -> Result<u64> {
        let status = WaitStatus::exited(a[0] as u32);
        self.end_process(status);
        self.exiting = Some(status);
        self.thread.attention.store(true, Ordering::SeqCst);
        Ok(0)
    }

    pub(crate) fn sys_fork(&mut self) -> Result<u64> {
        let exit_signal = u64::from(Signal::CHLD.number());
        self.clone_task(CloneArgs { exit_signal, ..CloneArgs::default() })
    }

    pub(crate) fn sys_vfork(&mut self) -> Result<u64> {
        let exit_signal = u64::from(Signal::CHLD.number());
        let flags = CLONE_VM | CLONE_VFORK;
        self.clone_task(CloneArgs { flags, exit_signal, ..CloneArgs::default() })
    }

    pub(crate) fn sys_clone(&mut self, a: [u64; 6]) -> Result<u64> {
        let [flags, stack, parent_tid, child_tid, tls, _] = a;
        if flags & PIDFD != 0 {
            return Err(Errno::EINVAL);
        }
        self.clone_task(CloneArgs {
            flags: flags & 0xffff_ff00,
            exit_signal: flags & 0xff,
            stack,
            parent_tid,
            child_tid,
            tls,
        })
    }

    pub(crate) fn sys_clone3(&mut self, a: [u64; 6]) -> Result<u64> {
        let size = a[1];
        if size < 64 {
            return Err(Errno::EINVAL);
        }
        if size > 4096 {
            return Err(Errno::E2BIG);
        }
        let words: [u64; 8] = self.read_words(a[0])?;
        let [flags, _pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls] = words;
        let mut rest = 64;
        while rest + 8 <= size {
            // Chosen numbers and control groups are not done.
            if self.read_u64(a[0] + rest)? != 0 {
                return Err(Errno::EINVAL);
            }
            rest += 8;
        }
        let half = (stack == 0) != (stack_size == 0);
        if flags & 0xff != 0 || exit_signal > 64 || half {
            return Err(Errno::EINVAL);
        }
        let stack = stack.checked_add(stack_size).ok_or(Errno::EINVAL)?;
        self.clone_task(CloneArgs { flags, exit_signal, stack, parent_tid, child_tid, tls })
    }

    pub(crate) fn sys_execveat(&mut self, a: [u64; 6]) -> Result<u64> {
        const SYMLINK_NOFOLLOW: u64 = 0x100;
        const EMPTY_PATH: u64 = 0x1000;
        let [dirfd, path_at, argv, envp, flags, _] = a;
        if flags & !(SYMLINK_NOFOLLOW | EMPTY_PATH) != 0 {
            return Err(Errno::EINVAL);
        }
        let path = self.read_path(path_at)?;
        let mut args = self.read_str_list(argv, ARG_MAX)?;
        let env = self.read_str_list(envp, ARG_MAX)?;
        if args.bytes.len() + env.bytes.len() + 8 * (args.count + env.count) > ARG_MAX {
            return Err(Errno::E2BIG);
        }
        if args.count == 0 {
            args.push(b"")?;
        }
        let look = self.look(dirfd, &path)?;
        let node = if path.is_empty() && flags & EMPTY_PATH != 0 {
            Arc::clone(&look.start)
        } else {
            let follow = if flags & SYMLINK_NOFOLLOW != 0 { Follow::No } else { Follow::Yes };
            self.kernel.vfs.resolve(&look.view(), &path, follow)?
        };
        drop(look);
        self.exec(node, Request { path, args, env })?;
        // The result register of the new program.
        Ok(self.regs.rax)
    }

    pub(crate) fn sys_wait4(&mut self, a: [u64; 6]) -> Result<u64> {
        let [pid, status_at, options, usage_at, ..] = a;
        const THREADS_AND_CLONES: u64 = 0xe000_0000;
        let known = u64::from(WNOHANG | WUNTRACED | WCONTINUED) | THREADS_AND_CLONES;
        if u64::from(options as u32) & !known != 0 {
            return Err(Errno::EINVAL);
        }
        let which = match pid as i32 {
            -1 => WaitFor::Any,
            0 => WaitFor::Group(self.process.group.load(Ordering::Relaxed)),
            i32::MIN => return Err(Errno::ESRCH),
            group if group < 0 => WaitFor::Group(group.unsigned_abs()),
            pid => WaitFor::Pid(pid as u32),
        };
        let answers = [(status_at, 4), (usage_at, super::time::RUSAGE)];
        let news = self.wait_for_child(which, options as u32 | WEXITED, answers)?;
        let Some(news) = news else { return Ok(0) };
        if status_at != 0 {
            self.write_u32(status_at, news.status.0)?;
        }
        if usage_at != 0 {
            self.write_bytes(usage_at, &super::time::rusage(&news.usage))?;
        }
        Ok(u64::from(news.pid))
    }

    pub(crate) fn sys_waitid(&mut self, a: [u64; 6]) -> Result<u64> {
        let [kind, id, info_at, options, usage_at, _] = a;
        let options = options as u32;
        let wanted = WEXITED | WUNTRACED | WCONTINUED;
        if options & wanted == 0 || options & !(wanted | WNOHANG | WNOWAIT | 0xe000_0000) != 0 {
            return Err(Errno::EINVAL);
        }
        let which = match (kind, id as u32) {
            (0, _) => WaitFor::Any,
            (1, pid) if pid != 0 => WaitFor::Pid(pid),
            (2, 0) => WaitFor::Group(self.process.group.load(Ordering::Relaxed)),
            (2, group) => WaitFor::Group(group),
            _ => return Err(Errno::EINVAL),
        };
        let answers = [(info_at, SigInfo::SIZE), (usage_at, super::time::RUSAGE)];
        let news = self.wait_for_child(which, options, answers)?;
        if info_at != 0 {
            let bytes = news.as_ref().map_or([0; SigInfo::SIZE], waitid_info);
            self.write_bytes(info_at, &bytes)?;
        }
        if let Some(news) = news.filter(|_| usage_at != 0) {
            self.write_bytes(usage_at, &super::time::rusage(&news.usage))?;
        }
        Ok(0)
    }

    pub(crate) fn sys_set_tid_address(&mut self, a: [u64; 6]) -> Result<u64> {
        self.thread.clear_child_tid.store(a[0], Ordering::Relaxed);
        Ok(u64::from(self.thread.tid))
    }

    pub(crate) fn sys_set_robust_list(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[1] != 24 {
            return Err(Errno::EINVAL);
        }
        self.thread.robust_list.store(a[0], Ordering::Relaxed);
        Ok(0)
    }

    pub(crate) fn sys_get_robust_list(&mut self, a: [u64; 6]) -> Result<u64> {
        let thread = self.some_thread(a[0])?;
        self.write_u64(a[1], thread.robust_list.load(Ordering::Relaxed))?;
        self.write_u64(a[2], 24)?;
        Ok(0)
    }

    /// The thread with this number, the caller's for 0.
    pub(super) fn some_thread(&self, tid: u64) -> Result<Arc<Thread<M>>> {
        match tid as i32 {
            0 => Ok(Arc::clone(self.thread)),
            ..0 => Err(Errno::EINVAL),
            tid => self.kernel.tables.lock().thread(tid as u32).ok_or(Errno::ESRCH),
        }
    }

    pub(crate) fn sys_arch_prctl(&mut self, a: [u64; 6]) -> Result<u64> {
        const SET_GS: u64 = 0x1001;
        const SET_FS: u64 = 0x1002;
        const GET_FS: u64 = 0x1003;
        const GET_GS: u64 = 0x1004;
        let bad = a[1] >= self.space.layout().limit.as_u64();
        match a[0] {
            SET_FS | SET_GS if bad => Err(Errno::EPERM),
            SET_FS => {
                self.regs.fs_base = a[1];
                Ok(0)
            }
            SET_GS => {
                self.regs.gs_base = a[1];
                Ok(0)
            }
            GET_FS => self.write_u64(a[1], self.regs.fs_base).map(|()| 0),
            GET_GS => self.write_u64(a[1], self.regs.gs_base).map(|()| 0),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn sys_prctl(&mut self, a: [u64; 6]) -> Result<u64> {
        const SET_PDEATHSIG: u64 = 1;
        const GET_PDEATHSIG: u64 = 2;
        const GET_DUMPABLE: u64 = 3;
        const SET_DUMPABLE: u64 = 4;
        const SET_NAME: u64 = 15;
        const GET_NAME: u64 = 16;
        const SET_TIMERSLACK: u64 = 29;
        const GET_TIMERSLACK: u64 = 30;
        const SET_NO_NEW_PRIVS: u64 = 38;
        const GET_NO_NEW_PRIVS: u64 = 39;
        match a[0] {
            SET_NAME => {
                let text = self.read_str(a[1], 4096, Errno::EINVAL)?;
                let mut name = [0; 16];
                for (to, from) in name.iter_mut().take(15).zip(&text) {
                    *to = *from;
                }
                if self.thread.tid == self.process.pid {
                    self.process.program.lock().name = name;
                }
                Ok(0)
            }
            GET_NAME => {
                let name = self.process.program.lock().name;
                self.write_bytes(a[1], &name).map(|()| 0)
            }
            GET_PDEATHSIG => self.write_u32(a[1], 0).map(|()| 0),
            GET_DUMPABLE => Ok(1),
            GET_TIMERSLACK => Ok(50_000),
            GET_NO_NEW_PRIVS => Ok(0),
            SET_DUMPABLE | SET_TIMERSLACK => Ok(0),
            // Nothing here raises privileges on execve.
            SET_NO_NEW_PRIVS if a[1] == 1 => Ok(0),
            SET_PDEATHSIG if a[1] == 0 => Ok(0),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn sys_sched_yield(&mut self) -> Result<u64> {
        self.kernel.sched.yield_now(self.thread);
        Ok(0)
    }

    pub(crate) fn sys_sched_getaffinity(&mut self, a: [u64; 6]) -> Result<u64> {
        let thread = self.some_thread(a[0])?;
        if a[1] < 8 || !a[1].is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        self.write_u64(a[2], self.kernel.sched.affinity(&thread))?;
        Ok(8)
    }

    pub(crate) fn sys_sched_setaffinity(&mut self, a: [u64; 6]) -> Result<u64> {
        let thread = self.some_thread(a[0])?;
        let mut mask = [0; 8];
        let len = a[1].min(8) as usize;
        self.read_bytes(a[2], mask.get_mut(..len).unwrap_or_default())?;
        let done = self.kernel.sched.set_affinity(&thread, u64::from_le_bytes(mask));
        if done { Ok(0) } else { Err(Errno::EINVAL) }
    }

    pub(crate) fn sys_sched_getparam(&mut self, a: [u64; 6]) -> Result<u64> {
        self.some_thread(a[0])?;
        self.write_u32(a[1], 0).map(|()| 0)
    }

    pub(crate) fn sys_sched_setparam(&mut self, a: [u64; 6]) -> Result<u64> {
        self.some_thread(a[0])?;
        if self.read_u32(a[1])? == 0 { Ok(0) } else { Err(Errno::EINVAL) }
    }

    /// There is one policy.
    pub(crate) fn sys_sched_setscheduler(&mut self, a: [u64; 6]) -> Result<u64> {
        self.some_thread(a[0])?;
        let priority = self.read_u32(a[2])?;
        match (a[1] as u32 & 0x3fff_ffff, priority) {
            (0 | 3 | 5, 0) => Ok(0),
            (1 | 2, 1..=99) => Err(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn sys_getcpu(&mut self, a: [u64; 6]) -> Result<u64> {
        let cpu = self.kernel.machine.cpu().index() as u32;
        for (at, value) in [(a[0], cpu), (a[1], 0)] {
            if at != 0 {
                self.write_u32(at, value)?;
            }
        }
        Ok(0)
    }
}

fn waitid_info(news: &News) -> [u8; SigInfo::SIZE] {
    let (code, status) = match news.status {
        WaitStatus::CONTINUED => (CLD_CONTINUED, Signal::CONT.number() as i32),
        stopped if stopped.0 & 0xff == 0x7f => (CLD_STOPPED, stopped.code() as i32),
        ended => child_end(ended),
    };
    let detail =
        Detail::Child { pid: news.pid, uid: news.uid, status, user_ticks: 0, system_ticks: 0 };
    SigInfo { signal: Signal::CHLD, code, detail }.to_bytes()
}
