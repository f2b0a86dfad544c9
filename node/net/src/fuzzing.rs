//! What the fuzzer reaches of this package; there only where `cfg(fuzzing)` is.

use crate::frames::{FRAME_BYTES_MAX, FrameReader};

/// Reads `bytes` as a stream from QEMU, in pieces of `piece` bytes.
///
/// # Panics
/// When a frame is longer than one may be, or is waited for that would be, or bytes come out that did not go in.
pub fn frames(piece: usize, bytes: &[u8]) {
    let (mut reader, mut out, mut put) = (FrameReader::new(), 0, 0);
    for part in bytes.chunks(piece) {
        reader.space()[..part.len()].copy_from_slice(part);
        reader.filled(part.len());
        put += part.len();
        loop {
            match reader.next() {
                Ok(Some(frame)) => {
                    assert!(frame.len() <= FRAME_BYTES_MAX);
                    out += frame.len() + 4;
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if let Some((length, _)) = bytes[out..put].split_first_chunk() {
            let announced = u32::from_be_bytes(*length) as usize;
            assert!(announced <= FRAME_BYTES_MAX, "a frame of {announced} bytes is waited for");
        }
        assert!(!reader.space().is_empty(), "a reader that waits has room for what it waits for");
    }
    assert_eq!(out + reader.partial_bytes(), bytes.len());
}
