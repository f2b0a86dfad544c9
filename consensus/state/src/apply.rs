//! Applying the log.
//!
//! [`ClusterState::apply`] is called by the consensus layer with every committed entry, in order, on every node. It
//! recognises repeated proposals, hands the command to the file of its theme (`nodes`, `vms`, `ownership`, `moves`, `pools`,
//! `volumes`, `sets`, `holds`, `volume_moves`) and remembers the outcome. Each handler looks first and changes last, so a refusal has changed nothing.

mod along;
mod disks;
mod holds;
mod moves;
mod nodes;
mod ownership;
mod pools;
mod queue;
mod removal;
mod sets;
mod vms;
mod volume_moves;
mod volumes;

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::{String, ToString},
};

use serde::{Deserialize, Serialize};

use crate::{
    command::{Applied, Command, Outcome, Proposal, Refusal},
    event::Event,
    id::{ClusterId, Generation, Incarnation, NodeId, OpId, Owner, PoolId, ReplicaId, VmId, VolumeId},
    limits::{EVENTS_MAX, OPERATIONS_MAX, OUTCOMES_MAX},
    node::{JoinToken, Node, Removed},
    operation::{Operation, OperationKind, OperationResult},
    text::plain,
    vm::{Phase, Vm},
    volume::{Pool, Volume},
};

/// Everything the cluster agreed on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Its identity; `None` before `Found`.
    pub cluster: Option<ClusterId>,
    /// Members by id.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The highest node id ever minted.
    pub last_node: NodeId,
    /// Join tokens by the SHA-256 of their secret.
    pub tokens: BTreeMap<[u8; 32], JoinToken>,
    /// VMs by id.
    pub vms: BTreeMap<VmId, Vm>,
    /// The highest VM id ever minted.
    pub last_vm: VmId,
    /// Operations by id.
    pub operations: BTreeMap<OpId, Operation>,
    /// What happened lately, oldest first.
    pub events: VecDeque<Event>,
    /// The number of the newest event.
    pub last_event: u64,
    /// What came of recent proposals, so that a repeated one gets the same answer.
    pub outcomes: BTreeMap<OpId, Applied>,
    /// The keys of `outcomes`, oldest first.
    pub outcome_order: VecDeque<OpId>,
    /// Nodes that were removed.
    pub removed: BTreeMap<NodeId, Removed>,
    /// Pools by id.
    pub pools: BTreeMap<PoolId, Pool>,
    /// The highest pool id ever minted.
    pub last_pool: PoolId,
    /// Volumes by id.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// The highest volume id ever minted.
    pub last_volume: VolumeId,
    /// The highest replica id ever minted, in whichever volume. What a pool holds under a lower one, and no volume knows, is
    /// what was forgotten.
    pub last_replica: ReplicaId,
}

/// Which protections are in force: all of them. A weaker set can be made only with the feature `negative-controls`, for
/// tests that show what a protection protects from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    compare_generation: bool,
    compare_version: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { compare_generation: true, compare_version: true }
    }
}

#[cfg(any(test, feature = "negative-controls"))]
impl Rules {
    /// Proposals about ownership take effect whatever generation they name.
    #[must_use]
    pub fn without_generation_check() -> Self {
        Self { compare_generation: false, ..Self::default() }
    }

    /// Proposals about replicas take effect whatever version of the set they name.
    #[must_use]
    pub fn without_version_check() -> Self {
        Self { compare_version: false, ..Self::default() }
    }
}

