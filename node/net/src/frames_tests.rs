use proptest::prelude::*;

use super::*;

fn encoded(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(frame);
    }
    bytes
}

fn feed(reader: &mut FrameReader, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let space = reader.space();
        let count = space.len().min(bytes.len());
        assert!(count > 0, "the reader ran out of space with no whole frame in it");
        space[..count].copy_from_slice(&bytes[..count]);
        reader.filled(count);
        bytes = &bytes[count..];
        while let Some(frame) = reader.next()? {
            frames.push(frame.to_vec());
        }
    }
    Ok(frames)
}

#[test]
fn the_largest_frame_comes_through_and_one_byte_more_is_an_error() {
    let largest = vec![7; FRAME_BYTES_MAX];
    assert_eq!(feed(&mut FrameReader::new(), &encoded(std::slice::from_ref(&largest))).unwrap(), [largest]);

    let bytes = u64::try_from(FRAME_BYTES_MAX).unwrap() + 1;
    let prefix = u32::try_from(bytes).unwrap().to_be_bytes();
    assert_eq!(feed(&mut FrameReader::new(), &prefix), Err(FrameError::Oversize { bytes }));
}

#[test]
fn a_full_queue_takes_no_more_until_something_was_written() {
    let mut queue = FrameQueue::new();
    let fill = |queue: &mut FrameQueue| queue.push_with(|space| Ok::<_, ()>(space.len()));

    let mut taken = 0;
    while fill(&mut queue).is_some() {
        taken += 1;
    }
    assert_eq!(taken, QUEUE_BYTES_MAX / (FRAME_BYTES_MAX + 4));
    assert!(queue.waiting().len() <= QUEUE_BYTES_MAX);

    queue.written(FRAME_BYTES_MAX + 4);
    assert_eq!(fill(&mut queue), Some(Ok(FRAME_BYTES_MAX)));
    assert_eq!(fill(&mut queue), None);
}

#[test]
fn a_frame_that_could_not_be_had_leaves_the_queue_as_it_was() {
    let mut queue = FrameQueue::new();

    assert_eq!(queue.push_with(|_| Err("nothing there")), Some(Err("nothing there")));

    assert!(queue.waiting().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the stream is cut into reads, the same frames come out of it.
    #[test]
    fn frames_survive_any_cutting_of_the_stream(
        lengths in prop::collection::vec(0_usize..3000, 0..40),
        cuts in prop::collection::vec(1_usize..9000, 1..20),
    ) {
        let frames: Vec<Vec<u8>> = lengths.iter().zip(0_u8..).map(|(length, fill)| vec![fill; *length]).collect();
        let bytes = encoded(&frames);
        let mut reader = FrameReader::new();
        let mut got = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (piece, after) = rest.split_at(rest.len().min(*cut));
            got.extend(feed(&mut reader, piece).unwrap());
            rest = after;
        }
        prop_assert_eq!(got, frames);
        prop_assert_eq!(reader.partial_bytes(), 0);
    }

    /// What the queue holds is what the reader understands, whatever partial writes happen in between.
    #[test]
    fn the_queue_speaks_what_the_reader_reads(
        lengths in prop::collection::vec(14_usize..9000, 1..200),
        partial in 1_usize..5000,
    ) {
        let mut queue = FrameQueue::new();
        let mut reader = FrameReader::new();
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for (length, fill) in lengths.iter().zip((0_u8..=255).cycle()) {
            let pushed = queue.push_with(|space| { space[..*length].fill(fill); Ok::<_, ()>(*length) });
            if pushed.is_some() { sent.push(vec![fill; *length]) }
            let piece = queue.waiting()[..queue.waiting().len().min(partial)].to_vec();
            got.extend(feed(&mut reader, &piece).unwrap());
            queue.written(piece.len());
        }
        let rest = queue.waiting().to_vec();
        got.extend(feed(&mut reader, &rest).unwrap());
        prop_assert_eq!(got, sent);
    }

    /// QEMU is not trusted: any bytes at all give frames or an error, never a panic.
    #[test]
    fn garbage_is_an_error_or_frames(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = feed(&mut FrameReader::new(), &bytes);
    }
}
