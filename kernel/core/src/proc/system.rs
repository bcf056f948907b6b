//! Files about the whole machine.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use pagoda_linux::text::{MemInfo, meminfo};

use super::Item;
use crate::kernel::Kernel;
use crate::machine::{Machine, Report};
use crate::sys::{RELEASE, VERSION};
use crate::task::Usage;
use crate::text::Printable;

const SECOND: u64 = 1_000_000_000;
/// Nanoseconds of a tick of `/proc`.
pub(super) const TICK: u64 = 10_000_000;

pub(super) fn top_names() -> &'static [&'static str] {
    &[
        "self",
        "thread-self",
        "buddyinfo",
        "cmdline",
        "cpuinfo",
        "devices",
        "filesystems",
        "frames",
        "interrupts",
        "iomem",
        "kpagecount",
        "kpageflags",
        "loadavg",
        "meminfo",
        "mounts",
        "pagetypeinfo",
        "partitions",
        "slabinfo",
        "stat",
        "swaps",
        "sys",
        "sysvipc",
        "uptime",
        "version",
        "vmallocinfo",
        "vmstat",
        "zoneinfo",
    ]
}

pub(super) fn top_item<M: Machine>(name: &str) -> Option<Item<M>> {
    Some(match name {
        "self" => Item::Link(|kernel| Some(kernel.sched.current()?.process.pid), "#"),
        "thread-self" => Item::Link(|kernel| Some(kernel.sched.current()?.tid), "self/task/#"),
        "buddyinfo" => Item::Text(|k, out| k.machine.report(Report::BuddyInfo, out)),
        "cmdline" => Item::Text(|k, out| writeln!(out, "{}", Printable(k.command_line))),
        "cpuinfo" => Item::Text(cpuinfo),
        "devices" => Item::Text(|_, out| out.write_str("Character devices:\n  1 mem\n  5 tty\n")),
        "filesystems" => Item::Text(|_, out| out.write_str("nodev\ttmpfs\nnodev\tproc\n")),
        "frames" => Item::Text(|k, out| k.machine.report(Report::Frames, out)),
        "interrupts" => Item::Text(|_, out| out.write_str("           CPU0\n")),
        "iomem" => Item::Text(|k, out| k.machine.report(Report::IoMem, out)),
        "kpagecount" => Item::Frames { flags: false },
        "kpageflags" => Item::Frames { flags: true },
        "loadavg" => Item::Text(loadavg),
        "meminfo" => Item::Text(memory),
        "mounts" => Item::Link(|kernel| Some(kernel.sched.current()?.process.pid), "#/mounts"),
        "pagetypeinfo" => Item::Text(|k, out| k.machine.report(Report::PageTypeInfo, out)),
        "partitions" => Item::Text(|_, out| out.write_str("major minor  #blocks  name\n\n")),
        "slabinfo" => Item::Text(|k, out| k.machine.report(Report::SlabInfo, out)),
        "stat" => Item::Text(stat),
        "swaps" => {
            Item::Text(|_, out| out.write_str("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"))
        }
        "sysvipc" => Item::Directory(|| &["shm"], sysvipc_item::<M>),
        "sys" => Item::Directory(|| &["kernel", "vm", "fs"], sys_item::<M>),
        "uptime" => Item::Text(uptime),
        "version" => Item::Text(|_, out| writeln!(out, "Linux version {RELEASE} {VERSION}")),
        "vmallocinfo" => Item::Text(|k, out| k.machine.report(Report::VmallocInfo, out)),
        "vmstat" => Item::Text(vmstat),
        "zoneinfo" => Item::Text(|k, out| k.machine.report(Report::ZoneInfo, out)),
        _ => return None,
    })
}

fn sys_item<M: Machine>(name: &str) -> Option<Item<M>> {
    Some(match name {
        "kernel" => Item::Directory(
            || {
                &[
                    "cap_last_cap",
                    "hostname",
                    "ngroups_max",
                    "osrelease",
                    "ostype",
                    "pid_max",
                    "randomize_va_space",
                    "threads-max",
                    "version",
                ]
            },
            sys_kernel_item::<M>,
        ),
        "vm" => Item::Directory(
            || {
                &[
                    "admin_reserve_kbytes",
                    "max_map_count",
                    "mmap_min_addr",
                    "overcommit_kbytes",
                    "overcommit_memory",
                    "overcommit_ratio",
                    "swappiness",
                    "user_reserve_kbytes",
                ]
            },
            sys_vm_item::<M>,
        ),
        "fs" => Item::Directory(|| &["file-max", "nr_open", "pipe-max-size"], sys_fs_item::<M>),
        _ => return None,
    })
}

