//! Repeated proposals, and everything that could grow.

use alloc::{format, string::ToString, vec};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, NodeId},
    limits::{
        BRIDGES_MAX, EVENTS_MAX, EXTRA_FACTS_MAX, FACT_MAX, NODES_MAX, OPERATIONS_MAX, OUTCOMES_MAX, TEXT_MAX,
        TOKENS_MAX, VMS_MAX,
    },
    node::Facts,
    operation::OperationResult,
    vm::{Desired, StopCause},
};

#[test]
fn a_proposal_that_comes_twice_counts_once() {
    let mut world = World::with_web();
    let proposal = world.proposal(N1, claim(0, FIRST_LIFE));
    let first = world.apply(&proposal);
    let state = world.state.clone();

    let second = world.apply(&proposal);
    assert_eq!(second.outcome, Outcome::Owned(Generation(1)));
    assert_eq!(second.outcome, first.outcome);
    assert_eq!(second.index, first.index, "it tells of the first time");
    assert_eq!(world.state, state);
}

#[test]
fn a_no_does_not_become_a_late_yes() {
    let mut world = World::with_web();
    let early = world.proposal(N1, begin_move(1, N2));
    let no = world.apply(&early).outcome;
    assert!(matches!(no, Outcome::Refused(Refusal::Generation { .. })));

    world.accept(N1, claim(0, FIRST_LIFE));
    assert_eq!(world.apply(&early).outcome, no, "the same proposal would be in order now");
    assert!(matches!(world.propose(N1, begin_move(1, N2)), Outcome::Accepted(_)), "a new one is");
}

#[test]
fn outcomes_are_forgotten_oldest_first_and_the_generation_still_protects() {
    let mut world = World::with_web();
    let proposal = world.proposal(N1, claim(0, FIRST_LIFE));
    world.apply(&proposal);
    let first = world.state.outcome_order.front().copied().expect("the first of all");
    for number in 0..OUTCOMES_MAX {
        // Straight to the state: checking each of these steps would take longer than it tells.
        let id = op_id(1_000_000 + number as u64);
        let chatter = crate::Proposal { id, by: N2, at: NOON, command: set_desired(Desired::Running) };
        world.state.apply(1, &chatter);
    }
    assert_eq!(world.state.outcomes.len(), OUTCOMES_MAX);
    assert!(!world.state.outcomes.contains_key(&first));
    world.state.check().expect("sound");

    let again = world.apply(&proposal).outcome;
    assert!(matches!(again, Outcome::Refused(Refusal::Generation { .. })), "{again:?}");
}

#[test]
fn a_move_is_recognised_by_its_operation_after_its_outcome_was_forgotten() {
    let mut world = World::with_web_running();
    let proposal = world.proposal(N3, begin_move(1, N2));
    world.apply(&proposal);
    world.state.outcomes.remove(&proposal.id);
    world.state.outcome_order.retain(|id| *id != proposal.id);
    let operations = world.state.operations.clone();

    assert_eq!(world.apply(&proposal).outcome, Outcome::Accepted(proposal.id));
    assert_eq!(world.state.operations, operations);
}

#[test]
fn events_are_numbered_on_while_the_oldest_are_dropped() {
    let mut world = World::with_web();
    for number in 0..EVENTS_MAX + 10 {
        let force = number % 2 == 0;
        world.accept(N1, set_desired(Desired::Stopped { force }));
    }
    assert_eq!(world.state.events.len(), EVENTS_MAX);
    let (oldest, newest) = (&world.state.events[0], world.state.events.back().expect("many"));
    assert_eq!(newest.number - oldest.number + 1, EVENTS_MAX as u64);
    assert_eq!(newest.number, world.state.last_event);
}

#[test]
fn expired_tokens_make_room_and_live_ones_do_not() {
    let mut world = World::three_nodes();
    world.now = NOON + 2_000;
    let nodes = 10..10 + TOKENS_MAX as u64;
    for node in nodes.clone() {
        world.accept(N1, token(NodeId(node), NOON + 9_000));
    }
    assert_eq!(world.state.tokens.len(), TOKENS_MAX, "those of n2 and n3 expired");
    let late = NodeId(nodes.end);
    assert!(matches!(world.refuse(N1, token(late, NOON + 20_000)), Refusal::Full { .. }));
    world.now = NOON + 9_000;
    world.accept(N1, token(late, NOON + 20_000));
    assert_eq!(world.state.tokens.len(), 1);
}

