//! A replica takes another's place: it completes, or the volume stays where it was.

use alloc::{string::ToString, vec};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Incarnation, OpId},
    limits::{BANDWIDTH, KEEP_MS_MAX},
    operation::OperationResult,
    volume::{Purpose, Stage},
};

#[track_caller]
fn assert_volume(refusal: &Refusal, word: &str) {
    let told = matches!(refusal, Refusal::Volume { why, .. } if why.contains(word));
    assert!(told, "{refusal} says {word:?}");
}

/// Copied and in the set, at version 3.
fn comparing() -> (World, OpId) {
    let (mut world, op) = World::with_data_moving();
    world.accept(N1, join_set(R3, 2, 2));
    (world, op)
}

/// And found equal.
fn kept() -> (World, OpId) {
    let (mut world, op) = comparing();
    world.accept(N1, equal(op, 2, 3));
    (world, op)
}

#[test]
fn a_volume_moves_and_the_old_replica_goes_last() {
    let (mut world, op) = World::with_data_moving();
    assert_eq!((world.set(), world.data().stage()), ((2, 2, vec![R1, R2]), Some(Stage::Copying)));
    assert_volume(&world.refuse(N1, equal(op, 2, 2)), "not in sync");
    assert_volume(&world.refuse(N1, end_move(op, 2)), "not found equal");

    world.accept(N1, join_set(R3, 2, 2));
    assert_eq!((world.set(), world.data().stage()), ((2, 3, vec![R1, R2, R3]), Some(Stage::Comparing)));
    assert_volume(&world.refuse(N1, end_move(op, 3)), "not found equal");

    world.accept(N1, equal(op, 2, 3));
    assert_eq!(world.data().stage(), Some(Stage::Kept { since: NOON }));
    assert_eq!(world.last_event(), "volume data has moved to n3:fast; the replica in n1:fast is kept for now");
    assert_volume(&world.refuse(N1, equal(op, 2, 3)), "compared already");

    // Whoever leads says when its time is over.
    assert_eq!(world.accept(N2, end_move(op, 3)), Outcome::Set(4));
    assert_eq!((world.set(), world.data().authority), ((2, 4, vec![R2, R3]), R2));
    assert_eq!(world.result(op), Some(&OperationResult::VolumeMoved(copy_report())));
    assert_eq!(world.last_event(), "volume data is in n3:fast now; the replica in n1:fast was removed");
    assert_volume(&world.refuse(N2, end_move(op, 4)), "is over or was never its own");
}

#[test]
fn a_move_is_undone_as_long_as_the_old_replica_is_kept() {
    for story in [World::with_data_moving, comparing, kept] {
        let (mut world, op) = story();
        let version = world.data().version;
        world.accept(N2, Command::Cancel { op });
        assert_eq!((world.set(), world.data().stage()), ((2, version + 1, vec![R1, R2]), None));
        assert!(!world.data().replicas.contains_key(&R3));
        assert_eq!(world.result(op), Some(&OperationResult::Cancelled));
        assert!(world.state.operations[&op].cancel);
        assert_eq!(world.last_event(), "a user cancelled the move of volume data to n3:fast; it stays where it was");
        assert_eq!(world.refuse(N2, Command::Cancel { op }), Refusal::Ended(op));
        assert!(matches!(world.refuse(N1, join_set(R3, 2, version + 1)), Refusal::NoSuchReplica { .. }));
    }
}

#[test]
fn a_copy_that_differs_is_thrown_away() {
    let (mut world, op) = comparing();
    world.accept(N1, different(op, 2, 3));
    assert_eq!((world.set(), world.data().moving), ((2, 4, vec![R1, R2]), None));
    assert_failed(&world, op, &["n3:fast", "4 KiB at 12345"]);
}

#[test]
fn a_copy_that_falls_behind_is_compared_anew() {
    let (mut world, op) = kept();
    let hasty = world.proposal(N2, end_move(op, 3));
    world.accept(N1, leave(R3, 2, 3));
    assert_eq!(world.data().stage(), Some(Stage::Copying));
    assert!(matches!(world.apply(&hasty).outcome, Outcome::Refused(Refusal::VolumeVersion { .. })));
    world.accept(N1, join_set(R3, 2, 4));
    assert_eq!(world.data().stage(), Some(Stage::Comparing));
    assert_volume(&world.refuse(N2, end_move(op, 5)), "not found equal");
    assert!(matches!(world.refuse(N1, equal(op, 2, 3)), Refusal::VolumeVersion { .. }), "of before it fell behind");
    world.accept(N1, equal(op, 2, 5));
    world.accept(N2, end_move(op, 5));
}

#[test]
fn what_cannot_be_undone_any_more_is_not() {
    let (mut world, op) = comparing();
    world.accept(N1, leave(R1, 2, 3));
    world.accept(N1, leave(R2, 2, 4));
    assert_eq!(world.set(), (2, 5, vec![R3]));
    assert_volume(&world.refuse(N2, Command::Cancel { op }), "the last in sync that can be used");
    assert_volume(&world.refuse(N1, different(op, 2, 5)), "the last in sync that can be used");
    // Nobody is left whom it could be compared with.
    world.accept(N2, end_move(op, 5));
    assert_eq!((world.set(), world.data().authority), ((2, 6, vec![R3]), R3));
    assert!(matches!(world.result(op), Some(OperationResult::VolumeMoved(_))));
}

#[test]
fn the_old_replica_stays_while_the_new_one_cannot_be_used() {
    let (mut world, op) = kept();
    world.accept(N3, failed(R3, "its disk is gone"));
    assert_volume(&world.refuse(N2, end_move(op, 3)), "its new replica cannot be used: its disk is gone");
    world.accept(N3, made(R3));
    world.accept(N2, end_move(op, 3));
}

