//! Long-running changes that a user asked for.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::{
    UnixMs,
    id::{NodeId, OpId, VmId},
};

/// An operation: who, what, how far, and how it ended. Finished ones are kept, oldest dropped first, up to
/// [`crate::limits::OPERATIONS_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id; `op` verbs take any unambiguous beginning of it.
    pub id: OpId,
    /// What it does.
    pub kind: OperationKind,
    /// A user asked for it to be cancelled. The source acts on it; until then it goes on.
    pub cancel: bool,
    /// The place in the log at which it was accepted: the order of operations, which no clock can disturb.
    pub index: u64,
    /// When it was accepted.
    pub started: UnixMs,
    /// How it ended, and when.
    pub ended: Option<(UnixMs, OperationResult)>,
}

/// What an operation does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A live migration.
    Migrate {
        /// Which VM.
        vm: VmId,
        /// Its name, kept for when it is gone.
        vm_name: String,
        /// From where.
        from: NodeId,
        /// To where.
        to: NodeId,
        /// Longest blackout wished for, in milliseconds.
        blackout_ms_max: u32,
    },
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationResult {
    /// Done, with what it cost.
    Succeeded(MoveReport),
    /// Not done; the VM is where it was.
    Failed {
        /// What happened, for people.
        reason: String,
    },
    /// Not done because a user said so; the VM is where it was.
    Cancelled,
}

/// What a move cost, as its target reports it when it commits `Arrived`. All times in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReport {
    /// Passes over memory, the last one (paused) included.
    pub rounds: u32,
    /// Payload bytes on the wire.
    pub wire_bytes: u64,
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Pages of which only a bit was sent.
    pub zero_pages: u64,
    /// From the pause at the source to the continue at the target, by the two hosts' clocks of elapsed time (each side
    /// measures its own part; the network's part is the remainder the source saw).
    pub pause_ms: u32,
    /// From begin to `Arrived`.
    pub total_ms: u64,
}
