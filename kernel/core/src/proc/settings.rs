//! Numbers under `/proc/sys` that the superuser may change: how much memory is promised.

use alloc::sync::Weak;
use core::fmt::Write as _;

use pagoda_kernel_fs::{TextBuffer, TextSource};
use pagoda_linux::Errno;
use pagoda_vm::{Commit, Overcommit};

use super::process::full;
use crate::Result;
use crate::kernel::Kernel;
use crate::machine::Machine;

/// One number.
pub(super) struct Setting {
    name: &'static str,
    /// The largest that is taken.
    most: u64,
    get: fn(&Commit) -> u64,
    set: fn(&Commit, u64),
}

static MEMORY: [Setting; 5] = [
    Setting {
        name: "admin_reserve_kbytes",
        most: u64::MAX,
        get: Commit::admin_reserve_kib,
        set: Commit::set_admin_reserve_kib,
    },
    Setting { name: "overcommit_kbytes", most: u64::MAX, get: Commit::kib, set: Commit::set_kib },
    Setting {
        name: "overcommit_memory",
        most: 2,
        get: |books| books.mode() as u64,
        set: |books, number| {
            books.set_mode(match number {
                1 => Overcommit::Always,
                2 => Overcommit::Never,
                _ => Overcommit::Heuristic,
            });
        },
    },
    Setting {
        name: "overcommit_ratio",
        most: i32::MAX as u64,
        get: Commit::ratio,
        set: Commit::set_ratio,
    },
    Setting {
        name: "user_reserve_kbytes",
        most: u64::MAX,
        get: Commit::user_reserve_kib,
        set: Commit::set_user_reserve_kib,
    },
];

/// The number of this name under `/proc/sys/vm`.
pub(super) fn of_memory(name: &str) -> Option<&'static Setting> {
    MEMORY.iter().find(|setting| setting.name == name)
}

/// Its file.
pub(super) struct Source<M: Machine> {
    pub(super) kernel: Weak<Kernel<M>>,
    pub(super) setting: &'static Setting,
}

impl<M: Machine> TextSource for Source<M> {
    fn generate(&self, out: &mut TextBuffer) -> Result<()> {
        let kernel = self.kernel.upgrade().ok_or(Errno::ESRCH)?;
        let books = kernel.machine.commit().ok_or(Errno::EIO)?;
        full(writeln!(out, "{}", (self.setting.get)(books)))
    }

    /// As Linux: a number in decimal, blanks around it; written from the start of the file. What is
    /// written elsewhere is accepted and changes nothing.
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<usize> {
        let kernel = self.kernel.upgrade().ok_or(Errno::ESRCH)?;
        let books = kernel.machine.commit().ok_or(Errno::EIO)?;
        if offset == 0 && !bytes.is_empty() {
            let number = parse(bytes).filter(|&number| number <= self.setting.most);
            (self.setting.set)(books, number.ok_or(Errno::EINVAL)?);
        }
        Ok(bytes.len())
    }
}

/// The first word, if it is a number.
fn parse(bytes: &[u8]) -> Option<u64> {
    core::str::from_utf8(bytes).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_directory_lists_and_numbers_are_read_as_on_linux() {
        assert!(MEMORY.iter().all(|setting| of_memory(setting.name).is_some()));
        assert!(of_memory("swappiness").is_none());
        assert_eq!(parse(b" 2\n"), Some(2));
        assert_eq!(parse(b"2 3"), Some(2));
        assert_eq!((parse(b"-1"), parse(b"x"), parse(b"")), (None, None, None));
    }
}
