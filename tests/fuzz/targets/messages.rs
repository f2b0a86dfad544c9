//! Control messages of a move, and what a joining node sends: whatever can be read is written the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollux_vm::message::{Greeting, StreamGreeting, ToSource, ToTarget};
use pollux_wire::{
    codec::{decode, encode},
    join::{JoinReply, JoinRequest},
    limits::Limit,
};
use serde::{Serialize, de::DeserializeOwned};

fn there_and_back<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(value) = decode::<T>(bytes, Limit::Control) {
        assert_eq!(encode(&value, Limit::Control).expect("it was as long before"), bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => there_and_back::<Greeting>(bytes),
        1 => there_and_back::<StreamGreeting>(bytes),
        2 => there_and_back::<ToTarget>(bytes),
        3 => there_and_back::<ToSource>(bytes),
        4 => there_and_back::<JoinRequest>(bytes),
        _ => there_and_back::<JoinReply>(bytes),
    }
});
