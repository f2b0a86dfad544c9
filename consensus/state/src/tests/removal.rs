//! Nodes that leave for good, and what an operator releases of dead ones.

use alloc::string::ToString;

use pollux_wire::{codec, limits::Limit};

use super::world::*;
use crate::{
    ClusterState, Command, Outcome, Refusal,
    id::{Generation, Incarnation, NodeId},
    limits::REMOVED_MAX,
    vm::{Desired, StopCause},
};

const N4: NodeId = NodeId(4);

fn lost(words: &str) -> StopCause {
    StopCause::HostLost(words.to_string())
}

#[track_caller]
fn assert_in_use(refusal: &Refusal, word: &str) {
    let told = matches!(refusal, Refusal::NodeInUse { why, .. } if why.contains(word));
    assert!(told, "{refusal} says {word:?}");
}

/// Joined, and its daemon never started.
fn ghost(world: &mut World) {
    world.accept(N1, token(N4, NOON + 1_000));
    world.accept(N1, join(N4));
}

#[test]
fn a_node_without_vms_leaves_and_its_number_writes_nothing_any_more() {
    let mut world = World::with_web_running();
    assert_eq!(world.accept(N1, remove(N3)), Outcome::Done);
    assert_eq!(world.last_event(), "n3 was removed from the cluster");
    assert!(world.state.is_removed(N3) && !world.state.is_removed(N2) && !world.state.is_removed(N4));
    assert_eq!(world.state.name_of(N3), Some("n3"));

    let gone = Refusal::Removed("n3".to_string());
    assert_eq!(world.refuse(N3, start_incarnation(N3, FIRST_LIFE)), gone);
    assert_eq!(world.refuse(N3, claim(1, FIRST_LIFE)), gone);
    assert_eq!(world.refuse(N1, begin_move(1, N3)), gone);
    assert_eq!(world.refuse(N1, create("db", N3, Desired::Running)), gone);
    assert_eq!(world.refuse(N1, remove(N3)), gone, "removed is removed");
}

#[test]
fn neither_its_token_nor_its_key_lets_it_in_again_but_its_name_is_free() {
    let mut world = World::three_nodes();
    world.accept(N1, remove(N3));

    // Its own old token, which it may show as often as it likes while it is a member.
    assert_eq!(world.refuse(N1, join(N3)), Refusal::Removed("n3".to_string()));

    // A new token for the same name, shown with the old key, then with a new one.
    let secret_hash = bytes(NodeId(70));
    world.accept(N1, Command::AddToken { secret_hash, node_name: "n3".to_string(), expires: NOON + 1_000 });
    let with = |key| Command::Join { secret_hash, name: "n3".to_string(), address: address(N3), key };
    assert_eq!(world.refuse(N1, with(bytes(N3))), Refusal::Removed("n3".to_string()));
    assert_eq!(world.accept(N1, with(bytes(NodeId(71)))), Outcome::Joined(N4), "a wiped node is a new node");
}

#[test]
fn the_last_number_is_not_given_again_when_its_node_was_removed() {
    let mut world = World::three_nodes();
    world.accept(N1, remove(N3));
    ghost(&mut world);
    assert_eq!(world.state.nodes.keys().copied().collect::<alloc::vec::Vec<_>>(), [N1, N2, N4]);
}

#[test]
fn what_was_removed_stays_removed_through_a_snapshot() {
    let mut world = World::three_nodes();
    world.accept(N1, remove(N3));
    let bytes = codec::encode(&world.state, Limit::State).expect("it fits");
    world.state = codec::decode::<ClusterState>(&bytes, Limit::State).expect("it is read back");
    assert_eq!(world.refuse(N3, start_incarnation(N3, FIRST_LIFE)), Refusal::Removed("n3".to_string()));
    assert_eq!(world.refuse(N1, join(N3)), Refusal::Removed("n3".to_string()));
}

#[test]
fn a_node_that_never_started_can_be_removed() {
    let mut world = World::three_nodes();
    ghost(&mut world);
    world.accept(N2, Command::RemoveNode { node: N4, after: Incarnation(0), heir: N1, lost: false });
    assert_eq!(world.refuse(N4, start_incarnation(N4, Incarnation(0))), Refusal::Removed("n4".to_string()));
}

#[test]
fn a_node_that_started_meanwhile_is_not_the_one_that_was_meant() {
    let mut world = World::three_nodes();
    ghost(&mut world);
    world.restart(N4);
    let refusal = world.refuse(N1, Command::RemoveNode { node: N4, after: Incarnation(0), heir: N1, lost: false });
    assert!(matches!(refusal, Refusal::AnotherLife { current: Incarnation(1), .. }), "{refusal}");
}

#[test]
fn the_last_node_stays_and_nobody_inherits_from_itself() {
    let mut world = World::empty();
    world.accept(N1, found());
    world.restart(N1);
    assert_in_use(&world.refuse(N1, remove(N1)), "the last node");

    let mut world = World::three_nodes();
    assert!(matches!(world.refuse(N1, remove(N1)), Refusal::Invalid { what, .. } if what == "heir"));
}

