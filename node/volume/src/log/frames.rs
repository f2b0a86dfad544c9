//! The bytes of a replica's log. Pure.
//!
//! ```text
//! Head, 24 bytes                               Record, a multiple of 8 bytes, one after the other
//!  0  "PLXMARKS"                                0  magic
//!  8  version                                   4  length of the body, bytes
//! 12  CRC-32 of the rest of the head            8  number within the file, from 1 on
//! 16  length of the file, bytes                16  how much of the file was on stable storage when this was written
//!                                              24  CRC-32 of the rest of the header, and of the body
//!                                              28  zero; then the body, and zeros
//! ```
//! Integers are little-endian. A body is a [`Body`] in the encoding of [`pollux_wire::codec`]. A file begins with a fence and all of
//! the marks, and has its full length, in zeros, from its beginning: a record is written over zeros, so that making it stable changes
//! no more than its own sectors, and finds room in a full pool.
//!
//! **What a crash leaves.** Records that were not made stable may be there, in part, or not at all, and a later one may be there when
//! an earlier is not: the log ends before the first that is not whole. One that *was* made stable is never missing. A later record
//! tells so: if it says that more was stable than what was found to be whole, the storage has lost what it had promised to keep.

use pollux_mirror::{Marks, Record};
use pollux_wire::{
    codec::{self, EncodeError},
    id::Generation,
    limits::Limit,
};
use serde::{Deserialize, Serialize};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

const FILE_MAGIC: [u8; 8] = *b"PLXMARKS";
const VERSION: u32 = 1;
const RECORD_MAGIC: u32 = 0x4b52_4d50;
pub(crate) const HEAD_BYTES: usize = 24;
const HEADER_BYTES: usize = 32;
const ALIGN: usize = 8;
/// The shortest file, in bytes: room for some three thousand marks before it is written anew.
pub(crate) const FILE_BYTES_MIN: usize = 256 << 10;
/// The longest, in bytes: twice the largest marks.
pub(crate) const FILE_BYTES_MAX: u64 = 160 << 20;
/// A file that begins with much leaves room for as much again.
const ROOM: usize = 2;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// The highest generation seen.
    Fence(Generation),
    /// A change of the marks.
    Marks(Record),
}

/// What a log comes to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Replayed {
    pub(crate) fence: Generation,
    pub(crate) marks: Marks,
    /// Where it ends, in bytes.
    pub(crate) end: usize,
    /// Records up to there.
    pub(crate) records: u64,
    /// Something that is no record follows.
    pub(crate) torn: bool,
}

/// Why a log is not to be believed. The replica is out of use: what it lacks, and what it may differ in, nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("its log has {found} bytes, and never has fewer than {HEAD_BYTES}")]
    Short { found: usize },
    #[error("its log does not begin as one")]
    Head,
    #[error("its log is of version {found}, and this Pollux reads {VERSION}")]
    Version { found: u32 },
    #[error("its log has {found} bytes where it should have {expected}")]
    Length { found: usize, expected: u64 },
    #[error("the beginning of its log, which was on stable storage, is damaged")]
    Beginning,
    #[error("byte {at} of its log, which was on stable storage, is damaged")]
    Lost { at: usize },
    #[error("the record at byte {at} of its log means nothing to this Pollux")]
    Meaning { at: usize },
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    bytes: U64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    bytes: U32,
    number: U64,
    stable: U64,
    crc: U32,
    zero: U32,
}

const _: () = assert!(size_of::<Head>() == HEAD_BYTES && size_of::<Header>() == HEADER_BYTES);

/// A whole new file.
///
/// # Errors
/// When the marks are too many to be written.
pub(crate) fn begin(fence: Generation, marks: &Marks) -> Result<Begun, EncodeError> {
    let mut bytes = vec![0; HEAD_BYTES];
    // A file is in nobody's place before all of it is on stable storage.
    append(&Body::Fence(fence), 1, 0, Limit::Small, &mut bytes)?;
    append(&Body::Marks(Record::Whole(marks.clone())), 2, 0, Limit::State, &mut bytes)?;
    let end = bytes.len();
    bytes.resize((end * ROOM).next_multiple_of(4096).max(FILE_BYTES_MIN), 0);
    let mut head =
        Head { magic: FILE_MAGIC, version: U32::new(VERSION), crc: U32::ZERO, bytes: U64::new(bytes.len() as u64) };
    head.crc = U32::new(crc32fast::hash(head.as_bytes()));
    bytes[..HEAD_BYTES].copy_from_slice(head.as_bytes());
    Ok(Begun { bytes, end, records: 2 })
}

