//! Gathering pages into a frame.
//!
//! A frame is made in the place it is sent from: its pages are put behind room for the largest header, which is filled in
//! last and from behind. What was copied once need not be copied again, and a buffer that was sent can be used again.

use alloc::{vec, vec::Vec};
use core::ops::{Deref, Range};

use zerocopy::{
    IntoBytes,
    little_endian::{U16, U32, U64},
};

use super::{
    FLAG_LZ4, FORMAT, HEADER_BYTES, KIND_SENT, KIND_ZERO, MAGIC, RUN_BYTES, RawHeader, RawRun, Stamp, checksum,
};
use crate::limits::{PAGE_BYTES, PAGES_PER_FRAME_MAX, RUNS_PER_FRAME_MAX};

/// LZ4 has to save at least this part of a batch, or the batch goes as it is: decompressing costs the sink too.
const WORTHWHILE: usize = 16;
/// After a batch that did not compress, at most this many go untried before the next attempt. Memory that is full of
/// random data stays so for many batches, and a failed attempt costs as much as a good one.
const UNTRIED_MAX: u32 = 15;
/// Room before the payload: for a header and as many runs as there can be.
const ROOM_BYTES: usize = HEADER_BYTES + RUNS_PER_FRAME_MAX * RUN_BYTES;
/// Content of all pages of a frame.
const CONTENT_BYTES_MAX: usize = PAGES_PER_FRAME_MAX * PAGE_BYTES;

/// The frame cannot take this page: it is full, or the page does not come after those it has. Finish it and start another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frame has no room for this page")]
pub struct NoRoom;

/// A finished frame: a part of a buffer that is larger.
#[derive(Debug)]
pub struct Frame {
    buffer: Vec<u8>,
    range: Range<usize>,
}

