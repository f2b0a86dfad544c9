//! What QEMU writes into a network card's socket, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    pollux_net::fuzzing::frames(usize::from(*piece).max(1), bytes);
});
