//! What can go wrong, by who is to blame.

use core::fmt;

/// Why a call on an address space changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmError {
    /// Caller: an address is not page aligned, a length is zero or wraps, an offset is not aligned,
    /// a combination that has no meaning.
    Invalid,
    /// Caller: the range lies outside the program's half.
    OutOfRange,
    /// Caller: the range lies below the lowest address that may be mapped.
    TooLow,
    /// Caller: offset and length together leave the range of offsets.
    Overflow,
    /// Caller: something is mapped where [`Place::FixedNoReplace`](crate::Place) must not replace.
    Exists,
    /// Caller: part of the range is not mapped, and the call needs all of it.
    NotMapped,
    /// Caller: the operation is not allowed on this mapping (protection, kind).
    Denied,
    /// Caller: the range would have to be read or written and cannot be (the address is bad).
    Fault,
    /// Exhaustion: no hole in the address space is large enough.
    NoSpace,
    /// Exhaustion: a limit of the process ([`Limits`](crate::Limits)) forbids it.
    Limit,
    /// Exhaustion: new memory would be locked, and more than the process may lock.
    LockLimit,
    /// Caller: the process may not lock memory at all.
    LockDenied,
    /// Exhaustion: too many regions.
    TooManyRegions,
    /// Exhaustion: the kernel has no memory for its own records or for a page, or the machine's
    /// commit policy forbids it.
    OutOfMemory,
    /// Not done by this crate.
    Unsupported,
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid argument",
            Self::OutOfRange => "outside the mappable addresses",
            Self::TooLow => "below the lowest mappable address",
            Self::Overflow => "offset and length overflow",
            Self::Exists => "something is mapped there",
            Self::NotMapped => "part of the range is not mapped",
            Self::Denied => "not allowed on this mapping",
            Self::Fault => "bad address",
            Self::NoSpace => "no hole is large enough",
            Self::Limit => "a limit forbids it",
            Self::LockLimit => "more locked memory than allowed",
            Self::LockDenied => "locking memory is not allowed",
            Self::TooManyRegions => "too many regions",
            Self::OutOfMemory => "out of memory",
            Self::Unsupported => "not supported",
        })
    }
}

impl core::error::Error for VmError {}

/// Why an access by a program cannot go on. Each says which signal applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// Nothing is mapped at the address: SIGSEGV with `SEGV_MAPERR`.
    Unmapped,
    /// The mapping forbids the access: SIGSEGV with `SEGV_ACCERR`.
    Protection,
    /// The page lies beyond the end of its file, or cannot be read: SIGBUS with `BUS_ADRERR`.
    Bus,
    /// Exhaustion: there is no frame. Ends the process, never the kernel.
    OutOfMemory,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmapped => "address not mapped",
            Self::Protection => "access not permitted",
            Self::Bus => "beyond the end of the file",
            Self::OutOfMemory => "out of memory",
        })
    }
}

impl core::error::Error for FaultError {}

impl From<FaultError> for VmError {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::OutOfMemory => Self::OutOfMemory,
            _ => Self::Fault,
        }
    }
}

/// A copy from or to a program's memory stopped early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyError {
    /// Bytes copied before the one that could not be.
    pub done: usize,
    /// Why the next byte could not be.
    pub error: FaultError,
}

/// Why a string could not be read from a program's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CStrError {
    /// A byte of it could not be read.
    Fault(FaultError),
    /// No terminator within the buffer.
    TooLong,
}
