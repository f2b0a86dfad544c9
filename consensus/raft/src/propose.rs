//! Getting an entry into the log.
//!
//! The same proposal, with the same id, is offered to whoever leads until an answer comes back or the time is up. An
//! attempt that got no answer may still succeed, so it is never reported as "no" (DESIGN, rule 2): applying an id twice
//! changes the state once and answers the same, which makes offering it again safe.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{EntryPayload, error::ClientWriteError, error::RaftError};
use pollux_state::{
    Applied, Proposal,
    id::{NodeId, OpId},
};
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    consensus::Consensus,
    encoding::check_proposal,
    leader,
    message::{CallError, Propose, ProposeReply, ProposeRequest},
    removal::Objection,
    types::{Entry, Raft},
};

/// How long to wait before the next attempt when nothing has changed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest one attempt may take. A leader that is silent for longer is asked again; it may be another by then.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// Why a proposal has no outcome to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It may be in the log now or later. Do only what both outcomes allow, or offer the same id again.
    #[error(
        "whether proposal {id} took effect is not known after {waited_ms} ms ({last}); read the state before acting on it"
    )]
    Unknown {
        /// Which.
        id: OpId,
        /// How long it was tried.
        waited_ms: u128,
        /// What came of the last attempt.
        last: String,
    },
    /// Nobody ever took it: it will surely not take effect.
    #[error("no leader took proposal {id} within {waited_ms} ms ({last}); nothing has changed, try again")]
    NoLeader {
        /// Which.
        id: OpId,
        /// How long it was tried.
        waited_ms: u128,
        /// What came of the last attempt.
        last: String,
    },
    /// It was refused before it reached the log: it will surely not take effect, and offering it again would not help.
    #[error("proposal {id} is refused: {why}")]
    Refused {
        /// Which.
        id: OpId,
        /// Why.
        why: String,
    },
}

impl ProposeError {
    /// It may have taken effect, or may yet.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// What came of one attempt.
enum Attempt {
    Applied(Applied),
    NotAppended(String),
    Unknown(String),
    Refused(String),
}

impl Consensus {
    /// Brings `proposal` into the log, through whoever leads, and returns what applying it did. An [`Applied`] may tell of
    /// an earlier attempt with the same id.
    ///
    /// # Errors
    /// [`ProposeError`]; mind the difference between `Unknown` and the others.
    pub async fn propose(&self, proposal: Proposal, deadline: Duration) -> Result<Applied, ProposeError> {
        let started = Instant::now();
        let end = started + deadline;
        let id = proposal.id;
        if let Err(why) = self.admissible(self.node(), &proposal) {
            return Err(ProposeError::Refused { id, why });
        }
        let mut perhaps = false;
        let mut last = "no leader is known".to_owned();
        let mut leadership = self.leadership();
        loop {
            let leader = leadership.borrow_and_update().current_leader;
            if let Some(leader) = leader {
                let left = end.saturating_duration_since(Instant::now());
                let attempt = tokio::select! {
                    attempt = self.attempt(NodeId(leader), &proposal, left.min(ATTEMPT_MAX)) => attempt,
                    // Another one leads: no use waiting for this one, though it may have done its work.
                    Ok(_) = leadership.wait_for(|now| now.current_leader.is_some_and(|now| now != leader)) => {
                        Attempt::Unknown(format!("{} leads no more", NodeId(leader)))
                    }
                };
                match attempt {
                    Attempt::Applied(applied) => return Ok(applied),
                    Attempt::NotAppended(why) => last = why,
                    Attempt::Unknown(why) => {
                        perhaps = true;
                        last = why;
                    }
                    Attempt::Refused(why) if perhaps => last = why,
                    Attempt::Refused(why) => return Err(ProposeError::Refused { id, why }),
                }
            }
            let now = Instant::now();
            if now >= end || self.is_stopping() {
                let waited_ms = (now - started).as_millis();
                return Err(if perhaps {
                    ProposeError::Unknown { id, waited_ms, last }
                } else {
                    ProposeError::NoLeader { id, waited_ms, last }
                });
            }
            tokio::select! {
                () = sleep_until(end.min(now + RETRY_PAUSE)) => {}
                Ok(_) = leadership.wait_for(|now| now.current_leader != leader) => {}
                () = self.stopping() => {}
            }
        }
    }

    /// What is checked before a proposal by `by` goes anywhere near the log.
    pub(crate) fn admissible(&self, by: NodeId, proposal: &Proposal) -> Result<(), String> {
        if proposal.by != by {
            return Err(format!("it says it is by {}, but {by} proposes it", proposal.by));
        }
        check_proposal(proposal)
    }

