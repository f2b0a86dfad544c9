//! The cluster as a whole, and joining it.

use serde::{Deserialize, Serialize};

use crate::node::NodeView;

/// The cluster as a whole, as the node that answers sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Its identity.
    pub id: String,
    /// Nothing is wrong: `problems` is empty.
    pub healthy: bool,
    /// The node that answers.
    pub answered_by: String,
    /// The node that leads.
    pub leader: Option<String>,
    /// The leader's term.
    pub term: u64,
    /// A majority of the voters hears the leader: changes are possible.
    pub quorum: bool,
    /// The nodes that vote.
    pub voters: Vec<String>,
    /// How many more voters may be lost before nothing can be changed; `null` without a quorum.
    #[serde(default)]
    pub may_lose: Option<u64>,
    /// Milliseconds since the answering node was last in touch with whoever leads: without a quorum, how old all this may be.
    #[serde(default)]
    pub touched_ms: Option<u64>,
    /// How much of the log the answering node has applied.
    pub applied: u64,
    /// All nodes, by name.
    pub nodes: Vec<NodeView>,
    /// VMs that exist.
    pub vms: u64,
    /// VMs that somebody has the right to run.
    pub vms_running: u64,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What, and with which object.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

/// A join token to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The name that its bearer will have.
    pub node: String,
    /// Seconds until it ends.
    pub ttl_s: u64,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// The token itself: a secret, shown once.
    pub token: String,
    /// The name that its bearer will have.
    pub node: String,
    /// When it ends.
    pub expires: u64,
}
