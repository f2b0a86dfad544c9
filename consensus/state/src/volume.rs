//! Pools, volumes and their replicas: which copies count, and who may write to them (DESIGN, rules 1, 4, 12, 14 and 15).
//!
//! A volume has a fencing number of its own (docs/adr/0016). At each of its generations at most one life of one daemon may
//! write to it ([`ClusterState::writer`]): the owner of the VM that uses it, or, while that is stopped or there is none, a node
//! that works on it (a [`Hold`]). What that one may say about the in-sync set is compared with the generation and the set's
//! version.
//!
//! The replica that takes another's place (an operation, [`VolumeMove`]):
//!
//! ```text
//!   BeginVolumeMove        JoinSet            Compared{equal}          EndVolumeMove
//!  ----------------> copying ----> comparing ----------------> kept ------------------> the old replica is gone
//!                     ^   |           |  |                      | |
//!                     |   |  LeaveSet |  | Compared{different}  | | LeaveSet (of the new one)
//!                     '---|-----------'--|----------------------|-'
//!                         '---- Cancel --'------- Cancel -------'-------------------> the new replica is gone
//! ```

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
};

use serde::{Deserialize, Serialize};

use crate::{
    ClusterState, UnixMs,
    id::{Generation, NodeId, OpId, Owner, PoolId, ReplicaId, VmId, VolumeId},
    operation::CopyReport,
};

/// A directory on a node, in which replicas are. People write it `NODE:NAME`. How large it is and what is free changes without
/// anybody's decision: its node is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Minted when it was added, never reused.
    pub id: PoolId,
    /// Where.
    pub node: NodeId,
    /// Unique on its node.
    pub name: String,
    /// Absolute path there.
    pub path: String,
    /// When it was added.
    pub since: UnixMs,
}

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Minted at creation, never reused.
    pub id: VolumeId,
    /// Unique in the cluster.
    pub name: String,
    /// In bytes: see [`crate::limits::VOLUME_BYTES`]. Grows only.
    pub size: u64,
    /// The fencing number of the right to write: rises by one whenever `user`, `holder` or the owner of the VM that uses it changes.
    pub generation: Generation,
    /// The VM that uses it.
    pub user: Option<VmId>,
    /// Who works on it while no VM runs with it.
    pub holder: Option<Hold>,
    /// Its copies by id, those outside of the in-sync set included.
    pub replicas: BTreeMap<ReplicaId, Replica>,
    /// The in-sync set: who holds every acknowledged write. Never empty.
    pub set: BTreeSet<ReplicaId>,
    /// Of the set and the replicas: rises with each entry about them.
    pub version: u64,
    /// The replica of the set whose content counts when everything was off at once.
    pub authority: ReplicaId,
    /// When it was created.
    pub created: UnixMs,
    /// The move under way, if there is one.
    pub moving: Option<VolumeMove>,
    /// An import into it was begun and never finished: what is on it is half of something.
    pub incomplete: bool,
}

/// One copy of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Where.
    pub pool: PoolId,
    /// Its node has made it. One that was made and is not found is lost: it is never made a second time under its number, or an
    /// empty copy would pass for one that holds what was acknowledged.
    pub made: bool,
    /// Why it cannot be used, as its node told last.
    pub failed: Option<String>,
}

/// A node works on a volume while no VM runs with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who.
    pub owner: Owner,
    /// What for.
    pub purpose: Purpose,
    /// Since when.
    pub since: UnixMs,
}

/// What a node holds a volume for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// It is filled from a file: until that is done it is nobody's disk.
    Import,
    /// It is read into a file.
    Export,
    /// A replica is brought up to date.
    Copy,
    /// Replicas are compared.
    Verify,
}

impl Purpose {
    /// It can be interrupted and gone on with later, so it stands in nobody's way.
    #[must_use]
    pub fn yields(self) -> bool {
        match self {
            Self::Copy | Self::Verify => true,
            Self::Import | Self::Export => false,
        }
    }

    /// For sentences: `n1 is importing it`.
    #[must_use]
    pub fn doing(self) -> &'static str {
        match self {
            Self::Import => "importing it",
            Self::Export => "exporting it",
            Self::Copy => "bringing a replica of it up to date",
            Self::Verify => "verifying it",
        }
    }
}

/// A replica takes another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMove {
    /// The operation.
    pub op: OpId,
    /// Who goes.
    pub from: ReplicaId,
    /// Who comes. Created by this operation, so removed by it if it does not succeed.
    pub to: ReplicaId,
    /// The digests were equal; `to` has been in the set ever since.
    pub kept: Option<Kept>,
}

/// Both replicas of a move are whole, and nothing but the user's wish keeps the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Since when.
    pub since: UnixMs,
    /// What it cost.
    pub report: CopyReport,
}

/// How far a volume's move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The new replica lacks something.
    Copying,
    /// It is in the set; its digest is compared with another's.
    Comparing,
    /// They were equal. The old one is kept, for the user to think again.
    Kept {
        /// Since when.
        since: UnixMs,
    },
}

impl Replica {
    /// Its node has made it and knows nothing against it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.made && self.failed.is_none()
    }
}

