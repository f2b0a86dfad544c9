use alloc::{vec, vec::Vec};
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const GUEST_PAGES: u64 = 100_000;

fn stamp() -> Stamp {
    Stamp {
        vm: VmId(7),
        operation: OpId([0xaa; 16]),
        generation: Generation(3),
        round: 0x0102_0304,
        first_sequence: 0x1122_3344_5566_7788,
    }
}

fn split(frame: &[u8]) -> (&[u8; HEADER_BYTES], &[u8]) {
    frame.split_first_chunk().unwrap()
}

/// A page's number and its content, `None` for zero.
type Page = (u64, Option<Vec<u8>>);

/// What a frame says about each page.
fn pages_of(frame: &[u8]) -> Result<Vec<Page>, PageError> {
    let (header, body) = split(frame);
    let mut scratch = Vec::new();
    let batch = decode(header, body, GUEST_PAGES, &mut scratch)?;
    let mut pages = Vec::new();
    for run in batch.runs() {
        match run {
            Run::Zero { first, pages: count } => pages.extend((first..first + u64::from(count)).map(|n| (n, None))),
            Run::Sent { first, content } => {
                pages.extend((first..).zip(content.chunks(PAGE_BYTES)).map(|(n, page)| (n, Some(page.to_vec()))));
            }
        }
    }
    assert_eq!(batch.pages(), pages.len() as u64);
    assert_eq!(*batch.stamp(), stamp());
    Ok(pages)
}

/// Mends the checksum of a tampered frame, so that the checks behind it are reached.
fn mend(frame: &mut [u8]) {
    let mut header: RawHeader = zerocopy::transmute!(*split(frame).0);
    header.crc = U32::new(checksum(header, &frame[HEADER_BYTES..]));
    frame[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

fn small_frame() -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.zero(2, 5).unwrap();
    encoder.page(9, &[0x5a; PAGE_BYTES]).unwrap();
    encoder.finish(&stamp(), false).to_vec()
}

#[test]
fn the_frame_is_these_bytes() {
    let golden_header = [
        &b"PLPG"[..],
        &[1, 0, 2, 0],
        &[1, 0, 0, 0],
        &[0, 0x10, 0, 0],
        &[7, 0, 0, 0, 0, 0, 0, 0],
        &[0xaa; 16],
        &[3, 0, 0, 0, 0, 0, 0, 0],
        &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
        &[4, 3, 2, 1],
    ]
    .concat();
    let golden_runs =
        [[2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]].concat();
    let frame = small_frame();
    assert_eq!(frame[..60], golden_header[..]);
    assert_eq!(frame[60..64], GOLDEN_CRC);
    assert_eq!(frame[64..96], golden_runs[..]);
    assert_eq!(frame[96..], [0x5a; PAGE_BYTES]);
}

/// Computed once with an independent CRC-32 (IEEE 802.3) over the frame with zeros in its place.
const GOLDEN_CRC: [u8; 4] = [0x32, 0x0b, 0x7a, 0x2a];

#[test]
fn neighbours_share_a_run_and_order_is_kept() {
    let mut encoder = Encoder::new();
    for number in 0..4 {
        encoder.page(number, &[1; PAGE_BYTES]).unwrap();
    }
    encoder.zero(4, 2).unwrap();
    encoder.zero(6, 2).unwrap();
    assert_eq!(encoder.page(5, &[1; PAGE_BYTES]), Err(NoRoom), "a page behind the last");
    assert_eq!(encoder.pages(), 8);
    let frame = encoder.finish(&stamp(), true).to_vec();
    assert!(encoder.is_empty());
    assert_eq!(split(&frame).0[6..8], [2, 0], "two runs");
    assert!(frame.len() < 200, "the same byte four thousand times compresses");
    assert_eq!(pages_of(&frame).unwrap().len(), 8);
}

#[test]
fn a_frame_is_full_at_its_limits() {
    let mut encoder = Encoder::new();
    for number in 0..PAGES_PER_FRAME_MAX as u64 {
        encoder.page(number, &[1; PAGE_BYTES]).unwrap();
    }
    assert_eq!(encoder.page(1000, &[1; PAGE_BYTES]), Err(NoRoom));
    encoder.zero(1000, u32::MAX).unwrap();
    encoder.finish(&stamp(), false);

    for number in 0..RUNS_PER_FRAME_MAX as u64 {
        encoder.zero(number * 2, 1).unwrap();
    }
    assert_eq!(encoder.zero(5000, 1), Err(NoRoom));
    assert_eq!(pages_of(&encoder.finish(&stamp(), true)).unwrap().len(), RUNS_PER_FRAME_MAX);
}

#[test]
fn what_does_not_compress_goes_as_it_is_and_is_not_tried_each_time() {
    let mut encoder = Encoder::new();
    let mut seed = 1_u64;
    let mut noise = [0_u8; PAGE_BYTES];
    noise.fill_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    });
    encoder.page(1, &noise).unwrap();
    assert!(!Header::parse(split(&encoder.finish(&stamp(), true)).0).unwrap().compressed);
    let mut raw = 0;
    loop {
        encoder.page(1, &[7; PAGE_BYTES]).unwrap();
        if Header::parse(split(&encoder.finish(&stamp(), true)).0).unwrap().compressed {
            break;
        }
        raw += 1;
    }
    assert_eq!(raw, 1, "one batch untried, then the next attempt");
}

