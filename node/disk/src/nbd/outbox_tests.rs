use proptest::prelude::*;

use super::*;

/// Everything, written in steps of `step` bytes.
fn drain(outbox: &mut Outbox, step: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    while outbox.bytes() > 0 {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = outbox.front(&mut slices);
        let front: Vec<u8> = slices[..filled].iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat();
        assert!(!front.is_empty(), "there is something to write");
        let count = step.min(front.len());
        wire.extend(&front[..count]);
        outbox.written(count);
    }
    wire
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn replies_without_data() {
    let mut outbox = Outbox::default();
    outbox.done(0x0102_0304_0506_0708);
    outbox.failed(false, 9, NbdError::NoSpace, "not said");
    assert_eq!(hex(&drain(&mut outbox, 7)), "67446698000000000102030405060708674466980000001c0000000000000009");

    outbox.failed(true, 9, NbdError::Io, "why");
    assert_eq!(
        hex(&drain(&mut outbox, 99)),
        "668e33ef0001800100000000000000090000000900000005000377\
         6879"
    );
}

#[test]
fn a_read_with_a_hole_in_it_three_ways() {
    let pieces =
        || vec![Piece::Data(Bytes::from_static(b"ab")), Piece::Zeroes(3), Piece::Data(Bytes::from_static(b"c"))];
    let mut outbox = Outbox::default();

    outbox.read_simple(1, pieces());
    assert_eq!(hex(&drain(&mut outbox, 99)), "67446698000000000000000000000001616200000063");

    outbox.read_chunks(1, 16, true, pieces());
    let whole = "668e33ef0001000100000000000000010000000e0000000000000010616200000063";
    assert_eq!(hex(&drain(&mut outbox, 5)), whole);

    outbox.read_chunks(1, 16, false, pieces());
    let chunks = [
        "668e33ef0000000100000000000000010000000a00000000000000106162",
        "668e33ef0000000200000000000000010000000c000000000000001200000003",
        "668e33ef00010001000000000000000100000009000000000000001563",
    ];
    assert_eq!(hex(&drain(&mut outbox, 1)), chunks.concat());
}

#[test]
fn extents() {
    let mut outbox = Outbox::default();
    outbox.extents(1, &[Extent { bytes: 4096, data: true }, Extent { bytes: 512, data: false }]);
    let expected = "668e33ef00010005000000000000000100000014000000010000100000000000\
         0000020000000003";
    assert_eq!(hex(&drain(&mut outbox, 99)), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_the_socket_takes_at_a_time_the_bytes_are_the_same(
        replies in prop::collection::vec((any::<bool>(), 1usize..20_000), 1..40),
        step in 500usize..100_000,
    ) {
        let fill = |outbox: &mut Outbox| for (index, (data, bytes)) in replies.iter().enumerate() {
            let byte = u8::try_from(index).unwrap();
            if *data {
                let pieces = vec![Piece::Data(vec![byte; *bytes / 10 + 1].into()), Piece::Zeroes(u32::try_from(*bytes).unwrap())];
                outbox.read_simple(index as u64, pieces);
            } else {
                outbox.done(index as u64);
            }
        };
        let (mut a, mut b) = (Outbox::default(), Outbox::default());
        fill(&mut a);
        fill(&mut b);
        prop_assert_eq!(a.bytes(), b.bytes());
        let bytes = a.bytes();
        let wire = drain(&mut a, step);
        prop_assert_eq!(wire.len(), bytes);
        prop_assert!(wire == drain(&mut b, usize::MAX));
    }
}