#[test]
fn a_cluster_has_so_many_nodes_and_no_more() {
    let mut world = World::empty();
    world.accept(N1, found());
    for node in 2..=NODES_MAX as u64 + 1 {
        world.now += 10;
        let expires = world.now + 5;
        world.accept(N1, token(NodeId(node), expires));
        let outcome = world.propose(N1, join(NodeId(node)));
        let expected = node <= NODES_MAX as u64;
        assert_eq!(matches!(outcome, Outcome::Joined(_)), expected, "{node}: {outcome:?}");
    }
}

#[test]
fn a_cluster_has_so_many_vms_and_no_more() {
    let mut world = World::three_nodes();
    for number in 0..VMS_MAX {
        let proposal = world.proposal(N1, create(&format!("v{number}"), N1, Desired::Running));
        let applied = world.state.apply(1, &proposal);
        assert!(matches!(applied.outcome, Outcome::Created(_)), "{:?}", applied.outcome);
    }
    assert!(matches!(world.refuse(N1, create("late", N1, Desired::Running)), Refusal::Full { .. }));
    world.state.check().expect("sound");
}

#[test]
fn finished_operations_make_room_the_earliest_first() {
    let mut world = World::with_web_running();
    let mut ops = alloc::vec::Vec::new();
    for _ in 0..=OPERATIONS_MAX {
        // Clocks of nodes may run backwards; the log does not.
        world.now -= 1;
        let Outcome::Accepted(op) = world.accept(N1, begin_move(1, N2)) else { panic!("accepted") };
        world.accept(N1, abort_move(op, 1));
        ops.push(op);
    }
    assert_eq!(world.state.operations.len(), OPERATIONS_MAX);
    assert!(!world.state.operations.contains_key(&ops[0]));
    assert!(world.state.operations.contains_key(&ops[1]));
}

#[test]
fn operations_that_run_are_never_forgotten() {
    let mut world = World::three_nodes();
    let begin = |world: &mut World, number: usize| {
        let Outcome::Created(vm) = world.propose(N1, create(&format!("v{number}"), N1, Desired::Running)) else {
            panic!("created")
        };
        world.accept(N1, Command::Claim { vm, expect: Generation(0), incarnation: FIRST_LIFE });
        world.propose(N1, Command::BeginMove { vm, expect: Generation(1), to: N2, wishes: wishes(100), along: vec![] })
    };
    for number in 0..OPERATIONS_MAX {
        assert!(matches!(begin(&mut world, number), Outcome::Accepted(_)));
    }
    assert!(matches!(begin(&mut world, OPERATIONS_MAX), Outcome::Refused(Refusal::Full { .. })));
}

#[test]
fn what_peers_report_is_cut_to_size() {
    let (mut world, op) = World::with_web_moving();
    let reason = "é\n".repeat(10_000);
    world.accept(N1, Command::AbortMove { vm: WEB, op, expect: Generation(1), reason });
    let Some(OperationResult::Failed { reason }) = world.result(op) else { panic!("failed") };
    assert!(reason.len() <= TEXT_MAX && !reason.contains('\n'));

    world.accept(N1, release(1, FIRST_LIFE, StopCause::QemuEnded("x".repeat(10_000))));
    assert_eq!(world.standing().1, stopped(StopCause::QemuEnded("x".repeat(TEXT_MAX))));
    assert!(world.state.events.iter().all(|event| event.text.len() <= TEXT_MAX));

    let facts = Facts {
        qemu: "q".repeat(10_000),
        bridges: (0..1_000).map(|number| format!("br{number}")).collect(),
        extra: (0..1_000).map(|number| (number.to_string(), "v".repeat(10_000))).collect(),
        ..Facts::default()
    };
    world.accept(N1, Command::StartIncarnation { after: FIRST_LIFE, address: address(N1), facts });
    let kept = &world.state.nodes[&N1].facts;
    assert_eq!((kept.qemu.len(), kept.bridges.len(), kept.extra.len()), (FACT_MAX, BRIDGES_MAX, EXTRA_FACTS_MAX));
    assert!(kept.extra.values().all(|value| value.len() == FACT_MAX));
}

#[test]
fn a_refusal_does_not_repeat_what_is_too_long_to_repeat() {
    let mut world = World::three_nodes();
    let long = "a".repeat(100_000);
    let refusals = [
        world.refuse(N1, create(&long, N1, Desired::Running)),
        world.refuse(N1, Command::AddToken { secret_hash: [9; 32], node_name: long.clone(), expires: NOON + 9 }),
        world.refuse(N1, Command::Join { secret_hash: bytes(N2), name: long, address: address(N2), key: [9; 32] }),
    ];
    for refusal in refusals {
        assert!(refusal.to_string().len() < 2 * TEXT_MAX, "{refusal:?}");
    }
}
