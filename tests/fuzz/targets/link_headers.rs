//! What stands before everything on a connection between nodes: hello, answer, the opening of a stream, an outcome.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollux_wire::{
    VERSION,
    frame::{OPENING_BYTES, OUTCOME_BYTES, Opening, Outcome},
    handshake::{ANSWER_BYTES, Answer, HELLO_BYTES, Hello},
};

fuzz_target!(|bytes: &[u8]| {
    if let Some((hello, _)) = bytes.split_first_chunk::<HELLO_BYTES>() {
        let _ = Hello::parse(*hello, VERSION);
    }
    if let Some((answer, _)) = bytes.split_first_chunk::<ANSWER_BYTES>() {
        let _ = Answer::parse(*answer, VERSION);
    }
    if let Some((opening, _)) = bytes.split_first_chunk::<OPENING_BYTES>() {
        let _ = Opening::parse(*opening);
    }
    if let Some((outcome, _)) = bytes.split_first_chunk::<OUTCOME_BYTES>() {
        let _ = Outcome::parse(*outcome);
    }
});
