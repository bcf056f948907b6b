//! Random sequences against a map of single pages, with four CPUs that touch memory in between.
//!
//! After every step: the tree lists exactly what the model has, no CPU remembers more than the
//! tables grant, no dirty bit is lost, and *frames-conserved* holds: frames in use = frames that
//! the model maps + tables.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use pagoda_addr::{Frame, Page, PhysMap};
use pagoda_emu::{Access, Config, Machine, Mmu, Mode};
use pagoda_paging::{AbsentWord, Entry, Fate, Format, MapError, PageFlags, PageSize, PageTable};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Four spans of 2 MiB around the edge of a gibibyte: three levels of tables are in play.
const BASE: u64 = (1 << 18) - 1024;
const PAGES: u64 = 2048;

#[derive(Clone, Debug)]
enum Step {
    Map { at: u64, flags: PageFlags, share: bool },
    MapLarge { slot: u64, flags: PageFlags },
    Mark { at: u64, word: u64 },
    Prepare { at: u64, count: u64 },
    Protect { at: u64, count: u64, flags: PageFlags },
    Clean { at: u64, count: u64 },
    Replace { at: u64, flags: PageFlags },
    Split { at: u64 },
    Take { at: u64, count: u64 },
    Touch { cpu: usize, at: u64, access: Access },
    Reload { cpu: usize },
    FailSoon { count: u64 },
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Model {
    Mark(u64),
    Leaf { frame: u64, flags: PageFlags, wrote: bool },
}

struct World<'m> {
    machine: &'m Machine,
    /// The first page that the steps use.
    base: u64,
    lazy: bool,
    table: Table<'m>,
    model: BTreeMap<u64, Model>,
    /// What was last written to a frame.
    bytes: BTreeMap<u64, u8>,
    written: u8,
}

impl<'m> World<'m> {
    fn new(machine: &'m Machine, base: u64, lazy: bool) -> Self {
        let table = PageTable::new(machine.any_format(), machine).unwrap();
        for index in 0..4 {
            machine.enter(machine.cpu(index), &table);
        }
        let (model, bytes) = (BTreeMap::new(), BTreeMap::new());
        Self { machine, base, lazy, table, model, bytes, written: 0 }
    }

    fn fresh(&mut self, size: PageSize) -> Option<Frame> {
        let frame = self.machine.alloc_block(size, true).ok()?;
        for number in frame.number()..frame.number() + size.pages() {
            self.bytes.insert(number, 0);
        }
        Some(frame)
    }

    fn give_back(&self, frame: Frame, size: PageSize) {
        for number in 0..size.pages() {
            self.machine.arena().release(frame.checked_add(number).unwrap());
        }
    }

    fn range(&self) -> pagoda_addr::PageRange {
        pages(self.base, PAGES)
    }

    fn clip(&self, at: u64, count: u64) -> pagoda_addr::PageRange {
        pages(at, count.min(self.base + PAGES - at))
    }

    fn step(&mut self, step: &Step) {
        let base = self.base;
        match *step {
            Step::Map { at, flags, share } => self.map(base + at, PageSize::K4, flags, share),
            Step::MapLarge { slot, flags } => {
                self.map(base + slot * 512, PageSize::M2, flags, false);
            }
            Step::Mark { at, word } => self.mark(base + at, word),
            Step::Prepare { at, count } => {
                let range = self.clip(base + at, count);
                let result = self.table.cursor(range).unwrap().prepare(range);
                assert!(matches!(result, Ok(()) | Err(MapError::OutOfFrames)));
            }
            Step::Protect { at, count, flags } => {
                self.change(base + at, count, |old| (old & PageFlags::KEPT) | flags, true);
            }
            Step::Clean { at, count } => {
                self.change(base + at, count, |old| old - PageFlags::DIRTY, false);
            }
            Step::Replace { at, flags } => self.replace(base + at, flags),
            Step::Split { at } => {
                let mut batch = self.table.batch();
                let mut cursor = self.table.cursor(self.range()).unwrap();
                let result = cursor.split_at(page(base + at), &mut batch);
                assert!(matches!(result, Ok(()) | Err(MapError::OutOfFrames)));
                drop(cursor);
                batch.finish();
            }
            Step::Take { at, count } => self.take(base + at, count),
            Step::Touch { cpu, at, access } => self.touch(cpu, base + at, access),
            Step::Reload { cpu } => {
                self.machine.switch(self.machine.cpu(cpu), Some(self.table.root()));
            }
            Step::FailSoon { count } => self.machine.fail_after(Some(count)),
        }
    }

