//! `open`, and the open files that have no name.

use alloc::sync::Arc;

use crate::CustomFile;
use crate::content::Content;
use crate::device::Device;
use crate::event::EventCounter;
use crate::file::{Handle, OpenFile};
use crate::generated::Generated;
use crate::inode::Body;
use crate::names::New;
use crate::pipe::{End, Pipe};
use crate::walk::{Last, walk};
use crate::{Caller, Errno, FileType, Inode, Lock, OpenFlags, Result, Vfs, Viewpoint, fallible};

impl Vfs {
    /// `open`. `mode` is used when a file is made.
    ///
    /// Left to the kernel: making a terminal the controlling one
    /// ([`OpenFile::terminal`], unless `NOCTTY`), waiting for the other end of a named pipe
    /// ([`OpenFile::is_opening`]).
    pub fn open(
        &self,
        view: &Viewpoint,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Arc<OpenFile>> {
        let flags = checked(flags)?;
        let create = flags.contains(OpenFlags::CREAT);
        let exclusive = create && flags.contains(OpenFlags::EXCL);
        let keep = exclusive || flags.contains(OpenFlags::NOFOLLOW);
        let last = match (create, keep) {
            (true, _) => Last::Create { follow: !keep },
            (false, true) => Last::Keep,
            (false, false) => Last::Follow,
        };
        let walked = walk(view, path, last)?;
        if flags.contains(OpenFlags::TMPFILE) {
            let directory = walked.node.ok_or(Errno::ENOENT)?;
            return self.open_unnamed(view, &directory, flags, mode);
        }
        let node = match walked.node {
            Some(_) if exclusive => return Err(Errno::EEXIST),
            Some(ref node) => node.clone(),
            None if !create => return Err(Errno::ENOENT),
            None => {
                let new = New::Regular(&[]);
                let made = self.make_entry(view, &walked.parent, walked.name(), mode & 0o7777, new);
                match made {
                    // A file that was just made may be used whatever its mode.
                    Ok(node) => {
                        let opened = self.open_checked(&node, flags);
                        return opened.inspect_err(|_| {
                            self.unmake(&walked.parent, walked.name(), &node);
                        });
                    }
                    Err(Errno::EEXIST) if !exclusive => walked.parent.lookup(walked.name())?,
                    Err(error) => return Err(error),
                }
            }
        };
        if create && node.is_directory() {
            return Err(Errno::EISDIR);
        }
        self.open_node(&node, flags, view.caller)
    }

    /// Opens a file that was found already (`execve`, `/proc/PID/fd`).
    pub fn open_node(
        &self,
        node: &Arc<Inode>,
        flags: OpenFlags,
        caller: Caller,
    ) -> Result<Arc<OpenFile>> {
        let flags = checked(flags)?;
        if flags.contains(OpenFlags::DIRECTORY) && !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if flags.contains(OpenFlags::PATH) {
            return self.new_file(node, flags, Handle::Path);
        }
        let truncates = flags.contains(OpenFlags::TRUNC);
        match node.kind() {
            FileType::Symlink => return Err(Errno::ELOOP),
            FileType::Directory if flags.writable() || truncates => return Err(Errno::EISDIR),
            FileType::Socket => return Err(Errno::ENXIO),
            _ => {}
        }
        let wanted = if flags.readable() { 4 } else { 0 };
        let wanted = wanted | if flags.writable() || truncates { 2 } else { 0 };
        node.permits(caller, wanted)?;
        if flags.writable() || truncates {
            node.may_change()?;
        }
        if let (true, Body::Regular(content)) = (truncates, &node.body) {
            // The file first, so that a failure leaves the content alone.
            let file = self.open_checked(node, flags)?;
            {
                let mut content = content.lock();
                node.may_resize(content.size(), 0)?;
                content.truncate(0)?;
            }
            node.forget_pages(0, u64::MAX, true);
            node.touch_modified();
            return Ok(file);
        }
        self.open_checked(node, flags)
    }

    /// Opens without asking for rights.
    fn open_checked(&self, node: &Arc<Inode>, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        let handle = match &node.body {
            Body::Regular(_) => Handle::Regular,
            Body::Directory(_) | Body::Generated(Generated::Directory(_)) => Handle::Directory,
            Body::Generated(Generated::Text(_)) => Handle::Text(Lock::new(None)),
            Body::Generated(Generated::Link(_)) | Body::Symlink(_) => return Err(Errno::ELOOP),
            Body::Custom(file) if file.reopens() => Handle::Custom(file.clone()),
            Body::Socket | Body::Anonymous(_) | Body::Custom(_) => return Err(Errno::ENXIO),
            Body::Device { block: true, .. } => return Err(Errno::ENXIO),
            Body::Device { number, .. } => match Device::of(*number)? {
                Device::Memory(memory) => Handle::Memory(memory),
                Device::Console => Handle::Terminal(self.host().console().ok_or(Errno::EIO)?),
                Device::OwnTerminal => {
                    Handle::Terminal(self.host().controlling_terminal().ok_or(Errno::ENXIO)?)
                }
            },
            Body::Pipe(pipe) => {
                let end = pipe_end(flags);
                let nobody = end == End::Write && !pipe.has_readers();
                if nobody && flags.contains(OpenFlags::NONBLOCK) {
                    return Err(Errno::ENXIO);
                }
                Handle::Pipe(pipe.open(end))
            }
        };
        self.new_file(node, flags, handle)
    }

    /// `O_TMPFILE`: a file without a name that `link` may give one.
    fn open_unnamed(
        &self,
        view: &Viewpoint,
        directory: &Arc<Inode>,
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Arc<OpenFile>> {
        if !directory.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        directory.permits(view.caller, 3)?;
        if !matches!(directory.body, Body::Directory(_)) {
            return Err(Errno::EOPNOTSUPP);
        }
        let node = self.new_node(view, directory, mode & 0o7777, New::Regular(&[]))?;
        node.attributes.lock().linkable = !flags.contains(OpenFlags::EXCL);
        self.new_file(&node, flags, Handle::Regular)
    }

    /// `pipe2`: the reading and the writing end. Of the flags `NONBLOCK` counts here.
    pub fn pipe(&self, flags: OpenFlags) -> Result<(Arc<OpenFile>, Arc<OpenFile>)> {
        let pipe = fallible::try_arc(Pipe::new(self.host().clone()))?;
        let node = self.nameless(Body::Pipe(pipe.clone()))?;
        let flags = flags & OpenFlags::NONBLOCK;
        let reader = self.new_file(&node, flags, Handle::Pipe(pipe.open(End::Read)))?;
        let flags = flags | OpenFlags::WRONLY;
        let writer = self.new_file(&node, flags, Handle::Pipe(pipe.open(End::Write)))?;
        Ok((reader, writer))
    }

    /// `eventfd2`. Of the flags `NONBLOCK` counts here.
    pub fn eventfd(
        &self,
        initial: u64,
        semaphore: bool,
        flags: OpenFlags,
    ) -> Result<Arc<OpenFile>> {
        let event = EventCounter::new(self.host().clone(), initial, semaphore);
        let event = fallible::try_arc(event)?;
        let node = self.nameless(Body::Anonymous("anon_inode:[eventfd]"))?;
        let flags = (flags & OpenFlags::NONBLOCK) | OpenFlags::RDWR;
        self.new_file(&node, flags, Handle::Event(event))
    }

    /// `memfd_create`: an empty regular file without a name.
    pub fn memory_file(&self, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        let content = Content::new(self.memory.clone(), &[]);
        let body = Body::Regular(Lock::new(content));
        let node = Inode::new(&self.memory, body, 0o777, (0, 0))?;
        self.new_file(&node, flags | OpenFlags::RDWR, Handle::Regular)
    }

    /// An open file with the kernel's own behaviour. The access mode is in `flags`.
    pub fn custom(&self, file: Arc<dyn CustomFile>, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        let node = self.nameless(Body::Custom(file.clone()))?;
        self.new_file(&node, flags, Handle::Custom(file))
    }

    fn nameless(&self, body: Body) -> Result<Arc<Inode>> {
        let node = Inode::new(&self.anonymous, body, 0o600, (0, 0))?;
        node.attributes.lock().nlink = 1;
        Ok(node)
    }

    fn new_file(
        &self,
        node: &Arc<Inode>,
        flags: OpenFlags,
        handle: Handle,
    ) -> Result<Arc<OpenFile>> {
        fallible::try_arc(OpenFile::new(node.clone(), flags, handle))
    }
}

/// Which end of a pipe an access mode opens.
fn pipe_end(flags: OpenFlags) -> End {
    match (flags.readable(), flags.writable()) {
        (true, true) => End::Both,
        (false, true) => End::Write,
        _ => End::Read,
    }
}

/// Flags that make sense together.
fn checked(flags: OpenFlags) -> Result<OpenFlags> {
    if flags.contains(OpenFlags::PATH) {
        return Ok(flags
            & (OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::CLOEXEC));
    }
    let directory = flags.contains(OpenFlags::DIRECTORY);
    let unnamed = flags.contains(OpenFlags::TMPFILE);
    if unnamed && !(directory && flags.writable()) {
        return Err(Errno::EINVAL);
    }
    if directory && flags.contains(OpenFlags::CREAT) {
        return Err(Errno::EINVAL);
    }
    Ok(flags)
}
