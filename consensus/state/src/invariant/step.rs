//! What must hold of every step.

use alloc::{format, string::ToString};

use super::{Violation, disk_steps::check_disks, hold};
use crate::{
    ClusterState,
    command::{Command, Outcome, Proposal},
    id::{NodeId, Owner, VmId},
    node::Node,
    operation::{Operation, OperationKind, OperationResult},
    vm::{Desired, Phase, StopCause, Vm, VmSpec},
};

/// Whether `proposal`, with this outcome, may lead from `before` to `after`. Call [`ClusterState::check`] on `after` too.
///
/// # Errors
/// The first rule that does not hold.
pub fn check(
    before: &ClusterState,
    after: &ClusterState,
    proposal: &Proposal,
    outcome: &Outcome,
) -> Result<(), Violation> {
    hold(
        after.outcomes.get(&proposal.id).map(|applied| &applied.outcome) == Some(outcome),
        "an outcome is remembered as it was given",
        || format!("{outcome:?}"),
    )?;
    if let Some(first) = before.outcomes.get(&proposal.id) {
        let same = &first.outcome == outcome && before == after;
        return hold(same, "a repeated proposal changes nothing and is answered the same", || format!("{outcome:?}"));
    }
    if let Outcome::Refused(refusal) = outcome {
        return hold(same_but_memory(before, after), "a refusal changes nothing", || refusal.to_string());
    }
    check_nodes(before, after, proposal)?;
    check_vms(before, after, proposal)?;
    check_disks(before, after, proposal)?;
    check_operations(before, after, proposal)?;
    check_events(before, after)
}

fn same_but_memory(before: &ClusterState, after: &ClusterState) -> bool {
    let ClusterState {
        cluster,
        nodes,
        last_node,
        tokens,
        vms,
        last_vm,
        operations,
        events,
        last_event,
        outcomes: _,
        outcome_order: _,
        removed,
        pools,
        last_pool,
        volumes,
        last_volume,
        last_replica,
    } = before;
    (cluster, nodes, last_node, tokens) == (&after.cluster, &after.nodes, &after.last_node, &after.tokens)
        && removed == &after.removed
        && (vms, last_vm, operations) == (&after.vms, &after.last_vm, &after.operations)
        && (events, last_event) == (&after.events, &after.last_event)
        && (pools, last_pool) == (&after.pools, &after.last_pool)
        && (volumes, last_volume, last_replica) == (&after.volumes, &after.last_volume, &after.last_replica)
}

fn check_nodes(before: &ClusterState, after: &ClusterState, proposal: &Proposal) -> Result<(), Violation> {
    hold(before.cluster.is_none() || before.cluster == after.cluster, "a cluster keeps its identity", || {
        format!("{:?} became {:?}", before.cluster, after.cluster)
    })?;
    for (id, old) in &before.nodes {
        let Some(new) = after.nodes.get(id) else {
            check_removed(after, old, proposal)?;
            continue;
        };
        let same = (&old.name, old.key, old.joined) == (&new.name, new.key, new.joined);
        hold(same, "who a node is never changes", || old.name.clone())?;
        let started = *id == proposal.by && matches!(proposal.command, Command::StartIncarnation { .. });
        let expected = if started { old.incarnation.next() } else { old.incarnation };
        hold(new.incarnation == expected, "a life begins when its own daemon says so, one after the other", || {
            format!("{}: {} became {}", old.name, old.incarnation, new.incarnation)
        })?;
    }
    hold(after.last_node >= before.last_node, "the last node id never falls", || after.last_node.to_string())?;
    let minted = after.nodes.keys().filter(|id| !before.nodes.contains_key(id));
    minted
        .clone()
        .try_for_each(|id| hold(*id > before.last_node, "the id of a node is never used again", || id.to_string()))?;
    let admitting = matches!(proposal.command, Command::Found { .. } | Command::Join { .. });
    let most = usize::from(admitting);
    hold(minted.count() <= most, "a node is admitted by founding or joining, one at a time", || {
        format!("{} nodes became {}", before.nodes.len(), after.nodes.len())
    })
}

/// A node goes only when asked for, in the life it was seen in, and with nothing in its hands; and it is remembered.
fn check_removed(after: &ClusterState, old: &Node, proposal: &Proposal) -> Result<(), Violation> {
    let asked = matches!(proposal.command, Command::RemoveNode { node, after: life, .. }
        if node == old.id && life == old.incarnation);
    hold(asked, "a node is removed only when asked for, in the life it was seen in", || old.name.clone())?;
    let free = after.vms.values().all(|vm| {
        let ends = vm.phase.moving().is_some_and(|(_, from, to)| from.node == old.id || to.node == old.id);
        !ends && vm.home != old.id && vm.phase.owner().is_none_or(|owner| owner.node != old.id)
    });
    hold(free, "a node that is removed has nothing in its hands", || old.name.clone())?;
    let kept = after.removed.get(&old.id).is_some_and(|removed| removed.key == old.key);
    hold(kept && after.is_removed(old.id), "a node that was removed is remembered", || old.name.clone())
}

