//! Makes the kernel image, the programs that run on it, and the initramfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::{ksyms, setup};

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the root")
}

/// Where build products go.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where what we make ourselves goes.
pub fn out() -> Result<PathBuf> {
    let dir = target().join("pagoda");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Cargo with these arguments, in the root; its chatter only when it fails or is asked for.
fn cargo(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(arguments).current_dir(root());
    // Set by the cargo that runs us; must not leak into a build for another target.
    command.env_remove("CARGO_MANIFEST_DIR");
    let status = command.status().context("cargo does not run")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

/// Set by `cargo xtask test` for the many machines that its tests start: kernel and programs were
/// built a moment ago.
pub const PREBUILT: &str = "PAGODA_PREBUILT";

fn prebuilt() -> bool {
    std::env::var_os(PREBUILT).is_some()
}

/// Builds the kernel with its symbols filled in; returns the path of the image.
pub fn kernel() -> Result<PathBuf> {
    let path = out()?.join("kernel");
    if prebuilt() {
        return Ok(path);
    }
    setup::for_boot()?;
    cargo(&[
        "build",
        "--quiet",
        "--release",
        // A trap crosses six crates; cut at their borders it costs a tenth more instructions.
        "--config",
        "profile.release.lto=\"fat\"",
        "--config",
        "profile.release.codegen-units=1",
        "--package",
        "pagoda-kernel",
        "--target",
        "x86_64-unknown-none",
    ])?;
    let built = target().join("x86_64-unknown-none/release/pagoda-kernel");
    let mut image = fs::read(&built).with_context(|| format!("no {}", built.display()))?;
    ksyms::fill(&mut image)?;
    write_if_changed(&path, &image)?;
    without_multiboot(&mut image)?;
    write_if_changed(&pvh(&path), &image)?;
    Ok(path)
}

/// Beside `kernel`, the same image for a boot by PVH.
pub fn pvh(kernel: &Path) -> PathBuf {
    kernel.with_extension("pvh")
}

/// Takes the Multiboot 1 header out of an image. QEMU looks for that one first: as long as it is
/// there, the note for PVH is never read.
fn without_multiboot(image: &mut [u8]) -> Result<()> {
    const MAGIC: u32 = 0x1bad_b002;
    /// The header lies within so many bytes.
    const SEARCHED: usize = 8192;
    let end = image.len().min(SEARCHED);
    let words = |header: &[u8]| -> Option<[u32; 3]> {
        let word = |at| Some(u32::from_le_bytes(*header.get(at..)?.first_chunk()?));
        Some([word(0)?, word(4)?, word(8)?])
    };
    let place = (0..end).step_by(4).find(|&at| {
        words(&image[at..]).is_some_and(|[magic, flags, sum]| {
            magic == MAGIC && magic.wrapping_add(flags).wrapping_add(sum) == 0
        })
    });
    let place = place.context("the kernel has no Multiboot 1 header")?;
    image[place..place + 4].fill(0);
    Ok(())
}

/// Programs of ours that come into the machine only when they are what is run: it may be small.
const ON_DEMAND: &[&str] = &["torture", "crimes"];

/// Builds our own programs; returns their paths.
pub fn programs() -> Result<Vec<PathBuf>> {
    let names = program_names()?;
    let dir = target().join("x86_64-unknown-linux-musl/release");
    let paths = names.iter().map(|name| dir.join(name)).collect();
    if prebuilt() {
        return Ok(paths);
    }
    setup::for_boot()?;
    let (unwinding, aborting): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| UNWINDING.contains(&name.as_str()));
    for (names, panic) in [(aborting, "abort"), (unwinding, "unwind")] {
        let panic = format!("profile.release.panic=\"{panic}\"");
        let mut arguments =
            vec!["build", "--quiet", "--release", "--target", "x86_64-unknown-linux-musl"];
        // The initramfs must fit into a small machine.
        arguments.extend(["--config", "profile.release.strip=true", "--config", &panic]);
        for name in names {
            arguments.extend(["--package", name]);
        }
        cargo(&arguments)?;
    }
    Ok(paths)
}

/// Programs that catch panics, as the others need not.
const UNWINDING: &[&str] = &["mill"];

/// Every folder in `user/` is a package of the same name with one binary of the same name.
fn program_names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("user")).context("user/")? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// What the initramfs holds besides busybox and our own programs.
#[derive(Default)]
pub struct Contents {
    /// Arguments of the first process, its path first.
    pub arguments: Vec<String>,
    /// Its environment, `NAME=value`.
    pub environment: Vec<String>,
    /// More files: (path on the host, path in the guest).
    pub files: Vec<(PathBuf, String)>,
}

