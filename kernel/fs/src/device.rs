//! Devices without a state of their own, and the names under `/dev`.

use alloc::sync::Arc;

use crate::names::New;
use crate::{DeviceNumber, Errno, FileType, Host, Result, Vfs};

/// A device that needs nothing to be open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    Null,
    Zero,
    Full,
    Random,
    KernelLog,
}

/// What a device number stands for.
pub(crate) enum Device {
    Memory(Memory),
    Console,
    /// The caller's controlling terminal.
    OwnTerminal,
}

impl Device {
    /// The character device of that number, or [`Errno::ENXIO`].
    pub(crate) fn of(number: DeviceNumber) -> Result<Self> {
        Ok(match (number.major, number.minor) {
            (1, 3) => Self::Memory(Memory::Null),
            (1, 5) => Self::Memory(Memory::Zero),
            (1, 7) => Self::Memory(Memory::Full),
            (1, 8 | 9) => Self::Memory(Memory::Random),
            (1, 11) => Self::Memory(Memory::KernelLog),
            (4, 64) | (5, 1) => Self::Console,
            (5, 0) => Self::OwnTerminal,
            _ => return Err(Errno::ENXIO),
        })
    }
}

impl Memory {
    pub(crate) fn read(self, host: &Arc<dyn Host>, into: &mut [u8]) -> Result<usize> {
        match self {
            Self::Null => return Ok(0),
            Self::Zero | Self::Full => into.fill(0),
            Self::Random => host.random(into),
            Self::KernelLog => return Err(Errno::EINVAL),
        }
        Ok(into.len())
    }

    pub(crate) fn write(self, host: &Arc<dyn Host>, bytes: &[u8]) -> Result<usize> {
        match self {
            Self::Null | Self::Zero | Self::Random => {}
            Self::Full => return Err(Errno::ENOSPC),
            Self::KernelLog => host.kernel_log(bytes),
        }
        Ok(bytes.len())
    }
}

const DEVICES: &[(&[u8], u32, u32, u32)] = &[
    (b"/dev/null", 1, 3, 0o666),
    (b"/dev/zero", 1, 5, 0o666),
    (b"/dev/full", 1, 7, 0o666),
    (b"/dev/random", 1, 8, 0o666),
    (b"/dev/urandom", 1, 9, 0o666),
    (b"/dev/kmsg", 1, 11, 0o644),
    (b"/dev/tty", 5, 0, 0o666),
    (b"/dev/console", 5, 1, 0o600),
    (b"/dev/ttyS0", 4, 64, 0o620),
];

const LINKS: &[(&[u8], &[u8])] = &[
    (b"/dev/fd", b"/proc/self/fd"),
    (b"/dev/stdin", b"/proc/self/fd/0"),
    (b"/dev/stdout", b"/proc/self/fd/1"),
    (b"/dev/stderr", b"/proc/self/fd/2"),
];

/// Fills `/dev`. What the initramfs brought stays.
pub(crate) fn make_devices(vfs: &Vfs) -> Result<()> {
    vfs.make_directories(b"/dev")?;
    vfs.make_directories(b"/dev/shm")?;
    let shared = vfs.resolve(&vfs.root_view(), b"/dev/shm", crate::Follow::Yes)?;
    shared.attributes.lock().permissions = 0o1777;
    let view = vfs.root_view();
    let unless_there = |made: Result<_>| match made {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    };
    for &(path, major, minor, mode) in DEVICES {
        let number = DeviceNumber { major, minor };
        let new = New::Node(FileType::CharDevice, number);
        unless_there(vfs.make(&view, path, mode, new))?;
    }
    for &(path, target) in LINKS {
        unless_there(vfs.make(&view, path, 0o777, New::Symlink(target)))?;
    }
    Ok(())
}
