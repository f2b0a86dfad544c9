//! What the fuzzer reaches of this package; there only where `cfg(fuzzing)` is.

use crate::console::ring::{CONSOLE_RING_BYTES, Ring};

/// Bytes before each piece: its place, and its length.
const PLACE_BYTES: usize = 9;

/// Keeps what other nodes say that a guest wrote, each piece after its place and length, and what it writes here.
///
/// # Panics
/// When more is kept than may be, or not what came last.
pub fn console(mut bytes: &[u8]) {
    let mut ring = Ring::default();
    while let Some((head, rest)) = bytes.split_first_chunk::<PLACE_BYTES>() {
        let [place @ .., length] = *head;
        let piece = &rest[..usize::from(length).min(rest.len())];
        bytes = &rest[piece.len()..];
        ring.remember(u64::from_be_bytes(place), piece);
        ring.add(b"login: ");
        let (_, kept) = ring.placed();
        assert!(kept.len() <= CONSOLE_RING_BYTES);
        assert!(kept.ends_with(&[piece, b"login: "].concat()));
    }
}

/// Reads one line of QEMU's control protocol.
pub fn qmp_line(line: &[u8]) {
    crate::qmp::read_line(line);
}