    async fn attempt(&self, leader: NodeId, proposal: &Proposal, wait: Duration) -> Attempt {
        if leader == self.node() {
            return match self.append_here(proposal.clone(), wait).await {
                ProposeReply::Applied(applied) => Attempt::Applied(applied),
                ProposeReply::NotAppended { why, .. } => Attempt::NotAppended(why),
                ProposeReply::Unknown { why } => Attempt::Unknown(why),
                ProposeReply::Refused { why } => Attempt::Refused(why),
            };
        }
        // A tenth of the time is for the way there and back.
        let wait_ms = u64::try_from((wait * 9 / 10).as_millis()).unwrap_or(u64::MAX);
        let request = ProposeRequest { proposal: proposal.clone(), wait_ms };
        let asked = self.peers().ask::<Propose>(leader, self.known_address(leader), &request, wait);
        match asked.await {
            Ok(ProposeReply::Applied(applied)) => Attempt::Applied(applied),
            Ok(ProposeReply::NotAppended { why, .. }) | Err(CallError::NotSent(why) | CallError::NotAdmitted(why)) => {
                Attempt::NotAppended(format!("{leader}: {why}"))
            }
            Ok(ProposeReply::Unknown { why }) | Err(CallError::Unknown(why)) => {
                Attempt::Unknown(format!("{leader}: {why}"))
            }
            Ok(ProposeReply::Refused { why }) => Attempt::Refused(why),
            Err(CallError::Fault(why)) => Attempt::Refused(format!("{leader} says: {why}")),
        }
    }

    /// Offers `proposal` to this node's own log.
    pub(crate) async fn append_here(&self, proposal: Proposal, wait: Duration) -> ProposeReply {
        // openraft's leader leads on when nobody hears it, and would keep whatever it is offered for as long as that lasts.
        if !leader::hears_a_majority(self) {
            return ProposeReply::NotAppended { leader: None, why: "it does not hear a majority".to_owned() };
        }
        let mut one_by_one = None;
        if proposal.command.costs_a_node() {
            let Ok(turn) = timeout(wait, self.removing().clone().lock_owned()).await else {
                return ProposeReply::NotAppended { leader: None, why: "another node is being removed".to_owned() };
            };
            one_by_one = Some(turn);
        }
        if proposal.command.declares_dead() || proposal.command.costs_a_node() {
            let term = match self.caught_up(wait).await {
                Ok(term) => term,
                Err(why) => return ProposeReply::NotAppended { leader: None, why },
            };
            match self.objection(term, &proposal) {
                Some(Objection::NotNow(why)) => return ProposeReply::NotAppended { leader: None, why },
                Some(Objection::No(why)) => return ProposeReply::Refused { why },
                None => {}
            }
        }
        let in_flight = self.in_flight().watch(proposal.id);
        let raft = self.raft().clone();
        // Also when nobody waits for its outcome any more: until it has one, no other removal is judged.
        let writing = self.spawn(async move {
            let written = write(&raft, proposal).await;
            drop(one_by_one);
            written
        });
        let written = timeout(wait, writing).await;
        let refused = match written {
            Ok(Ok(Some(Ok(applied)))) => return ProposeReply::Applied(applied),
            Ok(Ok(Some(Err(refused)))) => refused,
            Ok(Ok(None)) => return ProposeReply::Unknown { why: "this node stops".to_owned() },
            Ok(Err(failed)) => return ProposeReply::Unknown { why: failed.to_string() },
            // openraft may still have it in its queue.
            Err(_) => return ProposeReply::Unknown { why: format!("not applied within {} ms", wait.as_millis()) },
        };
        // openraft says the same whether it refused the entry at once or took it back after it was in the log (where
        // another node may have it, and win with it). The store saw which.
        if in_flight.was_appended() {
            ProposeReply::Unknown { why: refused.why }
        } else {
            ProposeReply::NotAppended { leader: refused.leader, why: refused.why }
        }
    }
}

struct NotWritten {
    leader: Option<NodeId>,
    why: String,
}

async fn write(raft: &Raft, proposal: Proposal) -> Result<Applied, NotWritten> {
    match raft.client_write(proposal).await {
        Ok(written) => written
            .data
            .ok_or_else(|| NotWritten { leader: None, why: "the entry was applied without an outcome".to_owned() }),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Err(NotWritten { leader: forward.leader_id.map(NodeId), why: "this node does not lead".to_owned() })
        }
        Err(error) => Err(NotWritten { leader: None, why: error.to_string() }),
    }
}

/// Which of the proposals being offered here have reached the store.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    watched: Mutex<BTreeMap<OpId, Watched>>,
}

#[derive(Debug, Default)]
struct Watched {
    watchers: usize,
    appended: Arc<AtomicBool>,
}

impl InFlight {
    fn watch(self: &Arc<Self>, id: OpId) -> Watch {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.entry(id).or_default();
        entry.watchers += 1;
        Watch { all: Arc::clone(self), id, appended: Arc::clone(&entry.appended) }
    }

    /// The store was told to keep `entry`.
    pub(crate) fn appended(&self, entry: &Entry) {
        if let EntryPayload::Normal(proposal) = &entry.payload {
            let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(watched) = watched.get(&proposal.id) {
                watched.appended.store(true, Ordering::Release);
            }
        }
    }
}

/// One offer of one proposal, from before openraft has it until its outcome is known.
struct Watch {
    all: Arc<InFlight>,
    id: OpId,
    appended: Arc<AtomicBool>,
}

impl Watch {
    fn was_appended(&self) -> bool {
        self.appended.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.all.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = watched.get_mut(&self.id) {
            entry.watchers -= 1;
            if entry.watchers == 0 {
                watched.remove(&self.id);
            }
        }
    }
}
