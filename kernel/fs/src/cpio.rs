//! Reading cpio archives in the "new ASCII" format, as initramfs images are made of.
//!
//! An archive is a row of entries, each a header of 110 bytes (a magic of six characters and
//! thirteen numbers of eight hexadecimal digits), the name with its NUL, and the file's bytes,
//! both padded to a multiple of four counted from the header. An entry called `TRAILER!!!` ends
//! it. After that may come NUL bytes and a further archive. (Source: the kernel's documentation of
//! the initramfs buffer format, and `cpio(5)`.)
//!
//! The bytes are not trusted: whatever is wrong is an error that names the entry and the field,
//! and no byte is skipped but padding.
//!
//! Left out: the old binary and octal formats, compression.

use core::fmt;

/// The length of a header.
const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// The longest name accepted, its NUL included.
const MAX_NAME: usize = crate::walk::PATH_MAX;

/// One file of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry<'a> {
    /// Which of the concatenated archives it is in: hard links do not lead from one to another.
    pub archive: usize,
    /// Its number, counted over all archives.
    pub number: usize,
    /// Where its header begins.
    pub offset: usize,
    pub ino: u32,
    /// Type and permission bits, as in `stat`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// Major and minor number of the device that it was on.
    pub device: (u32, u32),
    /// Major and minor number of the device that it is.
    pub rdev: (u32, u32),
    /// Without the NUL.
    pub name: &'a [u8],
    pub data: &'a [u8],
}

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Problem {
    /// Neither a header nor padding.
    BadMagic,
    /// A compressed image begins here.
    Compressed { with: &'static str },
    /// The archive ends inside of `field`.
    Truncated { field: &'static str, needed: usize, left: usize },
    /// `field` is not eight hexadecimal digits.
    NotHexadecimal { field: &'static str },
    /// The name is empty, or longer than a path may be.
    NameSize { size: usize },
    /// The name does not end in its only NUL.
    NameNul,
    /// The sum of the bytes is not the one in the header.
    Checksum { stated: u32, counted: u32 },
    /// The entry that ends an archive has content.
    TrailerWithData { size: usize },
    /// The archive ends without `TRAILER!!!`.
    NoTrailer,
}

/// What is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpioError<'a> {
    /// The number of the entry.
    pub entry: usize,
    /// Where its header begins (or should begin).
    pub offset: usize,
    /// Its name, as far as it is known; else that of the entry before it.
    pub name: &'a [u8],
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic => write!(f, "the magic is neither 070701 nor 070702"),
            Self::Compressed { with } => write!(f, "it is compressed with {with}; unpack it first"),
            Self::Truncated { field, needed, left } => {
                write!(f, "{field} needs {needed} bytes, {left} are left")
            }
            Self::NotHexadecimal { field } => write!(f, "{field} is not hexadecimal"),
            Self::NameSize { size } => write!(f, "namesize is {size}"),
            Self::NameNul => write!(f, "the name does not end in its only NUL"),
            Self::Checksum { stated, counted } => {
                write!(f, "check is {stated:#x}, the bytes add up to {counted:#x}")
            }
            Self::TrailerWithData { size } => write!(f, "the trailer has {size} bytes of content"),
            Self::NoTrailer => write!(f, "the archive ends without a trailer"),
        }
    }
}

impl fmt::Display for CpioError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, offset, name, problem } = self;
        write!(f, "cpio entry {entry} at byte {offset} ({}): {problem}", name.escape_ascii())
    }
}

/// Reads the entries of one or more archives. After an error it ends.
#[derive(Clone, Debug)]
pub struct Cpio<'a> {
    bytes: &'a [u8],
    at: usize,
    archive: usize,
    number: usize,
    /// Inside of an archive: its trailer has not come.
    inside: bool,
    last_name: &'a [u8],
    failed: bool,
}

