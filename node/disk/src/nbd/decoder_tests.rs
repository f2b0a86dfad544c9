use proptest::prelude::*;

use super::{super::handshake, *};
use crate::disk::TRANSFER_BYTES_MAX;

const SIZE: u64 = 64 << 20;

fn export() -> Export {
    Export { name: "web-0".to_owned(), size: SIZE, read_only: false, fast_zeroes: true }
}

fn hello() -> Vec<u8> {
    let go = [&b"IHAVEOPT"[..], &7u32.to_be_bytes(), &6u32.to_be_bytes(), &[0; 6]].concat();
    let structured = [&b"IHAVEOPT"[..], &8u32.to_be_bytes(), &0u32.to_be_bytes()].concat();
    [&3u32.to_be_bytes()[..], &structured, &go].concat()
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, bytes: u32) -> Vec<u8> {
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend(flags.to_be_bytes());
    request.extend(command.to_be_bytes());
    request.extend(cookie.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend(bytes.to_be_bytes());
    request
}

/// What comes of `bytes` in pieces of these sizes, the last of them again and again: events as text, what was said, and how it broke.
fn decode(bytes: &[u8], pieces: &[usize]) -> (Vec<String>, Vec<u8>, Option<Broken>) {
    let mut out = Vec::new();
    let mut decoder = Decoder::new(Buffers::default(), &mut out);
    let (mut events, mut rest) = (Vec::new(), bytes);
    let mut sizes = pieces.iter().copied().chain(std::iter::repeat(*pieces.last().unwrap_or(&usize::MAX)));
    while !rest.is_empty() {
        let space = decoder.space();
        let count = sizes.next().unwrap_or(1).max(1).min(space.len()).min(rest.len());
        assert!(count > 0, "a decoder that waits has room for what it waits for");
        space[..count].copy_from_slice(&rest[..count]);
        decoder.filled(count);
        rest = &rest[count..];
        loop {
            match decoder.next(&export(), &mut out) {
                Ok(Some(event)) => events.push(format!("{event:?}")),
                Ok(None) => break,
                Err(broken) => return (events, out, Some(broken)),
            }
        }
    }
    (events, out, None)
}

#[test]
fn a_write_comes_whole_and_what_follows_it_too() {
    // More than the inbox holds, so that some of it is read to where it stays.
    let data: Vec<u8> = (0..400 * 512u32).map(|n| (n % 251) as u8).collect();
    let bytes = u32::try_from(data.len()).unwrap();
    let stream = [hello(), request(1, 1, 5, 512, bytes), data.clone(), request(3, 0, 6, 0, 0)].concat();

    let mut out = Vec::new();
    let mut decoder = Decoder::new(Buffers::default(), &mut out);
    let (mut rest, mut events) = (&stream[..], Vec::new());
    while !rest.is_empty() {
        let space = decoder.space();
        let count = space.len().min(rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        decoder.filled(count);
        rest = &rest[count..];
        while let Some(event) = decoder.next(&export(), &mut out).unwrap() {
            events.push(event);
        }
    }

    assert!(matches!(&events[0], Event::Agreed(handshake::Agreed { structured: true, .. })));
    let Event::Request { cookie: 5, operation: Operation::Write { offset: 512, data: got, durable: true }, .. } =
        &events[1]
    else {
        panic!("{:?}", events[1])
    };
    assert_eq!(got[..], data);
    assert!(matches!(&events[2], Event::Request { cookie: 6, operation: Operation::Flush, .. }));
    assert_eq!(events.len(), 3);
}

#[test]
fn the_data_of_a_refused_write_is_skipped_even_if_it_is_larger_than_any_buffer() {
    let too_long = TRANSFER_BYTES_MAX + 512;
    let stream = [
        hello(),
        request(1, 0, 1, 0, too_long),
        vec![0x25; too_long as usize],
        request(1, 0, 2, SIZE, 512),
        vec![0x60; 512],
        request(0, 0, 3, 0, 512),
    ]
    .concat();

    let (events, _, broken) = decode(&stream, &[]);

    assert_eq!(broken, None);
    assert!(events[1].contains("Refused { cookie: 1, error: Invalid"), "{}", events[1]);
    assert!(events[2].contains("Refused { cookie: 2, error: NoSpace"), "{}", events[2]);
    assert!(events[3].contains("cookie: 3"), "{}", events[3]);
}

#[test]
fn after_goodbye_nothing_is_listened_to() {
    let stream = [hello(), request(2, 0, 1, 0, 0), vec![0xff; 1000]].concat();
    let (events, _, broken) = decode(&stream, &[7]);
    assert_eq!((events.len(), broken), (2, None));
    assert_eq!(events[1], "Disconnect");
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop_oneof![Just(512u32), Just(4096), Just(100), Just(0), 0u32..100_000];
    (0u16..10, 0u16..32, any::<u64>(), prop_oneof![0u64..2 * SIZE, any::<u64>()], bytes).prop_map(
        |(command, flags, cookie, offset, bytes)| {
            let mut request = request(command, flags, cookie, offset / 512 * 512, bytes);
            if command == 1 {
                request.extend((0..bytes).map(|n| (n % 251) as u8));
            }
            request
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_does_not_matter_in_which_pieces_the_bytes_come(
        requests in prop::collection::vec(any_request(), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..64),
        pieces in prop::collection::vec(1usize..70_000, 1..20),
    ) {
        let stream = [hello(), requests.concat(), noise].concat();
        let whole = decode(&stream, &[]);
        prop_assert_eq!(&decode(&stream, &pieces), &whole);
        prop_assert_eq!(&decode(&stream, &[1, 30, 1]), &whole);
    }

    #[test]
    fn any_bytes_at_all_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1usize..100) {
        decode(&bytes, &[piece]);
        decode(&[&3u32.to_be_bytes()[..], &bytes].concat(), &[piece]);
        decode(&[hello(), bytes].concat(), &[piece]);
    }
}
