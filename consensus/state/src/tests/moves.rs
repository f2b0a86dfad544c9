//! Live migration: a move completes or leaves the VM where it was.

use alloc::{format, string::ToString};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, Incarnation, NodeId},
    operation::OperationResult,
    vm::{Desired, Phase, StopCause},
};

const SECOND_LIFE: Incarnation = Incarnation(2);

#[test]
fn a_move_that_arrives() {
    let mut world = World::with_web_running();
    let Outcome::Accepted(op) = world.accept(N3, begin_move(1, N2)) else { panic!("accepted") };
    let (from, to) = (life(N1, 1), life(N2, 1));
    assert_eq!(world.standing(), (Generation(1), Phase::Moving { op, from, to }), "the source lost nothing yet");
    assert_eq!(world.last_event(), "VM web begins to move from n1 to n2");

    assert_eq!(world.accept(N2, switchover(op, 1, FIRST_LIFE)), Outcome::Owned(Generation(2)));
    assert_eq!(world.standing(), (Generation(2), Phase::Arriving { op, from, to }));
    assert_eq!((world.web().home, world.result(op)), (N1, None));

    assert_eq!(world.accept(N2, arrived(op, 2)), Outcome::Owned(Generation(2)));
    assert_eq!(world.standing(), (Generation(2), running(to)));
    assert_eq!(world.web().home, N2);
    assert_eq!(world.result(op), Some(&OperationResult::Succeeded(report())));
    assert_eq!(world.last_event(), "VM web runs on n2 after a pause of 35 ms");
}

#[test]
fn moves_that_cannot_begin() {
    let mut world = World::with_web();
    assert!(matches!(world.refuse(N1, begin_move(0, N2)), Refusal::WrongPhase { .. }), "it does not run");
    world.accept(N1, claim(0, FIRST_LIFE));
    assert!(matches!(world.refuse(N1, begin_move(0, N2)), Refusal::Generation { .. }));
    assert_eq!(world.refuse(N1, begin_move(1, NodeId(9))), Refusal::NoSuchNode("node-9".to_string()));
    assert!(matches!(world.refuse(N1, begin_move(1, N1)), Refusal::Invalid { what, .. } if what == "to"));

    let n4 = NodeId(4);
    world.accept(N1, token(n4, NOON + 1_000));
    world.accept(N1, join(n4));
    let refusal = world.refuse(N1, begin_move(1, n4));
    assert!(matches!(refusal, Refusal::Invalid { why, .. } if why.contains("n4 never started")));

    world.accept(N1, set_desired(Desired::Stopped { force: false }));
    assert!(matches!(world.refuse(N1, begin_move(1, N2)), Refusal::WrongPhase { .. }), "it is being stopped");
    world.accept(N1, set_desired(Desired::Running));
    world.restart(N1);
    assert!(matches!(world.refuse(N3, begin_move(1, N2)), Refusal::StaleIncarnation { .. }), "its guest is gone");
    assert!(world.state.operations.is_empty());
}

#[test]
fn a_vm_moves_to_one_place_at_a_time() {
    let (mut world, _) = World::with_web_moving();
    assert!(matches!(world.refuse(N1, begin_move(1, N3)), Refusal::WrongPhase { .. }));
}

#[test]
fn only_the_target_in_the_life_that_has_the_copy_switches_over() {
    let (mut world, op) = World::with_web_moving();
    for node in [N1, N3] {
        assert!(matches!(world.refuse(node, switchover(op, 1, FIRST_LIFE)), Refusal::NotYours { .. }));
    }
    assert!(matches!(world.refuse(N2, switchover(op_id(77), 1, FIRST_LIFE)), Refusal::WrongPhase { .. }));
    assert!(matches!(world.refuse(N2, switchover(op, 0, FIRST_LIFE)), Refusal::Generation { .. }));
    assert!(matches!(world.refuse(N2, switchover(op, 1, SECOND_LIFE)), Refusal::StaleIncarnation { .. }));
    world.restart(N2);
    for claimed in [FIRST_LIFE, SECOND_LIFE] {
        let refusal = world.refuse(N2, switchover(op, 1, claimed));
        assert!(matches!(&refusal, Refusal::StaleIncarnation { .. }), "life {claimed} has no copy: {refusal}");
    }
    // The new life knows that its copy is gone.
    world.accept(N2, abort_move(op, 1));
    assert_eq!(world.standing(), (Generation(1), running(life(N1, 1))));
}

