//! The types openraft is instantiated with. Nothing outside this package sees them.

use std::{
    io::Cursor,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use pollux_state::{Applied, Proposal};
use serde::{Deserialize, Serialize};

use crate::runtime::Runtime;

openraft::declare_raft_types!(
    /// Proposals in, what came of them out. Entries that are not proposals (a leader's first one, a change of
    /// membership) answer `None`.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Option<Applied>,
        NodeId = u64,
        Node = Member,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Member>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, Member>;
pub(crate) type Fatal = openraft::error::Fatal<u64>;
pub(crate) type StorageError = openraft::StorageError<u64>;

/// What the log's own membership entries say about a node: enough to reach it before the first proposal is applied. Once
/// it is, the address in the applied state wins, because a node may come back at another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

impl Default for Member {
    /// Required by openraft, which makes one when it is told an id without a node. Pollux never does.
    fn default() -> Self {
        Self { name: String::new(), address: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)) }
    }
}
