//! Why an entry of the log changed nothing.

use alloc::string::{String, ToString};

use serde::{Deserialize, Serialize};

use crate::{
    id::{Generation, Incarnation, NodeId, OpId, Owner, ReplicaId},
    text::plain,
    vm::{Phase, Vm},
    volume::Volume,
};

/// Why nothing changed. Each says what, about which object, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The log has no `Found` yet, or a second one came.
    #[error("this cluster is {0}")]
    Founding(String),
    /// No such node.
    #[error("there is no node {0}; `pollux node list` shows those there are")]
    NoSuchNode(String),
    /// No such VM.
    #[error("there is no VM {0}; `pollux vm list` shows those there are")]
    NoSuchVm(String),
    /// No such operation (or it is older than the cluster remembers).
    #[error("there is no operation {0}; `pollux op list` shows those there are")]
    NoSuchOperation(OpId),
    /// The name is taken.
    #[error("the name {0} is taken; choose another")]
    NameTaken(String),
    /// The request itself is wrong.
    #[error("{what}: {why}")]
    Invalid {
        /// Which field.
        what: String,
        /// What is wrong with it and what would be right.
        why: String,
    },
    /// The join token is unknown, used, expired or for another name.
    #[error("the join token is refused: {0}; make a new one with `pollux cluster token --node NAME`")]
    Token(TokenRefusal),
    /// The VM is at another generation: somebody else's change came first.
    #[error("VM {vm} is at {current} ({phase}), not at {expected}: another change came first")]
    Generation {
        /// Which.
        vm: String,
        /// What the proposer knew.
        expected: Generation,
        /// What holds.
        current: Generation,
        /// Who may run it now.
        phase: Phase,
    },
    /// The proposer is not the one who may do this.
    #[error("{by} may not do this to VM {vm}: {why}")]
    NotYours {
        /// Which.
        vm: String,
        /// Who asked.
        by: NodeId,
        /// Why not.
        why: String,
        /// The generation that holds.
        current: Generation,
        /// Who may run it now.
        phase: Phase,
    },
    /// An incarnation that is not the node's current one.
    #[error("VM {vm}: {claimed} is not the current life of its node ({current}): its daemon was started again since")]
    StaleIncarnation {
        /// Which VM it was about.
        vm: String,
        /// Which life was named.
        claimed: Owner,
        /// The current life of that node.
        current: Incarnation,
        /// The VM's generation.
        generation: Generation,
        /// Who may run it now.
        phase: Phase,
    },
    /// The daemon that started does not follow the life it says it follows.
    #[error("node {node} is in its life {current}, not {after}: another daemon of it was started meanwhile")]
    AnotherLife {
        /// Which node.
        node: String,
        /// The life that was named.
        after: Incarnation,
        /// The current one.
        current: Incarnation,
    },
    /// The VM's phase does not allow it.
    #[error("VM {vm}: {why}")]
    WrongPhase {
        /// Which.
        vm: String,
        /// What stands in the way and what to do.
        why: String,
        /// The generation that holds.
        current: Generation,
        /// Who may run it now.
        phase: Phase,
    },
    /// A limit of the cluster is reached.
    #[error("the cluster's limit of {limit} {what} is reached; remove some first")]
    Full {
        /// Of what.
        what: String,
        /// How many.
        limit: u64,
    },
    /// The operation has ended.
    #[error("operation {0} has ended already; `pollux op show` tells how")]
    Ended(OpId),
    /// The node was removed, and its identity with it.
    #[error(
        "node {0} was removed from the cluster, and its identity never comes back: remove its state directory and let the \
         host join as a new node, with a new token"
    )]
    Removed(String),
    /// The node cannot be removed.
    #[error("node {node} cannot be removed: {why}")]
    NodeInUse {
        /// Which.
        node: String,
        /// What stands in the way and what to do.
        why: String,
    },
    /// No such pool.
    #[error("there is no pool {0}; `pollux pool list` shows those there are")]
    NoSuchPool(String),
    /// No such volume.
    #[error("there is no volume {0}; `pollux volume list` shows those there are")]
    NoSuchVolume(String),
    /// The volume has no such replica.
    #[error("volume {volume} has no {replica}; `pollux volume show {volume}` shows those it has")]
    NoSuchReplica {
        /// Which volume.
        volume: String,
        /// Which replica.
        replica: ReplicaId,
    },
    /// The pool cannot be removed.
    #[error("pool {pool} cannot be removed: {why}")]
    PoolInUse {
        /// Which, as `NODE:POOL`.
        pool: String,
        /// What stands in the way and what to do.
        why: String,
    },
    /// The volume is at another generation: somebody else may write to it since.
    #[error("volume {volume} is at {current}, not at {expected}: another change came first; look again and repeat it")]
    VolumeGeneration {
        /// Which.
        volume: String,
        /// What the proposer knew.
        expected: Generation,
        /// What holds.
        current: Generation,
    },
    /// The volume's set has another version.
    #[error(
        "the replicas of volume {volume} are at version {current}, not {expected}: another change came first; look again and \
         repeat it"
    )]
    VolumeVersion {
        /// Which.
        volume: String,
        /// What the proposer knew.
        expected: u64,
        /// What holds.
        current: u64,
    },
    /// Only who may write to the volume says this.
    #[error("{by} may not say this of volume {volume}: {why}")]
    NotTheWriter {
        /// Which.
        volume: String,
        /// Who asked.
        by: NodeId,
        /// Who may.
        why: String,
    },
    /// The volume is in a state that does not allow it.
    #[error("volume {volume}: {why}")]
    Volume {
        /// Which.
        volume: String,
        /// What stands in the way and what to do.
        why: String,
    },
}

