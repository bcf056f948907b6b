//! Pipes, named pipes and event counters.

mod common;

use std::collections::VecDeque;
use std::sync::Arc;

use common::{Short, TestHost, new_vfs};
use pagoda_kernel_fs::{
    DeviceNumber, Errno, IoctlMemory, OpenFlags, PIPE_BUF, PIPE_CAPACITY, Ready, Result, Vfs,
    tty::ProcessIds,
};
use proptest::prelude::*;

fn pipe() -> (Arc<pagoda_kernel_fs::OpenFile>, Arc<pagoda_kernel_fs::OpenFile>) {
    new_vfs().pipe(OpenFlags::empty()).unwrap()
}

#[test]
fn what_is_written_is_read_in_order_until_the_end() {
    let (reader, writer) = pipe();
    let mut bytes = [0; 10];
    assert_eq!(reader.read(&mut bytes), Err(Errno::EAGAIN));
    assert_eq!(writer.write(b"hello"), Ok(5));
    assert_eq!(reader.read(&mut bytes[..2]), Ok(2));
    assert_eq!(writer.write(b" you"), Ok(4));
    assert_eq!(reader.read(&mut bytes), Ok(7));
    assert_eq!(&bytes[..7], b"llo you");
    drop(writer);
    assert_eq!(reader.read(&mut bytes), Ok(0));
    assert!(reader.poll().contains(Ready::HUP));
}

#[test]
fn a_pipe_without_readers_is_broken() {
    let (reader, writer) = pipe();
    drop(reader);
    assert_eq!(writer.write(b"x"), Err(Errno::EPIPE));
    assert!(writer.poll().contains(Ready::ERR));
}

#[test]
fn small_writes_are_whole_and_large_ones_fill_what_is_there() {
    let (reader, writer) = pipe();
    assert_eq!(writer.write(&vec![1; PIPE_CAPACITY - 100]), Ok(PIPE_CAPACITY - 100));
    assert_eq!(writer.write(&[2; 101]), Err(Errno::EAGAIN));
    assert_eq!(writer.write(&[2; PIPE_BUF]), Err(Errno::EAGAIN));
    assert!(!writer.poll().contains(Ready::OUT));
    assert_eq!(writer.write(&[2; PIPE_BUF + 1]), Ok(100));
    assert_eq!(writer.write(&[2; PIPE_BUF + 1]), Err(Errno::EAGAIN));
    let mut bytes = vec![0; PIPE_BUF];
    assert_eq!(reader.read(&mut bytes), Ok(PIPE_BUF));
    assert!(writer.poll().contains(Ready::OUT));
    assert_eq!(writer.write(&[3; PIPE_BUF]), Ok(PIPE_BUF));
}

#[test]
fn every_change_wakes_those_who_wait() {
    let host = Arc::new(TestHost::default());
    let vfs = Vfs::new(host.clone(), 1 << 20).unwrap();
    let (reader, writer) = vfs.pipe(OpenFlags::empty()).unwrap();
    assert_eq!(reader.waiters().unwrap().key(), writer.waiters().unwrap().key());
    let generation = || reader.waiters().unwrap().generation();
    let start = generation();
    writer.write(b"x").unwrap();
    assert_eq!(generation(), start + 1);
    reader.read(&mut [0]).unwrap();
    assert_eq!(generation(), start + 2);
    drop(writer);
    assert_eq!(generation(), start + 3);
    assert!(host.wakes.load(std::sync::atomic::Ordering::SeqCst) >= 3);
}

#[test]
fn a_pipe_refuses_what_only_files_can() {
    let (reader, writer) = pipe();
    assert_eq!(reader.write(b"x"), Err(Errno::EBADF));
    assert_eq!(writer.read(&mut [0]), Err(Errno::EBADF));
    assert_eq!(reader.pread(&mut [0], 0), Err(Errno::ESPIPE));
    assert_eq!(reader.seek(pagoda_kernel_fs::SeekFrom::Set, 0), Err(Errno::ESPIPE));
    assert_eq!(writer.truncate(0), Err(Errno::EINVAL));
    assert_eq!(reader.stat().mode(), 0o010600);
}