impl Volume {
    /// How far its move is, if it moves.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        let moving = self.moving.as_ref()?;
        Some(match moving.kept {
            Some(kept) => Stage::Kept { since: kept.since },
            None if self.set.contains(&moving.to) => Stage::Comparing,
            None => Stage::Copying,
        })
    }

    /// Those of its set that nobody has made yet. Nobody writes to it before that.
    pub fn unmade(&self) -> impl Iterator<Item = (ReplicaId, &Replica)> {
        let of_set = self.replicas.iter().filter(|(id, _)| self.set.contains(id));
        of_set.filter(|(_, replica)| !replica.made).map(|(id, replica)| (*id, replica))
    }

    /// A replica of it is in one of these pools.
    pub(crate) fn is_in(&self, replica: ReplicaId, pools: &BTreeSet<PoolId>) -> bool {
        self.replicas.get(&replica).is_some_and(|replica| pools.contains(&replica.pool))
    }

    /// Whether it can do without those that are `gone`: somebody is left in the set, and somebody sound if one of them was.
    pub(crate) fn can_spare(&self, gone: impl Fn(ReplicaId) -> bool) -> bool {
        let sound = |id: &&ReplicaId| self.replicas.get(*id).is_some_and(Replica::is_sound);
        let (lost, left): (BTreeSet<&ReplicaId>, BTreeSet<&ReplicaId>) = self.set.iter().partition(|id| gone(**id));
        !left.is_empty() && (left.iter().any(sound) || !lost.iter().any(sound))
    }

    /// The only place that changes the set. Whoever compared the version before this has compared it in vain.
    pub(crate) fn change_set(&mut self, change: impl FnOnce(&mut BTreeSet<ReplicaId>)) -> u64 {
        change(&mut self.set);
        self.version = self.version.saturating_add(1);
        if let Some(first) = self.set.first().filter(|_| !self.set.contains(&self.authority)) {
            self.authority = *first;
        }
        if let Some(moving) = self.moving.as_mut().filter(|moving| !self.set.contains(&moving.to)) {
            moving.kept = None;
        }
        self.version
    }

    /// Forgets those that are `gone`, in the set and outside. Their nodes delete what the state does not know any more.
    pub(crate) fn forget(&mut self, gone: impl Fn(ReplicaId) -> bool) -> u64 {
        self.replicas.retain(|id, _| !gone(*id));
        self.change_set(|set| set.retain(|id| !gone(*id)))
    }

    /// Hands the right to write on. The only place that raises the generation; a hold ends with it.
    pub(crate) fn pass_on(&mut self) -> Generation {
        self.generation = self.generation.next();
        self.holder = None;
        self.generation
    }
}

impl ClusterState {
    /// Who may write to `volume` and say who is in its set: the owner of the VM that uses it, or else who holds it. It may be a
    /// life that is over ([`ClusterState::lives`]).
    #[must_use]
    pub fn writer(&self, volume: &Volume) -> Option<Owner> {
        let user = volume.user.and_then(|vm| self.vms.get(&vm));
        user.and_then(|vm| vm.phase.owner()).or(volume.holder.map(|hold| hold.owner))
    }

    /// Why nobody can write to a volume yet, for people; `None`: its set is made (or there is no such volume).
    #[must_use]
    pub fn why_not_ready(&self, volume: VolumeId) -> Option<String> {
        let volume = self.volumes.get(&volume)?;
        let (_, replica) = volume.unmade().next()?;
        let (name, place) = (&volume.name, self.place_of(replica.pool));
        Some(match &replica.failed {
            Some(reason) => alloc::format!(
                "the replica of its volume {name} in {place} could not be made: {reason}; it will be once that is mended, or \
                 remove that replica: `pollux volume show {name}`"
            ),
            None => alloc::format!(
                "the replica of its volume {name} in {place} is not made yet; `pollux volume show {name}` tells how far it is"
            ),
        })
    }

    /// Volumes that move by `op`, its own or that of a VM with which they go.
    pub fn moved_by(&self, op: OpId) -> impl Iterator<Item = &Volume> {
        self.volumes.values().filter(move |it| it.moving.is_some_and(|moving| moving.op == op))
    }

    /// A pool as people write it: `NODE:POOL`.
    #[must_use]
    pub fn place_of(&self, pool: PoolId) -> String {
        let Some(pool) = self.pools.get(&pool) else { return alloc::format!("{pool}") };
        let node = self.name_of(pool.node).map_or_else(|| alloc::format!("{}", pool.node), String::from);
        alloc::format!("{node}:{}", pool.name)
    }

    /// Where a replica of `volume` is, as people write it.
    #[must_use]
    pub fn place_of_replica(&self, volume: &Volume, replica: ReplicaId) -> String {
        volume.replicas.get(&replica).map_or_else(|| alloc::format!("{replica}"), |it| self.place_of(it.pool))
    }

    /// On which node a replica of `volume` is.
    #[must_use]
    pub fn node_of_replica(&self, volume: &Volume, replica: ReplicaId) -> Option<NodeId> {
        let pool = volume.replicas.get(&replica)?.pool;
        self.pools.get(&pool).map(|pool| pool.node)
    }
}