/// Why a join token does not admit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum TokenRefusal {
    /// A token is to be added whose secret another one has.
    #[error("its secret is in use already")]
    InUse,
    /// Never issued, or expired so long ago that it was forgotten.
    #[error("this cluster does not know it, or it expired long ago")]
    Unknown,
    /// Issued for a node of another name.
    #[error("it was made for {made_for}, not for {asked}")]
    OtherName {
        /// The token's name.
        made_for: String,
        /// The name of whoever showed it.
        asked: String,
    },
    /// It admitted a node already, and not the one that shows it now.
    #[error("{by} used it already")]
    Used {
        /// Which.
        by: String,
    },
    /// Its time is over.
    #[error("it has expired")]
    Expired,
}

impl Refusal {
    /// What holds for the VM that the proposal was about: its generation and who may run it. Every refusal of a change of
    /// ownership says so, which saves the proposer a second question.
    #[must_use]
    pub fn standing(&self) -> Option<(Generation, &Phase)> {
        match self {
            Self::Generation { current, phase, .. }
            | Self::NotYours { current, phase, .. }
            | Self::StaleIncarnation { generation: current, phase, .. }
            | Self::WrongPhase { current, phase, .. } => Some((*current, phase)),
            Self::Founding(_)
            | Self::NoSuchNode(_)
            | Self::NoSuchVm(_)
            | Self::NoSuchOperation(_)
            | Self::NameTaken(_)
            | Self::Invalid { .. }
            | Self::Token(_)
            | Self::Full { .. }
            | Self::AnotherLife { .. }
            | Self::Removed(_)
            | Self::NodeInUse { .. }
            | Self::NoSuchPool(_)
            | Self::NoSuchVolume(_)
            | Self::NoSuchReplica { .. }
            | Self::PoolInUse { .. }
            | Self::VolumeGeneration { .. }
            | Self::VolumeVersion { .. }
            | Self::NotTheWriter { .. }
            | Self::Volume { .. }
            | Self::Ended(_) => None,
        }
    }

    pub(crate) fn invalid(what: &str, why: impl AsRef<str>) -> Self {
        Self::Invalid { what: what.to_string(), why: plain(why.as_ref()) }
    }

    pub(crate) fn in_use(node: &str, why: impl AsRef<str>) -> Self {
        Self::NodeInUse { node: node.to_string(), why: plain(why.as_ref()) }
    }

    pub(crate) fn full(what: &str, limit: usize) -> Self {
        Self::Full { what: what.to_string(), limit: limit as u64 }
    }

    pub(crate) fn generation(vm: &Vm, expected: Generation) -> Self {
        Self::Generation { vm: vm.spec.name.clone(), expected, current: vm.generation, phase: vm.phase.clone() }
    }

    pub(crate) fn not_yours(vm: &Vm, by: NodeId, why: impl AsRef<str>) -> Self {
        let why = plain(why.as_ref());
        Self::NotYours { vm: vm.spec.name.clone(), by, why, current: vm.generation, phase: vm.phase.clone() }
    }

    pub(crate) fn stale(vm: &Vm, claimed: Owner, current: Incarnation) -> Self {
        let (generation, phase) = (vm.generation, vm.phase.clone());
        Self::StaleIncarnation { vm: vm.spec.name.clone(), claimed, current, generation, phase }
    }

    pub(crate) fn wrong_phase(vm: &Vm, why: impl AsRef<str>) -> Self {
        let why = plain(why.as_ref());
        Self::WrongPhase { vm: vm.spec.name.clone(), why, current: vm.generation, phase: vm.phase.clone() }
    }

    pub(crate) fn volume(volume: &Volume, why: impl AsRef<str>) -> Self {
        Self::Volume { volume: volume.name.clone(), why: plain(why.as_ref()) }
    }

    pub(crate) fn not_the_writer(volume: &Volume, by: NodeId, why: impl AsRef<str>) -> Self {
        Self::NotTheWriter { volume: volume.name.clone(), by, why: plain(why.as_ref()) }
    }
}
