//! A VM moves and its volumes with it: all of them, first; or all stays where it was.

use alloc::{string::ToString, vec};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, Incarnation, OpId},
    operation::{Along, OperationResult},
    vm::{Desired, Phase, StopCause},
    volume::{Purpose, Stage},
};

/// `web` runs on n1 and is to move to n3; the new replica was just made. Generation 2 of the volume, version 2.
fn mirroring() -> (World, OpId) {
    let mut world = World::with_web_writing();
    let Outcome::Accepted(op) = world.accept(N2, move_with_data(1, R1, 1)) else { panic!("accepted") };
    world.accept(N3, made(R3));
    (world, op)
}

/// The new replica is whole, at version 3, and the VM has set out.
fn set_out() -> (World, OpId) {
    let (mut world, op) = mirroring();
    world.accept(N1, join_set(R3, 2, 2));
    world.accept(N1, equal(op, 2, 3));
    (world, op)
}

/// `web` is stopped on n1, and is to be at home on n3.
fn cold() -> (World, OpId) {
    let mut world = World::with_web_on_data();
    let Outcome::Accepted(op) = world.accept(N2, move_with_data(0, R1, 1)) else { panic!("accepted") };
    world.accept(N3, made(R3));
    (world, op)
}

#[test]
fn a_vm_sets_out_when_its_volume_is_there_and_the_old_replica_goes_when_it_has_arrived() {
    let (mut world, op) = mirroring();
    assert!(world.state.operations[&op].waits());
    assert_eq!((world.standing().1, world.data().stage()), (running(life(N1, 1)), Some(Stage::Copying)));

    world.accept(N1, join_set(R3, 2, 2));
    assert!(world.state.operations[&op].waits(), "nobody has compared them yet");
    world.accept(N1, equal(op, 2, 3));
    assert_eq!(world.standing().1, Phase::Moving { op, from: life(N1, 1), to: life(N3, 1) });

    let early = |refusal: Refusal| assert!(refusal.to_string().contains("not there yet"), "{refusal}");
    early(world.refuse(N1, end_move(op, 3)));
    world.accept(N3, switchover(op, 1, FIRST_LIFE));
    early(world.refuse(N3, end_move(op, 3)));
    world.accept(N3, arrived(op, 2));
    assert!(matches!(world.result(op), Some(OperationResult::Succeeded(_))));
    assert_eq!(world.set(), (3, 3, vec![R1, R2, R3]));

    assert_eq!(world.accept(N3, end_move(op, 3)), Outcome::Set(4));
    assert_eq!((world.set(), world.data().moving), ((3, 4, vec![R2, R3]), None));
    assert!(matches!(world.result(op), Some(OperationResult::Succeeded(_))), "what it cost is not forgotten");
    assert_eq!(world.last_event(), "volume data is in n3:fast now; the replica in n1:fast was removed");
}

#[test]
fn a_vm_that_does_not_arrive_leaves_its_volume_where_it_was() {
    let cancel = |world: &mut World, op| drop(world.accept(N2, Command::Cancel { op }));
    let stop = |world: &mut World, _| drop(world.accept(N2, set_desired(Desired::Stopped { force: false })));
    let restart = |world: &mut World, _| {
        world.restart(N1);
    };
    let ended = |world: &mut World, _| {
        drop(world.accept(N1, release(1, FIRST_LIFE, StopCause::QemuEnded("signal 9".into()))));
    };
    let abort = |world: &mut World, op| drop(world.accept(N1, abort_move(op, 1)));
    let give_back = |world: &mut World, op| {
        world.accept(N3, switchover(op, 1, FIRST_LIFE));
        world.accept(N3, give_back(op, 2));
    };
    type Story = (fn() -> (World, OpId), fn(&mut World, OpId));
    let stories: [Story; 4] = [(mirroring, cancel), (mirroring, stop), (mirroring, restart), (mirroring, ended)];
    for (at, (begin, end)) in stories.into_iter().enumerate() {
        let (mut world, op) = begin();
        end(&mut world, op);
        let told = "volume data stays in n1:fast; the replica in n3:fast was removed";
        assert!(world.state.events.iter().any(|it| it.text == told), "story {at}");
        assert!(!world.data().replicas.contains_key(&R3), "story {at}");
        assert_eq!((world.set().2, world.data().moving), (vec![R1, R2], None), "story {at}");
        assert!(!world.state.operations[&op].is_done() && world.result(op).is_some(), "story {at}");
    }

    // A copy that is whole goes back as it came: who ends the move does not know who else still lives.
    for (at, end) in [abort as fn(&mut World, OpId), give_back].into_iter().enumerate() {
        let (mut world, op) = set_out();
        end(&mut world, op);
        let back = world.data().moving.expect("it turns back");
        assert_eq!((back.op, back.from, back.to, back.kept.is_some()), (op, R3, R1, true), "story {at}");
        assert_eq!(world.set().2, [R1, R2, R3], "nothing has gone yet: story {at}");
        world.accept(N1, end_move(op, 3));
        assert_eq!((world.set().2, world.data().moving), (vec![R1, R2], None), "story {at}");
        assert!(matches!(world.result(op), Some(OperationResult::Failed { .. })), "story {at}");
    }
}

