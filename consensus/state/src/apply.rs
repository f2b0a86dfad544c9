//! Applying the log.
//!
//! [`ClusterState::apply`] is called by the consensus layer with every committed entry, in order, on every node. It
//! recognises repeated proposals, hands the command to the file of its theme (`nodes`, `vms`, `ownership`, `moves`) and
//! remembers the outcome. Each handler looks first and changes last, so a refusal has changed nothing.

mod moves;
mod nodes;
mod ownership;
mod queue;
mod removal;
mod vms;

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::{String, ToString},
};

use serde::{Deserialize, Serialize};

use crate::{
    command::{Applied, Command, Outcome, Proposal, Refusal},
    event::Event,
    id::{ClusterId, Generation, Incarnation, NodeId, OpId, Owner, VmId},
    limits::{EVENTS_MAX, OUTCOMES_MAX},
    node::{JoinToken, Node, Removed},
    operation::{Operation, OperationKind, OperationResult},
    text::plain,
    vm::Vm,
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
}

/// Which protections are in force: all of them. A weaker set can be made only with the feature `negative-controls`, for
/// tests that show what a protection protects from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    compare_generation: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { compare_generation: true }
    }
}

#[cfg(any(test, feature = "negative-controls"))]
impl Rules {
    /// Proposals about ownership take effect whatever generation they name.
    #[must_use]
    pub fn without_generation_check() -> Self {
        Self { compare_generation: false }
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
            let OperationKind::Migrate { vm: moved, .. } = operation.kind;
            operation.waits() && moved == vm
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
            Command::BeginMove { vm, expect, to, wishes } => self.begin_move(*vm, *expect, *to, *wishes),
            Command::Switchover { vm, op, expect, incarnation } => self.switchover(*vm, *op, *expect, *incarnation),
            Command::Arrived { vm, op, expect, report } => self.arrived(*vm, *op, *expect, report),
            Command::GiveBack { vm, op, expect, reason } => self.give_back(*vm, *op, *expect, reason),
            Command::AbortMove { vm, op, expect, reason } => self.abort_move(*vm, *op, *expect, reason),
            Command::TakeBack { vm, expect, operator } => self.take_back(*vm, *expect, operator),
            Command::Cancel { op } => self.cancel(*op),
            Command::HeardAgain { op, silence_ms } => self.heard_again(*op, *silence_ms),
            Command::ReleaseLost { vm, expect, operator } => self.release_lost(*vm, *expect, operator),
            Command::RemoveNode { node, after, heir, lost } => self.remove_node(*node, *after, *heir, *lost),
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

    fn end_operation(&mut self, op: OpId, result: OperationResult) {
        if let Some(operation) = self.state.operations.get_mut(&op) {
            operation.ended = Some((self.proposal.at, result));
        }
    }

    fn event(&mut self, about: About, text: impl AsRef<str>) {
        let state = &mut *self.state;
        if state.events.len() >= EVENTS_MAX {
            state.events.pop_front();
        }
        state.last_event += 1;
        let About { node, vm, op } = about;
        let (number, at) = (state.last_event, self.proposal.at);
        state.events.push_back(Event { number, at, node, vm, op, text: plain(text.as_ref()) });
    }
}