    fn map(&mut self, at: u64, size: PageSize, flags: PageFlags, share: bool) {
        let shared = self.model.values().find_map(|entry| match entry {
            Model::Leaf { frame, .. } if share => Some(Frame::from_number(*frame)),
            _ => None,
        });
        let frame = match shared {
            Some(frame) => {
                self.machine.share(frame);
                frame
            }
            None => match self.fresh(size) {
                Some(frame) => frame,
                None => return,
            },
        };
        let occupied = (at..at + size.pages())
            .any(|at| matches!(self.model.get(&at), Some(Model::Leaf { .. })));
        let range = pages(at, size.pages());
        let result = self.table.cursor(range).unwrap().map(page(at), frame, size, flags);
        let flags = self.table.format().grants(flags);
        match result {
            Ok(()) => {
                assert!(!occupied);
                for number in 0..size.pages() {
                    let frame = frame.number() + number;
                    self.model.insert(at + number, Model::Leaf { frame, flags, wrote: false });
                }
            }
            Err(error) => {
                match error {
                    MapError::OutOfFrames => {}
                    // A large page does not fit over a table, be it empty.
                    MapError::Occupied => assert!(occupied || size == PageSize::M2),
                    _ => panic!("{error:?}"),
                }
                self.give_back(frame, size);
            }
        }
    }

    fn mark(&mut self, at: u64, word: u64) {
        let value = AbsentWord::new(word).unwrap();
        let occupied = matches!(self.model.get(&at), Some(Model::Leaf { .. }));
        match self.table.cursor(pages(at, 1)).unwrap().mark(page(at), value) {
            Ok(()) if word == 0 => {
                assert!(!occupied && self.model.remove(&at) != Some(Model::Mark(0)))
            }
            Ok(()) => {
                assert!(!occupied);
                self.model.insert(at, Model::Mark(word));
            }
            Err(MapError::Occupied) => assert!(occupied),
            Err(error) => assert_eq!(error, MapError::OutOfFrames),
        }
    }

    fn change(&mut self, at: u64, count: u64, new: impl Fn(PageFlags) -> PageFlags, protect: bool) {
        let range = self.clip(at, count);
        let mut batch = self.table.batch();
        let mut cursor = self.table.cursor(range).unwrap();
        let result = if protect {
            cursor.protect(range, new(PageFlags::empty()), &mut batch)
        } else {
            cursor.change(range, &mut batch, |_, leaf| new(leaf.flags))
        };
        drop(cursor);
        batch.finish();
        if result == Err(MapError::OutOfFrames) {
            return;
        }
        result.unwrap();
        for number in range.start().number()..range.end_number() {
            if let Some(Model::Leaf { flags, wrote, .. }) = self.model.get_mut(&number) {
                *flags = self.table.format().grants(new(*flags));
                *wrote &= protect;
            }
        }
    }

