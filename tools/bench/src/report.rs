//! Tables, JSON and pictures of what was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use serde::Serialize;

use crate::measure::Figure;

/// Which way is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Smaller is better.
    Less,
    /// Larger is better.
    More,
}

/// One line of a table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub case: String,
    /// Of the figures.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
    /// Our figure.
    pub ours: f64,
    /// The others' figures; who cannot do it is absent. A name in parentheses informs, but is no
    /// peer of the gate.
    pub peers: BTreeMap<String, f64>,
    /// The ratio to the best peer that we hold ourselves to; none for rows that only inform.
    pub gate: Option<f64>,
    /// How far apart the first and third quartile of our windows lie, as a part of the median.
    pub spread: f64,
}

impl Row {
    /// A row of times: `figures[0]` is ours.
    pub fn times(case: &str, figures: &[Figure], gate: Option<f64>) -> Self {
        let (ours, peers) = figures.split_first().expect("at least our own figure");
        Self {
            case: case.to_owned(),
            unit: "ns",
            better: Better::Less,
            ours: ours.median,
            peers: peers.iter().map(|peer| (peer.name.clone(), peer.median)).collect(),
            gate,
            spread: (ours.quartiles.1 - ours.quartiles.0) / ours.median,
        }
    }

    /// The best peer's figure.
    pub fn best_peer(&self) -> Option<f64> {
        let peers = self.peers.iter().filter(|(name, _)| !name.starts_with('('));
        let finite = peers.map(|(_, &figure)| figure).filter(|figure| figure.is_finite());
        match self.better {
            Better::Less => finite.min_by(f64::total_cmp),
            Better::More => finite.max_by(f64::total_cmp),
        }
    }

    /// Ours over the best peer's; none where one of them cannot do it.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.ours / self.best_peer()?).filter(|ratio| ratio.is_finite())
    }

    /// Is the gate kept? True where there is none, false where we cannot do it.
    pub fn holds(&self) -> bool {
        match (self.gate, self.ratio(), self.better) {
            (Some(gate), Some(ratio), Better::Less) => ratio <= gate,
            (Some(gate), Some(ratio), Better::More) => ratio >= gate,
            (Some(_), None, _) => !self.ours.is_nan(),
            _ => true,
        }
    }
}

/// The rows as a Markdown table.
pub fn markdown(rows: &[Row]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.peers.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut text = format!("| case | unit | **ours** | {} | ratio | gate |\n", names.join(" | "));
    text += &format!("|{}\n", "---|".repeat(names.len() + 5));
    for row in rows {
        let _ = write!(text, "| {} | {} | **{}** ", row.case, row.unit, short(row.ours));
        for name in &names {
            let figure = row.peers.get(*name).map_or("-".into(), |&figure| short(figure));
            let _ = write!(text, "| {figure} ");
        }
        let ratio = row.ratio().map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let gate = match row.gate {
            Some(gate) if row.holds() => format!("{gate:.2} ok"),
            Some(gate) => format!("{gate:.2} **missed**"),
            None => String::new(),
        };
        let _ = writeln!(text, "| {ratio} | {gate} |");
    }
    text
}

fn short(figure: f64) -> String {
    match figure {
        f if !f.is_finite() => "-".into(),
        f if f < 10.0 => format!("{f:.2}"),
        f if f < 100.0 => format!("{f:.1}"),
        f => format!("{f:.0}"),
    }
}

/// Writes `NAME.json`, `NAME.md` and `NAME.svg` into `dir`.
pub fn write(dir: &Path, name: &str, command: &str, rows: &[Row]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let json = serde_json::to_string_pretty(rows)?;
    std::fs::write(dir.join(format!("{name}.json")), json + "\n")?;
    let table = format!("Made by `{command}` on {}.\n\n{}", machine(), markdown(rows));
    std::fs::write(dir.join(format!("{name}.md")), table)?;
    let picture = dir.join(format!("{name}.svg"));
    draw(&picture, name, rows).map_err(|error| anyhow!("{}: {error}", picture.display()))
}

