//! What the ends of a session with a replica say to each other, in chunks of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((chunk, bytes)) = bytes.split_first() else { return };
    pollux_volume::fuzzing::session(usize::from(*chunk), bytes);
});
