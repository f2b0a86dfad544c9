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

/// After so long without a look at the list, in milliseconds, this process was not awake to hear anybody: four times
/// [`HEARTBEAT_EVERY`], at which it looks at the latest, so that a busy moment is none.
const ASLEEP_AFTER_MS: u64 = 1_000;

/// The leader's list; empty elsewhere.
#[derive(Debug)]
pub(crate) struct Ear {
    heard: Mutex<Hearing>,
}

/// A list, and the time it is kept in: that in which this process was awake. What was not heard in its sleep is no silence.
#[derive(Debug)]
struct Hearing {
    awake_ms: u64,
    looked: Instant,
    list: Option<List>,
}

#[derive(Debug)]
struct List {
    term: u64,
    detector: Detector,
}

impl Ear {
    pub(crate) fn new() -> Self {
        Self { heard: Mutex::new(Hearing { awake_ms: 0, looked: Instant::now(), list: None }) }
    }

    /// The list, and what time it is for it.
    fn look(&self) -> (MutexGuard<'_, Hearing>, u64) {
        let mut hearing = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let passed_ms = u64::try_from(now.duration_since(hearing.looked).as_millis()).unwrap_or(u64::MAX);
        if passed_ms < ASLEEP_AFTER_MS {
            // Parts of a millisecond are left for the next look.
            hearing.looked += Duration::from_millis(passed_ms);
            hearing.awake_ms += passed_ms;
        } else {
            tracing::debug!(passed_ms, "this process slept; nobody's silence grew by that");
            hearing.looked = now;
        }
        let awake_ms = hearing.awake_ms;
        (hearing, awake_ms)
    }

    /// This node leads in `term`, or (`None`) does not; these are the members.
    fn leads(&self, term: Option<u64>, members: impl IntoIterator<Item = NodeId>) {
        let (mut hearing, now_ms) = self.look();
        match (&mut hearing.list, term) {
            (Some(list), Some(term)) if list.term == term => list.detector.set_nodes(members, now_ms),
            (list, Some(term)) => *list = Some(List { term, detector: Detector::new(now_ms, members) }),
            (list, None) => *list = None,
        }
    }

    pub(crate) fn heard(&self, node: NodeId, incarnation: Incarnation) {
        let (mut hearing, now_ms) = self.look();
        if let Some(list) = &mut hearing.list {
            list.detector.heard(node, incarnation, now_ms);
        }
    }

    /// What it makes of every member, where this node leads.
    pub(crate) fn health(&self) -> Option<Vec<NodeHealth>> {
        let (hearing, now_ms) = self.look();
        hearing.list.as_ref().map(|list| list.detector.health(now_ms))
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

#[cfg(test)]
mod tests {
    use pollux_state::detector::{DOWN_AFTER_MS, Verdict};
    use tokio::time::advance;

    use super::*;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    /// A leader's, which has just heard everybody.
    fn ear() -> Ear {
        let ear = Ear::new();
        ear.leads(Some(1), [ME, OTHER]);
        ear.heard(OTHER, Incarnation(1));
        ear
    }

    fn verdict(ear: &Ear) -> Verdict {
        let health = ear.health().unwrap();
        health.iter().find(|health| health.node == OTHER).unwrap().verdict
    }

    async fn awake(ear: &Ear, time: Duration) {
        for _ in 0..time.as_millis() / HEARTBEAT_EVERY.as_millis() {
            advance(HEARTBEAT_EVERY).await;
            ear.heard(ME, Incarnation(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_what_was_not_heard_by_somebody_awake() {
        let ear = ear();
        awake(&ear, Duration::from_millis(DOWN_AFTER_MS - 250)).await;
        assert_eq!(verdict(&ear), Verdict::Suspect);
        awake(&ear, Duration::from_millis(250)).await;
        assert_eq!(verdict(&ear), Verdict::Down);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_slept_counts_nobody_dead() {
        let ear = ear();
        advance(Duration::from_secs(60)).await;
        assert_eq!(verdict(&ear), Verdict::Alive, "whoever asks first when it wakes");
        awake(&ear, Duration::from_millis(DOWN_AFTER_MS)).await;
        assert_eq!(verdict(&ear), Verdict::Down, "and somebody dead is found dead in the usual time");
    }
}
