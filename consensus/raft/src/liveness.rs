//! Who lives: every node tells the leader that it does; the leader keeps the list.
//!
//! The judgement is [`pollux_state::detector`]'s, pure and tested there; here are the clock, the messages and the question
//! whose list it is. A list belongs to one term of one leader: a new leader begins with an empty one and counts every
//! silence from its election.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::ServerState;
use pollux_state::{
    detector::{Detector, NodeHealth},
    id::{Incarnation, NodeId},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{
    consensus::Consensus,
    message::{self, LivenessReply, ReadReply},
};

/// How often a node tells the leader that it lives.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);
/// How long to wait before asking again when nothing has changed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LivenessError {
    /// No leader confirmed by a majority answered in time.
    #[error(
        "no leader says who lives within {waited_ms} ms ({last}); a majority of the voters must run and reach each other"
    )]
    NoLeader {
        /// How long it was tried.
        waited_ms: u128,
        /// What came of the last attempt.
        last: String,
    },
}

/// The leader's list; empty elsewhere.
#[derive(Debug)]
pub(crate) struct Ear {
    started: Instant,
    list: Mutex<Option<List>>,
}

#[derive(Debug)]
struct List {
    term: u64,
    detector: Detector,
}

impl Ear {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), list: Mutex::new(None) }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn list(&self) -> MutexGuard<'_, Option<List>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node leads in `term`, or (`None`) does not; these are the members.
    fn leads(&self, term: Option<u64>, members: impl IntoIterator<Item = NodeId>) {
        let now_ms = self.now_ms();
        let mut list = self.list();
        match (&mut *list, term) {
            (Some(list), Some(term)) if list.term == term => list.detector.set_nodes(members, now_ms),
            (_, Some(term)) => *list = Some(List { term, detector: Detector::new(now_ms, members) }),
            (_, None) => *list = None,
        }
    }

    pub(crate) fn heard(&self, node: NodeId, incarnation: Incarnation) {
        let now_ms = self.now_ms();
        if let Some(list) = &mut *self.list() {
            list.detector.heard(node, incarnation, now_ms);
        }
    }

    /// What it makes of every member, where this node leads.
    pub(crate) fn health(&self) -> Option<Vec<NodeHealth>> {
        let now_ms = self.now_ms();
        self.list().as_ref().map(|list| list.detector.health(now_ms))
    }
}

/// Sends this node's heartbeats, and keeps the list where this node leads, until the consensus stops.
pub(crate) async fn run(consensus: Consensus) {
    let mut beats = interval(HEARTBEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut view = consensus.watch();
    let mut leadership = consensus.leadership();
    loop {
        tokio::select! {
            () = consensus.stopping() => return,
            _ = beats.tick() => beat(&consensus).await,
            Ok(()) = view.changed() => {}
            Ok(()) = leadership.changed() => {}
        }
        let term = {
            let now = leadership.borrow_and_update();
            (now.state == ServerState::Leader).then_some(now.vote.leader_id.term)
        };
        let state = view.borrow_and_update().state.clone();
        consensus.ear().leads(term, state.nodes.keys().copied());
    }
}

async fn beat(consensus: &Consensus) {
    let Some(incarnation) = consensus.incarnation() else { return };
    let Some(leader) = consensus.leadership().borrow().current_leader.map(NodeId) else { return };
    if leader == consensus.node() {
        consensus.ear().heard(leader, incarnation);
        return;
    }
    let address = consensus.known_address(leader);
    let sent = consensus.peers().ask::<message::Heartbeat>(leader, address, &incarnation, HEARTBEAT_EVERY);
    if let Err(error) = sent.await {
        tracing::debug!(%leader, %error, "a heartbeat got no answer");
    }
}

impl Consensus {
    /// What the leader thinks of every member, the leader included.
    ///
    /// # Errors
    /// [`LivenessError`]: nobody who surely leads answered.
    pub async fn liveness(&self, deadline: Duration) -> Result<Vec<NodeHealth>, LivenessError> {
        let started = Instant::now();
        let end = started + deadline;
        let mut leadership = self.leadership();
        let mut last = "no leader is known".to_owned();
        loop {
            let leader = leadership.borrow_and_update().current_leader.map(NodeId);
            if let Some(leader) = leader {
                let wait = end.saturating_duration_since(Instant::now()).min(self.timing().election_max);
                let reply = if leader == self.node() {
                    Ok(self.liveness_here(wait).await)
                } else {
                    self.peers().ask::<message::Liveness>(leader, self.known_address(leader), &(), wait).await
                };
                match reply {
                    Ok(LivenessReply::Nodes(nodes)) => return Ok(nodes),
                    Ok(LivenessReply::NotNow { why }) => last = format!("{leader}: {why}"),
                    Err(error) => last = format!("{leader}: {error}"),
                }
            }
            let now = Instant::now();
            if now >= end || self.is_stopping() {
                return Err(LivenessError::NoLeader { waited_ms: (now - started).as_millis(), last });
            }
            tokio::select! {
                () = sleep_until(end.min(now + RETRY_PAUSE)) => {}
                Ok(_) = leadership.wait_for(|now| now.current_leader.map(NodeId) != leader) => {}
                () = self.stopping() => {}
            }
        }
    }

    /// This node's list, if it surely leads: one that was replaced without knowing it would call everybody else dead.
    pub(crate) async fn liveness_here(&self, wait: Duration) -> LivenessReply {
        match self.index_here(wait).await {
            ReadReply::NotNow { why } => LivenessReply::NotNow { why },
            ReadReply::Index(_) => match self.ear().health() {
                Some(nodes) => LivenessReply::Nodes(nodes),
                None => LivenessReply::NotNow { why: "newly elected".to_owned() },
            },
        }
    }
}
