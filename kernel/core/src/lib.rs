//! The portable half of the reference kernel.
#![no_std]

pub mod machine;

use machine::Machine;

/// What the boot loader and the machine half hand over.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig {
    /// The kernel's command line: `key=value`, separated by spaces.
    pub command_line: &'static [u8],
    /// The cpio archive (newc) that the file system starts from; may be empty.
    pub initramfs: &'static [u8],
}

/// How the first process ended, as a shell would say it: its exit code, or 128 plus the number of
/// the signal that killed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

/// Why the first process could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Not enough memory.
    OutOfMemory,
    /// Not written yet.
    Unfinished,
}

/// Runs the first process and everything that comes of it, until the first process has ended; then
/// ends all others and gives everything back that was taken from `machine`.
///
/// Called once, on the boot CPU's stack, with interrupts off.
pub fn start<M: Machine>(
    machine: &'static M,
    config: BootConfig,
) -> Result<ExitStatus, StartError> {
    let _ = (machine, config);
    Err(StartError::Unfinished)
}
