use pollux_mirror::{EXTENT_BYTES, GRAIN_BYTES};
use proptest::prelude::*;

use super::*;

fn piece() -> impl Strategy<Value = Piece> {
    let sectors = 1_usize..20;
    (any::<bool>(), sectors, any::<u8>()).prop_map(|(zeroes, sectors, fill)| {
        let bytes = sectors * SECTOR_BYTES as usize;
        if zeroes { Piece::Zeroes(u32::try_from(bytes).unwrap()) } else { Piece::Data(vec![fill; bytes].into()) }
    })
}

fn part() -> impl Strategy<Value = Part> {
    let extents = prop::collection::vec(0..50_u64, 0..5).prop_map(|numbers| {
        let mut extents = Extents::default();
        let range = |number| number * EXTENT_BYTES..number * EXTENT_BYTES + 1;
        numbers.into_iter().for_each(|number| extents.union(&Extents::touching(&range(number))));
        extents
    });
    let change =
        prop_oneof![Just(Change::Write), any::<bool>().prop_map(|punch| Change::Zero { punch }), Just(Change::Trim)];
    prop_oneof![
        Just(Part::Read),
        (change, any::<bool>()).prop_map(|(change, durable)| Part::Change { change, durable }),
        Just(Part::Copy { read: Tag(0) }),
        Just(Part::Flush),
        any::<u64>().prop_map(|id| Part::Miss(ReplicaId(id))),
        any::<u64>().prop_map(|id| Part::Regained(ReplicaId(id))),
        any::<u64>().prop_map(|id| Part::Returned(ReplicaId(id))),
        extents.clone().prop_map(Part::Welcome),
        extents.prop_map(Part::Settled),
        (any::<u64>(), 0..1_u64 << 30)
            .prop_map(|(id, from)| Part::Lacks(ReplicaId(id), Grains::touching(&(from..2 * from)))),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    (any::<u64>(), part(), 0..1_u64 << 40, prop::collection::vec(piece(), 1..6)).prop_map(|(tag, part, start, data)| {
        let bytes = length(&data);
        let written = matches!(part, Part::Change { change: Change::Write, .. } | Part::Copy { .. });
        Ask { tag: Tag(tag), part, range: start..start + bytes, data: if written { data } else { Vec::new() } }
    })
}

fn done() -> impl Strategy<Value = Done> {
    let outcome = prop_oneof![
        prop::collection::vec(piece(), 0..6).prop_map(Ok),
        Just(Err(Failure::NoSpace)),
        Just(Err(Failure::Fenced)),
        ".{0,80}".prop_map(|why| Err(Failure::Io(why))),
    ];
    (any::<u64>(), outcome).prop_map(|(tag, outcome)| Done { tag: Tag(tag), outcome })
}

fn bytes(out: &Outgoing) -> Vec<u8> {
    let bytes = out.chunks.iter().flatten().copied().collect::<Vec<u8>>();
    assert_eq!(bytes.len(), out.bytes());
    bytes
}

/// What comes of bytes that come in chunks of so many.
fn decode<H: Header>(bytes: &[u8], chunk: usize) -> Result<Vec<H::Frame>, Malformed> {
    let mut decoder = Decoder::<H>::new(Buffers::default());
    let mut frames = Vec::new();
    for chunk in bytes.chunks(chunk.max(1)) {
        decoder.feed(Bytes::copy_from_slice(chunk));
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

/// An ask with its data in one piece, as it does not matter how it is cut.
fn words(ask: &Ask) -> String {
    format!("{ask:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_is_asked_is_what_is_heard(asks in prop::collection::vec(ask(), 1..8), chunk in 1_usize..3000) {
        let (mut encoder, mut out) = (Encoder::default(), Outgoing::default());
        for ask in &asks {
            encoder.ask(ask.clone(), &mut out).unwrap();
        }
        let heard = decode::<AskHeader>(&bytes(&out), chunk).unwrap();
        prop_assert!(heard.iter().map(words).eq(asks.iter().map(words)));
    }

    #[test]
    fn how_it_ended_is_what_is_heard(ends in prop::collection::vec(done(), 1..8), why in ".{0,40}", chunk in 1_usize..3000) {
        let (mut encoder, mut out) = (Encoder::default(), Outgoing::default());
        ends.iter().for_each(|done| encoder.end(done.clone(), &mut out));
        encoder.over(&why, &mut out);
        let heard = decode::<EndHeader>(&bytes(&out), chunk).unwrap();
        let said = ends.into_iter().map(End::Of).chain([End::Over(why)]);
        prop_assert!(heard.into_iter().eq(said));
    }

    #[test]
    fn garbage_ends_the_session_or_means_something(bytes in prop::collection::vec(0..12_u8, 0..200), chunk in 1_usize..50) {
        let _ = decode::<AskHeader>(&bytes, chunk);
        let _ = decode::<EndHeader>(&bytes, chunk);
    }

    #[test]
    fn what_the_stream_takes_is_gone_and_the_rest_follows(takes in prop::collection::vec(1_usize..5000, 1..50)) {
        let mut out = Outgoing::default();
        let sent: Vec<u8> = (0..20_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        sent.chunks(777).for_each(|chunk| out.push(Bytes::copy_from_slice(chunk)));
        let mut taken = Vec::new();
        for take in takes {
            out.send(|chunks| {
                let (mut left, mut whole) = (take, 0);
                for chunk in chunks.iter_mut() {
                    let part = chunk.split_to(left.min(chunk.len()));
                    left -= part.len();
                    taken.extend_from_slice(&part);
                    if !chunk.is_empty() {
                        break;
                    }
                    whole += 1;
                }
                Ok::<_, ()>(whole)
            })
            .unwrap();
            prop_assert_eq!(out.bytes(), sent.len() - taken.len());
        }
        taken.extend(out.chunks.iter().flatten());
        prop_assert!(taken == sent);
    }
}

#[test]
fn an_ask_and_an_end_are_these_bytes() {
    let (mut encoder, mut out) = (Encoder::default(), Outgoing::default());
    let data = vec![Piece::Data(vec![7; 512].into()), Piece::Zeroes(1024)];
    let part = Part::Change { change: Change::Write, durable: true };
    encoder.ask(Ask { tag: Tag(0x0102), part, range: 4096..5632, data }, &mut out).unwrap();
    let golden = [
        &[2, 1, 2, 0][..],
        &512_u32.to_le_bytes(),
        &0x0102_u64.to_le_bytes(),
        &4096_u64.to_le_bytes(),
        &1536_u64.to_le_bytes(),
        &[0, 2, 0, 0, 0, 4, 0, 0x80],
        &[7; 512],
    ]
    .concat();
    assert_eq!(bytes(&out), golden);

    let mut out = Outgoing::default();
    let part = Part::Regained(ReplicaId(9));
    encoder.ask(Ask { tag: Tag(1), part, range: 0..GRAIN_BYTES, data: Vec::new() }, &mut out).unwrap();
    let golden = [
        &[8, 0, 0, 0, 12, 0, 0, 0][..],
        &1_u64.to_le_bytes(),
        &[0; 8],
        &GRAIN_BYTES.to_le_bytes(),
        &[1, 0, 0, 0],
        &9_u64.to_le_bytes(),
    ]
    .concat();
    assert_eq!(bytes(&out), golden);

    let mut out = Outgoing::default();
    encoder.end(Done { tag: Tag(3), outcome: Err(Failure::Io("no".into())) }, &mut out);
    assert_eq!(bytes(&out), [&[3, 0, 0, 0, 2, 0, 0, 0][..], &3_u64.to_le_bytes(), b"no"].concat());
}

#[test]
fn what_breaks_a_rule_is_no_frame() {
    let header = |kind, durable, pieces, rest, bytes| AskHeader {
        kind,
        durable,
        pieces: U16::new(pieces),
        rest: U32::new(rest),
        tag: U64::new(1),
        offset: U64::new(512),
        bytes: U64::new(bytes),
    };
    let refused = |header: AskHeader, rest: &[u8]| {
        let bytes = [header.as_bytes(), rest].concat();
        assert!(decode::<AskHeader>(&bytes, 4096).is_err(), "{header:?}");
    };
    let whole = 512_u32.to_le_bytes();
    let data = [&whole[..], &[1; 512]].concat();
    assert_eq!(
        decode::<AskHeader>(&[header(WRITE, 0, 1, 512, 512).as_bytes(), &data].concat(), 4096).unwrap().len(),
        1
    );
    refused(header(0, 0, 0, 0, 0), &[]);
    refused(header(DIGEST + 1, 0, 0, 0, 0), &[]);
    refused(header(READ, 1, 0, 0, 512), &[]);
    refused(header(WRITE, 2, 1, 512, 512), &data);
    refused(header(READ, 0, 1, 512, 512), &data);
    refused(header(WRITE, 0, 1, 512, 1024), &data);
    refused(header(WRITE, 0, 0, 0, 512), &[]);
    refused(header(WRITE, 0, 1, 511, 511), &data);
    refused(header(WRITE, 0, 1, 100, 512), &data);
    refused(header(WRITE, 0, u16::MAX, 512, 512), &[]);
    refused(header(FLUSH, 0, 0, 1, 0), &[]);
    refused(header(NOTED, 0, 0, 2 << 20, 0), &[]);
    refused(header(NOTED, 0, 0, 4, 0), &[9, 0, 0, 0]);
    refused(header(READ, 0, 0, 0, u64::from(TRANSFER_BYTES_MAX) + 512), &[]);
    refused(header(TRIM, 0, 0, 0, u64::MAX), &[]);
    refused(header(WRITE, 0, 2, 512, 40 << 20), &[&whole[..], &(40_u32 << 20 | ZEROES).to_le_bytes()].concat());
}

#[test]
fn what_fits_no_frame_is_not_asked() {
    let (mut encoder, mut out) = (Encoder::default(), Outgoing::default());
    let data: Vec<Piece> = (0..=PIECES_MAX).map(|_| Piece::Zeroes(512)).collect();
    let range = 0..length(&data);
    encoder.ask(Ask { tag: Tag(1), part: Part::Copy { read: Tag(0) }, range, data }, &mut out).unwrap_err();
    assert_eq!(out.bytes(), 0);
}
