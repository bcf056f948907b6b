//! `cargo xtask guide`: the guide shows what the tree holds.
//!
//! A chapter writes no code of its own. A fenced block stands below a comment that says where it
//! comes from:
//!
//! - `<!-- listing: FILE#NAME -->`: the lines of a source file between `ANCHOR: NAME` and
//!   `ANCHOR_END: NAME`, which stand there in comments. The file is compiled and tested like any
//!   other.
//! - `<!-- output: PACKAGE EXAMPLE#NAME -->`: what `cargo run -p PACKAGE --example EXAMPLE` prints,
//!   from its line `== NAME` to the next such line.
//!
//! The check compares each block with its source; `--bless` writes them anew. A block of Rust or of
//! output without such a comment fails, and so do a link, a path or a test's name that leads nowhere.
//!
//! Left out: output of a whole machine, which differs in its times from boot to boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build;

/// Options of `guide`.
#[derive(Args)]
pub struct Guide {
    /// Write the blocks anew instead of comparing them
    #[arg(long)]
    bless: bool,
}

/// Languages of blocks that must come from somewhere.
const INCLUDED: [&str; 2] = ["rust", "text"];

impl Guide {
    /// Compares or writes.
    pub fn execute(&self) -> Result<u8> {
        if self.bless {
            for chapter in chapters()? {
                let text = fs::read_to_string(&chapter)?;
                let fresh = render(&text, &mut Tree::default()).context(name(&chapter))?;
                if fresh != text {
                    fs::write(&chapter, fresh)?;
                    println!("{} is written anew", name(&chapter));
                }
            }
        }
        check()?;
        println!("the guide shows what the tree holds");
        Ok(0)
    }
}

/// Is everything that the guide shows and names what the tree holds?
pub fn check() -> Result<()> {
    let mut problems = Vec::new();
    let mut tree = Tree::default();
    let tests = tests()?;
    for chapter in chapters()? {
        let text = fs::read_to_string(&chapter)?;
        let shown = name(&chapter);
        match render(&text, &mut tree) {
            Ok(fresh) => problems.extend(differences(&shown, &text, &fresh)),
            Err(error) => problems.push(format!("{shown}: {error:#}")),
        }
        let lost = named_tests(&text).filter(|name| !tests.contains(*name));
        problems.extend(lost.map(|name| format!("{shown}: there is no test {name}")));
        let lost = named_files(&text).into_iter().filter(|path| !exists(&chapter, path));
        problems.extend(lost.map(|path| format!("{shown}: there is no {path}")));
    }
    if !problems.is_empty() {
        bail!("the guide has drifted (cargo xtask guide --bless):\n  {}", problems.join("\n  "));
    }
    Ok(())
}