#[test]
fn a_buffer_that_is_used_again_leaves_nothing_of_what_it_held() {
    let mut fresh = Encoder::new();
    fresh.page(9, &[0x5a; PAGE_BYTES]).unwrap();
    let expected = fresh.finish(&stamp(), false).to_vec();

    let mut encoder = Encoder::new();
    for number in 0..PAGES_PER_FRAME_MAX as u64 {
        encoder.page(number * 2, &[0xff; PAGE_BYTES]).unwrap();
    }
    let (used, range) = encoder.finish(&stamp(), false).into_parts();
    assert!(range.end <= used.len());
    encoder.reuse(used);
    encoder.zero(1, 1).unwrap();
    let (other, _) = encoder.finish(&stamp(), false).into_parts();
    encoder.reuse(other);
    encoder.page(9, &[0x5a; PAGE_BYTES]).unwrap();
    assert_eq!(*encoder.finish(&stamp(), false), expected[..]);
    encoder.reuse(vec![1; 7]);
    encoder.page(9, &[0x5a; PAGE_BYTES]).unwrap();
    assert_eq!(*encoder.finish(&stamp(), false), expected[..], "a buffer of another size is none of ours");
}

#[test]
fn a_gathered_page_of_zeros_is_a_bit_and_one_byte_makes_it_content() {
    let mut encoder = Encoder::new();
    let fill = |at: usize| {
        move |page: &mut [u8; PAGE_BYTES]| {
            page.fill(0);
            page[at] = 1;
        }
    };
    assert_eq!(encoder.gather(1, fill(0)), Ok(Gathered::Content));
    assert_eq!(encoder.gather(2, |page| page.fill(0)), Ok(Gathered::Zero));
    assert_eq!(encoder.gather(3, fill(PAGE_BYTES - 1)), Ok(Gathered::Content));
    assert_eq!(encoder.gather(3, fill(0)), Err(NoRoom), "not behind the last");
    let pages = pages_of(&encoder.finish(&stamp(), true)).unwrap();
    assert_eq!(
        pages.iter().map(|(number, content)| (*number, content.is_some())).collect::<Vec<_>>(),
        [(1, true), (2, false), (3, true)]
    );
    assert_eq!(pages[2].1.as_ref().unwrap()[PAGE_BYTES - 1], 1);
}

#[test]
fn damage_is_named() {
    let whole = small_frame();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = whole.clone();
        change(&mut frame);
        mend(&mut frame);
        pages_of(&frame).unwrap_err()
    };
    assert_eq!(refused(&|frame| frame[0] = 0), PageError::NotAFrame);
    assert_eq!(refused(&|frame| frame[4] = 9), PageError::Format { theirs: 9 });
    assert_eq!(refused(&|frame| frame[5] = 2), PageError::Flags(2));
    assert_eq!(refused(&|frame| frame[5] = 1), PageError::Payload);
    assert_eq!(refused(&|frame| frame[9] = 0xff), PageError::TooLarge);
    assert!(matches!(refused(&|frame| frame.truncate(frame.len() - 1)), PageError::Length { .. }));
    assert_eq!(refused(&|frame| frame[64] = 5), PageError::Runs, "runs that overlap");
    assert_eq!(refused(&|frame| frame[72] = 0), PageError::Runs, "an empty run");
    assert_eq!(refused(&|frame| frame[76] = 3), PageError::Runs, "a run of no kind");
    assert_eq!(refused(&|frame| frame[76] = 2), PageError::Runs, "more pages than content");
    let beyond = PageError::Beyond { page: 0xff00_0009, guest_pages: GUEST_PAGES };
    assert_eq!(refused(&|frame| frame[83] = 0xff), beyond);

    let mut flipped = whole.clone();
    flipped[2000] ^= 1;
    assert_eq!(pages_of(&flipped), Err(PageError::Checksum));
}

fn guest() -> impl Strategy<Value = BTreeMap<u64, Option<u8>>> {
    proptest::collection::btree_map(0_u64..600, any::<Option<u8>>(), 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_goes_in_comes_out(guest in guest(), compress in any::<bool>()) {
        let mut encoder = Encoder::new();
        for (number, content) in &guest {
            let added = match content {
                None => encoder.zero(*number, 1),
                Some(byte) => encoder.page(*number, &[*byte; PAGE_BYTES]),
            };
            prop_assert_eq!(added, Ok(()));
        }
        let expected: Vec<_> =
            guest.iter().map(|(number, content)| (*number, content.map(|byte| vec![byte; PAGE_BYTES]))).collect();
        prop_assert_eq!(pages_of(&encoder.finish(&stamp(), compress)), Ok(expected));
    }

    #[test]
    fn garbage_never_panics(header in proptest::collection::vec(any::<u8>(), HEADER_BYTES), body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let header: &[u8; HEADER_BYTES] = header[..].try_into().unwrap();
        let _ = decode(header, &body, GUEST_PAGES, &mut Vec::new());
    }

    #[test]
    fn a_tampered_frame_never_panics(at in 0_usize..220, with in 1_u8.., compress in any::<bool>()) {
        let mut encoder = Encoder::new();
        encoder.zero(2, 5).unwrap();
        encoder.page(9, &[0x5a; PAGE_BYTES]).unwrap();
        encoder.page(10, &[0x5b; PAGE_BYTES]).unwrap();
        let mut frame = encoder.finish(&stamp(), compress).to_vec();
        let at = at % frame.len();
        frame[at] ^= with;
        prop_assert!(pages_of(&frame).is_err(), "one flipped byte is always noticed");
        mend(&mut frame);
        let _ = decode(split(&frame).0, &frame[HEADER_BYTES..], GUEST_PAGES, &mut Vec::new());
    }
}
