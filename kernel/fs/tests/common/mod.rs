//! What the tests share: a host that remembers wake-ups, and short forms.
#![allow(dead_code)] // each test uses a part

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pagoda_kernel_fs::tty::{Sink, Terminal};
use pagoda_kernel_fs::{
    Errno, Follow, Host, Inode, OpenFile, OpenFlags, Result, SeekFrom, Time, Vfs,
};

/// A kernel that counts its wake-ups and whose clock ticks once a look.
#[derive(Default)]
pub struct TestHost {
    pub wakes: AtomicU64,
    clock: AtomicU64,
    pub console: Mutex<Option<Arc<Terminal>>>,
}

impl Host for TestHost {
    fn wake(&self, _key: usize) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }
    fn now(&self) -> Time {
        let seconds = self.clock.fetch_add(1, Ordering::SeqCst) as i64;
        Time { seconds, nanoseconds: 0 }
    }
    fn random(&self, into: &mut [u8]) {
        into.fill(4);
    }
    fn console(&self) -> Option<Arc<Terminal>> {
        self.console.lock().unwrap().clone()
    }
}

/// Gathers a terminal's output.
#[derive(Default)]
pub struct Screen(pub Mutex<Vec<u8>>);

impl Sink for Screen {
    fn output(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Screen {
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

pub const READ: OpenFlags = OpenFlags::empty();
pub const CREATE: OpenFlags = OpenFlags::CREAT.union(OpenFlags::RDWR);

pub fn new_vfs() -> Vfs {
    Vfs::new(Arc::new(TestHost::default()), 1 << 30).unwrap()
}

/// Short forms, in the superuser's name from the root.
pub trait Short {
    fn open_at(&self, path: &str, flags: OpenFlags) -> Result<Arc<OpenFile>>;
    fn put(&self, path: &str, bytes: &[u8]);
    fn get(&self, path: &str) -> Result<Vec<u8>>;
    fn find(&self, path: &str) -> Result<Arc<Inode>>;
    fn names(&self, path: &str) -> Vec<String>;
}

impl Short for Vfs {
    fn open_at(&self, path: &str, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        self.open(&self.root_view(), path.as_bytes(), flags, 0o644)
    }
    fn put(&self, path: &str, bytes: &[u8]) {
        let file = self.open_at(path, CREATE | OpenFlags::TRUNC).unwrap();
        assert_eq!(file.write(bytes), Ok(bytes.len()));
    }
    fn get(&self, path: &str) -> Result<Vec<u8>> {
        let file = self.open_at(path, READ)?;
        read_all(&file)
    }
    fn find(&self, path: &str) -> Result<Arc<Inode>> {
        self.resolve(&self.root_view(), path.as_bytes(), Follow::No)
    }
    fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> =
            list(&self.open_at(path, READ).unwrap(), 4096).into_iter().map(|(n, ..)| n).collect();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }
}

pub fn read_all(file: &OpenFile) -> Result<Vec<u8>> {
    let (mut all, mut part) = (Vec::new(), [0; 777]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(all),
            len => all.extend_from_slice(&part[..len]),
        }
    }
}

/// (name, inode number, type) of what one `getdents64` returned.
pub fn parse(mut bytes: &[u8]) -> Vec<(String, u64, u8)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(u16::from_le_bytes([bytes[16], bytes[17]]));
        let name = bytes[19..len].split(|&byte| byte == 0).next().unwrap();
        let ino = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        all.push((String::from_utf8_lossy(name).into_owned(), ino, bytes[18]));
        bytes = &bytes[len..];
    }
    all
}

/// The rest of a directory, read with buffers of `size` bytes.
pub fn list(directory: &OpenFile, size: usize) -> Vec<(String, u64, u8)> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; size]);
    loop {
        match directory.getdents64(&mut buffer).unwrap() {
            0 => return all,
            len => all.extend(parse(&buffer[..len])),
        }
    }
}

pub fn size_of(file: &OpenFile) -> u64 {
    let at = file.seek(SeekFrom::Current, 0).unwrap();
    let end = file.seek(SeekFrom::End, 0).unwrap();
    file.seek(SeekFrom::Set, at as i64).unwrap();
    end
}

/// An error number as the host's Linux gives it.
pub fn number(errno: Errno) -> i32 {
    -(errno.to_result_register() as i64) as i32
}
