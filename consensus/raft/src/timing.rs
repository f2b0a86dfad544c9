//! Times and sizes of the consensus layer.

use std::time::Duration;

use pollux_state::{detector::DOWN_AFTER_MS, limits::LOST_AFTER_MS};

/// How fast leaders are missed and replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader shows itself; also how long it waits for the answer to one message.
    pub heartbeat: Duration,
    /// A node waits between this ...
    pub election_min: Duration,
    /// ... and this before it stands for election. Also the leader's lease: for so long after its last sign of life nobody
    /// votes for another.
    pub election_max: Duration,
    /// A voter that was silent this long loses its vote to a node that is well. Longer than a daemon needs to start again;
    /// also the shortest pause between two such replacements.
    pub voter_patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self::USUAL
    }
}

// A leader that dies is replaced within its lease and one more election timeout. Who spoke to it until then has not been
// silent for long enough to count as down with the next one.
const _: () = assert!(DOWN_AFTER_MS as u128 > 2 * Timing::USUAL.election_max.as_millis());
// And no host loses its guests by a leader's death, however its heartbeats were missed meanwhile.
const _: () = assert!(LOST_AFTER_MS as u128 > DOWN_AFTER_MS as u128 + 2 * Timing::USUAL.election_max.as_millis());

impl Timing {
    /// As it is on real hosts.
    pub const USUAL: Self = Self {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        voter_patience: Duration::from_secs(30),
    };

    /// How long a leader counts as heard after its last sign of life.
    pub(crate) fn lease(&self) -> Duration {
        self.election_max
    }
}

/// When the log is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A snapshot is taken after this many entries. A node further behind gets the snapshot instead of the entries.
    pub snapshot_after: u64,
    /// Entries kept behind a snapshot, for nodes that are a little late.
    pub entries_kept: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { snapshot_after: 5_000, entries_kept: 1_000 }
    }
}

/// How long one piece of a snapshot may take, installing included.
pub(crate) const SNAPSHOT_PIECE_TIMEOUT: Duration = Duration::from_secs(5);
/// Entries removed from the log at once, at least.
pub(crate) const PURGE_BATCH: u64 = 64;
