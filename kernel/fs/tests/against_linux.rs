//! The same random calls on this tree and on the machine's own file system: error numbers, then
//! the whole tree, must agree.
//!
//! The place is `/dev/shm` where there is one, else the temporary directory. Everything happens
//! eight directories below a fresh one, and no path leads up more than four.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{Error, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Short, new_vfs, number, read_all};
use pagoda_kernel_fs::{Errno, FileType, Follow, OpenFlags, RenameFlags, Vfs, Viewpoint};
use proptest::prelude::*;

const DEPTH: &str = "x/x/x/x/x/x/x/x";

#[derive(Clone, Debug)]
enum Call {
    Mkdir(String),
    Rmdir(String),
    Unlink(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
    Open(String, u32, u8),
    Read(String),
    ReadLink(String),
    Truncate(String, u16),
    Stat(String, bool),
    List(String),
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![6 => "[abc]", 1 => Just("..".into()), 1 => Just(".".into())];
    let slash = prop_oneof![5 => Just("/"), 1 => Just("//")];
    let end = prop_oneof![6 => Just(""), 1 => Just("/")];
    (prop::collection::vec((name, slash), 1..4), end).prop_map(|(parts, end)| {
        let mut path = String::new();
        for (index, (name, slash)) in parts.iter().enumerate() {
            if index > 0 {
                path.push_str(slash);
            }
            path.push_str(name);
        }
        path + end
    })
}

/// Targets do not lead up, so that no chain of links leaves the fresh directory.
fn target() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[abc]", 2 => "[abc]/[abc]", 1 => Just(".".into()), 1 => "[abc]/"]
}

fn call() -> impl Strategy<Value = Call> {
    let flags = prop::sample::select(vec![
        0u32, 1, 2, 0o101, 0o102, 0o301, 0o1001, 0o1101, 0o2101, 0o200000, 0o400000, 0o400101,
    ]);
    prop_oneof![
        3 => path().prop_map(Call::Mkdir),
        1 => path().prop_map(Call::Rmdir),
        2 => path().prop_map(Call::Unlink),
        4 => (path(), path()).prop_map(|(a, b)| Call::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Call::Link(a, b)),
        3 => (target(), path()).prop_map(|(a, b)| Call::Symlink(a, b)),
        5 => (path(), flags, any::<u8>()).prop_map(|(a, f, n)| Call::Open(a, f, n)),
        1 => path().prop_map(Call::Read),
        1 => path().prop_map(Call::ReadLink),
        1 => (path(), any::<u16>()).prop_map(|(a, n)| Call::Truncate(a, n)),
        2 => (path(), any::<bool>()).prop_map(|(a, f)| Call::Stat(a, f)),
        1 => path().prop_map(Call::List),
    ]
}

type Answer = Result<Vec<u8>, i32>;

fn kind_letter(file: &fs::FileType) -> u8 {
    match () {
        () if file.is_dir() => b'd',
        () if file.is_symlink() => b'l',
        () if file.is_fifo() => b'p',
        () => b'f',
    }
}

fn on_linux(base: &Path, call: &Call) -> Answer {
    let at = |path: &String| format!("{}/{path}", base.display());
    let nothing = |()| Vec::new();
    let answer: std::io::Result<Vec<u8>> = match call {
        Call::Mkdir(path) => fs::create_dir(at(path)).map(nothing),
        Call::Rmdir(path) => fs::remove_dir(at(path)).map(nothing),
        Call::Unlink(path) => fs::remove_file(at(path)).map(nothing),
        Call::Rename(old, new) => fs::rename(at(old), at(new)).map(nothing),
        Call::Link(old, new) => fs::hard_link(at(old), at(new)).map(nothing),
        Call::Symlink(target, path) => symlink(target, at(path)).map(nothing),
        Call::Open(path, flags, byte) => {
            let access = flags & 3;
            let mut options = fs::OpenOptions::new();
            options.read(access != 1).write(access != 0);
            // Flags that the standard library leaves to us go in as they are.
            options.custom_flags((flags & !3) as i32).mode(0o644);
            options.open(at(path)).and_then(|mut file| match access {
                0 => Ok(vec![]),
                _ => file.write_all(&[*byte; 3]).map(nothing),
            })
        }
        Call::Read(path) => fs::read(at(path)),
        Call::ReadLink(path) => {
            fs::read_link(at(path)).map(|p| p.into_os_string().into_encoded_bytes())
        }
        Call::Truncate(path, len) => fs::OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| file.set_len(u64::from(*len)))
            .map(nothing),
        Call::Stat(path, follow) => {
            let found =
                if *follow { fs::metadata(at(path)) } else { fs::symlink_metadata(at(path)) };
            found.map(|found| vec![kind_letter(&found.file_type())])
        }
        Call::List(path) => fs::read_dir(at(path)).map(|entries| {
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect();
            names.sort();
            names.concat()
        }),
    };
    answer.map_err(|error: Error| error.raw_os_error().unwrap_or(0))
}

fn our_letter(kind: FileType) -> u8 {
    match kind {
        FileType::Directory => b'd',
        FileType::Symlink => b'l',
        FileType::Fifo => b'p',
        _ => b'f',
    }
}

