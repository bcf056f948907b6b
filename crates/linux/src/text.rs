//! The text of `/proc`, from plain numbers.
//!
//! Formats are those of Linux 6.1: columns are what tools parse.
//!
//! Left out: what this kernel has not got stands as zero (swap, huge pages) or is not shown.

use core::fmt::{self, Write};

use pagoda_vm::{MapFlags, Prot, RegionInfo, Residency, SpaceStats};

/// The column at which the name of a mapping begins.
const NAME_COLUMN: usize = 73;

/// Writes a region as `/proc/PID/maps` does, with the end of the line.
pub fn maps_line(to: &mut dyn Write, region: &RegionInfo) -> fmt::Result {
    let mut line = Counted { to, written: 0 };
    let (start, end) = (region.range.start().as_u64(), region.range.end().as_u64());
    let bit = |flag, letter| if region.prot.contains(flag) { letter } else { '-' };
    let id = region.file.as_ref().map(|file| file.identity()).unwrap_or_default();
    // Shared memory without a file is a file of the kernel's own, device 0:1.
    let minor = if region.shared && region.file.is_none() { 1 } else { id.minor };
    write!(
        line,
        "{start:08x}-{end:08x} {}{}{}{} {:08x} {:02x}:{minor:02x} {} ",
        bit(Prot::READ, 'r'),
        bit(Prot::WRITE, 'w'),
        bit(Prot::EXEC, 'x'),
        if region.shared { 's' } else { 'p' },
        region.offset,
        id.major,
        id.inode,
    )?;
    if let Some(file) = &region.file {
        line.pad()?;
        file.write_path(&mut Escaped(&mut line))?;
    } else {
        let name = match (region.heap, region.stack, region.shared) {
            (true, ..) => "[heap]",
            (_, true, _) => "[stack]",
            (.., true) => "/dev/zero (deleted)",
            _ => "",
        };
        if !name.is_empty() {
            line.pad()?;
            line.write_str(name)?;
        }
    }
    line.write_char('\n')
}

fn kib(pages: u64) -> u64 {
    pages * 4
}

/// The lines on who has written what and who shares it, which `smaps` and its sum have in common.
fn by_sharing(to: &mut dyn Write, pages: &Residency) -> fmt::Result {
    let clean = pages.sole - pages.sole_dirty.min(pages.sole);
    let shared = pages.present - pages.sole.min(pages.present);
    let shared_dirty = (pages.dirty - pages.sole_dirty.min(pages.dirty)).min(shared);
    for (name, pages) in [
        ("Shared_Clean:", shared - shared_dirty),
        ("Shared_Dirty:", shared_dirty),
        ("Private_Clean:", clean),
        ("Private_Dirty:", pages.sole_dirty),
        ("Referenced:", pages.accessed),
        ("Anonymous:", pages.anonymous),
    ] {
        writeln!(to, "{name:<16}{:>8} kB", kib(pages))?;
    }
    Ok(())
}

