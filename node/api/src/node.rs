//! Nodes, and what can be done to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A node's part in the consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Votes.
    Voter,
    /// Learns what was decided.
    #[serde(other)]
    Learner,
}

/// What the leader thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Its heartbeats come.
    Alive,
    /// One or more are overdue.
    Suspect,
    /// None came for long.
    Down,
    /// There is no leader to ask.
    #[serde(other)]
    Unknown,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its number, never reused.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where its daemon listens.
    pub address: String,
    /// Which life its daemon is in; 0: it never started.
    pub incarnation: u64,
    /// Its part in the consensus.
    pub role: NodeRole,
    /// It leads.
    pub leader: bool,
    /// What the leader thinks of it.
    pub health: Health,
    /// Milliseconds since its last heartbeat, as the leader counts.
    pub silent_ms: Option<u64>,
    /// `pollux` version.
    pub version: String,
    /// QEMU's version line; empty: none there.
    pub qemu: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// Memory of the host in MiB.
    pub memory_mib: u64,
    /// Which build of UEFI firmware guests can boot by; empty: there is none.
    #[serde(default)]
    pub uefi: String,
    /// Logical processors.
    pub processors: u32,
    /// Bridges that VMs can be attached to.
    pub bridges: Vec<String>,
    /// `uname -r`.
    pub kernel: String,
    /// `ok`, or why guests cannot be moved from here.
    pub tracking: String,
    /// What the host cannot do for the safety of its guests: what, and what to do about it.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// What its daemon has refused from others since it was started; only where one node is asked for and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// Connections, calls and joins that were refused, by why, and how often. `pollux_link::Counters` says what each means.
pub type Refused = BTreeMap<String, u64>;

/// Remove a node for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveNode {
    /// The life of its daemon that the user saw; any other means that it was started since, and the request is refused.
    pub incarnation: u64,
    /// Its host is off for good, and what it had the right to run is to be released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// What an operator says of a lost host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lost {
    /// Who says so; recorded.
    pub operator: String,
    /// The VMs that the operator saw in its hands, and the generation of each. Any other means that something happened since.
    pub vms: BTreeMap<String, u64>,
}

/// A node that was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedView {
    /// What it was called.
    pub node: String,
    /// Its number, never given again.
    pub id: u64,
    /// VMs that are nobody's now, and wanted stopped.
    pub released: Vec<String>,
    /// VMs that go on at the source of the move that had just brought them there.
    pub taken_back: Vec<String>,
    /// The node that inherited its stopped VMs.
    pub heir: String,
    /// Those VMs.
    pub inherited: Vec<String>,
}
