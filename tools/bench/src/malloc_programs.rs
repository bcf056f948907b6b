//! Real programs with a malloc loaded before them: CPU time and peak memory, in interleaved rounds.
//!
//! In each round each program runs once for nothing, then with each malloc, another one first each time; three
//! times, if it takes less than a second.
//! CPU time is user and system time of the program, peak memory its largest resident size, as the
//! system counts them for a child that ended. glibc's figure is the median of all rounds, another's the median of
//! its ratios to glibc's in the same round, times that: machines with neighbours change their speed for
//! seconds, and medians of nine would compare a fast moment with a slow one. The last rows are geometric means of
//! those ratios. python3 runs with `PYTHONMALLOC=malloc`: its own pools
//! would hide what is measured. Debian's Redis links jemalloc, so its glibc column has the C library
//! put in front.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::malloc_inputs;
use crate::measure::{beside, ratio};
use crate::report::{Better, Row};

/// Where shared objects of Debian are.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// A malloc to load.
pub struct Loaded {
    /// Its name in the table; in parentheses when it is no peer of a gate.
    pub name: &'static str,
    /// The shared object, if one is needed.
    pub object: Option<PathBuf>,
    /// What it is told by the environment.
    pub options: &'static [(&'static str, &'static str)],
}

/// Builds our shared object; returns its path.
pub fn ours() -> Result<PathBuf> {
    built("../..", "pagoda-malloc-c", "libpagoda_malloc.so")
}

/// Builds a shared object of a workspace, by its path from here; returns the object's path.
fn built(workspace: &str, package: &str, object: &str) -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = here.join("../../target/bench-malloc");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "-p", package, "--target-dir"])
        .arg(&target)
        .current_dir(here.join(workspace))
        .status()
        .context("cargo does not run")?;
    ensure!(status.success(), "{package} does not build");
    Ok(fs::canonicalize(target.join("release").join(object))?)
}

/// Ours first, then glibc, then what is installed.
pub fn contestants() -> Result<Vec<Loaded>> {
    let ours = ours()?;
    let mut all = vec![
        Loaded { name: "ours", object: Some(ours.clone()), options: &[] },
        Loaded { name: "glibc", object: None, options: &[] },
    ];
    for (name, object) in [
        ("(jemalloc 5.3)", "libjemalloc.so.2"),
        ("(mimalloc 2)", "libmimalloc.so.2"),
        ("(tcmalloc)", "libtcmalloc_minimal.so.4"),
    ] {
        let object = Path::new(LIBRARIES).join(object);
        if object.exists() {
            all.push(Loaded { name, object: Some(object), options: &[] });
        } else {
            eprintln!("malloc: {name} is not installed (apt-get install {PACKAGES})");
        }
    }
    Ok(all)
}

const PACKAGES: &str = "libjemalloc2 libmimalloc2.0 libtcmalloc-minimal4 lua5.4 python3 sqlite3 \
                        clang ghostscript z3 redis-server redis-tools valgrind";

/// A program and its work.
struct Program {
    name: &'static str,
    command: Vec<OsString>,
    environment: &'static [(&'static str, &'static str)],
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Redis,
}

/// CPU seconds and the largest resident size in KiB.
#[derive(Clone, Copy)]
struct Weight {
    seconds: f64,
    peak: f64,
}

