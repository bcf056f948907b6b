//! Listing directories.
//!
//! A directory's offset is a position: 0 is `.`, 1 is `..`, and whatever follows belongs to the
//! directory. A position stays good while entries come and go: what was there all the time is
//! listed once.

use alloc::sync::Arc;

use crate::file::{Handle, OpenFile};
use crate::generated::Generated;
use crate::inode::Body;
use crate::{Emit, Errno, FileType, Inode, Result, pack};

/// Where `..` leads from `directory`, for its number.
fn parent_ino(directory: &Arc<Inode>) -> u64 {
    directory.parent().map_or(directory.ino(), |parent| parent.ino())
}

/// Reports the entries of `directory` from position `from` on. `emit` is called with the
/// directory's lock held if it is an in-memory one.
fn list(directory: &Arc<Inode>, from: u64, emit: &mut Emit) -> Result<()> {
    const NAMED: u64 = 2;
    if from == 0 && !emit(1, directory.ino(), FileType::Directory, b".") {
        return Ok(());
    }
    if from <= 1 && !emit(2, parent_ino(directory), FileType::Directory, b"..") {
        return Ok(());
    }
    match &directory.body {
        Body::Directory(entries) => {
            if directory.attributes.lock().nlink == 0 {
                return Err(Errno::ENOENT);
            }
            for (next, entry) in entries.lock().iter_from(from.max(NAMED)) {
                if !emit(next, entry.node.ino(), entry.node.kind(), &entry.name) {
                    break;
                }
            }
            Ok(())
        }
        Body::Generated(Generated::Directory(source)) => {
            let mut shifted = |next: u64, ino, kind, name: &[u8]| {
                emit(next.saturating_add(NAMED), ino, kind, name)
            };
            source.list(from.saturating_sub(NAMED), &mut shifted)
        }
        _ => Err(Errno::ENOTDIR),
    }
}

impl OpenFile {
    /// Fills `into` with Linux's 64-bit directory records; 0 is the end.
    ///
    /// # Errors
    /// [`Errno::EINVAL`]: not even one record fits. [`Errno::ENOENT`]: the directory was removed.
    pub fn getdents64(&self, into: &mut [u8]) -> Result<usize> {
        self.check_readable()?;
        if !matches!(self.handle, Handle::Directory) {
            return Err(Errno::ENOTDIR);
        }
        let from = *self.offset.lock();
        let (mut used, mut position, mut full) = (0, from, false);
        list(self.node(), from, &mut |next, ino, kind, name| match pack::dirent64(
            &mut into[used..],
            next,
            ino,
            kind,
            name,
        ) {
            Some(len) => {
                used += len;
                position = next;
                true
            }
            None => {
                full = true;
                false
            }
        })?;
        if full && used == 0 {
            return Err(Errno::EINVAL);
        }
        *self.offset.lock() = position;
        self.note_read();
        Ok(used)
    }
}