fn sys_kernel_item<M: Machine>(name: &str) -> Option<Item<M>> {
    Some(match name {
        "cap_last_cap" => Item::Text(|_, out| out.write_str("40\n")),
        "hostname" => Item::Text(|_, out| out.write_str("pagoda\n")),
        "ngroups_max" => Item::Text(|_, out| out.write_str("65536\n")),
        "osrelease" => Item::Text(|_, out| writeln!(out, "{RELEASE}")),
        "ostype" => Item::Text(|_, out| out.write_str("Linux\n")),
        "pid_max" => Item::Text(|_, out| out.write_str("4194304\n")),
        "randomize_va_space" => Item::Text(|_, out| out.write_str("0\n")),
        "threads-max" => Item::Text(|_, out| writeln!(out, "{}", crate::kernel::THREADS_MAX)),
        "version" => Item::Text(|_, out| writeln!(out, "{VERSION}")),
        _ => return None,
    })
}

fn sys_vm_item<M: Machine>(name: &str) -> Option<Item<M>> {
    Some(match name {
        "max_map_count" => Item::Text(|_, out| out.write_str("65530\n")),
        "mmap_min_addr" => Item::Text(|_, out| out.write_str("65536\n")),
        "swappiness" => Item::Text(|_, out| out.write_str("0\n")),
        _ => Item::Setting(super::settings::of_memory(name)?),
    })
}

fn sysvipc_item<M: Machine>(name: &str) -> Option<Item<M>> {
    (name == "shm").then_some(Item::Text(|kernel, out| kernel.list_segments(out)))
}

fn sys_fs_item<M: Machine>(name: &str) -> Option<Item<M>> {
    Some(match name {
        "file-max" => Item::Text(|_, out| out.write_str("1048576\n")),
        "nr_open" => Item::Text(|_, out| out.write_str("1048576\n")),
        "pipe-max-size" => Item::Text(|_, out| out.write_str("65536\n")),
        _ => return None,
    })
}

/// Counts a text's bytes while it passes.
struct Count<'o> {
    out: &'o mut dyn Write,
    bytes: usize,
}

impl Write for Count<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes += text.len();
        self.out.write_str(text)
    }
}

fn cpuinfo<M: Machine>(kernel: &Kernel<M>, out: &mut dyn Write) -> fmt::Result {
    let mut counted = Count { out, bytes: 0 };
    kernel.machine.report(Report::CpuInfo, &mut counted)?;
    if counted.bytes == 0 {
        out.write_str("processor\t: 0\nvendor_id\t: unknown\nmodel name\t: unknown\n\n")?;
    }
    Ok(())
}

/// What all processes have used since the start.
fn total_usage<M: Machine>(kernel: &Kernel<M>) -> (Usage, u64) {
    let (mut total, mut resident) = (Usage::default(), 0);
    let mut next = 0;
    while let Some(process) = kernel.next_process(next) {
        next = process.pid + 1;
        total.add(&process.usage());
        let children = process.family.lock().children_usage;
        total.add(&children);
        resident += process.space().map_or(0, |space| space.stats().rss_anonymous);
    }
    (total, resident)
}

fn idle_ns<M: Machine>(kernel: &Kernel<M>, used: &Usage) -> u64 {
    let passed = kernel.machine.monotonic_ns() * kernel.machine.cpu_count() as u64;
    passed.saturating_sub(used.user + used.system)
}

fn memory<M: Machine>(kernel: &Kernel<M>, out: &mut dyn Write) -> fmt::Result {
    let totals = kernel.machine.memory();
    let free = totals.free + totals.cached;
    let (_, resident) = total_usage(kernel);
    let (mut locked, mut mapped) = (0, 0);
    let mut next = 0;
    while let Some(process) = kernel.next_process(next) {
        next = process.pid + 1;
        let stats = process.space().map(|space| space.stats()).unwrap_or_default();
        locked += stats.locked;
        mapped += stats.rss_file + stats.rss_shared;
    }
    let books = kernel.machine.commit();
    meminfo(
        out,
        &MemInfo {
            total: totals.total,
            free,
            available: free.saturating_sub(totals.reserve),
            anonymous: resident * 4096,
            cached: kernel.vfs.used_bytes(),
            mapped: mapped * 4096,
            shared: kernel.vfs.used_bytes(),
            slab: totals.heap,
            slab_reclaimable: 0,
            kernel_stacks: totals.stacks,
            page_tables: totals.page_tables,
            locked: locked * 4096,
            commit_limit: books.map_or(totals.total, |books| books.limit() * 4096),
            committed: books.map_or(0, |books| books.promised() * 4096),
        },
    )
}

