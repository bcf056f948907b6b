//! `/proc/self/fail-nth`, as on a Linux that was built with fault injection: a thread writes *n*,
//! and the n-th allocation that the kernel then makes for it fails, once. Read back, it says how
//! many allocations are left until then: 0 when one has failed (or was never to).
//!
//! It is always about the calling thread, whichever process it is found under.

use core::fmt::Write as _;

use alloc::sync::Weak;

use pagoda_kernel_fs::{TextBuffer, TextSource};
use pagoda_linux::Errno;

use super::process::full;
use crate::Result;
use crate::kernel::Kernel;
use crate::machine::Machine;

/// See the module.
pub(super) struct FailNth<M: Machine> {
    pub(super) kernel: Weak<Kernel<M>>,
}

impl<M: Machine> TextSource for FailNth<M> {
    fn generate(&self, out: &mut TextBuffer) -> Result<()> {
        let kernel = self.kernel.upgrade().ok_or(Errno::ESRCH)?;
        let left = kernel.machine.fail_nth(0);
        let written = full(writeln!(out, "{left}"));
        kernel.machine.fail_nth(left);
        written
    }

    fn store(&self, _: u64, bytes: &[u8]) -> Result<usize> {
        let kernel = self.kernel.upgrade().ok_or(Errno::ESRCH)?;
        let number = core::str::from_utf8(bytes).ok().and_then(|text| text.trim().parse().ok());
        kernel.machine.fail_nth(number.ok_or(Errno::EINVAL)?);
        Ok(bytes.len())
    }
}
