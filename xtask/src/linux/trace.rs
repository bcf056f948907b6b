//! What `tools/counter` wrote: how often each guest instruction ran in each case.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context, Result};

use crate::ksyms;

/// Instructions in one operation, and among them those that cost more than one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    instructions: f64,
    locked: f64,
    invlpg: f64,
    cr3: f64,
    msr: f64,
    io: f64,
}

/// One line: an instruction that ran so often in a case.
struct Line {
    case: usize,
    pc: u64,
    count: u64,
    kind: char,
}

fn lines(path: &Path) -> Result<Vec<Line>> {
    let file = File::open(path).with_context(|| format!("no {}", path.display()))?;
    let mut all = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let (case, pc, count, kind) = (next(), next(), next(), next());
        if let (Ok(case), Ok(pc), Ok(count), Some(kind)) =
            (case.parse(), u64::from_str_radix(pc, 16), count.parse(), kind.chars().next())
        {
            all.push(Line { case, pc, count, kind });
        }
    }
    Ok(all)
}

/// Adds up each case for one of its `operations`. The plugin knows cases by their number in
/// `order`.
pub fn events(
    path: &Path,
    order: &[String],
    operations: &BTreeMap<String, u64>,
) -> Result<BTreeMap<String, Events>> {
    let mut all: BTreeMap<String, Events> = BTreeMap::new();
    for line in lines(path)? {
        let Some(name) = order.get(line.case) else { continue };
        let Some(&operations) = operations.get(name) else { continue };
        let part = line.count as f64 / operations as f64;
        let events = all.entry(name.clone()).or_default();
        events.instructions += part;
        match line.kind {
            'l' => events.locked += part,
            'i' => events.invlpg += part,
            'c' => events.cr3 += part,
            'm' => events.msr += part,
            'p' => events.io += part,
            _ => {}
        }
    }
    Ok(all)
}

/// As a JSON object.
pub fn json(all: &BTreeMap<String, Events>) -> String {
    let one = |(name, e): (&String, &Events)| {
        format!(
            "\"{name}\": {{\"instructions\": {:.2}, \"locked\": {:.2}, \"invlpg\": {:.2}, \
             \"cr3\": {:.2}, \"msr\": {:.2}, \"io\": {:.2}}}",
            e.instructions, e.locked, e.invlpg, e.cr3, e.msr, e.io
        )
    };
    format!("{{{}}}", all.iter().map(one).collect::<Vec<_>>().join(",\n"))
}

/// Functions by the instructions that one of `operations` spends in them, and the dearest single
/// addresses, for `addr2line`. Without an image there are no names: pages of code stand for
/// functions.
pub fn profile(path: &Path, image: Option<&Path>, operations: u64) -> Result<String> {
    let symbols = match image {
        Some(image) => ksyms::functions(&std::fs::read(image)?)?,
        None => Vec::new(),
    };
    let name = |pc: u64| -> String {
        let Some(offset) = pc.checked_sub(ksyms::KERNEL_BASE) else {
            return if pc >> 63 == 0 { "(user mode)".to_owned() } else { format!("{pc:#x}") };
        };
        let after = symbols.partition_point(|symbol| u64::from(symbol.0) <= offset);
        match after.checked_sub(1).and_then(|index| symbols.get(index)) {
            Some((_, name)) => name.clone(),
            None => format!("{:#x}", pc & !0xff),
        }
    };
    let lines = lines(path)?;
    let mut functions: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut total = 0;
    for line in &lines {
        let entry = functions.entry(name(line.pc)).or_default();
        entry.0 += line.count;
        entry.1 += if line.kind == '-' { 0 } else { line.count };
        total += line.count;
    }
    let each = |count: u64| count as f64 / operations as f64;
    let mut sorted: Vec<_> = functions.into_iter().collect();
    sorted.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    let mut text = format!(
        "{:12.1} instructions in one of {operations} operations\n{:>12} {:>9}  function\n",
        each(total),
        "count",
        "dear"
    );
    for (name, (count, dear)) in sorted.iter().take(45) {
        let _ = writeln!(text, "{:12.1} {:9.1}  {name}", each(*count), each(*dear));
    }
    let mut dear: Vec<&Line> = lines.iter().filter(|line| line.kind != '-').collect();
    dear.sort_by_key(|line| std::cmp::Reverse(line.count));
    text += "dear instructions (l locked, i invlpg, c CR3, m WRMSR, p port):\n";
    for line in dear.iter().take(20) {
        let (count, pc) = (each(line.count), line.pc);
        let _ = writeln!(text, "{count:12.1} {}  {pc:#x}  {}", line.kind, name(pc));
    }
    Ok(text)
}
