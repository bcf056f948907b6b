//! The texts that `ps` and `top` read: `stat`, `statm`, `status`, `limits`.

use core::fmt::Write;
use core::sync::atomic::Ordering;

use pagoda_kernel_fs::TextBuffer;
use pagoda_linux::text;

use super::process::full;
use super::system::TICK;
use crate::Result;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::task::Process;
use crate::text::name;

/// Pages of code.
fn code_pages<M: Machine>(process: &Process<M>) -> u64 {
    process.space().map_or(0, |space| space.stats().exec)
}

pub(super) fn statm<M: Machine>(
    _: &Kernel<M>,
    process: &Process<M>,
    out: &mut TextBuffer,
) -> Result<()> {
    let stats = process.space().map(|space| space.stats()).unwrap_or_default();
    full(text::statm(out, &stats, code_pages(process)))
}

/// One letter, and its meaning.
fn state<M: Machine>(kernel: &Kernel<M>, process: &Process<M>) -> (char, &'static str) {
    let family = process.family.lock();
    if family.ended.is_some() || family.threads.is_empty() {
        return ('Z', "zombie");
    }
    if process.is_stopped() {
        return ('T', "stopped");
    }
    let asleep = family.threads.iter().all(|thread| kernel.sched.is_waiting(thread));
    if asleep { ('S', "sleeping") } else { ('R', "running") }
}

pub(super) fn stat<M: Machine>(
    kernel: &Kernel<M>,
    process: &Process<M>,
    out: &mut TextBuffer,
) -> Result<()> {
    let usage = process.usage();
    let stats = process.space().map(|space| space.stats()).unwrap_or_default();
    let (letter, _) = state(kernel, process);
    let (threads, children, ended, terminal) = {
        let family = process.family.lock();
        (family.threads.len(), family.children_usage, family.ended, family.terminal.clone())
    };
    let (ignored, caught) = process.signals.lock().summary();
    let pending = process.signals.lock().pending.set();
    let (program_name, args, env, stack) = {
        let program = process.program.lock();
        (program.name, program.args, program.env, program.stack_start)
    };
    let terminal_number = if terminal.is_some() { 0x440 } else { 0 };
    let front = terminal.map_or(-1, |terminal| terminal.foreground());
    let nice = process.nice.load(Ordering::Relaxed);
    let load = |value: &core::sync::atomic::AtomicU32| value.load(Ordering::Relaxed);
    full(write!(
        out,
        "{} ({}) {letter} {} {} {} {terminal_number} {front} 0 {} {} 0 0 {} {} {} {} {} {nice} ",
        process.pid,
        name(&program_name),
        load(&process.parent),
        load(&process.group),
        load(&process.session),
        usage.faults,
        children.faults,
        usage.user / TICK,
        usage.system / TICK,
        children.user / TICK,
        children.system / TICK,
        20 + nice,
    ))?;
    full(writeln!(
        out,
        "{threads} 0 {} {} {} {} 0 0 {stack} 0 0 {} 0 {} {} 0 0 0 17 0 0 0 0 0 0 0 0 0 {} {} {} {} {}",
        process.started_ns / TICK,
        stats.mapped * 4096,
        stats.rss(),
        u64::MAX,
        pending.0 & 0x7fff_ffff,
        ignored.0 & 0x7fff_ffff,
        caught.0 & 0x7fff_ffff,
        args.0,
        args.1,
        env.0,
        env.1,
        ended.map_or(0, |status| status.0),
    ))
}

