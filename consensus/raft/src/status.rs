//! What this node's consensus layer is doing, for people and for metrics. Never for deciding who may act.

use openraft::ServerState;
use pollux_state::id::NodeId;
use serde::Serialize;

use crate::{consensus::Consensus, counts::Counts};

/// A node's part in the cluster's consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Gets the log, has no vote.
    Learner,
    /// Votes.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Does not take part any more: shut down, or its store failed.
    Stopped,
}

/// What this node's consensus layer is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Its part.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The term it is in.
    pub term: u64,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who gets the log without a vote.
    pub learners: Vec<NodeId>,
    /// Index of its last log entry.
    pub last_log: Option<u64>,
    /// Index of the last entry applied.
    pub applied: Option<u64>,
    /// Index of the last entry in its snapshot.
    pub snapshot: Option<u64>,
    /// Index of the last entry cut off its log.
    pub purged: Option<u64>,
    /// On the leader: milliseconds since a majority last answered.
    pub quorum_seen_ms: Option<u64>,
    /// Milliseconds since this node was last in touch with whoever leads, `null` before the first time:
    /// [`Consensus::touched`]. `pollux_raft_touched_seconds` among the metrics.
    pub touched_ms: Option<u64>,
    /// How often leadership changed.
    pub counts: Counts,
    /// Why it does not take part any more, if it failed.
    pub failure: Option<String>,
}

impl Consensus {
    /// What this node's consensus layer is doing, as of its last report.
    #[must_use]
    pub fn status(&self) -> Status {
        let metrics = self.raft().metrics().borrow().clone();
        let members = metrics.membership_config.membership();
        Status {
            node: self.node(),
            role: match metrics.state {
                ServerState::Learner => Role::Learner,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Leader => Role::Leader,
                ServerState::Shutdown => Role::Stopped,
            },
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            voters: members.voter_ids().map(NodeId).collect(),
            learners: members.learner_ids().map(NodeId).collect(),
            last_log: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            quorum_seen_ms: metrics.millis_since_quorum_ack,
            touched_ms: self.touched().map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
            counts: self.counts(),
            failure: match metrics.running_state {
                Ok(()) | Err(openraft::error::Fatal::Stopped) => None,
                Err(fatal) => Some(fatal.to_string()),
            },
        }
    }
}
