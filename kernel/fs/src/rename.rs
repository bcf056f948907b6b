//! `renameat2`, in the order of checks that Linux has.

use alloc::sync::Arc;

use crate::inode::{Body, Parent};
use crate::names::{
    drop_directory, drop_link, enter_moved, may_add, may_delete, must_be_removable_directory,
    prepare_move, remove_entry, still_there,
};
use crate::walk::{Component, Last, Walked, walk};
use crate::{Caller, Errno, Inode, RenameFlags, Result, Vfs, Viewpoint};

/// Both ends of a rename, checked as far as names go.
struct Rename<'a, 'p> {
    old: &'a Walked<'p>,
    new: &'a Walked<'p>,
    source: Arc<Inode>,
    target: Option<Arc<Inode>>,
}

impl Vfs {
    /// `renameat2`.
    pub fn rename(
        &self,
        from: &Viewpoint,
        old: &[u8],
        to: &Viewpoint,
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if flags.contains(RenameFlags::WHITEOUT)
            || (exchange && flags.contains(RenameFlags::NOREPLACE))
        {
            return Err(Errno::EINVAL);
        }
        let old = walk(from, old, Last::Entry)?;
        let new = walk(to, new, Last::Entry)?;
        if !Arc::ptr_eq(&old.parent.volume, &new.parent.volume) {
            return Err(Errno::EXDEV);
        }
        if old.component != Component::Name {
            return Err(Errno::EBUSY);
        }
        if new.component != Component::Name {
            let noreplace = flags.contains(RenameFlags::NOREPLACE);
            return Err(if noreplace { Errno::EEXIST } else { Errno::EBUSY });
        }
        let _names = self.names.lock();
        let rename = Rename {
            source: still_there(&old)?,
            target: match still_there(&new) {
                Ok(node) => Some(node),
                Err(Errno::ENOENT) => None,
                Err(error) => return Err(error),
            },
            old: &old,
            new: &new,
        };
        rename.check_names(flags)?;
        if let Some(target) = &rename.target
            && Arc::ptr_eq(target, &rename.source)
        {
            return Ok(());
        }
        rename.check_rights(from.caller, exchange)?;
        if exchange { rename.exchange() } else { rename.replace() }
    }
}

impl Rename<'_, '_> {
    fn check_names(&self, flags: RenameFlags) -> Result<()> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if flags.contains(RenameFlags::NOREPLACE) && self.target.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange {
            let target = self.target.as_ref().ok_or(Errno::ENOENT)?;
            if !target.is_directory() && self.new.slash {
                return Err(Errno::ENOTDIR);
            }
        }
        if !self.source.is_directory() && (self.old.slash || (!exchange && self.new.slash)) {
            return Err(Errno::ENOTDIR);
        }
        if is_within(&self.new.parent, &self.source) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = &self.target
            && is_within(&self.old.parent, target)
        {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        Ok(())
    }

    fn check_rights(&self, caller: Caller, exchange: bool) -> Result<()> {
        may_delete(&self.old.parent, &self.source, caller)?;
        let Some(target) = &self.target else { return may_add(&self.new.parent, caller) };
        may_delete(&self.new.parent, target, caller)?;
        if !exchange {
            match (self.source.is_directory(), target.is_directory()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        // A mounted directory keeps its place.
        let mounted = |node: &Arc<Inode>| matches!(node.body, Body::Generated(_));
        if mounted(&self.source) || mounted(target) { Err(Errno::EBUSY) } else { Ok(()) }
    }

    /// The plain rename.
    fn replace(&self) -> Result<()> {
        let (old, new) = (self.old, self.new);
        if matches!(self.source.body, Body::Generated(_)) {
            return Err(Errno::EBUSY);
        }
        match &self.target {
            Some(target) => {
                if target.is_directory() {
                    must_be_removable_directory(target)?;
                }
                replace_entry(&new.parent, new.name(), &self.source);
                if target.is_directory() {
                    drop_directory(&new.parent, target);
                } else {
                    drop_link(target);
                }
                remove_entry(&old.parent, old.name());
            }
            None => {
                let name = prepare_move(&new.parent, new.name())?;
                remove_entry(&old.parent, old.name());
                enter_moved(&new.parent, name, self.source.clone());
            }
        }
        if self.source.is_directory() {
            move_subdirectory(&old.parent, &new.parent);
        }
        self.source.touch_changed();
        Ok(())
    }

    /// Swaps the two.
    fn exchange(&self) -> Result<()> {
        let target = self.target.as_ref().ok_or(Errno::ENOENT)?;
        replace_entry(&self.new.parent, self.new.name(), &self.source);
        replace_entry(&self.old.parent, self.old.name(), target);
        match (self.source.is_directory(), target.is_directory()) {
            (true, false) => move_subdirectory(&self.old.parent, &self.new.parent),
            (false, true) => move_subdirectory(&self.new.parent, &self.old.parent),
            _ => {}
        }
        self.source.touch_changed();
        target.touch_changed();
        Ok(())
    }
}

/// Is `node` the directory `above`, or below it?
fn is_within(node: &Arc<Inode>, above: &Arc<Inode>) -> bool {
    let mut current = Some(node.clone());
    while let Some(node) = current {
        if Arc::ptr_eq(&node, above) {
            return true;
        }
        current = node.parent();
    }
    false
}

/// Lets an entry of `parent` mean `node`.
fn replace_entry(parent: &Arc<Inode>, name: &[u8], node: &Arc<Inode>) {
    let Body::Directory(entries) = &parent.body else { return };
    *node.parent.lock() = Parent::Memory(Arc::downgrade(parent));
    let old = entries.lock().replace(name, node.clone());
    drop(old);
    parent.touch_modified();
}

/// A subdirectory went from one directory to another: their link counts.
fn move_subdirectory(from: &Arc<Inode>, to: &Arc<Inode>) {
    let mut leaves = from.attributes.lock();
    leaves.nlink = leaves.nlink.saturating_sub(1);
    drop(leaves);
    to.attributes.lock().nlink += 1;
}
