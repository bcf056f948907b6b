//! PVH (Xen's `struct hvm_start_info`, in `xen/include/public/arch-x86/hvm/start_info.h`): a short
//! structure that points to everything else; an address of zero means nothing is there.
//!
//! ```text
//! 0 magic   4 version   8 flags   12 modules, count   16 modules, address   24 command line
//! 32 ACPI root pointer   40 map, address   48 map, count
//! ```
//!
//! Left out: version 0, which has no memory map but expects hypercalls of Xen.

use pagoda_addr::PhysAddr;

use crate::bytes::{read, read_string, read_u32, u32_at, u64_at};
use crate::entries::MemoryEntries;
use crate::info::{BootInfo, Occupied, Protocol};
use crate::modules::ModuleList;
use crate::{BootInfoError, BootMemory, Field, RegionKind, sections::Sections};

const MAGIC: u32 = 0x336e_c578;
const INFO_SIZE: u64 = 56;
const MAP_ENTRY_SIZE: u64 = 24;
const RSDP_SIZE: u64 = 36;

pub(crate) fn parse<M: BootMemory + ?Sized>(
    info: PhysAddr,
    memory: &M,
) -> Result<BootInfo<'_, M>, BootInfoError> {
    let magic = read_u32(memory, info, 0, Field::Magic)?;
    if magic != MAGIC {
        return Err(BootInfoError::BadValue { field: Field::Magic, value: u64::from(magic) });
    }
    if read_u32(memory, info, 4, Field::Version)? == 0 {
        return Err(BootInfoError::BadValue { field: Field::Version, value: 0 });
    }
    let bytes = read(memory, info, INFO_SIZE, Field::InfoAddress)?;
    let short =
        BootInfoError::Unreadable { field: Field::InfoAddress, start: info, len: INFO_SIZE };
    let count = |offset| u32_at(bytes, offset).map(u64::from).ok_or(short);
    let address = |offset| u64_at(bytes, offset).map(PhysAddr::new).ok_or(short);
    let mut occupied = Occupied::default();
    occupied.add(info, INFO_SIZE, RegionKind::BootInfo);

    let list = |start, len, field| match len {
        0 => Ok(Default::default()),
        _ => read(memory, start, len, field),
    };
    let (start, len) = (address(40)?, count(48)? * MAP_ENTRY_SIZE);
    if len == 0 {
        return Err(BootInfoError::Missing { field: Field::MemoryMap });
    }
    let entries =
        MemoryEntries::equal(list(start, len, Field::MemoryMap)?, MAP_ENTRY_SIZE as usize);
    occupied.add(start, len, RegionKind::BootInfo);

    let (start, len) = (address(16)?, count(12)? * ModuleList::PVH_ENTRY);
    let modules = ModuleList::Pvh(list(start, len, Field::ModuleList)?).checked(memory)?;
    occupied.add(start, len, RegionKind::BootInfo);

    let start = address(24)?;
    let command_line = match start {
        PhysAddr::ZERO => &[],
        _ => read_string(memory, start, Field::CommandLine)?,
    };
    if start != PhysAddr::ZERO {
        occupied.add(start, command_line.len() as u64 + 1, RegionKind::CommandLine);
    }

    let rsdp = Some(address(32)?).filter(|rsdp| *rsdp != PhysAddr::ZERO);
    if let Some(rsdp) = rsdp {
        occupied.add(rsdp, RSDP_SIZE, RegionKind::AcpiTables);
    }
    Ok(BootInfo {
        memory,
        protocol: Protocol::Pvh,
        entries,
        modules,
        sections: Sections::NONE,
        command_line,
        loader_name: &[],
        framebuffer: None,
        rsdp,
        occupied,
    })
}
