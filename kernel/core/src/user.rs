//! A program's memory, as a system call reads and writes it. Every pointer is an allegation until
//! the address space has copied through it.

use alloc::vec::Vec;

use pagoda_addr::{UserRange, VirtAddr};
use pagoda_linux::Errno;
use pagoda_vm::fallible::{try_push, try_vec};
use pagoda_vm::{CStrError, CopyError, FaultError};

use crate::machine::Machine;
use crate::run::Cx;
use crate::{Result, Space};

/// The longest path, terminator included.
pub(crate) const PATH_MAX: usize = 4096;

fn copy_error(error: CopyError) -> Errno {
    fault_error(error.error)
}

pub(crate) fn fault_error(error: FaultError) -> Errno {
    match error {
        FaultError::OutOfMemory => Errno::ENOMEM,
        _ => Errno::EFAULT,
    }
}

pub(crate) fn user_range<M: Machine>(space: &Space<M>, addr: u64, len: u64) -> Result<UserRange> {
    space.user_range(addr, len).map_err(|_| Errno::EFAULT)
}

/// Copies to a program whose address space is `space`.
pub(crate) fn write_to<M: Machine>(space: &Space<M>, addr: u64, bytes: &[u8]) -> Result<()> {
    let range = user_range(space, addr, bytes.len() as u64)?;
    space.copy_out(bytes, range).map_err(copy_error)
}

/// Copies from a program whose address space is `space`.
pub(crate) fn read_from<M: Machine>(space: &Space<M>, addr: u64, into: &mut [u8]) -> Result<()> {
    let range = user_range(space, addr, into.len() as u64)?;
    space.copy_in(range, into).map_err(copy_error)
}

impl<M: Machine> Cx<'_, M> {
    /// Makes sure that so many bytes can be written at `addr` without memory. For calls that take
    /// something away from somebody before they write what it was.
    pub(crate) fn make_room(&self, addr: u64, len: u64) -> Result<()> {
        let range = user_range::<M>(&self.space, addr, len)?;
        self.space.prepare_copy_out(range).map_err(copy_error)
    }
    pub(crate) fn write_bytes(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        write_to(&self.space, addr, bytes)
    }
    pub(crate) fn read_bytes(&self, addr: u64, into: &mut [u8]) -> Result<()> {
        read_from(&self.space, addr, into)
    }
    pub(crate) fn read_array<const N: usize>(&self, addr: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_bytes(addr, &mut bytes)?;
        Ok(bytes)
    }
    pub(crate) fn read_u32(&self, addr: u64) -> Result<u32> {
        self.read_array(addr).map(u32::from_le_bytes)
    }
    pub(crate) fn read_u64(&self, addr: u64) -> Result<u64> {
        self.read_array(addr).map(u64::from_le_bytes)
    }
    pub(crate) fn write_u32(&self, addr: u64, value: u32) -> Result<()> {
        self.write_bytes(addr, &value.to_le_bytes())
    }
    pub(crate) fn write_u64(&self, addr: u64, value: u64) -> Result<()> {
        self.write_bytes(addr, &value.to_le_bytes())
    }

    /// `N` words from `addr`.
    pub(crate) fn read_words<const N: usize>(&self, addr: u64) -> Result<[u64; N]> {
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((0u64..).step_by(8)) {
            *word = self.read_u64(addr.checked_add(at).ok_or(Errno::EFAULT)?)?;
        }
        Ok(words)
    }

    /// Words one after the other.
    pub(crate) fn write_words(&self, addr: u64, words: &[u64]) -> Result<()> {
        for (&word, at) in words.iter().zip((0u64..).step_by(8)) {
            self.write_u64(addr.checked_add(at).ok_or(Errno::EFAULT)?, word)?;
        }
        Ok(())
    }

    /// A string without its terminator, shorter than `limit`; `too_long` where it is not.
    pub(crate) fn read_str(&self, addr: u64, limit: usize, too_long: Errno) -> Result<Vec<u8>> {
        let addr = VirtAddr::new(addr);
        // Most strings are short: a little buffer first, a large one only when it must be.
        for size in [limit.min(256), limit] {
            let mut bytes = try_vec(0u8, size).map_err(|_| Errno::ENOMEM)?;
            match self.space.read_cstr(addr, &mut bytes) {
                Ok(len) => {
                    bytes.truncate(len);
                    return Ok(bytes);
                }
                Err(CStrError::Fault(error)) => return Err(fault_error(error)),
                Err(CStrError::TooLong) => {}
            }
        }
        Err(too_long)
    }

    /// A path.
    pub(crate) fn read_path(&self, addr: u64) -> Result<Vec<u8>> {
        self.read_str(addr, PATH_MAX, Errno::ENAMETOOLONG)
    }

    /// A list of strings that ends with a null pointer, as `execve` gets it: all strings with their
    /// terminators, one after the other, at most `limit` bytes with eight for each pointer.
    pub(crate) fn read_str_list(&self, list: u64, limit: usize) -> Result<StrList> {
        let mut strings = StrList::default();
        if list == 0 {
            return Ok(strings);
        }
        let mut at = list;
        loop {
            let pointer = self.read_u64(at)?;
            if pointer == 0 {
                return Ok(strings);
            }
            let string = self.read_str(pointer, 128 << 10, Errno::E2BIG)?;
            strings.push(&string)?;
            if strings.bytes.len() + 8 * strings.count > limit {
                return Err(Errno::E2BIG);
            }
            at = at.checked_add(8).ok_or(Errno::EFAULT)?;
        }
    }
}

/// Strings, each with its terminator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StrList {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: usize,
}

impl StrList {
    pub(crate) fn push(&mut self, string: &[u8]) -> Result<()> {
        pagoda_vm::fallible::try_extend(&mut self.bytes, string).map_err(|_| Errno::ENOMEM)?;
        try_push(&mut self.bytes, 0).map_err(|_| Errno::ENOMEM)?;
        self.count += 1;
        Ok(())
    }

    /// From strings with a terminator each; the last one may lack it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut list = Self::default();
        let body = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        if !bytes.is_empty() {
            for string in body.split(|&byte| byte == 0) {
                list.push(string)?;
            }
        }
        Ok(list)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|&byte| byte == 0).take(self.count)
    }
}