    fn replace(&mut self, at: u64, flags: PageFlags) {
        let Some(frame) = self.fresh(PageSize::K4) else { return };
        let mut batch = self.table.batch();
        let mut cursor = self.table.cursor(pages(at, 1)).unwrap();
        let result = cursor.replace(page(at), frame, flags, Fate::Release, &mut batch);
        drop(cursor);
        batch.finish();
        match (result, self.model.get_mut(&at)) {
            (Ok(old), Some(Model::Leaf { frame: was, flags: had, wrote })) => {
                assert_eq!(old.frame.number(), *was);
                assert!(!*wrote || old.flags.contains(PageFlags::DIRTY));
                (*was, *had, *wrote) = (frame.number(), self.table.format().grants(flags), false);
            }
            (Ok(_), _) => panic!("replaced what is not mapped"),
            (Err(error), was) => {
                let leaf = matches!(was, Some(Model::Leaf { .. }));
                assert_eq!(error, if leaf { MapError::Size } else { MapError::NotMapped });
                self.give_back(frame, PageSize::K4);
            }
        }
    }

    fn take(&mut self, at: u64, count: u64) {
        let range = self.clip(at, count);
        let mut seen = Vec::new();
        let mut batch = self.table.batch();
        let mut cursor = self.table.cursor(range).unwrap();
        let result = cursor.take(range, &mut batch, |page, entry| {
            seen.push((page.number(), entry));
            Fate::Release
        });
        drop(cursor);
        batch.finish();
        if result == Err(MapError::OutOfFrames) {
            assert!(seen.is_empty());
            return;
        }
        result.unwrap();
        let mut taken = BTreeMap::new();
        for (at, entry) in seen {
            match entry {
                Entry::Absent(word) => {
                    taken.insert(at, Model::Mark(word.get()));
                }
                Entry::Mapped { frame, size, flags } => {
                    for number in 0..size.pages() {
                        let frame = frame.number() + number;
                        let leaf = Model::Leaf { frame, flags, wrote: false };
                        assert!(taken.insert(at + number, leaf).is_none());
                    }
                }
            }
        }
        let mut rest = self.model.split_off(&range.start().number());
        self.model.append(&mut rest.split_off(&range.end_number()));
        compare(&rest, &taken);
    }

    fn touch(&mut self, cpu: usize, at: u64, access: Access) {
        let leaf = match self.model.get_mut(&at) {
            Some(Model::Leaf { frame, flags, wrote }) => Some((*frame, *flags, wrote)),
            _ => None,
        };
        let needed = match access {
            Access::Read => PageFlags::READ,
            Access::Write => PageFlags::WRITE,
            Access::Fetch => PageFlags::EXEC,
        };
        let allowed = leaf.as_ref().is_some_and(|(_, flags, _)| flags.contains(needed));
        let (id, at) = (self.machine.cpu(cpu), addr(at));
        // A CPU that remembers less takes one fault, forgets, and succeeds.
        match (common::access(self.machine, &self.table, id, access, at, self.lazy), leaf) {
            (Ok(phys), Some((frame, _, wrote))) => {
                assert!(allowed);
                assert_eq!(phys.block().number(), frame);
                let mut byte = [0];
                if access == Access::Write {
                    self.written = self.written.wrapping_add(1);
                    self.machine.write(id, Mode::User, at, &[self.written]).unwrap();
                    self.bytes.insert(frame, self.written);
                    *wrote = true;
                }
                match access {
                    Access::Fetch => byte[0] = self.machine.fetch(id, Mode::User, at).unwrap(),
                    _ => self.machine.read(id, Mode::User, at, &mut byte).unwrap(),
                }
                assert_eq!(byte[0], self.bytes[&frame]);
            }
            (Ok(_), None) => panic!("page {at:?} is not mapped, but translated"),
            (Err(_), _) => assert!(!allowed),
        }
    }