impl<'a> Cpio<'a> {
    /// A reader at the beginning of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        let last_name = b"start";
        Self { bytes, at: 0, archive: 0, number: 0, inside: false, last_name, failed: false }
    }

    /// `Ok(None)`: the end.
    fn read(&mut self) -> Result<Option<Entry<'a>>, Problem> {
        loop {
            if !self.inside {
                let padding = self.bytes[self.at..].iter().take_while(|&&byte| byte == 0).count();
                self.at += padding;
                if self.at == self.bytes.len() {
                    return Ok(None);
                }
            } else if self.at == self.bytes.len() {
                return Err(Problem::NoTrailer);
            }
            let (entry, next) = self.entry()?;
            self.last_name = entry.name;
            self.number += 1;
            self.at = next;
            self.inside = entry.name != TRAILER;
            if self.inside {
                return Ok(Some(entry));
            }
            if !entry.data.is_empty() {
                // The error is about the trailer, not about what would follow it.
                self.number -= 1;
                self.at = entry.offset;
                return Err(Problem::TrailerWithData { size: entry.data.len() });
            }
            self.archive += 1;
        }
    }

    /// The entry whose header begins here, and where the next one begins.
    fn entry(&mut self) -> Result<(Entry<'a>, usize), Problem> {
        let left = &self.bytes[self.at..];
        let magic = &left[..left.len().min(6)];
        let checked = match magic {
            b"070701" => false,
            b"070702" => true,
            _ => return Err(bad_magic(left)),
        };
        let header = part(left, 0, HEADER, "the header")?;
        let field = |index: usize, field: &'static str| -> Result<u32, Problem> {
            let digits = &header[6 + 8 * index..14 + 8 * index];
            hexadecimal(digits).ok_or(Problem::NotHexadecimal { field })
        };
        let name_size = field(11, "namesize")? as usize;
        if !(2..=MAX_NAME).contains(&name_size) {
            return Err(Problem::NameSize { size: name_size });
        }
        let name = part(left, HEADER, name_size, "the name")?;
        let name = match name.iter().position(|&byte| byte == 0) {
            Some(end) if end + 1 == name_size => &name[..end],
            _ => return Err(Problem::NameNul),
        };
        self.last_name = name;
        let size = field(6, "filesize")? as usize;
        let start = (HEADER + name_size).next_multiple_of(4);
        let data = part(left, start.min(left.len()), size, "the content")?;
        let stated = field(12, "check")?;
        if checked {
            let counted = data.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
            if counted != stated {
                return Err(Problem::Checksum { stated, counted });
            }
        }
        let entry = Entry {
            archive: self.archive,
            number: self.number,
            offset: self.at,
            ino: field(0, "ino")?,
            mode: field(1, "mode")?,
            uid: field(2, "uid")?,
            gid: field(3, "gid")?,
            nlink: field(4, "nlink")?,
            mtime: field(5, "mtime")?,
            device: (field(7, "devmajor")?, field(8, "devminor")?),
            rdev: (field(9, "rdevmajor")?, field(10, "rdevminor")?),
            name,
            data,
        };
        // Padding after the last entry may be cut off.
        let end = start.saturating_add(size).next_multiple_of(4).min(left.len());
        Ok((entry, self.at + end))
    }
}

impl<'a> Iterator for Cpio<'a> {
    type Item = Result<Entry<'a>, CpioError<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.read()
            .map_err(|problem| {
                self.failed = true;
                CpioError { entry: self.number, offset: self.at, name: self.last_name, problem }
            })
            .transpose()
    }
}

fn part<'a>(
    left: &'a [u8],
    start: usize,
    needed: usize,
    field: &'static str,
) -> Result<&'a [u8], Problem> {
    let there = left.get(start..).unwrap_or_default();
    there.get(..needed).ok_or(Problem::Truncated { field, needed, left: there.len() })
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0, |value: u32, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

fn bad_magic(left: &[u8]) -> Problem {
    const MAGICS: &[(&[u8], &str)] = &[
        (&[0x1f, 0x8b], "gzip"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (b"BZh", "bzip2"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
        (&[0x5d, 0, 0], "lzma"),
    ];
    match MAGICS.iter().find(|(magic, _)| left.starts_with(magic)) {
        Some((_, with)) => Problem::Compressed { with },
        None => Problem::BadMagic,
    }
}