pub(super) fn status<M: Machine>(
    kernel: &Kernel<M>,
    process: &Process<M>,
    out: &mut TextBuffer,
) -> Result<()> {
    let (letter, word) = state(kernel, process);
    let program_name = process.program.lock().name;
    let ids = process.ids.lock().try_clone()?;
    let parent = process.parent.load(Ordering::Relaxed);
    let umask = process.places().map_or(0, |places| places.umask);
    full(writeln!(
        out,
        "Name:\t{}\nUmask:\t{umask:04o}\nState:\t{letter} ({word})\nTgid:\t{pid}\nNgid:\t0\n\
         Pid:\t{pid}\nPPid:\t{parent}\nTracerPid:\t0",
        name(&program_name),
        pid = process.pid,
    ))?;
    for (label, [real, effective, saved]) in [("Uid", ids.uid), ("Gid", ids.gid)] {
        full(writeln!(out, "{label}:\t{real}\t{effective}\t{saved}\t{effective}"))?;
    }
    let files = process.files().map_or(0, |files| {
        let table = files.0.lock();
        table.iter().last().map_or(0, |(fd, _)| (fd as usize + 1).next_multiple_of(64))
    });
    full(write!(out, "FDSize:\t{files}\nGroups:\t"))?;
    for group in &ids.groups {
        full(write!(out, "{group} "))?;
    }
    full(writeln!(out))?;
    if let Some(space) = process.space() {
        full(text::status_lines(out, &space.stats(), code_pages(process)))?;
    }
    let (ignored, caught) = process.signals.lock().summary();
    let shared = process.signals.lock().pending.set();
    let (threads, own, mask) = {
        let family = process.family.lock();
        let first = family.threads.first().map(|thread| {
            let signals = thread.signals.lock();
            (signals.pending.set(), signals.mask)
        });
        let (own, mask) = first.unwrap_or_default();
        (family.threads.len(), own, mask)
    };
    full(writeln!(out, "Threads:\t{threads}\nSigQ:\t0/1024"))?;
    for (label, set) in [
        ("SigPnd", own),
        ("ShdPnd", shared),
        ("SigBlk", mask),
        ("SigIgn", ignored),
        ("SigCgt", caught),
    ] {
        full(writeln!(out, "{label}:\t{:016x}", set.0))?;
    }
    let all: u64 = if ids.uid[1] == 0 { (1 << 41) - 1 } else { 0 };
    for label in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let value = if matches!(label, "CapInh" | "CapAmb") { 0 } else { all };
        full(writeln!(out, "{label}:\t{value:016x}"))?;
    }
    cpus_allowed(kernel, process, out)
}

pub(super) fn limits<M: Machine>(
    _: &Kernel<M>,
    process: &Process<M>,
    out: &mut TextBuffer,
) -> Result<()> {
    const ROWS: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let rows = *process.limits.lock();
    full(writeln!(
        out,
        "{:<25} {:<20} {:<20} {:<10}",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    ))?;
    for ((label, unit), (soft, hard)) in ROWS.iter().zip(rows) {
        full(write!(out, "{label:<25} "))?;
        for value in [soft, hard] {
            full(match value {
                u64::MAX => write!(out, "{:<20} ", "unlimited"),
                value => write!(out, "{value:<20} "),
            })?;
        }
        full(writeln!(out, "{unit:<10}"))?;
    }
    Ok(())
}

/// The CPUs that the first thread may run on, as a number and as a list. Linux writes as many digits
/// as all CPUs take, with a comma after each eight from the right.
fn cpus_allowed<M: Machine>(
    kernel: &Kernel<M>,
    process: &Process<M>,
    out: &mut TextBuffer,
) -> Result<()> {
    let cpus = kernel.machine.cpu_count().clamp(1, 64);
    let first = process.family.lock().threads.first().cloned();
    let all = u64::MAX >> (64 - cpus);
    let allowed = first.map_or(all, |thread| kernel.sched.affinity(&thread));
    full(write_cpus(out, allowed, cpus))
}

fn write_cpus(out: &mut impl Write, allowed: u64, cpus: usize) -> core::fmt::Result {
    let digits = cpus.div_ceil(4);
    out.write_str("Cpus_allowed:\t")?;
    for digit in (0..digits).rev() {
        write!(out, "{:x}", allowed >> (4 * digit) & 0xf)?;
        if digit % 8 == 0 && digit != 0 {
            out.write_str(",")?;
        }
    }
    out.write_str("\nCpus_allowed_list:\t")?;
    let has = |cpu: usize| cpu < 64 && allowed & 1 << cpu != 0;
    let mut separator = "";
    for from in (0..cpus).filter(|&cpu| has(cpu) && (cpu == 0 || !has(cpu - 1))) {
        let to = (from..cpus).take_while(|&cpu| has(cpu)).last().unwrap_or(from);
        write!(out, "{separator}{from}")?;
        if to != from {
            write!(out, "-{to}")?;
        }
        separator = ",";
    }
    out.write_str("\n")
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;

    use super::write_cpus;

    #[test]
    fn cpus_are_listed_as_linux_lists_them() {
        for (allowed, cpus, expected) in [
            (1, 1, "Cpus_allowed:\t1\nCpus_allowed_list:\t0\n"),
            (0b1011, 4, "Cpus_allowed:\tb\nCpus_allowed_list:\t0-1,3\n"),
            (0b10, 8, "Cpus_allowed:\t02\nCpus_allowed_list:\t1\n"),
            (u64::MAX, 64, "Cpus_allowed:\tffffffff,ffffffff\nCpus_allowed_list:\t0-63\n"),
        ] {
            let mut text = String::new();
            write_cpus(&mut text, allowed, cpus).unwrap();
            assert_eq!(text, expected);
        }
    }
}
