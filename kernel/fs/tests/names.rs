//! Names: what random calls against Linux do not reach.

mod common;

use std::collections::BTreeSet;

use common::{CREATE, READ, Short, list, new_vfs, parse};
use pagoda_kernel_fs::{
    Caller, DeviceNumber, Errno, FileType, Follow, OpenFlags, RenameFlags, SeekFrom, Vfs, Viewpoint,
};
use proptest::prelude::*;

fn rename(vfs: &Vfs, old: &str, new: &str, flags: RenameFlags) -> Result<(), Errno> {
    let view = vfs.root_view();
    vfs.rename(&view, old.as_bytes(), &view, new.as_bytes(), flags)
}

#[test]
fn links_are_followed_forty_times_and_no_more() {
    let vfs = new_vfs();
    let view = vfs.root_view();
    vfs.put("/0", b"far");
    for number in 1..=41 {
        let (target, path) = (format!("{}", number - 1), format!("/{number}"));
        vfs.symlink(&view, target.as_bytes(), path.as_bytes()).unwrap();
    }
    assert_eq!(vfs.get("/40").unwrap(), b"far");
    assert_eq!(vfs.get("/41"), Err(Errno::ELOOP));
    vfs.symlink(&view, b"/round/and/round", b"/round").unwrap();
    assert_eq!(vfs.get("/round"), Err(Errno::ELOOP));
}

#[test]
fn names_and_paths_have_their_limits() {
    let vfs = new_vfs();
    let view = vfs.root_view();
    let long = "n".repeat(255);
    assert_eq!(vfs.mkdir(&view, format!("/{long}").as_bytes(), 0o755), Ok(()));
    assert_eq!(vfs.mkdir(&view, format!("/{long}n").as_bytes(), 0o755), Err(Errno::ENAMETOOLONG));
    let path = "/".repeat(4095);
    assert!(vfs.find(&path).is_ok());
    assert_eq!(vfs.find(&(path + "/")).err(), Some(Errno::ENAMETOOLONG));
    assert_eq!(vfs.find("").err(), Some(Errno::ENOENT));
    assert_eq!(vfs.symlink(&view, b"", b"/l"), Err(Errno::ENOENT));
    assert_eq!(vfs.symlink(&view, &[b'x'; 4096], b"/l"), Err(Errno::ENAMETOOLONG));
}

#[test]
fn nobody_climbs_above_his_root() {
    let vfs = new_vfs();
    vfs.make_directories(b"/jail/cell").unwrap();
    vfs.put("/secret", b"x");
    vfs.symlink(&vfs.root_view(), b"/../../secret", b"/jail/cell/way").unwrap();
    let root = vfs.find("/jail").unwrap();
    let start = vfs.find("/jail/cell").unwrap();
    let view = Viewpoint { root: &root, start: &start, ..vfs.root_view() };
    for path in ["../../secret", "/../secret", "way", "../../../../secret"] {
        let found = vfs.resolve(&view, path.as_bytes(), Follow::Yes);
        assert_eq!(found.err(), Some(Errno::ENOENT), "{path}");
    }
    assert_eq!(vfs.path_of(&root, &start).unwrap(), b"/cell");
    assert_eq!(vfs.path_of(&root, vfs.root()), Err(Errno::ENOENT));
    assert_eq!(vfs.path_of(vfs.root(), vfs.root()).unwrap(), b"/");
}

#[test]
fn a_removed_directory_is_dead() {
    let vfs = new_vfs();
    vfs.make_directories(b"/a/b").unwrap();
    let start = vfs.find("/a/b").unwrap();
    let view = Viewpoint { start: &start, ..vfs.root_view() };
    let open = vfs.open(&view, b".", READ, 0).unwrap();
    vfs.rmdir(&vfs.root_view(), b"/a/b").unwrap();
    assert_eq!(vfs.mkdir(&view, b"new", 0o755), Err(Errno::ENOENT));
    assert_eq!(vfs.path_of(vfs.root(), &start), Err(Errno::ENOENT));
    assert_eq!(open.getdents64(&mut [0; 100]), Err(Errno::ENOENT));
    assert!(vfs.resolve(&view, b"..", Follow::Yes).unwrap().is_same(&vfs.find("/a").unwrap()));
    assert_eq!(start.stat().nlink, 0);
}

