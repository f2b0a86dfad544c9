use pollux_mirror::{EXTENT_BYTES, Extents, Grains};
use pollux_wire::id::ReplicaId;

use super::*;

fn extent(number: u64) -> Extents {
    Extents::touching(&(number * EXTENT_BYTES..number * EXTENT_BYTES + 1))
}

fn bodies() -> Vec<Body> {
    let lacks = Grains::touching(&(0..70_000));
    vec![
        Body::Marks(Record::Active(extent(1))),
        Body::Marks(Record::Missing(ReplicaId(2), lacks.clone())),
        Body::Fence(Generation(9)),
        Body::Marks(Record::Regained(ReplicaId(2), 0..65_536)),
        Body::Marks(Record::Settled(extent(1), vec![(ReplicaId(2), lacks)])),
        Body::Marks(Record::Returned(ReplicaId(2))),
        Body::Marks(Record::Welcome(extent(3))),
    ]
}

/// A log with `bodies`, of which those up to `stable` were made stable before the next was written. And where each record ends.
fn log(bodies: &[Body], stable: usize) -> (Vec<u8>, Vec<usize>) {
    let Begun { mut bytes, end, mut records } = begin(Generation(4), &Marks::default()).unwrap();
    let mut ends = vec![end];
    for (number, body) in bodies.iter().enumerate() {
        records += 1;
        let mut record = Vec::new();
        let at = *ends.last().unwrap();
        let told = ends[number.min(stable)];
        append(body, records, told as u64, Limit::Control, &mut record).unwrap();
        bytes[at..at + record.len()].copy_from_slice(&record);
        ends.push(at + record.len());
    }
    (bytes, ends)
}

/// What the first so many come to.
fn expected(bodies: &[Body]) -> (Generation, Marks) {
    let (mut fence, mut changes) = (Generation(4), vec![Record::Whole(Marks::default())]);
    for body in bodies {
        match body {
            Body::Fence(generation) => fence = *generation,
            Body::Marks(record) => changes.push(record.clone()),
        }
    }
    (fence, Marks::replay(&changes))
}

fn found(file: &[u8]) -> Result<(Generation, Marks), Damage> {
    replay(file).map(|replayed| (replayed.fence, replayed.marks))
}

#[test]
fn a_log_is_these_bytes() {
    let (bytes, ends) = log(&bodies()[..1], 0);
    let end = *ends.last().unwrap();
    let golden = [
        &b"PLXMARKS"[..],
        &[1, 0, 0, 0],
        &bytes[12..16],
        &(256_u64 << 10).to_le_bytes(),
        // The fence.
        &0x4b52_4d50_u32.to_le_bytes(),
        &[12, 0, 0, 0],
        &1_u64.to_le_bytes(),
        &[0; 8],
        &bytes[48..52],
        &[0; 4],
        &[0, 0, 0, 0],
        &4_u64.to_le_bytes(),
        &[0; 4],
        // The marks: none.
        &0x4b52_4d50_u32.to_le_bytes(),
        &[24, 0, 0, 0],
        &2_u64.to_le_bytes(),
        &[0; 8],
        &bytes[96..100],
        &[0; 4],
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[0; 16],
        // One that became active.
        &0x4b52_4d50_u32.to_le_bytes(),
        &[24, 0, 0, 0],
        &3_u64.to_le_bytes(),
        &128_u64.to_le_bytes(),
        &bytes[152..156],
        &[0; 4],
        &[1, 0, 0, 0, 1, 0, 0, 0],
        &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
    ]
    .concat();
    assert_eq!(&bytes[..end], &golden[..]);
    assert!(bytes[end..].iter().all(|byte| *byte == 0) && bytes.len() == FILE_BYTES_MIN);
    assert_eq!(crc32fast::hash(&[&b"PLXMARKS"[..], &[1, 0, 0, 0, 0, 0, 0, 0], &bytes[16..24]].concat()), {
        u32::from_le_bytes(bytes[12..16].try_into().unwrap())
    });
}

