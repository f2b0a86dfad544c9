//! What the guest's device asks for, and what replicas are asked in turn.

use alloc::string::String;
use core::ops::Range;

use pollux_wire::id::ReplicaId;

use crate::grains::{Extents, Grains};

/// One request of the guest's device. Never used twice in the life of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One thing asked of one replica. Never used twice in the life of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its number.
    pub id: RequestId,
    /// What.
    pub kind: Kind,
    /// Where, in bytes; empty for a flush.
    pub range: Range<u64>,
}

/// Of what a range holds, by a function of which nobody knows two inputs with the same result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To know what is there.
    Read,
    /// To change what is there. `durable`: to be on stable storage before the answer.
    Change {
        /// How.
        change: Change,
        /// NBD's FUA.
        durable: bool,
    },
    /// Everything that was answered to be on stable storage.
    Flush,
}

/// How a range is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Data, which the shell has.
    Write,
    /// Zeros, which may become a hole or must not.
    Zero {
        /// They may.
        punch: bool,
    },
    /// Its content is not wanted any more.
    Trim,
}

/// What a replica is asked to do. It does what it is asked in one session in any order; whatever must come after something
/// else is asked after that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Read a range: for a request, or to be copied.
    Read,
    /// Change a range, as the request says; extents that are not active there are marked first.
    Change {
        /// How.
        change: Change,
        /// Stable before it has ended.
        durable: bool,
    },
    /// Write what another part has read.
    Copy {
        /// Which part.
        read: Tag,
    },
    /// Put all that has ended on stable storage.
    Flush,
    /// Note on stable storage that a replica is about to leave the set: what is active lacks there, and whatever is written from
    /// here on.
    Miss(ReplicaId),
    /// A replica outside of the set does not lack this range any more, until something is written to it again.
    Regained(ReplicaId),
    /// A replica is in the set again, or none of the volume's any more: the note of it is not needed.
    Returned(ReplicaId),
    /// To that replica itself: only these extents may still differ from others.
    Welcome(Extents),
    /// These extents have settled.
    Settled(Extents),
    /// Note on stable storage that a replica outside of the set lacks this, and what is active ([`crate::Marks::note`]).
    Lacks(ReplicaId, Grains),
    /// Tell a digest of what a range holds, as it reads: a hole is as good as zeros. Ends with [`crate::Event::Digest`].
    Digest,
}

/// What the guest's device is told.
pub type Answer = Result<(), Failure>;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The replica's pool is full.
    #[error("the pool is full")]
    NoSpace,
    /// Its storage, or the way to it, says no.
    #[error("{0}")]
    Io(String),
    /// It did not answer in time.
    #[error("no answer for {0} ms")]
    Silent(u64),
    /// Another generation, or another session, has replaced this one.
    #[error("the right to write went elsewhere")]
    Fenced,
}

impl Kind {
    /// It changes what is there.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Change { .. })
    }
}
