//! Comparing the replicas of a volume.

use serde::{Deserialize, Serialize};

use crate::ApiError;

/// Compare what the replicas of a volume hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyVolume {
    /// Copy what differs from the replica whose content counts, and compare again.
    #[serde(default)]
    pub repair: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerificationResult {
    /// All that was compared hold the same everywhere; after a repair, by now.
    Equal,
    /// Some hold something else than the one whose content counts.
    Different,
    /// No difference was found, but not everything could be compared.
    Incomplete,
    /// A newer daemon's word.
    #[serde(other)]
    Unknown,
}

/// Bytes `start` to `end`, without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// The first.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
}

/// A replica that was compared, or was to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedReplica {
    /// Its number.
    pub id: u64,
    /// Its pool, as `NODE:POOL`.
    pub place: String,
    /// Its content counts: the others are compared with it, and repaired from it.
    pub authority: bool,
    /// It takes part; the others are not in sync, or were not all the time.
    pub compared: bool,
    /// Bytes of the pieces in which it differs; after a repair, still.
    pub differs_bytes: u64,
    /// Bytes of the pieces in which it differed, and was repaired.
    pub repaired_bytes: u64,
    /// Those pieces: the first few.
    pub places: Vec<ByteRange>,
}

/// A comparison: on one node, for as long as its daemon lives. It goes on whether or not somebody watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationView {
    /// Its identity, 32 hexadecimal digits.
    pub id: String,
    /// The node that does it.
    pub node: String,
    /// The volume.
    pub volume: String,
    /// What differs is repaired.
    pub repair: bool,
    /// `preparing`, `comparing`, `comparing-again` (after a repair), `ended`.
    pub phase: String,
    /// How far it is in this phase, in bytes of the volume.
    pub compared_bytes: u64,
    /// The volume's size in bytes.
    pub total_bytes: u64,
    /// Bytes that could not be compared, because the guest writes them all the time or no replica could read them.
    pub left_out_bytes: u64,
    /// Each of its replicas.
    pub replicas: Vec<VerifiedReplica>,
    /// What came of it; `null` while it goes on, and if it failed.
    pub result: Option<VerificationResult>,
    /// When it began.
    pub started: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// Why it came to nothing; `null` while it goes on, and when it is done.
    pub error: Option<ApiError>,
}
