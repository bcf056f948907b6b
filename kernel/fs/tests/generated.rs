//! A small `/proc`: generated text, dynamic directories, magic links.

mod common;

use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::{CREATE, READ, Short, list, new_vfs, read_all};
use pagoda_kernel_fs::{
    CustomFile, DirSource, Emit, Errno, FileType, Follow, Found, Generated, Inode, LinkSource,
    OpenFlags, Ready, RenameFlags, Result, SeekFrom, Target, TextBuffer, TextSource, Vfs,
    Viewpoint,
};

/// What the little kernel knows: its processes, each with one open file.
#[derive(Default)]
struct Kernel {
    processes: Mutex<Vec<(u32, Arc<Inode>)>>,
    uptime: AtomicU32,
}

struct Root(Arc<Kernel>);
struct Process(Arc<Kernel>, u32);
struct Uptime(Arc<Kernel>);
struct Myself;
struct File(Arc<Inode>);

fn found(ino: u64, content: Generated) -> Found {
    let permissions = match content {
        Generated::Directory(_) => 0o555,
        Generated::Text(_) => 0o644,
        Generated::Link(_) => 0o777,
    };
    Found { ino, permissions, uid: 0, gid: 0, content }
}

impl DirSource for Root {
    fn lookup(&self, name: &[u8]) -> Result<Found> {
        match name {
            b"uptime" => return Ok(found(2, Generated::Text(Arc::new(Uptime(self.0.clone()))))),
            b"self" => return Ok(found(3, Generated::Link(Arc::new(Myself)))),
            _ => {}
        }
        let text = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let pid: u32 = text.parse().map_err(|_| Errno::ENOENT)?;
        let known = self.0.processes.lock().unwrap().iter().any(|process| process.0 == pid);
        if !known {
            return Err(Errno::ENOENT);
        }
        let directory = Generated::Directory(Arc::new(Process(self.0.clone(), pid)));
        Ok(found(u64::from(pid) * 100, directory))
    }

    fn list(&self, from: u64, emit: &mut Emit) -> Result<()> {
        if from < 1 && !emit(1, 2, FileType::Regular, b"uptime") {
            return Ok(());
        }
        if from < 2 && !emit(2, 3, FileType::Symlink, b"self") {
            return Ok(());
        }
        let pids: Vec<u32> = self.0.processes.lock().unwrap().iter().map(|p| p.0).collect();
        for pid in pids {
            let position = u64::from(pid) + 10;
            let name = pid.to_string();
            let wanted = from < position;
            if wanted && !emit(position, u64::from(pid) * 100, FileType::Directory, name.as_bytes())
            {
                break;
            }
        }
        Ok(())
    }
}

impl DirSource for Process {
    fn lookup(&self, name: &[u8]) -> Result<Found> {
        let processes = self.0.processes.lock().unwrap();
        let process = processes.iter().find(|process| process.0 == self.1).ok_or(Errno::ESRCH)?;
        match name {
            b"exe" => Ok(found(7, Generated::Link(Arc::new(File(process.1.clone()))))),
            _ => Err(Errno::ENOENT),
        }
    }
    fn list(&self, from: u64, emit: &mut Emit) -> Result<()> {
        if from == 0 {
            emit(1, 7, FileType::Symlink, b"exe");
        }
        Ok(())
    }
}

impl TextSource for Uptime {
    fn generate(&self, out: &mut TextBuffer) -> Result<()> {
        let uptime = self.0.uptime.fetch_add(1, Ordering::SeqCst);
        writeln!(out, "up {uptime}").map_err(|_| Errno::ENOMEM)
    }
    fn store(&self, _offset: u64, bytes: &[u8]) -> Result<usize> {
        self.0.uptime.store(1000, Ordering::SeqCst);
        Ok(bytes.len())
    }
}

impl LinkSource for Myself {
    fn text(&self) -> Result<Vec<u8>> {
        Ok(b"42".to_vec())
    }
}

impl LinkSource for File {
    fn text(&self) -> Result<Vec<u8>> {
        Ok(b"/gone (deleted)".to_vec())
    }
    fn follow(&self) -> Result<Target> {
        Ok(Target::Node(self.0.clone()))
    }
}

