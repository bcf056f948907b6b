//! Linux's binary layouts (x86-64) of the plain structures of this crate.

use crate::{FileType, Stat, StatFs, Time};

/// Writes little-endian fields one behind the other.
struct Fields<'a>(&'a mut [u8]);

impl Fields<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        let field = core::mem::take(&mut self.0);
        if let Some((head, tail)) = field.split_at_mut_checked(bytes.len()) {
            head.copy_from_slice(bytes);
            self.0 = tail;
        }
        self
    }
    fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    fn time(&mut self, time: Time) -> &mut Self {
        self.u64(time.seconds as u64).u64(u64::from(time.nanoseconds))
    }
    fn statx_time(&mut self, time: Time) -> &mut Self {
        self.u64(time.seconds as u64).u32(time.nanoseconds).u32(0)
    }
}

/// `struct stat`.
pub fn stat(stat: &Stat) -> [u8; 144] {
    let mut bytes = [0; 144];
    Fields(&mut bytes)
        .u64(stat.dev.to_linux())
        .u64(stat.ino)
        .u64(u64::from(stat.nlink))
        .u32(stat.mode())
        .u32(stat.uid)
        .u32(stat.gid)
        .u32(0)
        .u64(stat.rdev.to_linux())
        .u64(stat.size)
        .u64(u64::from(stat.block_size))
        .u64(stat.blocks)
        .time(stat.accessed)
        .time(stat.modified)
        .time(stat.changed);
    bytes
}

/// `struct statx`, with the basic fields.
pub fn statx(stat: &Stat) -> [u8; 256] {
    const BASIC_STATS: u32 = 0x7ff;
    let mut bytes = [0; 256];
    Fields(&mut bytes)
        .u32(BASIC_STATS)
        .u32(stat.block_size)
        .u64(0)
        .u32(stat.nlink)
        .u32(stat.uid)
        .u32(stat.gid)
        .u16(stat.mode() as u16)
        .u16(0)
        .u64(stat.ino)
        .u64(stat.size)
        .u64(stat.blocks)
        .u64(0)
        .statx_time(stat.accessed)
        .statx_time(Time::default())
        .statx_time(stat.changed)
        .statx_time(stat.modified)
        .u32(stat.rdev.major)
        .u32(stat.rdev.minor)
        .u32(stat.dev.major)
        .u32(stat.dev.minor);
    bytes
}

/// `struct statfs`.
pub fn statfs(statfs: &StatFs) -> [u8; 120] {
    let mut bytes = [0; 120];
    Fields(&mut bytes)
        .u64(statfs.magic)
        .u64(4096)
        .u64(statfs.blocks)
        .u64(statfs.blocks_free)
        .u64(statfs.blocks_free)
        .u64(statfs.files)
        .u64(statfs.files_free)
        .u64(0)
        .u64(crate::walk::NAME_MAX as u64)
        .u64(4096);
    bytes
}

/// Puts one `struct linux_dirent64` at the beginning of `into` and returns its length, or `None`
/// where it does not fit. `next` is the position after the entry.
pub fn dirent64(
    into: &mut [u8],
    next: u64,
    ino: u64,
    kind: FileType,
    name: &[u8],
) -> Option<usize> {
    const HEADER: usize = 19;
    let len = (HEADER + name.len() + 1).next_multiple_of(8);
    let record = into.get_mut(..len)?;
    record.fill(0);
    let mut fields = Fields(record);
    fields.u64(ino).u64(next).u16(u16::try_from(len).ok()?).put(&[kind.dirent_type()]).put(name);
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceNumber;

    #[test]
    fn a_stat_has_its_fields_where_linux_has_them() {
        let value = Stat {
            dev: DeviceNumber { major: 0, minor: 1 },
            ino: 7,
            kind: FileType::Regular,
            permissions: 0o644,
            nlink: 2,
            uid: 3,
            gid: 4,
            rdev: DeviceNumber::default(),
            size: 0x1234,
            block_size: 4096,
            blocks: 16,
            accessed: Time { seconds: 1, nanoseconds: 2 },
            modified: Time { seconds: 3, nanoseconds: 4 },
            changed: Time { seconds: 5, nanoseconds: 6 },
        };
        let bytes = stat(&value);
        assert_eq!(bytes[24..28], 0o100644u32.to_le_bytes());
        assert_eq!(bytes[48..56], 0x1234u64.to_le_bytes());
        assert_eq!(bytes[88..96], 3u64.to_le_bytes());
        let bytes = statx(&value);
        assert_eq!(bytes[0x1c..0x1e], 0o100644u16.to_le_bytes());
        assert_eq!(bytes[0x28..0x30], 0x1234u64.to_le_bytes());
        assert_eq!(bytes[0x70..0x78], 3u64.to_le_bytes());
    }

    #[test]
    fn a_device_number_survives_packing() {
        for (major, minor) in [(1, 3), (259, 0), (0xfff, 0xff), (0xfffff, 0xfffff)] {
            let number = DeviceNumber { major, minor };
            assert_eq!(DeviceNumber::from_linux(number.to_linux()), number);
        }
        assert_eq!(DeviceNumber { major: 4, minor: 64 }.to_linux(), 0x440);
    }

    #[test]
    fn a_directory_record_is_padded_and_ends_in_a_nul() {
        let mut bytes = [0xff; 40];
        assert_eq!(dirent64(&mut bytes, 5, 9, FileType::Directory, b"hello"), Some(32));
        assert_eq!(bytes[16..18], 32u16.to_le_bytes());
        assert_eq!((bytes[18], &bytes[19..25]), (4, &b"hello\0"[..]));
        assert_eq!(dirent64(&mut bytes[..31], 5, 9, FileType::Directory, b"hello"), None);
    }
}
