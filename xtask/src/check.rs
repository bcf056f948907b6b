//! `cargo xtask check`: what a reader of the source may rely on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, guide, setup};

/// The storey each package stands on. A package may depend on packages of lower storeys only.
const STOREYS: &[(&str, u32)] = &[
    ("pagoda-addr", 0),
    ("pagoda-sync", 1),
    ("pagoda-bootmap", 2),
    ("pagoda-frames", 3),
    ("pagoda-paging", 3),
    ("pagoda-emu", 4),
    ("pagoda-heap", 4),
    ("pagoda-kva", 4),
    ("pagoda-vm", 5),
    ("pagoda-linux", 6),
    ("pagoda-malloc", 6),
    ("pagoda-malloc-c", 7),
    ("pagoda-kernel-fs", 8),
    ("pagoda-kernel-core", 9),
    ("pagoda-kernel", 10),
];
/// Test equipment: only ever a development dependency.
const TEST_ONLY: &[&str] = &["pagoda-emu"];

/// Format, lints, documentation, direction of dependencies.
pub fn execute() -> Result<()> {
    setup::for_boot()?;
    dependencies_point_downwards()?;
    println!("dependencies point downwards");
    guide::check()?;
    println!("the guide shows what the tree holds");
    cargo(&["fmt", "--all", "--check"], &[])?;
    println!("format is clean");
    cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    let kernel = [
        "clippy",
        "--quiet",
        "-p",
        "pagoda-kernel",
        "--target",
        "x86_64-unknown-none",
        "--release",
    ];
    cargo(&[&kernel[..], &["--", "-D", "warnings"]].concat(), &[])?;
    println!("lints are clean");
    let docs = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    cargo(&docs, &[("RUSTDOCFLAGS", "-D warnings")])?;
    println!("documentation builds");
    Ok(())
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(arguments).current_dir(build::root()).env_remove("CARGO_MANIFEST_DIR");
    command.envs(environment.iter().copied());
    if !command.status().context("cargo does not run")?.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

/// Reads every manifest and compares each dependency with [`STOREYS`].
pub fn dependencies_point_downwards() -> Result<()> {
    let storey: BTreeMap<&str, u32> = STOREYS.iter().copied().collect();
    let mut problems = Vec::new();
    for parent in ["crates", "kernel"] {
        for entry in fs::read_dir(build::root().join(parent))? {
            let manifest = entry?.path().join("Cargo.toml");
            let Ok(text) = fs::read_to_string(&manifest) else { continue };
            problems.extend(upward_dependencies(&text, &storey));
        }
    }
    if !problems.is_empty() {
        bail!("dependencies must point downwards:\n  {}", problems.join("\n  "));
    }
    Ok(())
}

/// What is wrong with one manifest. Only the few forms of a dependency that our manifests use.
fn upward_dependencies(manifest: &str, storey: &BTreeMap<&str, u32>) -> Vec<String> {
    let mut name = "";
    let mut section = "";
    let mut problems = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = header;
        } else if section == "package" && line.starts_with("name") {
            name = line.split('"').nth(1).unwrap_or_default();
            if !storey.contains_key(name) {
                problems.push(format!("{name} has no storey"));
            }
        } else if section.ends_with("dependencies") && !section.starts_with("dev-") {
            let Some(other) = line.split(['.', ' ', '=']).next() else { continue };
            let Some(&theirs) = storey.get(other) else { continue };
            if storey.get(name).is_some_and(|&ours| theirs >= ours) {
                problems.push(format!("{name} depends on {other}, which is not below it"));
            }
            if TEST_ONLY.contains(&other) {
                problems.push(format!("{name} ships the test equipment {other}"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dependency_in_the_tree_points_downwards() {
        dependencies_point_downwards().unwrap();
    }

    #[test]
    fn an_upward_dependency_is_found() {
        let storey = STOREYS.iter().copied().collect();
        let manifest = "[package]\nname = \"pagoda-heap\"\n[dependencies]\npagoda-vm.workspace = true\n\
                        [dev-dependencies]\npagoda-kernel.workspace = true\n";
        let problems = upward_dependencies(manifest, &storey);
        assert_eq!(problems, ["pagoda-heap depends on pagoda-vm, which is not below it"]);
        let sideways = manifest.replace("pagoda-vm", "pagoda-kva");
        assert_eq!(upward_dependencies(&sideways, &storey).len(), 1);
    }
}