#[test]
fn nothing_goes_that_may_be_all_that_is_left() {
    // The target ends the move, for the source's host is dead: the only other replica is on that.
    let mut world = World::with_web_writing();
    let Outcome::Accepted(op) = world.accept(N2, move_with_data(1, R1, 1)) else { panic!("accepted") };
    world.accept(N3, made(R3));
    world.accept(N1, leave(R2, 2, 2));
    world.accept(N1, join_set(R3, 2, 3));
    world.accept(N1, equal(op, 2, 4));
    world.accept(N3, abort_move(op, 1));
    assert_eq!(world.set().2, [R1, R3]);
    // And the operator's word keeps both for good.
    world.accept(N2, release_lost(1));
    assert_eq!((world.set().2, world.data().moving), (vec![R1, R3], None));
    assert_eq!(
        world.state.events.iter().filter(|it| it.text.contains("keeps its replicas in n3:fast and n1:fast")).count(),
        1
    );

    // The word comes while the VM is on its way.
    let (mut world, op) = set_out();
    world.accept(N2, release_lost(1));
    assert_eq!((world.set().2, world.data().moving), (vec![R1, R2, R3], None));
    assert_failed(&world, op, &["given up"]);

    // The others left: the one that stays has to be in sync before the new one goes.
    let (mut world, op) = set_out();
    world.accept(N1, leave(R1, 2, 3));
    world.accept(N1, leave(R2, 2, 4));
    world.accept(N1, abort_move(op, 1));
    assert_eq!(world.set().2, [R3]);
    let why = world.refuse(N1, end_move(op, 5)).to_string();
    assert!(why.contains("not found equal"), "{why}");
    world.accept(N1, join_set(R1, 2, 5));
    world.accept(N1, equal(op, 2, 6));
    world.accept(N1, end_move(op, 6));
    assert_eq!(world.set().2, [R1]);
}

#[test]
fn what_is_left_of_an_ended_move_can_be_given_up() {
    // The VM is there, and the copy fell behind on the way for good.
    let (mut world, op) = set_out();
    world.accept(N1, leave(R3, 2, 3));
    world.accept(N3, switchover(op, 1, FIRST_LIFE));
    world.accept(N3, arrived(op, 2));
    let remove = Command::RemoveReplica { volume: DATA, replica: R3, version: 4 };
    assert!(world.refuse(N3, remove.clone()).to_string().contains("moves that replica"));
    world.accept(N3, Command::Cancel { op });
    assert_eq!((world.data().replicas.len(), world.data().moving), (3, None));
    world.accept(N3, remove);
    assert_eq!(world.refuse(N3, Command::Cancel { op }), Refusal::Ended(op));
    assert!(matches!(world.result(op), Some(OperationResult::Succeeded(_))));
}

#[test]
fn a_copy_that_differs_calls_a_move_off_that_has_not_begun() {
    let (mut world, op) = mirroring();
    world.accept(N1, join_set(R3, 2, 2));
    world.accept(N1, different(op, 2, 3));
    assert_failed(&world, op, &["n3:fast"]);
    assert_eq!((world.standing().1, world.set().2), (running(life(N1, 1)), vec![R1, R2]));

    // It fell behind on the way, was copied again, and then something was wrong.
    let (mut world, op) = set_out();
    world.accept(N1, leave(R3, 2, 3));
    world.accept(N1, join_set(R3, 2, 4));
    world.accept(N1, different(op, 2, 5));
    assert!(world.result(op).is_none(), "the VM goes on to n3 and uses what its volume has left");
    assert_eq!((world.set().2, world.data().moving), (vec![R1, R2], None));
}

