//! Little helpers for text.

use core::fmt;

/// A name in a fixed field, up to its first zero, with what is not text replaced.
pub(crate) fn name(field: &[u8]) -> Printable<'_> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    Printable(field.get(..end).unwrap_or_default())
}

/// Bytes that should be text.
pub(crate) struct Printable<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("?")?;
            }
        }
        Ok(())
    }
}