/// Writes a region as `/proc/PID/smaps` does.
pub fn smaps_entry(to: &mut dyn Write, region: &RegionInfo, pages: &Residency) -> fmt::Result {
    maps_line(to, region)?;
    let locked = region.flags.contains(MapFlags::LOCKED);
    let proportional = pages.proportional >> 10;
    for (name, value) in [
        ("Size:", region.range.len() >> 10),
        ("KernelPageSize:", 4),
        ("MMUPageSize:", 4),
        ("Rss:", kib(pages.present)),
        ("Pss:", proportional),
        (
            "Pss_Dirty:",
            if pages.dirty == pages.present { proportional } else { kib(pages.sole_dirty) },
        ),
    ] {
        writeln!(to, "{name:<16}{value:>8} kB")?;
    }
    by_sharing(to, pages)?;
    for (name, value) in [
        ("LazyFree:", kib(pages.lazy)),
        ("AnonHugePages:", 0),
        ("ShmemPmdMapped:", 0),
        ("FilePmdMapped:", 0),
        ("Shared_Hugetlb:", 0),
        ("Private_Hugetlb:", 0),
        ("Swap:", 0),
        ("SwapPss:", 0),
        ("Locked:", if locked { proportional } else { 0 }),
    ] {
        writeln!(to, "{name:<16}{value:>8} kB")?;
    }
    writeln!(to, "{:<16}{:>8}", "THPeligible:", 0)?;
    to.write_str("VmFlags:")?;
    for (on, name) in [
        (region.prot.contains(Prot::READ), " rd"),
        (region.prot.contains(Prot::WRITE), " wr"),
        (region.prot.contains(Prot::EXEC), " ex"),
        (region.shared, " sh"),
        (true, " mr"),
        (!region.flags.contains(MapFlags::NEVER_WRITE), " mw"),
        (true, " me"),
        (region.shared, " ms"),
        (region.flags.contains(MapFlags::GROWS_DOWN), " gd"),
        (locked, " lo"),
        (region.flags.contains(MapFlags::LOCK_ON_FAULT), " lf"),
        (region.flags.contains(MapFlags::DONT_FORK), " dc"),
        (region.flags.contains(MapFlags::COUNTED), " ac"),
        (region.flags.contains(MapFlags::NO_RESERVE), " nr"),
        (region.flags.contains(MapFlags::WIPE_ON_FORK), " wf"),
        (region.flags.contains(MapFlags::DONT_DUMP), " dd"),
    ] {
        if on {
            to.write_str(name)?;
        }
    }
    to.write_str(" \n")
}

/// Writes `/proc/PID/smaps_rollup`: the sum over all regions, which begin and end there.
pub fn smaps_rollup(
    to: &mut dyn Write,
    (start, end): (u64, u64),
    pages: &Residency,
) -> fmt::Result {
    writeln!(to, "{start:08x}-{end:08x} ---p 00000000 00:00 0                          [rollup]")?;
    for (name, value) in [
        ("Rss:", kib(pages.present)),
        ("Pss:", pages.proportional >> 10),
        ("Pss_Dirty:", kib(pages.sole_dirty)),
        ("Pss_Anon:", kib(pages.anonymous)),
        ("Pss_File:", (pages.proportional >> 10).saturating_sub(kib(pages.anonymous))),
        ("Pss_Shmem:", 0),
    ] {
        writeln!(to, "{name:<16}{value:>8} kB")?;
    }
    by_sharing(to, pages)?;
    for (name, value) in [
        ("KSM:", 0),
        ("LazyFree:", kib(pages.lazy)),
        ("AnonHugePages:", 0),
        ("ShmemPmdMapped:", 0),
        ("FilePmdMapped:", 0),
        ("Shared_Hugetlb:", 0),
        ("Private_Hugetlb:", 0),
        ("Swap:", 0),
        ("SwapPss:", 0),
        ("Locked:", 0),
    ] {
        writeln!(to, "{name:<16}{value:>8} kB")?;
    }
    Ok(())
}

/// Writes `/proc/PID/statm`. `text`: pages of the program's code.
pub fn statm(to: &mut dyn Write, stats: &SpaceStats, text: u64) -> fmt::Result {
    let shared = stats.rss_file + stats.rss_shared;
    let data = stats.data + stats.stack;
    writeln!(to, "{} {} {shared} {text} 0 {data} 0", stats.mapped, stats.rss())
}

/// Writes the memory lines of `/proc/PID/status`, `VmPeak` to `VmSwap`. `text`: pages of the
/// program's code.
pub fn status_lines(to: &mut dyn Write, stats: &SpaceStats, text: u64) -> fmt::Result {
    for (name, pages) in [
        ("VmPeak:", stats.mapped_peak),
        ("VmSize:", stats.mapped),
        ("VmLck:", stats.locked),
        ("VmPin:", 0),
        ("VmHWM:", stats.rss_peak),
        ("VmRSS:", stats.rss()),
        ("RssAnon:", stats.rss_anonymous),
        ("RssFile:", stats.rss_file),
        ("RssShmem:", stats.rss_shared),
        ("VmData:", stats.data),
        ("VmStk:", stats.stack),
        ("VmExe:", text),
        ("VmLib:", stats.exec.saturating_sub(text)),
        ("VmPTE:", stats.tables),
        ("VmSwap:", 0),
    ] {
        writeln!(to, "{name}\t{:>8} kB", pages * 4)?;
    }
    Ok(())
}

