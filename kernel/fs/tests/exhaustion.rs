//! Memory that ends anywhere: every call answers, and changes all or nothing.
//!
//! A global allocator that hands out a limited number of bytes, on the testing thread only. The
//! same calls run with every limit from nothing to enough, so that each allocation is once the
//! one that fails. An allocation that may not fail would abort the test.
#![allow(unsafe_code)] // implements `GlobalAlloc`

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::{CREATE, READ, Short, TestHost};
use pagoda_kernel_fs::tty::Terminal;
use pagoda_kernel_fs::{Errno, FdTable, Host, OpenFile, OpenFlags, RenameFlags, Result, Vfs};

struct Limited;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

// SAFETY: hands on to the system's allocator, or answers "no memory".
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let allowed = LEFT.with(|left| match left.get() {
            usize::MAX => true,
            bytes if bytes < layout.size() => false,
            bytes => {
                left.set(bytes - layout.size());
                true
            }
        });
        // SAFETY: the caller's promise, handed on.
        if allowed { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LEFT.with(|left| {
            if left.get() != usize::MAX {
                left.set(left.get() + layout.size());
            }
        });
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Runs `work` with `bytes` of memory.
fn limited<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    LEFT.with(|left| left.set(bytes));
    let result = work();
    LEFT.with(|left| left.set(usize::MAX));
    result
}

type Call = fn(&Vfs) -> Result<()>;

/// Each with its path, to see afterwards whether it happened.
const CALLS: &[(&str, Call)] = &[
    ("mkdir", |vfs| vfs.mkdir(&vfs.root_view(), b"/new", 0o755)),
    ("create", |vfs| vfs.open_at("/new", CREATE).map(drop)),
    ("symlink", |vfs| vfs.symlink(&vfs.root_view(), b"some/long/target", b"/new")),
    ("fifo", |vfs| vfs.mknod(&vfs.root_view(), b"/new", 0o010644, Default::default())),
    ("link", |vfs| vfs.link(&vfs.find("/file")?, &vfs.root_view(), b"/new")),
    ("rename", |vfs| {
        let view = vfs.root_view();
        vfs.rename(&view, b"/file", &view, b"/new", RenameFlags::empty())
    }),
    ("replace", |vfs| {
        let view = vfs.root_view();
        vfs.rename(&view, b"/file", &view, b"/other", RenameFlags::empty())
    }),
    ("through links", |vfs| vfs.get("/way").map(drop)),
    ("pipe", |vfs| {
        let (reader, writer) = vfs.pipe(OpenFlags::empty())?;
        writer.write(&[1; 3000])?;
        assert_eq!(reader.read(&mut [0; 4000]), Ok(3000));
        Ok(())
    }),
    ("eventfd", |vfs| vfs.eventfd(1, false, OpenFlags::empty()).map(drop)),
    ("memory file", |vfs| vfs.memory_file(OpenFlags::empty())?.write(b"x").map(drop)),
    ("truncate", |vfs| vfs.open_at("/file", OpenFlags::RDWR | OpenFlags::TRUNC).map(drop)),
    ("append", |vfs| {
        vfs.open_at("/file", OpenFlags::RDWR | OpenFlags::APPEND)?.write(b"more").map(drop)
    }),
    ("path", |vfs| vfs.path_of(vfs.root(), &vfs.find("/deep/down")?).map(drop)),
    ("punch", |vfs| vfs.open_at("/base", OpenFlags::RDWR)?.allocate(3, 100, 5000)),
];

static BASE: [u8; 9000] = [9; 9000];

fn prepared() -> Vfs {
    let vfs = Vfs::new(Arc::new(TestHost::default()), 1 << 20).unwrap();
    vfs.put("/file", b"content");
    vfs.put("/other", b"other");
    vfs.make_directories(b"/deep/down").unwrap();
    vfs.place_file(b"/base", &BASE, 0o644).unwrap();
    vfs.symlink(&vfs.root_view(), b"deep/../file", b"/way").unwrap();
    // The directory and its index are full: one more name needs both to grow.
    for name in 0..7 {
        vfs.put(&format!("/filler{name}"), b"");
    }
    vfs
}

