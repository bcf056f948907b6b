//! Heap profiles as `pprof` reads them: protocol buffers after `profile.proto` of google/pprof, written
//! field by field without a buffer for the whole.
//!
//! A message's fields may come in any order: strings and mappings are written as they are met. Names of
//! functions are left to the reader, who has the files that the mappings name.

/// What takes the bytes.
pub trait Sink {
    /// Takes some.
    fn put(&mut self, bytes: &[u8]);
}

/// Mappings that places are looked up in; more are written, but no place refers to them.
const MAPPINGS: usize = 128;
/// Bytes of the longest message.
const MESSAGE: usize = 512;

/// A small message: what is written here has at most some forty numbers.
struct Message {
    bytes: [u8; MESSAGE],
    length: usize,
}

impl Message {
    const fn new() -> Self {
        Self { bytes: [0; MESSAGE], length: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }

    fn put(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(value as u8 | 0x80);
            value >>= 7;
        }
        self.put(value as u8);
    }

    /// A number; zero is what a missing one means.
    fn number(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.put(field << 3);
            self.varint(value);
        }
    }

    fn head(&mut self, field: u8, length: usize) {
        self.put(field << 3 | 2);
        self.varint(length as u64);
    }
}

// Fields of `Profile`.
const SAMPLE_TYPE: u8 = 1;
const SAMPLE: u8 = 2;
const MAPPING: u8 = 3;
const LOCATION: u8 = 4;
const STRING: u8 = 6;
const PERIOD_TYPE: u8 = 11;
const PERIOD: u8 = 12;
const COMMENT: u8 = 13;

/// The first strings, by number.
const STRINGS: [&str; 8] =
    ["", "inuse_objects", "count", "inuse_space", "bytes", "space", "alloc_objects", "alloc_space"];

/// What a sample says: for each number its name and its unit.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Live blocks, and their bytes.
    Live,
    /// All blocks that were ever allocated, and their bytes; then the live ones.
    AllAndLive,
}

impl Kind {
    fn types(self) -> &'static [(u64, u64)] {
        match self {
            Self::Live => &[(1, 2), (3, 4)],
            Self::AllAndLive => &[(6, 2), (7, 4), (1, 2), (3, 4)],
        }
    }
}

/// Who remembers which calls have been told.
pub trait Told {
    /// The number that a call was told by; if it has not been, its number is `next`.
    fn number(&mut self, pc: usize, next: u64) -> u64;
}

/// Nobody: each call is told where it is met.
impl Told for () {
    fn number(&mut self, _pc: usize, next: u64) -> u64 {
        next
    }
}

/// A profile that is being written: how many blocks and bytes there are, by the place that allocated them.
pub struct Profile<'a, S: Sink> {
    sink: &'a mut S,
    mappings: [(usize, usize); MAPPINGS],
    mapped: usize,
    strings: usize,
    calls: u64,
}

impl<'a, S: Sink> Profile<'a, S> {
    /// Begins one in which a sample stands for `period` bytes (1: every block is told).
    pub fn begin(sink: &'a mut S, kind: Kind, period: u64) -> Self {
        let (mappings, mapped) = ([(0, 0); MAPPINGS], 0);
        let mut profile = Self { sink, mappings, mapped, strings: 0, calls: 0 };
        for text in STRINGS {
            profile.string(text.as_bytes());
        }
        let types = kind.types().iter().map(|&(name, unit)| (SAMPLE_TYPE, name, unit));
        for (field, kind, unit) in types.chain([(PERIOD_TYPE, 5, 4)]) {
            let mut message = Message::new();
            message.number(1, kind);
            message.number(2, unit);
            profile.field(field, message.as_bytes());
        }
        let mut message = Message::new();
        message.number(PERIOD, period);
        profile.sink.put(message.as_bytes());
        profile
    }

    fn field(&mut self, field: u8, bytes: &[u8]) {
        let mut head = Message::new();
        head.head(field, bytes.len());
        self.sink.put(head.as_bytes());
        self.sink.put(bytes);
    }

    /// Writes a string. Its number.
    fn string(&mut self, text: &[u8]) -> usize {
        self.field(STRING, text);
        self.strings += 1;
        self.strings - 1
    }

