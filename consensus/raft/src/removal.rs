//! Nodes that leave for good: what the leader has to say against it, and how a node learns that it is meant.
//!
//! The state compares generations and lives, and knows no clock: who is dead, and who could still decide, is for the leader
//! to say before it appends. Between its look and the commit something may change; then the operator's word, or the next
//! step of [`members`](crate::members), has to bear it (docs/adr/0011).

use std::time::Duration;

use pollux_state::{
    Command, Proposal,
    detector::{NodeHealth, Verdict},
    id::{Generation, NodeId, VmId},
    limits::LOST_AFTER_MS,
    vm::Phase,
};
use tokio::time::timeout;

use crate::{
    consensus::Consensus,
    members,
    message::ReadReply,
    voters::{self, Candidate},
};

/// Why the leader does not append a proposal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Objection {
    /// It may, a moment later.
    NotNow(String),
    /// It will not.
    No(String),
}

/// How this node learned that it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The log says so.
    Decided,
    /// Another node, whose log is further, does not admit it any more: what it said.
    Told(String),
}

impl Consensus {
    /// What this node, if it leads, has to say against `proposal`.
    pub(crate) fn objection(&self, proposal: &Proposal) -> Option<Objection> {
        match &proposal.command {
            Command::ReleaseLost { vm, expect, .. } => self.lives(*vm, *expect),
            // In any other phase the state says what is to be said.
            Command::TakeBack { vm, expect, .. } if self.arrives(*vm) => self.lives(*vm, *expect),
            Command::RemoveNode { node, lost, .. } => {
                let alive = lost.then(|| self.hears(*node)).flatten();
                alive.or_else(|| self.costs_the_quorum(*node))
            }
            Command::Found { .. }
            | Command::AddToken { .. }
            | Command::Join { .. }
            | Command::StartIncarnation { .. }
            | Command::CreateVm { .. }
            | Command::SetDesired { .. }
            | Command::DeleteVm { .. }
            | Command::Claim { .. }
            | Command::Release { .. }
            | Command::BeginMove { .. }
            | Command::Switchover { .. }
            | Command::Arrived { .. }
            | Command::GiveBack { .. }
            | Command::AbortMove { .. }
            | Command::TakeBack { .. }
            | Command::Cancel { .. }
            | Command::HeardAgain { .. } => None,
        }
    }

