//! Who lives: every node tells the leader that it does; the leader keeps the list.
//!
//! The judgement is [`pollux_state::detector`]'s, pure and tested there; here are the clock, the messages and the question
//! whose list it is. A list belongs to one term of one leader: a new leader begins with an empty one and counts every
//! silence from its election. The task that begins it may be late, so whoever looks into a list says of which term, as a
//! majority has just confirmed it: one that a node kept from an earlier time at the head calls everybody dead who spoke to
//! another leader since.

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
    message::{self, LivenessReply},
};

/// How often a node tells the leader that it lives.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(HEARTBEAT_EVERY_MS);
pub(crate) const HEARTBEAT_EVERY_MS: u64 = 250;
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
const ASLEEP_AFTER_MS: u64 = 4 * HEARTBEAT_EVERY_MS;

/// The leader's list; empty elsewhere.
#[derive(Debug)]
pub(crate) struct Ear {
    heard: Mutex<Hearing>,
    /// [`ASLEEP_AFTER_MS`], but in negative controls.
    asleep_after_ms: u64,
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
        let hearing = Hearing { awake_ms: 0, looked: Instant::now(), list: None };
        Self { heard: Mutex::new(hearing), asleep_after_ms: ASLEEP_AFTER_MS }
    }

    /// The list, and what time it is for it.
    fn look(&self) -> (MutexGuard<'_, Hearing>, u64) {
        let mut hearing = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let passed_ms = u64::try_from(now.duration_since(hearing.looked).as_millis()).unwrap_or(u64::MAX);
        if passed_ms < self.asleep_after_ms {
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

    /// What it makes of every member, if it is the list of `term`, in which this node leads.
    pub(crate) fn health(&self, term: u64) -> Option<Vec<NodeHealth>> {
        let (hearing, now_ms) = self.look();
        let list = hearing.list.as_ref().filter(|list| list.term == term)?;
        Some(list.detector.health(now_ms))
    }

    /// As if a list had been kept from an earlier time at the head, in which nobody was heard since this node was started.
    #[cfg(test)]
    pub(crate) fn keep_list_of(&self, term: u64, members: impl IntoIterator<Item = NodeId>) {
        self.look().0.list = Some(List { term, detector: Detector::new(0, members) });
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
                    Ok(reply) => match current(reply, leadership.borrow().vote.leader_id.term) {
                        Ok(nodes) => return Ok(nodes),
                        Err(why) => last = format!("{leader}: {why}"),
                    },
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
        let term = match self.leads_here(wait).await {
            Ok(leads) => leads.term,
            Err(why) => return LivenessReply::NotNow { why },
        };
        match self.ear().health(term) {
            Some(nodes) => LivenessReply::Nodes { nodes, term },
            None => LivenessReply::NotNow { why: "newly elected".to_owned() },
        }
    }
}

/// What a leader said, if to the knowledge of who asked, who is in `term`, it leads still. One of a later term that was not heard
/// of here yet knows better.
fn current(reply: LivenessReply, term: u64) -> Result<Vec<NodeHealth>, String> {
    match reply {
        LivenessReply::Nodes { nodes, term: of } if of >= term => Ok(nodes),
        LivenessReply::Nodes { term: of, .. } => Err(format!("it led in term {of}, and this is term {term}")),
        LivenessReply::NotNow { why } => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use pollux_state::detector::{DOWN_AFTER_MS, Verdict};
    use tokio::time::advance;

    use super::*;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const TERM: u64 = 4;

    /// A leader's, which has just heard everybody.
    fn ear() -> Ear {
        just_heard(Ear::new())
    }

    /// One that takes every time for one in which it was awake.
    fn ear_that_never_looks() -> Ear {
        just_heard(Ear { asleep_after_ms: u64::MAX, ..Ear::new() })
    }

    fn just_heard(ear: Ear) -> Ear {
        ear.leads(Some(TERM), [ME, OTHER]);
        ear.heard(OTHER, Incarnation(1));
        ear
    }

    fn verdict(ear: &Ear) -> Verdict {
        let health = ear.health(TERM).unwrap();
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

    /// Negative control: the story before without the look at the clock.
    #[tokio::test(start_paused = true)]
    async fn without_the_look_a_leader_that_slept_counts_everybody_dead() {
        let ear = ear_that_never_looks();
        advance(Duration::from_secs(60)).await;
        assert_eq!(verdict(&ear), Verdict::Down, "the control itself is broken");
    }

    #[tokio::test(start_paused = true)]
    async fn looking_often_makes_no_silence_shorter() {
        let ear = ear();
        for _ in 0..DOWN_AFTER_MS * 10 {
            advance(Duration::from_micros(100)).await;
            ear.heard(ME, Incarnation(1));
        }
        assert_eq!(verdict(&ear), Verdict::Down);
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_of_another_term_is_none() {
        let ear = ear();
        awake(&ear, Duration::from_millis(DOWN_AFTER_MS)).await;
        assert_eq!(verdict(&ear), Verdict::Down);

        // Another led meanwhile, and was spoken to; this one leads again, and its task has not heard of either yet.
        assert_eq!(ear.health(TERM + 2), None);

        ear.leads(Some(TERM + 2), [ME, OTHER]);
        assert_eq!(ear.health(TERM), None, "nor is a term asked for that is over");
        let health = ear.health(TERM + 2).unwrap();
        assert!(health.iter().all(|health| health.silent_ms == 0), "{health:?}");
    }

    #[test]
    fn who_led_in_an_earlier_term_is_not_believed() {
        let list = |term| LivenessReply::Nodes { nodes: Vec::new(), term };
        assert!(current(list(4), 4).is_ok());
        assert!(current(list(5), 4).is_ok(), "the news of it is on its way here");
        assert!(current(list(3), 4).is_err_and(|why| why.contains("term 3")));
    }
}