    /// Says something to who reads the profile (`pprof -comments`).
    pub fn comment(&mut self, text: &[u8]) {
        let mut message = Message::new();
        message.number(COMMENT, self.string(text) as u64);
        self.sink.put(message.as_bytes());
    }

    /// Tells where a file with code is mapped. All of them before the first place.
    pub fn mapping(&mut self, start: usize, end: usize, offset: usize, path: &[u8]) {
        if let Some(place) = self.mappings.get_mut(self.mapped) {
            *place = (start, end);
        }
        self.mapped += 1;
        let name = self.string(path);
        let mut message = Message::new();
        for (field, value) in [(1, self.mapped), (2, start), (3, end), (4, offset), (5, name)] {
            message.number(field, value as u64);
        }
        self.field(MAPPING, message.as_bytes());
    }

    /// Tells what a place allocated: the numbers of the profile's kind. A place is where calls return to, the
    /// innermost first, at most 32; 0: not known.
    pub fn place(&mut self, calls: &[usize], numbers: &[u64], told: &mut impl Told) {
        let (mut ids, mut values) = (Message::new(), Message::new());
        for &pc in calls {
            let next = self.calls + 1;
            let number = told.number(pc, next);
            if number == next {
                self.calls = next;
                self.call(pc, next);
            }
            ids.varint(number);
        }
        numbers.iter().for_each(|&number| values.varint(number));
        let mut message = Message::new();
        for (field, packed) in [(1, ids), (2, values)] {
            message.head(field, packed.length);
            packed.as_bytes().iter().for_each(|&byte| message.put(byte));
        }
        self.field(SAMPLE, message.as_bytes());
    }

    fn call(&mut self, pc: usize, number: u64) {
        // What is looked up is the call, not what comes after it.
        let at = pc.saturating_sub(1);
        let mapping = self.mappings.iter().position(|&(start, end)| (start..end).contains(&at));
        let mut message = Message::new();
        message.number(1, number);
        message.number(2, mapping.map_or(0, |index| index as u64 + 1));
        message.number(3, at as u64);
        self.field(LOCATION, message.as_bytes());
    }
}

#[cfg(test)]
mod decode;

#[cfg(test)]
mod tests {
    use super::decode::{fields, numbers, varint};
    use super::*;

    impl Sink for Vec<u8> {
        fn put(&mut self, bytes: &[u8]) {
            self.extend_from_slice(bytes);
        }
    }

    #[test]
    fn what_is_written_is_read_back_by_the_published_field_numbers() {
        let mut written = Vec::new();
        let mut profile = Profile::begin(&mut written, Kind::Live, 1);
        profile.mapping(0x55_0000_1000, 0x55_0000_9000, 0x1000, b"/bin/program");
        profile.mapping(0x7f00_0000_0000, 0x7f00_0001_0000, 0, b"/lib/library.so");
        profile.place(&[0x7f00_0000_0001], &[3, 300_000], &mut ());
        profile.place(&[0], &[1, u64::MAX >> 1], &mut ());
        let all = fields(&written);
        let of = |field| all.iter().filter(move |one| one.0 == field).map(|one| one.2);
        let strings: Vec<_> = of(6).map(|text| std::str::from_utf8(text).unwrap()).collect();
        assert_eq!(strings[..8], STRINGS);
        assert_eq!(strings[8..], ["/bin/program", "/lib/library.so"]);
        let types: Vec<_> = of(1).map(numbers).collect();
        assert_eq!(types, [[(1, 1), (2, 2)], [(1, 3), (2, 4)]]);
        let mappings: Vec<_> = of(3).map(numbers).collect();
        assert_eq!(
            mappings[0],
            [(1, 1), (2, 0x55_0000_1000), (3, 0x55_0000_9000), (4, 0x1000), (5, 8)]
        );
        assert_eq!(mappings[1], [(1, 2), (2, 0x7f00_0000_0000), (3, 0x7f00_0001_0000), (5, 9)]);
        let locations: Vec<_> = of(4).map(numbers).collect();
        assert_eq!(locations[0], [(1, 1), (2, 2), (3, 0x7f00_0000_0000)]);
        assert_eq!(locations[1], [(1, 2)]);
        let samples: Vec<Vec<Vec<u64>>> = of(2)
            .map(|sample| {
                let packed = fields(sample).into_iter().map(|(_, _, mut bytes)| {
                    std::iter::from_fn(|| (!bytes.is_empty()).then(|| varint(&mut bytes))).collect()
                });
                packed.collect()
            })
            .collect();
        assert_eq!(samples[0], [vec![1], vec![3, 300_000]]);
        assert_eq!(samples[1], [vec![2], vec![1, u64::MAX >> 1]]);
        assert_eq!(all.iter().find(|one| one.0 == 12).map(|one| one.1), Some(1));
    }

