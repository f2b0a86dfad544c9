//! How large and how many. Both sides of a connection check each of these, so that neither trusts the other's restraint
//! (DESIGN, rule 20).

use core::time::Duration;

/// One KiB in bytes.
pub const KIB: usize = 1 << 10;
/// One MiB in bytes.
pub const MIB: usize = 1 << 20;

/// A small message: one proposal, one request of an operator. Bytes.
pub const SMALL_BYTES_MAX: usize = 64 * KIB;
/// A control message between daemons: an answer that lists many objects. Bytes.
pub const CONTROL_BYTES_MAX: usize = MIB;
/// A consensus message: a batch of log entries, or one chunk of a snapshot. Bytes. Large enough for
/// [`ENTRIES_PER_APPEND_MAX`] entries of ordinary size, small enough to pass within a heartbeat on a gigabit link.
pub const CONSENSUS_BYTES_MAX: usize = 4 * MIB;
/// The whole cluster state as one encoded value, on disk or put together from chunks; never one message. Bytes.
pub const STATE_BYTES_MAX: usize = 64 * MIB;

/// Log entries in one append.
pub const ENTRIES_PER_APPEND_MAX: usize = 64;
/// Bytes of a snapshot in one message.
pub const SNAPSHOT_CHUNK_BYTES: usize = MIB;
/// The text of a fault as it crosses the wire. Bytes; longer texts are cut at a character's edge.
pub const FAULT_TEXT_BYTES_MAX: usize = 4 * KIB;
/// The header a session starts with. Bytes.
pub const SESSION_HEADER_BYTES_MAX: usize = 64 * KIB;
/// A join request or its answer. Bytes.
pub const JOIN_BYTES_MAX: usize = 64 * KIB;
/// The name of a node. Bytes; one DNS label.
pub const NODE_NAME_BYTES_MAX: usize = 63;
/// Addresses in one join token.
pub const TOKEN_ADDRESSES_MAX: usize = 16;

/// Calls that one connection may have running at the receiver.
pub const CALLS_PER_CONNECTION_MAX: usize = 128;
/// Sessions that one connection may have open at the receiver.
pub const SESSIONS_PER_CONNECTION_MAX: usize = 128;
/// The longest time a caller may give one call. A receiver gives up serving a call when its caller has.
pub const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// One page of guest memory. Bytes.
pub const PAGE_BYTES: usize = 4096;
/// Pages with content in one page frame: 1 MiB of guest memory.
pub const PAGES_PER_FRAME_MAX: usize = 256;
/// Runs in one page frame. A run is a stretch of pages that are all zero or all sent; the worst frame alternates.
pub const RUNS_PER_FRAME_MAX: usize = 512;

/// The classes of encoded values, each with its own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// [`SMALL_BYTES_MAX`].
    Small,
    /// [`CONTROL_BYTES_MAX`].
    Control,
    /// [`CONSENSUS_BYTES_MAX`].
    Consensus,
    /// [`STATE_BYTES_MAX`].
    State,
}

impl Limit {
    /// The limit in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => SMALL_BYTES_MAX,
            Self::Control => CONTROL_BYTES_MAX,
            Self::Consensus => CONSENSUS_BYTES_MAX,
            Self::State => STATE_BYTES_MAX,
        }
    }
}
