//! A batch of guest memory pages as it crosses the wire, the unit of VM-MIG1 and VM-MIG3.
//!
//! ```text
//! header, 64 bytes                                      body
//!  0  magic "PLPG"          24  operation, 16 bytes      runs, 16 bytes each:
//!  4  version               40  generation, 8 bytes       0  first page, 8 bytes
//!  5  flags: 1 = LZ4        48  first sequence, 8 bytes   8  pages, 4 bytes
//!  6  runs, 2 bytes         56  round, 4 bytes           12  kind: 1 zero, 2 sent
//!  8  pages sent, 4 bytes   60  CRC-32, 4 bytes          13  zero, 3 bytes
//! 12  payload bytes, 4                                   payload: the pages sent, in the order of the runs,
//! 16  VM, 8 bytes                                        as they are or as one LZ4 block
//! ```
//! Integers are little-endian. Runs ascend and do not overlap. The CRC is over header (itself taken as zero) and body: the
//! connection's own integrity ends where its bytes are copied out, a guest's memory does not forgive a flipped bit.
//!
//! [`Encoder`] gathers pages in the buffer they are sent from; [`decode`] believes nothing: every number is checked against the
//! limits, the guest's size and the length of what arrived, and nothing is allocated beyond one frame.

mod decode;
mod encode;

pub use decode::{Batch, Run, decode};
pub use encode::{Encoder, Frame, Gathered, NoRoom};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{
    id::{Generation, OpId, VmId},
    limits::{PAGE_BYTES, PAGES_PER_FRAME_MAX, RUNS_PER_FRAME_MAX},
};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the largest body that a header can announce.
pub const BODY_BYTES_MAX: usize = RUNS_PER_FRAME_MAX * RUN_BYTES + PAGES_PER_FRAME_MAX * PAGE_BYTES;

const RUN_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"PLPG";
/// The format of the frame, apart from [`crate::VERSION`]: it goes up when this page's picture changes.
const FORMAT: u8 = 1;
const FLAG_LZ4: u8 = 1;
const KIND_ZERO: u8 = 1;
const KIND_SENT: u8 = 2;

/// Which replication a frame belongs to and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Whose memory.
    pub vm: VmId,
    /// Which operation sends it.
    pub operation: OpId,
    /// The VM's generation at the source; the sink refuses a lower one (DESIGN, rule 4).
    pub generation: Generation,
    /// Which round or epoch.
    pub round: u32,
    /// How many pages (zero or sent) the stream carried before this frame.
    pub first_sequence: u64,
}

/// Bytes that are no frame, or one that must not be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// No frame starts here.
    #[error("the bytes are no page frame")]
    NotAFrame,
    /// A frame of another format.
    #[error("the frame has format {theirs}, this build reads {ours}", ours = FORMAT)]
    Format {
        /// The frame's format.
        theirs: u8,
    },
    /// A flag that means nothing.
    #[error("the frame has unknown flags {0:#04x}")]
    Flags(u8),
    /// More runs, pages or payload than a frame may have.
    #[error("the frame announces more than a frame may have")]
    TooLarge,
    /// The body's length is not what the header says.
    #[error("the body has {found_bytes} bytes where the header announces {announced_bytes}")]
    Length {
        /// What the header says.
        announced_bytes: usize,
        /// What is there.
        found_bytes: usize,
    },
    /// The checksum does not match.
    #[error("the frame's checksum does not match")]
    Checksum,
    /// A run that is empty, of no kind, out of order, or whose pages do not add up.
    #[error("the frame's runs make no sense")]
    Runs,
    /// A page beyond the guest's memory.
    #[error("page {page} is beyond the guest's {guest_pages} pages")]
    Beyond {
        /// The page.
        page: u64,
        /// How many the guest has.
        guest_pages: u64,
    },
    /// The LZ4 block does not decompress to the announced pages.
    #[error("the frame's payload does not decompress to its pages")]
    Payload,
}

/// A header whose numbers are within the limits. Not yet checked against the checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which replication the frame belongs to.
    pub stamp: Stamp,
    /// Whether the payload is one LZ4 block.
    pub compressed: bool,
    runs: usize,
    pages: usize,
    payload_bytes: usize,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    format: u8,
    flags: u8,
    runs: U16,
    pages: U32,
    payload_bytes: U32,
    vm: U64,
    operation: [u8; 16],
    generation: U64,
    first_sequence: U64,
    round: U32,
    crc: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRun {
    first: U64,
    pages: U32,
    kind: u8,
    zero: [u8; 3],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES && size_of::<RawRun>() == RUN_BYTES);

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// When it is none, or announces more than a frame may have.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, PageError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC || raw.format == 0 {
            return Err(PageError::NotAFrame);
        }
        if raw.format != FORMAT {
            return Err(PageError::Format { theirs: raw.format });
        }
        if raw.flags & !FLAG_LZ4 != 0 {
            return Err(PageError::Flags(raw.flags));
        }
        let compressed = raw.flags & FLAG_LZ4 != 0;
        let size = |number: U32| usize::try_from(number.get()).map_err(|_| PageError::TooLarge);
        let (runs, pages, payload_bytes) = (usize::from(raw.runs.get()), size(raw.pages)?, size(raw.payload_bytes)?);
        if runs > RUNS_PER_FRAME_MAX || pages > PAGES_PER_FRAME_MAX || payload_bytes > pages * PAGE_BYTES {
            return Err(PageError::TooLarge);
        }
        // Compression is for what it saves; a block as long as its pages is a second spelling of the same frame.
        let whole = payload_bytes == pages * PAGE_BYTES;
        if compressed == whole {
            return Err(PageError::Payload);
        }
        let stamp = Stamp {
            vm: VmId(raw.vm.get()),
            operation: OpId(raw.operation),
            generation: Generation(raw.generation.get()),
            round: raw.round.get(),
            first_sequence: raw.first_sequence.get(),
        };
        Ok(Self { stamp, compressed, runs, pages, payload_bytes })
    }

    /// Bytes of the body that follows: at most [`BODY_BYTES_MAX`].
    #[must_use]
    pub const fn body_bytes(&self) -> usize {
        self.runs * RUN_BYTES + self.payload_bytes
    }
}

fn checksum(mut header: RawHeader, body: &[u8]) -> u32 {
    header.crc = U32::ZERO;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.as_bytes());
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
