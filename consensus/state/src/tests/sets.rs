//! The in-sync set: who says who is in it, and what cannot be lost.

use alloc::{string::ToString, vec};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, Incarnation, NodeId, ReplicaId},
    limits::REPLICAS_MAX,
    vm::{Desired, StopCause},
};

#[track_caller]
fn assert_volume(refusal: &Refusal, word: &str) {
    let told = matches!(refusal, Refusal::Volume { why, .. } if why.contains(word));
    assert!(told, "{refusal} says {word:?}");
}

#[track_caller]
fn assert_not_the_writer(refusal: &Refusal, word: &str) {
    let told = matches!(refusal, Refusal::NotTheWriter { why, .. } if why.contains(word));
    assert!(told, "{refusal} says {word:?}");
}

#[test]
fn the_writer_leaves_a_replica_behind_and_takes_it_in_again() {
    let mut world = World::with_web_writing();
    assert_eq!(world.set(), (2, 1, vec![R1, R2]));
    assert_eq!(world.accept(N1, leave(R2, 2, 1)), Outcome::Set(2));
    let told = "the replica of volume data in n2:fast is not in sync any more: it does not answer";
    assert_eq!((world.set(), world.last_event()), ((2, 2, vec![R1]), told));
    assert_eq!(world.accept(N1, join_set(R2, 2, 2)), Outcome::Set(3));
    assert_eq!(
        (world.set(), world.last_event()),
        ((2, 3, vec![R1, R2]), "the replica of volume data in n2:fast is in sync")
    );
    assert_volume(&world.refuse(N1, join_set(R2, 2, 3)), "is in sync already");
}

#[test]
fn whose_content_counts_is_always_one_of_the_set() {
    let mut world = World::with_web_writing();
    world.accept(N1, leave(R1, 2, 1));
    assert_eq!(world.data().authority, R2);
    world.accept(N1, join_set(R1, 2, 2));
    assert_eq!(world.data().authority, R2, "it stays where it is while that counts");
    world.accept(N1, leave(R2, 2, 3));
    assert_eq!(world.data().authority, R1);
}

#[test]
fn the_last_of_the_set_does_not_leave_it() {
    let mut world = World::with_web_writing();
    world.accept(N1, leave(R2, 2, 1));
    assert_volume(&world.refuse(N1, leave(R1, 2, 2)), "the last in sync");
    assert_eq!(world.set(), (2, 2, vec![R1]));
}

#[test]
fn one_that_is_outside_leaves_again_so_that_an_unknown_join_is_void() {
    let mut world = World::with_web_writing();
    world.accept(N1, leave(R2, 2, 1));
    let unknown = world.proposal(N1, join_set(R2, 2, 2));
    assert_eq!(world.accept(N1, leave(R2, 2, 2)), Outcome::Set(3));
    let expected = Refusal::VolumeVersion { volume: "data".to_string(), expected: 2, current: 3 };
    assert_eq!(world.apply(&unknown).outcome, Outcome::Refused(expected));
    assert_eq!(world.set(), (2, 3, vec![R1]));
}

#[test]
fn nobody_but_the_writer_in_its_current_life_speaks_about_the_set() {
    let mut world = World::with_web_writing();
    assert_not_the_writer(&world.refuse(N2, leave(R1, 2, 1)), "n1 writes to it");
    assert!(matches!(world.refuse(N1, leave(R2, 1, 1)), Refusal::VolumeGeneration { .. }), "before it was started");
    assert!(matches!(world.refuse(N1, leave(R2, 2, 0)), Refusal::VolumeVersion { .. }));
    assert!(matches!(world.refuse(N1, leave(R3, 2, 1)), Refusal::NoSuchReplica { .. }));

    world.restart(N1);
    assert_not_the_writer(&world.refuse(N1, leave(R2, 2, 1)), "that life is over");

    let mut world = World::with_web_on_data();
    assert_not_the_writer(&world.refuse(N1, leave(R2, 1, 1)), "nobody writes to it now");
}

#[test]
fn the_right_to_speak_about_the_set_goes_with_the_vm() {
    let mut world = World::with_web_writing();
    let Outcome::Accepted(op) = world.accept(N3, begin_move(1, N2)) else { panic!("accepted") };
    world.accept(N1, leave(R2, 2, 1));
    world.accept(N1, join_set(R2, 2, 2));
    let late = world.proposal(N1, leave(R2, 2, 3));
    world.accept(N2, switchover(op, 1, FIRST_LIFE));
    assert!(matches!(world.apply(&late).outcome, Outcome::Refused(Refusal::VolumeGeneration { .. })));
    assert_not_the_writer(&world.refuse(N1, leave(R2, 3, 3)), "n2 writes to it");
    world.accept(N2, leave(R1, 3, 3));
    assert_eq!(world.set(), (3, 4, vec![R2]));
}

