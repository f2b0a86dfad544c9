//! What QEMU says to a volume's server, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    pollux_disk::fuzzing::nbd_client(usize::from(*piece), bytes);
});
