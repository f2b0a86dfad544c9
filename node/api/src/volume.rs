//! Volumes: virtual disks, their replicas, and what can be asked of them.

use serde::{Deserialize, Serialize};

/// How a volume is, as far as its replicas go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeHealth {
    /// Its replicas are still being made: nobody can use it yet.
    Making,
    /// All its replicas are in sync and can be reached.
    Ready,
    /// It can be used, with fewer replicas than it should have.
    Degraded,
    /// No replica in sync can be reached.
    Failed,
    /// A newer daemon's word.
    #[serde(other)]
    Unknown,
}

/// How a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaState {
    /// Its node has yet to make it.
    Making,
    /// It holds every acknowledged write.
    Insync,
    /// It lacks some, and will be given them.
    Behind,
    /// Its node cannot use it.
    Failed,
    /// Its node does not answer, or the volume's user cannot reach it.
    Unreachable,
    /// A newer daemon's word.
    #[serde(other)]
    Unknown,
}

/// One copy of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Its number, never reused.
    pub id: u64,
    /// Its pool, as `NODE:POOL`.
    pub place: String,
    /// The pool's node.
    pub node: String,
    /// How it is.
    pub state: ReplicaState,
    /// It is in the in-sync set that the cluster agreed on.
    pub in_sync: bool,
    /// Its content counts when everything was off at once.
    pub authority: bool,
    /// Bytes that it lacks, as who uses the volume knows; `null`: nobody does.
    pub lacks_bytes: Option<u64>,
    /// What is wrong with it, or was last.
    pub why: Option<String>,
}

/// A replica on its way to another place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMoveView {
    /// The operation.
    pub operation: String,
    /// Where the replica goes away from.
    pub from: String,
    /// Where to.
    pub to: String,
    /// `copying`, `comparing`, or `kept`: both are whole and the old one is kept for a while.
    pub phase: String,
    /// How long the old one is kept after both were found equal, in milliseconds.
    pub keep_ms: u64,
}

/// Who has the right to write to a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterView {
    /// The node.
    pub node: String,
    /// What it does with it: `running VM web`, or `importing it`.
    pub doing: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Its number, never reused.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// In bytes.
    pub size_bytes: u64,
    /// How it is.
    pub health: VolumeHealth,
    /// An import into it was begun and has not ended: what is on it is half of something, and no VM gets it.
    #[serde(default)]
    pub incomplete: bool,
    /// The VM that has it.
    pub vm: Option<String>,
    /// It has it for the variables of its firmware, and its guest sees no disk.
    #[serde(default)]
    pub firmware: bool,
    /// Who may write to it now.
    pub writer: Option<WriterView>,
    /// The fencing number of the right to write.
    pub generation: u64,
    /// Of its replicas and its in-sync set: rises with each change of them.
    pub version: u64,
    /// Its copies, those that are not in sync included.
    pub replicas: Vec<ReplicaView>,
    /// A move under way.
    #[serde(rename = "move")]
    pub moving: Option<VolumeMoveView>,
    /// Requests of the guest's without an answer; `null`: nobody uses it, or its node was not asked.
    pub open_requests: Option<u64>,
    /// Why the guest's last request failed, until one succeeds.
    pub trouble: Option<String>,
    /// What its replicas were found to hold when they were compared last; `null`: no node that answers knows.
    #[serde(default)]
    pub compared: Option<ComparedView>,
    /// When it was created.
    pub created: u64,
}

/// The last comparison of a volume's replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedView {
    /// When it ended, or found something.
    pub at: u64,
    /// `verify`, as somebody asked, or `scrub`, by itself.
    pub by: String,
    /// All was compared; otherwise it goes on, and something was found already.
    pub whole: bool,
    /// Bytes that could not be compared.
    pub left_out_bytes: u64,
    /// Replicas that differ from the one whose content counts.
    pub differs: Vec<DifferingReplica>,
}

/// A replica that was found to differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingReplica {
    /// Its pool, as `NODE:POOL`.
    pub place: String,
    /// Bytes of the pieces in which it does.
    pub bytes: u64,
    /// Where the first of them begins, in bytes.
    pub first: u64,
}

/// A volume to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Unique: 1 to 40 of `a-z 0-9 -`, starting with a letter.
    pub name: String,
    /// In bytes: a multiple of 4096.
    pub size_bytes: u64,
    /// One replica in each of these pools (`NODE:POOL`), one to three.
    pub pools: Vec<String>,
}

/// Let a volume become larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowVolume {
    /// In bytes, more than now.
    pub size_bytes: u64,
}

/// Forget a volume, and all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteVolume {
    /// The generation the user saw; any other means that it was used since, and the request is refused.
    pub generation: u64,
}

/// Give a volume to a stopped VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachVolume {
    /// Which VM.
    pub vm: String,
    /// As its first disk, from which the firmware boots.
    #[serde(default)]
    pub boot: bool,
}

/// A replica of a volume takes another's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveVolume {
    /// The pool it goes to, as `NODE:POOL`.
    pub to: String,
    /// The pool of the replica that goes; may be left out for a volume with one.
    #[serde(default)]
    pub from: Option<String>,
    /// How long the old replica is kept equal after the digests were, in milliseconds: until then the move can be undone.
    #[serde(default)]
    pub keep_ms: u64,
    /// Most bytes per second that the copying, and the comparing after it, may use.
    #[serde(default)]
    pub bandwidth: Option<u64>,
}

/// One more replica of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddReplica {
    /// Where, as `NODE:POOL`.
    pub pool: String,
}

/// A volume as a VM has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    /// Which volume.
    pub volume: String,
    /// In bytes.
    pub size_bytes: u64,
    /// The firmware boots from it.
    pub boot: bool,
}
