//! When a node may stand for election.
//!
//! openraft 0.9 has no pre-vote: a node cut off from the others keeps raising its vote, and when it comes back that higher
//! vote deposes a leader nobody else had a quarrel with. So openraft may start an election here only while a majority of
//! the voters (of each of the two sets, during a change of membership) says that it, too, hears no leader and that the
//! asker's log is not behind its own. A node that is cut off gets no such majority; when the leader is dead the rest
//! gets it in one round trip, long before openraft's own timeout ends, so nothing is lost when it matters.
//!
//! Safety does not depend on it: votes and the log decide as ever, this only keeps elections from being started.
//!
//! One task per node, from start to shutdown.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use openraft::ServerState;
use pollux_state::id::NodeId;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    message::{MayStand, Standing},
    peers::Peers,
    store::{disk::StoreError, log::LogStore},
    timing::Timing,
    types::{Fatal, LogId, Raft},
};

/// What a node knows about leadership.
#[derive(Debug, Clone)]
pub(crate) struct Knowledge {
    pub(crate) leading: bool,
    /// It accepted a leader, and that leader's last sign of life is younger than its lease.
    pub(crate) hears_leader: bool,
    last_log: Option<LogId>,
    /// The voters; two sets during a change of membership.
    voters: Vec<BTreeSet<u64>>,
}

/// This node cannot say what it knows: it has stopped, or its store has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Silent {
    #[error(transparent)]
    Core(#[from] Fatal),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Knowledge {
    pub(crate) async fn of(raft: &Raft, log: &LogStore, lease: Duration) -> Result<Self, Silent> {
        let last_log = log.last()?;
        // Answered by openraft's core itself: a node whose core hangs does not answer, and so is no reason to vote.
        raft.with_raft_state(move |state| {
            let heard =
                state.vote_last_modified().is_some_and(|at| Instant::now().saturating_duration_since(at) <= lease);
            Self {
                leading: state.server_state == ServerState::Leader,
                hears_leader: state.vote_ref().is_committed() && heard,
                last_log,
                voters: state.membership_state.effective().membership().get_joint_config().clone(),
            }
        })
        .await
        .map_err(Silent::from)
    }

    fn grants(&self, asker: &Standing) -> bool {
        !self.leading && !self.hears_leader && asker.last_log >= self.last_log
    }

    fn is_majority(&self, agreeing: &BTreeSet<u64>) -> bool {
        !self.voters.is_empty()
            && self.voters.iter().all(|voters| voters.intersection(agreeing).count() * 2 > voters.len())
    }
}

/// Answers [`MayStand`].
pub(crate) async fn may_stand(raft: &Raft, log: &LogStore, timing: &Timing, asker: &Standing) -> Result<bool, Silent> {
    Ok(Knowledge::of(raft, log, timing.lease()).await?.grants(asker))
}

/// Opens and closes the gate until `stop`.
pub(crate) async fn run(me: NodeId, raft: Raft, log: LogStore, peers: Peers, timing: Timing, stop: CancellationToken) {
    let mut rounds = interval(timing.heartbeat);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rounds.tick() => {}
        }
        let mine = match Knowledge::of(&raft, &log, timing.lease()).await {
            Ok(mine) => mine,
            Err(error) => {
                // A node that cannot say how far its log goes must not lead.
                tracing::error!(%error, "this node stands for no election any more");
                raft.runtime_config().elect(false);
                return;
            }
        };
        let open = !mine.leading && !mine.hears_leader && majority_agrees(me, &mine, &peers, &timing).await;
        raft.runtime_config().elect(open);
    }
}

async fn majority_agrees(me: NodeId, mine: &Knowledge, peers: &Peers, timing: &Timing) -> bool {
    let others: BTreeSet<u64> = mine.voters.iter().flatten().copied().filter(|id| *id != me.0).collect();
    let request = Standing { last_log: mine.last_log };
    let mut answers: FuturesUnordered<_> = others
        .into_iter()
        .map(|id| {
            let answer = peers.ask::<MayStand>(NodeId(id), None, &request, timing.election_min / 2);
            async move { (id, answer.await) }
        })
        .collect();
    let mut agreeing = BTreeSet::from([me.0]);
    while !mine.is_majority(&agreeing) {
        match answers.next().await {
            Some((id, Ok(true))) => {
                agreeing.insert(id);
            }
            Some((_, Ok(false) | Err(_))) => {}
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn knows(last: u64, voters: &[&[u64]]) -> Knowledge {
        Knowledge {
            leading: false,
            hears_leader: false,
            last_log: Some(LogId::new(CommittedLeaderId::new(1, 1), last)),
            voters: voters.iter().map(|set| set.iter().copied().collect()).collect(),
        }
    }

    #[test]
    fn a_node_that_hears_its_leader_or_knows_more_does_not_agree() {
        let me = knows(5, &[&[1, 2, 3]]);
        let asker = Standing { last_log: me.last_log };
        let behind = Standing { last_log: Some(LogId::new(CommittedLeaderId::new(1, 1), 4)) };

        assert!(me.grants(&asker));
        assert!(!me.grants(&behind));
        assert!(!Knowledge { hears_leader: true, ..me.clone() }.grants(&asker));
        assert!(!Knowledge { leading: true, ..me }.grants(&asker));
    }

    #[test]
    fn a_change_of_membership_needs_both_majorities() {
        let simple = knows(1, &[&[1, 2, 3]]);
        assert!(!simple.is_majority(&BTreeSet::from([1])));
        assert!(simple.is_majority(&BTreeSet::from([1, 3])));

        let joint = knows(1, &[&[1], &[1, 2]]);
        assert!(!joint.is_majority(&BTreeSet::from([1])));
        assert!(joint.is_majority(&BTreeSet::from([1, 2])));

        assert!(!knows(1, &[]).is_majority(&BTreeSet::from([1])), "a node outside any cluster never stands");
    }
}
