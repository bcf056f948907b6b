//! Prints a map file, such as those in `data/memory-maps`, as the table that a kernel gets.
//!
//! ```text
//! cargo run -p pagoda-bootmap --example show_map -- crates/bootmap/data/memory-maps/ptltd_dual_2004.txt
//! ```
//!
//! A line is `start end type`, in hexadecimal, the end exclusive. The types are those of e820, or
//! of UEFI where the file's header says `EFI-type`.

use std::process::ExitCode;
use std::{env, fs};

use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{BootMemory, MemoryEntry, MemoryMap, Region, RegionKind, firmware_taken};

/// No memory can be read here: there is no BIOS data area to ask.
struct Nothing;

impl BootMemory for Nothing {
    fn bytes(&self, _: PhysAddr, _: u64) -> Option<&[u8]> {
        None
    }
}

fn entry(line: &str, efi: bool) -> Option<MemoryEntry> {
    let mut words = line.split_whitespace();
    let mut next = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let (start, end, number) = (next()?, next()?, u32::try_from(next()?).ok()?);
    let kind = match efi {
        true => RegionKind::from_efi(number, 0, true),
        false => RegionKind::from_e820(number),
    };
    Some(MemoryEntry { start: PhysAddr::new(start), len: end.checked_sub(start)?, kind })
}

fn show(path: &str) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let efi = text.contains("EFI-type");
    let mut entries = Vec::new();
    for (place, line) in text.lines().enumerate() {
        if let Some(comment) = line.strip_prefix('#') {
            println!("{}", comment.trim());
        } else if !line.trim().is_empty() {
            let entry = entry(line, efi).ok_or(format!("line {}: not an entry", place + 1))?;
            entries.push(entry);
        }
    }
    // A kernel of a MiB in the usual place, for the sight of it.
    let kernel = PhysRange::clamped(PhysAddr::new(2 << 20), 1 << 20);
    let taken: Vec<_> = firmware_taken(&Nothing).chain([(kernel, RegionKind::Kernel)]).collect();
    let mut storage = vec![Region::EMPTY; 2 * (entries.len() + taken.len())];
    let map = MemoryMap::build(entries, taken, &mut storage).map_err(|error| error.to_string())?;
    println!("\n{map}\nRAM ends at {}", map.ram_end());
    Ok(())
}

fn main() -> ExitCode {
    let paths: Vec<_> = env::args().skip(1).collect();
    if paths.is_empty() {
        eprintln!("usage: show_map FILE...");
        return ExitCode::FAILURE;
    }
    for path in paths {
        if let Err(error) = show(&path) {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
