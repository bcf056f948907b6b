//! How a process ended, as `wait` reports it.

/// A wait status: exit code in bits 8-15, or signal in bits 0-6 and the core bit 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitStatus(pub(crate) u32);

impl WaitStatus {
    pub(crate) fn exited(code: u32) -> Self {
        Self((code & 0xff) << 8)
    }
    pub(crate) fn killed(signal: u32, core: bool) -> Self {
        Self(signal & 0x7f | u32::from(core) << 7)
    }
    pub(crate) fn stopped(signal: u32) -> Self {
        Self(0x7f | (signal & 0xff) << 8)
    }
    pub(crate) const CONTINUED: Self = Self(0xffff);

    /// The signal that killed it, 0 for none.
    pub(crate) fn signal(self) -> u32 {
        self.0 & 0x7f
    }
    pub(crate) fn core(self) -> bool {
        self.0 & 0x80 != 0
    }
    pub(crate) fn code(self) -> u32 {
        self.0 >> 8 & 0xff
    }
    /// As a shell says it.
    pub(crate) fn shell(self) -> u8 {
        match self.signal() {
            0 => self.code() as u8,
            signal => 128 + signal as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_adds_128_to_signals() {
        assert_eq!(WaitStatus::exited(7).shell(), 7);
        assert_eq!(WaitStatus::exited(0x107).shell(), 7);
        assert_eq!(WaitStatus::killed(11, true).shell(), 139);
        assert_eq!(WaitStatus::killed(9, false).0, 9);
        assert_eq!(WaitStatus::stopped(20).0, 0x147f);
    }
}
