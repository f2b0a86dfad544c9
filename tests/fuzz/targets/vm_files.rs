//! The file that a VM is described in, as a user wrote it.
#![no_main]

use std::str;

use libfuzzer_sys::fuzz_target;
use pollux_api::file::{VmFile, memory_mib};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(mib) = memory_mib(text) {
        assert_eq!(memory_mib(&format!("{mib}MiB")), Ok(mib));
    }
    match VmFile::parse(text) {
        Ok(file) => {
            if let Some(mib) = file.memory {
                assert_eq!(
                    VmFile::parse(&format!("memory = \"{mib}M\"")).expect("an amount of memory").memory,
                    Some(mib)
                );
            }
        }
        Err(bad) => assert!(!bad.to_string().is_empty(), "it does not say what is wrong"),
    }
});
