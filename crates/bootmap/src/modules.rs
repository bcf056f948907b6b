//! The files that a loader placed in memory.

use pagoda_addr::{PhysAddr, PhysRange};

use crate::bytes::{read_string, string_in, u32_at, u64_at};
use crate::tags::{Tag, Tags};
use crate::{BootInfoError, BootMemory, Field, RegionKind};

/// A file that the loader placed in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module<'m> {
    /// Its bytes.
    pub range: PhysRange,
    /// What stood after its name in the loader's configuration, without a final zero.
    pub command_line: &'m [u8],
    /// Where that string stands; zero if there is none.
    string: PhysAddr,
}

/// The list of modules, in the loader's form. Every entry has been read once without error.
#[derive(Clone, Copy)]
pub(crate) enum ModuleList<'m> {
    /// Entries of 16 bytes.
    Multiboot1(&'m [u8]),
    /// Tags among others.
    Multiboot2(Tags<'m>),
    /// Entries of 32 bytes.
    Pvh(&'m [u8]),
}

/// The modules, in the loader's order.
pub struct Modules<'m, M: BootMemory + ?Sized> {
    memory: &'m M,
    list: ModuleList<'m>,
}

impl<'m> Module<'m> {
    /// The module's bytes and its command line's.
    pub(crate) fn taken(self) -> impl Iterator<Item = (PhysRange, RegionKind)> + Clone {
        let len = self.command_line.len() as u64 + 1;
        let string = (self.string != PhysAddr::ZERO)
            .then(|| (PhysRange::clamped(self.string, len), RegionKind::CommandLine));
        [(self.range, RegionKind::Module)].into_iter().chain(string)
    }

    fn new<M: BootMemory + ?Sized>(
        memory: &'m M,
        range: PhysRange,
        string: u64,
    ) -> Result<Self, BootInfoError> {
        let string = PhysAddr::new(string);
        let command_line = match string {
            PhysAddr::ZERO => &[],
            _ => read_string(memory, string, Field::ModuleCommandLine)?,
        };
        Ok(Self { range, command_line, string })
    }

    fn multiboot1<M: BootMemory + ?Sized>(
        memory: &'m M,
        entry: &[u8],
    ) -> Result<Self, BootInfoError> {
        let word = |offset| u32_at(entry, offset).map(u64::from).ok_or(short(16, entry));
        Self::new(memory, forward(word(0)?, word(4)?)?, word(8)?)
    }

    pub(crate) fn multiboot2(tag: Tag<'m>) -> Result<Self, BootInfoError> {
        let word = |offset| u32_at(tag.body, offset).map(u64::from).ok_or(short(8, tag.body));
        let range = forward(word(0)?, word(4)?)?;
        let string = tag.body.get(8..).unwrap_or_default();
        let command_line = string_in(string, tag.start, Field::ModuleCommandLine)?;
        // The string is part of the tags, which are taken as a whole.
        Ok(Self { range, command_line, string: PhysAddr::ZERO })
    }

    fn pvh<M: BootMemory + ?Sized>(memory: &'m M, entry: &[u8]) -> Result<Self, BootInfoError> {
        let word = |offset| u64_at(entry, offset).ok_or(short(32, entry));
        let (start, len) = (PhysAddr::new(word(0)?), word(8)?);
        let wraps = BootInfoError::BadValue { field: Field::ModuleRange, value: len };
        let range = PhysRange::checked(start, len).ok_or(wraps)?;
        Self::new(memory, range, word(16)?)
    }
}

fn short(needed: u64, entry: &[u8]) -> BootInfoError {
    let given = entry.len() as u64;
    BootInfoError::TooShort { field: Field::ModuleList, needed, given }
}

fn forward(start: u64, end: u64) -> Result<PhysRange, BootInfoError> {
    PhysRange::new(PhysAddr::new(start), PhysAddr::new(end))
        .ok_or(BootInfoError::BadValue { field: Field::ModuleRange, value: end })
}

impl<'m> ModuleList<'m> {
    pub(crate) const EMPTY: Self = Self::Pvh(&[]);
    /// Bytes of an entry of Multiboot 1.
    pub(crate) const MULTIBOOT1_ENTRY: u64 = 16;
    /// Bytes of an entry of PVH.
    pub(crate) const PVH_ENTRY: u64 = 32;

    pub(crate) const fn iter<M: BootMemory + ?Sized>(self, memory: &'m M) -> Modules<'m, M> {
        Modules { memory, list: self }
    }

    /// The list, if every module in it is sound.
    pub(crate) fn checked<M: BootMemory + ?Sized>(
        self,
        memory: &'m M,
    ) -> Result<Self, BootInfoError> {
        let mut rest = self;
        while let Some(module) = rest.next(memory) {
            module?;
        }
        Ok(self)
    }

    fn next<M: BootMemory + ?Sized>(
        &mut self,
        memory: &'m M,
    ) -> Option<Result<Module<'m>, BootInfoError>> {
        match self {
            Self::Multiboot1(bytes) => {
                let (entry, rest) = bytes.split_at_checked(Self::MULTIBOOT1_ENTRY as usize)?;
                *bytes = rest;
                Some(Module::multiboot1(memory, entry))
            }
            Self::Multiboot2(tags) => loop {
                match tags.next()? {
                    Ok(tag) if tag.kind == Tag::MODULE => return Some(Module::multiboot2(tag)),
                    Ok(_) => {}
                    Err(error) => return Some(Err(error)),
                }
            },
            Self::Pvh(bytes) => {
                let (entry, rest) = bytes.split_at_checked(Self::PVH_ENTRY as usize)?;
                *bytes = rest;
                Some(Module::pvh(memory, entry))
            }
        }
    }
}

impl<M: BootMemory + ?Sized> Clone for Modules<'_, M> {
    fn clone(&self) -> Self {
        Self { memory: self.memory, list: self.list }
    }
}

impl<'m, M: BootMemory + ?Sized> Iterator for Modules<'m, M> {
    type Item = Module<'m>;

    fn next(&mut self) -> Option<Module<'m>> {
        // All were sound when the information was read; a memory that answers differently now
        // ends the list.
        self.list.next(self.memory)?.ok()
    }
}
