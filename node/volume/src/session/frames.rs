//! What goes over a session's streams. Pure.
//!
//! ```text
//! Ask, 32 bytes                                   End, 16 bytes
//!  0  1 read, 2 write, 3 zeros, 4 zeros that       0  1 done, 2 no room, 3 failed: a text, 4 fenced,
//!     may become a hole, 5 trim, 6 copy,              5 the session is over: a text
//!     7 flush, 8 note: a Note                      1  zero
//!  1  1: durable                                   2  pieces
//!  2  pieces                                       4  length of what follows the pieces, bytes
//!  4  length of what follows the pieces, bytes     8  tag
//!  8  tag
//! 16  where, bytes
//! 24  how much, bytes
//!
//! then 4 bytes for each piece: its length, with the highest bit set if it is zeros; then the data of those that are not,
//! or the text, or the note
//! ```
//! Integers are little-endian. A frame that breaks a rule ends the session: nothing tells where the next one begins.

use std::{collections::VecDeque, ops::Range};

use bytes::{Bytes, BytesMut};
use pollux_disk::{Buffer, Buffers, Piece, SECTOR_BYTES, TRANSFER_BYTES_MAX};
use pollux_mirror::{Change, Digest, Extents, Failure, Grains, Part, Tag};
use pollux_wire::{codec, id::ReplicaId, limits::Limit};
use serde::{Deserialize, Serialize};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{
    digest::{self, DIGEST_BYTES},
    side::{Ask, Done},
};

/// Pieces of one frame: the largest transfer in the shortest holes that are told apart has fewer.
pub(crate) const PIECES_MAX: usize = 4096;
/// A text, in bytes; a longer one is cut.
const TEXT_BYTES_MAX: usize = 1024;
/// A note.
const NOTE: Limit = Limit::Control;
const ZEROES: u32 = 1 << 31;
/// Chunks that are handed to a stream at a time.
const CHUNKS_AT_ONCE: usize = 64;

