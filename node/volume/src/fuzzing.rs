//! What the fuzzer reaches of this package; there only where `cfg(fuzzing)` is.

use bytes::Bytes;
use pollux_disk::{Buffers, TRANSFER_BYTES_MAX};

use crate::{
    log::frames as log,
    session::frames::{AskHeader, Decoder, Encoder, End, EndHeader, Outgoing, length},
};

/// Reads `bytes` as those of a session, in chunks of `chunk` bytes: as asks, and as ends.
///
/// # Panics
/// When what was read is more than one message has, or is said in other words than it was read.
pub fn session(chunk: usize, bytes: &[u8]) {
    let (mut asks, mut ends) =
        (Decoder::<AskHeader>::new(Buffers::default()), Decoder::<EndHeader>::new(Buffers::default()));
    let mut encoder = Encoder::default();
    let (mut asks_end, mut ends_end) = (false, false);
    for chunk in bytes.chunks(chunk.max(1)) {
        asks.feed(Bytes::copy_from_slice(chunk));
        while !asks_end {
            match asks.next() {
                Ok(Some(ask)) => {
                    assert!(ask.range.start <= ask.range.end && length(&ask.data) <= u64::from(TRANSFER_BYTES_MAX));
                    assert!(encoder.ask(ask, &mut Outgoing::default()).is_ok(), "what was read can be said");
                }
                Ok(None) => break,
                Err(_) => asks_end = true,
            }
        }
        ends.feed(Bytes::copy_from_slice(chunk));
        while !ends_end {
            match ends.next() {
                Ok(Some(End::Of(done))) => encoder.end(done, &mut Outgoing::default()),
                Ok(Some(End::Over(_)) | None) => break,
                Err(_) => ends_end = true,
            }
        }
    }
}

/// Reads `bytes` as a replica's log.
///
/// # Panics
/// When it ends where there is nothing of it.
pub fn log(bytes: &[u8]) {
    if let Ok(replayed) = log::replay(bytes) {
        assert!(replayed.end <= bytes.len() && replayed.records >= 2);
        assert!(log::begin(replayed.fence, &replayed.marks).is_ok(), "what was read can be written");
    }
}