fn kernel() -> (Vfs, Arc<Kernel>) {
    let vfs = new_vfs();
    let kernel = Arc::new(Kernel::default());
    vfs.put("/gone", b"program");
    kernel.processes.lock().unwrap().push((42, vfs.find("/gone").unwrap()));
    vfs.unlink(&vfs.root_view(), b"/gone").unwrap();
    vfs.mount(b"/proc", found(1, Generated::Directory(Arc::new(Root(kernel.clone()))))).unwrap();
    (vfs, kernel)
}

#[test]
fn text_is_made_at_the_beginning_and_stays() {
    let (vfs, _) = kernel();
    let file = vfs.open_at("/proc/uptime", OpenFlags::RDWR).unwrap();
    assert_eq!(file.stat().size, 0);
    let mut bytes = [0; 3];
    assert_eq!(file.read(&mut bytes), Ok(3));
    assert_eq!(vfs.get("/proc/uptime").unwrap(), b"up 1\n");
    assert_eq!(read_all(&file).unwrap(), b"0\n");
    assert_eq!(file.pread(&mut bytes, 3), Ok(2));
    assert_eq!(&bytes[..2], b"0\n");
    file.seek(SeekFrom::Set, 0).unwrap();
    assert_eq!(read_all(&file).unwrap(), b"up 2\n");
    assert_eq!(file.seek(SeekFrom::End, 0), Err(Errno::EINVAL));
    assert_eq!(file.write(b"now"), Ok(3));
    assert_eq!(vfs.get("/proc/uptime").unwrap(), b"up 1000\n");
    assert_eq!(file.mappable().err(), Some(Errno::ENODEV));
}

#[test]
fn links_lead_by_path_or_straight_to_a_file() {
    let (vfs, _) = kernel();
    assert!(vfs.open_at("/proc/self", READ).unwrap().node().is_directory());
    assert_eq!(vfs.get("/proc/self/exe").unwrap(), b"program");
    assert_eq!(vfs.find("/proc/self/exe").unwrap().link_text().unwrap(), b"/gone (deleted)");
    assert_eq!(vfs.open_at("/proc/self/exe", OpenFlags::NOFOLLOW).err(), Some(Errno::ELOOP));
    assert_eq!(vfs.open_at("/proc/self/exe/", READ).err(), Some(Errno::ENOTDIR));
    assert_eq!(vfs.open_at("/proc/self/exe/x", READ).err(), Some(Errno::ENOTDIR));
    // Another open file of the same inode, with rights and an offset of its own.
    vfs.open_at("/proc/self/exe", OpenFlags::RDWR).unwrap().write(b"P").unwrap();
    assert_eq!(vfs.get("/proc/42/exe").unwrap(), b"Program");
}

#[test]
fn a_listing_follows_what_there_is() {
    let (vfs, kernel) = kernel();
    let directory = vfs.open_at("/proc", READ).unwrap();
    for size in [32, 48, 4096] {
        directory.seek(SeekFrom::Set, 0).unwrap();
        let names: Vec<_> = list(&directory, size).into_iter().map(|entry| entry.0).collect();
        assert_eq!(names, [".", "..", "uptime", "self", "42"]);
    }
    let exe = vfs.resolve(&vfs.root_view(), b"/proc/42/exe", Follow::Yes).unwrap();
    kernel.processes.lock().unwrap().insert(0, (7, exe));
    assert_eq!(vfs.names("/proc"), ["42", "7", "self", "uptime"]);
    assert_eq!(vfs.names("/proc/7"), ["exe"]);
    let process = vfs.open_at("/proc/7", READ).unwrap();
    kernel.processes.lock().unwrap().clear();
    assert_eq!(vfs.open_at("/proc/7", READ).err(), Some(Errno::ENOENT));
    let view = Viewpoint { start: process.node(), ..vfs.root_view() };
    assert_eq!(vfs.open(&view, b"exe", READ, 0).err(), Some(Errno::ESRCH));
    assert!(vfs.open(&view, b"../uptime", READ, 0).is_ok());
}

