//! Loaders: what a machine looks like, written into memory as each protocol wants it. The offsets
//! come from the specifications, not from the crate.

use super::Sparse;

/// A machine as a loader finds it.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Start, length, e820 type.
    pub map: Vec<(u64, u64, u32)>,
    /// Start, end, UEFI type, for loaders that pass on UEFI's map.
    pub efi_map: Option<Vec<(u64, u64, u32)>>,
    /// Start, end, command line.
    pub modules: Vec<(u64, u64, String)>,
    pub command_line: String,
    pub loader_name: String,
    /// Address, pitch, width, height, bits, type.
    pub framebuffer: Option<(u64, u32, u32, u32, u8, u8)>,
    /// ACPI's root pointer, 36 bytes.
    pub rsdp: Option<Vec<u8>>,
    /// ELF64 sections: type, flags, address, size.
    pub sections: Vec<(u32, u64, u64, u64)>,
}

/// Where the loaders put their things; the pieces follow one another with gaps.
const DATA: u64 = 0x9_1000;

/// Bytes being written.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    fn u32(&mut self, value: u64) -> &mut Self {
        self.raw(&u32::try_from(value).unwrap().to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn string(&mut self, text: &str) -> &mut Self {
        self.raw(text.as_bytes()).u8(0)
    }
}

/// Memory being filled from the bottom, each piece apart from the one before.
struct Loader {
    memory: Sparse,
    next: u64,
}

impl Loader {
    fn new() -> Self {
        Self { memory: Sparse::default(), next: DATA }
    }
    fn put(&mut self, bytes: Vec<u8>) -> u64 {
        let at = self.next;
        self.next = (at + bytes.len() as u64 + 24).next_multiple_of(16);
        self.memory.pieces.push((at, bytes));
        at
    }
    fn put_string(&mut self, text: &str) -> u64 {
        let mut bytes = Bytes::default();
        bytes.string(text);
        self.put(bytes.0)
    }
}

fn elf64(machine: &Machine) -> Vec<u8> {
    let mut bytes = Bytes::default();
    for &(kind, flags, address, size) in &machine.sections {
        bytes.u32(0).u32(kind.into()).u64(flags).u64(address).u64(0).u64(size);
        bytes.u32(0).u32(0).u64(0).u64(0);
    }
    bytes.0
}

/// The framebuffer's fields up to and including its type.
fn screen(bytes: &mut Bytes, machine: &Machine) {
    let (address, pitch, width, height, bits, kind) = machine.framebuffer.unwrap_or_default();
    bytes.u64(address).u32(pitch.into()).u32(width.into()).u32(height.into()).u8(bits).u8(kind);
}

/// Red, green, blue, each as position and size.
pub const COLORS: [u8; 6] = [16, 8, 8, 7, 0, 6];

/// Multiboot 1: the memory, and the address of the information.
pub fn multiboot1(machine: &Machine) -> (Sparse, u64) {
    let mut loader = Loader::new();
    let mut map = Bytes::default();
    for (place, &(start, len, number)) in machine.map.iter().enumerate() {
        let padding = place % 3 * 4; // the size is there to be used
        map.u32(20 + padding as u64)
            .u64(start)
            .u64(len)
            .u32(number.into())
            .raw(&[0xaa; 12][..padding]);
    }
    let (map_len, map) = (map.0.len() as u64, loader.put(map.0));
    let mut modules = Bytes::default();
    for (start, end, text) in &machine.modules {
        let text = loader.put_string(text);
        modules.u32(*start).u32(*end).u32(text).u32(0);
    }
    let modules = loader.put(modules.0);
    let command_line = loader.put_string(&machine.command_line);
    let name = loader.put_string(&machine.loader_name);
    let sections = loader.put(elf64(machine));

    let mut flags = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 9;
    flags |= u64::from(machine.framebuffer.is_some()) << 12;
    let mut info = Bytes::default();
    info.u32(flags).u32(639).u32(0x1234).u32(0x8000_0000);
    info.u32(command_line).u32(machine.modules.len() as u64).u32(modules);
    info.u32(machine.sections.len() as u64).u32(64).u32(sections).u32(0);
    info.u32(map_len).u32(map).u32(0).u32(0).u32(0).u32(name).u32(0);
    info.u32(0).u32(0).raw(&[0; 8]);
    assert_eq!(info.0.len(), 88);
    screen(&mut info, machine);
    info.raw(&COLORS);
    assert_eq!(info.0.len(), 116);
    let info = loader.put(info.0);
    (loader.memory, info)
}

