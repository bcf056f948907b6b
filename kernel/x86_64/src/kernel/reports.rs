//! Texts about the insides, for `/proc`. None is written with a lock held: `out` may allocate.

use core::fmt;

use pagoda_addr::PAGE_SIZE;
use pagoda_frames::{Snapshot, Stats, ZeroStats};
use pagoda_kernel_core::machine::Report;
use pagoda_kva::Kind;

use super::host::{KERNEL, heap, kind};
use super::{cpu, ledger, percpu, time};

pub(crate) fn write(what: Report, out: &mut dyn fmt::Write) -> fmt::Result {
    match what {
        Report::BuddyInfo => each_node(|node| node.buddyinfo(out)),
        Report::ZoneInfo => each_node(|node| node.zoneinfo(out)),
        Report::PageTypeInfo => each_node(|node| node.pagetypeinfo(out)),
        Report::SlabInfo => heap().slabinfo(&mut { out }),
        Report::Frames => frame_info(out),
        Report::VmallocInfo => vmalloc_info(out),
        Report::IoMem => io_mem(out),
        Report::CpuInfo => cpu_info(out),
    }
}

/// Node by node, as Linux has it.
fn each_node(mut write: impl FnMut(&Snapshot) -> fmt::Result) -> fmt::Result {
    let Some(frames) = KERNEL.frames.get() else { return Ok(()) };
    frames.nodes().try_for_each(|node| write(&frames.snapshot_of(node)))
}

/// Of our own making: where all frames are, and whose.
fn frame_info(out: &mut dyn fmt::Write) -> fmt::Result {
    let Some(frames) = KERNEL.frames.get() else { return Ok(()) };
    let Stats { total, free, cached, used, reserve } = frames.stats();
    writeln!(out, "total   {total}\nfree    {free}\ncached  {cached}")?;
    writeln!(out, "used    {used}\nreserve {reserve}")?;
    let ZeroStats { pooled, served, missed } = frames.zero_stats();
    writeln!(out, "zeroed  {pooled} in stock, {served} served, {missed} zeroed on the spot")?;
    for (kind, count) in ledger::by_kind(frames) {
        if count > 0 {
            writeln!(out, "    {count:>10} {}", kind::name(kind))?;
        }
    }
    Ok(())
}

/// As Linux has it: addresses with the guard page behind, bytes, what for, pages.
fn vmalloc_info(out: &mut dyn fmt::Write) -> fmt::Result {
    const AT_ONCE: usize = 16;
    let Some(ranges) = KERNEL.ranges.get() else { return Ok(()) };
    let mut first = 0;
    loop {
        // The areas are walked with the table locked, and `out` may allocate: a few at a time.
        let (mut some, mut index) = ([None; AT_ONCE], 0_usize);
        ranges.each_area(|guard| {
            if let Some(slot) = index.checked_sub(first).and_then(|at| some.get_mut(at)) {
                *slot = Some((guard.kind, guard.body));
            }
            index += 1;
        });
        for (kind, body) in some.into_iter().flatten() {
            let (bytes, size) = (body.addresses(), body.bytes() + PAGE_SIZE);
            let (start, end) = (bytes.start().as_u64(), bytes.end().as_u64() + PAGE_SIZE);
            write!(out, "{start:#018x}-{end:#018x} {size:7} ")?;
            match kind {
                Kind::Stack => writeln!(out, "stack pages={} vmalloc", body.count())?,
                Kind::Block => writeln!(out, "block pages={} vmalloc", body.count())?,
                Kind::Device => writeln!(out, "device ioremap")?,
            }
        }
        first += AT_ONCE;
        if first >= index {
            return Ok(());
        }
    }
}

fn io_mem(out: &mut dyn fmt::Write) -> fmt::Result {
    let Some(map) = KERNEL.map.get() else { return Ok(()) };
    for region in map.regions() {
        let (start, end) = (region.range.start().as_u64(), region.range.end().as_u64());
        writeln!(out, "{start:012x}-{:012x} : {}", end.saturating_sub(1), region.kind)?;
    }
    Ok(())
}

fn cpu_info(out: &mut dyn fmt::Write) -> fmt::Result {
    let Some(cpu) = cpu::features() else { return Ok(()) };
    for number in 0..percpu::started() {
        writeln!(out, "processor\t: {number}\nmodel name\t: {}", cpu.brand())?;
        writeln!(out, "cpu MHz\t\t: {}.000", time::tsc_hz() / 1_000_000)?;
        writeln!(out, "address sizes\t: {} bits physical, 48 bits virtual\n", cpu.phys_bits)?;
    }
    Ok(())
}
