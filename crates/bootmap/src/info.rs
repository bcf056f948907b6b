//! What a loader said, whatever its protocol.

use core::fmt;

use pagoda_addr::{PhysAddr, PhysRange};

use crate::entries::MemoryEntries;
use crate::modules::{Module, ModuleList, Modules};
use crate::sections::Sections;
use crate::{
    BootInfoError, BootMemory, Framebuffer, MapError, MemoryMap, Region, RegionKind, firmware_taken,
};

/// A protocol by which a kernel is started.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// Multiboot 1, specification 0.6.96.
    Multiboot1,
    /// Multiboot 2, specification 2.0.
    Multiboot2,
    /// Xen's PVH entry, `struct hvm_start_info` version 1 and up.
    Pvh,
}

/// Boot information that has been read and found sound: every part lies in readable memory, every
/// string has an end, no range runs backwards. Whether the memory map contradicts itself is for
/// [`MemoryMap::build`] to settle.
///
/// Nothing is copied: the lists and strings are the loader's own bytes, and stay in
/// [`taken`](Self::taken) for as long as this is in use.
pub struct BootInfo<'m, M: BootMemory + ?Sized> {
    pub(crate) memory: &'m M,
    pub(crate) protocol: Protocol,
    pub(crate) entries: MemoryEntries<'m>,
    pub(crate) modules: ModuleList<'m>,
    pub(crate) sections: Sections<'m>,
    pub(crate) command_line: &'m [u8],
    pub(crate) loader_name: &'m [u8],
    pub(crate) framebuffer: Option<Framebuffer>,
    pub(crate) rsdp: Option<PhysAddr>,
    pub(crate) occupied: Occupied,
}

impl<'m, M: BootMemory + ?Sized> BootInfo<'m, M> {
    /// Reads Multiboot 1 information at `info` (what the loader left in EBX), after checking
    /// `magic` (what it left in EAX).
    ///
    /// # Errors
    /// Whatever is wrong first; see [`BootInfoError`].
    pub fn from_multiboot1(
        magic: u32,
        info: PhysAddr,
        memory: &'m M,
    ) -> Result<Self, BootInfoError> {
        crate::multiboot1::parse(magic, info, memory)
    }

    /// Reads Multiboot 2 information at `info` (what the loader left in EBX), after checking
    /// `magic` (what it left in EAX).
    ///
    /// # Errors
    /// Whatever is wrong first; see [`BootInfoError`].
    pub fn from_multiboot2(
        magic: u32,
        info: PhysAddr,
        memory: &'m M,
    ) -> Result<Self, BootInfoError> {
        crate::multiboot2::parse(magic, info, memory)
    }

    /// Reads PVH start information at `info` (what the loader left in EBX).
    ///
    /// # Errors
    /// Whatever is wrong first; see [`BootInfoError`].
    pub fn from_pvh(info: PhysAddr, memory: &'m M) -> Result<Self, BootInfoError> {
        crate::pvh::parse(info, memory)
    }

    /// By which protocol the kernel was started.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The firmware's memory map, entry by entry as it stands there.
    pub fn memory(&self) -> MemoryEntries<'m> {
        self.entries
    }

    /// The files that the loader placed in memory.
    pub fn modules(&self) -> Modules<'m, M> {
        self.modules.iter(self.memory)
    }

    /// The kernel's command line without its final zero; empty if there is none.
    pub const fn command_line(&self) -> &'m [u8] {
        self.command_line
    }

    /// The loader's name without its final zero; empty if it has none.
    pub const fn loader_name(&self) -> &'m [u8] {
        self.loader_name
    }

    /// The screen that the loader set up.
    pub const fn framebuffer(&self) -> Option<Framebuffer> {
        self.framebuffer
    }

    /// Where ACPI's root pointer, or the loader's copy of it, stands. None if the loader did not
    /// say; [`find_rsdp`](crate::find_rsdp) then looks where a BIOS puts it. Not checked: see
    /// [`is_rsdp`](crate::is_rsdp).
    pub const fn rsdp(&self) -> Option<PhysAddr> {
        self.rsdp
    }

    /// Every range that something sits in as far as the loader and the firmware tell: the
    /// information itself, command lines, modules, symbols, the framebuffer, ACPI's root pointer,
    /// and the low memory of [`firmware_taken`]. The kernel's own image is for the caller to add.
    pub fn taken(&self) -> impl Iterator<Item = (PhysRange, RegionKind)> + Clone + 'm {
        let modules = self.modules().flat_map(Module::taken);
        let sections = self.sections.taken();
        let framebuffer = self.framebuffer.map(|screen| (screen.range(), RegionKind::Framebuffer));
        let loader = self.occupied.ranges.into_iter().flatten();
        loader.chain(framebuffer).chain(modules).chain(sections).chain(firmware_taken(self.memory))
    }

    /// The map of this machine: [`memory`](Self::memory) less [`taken`](Self::taken) less `own`,
    /// which should hold at least the kernel's image and the page at which further CPUs start.
    ///
    /// # Errors
    /// See [`MemoryMap::build`].
    pub fn memory_map<'s>(
        &self,
        own: impl IntoIterator<Item = (PhysRange, RegionKind)>,
        storage: &'s mut [Region],
    ) -> Result<MemoryMap<'s>, MapError> {
        MemoryMap::build(self.memory(), self.taken().chain(own), storage)
    }
}

/// The single ranges that the loader's data occupies, collected while reading.
#[derive(Clone, Copy, Default)]
pub(crate) struct Occupied {
    ranges: [Option<(PhysRange, RegionKind)>; Self::PLACES],
}

impl Occupied {
    /// The most that a protocol has: Multiboot 1 with its structure, command line, loader name,
    /// memory map, module list, symbols, palette, drives, configuration, APM and two VBE tables.
    const PLACES: usize = 12;

    /// Adds a range.
    pub(crate) fn add(&mut self, start: PhysAddr, len: u64, kind: RegionKind) {
        let place = self.ranges.iter_mut().find(|place| place.is_none());
        debug_assert!(place.is_some(), "Occupied::PLACES is too small");
        if let Some(place) = place {
            *place = Some((PhysRange::clamped(start, len), kind));
        }
    }
}

impl<M: BootMemory + ?Sized> fmt::Debug for BootInfo<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootInfo")
            .field("protocol", &self.protocol)
            .field("entries", &self.memory().count())
            .field("modules", &self.modules().count())
            .field("command_line", &self.command_line.escape_ascii())
            .field("loader_name", &self.loader_name.escape_ascii())
            .field("framebuffer", &self.framebuffer)
            .field("rsdp", &self.rsdp)
            .finish_non_exhaustive()
    }
}