/// The bytes mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side broke the protocol: {0}")]
pub(crate) struct Malformed(&'static str);

/// What a replica is told of others, and of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Note {
    Miss(ReplicaId),
    Regained(ReplicaId),
    Returned(ReplicaId),
    Welcome(Extents),
    Settled(Extents),
    Lacks(ReplicaId, Grains),
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct AskHeader {
    kind: u8,
    durable: u8,
    pieces: U16,
    rest: U32,
    tag: U64,
    offset: U64,
    bytes: U64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct EndHeader {
    outcome: u8,
    zero: u8,
    pieces: U16,
    rest: U32,
    tag: U64,
}

const READ: u8 = 1;
const WRITE: u8 = 2;
const ZERO: u8 = 3;
const PUNCH: u8 = 4;
const TRIM: u8 = 5;
const COPY: u8 = 6;
const FLUSH: u8 = 7;
const NOTED: u8 = 8;
const DIGEST: u8 = 9;

const DONE: u8 = 1;
const NO_SPACE: u8 = 2;
const FAILED: u8 = 3;
const FENCED: u8 = 4;
const OVER: u8 = 5;
const DIGESTED: u8 = 6;

/// The fixed beginning of a frame.
pub(crate) trait Header: Copy + FromBytes + IntoBytes + Immutable + KnownLayout {
    /// What a frame with it is.
    type Frame;

    /// How many pieces, and how much follows them.
    fn sizes(&self) -> (usize, usize);

    /// What it may have at most after its pieces, if it has no data.
    fn body_max(&self) -> usize;

    /// What the frame says.
    fn read(self, pieces: Vec<Piece>, body: &[u8]) -> Result<Self::Frame, Malformed>;
}

/// What the one who is asked says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Of(Done),
    /// Nothing more is said, for this reason.
    Over(String),
}

impl Header for AskHeader {
    type Frame = Ask;

    fn sizes(&self) -> (usize, usize) {
        (self.pieces.get().into(), self.rest.get() as usize)
    }

    fn body_max(&self) -> usize {
        if self.kind == NOTED { NOTE.bytes() } else { 0 }
    }

    fn read(self, data: Vec<Piece>, body: &[u8]) -> Result<Ask, Malformed> {
        let (start, bytes) = (self.offset.get(), self.bytes.get());
        let end = start.checked_add(bytes).ok_or(Malformed("a range beyond all ends"))?;
        let durable = match self.durable {
            0 => false,
            1 if matches!(self.kind, WRITE | ZERO | PUNCH | TRIM) => true,
            _ => return Err(Malformed("an ask that cannot be durable")),
        };
        let change = |change| Part::Change { change, durable };
        let part = match self.kind {
            READ => Part::Read,
            WRITE => change(Change::Write),
            ZERO => change(Change::Zero { punch: false }),
            PUNCH => change(Change::Zero { punch: true }),
            TRIM => change(Change::Trim),
            COPY => Part::Copy { read: Tag(0) },
            FLUSH => Part::Flush,
            DIGEST => Part::Digest,
            NOTED => match codec::decode(body, NOTE).map_err(|_| Malformed("a note that is none"))? {
                Note::Miss(replica) => Part::Miss(replica),
                Note::Regained(replica) => Part::Regained(replica),
                Note::Returned(replica) => Part::Returned(replica),
                Note::Welcome(extents) => Part::Welcome(extents),
                Note::Settled(extents) => Part::Settled(extents),
                Note::Lacks(replica, lacks) => Part::Lacks(replica, lacks),
            },
            _ => return Err(Malformed("an ask of no kind")),
        };
        let written = if matches!(self.kind, WRITE | COPY) { bytes } else { 0 };
        if length(&data) != written {
            return Err(Malformed("data that is not as long as its range"));
        }
        if matches!(self.kind, READ | DIGEST) && bytes > u64::from(TRANSFER_BYTES_MAX) {
            return Err(Malformed("a read longer than any"));
        }
        Ok(Ask { tag: Tag(self.tag.get()), part, range: start..end, data })
    }
}

impl Header for EndHeader {
    type Frame = End;

    fn sizes(&self) -> (usize, usize) {
        (self.pieces.get().into(), self.rest.get() as usize)
    }

    fn body_max(&self) -> usize {
        match self.outcome {
            FAILED | OVER => TEXT_BYTES_MAX,
            DIGESTED => DIGEST_BYTES,
            _ => 0,
        }
    }

    fn read(self, pieces: Vec<Piece>, body: &[u8]) -> Result<End, Malformed> {
        if self.zero != 0 {
            return Err(Malformed("an end with something where nothing is"));
        }
        if self.outcome != DONE && !pieces.is_empty() {
            return Err(Malformed("data of what has failed"));
        }
        let text = || String::from_utf8_lossy(body).into_owned();
        let outcome = match self.outcome {
            DONE => Ok(pieces),
            DIGESTED if body.len() == DIGEST_BYTES => Ok(vec![Piece::Data(Bytes::copy_from_slice(body))]),
            NO_SPACE => Err(Failure::NoSpace),
            FAILED => Err(Failure::Io(text())),
            FENCED => Err(Failure::Fenced),
            OVER => return Ok(End::Over(text())),
            _ => return Err(Malformed("an end of no kind")),
        };
        Ok(End::Of(Done { tag: Tag(self.tag.get()), outcome }))
    }
}

pub(crate) fn length(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.bytes())).sum()
}