    fn check(&mut self) {
        self.machine.audit();
        let mut listed = BTreeMap::new();
        let mut cursor = self.table.cursor(self.range()).unwrap();
        let (mut from, mut words) = (self.base, 0);
        while let Some((at, entry)) = cursor.next_used(page(from)) {
            assert_eq!(cursor.query(at), entry);
            let at = at.number();
            words += 1;
            match entry {
                Entry::Absent(word) => {
                    listed.insert(at, Model::Mark(word.get()));
                    from = at + 1;
                }
                Entry::Mapped { frame, size, flags } => {
                    from = at + size.pages();
                    for number in 0..size.pages() {
                        let frame = frame.number() + number;
                        listed.insert(at + number, Model::Leaf { frame, flags, wrote: false });
                    }
                }
            }
        }
        drop(cursor);
        assert_eq!(self.table.words(), words, "words-counted");
        compare(&self.model, &listed);
        let mapped: BTreeSet<u64> = self
            .model
            .values()
            .filter_map(|entry| match entry {
                Model::Leaf { frame, .. } => Some(*frame),
                Model::Mark(_) => None,
            })
            .collect();
        let used = self.machine.arena().used();
        assert_eq!(used, mapped.len() as u64 + self.table.tables(), "frames-conserved");
    }

    fn finish(self) {
        for index in 0..4 {
            self.machine.leave(self.machine.cpu(index), &self.table);
        }
        let machine = self.machine;
        machine.fail_after(None);
        let mut batch = self.table.batch();
        let range = self.range();
        let mut cursor = self.table.cursor(range).unwrap();
        match self.written % 4 {
            0 => cursor.take(range, &mut batch, |_, _| Fate::Release).unwrap(),
            1 => cursor.take_all(range, &mut batch, |_, _| ()).unwrap(),
            // Every page that is used, or only every second one.
            rest => {
                let known = self.model.keys().step_by(rest as usize - 1);
                let known = known.map(|&at| pages(at, 1));
                cursor.take_known(known, &mut batch, |_, _| ()).unwrap();
            }
        }
        drop(cursor);
        batch.finish();
        assert_eq!(self.table.words(), 0);
        assert_eq!(self.table.tables(), 1);
        drop(self);
        assert_eq!(machine.arena().used(), 0);
    }
}

/// The same entries; of the history that hardware writes, only that no write is lost.
fn compare(model: &BTreeMap<u64, Model>, listed: &BTreeMap<u64, Model>) {
    assert!(model.keys().eq(listed.keys()), "other pages than the model has");
    let history = PageFlags::ACCESSED | PageFlags::DIRTY;
    for ((at, model), listed) in model.iter().zip(listed.values()) {
        match (*model, *listed) {
            (Model::Leaf { frame, flags, wrote }, Model::Leaf { frame: is, flags: has, .. }) => {
                assert_eq!((frame, flags - history), (is, has - history), "page {at:#x}");
                assert!(
                    !wrote || has.contains(PageFlags::DIRTY),
                    "page {at:#x} lost its dirty bit"
                );
            }
            (model, listed) => assert_eq!(model, listed, "page {at:#x}"),
        }
    }
}

fn flags() -> impl Strategy<Value = PageFlags> {
    let access = prop::sample::select(vec![
        PageFlags::empty(),
        PageFlags::READ,
        PageFlags::READ_WRITE,
        PageFlags::READ_WRITE,
        PageFlags::READ_EXEC,
        PageFlags::EXEC,
        PageFlags::WRITE,
        PageFlags::ACCESS,
    ]);
    (access, any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(access, soft, uncached)| {
        let soft = if soft { PageFlags::SOFT1 } else { PageFlags::empty() };
        let uncached = if uncached { PageFlags::UNCACHED } else { PageFlags::empty() };
        access | soft | uncached | PageFlags::USER
    })
}

