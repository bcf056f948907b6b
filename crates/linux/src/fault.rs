//! Errors of `pagoda-vm` in Linux's words.

use pagoda_vm::fallible::NoMemory;
use pagoda_vm::{CStrError, CopyError, FaultError, VmError};

use crate::Errno;

impl From<VmError> for Errno {
    fn from(error: VmError) -> Self {
        match error {
            VmError::Invalid => Self::EINVAL,
            VmError::TooLow | VmError::LockDenied => Self::EPERM,
            VmError::LockLimit => Self::EAGAIN,
            VmError::Overflow => Self::EOVERFLOW,
            VmError::Exists => Self::EEXIST,
            VmError::Denied => Self::EACCES,
            VmError::Fault => Self::EFAULT,
            VmError::Unsupported => Self::EOPNOTSUPP,
            VmError::OutOfRange
            | VmError::NotMapped
            | VmError::NoSpace
            | VmError::Limit
            | VmError::TooManyRegions
            | VmError::OutOfMemory => Self::ENOMEM,
        }
    }
}

impl From<NoMemory> for Errno {
    fn from(NoMemory: NoMemory) -> Self {
        Self::ENOMEM
    }
}

/// Whatever is wrong with a program's pointer, the program hears `EFAULT`.
impl From<CopyError> for Errno {
    fn from(_: CopyError) -> Self {
        Self::EFAULT
    }
}

/// For path names, which is what strings in system calls are.
impl From<CStrError> for Errno {
    fn from(error: CStrError) -> Self {
        match error {
            CStrError::Fault(_) => Self::EFAULT,
            CStrError::TooLong => Self::ENAMETOOLONG,
        }
    }
}

/// The signal for an access that cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultSignal {
    /// Its number.
    pub signal: u8,
    /// `si_code`.
    pub code: i32,
}

impl FaultSignal {
    /// SIGSEGV, nothing mapped there (`SEGV_MAPERR`).
    pub const UNMAPPED: Self = Self { signal: 11, code: 1 };
    /// SIGSEGV, not permitted (`SEGV_ACCERR`).
    pub const PROTECTION: Self = Self { signal: 11, code: 2 };
    /// SIGBUS, beyond the object (`BUS_ADRERR`).
    pub const BUS: Self = Self { signal: 7, code: 2 };
    /// SIGKILL by the kernel: out of memory.
    pub const KILL: Self = Self { signal: 9, code: 128 };
}

impl From<FaultError> for FaultSignal {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::Unmapped => Self::UNMAPPED,
            FaultError::Protection => Self::PROTECTION,
            FaultError::Bus => Self::BUS,
            FaultError::OutOfMemory => Self::KILL,
        }
    }
}
