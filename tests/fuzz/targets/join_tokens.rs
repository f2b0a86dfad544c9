//! A join token as somebody pasted it: its text, or the fields in it. The checksum is the same whatever the bytes, or nothing
//! behind it would be reached.
#![no_main]

use std::str;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use pollux_wire::token::Token;

fn digest(_: &[u8]) -> [u8; 32] {
    [0; 32]
}

fn read(text: &str) {
    if let Ok(token) = Token::read(text, digest) {
        assert_eq!(token.check(), Ok(()));
        assert_eq!(token.write(digest).expect("it was as long before"), text.trim());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    if kind % 2 == 0 {
        if let Ok(text) = str::from_utf8(bytes) {
            read(text);
        }
    } else {
        read(&format!("pollux1.{}", URL_SAFE_NO_PAD.encode([bytes, &[0; 4]].concat())));
    }
});