fn chapters() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(build::root().join("guide"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

fn name(chapter: &Path) -> String {
    chapter.strip_prefix(build::root()).unwrap_or(chapter).display().to_string()
}

/// The lines at which a chapter is not what it should be.
fn differences(shown: &str, text: &str, fresh: &str) -> Option<String> {
    let (place, (is, should)) = (text.lines().zip(fresh.lines()).enumerate())
        .find(|(_, (is, should))| is != should)
        .or_else(|| (text != fresh).then_some((text.lines().count(), ("", ""))))?;
    Some(format!("{shown}:{}: says\n      {is}\n    and should say\n      {should}", place + 1))
}

/// Where the blocks come from.
trait Source {
    fn listing(&mut self, file: &str, anchor: &str) -> Result<String>;
    fn output(&mut self, package: &str, example: &str, section: &str) -> Result<String>;
}

/// The source tree. Examples run once.
#[derive(Default)]
struct Tree {
    outputs: BTreeMap<String, String>,
}

impl Source for Tree {
    fn listing(&mut self, file: &str, anchor: &str) -> Result<String> {
        let text = fs::read_to_string(build::root().join(file)).context(file.to_owned())?;
        anchored(&text, anchor).with_context(|| format!("{file}#{anchor}"))
    }

    fn output(&mut self, package: &str, example: &str, section: &str) -> Result<String> {
        let key = format!("{package} {example}");
        if !self.outputs.contains_key(&key) {
            let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
                .args(["run", "--quiet", "--package", package, "--example", example])
                .current_dir(build::root())
                .env_remove("CARGO_MANIFEST_DIR")
                .output()
                .context("cargo does not run")?;
            if !output.status.success() {
                bail!("{key} fails:\n{}", String::from_utf8_lossy(&output.stderr));
            }
            let text = String::from_utf8(output.stdout).context("the output is not text")?;
            self.outputs.insert(key.clone(), text);
        }
        section_of(&self.outputs[&key], section).with_context(|| format!("{key}#{section}"))
    }
}

/// The chapter with every included block as its source has it.
fn render(text: &str, source: &mut impl Source) -> Result<String> {
    let mut fresh = String::new();
    let mut lines = text.lines().enumerate();
    let mut announced = None;
    while let Some((place, line)) = lines.next() {
        fresh += line;
        fresh.push('\n');
        if let Some(comment) = line.strip_prefix("<!-- ") {
            let what = comment.strip_suffix(" -->").context("a comment ends on its line")?;
            announced = Some(block(what, source).with_context(|| format!("line {}", place + 1))?);
            continue;
        }
        let Some(language) = line.strip_prefix("```") else {
            if let Some(missing) = announced.take() {
                bail!("line {}: a block should follow the comment:\n{missing}", place + 1);
            }
            continue;
        };
        let mut old = String::new();
        loop {
            let (_, line) = lines.next().with_context(|| format!("line {}: no end", place + 1))?;
            if line == "```" {
                break;
            }
            old = old + line + "\n";
        }
        match announced.take() {
            Some(block) => fresh += &block,
            None if INCLUDED.contains(&language) => {
                bail!("line {}: a block of {language} that says not where it is from", place + 1)
            }
            None => fresh += &old,
        }
        fresh += "```\n";
    }
    Ok(fresh)
}

/// What the block below this comment should hold.
fn block(what: &str, source: &mut impl Source) -> Result<String> {
    let parts = || -> Option<(&str, &str, &str)> {
        let (kind, place) = what.split_once(": ")?;
        let (place, name) = place.split_once('#')?;
        Some((kind, place, name))
    };
    match parts() {
        Some(("listing", file, anchor)) => source.listing(file, anchor),
        Some(("output", example, section)) => {
            let (package, example) = example.split_once(' ').context("PACKAGE EXAMPLE#NAME")?;
            source.output(package, example, section)
        }
        _ => bail!("neither `listing: FILE#NAME` nor `output: PACKAGE EXAMPLE#NAME`: {what}"),
    }
}

/// The lines between an anchor and its end, without the indentation that they share and without
/// other anchors.
fn anchored(text: &str, anchor: &str) -> Result<String> {
    let is = |line: &str, word: &str| {
        let mut words = line.split_whitespace().rev();
        words.next() == Some(anchor) && words.next() == Some(word)
    };
    let starts = text.lines().filter(|line| is(line, "ANCHOR:")).count();
    if starts != 1 {
        bail!("{starts} lines say `ANCHOR: {anchor}`");
    }
    let inside = text.lines().skip_while(|line| !is(line, "ANCHOR:")).skip(1);
    let lines: Vec<&str> = inside.clone().take_while(|line| !is(line, "ANCHOR_END:")).collect();
    if lines.len() == inside.count() {
        bail!("no line says `ANCHOR_END: {anchor}`");
    }
    let other = |line: &&&str| !line.contains("ANCHOR: ") && !line.contains("ANCHOR_END: ");
    let lines: Vec<&str> = lines.iter().filter(other).copied().collect();
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let shared = lines.iter().filter(|line| !line.trim().is_empty()).map(indent).min().unwrap_or(0);
    let cut = |line: &&str| line.get(shared..).unwrap_or_default().to_owned() + "\n";
    Ok(lines.iter().map(cut).collect())
}

/// The lines of an output between `== SECTION` and the next such line.
fn section_of(output: &str, section: &str) -> Result<String> {
    let header = format!("== {section}");
    let mut after = output.lines().skip_while(|line| *line != header);
    after.next().with_context(|| format!("no line says `{header}`"))?;
    let lines = after.take_while(|line| !line.starts_with("== "));
    let text = lines.flat_map(|line| [line.trim_end(), "\n"]).collect::<String>();
    Ok(text.trim_matches('\n').to_owned() + "\n")
}

/// What stands in backquotes in the last cell of a table's row, if it looks like a test's name.
fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    let cells = text.lines().filter_map(|line| line.strip_suffix('|')?.rsplit('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter(|name| name.contains('_'))
}

/// Links to files, and what stands in backquotes and begins with a folder of ours.
fn named_files(text: &str) -> Vec<&str> {
    const FOLDERS: [&str; 7] =
        ["crates/", "kernel/", "tests/", "user/", "xtask/", "tools/", "fuzz/"];
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links =
        links.filter(|link| !link.contains("://")).filter_map(|link| link.split('#').next());
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let paths = quoted.filter(|path| FOLDERS.iter().any(|folder| path.starts_with(folder)));
    links.filter(|link| !link.is_empty()).chain(paths.filter(|path| !path.contains(' '))).collect()
}

/// Seen from the chapter, or from the root?
fn exists(chapter: &Path, path: &str) -> bool {
    let folder = chapter.parent().unwrap_or(build::root());
    folder.join(path).exists() || build::root().join(path).exists()
}

/// The names of all functions of the tree, tests among them.
fn tests() -> Result<BTreeSet<String>> {
    let mut tests = BTreeSet::new();
    for dir in ["crates", "kernel", "tests", "xtask"] {
        collect_tests(&build::root().join(dir), &mut tests)?;
    }
    Ok(tests)
}

fn collect_tests(dir: &Path, into: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_tests(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let mut is_test = false;
            for line in fs::read_to_string(&path)?.lines().map(str::trim_start) {
                if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
                    into.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
                }
                // Other attributes may stand between.
                is_test = line.starts_with("#[test]") || is_test && line.starts_with("#[");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
