//! `cargo xtask bench linux`: one static program, `user/mmbench`, as the first process of Debian's
//! Linux kernel and of ours, in machines that count guest instructions.
//!
//! How it is measured: QEMU's TCG with `-icount shift=0`, where the time-stamp counter counts guest
//! instructions exactly: two runs give the same figures. One CPU, 512 MiB, no random addresses, and
//! no `erms`, so that each turn of a `rep` counts as one instruction. Linux runs twice: as Debian
//! ships it, and with `mitigations=off init_on_alloc=0`.
//!
//! Beside each figure stand the instructions that cost more than one ([`trace`]), counted in a
//! second run of each kernel under a plugin of QEMU (`tools/counter`).
//!
//! Left out: more than one CPU (`-icount` does not start a second one), time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::cpio::Archive;
use crate::guest::EXIT_CLEAN;
use crate::{build, setup};

pub mod malloc;
mod trace;

/// Options of `bench linux`.
#[derive(Parser)]
#[command(name = "cargo xtask bench linux")]
struct Options {
    /// How often each case is repeated
    #[arg(long, default_value_t = 5)]
    reps: u32,
    /// Leave out the second runs, which count locked instructions and the like
    #[arg(long)]
    no_trace: bool,
    /// Only say where our kernel spends its instructions in this case (a name of user/mmbench)
    #[arg(long, value_name = "CASE")]
    profile: Option<String>,
    /// Only our kernel, and only a list of figures: for whoever makes it faster
    #[arg(long)]
    ours: bool,
    /// With --ours: only these cases (names of user/mmbench)
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// With --profile: Linux in the place of our kernel (addresses, no names)
    #[arg(long)]
    of_linux: bool,
}

/// The longest that one machine may take.
const PATIENCE: Duration = Duration::from_secs(900);
const CPU: &str = "max,-rdrand,-rdseed,-erms";
const LINUX_WORDS: &str = "console=ttyS0 quiet loglevel=0 nokaslr norandmaps panic=-1";
const BARE_WORDS: &str = "mitigations=off init_on_alloc=0";

/// Cases in which our kernel brings several pages with one fault, unless it is told not to.
const SEQUENTIAL: &[&str] =
    &["touch", "mmap.touch.munmap.1m", "brk.64k", "cow.child", "cow.sole", "read.zero"];

/// A kernel to boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ours,
    /// With one page for each fault, as Linux does.
    OursSingle,
    Linux,
    LinuxBare,
}

/// What one run measured.
struct Figure {
    min: f64,
    median: f64,
}

/// All of one kernel.
#[derive(Default)]
struct Figures {
    /// Names of the cases as they ran, those that failed too.
    order: Vec<String>,
    cases: BTreeMap<String, Figure>,
}

/// What all runs share.
struct Bench {
    ours: PathBuf,
    linux: PathBuf,
    program: PathBuf,
    dir: PathBuf,
}

/// The command.
pub fn bench(arguments: &[String]) -> Result<()> {
    let options =
        Options::parse_from(std::iter::once("linux").chain(arguments.iter().map(String::as_str)));
    let bench = Bench::prepare()?;
    if let Some(case) = &options.profile {
        let kind = if options.of_linux { Kind::Linux } else { Kind::Ours };
        return bench.profile(kind, case);
    }
    if options.ours {
        return bench.glance(&options);
    }
    let from = bench.measure(&options)?;
    let from = from.to_string_lossy().into_owned();
    build::bench(&["linux".into(), "--from".into(), from])
}

