//! Who a process is: numbers, groups, sessions, users, priority.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_linux::Errno;
use pagoda_vm::fallible::try_vec;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::task::Process;

/// "Leave it as it is" among user and group numbers.
const KEEP: u32 = u32::MAX;

impl<M: Machine> Cx<'_, M> {
    /// The process with this number, the caller's for 0.
    pub(super) fn some_process(&self, pid: u64) -> Result<Arc<Process<M>>> {
        match pid as i32 {
            0 => Ok(Arc::clone(self.process)),
            ..0 => Err(Errno::EINVAL),
            pid => self.kernel.tables.lock().process(pid as u32).ok_or(Errno::ESRCH),
        }
    }

    pub(crate) fn sys_getpgid(&mut self, a: [u64; 6]) -> Result<u64> {
        Ok(u64::from(self.some_process(a[0])?.group.load(Ordering::Relaxed)))
    }

    pub(crate) fn sys_getsid(&mut self, a: [u64; 6]) -> Result<u64> {
        Ok(u64::from(self.some_process(a[0])?.session.load(Ordering::Relaxed)))
    }

    pub(crate) fn sys_setpgid(&mut self, a: [u64; 6]) -> Result<u64> {
        let group = u32::try_from(a[1] as i32).map_err(|_| Errno::EINVAL)?;
        let target = self.some_process(a[0])?;
        let me = self.process;
        let session = me.session.load(Ordering::Relaxed);
        if target.pid != me.pid {
            if target.parent.load(Ordering::Relaxed) != me.pid {
                return Err(Errno::ESRCH);
            }
            if target.session.load(Ordering::Relaxed) != session {
                return Err(Errno::EPERM);
            }
            if target.has_execed.load(Ordering::Relaxed) {
                return Err(Errno::EACCES);
            }
        }
        if target.session.load(Ordering::Relaxed) == target.pid {
            return Err(Errno::EPERM);
        }
        let group = if group == 0 { target.pid } else { group };
        let tables = self.kernel.tables.lock();
        let exists = group == target.pid
            || tables.processes().iter().any(|other| {
                other.group.load(Ordering::Relaxed) == group
                    && other.session.load(Ordering::Relaxed) == session
            });
        if !exists {
            return Err(Errno::EPERM);
        }
        target.group.store(group, Ordering::Relaxed);
        Ok(0)
    }

    pub(crate) fn sys_setsid(&mut self) -> Result<u64> {
        let me = self.process;
        let tables = self.kernel.tables.lock();
        let leads =
            tables.processes().iter().any(|other| other.group.load(Ordering::Relaxed) == me.pid);
        if leads {
            return Err(Errno::EPERM);
        }
        me.session.store(me.pid, Ordering::Relaxed);
        me.group.store(me.pid, Ordering::Relaxed);
        drop(tables);
        let old = me.family.lock().terminal.take();
        drop(old);
        Ok(u64::from(me.pid))
    }

    /// Real, effective or saved user (or group) number.
    pub(crate) fn sys_get_id(&mut self, group: bool, which: usize) -> Result<u64> {
        let ids = self.process.ids.lock();
        let three = if group { ids.gid } else { ids.uid };
        Ok(three.get(which).copied().map_or(0, u64::from))
    }

    pub(crate) fn sys_get_ids(&mut self, group: bool, a: [u64; 6]) -> Result<u64> {
        let three = {
            let ids = self.process.ids.lock();
            if group { ids.gid } else { ids.uid }
        };
        for (at, id) in a.iter().zip(three) {
            self.write_u32(*at, id)?;
        }
        Ok(0)
    }

    /// `setuid`, `setgid`: all three for the superuser, else only the effective one.
    pub(crate) fn sys_set_id(&mut self, group: bool, a: [u64; 6]) -> Result<u64> {
        let root = self.process.ids.lock().uid[1] == 0;
        let id = u64::from(a[0] as u32);
        if id == u64::from(KEEP) {
            return Err(Errno::EINVAL);
        }
        let keep = u64::from(KEEP);
        self.sys_set_ids(group, if root { [id; 3] } else { [keep, id, keep] })
    }

    pub(crate) fn sys_set_ids(&mut self, group: bool, wanted: [u64; 3]) -> Result<u64> {
        let mut ids = self.process.ids.lock();
        let root = ids.uid[1] == 0;
        let old = if group { ids.gid } else { ids.uid };
        let mut new = old;
        for (slot, want) in new.iter_mut().zip(wanted.map(|word| word as u32)) {
            if want == KEEP {
                continue;
            }
            if !root && !old.contains(&want) {
                return Err(Errno::EPERM);
            }
            *slot = want;
        }
        if group {
            ids.gid = new;
        } else {
            ids.uid = new;
        }
        drop(ids);
        self.process.bind(&self.space);
        Ok(0)
    }

    pub(crate) fn sys_getgroups(&mut self, a: [u64; 6]) -> Result<u64> {
        let groups = self.process.ids.lock().try_clone()?.groups;
        let room = a[0] as i32;
        if room < 0 || (room != 0 && (room as usize) < groups.len()) {
            return Err(Errno::EINVAL);
        }
        if room != 0 {
            for (index, group) in groups.iter().enumerate() {
                let at = a[1].checked_add(4 * index as u64).ok_or(Errno::EFAULT)?;
                self.write_u32(at, *group)?;
            }
        }
        Ok(groups.len() as u64)
    }

    pub(crate) fn sys_setgroups(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[0] > 65_536 {
            return Err(Errno::EINVAL);
        }
        let mut groups = try_vec(0u32, a[0] as usize).map_err(|_| Errno::ENOMEM)?;
        for (index, group) in groups.iter_mut().enumerate() {
            let at = a[1].checked_add(4 * index as u64).ok_or(Errno::EFAULT)?;
            *group = self.read_u32(at)?;
        }
        let mut ids = self.process.ids.lock();
        if ids.uid[1] != 0 {
            return Err(Errno::EPERM);
        }
        let old = core::mem::replace(&mut ids.groups, groups);
        drop(ids);
        drop(old);
        Ok(0)
    }

    pub(crate) fn sys_capget(&mut self, a: [u64; 6]) -> Result<u64> {
        const VERSION_3: u32 = 0x2008_0522;
        const ALL: u64 = (1 << 41) - 1;
        let version = self.read_u32(a[0])?;
        let pid = self.read_u32(a[0].checked_add(4).ok_or(Errno::EFAULT)?)?;
        let words = match version {
            0x1998_0330 => 1,
            0x2007_1026 | VERSION_3 => 2,
            _ => {
                self.write_u32(a[0], VERSION_3)?;
                return if a[1] == 0 { Ok(0) } else { Err(Errno::EINVAL) };
            }
        };
        let target = self.some_process(u64::from(pid))?;
        let all = if target.ids.lock().uid[1] == 0 { ALL } else { 0 };
        if a[1] == 0 {
            return Ok(0);
        }
        for index in 0..words {
            let half = (all >> (32 * index)) as u32;
            for (field, value) in [half, half, 0].into_iter().enumerate() {
                let at = a[1].checked_add(12 * index + 4 * field as u64).ok_or(Errno::EFAULT)?;
                self.write_u32(at, value)?;
            }
        }
        Ok(0)
    }

    /// Capabilities follow from the user number here; giving them up piece by piece is not done.
    pub(crate) fn sys_capset(&mut self, a: [u64; 6]) -> Result<u64> {
        self.read_u64(a[0])?;
        Err(Errno::EPERM)
    }

    pub(crate) fn sys_getpriority(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[0] > 2 {
            return Err(Errno::EINVAL);
        }
        let target = if a[0] == 0 { self.some_process(a[1])? } else { Arc::clone(self.process) };
        Ok((20 - target.nice.load(Ordering::Relaxed)) as u64)
    }

    /// Kept and shown; the scheduler treats all alike.
    pub(crate) fn sys_setpriority(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[0] > 2 {
            return Err(Errno::EINVAL);
        }
        let nice = (a[2] as i32).clamp(-20, 19);
        let target = if a[0] == 0 { self.some_process(a[1])? } else { Arc::clone(self.process) };
        if nice < target.nice.load(Ordering::Relaxed) && self.process.ids.lock().uid[1] != 0 {
            return Err(Errno::EACCES);
        }
        target.nice.store(nice, Ordering::Relaxed);
        Ok(0)
    }
}
