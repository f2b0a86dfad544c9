//! Moving a VM: asking for it, and asking beforehand what it would take.

use serde::{Deserialize, Serialize};

/// Longest blackout wished for unless the user says otherwise, in milliseconds.
pub const BLACKOUT_MS_DEFAULT: u32 = 300;

/// Move a VM.
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
}

/// Why a node cannot take a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What it is about, in a word: `cpu`, `qemu`, `machine`, `memory`, `network`, `mtu`, `files`, `tracking`, `peer`, `phase`.
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
