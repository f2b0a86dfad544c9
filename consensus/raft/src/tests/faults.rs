//! Bad days.

use super::*;
use crate::{ProposeError, ReadError};

#[tokio::test(start_paused = true)]
async fn the_leader_dies_and_the_others_go_on() {
    let cluster = Cluster::of(3).await;
    let before = cluster.node(2).propose(token(41, NodeId(2)), SOON).await.unwrap();
    cluster.kill(1).await;

    let applied = cluster.node(2).propose(token(42, NodeId(2)), SOON).await.unwrap();

    let leader = cluster.until_led_by_one_of(&[2, 3]).await;
    assert_ne!(leader, NodeId(1));
    assert!(applied.index > before.index);
    until(&cluster.node(3), |view| view.applied >= applied.index).await;
    let view = cluster.node(3).watch().borrow().clone();
    assert!(view.state.tokens.contains_key(&hash(41)) && view.state.tokens.contains_key(&hash(42)));
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_replaced_within_two_leases() {
    let cluster = Cluster::of(3).await;
    cluster.node(3).linearizable(SOON).await.unwrap();
    let begun = tokio::time::Instant::now();
    cluster.kill(1).await;

    cluster.until_led_by_one_of(&[2, 3]).await;

    let took = begun.elapsed();
    assert!(took <= Duration::from_millis(2_500), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn all_lose_their_power_at_once_and_nothing_acknowledged_is_lost() {
    let cluster = Cluster::of(3).await;
    for number in 100..120 {
        cluster.node(number % 3 + 1).propose(token(number, NodeId(number % 3 + 1)), SOON).await.unwrap();
    }
    for node in 1..=3 {
        cluster.kill(node).await;
    }

    for node in 1..=3 {
        cluster.start(node).await;
    }

    for node in 1..=3 {
        cluster.node(node).linearizable(SOON).await.unwrap();
        let state = cluster.node(node).watch().borrow().state.clone();
        assert!((100..120).all(|number| state.tokens.contains_key(&hash(number))), "node {node} lost something");
    }
}

#[tokio::test(start_paused = true)]
async fn a_minority_never_succeeds_and_says_what_it_does_not_know() {
    let cluster = Cluster::of(3).await;
    let leader = NodeId(1);
    assert!(leads(&cluster.node(1)));

    // The leader, alone: its entry is in its own log, so nobody can say yet.
    cluster.wires.isolate(leader);
    let alone = cluster.node(1).propose(token(42, leader), Duration::from_secs(3)).await;
    assert!(matches!(alone, Err(ProposeError::Unknown { .. })), "{alone:?}");
    assert!(matches!(cluster.node(1).linearizable(Duration::from_secs(2)).await, Err(ReadError::NoLeader { .. })));

    // It comes back; the truth is one and the same for all, whichever it is.
    let new_leader = cluster.until_led_by_one_of(&[2, 3]).await;
    assert_ne!(new_leader, leader);
    cluster.wires.heal();
    let settled = cluster.node(1).propose(token(42, leader), SOON).await.unwrap();
    assert_eq!(settled.outcome, Outcome::Done);

    // A follower whose requests surely went nowhere says that.
    let new_leader = cluster.until_led_by_one_of(&[2, 3]).await;
    let follower = if new_leader == NodeId(2) { NodeId(3) } else { NodeId(2) };
    for node in [leader, new_leader] {
        cluster.wires.unplug(node).shutdown().await;
    }
    let nowhere = cluster.node(follower.0).propose(token(43, follower), Duration::from_secs(1)).await;
    assert!(matches!(nowhere, Err(ProposeError::NoLeader { .. })), "{nowhere:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_cut_off_hears_no_leader_not_even_itself() {
    for (cut_off, led_before) in [(NodeId(1), true), (NodeId(3), false)] {
        let cluster = Cluster::of(3).await;
        assert_eq!(leads(&cluster.node(cut_off.0)), led_before);
        let mut heard = cluster.node(cut_off.0).leader();
        tokio::time::timeout(SOON, heard.wait_for(Option::is_some)).await.unwrap().unwrap();

        cluster.wires.isolate(cut_off);
        let silence = tokio::time::timeout(Duration::from_secs(3), heard.wait_for(Option::is_none)).await;
        assert!(silence.is_ok(), "{cut_off} goes on naming a leader that it cannot hear");
        drop(silence);

        cluster.wires.heal();
        tokio::time::timeout(SOON, heard.wait_for(Option::is_some)).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_again() {
    let cluster = Cluster::of(3).await;
    assert!(leads(&cluster.node(1)));
    cluster.wires.lose_answers(pollux_wire::method::PROPOSE, 2);

    let applied = cluster.node(2).propose(token(42, NodeId(2)), SOON).await.unwrap();

    assert_eq!(applied.outcome, Outcome::Done, "its own earlier attempt is no stranger's");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_and_no_time_left_is_unknown() {
    let cluster = Cluster::of(3).await;
    cluster.wires.lose_answers(pollux_wire::method::PROPOSE, usize::MAX);

    let outcome = cluster.node(2).propose(token(42, NodeId(2)), Duration::from_secs(3)).await;

    assert!(matches!(outcome, Err(ProposeError::Unknown { .. })), "{outcome:?}");
    cluster.node(2).linearizable(SOON).await.unwrap();
    assert!(cluster.node(2).watch().borrow().state.tokens.contains_key(&hash(42)), "and this is why it is not \"no\"");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    let cluster = Cluster::of(3).await;
    let before = cluster.node(1).status();
    assert_eq!(before.role, Role::Leader);

    cluster.wires.isolate(NodeId(3));
    tokio::time::sleep(Duration::from_secs(30)).await;
    cluster.wires.heal();
    let applied = cluster.node(2).propose(token(42, NodeId(2)), SOON).await.unwrap();
    until(&cluster.node(3), |view| view.applied >= applied.index).await;

    let after = cluster.node(1).status();
    assert_eq!((after.role, after.term), (Role::Leader, before.term));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_only_the_leader_does_not_depose_it_either() {
    let cluster = Cluster::of(3).await;
    let before = cluster.node(1).status();

    cluster.wires.cut(NodeId(1), NodeId(3));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(cluster.node(3).status().term == before.term, "it stood for election though node 2 hears the leader");
    cluster.wires.heal();
    cluster.node(3).linearizable(SOON).await.unwrap();

    let after = cluster.node(1).status();
    assert_eq!((after.role, after.term), (Role::Leader, before.term));
}

#[tokio::test(start_paused = true)]
async fn a_single_node_leads_again_after_a_power_cut() {
    let cluster = Cluster::found(Retention::default()).await;
    cluster.node(1).propose(token(42, NodeId(1)), SOON).await.unwrap();
    cluster.kill(1).await;

    let again = cluster.start(1).await;

    again.linearizable(SOON).await.unwrap();
    assert!(again.watch().borrow().state.tokens.contains_key(&hash(42)));
}

/// What a leader had committed last it has not written down as committed when it is killed, and it leads on in its term.
#[tokio::test(start_paused = true)]
async fn a_leader_that_was_killed_forgets_nothing_that_was_committed() {
    let cluster = Cluster::of(3).await;
    let before = cluster.node(1).status();
    assert_eq!(before.role, Role::Leader);
    cluster.node(1).propose(token(42, NodeId(1)), SOON).await.unwrap();
    let committed = cluster.node(1).watch().borrow().applied;
    cluster.kill(1).await;

    let again = cluster.start(1).await;
    let reply = again.index_here(SOON).await;

    assert!(
        matches!(reply, crate::message::ReadReply::Index(index) if index >= committed),
        "a read that begins after entry {committed} was committed needs less: {reply:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_votes_in_the_name_of_another() {
    let cluster = Cluster::of(3).await;
    let request = openraft::raft::VoteRequest::<u64>::new(openraft::Vote::new(99, 3), None);
    let body = crate::encoding::encode(&request).unwrap();

    let forged = cluster.node(1).answer(NodeId(2), pollux_wire::method::VOTE, &body).await;

    assert!(matches!(forged, Err(crate::serve::Refusal::NotAllowed(_))), "{forged:?}");
}
