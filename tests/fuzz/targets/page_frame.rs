//! A batch of guest memory from a peer. Under the fuzzer its checksum is not compared, or nothing behind it would be reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollux_wire::{
    limits::{PAGE_BYTES, PAGES_PER_FRAME_MAX},
    page::{HEADER_BYTES, Run, decode},
};

const GUEST_PAGES: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let mut scratch = Vec::new();
    let Ok(batch) = decode(header, body, GUEST_PAGES, &mut scratch) else { return };
    let (mut next, mut pages, mut sent) = (0, 0, 0);
    for run in batch.runs() {
        let (first, count) = match run {
            Run::Zero { first, pages } => (first, u64::from(pages)),
            Run::Sent { first, content } => {
                assert_eq!(content.len() % PAGE_BYTES, 0, "half a page");
                sent += content.len() / PAGE_BYTES;
                (first, (content.len() / PAGE_BYTES) as u64)
            }
        };
        assert!(first >= next && count > 0, "runs go back, or are empty");
        next = first + count;
        pages += count;
    }
    assert!(next <= GUEST_PAGES, "a page beyond the guest");
    assert!(sent <= PAGES_PER_FRAME_MAX, "more pages than a frame may hold");
    assert_eq!(pages, batch.pages());
});
