//! Reading what is true, not what was: a read that sees every write that ended before it began.
//!
//! The leader notes how far the log is committed and then asks a majority whether it still leads; a leader that was
//! replaced learns it there. The question is put after the request came in, never answered from memory. The asking node then
//! waits until it has applied that far itself.

use std::time::Duration;

use pollux_state::id::NodeId;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    consensus::Consensus,
    message::{ReadIndex, ReadReply},
};

/// How long to wait before asking again when nothing has changed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why a read cannot be promised to be up to date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No majority confirmed a leader in time.
    #[error("no leader confirmed by a majority within {waited_ms} ms ({last}); what this node knows may be old")]
    NoLeader {
        /// How long it was tried.
        waited_ms: u128,
        /// What came of the last attempt.
        last: String,
    },
    /// A leader answered, but this node has not applied that much yet.
    #[error("this node has applied entry {applied} of {wanted} within {waited_ms} ms; it is catching up, try again")]
    Behind {
        /// How far it is.
        applied: u64,
        /// How far it had to be.
        wanted: u64,
        /// How long it was tried.
        waited_ms: u128,
    },
}

/// What a majority confirmed of a leader after it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leads {
    /// The term in which it leads.
    pub(crate) term: u64,
    /// The index that a read begun then needs.
    pub(crate) index: u64,
}

impl Consensus {
    /// Waits until this node's [`View`](crate::View) shows everything that was committed before the call, and returns the
    /// index up to which that is. Any view with at least this `applied` will do.
    ///
    /// # Errors
    /// [`ReadError`]: the view may be old. Old state may stop things, never start them (DESIGN, rule 3).
    pub async fn linearizable(&self, deadline: Duration) -> Result<u64, ReadError> {
        let started = Instant::now();
        let end = started + deadline;
        let wanted = self.confirmed_index(started, end).await?;
        let mut view = self.watch();
        let applied = timeout_at(end, view.wait_for(|view| view.applied >= wanted)).await;
        match applied {
            Ok(Ok(_)) => Ok(wanted),
            Ok(Err(_)) | Err(_) => {
                let applied = self.watch().borrow().applied;
                Err(ReadError::Behind { applied, wanted, waited_ms: started.elapsed().as_millis() })
            }
        }
    }

    async fn confirmed_index(&self, started: Instant, end: Instant) -> Result<u64, ReadError> {
        let mut leadership = self.leadership();
        let mut last = "no leader is known".to_owned();
        loop {
            let leader = leadership.borrow_and_update().current_leader;
            if let Some(leader) = leader {
                match self.ask_index(NodeId(leader), end.saturating_duration_since(Instant::now())).await {
                    Ok(index) => return Ok(index),
                    Err(why) => last = why,
                }
            }
            let now = Instant::now();
            if now >= end || self.is_stopping() {
                return Err(ReadError::NoLeader { waited_ms: (now - started).as_millis(), last });
            }
            tokio::select! {
                () = sleep_until(end.min(now + RETRY_PAUSE)) => {}
                Ok(_) = leadership.wait_for(|now| now.current_leader != leader) => {}
                () = self.stopping() => {}
            }
        }
    }

    async fn ask_index(&self, leader: NodeId, left: Duration) -> Result<u64, String> {
        // A read may be asked again at no risk, so a leader that is gone is not waited for longer than an election takes.
        let wait = left.min(self.timing().election_max);
        let reply = if leader == self.node() {
            self.index_here(wait).await
        } else {
            let asked = self.peers().ask::<ReadIndex>(leader, self.known_address(leader), &(), wait);
            asked.await.map_err(|error| format!("{leader}: {error}"))?
        };
        match reply {
            ReadReply::Index(index) => Ok(index),
            ReadReply::NotNow { why } => Err(format!("{leader}: {why}")),
        }
    }

    /// The index a read that begins now needs, if this node leads and a majority says so.
    pub(crate) async fn index_here(&self, wait: Duration) -> ReadReply {
        match self.leads_here(wait).await {
            Ok(leads) => ReadReply::Index(leads.index),
            Err(why) => ReadReply::NotNow { why },
        }
    }

    /// Whether this node leads and a majority, asked now, says so.
    pub(crate) async fn leads_here(&self, wait: Duration) -> Result<Leads, String> {
        match tokio::time::timeout(wait, self.raft().get_read_log_id()).await {
            Ok(Ok((Some(last), _applied))) => {
                // At least the first entry of the leader's own term, and so of that term: nothing of a later one is committed.
                Ok(Leads { term: last.leader_id.term, index: last.index.max(self.least_index()) })
            }
            Ok(Ok((None, _applied))) => Err("it leads without a log".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("not confirmed within {} ms", wait.as_millis())),
        }
    }
}
