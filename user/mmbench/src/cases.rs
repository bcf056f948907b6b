//! What is measured. Everything that a case needs besides (memory to fork with, a child that waits)
//! is made and taken away outside its timed part.
//!
//! A cost that a kernel has moved is measured where it went: a `fork` that shares page tables pays
//! when the child writes (`cow.child`), when the parent rewrites everything while the child lives
//! (`fork.64m.rewrite`), and when it writes after the child has gone (`cow.sole`).

use crate::sys::{self, Errno, Map, PAGE, PRIVATE, RW, Result};
use crate::{Case, Marks, Sample, timed};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
/// What the forks and the first touches work on.
const BIG: usize = 64 * MIB;
/// Calls in one repetition of a short case.
const CALLS: usize = 1000;

macro_rules! cases {
    ($($name:literal => $run:expr,)*) => {
        /// All cases, in the order in which they run.
        pub const ALL: &[Case] = &[$(Case { name: $name, run: $run },)*];
    };
}

cases! {
    "getppid" => getppid,
    "touch" => |marks| touch(marks, BIG),
    "munmap.page" => munmap_page,
    "mmap.munmap" => |marks| map_unmap(marks, PAGE, PRIVATE, CALLS),
    "mmap.touch.munmap.1m" => |marks| map_touch_unmap(marks, PRIVATE, -1),
    "mprotect.flip.1m" => mprotect_flip,
    "brk.64k" => brk,
    "fork.small" => |marks| forks(marks, None, 20),
    "fork.64m" => |marks| forks(marks, Some((BIG, PAGE)), 3),
    "cow.child" => cow_child,
    "cow.sole" => cow_sole,
    "fork.64m.rewrite" => fork_rewrite,
    "fork.sparse" => |marks| forks(marks, Some((GIB, 2 * MIB)), 3),
    "read.zero" => read_zero,
    "mremap.grow.shrink" => remap_in_place,
    "mremap.move.1m" => remap_move,
    "mmap.munmap.1g" => |marks| map_unmap(marks, GIB, PRIVATE | libc::MAP_NORESERVE, CALLS),
    "file.private.read.1m" => |marks| file(marks, libc::MAP_PRIVATE, false),
    "file.private.write.1m" => |marks| file(marks, libc::MAP_PRIVATE, true),
    "file.shared.read.1m" => |marks| file(marks, libc::MAP_SHARED, false),
    "file.shared.write.1m" => |marks| file(marks, libc::MAP_SHARED, true),
    "shared.touch.1m" => |marks| {
        map_touch_unmap(marks, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    },
    "regions.12.touch" => |marks| regions(marks, 1),
    "regions.10000.touch" => |marks| regions(marks, 2 * REGIONS),
    "regions.10000.mmap.munmap" => regions_map_unmap,
    "spans.64m.mmap" => |marks| spans(marks, BIG, Step::Map),
    "spans.64g.mmap" => |marks| spans(marks, 64 * GIB, Step::Map),
    "spans.64m.touch" => |marks| spans(marks, BIG, Step::Touch),
    "spans.64g.touch" => |marks| spans(marks, 64 * GIB, Step::Touch),
    "spans.64m.mprotect" => |marks| spans(marks, BIG, Step::Protect),
    "spans.64g.mprotect" => |marks| spans(marks, 64 * GIB, Step::Protect),
    "spans.64m.munmap" => |marks| spans(marks, BIG, Step::Unmap),
    "spans.64g.munmap" => |marks| spans(marks, 64 * GIB, Step::Unmap),
}

/// [`timed`], between the marks.
#[inline(always)]
fn marked(marks: &Marks<'_>, ops: usize, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    marks.begin();
    let sample = timed(ops, work);
    marks.end();
    sample
}

fn getppid(marks: &Marks<'_>) -> Result<Sample> {
    marked(marks, CALLS, || {
        (0..CALLS).for_each(|_| sys::getppid());
        Ok(())
    })
}

/// One byte to each page of fresh private memory.
fn touch(marks: &Marks<'_>, len: usize) -> Result<Sample> {
    let map = Map::anonymous(len)?;
    marked(marks, len / PAGE, || {
        map.touch(0, len);
        Ok(())
    })
}

/// `munmap` of touched memory, for each page.
fn munmap_page(marks: &Marks<'_>) -> Result<Sample> {
    let map = Map::anonymous(BIG)?;
    map.touch(0, BIG);
    marked(marks, BIG / PAGE, || map.unmap())
}

/// `mmap` and `munmap` of untouched memory.
fn map_unmap(marks: &Marks<'_>, len: usize, flags: i32, calls: usize) -> Result<Sample> {
    marked(marks, calls, || {
        for _ in 0..calls {
            Map::new(0, len, RW, flags, -1)?.unmap()?;
        }
        Ok(())
    })
}

fn map_touch_unmap(marks: &Marks<'_>, flags: i32, file: i32) -> Result<Sample> {
    const ROUNDS: usize = 10;
    marked(marks, ROUNDS, || {
        for _ in 0..ROUNDS {
            let map = Map::new(0, MIB, RW, flags, file)?;
            map.touch(0, MIB);
            map.unmap()?;
        }
        Ok(())
    })
}

/// Two calls on a touched MiB: read-only, and writable again.
fn mprotect_flip(marks: &Marks<'_>) -> Result<Sample> {
    const ROUNDS: usize = 50;
    let map = Map::anonymous(MIB)?;
    map.touch(0, MIB);
    marked(marks, ROUNDS, || {
        for _ in 0..ROUNDS {
            map.protect(0, MIB, libc::PROT_READ)?;
            map.protect(0, MIB, RW)?;
        }
        Ok(())
    })
}

/// Grows by 64 KiB, touches its 16 pages, shrinks. The C library's own heap may lie below; the
/// break is back where it was before anybody else asks.
fn brk(marks: &Marks<'_>) -> Result<Sample> {
    const ROUNDS: usize = 50;
    const GROWTH: usize = 64 * KIB;
    let old = sys::brk(0).next_multiple_of(PAGE);
    marked(marks, ROUNDS, || {
        for _ in 0..ROUNDS {
            if sys::brk(old + GROWTH) != old + GROWTH {
                return Err(Errno(libc::ENOMEM));
            }
            // Not unmapped when done: `brk` does that.
            let grown = core::mem::ManuallyDrop::new(Map { start: old, len: GROWTH });
            grown.touch(0, GROWTH);
            sys::brk(old);
        }
        Ok(())
    })
}

/// Fork, exit in the child, wait in the parent, with memory of this length of which one page in
/// each `step` is touched.
fn forks(marks: &Marks<'_>, memory: Option<(usize, usize)>, rounds: usize) -> Result<Sample> {
    let map = memory.map(|(len, _)| Map::reserved(len)).transpose()?;
    if let (Some(map), Some((len, step))) = (&map, memory) {
        (0..len).step_by(step).for_each(|at| map.touch(at, PAGE));
    }
    marked(marks, rounds, || {
        for _ in 0..rounds {
            let child = sys::fork()?;
            if child == 0 {
                sys::exit(0);
            }
            sys::wait(child)?;
        }
        Ok(())
    })
}

/// The child writes one byte to each page that it shares, and tells what that cost.
fn cow_child(marks: &Marks<'_>) -> Result<Sample> {
    let map = Map::anonymous(BIG)?;
    map.touch(0, BIG);
    let [from, to] = sys::pipe()?;
    let child = sys::fork()?;
    if child == 0 {
        let sample = marked(marks, BIG / PAGE, || {
            map.touch(0, BIG);
            Ok(())
        });
        let told = sample.map_or(0, |sample| sample.counts);
        let sent = sys::write(to, &told.to_le_bytes());
        sys::exit(usize::from(sent.is_err()));
    }
    let mut told = [0; 8];
    let got = sys::read(from, &mut told);
    let status = sys::wait(child);
    [from, to].into_iter().for_each(sys::close);
    if got? != told.len() || status? != 0 {
        return Err(Errno(libc::ECHILD));
    }
    Ok(Sample { counts: u64::from_le_bytes(told), ops: (BIG / PAGE) as u64 })
}

/// The parent writes after the child has gone: every page is its own again.
fn cow_sole(marks: &Marks<'_>) -> Result<Sample> {
    let map = Map::anonymous(BIG)?;
    map.touch(0, BIG);
    let child = sys::fork()?;
    if child == 0 {
        sys::exit(0);
    }
    sys::wait(child)?;
    marked(marks, BIG / PAGE, || {
        map.touch(0, BIG);
        Ok(())
    })
}

/// Fork, the parent rewrites everything while the child lives, exit, wait.
fn fork_rewrite(marks: &Marks<'_>) -> Result<Sample> {
    let map = Map::anonymous(BIG)?;
    map.touch(0, BIG);
    let [from, to] = sys::pipe()?;
    let sample = marked(marks, 1, || {
        let child = sys::fork()?;
        if child == 0 {
            let mut byte = [0];
            let got = sys::read(from, &mut byte);
            sys::exit(usize::from(got != Ok(1)));
        }
        map.touch(0, BIG);
        sys::write(to, b"x")?;
        sys::wait(child)?;
        Ok(())
    });
    [from, to].into_iter().for_each(sys::close);
    sample
}

/// A read fault on memory that was never written.
fn read_zero(marks: &Marks<'_>) -> Result<Sample> {
    let map = Map::anonymous(BIG)?;
    marked(marks, BIG / PAGE, || {
        map.read();
        Ok(())
    })
}

/// Grows an untouched MiB by another and shrinks it again.
fn remap_in_place(marks: &Marks<'_>) -> Result<Sample> {
    // Something to grow into: nothing else takes the place meanwhile.
    let room = Map::anonymous(2 * MIB)?;
    let start = room.start;
    room.unmap()?;
    let mut map = Map::new(start, MIB, RW, PRIVATE | libc::MAP_FIXED, -1)?;
    marked(marks, CALLS, || {
        for _ in 0..CALLS {
            map.remap(2 * MIB, None)?;
            map.remap(MIB, None)?;
        }
        Ok(())
    })
}

/// Moves a touched MiB to another place (and back the next time).
fn remap_move(marks: &Marks<'_>) -> Result<Sample> {
    const ROUNDS: usize = 50;
    let mut map = Map::anonymous(MIB)?;
    map.touch(0, MIB);
    let room = Map::anonymous(MIB)?;
    let places = [room.start, map.start];
    room.unmap()?;
    marked(marks, ROUNDS, || {
        for place in places.iter().cycle().take(ROUNDS) {
            map.remap(MIB, Some(*place))?;
        }
        Ok(())
    })
}

/// Maps a file's MiB that is in memory, reads or writes every page, unmaps.
fn file(marks: &Marks<'_>, sharing: i32, write: bool) -> Result<Sample> {
    const ROUNDS: usize = 10;
    let file = sys::open(c"/tmp/mmbench.data", libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC)?;
    sys::write(file, &vec![7; MIB])?;
    let sample = marked(marks, ROUNDS, || {
        for _ in 0..ROUNDS {
            let map = Map::new(0, MIB, RW, sharing, file)?;
            if write {
                map.touch(0, MIB);
            } else {
                map.read();
            }
            map.unmap()?;
        }
        Ok(())
    });
    sys::close(file);
    sample
}

/// Regions of the many-regions cases.
const REGIONS: usize = 10_000;

/// Memory in `pieces` equal pieces of which each second is read-only, so that each is a region.
fn pieces(pieces: usize) -> Result<Map> {
    let len = 2 * REGIONS * PAGE;
    let map = Map::anonymous(len)?;
    let piece = len / pieces;
    for at in (piece..len).step_by(2 * piece) {
        map.protect(at, piece, libc::PROT_READ)?;
    }
    Ok(map)
}

/// Touches the same 10,000 pages, in an order that jumps, in so many regions.
fn regions(marks: &Marks<'_>, count: usize) -> Result<Sample> {
    const STRIDE: usize = 7_919; // prime
    let map = pieces(count)?;
    marked(marks, REGIONS, || {
        let mut at = 0;
        for _ in 0..REGIONS {
            map.touch(2 * PAGE * at, PAGE);
            at = (at + STRIDE) % REGIONS;
        }
        Ok(())
    })
}

fn regions_map_unmap(marks: &Marks<'_>) -> Result<Sample> {
    let _many = pieces(2 * REGIONS)?;
    map_unmap(marks, PAGE, PRIVATE, CALLS)
}

/// What of a life with sixteen spans is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Map,
    Touch,
    Protect,
    Unmap,
}

/// A mapping of this length with sixteen touched spans of 2 MiB, evenly spread.
fn spans(marks: &Marks<'_>, len: usize, step: Step) -> Result<Sample> {
    const SPANS: usize = 16;
    const SPAN: usize = 2 * MIB;
    let mut made = None;
    let mut map_it = || {
        made = Some(Map::reserved(len)?);
        Ok(())
    };
    if step == Step::Map {
        return marked(marks, 1, map_it);
    }
    map_it()?;
    let Some(map) = made else { return Err(Errno(libc::ENOMEM)) };
    let touch = || {
        (0..SPANS).for_each(|span| map.touch(span * (len / SPANS), SPAN));
        Ok(())
    };
    if step == Step::Touch {
        return marked(marks, 1, touch);
    }
    touch()?;
    if step == Step::Protect {
        return marked(marks, 1, || map.protect(0, len, libc::PROT_READ));
    }
    marked(marks, 1, || map.unmap())
}
