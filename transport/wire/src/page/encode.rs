//! Gathering pages into a frame.

use alloc::vec::Vec;

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

/// The frame cannot take this page: it is full, or the page does not come after those it has. Finish it and start another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frame has no room for this page")]
pub struct NoRoom;

/// Gathers pages and turns them into frames. Belongs to one stream; its buffers are reused from frame to frame.
#[derive(Debug)]
pub struct Encoder {
    runs: Vec<Pending>,
    pages: Vec<u8>,
    packed: Vec<u8>,
    frame: Vec<u8>,
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
        let pages_bytes = PAGES_PER_FRAME_MAX * PAGE_BYTES;
        Self {
            runs: Vec::with_capacity(RUNS_PER_FRAME_MAX),
            pages: Vec::with_capacity(pages_bytes),
            packed: Vec::new(),
            frame: Vec::with_capacity(HEADER_BYTES + RUNS_PER_FRAME_MAX * RUN_BYTES + pages_bytes),
            untried: 0,
            untried_next: 0,
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
        if self.pages.len() == PAGES_PER_FRAME_MAX * PAGE_BYTES {
            return Err(NoRoom);
        }
        self.extend(KIND_SENT, number, 1)?;
        self.pages.extend_from_slice(content);
        Ok(())
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
    pub fn finish(&mut self, stamp: &Stamp, compress: bool) -> &[u8] {
        let compressed = compress && self.pack();
        let payload = if compressed { &self.packed } else { &self.pages };
        let mut header = RawHeader {
            magic: MAGIC,
            format: FORMAT,
            flags: if compressed { FLAG_LZ4 } else { 0 },
            runs: U16::new(u16::try_from(self.runs.len()).unwrap_or(u16::MAX)),
            pages: U32::new(u32::try_from(self.pages.len() / PAGE_BYTES).unwrap_or(u32::MAX)),
            payload_bytes: U32::new(u32::try_from(payload.len()).unwrap_or(u32::MAX)),
            vm: U64::new(stamp.vm.0),
            operation: stamp.operation.0,
            generation: U64::new(stamp.generation.0),
            first_sequence: U64::new(stamp.first_sequence),
            round: U32::new(stamp.round),
            crc: U32::ZERO,
        };
        self.frame.clear();
        self.frame.extend_from_slice(header.as_bytes());
        for run in &self.runs {
            let raw = RawRun { first: U64::new(run.first), pages: U32::new(run.pages), kind: run.kind, zero: [0; 3] };
            self.frame.extend_from_slice(raw.as_bytes());
        }
        self.frame.extend_from_slice(payload);
        header.crc = U32::new(checksum(header, &self.frame[HEADER_BYTES..]));
        self.frame[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        self.runs.clear();
        self.pages.clear();
        &self.frame
    }

    /// Whether `packed` holds the pages and is worth sending.
    fn pack(&mut self) -> bool {
        if self.pages.is_empty() {
            return false;
        }
        if self.untried > 0 {
            self.untried -= 1;
            return false;
        }
        self.packed.resize(lz4_flex::block::get_maximum_output_size(self.pages.len()), 0);
        let limit = self.pages.len() - self.pages.len() / WORTHWHILE;
        // The output has room for the worst case, so that compressing cannot fail; if it did, the pages go as they are.
        let size = lz4_flex::block::compress_into(&self.pages, &mut self.packed).unwrap_or(usize::MAX);
        if size > limit {
            self.untried_next = (self.untried_next * 2 + 1).min(UNTRIED_MAX);
            self.untried = self.untried_next;
            return false;
        }
        self.untried_next = 0;
        self.packed.truncate(size);
        true
    }
}
