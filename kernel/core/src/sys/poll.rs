//! Waiting for any of several files.
//!
//! A wait for several files wakes on a change of any file at all and looks again.

use alloc::vec::Vec;

use pagoda_kernel_fs::Ready;
use pagoda_linux::Errno;
use pagoda_vm::fallible::{try_push, try_vec};

use super::file::NOFILE;
use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait, Wake};
use crate::signal::set::SigSet;

/// What `poll` is told of whether it was asked or not.
const ALWAYS: Ready = Ready::ERR.union(Ready::HUP).union(Ready::NVAL);

#[derive(Clone, Copy)]
struct Asked {
    fd: i32,
    events: Ready,
    found: Ready,
}

impl<M: Machine> Cx<'_, M> {
    fn ready(&self, fd: i32) -> Ready {
        if fd < 0 {
            return Ready::empty();
        }
        self.file(fd as u64).map_or(Ready::NVAL, |file| file.poll())
    }

    /// Looks until something is there or `deadline` (monotonic nanoseconds) has passed. Returns how
    /// many descriptors have something.
    fn wait_for_any(&self, asked: &mut [Asked], deadline: u64) -> Result<usize> {
        let mut look = || {
            let mut count = 0;
            for one in asked.iter_mut() {
                one.found = self.ready(one.fd) & (one.events | ALWAYS);
                count += usize::from(!one.found.is_empty());
            }
            (count != 0).then_some(count)
        };
        if let Some(count) = look() {
            return Ok(count);
        }
        let wait = Wait {
            channel: Channel::AnyFile,
            mask: !0,
            deadline,
            patience: Patience::Interruptible,
        };
        match self.kernel.sched.wait_until(self.thread, wait, look) {
            Ok(count) => Ok(count),
            Err(Wake::TimedOut) => Ok(0),
            Err(_) => Err(Errno::ERESTARTNOHAND),
        }
    }

    /// A deadline from a pointer to seconds and fractions of `unit` nanoseconds; null: never.
    fn deadline_from(&self, at: u64, unit: u64) -> Result<u64> {
        if at == 0 {
            return Ok(u64::MAX);
        }
        let [seconds, fraction] = self.read_words(at)?;
        if seconds as i64 > -1 && fraction < 1_000_000_000 / unit {
            let span = seconds.saturating_mul(1_000_000_000).saturating_add(fraction * unit);
            return Ok(self.kernel.machine.monotonic_ns().saturating_add(span));
        }
        Err(Errno::EINVAL)
    }

    pub(crate) fn sys_poll(&mut self, a: [u64; 6]) -> Result<u64> {
        let deadline = match a[2] as i32 {
            ..0 => u64::MAX,
            ms => {
                self.kernel.machine.monotonic_ns().saturating_add(u64::from(ms as u32) * 1_000_000)
            }
        };
        self.poll_files(a[0], a[1], deadline)
    }

    pub(crate) fn sys_ppoll(&mut self, a: [u64; 6]) -> Result<u64> {
        let [list, count, timeout, mask, size, _] = a;
        let deadline = self.deadline_from(timeout, 1)?;
        if mask != 0 {
            self.use_mask(mask, size)?;
        }
        self.poll_files(list, count, deadline)
    }

    /// Takes a mask for the time of this call; the end of the call gives the old one back.
    pub(super) fn use_mask(&self, at: u64, size: u64) -> Result<()> {
        if size != 8 {
            return Err(Errno::EINVAL);
        }
        let mask = SigSet(self.read_u64(at)?);
        self.take_mask(mask);
        Ok(())
    }

    fn poll_files(&self, list: u64, count: u64, deadline: u64) -> Result<u64> {
        if count > self.process.limit(NOFILE).min(1 << 20) {
            return Err(Errno::EINVAL);
        }
        let mut bytes = try_vec(0u8, 8 * count as usize).map_err(|_| Errno::ENOMEM)?;
        self.read_bytes(list, &mut bytes)?;
        let mut asked = Vec::new();
        for entry in bytes.chunks_exact(8) {
            let &[a, b, c, d, e, f, ..] = entry else { continue };
            let one = Asked {
                fd: i32::from_le_bytes([a, b, c, d]),
                events: Ready::from_bits_truncate(u16::from_le_bytes([e, f])),
                found: Ready::empty(),
            };
            try_push(&mut asked, one).map_err(|_| Errno::ENOMEM)?;
        }
        let ready = self.wait_for_any(&mut asked, deadline)?;
        for (entry, one) in bytes.chunks_exact_mut(8).zip(&asked) {
            if let Some(found) = entry.get_mut(6..8) {
                found.copy_from_slice(&one.found.bits().to_le_bytes());
            }
        }
        self.write_bytes(list, &bytes)?;
        Ok(ready as u64)
    }

    pub(crate) fn sys_select(&mut self, a: [u64; 6]) -> Result<u64> {
        let deadline = self.deadline_from(a[4], 1000)?;
        self.select_files(a, deadline, 1000)
    }

    pub(crate) fn sys_pselect6(&mut self, a: [u64; 6]) -> Result<u64> {
        let deadline = self.deadline_from(a[4], 1)?;
        if a[5] != 0 {
            let [mask, size] = self.read_words(a[5])?;
            if mask != 0 {
                self.use_mask(mask, size)?;
            }
        }
        self.select_files(a, deadline, 1)
    }

    fn select_files(&self, a: [u64; 6], deadline: u64, unit: u64) -> Result<u64> {
        const KINDS: [Ready; 3] = [
            Ready::READ.union(Ready::HUP).union(Ready::ERR),
            Ready::WRITE.union(Ready::ERR),
            Ready::PRI,
        ];
        let count = usize::try_from(a[0] as i32).map_err(|_| Errno::EINVAL)?;
        let count = count.min(self.process.limit(NOFILE).min(1 << 20) as usize);
        let words = count.div_ceil(64);
        let sets = [a[1], a[2], a[3]];
        let mut bytes = try_vec(0u8, 3 * 8 * words).map_err(|_| Errno::ENOMEM)?;
        for (set, part) in sets.iter().zip(bytes.chunks_exact_mut((8 * words).max(1))) {
            if *set != 0 {
                self.read_bytes(*set, part)?;
            }
        }
        let wants = |bytes: &[u8], kind: usize, fd: usize| {
            let at = kind * 8 * words + fd / 8;
            bytes.get(at).is_some_and(|byte| byte & 1 << (fd % 8) != 0)
        };
        let mut asked = Vec::new();
        for fd in 0..count {
            let mut events = Ready::empty();
            for (kind, ready) in KINDS.iter().enumerate() {
                if wants(&bytes, kind, fd) {
                    events |= *ready;
                }
            }
            if !events.is_empty() {
                self.file(fd as u64)?;
                let one = Asked { fd: fd as i32, events, found: Ready::empty() };
                try_push(&mut asked, one).map_err(|_| Errno::ENOMEM)?;
            }
        }
        self.wait_for_any(&mut asked, deadline)?;
        let mut answer = try_vec(0u8, bytes.len()).map_err(|_| Errno::ENOMEM)?;
        let mut total = 0;
        for one in &asked {
            let fd = one.fd as usize;
            for (kind, ready) in KINDS.iter().enumerate() {
                if wants(&bytes, kind, fd)
                    && one.found.intersects(*ready)
                    && let Some(byte) = answer.get_mut(kind * 8 * words + fd / 8)
                {
                    *byte |= 1 << (fd % 8);
                    total += 1;
                }
            }
        }
        for (set, part) in sets.iter().zip(answer.chunks_exact((8 * words).max(1))) {
            if *set != 0 {
                self.write_bytes(*set, part)?;
            }
        }
        if a[4] != 0 && deadline != u64::MAX {
            // As on Linux, the time that is left is told.
            let left = deadline.saturating_sub(self.kernel.machine.monotonic_ns());
            let left = [left / 1_000_000_000, left % 1_000_000_000 / unit];
            let _ = self.write_words(a[4], &left);
        }
        Ok(total)
    }
}
