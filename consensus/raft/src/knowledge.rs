//! What this node knows about leadership, as openraft's core says it.
//!
//! One task per node, from start to shutdown, asks the core once per heartbeat and whenever the leadership changes, and
//! publishes the answer to those that act on it: [`leader`](crate::leader), [`elections`](crate::elections), and reads that
//! say how old they are.

use std::{collections::BTreeSet, time::Duration};

use openraft::ServerState;
use tokio::time::{Instant, timeout};

use crate::{
    consensus::Consensus,
    message::Standing,
    store::{disk::StoreError, log::LogStore},
    types::{Fatal, LogId, Raft},
};

/// What a node knows about leadership.
#[derive(Debug, Clone)]
pub(crate) struct Knowledge {
    pub(crate) leading: bool,
    /// It accepted a leader, and that leader's last sign of life is younger than its lease.
    pub(crate) hears_leader: bool,
    /// When it last heard the leader that it accepts.
    heard: Option<Instant>,
    pub(crate) last_log: Option<LogId>,
    /// The voters; two sets during a change of membership.
    pub(crate) voters: Vec<BTreeSet<u64>>,
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
            let heard = state.vote_last_modified().filter(|_| state.vote_ref().is_committed());
            Self {
                leading: state.server_state == ServerState::Leader,
                hears_leader: heard.is_some_and(|at| Instant::now().saturating_duration_since(at) <= lease),
                heard,
                last_log,
                voters: state.membership_state.effective().membership().get_joint_config().clone(),
            }
        })
        .await
        .map_err(Silent::from)
    }

    pub(crate) fn grants(&self, asker: &Standing) -> bool {
        !self.leading && !self.hears_leader && asker.last_log >= self.last_log
    }

    pub(crate) fn is_majority(&self, agreeing: &BTreeSet<u64>) -> bool {
        !self.voters.is_empty()
            && self.voters.iter().all(|voters| voters.intersection(agreeing).count() * 2 > voters.len())
    }
}

/// The latest word of the core.
#[derive(Debug, Clone, Default)]
pub(crate) enum Word {
    /// It was not asked yet, or did not answer within a lease: it is in touch with nobody.
    #[default]
    None,
    /// What it knows.
    Known(Knowledge),
    /// It will not answer any more.
    Silent,
}

/// Publishes what the core knows until the consensus layer stops or can say nothing any more.
pub(crate) async fn run(consensus: Consensus) {
    let mut leadership = consensus.leadership();
    let lease = consensus.timing().lease();
    loop {
        leadership.borrow_and_update();
        match timeout(lease, Knowledge::of(consensus.raft(), consensus.log(), lease)).await {
            Ok(Ok(knowledge)) => {
                if let Some(at) = in_touch(&consensus, &knowledge) {
                    consensus.in_touch(at);
                }
                consensus.knows(Word::Known(knowledge));
            }
            Ok(Err(error)) => {
                if !consensus.is_stopping() {
                    tracing::error!(%error, "this node does not know any more who leads");
                }
                return consensus.knows(Word::Silent);
            }
            Err(_) => consensus.knows(Word::None),
        }
        tokio::select! {
            () = consensus.stopping() => return consensus.knows(Word::Silent),
            changed = leadership.changed() => if changed.is_err() { return consensus.knows(Word::Silent) },
            () = tokio::time::sleep(consensus.timing().heartbeat) => {}
        }
    }
}

/// When this node was last in touch with whoever leads: a follower heard it, or a leader heard a majority.
fn in_touch(consensus: &Consensus, knowledge: &Knowledge) -> Option<Instant> {
    if !knowledge.leading {
        return knowledge.heard;
    }
    let acknowledged = consensus.raft().metrics().borrow().millis_since_quorum_ack?;
    Instant::now().checked_sub(Duration::from_millis(acknowledged))
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn knows(last: u64, voters: &[&[u64]]) -> Knowledge {
        Knowledge {
            leading: false,
            hears_leader: false,
            heard: None,
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