/// What is to be sent, in order.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Outgoing {
    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// How much that is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn clear(&mut self) {
        (self.chunks, self.bytes) = (VecDeque::new(), 0);
    }

    /// Has some of the first sent: `send` says how many were, and leaves of the next what is left of it.
    pub(crate) fn send<E>(&mut self, send: impl FnOnce(&mut [Bytes]) -> Result<usize, E>) -> Result<(), E> {
        let chunks = self.chunks.make_contiguous();
        let most = chunks.len().min(CHUNKS_AT_ONCE);
        let some = &mut chunks[..most];
        let bytes = |chunks: &[Bytes]| chunks.iter().map(Bytes::len).sum::<usize>();
        let before = bytes(some);
        let sent = send(some)?;
        self.bytes -= before - bytes(&some[sent..]);
        self.chunks.drain(..sent);
        Ok(())
    }
}

/// Makes frames, as chunks to be sent one after the other.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    /// Where what is not data is put together.
    scratch: BytesMut,
}

impl Encoder {
    /// Appends an ask.
    ///
    /// # Errors
    /// When there is no frame for it.
    pub(crate) fn ask(&mut self, ask: Ask, out: &mut Outgoing) -> Result<(), Failure> {
        let Ask { tag, part, range: Range { start, end }, data } = ask;
        let mut durably = false;
        let mut note = None;
        let mut noted = |what| {
            note = Some(what);
            NOTED
        };
        let kind = match part {
            Part::Read => READ,
            Part::Change { change, durable } => {
                durably = durable;
                match change {
                    Change::Write => WRITE,
                    Change::Zero { punch: false } => ZERO,
                    Change::Zero { punch: true } => PUNCH,
                    Change::Trim => TRIM,
                }
            }
            Part::Copy { .. } => COPY,
            Part::Flush => FLUSH,
            Part::Digest => DIGEST,
            Part::Miss(replica) => noted(Note::Miss(replica)),
            Part::Regained(replica) => noted(Note::Regained(replica)),
            Part::Returned(replica) => noted(Note::Returned(replica)),
            Part::Welcome(extents) => noted(Note::Welcome(extents)),
            Part::Settled(extents) => noted(Note::Settled(extents)),
            Part::Lacks(replica, lacks) => noted(Note::Lacks(replica, lacks)),
        };
        let body = note.map(|note| codec::encode(&note, NOTE)).transpose();
        let body = body.map_err(|error| Failure::Io(error.to_string()))?.unwrap_or_default();
        let (pieces, rest) = sizes(&data, &body)?;
        let header = AskHeader {
            kind,
            durable: durably.into(),
            pieces,
            rest,
            tag: U64::new(tag.0),
            offset: U64::new(start),
            bytes: U64::new(end.saturating_sub(start)),
        };
        self.frame(header.as_bytes(), data, &body, out);
        Ok(())
    }

    /// Appends the end of one.
    pub(crate) fn end(&mut self, done: Done, out: &mut Outgoing) {
        let tag = done.tag;
        if let Ok(pieces) = &done.outcome
            && let Some(Digest(bytes)) = digest::read(pieces)
        {
            let rest = U32::new(u32::try_from(bytes.len()).expect("a digest is short"));
            return self.ended(DIGESTED, tag, (U16::ZERO, rest), Vec::new(), &bytes, out);
        }
        match done.outcome {
            Ok(data) => match sizes(&data, &[]) {
                Ok(sizes) => self.ended(DONE, tag, sizes, data, &[], out),
                Err(failure) => self.text(FAILED, tag, &failure.to_string(), out),
            },
            Err(Failure::NoSpace) => self.text(NO_SPACE, tag, "", out),
            Err(Failure::Fenced) => self.text(FENCED, tag, "", out),
            Err(failure @ (Failure::Io(_) | Failure::Silent(_))) => self.text(FAILED, tag, &failure.to_string(), out),
        }
    }

    /// Appends that nothing follows.
    pub(crate) fn over(&mut self, why: &str, out: &mut Outgoing) {
        self.text(OVER, Tag(0), why, out);
    }

    fn text(&mut self, outcome: u8, tag: Tag, text: &str, out: &mut Outgoing) {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text.as_bytes()[..end];
        let rest = U32::new(u32::try_from(text.len()).expect("it was cut"));
        self.ended(outcome, tag, (U16::ZERO, rest), Vec::new(), text, out);
    }

