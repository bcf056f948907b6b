//! `epoll`: a set of files to wait for.
//!
//! The set remembers files weakly: one that is closed everywhere vanishes from it. Looking is a
//! walk over the set; a wait wakes on a change of any file at all and looks again. Edge triggering
//! compares the generation of a file's queue with that of the last report.
//!
//! Left out: sets inside sets being noticed by the outer one before something else wakes it,
//! `EPOLLEXCLUSIVE` (all waiters wake).

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;

use pagoda_kernel_fs::{CustomFile, FileType, OpenFile, OpenFlags, Ready};
use pagoda_linux::Errno;
use pagoda_sync::SpinMutex;
use pagoda_vm::fallible::{try_arc, try_push};

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait, Wake};

const ADD: u64 = 1;
const DEL: u64 = 2;
const MOD: u64 = 3;
const ONESHOT: u32 = 1 << 30;
const EDGE: u32 = 1 << 31;
/// What is told whether it was asked for or not.
const ALWAYS: u32 = 0x18;
/// Bytes of a `struct epoll_event`: it is packed.
const EVENT: usize = 12;
const EVENTS_MAX: u64 = (i32::MAX as u64) / EVENT as u64;

struct Item {
    fd: i32,
    file: Weak<OpenFile>,
    events: u32,
    data: u64,
    /// The generation of the last report, for edge triggering.
    reported: Option<u64>,
    /// Reported once and not armed again.
    spent: bool,
}

impl Item {
    /// What there is to report now.
    fn look(&self) -> u32 {
        let Some(file) = self.file.upgrade().filter(|_| !self.spent) else { return 0 };
        if self.events & EDGE != 0 && self.reported == Some(generation(&file)) {
            return 0;
        }
        u32::from(file.poll().bits()) & (self.events | ALWAYS)
    }
}

fn generation(file: &OpenFile) -> u64 {
    file.waiters().map_or(0, |waiters| waiters.generation())
}

/// The set. Its lock is taken before those of the files in it.
#[derive(Default)]
struct EpollSet {
    items: SpinMutex<Vec<Item>>,
}

