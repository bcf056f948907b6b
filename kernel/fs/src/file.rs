//! Open files: what `dup` and `fork` share.
//!
//! An [`OpenFile`] is a file with an access mode, status flags, an offset and a handle for what it
//! takes to use this kind of file. Dropping the last reference closes it.
//!
//! Locks: the offset's lock is held over a read or a write of a regular file (so that sharers do
//! not read the same bytes), never while a source or a host is called.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::content::{Content, PAGE};
use crate::device::Memory;
use crate::event::EventCounter;
use crate::generated::Generated;
use crate::inode::Body;
use crate::pipe::PipeEnd;
use crate::tty::Terminal;
use crate::{
    CustomFile, Errno, Inode, IoctlMemory, Lock, OpenFlags, Ready, Result, SeekFrom, Stat, Waiters,
};

/// What it takes to use an open file of some kind.
pub(crate) enum Handle {
    Regular,
    Directory,
    /// The text as it was generated when reading began.
    Text(Lock<Option<Vec<u8>>>),
    Memory(Memory),
    Pipe(PipeEnd),
    Event(Arc<EventCounter>),
    Terminal(Arc<Terminal>),
    Custom(Arc<dyn CustomFile>),
    /// `O_PATH`: not open.
    Path,
}

/// An open file description: what `dup` and `fork` share.
pub struct OpenFile {
    node: Arc<Inode>,
    flags: AtomicU32,
    pub(crate) offset: Lock<u64>,
    pub(crate) handle: Handle,
}

/// `FIONREAD`: how many bytes can be read at once.
const FIONREAD: u32 = 0x541b;
/// `FIONBIO`: sets or clears `O_NONBLOCK`.
const FIONBIO: u32 = 0x5421;

impl OpenFile {
    pub(crate) fn new(node: Arc<Inode>, flags: OpenFlags, handle: Handle) -> Self {
        // What only mattered for opening is not shown by F_GETFL.
        let once = OpenFlags::CREAT
            | OpenFlags::EXCL
            | OpenFlags::NOCTTY
            | OpenFlags::TRUNC
            | OpenFlags::CLOEXEC;
        let flags = AtomicU32::new((flags - once).bits());
        Self { node, flags, offset: Lock::new(0), handle }
    }

    /// Reads at the offset and advances it. 0 is the end.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`]: it would have to wait (see [`Waiters`]).
    pub fn read(&self, into: &mut [u8]) -> Result<usize> {
        self.check_readable()?;
        match &self.handle {
            Handle::Regular => {
                let Body::Regular(content) = &self.node.body else { return Err(Errno::EIO) };
                let mut offset = self.offset.lock();
                let read = content.lock().read(*offset, into);
                *offset += read as u64;
                self.note_read();
                Ok(read)
            }
            Handle::Text(text) => self.read_text(text, into),
            Handle::Terminal(terminal) => {
                let nonblocking = self.flags().contains(OpenFlags::NONBLOCK);
                terminal.read_mode(into, false, nonblocking)
            }
            Handle::Memory(memory) => memory.read(&self.node.volume.host, into),
            Handle::Pipe(end) => end.read(into),
            Handle::Event(event) => event.read(into),
            Handle::Custom(file) => file.read(into),
            Handle::Directory => Err(Errno::EISDIR),
            Handle::Path => Err(Errno::EBADF),
        }
    }

    /// How long a read that was refused with [`Errno::EAGAIN`] waits at most for something new, in
    /// milliseconds, before [`read_expired`](Self::read_expired) is called (a terminal's VTIME).
    /// `None`: for ever.
    pub fn read_wait_limit_ms(&self) -> Option<u64> {
        self.terminal().and_then(|terminal| terminal.read_wait_limit_ms())
    }

    /// The wait is over: what is there now, be it nothing.
    pub fn read_expired(&self, into: &mut [u8]) -> Result<usize> {
        match &self.handle {
            Handle::Terminal(terminal) => terminal.read(into, true),
            _ => self.read(into),
        }
    }