fn tag(info: &mut Bytes, kind: u64, body: &[u8]) {
    info.u32(kind).u32(8 + body.len() as u64).raw(body);
    let padding = info.0.len().next_multiple_of(8) - info.0.len();
    info.raw(&[0x55; 8][..padding]);
}

fn body(fill: impl FnOnce(&mut Bytes)) -> Vec<u8> {
    let mut bytes = Bytes::default();
    fill(&mut bytes);
    bytes.0
}

/// Multiboot 2: the memory, and the address of the information.
pub fn multiboot2(machine: &Machine) -> (Sparse, u64) {
    let mut info = Bytes::default();
    info.u32(0).u32(0);
    tag(&mut info, 1, &body(|b| _ = b.string(&machine.command_line)));
    tag(&mut info, 2, &body(|b| _ = b.string(&machine.loader_name)));
    tag(&mut info, 4, &body(|b| _ = b.u32(639).u32(0x1234)));
    tag(&mut info, 0x7777, b"nobody knows this one");
    for (start, end, text) in &machine.modules {
        tag(&mut info, 3, &body(|b| _ = b.u32(*start).u32(*end).string(text)));
    }
    if let Some(map) = &machine.efi_map {
        let map = body(|b| {
            b.u32(48).u32(1);
            for &(start, end, number) in map {
                b.u32(number.into()).u32(0).u64(start).u64(0).u64((end - start) / 4096).u64(0xf);
                b.u64(0);
            }
        });
        tag(&mut info, 17, &map);
    } else {
        let map = body(|b| {
            b.u32(24).u32(0);
            for &(start, len, number) in &machine.map {
                b.u64(start).u64(len).u32(number.into()).u32(0);
            }
        });
        tag(&mut info, 6, &map);
    }
    if machine.framebuffer.is_some() {
        let screen = body(|b| {
            screen(b, machine);
            b.u16(0).raw(&COLORS);
        });
        tag(&mut info, 8, &screen);
    }
    if let Some(rsdp) = &machine.rsdp {
        tag(&mut info, 14, &rsdp[..20]);
        tag(&mut info, 15, rsdp);
    }
    let sections = body(|b| {
        b.u32(machine.sections.len() as u64).u32(64).u32(0).raw(&elf64(machine));
    });
    tag(&mut info, 9, &sections);
    finish(info)
}

/// Multiboot 2 with these tags and the end tag.
pub fn multiboot2_of(tags: &[(u64, &[u8])]) -> (Sparse, u64) {
    let mut info = Bytes::default();
    info.u32(0).u32(0);
    tags.iter().for_each(|(kind, body)| tag(&mut info, *kind, body));
    finish(info)
}

fn finish(mut info: Bytes) -> (Sparse, u64) {
    tag(&mut info, 0, &[]);
    let total = u32::try_from(info.0.len()).unwrap().to_le_bytes();
    info.0[..4].copy_from_slice(&total);
    let mut loader = Loader::new();
    let info = loader.put(info.0);
    (loader.memory, info)
}

/// PVH: the memory, and the address of the information.
pub fn pvh(machine: &Machine) -> (Sparse, u64) {
    let mut loader = Loader::new();
    let map = body(|b| {
        for &(start, len, number) in &machine.map {
            b.u64(start).u64(len).u32(number.into()).u32(0);
        }
    });
    let map = loader.put(map);
    let mut modules = Bytes::default();
    for (start, end, text) in &machine.modules {
        let text = if text.is_empty() { 0 } else { loader.put_string(text) };
        modules.u64(*start).u64(end - start).u64(text).u64(0);
    }
    let modules = loader.put(modules.0);
    let command_line = loader.put_string(&machine.command_line);
    let rsdp = machine.rsdp.as_ref().map_or(0, |rsdp| loader.put(rsdp.clone()));
    let info = body(|b| {
        b.u32(0x336e_c578).u32(1).u32(0).u32(machine.modules.len() as u64);
        b.u64(modules).u64(command_line).u64(rsdp);
        b.u64(map).u32(machine.map.len() as u64).u32(0);
    });
    assert_eq!(info.len(), 56);
    let info = loader.put(info);
    (loader.memory, info)
}
