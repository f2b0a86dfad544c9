//! Moves that wait for their nodes: in the order in which they were accepted, at most [`MOVES_PER_NODE_MAX`] at once from or
//! to each node. The one that has waited longest keeps places at its nodes free for itself, so that none waits for ever;
//! the others may pass each other by, so that one full node does not hold up those who do not need it.
//!
//! A move with which volumes go takes no place before they are there. One of a stopped VM needs none: with its volumes at the target
//! its home is.
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
    cold: bool,
}

/// What would be moved.
enum Movable {
    /// A guest, from and to these lives.
    Guest(Owner, Owner),
    /// The home of a VM that is stopped.
    Home,
}

impl Step<'_> {
    /// Begins every move whose turn it is, and ends those that have nothing to move any more.
    pub(super) fn advance_queue(&mut self) {
        let mut waiting: Vec<Waiting> = self.waiting().collect();
        waiting.sort_by_key(|waiting| (self.state.operations.get(&waiting.op).map(|it| it.index), waiting.op));
        let mut reserved: Option<[NodeId; 2]> = None;
        for waiting in waiting {
            let movable = match self.movable(waiting) {
                Ok(movable) => movable,
                Err(reason) => {
                    self.drop_waiting(waiting, reason);
                    continue;
                }
            };
            if !self.along_is_there(waiting.op) {
                continue;
            }
            let owners = match movable {
                Movable::Guest(from, to) => (from, to),
                Movable::Home => {
                    self.relocate(waiting);
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
            let OperationKind::Migrate { vm, from, to, generation, cold, .. } = operation.kind else { return None };
            Some(Waiting { op: operation.id, vm, from, to, generation, cold })
        })
    }

    /// What there is to move, or why there is nothing any more.
    fn movable(&self, Waiting { vm, from, to, generation, cold, .. }: Waiting) -> Result<Movable, String> {
        let Some(vm) = self.state.vms.get(&vm) else { return Err("the VM was deleted before its turn came".into()) };
        let life = |node: NodeId| self.state.nodes.get(&node).map_or(Incarnation::default(), |node| node.incarnation);
        if life(to) == Incarnation::default() {
            return Err(format!("{}, the target, is not there any more", self.node_name(to)));
        }
        let same = vm.generation == generation;
        let owner = match vm.phase {
            Phase::Running { owner } if !cold && same && owner.node == from => owner,
            Phase::Stopped { .. } if cold && same && vm.home == from => {
                let stays = vm.desired != Desired::Running;
                return if stays { Ok(Movable::Home) } else { Err("the VM is to be started".into()) };
            }
            Phase::Running { .. } | Phase::Stopped { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {
                return Err(format!("before its turn came, the VM was {}", vm.phase));
            }
        };
        if vm.desired != Desired::Running {
            return Err("the VM is to be stopped".into());
        }
        if !self.state.lives(owner) {
            return Err(format!("the daemon of {}, the source, was started again", self.node_name(from)));
        }
        Ok(Movable::Guest(owner, Owner { node: to, incarnation: life(to) }))
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

    /// A stopped VM is at home where its volumes are.
    fn relocate(&mut self, Waiting { op, vm, from, to, .. }: Waiting) {
        let (at, source, target) = (self.proposal.at, self.node_name(from), self.node_name(to));
        let Some(vm) = self.state.vms.get_mut(&vm) else { return };
        vm.home = to;
        let (id, text) = (vm.id, format!("VM {} is at home on {target} now, and no more on {source}", vm.spec.name));
        if let Some(operation) = self.state.operations.get_mut(&op) {
            operation.begun = Some(at);
        }
        self.end_operation(op, OperationResult::Relocated);
        self.event(About { node: Some(to), vm: Some(id), op: Some(op), ..About::default() }, text);
    }

    fn drop_waiting(&mut self, Waiting { op, vm, to, .. }: Waiting, reason: String) {
        let name = self.state.operations.get(&op).map_or("", Operation::subject).to_string();
        let text = format!("the move of VM {name} to {} is off: {reason}", self.node_name(to));
        self.end_operation(op, OperationResult::Failed { reason });
        self.event(About { node: None, vm: Some(vm), op: Some(op), ..About::default() }, text);
    }
}