fn programs(work: &Path) -> Result<Vec<Program>> {
    let input = |name: &str, text: String| -> Result<OsString> {
        let path = work.join(name);
        fs::write(&path, text)?;
        Ok(path.into())
    };
    let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
    let with = |text: &str, input: OsString| [words(text), vec![input]].concat();
    let plain = |name, command| Program { name, command, environment: &[], kind: Kind::Plain };
    let sql = input("work.sql", malloc_inputs::SQL.into())?;
    let read = OsString::from(format!(".read {}", sql.to_string_lossy()));
    let redis = words("redis-server --port 0 --save --appendonly no --unixsocket");
    let redis = [redis, vec![work.join("redis.socket").into()]].concat();
    let all = vec![
        plain("lua", with("lua5.4", input("work.lua", malloc_inputs::LUA.into())?)),
        Program {
            environment: &[("PYTHONMALLOC", "malloc")],
            ..plain(
                "python",
                with("/usr/bin/python3", input("work.py", malloc_inputs::PYTHON.into())?),
            )
        },
        plain("sqlite", with("sqlite3 :memory:", read)),
        plain(
            "clang",
            with(
                "clang++ -std=c++17 -O2 -c -o /dev/null",
                input("work.cc", malloc_inputs::CPP.into())?,
            ),
        ),
        plain(
            "ghostscript",
            with(
                "gs -q -dNOPAUSE -dBATCH -sDEVICE=ppmraw -r72 -o /dev/null",
                portable(input("work.ps", malloc_inputs::POSTSCRIPT.into())?)?,
            ),
        ),
        plain("z3", with("z3", input("work.smt2", malloc_inputs::smt())?)),
        Program { kind: Kind::Redis, ..plain("redis", redis) },
    ];
    let there = |program: &Program| {
        let name = &program.command[0];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|dir| dir.join(name).exists());
        if !found {
            eprintln!("malloc: {} is not installed (apt-get install {PACKAGES})", program.name);
        }
        found
    };
    Ok(all.into_iter().filter(there).collect())
}

/// Makes a PDF of a document in PostScript, where that can be done: who draws pages mostly has one.
fn portable(document: OsString) -> Result<OsString> {
    let path = Path::new(&document).with_extension("pdf");
    let mut maker = Command::new("gs");
    maker.args(["-q", "-dNOPAUSE", "-dBATCH", "-sDEVICE=pdfwrite", "-o"]).arg(&path).arg(document);
    match maker.stdin(Stdio::null()).stdout(Stdio::null()).status() {
        Ok(status) => ensure!(status.success(), "ghostscript makes no PDF"),
        Err(_) => eprintln!("malloc: ghostscript does not run"),
    }
    Ok(path.into())
}

/// Runs a program and writes its weight into `note`. Its own process, so that the program's parent is
/// small: a child's largest resident size counts what it was before it became the program.
pub fn weigh(note: &Path, command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program")?;
    let mut child = Command::new(program);
    child.args(arguments).env_remove("WEIGH_PRELOAD");
    if let Some(object) = std::env::var_os("WEIGH_PRELOAD") {
        child.env("LD_PRELOAD", object);
    }
    let child = child.spawn().with_context(|| format!("{} does not run", program.display()))?;
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is valid; the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        ensure!(libc::wait4(child.id() as i32, &mut status, 0, &mut usage) > 0, "no child");
        usage
    };
    ensure!(status == 0, "{} ended with status {status:#x}", program.display());
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let spent = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    fs::write(note, format!("{spent} {}", usage.ru_maxrss))?;
    Ok(())
}

fn run(program: &Program, malloc: &Loaded, work: &Path) -> Result<Weight> {
    let note = work.join("weight");
    let _ = fs::remove_file(&note);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("weigh").arg(&note).args(&program.command);
    command.envs(program.environment.iter().copied()).envs(malloc.options.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).env_remove("LD_PRELOAD");
    // A program that hangs is ended with its helper.
    command.process_group(0);
    match (&malloc.object, program.kind) {
        (Some(object), _) => command.env("WEIGH_PRELOAD", object),
        (None, Kind::Redis) => command.env("WEIGH_PRELOAD", format!("{LIBRARIES}/libc.so.6")),
        (None, Kind::Plain) => command.env_remove("WEIGH_PRELOAD"),
    };
    let mut child = command.spawn()?;
    if program.kind == Kind::Redis {
        ask_redis(&mut child, &work.join("redis.socket"))?;
    }
    ensure!(child.wait()?.success(), "{} with {} failed", program.name, malloc.name);
    let text = fs::read_to_string(&note)?;
    let mut numbers = text.split(' ').map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(seconds)), Some(Ok(peak))) => Ok(Weight { seconds, peak }),
        _ => bail!("a weight that nobody can read: {text}"),
    }
}

