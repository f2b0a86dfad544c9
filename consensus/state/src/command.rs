//! What can be proposed to the log, and what comes of it.

use alloc::{string::String, vec::Vec};
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use crate::refusal::{Refusal, TokenRefusal};

use crate::{
    UnixMs,
    id::{ClusterId, Generation, Incarnation, NodeId, OpId, PoolId, ReplicaId, VmId, VolumeId},
    node::Facts,
    operation::{Along, CopyReport, MoveReport, MoveWishes},
    vm::{Desired, StopCause, VmSpec},
    volume::Purpose,
};

/// One entry of the log. `id` makes it idempotent: applied twice, it changes the state once and answers the same. That
/// holds for refusals too: whoever wants to ask again after a "no" makes a new proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Chosen at random by the proposer; kept through retries.
    pub id: OpId,
    /// Who proposes. The node that appends it checks this against the certificate it came with.
    pub by: NodeId,
    /// When, by the proposer's clock.
    pub at: UnixMs,
    /// What.
    pub command: Command,
}

/// What can be proposed. Those that change who may run a VM compare its generation; those that change who may write to a volume
/// compare the volume's; those about its replicas the version of its set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first entry of a cluster's log. Outcome: [`Outcome::Joined`] with the first node.
    Found {
        /// The cluster's identity.
        cluster: ClusterId,
        /// The first node's name.
        name: String,
        /// Where it listens.
        address: SocketAddr,
        /// SHA-256 of its public key.
        key: [u8; 32],
    },
    /// Let a node called `node_name` join, once, until `expires`.
    AddToken {
        /// SHA-256 of the token's secret.
        secret_hash: [u8; 32],
        /// The name it is bound to.
        node_name: String,
        /// When it ends.
        expires: UnixMs,
    },
    /// A node shows its token. Outcome: [`Outcome::Joined`].
    Join {
        /// SHA-256 of the secret it showed.
        secret_hash: [u8; 32],
        /// The name it gave.
        name: String,
        /// Where it will listen.
        address: SocketAddr,
        /// SHA-256 of its public key.
        key: [u8; 32],
    },
    /// `by`'s daemon started. Outcome: [`Outcome::Incarnation`]. Every earlier incarnation of `by` is dead from here on.
    StartIncarnation {
        /// The life it follows, as it read. A late proposal of a process that is no more ends no living one.
        after: Incarnation,
        /// Where it listens now.
        address: SocketAddr,
        /// What it found.
        facts: Facts,
    },
    /// A new VM, stopped or to be started, on `home`. Outcome: [`Outcome::Created`].
    CreateVm {
        /// What it is.
        spec: VmSpec,
        /// Where.
        home: NodeId,
        /// Whether to start it.
        desired: Desired,
    },
    /// A user wants the VM running or stopped. `home` moves it (only while it is stopped).
    SetDesired {
        /// Which.
        vm: VmId,
        /// What.
        desired: Desired,
        /// Where to start it, if elsewhere than before.
        home: Option<NodeId>,
    },
    /// Forget a stopped VM.
    DeleteVm {
        /// Which.
        vm: VmId,
    },
    /// `by` starts the VM from nothing: generation + 1. Allowed on its home, when it is wanted running, and it is stopped
    /// or its owner is an earlier incarnation of `by`. A move that was under way has then failed.
    Claim {
        /// Which.
        vm: VmId,
        /// The generation the claimant knows.
        expect: Generation,
        /// The claimant's life; must be the node's current one.
        incarnation: Incarnation,
    },
    /// The owner gives up the right to run: generation + 1. Committed before QEMU is ended, so that a stop is never
    /// mistaken for a death. A guest's power-off also makes it wanted stopped. While the VM arrives its owner is the target:
    /// the move has then failed, and the source's older copy is not used.
    Release {
        /// Which.
        vm: VmId,
        /// The generation the owner knows.
        expect: Generation,
        /// Its life: the owning one, or a later one of the same node (the guest is gone with the earlier).
        incarnation: Incarnation,
        /// Why.
        cause: StopCause,
    },
    /// Move a VM, as soon as the volumes that go `along` are there and its nodes have less than
    /// [`crate::limits::MOVES_PER_NODE_MAX`] moves under way: live, or its home alone if it is stopped. The proposal's id is the
    /// operation's. Outcome: [`Outcome::Accepted`].
    BeginMove {
        /// Which.
        vm: VmId,
        /// The generation the user saw.
        expect: Generation,
        /// Where to.
        to: NodeId,
        /// How.
        wishes: MoveWishes,
        /// Its volumes that go with it. The others stay where they are, and are used from there.
        along: Vec<Along>,
    },
    /// The target has every byte and wants the right to run: generation + 1.
    Switchover {
        /// Which.
        vm: VmId,
        /// The operation it belongs to.
        op: OpId,
        /// The generation the target knows.
        expect: Generation,
        /// Its life.
        incarnation: Incarnation,
    },
    /// The target runs the guest: the move is done. The generation stays.
    Arrived {
        /// Which.
        vm: VmId,
        /// The operation it belongs to.
        op: OpId,
        /// The generation its switchover made.
        expect: Generation,
        /// What it cost.
        report: MoveReport,
    },
    /// The target won but cannot run it: the source may again, generation + 1. Also proposed by a later incarnation of the
    /// target, whose copy died with the earlier.
    GiveBack {
        /// Which.
        vm: VmId,
        /// The operation it belongs to.
        op: OpId,
        /// The generation its switchover made.
        expect: Generation,
        /// What went wrong.
        reason: String,
    },
    /// The move is off; the source keeps the right it never lost. Proposed by source or target.
    AbortMove {
        /// Which.
        vm: VmId,
        /// The operation it belongs to.
        op: OpId,
        /// The generation both know.
        expect: Generation,
        /// What went wrong.
        reason: String,
    },
    /// A named operator says that a target which won and fell silent is dead: the source may run again, generation + 1.
    TakeBack {
        /// Which.
        vm: VmId,
        /// The generation the operator saw.
        expect: Generation,
        /// Who says so.
        operator: String,
    },
    /// A user wants an operation to end early.
    Cancel {
        /// Which.
        op: OpId,
    },
    /// The target of a move that is done saw the first frame of the guest leave: how long nobody outside heard of it.
    HeardAgain {
        /// Which.
        op: OpId,
        /// Milliseconds since the pause at the source.
        silence_ms: u32,
    },
    /// A named operator says that the host of the VM's owner is off and its guest with it: nobody has the right to run it any
    /// more, generation + 1. It is wanted stopped then; where it is started next is for a person to say. The leader takes
    /// it only while it counts that host's daemon dead.
    ReleaseLost {
        /// Which.
        vm: VmId,
        /// The generation the operator saw.
        expect: Generation,
        /// Who says so.
        operator: String,
    },
    /// A node leaves for good: its number, its certificate and its key are refused from here on (DESIGN, rule 19). Refused
    /// while it owns a VM or is an end of a move.
    RemoveNode {
        /// Which.
        node: NodeId,
        /// The life the user saw it in.
        after: Incarnation,
        /// Where the stopped VMs whose home it is have theirs from then on.
        heir: NodeId,
        /// An operator gave its host up: what was to be started there is wanted stopped, and waits for a person. Without
        /// that, such a VM keeps the node.
        lost: bool,
    },
    /// A directory of `by`, which has looked at it, becomes a pool. Outcome: [`Outcome::PoolAdded`].
    AddPool {
        /// Its name, unique on `by`.
        name: String,
        /// Where it is there.
        path: String,
    },
    /// Forget a pool without replicas.
    RemovePool {
        /// Which.
        pool: PoolId,
    },
    /// A new volume, with a replica in each of `pools`; all of them are its in-sync set. Outcome: [`Outcome::VolumeCreated`].
    CreateVolume {
        /// Its name, unique in the cluster.
        name: String,
        /// In bytes.
        size: u64,
        /// One to three, all different. The first one's replica is the authority.
        pools: Vec<PoolId>,
    },
    /// Forget a volume that nobody uses, and all that is in it.
    DeleteVolume {
        /// Which.
        volume: VolumeId,
        /// The generation the user saw: one that was used since then has another.
        expect: Generation,
    },
    /// A volume becomes larger; its nodes see it and let their replicas grow. Only while nobody writes to it.
    GrowVolume {
        /// Which.
        volume: VolumeId,
        /// In bytes, more than now.
        size: u64,
    },
    /// `by` made a replica in a pool of its own, or found what it told failed to be in order again.
    ReplicaMade {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        replica: ReplicaId,
    },
    /// `by` cannot make, or cannot use, a replica in a pool of its own.
    ReplicaFailed {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        replica: ReplicaId,
        /// Why, for people.
        reason: String,
    },
    /// One more replica, outside of the set until its writer has copied everything. Outcome: [`Outcome::ReplicaAdded`].
    AddReplica {
        /// Of which volume.
        volume: VolumeId,
        /// Where.
        pool: PoolId,
        /// The version the user saw.
        version: u64,
    },
    /// Forget a replica, and all that is in it. Never the last of the set.
    RemoveReplica {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        replica: ReplicaId,
        /// The version the user saw.
        version: u64,
    },
    /// The writer leaves a replica behind: version + 1, also if it was not in the set, so that an entry that would take it in and
    /// of which nobody knows the fate is void. Outcome: [`Outcome::Set`].
    LeaveSet {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        replica: ReplicaId,
        /// The volume's generation that the writer writes at.
        generation: Generation,
        /// The set's version as the writer knows it.
        version: u64,
        /// Why, for people.
        why: String,
    },
    /// A replica has everything that was acknowledged, its writer says, and counts from here on: version + 1. Outcome:
    /// [`Outcome::Set`].
    JoinSet {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        replica: ReplicaId,
        /// The volume's generation that the writer writes at.
        generation: Generation,
        /// The set's version as the writer knows it.
        version: u64,
    },
    /// A stopped VM gets a volume: the volume's generation + 1.
    AttachVolume {
        /// Which VM.
        vm: VmId,
        /// Which volume.
        volume: VolumeId,
        /// The volume's generation that the user saw.
        expect: Generation,
        /// As its first, from which the firmware boots; otherwise as its last.
        boot: bool,
    },
    /// A stopped VM gives a volume back: the volume's generation + 1.
    DetachVolume {
        /// Which VM.
        vm: VmId,
        /// Which volume.
        volume: VolumeId,
        /// The volume's generation that the user saw.
        expect: Generation,
    },
    /// `by` will work on a volume while no VM runs with it: generation + 1. Outcome: [`Outcome::Owned`].
    HoldVolume {
        /// Which.
        volume: VolumeId,
        /// The volume's generation as `by` knows it.
        expect: Generation,
        /// The life of `by`; must be the current one.
        incarnation: Incarnation,
        /// What for.
        purpose: Purpose,
    },
    /// `by`, which held it, has done its work on a volume: generation + 1. Outcome: [`Outcome::Owned`].
    DropVolume {
        /// Which.
        volume: VolumeId,
        /// The generation that the hold made.
        expect: Generation,
        /// The work is done. An import that ends otherwise leaves half a disk, which no VM gets.
        done: bool,
    },
    /// A new replica in `pool` is to take the place of `from`. The proposal's id is the operation's. Outcome:
    /// [`Outcome::Accepted`].
    BeginVolumeMove {
        /// Which volume.
        volume: VolumeId,
        /// The replica that goes.
        from: ReplicaId,
        /// Where to.
        pool: PoolId,
        /// How long the old replica is kept after the digests were equal, in milliseconds.
        keep_ms: u64,
        /// The version the user saw.
        version: u64,
        /// Most bytes per second that the copying may use: see [`crate::limits::BANDWIDTH`]. `None`: what the nodes have.
        bandwidth: Option<u64>,
    },
    /// The writer has compared the new replica of a move with another of the set.
    Compared {
        /// Which volume.
        volume: VolumeId,
        /// The operation it belongs to.
        op: OpId,
        /// The volume's generation that the writer writes at.
        generation: Generation,
        /// The set's version all through the comparison.
        version: u64,
        /// What came of it.
        comparison: Comparison,
    },
    /// The old replica of a move that is kept is needed no more: version + 1. Whoever proposes it has waited for as long as the
    /// user wished.
    EndVolumeMove {
        /// Which volume.
        volume: VolumeId,
        /// The operation.
        op: OpId,
        /// The set's version as the proposer knows it.
        version: u64,
    },
}