impl ClusterState {
    /// Applies the entry at `index`. Total: whatever the state and whatever the entry, it answers, and a refusal changes
    /// nothing but the memory of outcomes.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Applied {
        self.apply_with(&Rules::default(), index, proposal)
    }

    /// [`Self::apply`] under other rules. Without the feature `negative-controls` there are no others.
    pub fn apply_with(&mut self, rules: &Rules, index: u64, proposal: &Proposal) -> Applied {
        if let Some(applied) = self.outcomes.get(&proposal.id) {
            // With the place where it took effect: the answer tells of the state then, not of the state now.
            return applied.clone();
        }
        let outcome = Step { state: self, rules, index, proposal }.carry_out().unwrap_or_else(Outcome::Refused);
        let applied = Applied { index, outcome };
        self.remember(proposal.id, applied.clone());
        applied
    }

    /// Whether `node` was a member once and is none any more.
    #[must_use]
    pub fn is_removed(&self, node: NodeId) -> bool {
        node.0 > 0 && node <= self.last_node && !self.nodes.contains_key(&node)
    }

    /// What a node is or was called; `None`: there is none of that number, or it was removed so long ago that it is forgotten.
    #[must_use]
    pub fn name_of(&self, node: NodeId) -> Option<&str> {
        let member = self.nodes.get(&node).map(|node| node.name.as_str());
        member.or_else(|| self.removed.get(&node).map(|removed| removed.name.as_str()))
    }

    /// `owner` is a life that its node's daemon is in now: what it held is still there.
    #[must_use]
    pub fn lives(&self, owner: Owner) -> bool {
        self.nodes.get(&owner.node).is_some_and(|node| node.incarnation == owner.incarnation)
    }

    /// The move of `vm` that waits for its turn, if there is one.
    #[must_use]
    pub fn waiting_move_of(&self, vm: VmId) -> Option<OpId> {
        let of_vm = |operation: &&Operation| {
            operation.waits() && matches!(operation.kind, OperationKind::Migrate { vm: moved, .. } if moved == vm)
        };
        self.operations.values().find(of_vm).map(|operation| operation.id)
    }

    /// Remembers refusals like successes: a retry whose first answer was lost must not turn a "no" into a late "yes".
    fn remember(&mut self, id: OpId, applied: Applied) {
        if self.outcome_order.len() >= OUTCOMES_MAX
            && let Some(oldest) = self.outcome_order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
        self.outcome_order.push_back(id);
        self.outcomes.insert(id, applied);
    }
}

/// One entry while it is applied.
struct Step<'a> {
    state: &'a mut ClusterState,
    rules: &'a Rules,
    index: u64,
    proposal: &'a Proposal,
}

/// What an event is about.
#[derive(Default)]
struct About {
    node: Option<NodeId>,
    vm: Option<VmId>,
    op: Option<OpId>,
    volume: Option<VolumeId>,
}

