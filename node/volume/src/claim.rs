//! Who wants a replica, where that is, and what is handed over with it.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use pollux_disk::{EngineKind, Pool};
use pollux_mirror::Marks;
use pollux_wire::id::{Generation, NodeId, Owner, ReplicaId, VolumeId};
use serde::{Deserialize, Serialize};

/// Numbers the sessions that one life of a daemon asks for: of two with the same right, the later one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// A wish for a replica, and the right to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which replica.
    pub replica: ReplicaId,
    /// The volume's generation: the fencing number of the right to write it.
    pub generation: Generation,
    /// Whose right it is.
    pub owner: Owner,
    /// Which of the owner's sessions.
    pub session: SessionId,
    /// The volume's size, in bytes.
    pub size: u64,
}

impl Claim {
    /// A claim by a session that is newer than all of this process before.
    #[must_use]
    pub fn new(volume: VolumeId, replica: ReplicaId, generation: Generation, owner: Owner, size: u64) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let session = SessionId(LAST.fetch_add(1, Ordering::Relaxed) + 1);
        Self { volume, replica, generation, owner, session, size }
    }
}

/// Where a replica is on this node.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its pool.
    pub pool: Pool,
    /// Its name there.
    pub name: String,
    /// How its data gets into the file.
    pub engine: EngineKind,
}

/// A session with a replica has begun.
#[derive(Debug)]
pub struct Opened<S> {
    /// The replica.
    pub side: S,
    /// What its log says.
    pub report: Marks,
    /// The life of its host, by the kernel's name for it. When it is another one than last time, what the replica had taken and not
    /// put on stable storage is lost.
    pub boot: String,
}

/// Asked, before a session of another node begins, whether it may: the daemon, which knows what the log says.
#[async_trait]
pub trait Door: Send + Sync {
    /// Where the replica is; or why this node, which claims it, may not have it. `claim.owner.node` is `from`.
    async fn admit(&self, from: NodeId, claim: &Claim) -> Result<Place, String>;
}
