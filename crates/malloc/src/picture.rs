//! Where memory lies idle between what is in use: a picture as SVG.
//!
//! Small memory: a square for each unit of 16 KiB, the darker the more of its blocks the program has; units
//! that wait in the pool are hollow. Medium memory: a square for each page of each arena, the darker
//! the more bytes of it belong to blocks. Large blocks are mappings without gaps: their sum is told.
//!
//! Left out: threads that hold slabs besides the one that asks (nobody may read their counts); which pages
//! the system has taken back.

use core::fmt::{self, Write};

use crate::allocator::Allocator;
use crate::arena::{ARENAS, Ground};
use crate::system::{Local, PAGE_BYTES, System};

/// Squares in a row.
const ROW: usize = 64;
/// Pixels from one square to the next.
const STEP: usize = 11;
/// Squares of each kind; what is beyond is not drawn, and that is said.
const MOST: usize = 1 << 14;
/// Pixels above the first row.
const HEAD: usize = 24;

/// Squares in rows, below one another.
struct Sheet<'a, W: Write> {
    to: &'a mut W,
    top: usize,
    count: usize,
}

impl<W: Write> Sheet<'_, W> {
    /// Begins a part with its name.
    fn part(&mut self, name: fmt::Arguments<'_>) -> fmt::Result {
        self.top += self.count.min(MOST).div_ceil(ROW) * STEP + HEAD;
        self.count = 0;
        writeln!(self.to, "<text x=\"4\" y=\"{}\">{name}</text>", self.top - 6)
    }

    /// A square, of which `full` parts of `of` are in use; hollow if there is nothing to fill.
    fn square(&mut self, full: usize, of: usize, name: fmt::Arguments<'_>) -> fmt::Result {
        let (x, y) = (self.count % ROW * STEP + 4, self.top + self.count / ROW * STEP);
        self.count += 1;
        if self.count > MOST {
            return Ok(());
        }
        write!(self.to, "<rect x=\"{x}\" y=\"{y}\" width=\"10\" height=\"10\" ")?;
        match (full * 100).checked_div(of) {
            // From nearly white to dark blue.
            Some(part) => write!(
                self.to,
                "fill=\"rgb({},{},{})\"",
                235 - 225 * part.min(100) / 100,
                240 - 180 * part.min(100) / 100,
                245 - 125 * part.min(100) / 100
            )?,
            None => write!(self.to, "fill=\"none\" stroke=\"#bbb\"")?,
        }
        writeln!(self.to, "><title>{name}</title></rect>")
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Draws this allocator's memory. False: nothing was drawn, because other threads have heaps.
    ///
    /// # Errors
    /// What the writer says.
    pub fn draw(&self, to: &mut impl Write) -> Result<bool, fmt::Error> {
        if !self.window.is_open() || !self.is_alone() {
            return Ok(false);
        }
        let stats = self.stats();
        let pages: usize = (0..ARENAS)
            .map(|number| {
                let bytes = Ground::enter(&self.window, &self.system, number).stats().bytes;
                let rows = bytes.div_ceil(PAGE_BYTES).min(MOST).div_ceil(ROW);
                if rows == 0 { 0 } else { rows * STEP + HEAD }
            })
            .sum();
        let units = (stats.pool.frontier as usize).min(MOST).div_ceil(ROW) * STEP;
        let (width, height) = (ROW * STEP + 8, units + pages + 2 * HEAD + STEP);
        writeln!(
            to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
        )?;
        let mut sheet = Sheet { to, top: 0, count: 0 };
        self.draw_units(&mut sheet, stats.pool.frontier)?;
        for number in 0..ARENAS {
            self.draw_arena(&mut sheet, number)?;
        }
        sheet.part(format_args!(
            "large: {} blocks, {} KiB",
            stats.large_count,
            stats.large_bytes / 1024
        ))?;
        writeln!(sheet.to, "</svg>")?;
        Ok(true)
    }

    fn draw_units<W: Write>(&self, sheet: &mut Sheet<'_, W>, frontier: u32) -> fmt::Result {
        sheet.part(format_args!("small: {frontier} units of 16 KiB, by blocks in use"))?;
        for number in 0..frontier {
            let unit = self.unit(number);
            if unit.owner.load(core::sync::atomic::Ordering::Relaxed).is_null() {
                sheet.square(0, 0, format_args!("unit {number}: waits"))?;
                continue;
            }
            let (class, used) = (unit.class(), unit.used());
            sheet.square(
                used as usize,
                class.blocks as usize,
                format_args!(
                    "unit {number}: {used} of {} blocks of {} bytes",
                    class.blocks, class.bytes
                ),
            )?;
        }
        Ok(())
    }

    fn draw_arena<W: Write>(&self, sheet: &mut Sheet<'_, W>, number: usize) -> fmt::Result {
        let ground = Ground::enter(&self.window, &self.system, number);
        let stats = ground.stats();
        if stats.bytes == 0 {
            return Ok(());
        }
        sheet.part(format_args!(
            "medium, arena {number}: {} pages, {} KiB in use, by bytes in use",
            stats.bytes.div_ceil(PAGE_BYTES),
            stats.live / 1024
        ))?;
        let start = ground.address(0) as usize;
        let (mut page, mut live, mut result) = (0, 0, Ok(()));
        let mut close = |sheet: &mut Sheet<'_, W>, live: usize| {
            let drawn =
                sheet.square(live, PAGE_BYTES, format_args!("{live} of {PAGE_BYTES} bytes"));
            result = result.and(drawn);
        };
        ground.each_block(|at, bytes| {
            let (mut from, end) = (at as usize - start, at as usize - start + bytes);
            while from < end {
                while page < from / PAGE_BYTES {
                    close(sheet, live);
                    (page, live) = (page + 1, 0);
                }
                let part = end.min((page + 1) * PAGE_BYTES) - from;
                live += part;
                from += part;
            }
        });
        while page < stats.bytes.div_ceil(PAGE_BYTES) {
            close(sheet, live);
            (page, live) = (page + 1, 0);
        }
        result
    }
}

