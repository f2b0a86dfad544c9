//! Moves that wait for their nodes: in the order in which they were accepted, at most [`MOVES_PER_NODE_MAX`] at once from or
//! to each node. The one that has waited longest keeps places at its nodes free for itself, so that none waits for ever;
//! the others may pass each other by, so that one full node does not hold up those who do not need it.
//!
//! Looked at after every entry. A move whose VM stopped, or changed hands, while it waited has failed by then; it compares
//! the generation for which it was accepted.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::{About, Step};
use crate::{
    id::{Generation, Incarnation, NodeId, OpId, Owner, VmId},
    limits::MOVES_PER_NODE_MAX,
    operation::{Operation, OperationKind, OperationResult},
    vm::{Desired, Phase, Vm},
};

/// A move whose turn may have come.
#[derive(Clone, Copy)]
struct Waiting {
    op: OpId,
    vm: VmId,
    from: NodeId,
    to: NodeId,
    generation: Generation,
}

impl Step<'_> {
    /// Begins every move whose turn it is, and ends those that have nothing to move any more.
    pub(super) fn advance_queue(&mut self) {
        let mut waiting: Vec<Waiting> = self.waiting().collect();
        waiting.sort_by_key(|waiting| (self.state.operations.get(&waiting.op).map(|it| it.index), waiting.op));
        let mut reserved: Option<[NodeId; 2]> = None;
        for waiting in waiting {
            let owners = match self.movable(waiting) {
                Ok(owners) => owners,
                Err(reason) => {
                    self.drop_waiting(waiting, reason);
                    continue;
                }
            };
            let ends = [waiting.from, waiting.to];
            let kept = |end: &NodeId| reserved.is_some_and(|first| first.contains(end));
            if ends.iter().any(|end| kept(end) || self.moves_at(*end) >= MOVES_PER_NODE_MAX) {
                reserved.get_or_insert(ends);
                continue;
            }
            self.begin(waiting, owners);
        }
    }

    fn waiting(&self) -> impl Iterator<Item = Waiting> {
        self.state.operations.values().filter(|operation| operation.waits()).filter_map(|operation| {
            let OperationKind::Migrate { vm, from, to, generation, .. } = operation.kind else { return None };
            Some(Waiting { op: operation.id, vm, from, to, generation })
        })
    }

    /// Source and target in their current lives, or why there is nothing to move any more.
    fn movable(&self, Waiting { vm, from, to, generation, .. }: Waiting) -> Result<(Owner, Owner), String> {
        let Some(vm) = self.state.vms.get(&vm) else { return Err("the VM was deleted before its turn came".into()) };
        let owner = match vm.phase {
            Phase::Running { owner } if vm.generation == generation && owner.node == from => owner,
            Phase::Running { .. } | Phase::Stopped { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {
                return Err(format!("before its turn came, the VM was {}", vm.phase));
            }
        };
        if vm.desired != Desired::Running {
            return Err("the VM is to be stopped".into());
        }
        let life = |node: NodeId| self.state.nodes.get(&node).map_or(Incarnation::default(), |node| node.incarnation);
        if !self.state.lives(owner) {
            return Err(format!("the daemon of {}, the source, was started again", self.node_name(from)));
        }
        if life(to) == Incarnation::default() {
            return Err(format!("{}, the target, is not there any more", self.node_name(to)));
        }
        Ok((owner, Owner { node: to, incarnation: life(to) }))
    }

    /// Moves that copy from or to `node` now.
    fn moves_at(&self, node: NodeId) -> usize {
        let copies = |vm: &&Vm| match vm.phase {
            Phase::Moving { from, to, .. } => from.node == node || to.node == node,
            // Nothing is copied any more.
            Phase::Arriving { .. } | Phase::Stopped { .. } | Phase::Running { .. } => false,
        };
        self.state.vms.values().filter(copies).count()
    }

    fn begin(&mut self, Waiting { op, vm: id, .. }: Waiting, (from, to): (Owner, Owner)) {
        let at = self.proposal.at;
        let Some(name) = self.state.vms.get(&id).map(|vm| vm.spec.name.clone()) else { return };
        if self.enter(id, Phase::Moving { op, from, to }).is_err() {
            return;
        }
        if let Some(operation) = self.state.operations.get_mut(&op) {
            operation.begun = Some(at);
        }
        let (source, target) = (self.node_name(from.node), self.node_name(to.node));
        let about = About { node: Some(to.node), vm: Some(id), op: Some(op), ..About::default() };
        self.event(about, format!("VM {name} begins to move from {source} to {target}"));
    }

    fn drop_waiting(&mut self, Waiting { op, vm, to, .. }: Waiting, reason: String) {
        let name = self.state.operations.get(&op).map_or("", Operation::subject).to_string();
        let text = format!("the move of VM {name} to {} is off: {reason}", self.node_name(to));
        self.end_operation(op, OperationResult::Failed { reason });
        self.event(About { node: None, vm: Some(vm), op: Some(op), ..About::default() }, text);
    }
}