    /// Waits until this node surely leads and has applied all that was committed before: a leader that was elected a moment
    /// ago may be behind, and would find nothing to object to.
    pub(crate) async fn caught_up(&self, wait: Duration) -> Result<(), String> {
        let index = match self.index_here(wait).await {
            ReadReply::Index(index) => index,
            ReadReply::NotNow { why } => return Err(why),
        };
        let mut view = self.watch();
        let applied = view.wait_for(|view| view.applied >= index);
        match timeout(wait, applied).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(format!("the leader has not applied up to {index} yet")),
        }
    }

    fn arrives(&self, vm: VmId) -> bool {
        let state = self.watch().borrow().state.clone();
        state.vms.get(&vm).is_some_and(|vm| matches!(vm.phase, Phase::Arriving { .. }))
    }

    /// Nobody's VM is released, or taken back, while the leader hears its owner.
    fn lives(&self, vm: VmId, expect: Generation) -> Option<Objection> {
        let state = self.watch().borrow().state.clone();
        // Of a VM that is not there the state says what is to be said, and of a generation that is over. One that is to come is
        // judged by who has the right now.
        let vm = state.vms.get(&vm).filter(|vm| vm.generation <= expect)?;
        let owner = vm.phase.owner()?.node;
        let name = state.name_of(owner).unwrap_or("its node");
        let health = match self.heard() {
            Ok(health) => health,
            Err(objection) => return Some(objection),
        };
        let Some(health) = health.iter().find(|health| health.node == owner) else {
            return Some(Objection::NotNow(format!("the leader does not listen to {name} yet")));
        };
        verdict_against(&vm.spec.name, name, health)
    }

    fn heard(&self) -> Result<Vec<NodeHealth>, Objection> {
        let not_yet = || Objection::NotNow("the leader was just elected and has not listened yet".to_owned());
        self.ear().health().ok_or_else(not_yet)
    }

    /// Nobody's node is given up as lost while the leader hears it.
    fn hears(&self, node: NodeId) -> Option<Objection> {
        let state = self.watch().borrow().state.clone();
        let name = state.name_of(node)?;
        let health = match self.heard() {
            Ok(health) => health,
            Err(objection) => return Some(objection),
        };
        let alive = health.iter().any(|health| health.node == node && health.verdict != Verdict::Down);
        alive.then(|| Objection::No(format!("{name} is alive: remove it without declaring it lost")))
    }

    /// Who is left must be able to decide.
    fn costs_the_quorum(&self, node: NodeId) -> Option<Objection> {
        let state = self.watch().borrow().state.clone();
        let metrics = self.raft().metrics().borrow().clone();
        let configs = metrics.membership_config.membership().get_joint_config().clone();
        let voting = configs.last().filter(|_| configs.iter().any(|set| set.contains(&node.0)))?;
        let health = self.ear().health();
        let patience = self.timing().voter_patience;
        let all = members::candidates(&state, &metrics, self.node(), health.as_deref(), patience);
        let left: Vec<Candidate> = all.into_iter().filter(|candidate| candidate.id != node.0).collect();
        if left.is_empty() {
            return None;
        }
        if configs.len() > 1 {
            return Some(Objection::NotNow("the voters are being changed at this moment".to_owned()));
        }
        let leader = (self.node() != node).then_some(self.node().0);
        if voters::next(voting, leader, &left, false).is_some() {
            return None;
        }
        let name = state.name_of(node).unwrap_or("the node");
        Some(Objection::No(format!(
            "without {name} nobody could decide anything any more: no other node is alive, started and up to date; bring \
             one back first"
        )))
    }

    /// Whether `node` may speak to this one: as long as it is a member, or the log needs it to let it go. One that has only
    /// just joined is not known here yet.
    #[must_use]
    pub fn admits(&self, node: NodeId) -> bool {
        if !self.watch().borrow().state.is_removed(node) {
            return true;
        }
        self.leadership().borrow().membership_config.membership().get_node(&node.0).is_some()
    }

    /// Waits until this node was removed from the cluster.
    pub async fn removed(&self) -> Removal {
        let me = self.node();
        let mut view = self.watch();
        let mut outcast = self.peers().outcast();
        tokio::select! {
            Ok(_) = view.wait_for(|view| view.state.is_removed(me)) => Removal::Decided,
            Ok(told) = outcast.wait_for(Option::is_some) => Removal::Told(told.clone().unwrap_or_default()),
            else => std::future::pending().await,
        }
    }

    /// Waits, for at most `limit`, until the log does not need this node's vote any more. One that was removed and ends
    /// before that may be missed by a majority.
    pub async fn let_go(&self, limit: std::time::Duration) -> bool {
        let me = self.node().0;
        let mut leadership = self.leadership();
        let needless = leadership.wait_for(|now| {
            let votes = now.membership_config.membership().get_joint_config().iter().any(|set| set.contains(&me));
            !votes && now.state != openraft::ServerState::Leader
        });
        matches!(timeout(limit, needless).await, Ok(Ok(_)))
    }
}

fn verdict_against(vm: &str, node: &str, health: &NodeHealth) -> Option<Objection> {
    match health.verdict {
        Verdict::Down if health.silent_ms >= LOST_AFTER_MS => None,
        Verdict::Alive => Some(Objection::No(format!(
            "{node}, which has the right to run VM {vm}, is alive: stop the VM or migrate it instead"
        ))),
        Verdict::Suspect | Verdict::Down => Some(Objection::No(format!(
            "{node}, which has the right to run VM {vm}, has been silent for {} s only, and its guests may still be heard: try \
             again in {} s",
            health.silent_ms / 1000,
            LOST_AFTER_MS.saturating_sub(health.silent_ms).div_ceil(1000)
        ))),
    }
}
