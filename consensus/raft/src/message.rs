//! What one consensus layer says to another. Every exchange is one request and one answer on link's consensus class.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::{
    error::InstallSnapshotError,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
        VoteResponse,
    },
};
use pollux_state::{
    Applied, Proposal,
    detector::NodeHealth,
    id::{Incarnation, NodeId},
};
use pollux_wire::method;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::types::{LogId, TypeConfig};

/// An exchange: its number on the wire, and what is asked and answered.
pub(crate) trait Exchange {
    const METHOD: u16;
    type Request: Serialize + DeserializeOwned + Send + Sync;
    type Reply: Serialize + DeserializeOwned + Send + Sync;
}

macro_rules! exchange {
    ($(#[$doc:meta])* $name:ident = $method:expr, $request:ty => $reply:ty) => {
        $(#[$doc])*
        pub(crate) enum $name {}
        impl Exchange for $name {
            const METHOD: u16 = $method;
            type Request = $request;
            type Reply = $reply;
        }
    };
}

exchange!(
    /// openraft: entries, or a leader's sign of life.
    Append = method::APPEND, AppendEntriesRequest<TypeConfig> => AppendEntriesResponse<u64>
);
exchange!(
    /// openraft: a candidate asks for a vote.
    RequestVote = method::VOTE, VoteRequest<u64> => VoteResponse<u64>
);
exchange!(
    /// openraft: a piece of a snapshot.
    SnapshotPiece = method::SNAPSHOT,
    InstallSnapshotRequest<TypeConfig> => Result<InstallSnapshotResponse<u64>, InstallSnapshotError>
);
exchange!(
    /// May I stand for election? Asked before openraft is allowed to.
    MayStand = method::MAY_STAND, Standing => bool
);
exchange!(
    /// Append this if you lead.
    Propose = method::PROPOSE, ProposeRequest => ProposeReply
);
exchange!(
    /// Up to which index must a read that begins now have applied?
    ReadIndex = method::READ_INDEX, () => ReadReply
);
exchange!(
    /// I live.
    Heartbeat = method::HEARTBEAT, Incarnation => ()
);
exchange!(
    /// Who lives?
    Liveness = method::LIVENESS, () => LivenessReply
);

/// How far the log of a node that wants to stand for election goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) last_log: Option<LogId>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProposeRequest {
    pub(crate) proposal: Proposal,
    /// How long the asker waits.
    pub(crate) wait_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ProposeReply {
    /// In the log, and applied.
    Applied(Applied),
    /// Surely not in the log through this request.
    NotAppended {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
        /// Why not.
        why: String,
    },
    /// Perhaps in the log.
    Unknown {
        /// Why it cannot be told.
        why: String,
    },
    /// Surely not in the log through this request: the leader objects.
    Refused {
        /// Why.
        why: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ReadReply {
    /// Confirmed by a majority after the request came.
    Index(u64),
    /// Ask somebody else, or again.
    NotNow {
        /// Why.
        why: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum LivenessReply {
    /// What the leader thinks of every member.
    Nodes {
        nodes: Vec<NodeHealth>,
        /// The term in which it leads: the list is of that, and a majority confirmed it after the request came.
        term: u64,
    },
    NotNow {
        /// Why.
        why: String,
    },
}

/// A request that was not answered as hoped.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// The peer surely did not see it.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The peer did not look at it: to its knowledge this node was removed from the cluster.
    #[error("not admitted: {0}")]
    NotAdmitted(String),
    /// The peer may have acted on it.
    #[error("no answer: {0}")]
    Unknown(String),
    /// The peer saw it and said no.
    #[error("refused: {0}")]
    Fault(String),
}

/// The network as the consensus layer needs it.
#[async_trait]
pub(crate) trait Network: Send + Sync + 'static {
    async fn call(
        &self,
        node: NodeId,
        address: SocketAddr,
        method: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError>;
}

/// One exchange over `network`.
pub(crate) async fn ask<E: Exchange>(
    network: &dyn Network,
    node: NodeId,
    address: SocketAddr,
    request: &E::Request,
    deadline: Duration,
) -> Result<E::Reply, CallError> {
    let body = crate::encoding::encode(request).map_err(CallError::NotSent)?;
    let reply = network.call(node, address, E::METHOD, body, deadline).await?;
    crate::encoding::decode(&reply).map_err(|reason| CallError::Unknown(format!("the answer is garbled: {reason}")))
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;
    use pollux_state::{Command, Outcome, detector::Verdict, id::OpId};

    use super::*;

    /// The messages of openraft itself are its own; those around it are ours, and both ends may be of different versions.
    fn is_written_as<T: Serialize>(value: &T, golden: &str) {
        let bytes = crate::encoding::encode(value).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn what_consensus_layers_say_to_each_other_is_what_it_was() {
        let last_log = Some(LogId::new(CommittedLeaderId::new(3, 1), 9));
        is_written_as(&Standing { last_log }, "01030000000000000001000000000000000900000000000000");
        let command = Command::Cancel { op: OpId([4; 16]) };
        let proposal = Proposal { id: OpId([9; 16]), by: NodeId(2), at: 1_000, command };
        is_written_as(
            &ProposeRequest { proposal, wait_ms: 2_000 },
            "090909090909090909090909090909090200000000000000e8030000000000000f00000004040404040404040404040404040404d007000000000000",
        );
        is_written_as(
            &ProposeReply::Applied(Applied { index: 9, outcome: Outcome::Done }),
            "00000000090000000000000000000000",
        );
        is_written_as(
            &ProposeReply::NotAppended { leader: Some(NodeId(1)), why: "no".into() },
            "0100000001010000000000000002000000000000006e6f",
        );
        is_written_as(&ProposeReply::Unknown { why: "no".into() }, "0200000002000000000000006e6f");
        is_written_as(&ProposeReply::Refused { why: "no".into() }, "0300000002000000000000006e6f");
        is_written_as(&ReadReply::Index(9), "000000000900000000000000");
        is_written_as(&ReadReply::NotNow { why: "no".into() }, "0100000002000000000000006e6f");
        let health = NodeHealth { node: NodeId(1), verdict: Verdict::Suspect, silent_ms: 700, incarnation: None };
        is_written_as(
            &LivenessReply::Nodes { nodes: vec![health], term: 3 },
            "000000000100000000000000010000000000000001000000bc02000000000000000300000000000000",
        );
        is_written_as(&LivenessReply::NotNow { why: "no".into() }, "0100000002000000000000006e6f");
        is_written_as(&Incarnation(3), "0300000000000000");
    }
}
