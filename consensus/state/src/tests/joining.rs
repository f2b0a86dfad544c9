//! How a cluster begins, how nodes get in, and how their daemons' lives are counted.

use alloc::string::ToString;

use super::world::*;
use crate::{
    Command, Outcome, Refusal, TokenRefusal,
    id::{ClusterId, Incarnation, NodeId},
    node::Facts,
    vm::Desired,
};

#[test]
fn a_cluster_is_founded_once_and_nothing_happens_before() {
    let mut world = World::empty();
    let early = world.refuse(N1, create("web", N1, Desired::Running));
    assert_eq!(early, Refusal::Founding("not founded yet; run `pollux cluster init`".to_string()));

    assert_eq!(world.accept(N1, found()), Outcome::Joined(N1));
    assert_eq!(world.state.cluster, Some(ClusterId([0xc0; 16])));
    let first = &world.state.nodes[&N1];
    assert!(first.authority);
    assert_eq!((first.name.as_str(), first.incarnation), ("n1", Incarnation(0)));
    assert_eq!(world.last_event(), "the cluster was founded on n1");

    assert!(matches!(world.refuse(N1, found()), Refusal::Founding(_)));
}

#[test]
fn a_cluster_is_not_founded_at_a_wildcard_or_under_an_odd_name() {
    let mut world = World::empty();
    let (cluster, key) = (ClusterId([1; 16]), [1; 32]);
    for (name, address) in [("N1", "192.0.2.1:7000"), ("", "192.0.2.1:7000"), ("n1", "0.0.0.0:7000"), ("n1", "[::1]:0")]
    {
        let address = address.parse().expect("an address");
        let refusal = world.refuse(N1, Command::Found { cluster, name: name.to_string(), address, key });
        assert!(matches!(refusal, Refusal::Invalid { .. }), "{name:?} at {address}: {refusal}");
    }
    assert!(world.state.nodes.is_empty());
}

#[test]
fn a_node_joins_with_its_token() {
    let mut world = World::empty();
    world.accept(N1, found());
    world.accept(N1, token(N2, NOON + 1_000));

    assert_eq!(world.accept(N1, join(N2)), Outcome::Joined(N2));
    let node = &world.state.nodes[&N2];
    assert!(!node.authority);
    assert_eq!((node.name.as_str(), node.address), ("n2", address(N2)));
    assert_eq!(world.last_event(), "n2 joined at 192.0.2.3:7002");
}

#[test]
fn a_node_whose_answer_was_lost_asks_again_and_is_the_same_node() {
    let mut world = World::empty();
    world.accept(N1, found());
    world.accept(N1, token(N2, NOON + 1_000));
    world.accept(N1, join(N2));

    world.now = NOON + 2_000;
    assert_eq!(world.accept(N1, join(N2)), Outcome::Joined(N2));
    assert_eq!(world.state.nodes.len(), 2);
}

#[test]
fn a_token_is_refused_to_the_wrong_ones() {
    let mut world = World::empty();
    world.accept(N1, found());

    // Never made.
    assert!(matches!(world.refuse(N1, join(N2)), Refusal::Token(TokenRefusal::Unknown)));

    // Made for another name.
    world.accept(N1, token(N2, NOON + 1_000));
    let other = Command::Join { secret_hash: bytes(N2), name: "n9".to_string(), address: address(N2), key: bytes(N2) };
    assert!(
        matches!(world.refuse(N1, other), Refusal::Token(TokenRefusal::OtherName { made_for, .. }) if made_for == "n2")
    );

    // Used by somebody else.
    world.accept(N1, join(N2));
    let thief = Command::Join { secret_hash: bytes(N2), name: "n2".to_string(), address: address(N3), key: bytes(N3) };
    assert!(matches!(world.refuse(N1, thief), Refusal::Token(TokenRefusal::Used { by }) if by == "n2"));

    // Expired to the millisecond.
    world.accept(N1, token(N3, NOON + 1_000));
    world.now = NOON + 1_000;
    assert!(matches!(world.refuse(N1, join(N3)), Refusal::Token(TokenRefusal::Expired)));
    assert_eq!(world.state.nodes.len(), 2);
}

