//! Long-running changes that a user asked for.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::{
    UnixMs,
    id::{Generation, NodeId, OpId, PoolId, ReplicaId, VmId, VolumeId},
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
    /// When its turn came; `None` while it waits for its nodes to be free.
    pub begun: Option<UnixMs>,
    /// How it ended, and when.
    pub ended: Option<(UnixMs, OperationResult)>,
}

impl OperationResult {
    /// What was asked for is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Succeeded(_) | Self::VolumeMoved(_) | Self::Relocated => true,
            Self::Failed { .. } | Self::Cancelled => false,
        }
    }
}

impl Operation {
    /// It has ended, and what was asked for is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ended.as_ref().is_some_and(|(_, result)| result.is_done())
    }

    /// Its turn has not come.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.begun.is_none() && self.ended.is_none()
    }

    /// The name of the VM or the volume it is about, as it was when it was accepted.
    #[must_use]
    pub fn subject(&self) -> &str {
        match &self.kind {
            OperationKind::Migrate { vm_name, .. } => vm_name,
            OperationKind::MoveVolume { volume_name, .. } => volume_name,
        }
    }
}

/// What an operation does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A VM goes to another node: live, or, if it was stopped when the move was accepted, by its home alone. Its volumes may go
    /// along, first: those of which the [`crate::volume::VolumeMove`] names this operation.
    Migrate {
        /// Which VM.
        vm: VmId,
        /// Its name, kept for when it is gone.
        vm_name: String,
        /// From where.
        from: NodeId,
        /// To where.
        to: NodeId,
        /// The generation it was accepted for. A VM that changed hands while its move waited is not moved.
        generation: Generation,
        /// How.
        wishes: MoveWishes,
        /// It was stopped, and stays so.
        cold: bool,
    },
    /// A replica of a volume takes another's place, while the volume is in use or not. How far it is stands with the volume:
    /// [`crate::volume::VolumeMove`].
    MoveVolume {
        /// Which volume.
        volume: VolumeId,
        /// Its name, kept for when it is gone.
        volume_name: String,
        /// The replica that goes.
        from: ReplicaId,
        /// The one that comes.
        to: ReplicaId,
        /// Where the one that goes is, as `NODE:POOL`, kept for when it is gone.
        from_place: String,
        /// Where the one that comes is.
        to_place: String,
        /// How long the old replica is kept equal after the digests were, in milliseconds: until then the move can be undone.
        keep_ms: u64,
        /// Most bytes per second that the copying may use: see [`crate::limits::BANDWIDTH`]. `None`: what the nodes have.
        bandwidth: Option<u64>,
    },
}

impl OperationKind {
    /// Most bytes per second that the copying may use, if somebody has said so.
    #[must_use]
    pub const fn bandwidth(&self) -> Option<u64> {
        match self {
            Self::Migrate { wishes, .. } => wishes.bandwidth,
            Self::MoveVolume { bandwidth, .. } => *bandwidth,
        }
    }
}

/// How a user wants a VM to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveWishes {
    /// Longest blackout, in milliseconds: see [`crate::limits::BLACKOUT_MS`].
    pub blackout_ms_max: u32,
    /// Most bytes per second that the copying may use: see [`crate::limits::BANDWIDTH`]. `None`: what the nodes have.
    pub bandwidth: Option<u64>,
    /// The guest may be slowed down when it writes faster than its memory can be copied.
    pub throttle: bool,
    /// The guest stands still from the first byte to the last: one pass over its memory, and certainly an end.
    pub warm: bool,
}

/// A volume that goes along with its VM: a new replica at the target takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Along {
    /// Which volume.
    pub volume: VolumeId,
    /// The replica that goes once the VM is there.
    pub from: ReplicaId,
    /// The pool at the target in which the new one will be.
    pub pool: PoolId,
    /// The version of the volume's set that the user saw.
    pub version: u64,
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
    /// A volume's move is done, with what it cost.
    VolumeMoved(CopyReport),
    /// A stopped VM has its home at the target now.
    Relocated,
}

/// What copying a replica cost, as the volume's writer reports it with the comparison of the digests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Bytes that were copied, holes not counted; what was written meanwhile is in it.
    pub copied_bytes: u64,
    /// From begin to the moment when the new replica was a member of the in-sync set, in milliseconds.
    pub copy_ms: u64,
    /// What the comparison took, in milliseconds.
    pub compare_ms: u64,
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
    /// What the pause was made of.
    pub parts: PauseParts,
    /// How much of its speed the guest was deprived of at most, in percent; 0: none.
    pub throttle_percent: u8,
    /// How long no frame of the guest left either node's gate: from the pause at the source to its first frame at the
    /// target, in milliseconds. `None`: it has not sent any yet.
    pub silence_ms: Option<u32>,
}

/// What a pause was made of, in microseconds. The parts overlap: the device state is saved while the last pages travel, and
/// loaded while the switchover is committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseParts {
    /// Until the guest stood still, all its frames had left and the gate was closed.
    pub stop_us: u32,
    /// Finding and sending the last pages.
    pub pages_us: u32,
    /// Saving the device state.
    pub save_us: u32,
    /// From its proposal to knowing that the switchover was committed.
    pub commit_us: u32,
    /// Loading the device state.
    pub load_us: u32,
    /// From loaded and committed to the guest running.
    pub resume_us: u32,
}