impl CustomFile for EpollSet {
    fn poll(&self) -> Ready {
        // A set that looks at itself, or at one that looks at it, sees nothing.
        let Some(items) = self.items.try_lock() else { return Ready::empty() };
        let ready = items.iter().any(|item| item.look() != 0);
        if ready { Ready::READ } else { Ready::empty() }
    }
    fn name(&self) -> &'static str {
        "anon_inode:[eventpoll]"
    }
    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl EpollSet {
    /// Up to `limit` reports: (events, data).
    fn collect(&self, limit: usize, out: &mut Vec<(u32, u64)>) -> Result<()> {
        let mut items = self.items.lock();
        items.retain(|item| item.file.strong_count() != 0);
        let count = items.len();
        let mut looked = 0;
        while looked < count && out.len() < limit {
            let Some(item) = items.get_mut(looked) else { break };
            looked += 1;
            let found = item.look();
            if found == 0 {
                continue;
            }
            try_push(out, (found, item.data)).map_err(|_| Errno::ENOMEM)?;
            item.spent = item.events & ONESHOT != 0;
            item.reported = item.file.upgrade().map(|file| generation(&file));
        }
        // Whoever was not looked at comes first the next time.
        if looked < count {
            items.rotate_left(looked);
        }
        Ok(())
    }

    fn change(&self, op: u64, file: &Arc<OpenFile>, fd: i32, events: u32, data: u64) -> Result<()> {
        let mut items = self.items.lock();
        let at = items
            .iter()
            .position(|item| item.fd == fd && core::ptr::eq(item.file.as_ptr(), Arc::as_ptr(file)));
        let new =
            Item { fd, file: Arc::downgrade(file), events, data, reported: None, spent: false };
        match (op, at) {
            (ADD, None) => try_push(&mut items, new).map_err(|_| Errno::ENOMEM),
            (ADD, Some(_)) => Err(Errno::EEXIST),
            (DEL, Some(at)) => {
                items.remove(at);
                Ok(())
            }
            (MOD, Some(at)) => {
                if let Some(item) = items.get_mut(at) {
                    *item = new;
                }
                Ok(())
            }
            (DEL | MOD, None) => Err(Errno::ENOENT),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The set behind a descriptor.
fn set_of(file: &OpenFile) -> Result<&EpollSet> {
    let any = file.custom().and_then(|custom| custom.as_any());
    any.and_then(|any| any.downcast_ref()).ok_or(Errno::EINVAL)
}

impl<M: Machine> Cx<'_, M> {
    pub(crate) fn sys_epoll_create1(&mut self, a: [u64; 6]) -> Result<u64> {
        let cloexec = u64::from(OpenFlags::CLOEXEC.bits());
        if a[0] & !cloexec != 0 {
            return Err(Errno::EINVAL);
        }
        let set = try_arc(EpollSet::default()).map_err(|_| Errno::ENOMEM)?;
        let file = self.kernel.vfs.custom(set, OpenFlags::RDWR)?;
        self.install(file, a[0] != 0)
    }

    pub(crate) fn sys_epoll_create(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[0] as i32 <= 0 {
            return Err(Errno::EINVAL);
        }
        self.sys_epoll_create1([0; 6])
    }

    pub(crate) fn sys_epoll_ctl(&mut self, a: [u64; 6]) -> Result<u64> {
        let [epoll, op, fd, event, ..] = a;
        let set_file = self.file(epoll)?;
        let file = self.file(fd)?;
        let (events, data) = if op == DEL {
            (0, 0)
        } else {
            let bytes: [u8; EVENT] = self.read_array(event)?;
            let &[e0, e1, e2, e3, data @ ..] = &bytes;
            (u32::from_le_bytes([e0, e1, e2, e3]), u64::from_le_bytes(data))
        };
        // What is always ready cannot be waited for.
        if matches!(file.node().kind(), FileType::Regular | FileType::Directory)
            && file.custom().is_none()
            && file.waiters().is_none()
        {
            return Err(Errno::EPERM);
        }
        if Arc::ptr_eq(&set_file, &file) {
            return Err(Errno::EINVAL);
        }
        set_of(&set_file)?.change(op, &file, fd as i32, events, data)?;
        // Whoever waits on the set looks at the new member.
        self.kernel.sched.wake(Channel::AnyFile, usize::MAX);
        Ok(0)
    }

    pub(crate) fn sys_epoll_wait(&mut self, a: [u64; 6]) -> Result<u64> {
        let deadline = match a[3] as i32 {
            ..0 => u64::MAX,
            ms => {
                self.kernel.machine.monotonic_ns().saturating_add(u64::from(ms as u32) * 1_000_000)
            }
        };
        self.epoll_events(a, deadline)
    }

    pub(crate) fn sys_epoll_pwait(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[4] != 0 {
            self.use_mask(a[4], a[5])?;
        }
        self.sys_epoll_wait(a)
    }

    pub(crate) fn sys_epoll_pwait2(&mut self, a: [u64; 6]) -> Result<u64> {
        let deadline = if a[3] == 0 { u64::MAX } else { self.relative_deadline(a[3])? };
        if a[4] != 0 {
            self.use_mask(a[4], a[5])?;
        }
        self.epoll_events(a, deadline)
    }

    fn epoll_events(&self, a: [u64; 6], deadline: u64) -> Result<u64> {
        let [epoll, at, limit, ..] = a;
        let limit = u64::from(limit as u32);
        if limit == 0 || limit > EVENTS_MAX {
            return Err(Errno::EINVAL);
        }
        let file = self.file(epoll)?;
        let set = set_of(&file)?;
        crate::user::user_range::<M>(&self.space, at, limit * EVENT as u64)?;
        let mut found = Vec::new();
        let mut look = || match set.collect(limit as usize, &mut found) {
            Ok(()) if found.is_empty() => None,
            done => Some(done),
        };
        let wait = Wait {
            channel: Channel::AnyFile,
            mask: !0,
            deadline,
            patience: Patience::Interruptible,
        };
        match self.kernel.sched.wait_until(self.thread, wait, &mut look) {
            Ok(done) => done?,
            Err(Wake::TimedOut) => return Ok(0),
            Err(_) => return Err(Errno::EINTR),
        }
        for (index, (events, data)) in found.iter().enumerate() {
            let mut bytes = [0; EVENT];
            let (first, second) = bytes.split_at_mut(4);
            first.copy_from_slice(&events.to_le_bytes());
            second.copy_from_slice(&data.to_le_bytes());
            self.write_bytes(at + (index * EVENT) as u64, &bytes)?;
        }
        Ok(found.len() as u64)
    }
}
