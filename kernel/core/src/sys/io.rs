//! Bytes to and from files.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use pagoda_kernel_fs::tty::{ProcessIds, Terminal};
use pagoda_kernel_fs::{OpenFile, OpenFlags, SeekFrom};
use pagoda_linux::Errno;
use pagoda_vm::fallible::{try_push, try_vec};

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait, Wake};
use crate::signal::info::{SI_USER, SigInfo};
use crate::signal::set::Signal;

/// Bytes moved between a file and a program at a time.
const CHUNK: usize = 64 << 10;
/// The most bytes that one call moves, as on Linux.
const MAX_RW: u64 = 0x7fff_f000;
const IOV_MAX: u64 = 1024;

/// What a process is about to do with a terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TerminalUse {
    Read,
    Write,
    Change,
}

/// Where bytes are between a program and a file.
struct Buffer {
    /// Most calls are for a few bytes.
    small: [u8; 512],
    large: Vec<u8>,
}

impl Buffer {
    const fn new() -> Self {
        Self { small: [0; 512], large: Vec::new() }
    }

    /// Room for `len` bytes, or for as many as are carried at once.
    fn room(&mut self, len: u64) -> Result<&mut [u8]> {
        if len as usize <= self.small.len() {
            return Ok(&mut self.small);
        }
        self.large = try_vec(0u8, CHUNK.min(len as usize)).map_err(|_| Errno::ENOMEM)?;
        Ok(&mut self.large)
    }
}