    /// Writes at the offset (or the end, with `O_APPEND`) and advances it.
    ///
    /// # Errors
    /// [`Errno::EPIPE`]: nobody reads any more; the kernel adds `SIGPIPE`.
    pub fn write(&self, bytes: &[u8]) -> Result<usize> {
        self.check_writable()?;
        match &self.handle {
            Handle::Regular => {
                let Body::Regular(content) = &self.node.body else { return Err(Errno::EIO) };
                let mut offset = self.offset.lock();
                let (at, written) = self.write_content(&mut content.lock(), *offset, bytes)?;
                *offset = at + written as u64;
                drop(offset);
                self.node.touch_modified();
                Ok(written)
            }
            Handle::Text(_) => {
                let at = *self.offset.lock();
                let written = self.store_text(at, bytes)?;
                *self.offset.lock() = at + written as u64;
                Ok(written)
            }
            Handle::Memory(memory) => memory.write(&self.node.volume.host, bytes),
            Handle::Pipe(end) => end.write(bytes),
            Handle::Event(event) => event.write(bytes),
            Handle::Terminal(terminal) => terminal.write(bytes),
            Handle::Custom(file) => file.write(bytes),
            Handle::Directory => Err(Errno::EISDIR),
            Handle::Path => Err(Errno::EBADF),
        }
    }