#[test]
fn a_switchover_outlives_the_source_that_died_after_it_sent_everything() {
    let (mut world, op) = World::with_web_moving();
    world.restart(N1);
    world.accept(N2, switchover(op, 1, FIRST_LIFE));
    world.accept(N2, arrived(op, 2));
    assert_eq!(world.standing(), (Generation(2), running(life(N2, 1))));
}

#[test]
fn of_switchover_and_abort_the_first_is_the_truth() {
    let (mut world, op) = World::with_web_moving();
    assert_eq!(world.accept(N1, abort_move(op, 1)), Outcome::Owned(Generation(1)));
    assert_eq!(world.standing(), (Generation(1), running(life(N1, 1))));
    assert_eq!(world.result(op), Some(&OperationResult::Failed { reason: "the link broke".to_string() }));
    assert_eq!(world.last_event(), "the move of VM web to n2 is off, it stays on n1: the link broke");
    assert!(matches!(world.refuse(N2, switchover(op, 1, FIRST_LIFE)), Refusal::WrongPhase { .. }));

    let (mut world, op) = World::with_web_arriving();
    assert!(matches!(world.refuse(N1, abort_move(op, 1)), Refusal::Generation { .. }));
    assert!(matches!(
        world.refuse(N1, abort_move(op, 2)),
        Refusal::WrongPhase { why, .. } if why == "its switchover was committed first"
    ));
}

#[test]
fn only_the_two_ends_abort_a_move_in_any_of_their_lives() {
    let (mut world, op) = World::with_web_moving();
    assert!(matches!(world.refuse(N3, abort_move(op, 1)), Refusal::NotYours { .. }));
    assert!(matches!(world.refuse(N1, abort_move(op, 2)), Refusal::Generation { .. }));
    world.restart(N1);
    world.accept(N1, abort_move(op, 1));
    assert_eq!(
        world.standing(),
        (Generation(1), running(life(N1, 1))),
        "a life that is over, for the new one to claim"
    );
    world.accept(N1, claim(1, SECOND_LIFE));
}

#[test]
fn words_about_an_earlier_move_do_not_touch_a_later_one_at_the_same_generation() {
    let (mut world, first) = World::with_web_moving();
    world.accept(N1, abort_move(first, 1));
    let Outcome::Accepted(second) = world.accept(N1, begin_move(1, N2)) else { panic!("accepted") };
    assert!(matches!(world.refuse(N2, switchover(first, 1, FIRST_LIFE)), Refusal::WrongPhase { .. }));
    assert!(matches!(world.refuse(N2, abort_move(first, 1)), Refusal::WrongPhase { .. }));
    world.accept(N2, switchover(second, 1, FIRST_LIFE));
}

#[test]
fn only_the_target_that_switched_over_arrives() {
    let (mut world, op) = World::with_web_moving();
    assert!(matches!(world.refuse(N2, arrived(op, 1)), Refusal::WrongPhase { .. }), "not before the switchover");
    world.accept(N2, switchover(op, 1, FIRST_LIFE));
    for node in [N1, N3] {
        assert!(matches!(world.refuse(node, arrived(op, 2)), Refusal::NotYours { .. }));
    }
    assert!(matches!(world.refuse(N2, arrived(op, 1)), Refusal::Generation { .. }));
    assert!(matches!(world.refuse(N2, arrived(op_id(77), 2)), Refusal::WrongPhase { .. }));
    world.restart(N2);
    assert!(matches!(world.refuse(N2, arrived(op, 2)), Refusal::StaleIncarnation { .. }), "that copy is gone");
}