    #[test]
    fn a_profile_of_samples_names_four_numbers_and_carries_its_comment() {
        let mut written = Vec::new();
        let mut profile = Profile::begin(&mut written, Kind::AllAndLive, 524_288);
        profile.comment(b"nothing was lost");
        profile.mapping(0x1000, 0x2000, 0, b"/bin/program");
        profile.place(&[0x1001], &[50, 2000, 40, 1600], &mut ());
        let all = fields(&written);
        let of = |field| all.iter().filter(move |one| one.0 == field);
        let strings: Vec<_> = of(6).map(|one| std::str::from_utf8(one.2).unwrap()).collect();
        let types: Vec<_> = of(1)
            .map(|one| numbers(one.2).into_iter().map(|(_, string)| strings[string as usize]))
            .map(Iterator::collect::<Vec<_>>)
            .collect();
        let (blocks, bytes) = (["alloc_objects", "count"], ["alloc_space", "bytes"]);
        assert_eq!(types, [blocks, bytes, ["inuse_objects", "count"], ["inuse_space", "bytes"]]);
        let comments: Vec<_> = of(13).map(|one| strings[one.1 as usize]).collect();
        assert_eq!(comments, ["nothing was lost"]);
        let mapped: Vec<_> = of(3).map(|one| numbers(one.2)).collect();
        assert_eq!(strings[mapped[0].last().unwrap().1 as usize], "/bin/program");
        let sample = of(2).next().unwrap().2;
        assert_eq!(fields(sample)[1].2, [50, 0xd0, 0x0f, 40, 0xc0, 0x0c]);
        assert_eq!(of(12).next().map(|one| one.1), Some(524_288));
    }

    impl Told for Vec<usize> {
        fn number(&mut self, pc: usize, next: u64) -> u64 {
            let at = self.iter().position(|&one| one == pc).unwrap_or(self.len());
            if at == self.len() {
                self.push(pc);
                assert_eq!(self.len() as u64, next);
            }
            at as u64 + 1
        }
    }

    #[test]
    fn a_call_that_others_have_in_common_is_told_once() {
        let (mut written, mut told) = (Vec::new(), Vec::new());
        let mut profile = Profile::begin(&mut written, Kind::Live, 1);
        let deep: Vec<_> = (0..32).map(|n| usize::MAX >> 1 ^ n).collect();
        for calls in [&[0x11, 0x21, 0x31][..], &[0x12, 0x21, 0x31], &deep, &[0x31]] {
            profile.place(calls, &[u64::MAX; 4], &mut told);
        }
        let all = fields(&written);
        let of = |field| all.iter().filter(move |one| one.0 == field).map(|one| one.2);
        let calls: Vec<_> = of(4).map(|call| (numbers(call)[0].1, numbers(call)[1].1)).collect();
        assert_eq!(calls[..4], [(1, 0x10), (2, 0x20), (3, 0x30), (4, 0x11)]);
        let samples: Vec<Vec<u64>> = of(2)
            .map(|sample| {
                let mut ids = fields(sample)[0].2;
                std::iter::from_fn(|| (!ids.is_empty()).then(|| varint(&mut ids))).collect()
            })
            .collect();
        assert_eq!(samples[..2], [[1, 2, 3], [4, 2, 3]]);
        assert_eq!((samples[2].len(), samples[2][31], &samples[3][..]), (32, 36, &[3][..]));
        assert_eq!(calls.len(), 36);
    }
}
