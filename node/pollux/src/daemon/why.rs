//! Why a VM is where it is, and why not elsewhere: what the log remembers of it, and what each node says now.

use pollux_api::{Obstacle, PlaceView};
use pollux_state::{
    ClusterState,
    event::Event,
    node::Node,
    operation::{Operation, OperationKind, OperationResult},
    vm::{Phase, Vm},
};

use super::{
    preflight::{self, Health},
    run::Daemon,
};

/// What [`preflight`] says about the VM itself and not about a node.
const PHASE: &str = "phase";

/// Whether the VM could be on each node, and why no move of it can begin now to any.
pub(super) async fn places(
    daemon: &Daemon,
    state: &ClusterState,
    vm: &Vm,
    health: &Health,
) -> (Vec<PlaceView>, Option<String>) {
    let looks = state.nodes.values().map(|node| async move {
        let found = preflight::obstacles(daemon, state, vm, node, health).await;
        let (of_vm, of_node): (Vec<_>, Vec<_>) = found.into_iter().partition(|obstacle| obstacle.about == PHASE);
        (place(vm, node, of_node), of_vm)
    });
    let mut looks: Vec<(PlaceView, Vec<Obstacle>)> = futures::future::join_all(looks).await;
    looks.sort_by(|(a, _), (b, _)| a.node.cmp(&b.node));
    // The owner's says that it is there already. A stopped VM is started, not moved.
    let stopped = matches!(vm.phase, Phase::Stopped { .. });
    let held = looks.iter().filter(|(place, _)| !place.here && !stopped).find_map(|(_, of_vm)| of_vm.first());
    let held = held.map(|obstacle| obstacle.what.clone());
    (looks.into_iter().map(|(place, _)| place).collect(), held)
}

fn place(vm: &Vm, node: &Node, obstacles: Vec<Obstacle>) -> PlaceView {
    PlaceView {
        node: node.name.clone(),
        here: vm.phase.owner().is_some_and(|owner| owner.node == node.id),
        home: vm.home == node.id,
        fits: obstacles.is_empty(),
        obstacles,
    }
}

/// The events about a VM, oldest first.
pub(super) fn events<'a>(state: &'a ClusterState, vm: &Vm) -> impl DoubleEndedIterator<Item = &'a Event> + use<'a> {
    let id = vm.id;
    state.events.iter().filter(move |event| event.vm == Some(id))
}

/// What put the VM where it is: the newest event about it there that is not of a move which left it where it was. Of a VM
/// that does not run, the newest event.
pub(super) fn because<'a>(state: &'a ClusterState, vm: &Vm) -> Option<&'a Event> {
    let owner = vm.phase.owner().map(|owner| owner.node);
    let moved = |event: &Event| match event.op.and_then(|op| state.operations.get(&op)) {
        Some(operation) => matches!(operation.ended, Some((_, OperationResult::Succeeded(_)))),
        // Not of a move, or of one that is forgotten.
        None => true,
    };
    events(state, vm).rev().find(|event| owner.is_none() || (event.node == owner && moved(event)))
}

/// The last move of it that ended.
pub(super) fn last_move<'a>(state: &'a ClusterState, vm: &Vm) -> Option<&'a Operation> {
    let of_vm = state
        .operations
        .values()
        .filter(|operation| matches!(operation.kind, OperationKind::Migrate { vm: moved, .. } if moved == vm.id));
    of_vm
        .filter_map(|operation| Some((operation.ended.as_ref()?.0, operation)))
        .max_by_key(|(at, _)| *at)
        .map(|found| found.1)
}