fn vmstat<M: Machine>(kernel: &Kernel<M>, out: &mut dyn Write) -> fmt::Result {
    let totals = kernel.machine.memory();
    let (usage, resident) = total_usage(kernel);
    let (mut mapped, mut locked, mut next) = (0, 0, 0);
    while let Some(process) = kernel.next_process(next) {
        next = process.pid + 1;
        let stats = process.space().map(|space| space.stats()).unwrap_or_default();
        mapped += stats.rss_file + stats.rss_shared;
        locked += stats.locked;
    }
    let files = kernel.vfs.used_bytes() / 4096;
    for (name, value) in [
        ("nr_free_pages", (totals.free + totals.cached) / 4096),
        ("nr_inactive_anon", 0),
        ("nr_active_anon", resident),
        ("nr_inactive_file", 0),
        ("nr_active_file", files),
        ("nr_unevictable", 0),
        ("nr_mlock", locked),
        ("nr_slab_reclaimable", 0),
        ("nr_slab_unreclaimable", totals.heap / 4096),
        ("nr_anon_pages", resident),
        ("nr_mapped", mapped),
        ("nr_file_pages", files),
        ("nr_dirty", 0),
        ("nr_writeback", 0),
        ("nr_shmem", files),
        ("nr_kernel_stack", totals.stacks / 1024),
        ("nr_page_table_pages", totals.page_tables / 4096),
        ("pgpgin", 0),
        ("pgpgout", 0),
        ("pswpin", 0),
        ("pswpout", 0),
        ("pgfault", usage.faults),
        ("pgmajfault", 0),
    ] {
        writeln!(out, "{name} {value}")?;
    }
    Ok(())
}

fn uptime<M: Machine>(kernel: &Kernel<M>, out: &mut dyn Write) -> fmt::Result {
    let (used, _) = total_usage(kernel);
    let both = [kernel.machine.monotonic_ns(), idle_ns(kernel, &used)];
    let [(a, b), (c, d)] = both.map(|ns| (ns / SECOND, ns % SECOND / TICK));
    writeln!(out, "{a}.{b:02} {c}.{d:02}")
}

fn loadavg<M: Machine>(kernel: &Kernel<M>, out: &mut dyn Write) -> fmt::Result {
    for value in kernel.load.lock().values {
        write!(out, "{}.{:02} ", value / 2048, value % 2048 * 100 / 2048)?;
    }
    let (threads, runnable) = kernel.sched.counts();
    writeln!(out, "{runnable}/{threads} {}", kernel.tables.lock().last)
}

fn stat<M: Machine>(kernel: &Kernel<M>, out: &mut dyn Write) -> fmt::Result {
    let (used, _) = total_usage(kernel);
    let idle = idle_ns(kernel, &used) / TICK;
    let (user, system) = (used.user / TICK, used.system / TICK);
    writeln!(out, "cpu  {user} 0 {system} {idle} 0 0 0 0 0 0")?;
    let machine = kernel.machine;
    let cpus = machine.cpu_count() as u64;
    for cpu in 0..cpus {
        // Not kept by CPU: an equal share each.
        let [user, system, idle] = [user, system, idle].map(|ticks| ticks / cpus);
        writeln!(out, "cpu{cpu} {user} 0 {system} {idle} 0 0 0 0 0 0")?;
    }
    let booted = machine.realtime_ns().saturating_sub(machine.monotonic_ns()) / SECOND;
    let (_, runnable) = kernel.sched.counts();
    let made = kernel.tables.lock().made;
    writeln!(out, "intr 0\nctxt {}", kernel.switches.load(Ordering::Relaxed))?;
    writeln!(out, "btime {booted}\nprocesses {made}")?;
    writeln!(out, "procs_running {runnable}\nprocs_blocked 0")
}
