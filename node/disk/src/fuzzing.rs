//! What the fuzzer reaches of this package; there only where `cfg(fuzzing)` is.

use crate::{
    buffers::Buffers,
    nbd::{Decoder, Event, Export, INBOX_BYTES},
};

/// Reads `bytes` as a client's, in pieces of `piece` bytes.
///
/// # Panics
/// When it waits without room for what it waits for, or asks for more of a disk than there is, or says more than was asked.
pub fn nbd_client(piece: usize, bytes: &[u8]) {
    let export = Export { name: "v".to_owned(), size: 1 << 20, read_only: false, fast_zeroes: true };
    let mut out = Vec::new();
    let mut decoder = Decoder::new(Buffers::default(), &mut out);
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty(), "a decoder that waits has room for what it waits for");
        let count = piece.max(1).min(space.len()).min(rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        decoder.filled(count);
        rest = &rest[count..];
        loop {
            out.clear();
            match decoder.next(&export, &mut out) {
                Ok(Some(Event::Request { operation, .. })) => {
                    assert!(operation.check(export.size).is_ok(), "{operation:?}")
                }
                Ok(Some(Event::Agreed(_) | Event::Refused { .. } | Event::Disconnect | Event::Aborted)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
            assert!(out.len() < INBOX_BYTES, "few words make many");
        }
    }
}