    fn ended(
        &mut self,
        outcome: u8,
        tag: Tag,
        (pieces, rest): (U16, U32),
        data: Vec<Piece>,
        body: &[u8],
        out: &mut Outgoing,
    ) {
        let header = EndHeader { outcome, zero: 0, pieces, rest, tag: U64::new(tag.0) };
        self.frame(header.as_bytes(), data, body, out);
    }

    fn frame(&mut self, header: &[u8], data: Vec<Piece>, body: &[u8], out: &mut Outgoing) {
        self.scratch.extend_from_slice(header);
        for piece in &data {
            let zeroes = if matches!(piece, Piece::Zeroes(_)) { ZEROES } else { 0 };
            self.scratch.extend_from_slice(&(piece.bytes() | zeroes).to_le_bytes());
        }
        self.scratch.extend_from_slice(body);
        out.push(self.scratch.split().freeze());
        for piece in data {
            if let Piece::Data(data) = piece {
                out.push(data);
            }
        }
    }
}

/// Of pieces and of a body, of which there is at most one.
fn sizes(data: &[Piece], body: &[u8]) -> Result<(U16, U32), Failure> {
    let rest = if data.is_empty() { body.len() as u64 } else { data_bytes(data) };
    let (pieces, rest_bytes) = (u16::try_from(data.len()), u32::try_from(rest));
    match (pieces, rest_bytes) {
        (Ok(pieces), Ok(rest)) if usize::from(pieces) <= PIECES_MAX && rest <= TRANSFER_BYTES_MAX => {
            Ok((U16::new(pieces), U32::new(rest)))
        }
        _ => Err(Failure::Io(format!("{rest} bytes in {} pieces are more than one message has", data.len()))),
    }
}

fn data_bytes(pieces: &[Piece]) -> u64 {
    let data = |piece: &Piece| if let Piece::Data(data) = piece { data.len() as u64 } else { 0 };
    pieces.iter().map(data).sum()
}

/// Makes frames of chunks, as they come.
pub(crate) struct Decoder<H> {
    chunks: Chunks,
    buffers: Buffers,
    stage: Stage<H>,
}

enum Stage<H> {
    Header,
    Table(H),
    /// The next of the lengths is to be read; in a buffer that is filled so far, if it has begun.
    Data {
        header: H,
        table: Vec<u32>,
        pieces: Vec<Piece>,
        filling: Option<(Buffer, usize)>,
    },
    Body(H),
}

impl<H: Header> Decoder<H> {
    pub(crate) fn new(buffers: Buffers) -> Self {
        Self { chunks: Chunks::default(), buffers, stage: Stage::Header }
    }

    /// Takes a chunk.
    pub(crate) fn feed(&mut self, chunk: Bytes) {
        self.chunks.bytes += chunk.len();
        if !chunk.is_empty() {
            self.chunks.queue.push_back(chunk);
        }
    }

