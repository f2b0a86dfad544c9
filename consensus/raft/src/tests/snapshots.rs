//! Long logs.

use super::*;

const SHORT: Retention = Retention { snapshot_after: 100, entries_kept: 10 };

/// So many entries that change little: founding again, refused each time.
async fn fill(cluster: &Cluster, first: u64, count: u64) {
    for number in first..first + count {
        let outcome = cluster.node(1).propose(found(number), SOON).await.unwrap().outcome;
        assert!(matches!(outcome, Outcome::Refused(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_node_catches_up_through_a_snapshot() {
    let mut cluster = Cluster::found(SHORT).await;
    cluster.node(1).propose(token(42, NodeId(1)), SOON).await.unwrap();
    fill(&cluster, 10_000, 400).await;
    let mut metrics = cluster.node(1).raft().metrics();
    let purged = metrics.wait_for(|now| now.purged.is_some_and(|purged| purged.index > 200));
    timeout(LONG, purged).await.expect("the log is never cut").unwrap();

    let second = cluster.join().await;
    second.linearizable(SOON).await.unwrap();

    assert!(second.status().snapshot.is_some(), "it has all entries from a snapshot: the log's beginning is gone");
    let (one, two) = (cluster.node(1).watch().borrow().clone(), second.watch().borrow().clone());
    assert!(two.state.tokens.contains_key(&hash(42)));
    until(&second, |view| view.applied >= one.applied).await;
    assert_eq!(second.watch().borrow().state.last_event, one.state.last_event);
}

#[tokio::test(start_paused = true)]
async fn a_restart_takes_the_snapshot_and_the_log_behind_it() {
    let cluster = Cluster::found(SHORT).await;
    fill(&cluster, 10_000, 350).await;
    cluster.node(1).propose(token(42, NodeId(1)), SOON).await.unwrap();
    let before = cluster.node(1).watch().borrow().clone();
    assert!(cluster.node(1).status().snapshot.is_some());
    cluster.kill(1).await;

    let again = cluster.start(1).await;

    again.linearizable(SOON).await.unwrap();
    let after = again.watch().borrow().clone();
    assert_eq!(after.state, before.state, "the same log gives the same state, snapshot or not");
}