#[test]
fn a_stopped_vm_goes_with_its_volume_and_stays_stopped() {
    let (mut world, op) = cold();
    let purpose = Purpose::Copy;
    world.accept(N1, hold(1, 1, purpose));
    world.accept(N1, join_set(R3, 2, 2));
    assert_eq!(world.web().home, N1);
    world.accept(N1, equal(op, 2, 3));
    assert_eq!((world.web().home, world.web().desired), (N3, Desired::Stopped { force: false }));
    assert_eq!(world.result(op), Some(&OperationResult::Relocated));
    assert_eq!(world.standing().0, Generation(0), "nobody ran it");
    world.accept(N1, end_move(op, 3));
    assert_eq!(world.set().2, [R2, R3]);

    // Without volumes there is nothing to wait for.
    let mut world = World::with_web();
    world.accept(N1, set_desired(Desired::Stopped { force: false }));
    let Outcome::Accepted(op) = world.accept(N2, begin_move(0, N2)) else { panic!("accepted") };
    assert_eq!((world.web().home, world.result(op)), (N2, Some(&OperationResult::Relocated)));
    assert_eq!(world.last_event(), "VM web is at home on n2 now, and no more on n1");
}

#[test]
fn a_stopped_vm_that_is_started_stays_where_it_is() {
    let (mut world, op) = cold();
    world.accept(N1, set_desired(Desired::Running));
    assert_failed(&world, op, &["is to be started"]);
    assert_eq!((world.web().home, world.set().2), (N1, vec![R1, R2]));
    world.accept(N1, claim(0, FIRST_LIFE));
}

#[test]
fn what_cannot_go_along_is_refused_before_anything_is_begun() {
    let mut world = World::with_web_writing();
    let with = |along: &[Along]| Command::BeginMove {
        vm: WEB,
        expect: Generation(1),
        to: N3,
        wishes: wishes(300),
        along: along.to_vec(),
    };
    let data = Along { volume: DATA, from: R1, pool: P3, version: 1 };
    for (along, word) in [
        (vec![Along { pool: SLOW, ..data }], "is not on n3"),
        (vec![Along { pool: P2, ..data }], "it has a replica in n2:fast already"),
        (vec![data, data], "it is named twice"),
        (vec![Along { from: R3, ..data }], "replica-3"),
        (vec![Along { version: 7, ..data }], "version"),
        (vec![data; 9], "at most 8"),
    ] {
        let refusal = world.refuse(N1, with(&along)).to_string();
        assert!(refusal.contains(word), "{refusal} says {word:?}");
    }
    let Outcome::VolumeCreated(volume) = world.accept(N1, create_volume("other", &[P1])) else { panic!("created") };
    let refusal = world.refuse(N1, with(&[Along { volume, version: 1, ..data }])).to_string();
    assert!(refusal.contains("it is not this VM's"), "{refusal}");
    assert!(world.state.operations.is_empty() && world.data().moving.is_none());

    world.accept(N1, with(&[data]));
    let version = world.data().version;
    assert!(world.refuse(N1, with(&[Along { version, ..data }])).to_string().contains("cancel that first"));
    assert!(world.refuse(N1, move_data(SLOW, version)).to_string().contains("moves a replica of it already"));
}

#[test]
fn an_operation_is_remembered_for_as_long_as_a_volume_moves_by_it() {
    let (mut world, op) = set_out();
    world.accept(N3, switchover(op, 1, FIRST_LIFE));
    world.accept(N3, arrived(op, 2));
    for _ in 0..=crate::limits::OPERATIONS_MAX {
        let generation = world.standing().0.0;
        let Outcome::Accepted(other) = world.accept(N1, begin_move(generation, N2)) else { panic!("accepted") };
        world.accept(N3, abort_move(other, generation));
    }
    assert!(world.state.operations.contains_key(&op));
    world.accept(N3, end_move(op, 3));
}

#[test]
fn a_node_that_is_lost_takes_no_vm_with_it_that_only_had_a_replica_there() {
    // `data` goes from n2 to n3 while `web` goes from n1 to n3.
    let mut world = World::with_web_writing();
    let Outcome::Accepted(op) = world.accept(N1, move_with_data(1, R2, 1)) else { panic!("accepted") };
    world.accept(N3, made(R3));
    world.accept(N1, join_set(R3, 2, 2));
    world.accept(N1, equal(op, 2, 3));
    world.accept(N1, Command::RemoveNode { node: N2, after: Incarnation(1), heir: N1, lost: true });
    assert!(world.result(op).is_none() && world.web().phase.moving().is_some());
    assert_eq!((world.set().2, world.data().moving), (vec![R1, R3], None));
}
