//! The cpio reader: what a well-formed archive becomes, and what a damaged one is blamed for.

mod common;

use common::{READ, Short, new_vfs};
use pagoda_kernel_fs::cpio::{Cpio, Problem};
use pagoda_kernel_fs::{Errno, FileType, UnpackError};
use proptest::prelude::*;

/// The thirteen numbers of a header, without namesize and filesize.
#[derive(Clone, Copy)]
struct Header {
    ino: u32,
    mode: u32,
    nlink: u32,
    mtime: u32,
    rdev: (u32, u32),
}

const FILE: Header = Header { ino: 1, mode: 0o100644, nlink: 1, mtime: 1000, rdev: (0, 0) };

fn entry(archive: &mut Vec<u8>, header: Header, name: &str, data: &[u8]) {
    let Header { ino, mode, nlink, mtime, rdev } = header;
    let (size, name_size) = (data.len() as u32, name.len() as u32 + 1);
    archive.extend_from_slice(b"070701");
    for field in [ino, mode, 3, 4, nlink, mtime, size, 8, 1, rdev.0, rdev.1, name_size, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    while !archive.len().is_multiple_of(4) {
        archive.push(0);
    }
    archive.extend_from_slice(data);
    while !archive.len().is_multiple_of(4) {
        archive.push(0);
    }
}

fn trailer(archive: &mut Vec<u8>) {
    entry(archive, Header { mode: 0, ..FILE }, "TRAILER!!!", b"");
}

fn of(mode: u32) -> Header {
    Header { mode, ..FILE }
}

fn sample() -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, Header { mtime: 77, ..of(0o040755) }, ".", b"");
    entry(&mut archive, Header { mtime: 99, ..of(0o040711) }, "bin", b"");
    let linked = Header { ino: 9, nlink: 2, ..of(0o100755) };
    entry(&mut archive, linked, "bin/busybox", b"");
    entry(&mut archive, linked, "bin/sh", b"the shell");
    entry(&mut archive, of(0o120777), "linuxrc", b"bin/sh");
    entry(&mut archive, Header { rdev: (1, 3), ..of(0o020666) }, "./dev/null", b"");
    entry(&mut archive, FILE, "/etc/pagoda/argv", b"/bin/tour\0");
    entry(&mut archive, of(0o104755), "empty", b"");
    trailer(&mut archive);
    archive
}