fn check_vms(before: &ClusterState, after: &ClusterState, proposal: &Proposal) -> Result<(), Violation> {
    hold(after.last_vm >= before.last_vm, "the last VM id never falls", || after.last_vm.to_string())?;
    for (id, old) in &before.vms {
        if let Some(new) = after.vms.get(id) {
            check_vm(old, new, (before, after), proposal)?;
        } else {
            let asked = matches!(&proposal.command, Command::DeleteVm { vm } if vm == id);
            let idle = matches!(old.phase, Phase::Stopped { .. }) && old.desired != Desired::Running;
            hold(asked && idle, "a VM is forgotten only when asked for and stopped", || old.spec.name.clone())?;
        }
    }
    for (id, new) in after.vms.iter().filter(|(id, _)| !before.vms.contains_key(id)) {
        hold(*id > before.last_vm, "the id of a VM is never used again", || id.to_string())?;
        hold(new.phase.owner().is_none(), "a new VM is nobody's", || new.spec.name.clone())?;
    }
    Ok(())
}

fn check_vm(
    old: &Vm,
    new: &Vm,
    (before, after): (&ClusterState, &ClusterState),
    proposal: &Proposal,
) -> Result<(), Violation> {
    let story =
        || format!("VM {}: {} {} became {} {}", old.spec.name, old.generation, old.phase, new.generation, new.phase);
    let disks = matches!(proposal.command, Command::AttachVolume { vm, .. } | Command::DetachVolume { vm, .. } if vm == old.id)
        && matches!(old.phase, Phase::Stopped { .. })
        && old.desired != Desired::Running;
    let spec =
        VmSpec { disks: if disks { new.spec.disks.clone() } else { old.spec.disks.clone() }, ..old.spec.clone() };
    let same = spec == new.spec && old.created == new.created;
    hold(same, "what a VM is never changes, but for its disks while it is stopped", story)?;
    // The owner changes hands exactly when `Phase::owner` differs, "nobody" being one of its values.
    let handed_over = old.phase.owner() != new.phase.owner();
    let expected = if handed_over { old.generation.next() } else { old.generation };
    hold(new.generation == expected, "the generation rises by one when the owner changes, and only then", story)?;
    if old.phase != new.phase {
        let compared =
            proposal.command.compares() == Some((old.id, old.generation)) || begun(old, new, before, proposal);
        hold(compared, "who may run a VM changes only by an entry that names its generation", story)?;
        let way = allowed(old, new, proposal) || begun(old, new, before, proposal);
        hold(way, "the right to run goes only the ways it may", story)?;
        if let Some(owner) = new.phase.owner().filter(|_| handed_over && !returned(old, new)) {
            let current = after.nodes.get(&owner.node).map(|node| node.incarnation);
            let own = owner.node == proposal.by && current == Some(owner.incarnation);
            hold(own, "a node takes a VM only for itself, in its current life", story)?;
        }
    }
    if old.home != new.home {
        let wished = matches!(proposal.command, Command::SetDesired { vm, .. } if vm == old.id);
        let stopped = old.phase.owner().is_none() && new.phase.owner().is_none();
        let arrived = matches!(proposal.command, Command::Arrived { vm, .. } if vm == old.id);
        let inherited = matches!(proposal.command, Command::RemoveNode { node, heir, .. }
            if node == old.home && heir == new.home && after.is_removed(node));
        let relocated = after.operations.iter().any(|(id, operation)| {
            let now = matches!(operation.ended, Some((_, OperationResult::Relocated)))
                && before.operations.get(id).is_none_or(|was| was.ended.is_none());
            let its = matches!(operation.kind, OperationKind::Migrate { vm, from, to, cold: true, .. }
                if (vm, from, to) == (old.id, old.home, new.home));
            now && its
        });
        let there = (wished && stopped) || arrived || (inherited && stopped) || (relocated && stopped);
        hold(there, "a VM's home changes while it is stopped or by moving there", story)?;
    }
    Ok(())
}