fn step() -> impl Strategy<Value = Step> {
    // Half of the pages near the edges of tables.
    let at =
        prop_oneof![0..PAGES, (0..4u64, 0..6u64).prop_map(|(a, b)| (a * 512 + b + 509) % PAGES)]
            .boxed();
    let count = prop_oneof![1..4u64, 1..700u64, Just(512u64)].boxed();
    let access =
        prop::sample::select(vec![Access::Read, Access::Write, Access::Write, Access::Fetch]);
    let map = (at.clone(), flags(), prop::bool::weighted(0.3));
    let protect = (at.clone(), count.clone(), flags());
    prop_oneof![
        6 => map.prop_map(|(at, flags, share)| Step::Map { at, flags, share }),
        2 => (0..4u64, flags()).prop_map(|(slot, flags)| Step::MapLarge { slot, flags }),
        1 => (at.clone(), 0..4u64).prop_map(|(at, word)| Step::Mark { at, word }),
        1 => (at.clone(), count.clone()).prop_map(|(at, count)| Step::Prepare { at, count }),
        3 => protect.prop_map(|(at, count, flags)| Step::Protect { at, count, flags }),
        1 => (at.clone(), count.clone()).prop_map(|(at, count)| Step::Clean { at, count }),
        2 => (at.clone(), flags()).prop_map(|(at, flags)| Step::Replace { at, flags }),
        1 => at.clone().prop_map(|at| Step::Split { at }),
        3 => (at.clone(), count).prop_map(|(at, count)| Step::Take { at, count }),
        12 => (0..4usize, at, access).prop_map(|(cpu, at, access)| Step::Touch { cpu, at, access }),
        1 => (0..4usize).prop_map(|cpu| Step::Reload { cpu }),
        1 => (0..3u64).prop_map(|count| Step::FailSoon { count }),
    ]
}

/// Runs random steps on a machine of one of these kinds, from page `origin` of its space on.
fn run(cases: u32, mmus: &[(Mmu, u32)], origin: u64) {
    let mmus = mmus.to_vec();
    let input = (
        prop::collection::vec(step(), 1..120),
        prop::sample::select(mmus),
        any::<u64>(),
        any::<bool>(),
        any::<bool>(),
    );
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let test = |(steps, (mmu, levels), seed, small_tlb, lazy): (Vec<_>, _, _, _, bool)| {
        let tlb_entries = if small_tlb { 12 } else { usize::MAX };
        let config = Config { mmu, levels, frames: 6000, seed, tlb_entries, ..Config::default() };
        let machine = Machine::new(config);
        if lazy {
            machine.lazy_gains();
        }
        let mut world = World::new(&machine, origin + BASE, lazy);
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.finish();
        Ok(())
    };
    if let Err(error) = TestRunner::new(config).run(&input, test) {
        panic!("{error}");
    }
}

/// Everywhere: the tree is a map of pages, and no CPU remembers more.
#[test]
fn on_x86_64() {
    run(64, &[(Mmu::X86_64, 4), (Mmu::X86_64, 4), (Mmu::X86_64, 5)], 0);
}

#[test]
fn on_aarch64_in_the_lower_half() {
    run(32, &[(Mmu::Aarch64 { upper: false }, 4)], 0);
}

#[test]
fn on_aarch64_in_the_upper_half() {
    run(32, &[(Mmu::Aarch64 { upper: true }, 4)], Page::LIMIT - (1 << 36));
}

#[test]
fn on_riscv_with_three_levels() {
    run(48, &[(Mmu::RiscV { svadu: false }, 3), (Mmu::RiscV { svadu: true }, 3)], 0);
}

#[test]
fn on_riscv_with_four_and_five_levels() {
    run(32, &[(Mmu::RiscV { svadu: false }, 4), (Mmu::RiscV { svadu: true }, 5)], 0);
}

/// The junk that a freed frame is filled with never shows.
#[test]
fn a_fresh_table_is_empty() {
    let machine = Machine::new(pagoda_emu::Config::default());
    let junk = machine.alloc_page(false).unwrap();
    // SAFETY: a frame of ours.
    #[allow(unsafe_code)]
    let byte = unsafe { machine.ptr(junk.start()).read() };
    assert_ne!(byte, 0);
    machine.arena().release(junk);
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    assert_eq!(table.root(), junk);
    assert_eq!(table.cursor(pages(0, 1 << 35)).unwrap().next_used(page(0)), None);
}