#[test]
fn rename_flags_mean_what_they_say() {
    let vfs = new_vfs();
    vfs.put("/file", b"f");
    vfs.make_directories(b"/dir/sub").unwrap();
    assert_eq!(rename(&vfs, "/file", "/dir", RenameFlags::NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename(&vfs, "/file", "/none", RenameFlags::EXCHANGE), Err(Errno::ENOENT));
    assert_eq!(rename(&vfs, "/dir", "/dir/sub/x", RenameFlags::empty()), Err(Errno::EINVAL));
    assert_eq!(rename(&vfs, "/dir/sub", "/dir", RenameFlags::EXCHANGE), Err(Errno::EINVAL));
    assert_eq!(rename(&vfs, "/dir/sub", "/file", RenameFlags::EXCHANGE), Ok(()));
    assert_eq!(vfs.get("/dir/sub").unwrap(), b"f");
    assert!(vfs.find("/file").unwrap().is_directory());
    assert_eq!(vfs.find("/dir").unwrap().stat().nlink, 2);
    assert_eq!(vfs.find("/").unwrap().stat().nlink, 4);
    let whiteout = RenameFlags::WHITEOUT;
    assert_eq!(rename(&vfs, "/dir", "/x", whiteout), Err(Errno::EINVAL));
}

#[test]
fn open_flags_mean_what_they_say() {
    let vfs = new_vfs();
    vfs.put("/file", b"content");
    vfs.symlink(&vfs.root_view(), b"file", b"/link").unwrap();
    let error = |path: &str, flags| vfs.open_at(path, flags).err();
    assert_eq!(error("/link", CREATE | OpenFlags::EXCL), Some(Errno::EEXIST));
    assert_eq!(error("/link", OpenFlags::NOFOLLOW), Some(Errno::ELOOP));
    assert_eq!(error("/file", OpenFlags::DIRECTORY), Some(Errno::ENOTDIR));
    assert_eq!(error("/", OpenFlags::RDWR), Some(Errno::EISDIR));
    assert_eq!(error("/x", CREATE | OpenFlags::DIRECTORY), Some(Errno::EINVAL));
    let path = vfs.open_at("/link", OpenFlags::PATH | OpenFlags::NOFOLLOW).unwrap();
    assert_eq!(path.stat().kind, FileType::Symlink);
    assert_eq!(path.read(&mut [0]), Err(Errno::EBADF));
    let unnamed = OpenFlags::TMPFILE | OpenFlags::DIRECTORY | OpenFlags::RDWR;
    let file = vfs.open_at("/", unnamed).unwrap();
    file.write(b"named later").unwrap();
    vfs.link(file.node(), &vfs.root_view(), b"/named").unwrap();
    assert_eq!(vfs.get("/named").unwrap(), b"named later");
    let memory = vfs.memory_file(OpenFlags::empty()).unwrap();
    assert_eq!(vfs.link(memory.node(), &vfs.root_view(), b"/no"), Err(Errno::ENOENT));
    let file = vfs.open_at("/file", OpenFlags::WRONLY | OpenFlags::CLOEXEC | CREATE).unwrap();
    assert_eq!(file.flags() & (OpenFlags::CREAT | OpenFlags::CLOEXEC), OpenFlags::empty());
}

#[test]
fn rights_are_those_of_the_owner_the_group_and_the_others() {
    let vfs = new_vfs();
    let root = vfs.root_view();
    let user = Viewpoint { caller: Caller { uid: 7, gid: 8, groups: &[9] }, ..root };
    vfs.put("/secret", b"x");
    let secret = vfs.find("/secret").unwrap();
    vfs.chmod(&secret, 0o640, Caller::ROOT).unwrap();
    assert_eq!(vfs.open(&user, b"/secret", READ, 0).err(), Some(Errno::EACCES));
    vfs.chown(&secret, None, Some(9), Caller::ROOT).unwrap();
    assert!(vfs.open(&user, b"/secret", READ, 0).is_ok());
    assert_eq!(vfs.open(&user, b"/secret", OpenFlags::RDWR, 0).err(), Some(Errno::EACCES));
    assert_eq!(vfs.access(&secret, 1, Caller::ROOT), Err(Errno::EACCES));
    assert_eq!(vfs.chmod(&secret, 0o777, user.caller), Err(Errno::EPERM));
    assert_eq!(vfs.chown(&secret, Some(7), None, user.caller), Err(Errno::EPERM));
    assert_eq!(vfs.mkdir(&user, b"/mine", 0o755), Err(Errno::EACCES));
    vfs.mkdir(&root, b"/tmp", 0o777 | 0o1000).unwrap();
    vfs.put("/tmp/his", b"");
    assert_eq!(vfs.unlink(&user, b"/tmp/his"), Err(Errno::EPERM));
    let file = vfs.open(&user, b"/tmp/mine", CREATE, 0o4444).unwrap();
    assert_eq!((file.stat().uid, file.stat().gid, file.write(b"x")), (7, 8, Ok(1)));
    assert_eq!(vfs.unlink(&user, b"/tmp/mine"), Ok(()));
    let device = DeviceNumber { major: 1, minor: 3 };
    assert_eq!(vfs.mknod(&user, b"/tmp/dev", 0o020666, device), Err(Errno::EPERM));
    assert_eq!(vfs.mkdir(&Viewpoint { umask: 0o077, ..root }, b"/own", 0o777), Ok(()));
    assert_eq!(vfs.find("/own").unwrap().stat().permissions, 0o700);
}

#[test]
fn devices_do_what_they_are_known_for() {
    let vfs = new_vfs();
    vfs.make_devices().unwrap();
    vfs.make_devices().unwrap();
    let mut bytes = [7; 5];
    let open = |path| vfs.open_at(path, OpenFlags::RDWR);
    assert_eq!(open("/dev/null").unwrap().read(&mut bytes), Ok(0));
    assert_eq!(open("/dev/null").unwrap().write(&bytes), Ok(5));
    assert_eq!(open("/dev/full").unwrap().write(&bytes), Err(Errno::ENOSPC));
    assert_eq!(open("/dev/zero").unwrap().read(&mut bytes), Ok(5));
    assert_eq!(bytes, [0; 5]);
    assert_eq!(open("/dev/urandom").unwrap().read(&mut bytes), Ok(5));
    assert_eq!(bytes, [4; 5]);
    assert_eq!(open("/dev/null").unwrap().seek(SeekFrom::End, 9), Ok(0));
    assert_eq!(open("/dev/tty").err(), Some(Errno::ENXIO));
    assert_eq!(open("/dev/console").err(), Some(Errno::EIO));
    assert_eq!(open("/dev/kmsg").unwrap().write(b"<6>hello"), Ok(8));
    assert_eq!(vfs.find("/dev/stdin").unwrap().link_text().unwrap(), b"/proc/self/fd/0");
    assert!(open("/dev/zero").unwrap().is_zero_device());
}

#[test]
fn a_very_deep_tree_goes_without_a_deep_stack() {
    let small = std::thread::Builder::new().stack_size(128 << 10);
    let work = || {
        let vfs = Vfs::new(std::sync::Arc::new(common::TestHost::default()), 1 << 30).unwrap();
        let mut at = vfs.root().clone();
        for _ in 0..50_000 {
            let view = Viewpoint { start: &at, ..vfs.root_view() };
            vfs.mkdir(&view, b"deeper", 0o755).unwrap();
            let next = vfs.resolve(&view, b"deeper", Follow::Yes).unwrap();
            at = next;
        }
        assert_eq!(vfs.path_of(vfs.root(), &at).unwrap().len(), 50_000 * 7);
    };
    small.spawn(work).unwrap().join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A listing in small pieces, while names come and go: what was there all the time comes
    /// exactly once, and nothing comes that never was.
    #[test]
    fn a_listing_survives_changes(
        before in prop::collection::btree_set(0u16..60, 0..50),
        changes in prop::collection::vec((any::<bool>(), 0u16..60), 0..60),
        size in 32usize..200,
    ) {
        let vfs = new_vfs();
        for name in &before {
            vfs.put(&format!("/{name}"), b"");
        }
        let (mut always, mut ever, mut now) = (before.clone(), before.clone(), before.clone());
        let directory = vfs.open_at("/", READ).unwrap();
        let mut seen = Vec::new();
        let mut changes = changes.into_iter();
        let mut buffer = vec![0; size];
        loop {
            let len = directory.getdents64(&mut buffer).unwrap();
            if len == 0 {
                break;
            }
            seen.extend(parse(&buffer[..len]).into_iter().map(|(name, ..)| name));
            for (add, name) in changes.by_ref().take(3) {
                if add {
                    vfs.put(&format!("/{name}"), b"");
                    ever.insert(name);
                    now.insert(name);
                } else {
                    let removed = vfs.unlink(&vfs.root_view(), format!("/{name}").as_bytes());
                    prop_assert_eq!(removed.is_ok(), now.remove(&name));
                    always.remove(&name);
                }
            }
        }
        for name in &always {
            let count = seen.iter().filter(|seen| **seen == name.to_string()).count();
            prop_assert_eq!(count, 1, "{} in {:?}", name, seen);
        }
        prop_assert_eq!(&seen[..2], [".", ".."]);
        let known: BTreeSet<String> = ever.iter().map(u16::to_string).collect();
        prop_assert!(seen[2..].iter().all(|name| known.contains(name)));
        directory.seek(SeekFrom::Set, 0).unwrap();
        let again: BTreeSet<String> =
            list(&directory, 4096).into_iter().skip(2).map(|(name, ..)| name).collect();
        prop_assert_eq!(again, now.iter().map(u16::to_string).collect());
    }
}
