//! Protocol buffers, read for tests.

/// A number, taken off the front.
pub fn varint(bytes: &mut &[u8]) -> u64 {
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
pub fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
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

/// Fields by number, as numbers.
pub fn numbers(bytes: &[u8]) -> Vec<(u64, u64)> {
    fields(bytes).iter().map(|&(field, value, _)| (field, value)).collect()
}
