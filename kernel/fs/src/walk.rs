//! From a path to a file.
//!
//! The rules are those of `path_resolution(7)`: links inside a path are followed, at most forty of
//! them; a link in the last place according to [`Last`]; `..` stops at the caller's root; a
//! trailing slash demands a directory.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::generated::Target;
use crate::{Errno, FileType, Inode, Result, Viewpoint, fallible};

/// The longest path, its final NUL included.
pub const PATH_MAX: usize = 4096;
/// The longest name.
pub const NAME_MAX: usize = 255;
/// The most links followed on one walk.
const MAX_LINKS: u32 = 40;

/// What to do with a link in the last place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// Follow it.
    Follow,
    /// Do not, unless a slash follows it.
    Keep,
    /// The entry itself is meant, for making, removing or renaming it.
    Entry,
    /// `O_CREAT`: a name is meant, so that no slash may follow it; links are followed or not.
    Create { follow: bool },
}

/// What the last component of a path was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Component {
    Name,
    Dot,
    DotDot,
    /// The root, or the far end of a magic link: there is no name.
    Root,
}

/// The end of a walk.
pub(crate) struct Walked<'p> {
    /// The directory that the last name is (or would be) in; for other components the file itself.
    pub(crate) parent: Arc<Inode>,
    /// The file, if it is there.
    pub(crate) node: Option<Arc<Inode>>,
    pub(crate) component: Component,
    /// The path ended in a slash.
    pub(crate) slash: bool,
    text: Text<'p>,
    name: Range<usize>,
}

impl Walked<'_> {
    /// The last name.
    pub(crate) fn name(&self) -> &[u8] {
        &self.text.bytes()[self.name.clone()]
    }
}

/// The path that is being read: the caller's, or what a link made of it.
enum Text<'p> {
    Given(&'p [u8]),
    Made(Vec<u8>),
}

impl Text<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Given(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

/// Walks `path`. A missing last component is not an error.
pub(crate) fn walk<'p>(view: &Viewpoint, path: &'p [u8], last: Last) -> Result<Walked<'p>> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    if path.len() >= PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut text = Text::Given(path);
    let mut at = 0;
    let mut current = view.start.clone();
    let mut links = 0;
    let mut component = Component::Root;
    loop {
        let bytes = text.bytes();
        if at == 0 && bytes.first() == Some(&b'/') {
            current = view.root.clone();
            component = Component::Root;
        }
        at += bytes[at..].iter().take_while(|&&byte| byte == b'/').count();
        if at == bytes.len() {
            let slash = bytes.last() == Some(&b'/');
            if slash && !current.is_directory() {
                return Err(Errno::ENOTDIR);
            }
            let (parent, node) = (current.clone(), Some(current));
            return Ok(Walked { parent, node, component, slash, text, name: 0..0 });
        }
        let end = at + bytes[at..].iter().take_while(|&&byte| byte != b'/').count();
        let (name, rest) = (&bytes[at..end], &bytes[end..]);
        let slash = !rest.is_empty();
        let is_last = rest.iter().all(|&byte| byte == b'/');
        search(&current, view)?;
        if name == b"." || name == b".." {
            component = Component::Dot;
            if name == b".." {
                component = Component::DotDot;
                current = above(current, view.root)?;
            }
            at = end;
            continue;
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if is_last && slash && matches!(last, Last::Create { .. }) {
            return Err(Errno::EISDIR);
        }
        let found = match current.lookup(name) {
            Ok(found) => found,
            Err(Errno::ENOENT) if is_last => {
                let component = Component::Name;
                let parent = current;
                return Ok(Walked { parent, node: None, component, slash, text, name: at..end });
            }
            Err(error) => return Err(error),
        };
        let follows = match last {
            _ if !is_last => true,
            Last::Follow | Last::Create { follow: true } => true,
            Last::Keep => slash,
            Last::Entry | Last::Create { follow: false } => false,
        };
        if found.kind() == FileType::Symlink && follows {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP);
            }
            match found.link_target()? {
                Target::Path(target) => text = spliced(target, rest)?,
                Target::Node(node) => {
                    current = node;
                    component = Component::Root;
                    // What was read must not be read as the path's beginning again.
                    text = spliced(fallible::try_bytes(b".")?, rest)?;
                    at = 1;
                    continue;
                }
            }
            at = 0;
            continue;
        }
        if is_last {
            if slash && last != Last::Entry && !found.is_directory() {
                return Err(Errno::ENOTDIR);
            }
            let (parent, node) = (current, Some(found));
            let component = Component::Name;
            return Ok(Walked { parent, node, component, slash, text, name: at..end });
        }
        current = found;
        at = end;
    }
}

/// A link's target with what is left of the path behind it.
fn spliced<'p>(mut target: Vec<u8>, rest: &[u8]) -> Result<Text<'p>> {
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    fallible::try_extend(&mut target, rest)?;
    Ok(Text::Made(target))
}

/// May the walk go through `directory`?
fn search(directory: &Arc<Inode>, view: &Viewpoint) -> Result<()> {
    if !directory.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    directory.permits(view.caller, 1)
}

/// `..` of `directory`, which does not lead above `root`.
fn above(directory: Arc<Inode>, root: &Arc<Inode>) -> Result<Arc<Inode>> {
    if Arc::ptr_eq(&directory, root) {
        return Ok(directory);
    }
    match &*directory.parent.lock() {
        crate::inode::Parent::None => {}
        crate::inode::Parent::Memory(parent) => return parent.upgrade().ok_or(Errno::ENOENT),
        crate::inode::Parent::Generated(parent, _) => return Ok(parent.clone()),
    }
    Ok(directory)
}
