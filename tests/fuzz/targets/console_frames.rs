//! What a daemon says on a console's connection, and what another node says of a console: frames, and where in all that a guest
//! ever wrote some bytes stand.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollux_api::console::{FRAME_BYTES_MAX, Heard, OUTPUT_BYTES_MAX};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    if kind % 2 == 1 {
        pollux_qemu::fuzzing::console(bytes);
        return;
    }
    let Ok(heard) = Heard::decode(bytes) else { return };
    if let Heard::Output { at, bytes } = &heard {
        at.checked_add(bytes.len() as u64).expect("it ends in a place that there is");
        if bytes.len() <= OUTPUT_BYTES_MAX {
            assert!(heard.encode().expect("output encodes").len() <= FRAME_BYTES_MAX, "its own frame is too long");
        }
    }
    let written = heard.encode().expect("it was read");
    assert_eq!(Heard::decode(&written), Ok(heard));
});