/// Makes the initramfs; returns its path. `name` keeps several apart.
pub fn initramfs(name: &str, contents: &Contents) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for dir in ["/bin", "/dev", "/etc", "/proc", "/root", "/tmp", "/var/tmp", "/usr/bin", "/sbin"] {
        archive.directory(dir);
    }
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n".to_vec());
    archive.file("/etc/group", 0o644, b"root:x:0:\n".to_vec());
    archive.file("/etc/hostname", 0o644, b"pagoda\n".to_vec());
    archive.file("/etc/profile", 0o644, b"export PS1='pagoda:\\w\\$ '\n".to_vec());
    busybox(&mut archive)?;
    for program in programs()? {
        let name = program.file_name().expect("a program has a name").to_string_lossy();
        if ON_DEMAND.contains(&name.as_ref()) {
            continue;
        }
        add(&mut archive, &program, &format!("/bin/{name}"))?;
    }
    for (host, guest) in &contents.files {
        add_tree(&mut archive, host, guest)?;
    }
    let list =
        |strings: &[String]| strings.iter().flat_map(|s| s.bytes().chain([0])).collect::<Vec<u8>>();
    archive.file("/etc/pagoda/argv", 0o644, list(&contents.arguments));
    archive.file("/etc/pagoda/env", 0o644, list(&contents.environment));
    write_if_changed(&out()?.join(name), &archive.into_bytes())
}

fn busybox(archive: &mut Archive) -> Result<()> {
    let host = Path::new("/bin/busybox");
    add(archive, host, "/bin/busybox")?;
    let list = Command::new(host).arg("--list-full").output().context("busybox does not run")?;
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        archive.symlink(&format!("/{applet}"), "/bin/busybox");
        if let Some((_, name)) = applet.rsplit_once('/') {
            archive.symlink(&format!("/bin/{name}"), "busybox");
        }
    }
    Ok(())
}

fn add(archive: &mut Archive, host: &Path, guest: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let contents = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
    let mode = fs::metadata(host)?.permissions().mode() & 0o777;
    archive.file(guest, mode, contents);
    Ok(())
}

fn add_tree(archive: &mut Archive, host: &Path, guest: &str) -> Result<()> {
    if !host.is_dir() {
        return add(archive, host, guest);
    }
    archive.directory(guest);
    for entry in fs::read_dir(host)? {
        let entry = entry?;
        let name = entry.file_name();
        add_tree(archive, &entry.path(), &format!("{guest}/{}", name.to_string_lossy()))?;
    }
    Ok(())
}

