//! Installs what is missing through the ordinary clients, says what it does before doing it, and
//! says exactly what to type where it may not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// A program that must be there, and the Debian package that brings it.
struct Need {
    path_or_name: &'static str,
    package: &'static str,
}

const BOOT: &[Need] = &[
    Need { path_or_name: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need { path_or_name: "/bin/busybox", package: "busybox-static" },
];
const GRUB: &[Need] = &[
    Need { path_or_name: "grub-mkrescue", package: "grub-common" },
    Need { path_or_name: "/usr/lib/grub/i386-pc/multiboot2.mod", package: "grub-pc-bin" },
    Need { path_or_name: "xorriso", package: "xorriso" },
    Need { path_or_name: "mformat", package: "mtools" },
];
const PROGRAMS: &[Need] = &[
    Need { path_or_name: "musl-gcc", package: "musl-tools" },
    Need { path_or_name: "/bin/bash-static", package: "bash-static" },
];
/// What the host's own tests call: malloc's run under other people's programs.
const HOST: &[Need] = &[
    Need { path_or_name: "gcc", package: "gcc" },
    Need { path_or_name: "g++", package: "g++" },
    Need { path_or_name: "perl", package: "perl" },
    Need { path_or_name: "python3", package: "python3" },
    Need { path_or_name: "git", package: "git" },
];
const REAL: &[Need] = &[
    Need { path_or_name: "gcc", package: "gcc" },
    Need { path_or_name: "make", package: "make" },
    Need { path_or_name: "tclsh", package: "tcl" },
    Need { path_or_name: "go", package: "golang-go" },
    Need { path_or_name: "npm", package: "npm" },
    Need { path_or_name: "pip3", package: "python3-pip" },
];

/// The Rust targets that the kernel and the programs are built for.
const TARGETS: &[&str] = &["x86_64-unknown-none", "x86_64-unknown-linux-musl"];

/// Everything that any command needs.
pub fn everything() -> Result<()> {
    rust_targets()?;
    packages(&[BOOT, GRUB, PROGRAMS, HOST])
}

/// What a boot by QEMU's `-kernel` needs.
pub fn for_boot() -> Result<()> {
    rust_targets()?;
    packages(&[BOOT])
}

/// What the tests need that boot nothing.
pub fn for_host_tests() -> Result<()> {
    rust_targets()?;
    packages(&[HOST])
}

/// What a GRUB image needs besides.
pub fn for_grub() -> Result<()> {
    packages(&[GRUB])
}

/// What `xtask programs` fetches and builds with.
pub fn for_real_programs() -> Result<()> {
    rust_targets()?;
    packages(&[BOOT, PROGRAMS, REAL])
}

/// Debian's Linux kernel for virtual machines: the installed one, or else one that is unpacked below
/// `out`. It is not installed: this machine's own boot loader has nothing to do with it.
pub fn linux_image(out: &Path) -> Result<PathBuf> {
    const META: &str = "linux-image-cloud-amd64";
    let dir = out.join("linux");
    if let Some(image) =
        newest_linux(Path::new("/boot")).or_else(|| newest_linux(&dir.join("boot")))
    {
        return Ok(image);
    }
    let by_hand = format!("apt-get install {META}");
    if !(present("apt-get") && present("dpkg-deb")) {
        bail!("missing Debian's Linux kernel; on Debian it comes with: {by_hand}");
    }
    let query = || -> Result<Option<String>> {
        let depends = Command::new("apt-cache").args(["depends", META]).output()?;
        let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
        Ok(depends.lines().find_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned())))
    };
    let mut package = query()?;
    if package.is_none() {
        eprintln!("setup: apt-get update");
        Command::new("apt-get").args(["update", "-qq"]).status()?;
        package = query()?;
    }
    let package = package.with_context(|| format!("no package {META}; type: {by_hand}"))?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    eprintln!("setup: apt-get download {package}; dpkg-deb --extract it to {}", dir.display());
    let load = Command::new("apt-get")
        .args(["download", "-qq", &package])
        .current_dir(&dir)
        .stderr(Stdio::null())
        .status();
    let archive = std::fs::read_dir(&dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let unpacked = archive.as_ref().is_some_and(|archive| {
        let unpack = Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&dir).status();
        unpack.is_ok_and(|status| status.success())
    });
    if let Some(archive) = archive {
        let _ = std::fs::remove_file(archive);
    }
    if !(load.is_ok_and(|status| status.success()) && unpacked) {
        bail!("cannot get {package}; type: {by_hand}");
    }
    newest_linux(&dir.join("boot")).with_context(|| format!("{package} holds no kernel"))
}

/// The newest of Debian's kernels for virtual machines in this folder.
fn newest_linux(dir: &Path) -> Option<PathBuf> {
    let all = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    all.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
    })
    .max()
}

/// The pinned toolchain gets the targets explicitly, whether or not it was installed with them.
fn rust_targets() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_some() {
        return Ok(());
    }
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.context("rustc does not run")?;
    let sysroot = String::from_utf8(sysroot.stdout).context("rustc --print sysroot")?;
    let lib = Path::new(sysroot.trim()).join("lib/rustlib");
    let missing: Vec<_> = TARGETS.iter().filter(|t| !lib.join(t).join("lib").is_dir()).collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.into_iter().copied().collect();
        eprintln!("setup: rustup target add {}", names.join(" "));
        let status = Command::new("rustup").args(["target", "add"]).args(&names).status();
        if !status.is_ok_and(|status| status.success()) {
            bail!("cannot add the Rust targets; type: rustup target add {}", names.join(" "));
        }
    }
    let _ = DONE.set(());
    Ok(())
}

fn packages(groups: &[&[Need]]) -> Result<()> {
    let missing: Vec<&str> = groups
        .iter()
        .flat_map(|group| group.iter())
        .filter(|need| !present(need.path_or_name))
        .map(|need| need.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install {}", missing.join(" "));
    if !present("apt-get") {
        bail!("missing programs; on Debian they come with: {by_hand}");
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    if !root {
        bail!("missing programs; type: sudo {by_hand}");
    }
    eprintln!("setup: {by_hand}");
    let apt = |arguments: &[&str]| -> Result<bool> {
        Ok(Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("apt-get does not run")?
            .success())
    };
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(&missing);
    if !(apt(&["update", "-qq"])? && apt(&install)?) {
        bail!("the installation failed; type: {by_hand}");
    }
    Ok(())
}

/// Is there a file of this path, or a program of this name on the search path?
fn present(path_or_name: &str) -> bool {
    if path_or_name.contains('/') {
        return Path::new(path_or_name).exists();
    }
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(path_or_name).exists()))
}
