//! What a cluster does on a good day.

use pollux_state::detector::Verdict;

use super::*;

#[tokio::test(start_paused = true)]
async fn joined_nodes_take_part_by_themselves_and_any_node_proposes() {
    let cluster = Cluster::of(3).await;

    let applied = cluster.node(3).propose(token(42, NodeId(3)), SOON).await.unwrap();

    assert_eq!(applied.outcome, Outcome::Done);
    for node in 1..=3 {
        until(&cluster.node(node), |view| view.applied >= applied.index).await;
        assert!(cluster.node(node).watch().borrow().state.tokens.contains_key(&hash(42)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_three_vote_and_the_fourth_learns() {
    let cluster = Cluster::of(4).await;
    let fourth = cluster.node(4);

    let applied = fourth.propose(token(42, NodeId(4)), SOON).await.unwrap();

    until(&fourth, |view| view.applied >= applied.index).await;
    let status = fourth.status();
    assert_eq!(status.role, Role::Learner);
    assert_eq!(status.voters, [NodeId(1), NodeId(2), NodeId(3)]);
    assert_eq!(status.learners, [NodeId(4)]);
}

#[tokio::test(start_paused = true)]
async fn a_read_on_a_follower_sees_the_write_before_it() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.node(3);
    for number in 100..120 {
        let written = cluster.node(2).propose(token(number, NodeId(2)), SOON).await.unwrap();

        let index = follower.linearizable(SOON).await.unwrap();

        assert!(index >= written.index);
        let view = follower.watch().borrow().clone();
        assert!(view.applied >= index && view.state.tokens.contains_key(&hash(number)));
        assert!(view.state.tokens.len() <= 40, "tokens pile up");
    }
}

#[tokio::test(start_paused = true)]
async fn one_id_changes_the_state_once_and_always_answers_the_same() {
    let cluster = Cluster::of(3).await;

    let first = cluster.node(2).propose(token(42, NodeId(2)), SOON).await.unwrap();
    let again = cluster.node(2).propose(token(42, NodeId(2)), SOON).await.unwrap();

    assert_eq!(first.outcome, Outcome::Done);
    assert_eq!(again.outcome, Outcome::Done, "a second token with this hash would be refused");
    assert!(again.index == first.index);
}

#[tokio::test(start_paused = true)]
async fn founding_may_be_repeated_but_not_by_another() {
    let cluster = Cluster::found(Retention::default()).await;
    let first = cluster.node(1);

    assert_eq!(first.found(found(1), SOON).await.unwrap().outcome, Outcome::Joined(NodeId(1)));
    assert!(matches!(first.found(found(2), SOON).await.unwrap().outcome, Outcome::Refused(_)));
}

#[tokio::test(start_paused = true)]
async fn nobody_proposes_in_the_name_of_another() {
    let cluster = Cluster::of(2).await;

    let own = cluster.node(2).propose(token(42, NodeId(1)), SOON).await;
    let request = crate::message::ProposeRequest { proposal: token(43, NodeId(1)), wait_ms: 1000 };
    let body = crate::encoding::encode(&request).unwrap();
    let forged = cluster.node(1).answer(NodeId(2), pollux_wire::method::PROPOSE, &body).await;

    assert!(matches!(own, Err(crate::ProposeError::Refused { .. })), "{own:?}");
    assert!(matches!(forged, Err(crate::serve::Refusal::NotAllowed(_))), "{forged:?}");
    assert!(!cluster.node(1).watch().borrow().state.tokens.contains_key(&hash(43)));
}

#[tokio::test(start_paused = true)]
async fn the_leader_hears_who_lives_and_says_so_to_anybody() {
    let cluster = Cluster::of(3).await;
    let verdict_on_3 = async |asked: u64| {
        let nodes = cluster.node(asked).liveness(SOON).await.unwrap();
        nodes.into_iter().find(|health| health.node == NodeId(3)).unwrap().verdict
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(verdict_on_3(2).await, Verdict::Alive);

    cluster.wires.isolate(NodeId(3));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(verdict_on_3(2).await, Verdict::Suspect);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(verdict_on_3(1).await, Verdict::Down);
    assert!(cluster.node(3).liveness(SOON).await.is_err(), "a node that is cut off calls nobody dead");

    cluster.wires.heal();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(verdict_on_3(3).await, Verdict::Alive);
}

#[tokio::test(start_paused = true)]
async fn garbage_is_refused_and_changes_nothing() {
    let cluster = Cluster::of(2).await;
    let term = cluster.node(1).status().term;

    for method in 0..40 {
        for length in [0, 1, 7, 64, 1000] {
            let garbage: Vec<u8> = (0..length).map(|i: u32| (i * 37 + u32::from(method)).to_le_bytes()[0]).collect();
            let _ = cluster.node(1).answer(NodeId(2), method, &garbage).await;
        }
    }

    cluster.node(2).propose(token(42, NodeId(2)), SOON).await.unwrap();
    assert_eq!(cluster.node(1).status().term, term);
}