/// A GRUB image that boots `kernel` by Multiboot 2; returns its path.
pub fn grub_image(kernel: &Path, initramfs: &Path, command_line: &str) -> Result<PathBuf> {
    setup::for_grub()?;
    let name = initramfs.file_name().expect("a file").to_string_lossy().into_owned();
    let tree = out()?.join(format!("{name}.grub"));
    let boot = tree.join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    fs::write(boot.join("kernel"), without_sections(fs::read(kernel)?))?;
    fs::copy(initramfs, boot.join("initramfs"))?;
    let config = format!(
        "set timeout=0\nmenuentry pagoda {{\n  \
         multiboot2 /boot/kernel {command_line}\n  module2 /boot/initramfs initramfs\n}}\n"
    );
    fs::write(boot.join("grub/grub.cfg"), config)?;
    let image = out()?.join(format!("{name}.iso"));
    let made = Command::new("grub-mkrescue").arg("-o").arg(&image).arg(&tree).output();
    let made = made.context("grub-mkrescue does not run")?;
    if !made.status.success() {
        bail!("grub-mkrescue failed:\n{}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(image)
}

/// The image with no sections, only what is loaded. GRUB puts sections that are not loaded, such as
/// debug information, into memory too and tells the kernel where: megabytes that nobody asked for.
fn without_sections(mut image: Vec<u8>) -> Vec<u8> {
    // ELF64 header: offset of the section headers; then their size, their number, and the names'.
    for field in [0x28..0x30, 0x3a..0x40] {
        if let Some(bytes) = image.get_mut(field) {
            bytes.fill(0);
        }
    }
    image
}

/// `cargo xtask bench`: builds and runs the measuring program, which is a workspace of its own.
pub fn bench(arguments: &[String]) -> Result<()> {
    let out = target().join("bench");
    let (out, dir) = (out.to_string_lossy(), target().join("bench-build"));
    let dir = dir.to_string_lossy();
    let mut all = vec!["run", "--quiet", "--release", "--manifest-path", "tools/bench/Cargo.toml"];
    all.extend(["--target-dir", &dir, "--", "--out", &out]);
    all.extend(arguments.iter().map(String::as_str));
    cargo(&all)
}

/// Builds the static library of malloc; returns its path.
pub fn malloc_archive() -> Result<PathBuf> {
    cargo(&["build", "--quiet", "--release", "-p", "pagoda-malloc-c"])?;
    Ok(target().join("release/libpagoda_malloc.a"))
}

/// Builds the plugin that counts a machine's instructions; returns its path.
pub fn counter() -> Result<PathBuf> {
    let dir = target().join("counter");
    let named = dir.to_string_lossy();
    let manifest = "tools/counter/Cargo.toml";
    let all = ["build", "--quiet", "--release", "--manifest-path", manifest, "--target-dir"];
    cargo(&[&all[..], &[&named]].concat())?;
    Ok(dir.join("release/libpagoda_counter.so"))
}

/// Builds what a machine that is started with [`PREBUILT`] needs.
pub fn for_machines() -> Result<()> {
    kernel()?;
    programs()?;
    Ok(())
}

/// `cargo xtask build`.
pub fn announce() -> Result<()> {
    println!("kernel     {}", kernel()?.display());
    for program in programs()? {
        println!("program    {}", program.display());
    }
    let contents = Contents { arguments: vec!["/bin/tour".into()], ..Contents::default() };
    println!("initramfs  {}", initramfs("initramfs", &contents)?.display());
    Ok(())
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        // A whole new file under a new inode: a guest that still reads the old one is not harmed.
        let fresh = path.with_extension(format!("new{}", std::process::id()));
        fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, path)?;
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_multiboot_header_is_taken_out() {
        let word = |value: u32| value.to_le_bytes();
        let mut image = vec![7; 256];
        image[64..68].copy_from_slice(&word(0x1bad_b002)); // a chance likeness: no right sum
        image[128..132].copy_from_slice(&word(0x1bad_b002));
        image[132..136].copy_from_slice(&word(3));
        image[136..140].copy_from_slice(&word(0u32.wrapping_sub(0x1bad_b002 + 3)));
        let before = image.clone();
        without_multiboot(&mut image).unwrap();
        let differ: Vec<usize> = (0..256).filter(|&at| image[at] != before[at]).collect();
        assert_eq!(differ, [128, 129, 130, 131]);
        assert!(without_multiboot(&mut image).is_err());
    }
}
