//! Nodes that leave for good: what the leader has to say against it, and how a node learns that it is meant.
//!
//! The state compares generations and lives, and knows no clock: who is dead, and who could still decide, is for the leader
//! to say before it appends. Between its look and the commit something may change; then the operator's word, or the next
//! step of [`members`](crate::members), has to bear it (docs/adr/0011).

use std::time::Duration;

use pollux_state::{
    Command, Proposal,
    detector::{DOWN_AFTER_MS, NodeHealth, Verdict},
    id::{Generation, NodeId, VmId},
    limits::{FENCE_MS, LOST_AFTER_MS},
    vm::Phase,
};
use tokio::time::timeout;

use crate::{
    consensus::Consensus,
    liveness::HEARTBEAT_EVERY_MS,
    members,
    read::Leads,
    voters::{self, Candidate},
};

// A host that fell asleep sent its last heartbeat up to two intervals before: one until the next was due, and one in which it
// waited for the answer to the last. From there the kernel lets its guests be heard for twice the fence's time.
const _: () = assert!(LOST_AFTER_MS >= 2 * HEARTBEAT_EVERY_MS + 2 * FENCE_MS);
// What counts as lost has counted as down for long: no verdict that a moment changes.
const _: () = assert!(LOST_AFTER_MS > DOWN_AFTER_MS);

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
    /// What this node, which leads in `term`, has to say against `proposal`.
    pub(crate) fn objection(&self, term: u64, proposal: &Proposal) -> Option<Objection> {
        match &proposal.command {
            Command::ReleaseLost { vm, expect, .. } => self.lives(term, *vm, *expect),
            // In any other phase the state says what is to be said.
            Command::TakeBack { vm, expect, .. } if self.arrives(*vm) => self.lives(term, *vm, *expect),
            Command::RemoveNode { node, lost, .. } => {
                let alive = lost.then(|| self.hears(term, *node)).flatten();
                alive.or_else(|| self.costs_the_quorum(term, *node))
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
            | Command::HeardAgain { .. }
            | Command::AddPool { .. }
            | Command::RemovePool { .. }
            | Command::CreateVolume { .. }
            | Command::DeleteVolume { .. }
            | Command::GrowVolume { .. }
            | Command::ReplicaMade { .. }
            | Command::ReplicaFailed { .. }
            | Command::AddReplica { .. }
            | Command::RemoveReplica { .. }
            | Command::LeaveSet { .. }
            | Command::JoinSet { .. }
            | Command::AttachVolume { .. }
            | Command::DetachVolume { .. }
            | Command::HoldVolume { .. }
            | Command::DropVolume { .. }
            | Command::BeginVolumeMove { .. }
            | Command::Compared { .. }
            | Command::EndVolumeMove { .. } => None,
        }
    }

    /// Waits until this node surely leads and has applied all that was committed before: a leader that was elected a moment
    /// ago may be behind, and would find nothing to object to. The term in which it leads.
    pub(crate) async fn caught_up(&self, wait: Duration) -> Result<u64, String> {
        let Leads { term, index } = self.leads_here(wait).await?;
        let mut view = self.watch();
        let applied = view.wait_for(|view| view.applied >= index);
        match timeout(wait, applied).await {
            Ok(Ok(_)) => Ok(term),
            Ok(Err(_)) | Err(_) => Err(format!("the leader has not applied up to {index} yet")),
        }
    }

    fn arrives(&self, vm: VmId) -> bool {
        let state = self.watch().borrow().state.clone();
        state.vms.get(&vm).is_some_and(|vm| matches!(vm.phase, Phase::Arriving { .. }))
    }

    /// Nobody's VM is released, or taken back, while the leader hears its owner.
    fn lives(&self, term: u64, vm: VmId, expect: Generation) -> Option<Objection> {
        let state = self.watch().borrow().state.clone();
        // Of a VM that is not there the state says what is to be said, and of a generation that is over. One that is to come is
        // judged by who has the right now.
        let vm = state.vms.get(&vm).filter(|vm| vm.generation <= expect)?;
        let owner = vm.phase.owner()?.node;
        let name = state.name_of(owner).unwrap_or("its node");
        let health = match self.heard(term) {
            Ok(health) => health,
            Err(objection) => return Some(objection),
        };
        let Some(health) = health.iter().find(|health| health.node == owner) else { return Some(unheard(name)) };
        verdict_against(&vm.spec.name, name, health, LOST_AFTER_MS)
    }

    fn heard(&self, term: u64) -> Result<Vec<NodeHealth>, Objection> {
        let not_yet = || Objection::NotNow("the leader was just elected and has not listened yet".to_owned());
        self.ear().health(term).ok_or_else(not_yet)
    }

    /// Nobody's node is given up as lost while the leader hears it.
    fn hears(&self, term: u64, node: NodeId) -> Option<Objection> {
        let state = self.watch().borrow().state.clone();
        let name = state.name_of(node)?;
        let health = match self.heard(term) {
            Ok(health) => health,
            Err(objection) => return Some(objection),
        };
        let Some(health) = health.iter().find(|health| health.node == node) else { return Some(unheard(name)) };
        let alive = health.verdict != Verdict::Down;
        alive.then(|| Objection::No(format!("{name} is alive: remove it without declaring it lost")))
    }

    /// Who is left must be able to decide.
    fn costs_the_quorum(&self, term: u64, node: NodeId) -> Option<Objection> {
        let state = self.watch().borrow().state.clone();
        let metrics = self.raft().metrics().borrow().clone();
        let configs = metrics.membership_config.membership().get_joint_config().clone();
        let voting = configs.last().filter(|_| configs.iter().any(|set| set.contains(&node.0)))?;
        let health = self.ear().health(term);
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

/// A member that has joined since the leader last looked who the members are.
fn unheard(name: &str) -> Objection {
    Objection::NotNow(format!("the leader does not listen to {name} yet"))
}

/// What there is to say against giving up the guests of a node that is so well. `lost_after_ms`: [`LOST_AFTER_MS`].
fn verdict_against(vm: &str, node: &str, health: &NodeHealth, lost_after_ms: u64) -> Option<Objection> {
    match health.verdict {
        Verdict::Down if health.silent_ms >= lost_after_ms => None,
        Verdict::Alive => Some(Objection::No(format!(
            "{node}, which has the right to run VM {vm}, is alive: stop the VM or migrate it instead"
        ))),
        Verdict::Suspect | Verdict::Down => Some(Objection::No(format!(
            "{node}, which has the right to run VM {vm}, has been silent for {} s only, and its guests may still be heard: try \
             again in {} s",
            health.silent_ms / 1000,
            lost_after_ms.saturating_sub(health.silent_ms).div_ceil(1000)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use pollux_state::{detector::Detector, id::Incarnation};

    use super::*;

    const OWNER: NodeId = NodeId(3);

    /// From how many milliseconds after its last heartbeat the word is taken that the owner is lost.
    fn given_up_after(lost_after_ms: u64) -> u64 {
        let mut detector = Detector::new(0, [OWNER]);
        detector.heard(OWNER, Incarnation(1), 0);
        let taken = |now_ms: &u64| {
            let health = detector.health(*now_ms);
            verdict_against("web", "n3", &health[0], lost_after_ms).is_none()
        };
        (0..=60_000).find(taken).expect("somebody dead is given up at some time")
    }

    /// Until how many milliseconds after its last heartbeat a guest is heard whose host sleeps as badly as it can: it falls
    /// asleep when the next heartbeat is due, which the last one held up for as long as it may take; wakes at the last moment
    /// in which the kernel still believes an answer to the question that it had noted just then; sleeps again, and emits when
    /// it wakes just before the kernel's patience ends.
    fn last_heard() -> u64 {
        let asleep = 2 * HEARTBEAT_EVERY_MS - 1;
        let unlocked = asleep + FENCE_MS - 1;
        unlocked + FENCE_MS - 1
    }

    #[test]
    fn nobodys_guests_are_given_up_while_they_can_still_be_heard() {
        assert!(last_heard() < given_up_after(LOST_AFTER_MS));
    }

    /// Negative control: whoever merely counts as down may still be heard, and so may whoever was silent for the fence's time.
    #[test]
    fn with_less_patience_guests_are_given_up_that_can_still_be_heard() {
        for hasty in [DOWN_AFTER_MS, FENCE_MS, 2 * FENCE_MS] {
            assert!(last_heard() >= given_up_after(hasty), "the control itself is broken: {hasty} ms");
        }
    }
}
