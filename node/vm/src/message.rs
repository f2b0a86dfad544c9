//! What source and target of a move say to each other on the control stream. Pages travel on streams of their own
//! (`pollux_wire::page`); a message is never needed for safety, only for speed and for the report: the log decides.

use alloc::{string::String, vec::Vec};

use pollux_state::{
    id::{Generation, OpId, Owner, VmId},
    operation::MoveReport,
};
use serde::{Deserialize, Serialize};

/// The header with which the source opens the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Which VM.
    pub vm: VmId,
    /// Which operation.
    pub op: OpId,
    /// The generation the source owns it at. The receiver refuses any other (DESIGN, rule 4).
    pub generation: Generation,
    /// The source.
    pub from: Owner,
    /// Place in the log at which the source saw the move decided; the target catches up to it first.
    pub index: u64,
    /// Guest RAM in pages of 4 KiB.
    pub pages: u64,
    /// How many page streams follow, 1 to 16.
    pub streams: u16,
}

/// The header of each page stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamGreeting {
    /// Which VM.
    pub vm: VmId,
    /// Which operation.
    pub op: OpId,
    /// As in [`Greeting`]: the streams may come in any order.
    pub index: u64,
    /// Which of the streams, from 0.
    pub stream: u16,
}

/// The header of a stream of pages that only measures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeGreeting {
    /// Guest RAM in pages of 4 KiB.
    pub pages: u64,
}

/// Source to target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTarget {
    /// The guest is paused and every page has been sent: `frames` frames of pages in all, then this, then the device state
    /// as one LZ4 block of `packed_bytes` on the same stream. It is mostly zeros and ROM, and all of it is blackout.
    Complete {
        /// Page frames sent over all streams since the beginning.
        frames: u64,
        /// Length of the device state.
        state_bytes: u64,
        /// Length of the block that it travels in.
        packed_bytes: u64,
        /// What the move cost so far, `pause_ms` up to now.
        report: MoveReport,
    },
    /// The source has given the move up (it has proposed so; the log decides).
    Abandon {
        /// Why.
        reason: String,
    },
    /// A round has been sent: `frames` frames of pages in all so far. To be answered with [`ToSource::Landed`].
    RoundEnd {
        /// Page frames sent over all streams since the beginning.
        frames: u64,
    },
    /// What the guest wrote to its console: goes on where the last of these ended, or replaces it.
    Console {
        /// Place of the first byte in all that the guest ever wrote.
        start: u64,
        /// The bytes, at most [`CONSOLE_BYTES_MAX`].
        bytes: Vec<u8>,
    },
}

/// How much of a guest's console travels in one message.
pub const CONSOLE_BYTES_MAX: usize = 16 << 10;

/// Target to source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSource {
    /// The standby waits; pages are welcome.
    Ready,
    /// The target will not take part.
    Refused {
        /// Why.
        reason: String,
    },
    /// The pages of the first `frames` frames are in the standby's memory.
    Landed {
        /// As in [`ToTarget::RoundEnd`].
        frames: u64,
    },
}
