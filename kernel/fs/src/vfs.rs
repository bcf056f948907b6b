//! The tree of names: what it is made of, and what is not about names.
//!
//! Lock order: `names`, then any one leaf lock (see `inode`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::content::PAGE;
use crate::directory::Directory;
use crate::inode::{Body, Inode, Parent};
use crate::names::New;
use crate::volume::Volume;
use crate::walk::{Last, walk};
use crate::{
    Caller, Errno, FileType, Found, Host, Lock, Result, StatFs, Time, Viewpoint, fallible,
};

/// What to do with a symbolic link in the last place of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Go where it leads.
    Yes,
    /// It is meant itself.
    No,
}

/// The minor device number of the volume of things without a name.
pub(crate) const NAMELESS: u32 = 3;

/// The whole tree.
pub struct Vfs {
    /// The in-memory file system.
    pub(crate) memory: Arc<Volume>,
    /// Generated files.
    generated: Arc<Volume>,
    /// Pipes and other things without a name.
    pub(crate) anonymous: Arc<Volume>,
    root: Arc<Inode>,
    /// Held while names change.
    pub(crate) names: Lock<()>,
}

impl Vfs {
    /// An empty tree whose files may have `limit` bytes in all: content, names, bookkeeping.
    pub fn new(host: Arc<dyn Host>, limit: u64) -> Result<Self> {
        let volume =
            |minor, magic, limit| fallible::try_arc(Volume::new(host.clone(), minor, magic, limit));
        let memory = volume(1, 0x0102_1994, limit)?;
        let body = Body::Directory(Lock::new(Directory::new()));
        let root = Inode::new(&memory, body, 0o755, (0, 0))?;
        root.attributes.lock().nlink = 2;
        let (generated, anonymous) =
            (volume(2, 0x9fa0, 0)?, volume(NAMELESS, 0x0904_1934, u64::MAX)?);
        Ok(Self { memory, generated, anonymous, root, names: Lock::new(()) })
    }