/// Everything that can be seen, and the budget.
fn picture(vfs: &Vfs) -> (Vec<String>, u64) {
    let mut all = Vec::new();
    for name in vfs.names("/") {
        let node = vfs.find(&format!("/{name}")).unwrap();
        let content = match node.kind() {
            pagoda_kernel_fs::FileType::Regular => vfs.get(&format!("/{name}")).unwrap(),
            _ => vec![],
        };
        let stat = node.stat();
        let sum = content.iter().fold(0, |sum: u32, byte| sum * 31 % 65521 + u32::from(*byte));
        all.push(format!("{name} {} {:?} {} {sum}", stat.nlink, stat.kind, stat.size));
    }
    (all, vfs.used_bytes())
}

#[test]
fn a_call_that_runs_out_of_memory_changes_nothing() {
    for (what, call) in CALLS {
        let mut failures = 0;
        for bytes in (0..40_000).step_by(8) {
            let vfs = prepared();
            let before = picture(&vfs);
            match limited(bytes, || call(&vfs)) {
                Ok(()) => break,
                Err(error) => assert_eq!(error, Errno::ENOMEM, "{what} with {bytes} bytes"),
            }
            failures += 1;
            let after = picture(&vfs);
            assert_eq!(after.0, before.0, "{what} with {bytes} bytes");
            // Pages that a hole needed to be punched stay, though nobody can tell.
            assert!(after.1 == before.1 || *what == "punch", "{what} with {bytes} bytes");
            assert_eq!(call(&vfs), Ok(()), "{what}, then with memory");
        }
        // Only replacing one name's file by another's needs no memory at all.
        let fewest = usize::from(*what != "replace");
        assert!((fewest..4999).contains(&failures), "{what} failed {failures} times");
    }
}

#[test]
fn making_a_tree_and_a_terminal_may_fail() {
    let mut made = 0;
    for bytes in (0..20_000).step_by(16) {
        let host: Arc<dyn Host> = Arc::new(TestHost::default());
        let screen = Arc::new(common::Screen::default());
        let tree = limited(bytes, || Vfs::new(host.clone(), 1 << 20).map(drop));
        let devices = limited(bytes, || {
            let vfs = Vfs::new(host.clone(), 1 << 20)?;
            vfs.make_devices()
        });
        let terminal = limited(bytes, || Terminal::new(host.clone(), screen.clone()).map(drop));
        for result in [tree, devices, terminal] {
            assert!(matches!(result, Ok(()) | Err(Errno::ENOMEM)), "{result:?}");
            made += usize::from(result.is_ok());
        }
    }
    assert!(made > 100);
}

#[test]
fn a_descriptor_table_that_cannot_grow_stays_as_it_is() {
    let vfs = prepared();
    let file = vfs.open_at("/file", READ).unwrap();
    let mut table = FdTable::new();
    let insert = |table: &mut FdTable, file: &Arc<OpenFile>| {
        limited(0, || table.insert(file.clone(), false, 1024))
    };
    assert_eq!(insert(&mut table, &file), Err(Errno::ENOMEM));
    assert!(table.is_empty());
    table.insert(file.clone(), false, 1024).unwrap();
    let large = limited(100, || table.replace(900, file.clone(), false, 1024));
    assert!(matches!(large, Err(Errno::ENOMEM)));
    assert!(matches!(limited(0, || table.try_clone()), Err(Errno::ENOMEM)));
    assert_eq!(table.len(), 1);
}

#[test]
fn an_archive_is_unpacked_or_blamed() {
    let mut archive = Vec::new();
    for (mode, name, data) in [
        (0o040755, "bin", &b""[..]),
        (0o100755, "bin/a", b"hard"),
        (0o100755, "bin/b", b"hard"),
        (0o120777, "deep/er/link", b"../a"),
        (0, "TRAILER!!!", b""),
    ] {
        let nlink = if data == b"hard" { 2 } else { 1 };
        let fields = [5, mode, 0, 0, nlink, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    let archive: &'static [u8] = archive.leak();
    let mut failures = 0;
    for bytes in (0..20_000).step_by(8) {
        let vfs = Vfs::new(Arc::new(TestHost::default()), 1 << 20).unwrap();
        match limited(bytes, || vfs.unpack(archive)) {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("ENOMEM"), "{error}"),
        }
        failures += 1;
    }
    assert!((50..2499).contains(&failures), "{failures}");
}
