//! Where the programs come from. What has been fetched or built stays in `target/programs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Case;
use crate::{build, setup};

const ESBUILD: &str = "@esbuild/linux-x64@0.28.2";
const LODASH: &str = "lodash-es@4.17.21";
const RUFF: &str = "ruff==0.17.6";
const NETWORKX: &str = "networkx==3.4";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// All programs, or those with these names; each fetched and built.
pub(super) fn cases(only: &[String]) -> Result<Vec<Case>> {
    setup::for_real_programs()?;
    let street = Street { dir: build::target().join("programs") };
    fs::create_dir_all(&street.dir)?;
    type Maker = fn(&Street) -> Result<Case>;
    let all: [(&str, Maker); 8] = [
        ("bash", bash),
        ("threads", threads),
        ("rust", rust),
        ("sqlite", sqlite),
        ("lua", lua),
        ("go", go),
        ("esbuild", esbuild),
        ("ruff", ruff),
    ];
    let mut cases = Vec::new();
    for (name, make) in all {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            cases.push(make(&street).with_context(|| format!("getting {name}"))?);
        }
    }
    Ok(cases)
}

/// What the programs work on.
fn real(name: &str) -> PathBuf {
    build::root().join("tests/real").join(name)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn bash(_: &Street) -> Result<Case> {
    let script = real("jobs.sh");
    Ok(Case {
        name: "bash",
        memory: "256M",
        program: "/bin/bash-static".into(),
        arguments: vec![text(&script)],
        files: vec![script],
        input: None,
    })
}

fn threads(street: &Street) -> Result<Case> {
    let program = street.dir.join("threads");
    let source = build::root().join("tests/programs/handover.c");
    let mut compiler = Command::new("musl-gcc");
    compiler.args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(source);
    finish(&mut compiler)?;
    Ok(Case {
        name: "threads",
        memory: "256M",
        program,
        arguments: Vec::new(),
        files: Vec::new(),
        input: None,
    })
}

fn rust(_: &Street) -> Result<Case> {
    let programs = build::programs()?;
    let mill = programs.into_iter().find(|path| path.ends_with("mill")).context("user/mill")?;
    Ok(Case {
        name: "rust",
        memory: "256M",
        program: mill,
        arguments: vec!["200000".into()],
        files: Vec::new(),
        input: None,
    })
}

fn sqlite(street: &Street) -> Result<Case> {
    let program = street.dir.join("sqlite3");
    if !program.exists() {
        let source = street.debian_source("sqlite3", "sqlite3-")?;
        let build = source.join("build");
        fs::create_dir_all(&build)?;
        let mut configure = Command::new("../configure");
        finish(configure.args(["-q", "--disable-tcl"]).current_dir(&build))?;
        // The shell and the whole library as one file each, as the makers pass them on.
        finish(Command::new("make").args(["-s", "sqlite3.c", "shell.c"]).current_dir(&build))?;
        let mut compiler = Command::new("musl-gcc");
        compiler.args(["-static", "-O1", "-w", "-DSQLITE_THREADSAFE=0"]);
        compiler.args(["-DSQLITE_OMIT_LOAD_EXTENSION", "shell.c", "sqlite3.c", "-o"]);
        finish(compiler.arg(&program).current_dir(&build))?;
    }
    Ok(Case {
        name: "sqlite",
        memory: "512M",
        program,
        arguments: vec![":memory:".into()],
        files: Vec::new(),
        input: Some(real("rows.sql")),
    })
}

fn lua(street: &Street) -> Result<Case> {
    let program = street.dir.join("lua");
    if !program.exists() {
        let source = street.debian_source("lua5.4", "lua-")?.join("src");
        let mut compiler = Command::new("musl-gcc");
        compiler.args(["-static", "-O2", "-w", "-DLUA_USE_POSIX", "-o"]).arg(&program);
        for entry in fs::read_dir(&source)? {
            let path = entry?.path();
            // Two of them have a `main`: the interpreter and the compiler.
            if path.extension().is_some_and(|end| end == "c") && !path.ends_with("luac.c") {
                compiler.arg(path);
            }
        }
        finish(compiler.arg("-lm"))?;
    }
    let script = real("work.lua");
    Ok(Case {
        name: "lua",
        memory: "256M",
        program,
        arguments: vec![text(&script)],
        files: vec![script],
        input: None,
    })
}

fn go(street: &Street) -> Result<Case> {
    let program = street.dir.join("gophers");
    let mut compiler = Command::new("go");
    compiler.args(["build", "-o"]).arg(&program).arg(real("gophers.go"));
    compiler.env("CGO_ENABLED", "0").env("GOCACHE", street.dir.join("go-cache"));
    finish(&mut compiler)?;
    Ok(Case {
        name: "go",
        memory: "256M",
        program,
        arguments: Vec::new(),
        files: Vec::new(),
        input: None,
    })
}

fn esbuild(street: &Street) -> Result<Case> {
    let program = street.npm(ESBUILD, "esbuild")?.join("bin/esbuild");
    let library = street.npm(LODASH, "lodash")?;
    let entry = library.join("lodash.js");
    Ok(Case {
        name: "esbuild",
        memory: "512M",
        program,
        arguments: vec![text(&entry), "--bundle".into(), "--minify".into()],
        files: vec![library],
        input: None,
    })
}

fn ruff(street: &Street) -> Result<Case> {
    let ruff = street.pip(RUFF, "ruff", &["--platform", "musllinux_1_2_x86_64"])?;
    let inside = fs::read_dir(&ruff)?.filter_map(|entry| Some(entry.ok()?.path()));
    let data = inside.into_iter().find(|path| text(path).ends_with(".data"));
    let program = data.context("the package has no .data")?.join("scripts/ruff");
    finish(Command::new("chmod").arg("+x").arg(&program))?;
    let sources = street.pip(NETWORKX, "networkx", &[])?;
    let mut arguments: Vec<String> =
        ["check", "--isolated", "--no-cache", "--output-format", "concise"]
            .map(str::to_owned)
            .into();
    arguments.push(text(&sources));
    Ok(Case { name: "ruff", memory: "768M", program, arguments, files: vec![sources], input: None })
}

/// The folder where everything is.
struct Street {
    dir: PathBuf,
}

impl Street {
    /// The unpacked original sources of a Debian package, whose folder's name begins so. The index
    /// of sources is read beside the system's own configuration, which stays as it is.
    fn debian_source(&self, package: &str, folder: &str) -> Result<PathBuf> {
        let dir = self.dir.join(format!("{package}.source"));
        let lists = self.dir.join("lists");
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(&dir)?;
        let list = self.dir.join("sources.list");
        let line = format!("deb-src [signed-by={KEYS}] http://deb.debian.org/debian bookworm main");
        fs::write(&list, line + "\n")?;
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.current_dir(&dir).arg("-qq");
            for (key, value) in [
                ("Dir::Etc::sourcelist", text(&list)),
                ("Dir::Etc::sourceparts", "-".into()),
                ("Dir::State::lists", text(&lists)),
                ("APT::Sandbox::User", "root".into()),
            ] {
                command.arg("-o").arg(format!("{key}={value}"));
            }
            finish(command.args(arguments))
        };
        apt(&["update"])?;
        apt(&["source", "--download-only", package])?;
        for archive in paths(&dir)? {
            if text(&archive).contains(".orig.tar") {
                finish(Command::new("tar").arg("xf").arg(archive).current_dir(&dir))?;
            }
        }
        let unpacked = paths(&dir)?.into_iter().find(|path| {
            path.is_dir()
                && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(folder))
        });
        unpacked.with_context(|| format!("no {folder}* in {}", dir.display()))
    }

    /// An unpacked package of npm's registry.
    fn npm(&self, package: &str, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if !dir.join("package").exists() {
            fs::create_dir_all(&dir)?;
            finish(Command::new("npm").args(["pack", "-s", package]).current_dir(&dir))?;
            let archive = paths(&dir)?.into_iter().find(|path| text(path).ends_with(".tgz"));
            let archive = archive.context("npm has put nothing there")?;
            finish(Command::new("tar").arg("xzf").arg(archive).current_dir(&dir))?;
        }
        Ok(dir.join("package"))
    }

    /// An unpacked wheel of PyPI.
    fn pip(&self, package: &str, name: &str, options: &[&str]) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        let unpacked = dir.join("wheel");
        if !unpacked.exists() {
            fs::create_dir_all(&dir)?;
            let mut pip = Command::new("pip3");
            pip.args(["download", "-q", "--no-deps", "--only-binary=:all:", "-d"]).arg(&dir);
            finish(pip.args(options).arg(package))?;
            let wheel = paths(&dir)?.into_iter().find(|path| text(path).ends_with(".whl"));
            let wheel = wheel.context("pip has put nothing there")?;
            let mut unzip = Command::new("python3");
            finish(unzip.args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked))?;
        }
        Ok(unpacked)
    }
}

fn paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        all.push(entry?.path());
    }
    Ok(all)
}

/// Runs a command whose output nobody wants, to its good end.
fn finish(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    eprintln!("programs: {shown}");
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    if !status.with_context(|| format!("cannot run: {shown}"))?.success() {
        bail!("failed: {shown}");
    }
    Ok(())
}