/// The bytes of a new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) bytes: Vec<u8>,
    pub(crate) end: usize,
    pub(crate) records: u64,
}

/// Appends a record to bytes that end where one may begin.
///
/// # Errors
/// When it is larger than `limit`; then nothing is appended.
pub(crate) fn append(
    body: &Body,
    number: u64,
    stable: u64,
    limit: Limit,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let body = codec::encode(body, limit)?;
    let bytes = u32::try_from(body.len()).map_err(|_| EncodeError::TooLarge { limit_bytes: limit.bytes() })?;
    let mut header = Header {
        magic: U32::new(RECORD_MAGIC),
        bytes: U32::new(bytes),
        number: U64::new(number),
        stable: U64::new(stable),
        crc: U32::ZERO,
        zero: U32::ZERO,
    };
    header.crc = U32::new(checksum(&header, &body));
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&body);
    out.resize(out.len().next_multiple_of(ALIGN), 0);
    Ok(())
}

/// Reads a log.
///
/// # Errors
/// See [`Damage`].
pub(crate) fn replay(file: &[u8]) -> Result<Replayed, Damage> {
    let (head, _) = Head::read_from_prefix(file).map_err(|_| Damage::Short { found: file.len() })?;
    let crc = Head { crc: U32::ZERO, ..head };
    if head.magic != FILE_MAGIC || head.crc.get() != crc32fast::hash(crc.as_bytes()) {
        return Err(Damage::Head);
    }
    if head.version.get() != VERSION {
        return Err(Damage::Version { found: head.version.get() });
    }
    if head.bytes.get() != file.len() as u64 {
        return Err(Damage::Length { found: file.len(), expected: head.bytes.get() });
    }
    let (mut at, mut records, mut fence) = (HEAD_BYTES, 0, Generation(0));
    let mut changes: Vec<Record> = Vec::new();
    while let Some((header, body, next)) = record(file, at).filter(|(header, ..)| header.number.get() == records + 1) {
        // Its beginning is the same whatever follows, and never more than a limit was written of it.
        let limit = if body.len() > Limit::Control.bytes() { Limit::State } else { Limit::Control };
        match codec::decode::<Body>(body, limit).map_err(|_| Damage::Meaning { at })? {
            Body::Fence(generation) => fence = fence.max(generation),
            Body::Marks(record) => changes.push(record),
        }
        if header.stable.get() > at as u64 {
            return Err(Damage::Meaning { at });
        }
        (at, records) = (next, records + 1);
    }
    if !matches!(changes.first(), Some(Record::Whole(_))) || records < 2 {
        return Err(Damage::Beginning);
    }
    // Zeros are no record, and there are many.
    let mut later = at;
    while let Some(found) = file[later..].iter().position(|byte| *byte != 0) {
        later = (later + found) / ALIGN * ALIGN;
        let number = records + 1;
        if record(file, later)
            .is_some_and(|(header, ..)| header.number.get() > number && header.stable.get() > at as u64)
        {
            return Err(Damage::Lost { at });
        }
        later += ALIGN;
        if later >= file.len() {
            break;
        }
    }
    let torn = file[at..].iter().any(|byte| *byte != 0);
    Ok(Replayed { fence, marks: Marks::replay(&changes), end: at, records, torn })
}

/// The record at `at`, and where the next one begins; `None`: there is no whole one.
fn record(file: &[u8], at: usize) -> Option<(Header, &[u8], usize)> {
    let (header, rest) = Header::read_from_prefix(file.get(at..)?).ok()?;
    if header.magic.get() != RECORD_MAGIC || header.zero.get() != 0 {
        return None;
    }
    let bytes = usize::try_from(header.bytes.get()).ok()?;
    let body = rest.get(..bytes)?;
    let next = at + (HEADER_BYTES + bytes).next_multiple_of(ALIGN);
    (header.crc.get() == checksum(&header, body) && next <= file.len()).then_some((header, body, next))
}

fn checksum(header: &Header, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(Header { crc: U32::ZERO, ..*header }.as_bytes());
    crc.update(body);
    crc.finalize()
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