/// What came of comparing two replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Their digests are equal.
    Equal(CopyReport),
    /// They are not: where, for people. The move has failed.
    Different(String),
}

/// What applying an entry did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It changed what it said.
    Done,
    /// `Found`, `Join`: the node's id.
    Joined(NodeId),
    /// `StartIncarnation`: the life that began.
    Incarnation(Incarnation),
    /// `CreateVm`: its id.
    Created(VmId),
    /// `BeginMove`: the operation runs.
    Accepted(OpId),
    /// A change of ownership, of a VM or of a volume: the generation it made (or kept).
    Owned(Generation),
    /// Nothing changed.
    Refused(Refusal),
    /// `AddPool`: its id.
    PoolAdded(PoolId),
    /// `CreateVolume`: its id.
    VolumeCreated(VolumeId),
    /// `AddReplica`: its id.
    ReplicaAdded(ReplicaId),
    /// An entry about the in-sync set: the version it made.
    Set(u64),
}

impl Command {
    /// The VM and the generation that it compares, if it changes who may run one (DESIGN, rule 1).
    #[must_use]
    pub fn compares(&self) -> Option<(VmId, Generation)> {
        match self {
            Self::Claim { vm, expect, .. }
            | Self::Release { vm, expect, .. }
            | Self::BeginMove { vm, expect, .. }
            | Self::Switchover { vm, expect, .. }
            | Self::Arrived { vm, expect, .. }
            | Self::GiveBack { vm, expect, .. }
            | Self::AbortMove { vm, expect, .. }
            | Self::TakeBack { vm, expect, .. }
            | Self::ReleaseLost { vm, expect, .. } => Some((*vm, *expect)),
            Self::Found { .. }
            | Self::AddToken { .. }
            | Self::Join { .. }
            | Self::StartIncarnation { .. }
            | Self::CreateVm { .. }
            | Self::SetDesired { .. }
            | Self::DeleteVm { .. }
            | Self::Cancel { .. }
            | Self::HeardAgain { .. }
            | Self::RemoveNode { .. }
            | Self::AddPool { .. }
            | Self::RemovePool { .. }
            | Self::CreateVolume { .. }
            | Self::DeleteVolume { .. }
            | Self::GrowVolume { .. }
            | Self::ReplicaMade { .. }
            | Self::ReplicaFailed { .. }
            | Self::AddReplica { .. }
            | Self::RemoveReplica { .. }
            | Self::LeaveSet { .. }
            | Self::JoinSet { .. }
            | Self::AttachVolume { .. }
            | Self::DetachVolume { .. }
            | Self::HoldVolume { .. }
            | Self::DropVolume { .. }
            | Self::BeginVolumeMove { .. }
            | Self::Compared { .. }
            | Self::EndVolumeMove { .. } => None,
        }
    }

