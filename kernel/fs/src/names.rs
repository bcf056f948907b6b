//! Making and removing names.
//!
//! Every change of names is made under the tree's lock (`Vfs::names`): first look, then prepare
//! what may fail, then commit with steps that cannot. Walks happen before the lock is taken, since
//! they may ask generated directories; what they found is looked at again under the lock.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::content::Content;
use crate::directory::Directory;
use crate::inode::{Attributes, Body, Parent};
use crate::pipe::Pipe;
use crate::volume::ENTRY_COST;
use crate::walk::{Component, Last, PATH_MAX, Walked, walk};
use crate::{Caller, DeviceNumber, Errno, FileType, Inode, Lock, Result, Vfs, Viewpoint, fallible};

/// The most names that a file may have.
const MAX_LINKS: u32 = 65_000;

/// What is to be made.
pub(crate) enum New<'a> {
    Directory,
    Regular(&'static [u8]),
    Symlink(&'a [u8]),
    Node(FileType, DeviceNumber),
}

/// An entry that is paid for and has room in its directory: what `commit` needs.
struct Prepared {
    name: Vec<u8>,
}

impl Vfs {
    /// `mkdir`.
    pub fn mkdir(&self, view: &Viewpoint, path: &[u8], mode: u32) -> Result<()> {
        self.make(view, path, mode & 0o1777, New::Directory).map(drop)
    }

    /// `mknod`; the type is in `mode`.
    pub fn mknod(
        &self,
        view: &Viewpoint,
        path: &[u8],
        mode: u32,
        device: DeviceNumber,
    ) -> Result<()> {
        let new = match FileType::from_mode(mode)? {
            FileType::Regular => New::Regular(&[]),
            FileType::Directory => return Err(Errno::EPERM),
            FileType::Symlink => return Err(Errno::EINVAL),
            kind => New::Node(kind, device),
        };
        let is_device = matches!(new, New::Node(FileType::CharDevice | FileType::BlockDevice, _));
        if is_device && view.caller.uid != 0 {
            return Err(Errno::EPERM);
        }
        self.make(view, path, mode & 0o7777, new).map(drop)
    }

    /// `symlink`.
    pub fn symlink(&self, view: &Viewpoint, target: &[u8], path: &[u8]) -> Result<()> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        self.make(view, path, 0o777, New::Symlink(target)).map(drop)
    }

    /// Makes a file at `path`, where none may be.
    pub(crate) fn make(
        &self,
        view: &Viewpoint,
        path: &[u8],
        mode: u32,
        new: New,
    ) -> Result<Arc<Inode>> {
        let walked = walk(view, path, Last::Entry)?;
        if walked.node.is_some() {
            return Err(Errno::EEXIST);
        }
        if walked.slash && !matches!(new, New::Directory) {
            return Err(Errno::ENOENT);
        }
        self.make_entry(view, &walked.parent, walked.name(), mode, new)
    }

    /// Makes a file called `name` in `parent`.
    pub(crate) fn make_entry(
        &self,
        view: &Viewpoint,
        parent: &Arc<Inode>,
        name: &[u8],
        mode: u32,
        new: New,
    ) -> Result<Arc<Inode>> {
        // Generated directories know no names but their own: what they do not find is not there.
        let Body::Directory(entries) = &parent.body else { return Err(Errno::ENOENT) };
        let _names = self.names.lock();
        if entries.lock().get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        may_add(parent, view.caller)?;
        let node = self.new_node(view, parent, mode, new)?;
        let prepared = prepare_entry(parent, name)?;
        commit_entry(parent, prepared, &node);
        Ok(node)
    }

    /// Takes back what [`make_entry`](Self::make_entry) did, as far as it still stands.
    pub(crate) fn unmake(&self, parent: &Arc<Inode>, name: &[u8], node: &Arc<Inode>) {
        let Body::Directory(entries) = &parent.body else { return };
        let _names = self.names.lock();
        let stands = entries.lock().get(name).is_some_and(|found| Arc::ptr_eq(found, node));
        if stands {
            remove_entry(parent, name);
            drop_link(node);
        }
    }

    /// An inode that is to be entered in `parent`.
    pub(crate) fn new_node(
        &self,
        view: &Viewpoint,
        parent: &Arc<Inode>,
        mode: u32,
        new: New,
    ) -> Result<Arc<Inode>> {
        let Attributes { permissions, gid, .. } = *parent.attributes.lock();
        let inherits = permissions & 0o2000 != 0;
        let gid = if inherits { gid } else { view.caller.gid };
        let is_link = matches!(new, New::Symlink(_));
        let mut mode = if is_link { 0o777 } else { mode & !view.umask };
        let body = match new {
            New::Directory => {
                mode |= if inherits { 0o2000 } else { 0 };
                Body::Directory(Lock::new(Directory::new()))
            }
            New::Regular(base) => Body::Regular(Lock::new(Content::new(self.memory.clone(), base))),
            New::Symlink(target) => Body::Symlink(fallible::try_bytes(target)?),
            New::Node(FileType::Fifo, _) => {
                Body::Pipe(fallible::try_arc(Pipe::new(self.memory.host.clone()))?)
            }
            New::Node(FileType::Socket, _) => Body::Socket,
            New::Node(kind, number) => {
                Body::Device { block: kind == FileType::BlockDevice, number }
            }
        };
        Inode::new(&self.memory, body, mode, (view.caller.uid, gid))
    }

    /// `link`: a further name for `node`.
    pub fn link(&self, node: &Arc<Inode>, view: &Viewpoint, path: &[u8]) -> Result<()> {
        let walked = walk(view, path, Last::Entry)?;
        if walked.node.is_some() {
            return Err(Errno::EEXIST);
        }
        if walked.slash {
            return Err(Errno::ENOENT);
        }
        let Body::Directory(entries) = &walked.parent.body else { return Err(Errno::ENOENT) };
        if !Arc::ptr_eq(&node.volume, &walked.parent.volume) {
            return Err(Errno::EXDEV);
        }
        let _names = self.names.lock();
        if entries.lock().get(walked.name()).is_some() {
            return Err(Errno::EEXIST);
        }
        may_add(&walked.parent, view.caller)?;
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        let Attributes { nlink, linkable, .. } = *node.attributes.lock();
        if nlink == 0 && !linkable {
            return Err(Errno::ENOENT);
        }
        if nlink >= MAX_LINKS {
            return Err(Errno::EMLINK);
        }
        let prepared = prepare_entry(&walked.parent, walked.name())?;
        node.touch_changed();
        commit_entry(&walked.parent, prepared, node);
        Ok(())
    }

    /// `unlink`.
    pub fn unlink(&self, view: &Viewpoint, path: &[u8]) -> Result<()> {
        let walked = walk(view, path, Last::Entry)?;
        if walked.component != Component::Name {
            return Err(Errno::EISDIR);
        }
        let found = walked.node.as_ref().ok_or(Errno::ENOENT)?;
        if walked.slash {
            return Err(if found.is_directory() { Errno::EISDIR } else { Errno::ENOTDIR });
        }
        // Dropped after the tree's lock: it may be the last of the file.
        let _gone;
        let _names = self.names.lock();
        let node = still_there(&walked)?;
        may_delete(&walked.parent, &node, view.caller)?;
        if node.is_directory() {
            return Err(Errno::EISDIR);
        }
        _gone = remove_entry(&walked.parent, walked.name());
        drop_link(&node);
        Ok(())
    }

    /// `rmdir`.
    pub fn rmdir(&self, view: &Viewpoint, path: &[u8]) -> Result<()> {
        let walked = walk(view, path, Last::Entry)?;
        match walked.component {
            Component::Name => {}
            Component::Dot => return Err(Errno::EINVAL),
            Component::DotDot => return Err(Errno::ENOTEMPTY),
            Component::Root => return Err(Errno::EBUSY),
        }
        let _gone;
        let _names = self.names.lock();
        let node = still_there(&walked)?;
        may_delete(&walked.parent, &node, view.caller)?;
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        must_be_removable_directory(&node)?;
        _gone = remove_entry(&walked.parent, walked.name());
        drop_directory(&walked.parent, &node);
        Ok(())
    }
}