#[test]
fn only_what_is_made_and_in_order_joins() {
    let mut world = World::with_web_writing();
    let added = Command::AddReplica { volume: DATA, pool: P3, version: 1 };
    assert_eq!(world.accept(N2, added), Outcome::ReplicaAdded(R3));
    assert_eq!((world.set(), world.last_event()), ((2, 2, vec![R1, R2]), "volume data gets a replica in n3:fast"));
    assert_volume(&world.refuse(N1, join_set(R3, 2, 2)), "not made yet");
    world.accept(N3, failed(R3, "no room"));
    assert_volume(&world.refuse(N1, join_set(R3, 2, 2)), "cannot be used: no room");
    world.accept(N3, made(R3));
    world.accept(N1, join_set(R3, 2, 2));
    assert_eq!(world.set(), (2, 3, vec![R1, R2, R3]));
}

#[test]
fn replicas_are_added_in_other_pools_and_only_so_many() {
    let mut world = World::with_web_writing();
    let add = |pool, version| Command::AddReplica { volume: DATA, pool, version };
    assert_volume(&world.refuse(N1, add(P2, 1)), "it has a replica in n2:fast already");
    world.accept(N1, add(P3, 1));
    assert!(matches!(world.refuse(N1, add(SLOW, 1)), Refusal::VolumeVersion { .. }), "somebody else added one");
    world.accept(N1, add(SLOW, 2));
    assert_eq!(world.data().replicas.len(), REPLICAS_MAX);
    let Outcome::PoolAdded(pool) = world.accept(N2, add_pool("more")) else { panic!("added") };
    assert_volume(&world.refuse(N1, add(pool, 3)), "none has more");
}

#[test]
fn the_last_replica_that_can_be_used_is_not_removed() {
    let mut world = World::with_web_writing();
    let remove = |replica, version| Command::RemoveReplica { volume: DATA, replica, version };
    world.accept(N1, leave(R2, 2, 1));
    assert_volume(&world.refuse(N3, remove(R1, 2)), "the last in sync that can be used");
    assert!(matches!(world.refuse(N3, remove(R2, 1)), Refusal::VolumeVersion { .. }));
    world.accept(N1, join_set(R2, 2, 2));

    // It is in the set, and its node has found it broken: the writer has yet to leave it behind.
    world.accept(N2, failed(R2, "its log is torn"));
    assert_volume(&world.refuse(N3, remove(R1, 3)), "the last in sync that can be used");
    assert_eq!(world.accept(N3, remove(R2, 3)), Outcome::Set(4));
    assert_eq!(
        (world.set(), world.last_event()),
        ((2, 4, vec![R1]), "the replica of volume data in n2:fast was removed")
    );
}

#[test]
fn who_is_removed_leaves_the_set_with_it() {
    let mut world = World::with_web_writing();
    assert_eq!(world.accept(N3, Command::RemoveReplica { volume: DATA, replica: R1, version: 1 }), Outcome::Set(2));
    assert_eq!((world.set(), world.data().authority), ((2, 2, vec![R2]), R2));
    assert!(matches!(world.refuse(N1, leave(R1, 2, 2)), Refusal::NoSuchReplica { .. }));
}

#[track_caller]
fn assert_in_use(refusal: &Refusal, word: &str) {
    let told = matches!(refusal, Refusal::NodeInUse { why, .. } if why.contains(word));
    assert!(told, "{refusal} says {word:?}");
}

fn give_up(node: NodeId, life: u64) -> Command {
    let heir = if node == N1 { N2 } else { N1 };
    Command::RemoveNode { node, after: Incarnation(life), heir, lost: true }
}

#[test]
fn a_node_with_replicas_leaves_only_when_it_is_lost() {
    let mut world = World::with_web_writing();
    assert_in_use(&world.refuse(N1, remove(N2)), "its pools hold replicas of data; move them away first");
    world.accept(N1, give_up(N2, 1));
    assert_eq!((world.set(), world.data().replicas.len()), ((2, 2, vec![R1]), 1));
    assert!(!world.state.pools.contains_key(&P2));
    assert_eq!(world.last_event(), "n2 was removed from the cluster; one volume lost a replica with it");

    // n3 has a pool and nothing in it.
    world.accept(N1, remove(N3));
    assert!(!world.state.pools.contains_key(&P3));
}

#[test]
fn a_node_with_the_last_replica_in_sync_stays_even_if_it_is_lost() {
    let mut world = World::with_web_writing();
    world.accept(N1, leave(R2, 2, 1));
    world.accept(N1, set_desired(Desired::Stopped { force: false }));
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    assert_in_use(&world.refuse(N2, give_up(N1, 1)), "the last replica in sync of data");

    world.accept(N2, detach(3));
    world.accept(N2, Command::DeleteVolume { volume: DATA, expect: Generation(4) });
    world.accept(N2, give_up(N1, 1));
    assert_eq!(world.state.last_replica, ReplicaId(2), "no number is given again");
}