    /// The volume and the generation that it compares, if it changes who may write to one or is that one's word about its set.
    #[must_use]
    pub fn compares_volume(&self) -> Option<(VolumeId, Generation)> {
        match self {
            Self::DeleteVolume { volume, expect }
            | Self::LeaveSet { volume, generation: expect, .. }
            | Self::JoinSet { volume, generation: expect, .. }
            | Self::Compared { volume, generation: expect, .. }
            | Self::AttachVolume { volume, expect, .. }
            | Self::DetachVolume { volume, expect, .. }
            | Self::HoldVolume { volume, expect, .. }
            | Self::DropVolume { volume, expect, .. } => Some((*volume, *expect)),
            Self::Found { .. }
            | Self::AddToken { .. }
            | Self::Join { .. }
            | Self::StartIncarnation { .. }
            | Self::CreateVm { .. }
            | Self::SetDesired { .. }
            | Self::DeleteVm { .. }
            | Self::Claim { .. }
            | Self::Release { .. }
            | Self::BeginMove { .. }
            | Self::Switchover { .. }
            | Self::Arrived { .. }
            | Self::GiveBack { .. }
            | Self::AbortMove { .. }
            | Self::TakeBack { .. }
            | Self::Cancel { .. }
            | Self::HeardAgain { .. }
            | Self::ReleaseLost { .. }
            | Self::RemoveNode { .. }
            | Self::AddPool { .. }
            | Self::RemovePool { .. }
            | Self::CreateVolume { .. }
            | Self::GrowVolume { .. }
            | Self::ReplicaMade { .. }
            | Self::ReplicaFailed { .. }
            | Self::AddReplica { .. }
            | Self::RemoveReplica { .. }
            | Self::BeginVolumeMove { .. }
            | Self::EndVolumeMove { .. } => None,
        }
    }