/// What the walk found, looked up again under the tree's lock.
pub(crate) fn still_there(walked: &Walked) -> Result<Arc<Inode>> {
    match &walked.parent.body {
        Body::Directory(entries) => entries.lock().get(walked.name()).cloned().ok_or(Errno::ENOENT),
        _ => walked.node.clone().ok_or(Errno::ENOENT),
    }
}

/// May `caller` add a name to `parent`?
pub(crate) fn may_add(parent: &Arc<Inode>, caller: Caller) -> Result<()> {
    if parent.attributes.lock().nlink == 0 {
        return Err(Errno::ENOENT);
    }
    parent.permits(caller, 3)
}

/// May `caller` take the name of `node` out of `parent`?
pub(crate) fn may_delete(parent: &Arc<Inode>, node: &Arc<Inode>, caller: Caller) -> Result<()> {
    parent.permits(caller, 3)?;
    let directory = *parent.attributes.lock();
    let owner = node.attributes.lock().uid;
    let sticky = directory.permissions & 0o1000 != 0;
    if sticky && caller.uid != 0 && caller.uid != owner && caller.uid != directory.uid {
        return Err(Errno::EPERM);
    }
    // Generated directories do not let their entries be removed.
    if matches!(parent.body, Body::Directory(_)) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Empty, and nothing is mounted there?
pub(crate) fn must_be_removable_directory(node: &Arc<Inode>) -> Result<()> {
    match &node.body {
        Body::Directory(entries) if entries.lock().len() == 0 => Ok(()),
        Body::Directory(_) => Err(Errno::ENOTEMPTY),
        _ => Err(Errno::EBUSY),
    }
}

/// Pays for an entry and makes room for it.
fn prepare_entry(parent: &Arc<Inode>, name: &[u8]) -> Result<Prepared> {
    let Body::Directory(entries) = &parent.body else { return Err(Errno::ENOENT) };
    let name = fallible::try_bytes(name)?;
    entries.lock().reserve()?;
    parent.volume.charge(ENTRY_COST + name.len() as u64)?;
    Ok(Prepared { name })
}

/// Enters `node`: its link count, its way up, the directory's link count and times.
fn commit_entry(parent: &Arc<Inode>, prepared: Prepared, node: &Arc<Inode>) {
    let Body::Directory(entries) = &parent.body else { return };
    {
        let mut attributes = node.attributes.lock();
        attributes.nlink += 1;
        attributes.linkable = false;
    }
    *node.parent.lock() = Parent::Memory(Arc::downgrade(parent));
    if node.is_directory() {
        parent.attributes.lock().nlink += 1;
    }
    entries.lock().insert(prepared.name, node.clone());
    parent.touch_modified();
}

/// Takes an entry out and gives its charge back. Link counts are the caller's business.
pub(crate) fn remove_entry(parent: &Arc<Inode>, name: &[u8]) -> Option<Arc<Inode>> {
    let Body::Directory(entries) = &parent.body else { return None };
    let (name, node) = entries.lock().remove(name)?;
    parent.volume.release(ENTRY_COST + name.len() as u64);
    parent.touch_modified();
    Some(node)
}

/// A file lost a name.
pub(crate) fn drop_link(node: &Arc<Inode>) {
    let mut attributes = node.attributes.lock();
    attributes.nlink = attributes.nlink.saturating_sub(1);
    drop(attributes);
    node.touch_changed();
}

/// An empty directory lost its only name, which was in `parent`.
pub(crate) fn drop_directory(parent: &Arc<Inode>, node: &Arc<Inode>) {
    node.attributes.lock().nlink = 0;
    node.touch_changed();
    let mut above = parent.attributes.lock();
    above.nlink = above.nlink.saturating_sub(1);
}

/// Enters a generated directory, for good.
pub(crate) fn attach(parent: &Arc<Inode>, name: &[u8], node: &Arc<Inode>) -> Result<()> {
    let prepared = prepare_entry(parent, name)?;
    node.attributes.lock().nlink = 1;
    commit_entry(parent, prepared, node);
    Ok(())
}

/// Takes the last entry out, whatever it is: tearing down.
pub(crate) fn remove_last(parent: &Arc<Inode>) -> Option<Arc<Inode>> {
    let Body::Directory(entries) = &parent.body else { return None };
    let (name, node) = entries.lock().pop()?;
    parent.volume.release(ENTRY_COST + name.len() as u64);
    Some(node)
}

/// Adds a name for `node`, whose link counts do not change: the arriving half of a rename.
/// Prepared by [`prepare_move`].
pub(crate) fn enter_moved(parent: &Arc<Inode>, name: Vec<u8>, node: Arc<Inode>) {
    let Body::Directory(entries) = &parent.body else { return };
    *node.parent.lock() = Parent::Memory(Arc::downgrade(parent));
    entries.lock().insert(name, node);
    parent.touch_modified();
}

/// Everything that may fail about a name that arrives in `parent`: the name, room and the charge.
pub(crate) fn prepare_move(parent: &Arc<Inode>, name: &[u8]) -> Result<Vec<u8>> {
    prepare_entry(parent, name).map(|prepared| prepared.name)
}
