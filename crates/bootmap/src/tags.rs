//! The tags of Multiboot 2.

use pagoda_addr::PhysAddr;

use crate::bytes::u32_at;
use crate::{BootInfoError, Field};

/// A tag: its type, and what stands after type and size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag<'m> {
    pub(crate) kind: u32,
    pub(crate) body: &'m [u8],
    /// Where `body` stands.
    pub(crate) start: PhysAddr,
}

impl Tag<'_> {
    pub(crate) const END: u32 = 0;
    pub(crate) const COMMAND_LINE: u32 = 1;
    pub(crate) const LOADER_NAME: u32 = 2;
    pub(crate) const MODULE: u32 = 3;
    pub(crate) const BASIC_MEMORY: u32 = 4;
    pub(crate) const MEMORY_MAP: u32 = 6;
    pub(crate) const FRAMEBUFFER: u32 = 8;
    pub(crate) const ELF_SECTIONS: u32 = 9;
    pub(crate) const OLD_RSDP: u32 = 14;
    pub(crate) const NEW_RSDP: u32 = 15;
    pub(crate) const EFI_MEMORY_MAP: u32 = 17;
    pub(crate) const EFI_BOOT_SERVICES: u32 = 18;
}

/// The tags up to the end tag. Anything wrong is told once and ends the list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tags<'m> {
    rest: &'m [u8],
    /// Where `rest` stands.
    start: PhysAddr,
    ended: bool,
}

impl<'m> Tags<'m> {
    /// The tags in `bytes`, which stand at `start`.
    pub(crate) const fn new(bytes: &'m [u8], start: PhysAddr) -> Self {
        Self { rest: bytes, start, ended: false }
    }

    fn step(&mut self) -> Result<Option<Tag<'m>>, BootInfoError> {
        let missing = BootInfoError::Missing { field: Field::EndTag };
        let kind = u32_at(self.rest, 0).ok_or(missing)?;
        let size = u32_at(self.rest, 4).ok_or(missing)?;
        let bad = BootInfoError::BadValue { field: Field::TagSize, value: u64::from(size) };
        let size = usize::try_from(size).map_err(|_| bad)?;
        let body = self.rest.get(8..size).ok_or(bad)?;
        let tag = Tag { kind, body, start: self.start.checked_add(8).ok_or(bad)? };
        if kind == Tag::END {
            return Ok(None);
        }
        // Tags begin on multiples of 8 bytes; the last one's padding may be cut off.
        let padded = size.checked_next_multiple_of(8).ok_or(bad)?.min(self.rest.len());
        self.rest = self.rest.get(padded..).unwrap_or_default();
        self.start = self.start.checked_add(padded as u64).ok_or(bad)?;
        Ok(Some(tag))
    }
}

impl<'m> Iterator for Tags<'m> {
    type Item = Result<Tag<'m>, BootInfoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step();
        self.ended = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}