fn on_ours(vfs: &Vfs, view: &Viewpoint, call: &Call) -> Answer {
    let nothing = |()| Vec::new();
    let open = |path: &String, flags: u32| {
        vfs.open(view, path.as_bytes(), OpenFlags::from_bits_retain(flags), 0o644)
    };
    let answer = match call {
        Call::Mkdir(path) => vfs.mkdir(view, path.as_bytes(), 0o755).map(nothing),
        Call::Rmdir(path) => vfs.rmdir(view, path.as_bytes()).map(nothing),
        Call::Unlink(path) => vfs.unlink(view, path.as_bytes()).map(nothing),
        Call::Rename(old, new) => vfs
            .rename(view, old.as_bytes(), view, new.as_bytes(), RenameFlags::empty())
            .map(nothing),
        Call::Link(old, new) => vfs
            .resolve(view, old.as_bytes(), Follow::No)
            .and_then(|node| vfs.link(&node, view, new.as_bytes()))
            .map(nothing),
        Call::Symlink(target, path) => {
            vfs.symlink(view, target.as_bytes(), path.as_bytes()).map(nothing)
        }
        Call::Open(path, flags, byte) => open(path, *flags).and_then(|file| match flags & 3 {
            0 => Ok(vec![]),
            _ => file.write(&[*byte; 3]).map(|_| vec![]),
        }),
        Call::Read(path) => open(path, 0).and_then(|file| read_all(&file)),
        Call::ReadLink(path) => {
            vfs.resolve(view, path.as_bytes(), Follow::No).and_then(|node| vfs.readlink(&node))
        }
        Call::Truncate(path, len) => {
            open(path, 1).and_then(|file| file.truncate(u64::from(*len))).map(nothing)
        }
        Call::Stat(path, follow) => {
            let follow = if *follow { Follow::Yes } else { Follow::No };
            vfs.resolve(view, path.as_bytes(), follow).map(|node| vec![our_letter(node.kind())])
        }
        Call::List(path) => open(path, 0o200000).map(|directory| {
            let mut names: Vec<_> = common::list(&directory, 300)
                .into_iter()
                .map(|(name, ..)| name.into_bytes())
                .filter(|name| name != b"." && name != b"..")
                .collect();
            names.sort();
            names.concat()
        }),
    };
    answer.map_err(number)
}

/// Every path with what stands there; hard-linked files by the first path of the file.
fn linux_tree(base: &Path, counts_directories: bool) -> Vec<String> {
    fn visit(path: &Path, name: String, counts: bool, tree: &mut Vec<String>) {
        let meta = fs::symlink_metadata(path).unwrap();
        let content = match kind_letter(&meta.file_type()) {
            b'd' => String::new(),
            b'l' => fs::read_link(path).unwrap().display().to_string(),
            _ => format!("{:?}", fs::read(path).unwrap()),
        };
        let nlink = if meta.is_dir() && !counts { 0 } else { meta.nlink() };
        tree.push(format!("{name} {} {nlink} {content}", kind_letter(&meta.file_type())));
        if meta.is_dir() {
            let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap()).collect();
            entries.sort_by_key(|entry| entry.file_name());
            for entry in entries {
                let name = format!("{name}/{}", entry.file_name().display());
                visit(&entry.path(), name, counts, tree);
            }
        }
    }
    let mut tree = Vec::new();
    visit(base, String::new(), counts_directories, &mut tree);
    tree
}

fn our_tree(vfs: &Vfs, counts: bool) -> Vec<String> {
    fn visit(vfs: &Vfs, path: &str, name: String, counts: bool, tree: &mut Vec<String>) {
        let node = vfs.find(path).unwrap();
        let stat = node.stat();
        let content = match stat.kind {
            FileType::Directory => String::new(),
            FileType::Symlink => String::from_utf8(node.link_text().unwrap()).unwrap(),
            _ => format!("{:?}", vfs.get(path).unwrap()),
        };
        let directory = stat.kind == FileType::Directory;
        let nlink = if directory && !counts { 0 } else { stat.nlink };
        tree.push(format!("{name} {} {nlink} {content}", our_letter(stat.kind)));
        if directory {
            for entry in vfs.names(path) {
                visit(vfs, &format!("{path}/{entry}"), format!("{name}/{entry}"), counts, tree);
            }
        }
    }
    let mut tree = Vec::new();
    visit(vfs, "/top", String::new(), counts, &mut tree);
    tree
}

/// A fresh directory, removed at the end.
struct Fresh(PathBuf);

impl Fresh {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let shm = Path::new("/dev/shm");
        let place = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let path = place.join(format!("tree-test-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join(DEPTH)).unwrap();
        Self(path)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_calls_have_the_answers_of_linux(calls in prop::collection::vec(call(), 1..60)) {
        let fresh = Fresh::new();
        let base = fresh.0.join(DEPTH);
        let counts_directories = fs::metadata(&base).unwrap().nlink() == 2;
        let vfs = new_vfs();
        let untouched = vfs.used_bytes();
        vfs.make_directories(format!("/top/{DEPTH}").as_bytes()).unwrap();
        {
            let start = vfs.find(&format!("/top/{DEPTH}")).unwrap();
            let view = Viewpoint { start: &start, ..vfs.root_view() };
            for call in &calls {
                prop_assert_eq!(on_ours(&vfs, &view, call), on_linux(&base, call), "{:?}", call);
            }
        }
        prop_assert_eq!(
            our_tree(&vfs, counts_directories),
            linux_tree(&fresh.0, counts_directories)
        );
        empty(&vfs, "/top");
        prop_assert_eq!(vfs.used_bytes(), untouched, "budget");
    }
}

/// Removes a whole tree by its names.
fn empty(vfs: &Vfs, path: &str) {
    for name in vfs.names(path) {
        empty_or_unlink(vfs, &format!("{path}/{name}"));
    }
    assert_eq!(vfs.rmdir(&vfs.root_view(), path.as_bytes()), Ok(()));
}

fn empty_or_unlink(vfs: &Vfs, path: &str) {
    match vfs.unlink(&vfs.root_view(), path.as_bytes()) {
        Err(Errno::EISDIR) => empty(vfs, path),
        other => assert_eq!(other, Ok(())),
    }
}
