//! Reading a frame that somebody sent.

use alloc::vec::Vec;

use zerocopy::FromBytes;

use super::{HEADER_BYTES, Header, KIND_SENT, KIND_ZERO, PageError, RUN_BYTES, RawHeader, RawRun, Stamp, checksum};
use crate::limits::PAGE_BYTES;

/// The pages of one frame, checked.
#[derive(Debug)]
pub struct Batch<'a> {
    stamp: Stamp,
    runs: &'a [RawRun],
    content: &'a [u8],
}

/// A stretch of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run<'a> {
    /// All zero.
    Zero {
        /// The first page's number.
        first: u64,
        /// How many.
        pages: u32,
    },
    /// With content.
    Sent {
        /// The first page's number.
        first: u64,
        /// The pages, one after the other.
        content: &'a [u8],
    },
}

/// Reads a frame for a guest of so many pages. `scratch` is where compressed pages are unpacked: reuse it.
///
/// # Errors
/// When the frame is damaged, or does not fit the guest. Then none of it may be applied.
pub fn decode<'a>(
    header: &[u8; HEADER_BYTES],
    body: &'a [u8],
    guest_pages: u64,
    scratch: &'a mut Vec<u8>,
) -> Result<Batch<'a>, PageError> {
    let checked = Header::parse(header)?;
    if body.len() != checked.body_bytes() {
        return Err(PageError::Length { announced_bytes: checked.body_bytes(), found_bytes: body.len() });
    }
    let raw: RawHeader = zerocopy::transmute!(*header);
    // A fuzzer does not find checksums; what lies behind this one is what it is to try.
    if !cfg!(fuzzing) && checksum(raw, body) != raw.crc.get() {
        return Err(PageError::Checksum);
    }
    let (runs, payload) = body.split_at(checked.runs * RUN_BYTES);
    let runs = <[RawRun]>::ref_from_bytes(runs).map_err(|_| PageError::Runs)?;
    check_runs(runs, checked.pages, guest_pages)?;
    let content = if checked.compressed {
        scratch.resize(checked.pages * PAGE_BYTES, 0);
        match lz4_flex::block::decompress_into(payload, scratch) {
            Ok(size) if size == scratch.len() => scratch,
            Ok(_) | Err(_) => return Err(PageError::Payload),
        }
    } else {
        payload
    };
    Ok(Batch { stamp: checked.stamp, runs, content })
}

fn check_runs(runs: &[RawRun], pages_sent: usize, guest_pages: u64) -> Result<(), PageError> {
    let (mut next, mut sent) = (0_u64, 0_u64);
    for run in runs {
        let (first, pages) = (run.first.get(), u64::from(run.pages.get()));
        if pages == 0 || first < next || run.zero != [0; 3] {
            return Err(PageError::Runs);
        }
        match run.kind {
            KIND_ZERO => {}
            KIND_SENT => sent += pages,
            _ => return Err(PageError::Runs),
        }
        next = first.checked_add(pages).ok_or(PageError::Runs)?;
        if next > guest_pages {
            return Err(PageError::Beyond { page: next - 1, guest_pages });
        }
    }
    if u64::try_from(pages_sent) == Ok(sent) { Ok(()) } else { Err(PageError::Runs) }
}

impl<'a> Batch<'a> {
    /// Which replication it belongs to and where in it.
    #[must_use]
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Pages, zero or sent.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages.get())).sum()
    }

    /// The runs, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Run<'a>> + use<'a> {
        let mut rest = self.content;
        self.runs.iter().map(move |run| {
            let (first, pages) = (run.first.get(), run.pages.get());
            if run.kind == KIND_ZERO {
                return Run::Zero { first, pages };
            }
            // The pages of the runs add up to the content: checked when the frame was read.
            let (content, after) = rest.split_at(usize::try_from(pages).unwrap_or(usize::MAX) * PAGE_BYTES);
            rest = after;
            Run::Sent { first, content }
        })
    }
}
