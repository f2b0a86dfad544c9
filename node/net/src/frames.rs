//! Frames on QEMU's stream netdev: each is preceded by its length, 4 bytes, big-endian. Pure: bytes in, frames out.
//!
//! [`FrameReader`] cuts what came from QEMU into frames, many per read. [`FrameQueue`] holds what goes to QEMU, ready to be
//! written in one call, and is full at a limit: what a guest does not read stays in the TAP, it does not grow the
//! daemon.

/// The largest frame QEMU may send, in bytes: 64 KiB of payload and the Ethernet header, rounded up.
pub const FRAME_BYTES_MAX: usize = 65_550;
/// The shortest that is a frame at all, in bytes: the Ethernet header.
pub const FRAME_BYTES_MIN: usize = 14;

/// The length in front of each frame, in bytes.
const PREFIX_BYTES: usize = 4;
/// What is read from QEMU in one call at most, in bytes: some 170 full Ethernet frames.
pub(crate) const READ_BYTES_MAX: usize = 256 * 1024;
/// What may wait for a guest that does not read, in bytes, beyond what the socket itself holds.
pub(crate) const QUEUE_BYTES_MAX: usize = 512 * 1024;

const _: () = assert!(READ_BYTES_MAX >= PREFIX_BYTES + FRAME_BYTES_MAX, "the largest frame must fit the read buffer");
const _: () = assert!(QUEUE_BYTES_MAX >= PREFIX_BYTES + FRAME_BYTES_MAX, "the largest frame must fit the queue");
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "a length fits its prefix");

/// QEMU's socket does not carry frames: the stream is lost, as nothing tells where the next frame would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length above the limit.
    #[error("QEMU announced a frame of {bytes} bytes; {max} is the limit", max = FRAME_BYTES_MAX)]
    Oversize {
        /// The length it announced.
        bytes: u64,
    },
}

/// Cuts a byte stream into frames.
pub(crate) struct FrameReader {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; READ_BYTES_MAX].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where the next bytes go; never empty once `next` has said that no whole frame is left.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// `count` bytes have been put into the space.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.buffer.len(), "more bytes were read than there was space for");
    }

    /// The next whole frame, or `None` until more bytes come.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let waiting = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*prefix);
        let bytes = usize::try_from(announced).unwrap_or(usize::MAX);
        if bytes > FRAME_BYTES_MAX {
            return Err(FrameError::Oversize { bytes: u64::from(announced) });
        }
        if rest.len() < bytes {
            return Ok(None);
        }
        let from = self.start + PREFIX_BYTES;
        self.start = from + bytes;
        Ok(Some(&self.buffer[from..from + bytes]))
    }

    /// Bytes of a frame that has not come whole.
    pub(crate) fn partial_bytes(&self) -> usize {
        self.end - self.start
    }
}

/// Frames on their way to QEMU, prefixed, in order, and never more than [`QUEUE_BYTES_MAX`].
pub(crate) struct FrameQueue {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameQueue {
    const ENTRY_BYTES_MAX: usize = PREFIX_BYTES + FRAME_BYTES_MAX;

    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; QUEUE_BYTES_MAX].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The largest frame would fit.
    pub(crate) fn has_room(&self) -> bool {
        self.buffer.len() - (self.end - self.start) >= Self::ENTRY_BYTES_MAX
    }

    /// Asks `fill` to put one frame into a slice that holds the largest one, and queues what it put there: `Ok(n)` is its
    /// length. `None` when the queue is full; `fill` is not asked then.
    pub(crate) fn push_with<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<usize, E>> {
        if self.buffer.len() - self.end < Self::ENTRY_BYTES_MAX && self.has_room() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let entry = self.buffer[self.end..].first_chunk_mut::<{ Self::ENTRY_BYTES_MAX }>()?;
        let (prefix, frame) = entry.split_at_mut(PREFIX_BYTES);
        let filled = fill(frame);
        if let Ok(bytes) = filled {
            assert!(bytes <= FRAME_BYTES_MAX, "more bytes were put into the queue than there was space for");
            let length = u32::try_from(bytes).expect("the largest frame's length fits its prefix");
            prefix.copy_from_slice(&length.to_be_bytes());
            self.end += PREFIX_BYTES + bytes;
        }
        Some(filled)
    }

    /// What to write to QEMU's socket next.
    pub(crate) fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// `count` bytes of it have been written.
    pub(crate) fn written(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "more bytes were written than were waiting");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