#[test]
fn a_named_pipe_waits_for_its_other_end() {
    let vfs = new_vfs();
    let none = DeviceNumber::default();
    vfs.mknod(&vfs.root_view(), b"/fifo", 0o010644, none).unwrap();
    let nonblocking = OpenFlags::WRONLY | OpenFlags::NONBLOCK;
    assert_eq!(vfs.open_at("/fifo", nonblocking).err(), Some(Errno::ENXIO));
    let reader = vfs.open_at("/fifo", OpenFlags::empty()).unwrap();
    assert!(reader.is_opening() && !reader.poll().contains(Ready::HUP));
    let writer = vfs.open_at("/fifo", OpenFlags::WRONLY).unwrap();
    assert!(!reader.is_opening() && !writer.is_opening());
    writer.write(b"through").unwrap();
    drop(writer);
    // It came and went: the reader does not wait any more.
    assert!(!reader.is_opening() && reader.poll().contains(Ready::HUP));
    assert_eq!(reader.read(&mut [0; 20]), Ok(7));
    assert_eq!(reader.read(&mut [0; 20]), Ok(0));
    drop(reader);
    let both = vfs.open_at("/fifo", OpenFlags::RDWR).unwrap();
    assert!(!both.is_opening());
    assert_eq!(both.read(&mut [0; 20]), Err(Errno::EAGAIN));
}

struct Arg(Vec<u8>);

impl IoctlMemory for Arg {
    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.0[..into.len()]);
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0 = bytes.to_vec();
        Ok(())
    }
    fn process(&self) -> ProcessIds {
        ProcessIds { pid: 1, group: 1, session: 1, controlling: false }
    }
}

#[test]
fn requests_count_bytes_and_set_the_mode() {
    let (reader, writer) = pipe();
    writer.write(b"seven77").unwrap();
    let mut arg = Arg(vec![]);
    assert_eq!(reader.ioctl(0x541b, 0, &mut arg), Ok(0));
    assert_eq!(arg.0, 7i32.to_le_bytes());
    assert_eq!(reader.ioctl(0x5421, 0, &mut Arg(vec![1, 0, 0, 0])), Ok(0));
    assert!(reader.flags().contains(OpenFlags::NONBLOCK));
    assert_eq!(reader.ioctl(0x5401, 0, &mut arg), Err(Errno::ENOTTY));
}

#[test]
fn an_event_counter_adds_and_is_taken() {
    let vfs = new_vfs();
    let event = vfs.eventfd(3, false, OpenFlags::empty()).unwrap();
    let mut bytes = [0; 8];
    assert_eq!(event.write(&4u64.to_le_bytes()), Ok(8));
    assert_eq!(event.read(&mut bytes), Ok(8));
    assert_eq!(u64::from_le_bytes(bytes), 7);
    assert_eq!(event.read(&mut bytes), Err(Errno::EAGAIN));
    assert_eq!(event.poll(), Ready::WRITE);
    assert_eq!(event.read(&mut bytes[..7]), Err(Errno::EINVAL));
    assert_eq!(event.write(&u64::MAX.to_le_bytes()), Err(Errno::EINVAL));
    assert_eq!(event.write(&(u64::MAX - 1).to_le_bytes()), Ok(8));
    assert_eq!(event.write(&1u64.to_le_bytes()), Err(Errno::EAGAIN));
    assert_eq!(event.poll(), Ready::READ);
    let semaphore = vfs.eventfd(2, true, OpenFlags::empty()).unwrap();
    for _ in 0..2 {
        assert_eq!(semaphore.read(&mut bytes), Ok(8));
        assert_eq!(u64::from_le_bytes(bytes), 1);
    }
    assert_eq!(semaphore.read(&mut bytes), Err(Errno::EAGAIN));
    let name = event.describe(vfs.root()).unwrap();
    assert_eq!(name, b"anon_inode:[eventfd]");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pipe_is_a_queue(
        steps in prop::collection::vec((any::<bool>(), any::<u8>(), 1usize..30_000), 1..60),
    ) {
        let (reader, writer) = pipe();
        let mut model = VecDeque::new();
        for (write, byte, len) in steps {
            let room = PIPE_CAPACITY - model.len();
            if write {
                let expected = match len {
                    len if len <= PIPE_BUF && len > room => Err(Errno::EAGAIN),
                    _ if room == 0 => Err(Errno::EAGAIN),
                    len => Ok(len.min(room)),
                };
                let bytes: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at as u8)).collect();
                prop_assert_eq!(writer.write(&bytes), expected);
                model.extend(&bytes[..expected.unwrap_or(0)]);
            } else {
                let mut bytes = vec![0; len];
                let there = len.min(model.len());
                let expected = if there == 0 { Err(Errno::EAGAIN) } else { Ok(there) };
                prop_assert_eq!(reader.read(&mut bytes), expected);
                let taken: Vec<u8> = model.drain(..there).collect();
                prop_assert_eq!(&bytes[..there], &taken);
            }
            prop_assert_eq!(reader.poll().contains(Ready::IN), !model.is_empty());
            let writable = PIPE_CAPACITY - model.len() >= PIPE_BUF;
            prop_assert_eq!(writer.poll().contains(Ready::OUT), writable);
        }
    }
}