    /// The next frame, if it is whole.
    pub(crate) fn next(&mut self) -> Result<Option<H::Frame>, Malformed> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Header) {
                Stage::Header => {
                    let mut header = H::new_zeroed();
                    if !self.chunks.read(header.as_mut_bytes()) {
                        return Ok(None);
                    }
                    let (pieces, rest) = header.sizes();
                    let most = if pieces > 0 { TRANSFER_BYTES_MAX as usize } else { header.body_max() };
                    if pieces > PIECES_MAX || rest > most {
                        return Err(Malformed("a message longer than any"));
                    }
                    self.stage = if pieces > 0 { Stage::Table(header) } else { Stage::Body(header) };
                }
                Stage::Table(header) => {
                    let (count, rest) = header.sizes();
                    let mut bytes = vec![0; count * 4];
                    if !self.chunks.read(&mut bytes) {
                        self.stage = Stage::Table(header);
                        return Ok(None);
                    }
                    // In reverse: the next one is the last.
                    let (entries, _) = bytes.as_chunks::<4>();
                    let table: Vec<u32> = entries.iter().rev().map(|entry| u32::from_le_bytes(*entry)).collect();
                    check_table(&table, rest)?;
                    let pieces = Vec::with_capacity(count);
                    self.stage = Stage::Data { header, table, pieces, filling: None };
                }
                Stage::Data { header, mut table, mut pieces, mut filling } => {
                    while let Some(entry) = table.last() {
                        let piece = if entry & ZEROES != 0 {
                            Some(Piece::Zeroes(entry & !ZEROES))
                        } else {
                            self.chunks.piece(*entry as usize, &self.buffers, &mut filling).map(Piece::Data)
                        };
                        let Some(piece) = piece else {
                            self.stage = Stage::Data { header, table, pieces, filling };
                            return Ok(None);
                        };
                        pieces.push(piece);
                        table.pop();
                    }
                    return header.read(pieces, &[]).map(Some);
                }
                Stage::Body(header) => {
                    let (_, rest) = header.sizes();
                    if self.chunks.bytes < rest {
                        self.stage = Stage::Body(header);
                        return Ok(None);
                    }
                    let mut body = vec![0; rest];
                    self.chunks.read(&mut body);
                    return header.read(Vec::new(), &body).map(Some);
                }
            }
        }
    }
}

/// Whole sectors, not too many of them, and as much data as was said.
fn check_table(table: &[u32], rest: usize) -> Result<(), Malformed> {
    let bytes = |entry: &u32| u64::from(entry & !ZEROES);
    if table.iter().any(|entry| bytes(entry) == 0 || !bytes(entry).is_multiple_of(u64::from(SECTOR_BYTES))) {
        return Err(Malformed("a piece that is not whole sectors"));
    }
    if table.iter().map(bytes).sum::<u64>() > u64::from(TRANSFER_BYTES_MAX) {
        return Err(Malformed("more bytes than are moved at once"));
    }
    let data: u64 = table.iter().filter(|entry| *entry & ZEROES == 0).map(bytes).sum();
    if data == rest as u64 { Ok(()) } else { Err(Malformed("data that is not as long as its pieces")) }
}

/// Bytes in the order in which they came.
#[derive(Debug, Default)]
struct Chunks {
    queue: VecDeque<Bytes>,
    bytes: usize,
}

impl Chunks {
    /// Fills `out`, if there is so much.
    fn read(&mut self, out: &mut [u8]) -> bool {
        if self.bytes < out.len() {
            return false;
        }
        let mut at = 0;
        while at < out.len() {
            at += self.read_some(&mut out[at..]);
        }
        true
    }

    /// Reads from the first chunk. How much.
    fn read_some(&mut self, out: &mut [u8]) -> usize {
        let Some(first) = self.queue.front_mut() else { return 0 };
        let count = first.len().min(out.len());
        let part = first.split_to(count);
        out[..count].copy_from_slice(&part);
        self.bytes -= count;
        if first.is_empty() {
            self.queue.pop_front();
        }
        count
    }

    /// So many bytes in one piece: without copying, where they came so. `filling`: what there is of it.
    fn piece(&mut self, bytes: usize, buffers: &Buffers, filling: &mut Option<(Buffer, usize)>) -> Option<Bytes> {
        if filling.is_none()
            && let Some(first) = self.queue.front_mut()
            && first.len() >= bytes
        {
            let piece = first.split_to(bytes);
            self.bytes -= bytes;
            if first.is_empty() {
                self.queue.pop_front();
            }
            return Some(piece);
        }
        let (buffer, filled) = filling.get_or_insert_with(|| (buffers.take(bytes), 0));
        while *filled < bytes && self.bytes > 0 {
            *filled += self.read_some(&mut buffer[*filled..]);
        }
        if *filled < bytes { None } else { filling.take().map(|(buffer, _)| buffer.freeze()) }
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
