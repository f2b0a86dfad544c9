//! What a port counts. Every frame that came in from either side and is not waiting is in exactly one of the figures of its
//! direction.

use serde::{Deserialize, Serialize};

use crate::gate::Refusal;

/// A port's figures since it started; they only ever grow. "Out" is from the guest to the bridge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Frames of the guest that were written to the TAP.
    pub frames_out: u64,
    /// Their bytes, without the length prefix.
    pub bytes_out: u64,
    /// Frames of the guest refused because the gate was closed.
    pub refused_closed: u64,
    /// Frames of the guest refused because their generation is over.
    pub refused_stale: u64,
    /// Frames of the guest refused because their generation is not committed yet.
    pub refused_ahead: u64,
    /// Frames of the guest too short to have an Ethernet header.
    pub malformed_out: u64,
    /// Frames of the guest that passed the gate and that the kernel would not take (its queue was full, or the interface
    /// was down).
    pub lost_out: u64,
    /// Frames from the bridge accepted for the guest: written to QEMU's socket, or next to be.
    pub frames_in: u64,
    /// Their bytes, without the length prefix.
    pub bytes_in: u64,
    /// Frames from the bridge dropped because the gate was closed.
    pub dropped_in_closed: u64,
    /// Frames from the bridge that the kernel dropped because the guest did not read, the queue towards it was full, and so was the
    /// TAP's. The kernel's own count: it is looked at when the figures are asked for.
    pub dropped_in_full: u64,
    /// Announcements written to the TAP.
    pub announced: u64,
}

impl Counters {
    /// All frames of the guest that the gate refused.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused_closed + self.refused_stale + self.refused_ahead
    }

    /// All frames of the guest, whatever became of them.
    #[must_use]
    pub const fn seen_out(&self) -> u64 {
        self.frames_out + self.refused() + self.malformed_out + self.lost_out
    }

    pub(crate) const fn refuse(&mut self, reason: Refusal) {
        match reason {
            Refusal::Closed => self.refused_closed += 1,
            Refusal::Stale { .. } => self.refused_stale += 1,
            Refusal::Ahead { .. } => self.refused_ahead += 1,
        }
    }
}

impl std::ops::AddAssign for Counters {
    /// Adds another port's figures.
    fn add_assign(&mut self, other: Self) {
        // Every figure by name, so that none is left out of a sum.
        let Self {
            frames_out,
            bytes_out,
            refused_closed,
            refused_stale,
            refused_ahead,
            malformed_out,
            lost_out,
            frames_in,
            bytes_in,
            dropped_in_closed,
            dropped_in_full,
            announced,
        } = other;
        self.frames_out += frames_out;
        self.bytes_out += bytes_out;
        self.refused_closed += refused_closed;
        self.refused_stale += refused_stale;
        self.refused_ahead += refused_ahead;
        self.malformed_out += malformed_out;
        self.lost_out += lost_out;
        self.frames_in += frames_in;
        self.bytes_in += bytes_in;
        self.dropped_in_closed += dropped_in_closed;
        self.dropped_in_full += dropped_in_full;
        self.announced += announced;
    }
}
