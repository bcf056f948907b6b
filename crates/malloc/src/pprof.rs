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

/// A small message: what is written here has at most ten numbers.
struct Message {
    bytes: [u8; 128],
    length: usize,
}

impl Message {
    const fn new() -> Self {
        Self { bytes: [0; 128], length: 0 }
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

/// The first strings, by number.
const STRINGS: [&str; 6] = ["", "inuse_objects", "count", "inuse_space", "bytes", "space"];

/// A profile that is being written: how many blocks and bytes are live, by the place that allocated them.
pub struct Profile<'a, S: Sink> {
    sink: &'a mut S,
    mappings: [(usize, usize); MAPPINGS],
    mapped: usize,
    places: u64,
}

impl<'a, S: Sink> Profile<'a, S> {
    /// Begins one in which a sample stands for `period` bytes (1: every block is told).
    pub fn begin(sink: &'a mut S, period: u64) -> Self {
        let mut profile = Self { sink, mappings: [(0, 0); MAPPINGS], mapped: 0, places: 0 };
        for text in STRINGS {
            profile.field(STRING, text.as_bytes());
        }
        for (field, kind, unit) in [(SAMPLE_TYPE, 1, 2), (SAMPLE_TYPE, 3, 4), (PERIOD_TYPE, 5, 4)] {
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

    /// Tells where a file with code is mapped. All of them before the first place.
    pub fn mapping(&mut self, start: usize, end: usize, offset: usize, path: &[u8]) {
        if let Some(place) = self.mappings.get_mut(self.mapped) {
            *place = (start, end);
        }
        let name = STRINGS.len() + self.mapped;
        self.mapped += 1;
        self.field(STRING, path);
        let mut message = Message::new();
        for (field, value) in [(1, self.mapped), (2, start), (3, end), (4, offset), (5, name)] {
            message.number(field, value as u64);
        }
        self.field(MAPPING, message.as_bytes());
    }

    /// Tells what a place allocated that is live. `pc`: where the call returns to; 0: not known.
    pub fn place(&mut self, pc: usize, blocks: usize, bytes: usize) {
        self.places += 1;
        // What is looked up is the call, not what comes after it.
        let at = pc.saturating_sub(1);
        let mapping = self.mappings.iter().position(|&(start, end)| (start..end).contains(&at));
        let mut message = Message::new();
        message.number(1, self.places);
        message.number(2, mapping.map_or(0, |index| index as u64 + 1));
        message.number(3, at as u64);
        self.field(LOCATION, message.as_bytes());
        let (mut ids, mut values) = (Message::new(), Message::new());
        ids.varint(self.places);
        values.varint(blocks as u64);
        values.varint(bytes as u64);
        let mut message = Message::new();
        for (field, packed) in [(1, ids), (2, values)] {
            message.head(field, packed.length);
            packed.as_bytes().iter().for_each(|&byte| message.put(byte));
        }
        self.field(SAMPLE, message.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sink for Vec<u8> {
        fn put(&mut self, bytes: &[u8]) {
            self.extend_from_slice(bytes);
        }
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    /// Fields by number: a number, or bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let value = varint(&mut bytes);
            match tag & 7 {
                0 => all.push((tag >> 3, value, &[][..])),
                2 => {
                    let (field, rest) = bytes.split_at(value as usize);
                    all.push((tag >> 3, value, field));
                    bytes = rest;
                }
                other => panic!("no field here has wire type {other}"),
            }
        }
        all
    }

    fn numbers(bytes: &[u8]) -> Vec<(u64, u64)> {
        fields(bytes).iter().map(|&(field, value, _)| (field, value)).collect()
    }

    #[test]
    fn what_is_written_is_read_back_by_the_published_field_numbers() {
        let mut written = Vec::new();
        let mut profile = Profile::begin(&mut written, 1);
        profile.mapping(0x55_0000_1000, 0x55_0000_9000, 0x1000, b"/bin/program");
        profile.mapping(0x7f00_0000_0000, 0x7f00_0001_0000, 0, b"/lib/library.so");
        profile.place(0x7f00_0000_0001, 3, 300_000);
        profile.place(0, 1, usize::MAX >> 1);
        let all = fields(&written);
        let of = |field| all.iter().filter(move |one| one.0 == field).map(|one| one.2);
        let strings: Vec<_> = of(6).map(|text| std::str::from_utf8(text).unwrap()).collect();
        assert_eq!(strings[..6], STRINGS);
        assert_eq!(strings[6..], ["/bin/program", "/lib/library.so"]);
        let types: Vec<_> = of(1).map(numbers).collect();
        assert_eq!(types, [[(1, 1), (2, 2)], [(1, 3), (2, 4)]]);
        let mappings: Vec<_> = of(3).map(numbers).collect();
        assert_eq!(
            mappings[0],
            [(1, 1), (2, 0x55_0000_1000), (3, 0x55_0000_9000), (4, 0x1000), (5, 6)]
        );
        assert_eq!(mappings[1], [(1, 2), (2, 0x7f00_0000_0000), (3, 0x7f00_0001_0000), (5, 7)]);
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
}