fn leak(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

#[test]
fn an_archive_becomes_a_tree() {
    let vfs = new_vfs();
    let before = vfs.used_bytes();
    let done = vfs.unpack(leak(sample())).unwrap();
    assert_eq!((done.entries, done.bytes), (8, 25));
    assert_eq!(vfs.get("/bin/busybox").unwrap(), b"the shell");
    assert_eq!(vfs.get("/linuxrc").unwrap(), b"the shell");
    assert_eq!(vfs.get("/etc/pagoda/argv").unwrap(), b"/bin/tour\0");
    let shell = vfs.find("/bin/sh").unwrap();
    assert!(shell.is_same(&vfs.find("/bin/busybox").unwrap()));
    let stat = shell.stat();
    assert_eq!((stat.nlink, stat.uid, stat.gid, stat.permissions), (2, 3, 4, 0o755));
    assert_eq!(
        (stat.modified.seconds, vfs.find("/bin").unwrap().stat().modified.seconds),
        (1000, 99)
    );
    assert_eq!(vfs.find("/").unwrap().stat().modified.seconds, 77);
    let null = vfs.find("/dev/null").unwrap().stat();
    assert_eq!((null.kind, null.rdev.major, null.rdev.minor), (FileType::CharDevice, 1, 3));
    assert_eq!(vfs.find("/empty").unwrap().stat().permissions, 0o4755);
    assert!(vfs.used_bytes() - before < 16 << 10);
}

#[test]
fn concatenated_archives_override_each_other() {
    let mut bytes = vec![0; 8];
    bytes.extend(sample());
    bytes.extend([0; 513]);
    let mut second = Vec::new();
    // The same inode number as in the first archive: another file all the same.
    entry(&mut second, Header { ino: 9, nlink: 2, ..FILE }, "bin/sh", b"new");
    entry(&mut second, of(0o040700), "bin", b"");
    trailer(&mut second);
    bytes.extend(second);
    bytes.extend([0; 100]);
    let vfs = new_vfs();
    assert_eq!(vfs.unpack(leak(bytes)).unwrap().entries, 10);
    assert_eq!(vfs.get("/bin/sh").unwrap(), b"new");
    assert_eq!(vfs.get("/bin/busybox").unwrap(), b"the shell");
    assert_eq!(vfs.find("/bin").unwrap().stat().permissions, 0o700);
    assert_eq!(vfs.unpack(&[]).unwrap().entries, 0);
    assert_eq!(vfs.unpack(&[0; 64]).unwrap().entries, 0);
}

/// The problem of the first entry that has one, with its number and name.
fn problem(bytes: &[u8]) -> (usize, String, Problem) {
    let error = Cpio::new(bytes).find_map(Result::err).expect("no error");
    (error.entry, String::from_utf8_lossy(error.name).into_owned(), error.problem)
}

#[test]
fn damage_is_blamed_on_its_entry_and_field() {
    let whole = sample();
    let cut = |len: usize| problem(&whole[..len]).2;
    assert_eq!(cut(109), Problem::Truncated { field: "the header", needed: 110, left: 109 });
    assert_eq!(cut(111), Problem::Truncated { field: "the name", needed: 2, left: 1 });
    assert_eq!(cut(whole.len() - 124), Problem::NoTrailer);
    assert_eq!(problem(b"\x1f\x8b\x08\0").2, Problem::Compressed { with: "gzip" });
    assert_eq!(problem(b"hello, world").2, Problem::BadMagic);

    let mut bytes = sample();
    bytes[6 + 8 * 6 + 3] = b'g';
    assert_eq!(problem(&bytes), (0, ".".into(), Problem::NotHexadecimal { field: "filesize" }));
    let mut bytes = sample();
    bytes[6 + 8 * 6..14 + 8 * 6].copy_from_slice(b"7fffffff");
    let left = bytes.len() - 112;
    let truncated = Problem::Truncated { field: "the content", needed: 0x7fff_ffff, left };
    assert_eq!(problem(&bytes), (0, ".".into(), truncated));
    let mut bytes = sample();
    bytes[6 + 8 * 11..14 + 8 * 11].copy_from_slice(b"ffffffff");
    assert_eq!(problem(&bytes).2, Problem::NameSize { size: 0xffff_ffff });
    let mut bytes = sample();
    bytes[111] = b'x';
    assert_eq!(problem(&bytes).2, Problem::NameNul);

    let mut bytes = Vec::new();
    entry(&mut bytes, FILE, "summed", b"abc");
    trailer(&mut bytes);
    bytes[5] = b'2';
    assert_eq!(problem(&bytes).2, Problem::Checksum { stated: 0, counted: 294 });
    bytes[102..110].copy_from_slice(b"00000126");
    assert!(Cpio::new(&bytes).all(|entry| entry.is_ok()));
    let end = bytes.len();
    bytes.extend_from_slice(b"junk");
    let error = Cpio::new(&bytes).find_map(Result::err).unwrap();
    assert_eq!((error.offset, error.problem), (end, Problem::BadMagic));
    let text = error.to_string();
    assert!(text.starts_with("cpio entry 2 at byte 248 (TRAILER!!!): the magic"), "{text}");
}

#[test]
fn an_entry_that_cannot_be_is_blamed_by_name() {
    let unpack = |header, name: &str, data: &[u8]| {
        let mut bytes = Vec::new();
        entry(&mut bytes, FILE, "file", b"x");
        entry(&mut bytes, FILE, "full/of", b"x");
        entry(&mut bytes, header, name, data);
        trailer(&mut bytes);
        match new_vfs().unpack(leak(bytes)) {
            Err(UnpackError::Entry { number: 2, name: blamed, field, errno, .. }) => {
                assert_eq!(blamed, name.as_bytes());
                (field, errno)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(unpack(FILE, "../escape", b""), ("name", Errno::EINVAL));
    assert_eq!(unpack(FILE, "a/../../escape", b""), ("name", Errno::EINVAL));
    assert_eq!(unpack(of(0), "typeless", b""), ("mode", Errno::EINVAL));
    assert_eq!(unpack(of(0o110000), "odd", b""), ("mode", Errno::EINVAL));
    assert_eq!(unpack(of(0o120777), "link", b""), ("the link's target", Errno::EINVAL));
    assert_eq!(unpack(of(0o120777), "link", b"a\0b"), ("the link's target", Errno::EINVAL));
    assert_eq!(unpack(of(0o010644), "pipe", b"data"), ("filesize", Errno::EINVAL));
    assert_eq!(unpack(FILE, "file/below", b""), ("name", Errno::ENOTDIR));
    assert_eq!(unpack(FILE, "full", b""), ("name", Errno::ENOTEMPTY));
    assert_eq!(unpack(FILE, &"n".repeat(300), b""), ("name", Errno::ENAMETOOLONG));
}

#[test]
fn names_of_one_file_must_not_have_different_contents() {
    let mut bytes = Vec::new();
    let linked = Header { nlink: 3, ..FILE };
    entry(&mut bytes, linked, "one", b"content");
    entry(&mut bytes, linked, "two", b"content");
    entry(&mut bytes, linked, "one", b"");
    entry(&mut bytes, linked, "three", b"other");
    trailer(&mut bytes);
    let vfs = new_vfs();
    let error = vfs.unpack(leak(bytes)).unwrap_err();
    assert!(matches!(error, UnpackError::Entry { number: 3, field: "filesize", .. }), "{error}");
    assert_eq!(vfs.get("/one").unwrap(), b"content");
    assert_eq!(vfs.find("/two").unwrap().stat().nlink, 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_packed_is_unpacked(
        files in prop::collection::btree_map("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..50), 0..9),
    ) {
        let mut bytes = Vec::new();
        for (name, data) in &files {
            entry(&mut bytes, FILE, name, data);
        }
        trailer(&mut bytes);
        let vfs = new_vfs();
        prop_assert_eq!(vfs.unpack(leak(bytes)).unwrap().entries, files.len());
        prop_assert_eq!(vfs.names("/").len(), files.len());
        for (name, data) in &files {
            prop_assert_eq!(&vfs.get(&format!("/{name}")).unwrap(), data);
        }
    }

    /// Damaged anywhere, an archive is read to its end or to an error; never a panic, and all
    /// bytes of a content lie in the archive.
    #[test]
    fn a_damaged_archive_never_breaks_the_reader(
        changes in prop::collection::vec((0usize..1300, any::<u8>()), 1..6),
        hexadecimal in any::<bool>(),
        cut in 0usize..1400,
    ) {
        let mut bytes = sample();
        for (at, byte) in changes {
            let byte = if hexadecimal { b"0123456789abcdefABCDEF"[usize::from(byte) % 22] } else { byte };
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        bytes.truncate(cut);
        let read = Cpio::new(&bytes);
        prop_assert!(read.clone().count() <= bytes.len() / 110 + 1);
        if let Some(Err(error)) = read.last() {
            prop_assert!(error.offset <= bytes.len());
            prop_assert!(!error.to_string().is_empty());
        }
        let vfs = new_vfs();
        let bytes = leak(bytes);
        if let Ok(done) = vfs.unpack(bytes) {
            prop_assert_eq!(done.entries, Cpio::new(bytes).count());
        }
        // Whatever came of it can be walked.
        let _ = vfs.names("/");
        let _ = vfs.open_at("/bin/sh", READ);
    }
}