/// The numbers of `/proc/meminfo`, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemInfo {
    /// All RAM that the kernel manages.
    pub total: u64,
    /// Unused.
    pub free: u64,
    /// What programs could have without others losing theirs.
    pub available: u64,
    /// Memory of programs alone, present.
    pub anonymous: u64,
    /// Contents of files.
    pub cached: u64,
    /// Contents of files that are mapped.
    pub mapped: u64,
    /// Shared memory.
    pub shared: u64,
    /// The kernel heap.
    pub slab: u64,
    /// Of which could be given back.
    pub slab_reclaimable: u64,
    /// Kernel stacks.
    pub kernel_stacks: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Locked by programs.
    pub locked: u64,
    /// What may be promised to programs where every promise has to be kept.
    pub commit_limit: u64,
    /// Promised to programs.
    pub committed: u64,
}

/// Writes `/proc/meminfo`.
pub fn meminfo(to: &mut dyn Write, info: &MemInfo) -> fmt::Result {
    for (name, bytes) in [
        ("MemTotal:", info.total),
        ("MemFree:", info.free),
        ("MemAvailable:", info.available),
        ("Buffers:", 0),
        ("Cached:", info.cached),
        ("SwapCached:", 0),
        ("Active:", info.anonymous + info.cached),
        ("Inactive:", 0),
        ("Active(anon):", info.anonymous),
        ("Inactive(anon):", 0),
        ("Active(file):", info.cached),
        ("Inactive(file):", 0),
        ("Unevictable:", 0),
        ("Mlocked:", info.locked),
        ("SwapTotal:", 0),
        ("SwapFree:", 0),
        ("Dirty:", 0),
        ("Writeback:", 0),
        ("AnonPages:", info.anonymous),
        ("Mapped:", info.mapped),
        ("Shmem:", info.shared),
        ("KReclaimable:", info.slab_reclaimable),
        ("Slab:", info.slab),
        ("SReclaimable:", info.slab_reclaimable),
        ("SUnreclaim:", info.slab.saturating_sub(info.slab_reclaimable)),
        ("KernelStack:", info.kernel_stacks),
        ("PageTables:", info.page_tables),
        ("CommitLimit:", info.commit_limit),
        ("Committed_AS:", info.committed),
    ] {
        writeln!(to, "{name:<16}{:>8} kB", bytes >> 10)?;
    }
    Ok(())
}

/// Counts what goes through, to pad up to a column.
struct Counted<'t> {
    to: &'t mut dyn Write,
    written: usize,
}

impl Counted<'_> {
    fn pad(&mut self) -> fmt::Result {
        (self.written..NAME_COLUMN).try_for_each(|_| self.to.write_char(' '))
    }
}

impl Write for Counted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.written += text.len();
        self.to.write_str(text)
    }
}