/// For rows without peers: a bar for each, the parts of its stages in it, our figure beside it.
fn draw_stages(path: &Path, name: &str, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    const COLOURS: [RGBColor; 4] = [
        RGBColor(190, 150, 60),
        RGBColor(200, 60, 50),
        RGBColor(70, 110, 170),
        RGBColor(120, 80, 150),
    ];
    let names: std::collections::BTreeSet<&String> =
        rows.iter().flat_map(|row| row.peers.keys()).collect();
    let root = SVGBackend::new(path, (960, 60 + 22 * rows.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let font = ("sans-serif", 13).into_font();
    let title = format!("{name}: what the stages are of each operation (green: the rest)");
    root.draw(&Text::new(title, (10, 8), ("sans-serif", 15).into_font()))?;
    for (name, (index, colour)) in names.iter().zip(COLOURS.iter().enumerate()) {
        let font = font.clone().color(colour);
        root.draw(&Text::new(name.to_string(), (600 + 80 * index as i32, 8), font))?;
    }
    let scale = |part: f64| 430 + (part.clamp(0.0, 1.0) * 400.0) as i32;
    for (index, row) in rows.iter().enumerate() {
        let top = 36 + 22 * index as i32;
        root.draw(&Text::new(row.case.clone(), (10, top), font.clone()))?;
        let mut from = 0.0;
        for (name, colour) in names.iter().zip(COLOURS) {
            let to = from + row.peers.get(*name).map_or(0.0, |stage| stage / row.ours);
            let bar = [(scale(from), top), (scale(to), top + 14)];
            root.draw(&Rectangle::new(bar, colour.filled()))?;
            from = to;
        }
        let bar = [(scale(from), top), (scale(1.0), top + 14)];
        root.draw(&Rectangle::new(bar, RGBColor(60, 130, 90).filled()))?;
        let label = format!("{:.1} {}", row.ours, row.unit);
        root.draw(&Text::new(label, (scale(1.0) + 6, top), font.clone()))?;
    }
    root.present()?;
    Ok(())
}

/// A bar for each row: our figure as a part of the best peer's, the gate as a mark.
fn draw(path: &Path, name: &str, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    let bars: Vec<(&Row, f64)> = rows.iter().filter_map(|row| Some((row, row.ratio()?))).collect();
    if bars.is_empty() {
        return draw_stages(path, name, rows);
    }
    let height = 60 + 22 * bars.len() as u32;
    let root = SVGBackend::new(path, (960, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let font = ("sans-serif", 13).into_font();
    let scale = |ratio: f64| 430.0 + ratio.clamp(0.0, 2.0) * 230.0;
    let title = format!("{name}: ours as a part of the best peer's (line = equal)");
    root.draw(&Text::new(title, (10, 8), ("sans-serif", 15).into_font()))?;
    let equal = scale(1.0) as i32;
    for (index, (row, ratio)) in bars.iter().enumerate() {
        let top = 36 + 22 * index as i32;
        let good = match row.better {
            Better::Less => *ratio <= 1.0,
            Better::More => *ratio >= 1.0,
        };
        let colour = if !row.holds() {
            RGBColor(200, 60, 50)
        } else if good {
            RGBColor(60, 130, 90)
        } else {
            RGBColor(190, 150, 60)
        };
        root.draw(&Text::new(row.case.clone(), (10, top), font.clone()))?;
        let bar = [(scale(0.0) as i32, top), (scale(*ratio) as i32, top + 14)];
        root.draw(&Rectangle::new(bar, colour.filled()))?;
        let label = format!("{ratio:.2}");
        root.draw(&Text::new(label, (scale(*ratio) as i32 + 6, top), font.clone()))?;
        if let Some(gate) = row.gate {
            let x = scale(gate) as i32;
            root.draw(&PathElement::new([(x, top - 3), (x, top + 17)], BLACK.stroke_width(2)))?;
        }
    }
    let bottom = height as i32 - 10;
    root.draw(&PathElement::new([(equal, 30), (equal, bottom)], BLACK.mix(0.4)))?;
    root.present()?;
    Ok(())
}

/// The machine in a few words, as far as it tells: processor, CPUs, system.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name"));
    let model =
        model.and_then(|line| line.split_once(": ")).map_or("a processor", |(_, name)| name);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version: String = release.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let guest = if info.contains(" hypervisor") { ", a virtual machine" } else { "" };
    format!("{}, {cpus} CPUs{guest}, Linux {version}", model.trim())
}
