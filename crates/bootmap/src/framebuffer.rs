//! The framebuffer, as both Multiboot protocols describe it.

use pagoda_addr::{PhysAddr, PhysRange};

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};

/// Where the screen is and what its bytes mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Framebuffer {
    /// The first byte of the top left pixel.
    pub address: PhysAddr,
    /// Bytes from one line to the next.
    pub pitch_bytes: u32,
    /// Pixels in a line; for text, characters.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits in a pixel; for text, in a character with its attribute.
    pub bits_per_pixel: u8,
    /// What the bits mean.
    pub format: PixelFormat,
}

/// What the bits of a pixel mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PixelFormat {
    /// Numbers of colours in a palette.
    Indexed {
        /// Colours in the palette.
        colors: u16,
    },
    /// Red, green and blue.
    Rgb {
        /// Red.
        red: Channel,
        /// Green.
        green: Channel,
        /// Blue.
        blue: Channel,
    },
    /// Characters and attributes of the EGA text mode.
    Text,
    /// A number that no specification knows.
    Unknown(u8),
}

/// The bits of one colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channel {
    /// The lowest bit.
    pub position: u8,
    /// Bits.
    pub bits: u8,
}

impl Framebuffer {
    /// Where Multiboot 1 describes the colours, in bytes from the address field.
    pub(crate) const MULTIBOOT1_COLORS: usize = 22;
    /// Where Multiboot 2 does: GRUB and the example code of the specification have two reserved
    /// bytes before it, the specification's text has one.
    pub(crate) const MULTIBOOT2_COLORS: usize = 24;

    /// All bytes of the picture; they end with the address space if the numbers are absurd.
    pub fn range(&self) -> PhysRange {
        let bytes = u64::from(self.pitch_bytes) * u64::from(self.height);
        PhysRange::clamped(self.address, bytes)
    }

    /// Reads the fields that begin with the address, with the colour description at `color`.
    /// None where `bytes` are too short.
    pub(crate) fn parse(bytes: &[u8], color: usize) -> Option<Self> {
        let channel = |place: usize| {
            let position = u8_at(bytes, color + place)?;
            Some(Channel { position, bits: u8_at(bytes, color + place + 1)? })
        };
        let format = match u8_at(bytes, 21)? {
            // Multiboot 1 has the palette's address before the number of colours.
            0 if color == Self::MULTIBOOT1_COLORS => {
                PixelFormat::Indexed { colors: u16_at(bytes, color + 4)? }
            }
            0 => PixelFormat::Indexed { colors: u16_at(bytes, color)? },
            1 => PixelFormat::Rgb { red: channel(0)?, green: channel(2)?, blue: channel(4)? },
            2 => PixelFormat::Text,
            other => PixelFormat::Unknown(other),
        };
        Some(Self {
            address: PhysAddr::new(u64_at(bytes, 0)?),
            pitch_bytes: u32_at(bytes, 8)?,
            width: u32_at(bytes, 12)?,
            height: u32_at(bytes, 16)?,
            bits_per_pixel: u8_at(bytes, 20)?,
            format,
        })
    }
}