/// A file's name must not end the line.
struct Escaped<'t>(&'t mut dyn Write);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut parts = text.split('\n');
        if let Some(first) = parts.next() {
            self.0.write_str(first)?;
        }
        parts.try_for_each(|part| {
            self.0.write_str("\\012")?;
            self.0.write_str(part)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagoda_addr::{VirtAddr, VirtRange};
    use pagoda_vm::{FileIdentity, FileObject, ReadError};
    use std::string::{String, ToString};
    use std::sync::Arc;

    struct Named(&'static str);

    impl FileObject for Named {
        fn size(&self) -> u64 {
            0
        }
        fn read_page(&self, _: u64, _: &mut [u8; 4096]) -> Result<(), ReadError> {
            Err(ReadError::Bus)
        }
        fn identity(&self) -> FileIdentity {
            FileIdentity { major: 0xfe, minor: 0, inode: 247_282 }
        }
        fn write_path(&self, to: &mut dyn Write) -> fmt::Result {
            to.write_str(self.0)
        }
    }

    fn region(start: u64, end: u64, prot: Prot) -> RegionInfo {
        RegionInfo {
            range: VirtRange::new(VirtAddr::new(start), VirtAddr::new(end)).unwrap(),
            prot,
            flags: MapFlags::empty(),
            shared: false,
            offset: 0,
            file: None,
            heap: false,
            stack: false,
        }
    }

    fn line(region: &RegionInfo) -> String {
        let mut text = String::new();
        maps_line(&mut text, region).unwrap();
        text
    }

    // The expected lines were printed by a Linux kernel.
    #[test]
    fn maps_lines_are_those_of_linux() {
        let mut file = region(0x5576_21d9_e000, 0x5576_21da_4000, Prot::READ | Prot::EXEC);
        file.offset = 0x2000;
        file.file = Some(Arc::new(Named("/usr/bin/head")));
        assert_eq!(
            line(&file),
            "557621d9e000-557621da4000 r-xp 00002000 fe:00 247282                     /usr/bin/head\n"
        );
        let mut heap = region(0x55d5_cec0_b000, 0x55d5_cec2_c000, Prot::READ | Prot::WRITE);
        assert_eq!(line(&heap), "55d5cec0b000-55d5cec2c000 rw-p 00000000 00:00 0 \n");
        heap.heap = true;
        assert_eq!(
            line(&heap),
            "55d5cec0b000-55d5cec2c000 rw-p 00000000 00:00 0                          [heap]\n"
        );
        let low = region(0x40_0000, 0x40_1000, Prot::empty());
        assert_eq!(line(&low), "00400000-00401000 ---p 00000000 00:00 0 \n");
        file.file = Some(Arc::new(Named("/a\nb")));
        assert!(line(&file).ends_with(" /a\\012b\n"));
    }

    #[test]
    fn smaps_meminfo_status_and_statm_have_the_columns_of_linux() {
        let mut text = String::new();
        let pages = Residency {
            present: 2,
            sole: 2,
            accessed: 1,
            proportional: 8192,
            ..Residency::default()
        };
        smaps_entry(&mut text, &region(0x1000, 0x3000, Prot::READ), &pages).unwrap();
        for expected in [
            "\nSize:                  8 kB\n",
            "\nMMUPageSize:           4 kB\n",
            "\nPss:                   8 kB\n",
            "\nPrivate_Clean:         8 kB\n",
            "\nReferenced:            4 kB\n",
            "\nLazyFree:              0 kB\n",
            "\nTHPeligible:           0\n",
            "\nVmFlags: rd mr mw me \n",
        ] {
            assert!(text.contains(expected), "{expected:?} in {text}");
        }
        let mut text = String::new();
        let info = MemInfo { total: 24_684_084 << 10, ..MemInfo::default() };
        meminfo(&mut text, &info).unwrap();
        assert!(text.starts_with("MemTotal:       24684084 kB\nMemFree:               0 kB\n"));
        let stats = SpaceStats {
            mapped: 940,
            mapped_peak: 944,
            rss_anonymous: 37,
            rss_file: 480,
            rss_peak: 517,
            data: 73,
            stack: 33,
            exec: 525,
            tables: 13,
            ..SpaceStats::default()
        };
        let mut text = String::new();
        status_lines(&mut text, &stats, 36).unwrap();
        assert!(text.starts_with("VmPeak:\t    3776 kB\nVmSize:\t    3760 kB\n"));
        assert!(text.contains("\nVmExe:\t     144 kB\nVmLib:\t    1956 kB\nVmPTE:\t      52 kB\n"));
        let mut text = String::new();
        statm(&mut text, &stats, 36).unwrap();
        assert_eq!(text, 940.to_string() + " 517 480 36 0 106 0\n");
    }
}
