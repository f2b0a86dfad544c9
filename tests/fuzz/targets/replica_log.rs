//! A replica's log as it may be found: what it may differ in, and who may write it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| pollux_volume::fuzzing::log(bytes));