impl Step<'_> {
    fn carry_out(&mut self) -> Result<Outcome, Refusal> {
        let proposal = self.proposal;
        self.admit()?;
        let outcome = match &proposal.command {
            Command::Found { cluster, name, address, key } => self.found(*cluster, name, *address, *key),
            Command::AddToken { secret_hash, node_name, expires } => self.add_token(*secret_hash, node_name, *expires),
            Command::Join { secret_hash, name, address, key } => self.join(secret_hash, name, *address, *key),
            Command::StartIncarnation { after, address, facts } => self.start_incarnation(*after, *address, facts),
            Command::CreateVm { spec, home, desired } => self.create_vm(spec, *home, *desired),
            Command::SetDesired { vm, desired, home } => self.set_desired(*vm, *desired, *home),
            Command::DeleteVm { vm } => self.delete_vm(*vm),
            Command::Claim { vm, expect, incarnation } => self.claim(*vm, *expect, *incarnation),
            Command::Release { vm, expect, incarnation, cause } => self.release(*vm, *expect, *incarnation, cause),
            Command::BeginMove { vm, expect, to, wishes, along } => self.begin_move(*vm, *expect, *to, *wishes, along),
            Command::Switchover { vm, op, expect, incarnation } => self.switchover(*vm, *op, *expect, *incarnation),
            Command::Arrived { vm, op, expect, report } => self.arrived(*vm, *op, *expect, report),
            Command::GiveBack { vm, op, expect, reason } => self.give_back(*vm, *op, *expect, reason),
            Command::AbortMove { vm, op, expect, reason } => self.abort_move(*vm, *op, *expect, reason),
            Command::TakeBack { vm, expect, operator } => self.take_back(*vm, *expect, operator),
            Command::Cancel { op } => self.cancel(*op),
            Command::HeardAgain { op, silence_ms } => self.heard_again(*op, *silence_ms),
            Command::ReleaseLost { vm, expect, operator } => self.release_lost(*vm, *expect, operator),
            Command::RemoveNode { node, after, heir, lost } => self.remove_node(*node, *after, *heir, *lost),
            Command::AddPool { name, path } => self.add_pool(name, path),
            Command::RemovePool { pool } => self.remove_pool(*pool),
            Command::CreateVolume { name, size, pools } => self.create_volume(name, *size, pools),
            Command::DeleteVolume { volume, expect } => self.delete_volume(*volume, *expect),
            Command::GrowVolume { volume, size } => self.grow_volume(*volume, *size),
            Command::ReplicaMade { volume, replica } => self.replica_made(*volume, *replica),
            Command::ReplicaFailed { volume, replica, reason } => self.replica_failed(*volume, *replica, reason),
            Command::AddReplica { volume, pool, version } => self.add_replica(*volume, *pool, *version),
            Command::RemoveReplica { volume, replica, version } => self.remove_replica(*volume, *replica, *version),
            Command::LeaveSet { volume, replica, generation, version, why } => {
                self.leave_set(*volume, *replica, (*generation, *version), why)
            }
            Command::JoinSet { volume, replica, generation, version } => {
                self.join_set(*volume, *replica, (*generation, *version))
            }
            Command::AttachVolume { vm, volume, expect, boot } => self.attach_volume(*vm, *volume, *expect, *boot),
            Command::DetachVolume { vm, volume, expect } => self.detach_volume(*vm, *volume, *expect),
            Command::HoldVolume { volume, expect, incarnation, purpose } => {
                self.hold_volume(*volume, *expect, *incarnation, *purpose)
            }
            Command::DropVolume { volume, expect, done } => self.drop_volume(*volume, *expect, *done),
            Command::BeginVolumeMove { volume, from, pool, keep_ms, version, bandwidth } => {
                self.begin_volume_move(*volume, (*from, *pool), *keep_ms, *bandwidth, *version)
            }
            Command::Compared { volume, op, generation, version, comparison } => {
                self.compared(*volume, *op, (*generation, *version), comparison)
            }
            Command::EndVolumeMove { volume, op, version } => self.end_volume_move(*volume, *op, *version),
        }?;
        // Whatever it was, it may have made room, or ended what a waiting move was for.
        self.advance_queue();
        Ok(outcome)
    }

    /// A cluster begins once, and from then on only its members write.
    fn admit(&self) -> Result<(), Refusal> {
        let founding = matches!(self.proposal.command, Command::Found { .. });
        match self.state.cluster {
            Some(cluster) if founding => Err(Refusal::Founding(alloc::format!("founded already, as {cluster}"))),
            None if !founding => Err(Refusal::Founding("not founded yet; run `pollux cluster init`".to_string())),
            None => Ok(()),
            Some(_) => self.node(self.proposal.by).map(|_| ()),
        }
    }

    fn node(&self, id: NodeId) -> Result<&Node, Refusal> {
        self.state.nodes.get(&id).ok_or_else(|| {
            if self.state.is_removed(id) {
                Refusal::Removed(self.node_name(id))
            } else {
                Refusal::NoSuchNode(id.to_string())
            }
        })
    }

    fn vm(&self, id: VmId) -> Result<&Vm, Refusal> {
        self.state.vms.get(&id).ok_or_else(|| Refusal::NoSuchVm(id.to_string()))
    }

    fn vm_mut(&mut self, id: VmId) -> Result<&mut Vm, Refusal> {
        self.state.vms.get_mut(&id).ok_or_else(|| Refusal::NoSuchVm(id.to_string()))
    }

    /// For sentences: people know nodes by name.
    fn node_name(&self, id: NodeId) -> String {
        self.state.name_of(id).map_or_else(|| id.to_string(), ToString::to_string)
    }

    /// The VM, if it is still at the generation the proposer knew (rule 1). This comparison is what makes of any number of
    /// proposals about one generation a single one that counts.
    fn vm_at(&self, id: VmId, expect: Generation) -> Result<&Vm, Refusal> {
        let vm = self.vm(id)?;
        if self.rules.compare_generation && vm.generation != expect {
            return Err(Refusal::generation(vm, expect));
        }
        Ok(vm)
    }

    /// Whether `claimed` is the life its node is in: what an earlier life was running is gone.
    fn current_life(&self, vm: &Vm, claimed: Owner) -> Result<(), Refusal> {
        let current = self.node(claimed.node)?.incarnation;
        if current == Incarnation::default() {
            return Err(Refusal::not_yours(vm, claimed.node, "its daemon never started"));
        }
        if claimed.incarnation == current { Ok(()) } else { Err(Refusal::stale(vm, claimed, current)) }
    }

    fn pool(&self, id: PoolId) -> Result<&Pool, Refusal> {
        self.state.pools.get(&id).ok_or_else(|| Refusal::NoSuchPool(id.to_string()))
    }

    fn volume(&self, id: VolumeId) -> Result<&Volume, Refusal> {
        self.state.volumes.get(&id).ok_or_else(|| Refusal::NoSuchVolume(id.to_string()))
    }

    fn volume_mut(&mut self, id: VolumeId) -> Result<&mut Volume, Refusal> {
        self.state.volumes.get_mut(&id).ok_or_else(|| Refusal::NoSuchVolume(id.to_string()))
    }

    /// The volume, if it is still at the generation the proposer knew.
    fn volume_at(&self, id: VolumeId, expected: Generation) -> Result<&Volume, Refusal> {
        let volume = self.volume(id)?;
        if self.rules.compare_generation && volume.generation != expected {
            let (volume, current) = (volume.name.clone(), volume.generation);
            return Err(Refusal::VolumeGeneration { volume, expected, current });
        }
        Ok(volume)
    }

    /// The volume, if its set still has the version the proposer knew.
    fn volume_of(&self, id: VolumeId, expected: u64) -> Result<&Volume, Refusal> {
        let volume = self.volume(id)?;
        if self.rules.compare_version && volume.version != expected {
            let (volume, current) = (volume.name.clone(), volume.version);
            return Err(Refusal::VolumeVersion { volume, expected, current });
        }
        Ok(volume)
    }

    /// Hands the right to run on, and with it, if it changes hands, the right to write to each of the VM's volumes.
    fn enter(&mut self, id: VmId, phase: Phase) -> Result<Generation, Refusal> {
        let at = self.proposal.at;
        let vm = self.vm_mut(id)?;
        let before = vm.generation;
        let generation = vm.enter(phase, at);
        if generation != before {
            self.pass_on_disks(id);
        }
        Ok(generation)
    }

    fn make_room_for_operation(&mut self) -> Result<(), Refusal> {
        if self.state.operations.len() < OPERATIONS_MAX {
            return Ok(());
        }
        // One by which a volume still moves says what is to become of that.
        let needed = |op: OpId| self.state.moved_by(op).next().is_some();
        let finished = self.state.operations.values().filter(|it| it.ended.is_some() && !needed(it.id));
        let Some(oldest) = finished.min_by_key(|operation| (operation.index, operation.id)).map(|it| it.id) else {
            return Err(Refusal::full("running operations", OPERATIONS_MAX));
        };
        self.state.operations.remove(&oldest);
        Ok(())
    }

    /// A move of a VM that did not arrive leaves its volumes where they were, too.
    fn end_operation(&mut self, op: OpId, result: OperationResult) {
        let done = result.is_done();
        if let Some(operation) = self.state.operations.get_mut(&op) {
            operation.ended = Some((self.proposal.at, result));
        }
        if !done {
            self.leave_behind(op);
        }
    }

    fn event(&mut self, about: About, text: impl AsRef<str>) {
        let state = &mut *self.state;
        if state.events.len() >= EVENTS_MAX {
            state.events.pop_front();
        }
        state.last_event += 1;
        let About { node, vm, op, volume } = about;
        let (number, at) = (state.last_event, self.proposal.at);
        state.events.push_back(Event { number, at, node, vm, op, volume, text: plain(text.as_ref()) });
    }
}
