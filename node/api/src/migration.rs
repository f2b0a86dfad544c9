//! Moving a VM: asking for it, and asking beforehand what it would take.

use serde::{Deserialize, Serialize};

/// Longest blackout wished for unless the user says otherwise, in milliseconds.
pub const BLACKOUT_MS_DEFAULT: u32 = 300;

/// What becomes of a VM's volumes when it moves. A replica of each is made at the target before the VM goes there, or is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// A volume that is in sync at the target stays as it is. Of any other a replica goes there: the source's, if it has one.
    #[default]
    Auto,
    /// The same, and the move is refused if a replica of it would stay at the source.
    With,
    /// Nothing is copied: refused unless all of its volumes are in sync at the target.
    ComputeOnly,
    /// Nothing is copied: what is not at the target is used from where it is.
    FromAfar,
}

/// Move a VM: live, if it runs; its home, if it is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateVm {
    /// To which node.
    pub to: String,
    /// Longest blackout wished for, in milliseconds.
    #[serde(default = "default_blackout_ms")]
    pub blackout_ms_max: u32,
    /// Most bytes per second that copying may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// The guest may be slowed down if it writes faster than its memory can be copied.
    #[serde(default)]
    pub allow_throttle: bool,
    /// The guest stands still from the first byte to the last: longer, and certainly to an end.
    #[serde(default)]
    pub warm: bool,
    /// What becomes of its volumes.
    #[serde(default)]
    pub storage: Storage,
    /// The pool of the target for volumes that go there; without one, the pool that is called as the one they come from, or the
    /// only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// Could a VM be moved?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preflight {
    /// To which node; without one, all are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Longest blackout wished for, in milliseconds.
    #[serde(default = "default_blackout_ms")]
    pub blackout_ms_max: u32,
    /// Most bytes per second that copying may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// The guest may be slowed down.
    #[serde(default)]
    pub allow_throttle: bool,
    /// The guest stands still from the first byte to the last: longer, and certainly to an end.
    #[serde(default)]
    pub warm: bool,
    /// What becomes of its volumes.
    #[serde(default)]
    pub storage: Storage,
    /// The pool of the target for volumes that go there; without one, the pool that is called as the one they come from, or the
    /// only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

fn default_blackout_ms() -> u32 {
    BLACKOUT_MS_DEFAULT
}

/// Whether a VM could move, and what it would cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightView {
    /// Which VM.
    pub vm: String,
    /// Where it runs.
    pub from: Option<String>,
    /// The node that was asked about, or all others, by name.
    pub targets: Vec<TargetView>,
}

/// Whether a VM could move to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetView {
    /// The node.
    pub node: String,
    /// Nothing stands in the way.
    pub fits: bool,
    /// All that does.
    pub obstacles: Vec<Obstacle>,
    /// What it would cost; `null` when the node was not asked about by name, or no sample could be taken.
    pub forecast: Option<ForecastView>,
    /// Why no sample could be taken.
    pub no_forecast: Option<String>,
    /// What becomes of its volumes.
    #[serde(default)]
    pub disks: Vec<DiskMoveView>,
}

/// What becomes of a volume when its VM moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMoveView {
    /// Which.
    pub volume: String,
    /// The replica that goes, as `NODE:POOL`; `null`: nothing is copied.
    pub from: Option<String>,
    /// Where it is at the target, or will be; `null`: it is used from elsewhere.
    pub to: Option<String>,
    /// What is to be copied, in bytes, holes not counted; `null`: nothing, or nobody could tell.
    pub copy_bytes: Option<u64>,
}

/// Why a node cannot take a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What it is about, in a word: `cpu`, `qemu`, `machine`, `memory`, `network`, `mtu`, `files`, `tracking`, `peer`,
    /// `phase`, `storage`.
    pub about: String,
    /// What stands in the way, a sentence.
    pub what: String,
}

impl Obstacle {
    /// One.
    #[must_use]
    pub fn new(about: &str, what: impl Into<String>) -> Self {
        Self { about: about.into(), what: what.into() }
    }
}

/// What a move would cost, from a sample of half a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecastView {
    /// It will come to an end within the blackout wished for.
    pub converges: bool,
    /// Why not.
    pub why_not: Option<String>,
    /// Passes over memory, the last one (paused) included.
    pub rounds: u32,
    /// From begin to end, in milliseconds.
    pub total_ms: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// The pause, in milliseconds.
    pub blackout_ms: u64,
    /// By how many percent the guest would be slowed down.
    pub throttle_percent: u8,
    /// Guest memory in use, in bytes.
    pub memory_bytes: u64,
    /// How fast the guest writes, in bytes per second of different pages.
    pub dirty_bytes_per_s: u64,
    /// How fast its memory can be copied, in bytes per second.
    pub copy_bytes_per_s: u64,
}
