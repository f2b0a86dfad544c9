//! Nodes that leave for good, and what dead ones owned (DESIGN, rules 1, 17 and 19; docs/adr/0011).
//!
//! Who is dead is not known here. An operator says so by name, the leader takes the word only while it does not hear the
//! node, and the log compares: the generation of each VM, the life of the node.

use alloc::{format, string::String, vec::Vec};

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, Incarnation, NodeId, VmId},
    limits::{NAME_MAX, REMOVED_MAX},
    node::Removed,
    operation::OperationResult,
    text::{clip, plain},
    vm::{Desired, Phase, StopCause, Vm},
};

impl Step<'_> {
    /// An operator's word that the owner's host is off. It is the operator's responsibility, so the log keeps the name.
    pub(super) fn release_lost(&mut self, id: VmId, expect: Generation, operator: &str) -> Result<Outcome, Refusal> {
        let vm = self.vm_at(id, expect)?;
        let Some(owner) = vm.phase.owner() else {
            return Err(Refusal::wrong_phase(vm, "nobody has the right to run it: there is nothing to release"));
        };
        let operator = clip(operator.trim(), NAME_MAX);
        if operator.is_empty() {
            return Err(Refusal::invalid("operator", "say who declares the host lost"));
        }
        let (failed_move, vm_name) = (vm.phase.moving().map(|(op, ..)| op), vm.spec.name.clone());
        let host = self.node_name(owner.node);
        let word = format!("{operator} declared {host} lost");

        let vm = self.vm_mut(id)?;
        // Where it is started next is for a person to say, who knows what the guest left behind.
        vm.desired = Desired::Stopped { force: false };
        vm.failed_starts = 0;
        let generation = self.enter(id, Phase::Stopped { cause: StopCause::HostLost(plain(&word)) })?;
        if let Some(op) = failed_move {
            self.end_operation(op, OperationResult::Failed { reason: plain(&format!("the VM was given up: {word}")) });
        }
        self.keep_all_of(id);
        let about = About { node: Some(owner.node), vm: Some(id), op: failed_move, ..About::default() };
        self.event(about, format!("{word}: VM {vm_name} is nobody's any more and can be started elsewhere"));
        Ok(Outcome::Owned(generation))
    }

    /// Whatever life of it comes back: none of its numbers, keys and certificates is a member's any more.
    pub(super) fn remove_node(
        &mut self,
        id: NodeId,
        after: Incarnation,
        heir: NodeId,
        lost: bool,
    ) -> Result<Outcome, Refusal> {
        let node = self.node(id)?;
        let (name, key, current) = (node.name.clone(), node.key, node.incarnation);
        if current != after {
            return Err(Refusal::AnotherLife { node: name, after, current });
        }
        if self.state.nodes.len() == 1 {
            return Err(Refusal::in_use(&name, "it is the last node; a cluster ends with its directory, not by this"));
        }
        if heir == id {
            return Err(Refusal::invalid("heir", format!("{name} leaves; its VMs need a home on another node")));
        }
        let heir_name = self.node(heir)?.name.clone();
        if let Some(why) = self.state.vms.values().find_map(|vm| self.keeps(vm, id, lost)) {
            return Err(Refusal::in_use(&name, why));
        }
        if let Some(why) = self.disks_keep(id, lost) {
            return Err(Refusal::in_use(&name, why));
        }
        let homeless: Vec<VmId> = self.state.vms.values().filter(|vm| vm.home == id).map(|vm| vm.id).collect();

        for vm in &homeless {
            let vm = self.vm_mut(*vm)?;
            vm.home = heir;
            if vm.desired == Desired::Running {
                vm.desired = Desired::Stopped { force: false };
                vm.failed_starts = 0;
            }
        }
        let poorer = self.forget_disks_of(id);
        self.state.nodes.remove(&id);
        let oldest = self.state.removed.iter().min_by_key(|(_, removed)| removed.index).map(|(id, _)| *id);
        if let Some(oldest) = oldest.filter(|_| self.state.removed.len() >= REMOVED_MAX) {
            self.state.removed.remove(&oldest);
        }
        let removed = Removed { name: name.clone(), key, at: self.proposal.at, index: self.index };
        self.state.removed.insert(id, removed);
        let moved = match homeless.len() {
            0 => String::new(),
            1 => format!("; one stopped VM has its home on {heir_name} now"),
            many => format!("; {many} stopped VMs have their home on {heir_name} now"),
        };
        let poorer = match poorer {
            0 => String::new(),
            1 => "; one volume lost a replica with it".into(),
            many => format!("; {many} volumes lost a replica with it"),
        };
        let text = format!("{name} was removed from the cluster{moved}{poorer}");
        self.event(About { node: Some(id), ..About::default() }, text);
        Ok(Outcome::Done)
    }

    /// Why `vm` keeps `node` in the cluster, if it does.
    fn keeps(&self, vm: &Vm, node: NodeId, lost: bool) -> Option<String> {
        let name = &vm.spec.name;
        if vm.phase.moving().is_some_and(|(_, from, to)| from.node == node || to.node == node) {
            return Some(format!("VM {name} is moving from or to it; wait until that is over, or cancel it"));
        }
        if vm.phase.owner().is_some_and(|owner| owner.node == node) {
            return Some(format!(
                "it has the right to run VM {name}; migrate it away or stop it first. If the host is lost for good, an \
                 operator can say so: --lost --operator WHO"
            ));
        }
        let wanted = !lost && vm.home == node && vm.desired == Desired::Running;
        wanted.then(|| format!("VM {name} is to be started there; start it elsewhere (--node) or stop it first"))
    }
}