impl Bench {
    fn prepare() -> Result<Self> {
        let linux = setup::linux_image(&build::out()?)?;
        let programs = build::programs()?;
        let program = programs.into_iter().find(|path| path.ends_with("mmbench"));
        let dir = build::target().join("bench");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { ours: build::kernel()?, linux, program: program.context("user/mmbench")?, dir })
    }

    /// Measures everything; returns the path of the raw counts.
    fn measure(&self, options: &Options) -> Result<PathBuf> {
        let words = format!("reps={}", options.reps);
        let mut parts = Vec::new();
        let mut order = Vec::new();
        let kinds = [(Kind::Ours, "ours"), (Kind::Linux, "linux"), (Kind::LinuxBare, "bare")];
        for (kind, name) in kinds {
            eprintln!("bench: {name}");
            let figures = figures(&self.boot(kind, &words, None)?)?;
            let mut json = format!("{{\"cases\": {}", cases_json(&figures.cases));
            order = figures.order;
            if !options.no_trace && kind != Kind::LinuxBare {
                eprintln!("bench: {name}, locked instructions and the like");
                let events = self.events(kind, &order)?;
                let _ = write!(json, ", \"events\": {}", trace::json(&events));
            }
            parts.push(json + "}");
        }
        eprintln!("bench: ours, one page for each fault");
        let mut sequential = words.clone();
        SEQUENTIAL.iter().for_each(|case| sequential.extend([" case=", case]));
        let single = figures(&self.boot(Kind::OursSingle, &sequential, None)?)?;
        let single = cases_json(&single.cases);
        let [ours, linux, bare] = parts.as_slice() else { bail!("three kernels") };
        let order: Vec<String> = order.iter().map(|name| format!("\"{name}\"")).collect();
        let version = self.linux.file_name().map(|name| name.to_string_lossy().into_owned());
        let raw = format!(
            "{{\"version\": \"{}\",\n\"order\": [{}],\n\"ours\": {ours},\n\
             \"ours_single\": {{\"cases\": {single}}},\n\"linux\": {linux},\n\
             \"mitigations_off\": {bare}}}\n",
            version.unwrap_or_default().trim_start_matches("vmlinuz-"),
            order.join(", "),
        );
        let path = self.dir.join("linux-raw.json");
        fs::write(&path, raw).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Prints what our kernel needs in some cases.
    fn glance(&self, options: &Options) -> Result<()> {
        let mut words = format!("reps={}", options.reps);
        for case in &options.case {
            let _ = write!(words, " case={case}");
        }
        let figures = figures(&self.boot(Kind::Ours, &words, None)?)?;
        for name in &figures.order {
            match figures.cases.get(name) {
                Some(figure) => println!("{:12.1}  {name}", figure.median),
                None => println!("{:>12}  {name}", "failed"),
            }
        }
        Ok(())
    }

    /// Runs with the plugin; what each case needed for one operation.
    fn events(&self, kind: Kind, order: &[String]) -> Result<BTreeMap<String, trace::Events>> {
        let counts = self.dir.join("counts");
        let said = self.boot(kind, "reps=1 mark", Some(&counts))?;
        let operations = operations(&said);
        trace::events(&counts, order, &operations)
    }

    /// Prints where a kernel spends its instructions.
    fn profile(&self, kind: Kind, case: &str) -> Result<()> {
        let counts = self.dir.join("counts");
        let said = self.boot(kind, &format!("reps=1 mark case={case}"), Some(&counts))?;
        let operations = operations(&said).get(case).copied();
        let operations = operations.with_context(|| format!("the case {case} failed:\n{said}"))?;
        let image = (kind == Kind::Ours).then_some(self.ours.as_path());
        print!("{}", trace::profile(&counts, image, operations)?);
        Ok(())
    }

    /// Boots one kernel with mmbench as its first process; what that said.
    fn boot(&self, kind: Kind, words: &str, counts: Option<&Path>) -> Result<String> {
        let initramfs = self.initramfs(words)?;
        let (line, log) = (self.dir.join("line"), self.dir.join("log"));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot"]);
        command.args(["-accel", "tcg", "-icount", "shift=0,sleep=off", "-cpu", CPU]);
        command.args(["-rtc", "base=2024-01-01,clock=vm", "-smp", "1", "-m", "512M"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        command.arg("-serial").arg(format!("file:{}", line.display()));
        command.arg("-serial").arg(format!("file:{}", log.display()));
        command.args(["-serial", "null"]);
        if let Some(counts) = counts {
            let plugin = build::counter()?;
            let plugin = format!("{},out={}", plugin.display(), counts.display());
            command.arg("-plugin").arg(plugin);
        }
        // Our kernel takes a module by its command line, which is all of the argument.
        let name = initramfs.file_name().context("a name")?.to_string_lossy().into_owned();
        command.current_dir(&self.dir);
        match kind {
            Kind::Ours | Kind::OursSingle => {
                let more = if kind == Kind::OursSingle { " faultahead=1" } else { "" };
                command.arg("-kernel").arg(&self.ours).arg("-initrd");
                command.arg(format!("{name} initramfs"));
                command.arg("-append").arg(format!("stdio=raw log=com2{more}"));
            }
            Kind::Linux | Kind::LinuxBare => {
                let more = if kind == Kind::LinuxBare { BARE_WORDS } else { "" };
                command.arg("-kernel").arg(&self.linux).arg("-initrd").arg(name);
                command.arg("-append").arg(format!("{LINUX_WORDS} {more} -- {words}"));
            }
        }
        command.stdin(Stdio::null());
        let child = command.spawn().context("qemu-system-x86_64 does not start")?;
        let status = wait(child)?;
        let said = String::from_utf8_lossy(&fs::read(&line).unwrap_or_default()).into_owned();
        // Linux ends by a reset, which ends QEMU with 0.
        let ours = matches!(kind, Kind::Ours | Kind::OursSingle);
        let well = if ours { Some(EXIT_CLEAN) } else { Some(0) };
        if status != well || !said.contains("mmbench: done") {
            let log = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
            bail!("{kind:?} did not come to its end (QEMU {status:?}):\n{said}\n{log}");
        }
        Ok(said)
    }

    /// The program under the names that both kernels start, and nothing else.
    fn initramfs(&self, words: &str) -> Result<PathBuf> {
        let program = fs::read(&self.program);
        let program = program.with_context(|| format!("no {}", self.program.display()))?;
        let mut archive = Archive::default();
        for dir in ["/dev", "/proc", "/tmp"] {
            archive.directory(dir);
        }
        archive.file("/init", 0o755, program);
        let arguments = format!("/init {words}").replace(' ', "\0") + "\0";
        archive.file("/etc/pagoda/argv", 0o644, arguments.into_bytes());
        archive.file("/etc/pagoda/env", 0o644, Vec::new());
        let path = self.dir.join("initramfs");
        fs::write(&path, archive.into_bytes())?;
        Ok(path)
    }
}

/// QEMU's exit status; none when it took too long, or a signal ended it.
fn wait(mut child: Child) -> Result<Option<i32>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The words of a line `mmbench: case=NAME ...`, as pairs.
fn pairs(line: &str) -> Option<BTreeMap<&str, &str>> {
    let words = line.trim().strip_prefix("mmbench: ")?;
    Some(words.split(' ').filter_map(|word| word.split_once('=')).collect())
}

fn figures(said: &str) -> Result<Figures> {
    let mut figures = Figures::default();
    for pairs in said.lines().filter_map(pairs) {
        let Some(&case) = pairs.get("case") else { continue };
        figures.order.push(case.to_owned());
        let number = |name: &str| pairs.get(name).and_then(|word| word.parse().ok());
        if let (Some(min), Some(median)) = (number("min"), number("median")) {
            figures.cases.insert(case.to_owned(), Figure { min, median });
        }
    }
    if figures.cases.is_empty() {
        bail!("mmbench measured nothing:\n{said}");
    }
    Ok(figures)
}

/// How many operations one repetition of each case does.
fn operations(said: &str) -> BTreeMap<String, u64> {
    let all = said.lines().filter_map(pairs);
    all.filter_map(|pairs| {
        Some(((*pairs.get("case")?).to_owned(), pairs.get("ops")?.parse().ok()?))
    })
    .collect()
}

fn cases_json(cases: &BTreeMap<String, Figure>) -> String {
    let all: Vec<String> = cases
        .iter()
        .map(|(name, figure)| {
            format!("\"{name}\": {{\"median\": {}, \"min\": {}}}", figure.median, figure.min)
        })
        .collect();
    format!("{{{}}}", all.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mmbench_are_understood_and_others_passed_over() {
        let said = "noise\r\nmmbench: case=a.b ops=10 reps=3 min=1.50 median=2.00\r\n\
                    mmbench: case=c error=19\r\nmmbench: done\r\n";
        let figures = figures(said).unwrap();
        assert_eq!(figures.order, ["a.b", "c"]);
        assert_eq!(figures.cases.len(), 1);
        assert_eq!(figures.cases["a.b"].median, 2.0);
        assert_eq!(operations(said)["a.b"], 10);
    }
}