#[test]
fn paths_lead_through_a_mount_both_ways() {
    let (vfs, _) = kernel();
    let node = vfs.resolve(&vfs.root_view(), b"/proc/self", Follow::Yes).unwrap();
    assert_eq!(vfs.path_of(vfs.root(), &node).unwrap(), b"/proc/42");
    assert!(vfs.find("/proc/42/../../proc/..").unwrap().is_same(vfs.root()));
    assert_eq!(vfs.statfs(&node).magic, 0x9fa0);
    assert_ne!(node.stat().dev, vfs.root().stat().dev);
}

#[test]
fn generated_names_cannot_be_changed() {
    let (vfs, _) = kernel();
    let view = vfs.root_view();
    vfs.put("/file", b"");
    let file = vfs.find("/file").unwrap();
    assert_eq!(vfs.open_at("/proc/new", CREATE).err(), Some(Errno::ENOENT));
    assert_eq!(vfs.mkdir(&view, b"/proc/new", 0o755), Err(Errno::ENOENT));
    assert_eq!(vfs.mkdir(&view, b"/proc/42", 0o755), Err(Errno::EEXIST));
    assert_eq!(vfs.unlink(&view, b"/proc/uptime"), Err(Errno::EPERM));
    assert_eq!(vfs.rmdir(&view, b"/proc/42"), Err(Errno::EPERM));
    assert_eq!(vfs.rmdir(&view, b"/proc"), Err(Errno::EBUSY));
    assert_eq!(vfs.link(&file, &view, b"/proc/new").err(), Some(Errno::ENOENT));
    let uptime = vfs.find("/proc/uptime").unwrap();
    assert_eq!(vfs.link(&uptime, &view, b"/hard"), Err(Errno::EXDEV));
    assert_eq!(vfs.chmod(&uptime, 0o777, pagoda_kernel_fs::Caller::ROOT), Err(Errno::EPERM));
    let flags = RenameFlags::empty();
    assert_eq!(vfs.rename(&view, b"/proc/uptime", &view, b"/x", flags), Err(Errno::EXDEV));
    assert_eq!(vfs.rename(&view, b"/proc", &view, b"/x", flags), Err(Errno::EBUSY));
    assert_eq!(vfs.rename(&view, b"/file", &view, b"/proc", flags), Err(Errno::EISDIR));
    assert_eq!(vfs.rename(&view, b"/proc/uptime", &view, b"/proc/x", flags), Err(Errno::EPERM));
    assert_eq!(vfs.names("/"), ["file", "proc"]);
}

/// A line whose bytes are all the same.
struct Line(bool);

impl CustomFile for Line {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        into.fill(b'l');
        Ok(into.len())
    }
    fn poll(&self) -> Ready {
        Ready::READ
    }
    fn name(&self) -> &'static str {
        "anon_inode:[line]"
    }
    fn reopens(&self) -> bool {
        self.0
    }
}

#[test]
fn the_kernels_own_files_are_opened_again_if_they_say_so() {
    let (vfs, kernel) = kernel();
    for reopens in [true, false] {
        let file = vfs.custom(Arc::new(Line(reopens)), READ).unwrap();
        assert_eq!(file.describe(vfs.root()).unwrap(), b"anon_inode:[line]");
        assert_eq!((file.write(b"x"), file.poll()), (Err(Errno::EBADF), Ready::READ));
        *kernel.processes.lock().unwrap() = vec![(42, file.node().clone())];
        let again = vfs.open_at("/proc/self/exe", READ);
        assert_eq!(again.is_ok(), reopens);
        assert_eq!(
            again.map(|again| again.read(&mut [0; 9])).unwrap_or(Err(Errno::ENXIO)),
            if reopens { Ok(9) } else { Err(Errno::ENXIO) }
        );
    }
    // A pipe too, with the end that the access mode asks for.
    let (reader, writer) = vfs.pipe(OpenFlags::empty()).unwrap();
    *kernel.processes.lock().unwrap() = vec![(42, reader.node().clone())];
    vfs.open_at("/proc/self/exe", OpenFlags::WRONLY).unwrap().write(b"again").unwrap();
    drop(writer);
    assert_eq!(read_all(&reader).unwrap(), b"again");
}