    /// Reads at `offset`.
    pub fn pread(&self, into: &mut [u8], offset: u64) -> Result<usize> {
        if offset > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        match &self.handle {
            Handle::Path => Err(Errno::EBADF),
            Handle::Memory(_) => self.read(into),
            Handle::Regular => {
                self.check_readable()?;
                let read = self.node.read_at(offset, into)?;
                self.note_read();
                Ok(read)
            }
            Handle::Text(text) => {
                self.check_readable()?;
                if let Some(read) = self.node.read_window(offset, into) {
                    return read;
                }
                if offset == 0 || text.lock().is_none() {
                    let fresh = self.node.generate()?;
                    *text.lock() = Some(fresh);
                }
                Ok(copy_from(text.lock().as_deref().unwrap_or_default(), offset, into))
            }
            Handle::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::ESPIPE),
        }
    }

    /// Writes at `offset` (Linux: at the end all the same, with `O_APPEND`).
    pub fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        if offset > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        match (&self.handle, &self.node.body) {
            (Handle::Path, _) => Err(Errno::EBADF),
            (Handle::Memory(_), _) => self.write(bytes),
            (Handle::Regular, Body::Regular(content)) => {
                self.check_writable()?;
                let (_, written) = self.write_content(&mut content.lock(), offset, bytes)?;
                self.node.touch_modified();
                Ok(written)
            }
            (Handle::Text(_), _) => {
                self.check_writable()?;
                self.store_text(offset, bytes)
            }
            (Handle::Directory, _) => Err(Errno::EBADF),
            _ => Err(Errno::ESPIPE),
        }
    }

    /// (where the write went, how much).
    fn write_content(
        &self,
        content: &mut Content,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(u64, usize)> {
        let append = self.flags().contains(OpenFlags::APPEND);
        let at = if append { content.size() } else { offset };
        if !bytes.is_empty() {
            self.node.may_write(at.saturating_add(bytes.len() as u64), content.size())?;
        }
        Ok((at, content.write(at, bytes)?))
    }

    /// Text is generated anew when it is read from its beginning, and stays as it is until then.
    fn read_text(&self, text: &Lock<Option<Vec<u8>>>, into: &mut [u8]) -> Result<usize> {
        let at = *self.offset.lock();
        if let Some(read) = self.node.read_window(at, into) {
            let read = read?;
            *self.offset.lock() = at + read as u64;
            return Ok(read);
        }
        if at == 0 || text.lock().is_none() {
            let fresh = self.node.generate()?;
            *text.lock() = Some(fresh);
        }
        let read = copy_from(text.lock().as_deref().unwrap_or_default(), at, into);
        *self.offset.lock() = at + read as u64;
        Ok(read)
    }

    fn store_text(&self, offset: u64, bytes: &[u8]) -> Result<usize> {
        match &self.node.body {
            Body::Generated(Generated::Text(source)) => source.store(offset, bytes),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Moves the offset and returns it.
    pub fn seek(&self, from: SeekFrom, by: i64) -> Result<u64> {
        let regular = match (&self.handle, &self.node.body) {
            (Handle::Path, _) => return Err(Errno::EBADF),
            (Handle::Memory(_), _) => return Ok(0),
            (Handle::Regular, Body::Regular(content)) => Some(content),
            (Handle::Directory | Handle::Text(_), _) => None,
            _ => return Err(Errno::ESPIPE),
        };
        let mut offset = self.offset.lock();
        let data_from = u64::try_from(by).map_err(|_| Errno::ENXIO);
        let base = match (from, regular) {
            (SeekFrom::Set, _) => 0,
            (SeekFrom::Current, _) => *offset,
            (SeekFrom::End, Some(content)) => content.lock().size(),
            (SeekFrom::Data | SeekFrom::Hole, Some(content)) => {
                let found = content.lock().seek_data(data_from?, from == SeekFrom::Hole);
                *offset = found.ok_or(Errno::ENXIO)?;
                return Ok(*offset);
            }
            (_, None) => return Err(Errno::EINVAL),
        };
        let target = base.checked_add_signed(by).filter(|&target| target <= i64::MAX as u64);
        *offset = target.ok_or(Errno::EINVAL)?;
        Ok(*offset)
    }

    /// Sets the length (`ftruncate`).
    pub fn truncate(&self, len: u64) -> Result<()> {
        if matches!(self.handle, Handle::Path) {
            return Err(Errno::EBADF);
        }
        let (Handle::Regular, Body::Regular(content), true) =
            (&self.handle, &self.node.body, self.flags().writable())
        else {
            return Err(Errno::EINVAL);
        };
        {
            let mut content = content.lock();
            self.node.may_resize(content.size(), len)?;
            content.truncate(len)?;
        }
        self.node.forget_pages(len.div_ceil(PAGE), u64::MAX, true);
        self.node.touch_modified();
        Ok(())
    }

    /// `fallocate`: mode 0 (allocate), 1 (keep the size), 3 (punch a hole), 0x10 and 0x11 (zero).
    pub fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        const KEEP_SIZE: u32 = 1;
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(Errno::EINVAL);
        }
        self.check_writable()?;
        let content = match (&self.handle, &self.node.body) {
            (Handle::Regular, Body::Regular(content)) => content,
            (Handle::Pipe(_), _) => return Err(Errno::ESPIPE),
            (Handle::Directory, _) => return Err(Errno::EISDIR),
            _ => return Err(Errno::ENODEV),
        };
        let mut content = content.lock();
        if mode & 0x12 != 0 {
            self.node.may_punch()?;
        }
        if mode & KEEP_SIZE == 0 {
            let size = content.size();
            self.node.may_resize(size, size.max(offset.saturating_add(len)))?;
        }
        match mode {
            0 | KEEP_SIZE => content.reserve(offset, len, mode == KEEP_SIZE)?,
            0b11 => content.punch(offset, len)?,
            0x10 | 0x11 => {
                content.punch(offset, len)?;
                content.reserve(offset, len, mode & KEEP_SIZE != 0)?;
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        drop(content);
        if mode & 0x12 != 0 {
            let end = offset.saturating_add(len);
            self.node.forget_pages(offset / PAGE, end.div_ceil(PAGE), false);
        }
        self.node.touch_modified();
        Ok(())
    }

    /// What it is ready for now.
    pub fn poll(&self) -> Ready {
        match &self.handle {
            Handle::Pipe(end) => end.poll(),
            Handle::Event(event) => event.poll(),
            Handle::Terminal(terminal) => terminal.poll(),
            Handle::Custom(file) => file.poll(),
            Handle::Path => Ready::NVAL,
            _ => Ready::READ | Ready::WRITE,
        }
    }

    /// Where to wait for that to change; `None`: it never does.
    pub fn waiters(&self) -> Option<&Waiters> {
        match &self.handle {
            Handle::Pipe(end) => Some(end.waiters()),
            Handle::Event(event) => Some(event.waiters()),
            Handle::Terminal(terminal) => Some(terminal.waiters()),
            Handle::Custom(file) => file.waiters(),
            _ => None,
        }
    }

    /// Was a named pipe opened whose other end has not come yet? A blocking `open` waits on
    /// [`waiters`](Self::waiters) while this is true. Never for a pipe without a name, opened again
    /// through `/proc/PID/fd`.
    pub fn is_opening(&self) -> bool {
        let named = self.node.volume.dev.minor != crate::vfs::NAMELESS;
        named && matches!(&self.handle, Handle::Pipe(end) if end.is_alone())
    }

    /// Device control. Knows `FIONREAD`, `FIONBIO` and the terminal's requests.
    pub fn ioctl(&self, request: u32, arg: u64, memory: &mut dyn IoctlMemory) -> Result<i64> {
        let there = match (&self.handle, request) {
            (Handle::Path, _) => return Err(Errno::EBADF),
            (_, FIONBIO) => {
                let mut on = [0; 4];
                memory.read(&mut on)?;
                let flags = self.flags();
                let on = on != [0; 4];
                self.set_flags(if on {
                    flags | OpenFlags::NONBLOCK
                } else {
                    flags - OpenFlags::NONBLOCK
                });
                return Ok(0);
            }
            (Handle::Terminal(terminal), _) => return terminal.ioctl(request, arg, memory),
            (Handle::Custom(file), _) => return file.ioctl(request, arg, memory),
            (Handle::Pipe(end), FIONREAD) => end.len() as u64,
            (Handle::Regular, FIONREAD) => self.node.size().saturating_sub(*self.offset.lock()),
            _ => return Err(Errno::ENOTTY),
        };
        let there = i32::try_from(there).unwrap_or(i32::MAX);
        memory.write(&there.to_le_bytes())?;
        Ok(0)
    }

    /// The access mode and the flags that `fcntl(F_GETFL)` shows.
    pub fn flags(&self) -> OpenFlags {
        OpenFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// `fcntl(F_SETFL)`: takes over the bits that may change.
    pub fn set_flags(&self, flags: OpenFlags) {
        let changed = (self.flags() - OpenFlags::SETTABLE) | (flags & OpenFlags::SETTABLE);
        self.flags.store(changed.bits(), Ordering::Relaxed);
    }

    /// The file itself.
    pub fn node(&self) -> &Arc<Inode> {
        &self.node
    }

    /// `fstat`.
    pub fn stat(&self) -> Stat {
        self.node.stat()
    }

    /// The terminal, if it is one.
    pub fn terminal(&self) -> Option<&Arc<Terminal>> {
        if let Handle::Terminal(terminal) = &self.handle { Some(terminal) } else { None }
    }

    /// The kernel's own file, if it is one.
    pub fn custom(&self) -> Option<&Arc<dyn CustomFile>> {
        if let Handle::Custom(file) = &self.handle { Some(file) } else { None }
    }

    /// The bytes that a pipe can hold (`F_GETPIPE_SZ`), if it is one.
    pub fn pipe_capacity(&self) -> Option<usize> {
        matches!(self.handle, Handle::Pipe(_)).then_some(crate::pipe::PIPE_CAPACITY)
    }

    /// Bytes that wait in a pipe, if it is one.
    pub fn pipe_len(&self) -> Option<usize> {
        if let Handle::Pipe(end) = &self.handle { Some(end.len()) } else { None }
    }

    /// What may be mapped privately: a readable regular file ([`Inode::read_page`]).
    ///
    /// # Errors
    /// [`Errno::EACCES`] if not open for reading, [`Errno::ENODEV`] if not a regular file.
    pub fn mappable(&self) -> Result<Arc<Inode>> {
        match self.handle {
            Handle::Path => Err(Errno::EBADF),
            _ if !self.flags().readable() => Err(Errno::EACCES),
            Handle::Regular => Ok(self.node.clone()),
            _ => Err(Errno::ENODEV),
        }
    }

    /// Is it `/dev/zero`, a private mapping of which is anonymous memory?
    pub fn is_zero_device(&self) -> bool {
        matches!(self.handle, Handle::Memory(Memory::Zero))
    }

    /// Its name as `/proc/PID/fd` shows it: a path below `root`, or such as `pipe:[7]`.
    pub fn describe(&self, root: &Arc<Inode>) -> Result<Vec<u8>> {
        use core::fmt::Write;
        let mut text = crate::TextBuffer::default();
        let written = match &self.node.body {
            Body::Anonymous(name) => text.write_str(name),
            Body::Custom(file) => text.write_str(file.name()),
            body => match (crate::vfs::path_of(root, &self.node), body) {
                (Ok(path), _) => return Ok(path),
                (_, Body::Pipe(_)) => write!(text, "pipe:[{}]", self.node.ino()),
                (Err(Errno::ENOENT), _) => text.write_str("/ (deleted)"),
                (Err(error), _) => return Err(error),
            },
        };
        written.map_err(|_| Errno::ENOMEM)?;
        text.finish()
    }

    pub(crate) fn check_readable(&self) -> Result<()> {
        if self.flags().readable() { Ok(()) } else { Err(Errno::EBADF) }
    }

    fn check_writable(&self) -> Result<()> {
        if self.flags().writable() { Ok(()) } else { Err(Errno::EBADF) }
    }

    pub(crate) fn note_read(&self) {
        if !self.flags().contains(OpenFlags::NOATIME) {
            self.node.touch_accessed();
        }
    }
}

/// Copies from `text` at `offset`.
fn copy_from(text: &[u8], offset: u64, into: &mut [u8]) -> usize {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let len = into.len().min(text.len() - start);
    into[..len].copy_from_slice(&text[start..start + len]);
    len
}

impl core::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "OpenFile({:?}, {:?})", self.node, self.flags())
    }
}