#[test]
fn a_node_with_a_vm_in_its_hands_stays() {
    let inherit = Command::RemoveNode { node: N1, after: FIRST_LIFE, heir: N2, lost: false };
    assert_in_use(&World::with_web().refuse(N2, inherit.clone()), "VM web is to be started there");
    assert_in_use(&World::with_web_running().refuse(N2, inherit.clone()), "the right to run VM web");
    let (mut moving, _) = World::with_web_moving();
    assert_in_use(&moving.refuse(N3, inherit.clone()), "VM web is moving");
    assert_in_use(&moving.refuse(N3, remove(N2)), "VM web is moving");
    let (mut arriving, _) = World::with_web_arriving();
    assert_in_use(&arriving.refuse(N3, inherit), "VM web is moving");
}

#[test]
fn stopped_vms_have_their_home_with_the_heir_from_then_on() {
    let mut world = World::with_web_running();
    world.accept(N3, set_desired(Desired::Stopped { force: true }));
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N3, Command::RemoveNode { node: N1, after: FIRST_LIFE, heir: N2, lost: false });
    assert_eq!(world.web().home, N2);
    assert_eq!(world.last_event(), "n1 was removed from the cluster; one stopped VM has its home on n2 now");
    world.accept(N3, set_desired(Desired::Running));
    assert_eq!(world.accept(N2, claim(2, FIRST_LIFE)), Outcome::Owned(Generation(3)));
}

#[test]
fn what_was_to_be_started_on_a_lost_node_waits_for_a_person() {
    let mut world = World::with_web();
    assert_eq!(world.web().desired, Desired::Running);
    world.accept(N3, Command::RemoveNode { node: N1, after: FIRST_LIFE, heir: N2, lost: true });
    assert_eq!((world.web().home, world.web().desired), (N2, Desired::Stopped { force: false }));

    // Not even a lost node goes with something in its hands.
    let lost = Command::RemoveNode { node: N1, after: FIRST_LIFE, heir: N2, lost: true };
    assert_in_use(&World::with_web_running().refuse(N2, lost), "the right to run VM web");
}

#[test]
fn what_a_lost_host_owned_is_released_by_name_and_started_where_a_person_says() {
    let mut world = World::with_web_running();
    assert_eq!(world.accept(N2, release_lost(1)), Outcome::Owned(Generation(2)));
    assert_eq!(world.standing(), (Generation(2), stopped(lost("carol declared n1 lost"))));
    assert_eq!(world.web().desired, Desired::Stopped { force: false }, "nothing starts by itself");
    assert!(world.last_event().starts_with("carol declared n1 lost"));

    // Its host is back after all: neither its old life nor a new one starts it, nor does it end what others do.
    let life = world.restart(N1);
    assert!(matches!(world.refuse(N1, claim(1, FIRST_LIFE)), Refusal::Generation { .. }));
    assert!(matches!(world.refuse(N1, claim(2, life)), Refusal::WrongPhase { .. }));
    assert!(matches!(world.refuse(N1, release(1, life, StopCause::DaemonEnded)), Refusal::Generation { .. }));

    let elsewhere = Command::SetDesired { vm: WEB, desired: Desired::Running, home: Some(N2) };
    world.accept(N3, elsewhere);
    assert_eq!(world.accept(N2, claim(2, FIRST_LIFE)), Outcome::Owned(Generation(3)));
    world.accept(N2, Command::RemoveNode { node: N1, after: life, heir: N2, lost: false });
}

#[test]
fn a_release_ends_the_move_that_was_under_way() {
    let (mut moving, op) = World::with_web_moving();
    moving.accept(N3, release_lost(1));
    assert_failed(&moving, op, &["carol", "n1"]);

    // The target won it and is lost: nobody knows what the guest did there, so the source's older copy is not used.
    let (mut arriving, op) = World::with_web_arriving();
    arriving.accept(N3, release_lost(2));
    assert_eq!(arriving.standing(), (Generation(3), stopped(lost("carol declared n2 lost"))));
    assert_failed(&arriving, op, &["carol", "n2"]);
}

#[test]
fn a_release_needs_a_name_an_owner_and_the_generation_that_was_seen() {
    let mut world = World::with_web();
    assert!(matches!(world.refuse(N2, release_lost(0)), Refusal::WrongPhase { .. }));
    let mut world = World::with_web_running();
    let nameless = Command::ReleaseLost { vm: WEB, expect: Generation(1), operator: " ".to_string() };
    assert!(matches!(world.refuse(N2, nameless), Refusal::Invalid { what, .. } if what == "operator"));
    assert!(matches!(world.refuse(N2, release_lost(0)), Refusal::Generation { .. }));
    let own = release(1, FIRST_LIFE, lost("me"));
    assert!(matches!(world.refuse(N1, own), Refusal::Invalid { what, .. } if what == "cause"));
}

#[test]
fn the_memory_of_removed_nodes_is_bounded_and_their_numbers_stay_refused() {
    let mut world = World::three_nodes();
    for number in 4..=(4 + REMOVED_MAX as u64) {
        let node = NodeId(number);
        world.accept(N1, token(node, world.now + 1));
        world.accept(N1, join(node));
        world.accept(N1, Command::RemoveNode { node, after: Incarnation(0), heir: N1, lost: false });
        world.now += 2;
    }
    assert_eq!(world.state.removed.len(), REMOVED_MAX);
    assert!(!world.state.removed.contains_key(&N4), "the first removed is forgotten by name");
    let refused = world.refuse(N4, start_incarnation(N4, Incarnation(0)));
    assert_eq!(refused, Refusal::Removed(N4.to_string()), "but not as a number");
}
