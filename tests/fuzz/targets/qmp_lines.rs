//! A line of QEMU's control protocol.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| pollux_qemu::fuzzing::qmp_line(bytes));