#[cfg(test)]
#[allow(unsafe_code)] // frees blocks
mod tests {
    use crate::tests::rig::rig;

    /// Fullness of the squares, read from their titles.
    fn squares(picture: &str, what: &str) -> Vec<(usize, usize)> {
        let titles = picture.split("<title>").skip(1).filter(|title| title.contains(what));
        titles
            .map(|title| {
                let words: Vec<_> =
                    title.split([' ', '<']).filter_map(|word| word.parse().ok()).collect();
                (words[0], words[1])
            })
            .collect()
    }

    #[test]
    fn each_page_and_each_block_in_use_is_drawn_once() {
        let rig = rig();
        let small: Vec<_> = (0..300).map(|_| rig.alloc(512)).collect();
        let medium: Vec<_> = (0..40).map(|_| rig.alloc(6000)).collect();
        for at in small.iter().step_by(2).chain(medium.iter().step_by(3)) {
            // SAFETY: allocated above, freed once.
            unsafe { rig.free(*at) };
        }
        let mut picture = String::new();
        assert_eq!(rig.draw(&mut picture), Ok(true));
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        let blocks: usize = picture
            .split("<title>unit ")
            .skip(1)
            .filter(|title| title.contains("blocks of 512"))
            .filter_map(|title| title.split(' ').nth(1)?.parse::<usize>().ok())
            .sum();
        assert_eq!(blocks, 150);
        let pages = squares(&picture, "of 4096 bytes");
        let stats = rig.stats().medium;
        assert_eq!(pages.len(), stats.bytes.div_ceil(4096));
        assert_eq!(pages.iter().map(|page| page.0).sum::<usize>(), stats.live);
        assert!(pages.iter().all(|page| page.0 <= 4096));
    }
}
