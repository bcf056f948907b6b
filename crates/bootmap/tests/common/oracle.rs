//! The truth about a map, told slowly: a question about one frame is answered by asking each of its
//! bytes (or, where all bytes between two boundaries must be alike, one of them), and each byte by
//! asking every entry. Written from the rules, without a look at how the crate does it.

use std::collections::BTreeSet;

use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{MemoryEntry, MemoryMap, RegionKind};

const FRAME: u128 = 4096;
/// The last frame of the 64-bit space is nobody's.
const SPACE: u128 = (1 << 64) - FRAME;

/// How severe a claim is; the rules' own list.
fn severity(kind: RegionKind) -> u32 {
    use RegionKind::*;
    match kind {
        Usable => 1,
        EarlyKernel => 11,
        LowMemory => 12,
        Ebda => 13,
        LegacyWindow => 14,
        CommandLine => 15,
        BootInfo => 16,
        Module => 17,
        Framebuffer => 18,
        AcpiTables => 19,
        Trampoline => 20,
        Kernel => 21,
        SoftReserved => 31,
        Persistent => 32,
        Acpi => 33,
        AcpiNvs => 34,
        Reserved => 35,
        Unusable => 36,
        other => panic!("{other} is not a claim"),
    }
}

/// Bytes claimed, from and to, in numbers that cannot wrap.
type Claim = (u128, u128, RegionKind);

pub struct Oracle {
    claims: Vec<Claim>,
    taken: Vec<Claim>,
}

impl Oracle {
    pub fn new(entries: &[MemoryEntry], taken: &[(PhysRange, RegionKind)]) -> Self {
        let claim = |entry: &MemoryEntry| {
            let start = u128::from(entry.start.as_u64());
            (start, (start + u128::from(entry.len)).min(SPACE), entry.kind)
        };
        let takes = |&(range, kind): &(PhysRange, RegionKind)| {
            (u128::from(range.start().as_u64()), u128::from(range.end().as_u64()), kind)
        };
        let full = |claim: &Claim| claim.0 < claim.1;
        Self {
            claims: entries.iter().map(claim).filter(full).collect(),
            taken: taken.iter().map(takes).filter(full).collect(),
        }
    }

    /// What the byte is, as far as the firmware tells.
    fn byte(&self, at: u128) -> Option<RegionKind> {
        let covering = self.claims.iter().filter(|claim| claim.0 <= at && at < claim.1);
        covering.map(|claim| claim.2).max_by_key(|kind| severity(*kind))
    }

    /// What the frame is, given what its bytes are.
    fn judge(
        &self,
        frame: u128,
        bytes: impl Iterator<Item = Option<RegionKind>>,
    ) -> Option<RegionKind> {
        let bytes: Vec<_> = bytes.collect();
        let kept = bytes.iter().flatten().filter(|kind| **kind != RegionKind::Usable);
        if let Some(kind) = kept.max_by_key(|kind| severity(**kind)) {
            return Some(*kind);
        }
        if bytes.iter().any(Option::is_none) {
            return None; // a part of it is a gap
        }
        let start = frame * FRAME;
        let sitting = self.taken.iter().filter(|t| t.0 < start + FRAME && start < t.1);
        let occupant = sitting.map(|t| t.2).max_by_key(|kind| severity(*kind));
        Some(occupant.unwrap_or(RegionKind::Usable))
    }

    /// The frame, asked byte by byte.
    pub fn frame_by_bytes(&self, frame: u128) -> Option<RegionKind> {
        let start = frame * FRAME;
        self.judge(frame, (start..start + FRAME).map(|at| self.byte(at)))
    }

    /// The frame, asked only where something begins or ends.
    pub fn frame(&self, frame: u128) -> Option<RegionKind> {
        let start = frame * FRAME;
        let ends = self.claims.iter().flat_map(|claim| [claim.0, claim.1]);
        let inside = ends.filter(|at| start < *at && *at < start + FRAME);
        self.judge(frame, [start].into_iter().chain(inside).map(|at| self.byte(at)))
    }

    /// The whole table: first byte, end, kind.
    pub fn table(&self) -> Vec<(u64, u64, RegionKind)> {
        let mut frames = BTreeSet::from([0, SPACE / FRAME]);
        for claim in self.claims.iter().chain(&self.taken) {
            for at in [claim.0, claim.1] {
                frames.insert((at / FRAME).min(SPACE / FRAME));
                frames.insert(at.div_ceil(FRAME).min(SPACE / FRAME));
            }
        }
        // Between two neighbours of this set nothing begins or ends, or there is one frame.
        let frames: Vec<u128> = frames.into_iter().collect();
        let mut table: Vec<(u64, u64, RegionKind)> = Vec::new();
        for pair in frames.windows(2) {
            let Some(kind) = self.frame(pair[0]) else { continue };
            let (start, end) = ((pair[0] * FRAME) as u64, (pair[1] * FRAME) as u64);
            match table.last_mut() {
                Some(last) if last.1 == start && last.2 == kind => last.1 = end,
                _ => table.push((start, end, kind)),
            }
        }
        table
    }

    /// Does the map tell the truth, in every form in which it can be asked?
    pub fn check(&self, map: &MemoryMap<'_>) {
        let table = self.table();
        let told: Vec<_> = map
            .regions()
            .iter()
            .map(|r| (r.range.start().as_u64(), r.range.end().as_u64(), r.kind))
            .collect();
        assert_eq!(told, table);

        let ram = |kind: &RegionKind| severity(*kind) <= severity(RegionKind::Kernel);
        let sum = |wanted: &dyn Fn(&RegionKind) -> bool| -> u64 {
            table.iter().filter(|line| wanted(&line.2)).map(|line| line.1 - line.0).sum()
        };
        assert_eq!(map.usable_bytes(), sum(&|kind| *kind == RegionKind::Usable));
        assert_eq!(map.bytes(RegionKind::is_ram), sum(&ram));
        assert_eq!(map.ram().map(PhysRange::len).sum::<u64>(), sum(&ram));
        let highest = table.iter().rfind(|line| ram(&line.2)).map_or(0, |line| line.1);
        assert_eq!(map.ram_end(), PhysAddr::new(highest));
        let ranges: Vec<_> = map.ram().collect();
        assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()));
        for line in &table {
            for at in [line.0, line.0 + (line.1 - line.0) / 2, line.1 - 1] {
                assert_eq!(map.find(PhysAddr::new(at)).map(|region| region.kind), Some(line.2));
            }
        }
        // RAM is what the firmware calls usable in whole frames, whoever sits there.
        let bare = Self { claims: self.claims.clone(), taken: Vec::new() };
        let usable = bare.table().into_iter().filter(|line| line.2 == RegionKind::Usable);
        let firmware: u64 = usable.map(|line| line.1 - line.0).sum();
        let only_ram = self.taken.iter().all(|taken| ram(&taken.2));
        assert!(!only_ram || firmware == sum(&ram), "RAM was lost or made");
    }
}