/// The arrows of the picture in the crate's documentation, and who may walk along each.
fn allowed(old: &Vm, new: &Vm, proposal: &Proposal) -> bool {
    let by = proposal.by;
    let revived = |dead: &Owner, owner: &Owner| dead.node == owner.node && dead.incarnation < owner.incarnation;
    let own = |owner: &Owner| owner.node == by;
    match (&old.phase, &new.phase, &proposal.command) {
        (Phase::Stopped { .. }, Phase::Running { owner }, Command::Claim { .. }) => own(owner) && old.home == by,
        (
            Phase::Running { owner: dead } | Phase::Moving { from: dead, .. },
            Phase::Running { owner },
            Command::Claim { .. },
        ) => revived(dead, owner),
        (
            Phase::Running { owner } | Phase::Moving { from: owner, .. } | Phase::Arriving { to: owner, .. },
            Phase::Stopped { .. },
            Command::Release { .. },
        ) => own(owner),
        (
            Phase::Moving { op, from, to },
            Phase::Arriving { op: o, from: f, to: t },
            Command::Switchover { op: named, .. },
        ) => (op, from, to) == (o, f, t) && op == named && own(to),
        (Phase::Moving { op, from, to }, Phase::Running { owner }, Command::AbortMove { op: named, .. }) => {
            owner == from && op == named && (own(from) || own(to))
        }
        (Phase::Arriving { op, to, .. }, Phase::Running { owner }, Command::Arrived { op: named, .. }) => {
            owner == to && op == named && own(to)
        }
        (Phase::Arriving { op, from, to }, Phase::Running { owner }, Command::GiveBack { op: named, .. }) => {
            owner == from && op == named && own(to)
        }
        (Phase::Arriving { from, .. }, Phase::Running { owner }, Command::TakeBack { .. }) => owner == from,
        (
            Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. },
            Phase::Stopped { cause: StopCause::HostLost(_) },
            Command::ReleaseLost { .. },
        ) => new.desired != Desired::Running,
        _ => false,
    }
}

/// A move whose turn came: the one just asked for, or one that waited, accepted for this VM, these ends and this generation.
fn begun(old: &Vm, new: &Vm, before: &ClusterState, proposal: &Proposal) -> bool {
    let (Phase::Running { owner }, Phase::Moving { op, from, to }) = (&old.phase, &new.phase) else { return false };
    let asked = matches!(
        proposal.command,
        Command::BeginMove { vm, expect, to: target, .. }
            if *op == proposal.id && (vm, expect, target) == (old.id, old.generation, to.node)
    );
    let waited = before.operations.get(op).is_some_and(|operation| {
        let OperationKind::Migrate { vm, from: source, to: target, generation, cold: false, .. } = operation.kind
        else {
            return false;
        };
        operation.waits()
            && !operation.cancel
            && (vm, source, target, generation) == (old.id, from.node, to.node, old.generation)
    });
    from == owner && (asked || waited)
}

/// A move that did not arrive gave the right back to its source, in whichever life that then was.
fn returned(old: &Vm, new: &Vm) -> bool {
    matches!((&old.phase, &new.phase), (Phase::Arriving { from, .. }, Phase::Running { owner }) if from == owner)
}

fn check_operations(before: &ClusterState, after: &ClusterState, proposal: &Proposal) -> Result<(), Violation> {
    for (id, old) in &before.operations {
        match after.operations.get(id) {
            Some(new) => {
                let same = (&old.kind, old.index, old.started) == (&new.kind, new.index, new.started);
                hold(same, "what an operation does never changes", || id.to_string())?;
                let kept = old.ended.is_none() || old == new || heard_again(old, new);
                hold(kept, "an operation that ended stays as it ended", || id.to_string())?;
                hold(old.begun.is_none() || old.begun == new.begun, "a turn that came has come", || id.to_string())?;
                hold(new.cancel || !old.cancel, "a cancellation is never taken back", || id.to_string())?;
            }
            None => hold(old.ended.is_some(), "an operation that runs is not forgotten", || id.to_string())?,
        }
    }
    for id in after.operations.keys().filter(|id| !before.operations.contains_key(id)) {
        let begun = *id == proposal.id
            && matches!(proposal.command, Command::BeginMove { .. } | Command::BeginVolumeMove { .. });
        hold(begun, "an operation is begun by the proposal whose id it has", || id.to_string())?;
    }
    Ok(())
}

/// Only the length of the silence was added.
fn heard_again(old: &Operation, new: &Operation) -> bool {
    let mut expected = old.clone();
    if let (Some((_, OperationResult::Succeeded(then))), Some((_, OperationResult::Succeeded(now)))) =
        (&mut expected.ended, &new.ended)
        && then.silence_ms.is_none()
    {
        then.silence_ms = now.silence_ms;
    }
    expected == *new
}

fn check_events(before: &ClusterState, after: &ClusterState) -> Result<(), Violation> {
    hold(after.last_event >= before.last_event, "the number of the last event never falls", || {
        format!("{} became {}", before.last_event, after.last_event)
    })?;
    let told = after.events.iter().filter(|event| event.number <= before.last_event);
    let known = before.events.iter().rev();
    hold(told.rev().zip(known).all(|(new, old)| new == old), "what was told stays told", || "it does not".to_string())?;
    // Everything people care about is told: who may run what, and who is there.
    let silent = after.last_event == before.last_event;
    let moved = |(id, vm): (&VmId, &Vm)| before.vms.get(id).is_none_or(|old| old.phase != vm.phase);
    let joined = |id: &NodeId| !before.nodes.contains_key(id);
    let left = |id: &NodeId| !after.nodes.contains_key(id);
    let members = after.nodes.keys().any(joined) || before.nodes.keys().any(left);
    let untold = silent && (after.vms.iter().any(moved) || members);
    hold(!untold, "a change of ownership or of membership is told", || "no event".to_string())
}