#[test]
fn names_addresses_and_keys_of_nodes_are_their_own() {
    let mut world = World::three_nodes();
    assert_eq!(world.refuse(N1, token(N2, NOON + 1_000)), Refusal::NameTaken("n2".to_string()));

    let n4 = NodeId(4);
    world.accept(N1, token(n4, NOON + 1_000));
    let (secret_hash, name) = (bytes(n4), name(n4));
    let elsewhere = Command::Join { secret_hash, name: name.clone(), address: address(N2), key: bytes(n4) };
    assert!(matches!(world.refuse(N1, elsewhere), Refusal::Invalid { what, .. } if what == "address"));
    let copied = Command::Join { secret_hash, name, address: address(n4), key: bytes(N2) };
    assert!(matches!(world.refuse(N1, copied), Refusal::Invalid { what, .. } if what == "key"));
    assert_eq!(world.accept(N1, join(n4)), Outcome::Joined(n4));
}

#[test]
fn a_token_must_have_time_left_and_a_secret_of_its_own() {
    let mut world = World::three_nodes();
    let n4 = NodeId(4);
    assert!(matches!(world.refuse(N1, token(n4, NOON)), Refusal::Invalid { what, .. } if what == "ttl"));
    world.accept(N1, token(n4, NOON + 1));
    assert!(matches!(world.refuse(N1, token(n4, NOON + 1)), Refusal::Token(_)));
}

#[test]
fn each_start_of_a_daemon_is_a_new_life() {
    let mut world = World::three_nodes();
    assert_eq!(world.state.nodes[&N1].incarnation, Incarnation(1));
    assert_eq!(world.restart(N1), Incarnation(2));
    assert_eq!(world.last_event(), "the daemon of n1 started again");
    assert_eq!(world.state.nodes[&N2].incarnation, Incarnation(1));

    let address = "198.51.100.9:7100".parse().expect("an address");
    world.accept(N1, Command::StartIncarnation { after: Incarnation(2), address, facts: Facts::default() });
    assert_eq!(world.state.nodes[&N1].address, address);
    assert_eq!(world.last_event(), "the daemon of n1 started again at 198.51.100.9:7100");
}

#[test]
fn a_late_word_of_a_dead_process_ends_no_living_one() {
    let mut world = World::three_nodes();
    let late = start_incarnation(N1, Incarnation(1));
    world.restart(N1);
    assert!(matches!(world.refuse(N1, late), Refusal::AnotherLife { current: Incarnation(2), .. }));
    assert_eq!(world.state.nodes[&N1].incarnation, Incarnation(2));
}

#[test]
fn two_hosts_that_swapped_their_addresses_can_both_say_so() {
    let mut world = World::three_nodes();
    let facts = Facts::default();
    let after = FIRST_LIFE;
    world.accept(N1, Command::StartIncarnation { after, address: address(N2), facts: facts.clone() });
    world.accept(N2, Command::StartIncarnation { after, address: address(N1), facts });
    assert_eq!((world.state.nodes[&N1].address, world.state.nodes[&N2].address), (address(N2), address(N1)));
}

#[test]
fn a_stranger_writes_nothing() {
    let mut world = World::with_web();
    let stranger = NodeId(9);
    let no_such = Refusal::NoSuchNode("node-9".to_string());
    assert_eq!(world.refuse(stranger, start_incarnation(N1, FIRST_LIFE)), no_such);
    assert_eq!(world.refuse(stranger, claim(0, FIRST_LIFE)), no_such);
    assert_eq!(world.refuse(stranger, set_desired(Desired::Running)), no_such);
}

#[test]
fn the_authority_is_where_its_key_was_found_last() {
    let mut world = World::three_nodes();
    let life = |after, facts| Command::StartIncarnation { after, address: address(N1), facts };
    world.accept(N1, life(FIRST_LIFE, Facts::default()));
    assert!(world.state.nodes[&N1].authority, "it says nothing about it");
    world.accept(N1, life(Incarnation(2), Facts::default().with_authority(false)));
    assert!(!world.state.nodes[&N1].authority, "its key is gone");

    let moved = Command::StartIncarnation {
        after: FIRST_LIFE,
        address: address(N2),
        facts: Facts::default().with_authority(true),
    };
    world.accept(N2, moved);
    assert!(world.state.nodes[&N2].authority);
}