    /// `/`.
    pub fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// The view of the superuser from the root, for the kernel's own use.
    pub fn root_view(&self) -> Viewpoint<'_> {
        Viewpoint { root: &self.root, start: &self.root, caller: Caller::ROOT, umask: 0 }
    }

    /// What the kernel supplied.
    pub(crate) fn host(&self) -> &Arc<dyn Host> {
        &self.memory.host
    }

    /// Bytes of the limit that are taken.
    pub fn used_bytes(&self) -> u64 {
        self.memory.used()
    }

    /// The file that `path` names.
    ///
    /// An empty path is [`Errno::ENOENT`]; with `AT_EMPTY_PATH` it means the file of the
    /// descriptor, which the caller of this function has at hand.
    pub fn resolve(&self, view: &Viewpoint, path: &[u8], follow: Follow) -> Result<Arc<Inode>> {
        let last = if follow == Follow::Yes { Last::Follow } else { Last::Keep };
        walk(view, path, last)?.node.ok_or(Errno::ENOENT)
    }

    /// The text of a symbolic link; [`Errno::EINVAL`] if it is none.
    pub fn readlink(&self, node: &Arc<Inode>) -> Result<Vec<u8>> {
        node.link_text()
    }

    /// `truncate`.
    pub fn truncate(&self, node: &Arc<Inode>, len: u64, caller: Caller) -> Result<()> {
        match &node.body {
            Body::Regular(content) => {
                node.permits(caller, 2)?;
                node.may_change()?;
                {
                    let mut content = content.lock();
                    node.may_resize(content.size(), len)?;
                    content.truncate(len)?;
                }
                node.forget_pages(len.div_ceil(PAGE), u64::MAX, true);
                node.touch_modified();
                Ok(())
            }
            _ if node.is_directory() => Err(Errno::EISDIR),
            Body::Generated(_) => node.permits(caller, 2),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `access`: may `caller` do all of `wanted` (4 read, 2 write, 1 execute)?
    pub fn access(&self, node: &Arc<Inode>, wanted: u32, caller: Caller) -> Result<()> {
        if wanted & !7 != 0 {
            return Err(Errno::EINVAL);
        }
        node.permits(caller, wanted)
    }

    /// `chmod`.
    pub fn chmod(&self, node: &Arc<Inode>, mode: u32, caller: Caller) -> Result<()> {
        let mut mode = mode & 0o7777;
        if node.kind() == FileType::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        let changed = node.volume.host.now();
        let mut attributes = node.attributes.lock();
        if !is_owner(node, attributes.uid, caller) {
            return Err(Errno::EPERM);
        }
        let in_group = caller.gid == attributes.gid || caller.groups.contains(&attributes.gid);
        if caller.uid != 0 && !in_group {
            mode &= !0o2000;
        }
        attributes.permissions = mode;
        attributes.changed = changed;
        Ok(())
    }

    /// `chown`; `None` leaves it as it is.
    pub fn chown(
        &self,
        node: &Arc<Inode>,
        uid: Option<u32>,
        gid: Option<u32>,
        caller: Caller,
    ) -> Result<()> {
        let changed = node.volume.host.now();
        let regular = node.kind() == FileType::Regular;
        let mut attributes = node.attributes.lock();
        let mine = is_owner(node, attributes.uid, caller);
        let same_user = uid.is_none_or(|uid| uid == attributes.uid);
        let my_group = |gid| gid == caller.gid || caller.groups.contains(&gid);
        let group_allowed = gid.is_none_or(|gid| gid == attributes.gid || my_group(gid));
        let superuser = caller.uid == 0 && mine;
        if !superuser && !(same_user && group_allowed && (mine || gid.is_none())) {
            return Err(Errno::EPERM);
        }
        attributes.uid = uid.unwrap_or(attributes.uid);
        attributes.gid = gid.unwrap_or(attributes.gid);
        if regular {
            // Whoever gets the file must not get the power of its old owner.
            let group_executes = attributes.permissions & 0o010 != 0;
            attributes.permissions &= if group_executes { !0o6000 } else { !0o4000 };
        }
        attributes.changed = changed;
        Ok(())
    }

    /// `utimensat`; `None` leaves a time as it is. Setting both to the present time is allowed to
    /// whoever may write, anything else to the owner.
    pub fn set_times(
        &self,
        node: &Arc<Inode>,
        accessed: Option<Time>,
        modified: Option<Time>,
        to_now: bool,
        caller: Caller,
    ) -> Result<()> {
        let changed = node.volume.host.now();
        let may_write = node.permits(caller, 2);
        let mut attributes = node.attributes.lock();
        if !is_owner(node, attributes.uid, caller) {
            if !to_now {
                return Err(Errno::EPERM);
            }
            may_write?;
        }
        attributes.accessed = accessed.unwrap_or(attributes.accessed);
        attributes.modified = modified.unwrap_or(attributes.modified);
        attributes.changed = changed;
        Ok(())
    }

    /// `statfs`.
    pub fn statfs(&self, node: &Arc<Inode>) -> StatFs {
        node.volume.statfs()
    }

    /// The absolute path of `node` below `root` (`getcwd`, `/proc/PID/fd`).
    ///
    /// # Errors
    /// [`Errno::ENOENT`]: it has no name any more, or none below `root`.
    pub fn path_of(&self, root: &Arc<Inode>, node: &Arc<Inode>) -> Result<Vec<u8>> {
        path_of(root, node)
    }

    /// Puts a generated directory at `path` for good: `/proc`. The parent must be there, and
    /// nothing of that name but an empty directory.
    pub fn mount(&self, path: &[u8], content: Found) -> Result<()> {
        let view = self.root_view();
        match self.rmdir(&view, path) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        let node = Inode::generated(&self.generated, content, Parent::None)?;
        let walked = walk(&view, path, Last::Entry)?;
        let _names = self.names.lock();
        crate::names::attach(&walked.parent, walked.name(), &node)
    }

    /// Fills `/dev`: devices, the links to a process's descriptors.
    pub fn make_devices(&self) -> Result<()> {
        crate::device::make_devices(self)
    }

    /// Makes `path` and the directories that lead to it, as far as they are missing.
    pub fn make_directories(&self, path: &[u8]) -> Result<()> {
        let view = self.root_view();
        for end in 1..=path.len() {
            if end == path.len() || path[end] == b'/' {
                match self.make(&view, &path[..end], 0o755, New::Directory) {
                    Ok(_) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Takes the whole tree down, without recursion, however deep it is: goes down to the last
    /// leaf and removes on the way up.
    fn tear_down(&self) {
        let mut current = self.root.clone();
        loop {
            let Body::Directory(entries) = &current.body else { return };
            let down = {
                let entries = entries.lock();
                entries.last().cloned()
            };
            match down {
                Some(node) if is_filled_directory(&node) => current = node,
                Some(_) => drop(crate::names::remove_last(&current)),
                None => match current.parent() {
                    Some(parent) => current = parent,
                    None => return,
                },
            }
        }
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        self.tear_down();
    }
}

fn is_filled_directory(node: &Arc<Inode>) -> bool {
    matches!(&node.body, Body::Directory(entries) if entries.lock().len() > 0)
}

/// Does `node` belong to `caller`, so that it may change what is known about it? Nobody owns
/// generated files in that sense.
fn is_owner(node: &Arc<Inode>, owner: u32, caller: Caller) -> bool {
    !matches!(node.body, Body::Generated(_)) && (caller.uid == 0 || caller.uid == owner)
}

/// See [`Vfs::path_of`].
pub(crate) fn path_of(root: &Arc<Inode>, node: &Arc<Inode>) -> Result<Vec<u8>> {
    // Backwards: each name reversed, then a slash; reversed as a whole at the end.
    let mut backwards = Vec::new();
    let mut current = node.clone();
    while !Arc::ptr_eq(&current, root) {
        let parent = current.parent().ok_or(Errno::ENOENT)?;
        let name = match &*current.parent.lock() {
            Parent::Generated(_, name) => Some(fallible::try_bytes(name)?),
            _ => None,
        };
        let name = match (name, &parent.body) {
            (Some(name), _) => name,
            (None, Body::Directory(entries)) => {
                let entries = entries.lock();
                fallible::try_bytes(entries.name_of(&current).ok_or(Errno::ENOENT)?)?
            }
            _ => return Err(Errno::ENOENT),
        };
        backwards.try_reserve(name.len() + 1).map_err(|_| Errno::ENOMEM)?;
        backwards.extend(name.iter().rev());
        backwards.push(b'/');
        current = parent;
    }
    if backwards.is_empty() {
        fallible::try_push(&mut backwards, b'/')?;
    }
    backwards.reverse();
    Ok(backwards)
}
