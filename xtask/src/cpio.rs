//! Writes an archive in the "newc" cpio format: what an initramfs is.
//!
//! Source of the format: cpio(5), "New ASCII Format": a header of thirteen eight-digit hexadecimal
//! fields behind the magic `070701`, the name with its NUL, padding to four bytes, the contents,
//! padding to four bytes.

use std::collections::BTreeMap;

/// What an entry of the archive is.
enum Node {
    Directory,
    File { mode: u32, contents: Vec<u8> },
    Symlink { target: String },
}

/// An archive under construction, by absolute path. A later entry replaces an earlier one.
#[derive(Default)]
pub struct Archive(BTreeMap<String, Node>);

impl Archive {
    /// Adds a directory, and those above it.
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        self.0.entry(clean(path)).or_insert(Node::Directory);
    }

    /// Adds a file with these permission bits, and the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, contents: Vec<u8>) {
        self.parents(path);
        self.0.insert(clean(path), Node::File { mode, contents });
    }

    /// Adds a symbolic link, and the directories above it.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.0.entry(clean(path)).or_insert(Node::Symlink { target: target.to_owned() });
    }

    fn parents(&mut self, path: &str) {
        let path = clean(path);
        for (index, _) in path.match_indices('/') {
            self.0.entry(path[..index].to_owned()).or_insert(Node::Directory);
        }
    }

    /// The bytes of the archive, with its trailer. Paths sort so that parents come first.
    pub fn into_bytes(self) -> Vec<u8> {
        const DIRECTORY: u32 = 0o040_000;
        const REGULAR: u32 = 0o100_000;
        const SYMLINK: u32 = 0o120_000;
        let mut out = Vec::new();
        for (inode, (path, node)) in (1..).zip(&self.0) {
            let (mode, contents) = match node {
                Node::Directory => (DIRECTORY | 0o755, &[][..]),
                Node::File { mode, contents } => (REGULAR | mode, &contents[..]),
                Node::Symlink { target } => (SYMLINK | 0o777, target.as_bytes()),
            };
            entry(&mut out, inode, path, mode, contents);
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[]);
        out
    }
}

fn clean(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

fn entry(out: &mut Vec<u8>, inode: u32, path: &str, mode: u32, contents: &[u8]) {
    let length = u32::try_from(contents.len()).expect("a file of the archive is below 4 GiB");
    let name_length = path.len() as u32 + 1;
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor,
    // rdevminor, namesize, check
    let fields = [inode, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(contents);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children_and_everything_is_padded() {
        let mut archive = Archive::default();
        archive.file("/bin/deep/x", 0o755, b"hello".to_vec());
        archive.symlink("/bin/sh", "busybox");
        let bytes = archive.into_bytes();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("bin\0") < at("bin/deep\0") && at("bin/deep\0") < at("bin/deep/x\0"));
        assert!(text.contains("TRAILER!!!"));
    }
}
