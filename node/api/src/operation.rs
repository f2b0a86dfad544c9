//! Long-running changes: how far they are, and what they cost.

use serde::{Deserialize, Serialize};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// A VM goes to another node.
    Migrate,
    /// A replica of a volume takes another's place.
    MoveVolume,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationResult {
    /// Done.
    Succeeded,
    /// Not done; everything is as it was.
    Failed,
    /// Not done because a user said so; everything is as it was.
    Cancelled,
}

/// A long-running change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationView {
    /// 32 hexadecimal digits; any unambiguous beginning names it.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// To which VM; of a volume's move, to which volume.
    pub vm: String,
    /// From which node; of a volume's move, from which `NODE:POOL`.
    pub from: String,
    /// To which node, or `NODE:POOL`.
    pub to: String,
    /// Longest blackout wished for, in milliseconds; 0: there is none.
    pub blackout_ms_max: u32,
    /// Most bytes per second that copying may use, if the user gave a limit.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// The guest may be slowed down.
    #[serde(default)]
    pub allow_throttle: bool,
    /// How far it is, as the log says, whoever else can be asked: `mirroring` until its volumes are at the target, `queued` until
    /// its nodes have room for one more move, `moving` before the switchover was committed, `arriving` after it, `ended`. A volume's move: `copying`, `comparing`, `kept`
    /// (it can still be undone), `ended`.
    #[serde(default)]
    pub phase: String,
    /// A user asked for it to end early.
    pub cancel: bool,
    /// When it was accepted.
    pub started: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// How it ended; `null` while it runs.
    pub result: Option<OperationResult>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What it cost.
    pub report: Option<ReportView>,
    /// How far it is, as the source says; `null` when the source cannot be asked or has not begun.
    pub progress: Option<ProgressView>,
    /// What it cost: of a volume's move that is done.
    #[serde(default)]
    pub copy: Option<CopyView>,
}

/// What the move of a volume's replica cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyView {
    /// Bytes that were copied, holes not counted; what was written meanwhile is in it.
    pub copied_bytes: u64,
    /// From begin to the moment when the new replica held everything, in milliseconds.
    pub copy_ms: u64,
    /// What the comparison after that took, in milliseconds.
    pub compare_ms: u64,
}

/// How far a move is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressView {
    /// What it is doing: one word of the ladder `mirroring`, `comparing`, `preparing`, `copying`, `switching`, `arriving`. In the
    /// first two it is about volumes, later about memory.
    pub phase: String,
    /// Which pass over memory, from 1.
    pub round: u32,
    /// Guest memory sent so far in bytes, zero pages counted in full.
    pub sent_bytes: u64,
    /// The same as it went over the wire.
    pub wire_bytes: u64,
    /// Pages that are not at the target yet.
    pub pages_left: u64,
    /// How fast the guest dirties pages, per second.
    pub dirty_pages_per_s: u64,
    /// How fast memory is sent, in MiB per second.
    pub mib_per_s: f64,
    /// The blackout if it switched over now, in milliseconds.
    pub predicted_blackout_ms: Option<u64>,
    /// Seconds until it is done at this rate; `null`: cannot say.
    pub eta_s: Option<u64>,
    /// By how many percent the guest is slowed down just now.
    #[serde(default)]
    pub throttle_percent: u8,
    /// When the source said so.
    pub updated: u64,
}

/// What a move cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportView {
    /// Passes over memory, the last one (paused) included.
    pub rounds: u32,
    /// Payload bytes on the wire.
    pub wire_bytes: u64,
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Pages of which only a bit was sent.
    pub zero_pages: u64,
    /// From the pause at the source to the continue at the target, in milliseconds.
    pub pause_ms: u32,
    /// From begin to end, in milliseconds.
    pub total_ms: u64,
    /// What the pause was made of.
    #[serde(default)]
    pub parts: PauseView,
    /// How much of its speed the guest was deprived of at most, in percent.
    #[serde(default)]
    pub throttle_percent: u8,
    /// How long no frame of the guest left either node, from the pause at the source to its first frame at the target, in
    /// milliseconds: what the outside saw. `null`: it has not sent any yet.
    #[serde(default)]
    pub silence_ms: Option<u32>,
}

/// What a pause was made of, in microseconds. The parts overlap: saving with sending the last pages, loading with committing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseView {
    /// Until the guest stood still and all its frames had left.
    pub stop_us: u32,
    /// Finding and sending the last pages.
    pub pages_us: u32,
    /// Saving the device state.
    pub save_us: u32,
    /// Committing the switchover.
    pub commit_us: u32,
    /// Loading the device state.
    pub load_us: u32,
    /// From loaded and committed to the guest running.
    pub resume_us: u32,
}