#[test]
fn whatever_prefix_is_there_the_log_is_the_records_that_are_whole() {
    let bodies = bodies();
    let (bytes, ends) = log(&bodies, 0);
    for kept in 0..=*ends.last().unwrap() {
        let mut file = bytes.clone();
        file[kept..].fill(0);
        // One that ends in zeros is whole before its last byte was written.
        let whole = ends.iter().filter(|end| file[..**end] == bytes[..**end]).count();
        match found(&file) {
            Ok(there) => assert_eq!(there, expected(&bodies[..whole - 1]), "{kept} bytes"),
            Err(damage) => assert!(whole == 0 && kept < ends[0], "{kept} bytes: {damage}"),
        }
    }
}

#[test]
fn one_that_was_not_made_stable_may_be_missing_before_one_that_is_there() {
    let bodies = bodies();
    let (bytes, ends) = log(&bodies, 0);
    for lost in 1..bodies.len() {
        let mut file = bytes.clone();
        file[ends[lost - 1]..ends[lost]].fill(0);
        let replayed = replay(&file).unwrap();
        assert_eq!((replayed.fence, replayed.marks), expected(&bodies[..lost - 1]));
        assert_eq!(replayed.end, ends[lost - 1]);
        assert!(replayed.torn);
    }
}

/// Each byte of each record in turn is another one.
#[test]
fn what_was_made_stable_is_never_believed_to_be_missing() {
    let bodies = bodies();
    let (bytes, ends) = log(&bodies, usize::MAX);
    let end = *ends.last().unwrap();
    let last = ends[ends.len() - 2];
    for at in 0..end {
        let mut file = bytes.clone();
        file[at] ^= 0x10;
        match replay(&file) {
            // Nothing that came later tells of the last.
            Ok(replayed) if at >= last => assert!(replayed.end == last || replayed.end == end, "{at}"),
            // Zeros between two records say nothing.
            Ok(replayed) => assert!(replayed.end == end && bytes[at] == 0 && is_padding(&ends, at), "{at}"),
            Err(Damage::Lost { at: found }) => assert!(found <= at && ends.contains(&found), "{at}: {found}"),
            Err(Damage::Beginning) => assert!(at < ends[0], "{at}"),
            Err(Damage::Head) => assert!(at < HEAD_BYTES, "{at}"),
            Err(damage) => panic!("{at}: {damage}"),
        }
    }
}

fn is_padding(ends: &[usize], at: usize) -> bool {
    // The fence, at the beginning, ends at 72.
    ends.iter().chain(&[72]).any(|end| *end > at && *end - at < ALIGN)
}

#[test]
fn what_is_no_log_is_refused_by_its_name() {
    let (bytes, _) = log(&bodies(), 0);
    assert_eq!(replay(&[]), Err(Damage::Short { found: 0 }));
    assert_eq!(replay(&[7; 4096]), Err(Damage::Head));
    assert_eq!(replay(&bytes[..4096]), Err(Damage::Length { found: 4096, expected: bytes.len() as u64 }));
    let mut later = bytes.clone();
    let mut head = Head::read_from_prefix(&later).unwrap().0;
    (head.version, head.crc) = (U32::new(2), U32::ZERO);
    head.crc = U32::new(crc32fast::hash(head.as_bytes()));
    later[..HEAD_BYTES].copy_from_slice(head.as_bytes());
    assert_eq!(replay(&later), Err(Damage::Version { found: 2 }));

    let Begun { mut bytes, end, .. } = begin(Generation(1), &Marks::default()).unwrap();
    let mut record = Vec::new();
    append(&Body::Fence(Generation(2)), 3, 0, Limit::Small, &mut record).unwrap();
    // As if there was a third kind.
    record[HEADER_BYTES] = 2;
    let mut header = Header::read_from_prefix(&record).unwrap().0;
    header.crc = U32::new(checksum(&header, &record[HEADER_BYTES..HEADER_BYTES + 12]));
    record[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    bytes[end..end + record.len()].copy_from_slice(&record);
    assert_eq!(replay(&bytes), Err(Damage::Meaning { at: end }));
}