    /// An operator's word that a node is dead: the leader has one of its own to say to that before it appends it.
    #[must_use]
    pub fn declares_dead(&self) -> bool {
        matches!(self, Self::ReleaseLost { .. } | Self::TakeBack { .. })
    }

    /// A node leaves by it: the leader judges one after the other whether who is left can still decide.
    #[must_use]
    pub fn costs_a_node(&self) -> bool {
        matches!(self, Self::RemoveNode { .. })
    }

    /// The move that it is a step of, if it is one.
    #[must_use]
    pub fn move_of(&self) -> Option<OpId> {
        match self {
            Self::Switchover { op, .. }
            | Self::Arrived { op, .. }
            | Self::GiveBack { op, .. }
            | Self::AbortMove { op, .. } => Some(*op),
            Self::Found { .. }
            | Self::AddToken { .. }
            | Self::Join { .. }
            | Self::StartIncarnation { .. }
            | Self::CreateVm { .. }
            | Self::SetDesired { .. }
            | Self::DeleteVm { .. }
            | Self::Claim { .. }
            | Self::Release { .. }
            | Self::BeginMove { .. }
            | Self::TakeBack { .. }
            | Self::Cancel { .. }
            | Self::HeardAgain { .. }
            | Self::ReleaseLost { .. }
            | Self::RemoveNode { .. }
            | Self::AddPool { .. }
            | Self::RemovePool { .. }
            | Self::CreateVolume { .. }
            | Self::DeleteVolume { .. }
            | Self::GrowVolume { .. }
            | Self::ReplicaMade { .. }
            | Self::ReplicaFailed { .. }
            | Self::AddReplica { .. }
            | Self::RemoveReplica { .. }
            | Self::LeaveSet { .. }
            | Self::JoinSet { .. }
            | Self::AttachVolume { .. }
            | Self::DetachVolume { .. }
            | Self::HoldVolume { .. }
            | Self::DropVolume { .. }
            | Self::BeginVolumeMove { .. }
            | Self::Compared { .. }
            | Self::EndVolumeMove { .. } => None,
        }
    }
}

impl Outcome {
    /// What was done, or why nothing was.
    ///
    /// # Errors
    /// The refusal.
    pub fn done(self) -> Result<Self, Refusal> {
        if let Self::Refused(refusal) = self { Err(refusal) } else { Ok(self) }
    }
}

/// What applying an entry did, and at which place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Index in the log.
    pub index: u64,
    /// What came of it.
    pub outcome: Outcome,
}
