//! Answering the other nodes' consensus layers.

use std::time::Duration;

use bytes::Bytes;
use pollux_state::id::NodeId;

use crate::{
    consensus::Consensus,
    elections,
    encoding::{STORED, decode, encode},
    message::{
        Append, Exchange, Heartbeat, Liveness, MayStand, Propose, ProposeRequest, ReadIndex, RequestVote, SnapshotPiece,
    },
    types::Vote,
};

/// Longest a peer may make this node wait for its proposal.
const PROPOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why a request was not carried out. Nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0} is no method of the consensus layer")]
    NoSuchMethod(u16),
    #[error("the request cannot be read: {0}")]
    Garbled(String),
    #[error("{0}")]
    NotAllowed(String),
    #[error("this node's consensus layer has stopped: {0}")]
    Stopped(String),
}

impl Consensus {
    /// Answers one request of `from`, whose certificate says it is that node.
    pub(crate) async fn answer(&self, from: NodeId, method: u16, body: &[u8]) -> Result<Bytes, Refusal> {
        let raft = self.raft();
        match method {
            Append::METHOD => {
                let request = read::<Append>(body)?;
                own_vote(from, &request.vote)?;
                reply::<Append>(&raft.append_entries(request).await.map_err(stopped)?)
            }
            RequestVote::METHOD => {
                let request = read::<RequestVote>(body)?;
                own_vote(from, &request.vote)?;
                reply::<RequestVote>(&raft.vote(request).await.map_err(stopped)?)
            }
            SnapshotPiece::METHOD => {
                let request = read::<SnapshotPiece>(body)?;
                own_vote(from, &request.vote)?;
                let end = usize::try_from(request.offset).ok().and_then(|start| start.checked_add(request.data.len()));
                if end.is_none_or(|end| end > STORED.bytes()) {
                    return Err(Refusal::NotAllowed(format!("the snapshot is larger than {} bytes", STORED.bytes())));
                }
                let answer = match raft.install_snapshot(request).await {
                    Ok(answer) => Ok(answer),
                    Err(openraft::error::RaftError::APIError(error)) => Err(error),
                    Err(openraft::error::RaftError::Fatal(fatal)) => return Err(stopped(fatal)),
                };
                reply::<SnapshotPiece>(&answer)
            }
            MayStand::METHOD => {
                let request = read::<MayStand>(body)?;
                let answer = elections::may_stand(raft, self.log(), self.timing(), &request).await;
                reply::<MayStand>(&answer.map_err(stopped)?)
            }
            Propose::METHOD => {
                let ProposeRequest { proposal, wait_ms } = read::<Propose>(body)?;
                self.admissible(from, &proposal).map_err(Refusal::NotAllowed)?;
                let wait = Duration::from_millis(wait_ms).min(PROPOSE_WAIT_MAX);
                reply::<Propose>(&self.append_here(proposal, wait).await)
            }
            ReadIndex::METHOD => {
                read::<ReadIndex>(body)?;
                reply::<ReadIndex>(&self.index_here(self.timing().election_max).await)
            }
            Heartbeat::METHOD => {
                self.ear().heard(from, read::<Heartbeat>(body)?);
                reply::<Heartbeat>(&())
            }
            Liveness::METHOD => {
                read::<Liveness>(body)?;
                reply::<Liveness>(&self.liveness_here(self.timing().election_max).await)
            }
            other => Err(Refusal::NoSuchMethod(other)),
        }
    }
}

fn read<E: Exchange>(body: &[u8]) -> Result<E::Request, Refusal> {
    decode(body).map_err(Refusal::Garbled)
}

fn reply<E: Exchange>(reply: &E::Reply) -> Result<Bytes, Refusal> {
    encode(reply).map_err(Refusal::Stopped)
}

fn stopped(error: impl std::fmt::Display) -> Refusal {
    Refusal::Stopped(error.to_string())
}

/// A node leads, and asks for votes, in its own name only.
fn own_vote(from: NodeId, vote: &Vote) -> Result<(), Refusal> {
    let named = vote.leader_id().node_id;
    if named == from.0 {
        Ok(())
    } else {
        Err(Refusal::NotAllowed(format!("{from} speaks in the name of {}", NodeId(named))))
    }
}