#[test]
fn a_target_that_cannot_run_it_gives_it_back() {
    let (mut world, op) = World::with_web_arriving();
    for node in [N1, N3] {
        assert!(matches!(world.refuse(node, give_back(op, 2)), Refusal::NotYours { .. }));
    }
    assert!(matches!(world.refuse(N2, give_back(op, 1)), Refusal::Generation { .. }));
    assert_eq!(world.accept(N2, give_back(op, 2)), Outcome::Owned(Generation(3)));
    assert_eq!(world.standing(), (Generation(3), running(life(N1, 1))));
    assert_eq!(world.web().home, N1);
    assert_failed(&world, op, &["QEMU refused the device state"]);
    assert!(matches!(world.refuse(N2, arrived(op, 2)), Refusal::Generation { .. }), "it cannot change its mind");
}

#[test]
fn a_later_life_of_the_target_gives_back_what_died_with_the_earlier() {
    let (mut world, op) = World::with_web_arriving();
    world.restart(N2);
    world.accept(N2, give_back(op, 2));
    assert_eq!(world.standing(), (Generation(3), running(life(N1, 1))));
}

#[test]
fn when_both_ends_died_the_source_starts_it_anew() {
    let (mut world, op) = World::with_web_arriving();
    world.restart(N1);
    world.restart(N2);
    world.accept(N2, give_back(op, 2));
    assert_eq!(world.standing(), (Generation(3), running(life(N1, 1))), "a life that is over");
    assert_eq!(world.accept(N1, claim(3, SECOND_LIFE)), Outcome::Owned(Generation(4)));
}

#[test]
fn only_a_named_operator_takes_a_vm_back_from_a_target_that_fell_silent() {
    let (mut world, op) = World::with_web_moving();
    assert!(matches!(world.refuse(N3, take_back(1)), Refusal::WrongPhase { .. }), "the source has it still");
    world.accept(N2, switchover(op, 1, FIRST_LIFE));
    let nameless = Command::TakeBack { vm: WEB, expect: Generation(2), operator: " ".to_string() };
    assert!(matches!(world.refuse(N3, nameless), Refusal::Invalid { what, .. } if what == "operator"));
    assert!(matches!(world.refuse(N3, take_back(1)), Refusal::Generation { .. }));

    assert_eq!(world.accept(N3, take_back(2)), Outcome::Owned(Generation(3)));
    assert_eq!(world.standing(), (Generation(3), running(life(N1, 1))));
    assert_failed(&world, op, &["carol", "n2"]);
    assert_eq!(world.last_event(), "carol declared n2 dead and took VM web back to n1");
    assert!(
        matches!(world.refuse(N2, arrived(op, 2)), Refusal::Generation { .. }),
        "the target was not dead: too late"
    );
}

#[test]
fn a_stop_during_a_move_is_the_sources_to_carry_out() {
    let (mut world, op) = World::with_web_moving();
    world.accept(N3, set_desired(Desired::Stopped { force: false }));
    assert_eq!(world.result(op), None);
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    assert_failed(&world, op, &["a user asked for it"]);
}

#[test]
fn a_vm_moves_round_and_round() {
    let mut world = World::with_web_running();
    for generation in 1..=20 {
        let (from, to) = if generation % 2 == 1 { (N1, N2) } else { (N2, N1) };
        let Outcome::Accepted(op) = world.accept(N3, begin_move(generation, to)) else { panic!("accepted") };
        world.accept(to, switchover(op, generation, FIRST_LIFE));
        world.accept(to, arrived(op, generation + 1));
        assert_eq!(world.standing(), (Generation(generation + 1), running(life(to, 1))), "from {from}");
    }
    assert_eq!(world.state.operations.len(), 20);
    assert_eq!(format!("{}", world.web().generation), "g21");
}