#[test]
fn the_old_replica_may_have_left_before_it_goes() {
    let (mut world, op) = kept();
    world.accept(N1, leave(R1, 2, 3));
    assert_eq!(world.data().stage(), Some(Stage::Kept { since: NOON }), "the new one is as whole as before");
    world.accept(N1, end_move(op, 4));
    assert_eq!(world.set(), (2, 5, vec![R2, R3]));
}

#[test]
fn only_the_writer_compares() {
    let (mut world, op) = comparing();
    assert!(matches!(world.refuse(N3, equal(op, 2, 3)), Refusal::NotTheWriter { .. }));
    assert!(matches!(world.refuse(N1, equal(op, 1, 3)), Refusal::VolumeGeneration { .. }));
    assert_volume(&world.refuse(N1, equal(op_id(77), 2, 3)), "is over or was never its own");
}

#[test]
fn one_move_of_a_volume_at_a_time() {
    let (mut world, op) = World::with_data_moving();
    let begin = |from, pool, keep_ms, version| {
        let bandwidth = None;
        Command::BeginVolumeMove { volume: DATA, from, pool, keep_ms, version, bandwidth }
    };
    assert_volume(&world.refuse(N1, begin(R2, SLOW, 0, 2)), "moves a replica of it already");
    for replica in [R1, R3] {
        let remove = Command::RemoveReplica { volume: DATA, replica, version: 2 };
        assert_volume(&world.refuse(N1, remove), "moves that replica");
    }
    let expect = world.data().generation;
    let mut nobodys = world.clone();
    nobodys.accept(N1, Command::Cancel { op });
    assert!(nobodys.refuse(N1, begin(R1, SLOW, KEEP_MS_MAX + 1, 3)).to_string().contains("at most 28 days"));
    let bandwidth = Some(BANDWIDTH.start() - 1);
    let slow = Command::BeginVolumeMove { volume: DATA, from: R1, pool: SLOW, keep_ms: 0, version: 3, bandwidth };
    assert!(nobodys.refuse(N1, slow).to_string().contains("give 100000 to"));
    assert_volume(&nobodys.refuse(N1, begin(R1, P2, 0, 3)), "it has a replica in n2:fast already");
    assert!(matches!(nobodys.refuse(N1, begin(R1, SLOW, 0, 2)), Refusal::VolumeVersion { .. }));
    assert!(matches!(nobodys.refuse(N1, begin(R3, SLOW, 0, 3)), Refusal::NoSuchReplica { .. }));
    nobodys.accept(N1, begin(R1, SLOW, 0, 3));
    assert_volume(&world.refuse(N1, Command::DeleteVolume { volume: DATA, expect }), "VM web has it");
}

#[test]
fn a_volume_that_moves_is_neither_deleted_nor_grown() {
    let mut world = World::with_data();
    let Outcome::Accepted(op) = world.accept(N1, move_data(P3, 1)) else { panic!("accepted") };
    let delete = Command::DeleteVolume { volume: DATA, expect: world.data().generation };
    let grow = Command::GrowVolume { volume: DATA, size: 20 * GIB };
    for deed in [delete, grow] {
        assert_volume(&world.refuse(N1, deed.clone()), "moves a replica of it");
        let mut free = world.clone();
        free.accept(N1, Command::Cancel { op });
        free.accept(N1, deed);
    }
}

#[test]
fn a_volume_moves_also_while_no_vm_runs_with_it() {
    let mut world = World::with_data();
    let Outcome::Accepted(op) = world.accept(N1, move_data(SLOW, 1)) else { panic!("accepted") };
    world.accept(N1, made(R3));
    world.accept(N2, hold(0, 1, Purpose::Copy));
    world.accept(N2, join_set(R3, 1, 2));
    world.accept(N2, equal(op, 1, 3));
    world.accept(N2, drop_hold(1));
    world.accept(N3, end_move(op, 3));
    assert_eq!(world.set(), (2, 4, vec![R2, R3]));
}

#[test]
fn a_move_that_is_begun_twice_is_one() {
    let mut world = World::with_data();
    let begin = world.proposal(N1, move_data(P3, 1));
    world.apply(&begin);
    world.state.outcomes.remove(&begin.id);
    world.state.outcome_order.retain(|id| *id != begin.id);
    let volumes = world.state.volumes.clone();
    assert_eq!(world.apply(&begin).outcome, Outcome::Accepted(begin.id));
    assert_eq!(world.state.volumes, volumes);
}

#[test]
fn a_move_ends_with_a_node_of_it_that_is_lost() {
    let lost = |node, heir| Command::RemoveNode { node, after: Incarnation(1), heir, lost: true };
    let (mut target, op) = World::with_data_moving();
    target.accept(N1, lost(N3, N1));
    assert_eq!((target.set(), target.data().moving), ((2, 3, vec![R1, R2]), None));
    assert_failed(&target, op, &["n3", "removed"]);

    // Of the source: what came stays, and is as good as any added replica.
    let mut source = World::with_data();
    let begin = Command::BeginVolumeMove { volume: DATA, from: R2, pool: P3, keep_ms: 0, version: 1, bandwidth: None };
    let Outcome::Accepted(op) = source.accept(N1, begin) else { panic!("accepted") };
    source.accept(N1, lost(N2, N1));
    assert_eq!((source.set(), source.data().moving), ((0, 3, vec![R1]), None));
    assert!(source.data().replicas.contains_key(&R3));
    assert_failed(&source, op, &["n2", "removed"]);
}