/// Redis's own benchmark against a server that has just been started.
fn ask_redis(server: &mut Child, socket: &Path) -> Result<()> {
    let began = Instant::now();
    while !socket.exists() {
        ensure!(server.try_wait()?.is_none(), "redis-server ended");
        ensure!(began.elapsed() < Duration::from_secs(10), "redis-server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let ask = |program: &str, words: &[&str]| -> Result<()> {
        let mut command = Command::new(program);
        command.arg("-s").arg(socket).args(words).stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(command.status()?.success(), "{program} failed");
        Ok(())
    };
    let tests = "set,get,incr,lpush,rpush,lpop,sadd,hset,zadd,lrange_100,mset";
    ask(
        "redis-benchmark",
        &["-q", "-n", "30000", "-r", "30000", "-d", "100", "-P", "16", "-c", "20", "-t", tests],
    )?;
    // The answer to this is the end of the connection.
    let _ = ask("redis-cli", &["shutdown", "nosave"]);
    Ok(())
}

/// The rows of all programs, and their geometric means.
pub fn rows(quick: bool) -> Result<Vec<Row>> {
    let work = std::env::temp_dir().join(format!("pagoda-bench-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let result = measured(quick, &work);
    let _ = fs::remove_dir_all(&work);
    result
}

fn measured(quick: bool, work: &Path) -> Result<Vec<Row>> {
    let rounds = if quick { 1 } else { 9 };
    let (mut mallocs, programs) = (contestants()?, programs(work)?);
    let rusty = built(".", "pagoda-bench-rusty", "libpagoda_bench_rusty.so")?;
    mallocs.push(Loaded { name: "(rusty_alloc)", object: Some(rusty), options: &[] });
    mallocs.push(Loaded {
        name: "(hardened)",
        object: Some(ours()?),
        options: &[("PAGODA_MALLOC", "hardened")],
    });
    let mut samples = vec![vec![Vec::new(); mallocs.len()]; programs.len()];
    for round in 0..rounds {
        eprintln!("malloc: programs, round {} of {rounds}", round + 1);
        for (program, samples) in programs.iter().zip(&mut samples) {
            // Whoever comes first would fetch the program and its input into the caches for all: so one
            // run does not count, and each round begins with another.
            let first = run(program, &mallocs[1], work)?;
            // Short ones go round three times.
            let times = if first.seconds < 1.0 && !quick { 3 } else { 1 };
            for turn in (0..times * mallocs.len()).map(|turn| (turn + round) % mallocs.len()) {
                samples[turn].push(run(program, &mallocs[turn], work)?);
            }
        }
    }
    let mut rows = Vec::new();
    for (unit, what, gate, geometric, value) in [
        ("s", "CPU", 1.05, 0.80, (|weight: &Weight| weight.seconds) as fn(&Weight) -> f64),
        ("MiB", "peak", 1.05, 1.0, |weight| weight.peak / 1024.0),
    ] {
        let (mut means, mut hardened) = (vec![0.0; mallocs.len()], 0.0);
        for (program, samples) in programs.iter().zip(&samples) {
            let values: Vec<Vec<f64>> =
                samples.iter().map(|weights| weights.iter().map(value).collect()).collect();
            let figures: Vec<_> = mallocs
                .iter()
                .zip(&values)
                .map(|(malloc, own)| beside(&values[1], malloc.name, own.clone()))
                .collect();
            if let (Some(first), Some(last)) = (values.first(), values.last()) {
                hardened += ratio(first, last).ln() / programs.len() as f64;
            }
            for (mean, figure) in means.iter_mut().zip(&figures) {
                *mean += (figure.median / figures[1].median).ln() / programs.len() as f64;
            }
            let mut row = Row::times(&format!("{}, {what}", program.name), &figures, Some(gate));
            row.unit = unit;
            rows.push(row);
        }
        // What hardened mode costs beside our normal mode: at most 15 % of CPU time.
        rows.push(Row {
            case: format!("hardened mode, {what}, geometric mean"),
            unit: "of normal",
            better: Better::Less,
            ours: hardened.exp(),
            peers: [("goal".to_owned(), 1.15)].into(),
            gate: (what == "CPU").then_some(1.0),
            spread: 0.0,
        });
        let mut names = mallocs.iter().map(|malloc| malloc.name.to_owned()).zip(means);
        let ours = names.next().map_or(f64::NAN, |(_, mean)| mean.exp());
        let peers: BTreeMap<_, _> = names.map(|(name, mean)| (name, mean.exp())).collect();
        rows.push(Row {
            case: format!("all programs, {what}, geometric mean"),
            unit: "of glibc",
            better: Better::Less,
            ours,
            peers,
            gate: Some(geometric),
            spread: 0.0,
        });
    }
    Ok(rows)
}