impl Frame {
    /// The buffer, and where in it the frame is. Once it is sent, [`Encoder::reuse`] may have the buffer back.
    #[must_use]
    pub fn into_parts(self) -> (Vec<u8>, Range<usize>) {
        (self.buffer, self.range)
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// Gathers pages and turns them into frames. Belongs to one stream.
#[derive(Debug)]
pub struct Encoder {
    runs: Vec<Pending>,
    /// Room, then content.
    gathered: Vec<u8>,
    /// Bytes of content.
    filled: usize,
    /// For the next frame.
    spare: Option<Vec<u8>>,
    untried: u32,
    untried_next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    first: u64,
    pages: u32,
    kind: u8,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder with room for one frame.
    #[must_use]
    pub fn new() -> Self {
        let runs = Vec::with_capacity(RUNS_PER_FRAME_MAX);
        Self { runs, gathered: buffer(), filled: 0, spare: None, untried: 0, untried_next: 0 }
    }

    /// Takes back the buffer of a frame that was sent. Another one is dropped.
    pub fn reuse(&mut self, buffer: Vec<u8>) {
        if buffer.len() == buffer_bytes() {
            self.spare = Some(buffer);
        }
    }

    /// Whether nothing was added since the last frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Pages, zero or sent, that the frame has so far.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages)).sum()
    }

    /// Adds a stretch of pages that are all zero.
    ///
    /// # Errors
    /// [`NoRoom`], with nothing added.
    pub fn zero(&mut self, first: u64, pages: u32) -> Result<(), NoRoom> {
        self.extend(KIND_ZERO, first, pages)
    }

    /// Adds one page with its content.
    ///
    /// # Errors
    /// [`NoRoom`], with nothing added.
    pub fn page(&mut self, number: u64, content: &[u8; PAGE_BYTES]) -> Result<(), NoRoom> {
        self.place()?.copy_from_slice(content);
        self.extend(KIND_SENT, number, 1)?;
        self.filled += PAGE_BYTES;
        Ok(())
    }

    /// Adds one page whose content `read` puts in place; of a page of zeros only that it is one. Tells which.
    ///
    /// # Errors
    /// [`NoRoom`], with nothing added.
    pub fn gather(&mut self, number: u64, read: impl FnOnce(&mut [u8; PAGE_BYTES])) -> Result<Gathered, NoRoom> {
        let place = self.place()?;
        read(place);
        if is_zero(place) {
            self.zero(number, 1)?;
            return Ok(Gathered::Zero);
        }
        self.extend(KIND_SENT, number, 1)?;
        self.filled += PAGE_BYTES;
        Ok(Gathered::Content)
    }

    /// Where the next page's content belongs.
    fn place(&mut self) -> Result<&mut [u8; PAGE_BYTES], NoRoom> {
        if self.filled == CONTENT_BYTES_MAX {
            return Err(NoRoom);
        }
        self.gathered[ROOM_BYTES + self.filled..].first_chunk_mut().ok_or(NoRoom)
    }

    fn extend(&mut self, kind: u8, first: u64, pages: u32) -> Result<(), NoRoom> {
        if pages == 0 {
            return Ok(());
        }
        if first.checked_add(u64::from(pages)).is_none() {
            return Err(NoRoom);
        }
        if let Some(last) = self.runs.last_mut() {
            let end = last.first + u64::from(last.pages);
            if first < end {
                return Err(NoRoom);
            }
            if first == end && kind == last.kind {
                last.pages = last.pages.checked_add(pages).ok_or(NoRoom)?;
                return Ok(());
            }
        }
        if self.runs.len() == RUNS_PER_FRAME_MAX {
            return Err(NoRoom);
        }
        self.runs.push(Pending { first, pages, kind });
        Ok(())
    }

    /// The frame with everything added since the last one. With `compress`, LZ4 is used where it helps.
    pub fn finish(&mut self, stamp: &Stamp, compress: bool) -> Frame {
        let spare = self.spare.take().unwrap_or_else(buffer);
        let pages = self.filled / PAGE_BYTES;
        let (flags, payload_bytes, mut buffer) = match self.pack(compress, spare) {
            Ok((bytes, packed)) => (FLAG_LZ4, bytes, packed),
            Err(spare) => (0, self.filled, core::mem::replace(&mut self.gathered, spare)),
        };
        let mut header = RawHeader {
            magic: MAGIC,
            format: FORMAT,
            flags,
            runs: U16::new(u16::try_from(self.runs.len()).unwrap_or(u16::MAX)),
            pages: U32::new(u32::try_from(pages).unwrap_or(u32::MAX)),
            payload_bytes: U32::new(u32::try_from(payload_bytes).unwrap_or(u32::MAX)),
            vm: U64::new(stamp.vm.0),
            operation: stamp.operation.0,
            generation: U64::new(stamp.generation.0),
            first_sequence: U64::new(stamp.first_sequence),
            round: U32::new(stamp.round),
            crc: U32::ZERO,
        };
        let start = ROOM_BYTES - HEADER_BYTES - self.runs.len() * RUN_BYTES;
        let range = start..ROOM_BYTES + payload_bytes;
        let (raw_header, body) = buffer[range.clone()].split_at_mut(HEADER_BYTES);
        for (place, run) in body.chunks_exact_mut(RUN_BYTES).zip(&self.runs) {
            let raw = RawRun { first: U64::new(run.first), pages: U32::new(run.pages), kind: run.kind, zero: [0; 3] };
            place.copy_from_slice(raw.as_bytes());
        }
        header.crc = U32::new(checksum(header, body));
        raw_header.copy_from_slice(header.as_bytes());
        self.runs.clear();
        self.filled = 0;
        Frame { buffer, range }
    }

    /// The content packed into `spare`, and how many bytes that makes; or `spare` again, where it is not worth it.
    fn pack(&mut self, compress: bool, mut spare: Vec<u8>) -> Result<(usize, Vec<u8>), Vec<u8>> {
        if !compress || self.filled == 0 {
            return Err(spare);
        }
        if self.untried > 0 {
            self.untried -= 1;
            return Err(spare);
        }
        let content = &self.gathered[ROOM_BYTES..ROOM_BYTES + self.filled];
        let limit = content.len() - content.len() / WORTHWHILE;
        // The output has room for the worst case, so that compressing cannot fail; if it did, the pages go as they are.
        let size = lz4_flex::block::compress_into(content, &mut spare[ROOM_BYTES..]).unwrap_or(usize::MAX);
        if size > limit {
            self.untried_next = (self.untried_next * 2 + 1).min(UNTRIED_MAX);
            self.untried = self.untried_next;
            return Err(spare);
        }
        self.untried_next = 0;
        Ok((size, spare))
    }
}

/// What a page turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gathered {
    /// Nothing but zeros.
    Zero,
    /// Something else.
    Content,
}

/// Room and content, or content packed as badly as it can be.
fn buffer_bytes() -> usize {
    ROOM_BYTES + lz4_flex::block::get_maximum_output_size(CONTENT_BYTES_MAX)
}

fn buffer() -> Vec<u8> {
    vec![0; buffer_bytes()]
}

fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    // Most pages that are not zero say so early. In words of 16 bytes, which the compiler makes vectors of.
    page.chunks_exact(16).all(|word| word == [0; 16])
}
