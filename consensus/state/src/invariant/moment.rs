//! What must hold of every state.

use alloc::{collections::BTreeSet, format, string::ToString};

use super::{Violation, hold};
use crate::{
    ClusterState,
    id::{Generation, Incarnation, NodeId, Owner},
    limits::{
        EVENTS_MAX, MOVES_PER_NODE_MAX, NODES_MAX, OPERATIONS_MAX, OUTCOMES_MAX, POOLS_MAX, REMOVED_MAX, TOKENS_MAX,
        VMS_MAX, VOLUMES_MAX,
    },
    operation::{Operation, OperationKind},
    vm::{Phase, StopCause, Vm},
};

impl ClusterState {
    /// Whether this state is one that a cluster may be in.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_bounds()?;
        self.check_memory()?;
        self.check_nodes()?;
        self.check_names()?;
        self.vms.values().try_for_each(|vm| self.check_vm(vm))?;
        self.check_disks()?;
        self.check_operations()
    }

    fn check_bounds(&self) -> Result<(), Violation> {
        let sizes = [
            ("nodes", self.nodes.len(), NODES_MAX),
            ("removed nodes", self.removed.len(), REMOVED_MAX),
            ("tokens", self.tokens.len(), TOKENS_MAX),
            ("VMs", self.vms.len(), VMS_MAX),
            ("operations", self.operations.len(), OPERATIONS_MAX),
            ("events", self.events.len(), EVENTS_MAX),
            ("outcomes", self.outcomes.len(), OUTCOMES_MAX),
            ("pools", self.pools.len(), POOLS_MAX),
            ("volumes", self.volumes.len(), VOLUMES_MAX),
        ];
        sizes.into_iter().try_for_each(|(what, len, max)| {
            hold(len <= max, "everything is bounded", || format!("{len} {what}, at most {max}"))
        })
    }

    fn check_memory(&self) -> Result<(), Violation> {
        let order: BTreeSet<_> = self.outcome_order.iter().collect();
        let same = order.len() == self.outcome_order.len() && order.iter().copied().eq(self.outcomes.keys());
        hold(same, "each remembered outcome has one place in the order of forgetting", || {
            format!("{} outcomes, {} places", self.outcomes.len(), self.outcome_order.len())
        })?;
        let numbers = self.events.iter().rev().map(|event| event.number);
        let gapless = numbers.eq((1..=self.last_event).rev().take(self.events.len()));
        hold(gapless, "events are numbered without gaps up to the last", || format!("last is {}", self.last_event))
    }

    fn check_nodes(&self) -> Result<(), Violation> {
        if self.cluster.is_none() {
            let nobody = self.nodes.is_empty() && self.vms.is_empty() && self.tokens.is_empty();
            let nothing = self.pools.is_empty() && self.volumes.is_empty();
            return hold(nobody && nothing, "a cluster that was not founded is empty", || "it is not".to_string());
        }
        let last = self.nodes.last_key_value().map(|(id, _)| *id);
        let minted = last.is_some_and(|last| last <= self.last_node);
        hold(minted, "a cluster has a node, and none above the last minted", || self.last_node.to_string())?;
        for (id, removed) in &self.removed {
            hold(self.is_removed(*id), "a node that was removed is no member", || removed.name.clone())?;
            let again = self.nodes.values().any(|node| node.key == removed.key);
            hold(!again, "the key of a removed node is nobody's", || removed.name.clone())?;
        }
        for (id, node) in &self.nodes {
            hold(*id == node.id && id.0 > 0, "a node is filed under its id", || node.id.to_string())?;
        }
        for token in self.tokens.values() {
            let Some((key, user)) = token.used else { continue };
            let member = self.nodes.get(&user).map(|node| (node.key, &node.name));
            let right = member.map_or_else(|| self.is_removed(user), |who| who == (key, &token.node_name));
            hold(right, "a used token names the node that used it", || token.node_name.clone())?;
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), Violation> {
        let (mut names, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for node in self.nodes.values() {
            hold(names.insert(&node.name), "names of nodes are unique", || node.name.clone())?;
            hold(keys.insert(&node.key), "keys of nodes are unique", || node.name.clone())?;
        }
        let (mut names, mut macs) = (BTreeSet::new(), BTreeSet::new());
        for vm in self.vms.values() {
            hold(names.insert(&vm.spec.name), "names of VMs are unique", || vm.spec.name.clone())?;
            for nic in &vm.spec.nics {
                hold(macs.insert(nic.mac), "addresses of network cards are unique", || nic.mac.to_string())?;
            }
        }
        Ok(())
    }

    fn check_vm(&self, vm: &Vm) -> Result<(), Violation> {
        let name = || format!("VM {} ({}, {})", vm.spec.name, vm.generation, vm.phase);
        let filed = self.vms.get(&vm.id).is_some_and(|filed| filed == vm) && vm.id.0 > 0 && vm.id <= self.last_vm;
        hold(filed, "a VM is filed under its id, which is not above the last minted", name)?;
        hold(vm.spec.validate().is_ok(), "a VM is one that could be asked for", name)?;
        hold(self.nodes.contains_key(&vm.home), "a VM's home is a member", name)?;
        let new = vm.phase == Phase::Stopped { cause: StopCause::New };
        hold(new == (vm.generation == Generation(0)), "exactly a VM that never ran is at generation 0", name)?;

        let Some(owner) = vm.phase.owner() else { return Ok(()) };
        hold(self.lived(owner), "an owner is a life that its node has had", name)?;
        let Some((op, from, to)) = vm.phase.moving() else {
            return hold(owner.node == vm.home, "a VM that runs and does not move is at home", name);
        };
        hold(from.node == vm.home, "a VM that moves has its home where it comes from", name)?;
        hold(from.node != to.node, "a move has two ends", name)?;
        hold(self.lived(from) && self.lived(to), "both ends of a move are lives that their nodes have had", name)?;
        let operation = self.operations.get(&op);
        let runs = operation.is_some_and(|operation| operation.ended.is_none());
        hold(runs, "a move's operation exists and has not ended", name)?;
        let same = operation.is_some_and(|operation| {
            matches!(operation.kind, OperationKind::Migrate { vm: moved, from: source, to: target, .. }
                if (moved, source, target) == (vm.id, from.node, to.node))
        });
        hold(same, "a move and its operation tell the same", name)
    }

    fn check_operations(&self) -> Result<(), Violation> {
        for (id, operation) in &self.operations {
            hold(*id == operation.id, "an operation is filed under its id", || operation.id.to_string())?;
            if operation.ended.is_none() {
                let vms = self.vms.values().filter(|vm| vm.phase.moving().is_some_and(|(op, ..)| op == *id)).count();
                let volumes = self.moved_by(*id).count();
                let OperationKind::Migrate { vm, cold, .. } = operation.kind else {
                    let alone = operation.begun.is_some() && (vms, volumes) == (0, 1);
                    hold(alone, "a volume's move moves one volume and does not wait", || id.to_string())?;
                    continue;
                };
                let expected = usize::from(operation.begun.is_some());
                let one = "an operation moves one VM from when its turn came until it ended";
                hold(vms == expected && !(cold && vms > 0), one, || format!("{id} moves {vms}"))?;
                let waits = |other: &&Operation| {
                    other.waits() && matches!(other.kind, OperationKind::Migrate { vm: v, .. } if v == vm)
                };
                let waiting = self.operations.values().filter(waits).count();
                hold(waiting <= 1, "a VM waits for one move at a time", || format!("{vm} waits for {waiting}"))?;
            }
        }
        let copying = |node: NodeId| {
            let ends = |vm: &&Vm| match vm.phase {
                Phase::Moving { from, to, .. } => from.node == node || to.node == node,
                Phase::Stopped { .. } | Phase::Running { .. } | Phase::Arriving { .. } => false,
            };
            self.vms.values().filter(ends).count()
        };
        self.nodes.keys().try_for_each(|node| {
            let moves = copying(*node);
            hold(moves <= MOVES_PER_NODE_MAX, "a node copies few VMs at once", || format!("{node}: {moves}"))
        })
    }

    pub(super) fn lived(&self, owner: Owner) -> bool {
        let current = |node: NodeId| self.nodes.get(&node).map(|node| node.incarnation);
        owner.incarnation > Incarnation(0) && current(owner.node).is_some_and(|current| owner.incarnation <= current)
    }
}
