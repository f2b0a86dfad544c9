//! Several moves at once: few per node, the rest in the order in which they were asked for.

use alloc::{format, vec, vec::Vec};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, NodeId, OpId, VmId},
    limits::MOVES_PER_NODE_MAX,
    operation::OperationResult,
    vm::{Desired, StopCause},
};

/// So many VMs run on n1.
fn with_running(vms: usize) -> (World, Vec<VmId>) {
    let mut world = World::three_nodes();
    let vms = (0..vms).map(|number| running_on(&mut world, &format!("v{number}"), N1)).collect();
    (world, vms)
}

fn running_on(world: &mut World, name: &str, home: NodeId) -> VmId {
    let Outcome::Created(vm) = world.accept(N1, create(name, home, Desired::Running)) else { panic!("created") };
    world.accept(home, Command::Claim { vm, expect: Generation(0), incarnation: FIRST_LIFE });
    vm
}

fn begin(world: &mut World, vm: VmId, to: NodeId) -> OpId {
    let command = Command::BeginMove { vm, expect: Generation(1), to, wishes: wishes(300), along: vec![] };
    let Outcome::Accepted(op) = world.accept(N3, command) else { panic!("accepted") };
    op
}

fn abort(world: &mut World, vm: VmId, op: OpId) {
    world.accept(N1, Command::AbortMove { vm, op, expect: Generation(1), reason: "the link broke".into() });
}

fn waits(world: &World, op: OpId) -> bool {
    world.state.operations[&op].waits()
}

#[test]
fn a_node_copies_few_vms_at_once_and_the_rest_follow_in_order() {
    let (mut world, vms) = with_running(MOVES_PER_NODE_MAX + 2);
    let ops: Vec<OpId> = vms.iter().map(|vm| begin(&mut world, *vm, N2)).collect();

    let (first, rest) = ops.split_at(MOVES_PER_NODE_MAX);
    assert!(first.iter().all(|op| !waits(&world, *op)) && rest.iter().all(|op| waits(&world, *op)));
    assert!(world.last_event().contains("waits for others to end"), "{}", world.last_event());

    abort(&mut world, vms[0], ops[0]);
    assert!(!waits(&world, rest[0]) && waits(&world, rest[1]), "one place was free, for the earlier of the two");
    assert!(world.last_event().contains("begins to move"), "{}", world.last_event());
}

#[test]
fn a_switchover_makes_room_for_nothing_is_copied_any_more() {
    let (mut world, vms) = with_running(MOVES_PER_NODE_MAX + 1);
    let ops: Vec<OpId> = vms.iter().map(|vm| begin(&mut world, *vm, N2)).collect();
    let (vm, op) = (vms[0], ops[0]);
    world.accept(N2, Command::Switchover { vm, op, expect: Generation(1), incarnation: FIRST_LIFE });
    assert!(!waits(&world, ops[MOVES_PER_NODE_MAX]));
}

#[test]
fn the_move_that_has_waited_longest_is_not_overtaken_at_its_nodes() {
    let (mut world, vms) = with_running(3);
    let two = running_on(&mut world, "two", N2);
    begin(&mut world, vms[0], N2);
    begin(&mut world, vms[1], N3);
    // n1 is full. The first in line wants to go from there to n3, where one place is free, and keeps it.
    let first = begin(&mut world, vms[2], N3);
    let behind = begin(&mut world, two, N3);
    assert!(waits(&world, first) && waits(&world, behind));

    world.accept(N1, Command::Cancel { op: first });
    assert!(!waits(&world, behind), "nobody keeps the place at n3 any more");
}

#[test]
fn a_vm_waits_for_one_move_only() {
    let (mut world, vms) = with_running(MOVES_PER_NODE_MAX + 1);
    let ops: Vec<OpId> = vms.iter().map(|vm| begin(&mut world, *vm, N2)).collect();
    let vm = vms[MOVES_PER_NODE_MAX];
    let refusal =
        world.refuse(N3, Command::BeginMove { vm, expect: Generation(1), to: N3, wishes: wishes(300), along: vec![] });
    let op = ops[MOVES_PER_NODE_MAX];
    assert!(matches!(&refusal, Refusal::WrongPhase { why, .. } if why.contains(&format!("{op}"))), "{refusal}");
}

#[test]
fn a_waiting_move_is_cancelled_at_once() {
    let (mut world, vms) = with_running(MOVES_PER_NODE_MAX + 1);
    let ops: Vec<OpId> = vms.iter().map(|vm| begin(&mut world, *vm, N2)).collect();
    let op = ops[MOVES_PER_NODE_MAX];
    world.accept(N3, Command::Cancel { op });
    assert_eq!(world.result(op), Some(&OperationResult::Cancelled));
    abort(&mut world, vms[0], ops[0]);
    assert_eq!(world.state.vms[&vms[MOVES_PER_NODE_MAX]].phase, running(life(N1, 1)), "it stays where it is");
}

#[test]
fn a_vm_that_changed_hands_while_its_move_waited_is_not_moved() {
    let (mut world, vms) = with_running(MOVES_PER_NODE_MAX + 1);
    let ops: Vec<OpId> = vms.iter().map(|vm| begin(&mut world, *vm, N2)).collect();
    let (vm, op) = (vms[MOVES_PER_NODE_MAX], ops[MOVES_PER_NODE_MAX]);
    let cause = StopCause::QemuEnded("signal 9".into());
    world.accept(N1, Command::Release { vm, expect: Generation(1), incarnation: FIRST_LIFE, cause });
    assert_failed(&world, op, &["before its turn came", "signal 9"]);
}

#[test]
fn moves_of_a_source_whose_daemon_was_started_again_do_not_wait_on() {
    let (mut world, vms) = with_running(MOVES_PER_NODE_MAX + 1);
    let ops: Vec<OpId> = vms.iter().map(|vm| begin(&mut world, *vm, N2)).collect();
    world.restart(N1);
    assert_failed(&world, ops[MOVES_PER_NODE_MAX], &["n1", "started again"]);
}

#[test]
fn a_switchover_that_was_committed_is_not_cancelled() {
    let (mut world, op) = World::with_web_arriving();
    let refusal = world.refuse(N3, Command::Cancel { op });
    assert!(matches!(&refusal, Refusal::WrongPhase { why, .. } if why.contains("cannot be cancelled")), "{refusal}");
}

#[test]
fn the_silence_is_told_once_by_the_target_and_only_of_a_move_that_is_done() {
    let (mut world, op) = World::with_web_arriving();
    let heard = |silence_ms| Command::HeardAgain { op, silence_ms };
    world.refuse(N2, heard(120));
    world.accept(N2, arrived(op, 2));
    world.refuse(N1, heard(1));
    world.accept(N2, heard(120));
    world.refuse(N2, heard(130));
    let Some(OperationResult::Succeeded(report)) = world.result(op) else { panic!("succeeded") };
    assert_eq!(report.silence_ms, Some(120));
}

#[test]
fn a_bandwidth_outside_its_bounds_is_refused_by_name() {
    let mut world = World::with_web_running();
    let mut slow = wishes(300);
    slow.bandwidth = Some(10);
    let refusal =
        world.refuse(N3, Command::BeginMove { vm: WEB, expect: Generation(1), to: N2, wishes: slow, along: vec![] });
    assert!(matches!(&refusal, Refusal::Invalid { what, .. } if what == "bandwidth"), "{refusal}");
}