impl<M: Machine> Cx<'_, M> {
    /// Tries `attempt` until it does not say `EAGAIN`, waiting for the file in between, unless the
    /// file is not to be waited for.
    pub(super) fn until_ready<R>(
        &self,
        file: &OpenFile,
        deadline: u64,
        mut attempt: impl FnMut() -> Result<R>,
    ) -> core::result::Result<Result<R>, Wake> {
        let first = attempt();
        let again = matches!(first, Err(Errno::EAGAIN));
        if !again || file.flags().contains(OpenFlags::NONBLOCK) {
            return Ok(first);
        }
        let Some(waiters) = file.waiters() else { return Ok(first) };
        let channel = Channel::File(waiters.key() as u64);
        let wait = Wait { channel, mask: !0, deadline, patience: Patience::Interruptible };
        self.kernel.sched.wait_until(self.thread, wait, || match attempt() {
            Err(Errno::EAGAIN) => None,
            done => Some(done),
        })
    }

    /// Reads into `buffer` what will go to `addr`. What a pipe gives is gone from it: it gives
    /// nothing before the bytes are sure to find room.
    fn read_some(&self, file: &OpenFile, buffer: &mut [u8], addr: Option<u64>) -> Result<usize> {
        self.check_foreground(file, TerminalUse::Read)?;
        let deadline = file.read_wait_limit_ms().map_or(u64::MAX, |ms| {
            self.kernel.machine.monotonic_ns().saturating_add(ms.saturating_mul(1_000_000))
        });
        let done = self.until_ready(file, deadline, || {
            if let (Some(ready), Some(addr)) = (file.pipe_len(), addr) {
                self.make_room(addr, ready.min(buffer.len()) as u64)?;
            }
            file.read(buffer)
        });
        match done {
            Ok(result) => result,
            Err(Wake::TimedOut) => file.read_expired(buffer),
            Err(_) => Err(Errno::ERESTARTSYS),
        }
    }

    /// Reads up to `len` bytes to `addr`, from the file's offset or from `at`.
    fn read_to(&self, file: &OpenFile, addr: u64, len: u64, at: Option<u64>) -> Result<u64> {
        let len = len.min(MAX_RW);
        crate::user::user_range::<M>(&self.space, addr, len)?;
        let mut buffer = Buffer::new();
        let buffer = buffer.room(len)?;
        let mut done = 0;
        loop {
            let want = ((len - done) as usize).min(buffer.len());
            let part = buffer.get_mut(..want).unwrap_or_default();
            let count = match at {
                None => self.read_some(file, part, Some(addr + done)),
                Some(at) => file.pread(part, at + done),
            };
            let count = match count {
                Ok(count) => count,
                Err(_) if done != 0 => return Ok(done),
                Err(error) => return Err(error),
            };
            let got = part.get(..count).unwrap_or_default();
            let range = crate::user::user_range::<M>(&self.space, addr + done, count as u64)?;
            if let Err(error) = self.space.copy_out(got, range) {
                // As on Linux: what has arrived counts, and the file's offset stands behind it.
                let left = count - error.done;
                if at.is_none() {
                    let _ = file.seek(SeekFrom::Current, -(left as i64));
                }
                done += error.done as u64;
                let refused = crate::user::fault_error(error.error);
                return if done == 0 { Err(refused) } else { Ok(done) };
            }
            done += count as u64;
            // Only what is always ready is asked again.
            if count < want || done == len || file.waiters().is_some() {
                return Ok(done);
            }
        }
    }

    fn write_some(&self, file: &OpenFile, bytes: &[u8]) -> Result<usize> {
        self.check_foreground(file, TerminalUse::Write)?;
        let done = self.until_ready(file, u64::MAX, || file.write(bytes));
        done.unwrap_or(Err(Errno::ERESTARTSYS))
    }

    /// Writes `len` bytes from `addr`, at the file's offset or at `at`.
    fn write_from(&self, file: &OpenFile, addr: u64, len: u64, at: Option<u64>) -> Result<u64> {
        let len = len.min(MAX_RW);
        crate::user::user_range::<M>(&self.space, addr, len)?;
        let mut buffer = Buffer::new();
        let buffer = buffer.room(len)?;
        let mut done = 0;
        loop {
            let want = ((len - done) as usize).min(buffer.len());
            let mut part = buffer.get_mut(..want).unwrap_or_default();
            let range = crate::user::user_range::<M>(&self.space, addr + done, want as u64)?;
            if let Err(error) = self.space.copy_in(range, part) {
                // As on Linux: a file that is always ready takes what there is, others all or none.
                let there = if file.waiters().is_none() { error.done } else { 0 };
                if there == 0 {
                    let refused = crate::user::fault_error(error.error);
                    return if done == 0 { Err(refused) } else { Ok(done) };
                }
                part = part.get_mut(..there).unwrap_or_default();
            }
            let mut written = 0;
            loop {
                let rest = part.get(written..).unwrap_or_default();
                let count = match at {
                    None => self.write_some(file, rest),
                    Some(at) => file.pwrite(rest, at + done),
                };
                match count {
                    Ok(count) => {
                        written += count;
                        done += count as u64;
                        if count == 0 || written == want {
                            break;
                        }
                    }
                    Err(error) => {
                        if error == Errno::EPIPE {
                            let info = SigInfo { code: SI_USER, ..SigInfo::kernel(Signal::PIPE) };
                            let _ = self.kernel.send_to_thread(self.thread, info);
                        }
                        return if done == 0 { Err(error) } else { Ok(done) };
                    }
                }
            }
            if written < want || done == len {
                return Ok(done);
            }
        }
    }

    /// Who this process is to a terminal.
    pub(super) fn terminal_ids(&self, terminal: &Arc<Terminal>) -> ProcessIds {
        let controlling = self.process.family.lock().terminal.clone();
        ProcessIds {
            pid: self.process.pid as i32,
            group: self.process.group.load(Ordering::Relaxed) as i32,
            session: self.process.session.load(Ordering::Relaxed) as i32,
            controlling: controlling.is_some_and(|own| Arc::ptr_eq(&own, terminal)),
        }
    }

    /// A background job that reads from its terminal (or changes it, or writes where that is
    /// forbidden) is stopped.
    pub(super) fn check_foreground(&self, file: &OpenFile, use_: TerminalUse) -> Result<()> {
        let Some(terminal) = file.terminal() else { return Ok(()) };
        if use_ == TerminalUse::Write && !terminal.stops_background_output() {
            return Ok(());
        }
        let who = self.terminal_ids(terminal);
        if !terminal.is_background(&who) {
            return Ok(());
        }
        let reads = use_ == TerminalUse::Read;
        let signal = if reads { Signal::TTIN } else { Signal::TTOU };
        let ignored = self.process.signals.lock().action(signal).ignores(signal);
        let blocked = self.thread.signals.lock().mask.contains(signal);
        if ignored || blocked {
            return if reads { Err(Errno::EIO) } else { Ok(()) };
        }
        let group = who.group as u32;
        if self.kernel.is_orphaned(group) {
            return Err(Errno::EIO);
        }
        self.kernel.send_to_group(group, SigInfo::kernel(signal));
        Err(Errno::ERESTARTSYS)
    }

    pub(crate) fn sys_read(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        self.read_to(&file, a[1], a[2], None)
    }

    pub(crate) fn sys_write(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        self.write_from(&file, a[1], a[2], None)
    }

    pub(crate) fn sys_pread(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let at = offset(a[3], a[2])?;
        self.read_to(&file, a[1], a[2], Some(at))
    }

    pub(crate) fn sys_pwrite(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let at = offset(a[3], a[2])?;
        self.write_from(&file, a[1], a[2], Some(at))
    }

    /// The pieces of an `iovec` list: (address, length).
    pub(super) fn pieces(&self, list: u64, count: u64) -> Result<Vec<(u64, u64)>> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let mut pieces = Vec::new();
        let mut total: u64 = 0;
        for index in 0..count {
            let at = list.checked_add(16 * index).ok_or(Errno::EFAULT)?;
            let [base, len] = self.read_words(at)?;
            total = total
                .checked_add(len)
                .filter(|&sum| sum <= i64::MAX as u64)
                .ok_or(Errno::EINVAL)?;
            try_push(&mut pieces, (base, len)).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(pieces)
    }

    fn vectored(
        &self,
        a: [u64; 6],
        at: Option<u64>,
        one: impl Fn(&Self, &OpenFile, u64, u64, Option<u64>) -> Result<u64>,
    ) -> Result<u64> {
        let file = self.file(a[0])?;
        let pieces = self.pieces(a[1], a[2])?;
        let mut done = 0;
        for (base, len) in pieces {
            if len == 0 {
                continue;
            }
            match one(self, &file, base, len, at.map(|at| at + done)) {
                Ok(count) => {
                    done += count;
                    if count < len {
                        break;
                    }
                }
                Err(_) if done != 0 => break,
                Err(error) => return Err(error),
            }
            // What has to be waited for is not asked twice.
            if file.waiters().is_some() && file.poll().is_empty() {
                break;
            }
        }
        Ok(done)
    }

    pub(crate) fn sys_readv(&mut self, a: [u64; 6]) -> Result<u64> {
        self.vectored(a, None, Self::read_to)
    }
    pub(crate) fn sys_preadv(&mut self, a: [u64; 6]) -> Result<u64> {
        self.vectored(a, Some(offset(a[3], 0)?), Self::read_to)
    }
    pub(crate) fn sys_pwritev(&mut self, a: [u64; 6]) -> Result<u64> {
        self.vectored(a, Some(offset(a[3], 0)?), Self::write_from)
    }

    /// Small pieces are gathered first, so that what is written together arrives together.
    pub(crate) fn sys_writev(&mut self, a: [u64; 6]) -> Result<u64> {
        let pieces = self.pieces(a[1], a[2])?;
        let total: u64 = pieces.iter().map(|piece| piece.1).sum();
        if total > CHUNK as u64 {
            return self.vectored(a, None, Self::write_from);
        }
        let file = self.file(a[0])?;
        let mut bytes = try_vec(0u8, total as usize).map_err(|_| Errno::ENOMEM)?;
        let mut at = 0;
        for (base, len) in pieces {
            let part = bytes.get_mut(at..at + len as usize).ok_or(Errno::EFAULT)?;
            let range = crate::user::user_range::<M>(&self.space, base, len)?;
            if let Err(error) = self.space.copy_in(range, part) {
                // As in `write_from`.
                at += error.done;
                if at == 0 || file.waiters().is_some() {
                    return Err(crate::user::fault_error(error.error));
                }
                break;
            }
            at += len as usize;
        }
        self.write_all(&file, bytes.get(..at).unwrap_or_default())
    }

    /// Writes bytes of the kernel's, with everything that writing means.
    fn write_all(&self, file: &OpenFile, bytes: &[u8]) -> Result<u64> {
        let mut done = 0;
        while done < bytes.len() {
            match self.write_some(file, bytes.get(done..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => {
                    if error == Errno::EPIPE {
                        let info = SigInfo { code: SI_USER, ..SigInfo::kernel(Signal::PIPE) };
                        let _ = self.kernel.send_to_thread(self.thread, info);
                    }
                    return if done == 0 { Err(error) } else { Ok(done as u64) };
                }
            }
        }
        if bytes.is_empty() {
            file.write(bytes)?;
        }
        Ok(done as u64)
    }

    pub(crate) fn sys_lseek(&mut self, a: [u64; 6]) -> Result<u64> {
        let whence = SeekFrom::from_linux(a[2] as u32)?;
        self.file(a[0])?.seek(whence, a[1] as i64)
    }

    pub(crate) fn sys_getdents64(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let len = (a[2] as u32 as usize).min(CHUNK);
        crate::user::user_range::<M>(&self.space, a[1], len as u64)?;
        let mut buffer = try_vec(0u8, len).map_err(|_| Errno::ENOMEM)?;
        let count = file.getdents64(&mut buffer)?;
        self.write_bytes(a[1], buffer.get(..count).unwrap_or_default())?;
        Ok(count as u64)
    }

    pub(crate) fn sys_sendfile(&mut self, a: [u64; 6]) -> Result<u64> {
        let [to, from, offset_at, len, ..] = a;
        self.transfer(from, offset_at, to, 0, len)
    }

    pub(crate) fn sys_copy_file_range(&mut self, a: [u64; 6]) -> Result<u64> {
        let [from, from_at, to, to_at, len, flags] = a;
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        self.transfer(from, from_at, to, to_at, len)
    }

    /// Copies from file to file; offsets are pointers, 0 for the files' own.
    fn transfer(&self, from: u64, from_at: u64, to: u64, to_at: u64, len: u64) -> Result<u64> {
        let (source, sink) = (self.file(from)?, self.file(to)?);
        let position = |at: u64| -> Result<Option<u64>> {
            if at == 0 { Ok(None) } else { offset(self.read_u64(at)?, 0).map(Some) }
        };
        let (read_at, write_at) = (position(from_at)?, position(to_at)?);
        let len = len.min(MAX_RW);
        let mut buffer = try_vec(0u8, CHUNK.min(len as usize)).map_err(|_| Errno::ENOMEM)?;
        let mut done = 0;
        while done < len {
            let want = ((len - done) as usize).min(buffer.len());
            let part = buffer.get_mut(..want).unwrap_or_default();
            let count = match read_at {
                None => self.read_some(&source, part, None),
                Some(at) => source.pread(part, at + done),
            };
            let count = match count {
                Ok(0) => break,
                Ok(count) => count,
                Err(_) if done != 0 => break,
                Err(error) => return Err(error),
            };
            let got = part.get(..count).unwrap_or_default();
            let written = match write_at {
                None => self.write_all(&sink, got),
                Some(at) => sink.pwrite(got, at + done).map(|count| count as u64),
            };
            match written {
                Ok(count) => done += count,
                Err(_) if done != 0 => break,
                Err(error) => return Err(error),
            }
            if source.waiters().is_some() {
                break;
            }
        }
        for (at, start) in [(from_at, read_at), (to_at, write_at)] {
            if let Some(start) = start {
                self.write_u64(at, start + done)?;
            }
        }
        Ok(done)
    }
}

/// A position that a program names, such that `len` bytes from there have positions too.
fn offset(word: u64, len: u64) -> Result<u64> {
    let at = u64::try_from(word as i64).map_err(|_| Errno::EINVAL)?;
    at.checked_add(len.min(MAX_RW)).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EINVAL)?;
    Ok(at)
}
