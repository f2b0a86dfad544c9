//! What happened lately, for people: a bounded list with a number on each, so that a reader can go on where it was.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::{
    UnixMs,
    id::{NodeId, OpId, VmId, VolumeId},
};

/// One thing that happened. The last [`crate::limits::EVENTS_MAX`] are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one with each event, without gaps.
    pub number: u64,
    /// When, by the clock of whoever proposed it.
    pub at: UnixMs,
    /// About which node.
    pub node: Option<NodeId>,
    /// About which VM.
    pub vm: Option<VmId>,
    /// Part of which operation.
    pub op: Option<OpId>,
    /// What happened, one sentence for people.
    pub text: String,
    /// About which volume.
    pub volume: Option<VolumeId>,
}
